"""Work of layers that are not alike: windows under chunks of a prompt, latents by phase, states, older records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.metrics.cost.split import split_busy
from moeprof.analysis.metrics.resources.breakdown import stage_work
from moeprof.analysis.metrics.resources.memory import memory_metrics
from moeprof.analysis.metrics.resources.work import NO_WINDOWS, SeenTokens, StepWork, attention_work, step_work
from moeprof.capture.engines.base import SequenceInStep, Step
from moeprof.capture.recorders.steps import StepRecorder, step_row
from moeprof.core.model_facts import LayerAttention, ModelFacts
from moeprof.core.record.breakdown import GapPoint
from moeprof.core.record.launch import EngineHeader
from moeprof.core.record.tables import read_table
from tests.helpers.records import launch_header, make_facts, make_pass, make_steps

FULL = LayerAttention(kind="full", layers=1, kv_bytes_per_token=10, flops_per_pair=100, decode_flops_per_pair=100)
WINDOW = replace(FULL, kind="window", layers=3, window=4)
LATENT = replace(FULL, kind="latent", kv_bytes_per_token=6, decode_flops_per_pair=700)
STATE = LayerAttention(kind="state", layers=2, state_bytes=1000)


def facts_with(*layers: LayerAttention) -> ModelFacts:
    kv = sum(layer.keeps_bytes_per_token for layer in layers)
    pair = sum(layer.layers * layer.flops_per_pair for layer in layers)
    return replace(make_facts(num_experts=0), attention=layers, kv_bytes_per_token=kv, attention_flops_per_pair=pair)


def step_of(*sequences: tuple[int, int, bool]) -> Step:
    """Of (tokens already there, tokens of this step, whether they are a prompt's)."""
    told = tuple(
        SequenceInStep(request=i, past_tokens=past, query_tokens=query, is_prefill=prefill)
        for i, (past, query, prefill) in enumerate(sequences)
    )
    return Step(start_s=0.0, end_s=0.01, device_s=None, sequences=told)


def brute_force(past: int, query: int, window: int) -> tuple[int, int]:
    """Keys that any query sees and pairs, by looking at each query and each key."""
    pairs = {(q, k) for q in range(past, past + query) for k in range(past + query) if q - window < k <= q}
    return len({k for _, k in pairs}), len(pairs)


@pytest.mark.parametrize("window", [1, 2, 4, 7])
@pytest.mark.parametrize(("past", "query"), [(0, 1), (0, 3), (0, 9), (2, 1), (3, 5), (6, 1), (10, 4), (4, 12)])
def test_pairs_of_a_chunk_of_a_prompt_are_those_that_the_mask_lets_through(past: int, query: int, window: int) -> None:
    row = step_row(step_of((past, query, True)), 0.0, (window,))
    keys, pairs = brute_force(past, query, window)
    assert (row["window_context_tokens"], row["window_attention_pairs"]) == ([keys], [pairs])
    everything = brute_force(past, query, past + query)
    assert (row["context_tokens"], row["attention_pairs"]) == everything


def test_a_step_of_both_phases_tells_the_prompts_part_for_each_window() -> None:
    """A prompt of 6 with nothing before it, and a token after 9 others; windows of 2 and 4."""
    row = step_row(step_of((0, 6, True), (9, 1, False)), 0.0, (2, 4))
    assert row["window_context_tokens"] == [6 + 2, 6 + 4]
    assert row["window_prefill_context_tokens"] == [6, 6]
    assert row["window_attention_pairs"] == [1 + 5 * 2 + 2, 1 + 2 + 3 + 3 * 4 + 4]


def test_a_model_that_sees_everything_writes_no_windows() -> None:
    assert not any(name.startswith("window") for name in step_row(step_of((3, 1, False)), 0.0))


def recorded(folder: Path, facts: ModelFacts, *steps: Step) -> Any:
    recorder = StepRecorder(folder, windows=facts.windows)
    recorder.on_start(None, 0.0)  # type: ignore[arg-type]
    for step in steps:
        recorder.on_step(step, 0)
    recorder.on_end(1.0)
    return read_table(folder, "steps")


def work_of(facts: ModelFacts, steps: Any) -> StepWork | str:
    return step_work(make_pass(steps=steps), facts, EngineHeader())


def test_layers_with_a_window_read_their_window_in_a_run(tmp_path: Path) -> None:
    """One full layer and three that see 4: a token after 99 others reads 100 and 4 keys, and writes one in each."""
    facts = facts_with(FULL, WINDOW)
    steps = recorded(tmp_path, facts, step_of((99, 1, False)), step_of((0, 6, True)))
    work, without = work_of(facts, steps), work_of(facts_with(replace(FULL, kv_bytes_per_token=0, flops_per_pair=0,
                                                                       decode_flops_per_pair=0)), steps)  # fmt: skip
    assert isinstance(work, StepWork) and isinstance(without, StepWork)
    assert (work.bytes_S - without.bytes_S).tolist() == [10 * (100 + 1) + 30 * (4 + 1), 10 * (6 + 6) + 30 * (6 + 6)]
    assert (work.flops_S - without.flops_S).tolist() == [100 * 100 + 300 * 4, 100 * 21 + 300 * (1 + 2 + 3 + 3 * 4)]


def test_latents_cost_more_to_decode_and_as_much_as_heads_to_prefill() -> None:
    steps = make_steps(2, phase=["decode", "prefill"], prefill_tokens=[0, 4], decode_tokens=[1, 0],
                       context_tokens=[50, 4], prefill_context_tokens=[0, 4], attention_pairs=[50, 10])  # fmt: skip
    found = attention_work(facts_with(LATENT), SeenTokens.of(steps, facts_with(LATENT)))
    assert not isinstance(found, str)
    assert found[0].tolist() == [6 * (50 + 1), 6 * (4 + 4)]
    assert found[1].tolist() == [700 * 50, 100 * 10]


def test_a_state_is_read_and_written_once_a_sequence_and_step() -> None:
    facts = facts_with(FULL, STATE)
    steps = make_steps(1, decode_tokens=3, context_tokens=30, num_requests=3)
    found = attention_work(facts, SeenTokens.of(steps, facts))
    assert not isinstance(found, str)
    assert found[0].tolist() == [10 * (30 + 3) + 2 * 2 * 1000 * 3]


def test_layers_that_share_keys_and_values_read_and_do_not_write() -> None:
    facts = facts_with(FULL, replace(FULL, kind="shared", layers=2))
    found = attention_work(facts, SeenTokens.of(make_steps(1, decode_tokens=1, context_tokens=30), facts))
    assert not isinstance(found, str)
    assert found[0].tolist() == [10 * (30 + 1) + 20 * 30]


def test_a_table_without_windows_gives_a_reason_and_no_figure() -> None:
    assert work_of(facts_with(FULL, WINDOW), make_steps(3)) == NO_WINDOWS


def test_a_record_of_before_says_no_figure_where_its_layers_differ_and_the_old_one_where_not() -> None:
    old = make_facts(num_experts=0)
    assert old.attention == ()
    assert old.kept_bytes(10) == 10 * 800
    assert isinstance(work_of(old, make_steps(3)), StepWork)
    for note in (
        "some layers keep only a window of keys and values: KV bytes per token hold up to that window",
        "70 layers keep a state of constant size, not counted in KV bytes per token",
    ):
        told = replace(old, notes=(note,))
        assert told.kept_bytes(10) is None
        reason = work_of(told, make_steps(3))
        assert isinstance(reason, str) and "a record of an older version" in reason and note in reason


def test_the_parts_of_a_step_sum_layers_too() -> None:
    facts = facts_with(FULL, WINDOW, STATE)
    point = GapPoint(
        phase="decode", sequences=2, tokens=2, new_tokens=2, context_tokens=200.0, attention_pairs=200.0,
        distinct_L=None, wall_S=(0.01,), window_context_W=(8.0,), window_pairs_W=(8.0,),
    )  # fmt: skip
    works = stage_work(point, (), facts, EngineHeader())
    assert not isinstance(works, str)
    assert works["attention"].num_bytes == 10 * 202 + 30 * 10 + 2 * 2000 * 2
    assert works["attention"].flops == 100 * 200 + 300 * 8
    assert stage_work(replace(point, window_context_W=(), window_pairs_W=()), (), facts, EngineHeader()) == NO_WINDOWS


def test_sequences_that_fit_keep_a_window_of_their_layers() -> None:
    """Of n tokens 10 n bytes in one layer and 30 min(n, 4) in three; a tenth of the memory stays free."""
    facts = facts_with(FULL, WINDOW)
    tables = make_pass()
    lengths = (tables.requests["input_tokens"] + tables.requests["asked_output_tokens"]).to_numpy(dtype=float)
    room = 9_000_000 - sum(facts.bytes_by_group.values())
    launch = launch_header({"memory": {"device_total_bytes": 10_000_000}})
    found = next(v for v in memory_metrics(launch, facts, [tables]) if v.name == "max_concurrent_sequences")
    assert found.value == int(room // np.mean([10 * n + 30 * min(n, 4) for n in lengths]))


def test_the_split_by_roofline_reads_windows_too() -> None:
    """A mixed step whose keys are nearly all the prompt's: with a window they weigh less, and the decode side more."""
    window = {"window_context_tokens": [[8.0]], "window_prefill_context_tokens": [[4.0]],
              "window_attention_pairs": [[14.0]]}  # fmt: skip
    steps = make_steps(1, phase="mixed", prefill_tokens=4, decode_tokens=4, context_tokens=10**6,
                       prefill_context_tokens=9 * 10**5, **window)  # fmt: skip
    facts, far = facts_with(replace(FULL, kv_bytes_per_token=0), WINDOW), facts_with(replace(WINDOW, window=None))
    near_s, far_s = (
        split_busy(make_pass(steps=steps), facts=f, peaks=(1e9, 1e15)).decode_S.sum() for f in (facts, far)
    )
    assert far_s < near_s == pytest.approx(0.005, rel=0.01)
