"""Reasons to doubt a report: every check that failed or weakens a figure, as data with a code.

Reasons to doubt the figures of one model.

Reasons to doubt that come from the device: neighbours, throttling, clocks, limits, errors (docs/metrics.md#validity).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from moeprof.analysis.doubt import Doubt, Severity
from moeprof.analysis.metrics.attribution import ALPHA
from moeprof.analysis.metrics.latency import schedule_lag_flag
from moeprof.analysis.metrics.load.overload import fell_behind, overload_of, saturation_of
from moeprof.analysis.metrics.lookup import number, pick
from moeprof.analysis.metrics.resources.device_state import (
    GPU_IDLE,
    findings,
    in_words,
    throttle_codes,
    throttled_ratio,
)
from moeprof.analysis.metrics.samples import too_few_requests
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.metrics.tables import PassTables, column, is_done
from moeprof.analysis.report.sections.memory import forecast_words
from moeprof.core.record.experiment import DeviceAtEnd, ScheduleHeader

CLOCK_SPREAD = 1.1


def device_at_start(summary: Summary) -> Iterator[Doubt]:
    """What others did on the device before the run, its limits and modes, and errors during it."""
    experiment = summary.record.experiment
    if experiment.device_at_start is not None:
        at_end = experiment.device_at_end
        for found in findings(experiment.device_at_start, at_end if isinstance(at_end, DeviceAtEnd) else None):
            yield Doubt(code=found.code, flag="isolation", severity=found.severity, model=None, text=found.text)


def throttled(model: ModelSummary) -> Iterator[Doubt]:
    """Reasons, and for how much of the time."""
    passes = _sampled(model)
    masks = [column(tables.telemetry, "throttle_reasons") for tables in passes]
    seen = {int(mask) for found in masks for mask in found[np.isfinite(found)]}
    codes = tuple(dict.fromkeys(code for mask in sorted(seen) for code in throttle_codes(mask)))
    if codes:
        times = [column(tables.telemetry, "t_s") for tables in passes]
        shares = [s for t, m in zip(times, masks, strict=True) if (s := throttled_ratio(t, m)) is not None]
        most = f" for up to {100 * max(shares):.0f} % of a pass" if shares else ""
        text = f"the device slowed itself down{most}: {in_words(codes)}"
        yield Doubt(code="throttled", flag="isolation", severity="warning", model=model.name, text=text)


def clocks_changed(model: ModelSummary) -> Iterator[Doubt]:
    """While there was work: a device that idles between requests lowers its clock, and that is no fault."""
    found = []
    for tables in _sampled(model):
        clock, mask = column(tables.telemetry, "sm_clock_mhz"), column(tables.telemetry, "throttle_reasons")
        idle = np.array([np.isfinite(m) and bool(int(m) & GPU_IDLE) for m in mask], dtype=np.bool_)
        inside = column(tables.telemetry, "t_s") >= 0
        found.append(clock[np.isfinite(clock) & ~idle & inside])
    clocks = np.concatenate(found) if found else np.empty(0)
    if len(clocks) and clocks.max() > CLOCK_SPREAD * clocks.min():
        text = f"the device's clock moved between {clocks.min():.0f} and {clocks.max():.0f} MHz while it had work"
        yield Doubt(code="clocks_changed", flag="isolation", severity="warning", model=model.name, text=text)


def other_processes(model: ModelSummary) -> Iterator[Doubt]:
    """During passes; in how many of the samples."""
    others = [column(tables.telemetry, "num_other_processes") for tables in _sampled(model)]
    known = np.concatenate(others) if others else np.empty(0)
    known = known[np.isfinite(known)]
    if (known > 0).any():
        text = f"other processes used the device in {100 * (known > 0).mean():.0f} % of the samples, up to "
        text += f"{int(known.max())} at once"
        yield Doubt(code="other_processes", flag="isolation", severity="warning", model=model.name, text=text)


def _sampled(model: ModelSummary) -> list[PassTables]:
    return [tables for tables in (*model.rounds, *model.capacity) if len(tables.telemetry)]


SPREAD = 1.10  # rounds of the same schedule further apart than this are worth a warning
STOLEN = 1.3  # wall time over processor time of a step on a CPU
STOLEN_SHARE = 0.05
USELESS_SPREAD, USELESS_STOLEN_SHARE = 1.5, 0.5  # beyond these, times tell of the machine and not of the model
USELESS = "; times of this run are not to be used"
BUSY = 0.95
SHORT_PASS_S = 0.5
FORECAST_ERROR = 0.10


def _doubt(model: ModelSummary, code: str, flag: str, severity: Severity, text: str) -> Doubt:
    return Doubt(code=code, flag=flag, severity=severity, model=model.name, text=text)


def _by_size(text: str, is_useless: bool) -> tuple[Severity, str]:
    """How grave a disturbance of the machine is, and the sentence that says so."""
    return ("error", f"{text}{USELESS}") if is_useless else ("warning", text)


def _failed(model: ModelSummary) -> Iterator[Doubt]:
    if model.record.status == "failed":
        yield _doubt(model, "failed", "schedule", "error", f"it failed: {model.record.error}")
    for launch in model.record.launches:
        for passed in launch.passes:
            if passed.info.status == "failed":
                code = passed.info.reason if isinstance(passed.info.reason, str) else "pass_failed"
                text = f"{passed.name} ended early ({code.replace('_', ' ')}): its figures speak for what ran before"
                yield _doubt(model, code, "schedule", "error", text)


def _self_check(model: ModelSummary) -> Iterator[Doubt]:
    check = model.launch.self_check
    if (broken := check.failure) is not None:
        yield _doubt(model, "tap_check_failed", "routing", "error", f"the routing tap failed its self-check: {broken}")
    for note in check.notes:
        if model.facts is not None and model.facts.is_moe:
            yield _doubt(model, "routing_note", "routing", "note", note)


def _invariants(model: ModelSummary) -> Iterator[Doubt]:
    for launch in model.record.launches:
        for passed in launch.passes:
            for name, check in (passed.info.invariants or {}).items():
                if not check.passed:
                    text = f"{passed.name}: {name.replace('_', ' ')} do not add up ({check.text})"
                    yield _doubt(model, "invariant", "routing", "error", text)


def _routing_policy(model: ModelSummary) -> Iterator[Doubt]:
    if model.facts is None:
        return
    if model.facts.weights == "random":
        yield _doubt(
            model,
            "random_weights",
            "realism",
            "warning",
            "weights are random: time and memory are real, routing and text are not",
        )
    for note in model.facts.notes:
        yield _doubt(model, "model_note", "routing", "note", note)


def _lag(model: ModelSummary) -> Iterator[Doubt]:
    flag = schedule_lag_flag(model.rounds) if model.rounds else None
    if flag is not None:
        text = f"the replayer fell behind its schedule: {flag}; this is not the traffic that was asked for"
        yield _doubt(model, "schedule_lag", "schedule", "error", text)


def _requests(model: ModelSummary) -> Iterator[Doubt]:
    for passes in (model.rounds, model.capacity):
        if not passes:
            continue
        status = [str(s) for tables in passes for s in tables.requests["status"]]
        for name in ("refused", "failed", "unfinished"):
            if name in status:
                count = f"{status.count(name)} of {len(status)} requests were {name} ({passes[0].traffic} passes)"
                text = f"{count}; they are in no latency figure"
                yield _doubt(model, name, "schedule", "warning", text)
        again = sum(int(tables.requests["recomputed_tokens"].sum()) for tables in passes)
        if again:
            where = f"({passes[0].traffic} passes); raise engine.kv_tokens"
            text = f"{again} tokens were computed again under KV pressure {where}"
            yield _doubt(model, "recomputed", "schedule", "warning", text)


def _steady(model: ModelSummary) -> Iterator[Doubt]:
    values = [v for v in model.metrics if v.name == "ttft_mean_s" and v.labels.get("window") == "steady"]
    if (
        values
        and values[0].value is None
        and model.rounds
        and model.rounds[0].traffic == values[0].labels.get("traffic")
    ):
        yield _doubt(model, "no_steady_state", "steady_state", "note", values[0].reasons[0])


def _overload(model: ModelSummary) -> Iterator[Doubt]:
    """An open loop with more traffic than the engine could serve, or of which that cannot be told."""
    found, behind = overload_of(model.rounds), fell_behind(model.rounds)
    if found is not None:
        severity: Severity = "error" if found.told else "warning"
        said = found.sentence("it")
        text = f"{said[:1].lower()}{said[1:]}: lower the rate, or judge it by what it could serve"
        yield _doubt(model, "overloaded", "latency", severity, text)
    elif behind is not None:
        yield _doubt(model, "fell_behind", "schedule", "warning", behind)
    elif model.rounds and model.rounds[0].traffic == "open":
        told = [saturation_of(tables) for tables in model.rounds]
        if all(one.saturated is None for one in told):
            why = str(told[0].reason).removeprefix("cannot tell: ")
            text = f"whether it kept up with the traffic is not known: {why}"
            yield _doubt(model, "overload_unknown", "latency", "note", text)


def _overhead(model: ModelSummary) -> Iterator[Doubt]:
    value = pick(model, "instrumentation_overhead_ratio")
    if value is None or value.value is None:
        reason = value.reasons[0] if value is not None and value.reasons else "not measured"
        yield _doubt(model, "overhead_unknown", "overhead", "note", f"the instruments' own cost is unknown: {reason}")
    elif not value.valid:
        text = f"the instruments cost {100 * (value.value - 1):.1f} % of step time; latencies are not to be used"
        yield _doubt(model, "overhead_high", "overhead", "error", text)


def _spread(model: ModelSummary) -> Iterator[Doubt]:
    speeds = [float(column(t.steps, "new_tokens").sum() / t.duration_s) for t in model.priced if t.duration_s > 0]
    if len(speeds) > 1 and max(speeds) > SPREAD * min(speeds) and model.priced[0].traffic != "open":
        apart = 100 * (max(speeds) / min(speeds) - 1)
        text = f"rounds of the same work differ by {apart:.0f} %: the machine was not steady"
        yield _doubt(model, "rounds_differ", "isolation", *_by_size(text, apart > 100 * (USELESS_SPREAD - 1)))


def _set_aside(model: ModelSummary) -> Iterator[Doubt]:
    """Rounds that no figure is of."""
    if model.set_aside:
        lost = ", ".join(f"{name} ({100 * share:.0f} % of its time)" for name, share in model.set_aside)
        num = len(model.set_aside) + len(model.rounds) + len(model.capacity)
        was = "was" if len(model.set_aside) == 1 else "were"
        text = f"{len(model.set_aside)} of {num} rounds {was} set aside, something else took the processor: {lost}"
        yield _doubt(model, "rounds_set_aside", "isolation", "warning", text)


def _stolen(model: ModelSummary) -> Iterator[Doubt]:
    """On a CPU, steps whose wall time is far above processor time were interrupted by something else."""
    if not (model.launch.engine.device or "").startswith("cpu") or not model.priced:
        return
    if (model.launch.threads or 1) > 1:
        return  # processor time of several threads says nothing about waiting
    steps = [tables.steps for tables in (*model.rounds, *model.capacity)]
    wall = np.concatenate([column(s, "end_s") - column(s, "start_s") for s in steps])
    cpu = np.concatenate([column(s, "cpu_s") for s in steps])
    share = float((wall > STOLEN * np.maximum(cpu, 1e-9)).mean()) if len(wall) else 0.0
    if share > STOLEN_SHARE:
        text = f"in {100 * share:.0f} % of the steps something else took the processor"
        yield _doubt(model, "stolen_time", "isolation", *_by_size(text, share > USELESS_STOLEN_SHARE))


def _warmup(model: ModelSummary) -> Iterator[Doubt]:
    warmup = model.launch.warmup
    if warmup is not None and not warmup.settled and "steps" not in model.launch.lacks:
        yield _doubt(model, "warmup_unsettled", "latency", "note", "step times had not settled when warm-up ended")


def _forecast(model: ModelSummary) -> Iterator[Doubt]:
    error, said = pick(model, "predicted_memory_error_ratio"), forecast_words(model)
    if error is not None and error.value is not None and abs(error.value) > FORECAST_ERROR:
        yield _doubt(model, "memory_forecast", "memory", "note", f"memory: {said}")


def _engine(model: ModelSummary) -> Iterator[Doubt]:
    engine = model.launch.engine
    if engine.batching == "static":
        reason = (engine.notes or ("chosen in the workload",))[0]
        text = f"ran in static batches ({reason}): slower under open-loop load than continuous batching would be"
        yield _doubt(model, "static_batches", "latency", "warning", text)
    elif engine.notes:
        yield _doubt(model, "engine_note", "latency", "note", "; ".join(engine.notes))


def _busy(model: ModelSummary) -> Iterator[Doubt]:
    busy = number(model, "busy_ratio", own_traffic=True) if model.rounds else None
    if busy is not None and busy < BUSY and model.rounds[0].traffic == "open":
        share = f"busy {100 * busy:.0f} % of the time"
        text = f"{share} at this traffic: dollars at this traffic compare utilisation, not models"
        yield _doubt(model, "not_saturated", "cost", "note", text)


def _capacity(model: ModelSummary) -> Iterator[Doubt]:
    """Dollars without a full capacity pass bill idle time or half the work."""
    if model.rounds and model.priced[0].traffic == "open":
        text = "no capacity pass: dollars bill the idle time of this traffic, so they speak of utilisation"
        yield _doubt(model, "no_capacity_pass", "cost", "warning", text)
    for launch in model.record.launches:
        for passed in launch.passes:
            status, sent, finished = passed.info.status, passed.info.sent, passed.info.finished
            if status not in ("done", None):
                text = f"{passed.name} was {status}: {finished} of {sent} sent requests finished"
                if status == "started":
                    text = f"{passed.name} has no end: it still runs, or its process was killed"
                yield _doubt(model, "pass_cut", "schedule", "error", text)


def _harness(model: ModelSummary) -> Iterator[Doubt]:
    """In an offline pass the engine always has work, so idle time is the replayer's own and it is billed."""
    if not model.priced or model.priced[0].traffic == "open":
        return
    busy = number(model, "busy_ratio", own_traffic=False)
    if busy is not None and busy < BUSY:
        text = (
            f"the engine was busy {100 * busy:.0f} % of the priced passes: the rest of the bill is the replayer's own"
        )
        yield _doubt(model, "harness_time", "cost", "warning", text)
    shortest = min(tables.duration_s for tables in model.priced)
    if shortest < SHORT_PASS_S:
        text = f"the shortest priced pass took {shortest:.2f} s: send more requests for steadier dollars"
        yield _doubt(model, "short_pass", "cost", "note", text)


