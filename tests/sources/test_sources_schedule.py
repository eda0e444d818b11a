"""Schedules: exact token counts, true continuations, no text twice, shared prefixes, one text for every tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.core.errors import ModelError, TraceError
from moeprof.core.trace import Schedule
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Prefix, Prompts, TraceSource, Traffic
from moeprof.sources.corpus import load_corpus
from moeprof.sources.schedule import BuiltSchedule, build_schedule
from moeprof.sources.tokenizer import TextTokenizer, from_backend, load_tokenizer, render_chat
from tests.helpers.shared_data import shared

PACKAGED = Prompts(source="packaged")
SMALL = LengthPair(input=Lengths(distribution="uniform", low=4, high=40), output=Lengths(value=8))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train(vocab_size: int, *, bos: bool = False) -> Any:
    """A byte-level BPE of the packaged text, in a tenth of a second."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [passage.load() for passages in load_corpus(PACKAGED).values() for passage in passages]
    backend.train_from_iterator(texts, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return from_backend(train(1000), name="reference", sha256="r", chat_template=CHATML)


@pytest.fixture(scope="module")
def other() -> TextTokenizer:
    return from_backend(train(400, bos=True), name="other", sha256="o")


def synthetic(number: int = 20, **changes: Any) -> Traffic:
    return Traffic(
        **{"arrivals": Arrivals(rate=10), "lengths": SMALL, "prompts": PACKAGED, "num_requests": number} | changes
    )


def trace_of(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Traffic:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return Traffic(trace=TraceSource(path=str(path), **changes.pop("trace", {})), **{"prompts": PACKAGED} | changes)


def codes(schedule: Schedule) -> dict[str, int]:
    return {note.code: note.count for note in schedule.notes}


def full_ids(built: BuiltSchedule, i: int) -> list[int]:
    assert built.measured.output_ids is not None
    return [*built.measured.input_ids[i].tolist(), *built.measured.output_ids[i].tolist()]


def test_prompts_have_exactly_the_asked_tokens_and_real_text(tokenizer: TextTokenizer) -> None:
    built = build_schedule(synthetic(), tokenizer=tokenizer, seed=0)
    schedule = built.measured
    assert schedule.pattern == "open"
    assert 4 <= schedule.input_tokens.min() <= schedule.input_tokens.max() <= 40
    assert schedule.output_ids is not None
    assert [len(ids) for ids in schedule.output_ids] == schedule.output_tokens.tolist() == [8] * 20
    assert schedule.realism == "real_text"
    assert set(schedule.classes) == {"code", "prose"}
    corpus = {name: "\n\n".join(p.load() for p in passages) for name, passages in load_corpus(PACKAGED).items()}
    found = sum(
        tokenizer.decode([np.array(full_ids(built, i))])[0] in corpus[schedule.request_class[i]] for i in range(20)
    )
    assert found >= 15  # windows that cross from one passage to the next in shuffled order are not in one piece


def test_no_text_is_used_twice_and_the_warmup_has_its_own(tokenizer: TextTokenizer) -> None:
    built = build_schedule(synthetic(100), tokenizer=tokenizer, seed=0)
    assert built.warmup.pattern == "offline"
    seen: set[tuple[int, ...]] = set()
    for schedule in (built.measured, built.warmup):
        for ids in schedule.input_ids:
            pieces = {tuple(ids[i : i + 16].tolist()) for i in range(0, len(ids) - 16)}
            assert not pieces & seen
            seen |= pieces
    assert "text_reused" not in codes(built.measured)
    assert set(built.warmup.classes) <= set(built.measured.classes)


def test_a_corpus_that_is_too_small_is_used_again_and_said(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one two three four five six seven\n%%\neight nine ten\n")
    prompts = Prompts(source="file", path=str(tmp_path / "p.txt"))
    schedule = build_schedule(synthetic(prompts=prompts), tokenizer=tokenizer, seed=0).measured
    assert schedule.realism == "repeated"
    assert codes(schedule)["text_reused"] > 10
    assert schedule.classes == ("p",)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tokenizer: TextTokenizer) -> None:
    hashes = [build_schedule(synthetic(), tokenizer=tokenizer, seed=s).measured.sha256() for s in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_schedule_saved_and_loaded_is_the_same(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    schedule = build_schedule(synthetic(), tokenizer=tokenizer, seed=0).measured
    schedule.save(tmp_path / "s.parquet")
    assert Schedule.load(tmp_path / "s.parquet").sha256() == schedule.sha256()


def test_requests_with_the_same_blocks_start_with_the_same_tokens(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    row = {"output_length": 2}
    rows = [
        row | {"timestamp": 0, "input_length": 600, "hash_ids": [1, 2]},
        row | {"timestamp": 1, "input_length": 700, "hash_ids": [1, 3]},
        row | {"timestamp": 2, "input_length": 600, "hash_ids": [8, 9]},
    ]
    first, second, third = build_schedule(trace_of(tmp_path, rows), tokenizer=tokenizer, seed=0).measured.input_ids
    assert np.array_equal(first[:512], second[:512])
    assert not np.array_equal(first[512:600], second[512:600])
    assert not np.array_equal(first[:512], third[:512])


def test_blocks_of_16_tokens_give_prompts_that_share_48_of_64_and_then_differ(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    base = {"input_length": 64, "output_length": 8}
    rows = [base | {"timestamp": 1000 * i, "hash_ids": [0, 1, 2, 10 + i]} for i in range(10)]
    prompts = build_schedule(trace_of(tmp_path, rows), tokenizer=tokenizer, seed=0).measured.input_ids
    assert len({tuple(ids[:48].tolist()) for ids in prompts}) == 1
    assert len({tuple(ids.tolist()) for ids in prompts}) == 10


def test_a_synthetic_prefix_is_shared_and_the_rest_is_not(tokenizer: TextTokenizer) -> None:
    lengths = LengthPair(input=Lengths(value=50), output=Lengths(value=4))
    traffic = synthetic(10, lengths=lengths, prefix=Prefix(count=1, tokens=30))
    ids = build_schedule(traffic, tokenizer=tokenizer, seed=0).measured.input_ids
    assert len({tuple(i[:30].tolist()) for i in ids}) == 1
    assert len({tuple(i[30:].tolist()) for i in ids}) == 10


def test_another_tokenizer_gets_the_same_text_in_its_own_ids(tokenizer: TextTokenizer, other: TextTokenizer) -> None:
    built = build_schedule(synthetic(), tokenizer=tokenizer, seed=0)
    own = built.for_tokenizer(other)
    assert built.text is not None
    assert own.measured.output_ids is not None
    for i in range(20):
        assert own.measured.input_ids[i][0] == 0  # its begin-of-text token
        assert other.decode([own.measured.input_ids[i]])[0] == built.text.prompts[i]
        assert other.decode([own.measured.output_ids[i]])[0] == built.text.outputs[i]
    assert np.array_equal(own.measured.num_characters, built.measured.num_characters)
    assert own.measured.output_tokens.tolist() == [len(ids) for ids in own.measured.output_ids]
    assert own.measured.arrival_s is built.measured.arrival_s


def test_the_begin_of_text_token_is_part_of_the_exact_count(other: TextTokenizer) -> None:
    schedule = build_schedule(
        synthetic(lengths=LengthPair(input=Lengths(value=9), output=Lengths(value=1))), tokenizer=other, seed=0
    ).measured
    assert other.leading_ids == (0,)
    assert schedule.input_tokens.tolist() == [9] * 20
    assert {int(ids[0]) for ids in schedule.input_ids} == {0}


def test_messages_go_through_the_chat_template(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hello"}], "output": "good morning"}]
    built = build_schedule(trace_of(tmp_path, rows), tokenizer=tokenizer, seed=0)
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert built.measured.input_ids[0].tolist() == tokenizer.encode_template(rendered).tolist()
    assert built.measured.input_ids[0][0] == 1  # one special token, not its letters
    assert built.measured.pattern == "offline"
    assert built.measured.num_characters.tolist() == [len("hello") + len("good morning")]


def test_without_a_chat_template_roles_are_written_out_and_said(other: TextTokenizer, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hello"}], "output": "hi"}]
    built = build_schedule(trace_of(tmp_path, rows), tokenizer=other, seed=0)
    assert other.decode([built.measured.input_ids[0]])[0] == "user: hello\n\nassistant:"
    assert codes(built.measured)["no_chat_template"] == 1


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system role') }}", "{% if %}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"],
)
def test_a_template_that_refuses_breaks_or_escapes_is_an_error(template: str) -> None:
    tokenizer = from_backend(train(300), name="m", sha256="", chat_template=template)
    with pytest.raises(TraceError, match="chat template of m refuses"):
        render_chat(tokenizer, [("user", "a")])


def test_special_tokens_spelt_in_a_text_stay_text(tokenizer: TextTokenizer) -> None:
    assert 2 not in tokenizer.encode("a <|im_end|> b").tolist()


def test_prompts_without_outputs_keep_a_length_and_the_model_chooses(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": "one", "output_tokens": 3}, {"prompt": "two", "output": "three"}]
    schedule = build_schedule(trace_of(tmp_path, rows), tokenizer=tokenizer, seed=0).measured
    assert schedule.outputs == "forced_length"
    assert schedule.output_ids is None
    assert schedule.output_tokens.tolist()[0] == 3
    assert codes(schedule)["no_output_text"] == 1


def test_rows_without_any_output_length_need_a_distribution(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"request 0 .* traffic.lengths.output"):
        build_schedule(trace_of(tmp_path, [{"prompt": "one"}]), tokenizer=tokenizer, seed=0)
    drawn = trace_of(tmp_path, [{"prompt": "one"}], lengths=LengthPair(output=Lengths(value=5)))
    assert build_schedule(drawn, tokenizer=tokenizer, seed=0).measured.output_tokens.tolist() == [5]


def test_long_texts_are_dropped_or_cut_and_counted(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": "word " * 50, "output": "x"}, {"prompt": "short", "output": "y"}]
    limit = {"max_input_tokens": 10}
    dropped = build_schedule(trace_of(tmp_path, rows, trace=limit), tokenizer=tokenizer, seed=0)
    cut = build_schedule(trace_of(tmp_path, rows, trace=limit | {"too_long": "truncate"}), tokenizer=tokenizer, seed=0)
    assert (len(dropped.measured), codes(dropped.measured)["dropped_too_long"]) == (1, 1)
    assert (cut.measured.input_tokens[0], codes(cut.measured)["truncated"]) == (10, 1)
    assert cut.text is not None
    assert cut.text.prompts[0] == tokenizer.decode([cut.measured.input_ids[0]])[0]
    assert cut.text.prompts[1] == "short"


def test_arrivals_beside_a_trace_replace_its_times(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    rows = [{"arrival_s": 50.0 * i, "input_tokens": 5, "output_tokens": 2} for i in range(4)]
    closed = trace_of(tmp_path, rows, arrivals=Arrivals(pattern="concurrency", concurrency=3))
    built = build_schedule(closed, tokenizer=tokenizer, seed=0)
    assert (built.measured.pattern, built.measured.concurrency) == ("closed", 3)
    assert not built.measured.arrival_s.any()
    assert codes(built.measured)["arrivals_replaced"] == 4
    assert (built.warmup.pattern, built.warmup.concurrency) == ("closed", 3)


def test_random_ids_are_marked_avoid_special_tokens_and_have_no_text(tokenizer: TextTokenizer) -> None:
    built = build_schedule(synthetic(prompts=Prompts(source="random_ids")), tokenizer=tokenizer, seed=0)
    assert built.measured.realism == "random_ids"
    assert not {0, 1, 2} & {int(i) for ids in built.measured.input_ids for i in ids}
    assert set(built.measured.num_characters.tolist()) == {-1}
    with pytest.raises(TraceError, match="random_ids has no text"):
        built.for_tokenizer(tokenizer)


def test_the_standard_library_is_a_source_of_code_and_prose() -> None:
    corpus = load_corpus(Prompts(source="stdlib"))
    assert set(corpus) == {"code", "prose"}
    assert any("def dumps" in p.load() for p in corpus["code"] if p.name == "json/__init__.py")
    assert any("JSON" in p.load() for p in corpus["prose"] if p.name == "docs of json/__init__.py")
    assert not any(p.name.startswith(("test/", "site-packages/")) for p in corpus["code"])


def test_a_prompts_file_may_have_rows_with_classes(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "a", "category": "x"}, {"text": "b"}, {"messages": [{"role": "user", "content": "c"}]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(Prompts(source="file", path=str(path)))
    assert {name: [p.load() for p in passages] for name, passages in corpus.items()} == {"x": ["a"], "p": ["b", "c"]}
    with pytest.raises(TraceError, match=r"no class 'y'; it has p, x"):
        load_corpus(Prompts(source="file", path=str(path), classes=("y",)))


def test_a_file_without_text_or_with_other_keys_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"colour": "red"}')
    with pytest.raises(TraceError, match=r"p.jsonl:2: no prompt, text or messages"):
        load_corpus(Prompts(source="file", path=str(path)))
    path.write_text('{"prompt": " "}')
    with pytest.raises(TraceError, match="holds no text"):
        build_schedule(synthetic(prompts=Prompts(source="file", path=str(path))), tokenizer=tokenizer, seed=0)


def test_a_saved_tokenizer_is_read_with_its_template_and_without_its_truncation(tmp_path: Path) -> None:
    backend = train(400)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"chat_template": [{"name": "default", "template": "T"}], "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.chat_template, loaded.special_tokens) == ("T", {"bos_token": "<s>"})
    assert len(loaded.encode("a b c d e f g h")) > 3
    assert loaded.sha256 == load_tokenizer(tmp_path / "tokenizer.json").sha256


def test_a_missing_or_damaged_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged tokenizer"):
        load_tokenizer(tmp_path)


def test_a_minute_of_the_real_azure_trace_becomes_requests_of_the_same_times_and_lengths(
    tokenizer: TextTokenizer,
) -> None:
    import pandas as pd

    path = shared("traces/AzureLLMInferenceTrace_conv.csv")
    trace = TraceSource(path=str(path), duration_s=60, length_scale=0.25)
    schedule = build_schedule(Traffic(trace=trace), tokenizer=tokenizer, seed=0).measured
    rows = pd.read_csv(path, parse_dates=["TIMESTAMP"])
    second = (rows.TIMESTAMP - rows.TIMESTAMP.min()).dt.total_seconds()
    rows = rows[second < 60]
    assert np.abs(schedule.arrival_s - second[second < 60].to_numpy()).max() < 1e-9
    assert schedule.input_tokens.tolist() == [max(1, int(n * 0.25 + 0.5)) for n in rows.ContextTokens]
    assert schedule.output_tokens.tolist() == [max(1, int(n * 0.25 + 0.5)) for n in rows.GeneratedTokens]
    assert schedule.outputs == "forced"


def test_the_real_mooncake_trace_keeps_its_prefix_sharing(tokenizer: TextTokenizer) -> None:
    trace = TraceSource(path=str(shared("traces/mooncake_conversation.jsonl")), length_scale=1 / 32)
    schedule = build_schedule(Traffic(trace=trace, num_requests=30), tokenizer=tokenizer, seed=0).measured
    text_of: dict[int, tuple[int, ...]] = {}
    for blocks, ids in zip(schedule.prefix_blocks, schedule.input_ids, strict=True):
        for i, block in enumerate(blocks):
            piece = tuple(ids[16 * i : 16 * (i + 1)].tolist())
            if len(piece) == 16:
                assert text_of.setdefault(block, piece) == piece


def test_turns_of_added_lengths_begin_with_the_whole_prompt_before_them(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    rows = [
        {"session_id": "a", "timestamp": 0, "input_length": 130, "output_length": 10},
        {"session_id": "a", "delay": 50, "input_length": 20, "output_length": 10},
    ]
    schedule = build_schedule(trace_of(tmp_path, rows), tokenizer=tokenizer, seed=0).measured
    first, second = schedule.input_ids
    assert (len(first), len(second)) == (130, 130 + 10 + 20)
    assert schedule.output_ids is not None
    assert second[:140].tolist() == [*first.tolist(), *schedule.output_ids[0].tolist()]
    assert codes(schedule) == {"sessions_closed": 1, "turns_add_up": 1}


def test_lengths_without_an_output_get_one_from_the_workload(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"input_length": 20, "timestamp": 0}, {"input_length": 20, "output_length": 3, "timestamp": 100}]
    with pytest.raises(TraceError, match="neither an output nor output_tokens"):
        build_schedule(trace_of(tmp_path, rows), tokenizer=tokenizer, seed=0)
    lengths = LengthPair(output=Lengths(value=7))
    schedule = build_schedule(trace_of(tmp_path, rows, lengths=lengths), tokenizer=tokenizer, seed=0).measured
    assert schedule.output_tokens.tolist() == [7, 3]
    assert codes(schedule) == {"output_lengths_drawn": 1}


def test_a_log_of_text_and_counts_replays_the_text(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    row = {"call_type": "completion", "startTime": 5.0, "prompt_tokens": 999, "completion_tokens": 2}
    row |= {"messages": [{"role": "user", "content": "Hi"}], "response": "One two three four five six"}
    limits = {"max_input_tokens": 100}  # of the text's own tokens, not of the 999 that another tokenizer counted
    schedule = build_schedule(trace_of(tmp_path, [row], trace=limits), tokenizer=tokenizer, seed=0).measured
    assert 1 < len(schedule.input_ids[0]) < 100
    assert schedule.output_tokens.tolist() == [2]


def test_rows_of_lengths_among_rows_of_text_have_exactly_their_length(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [
        {"text_input": "First of all", "timestamp": 1000, "output_length": 4},
        {"input_length": 50, "timestamp": 1500, "output_length": 5},
        {"text_input": "Last", "input_length": 99, "timestamp": 2000, "output_length": 6},
    ]
    built = build_schedule(trace_of(tmp_path, rows), tokenizer=tokenizer, seed=0)
    schedule = built.measured
    assert schedule.arrival_s.tolist() == [0.0, 0.5, 1.0]
    assert len(schedule.input_ids[1]) == 50
    assert [tokenizer.decode([ids])[0] for ids in schedule.input_ids[::2]] == ["First of all", "Last"]
    assert schedule.output_tokens.tolist() == [4, 5, 6]
    assert built.text is not None
    assert built.text.prompts[0] == "First of all"
    assert codes(schedule) == {"lengths_among_text": 1, "no_output_text": 2}
