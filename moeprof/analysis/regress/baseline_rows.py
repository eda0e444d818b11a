"""What a baseline holds, as rows for people: where it is from, its headline figures, what can be judged against it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.stored import FEWEST_LAUNCHES
from moeprof.analysis.pick import pick_frozen
from moeprof.analysis.regress.stored import WANTED_LAUNCHES
from moeprof.core.baseline import Baseline, BaselineModel
from moeprof.core.metric import MetricValue

HEADLINE: tuple[tuple[str, dict[str, str]], ...] = (
    ("total_params", {}),
    ("active_params", {}),
    ("weights_bytes", {}),
    ("kv_bytes_per_token", {}),
    ("usd_per_1m_output_tokens", {}),
    ("output_tokens_per_s", {}),
    ("ttft_p50_s", {}),
    ("itl_p50_s", {}),
    ("step_mean_s", {"phase": "decode"}),
    ("step_mean_s", {"phase": "prefill"}),
    ("energy_j_per_output_token", {}),
    ("bits_per_byte", {}),
    ("router_load_max_over_mean", {"phase": "decode"}),
    ("dead_experts", {"phase": "decode"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRow:
    """One line.

    Attributes:
        of: ``baseline``, or the model.
        what: name of the fact or metric, labels included.
        value: text of a fact, number of a metric; None: not recorded or not measured.
        unit: of a number.
        low, high: 95 % interval, or None.
        n: samples behind it, or None.
    """

    of: str
    what: str
    value: str | float | int | None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None


def baseline_rows(baseline: Baseline) -> tuple[BaselineRow, ...]:
    """Facts of the run, then of each model its facts, headline figures and sizes."""
    head = ("name", "workload", "run", "created_at", "status", "label")
    rows = [BaselineRow(of="baseline", what=name, value=getattr(baseline, name) or None) for name in head]
    rows.append(BaselineRow(of="baseline", what="price", value=3600 * baseline.usd_per_second, unit="USD / h"))
    rows += [BaselineRow(of="baseline", what=name, value=_text(value)) for name, value in baseline.facts.items()]
    return (*rows, *(row for model in baseline.models for row in _of_model(model)))


def num_launches(model: BaselineModel) -> int:
    """Launches that measured something."""
    return len(model.steps.launches) if model.steps is not None else max(1, 1 + max(_launch_labels(model), default=0))


def shortcomings(baseline: Baseline) -> tuple[str, ...]:
    """What cannot be judged against it, and what to do, one sentence each."""
    said = list(baseline.notes)
    few = {model.name: num_launches(model) for model in baseline.models if num_launches(model) < FEWEST_LAUNCHES}
    if few:
        counts = ", ".join(f"{name} {number}" for name, number in few.items())
        said.append(
            f"fewer than {FEWEST_LAUNCHES} launches ({counts}): no figure of time can be judged against it; "
            f"run with --launches {WANTED_LAUNCHES}, or use regress --ab"
        )
    without = [model.name for model in baseline.models if model.num_experts and model.picks is None]
    if without and not baseline.notes:
        said.append(f"no picks of forced tokens ({', '.join(without)}): routing_agreement_ratio cannot be judged")
    return tuple(said)


def _of_model(model: BaselineModel) -> Iterator[BaselineRow]:
    for name, fact in model.facts.items():
        yield BaselineRow(of=model.name, what=name, value=_text(fact))
    for name, labels in HEADLINE:
        value = pick_frozen(model, name, own_traffic=None, **labels)
        if value is not None:
            yield _metric(model.name, value, labels)
    yield BaselineRow(of=model.name, what="metrics", value=len(model.metrics))
    yield BaselineRow(of=model.name, what="launches", value=num_launches(model))
    yield BaselineRow(of=model.name, what="routing layers", value=len(model.routing.layers) if model.routing else 0)
    yield BaselineRow(of=model.name, what="forced tokens", value=model.picks.num_tokens if model.picks else 0)


def _metric(of: str, value: MetricValue, labels: dict[str, str]) -> BaselineRow:
    said = ",".join(f"{name}={label}" for name, label in labels.items())
    return BaselineRow(
        of=of,
        what=f"{value.name}{{{said}}}" if said else value.name,
        value=value.value,
        unit=card_for(value.name).unit,
        low=value.ci_low,
        high=value.ci_high,
        n=value.n,
    )


def _launch_labels(model: BaselineModel) -> Iterator[int]:
    return (int(value.labels["launch"]) for value in model.metrics if value.labels.get("launch", "").isdigit())


def _text(value: object) -> str | None:
    if isinstance(value, list | tuple):
        return ", ".join("none" if item is None else str(item) for item in value)
    return None if value is None else str(value)