def _split(model: ModelSummary) -> Iterator[Doubt]:
    methods = {split.busy.method for split in model.splits}
    poor = sorted(methods & {"roofline", "tokens"})
    if poor:
        text = f"mixed steps were split by {poor[0]}, not by calibration steps: the input/output split is rough"
        yield _doubt(model, "rough_split", "cost", "warning", text)


def _cached(model: ModelSummary) -> Iterator[Doubt]:
    """Prompt tokens of three kinds cost three prices: which one a figure speaks of must be known."""
    cached, computed = number(model, "cost_cached_tokens"), number(model, "cost_input_tokens")
    if not cached or computed is None:
        return
    text = (
        f"{100 * cached / (cached + computed):.0f} % of prompt tokens came from the cache: prices of input tokens and "
        "of all tokens are per token computed; usd_per_1m_input_tokens_with_cached is per prompt token served"
    )
    yield _doubt(model, "cached_prompts", "cost", "note", text)


def _few_priced(model: ModelSummary) -> Iterator[Doubt]:
    """A price is a mean over requests."""
    reason = too_few_requests(model.priced) if model.priced else None
    if reason is not None:
        yield _doubt(model, "few_priced_requests", "cost", "error", f"dollars per token are not valid: {reason}")


def _energy(model: ModelSummary) -> Iterator[Doubt]:
    value = pick(model, "energy_j") if model.priced else None
    if value is not None and value.value is None:
        reason = value.reasons[0] if value.reasons else "not measured"
        yield _doubt(model, "energy_unknown", "energy", "note", f"energy was not measured ({reason})")


