"""Prefix sharing of the paged engine: pages of 16 tokens, each computed once, and the same tokens as without."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from moeprof.capture.coverage import tiny_model
from moeprof.capture.engines.base import ListenerSet, Step
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.engines.paged.engine import PagedEngine
from moeprof.capture.engines.paged.pages import Pages, chained_digest
from moeprof.capture.engines.paged.sequences import Scheduler
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.trace import Request
from moeprof.core.workload.engine import TransformersSettings
from tests.capture.engines.test_paged_engine import MODES, VOCAB, generated, make_engine, run
from tests.capture.engines.test_paged_engine import model as model
from tests.helpers.tiny_run import SHORT, run_main

PREFIX = [7 * i % (VOCAB - 1) + 1 for i in range(64)]
OTHER = [5 * i % (VOCAB - 1) + 1 for i in range(64)]


def ask(index: int, ids: list[int], outputs: int = 4, forced: list[int] | None = None) -> Request:
    return Request(
        index=index, request_id=f"r{index}", arrival_s=0.0, input_ids=ids, output_tokens=outputs, output_ids=forced,
        request_class="all",
    )  # fmt: skip


def sharing(model: Any, **changes: Any) -> PagedEngine:
    return make_engine(model, prefix_cache=True, **changes)


def cached(steps: list[Step]) -> dict[int, int]:
    """By request, as the recorder of requests counts them: what it had before its first step."""
    found: dict[int, int] = {}
    for step in steps:
        for sequence in step.sequences:
            found.setdefault(sequence.request, sequence.past_tokens)
    return found


def prompt_tokens(steps: list[Step]) -> int:
    return sum(step.prefill_tokens for step in steps)


def pages_of(engine: PagedEngine) -> Pages:
    return engine._scheduler._pages


def test_three_requests_with_a_prefix_of_32_tokens_compute_it_once_and_have_64_cached(model: Any) -> None:
    requests = [ask(i, PREFIX[:32] + [80 + i] * (3 + i)) for i in range(3)]
    wanted = {request.index: generated(model, request) for request in requests}
    engine = sharing(model)
    tokens, steps = run(engine, requests)
    assert tokens == wanted
    assert prompt_tokens(steps) == 32 + 3 + 4 + 5
    assert cached(steps) == {0: 0, 1: 32, 2: 32}, "64 in all, though all three enter in the same step"
    assert len(steps[0].sequences) == 3
    assert steps[0].kv_tokens_used == 32 + 3 + 4 + 5, "shared pages count once"
    pages_of(engine).check_all_left()
    engine.close()


def test_without_the_key_nothing_is_shared(model: Any) -> None:
    engine = make_engine(model)
    _, steps = run(engine, [ask(i, PREFIX[:32]) for i in range(3)])
    engine.close()
    assert prompt_tokens(steps) == 96 and set(cached(steps).values()) == {0}


def test_nothing_is_shared_between_prefixes_that_differ_in_their_first_token(model: Any) -> None:
    engine = sharing(model)
    _, steps = run(engine, [ask(0, PREFIX[:48]), ask(1, [PREFIX[0] + 1, *PREFIX[1:48]])])
    engine.close()
    assert prompt_tokens(steps) == 96 and cached(steps) == {0: 0, 1: 0}
    first, second = chained_digest(b"", PREFIX[:16]), chained_digest(b"", OTHER[:16])
    assert chained_digest(first, PREFIX[16:32]) != chained_digest(second, PREFIX[16:32])


@pytest.mark.parametrize("num_tokens, reused", [(15, 0), (16, 0), (17, 16), (32, 16), (33, 32)])
def test_the_last_token_of_a_prompt_is_always_computed(model: Any, num_tokens: int, reused: int) -> None:
    request = ask(0, PREFIX[:num_tokens], outputs=1)
    engine = sharing(model)
    run(engine, [request])
    tokens, steps = run(engine, [request])
    engine.close()
    assert tokens[0] == generated(model, request), "outputs of one token"
    assert cached(steps) == {0: reused} and prompt_tokens(steps) == num_tokens - reused


def test_a_long_prompt_in_chunks_is_found_by_the_one_behind_it(model: Any) -> None:
    # Steps of 64 tokens: 64 and 36 of the first prompt, then 28 of the second's last 36; the other 64 are there.
    requests = [ask(0, PREFIX + OTHER[:36]), ask(1, PREFIX + [90] * 36)]
    wanted = {request.index: generated(model, request) for request in requests}
    engine = sharing(model)
    tokens, steps = run(engine, requests)
    engine.close()
    assert tokens == wanted and cached(steps) == {0: 0, 1: 64}
    assert [step.prefill_tokens for step in steps[:3]] == [64, 64, 8]


@pytest.mark.parametrize("forced", [True, False])
def test_the_next_turn_of_a_conversation_finds_the_answer_too(model: Any, forced: bool) -> None:
    answer = OTHER[:25] if forced else generated(model, ask(0, PREFIX[:24], 25))
    engine = sharing(model)
    tokens, _ = run(engine, [ask(0, PREFIX[:24], 25, answer if forced else None)])
    assert tokens[0] == answer
    turn = ask(1, PREFIX[:24] + answer + [9, 9])
    again, steps = run(engine, [turn])
    engine.close()
    assert cached(steps) == {1: 48}, "24 of the prompt and 24 outputs; the last output was never fed"
    assert again[1] == generated(model, turn)


def test_under_pressure_the_page_left_longest_ago_goes_and_none_in_use(model: Any) -> None:
    # 5 pages. Each request of 33 + 15 tokens takes 3, of which 2 can be found again.
    a, b, c = (ask(i, [first, *PREFIX[:32]], 15) for i, first in enumerate((1, 2, 3)))
    wanted = {request.index: generated(model, request) for request in (a, b, c)}
    engine = sharing(model, kv_tokens=80)
    found = []
    for request in (a, b, c, b, a):  # c takes the free page and those of a, left before those of b
        tokens, steps = run(engine, [request])
        assert tokens[request.index] == wanted[request.index]
        found.append(cached(steps)[request.index])
    assert found == [0, 0, 0, 32, 0]
    tokens, steps = run(engine, [a, b, c])
    assert tokens == wanted and cached(steps) == {0: 32, 1: 32, 2: 0}
    pages_of(engine).check_all_left()
    engine.close()


@pytest.mark.parametrize("seed", range(20))
def test_whatever_arrives_every_sequence_finds_its_own_tokens_in_its_pages(seed: int) -> None:
    """A cache of plain lists: what a step writes is there for all of its sequences, and no page in use is written."""
    draw = random.Random(seed)
    scheduler = Scheduler(
        num_pages=draw.randint(9, 30), max_sequences=draw.randint(1, 6), max_batch_tokens=32, shares_prefixes=True
    )
    held: dict[int, int] = {}
    running: set[int] = set()
    shared = number = 0
    for _ in range(300):
        for _ in range(draw.choice((0, 0, 1, 3))):
            ids = [draw.randint(1, 2)] * 16 * draw.randint(0, 4) + [draw.randint(1, 2)] * draw.randint(1, 20)
            scheduler.add(ask(number, ids, 10, [draw.randint(1, 2) for _ in range(10)]))
            number += 1
        parts, entered = scheduler.plan()
        shared += sum(part.past for part in parts if part.sequence in entered)
        for part in parts:
            slots = slots_of(part.sequence)[part.past : part.past + part.query_tokens]
            held.update(zip(slots, part.sequence.known[part.past :], strict=False))
        running |= {part.sequence.request.index for part in parts}
        used: set[int] = set()
        for part in parts:
            end = part.past + part.query_tokens
            assert [held[slot] for slot in slots_of(part.sequence)[:end]] == part.sequence.known[:end]
            used.update(slots_of(part.sequence)[:end])
        assert len(used) <= scheduler.kv_tokens
        for part in parts:
            if part.is_last:
                scheduler.leave(part.sequence)
    assert shared > 0 and len(running) > 20
    scheduler.clear()


def slots_of(sequence: Any) -> list[int]:
    return [16 * page + offset for page in sequence.pages for offset in range(16)]


def test_pages_go_in_the_order_of_being_left_and_the_end_of_a_prefix_before_its_beginning() -> None:
    pages = Pages(5)  # the spare one and 4
    old = pages.take([], 2)
    new = pages.take([], 1)
    for page, digest in ((old[0], b"old 0"), (old[1], b"old 1"), (new[0], b"new")):
        pages.keep(page, digest)
    pages.leave(old)
    pages.leave(new)
    shared = pages.find([b"new", b"absent", b"old 0"])
    assert shared == new, "a prefix ends where a page is missing"
    assert pages.have_room(shared, 3) and not pages.have_room(shared, 4)
    taken = pages.take(shared, 2)  # the free one, then the end of the old prefix
    assert taken == [new[0], 4, old[1]]
    assert pages.find([b"old 0", b"old 1"]) == [old[0]]
    assert pages.take(pages.find([b"new"]), 0) == new and pages.num_repeats == 1
    with pytest.raises(AssertionError, match="4 uses of pages were not given back"):
        pages.check_all_left()
    pages.leave(new)
    pages.leave(taken)
    pages.check_all_left()


@pytest.mark.parametrize(
    ("model_type", "mode"),
    [
        *(
            (name, "eager")
            for name in ("qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss", "mimo_v2_flash", "gemma4_text")
        ),
        *((name, "captured and ahead") for name in ("qwen3_moe", "deepseek_v3", "gpt_oss")),
    ],
)
def test_tokens_are_those_without_sharing(model_type: str, mode: str) -> None:
    """Latent attention, windows and sinks: pages hold every token, so a window finds what it needs."""
    model = tiny_model(model_type)
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 6  # shorter than what is shared
    prompts = [PREFIX[:20], PREFIX[:40], PREFIX[:33], OTHER[:40], PREFIX[:17], OTHER[:34], PREFIX[:40]]
    requests = [ask(i, ids, 6 - i % 3) for i, ids in enumerate(prompts)]
    found = {}
    for shares in (False, True):
        engine = make_engine(model, prefix_cache=shares, max_sequences=3, **MODES[mode])
        engine.prepare(3, 48)
        found[shares] = [run(engine, requests) for _ in range(2)]
        engine.close()
    assert [tokens for tokens, _ in found[True]] == [tokens for tokens, _ in found[False]]
    saved = [prompt_tokens(found[False][i][1]) - prompt_tokens(found[True][i][1]) for i in range(2)]
    assert saved == [0 + 16 + 32 + 0 + 16 + 32 + 32, 16 + 32 + 32 + 32 + 16 + 32 + 32]


def test_the_tap_counts_computed_tokens_only(model: Any) -> None:
    layers, listeners = find_moe_layers(model), ListenerSet()
    tap = RoutingTap(model, layers)
    listeners.listeners.append(tap)
    engine = make_engine(model, listeners, prefix_cache=True)
    tap.discard()
    run(engine, [ask(0, PREFIX[:40], 1), ask(1, PREFIX[:40], 3)])
    counted = sum(int(block.counts_SLGE.sum()) for block in tap.collect_blocks(everything=True))
    engine.close()
    tap.close()
    assert counted == (40 + 8 + 2) * 2 * len(layers)  # the second prompt has 32 cached; top-2


def test_capturing_again_leaves_shared_pages_as_they_are(model: Any) -> None:
    request = ask(0, PREFIX[:48])
    engine = sharing(model, graphs=True)
    run(engine, [request])
    kept = [layer.key_SGD.clone() for layer in engine._cache.layers]
    assert engine.prepare(2, 64) > 0
    for before, layer in zip(kept, engine._cache.layers, strict=True):
        assert torch.equal(before[16:], layer.key_SGD[16:]), "only the spare page was written"
    tokens, steps = run(engine, [request])
    engine.close()
    assert cached(steps) == {0: 32} and tokens[0] == generated(model, request)


def test_after_reset_nothing_is_known(model: Any) -> None:
    engine = sharing(model)
    engine.submit(ask(0, PREFIX))
    engine.step()
    engine.reset()
    _, steps = run(engine, [ask(1, PREFIX)])
    engine.close()
    assert cached(steps) == {1: 0}


def test_a_class_that_needs_static_batches_cannot_share_and_says_so() -> None:
    model = tiny_model("qwen3_next")
    with pytest.raises(UnsupportedModelError, match=r"prefix_cache: .* static batches \(linear .* set it to false"):
        build_engine(model, TransformersSettings(kv_tokens=256, prefix_cache=True))


def test_a_run_with_shared_prefixes_has_them_in_its_record(tiny: Path, tmp_path: Path) -> None:
    """Ten prompts of 40 tokens that start with the same 32: nine find them."""
    text = SHORT.format(rate=500, num_requests=10, models=f"{{name: moe, path: {tiny / 'moe'}}}")
    text = text.replace("{distribution: fixed, value: 8}", "{distribution: fixed, value: 40}")
    text = text.replace("  num_requests", "  prefix: {tokens: 32}\n  num_requests")
    workload = tmp_path / "shared.yaml"
    workload.write_text(text + "engine: {prefix_cache: true, batching: continuous}\n", encoding="utf-8")
    ran = run_main(["run", workload, "--output-dir", tmp_path / "run", "--write", "md", "--quiet"])
    assert ran.code == 0, ran.stderr
    launch = tmp_path / "run/moe/launch-0"
    requests = pd.read_parquet(launch / "round-0/requests.parquet")
    assert sorted(requests["cached_tokens"]) == [0] + [32] * 9
    steps = pd.read_parquet(launch / "round-0/steps.parquet")
    assert steps["prefill_tokens"].sum() == 32 + 10 * 8
    info = json.loads((launch / "round-0/pass.json").read_text(encoding="utf-8"))
    assert all(check["passed"] for check in info["invariants"].values())
