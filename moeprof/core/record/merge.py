"""Parts of one load test, each from a load generator of its own, become one record: ``moeprof merge``.

Every duration in a row comes from one machine's clock, so that none depends on how well clocks agree: all times of a
part's pass move together, by the difference of the machines' wall clocks at the start of the pass. That offset only
orders the merged timeline and sets where its window begins and ends. The server's counters are seen by every part;
those of the part that looked longest stand.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from moeprof.core.errors import RecordError
from moeprof.core.record.experiment import ScheduleHeader
from moeprof.core.record.headers import write_header
from moeprof.core.record.layout import LaunchRecord, PassRecord, Record, open_record
from moeprof.core.record.passes import ClientHeader, CountersHeader, PassHeader
from moeprof.core.record.tables import arrow_schema
from moeprof.core.record.whole import list_files

TIMES = ("arrival_s", "sent_s", "first_scheduled_s", "first_token_s", "last_token_s", "first_answer_s")
SUMS = ("tokens_per_s", "limit_tokens_per_s", "flood_tokens_per_s", "paced_tokens_per_s", "paced_streams")
WORST = ("cpu_ratio", "lag_p50_s", "lag_p99_s", "paced_lag_p50_s", "paced_lag_p99_s")
SAME = ("software", "title", "served_as", "endpoint", "prompts", "fixed_length", "tokens_from", "devices", "replicas")


@dataclass(frozen=True, kw_only=True)
class Part:
    """The pass of one load generator.

    Attributes:
        name: of its record.
        passed: the pass.
        offset_s: its start on the merged timeline, by wall clocks.
        first_row: number of its first request in the merged schedule.
    """

    name: str
    passed: PassRecord
    offset_s: float
    first_row: int


def merge(folders: Sequence[Path], output: Path, *, uncertainty_s: float | None = None) -> Path:
    """Write the merged record into an empty folder.

    Args:
        folders: of the parts.
        output: new.
        uncertainty_s: how far the machines' clocks may be apart; None: not known.

    Raises:
        RecordError: fewer than two parts, or parts that are not of one test.
    """
    records = [open_record(folder) for folder in folders]
    _check(records)
    first = records[0]
    for model in first.models:
        (output / model.path.name).mkdir(parents=True)
        shutil.copy(model.path / "model.json", output / model.path.name / "model.json")
        for number, launch in enumerate(model.launches):
            launches = [_launch(record, model.name, number) for record in records]
            folder = output / model.path.name / launch.path.name
            folder.mkdir()
            shutil.copy(launch.path / "launch.json", folder / "launch.json")
            for index, passed in enumerate(launch.rounds):
                _merge_pass([one.rounds[index] for one in launches], records, model.name, folder / passed.name)
    statuses = {record.status for record in records}
    schedules = {model.name: _schedule(records, model.name) for model in first.models}
    merged = replace(
        first.experiment,
        run=output.name,
        status="done" if statuses == {"done"} else "interrupted",
        schedules=schedules,
        content_kept=False,
        notes=(*first.experiment.notes, _note(records, uncertainty_s)),
        files=list_files(output),
    )
    write_header(output / "experiment.json", merged)
    return output


def _note(records: Sequence[Record], uncertainty_s: float | None) -> str:
    known = "which is not known" if uncertainty_s is None else f"up to {uncertainty_s:g} s"
    return (
        f"merged from {len(records)} load generators ({', '.join(record.run for record in records)}): durations are "
        f"from one machine's clock each; how far the clocks are apart ({known}) moves requests on the timeline only"
    )


def _check(records: Sequence[Record]) -> None:
    if len(records) < 2:
        raise RecordError("merge: one record is no part of anything; give two or more")
    first = records[0]
    for other in records[1:]:
        for what, one, two in _facts(first, other):
            if one != two:
                raise RecordError(f"{other.path}: {what} is {two}, and {one} in {first.path}; these are not one test")
        for model in first.models:
            counts = [len(launch.rounds) for launch in model.launches]
            others = [len(launch.rounds) for launch in _model(other, model.name).launches]
            if counts != others:
                raise RecordError(f"{other.path}: {model.name} has {others} rounds a launch, {counts} in {first.path}")


def _facts(first: Record, other: Record) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = [
        ("the list of models", [m.name for m in first.models], [m.name for m in other.models])
    ]
    if found[0][1] != found[0][2]:
        return found
    found.append(("the price", first.experiment.pricing, other.experiment.pricing))
    for model in first.models:
        twin = _model(other, model.name)
        found.append((f"model.json of {model.name}", model.facts, twin.facts))
        if not model.launches or not model.launches[0].rounds:
            raise RecordError(f"{first.path}: {model.name} has no round; there is nothing to merge")
        servers = [m.launches[0].info.server if m.launches else None for m in (model, twin)]
        if servers[0] is None:
            raise RecordError(f"{first.path}: {model.name} did not run on a server; runs of one machine are not parts")
        found += [(f"{key} of {model.name}", getattr(servers[0], key), getattr(servers[1], key, None)) for key in SAME]
    return found


def _model(record: Record, name: str) -> Any:
    return next(model for model in record.models if model.name == name)


def _launch(record: Record, name: str, number: int) -> LaunchRecord:
    launch: LaunchRecord = _model(record, name).launches[number]
    return launch


def _merge_pass(passes: Sequence[PassRecord], records: Sequence[Record], model: str, folder: Path) -> None:
    folder.mkdir()
    starts = [passed.info.started_unix_s for passed in passes]
    missing = next((p.path for p, start in zip(passes, starts, strict=True) if start is None), None)
    if missing is not None:
        raise RecordError(f"{missing}: without the time of its start, so it cannot be put on one timeline")
    known = [float(start) for start in starts if start is not None]
    sizes = [
        record.schedule(model).num_requests or len(passed.requests)
        for record, passed in zip(records, passes, strict=True)
    ]
    parts = [
        Part(name=record.run, passed=passed, offset_s=start - min(known), first_row=sum(sizes[:number]))
        for number, (record, passed, start) in enumerate(zip(records, passes, known, strict=True))
    ]
    _write_requests(parts, folder)
    write_header(folder / "pass.json", _header(parts))
    seen = _longest_look(parts)
    if seen is not None and (seen.passed.path / "counters.parquet").exists():
        shutil.copy(seen.passed.path / "counters.parquet", folder / "counters.parquet")


def _write_requests(parts: Sequence[Part], folder: Path) -> None:
    """All rows, each part's at its offset; columns are moved whole, no row is looked at."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schema, tables = arrow_schema("requests"), []
    for part in parts:
        table = pa.Table.from_pandas(part.passed.requests, schema=schema, preserve_index=False).combine_chunks()
        for name in TIMES:
            moved = pc.add(table[name], part.offset_s)
            table = table.set_column(schema.get_field_index(name), schema.field(name), moved)
        lists = table["token_times_s"].combine_chunks()
        values = pc.add(lists.flatten(), part.offset_s)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array([0, *lengths.cumsum().tolist()], type=pa.int32())
        moved = pa.ListArray.from_arrays(offsets, values, mask=lists.is_null())
        table = table.set_column(schema.get_field_index("token_times_s"), schema.field("token_times_s"), moved)
        rows = pc.add(table["request"], part.first_row)
        table = table.set_column(schema.get_field_index("request"), schema.field("request"), rows)
        names = pc.binary_join_element_wise(part.name, table["request_id"], "/")
        tables.append(table.set_column(schema.get_field_index("request_id"), schema.field("request_id"), names))
    pq.write_table(pa.concat_tables(tables), folder / "requests.parquet", compression="zstd")
    pq.write_table(arrow_schema("steps").empty_table(), folder / "steps.parquet")