def _placebo(model: ModelSummary) -> Iterator[Doubt]:
    for value in model.metrics:
        if value.name == "placebo_variance_explained_by_routing_p" and value.value is not None and value.value <= ALPHA:
            text = "the MoE's routing 'explains' this dense model's steps: do not trust the attribution of variance"
            yield _doubt(model, "placebo_explains", "latency", "warning", text)


MODEL_CHECKS: tuple[Callable[[ModelSummary], Iterator[Doubt]], ...] = (
    _failed,
    _self_check,
    _invariants,
    _routing_policy,
    _lag,
    _requests,
    _steady,
    _overload,
    _overhead,
    _spread,
    _set_aside,
    _stolen,
    _warmup,
    _forecast,
    _engine,
    _busy,
    _capacity,
    _harness,
    _split,
    _cached,
    _few_priced,
    _energy,
    _placebo,
    throttled,
    clocks_changed,
    other_processes,
)


SEVERITIES = ("error", "warning", "note")
# Errors of the machine or the instruments void other flags too: what their sentence says is not to be used.
VOIDS: Mapping[str, tuple[str, ...]] = {
    "rounds_differ": ("latency", "cost"),
    "stolen_time": ("latency", "cost"),
    "overhead_high": ("latency",),
}


def disturbed(summary: Summary) -> str | None:
    """That the machine left no time, and so no dollar, to be used, and what it did to which model; else None."""
    found = [doubt for model in summary.models for check in (_spread, _stolen) for doubt in check(model)]
    grave = _merged([doubt for doubt in found if doubt.severity == "error"])
    did = "; ".join(f"{doubt.model}: {doubt.text.removesuffix(USELESS)}" for doubt in grave)
    return f"Times of this run are not to be used ({did})." if did else None


