"""``python -m benchmarks.gpu.evidence --part 1|2|3|all --out DIR``: the evidence for one data-centre card.

For a machine with one 141 GB card, a few calls of under ten minutes and a few small files to bring back. Each step is
a process of its own with a time limit; what it leaves is packed before the next one starts, and ``results-<part>.json``
is written anew after each, so that a call that is cut short keeps all that was measured. ``--tiny`` runs the same on a
CPU with tiny models. Afterwards: ``python -m benchmarks.gpu.publish DIR...``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import probe_figures, record_figures
from benchmarks.gpu.goals import Figure, goals_of, judged, text_table
from benchmarks.gpu.pack import pack
from benchmarks.gpu.parts import PARTS, PLAN, Built, build
from benchmarks.gpu.steps import ROOT, Step, StepResult, run_steps

BUDGET_S = 540.0
PACKING_S = 15.0  # kept back from the budget
FORMAT_VERSION = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the steps; 0 when all of them ended well, 1 when one did not. What was measured is kept either way."""
    options = _parse(arguments)
    start = time.monotonic()
    parts = PARTS if options.part == "all" else (options.part,)
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    built = build(parts, options.work.resolve(), is_tiny=options.tiny, only=tuple(options.only))
    for step in built.steps:
        _forget(step.makes)
    keeper = Keeper(options.part, options.out, options.work.resolve(), built, is_tiny=options.tiny)
    keeper.save()
    budget_s = options.budget_s - PACKING_S - (time.monotonic() - start)
    run_steps(built.steps, budget_s=budget_s, log=options.out / f"log-{options.part}.txt", after=keeper.after)
    print(keeper.closing())
    return 0 if keeper.all_done else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    names = [planned.name for part in PLAN.values() for planned in part]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.evidence", description=__doc__)
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all", help="which call this is")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files to bring back")
    parser.add_argument("--work", type=Path, default=ROOT / "reports" / "gpu", help="folder for whole records")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU: a test of the path, no evidence")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for everything")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="STEP", help=f"of {', '.join(names)}")
    return parser.parse_args(arguments)


def _forget(made: Path) -> None:
    """What an earlier call left under this name is not this call's."""
    if made.is_dir():
        shutil.rmtree(made)
    else:
        made.unlink(missing_ok=True)


class Keeper:
    """Packs what a step made and keeps results.json up to date."""

    def __init__(self, part: str, out: Path, work: Path, built: Built, *, is_tiny: bool) -> None:
        self._part, self._out, self._work, self._built = part, out, work, built
        self._content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "part": part,
            "tiny": is_tiny,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "notes": {name: list(notes) for name, notes in built.notes.items()},
            "steps": [
                {"name": name, "status": "not started", "seconds": 0.0, "reason": reason, "tail": ""}
                for name, reason in built.impossible.items()
            ],
            "archives": [],
            "probes": {},
            "figures": [],
        }

    @property
    def all_done(self) -> bool:
        """No step failed, was cut or did not start."""
        return all(step["status"] == "done" for step in self._content["steps"])

    def after(self, step: Step, result: StepResult) -> None:
        """Pack what the step made, read its figures, write the results. No trouble here may stop the next step."""
        self._content["steps"].append(result.to_json())
        if step.makes.is_dir():
            self._pack(step)
        elif step.makes.exists():
            self._content["probes"][step.name] = _json(step.makes)
        self.save()

    def save(self) -> None:
        """Write ``results-<part>.json`` with every figure so far."""
        try:
            figures = record_figures(self._work)
            for probe in self._content["probes"].values():
                figures += probe_figures(probe)
            figures += self._missing({figure.key for figure in figures})
            self._content["figures"] = [figure.to_json() for figure in figures]
        except Exception as error:  # whatever a run that was cut left behind: the next step must still run
            self._content["figures_error"] = f"{type(error).__name__}: {error}"
        file = self._out / f"results-{self._part}.json"
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)

    def _missing(self, known: set[str]) -> list[Figure]:
        """Figures that a step owes and did not give, with what became of it."""
        return [
            Figure(key=goal.key, reason=f"step {step['name']}: {step['status']} {step['reason']}".strip())
            for step in self._content["steps"]
            for goal in goals_of(step["name"])
            if goal.key not in known
        ]

    def closing(self) -> str:
        """The short tables that stand last in the output."""
        lines = [f"{s['name']:<26}{s['status']:<13}{s['seconds']:>5.0f} s  {s['reason']}"[:160].rstrip()
                 for s in self._content["steps"]]  # fmt: skip
        figures = [Figure.from_json(value) for value in self._content["figures"]]
        touched = [row for row in judged(figures) if row.figure is not None]
        return "\n".join(["", *lines, "", text_table(touched) if touched else "no figure of a target in this part"])

    def _pack(self, step: Step) -> None:
        try:
            packed = pack(step.makes, self._out / f"{step.name}.tar.gz")
        except Exception as error:  # the same
            self._content["archives"].append({"name": step.name, "error": f"{type(error).__name__}: {error}"})
            return
        self._content["archives"].append(
            {"name": step.name, "size_bytes": packed.size_bytes, "left_out": list(packed.left_out)}
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {"error": f"cannot be read: {error}"}
    return value


if __name__ == "__main__":
    sys.exit(main())
