"""Replayed routing: the picks of a recorded pass, by request and position, for the same requests. Numpy only.

Forced tokens make this exact: the model computes the same tokens again, and each goes to the experts it went to.
Suffix legend: L MoE layers, R rows (request x position), T tokens, K top-k, N requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moeprof.capture.models.shapes import LayerShape
from moeprof.capture.routing.rows import Positions
from moeprof.core.errors import TraceError, WorkloadError
from moeprof.core.record.layout import open_record
from moeprof.core.record.picks import Picks, load_picks
from moeprof.core.trace import Schedule

WHAT = "routing policy replay"
NEEDS = "it needs a pass of a record made with --save-detailed (RUN/MODEL/launch-0/round-0)"


def check_same_requests(pass_path: Path, schedule: Schedule) -> None:
    """The pass must be of the same requests; pattern and arrivals may differ. Cheap, and before anything is loaded.

    Raises:
        WorkloadError: no such pass, one without picks, or one of other requests.
    """
    if not pass_path.is_dir():
        raise WorkloadError(f"routing.path: {pass_path}: no such folder; {WHAT}: {NEEDS}")
    if not any((pass_path / "picks").glob("part-*.npz")):
        raise WorkloadError(f"routing.path: {pass_path}: holds no picks; {WHAT}: {NEEDS}")
    model, run = pass_path.resolve().parents[1], pass_path.resolve().parents[2]
    if not (run / "experiment.json").exists():
        return  # a pass that was moved out of its record: its positions are checked later
    recorded = open_record(run).schedule(model.name)
    if recorded.sha256 in (None, schedule.sha256()):
        return
    try:
        before = Schedule.load(run / str(recorded.file))
    except TraceError as error:
        raise WorkloadError(
            f"routing.path: {pass_path}: recorded on another schedule, whose requests cannot be compared ({error}); "
            "replay needs the same ones"
        ) from error
    found = _first_difference(before, schedule)
    if found is not None:
        raise WorkloadError(
            f"routing.path: {pass_path}: recorded on other requests ({found}); replay needs the same traffic, seed, "
            "outputs and tokenizer"
        )


def replay_table(
    pass_path: Path,
    schedule: Schedule,
    shapes: Sequence[LayerShape],
    *,
    rows_N: Sequence[int] | None = None,
    left_out: frozenset[int] = frozenset(),
) -> npt.NDArray[np.int32]:
    """Picks by row of ``schedule`` [L, R, K].

    Args:
        pass_path: the recorded pass.
        schedule: what will be computed.
        shapes: the model's MoE layers.
        rows_N: for a part of the recorded schedule, which of its rows these are.
        left_out: requests that will be refused, and so need no picks.

    Raises:
        WorkloadError: picks are missing, of another model, or stand for no expert.
    """
    picks = load_picks(pass_path)
    if picks is None:
        raise WorkloadError(f"routing.path: {pass_path}: holds no picks; {WHAT}: {NEEDS}")
    _check_shape(pass_path, picks, shapes)
    positions = Positions.of(schedule)
    number = {row: n for n, row in enumerate(rows_N if rows_N is not None else range(len(schedule)))}
    request_T = np.array([number.get(row, -1) for row in range(int(picks.request_T.max()) + 1)])[picks.request_T]
    known_T = (request_T >= 0) & (picks.position_T < positions.tokens_N[request_T])
    row_T = positions.start_N[request_T[known_T]] + picks.position_T[known_T]
    top_k = max(shape.top_k for shape in shapes)
    table_LRK = np.tile(np.arange(top_k, dtype=np.int32), (len(shapes), positions.num_rows, 1))
    table_LRK[:, row_T, :] = picks.picks_TLK[known_T].transpose(1, 0, 2)
    filled_R = np.zeros(positions.num_rows, dtype=np.bool_)
    filled_R[row_T] = True
    for n in left_out:
        filled_R[positions.start_N[n] : positions.start_N[n] + positions.tokens_N[n]] = True
    if not filled_R.all():
        _missing(pass_path, picks, schedule, positions, filled_R)
    return table_LRK


def _check_shape(pass_path: Path, picks: Picks, shapes: Sequence[LayerShape]) -> None:
    wanted = (len(shapes), max(shape.top_k for shape in shapes))
    if picks.picks_TLK.shape[1:] != wanted:
        raise WorkloadError(
            f"routing.path: {pass_path}: picks of {picks.picks_TLK.shape[1]} MoE layers, "
            f"{picks.picks_TLK.shape[2]} per token; this model has {wanted[0]} layers and top-{wanted[1]}"
        )
    for i, shape in enumerate(shapes):
        ids = picks.picks_TLK[:, i, : shape.top_k]
        if (over := int((ids >= shape.num_ids).sum())) or ids.min(initial=0) < 0:
            raise WorkloadError(
                f"routing.path: {pass_path}: {over} picks of MoE layer {i} stand for no expert of this model, which "
                f"has {shape.num_ids}; they cannot be replayed"
            )


def _missing(
    pass_path: Path, picks: Picks, schedule: Schedule, positions: Positions, filled_R: npt.NDArray[np.bool_]
) -> None:
    row = int(np.argmin(filled_R))
    request = int(np.searchsorted(positions.start_N, row, side="right")) - 1
    why = (
        f"{picks.left_out_tokens:,} tokens were left out; raise instruments.picks_cap_mib and record it again"
        if picks.left_out_tokens
        else "the pass was cut, or recorded on other requests; replay needs a whole pass over the same ones"
    )
    raise WorkloadError(
        f"routing.path: {pass_path}: no picks for position {row - int(positions.start_N[request])} of request "
        f"{schedule.request_id[request]} ({int((~filled_R).sum()):,} positions are missing); {why}"
    )


def _first_difference(before: Schedule, now: Schedule) -> str | None:
    if len(before) != len(now):
        return f"{len(before)} requests, {len(now)} now"
    for i in range(len(now)):
        same = np.array_equal(before.input_ids[i], now.input_ids[i])
        if same and before.output_ids is not None and now.output_ids is not None:
            same = np.array_equal(before.output_ids[i], now.output_ids[i])
        if not same or before.output_tokens[i] != now.output_tokens[i]:
            return f"request {now.request_id[i]} has other tokens"
    return None