def find_doubts(summary: Summary) -> tuple[Doubt, ...]:
    """All doubts, the worst first."""
    found = [doubt for check in RUN_CHECKS for doubt in check(summary)]
    for model in summary.models:
        found += [doubt for check in MODEL_CHECKS for doubt in check(model)]
    return tuple(sorted(_merged(found), key=lambda doubt: SEVERITIES.index(doubt.severity)))


def _merged(doubts: list[Doubt]) -> list[Doubt]:
    """The same sentence about several models becomes one about the run."""
    by_text: dict[tuple[str, str], list[Doubt]] = {}
    for doubt in doubts:
        by_text.setdefault((doubt.code, doubt.text), []).append(doubt)
    merged = []
    for same in by_text.values():
        names = [doubt.model for doubt in same if doubt.model]
        first = same[0]
        merged.append(
            Doubt(
                code=first.code,
                flag=first.flag,
                severity=first.severity,
                model=", ".join(dict.fromkeys(names)) or None,
                text=first.text,
            )
        )
    return merged


def _status(summary: Summary) -> Iterator[Doubt]:
    status = summary.record.status
    if status in ("interrupted", "started"):
        text = "the run did not end: figures speak for what was measured before it stopped"
        yield Doubt(code="incomplete", flag="schedule", severity="error", model=None, text=text)


