"""What figures are called on pages: headings, labels, the order of sections and of the first screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moeprof.analysis.metrics.cards import SECTION_TITLES, all_cards, card_for
from moeprof.analysis.metrics.lookup import Key
from moeprof.core import units

SECTIONS = tuple((name, title) for name, title in SECTION_TITLES.items() if name != "comparison")


def _first_screen() -> tuple[tuple[str, str, dict[str, str]], ...]:
    found = [(place, card) for card in all_cards() for place in card.screen]
    rows = []
    for place, card in sorted(found, key=lambda one: one[0].rank):
        name = card.name.replace("_*_s", "+") if place.of == "+" else card.name.replace("*", place.of)
        rows.append((place.text, name, place.labels | ({"own": "yes"} if place.own else {})))
    return tuple(rows)


# label -> metric and its labels; ``ttft+`` stands for the highest percentile that the sample supports
FIRST_SCREEN = _first_screen()


def heading_of(labels: Mapping[str, str]) -> str:
    """Which traffic, window, phase and class the labels speak of."""
    parts = []
    if "traffic" in labels:
        parts.append({"open": "open loop", "closed": "closed loop", "offline": "offline"}[labels["traffic"]])
    if labels.get("window") == "steady":
        parts.append("steady window")
    if "phase" in labels and labels["phase"] != "all":
        parts.append(labels["phase"])
    if "request_class" in labels:
        parts.append(f"class {labels['request_class']}")
    return ", ".join(parts) or "whole run"


def label_of(name: str, labels: Mapping[str, str]) -> str:
    """A metric's title with its statistic, and the labels that :func:`heading_of` does not say."""
    rest = [
        f"{key} {value}" for key, value in labels.items() if key not in ("traffic", "window", "phase", "request_class")
    ]
    card = card_for(name)
    head, star, tail = card.name.partition("*")
    statistic = name.removeprefix(head).removesuffix(tail).replace("_", ".") if star else ""
    text = f"{card.title}, {statistic}" if statistic else card.title
    return text + (f" ({', '.join(rest)})" if rest else "")


def shared_traffic(keys: Iterable[Key]) -> str | None:
    """The traffic that all figures with one are of."""
    found = {dict(key[1])["traffic"] for key in keys if "traffic" in dict(key[1])}
    return found.pop() if len(found) == 1 else None


def figure_label(key: Key, *, hide_traffic: str | None = None) -> str:
    """What people call a figure: ``decode step``, ``price of 1M output tokens``, ``dead experts, decode``.

    Args:
        key: name and labels.
        hide_traffic: this traffic is not said.
    """
    name = key[0]
    labels = {k: v for k, v in key[1] if (k, v) != ("traffic", hide_traffic)}
    own = {k: v for k, v in labels.items() if k not in APART}
    heading = heading_of({k: v for k, v in labels.items() if k in APART})
    rest = "" if heading == "whole run" else f", {heading}"
    if name == "step_mean_s" and set(own) <= {"phase"}:
        return f"{own.get('phase', '')} step{rest}".strip()
    for label, known, wanted in FIRST_SCREEN:
        if known == name and wanted == own:
            return f"{label}{rest}"
    heading, text = heading_of(labels), label_of(name, labels)
    text = text if text[1:2].isupper() else text[:1].lower() + text[1:]
    return text if heading == "whole run" else f"{text}, {heading}"


def from_to(values: Sequence[str]) -> str:
    """``24.1 ms``, ``26.8 ms`` -> ``24.1 -> 26.8 ms``: a unit that all share stands once."""
    last = units.split(values[-1])[1] if values else ""
    shared = last and all(units.split(value)[1] == last for value in values)
    first = [units.split(value)[0] for value in values[:-1]] if shared else values[:-1]
    return " \u2192 ".join((*first, *values[-1:]))


APART = ("traffic", "window")  # labels that a heading of the report says, and a name of a figure does not
