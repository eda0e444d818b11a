"""What lanes of equal work differ by: estimated from rungs whose tokens share k experts, held by every interval."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from moeprof.analysis.compare.lanes import LaneTimes, lane_offset, lane_times, lanes_estimate, lockstep_pairs
from moeprof.analysis.report.document import Paragraph
from moeprof.analysis.report.sections.ladder import ladder_section, sentences
from moeprof.analysis.report.sections.lockstep import NO_OFFSET, offset_text
from moeprof.analysis.sparsity.ladder import LadderResult, ladder_results, ladders
from moeprof.core.pricing import Pricing
from moeprof.core.record.lanes import LaneHeader, LanePass
from moeprof.core.record.layout import open_record
from tests.helpers.lane_records import lane, write_lanes
from tests.helpers.records import make_facts, make_pass, write_record

Array = npt.NDArray[np.float64]
PUBLISHED = Path(__file__).resolve().parents[3] / "reports" / "published" / "dense-vs-sparse-cpu"
T_OF_TWO = 4.3027  # 97.5 % of Student's t with two degrees of freedom: three lanes
LANES = [
    lane("active", match="active"),
    lane("concentrated", "concentrated", model="moe"),
    lane("balanced", "balanced", model="moe"),
    lane("recorded", "recorded", model="moe"),
    lane("total", match="total"),
]
# logarithms of the three rungs are one hundredth apart, so their standard deviation is 1 %
APART = {"concentrated": 0.010 * math.exp(-0.01), "balanced": 0.010, "recorded": 0.010 * math.exp(0.01)}
ALONE = {"active": 0.008, **APART, "total": 0.050}
EIGHT = {"active": 0.010, "concentrated": 0.012, "balanced": 0.019, "recorded": 0.020, "total": 0.060}


def alone(folder: Path, seconds: dict[str, float] | None = None, launch: int = 0) -> LanePass:
    """One token a step."""
    return write_lanes(folder, seconds or ALONE, lanes=LANES, tokens=1, concurrency=1, launch=launch)


def eight(folder: Path, launch: int = 0) -> LanePass:
    return write_lanes(folder, EIGHT, lanes=LANES, concurrency=8, launch=launch)


def at_eight(results: tuple[LadderResult, ...]) -> LadderResult:
    return next(one for one in results if (one.concurrency, one.phase) == (8, "decode"))


def test_rungs_at_one_token_do_the_same_work_and_their_spread_is_the_offset(tmp_path: Path) -> None:
    offset = lane_offset([lane_times(alone(tmp_path)), lane_times(eight(tmp_path))])
    assert offset is not None
    assert (offset.lanes, offset.concurrency) == (("concentrated", "balanced", "recorded"), 1)
    assert (offset.num_turns, offset.num_launches) == (120, 1)
    assert offset.sd == pytest.approx(0.01)
    assert offset.half_width == pytest.approx(T_OF_TWO * 0.01 * math.sqrt(2), rel=1e-4)  # 6.1 % of a step


def test_the_offset_is_added_in_quadrature_to_taxes_shares_and_the_realised_ratio(tmp_path: Path) -> None:
    """Times without noise: whatever width an interval has is the offset's, 4.30 * 1 % * sqrt(sum (s df/ds)^2)."""
    found = at_eight(ladders([alone(tmp_path), eight(tmp_path)], num_moe_layers=1))
    dispatch, realised = found.tax("dispatch_tax_s"), found.realised
    half = T_OF_TWO * 0.01 * math.hypot(0.012, 0.010)  # seconds: 12 ms - 10 ms
    assert (dispatch.seconds.low, dispatch.seconds.high) == pytest.approx((0.002 - half, 0.002 + half), rel=1e-3)
    half = T_OF_TWO * 0.01 * math.hypot(12 / 20, 10 / 20, 2 / 20)  # share: (12 - 10) / 20
    assert (dispatch.share.low, dispatch.share.high) == pytest.approx((0.1 - half, 0.1 + half), rel=1e-3)
    # (60 - 20) / (60 - 10) = 0.8; d/dT = (1 - 0.8) / 50, d/dM = -1 / 50, d/dA = 0.8 / 50
    half = T_OF_TWO * 0.01 * math.hypot(60 * 0.2 / 50, 20 / 50, 10 * 0.8 / 50)
    assert realised.value == pytest.approx(0.8)
    assert (realised.low, realised.high) == pytest.approx((0.8 - half, 0.8 + half), rel=1e-3)
    rung = found.rung("recorded")
    assert rung is not None and rung.seconds.low == pytest.approx(0.020 * math.exp(-T_OF_TWO * 0.01), rel=1e-3)


