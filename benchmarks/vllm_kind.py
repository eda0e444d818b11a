"""``python -m benchmarks.vllm_kind --python PATH``: what replaying through ``kind: vllm`` costs over bare vLLM.

Two processes under vLLM's interpreter, one with the tap's operation in its graph and one without, take turns; each
loads once. Rounds of one turn, in an order that is turned round each time:

- ``bare``: vLLM stepped in a loop, its own text, nothing of ours in it;
- ``bare, forced``: the same with forced ids, so that it computes what we compute;
- ``idle``: bare, in the process whose graph holds the operation, which keeps nothing;
- ``forced``: the same with forced ids;
- ``replay``: our loop, all recorders, no picks;
- ``tapped``: our loop, all recorders, picks counted: what a run does.

Ratios of output tokens per second, round by round, with the 95 % interval of their median by the sign test.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.rival_talk import ROOT, Message, Rival
from benchmarks.verdict import Row, Target, ratios

PLAIN, TAPPED = ("bare", "bare, forced"), ("idle", "forced", "replay", "tapped")
TARGETS = {
    ("tapped", "bare, forced"): Target(at_least=0.97, low_at_least=0.94),
    ("tapped", "bare"): Target(at_least=0.97, low_at_least=0.94),
    ("tapped", "replay"): Target(at_least=1 / 1.02, low_at_least=1 / 1.04),
}
ITEMS = {  # what one thing costs: with it over without it
    "forced ids": ("bare, forced", "bare"), "the operation in the graph": ("forced", "bare, forced"),
    "composition, loop, recorders": ("replay", "forced"), "picks kept and counted": ("tapped", "replay"),
}  # fmt: skip


# -- under vLLM's interpreter ------------------------------------------------------------------------------------------


def get_ready(spec: Message) -> tuple[Message, Callable[[str], Message]]:
    """Load the model with or without the operation, and run each kind of round once."""
    import torch

    from moeprof.capture.engines.vllm import open as opening
    from moeprof.capture.engines.vllm.settings import VllmSettings
    from moeprof.core.workload.models import ModelSpec

    if not spec["tap"]:
        opening.register = lambda: None
        os.environ["VLLM_PLUGINS"] = ""
    settings = VllmSettings(
        dtype=spec["dtype"], enforce_eager=spec["eager"], max_num_seqs=len(spec["requests"]),
        max_num_batched_tokens=spec["batch_tokens"], kv_tokens=spec["kv_tokens"],
    )  # fmt: skip
    model = ModelSpec(name="model", path=spec["model"])
    opened = opening.open(model, settings, torch.device("cpu"))
    rounds = Rounds(opened, settings, spec)
    kinds = TAPPED if spec["tap"] else PLAIN
    for kind in kinds:
        rounds.run(kind)
    return {"name": opened.launch["taken"]["compilation_mode"]}, lambda *words: rounds.run(" ".join(words))


class Rounds:
    """All kinds of rounds on one loaded engine."""

    def __init__(self, opened: Any, settings: Any, spec: Message) -> None:
        from moeprof.capture.engines.base import ListenerSet

        self.opened, self.settings, self.spec = opened, settings, spec
        self.listeners = ListenerSet()
        self.engine = opened.build(settings, self.listeners)
        self.inside = self.engine._inside

    def run(self, kind: str) -> Message:
        """One round, timed from the first request handed over to the last token."""
        gc.collect()
        gc.disable()
        start_s, cpu_s = time.perf_counter(), time.process_time()
        tokens = self._ours(tapped=kind == "tapped") if kind in ("replay", "tapped") else self._bare("forced" in kind)
        seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        gc.enable()
        return {"seconds": seconds, "cpu_s": cpu_s, "tokens": tokens}

    def _bare(self, forced: bool) -> int:
        """VLLM's own loop; without forced ids nothing of ours stands in front of its functions."""
        inside, runner, scheduler = self.inside, self.inside.runner._runner, self.inside.scheduler
        hooks = scheduler.schedule, runner.sampler.forward
        del scheduler.schedule
        if not forced:
            del runner.sampler.forward
        try:
            for prompt, output in zip(self.spec["requests"], self.spec["outputs"], strict=True):
                inside.add(prompt, len(output), output if forced else None, ())
            tokens = 0
            while inside.engine.has_unfinished_requests():
                for one in inside.step():
                    tokens += len(one.token_ids)
        finally:
            scheduler.schedule, runner.sampler.forward = hooks
            inside._forced.clear()
            inside.runner.forget(None)
        return tokens

    def _ours(self, *, tapped: bool) -> int:
        import torch

        from moeprof.capture.recorders.requests import RequestRecorder
        from moeprof.capture.recorders.routing import RoutingRecorder
        from moeprof.capture.recorders.steps import StepRecorder
        from moeprof.capture.replay import Recorder, replay
        from moeprof.capture.routing.shown import ShownTap

        with tempfile.TemporaryDirectory() as scratch:
            into, schedule = Path(scratch), self._schedule()
            recorders: list[Recorder] = [RequestRecorder(into), StepRecorder(into)]
            if tapped:
                tap = ShownTap(self.inside, torch.device("cpu"))
                self.listeners.listeners.append(tap)
                recorders.append(RoutingRecorder(into, tap, window_steps=50, step_counts_cap_bytes=2**26))
            result = replay(self.engine, schedule, recorders)
            if tapped:
                self.listeners.listeners.remove(tap)
                tap.close()
        assert result.finished == len(self.spec["requests"])
        return sum(map(len, self.spec["outputs"]))

    def _schedule(self) -> Any:
        from moeprof.core.trace import Schedule

        return Schedule.load(Path(self.spec["schedule"]))


