"""What the engine and its instruments are held to on one data-centre card, and how a measured figure is judged. Pure.

The targets are those of the project's speed table: decode and prefill against limits measured on the same device,
instruments against the bare engine in paired steps, loading against the bytes of the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["met", "missed", "not measured"]
NOT_RUN = "no card has run it yet"
DECODE_BATCHES = (1, 8, 32, 64)
PREFILL_BATCHES = (1, 2, 4, 8)
SHORT_TOKENS, LONG_TOKENS = 128, 2048
MODELS = {"mixtral": "Mixtral 8x7B", "qwen3-30b": "Qwen3-30B-A3B"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One target.

    Attributes:
        key: of the figure that it judges.
        title: for people.
        bound: the target.
        at_most: True: the figure may not be above ``bound``; False: not below.
        by: ``value``, or ``low`` where the lower end of the interval decides (paired measurements of small effects).
    """

    key: str
    title: str
    bound: float
    at_most: bool = True
    by: Literal["value", "low"] = "value"

    @property
    def text(self) -> str:
        """``at most 1.4``."""
        side = "at most" if self.at_most else "at least"
        return f"{side} {self.bound:g}" + (" (lower end)" if self.by == "low" else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A measured number, or why there is none.

    Attributes:
        key: names it.
        value: SI units or a ratio; None with a reason.
        low, high: ends of its 95 % interval, or None.
        n: samples.
        reason: why there is no value, or what a reader should know.
        source: the record or step it comes from.
    """

    key: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    reason: str = ""
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Figure:
        """The inverse of :meth:`to_json`."""
        return Figure(**value)


def _goals() -> tuple[Goal, ...]:
    goals = []
    for model, title in MODELS.items():
        for batch in DECODE_BATCHES:
            bound = 2.0 if model == "qwen3-30b" and batch <= 8 else 1.4
            goals.append(
                Goal(
                    key=f"decode-over-roofline/{model}/{batch}",
                    title=f"{title}, decode at batch {batch}, time over the byte roofline",
                    bound=bound,
                )
            )
    for model, title in MODELS.items():
        for batch in PREFILL_BATCHES:
            prompts = f"{batch} prompt{'s' * (batch > 1)} of {LONG_TOKENS:,} tokens"
            share = f"{title}, {prompts}, share of the measured matmul rate"
            goals.append(Goal(key=f"prefill-of-matmul/{model}/{batch}", title=share, bound=0.5, at_most=False))
    for batch in (1, 64):
        overhead = f"instruments, instrumented over bare steps at batch {batch}"
        detailed = f"every pick kept (--save-detailed), over bare steps at batch {batch}"
        goals.append(Goal(key=f"overhead/{batch}", title=overhead, bound=1.01, by="low"))
        goals.append(Goal(key=f"save-detailed/{batch}", title=detailed, bound=1.03, by="low"))
    for model, title in MODELS.items():
        load = f"{title}, peak while random weights are made, over the weights"
        goals.append(Goal(key=f"load-peak/{model}", title=load, bound=1.05))
    return tuple(goals)


GOALS = _goals()


def goals_of(step: str) -> tuple[Goal, ...]:
    """The targets whose figures a step of the script measures."""
    if step == "overhead":
        return tuple(goal for goal in GOALS if goal.key.startswith(("overhead/", "save-detailed/")))
    model = step.removeprefix("roofline-")
    return tuple(goal for goal in GOALS if step != model and model in goal.key.split("/"))


def judge(goal: Goal, figure: Figure | None) -> Verdict:
    """Is the target met? A figure without a value, or without the interval end that decides, was not measured."""
    if figure is None or figure.value is None:
        return "not measured"
    number = figure.low if goal.by == "low" else figure.value
    if number is None:
        return "not measured"
    is_met = number <= goal.bound if goal.at_most else number >= goal.bound
    return "met" if is_met else "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A target beside its figure."""

    goal: Goal
    figure: Figure | None
    verdict: Verdict

    @property
    def measured(self) -> str:
        """``1.31 [1.28, 1.35]``, or ``not yet measured``."""
        if self.figure is None or self.figure.value is None:
            return "not yet measured"
        return number_text(self.figure)

    @property
    def reason(self) -> str:
        """What a reader should know."""
        if self.figure is None:
            return NOT_RUN
        if self.verdict == "not measured" and self.figure.value is not None:
            return self.figure.reason or "no interval, and its lower end decides"
        return self.figure.reason


def number_text(figure: Figure) -> str:
    """Three significant digits and the interval where there is one."""
    assert figure.value is not None, figure.key
    text = f"{figure.value:.3g}"
    if figure.low is not None and figure.high is not None:
        text += f" [{figure.low:.3g}, {figure.high:.3g}]"
    return text


def judged(figures: Sequence[Figure]) -> list[Judged]:
    """Every target with its figure; of several figures of one key the last one that has a value, else the last."""
    by_key: dict[str, Figure] = {}
    for figure in figures:
        if figure.value is not None or figure.key not in by_key or by_key[figure.key].value is None:
            by_key[figure.key] = figure
    return [Judged(goal=g, figure=by_key.get(g.key), verdict=judge(g, by_key.get(g.key))) for g in GOALS]


def tally(rows: Sequence[Judged]) -> str:
    """``26 targets: 3 met, 1 missed, 22 not measured``."""
    counts = Counter(row.verdict for row in rows)
    parts = [f"{counts[v]} {v}" for v in ("met", "missed", "not measured") if counts[v]]
    return f"{len(rows)} targets: {', '.join(parts)}"


def text_table(rows: Sequence[Judged]) -> str:
    """Aligned text, one line per target, for the end of the script's output."""
    lines = [("target", "bound", "measured", "verdict", "")]
    lines += [(row.goal.key, row.goal.text, row.measured, row.verdict, row.reason[:60]) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    printed = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*printed, "", tally(rows)])