def test_a_tax_or_its_sign_is_claimed_only_where_the_widened_interval_excludes_0(tmp_path: Path) -> None:
    """Balanced and recorded are 1 of 20 ms apart, 5 %; two lanes of that length differ by 6 % for no reason."""
    without = at_eight(ladders([eight(tmp_path / "a")], num_moe_layers=1))
    assert without.tax("imbalance_tax_s").told and "imbalance takes 5 %" in sentences([without])[0]
    found = at_eight(ladders([alone(tmp_path / "b"), eight(tmp_path / "b")], num_moe_layers=1))
    imbalance = found.tax("imbalance_tax_s")
    assert (imbalance.told, imbalance.note) == (False, "the rungs balanced and recorded are not distinguishable")
    assert "imbalance is not distinguishable from 0" in sentences([found])[0]
    assert found.tax("coverage_tax_s").told  # 7 of 20 ms


def test_rungs_left_with_as_many_experts_as_the_concentrated_one_do_the_same_work_at_any_load(tmp_path: Path) -> None:
    """top-4: a rung of 4 distinct experts is the concentrated one again, 2 % apart here; that of 8 is not."""
    lanes = [lane("concentrated", "concentrated"), lane("distinct-4", "distinct"), lane("distinct-8", "distinct")]
    seconds = {"concentrated": 0.010, "distinct-4": 0.010 * math.exp(0.02), "distinct-8": 0.015}
    one = write_lanes(tmp_path, seconds, lanes=lanes, distinct={"concentrated": 4, "distinct-4": 4, "distinct-8": 8})
    offset = lane_offset([lane_times(one)])
    assert offset is not None and offset.lanes == ("concentrated", "distinct-4")
    assert offset.sd == pytest.approx(0.02 / math.sqrt(2))


def test_more_launches_narrow_the_offset(tmp_path: Path) -> None:
    """Three launches in which the same 1 % lies elsewhere each time: a lane's mean over them is 0 off."""
    rungs = ("concentrated", "balanced", "recorded")
    moved = [dict(zip(rungs, np.roll((-0.01, 0.0, 0.01), k), strict=True)) for k in range(3)]
    held = [
        lane_times(alone(tmp_path, {n: 0.01 * math.exp(off.get(n, 0.0)) for n in ALONE}, launch=k))
        for k, off in enumerate(moved)
    ]
    one, three = lane_offset(held[:1]), lane_offset(held)
    assert one is not None and three is not None
    assert (one.sd, three.sd) == (pytest.approx(0.01), pytest.approx(0, abs=1e-9))
    assert (three.num_launches, three.num_turns) == (3, 360)


def test_without_lanes_of_equal_work_it_is_said_that_the_offset_is_not_known(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", {"moe": (make_facts(), [[make_pass()]])})
    eight(record / "ladder")
    section = ladder_section(open_record(record), Pricing(usd_per_device_hour=1))
    assert section is not None
    assert f"{NO_OFFSET}." in [block.text for block in section.blocks if isinstance(block, Paragraph)]


def test_models_stepped_in_turn_have_the_offset_of_the_runs_ladder(tmp_path: Path) -> None:
    """Twice the time, without noise: what width there is, 2 * exp(+- 4.30 * 1 % * sqrt(2)), comes from the ladder."""
    record = write_record(tmp_path / "run", {"moe": (make_facts(), [[make_pass()]])})
    two = [lane("moe", "native"), lane("dense")]
    write_lanes(record / "lockstep", {"moe": 0.020, "dense": 0.010}, lanes=two)
    (bare,) = lockstep_pairs(open_record(record))
    assert (bare.offset, bare.ratios["decode"].low) == (None, pytest.approx(2))
    alone(record / "ladder")
    (pair,) = lockstep_pairs(open_record(record))
    half = T_OF_TWO * 0.01 * math.sqrt(2)
    for told in (pair.ratios["decode"], pair.medians["decode"]):
        assert (told.low, told.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)), rel=1e-3)


