"""What was promised, how often it was tried, how often it failed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

EXAMPLES = 3


@dataclass(slots=True)
class Entry:
    """One promise: how often it was tried and failed, the first failures, and the worst figure where it has one."""

    tried: int = 0
    failed: int = 0
    examples: list[str] = field(default_factory=list)
    worst: float | None = None


@dataclass(slots=True)
class Ledger:
    """Promises in the order in which they were first tried."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def note(self, promise: str, kept: bool, example: str = "", *, figure: float | None = None) -> bool:
        """Count one trial; ``figure`` is kept where it is the largest so far. Returns ``kept``."""
        entry = self.entries.setdefault(promise, Entry())
        entry.tried += 1
        if figure is not None:
            entry.worst = figure if entry.worst is None else max(entry.worst, figure)
        if not kept:
            entry.failed += 1
            if len(entry.examples) < EXAMPLES:
                entry.examples.append(example)
        return kept

    def add(self, other: Ledger) -> None:
        """Take over what another part counted."""
        for promise, theirs in other.entries.items():
            mine = self.entries.setdefault(promise, Entry())
            mine.tried, mine.failed = mine.tried + theirs.tried, mine.failed + theirs.failed
            mine.examples = (mine.examples + theirs.examples)[:EXAMPLES]
            known = [worst for worst in (mine.worst, theirs.worst) if worst is not None]
            mine.worst = max(known, default=None)

    @property
    def failed(self) -> int:
        """Of all promises."""
        return sum(entry.failed for entry in self.entries.values())

    def lines(self) -> Iterator[str]:
        """A Markdown table, then the first failures of each promise that was broken."""
        yield "| promise | tried | failed | worst |"
        yield "|:--|--:|--:|--:|"
        for promise, entry in self.entries.items():
            worst = "" if entry.worst is None else f"{entry.worst:.3g}"
            yield f"| {promise} | {entry.tried:,} | {entry.failed:,} | {worst} |"
        for promise, entry in self.entries.items():
            yield from (f"FAILED {promise}: {example}" for example in entry.examples)
