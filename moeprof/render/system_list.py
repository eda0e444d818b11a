"""The built-in list as rows: published figures beside our counts. Light, so that listing is instant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeprof.core.systems import Convention, System, convention_of
from moeprof.core.units import count

_MARKS = {"rumour": "UNCONFIRMED RUMOUR: ", "scheme": "SCHEME: "}
LEGEND = (
    "Total and active parameters as published, ours beside them. as: how the vendor counts active ones (A all but "
    "idle experts, B without the input embedding, C without the head too; ~ is only the nearest)."
)


def list_records(rows: Sequence[System]) -> list[dict[str, Any]]:
    """Raw numbers, None where nothing is published or counted."""
    return [_record(row) for row in rows]


def _record(row: System) -> dict[str, Any]:
    follows = _convention(row)
    counted = row.counted
    return {
        "name": row.name,
        "title": row.title,
        "status": row.status,
        "published_total_params": _whole(row.published_total_params),
        "total_params": counted.total_params if counted else None,
        "published_active_params": _whole(row.published_active_params),
        "active_params": counted.active_params if counted else None,
        "active_params_no_embedding": counted.active_params_no_embedding if counted else None,
        "active_params_no_embedding_no_head": counted.active_params_no_embedding_no_head if counted else None,
        "published_convention": follows.letter if follows else None,
        "published_convention_settled": follows.is_settled if follows else None,
        "published_as": row.published_as,
        "hub_id": row.hub_id,
        "source": row.source,
        "note": row.note,
    }


def _whole(value: float | None) -> int | None:
    """Parameters are whole: ``46700000000``, not ``4.67e10``."""
    return None if value is None else round(value)


def shown_records(rows: Sequence[System]) -> list[dict[str, Any]]:
    """The same for people: few columns, ``published / ours``, so that a row fits 80 characters."""
    shown = []
    for row in rows:
        follows, counted = _convention(row), row.counted
        letter = "" if follows is None else follows.letter if follows.is_settled else f"~{follows.letter}"
        shown.append(
            {
                "name": row.name,
                "total": _short(row.published_total_params),
                "ours": _short(counted.total_params if counted else None),
                "active": _short(row.published_active_params),
                "ours (A)": _short(counted.active_params if counted else None),
                "as": letter,
                "source": _MARKS.get(row.kind, "") + row.source,
            }
        )
    return shown


def _convention(row: System) -> Convention | None:
    return convention_of(row, row.counted) if row.counted is not None else None


def _short(value: float | None) -> str:
    return "" if value is None else count(value)
