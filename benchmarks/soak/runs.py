"""Runs that are disturbed: how they are started, watched, and what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

CONFIG = Path(__file__).parents[2] / "moeprof" / "data" / "ci" / "ci-smoke-moe.json"
PATIENCE_S = 240.0  # a busy machine takes a minute to import torch twice
WORKLOAD = """\
name: soaked
traffic:
  arrivals: {{pattern: concurrency, concurrency: 4}}
  lengths: {{input: {{distribution: fixed, value: 16}}, output: {{distribution: fixed, value: 16}}}}
  prompts: {{source: packaged}}
  num_requests: {requests}
models: [{{name: moe, config: {config}, weights: random}}]
engine: {{dtype: float32, max_batch_tokens: 128}}
rounds: 1
launches: 1
threads: 1
device: cpu
warmup: {{num_requests: 2, max_seconds: 1}}
instruments: {{peaks: false, overhead: false, gap: false, power: false}}
prices: {{usd_per_device_hour: 0.1}}
"""


def write_workload(folder: Path, requests: int = 300) -> Path:
    """A small MoE with random weights: a few seconds of a pass, after those of a start."""
    file = folder / f"w{requests}.yaml"
    file.write_text(WORKLOAD.format(config=CONFIG, requests=requests), encoding="utf-8")
    return file


@dataclass(slots=True)
class Run:
    """``moeprof run`` in a process group of its own, with temporary files in a folder of its own.

    Attributes:
        folder: of the record.
        temporary: TMPDIR of the run.
        process: of the parent.
        family: its children, as far as they were seen.
    """

    folder: Path
    temporary: Path
    process: subprocess.Popen[str]
    family: dict[int, psutil.Process] = field(default_factory=dict)

    @staticmethod
    def start(
        workload: Path, folder: Path, *options: str, environment: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None, resume: bool = False,
    ) -> Run:  # fmt: skip
        """Start it; ``before`` runs in the child before the command does."""
        temporary = folder.with_name(folder.name + "-tmp")
        temporary.mkdir(exist_ok=True)
        place = ["--resume" if resume else "--output-dir", str(folder)]
        process = subprocess.Popen(
            [sys.executable, "-m", "moeprof", "run", str(workload), "--quiet", *place, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=before,
            env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", **(environment or {})},
        )  # fmt: skip
        return Run(folder=folder, temporary=temporary, process=process)

    def look(self) -> None:
        """Note the children that there are now."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self.family.setdefault(child.pid, child)

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait for a state of the run; False where it ended, or took too long."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            self.look()
            if reached():
                return True
            time.sleep(0.02)
        return False

    def has_begun(self) -> bool:
        """experiment.json is there."""
        return (self.folder / "experiment.json").exists()

    def loads(self) -> bool:
        """A worker has its folder, and no pass."""
        return (self.folder / "moe" / "launch-0").exists() and not self.measures()

    def measures(self) -> bool:
        """A pass has steps on disk."""
        stream = self.folder / "moe" / "launch-0" / "round-0" / "steps.arrows"
        return stream.exists() and stream.stat().st_size > 2000

    def send(self, number: int, *, group: bool) -> None:
        """A signal to the parent, or to all."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self, patience_s: float = PATIENCE_S) -> tuple[int | None, str, str]:
        """Exit code (None: it did not end), stdout and stderr."""
        try:
            out, err = self.process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None, "", ""
        return self.process.returncode, out, err

    def kill(self) -> None:
        """Leave nothing behind."""
        self.look()
        self.send(signal.SIGKILL, group=True)
        for child in self.alive():
            with contextlib.suppress(psutil.Error):
                child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=PATIENCE_S)

    def alive(self) -> list[psutil.Process]:
        """Children that are still there."""
        return [child for child in self.family.values() if _lives(child)]

    def orphans_after(self, patience_s: float) -> tuple[list[psutil.Process], float]:
        """Children that outlive the parent by that long, and how long it took the others."""
        started = time.monotonic()
        while (left := self.alive()) and time.monotonic() - started < patience_s:
            time.sleep(0.05)
        return left, time.monotonic() - started

    def left_in_temporary(self) -> list[Path]:
        """Folders of ours, not those of libraries."""
        return sorted(self.temporary.glob("moeprof-*"))

    def header(self) -> dict[str, Any]:
        """experiment.json."""
        found: dict[str, Any] = json.loads((self.folder / "experiment.json").read_text(encoding="utf-8"))
        return found


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def command(
    *arguments: object, before: Callable[[], None] | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """A command of moeprof, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "moeprof", *map(str, arguments)], text=True, timeout=PATIENCE_S, preexec_fn=before,
        **({"capture_output": True} | more),
    )  # fmt: skip
