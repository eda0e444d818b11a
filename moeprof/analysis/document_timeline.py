"""Several small charts over one time axis, as data: what the device did during the passes of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineLine:
    """One quantity over time.

    Attributes:
        name: of the line; empty where its panel says it all.
        stretches: (times in s, values), one per pass; nothing is drawn between them.
        style: how it is drawn.
    """

    name: str
    stretches: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    style: Literal["line", "dashed"] = "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelinePanel:
    """One of the small charts; all its lines have one unit."""

    label: str
    unit: str
    lines: tuple[TimelineLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSpan:
    """A stretch of time that is marked across all panels, in s; ``label`` says why."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Small charts under each other, over one time axis.

    Attributes:
        name, title, caption: as in Chart.
        panels: from top to bottom.
        spans: marked stretches.
        passes: (start in s, name) of every pass, in order.
        end_s: end of the time axis.
    """

    name: str
    title: str
    caption: str
    panels: tuple[TimelinePanel, ...]
    spans: tuple[TimelineSpan, ...]
    passes: tuple[tuple[float, str], ...]
    end_s: float
