"""What the page of a check calls its figures: words that people use, without what all of them share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moeprof.analysis.compare.keys import Key
from moeprof.analysis.regress.result import Regression
from moeprof.analysis.report import FIRST_SCREEN, heading_of, label_of

APART = ("traffic", "window")  # labels that a heading of the report says, and a name of a figure does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names within one check.

    Attributes:
        models: all of them; a single one needs no name.
        traffic: the one that all gates are of, which then is not said; else None.
    """

    models: tuple[str, ...]
    traffic: str | None

    def figure(self, key: Key) -> str:
        """Without the model: ``decode step``."""
        return figure_label(key, hide_traffic=self.traffic)

    def full(self, model: str, key: Key) -> str:
        """With it, where the check has several: ``moe: decode step``."""
        return self.of(model, self.figure(key))

    def of(self, model: str, label: str) -> str:
        """A label with its model, where the check has several."""
        return f"{model}: {label}" if len(self.models) > 1 else label


def names_of(regression: Regression) -> Names:
    """Of the models and gates of a check."""
    models = dict.fromkeys((*(gate.model for gate in regression.gates), *(c.model for c in regression.changes)))
    return Names(models=tuple(models), traffic=shared_traffic(gate.key for gate in regression.gates))


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
