"""The device's timeline from planted telemetry: what stands in it, how it is drawn, and when a sentence is enough."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.metrics.summary import ModelSummary, Summary, summarise
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.report.charts import device_timelines
from moeprof.analysis.report.document import Document, Paragraph, Section, Timeline
from moeprof.core.record.layout import open_record
from moeprof.render.html.charts.timeline import draw_timeline
from moeprof.render.html.page import render_html
from moeprof.render.markdown import block_lines
from tests.analysis.report.test_report_document import PRICING
from tests.helpers.documents import sample_document
from tests.helpers.records import make_facts, make_pass, make_steps, make_telemetry, write_record

NUM = 55  # samples: two before the pass, ten seconds of it, two after it


def watched(name: str, **columns: Any) -> PassTables:
    """Ten seconds, sampled five times a second; throttled by power from 2 s to 4 s, then by heat to 5 s."""
    times_s = 0.2 * np.arange(NUM) - 0.4
    mask = np.select([(times_s > 1.9) & (times_s < 3.9), (times_s > 3.9) & (times_s < 4.9)], [4, 0x40], 1)
    told = {
        "power_w": 500.0, "sm_clock_mhz": 1980.0, "temperature_c": 50.0, "device_memory_used_bytes": 2**37,
        "reserved_bytes": 2**36, "allocated_bytes": 2**35, "throttle_reasons": mask,
    }  # fmt: skip
    telemetry = make_telemetry(NUM, t_s=times_s, **{**told, **columns})
    return replace(make_pass(steps=make_steps(10, step_s=1.0), telemetry=telemetry, window_s=(0.0, 10.0)), name=name)


def summary_of(folder: Path, *passes: PassTables, **workload: Any) -> Summary:
    folder = write_record(folder / "run", {"moe": (make_facts(), [passes])}, workload=workload)
    return summarise(open_record(folder), PRICING)


def timeline_of(folder: Path, *passes: PassTables) -> Timeline:
    found = device_timelines(summary_of(folder, *passes))
    assert len(found) == 1 and isinstance(found[0], Timeline)
    return found[0]


def test_each_pass_is_drawn_after_the_one_before(tmp_path: Path) -> None:
    timeline = timeline_of(tmp_path, watched("round-0"), watched("round-1"))
    assert [name for _, name in timeline.passes] == ["round-0", "round-1"]
    gap_s = 0.02 * 20
    assert [start_s for start_s, _ in timeline.passes] == pytest.approx([0.0, 10 + gap_s])
    assert timeline.end_s == pytest.approx(20 + gap_s)
    power = timeline.panels[0].lines[0]
    assert [(min(t), max(t)) for t, _ in power.stretches] == [
        pytest.approx((0.0, 10.0)), pytest.approx((10 + gap_s, 20 + gap_s)),
    ]  # fmt: skip


def test_panels_are_power_clock_temperature_and_memory_with_the_allocators_figures(tmp_path: Path) -> None:
    timeline = timeline_of(tmp_path, watched("round-0"))
    assert [panel.label for panel in timeline.panels] == ["power", "SM clock", "temperature", "device memory"]
    assert [line.name for line in timeline.panels[3].lines] == [
        "used on the device", "reserved by the allocator", "allocated",
    ]  # fmt: skip


def test_what_was_not_read_has_no_panel(tmp_path: Path) -> None:
    timeline = timeline_of(tmp_path, watched("round-0", temperature_c=None, reserved_bytes=None, allocated_bytes=None))
    assert [panel.label for panel in timeline.panels] == ["power", "SM clock", "device memory"]
    assert len(timeline.panels[2].lines) == 1


def test_throttled_stretches_are_marked_with_their_reasons(tmp_path: Path) -> None:
    timeline = timeline_of(tmp_path, watched("round-0"))
    assert [(round(s.start_s, 1), round(s.end_s, 1), s.label) for s in timeline.spans] == [
        (2.0, 4.0, "software power cap"),
        (4.0, 5.0, "hardware thermal slowdown"),
    ]
    assert timeline.caption.endswith(
        "Throttled for 30 % of the time (marked): software power cap, hardware thermal slowdown."
    )
    calm = timeline_of(tmp_path / "calm", watched("round-0", throttle_reasons=3))
    assert calm.spans == ()
    assert calm.caption.endswith("The device was not throttled.")


def test_where_nothing_was_measured_one_line_says_why(tmp_path: Path) -> None:
    bare = watched("round-0", **dict.fromkeys(
        ("power_w", "sm_clock_mhz", "temperature_c", "device_memory_used_bytes", "reserved_bytes", "allocated_bytes")
    ))  # fmt: skip
    on_cpu = device_timelines(summary_of(tmp_path, bare))
    why = "No timeline of power, clocks, temperature and memory:"
    assert on_cpu == [Paragraph(text=f"{why} the run was on a CPU, which tells none of them.")]
    off = device_timelines(summary_of(tmp_path / "off", bare, instruments={"power": False}))
    assert off == [Paragraph(text=f"{why} instruments.power is off.")]


def test_the_picture_has_its_marks_and_a_legend(tmp_path: Path) -> None:
    drawing = draw_timeline(timeline_of(tmp_path, watched("round-0"), watched("round-1")))
    assert drawing.picture is not None
    assert drawing.picture.count('class="throttled"') == 4
    assert "<title>2 s: software power cap</title>" in drawing.picture
    assert drawing.picture.count('class="s thin') == 6
    assert [entry.name for entry in drawing.legend] == [
        "used on the device", "reserved by the allocator", "allocated", "throttled",
    ]  # fmt: skip
    numbers = re.findall(r"[ MHVL](-?[\d.]+)", " ".join(re.findall(r' d="([^"]*)"', drawing.picture)))
    assert numbers and all(-1 <= float(number) <= 600 for number in numbers)


def test_other_formats_point_at_the_page(tmp_path: Path) -> None:
    lines = block_lines(timeline_of(tmp_path, watched("round-0")))
    assert lines == ["*The device during the passes, moe*: see the HTML page", ""]


def with_timeline(folder: Path) -> Document:
    section = Section(name="energy", title="Energy", blocks=(timeline_of(folder, watched("round-0")),))
    return replace(sample_document(), sections=(section,))


def test_it_stands_in_the_page(tmp_path: Path) -> None:
    text = render_html(with_timeline(tmp_path))
    assert 'id="fig-device-moe"' in text
    assert 'class="chart timeline"' in text


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_it_without_errors(tmp_path: Path, width: int) -> None:
    from tests.render.test_browser import run

    found = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here (chromium, chromium-browser or google-chrome on the PATH)")
    page = tmp_path / "timeline.html"
    page.write_text(render_html(with_timeline(tmp_path)), encoding="utf-8")
    folder = Path(os.environ.get("MOEPROF_ARTEFACTS", tmp_path))
    shot = folder / f"timeline-{width}.png"
    _, console = run(found, tmp_path / "profile", page, f"--window-size={width},1600", f"--screenshot={shot}")
    assert console == ""
    assert shot.stat().st_size > 10_000


def test_a_model_without_passes_has_none(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, watched("round-0"))
    empty: tuple[ModelSummary, ...] = (replace(summary.models[0], rounds=(), capacity=()),)
    assert isinstance(device_timelines(replace(summary, models=empty))[0], Paragraph)