def _cut(summary: Summary) -> Iterator[Doubt]:
    """What ``max_minutes`` left out: requests of a pass that was cut, and rounds that never began."""
    workload = summary.record.workload
    asked = (workload.rounds or 1) * (workload.launches or 1)
    for model in summary.models:
        passes = [passed for launch in model.record.launches for passed in launch.passes]
        parts = []
        for passed in (p for p in passes if p.info.status == "cut"):
            total = summary.record.schedule(model.name).num_requests
            total_text = "all" if total is None else str(total)
            parts.append(f"{passed.name} sent {passed.info.sent or 0} of {total_text} requests")
        missing = asked - sum(not passed.is_capacity for passed in passes)
        if missing > 0 and workload.max_minutes is not None and model.record.status == "done":
            parts.append(f"{missing} of {asked} rounds never began")
        if parts:
            text = f"max_minutes ({workload.max_minutes}) ended the run early: {', '.join(parts)}"
            yield Doubt(code="cut", flag="schedule", severity="error", model=model.name, text=text)


def _resumed(summary: Summary) -> Iterator[Doubt]:
    for model in summary.models:
        for launch in model.record.launches:
            processes = {passed.info.process for passed in (*launch.passes, *launch.sweep)}
            if len(processes) > 1:
                text = (
                    f"the run was resumed: passes of {launch.path.name} come from {len(processes)} processes, and "
                    "memory layout and machine state differ between processes"
                )
                yield Doubt(code="resumed", flag="isolation", severity="warning", model=model.name, text=text)


def _launches(summary: Summary) -> Iterator[Doubt]:
    launches = summary.record.workload.launches or 1
    if launches == 1:
        text = (
            "one launch: intervals hold for this process only; memory layout and machine state differ between "
            "launches, claims across code, drivers or days need several (launches: 6)"
        )
        yield Doubt(code="one_launch", flag="latency", severity="note", model=None, text=text)


