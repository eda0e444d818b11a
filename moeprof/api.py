"""For people who script: a run as an object, its figures as DataFrames, its answer in words.

    import moeprof

    run = moeprof.load("reports/quickstart")
    print(run.answer.paragraph)
    run.metrics.query("name == 'ttft_p50_s'")

Everything heavy is imported where it is used: ``import moeprof`` costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from moeprof.analysis.metrics.summary import Summary
    from moeprof.analysis.report.document import Answer, Document
    from moeprof.core.record.layout import PassRecord, Record
    from moeprof.core.record.routing import Routing


@dataclass(frozen=True)
class Run:
    """A recorded run, read lazily; the record on disk is never touched.

    Attributes:
        record: the folder, typed (docs/record.md).
        summary: every metric of every model.
    """

    record: Record
    summary: Summary

    @property
    def name(self) -> str:
        """Of the workload."""
        return self.record.workload.name or self.record.run

    @property
    def status(self) -> str:
        """``done``, ``failed``, ``interrupted`` or ``started``."""
        return self.record.status

    @property
    def models(self) -> tuple[str, ...]:
        """Their names, in the workload's order."""
        return tuple(model.name for model in self.summary.models)

    @cached_property
    def document(self) -> Document:
        """What the page says: sections, tables, doubts."""
        from moeprof.analysis.report.run import build_document

        return build_document(self.summary)

    @property
    def answer(self) -> Answer | None:
        """Should one serve it? None where nothing has a price."""
        return self.document.answer

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row per value: model, name, labels, value, unit, better, n, ci_low, ci_high, exact, valid, reasons.

        Units are SI (s, B, W, J, USD); ``moeprof explain NAME`` defines a name. An unknown value is null, with reasons.
        """
        import pandas as pd

        from moeprof.analysis.report.data import summary_rows
        from moeprof.analysis.report.result import RunReport

        head, *rows = summary_rows(RunReport(summary=self.summary, document=self.document))
        return pd.DataFrame(rows, columns=head)

    def requests(self, model: str) -> pd.DataFrame:
        """Every request of every pass, with ``pass`` in front; times in seconds from the start of the pass."""
        return self._joined(model, "requests")

    def steps(self, model: str) -> pd.DataFrame:
        """Every step of every pass, with ``pass`` in front."""
        return self._joined(model, "steps")

    def routing(self, model: str) -> dict[str, Routing | None]:
        """Counts of each pass, by its name: windows x phases x classes, layers, experts (docs/record.md)."""
        return {self._label(launch.number, one): one.routing for launch, one in self._passes(model)}

    def html(self) -> str:
        """The page as one file."""
        from moeprof.render.html.page import render_html

        return render_html(self.document)

    def markdown(self) -> str:
        """The page for a ticket."""
        from moeprof.render.markdown import render_markdown

        return render_markdown(self.document)

    def _passes(self, model: str) -> list[tuple[Any, PassRecord]]:
        from moeprof.core.errors import InputError

        found = {one.name: one for one in self.record.models}
        if model not in found:
            raise InputError(f"no model is called {model!r} in this run; it has: {', '.join(found)}")
        return [(launch, one) for launch in found[model].launches for one in launch.passes]

    def _label(self, launch: int, one: PassRecord) -> str:
        return f"launch-{launch}/{one.name}"

    def _joined(self, model: str, table: str) -> pd.DataFrame:
        import pandas as pd

        frames = []
        for launch, one in self._passes(model):
            frame = getattr(one, table).copy()
            frame.insert(0, "pass", self._label(launch.number, one))
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def load(
    path: str | Path,
    *,
    usd_per_device_hour: float | None = None,
    usd_per_kwh: float | None = None,
    pue: float | None = None,
    api: str | None = None,
) -> Run:
    """Open a run that was recorded, at its own or at other prices.

    Args:
        path: the run's folder.
        usd_per_device_hour: rent of a device; None: as recorded.
        usd_per_kwh: price of power, where the rent does not hold it.
        pue: power usage effectiveness.
        api: prices to break even with, as ``0.15/0.60`` or ``0.15/0.60/0.02``: USD per 1M input, output, cached input.

    Raises:
        InputError: there is no run, or a price is out of range.
        RecordError: the record is damaged.
    """
    from moeprof.analysis.metrics.cost.pricing import repriced
    from moeprof.analysis.metrics.summary import summarise
    from moeprof.core.record.layout import open_record
    from moeprof.core.workload.overrides import parse_api

    record = open_record(Path(path))
    pricing = repriced(record, usd_per_device_hour=usd_per_device_hour, usd_per_kwh=usd_per_kwh, pue=pue)
    return Run(record=record, summary=summarise(record, pricing.with_api(parse_api(api))))


def run(workload: str | Path, *, output_dir: str | Path | None = None, **overrides: Any) -> Run:
    """Replay a workload through its models and open the record; needs ``moeprof[run]``.

    Args:
        workload: a workload file.
        output_dir: a new or empty folder; None: one under ``reports``.
        overrides: as the flags of ``moeprof run``, with underscores: ``rounds=5``, ``device="cpu"``.

    Raises:
        InputError: the workload or an override is not allowed.
        ResourceError: the models do not fit.
    """
    from moeprof.capture.engines import engine_kinds
    from moeprof.capture.run.prepare import execute, new_run_folder, prepare
    from moeprof.capture.run.status import writing
    from moeprof.core.errors import InterruptedRunError
    from moeprof.core.signals import SignalWatch
    from moeprof.core.workload.overrides import Overrides, apply
    from moeprof.core.workload.workload import load_workload
    from moeprof.core.yamlfile import text_of

    file = Path(workload)
    prepared = prepare(apply(load_workload(file, engine_kinds()), Overrides(**overrides)), must_fit=True)
    folder = new_run_folder(prepared.workload, None if output_dir is None else Path(output_dir), Path("reports"))
    with SignalWatch() as signals, writing(folder, f"read it with load({str(folder)!r})"):
        execute(prepared, folder, _Silent(), signals, workload_text=text_of(file))
    if signals.number:
        raise InterruptedRunError(f"stopped; what was measured is kept: {folder}", signals.number)
    return load(folder)


class _Silent:
    """Shows no progress."""

    def on_event(self, model: str, event: str, data: dict[str, Any]) -> None:
        """Nothing."""