def _header(parts: Sequence[Part]) -> PassHeader:
    infos = [part.passed.info for part in parts]
    ended = [part.offset_s + (part.passed.info.duration_s or 0.0) for part in parts]
    statuses = {info.status for info in infos}
    look = _longest_look(parts)
    return replace(
        infos[0],
        started_unix_s=min(info.started_unix_s or 0.0 for info in infos),
        status="done" if statuses == {"done"} else "cut",
        duration_s=max(ended),
        sent=sum(info.sent or 0 for info in infos),
        refused=sum(info.refused or 0 for info in infos),
        finished=sum(info.finished or 0 for info in infos),
        invariants={
            f"{part.name} {key}": check for part in parts for key, check in (part.passed.info.invariants or {}).items()
        },
        client=_client([info.client for info in infos]),
        counters=None if look is None else look.passed.info.counters,
    )


def _client(clients: Sequence[ClientHeader | None]) -> ClientHeader | None:
    """Rates and limits of several generators add up; of lags the worst stands; what one lacks is null."""
    known = [client for client in clients if client is not None]
    if not known:
        return None
    values: dict[str, Any] = {}
    for names, reduce in ((SUMS, sum), (WORST, max)):
        for name in names:
            found = [getattr(client, name) for client in known]
            values[name] = None if None in found or len(found) < len(clients) else reduce(found)
    return replace(known[0], **values)


def _longest_look(parts: Sequence[Part]) -> Part | None:
    def window_s(part: Part) -> float:
        return (part.passed.info.counters or CountersHeader()).window_s or 0.0

    longest = max(parts, key=window_s)
    return longest if window_s(longest) > 0 else None


def _schedule(records: Sequence[Record], model: str) -> ScheduleHeader:
    """Of all parts: sums, and the hash of their hashes; a closed loop holds as many requests as all of them."""
    found = [record.schedule(model) for record in records]
    digest = hashlib.sha256("".join(str(one.sha256) for one in found).encode()).hexdigest()

    def total(name: str) -> int | None:
        values = [getattr(one, name) for one in found]
        return None if None in values else sum(values)

    return replace(
        found[0],
        file=None,
        sha256=digest,
        num_requests=total("num_requests"),
        concurrency=total("concurrency"),
        input_tokens=total("input_tokens"),
        output_tokens=total("output_tokens"),
        span_s=max((one.span_s or 0.0) for one in found),
        classes=tuple(sorted({name for one in found for name in one.classes})),
    )
