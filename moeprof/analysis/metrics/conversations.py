"""Conversations: what a turn waits, what prefixes it shares and what a whole one costs (docs/metrics.md#conversations).

A conversation is a first turn and all that wait, directly or not, for its answer; where sessions are open, the requests
of one session. Without any request that follows another there are no such figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.cost.metrics import splits_of, with_doubts
from moeprof.analysis.metrics.samples import (
    FEWEST_REQUESTS,
    SHORT_PERCENTILES,
    Samples,
    over_rounds,
    request_rows,
    summarise,
)
from moeprof.analysis.metrics.tables import BoolArray, PassTables, column, is_done
from moeprof.core.metric import Card, MetricValue, missing

TURNS = ("1", "2", "3+")
_card = partial(Card, section="conversations", source="docs/metrics.md#conversations")
CARDS: tuple[Card, ...] = (
    _card("turn_ttft_*_s", "Time to first token by turn", "s", "lower",
          "first output token - arrival, of first, second and later turns; a turn that waits for an answer arrives "
          "when that has ended and its pause is over", kind="timed", counts_tokens=False),
    _card("usd_per_conversation", "$ / conversation", "USD", "lower",
          "C / conversations of which every turn ended well", kind="timed", counts_tokens=False),
    _card("num_conversations", "Conversations", "conversations", "neither",
          "first turns, alone or followed by others, summed over rounds", kind="timed", counts_tokens=False),
    _card("num_conversations_done", "Conversations done", "conversations", "higher",
          "conversations of which every turn ended well, summed over rounds", kind="timed", counts_tokens=False),
    _card("reusable_prompt_tokens", "Prompt tokens that could be reused", "tokens", "neither",
          "prompt tokens, in whole blocks of 16 from the first on, that a request before in the schedule had: in its "
          "prompt, its forced output, or an answer that the model gave itself; what a prefix cache without limit would "
          "have, mean over rounds", kind="timed", counts_tokens=True),
    _card("reused_prompt_tokens", "Prompt tokens that were reused", "tokens", "higher",
          "prompt tokens that the engine's prefix cache had, mean over rounds", kind="timed", counts_tokens=True),
    _card("prefix_reuse_had_ratio", "Reuse had / possible", "ratio", "higher",
          "reused / reusable prompt tokens, of requests that ended well", kind="timed", counts_tokens=True),
)  # fmt: skip
NO_BLOCKS = "the record does not say which prefixes could be reused"
NOT_TOLD = "the engine does not tell what its prefix cache had"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """How many conversations a pass had.

    Attributes:
        all: any that began.
        done: of which every turn ended well.
        rows: first rows of those that were done.
    """

    all: int
    done: int
    rows: frozenset[int]


def compute(context: Context) -> list[MetricValue]:
    """All figures of conversations of passes with the same traffic; none where nobody follows another."""
    passes = context.passes
    if not any((column(tables.requests, "turn") > 1).any() for tables in passes):
        return []
    labels: dict[str, str] = {"traffic": passes[0].traffic}
    values = []
    for turn in TURNS:
        samples = [turn_samples(tables, turn) for tables in passes]
        values += summarise(
            "turn_ttft",
            samples,
            labels | {"turn": turn},
            missing_reason="no such turn ended well",
            percentiles=SHORT_PERCENTILES,
        )
    found = [conversations(tables) for tables in passes]
    bills = context.once(splits_of)
    costs = [(split.run_cost_usd, one.done) for split, one in zip(bills, found, strict=True)]
    value = with_doubts(price(costs, labels), bills)
    return [*values, _of_enough(value, found), *_counts(found, labels), *reuse(passes, labels)]


def turn_samples(tables: PassTables, turn: str) -> Samples:
    """Time to the first token of the first, second or later turns that ended well."""
    number = column(tables.requests, "turn")
    wanted: BoolArray = number >= 3 if turn == "3+" else number == int(turn)
    took = column(tables.requests, "first_token_s") - column(tables.requests, "arrival_s")
    return Samples.of(took, request_rows(tables), is_done(tables.requests) & wanted)


def conversations(tables: PassTables) -> Conversations:
    """The conversations of a pass."""
    rows, after = request_rows(tables).tolist(), column(tables.requests, "after")
    waits = {row: int(before) for row, before in zip(rows, after.tolist(), strict=True) if np.isfinite(before)}
    of_session: dict[str, int] = {}
    root: dict[int, int] = {}
    for row, session in sorted(zip(rows, tables.requests["session"], strict=True)):
        if row in waits:
            root[row] = root.get(waits[row], waits[row])
        else:
            root[row] = row if waits or not isinstance(session, str) else of_session.setdefault(session, row)
    failed = {root[row] for row, done in zip(rows, is_done(tables.requests).tolist(), strict=True) if not done}
    began = Counter(root.values())
    done_rows = frozenset(began.keys() - failed)
    return Conversations(all=len(began), done=len(done_rows), rows=done_rows)


def price(costs: Sequence[tuple[float, int]], labels: dict[str, str]) -> MetricValue:
    """Sum over sum of the rounds; the interval is that of the rounds' own figures."""
    name, reason = "usd_per_conversation", "no conversation ended well"
    known = [(usd, number) for usd, number in costs if number]
    if not known:
        return missing(name, reason, **labels)
    value = over_rounds(name, [usd / number for usd, number in known], labels, reason)
    return replace(value, value=sum(usd for usd, _ in known) / sum(number for _, number in known))


def _of_enough(value: MetricValue, found: Sequence[Conversations]) -> MetricValue:
    """Marked not valid where the mean is over too few different conversations; rounds replay the same ones."""
    number = len({row for one in found for row in one.rows})
    if value.value is None or number >= FEWEST_REQUESTS:
        return value
    reason = f"{number} conversations ended, and a mean price needs {FEWEST_REQUESTS} different ones, as a median does"
    return replace(value, valid=False, reasons=(*value.reasons, reason))


def _counts(found: Sequence[Conversations], labels: dict[str, str]) -> list[MetricValue]:
    counts = {
        "num_conversations": sum(one.all for one in found),
        "num_conversations_done": sum(one.done for one in found),
    }
    return [MetricValue(name=name, value=count, exact=True, labels=labels) for name, count in counts.items()]


def reuse(rounds: Sequence[PassTables], labels: dict[str, str]) -> list[MetricValue]:
    """Prefix tokens of requests that ended well: those that could be reused, those that were, and the share."""
    possible = [_tokens(tables, "reusable_tokens") for tables in rounds]
    had = [_tokens(tables, "cached_tokens") for tables in rounds]
    shares = [got / most if got is not None and most else None for got, most in zip(had, possible, strict=True)]
    why = NO_BLOCKS if None in possible else NOT_TOLD if None in had else "no prompt token could be reused"
    return [
        over_rounds("reusable_prompt_tokens", possible, labels, NO_BLOCKS),
        over_rounds("reused_prompt_tokens", had, labels, NOT_TOLD),
        over_rounds("prefix_reuse_had_ratio", shares, labels, why),
    ]


def _tokens(tables: PassTables, name: str) -> float | None:
    """Sum over requests that ended well; None where one of them does not tell, or none ended."""
    values = column(tables.requests, name)[is_done(tables.requests)]
    return float(values.sum()) if len(values) and np.isfinite(values).all() else None