# -- the bench's side --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", required=True, help="interpreter with vLLM")
    parser.add_argument("--model", default=str(ROOT / "workloads" / "models" / "demo-moe"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--eager", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(SimpleNamespace(**vars(asked), folder=Path(folder)))
    mode = "eager" if asked.eager else "compiled"
    print(f"vLLM {mode}, {asked.rounds} rounds in turns; load average {os.getloadavg()[0]:.1f}")
    promised = [
        Row(what=f"{over} / {under}", target=target, samples=ratios(rates[over], rates[under]))
        for (over, under), target in TARGETS.items()
    ]
    items = [
        Row(what=f"  {what}", target=Target(), samples=ratios(rates[over], rates[under]))
        for what, (over, under) in ITEMS.items()
    ]
    for row in (*promised, *items):
        verdict = f"{row.target.text}: {row.verdict}" if row in promised else ""
        print(f"{row.what:32} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]  {verdict}")


def measure(asked: Any) -> dict[str, list[float]]:
    """Output tokens per second of each kind of round, by round."""
    from benchmarks.loads import SHORT, make_schedule

    schedule = make_schedule(Path(asked.model), replace(SHORT, repeats=asked.rounds))
    schedule.save(asked.folder / "schedule.parquet")
    assert schedule.output_ids is not None
    kv_tokens = int((schedule.input_tokens + schedule.output_tokens + 128).sum())
    rivals = {}
    for tap in (False, True):
        spec = {
            "tap": tap, "model": asked.model, "dtype": asked.dtype, "eager": asked.eager, "batch_tokens": 2048,
            "kv_tokens": kv_tokens, "requests": [ids.tolist() for ids in schedule.input_ids],
            "outputs": [ids.tolist() for ids in schedule.output_ids],
            "schedule": str(asked.folder / "schedule.parquet"),
        }  # fmt: skip
        file = asked.folder / f"spec-{tap}.json"
        file.write_text(json.dumps(spec), encoding="utf-8")
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MOEPROF_VLLM_TAP": str(int(tap))}
        command = [asked.python, "-m", "benchmarks.vllm_kind_rival", str(file)]
        rivals[tap] = Rival(f"tap {tap}", command, environment, asked.folder / f"log-{tap}.txt")
        if rivals[tap].reason is not None:
            raise SystemExit(f"no rounds: {rivals[tap].reason}")
    kinds = [(False, kind) for kind in PLAIN] + [(True, kind) for kind in TAPPED]
    rates: dict[str, list[float]] = {kind: [] for _, kind in kinds}
    for number in range(asked.rounds):
        for tap, kind in kinds[:: -1 if number % 2 else 1]:
            told = rivals[tap].run(*kind.split())
            rates[kind].append(told["tokens"] / told["seconds"])
    for rival in rivals.values():
        rival.close()
    return rates


if __name__ == "__main__":
    main()