def test_the_published_ladder_claims_nothing_below_what_its_seven_equal_lanes_differ_by() -> None:
    """14.84 to 15.21 ms at one token: lanes differ by 0.9 %, two of them by up to 3.2; the override's 3.1 % is less."""
    results = ladder_results(open_record(PUBLISHED))
    offset = results[0].offset
    assert offset is not None and len(offset.lanes) == 7
    assert offset.sd == pytest.approx(0.0093, abs=0.0002)
    assert offset.half_width == pytest.approx(0.032, abs=0.0005)
    assert "differ by up to 3.2 % of a step (95 %)" in offset_text(offset)
    decode = next(one for one in results if (one.concurrency, one.phase) == (1, "decode"))
    override = decode.tax("override_cost_s")
    assert override.share.value == pytest.approx(0.0308, abs=0.0002) and not override.told
    loaded = at_eight(results).tax("dispatch_tax_s").share
    assert (loaded.value, loaded.low, loaded.high) == pytest.approx((0.0924, 0.0724, 0.1133), abs=0.0005)


def planted(rng: np.random.Generator, seconds: dict[str, float], offsets: Array, num: int, memory: float) -> LaneTimes:
    """Turns in which each lane is off by a share of its own, all share 3 % of noise, and each has 5 % for itself."""
    drive = rng.standard_normal((num, len(seconds) + 1))
    for i in range(1, num):
        drive[i] = memory * drive[i - 1] + math.sqrt(1 - memory**2) * drive[i]
    times = np.array(list(seconds.values())) * offsets * np.exp(0.03 * drive[:, -1:] + 0.05 * drive[:, :-1])
    tokens = 1.0 if seconds is ALONE else 8.0
    info = tuple(LaneHeader(name=one["name"], rung=one["rung"], match=one["match"]) for one in LANES)
    return LaneTimes(
        launch=0, concurrency=int(tokens), lanes=tuple(seconds), info=info, step_S=np.arange(num) % (num // 3),
        phase_S=np.full(num, "decode"), tokens_S=np.full(num, tokens), time_SL=times, cpu_SL=times,
        queued_SL=np.zeros_like(times), distinct_SL=np.full_like(times, tokens), set_aside=0,
        taken_SL=np.zeros_like(times, dtype=np.bool_),
    )  # fmt: skip


def coverage(seconds: dict[str, float]) -> float:
    """7 of 20 ms."""
    return (seconds["balanced"] - seconds["concentrated"]) / seconds["recorded"]


@pytest.mark.parametrize(
    ("sd", "num", "memory"),
    [(0.0, 120, 0.0), (0.005, 120, 0.0), (0.01, 120, 0.0), (0.0, 18, 0.5), (0.005, 18, 0.5), (0.01, 18, 0.5)],
)
def test_intervals_cover_what_was_planted_whatever_lanes_differ_by(sd: float, num: int, memory: float) -> None:
    """Without the offset in them they would hold the truth in about 83 % of cases at 0.5 %, in 60 % at 1 %."""
    equal = dict.fromkeys(("concentrated", "balanced", "recorded"), 0.010)
    rungs, held, bare, trials = {**ALONE, **equal}, 0, 0, 200
    for rng in np.random.default_rng(5).spawn(trials):
        offsets = 1 + sd * rng.standard_normal(len(LANES))
        low = replace(planted(rng, rungs, offsets, 240, memory), tokens_S=np.ones(240), concurrency=1)
        offset, loaded = lane_offset([low]), planted(rng, EIGHT, offsets, num, memory)
        draws = [loaded.draws("decode")]
        wide, narrow = (lanes_estimate(draws, coverage, own, signed=True) for own in (offset, None))
        held, bare = held + (not wide.excludes(7 / 20)), bare + (not narrow.excludes(7 / 20))
    assert held / trials >= 0.92
    assert sd < 0.01 or bare < held - 5