def _realism(summary: Summary) -> Iterator[Doubt]:
    for schedule in _distinct_schedules(summary):
        if schedule.realism != "real_text":
            made_of = str(schedule.realism).replace("_", " ")
            text = f"prompts are {made_of}: routers react to content, so routing is not that of real text"
            yield Doubt(code="prompts_not_real", flag="realism", severity="error", model=None, text=text)
        if schedule.outputs == "forced_length":
            text = "output lengths are forced to the schedule's; the model would have stopped elsewhere"
            yield Doubt(code="forced_length", flag="realism", severity="note", model=None, text=text)
        if schedule.outputs == "forced":
            text = "outputs are the text's true continuation, fed regardless of what the model itself would say"
            lacks = [model.launch.lacks.get("forced ids") for model in summary.models]
            if lacks and all(lacks):
                text = str(lacks[0])
            yield Doubt(code="forced", flag="realism", severity="note", model=None, text=text)


def _own_ends(summary: Summary) -> Iterator[Doubt]:
    """Models that end their outputs themselves: where they do, and what other lengths do to a comparison."""
    if summary.record.workload.outputs != "free":
        return
    for model in summary.models:
        asked, got = (_output_tokens(model, name) for name in ("asked_output_tokens", "output_tokens"))
        if asked is not None and asked == got:
            ids = model.launch.end_ids
            why = "its checkpoint names no id that ends one" if ids == () else "not one end was met"
            text = f"no output ended before the length that was asked for: {why}"
            yield Doubt(code="outputs_never_ended", flag="realism", severity="warning", model=model.name, text=text)
    lengths = {m.name: mean for m in summary.models if (mean := _output_tokens(m, "output_tokens")) is not None}
    if len({round(mean, 6) for mean in lengths.values()}) > 1:
        each = ", ".join(f"{name} {mean:.3g}" for name, mean in lengths.items())
        text = (
            f"the models end their outputs themselves, and not alike ({each} tokens a request): cost per request and "
            "latency of a whole request compare answers of other lengths, cost per token another share of prompts; "
            "`outputs: forced_length` gives all of them the same work"
        )
        yield Doubt(code="output_lengths_differ", flag="cost", severity="warning", model=None, text=text)


def _output_tokens(model: ModelSummary, name: str) -> float | None:
    """Mean over the requests of all rounds that ended well; None without any."""
    found = [column(tables.requests[is_done(tables.requests)], name) for tables in model.rounds]
    values = np.concatenate(found) if found else np.empty(0)
    return float(values.mean()) if len(values) else None


def _schedule_notes(summary: Summary) -> Iterator[Doubt]:
    for schedule in _distinct_schedules(summary):
        for note in schedule.notes:
            yield Doubt(code=note.code, flag="schedule", severity="note", model=None, text=note.text)


def _tokenizers(summary: Summary) -> Iterator[Doubt]:
    hashes = {schedule.tokenizer_hash for schedule in summary.record.experiment.schedules.values()}
    if len(hashes) > 1:
        text = "the models have different tokenizers: compare them per character and per request, not per token"
        yield Doubt(code="tokenizers_differ", flag="schedule", severity="warning", model=None, text=text)


def _dtypes(summary: Summary) -> Iterator[Doubt]:
    told = {m.name: dtype for m in summary.models if (dtype := m.launch.engine.dtype)}
    if len(set(told.values())) > 1:
        said = ", ".join(f"{name} {dtype}" for name, dtype in told.items())
        text = f"the models ran in different dtypes ({said}): their ratios hold that difference too"
        yield Doubt(code="dtypes_differ", flag="isolation", severity="warning", model=None, text=text)


def _machine(summary: Summary) -> Iterator[Doubt]:
    environment = summary.record.environment
    load, cores = environment.load_average_1min, environment.cpu_cores or 1
    if load is not None and load > 0.5 * cores:
        text = f"the machine was busy before the run: load average {load:.1f} on {cores} processors"
        yield Doubt(code="busy_machine", flag="isolation", severity="warning", model=None, text=text)
    fit = summary.record.experiment.fit
    if fit is not None and not fit.together:
        text = "the models did not fit in memory together: they alternated with reloads, so rounds are further apart"
        yield Doubt(code="reloaded", flag="isolation", severity="note", model=None, text=text)


def _distinct_schedules(summary: Summary) -> list[ScheduleHeader]:
    return list({schedule.sha256: schedule for schedule in summary.record.experiment.schedules.values()}.values())


RUN_CHECKS: tuple[Callable[[Summary], Iterator[Doubt]], ...] = (
    _status,
    _cut,
    _resumed,
    _launches,
    _realism,
    _own_ends,
    _schedule_notes,
    _tokenizers,
    _dtypes,
    _machine,
    device_at_start,
)
