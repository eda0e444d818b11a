"""Results of the calls, merged: which steps ran, what the probes found, every figure, and where the records are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.evidence import FORMAT_VERSION
from benchmarks.gpu.figures import record_figures
from benchmarks.gpu.goals import Figure, Judged, judged
from moeprof.core.errors import RecordError


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What is known; empty before any card has run it.

    Attributes:
        parts: the contents of results-<part>.json, oldest first.
        published: folder with the records, as ``<name>-<card>``; may be empty or absent.
    """

    parts: tuple[dict[str, Any], ...] = ()
    published: Path | None = None
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def figures(self) -> list[Figure]:
        """As the machine told them, then as the published records give them; later ones stand."""
        if "figures" not in self._cache:
            told = [Figure.from_json(value) for part in self.parts for value in part["figures"]]
            again = [] if self.published is None else record_figures(self.published)
            self._cache["figures"] = [*told, *again]
        found: list[Figure] = self._cache["figures"]
        return found

    @property
    def judged(self) -> list[Judged]:
        """Every target with its figure."""
        return judged(self.figures)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Of all parts."""
        return [step for part in self.parts for step in part["steps"]]

    @property
    def notes(self) -> list[str]:
        """What was replaced in a workload, and what did not fit an archive."""
        replaced = [f"{name}: {note}" for part in self.parts for name, notes in part["notes"].items() for note in notes]
        trimmed = [
            f"{one['name']}: {one.get('error') or ', '.join(one['left_out'])} was left out of the archive"
            for part in self.parts
            for one in part["archives"]
            if one.get("error") or one.get("left_out")
        ]
        return replaced + trimmed

    def case(self, probe: str, name: str) -> dict[str, Any] | None:
        """One case of a probe, of the newest call that has it; None when it was not run."""
        return next((row for row in reversed(self.cases(probe)) if row["name"] == name), None)

    def cases(self, probe: str) -> list[dict[str, Any]]:
        """All cases of a probe."""
        return [row for part in self.parts for row in part["probes"].get(probe, {}).get("cases", [])]

    def record(self, name: str) -> Path | None:
        """The published record of a workload, or None."""
        if self.published is None or not self.published.is_dir():
            return None
        found = sorted(self.published.glob(f"{name}-*/experiment.json"))
        return found[-1].parent if found else None

    @property
    def card(self) -> dict[str, Any]:
        """What the card says of itself; empty before one has run it."""
        return self.case("environment", "card") or {}


def read_results(files: Sequence[Path], published: Path | None = None) -> Results:
    """Read results-*.json files, oldest call first.

    Raises:
        RecordError: one is missing, damaged, or of another version.
    """
    parts = []
    for file in files:
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"{file}: cannot be read as results of the evidence script ({error})") from error
        if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
            raise RecordError(f"{file}: not results of this version of the evidence script; run it again")
        parts.append(value)
    return Results(parts=tuple(sorted(parts, key=lambda part: str(part["started"]))), published=published)
