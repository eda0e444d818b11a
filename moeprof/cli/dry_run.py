"""``moeprof run --dry-run``: schedule, lengths, memory fit, expected minutes and dollars, before weights load."""

from __future__ import annotations

from statistics import median

from moeprof.analysis.pricing import Pricing
from moeprof.capture.fit import Fit
from moeprof.capture.run import Prepared
from moeprof.cli.tables import print_records
from moeprof.core import units
from moeprof.core.trace import IntArray, Schedule

START_S = 20.0  # a worker's imports, loading, warm-up, calibration, overhead: about this on a small model


def show_plan(prepared: Prepared, pricing: Pricing, form: str = "table") -> None:
    """Print the plan to stdout."""
    workload, fit = prepared.workload, prepared.fit
    schedule = prepared.schedules[workload.models[0].name].measured
    rows = [
        ("device", f"{prepared.environment['device_name']} ({prepared.device})"),
        ("price", f"{units.usd(pricing.usd_per_second * 3600)} per hour, {pricing.source}"),
        ("requests", f"{len(schedule)}, {schedule.pattern}" + _span(schedule)),
        ("input tokens", _lengths(schedule.input_tokens)),
        ("output tokens", f"{_lengths(schedule.output_tokens)}, {schedule.outputs.replace('_', ' ')}"),
        ("classes", ", ".join(schedule.classes)),
        ("KV cache", f"{fit.kv_tokens:,} tokens ({fit.wanted_kv_tokens:,} would hold all that can be in flight)"),
    ]
    rows += _memory(prepared)
    rows += _too_long(prepared, schedule)
    together = "all models at once, rounds interleaved" if fit.together else "one model at a time, with reloads"
    rows.append(("models", together))
    rows += [*_sweep(prepared), *_in_turn(prepared)]
    seconds = _expected_s(prepared, schedule)
    if seconds is not None:
        cost = units.usd(seconds * pricing.usd_per_second)
        rows.append(("expected", f"{units.seconds(seconds)} or less, {cost}"))
    else:
        rows.append(("expected", "as long as the models take: the loop is not paced by the clock"))
    rows += [("note", f"{note.count:,}: {note.text}" if note.count else note.text) for note in schedule.notes]
    print_records([{"what": what, "plan": plan} for what, plan in rows], form)
    if form in ("table", "md"):
        print()
        print_records(memory_table(fit), form)


def memory_table(fit: Fit) -> list[dict[str, str | None]]:
    """One row per model: what it needs, part by part, and whether it fits. Parts that no model has are left out."""
    verdicts = {True: "fits", False: "does not fit", None: "unknown until it loads"}
    rows: list[dict[str, str | None]] = [
        {
            "model": name,
            "weights": _bytes(model.weights_bytes),
            "loading": _bytes(model.load_extra_bytes),
            "KV cache": _bytes(model.kv_bytes(fit.kv_tokens)) if model.kv_bytes_per_token else "unknown",
            "step": _bytes(model.activation_bytes),
            "workspace": _bytes(model.workspace_bytes),
            "process": _bytes(model.base_bytes),
            "needs": _bytes(fit.needed_bytes(name)) or "unknown",
            "verdict": verdicts[fit.fits(name)],
        }
        for name, model in fit.models.items()
    ]
    return [{key: value for key, value in row.items() if any(other[key] for other in rows)} for row in rows]


def _bytes(value: int | None) -> str | None:
    return units.num_bytes(value) if value else None


def _memory(prepared: Prepared) -> list[tuple[str, str]]:
    """What may be used, and what each model needs of it."""
    fit = prepared.fit
    margin = f"{units.num_bytes(fit.margin_bytes)} stays as margin (engine.memory_margin_ratio)"
    usable = f"{units.num_bytes(fit.usable_bytes)} may be used: {units.num_bytes(fit.free_bytes)} is free, {margin}"
    rows = [("memory", usable)]
    for name in fit.models:
        need = fit.needed_bytes(name)
        text = "unknown until it loads" if need is None else f"about {units.num_bytes(need)}"
        verdict = "" if need is None else ": fits" if fit.fits(name) else ": does not fit"
        rows.append((f"memory, {name}", f"{text} of {units.num_bytes(fit.usable_bytes)}{verdict}"))
    return rows


def _in_turn(prepared: Prepared) -> list[tuple[str, str]]:
    """Lock-step and ladder: loads, and the longest that the timed part can take."""
    rows = []
    for what, settings in (("lock-step", prepared.workload.lockstep), ("ladder", prepared.workload.ladder)):
        if settings is not None:
            loads = len(settings.concurrency) or 1
            longest = units.seconds(loads * settings.max_seconds * prepared.workload.launches)
            rows.append((what, f"{loads} load{'s' * (loads > 1)}, {longest} or less beside loading and warming up"))
    return rows


def _sweep(prepared: Prepared) -> list[tuple[str, str]]:
    """Points, passes and the longest that they can take."""
    workload, sweep = prepared.workload, prepared.workload.sweep
    if sweep is None:
        return []
    models = len(sweep.models or workload.models)
    passes = len(sweep.points) * sweep.rounds * models * workload.launches
    points = prepared.schedules[workload.models[0].name].points
    sizes = sorted({len(point.measured) for point in points})
    requests = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    longest = units.seconds(passes * sweep.max_seconds)
    text = f"{len(points)} points of {requests} requests, {passes} passes of {models} models, {longest} or less"
    notes = {note.text: note for point in points for note in point.measured.notes if note.code == "few_requests"}
    return [("sweep", text), *(("note", note.text) for note in notes.values())]


def _too_long(prepared: Prepared, schedule: Schedule) -> list[tuple[str, str]]:
    """Requests that the KV cache or a model's position limit will refuse."""
    rows = []
    lengths = (schedule.input_tokens + schedule.output_tokens).tolist()
    longer = sum(length > prepared.fit.kv_tokens for length in lengths)
    if longer:
        rows.append(("refused", f"{longer:,} of {len(lengths):,} requests are longer than the KV cache"))
    for name, source in prepared.sources.items():
        limit = source.config.get("max_position_embeddings")
        over = sum(length > limit for length in lengths) if isinstance(limit, int) else 0
        if over:
            rows.append((f"refused, {name}", f"{over:,} of {len(lengths):,} requests are over its {limit:,} tokens"))
    return rows


def _span(schedule: Schedule) -> str:
    if schedule.pattern == "open":
        return f", over {units.seconds(float(schedule.arrival_s.max()))}"
    return f", {schedule.concurrency} in flight" if schedule.concurrency else ""


def _lengths(tokens: IntArray) -> str:
    values = sorted(tokens.tolist())
    p99 = values[round(0.99 * (len(values) - 1))]
    return f"{sum(values):,} in all, p50 {median(values):.0f}, p99 {p99}, longest {values[-1]}"


def _expected_s(prepared: Prepared, schedule: Schedule) -> float | None:
    """Open-loop passes last as long as their arrivals; the capacity pass is taken to be no longer."""
    if schedule.pattern != "open":
        return None
    workload = prepared.workload
    passes = 2 if workload.instruments.capacity else 1
    per_model = START_S + workload.rounds * passes * float(schedule.arrival_s.max())
    return per_model * len(workload.models) * workload.launches
