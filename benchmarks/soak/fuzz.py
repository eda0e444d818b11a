"""Damaged files of every kind that the product reads: each is read or refused in one line, fast and small."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from benchmarks.soak.ledger import Ledger
from benchmarks.soak.mutate import mutated
from benchmarks.soak.readers import TARGETS, read
from benchmarks.soak.trial import Outcome, Trials, attempt

SLOW_S = 10.0  # of processor time; compare and regress work out a whole record first
LARGE_MIB = 500.0
Try = Callable[[str, Path], Outcome]


def fuzz(number: int, seed: int, until_s: float, *, only: Collection[str] = (), here: bool = False) -> Ledger:
    """About ``number`` damaged files, over all targets by their share.

    Args:
        number: of files.
        seed: the same seed gives the same files.
        until_s: ``time.monotonic`` time after which no further file is tried.
        only: targets; empty: all.
        here: True tries them in this process, which cannot end one that hangs.
    """
    ledger, rng = Ledger(), random.Random(seed)
    names = [name for name in TARGETS if not only or name in only]
    chosen = rng.choices(names, [TARGETS[name].share for name in names], k=number)
    trials = Trials(read)
    run: Try = (lambda name, folder: attempt(TARGETS[name].read, folder)) if here else trials.run
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        good = {name: _good(Path(scratch), name) for name in dict.fromkeys(chosen)}
        for name in good:
            found = run(name, good[name])
            ledger.note("the good file of each kind is read", found.kind == "read", f"{name}: {found.text}")
        for index, name in enumerate(chosen):
            if time.monotonic() > until_s:
                break
            folder = Path(scratch) / "trial"
            shutil.copytree(good[name], folder)
            damaged, content = _damage(name, folder, rng)
            _judge(ledger, name, f"seed {seed}, file {index}, {damaged} of {len(content):,} B", run(name, folder))
            shutil.rmtree(folder)
    trials.close()
    return ledger


def _good(scratch: Path, name: str) -> Path:
    folder = scratch / name.replace(" ", "-").replace(",", "")
    folder.mkdir()
    TARGETS[name].write(folder)
    (folder / "damaged").write_text(_files(name, folder)[0].relative_to(folder).as_posix(), encoding="utf-8")
    return folder


def _files(name: str, folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(TARGETS[name].damaged) if path.is_file() and path.name != "damaged")


def _damage(name: str, folder: Path, rng: random.Random) -> tuple[str, bytes]:
    """Damage one file; a note beside it says which, for readers that choose by it."""
    file = rng.choice(_files(name, folder))
    content = mutated(file.read_bytes(), rng)
    file.chmod(0o644)
    file.write_bytes(content)
    damaged = file.relative_to(folder).as_posix()
    (folder / "damaged").write_text(damaged, encoding="utf-8")
    return damaged, content


def _judge(ledger: Ledger, name: str, what: str, found: Outcome) -> None:
    kind = name.split()[0].rstrip(",")
    promise = f"damaged {kind}: read, or refused in one line"
    ledger.note(promise, found.kind != "failed", f"{name}: {what}: {found.text}")
    ledger.note(f"no damaged file takes over {SLOW_S:g} s of processor time", found.cpu_s <= SLOW_S,
                f"{name}: {what}: {found.cpu_s:.1f} s", figure=found.cpu_s)  # fmt: skip
    if found.peak_mib is not None:
        ledger.note(f"no damaged file takes over {LARGE_MIB:g} MiB", found.peak_mib <= LARGE_MIB,
                    f"{name}: {what}: {found.peak_mib:.0f} MiB", figure=found.peak_mib)  # fmt: skip
