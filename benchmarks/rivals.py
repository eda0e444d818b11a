"""Replay throughput against ``generate``, ``generate_batch`` and vLLM's CPU build, side by side in one run.

Every rival is a process of its own with its own copy of the same model and the same number of threads. Rounds go in
turns (A B C D, D C B A, ...), one rival at a time while the others wait, so a minute in which the machine is slow hits
all of them. Judged is the ratio of rates round by round; the last row takes the fastest rival of each round.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loads import Load, make_schedule
from benchmarks.models import DEMO, dtype_name
from benchmarks.rival_talk import Rival
from benchmarks.verdict import Row, Target, ratios

AS_GOOD = Target(at_least=1.0, low_at_least=0.97)
OURS = "moeprof"
REST_S = 0.3  # threads of the one before may spin for a fifth of a second after their work
VLLM_EAGER, VLLM_COMPILED = "vllm eager", "vllm compiled"
Rates = dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One table of rivals.

    Attributes:
        name: of model and traffic.
        model: its folder.
        load: the traffic.
        threads: of every rival.
        vllm_python: interpreter of the environment that has vLLM, or None.
        settings: engine settings that ours may choose from, besides batch tokens.
        repeats: rounds.
    """

    name: str
    model: Path
    load: Load
    threads: int
    vllm_python: Path | None
    settings: Sequence[Mapping[str, Any]] = ({},)
    repeats: int = 9


def compete(contest: Contest, folder: Path, say: Callable[[str], None]) -> tuple[list[Row], dict[str, Any]]:
    """Rows of a contest, and all that was measured (for JSON). ``folder`` gets specs and logs."""
    folder.mkdir()
    rivals, absent = _start(contest, folder, say)
    try:
        rates = in_turns({rival.kind: rival.run for rival in rivals}, contest.repeats)
    finally:
        for rival in rivals:
            rival.close()
    told = {rival.kind: rival.about["name"] for rival in rivals}
    measured = {"contest": contest.name, "threads": contest.threads, "rivals": told, "absent": absent}
    return rows_of(contest.name, rates, told, absent), measured | {"tokens_per_s": rates}


def _start(contest: Contest, folder: Path, say: Callable[[str], None]) -> tuple[list[Rival], dict[str, str]]:
    """Start one after the other (each tries its settings undisturbed); who cannot take part is told with the reason."""
    spec = _spec(contest, folder)
    rivals, absent = [], {}
    if contest.vllm_python is None or not contest.vllm_python.exists():
        absent["vllm"] = f"not installed ({contest.vllm_python} is not there; make bench-vllm puts it there)"
    for kind, more in _kinds(contest, absent):
        spec_file = folder / f"{kind}.json".replace(" ", "-")
        spec_file.write_text(json.dumps(spec | {"kind": kind} | more))
        is_vllm = kind.startswith("vllm")
        python = str(contest.vllm_python) if is_vllm else sys.executable
        module = "benchmarks.rival_vllm" if is_vllm else "benchmarks.rival_here"
        rival = Rival(
            kind, [python, "-m", module, str(spec_file)], {"OMP_NUM_THREADS": str(contest.threads)},
            spec_file.with_suffix(".log"),
        )  # fmt: skip
        if rival.reason is None:
            rivals.append(rival)
            say(f"  {rival.about['name']}")
            spec["outputs"] = rival.about.pop("outputs", spec["outputs"])
        else:
            rival.close()
            absent[kind] = rival.reason
            say(f"  {kind} takes no part: {rival.reason}")
    return rivals, absent


def _kinds(contest: Contest, absent: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """``generate`` first: ours is fed the tokens that it chose, so that both compute the same."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("generate", {}),
        (OURS, {"settings": [dict(one) for one in contest.settings]}),
        ("generate_batch", {}),
    ]
    if "vllm" not in absent:
        kinds += [(VLLM_EAGER, {"eager": True}), (VLLM_COMPILED, {"eager": False})]
    return kinds


def _spec(contest: Contest, folder: Path) -> dict[str, Any]:
    # Both models take the demo's ids: the larger one has the larger vocabulary and no tokenizer of its own.
    schedule = make_schedule(DEMO, contest.load)
    schedule.save(folder / "schedule.parquet")
    longest = int((schedule.input_tokens + schedule.output_tokens).max())
    return {
        "model": str(contest.model),
        "dtype": dtype_name(contest.model),
        "threads": contest.threads,
        "schedule": str(folder / "schedule.parquet"),
        "requests": [ids.tolist() for ids in schedule.input_ids],
        "output_tokens": contest.load.output_tokens,
        "longest_tokens": -(-longest // 16) * 16,
        "steps": contest.load.steps,
        "batches": contest.load.batches,
        "outputs": None,
    }


def in_turns(rounds: Mapping[str, Callable[[], Mapping[str, Any]]], repeats: int, rest_s: float = REST_S) -> Rates:
    """Output tokens per second, by rival: A B C, then C B A, and so on."""
    rates: Rates = {kind: [] for kind in rounds}
    produced = set()
    for number in range(repeats):
        for kind in list(rounds)[:: -1 if number % 2 else 1]:
            time.sleep(rest_s)
            answer = rounds[kind]()
            rates[kind].append(answer["tokens"] / answer["seconds"])
            produced.add(answer["tokens"])
    assert len(produced) == 1, f"rivals produced different numbers of tokens: {sorted(produced)}"
    return rates


def rows_of(name: str, rates: Rates, told: Mapping[str, str], absent: Mapping[str, str]) -> list[Row]:
    """Ours over each rival, and over the fastest of each round."""
    ours, others = rates[OURS], {kind: those for kind, those in rates.items() if kind != OURS}
    best = [max(of_round) for of_round in zip(*others.values(), strict=True)]
    facts = [f"{told[kind]}: {median(rate):.0f} tok/s" for kind, rate in rates.items()]
    facts += [f"{kind} not measured: {reason}" for kind, reason in absent.items()]
    rows = [
        Row(what=f"replay / {kind}, {name}", target=AS_GOOD, samples=ratios(ours, rate))
        for kind, rate in others.items()
    ]
    title = f"replay / best of {len(others)}, {name}"
    return [*rows, Row(what=title, target=AS_GOOD, samples=ratios(ours, best), details="; ".join(facts))]
