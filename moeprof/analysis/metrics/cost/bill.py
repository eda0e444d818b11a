"""What a pass cost, and what a million tokens cost (docs/metrics.md#cost). The split always adds up to the bill.

``C = billed seconds * devices * price``, idle time included, plus power where it is billed apart. Prompts and outputs
share C in proportion to the busy seconds that are theirs, so ``input_tokens * usd_per_input_token + output_tokens *
usd_per_output_token = C``. A side without tokens, or without a second of its own (no decode step ran: every output
token is a first token, made in prefill), has no price, and the other side carries C.

Two splits of other tools stand beside: by request-seconds, and all of C on one side (docs/metrics.md#other-splits).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analysis.metrics.cost.split import BusySplit, split_busy
from moeprof.analysis.metrics.resources.energy import input_tokens, output_tokens, pass_energy
from moeprof.analysis.metrics.tables import PassTables, column, is_done
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing

if TYPE_CHECKING:
    import pandas as pd

MILLION = 1e6
NO_POWER = "power is billed apart and its energy was not measured ({}): the cost is without power"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSplit:
    """The bill of one pass, and who owes what.

    Attributes:
        name: of the pass.
        run_cost_usd: C.
        power_usd: the part of C that is power billed apart, or None when it is included or unknown.
        billed_s: length of the window.
        busy_s: seconds of steps in it.
        input_tokens: prompt tokens computed (cached and recomputed ones not included).
        output_tokens: output tokens produced, first tokens (made in prefill) included.
        cached_tokens: prompt tokens taken from a prefix cache.
        recomputed_tokens: tokens computed again after a preemption.
        usd_input, usd_output: shares of C; they add up to it. Both None when nothing was processed.
        usd_per_input_token, usd_per_output_token: None when there were no such tokens.
        input_bounds_usd: smallest and largest share of the input under the split's assumptions.
        request_seconds: seconds from the first step of a request to its first token, and from there to its last token,
            summed over requests; None where a request's times are unknown or there was none.
        wasted_usd: share of C for tokens of requests that did not end well and for recomputed tokens.
        requests_done: requests that ended well.
        characters: prompt and output characters of these, or None when unknown.
        busy: seconds by step and phase, and how mixed steps were split.
        reasons: why the figures should be doubted.
    """

    name: str
    run_cost_usd: float
    power_usd: float | None
    billed_s: float
    busy_s: float
    input_tokens: float
    output_tokens: float
    cached_tokens: float
    recomputed_tokens: float
    usd_input: float | None
    usd_output: float | None
    input_bounds_usd: tuple[float, float] | None
    request_seconds: tuple[float, float] | None
    wasted_usd: float | None
    requests_done: int
    characters: float | None
    busy: BusySplit
    reasons: tuple[str, ...] = ()

    @property
    def usd_per_input_token(self) -> float | None:
        """Price of a prompt token that was computed; None where none was, or where no second of C is theirs."""
        return self.usd_input / self.input_tokens if self.usd_input and self.input_tokens else None

    @property
    def usd_per_output_token(self) -> float | None:
        """Price of an output token."""
        return self.usd_output / self.output_tokens if self.usd_output and self.output_tokens else None

    @property
    def busy_ratio(self) -> float | None:
        """Busy over billed seconds; None where no step is known."""
        return self.busy_s / self.billed_s if self.billed_s > 0 and len(self.busy.prefill_S) else None

    @property
    def busy_cost_usd(self) -> float | None:
        """C if only busy seconds were billed."""
        return None if self.busy_ratio is None else self.run_cost_usd * self.busy_ratio


def cost_split(
    tables: PassTables,
    pricing: Pricing,
    calibration: pd.DataFrame | None = None,
    *,
    facts: ModelFacts | None = None,
    peaks: tuple[float, float] | None = None,
) -> CostSplit:
    """The bill of one pass.

    Args:
        tables: the pass.
        pricing: what an hour costs.
        calibration: pure steps from the end of warm-up, or None.
        facts: the model, and
        peaks: (bytes/s, FLOP/s) of the device: the last resort for splitting mixed steps.
    """
    busy = split_busy(tables, calibration, facts=facts, peaks=peaks)
    power_usd, reasons = _power(tables, pricing)
    inputs, outputs = max(input_tokens(tables), 0.0), output_tokens(tables)
    prefill_s, busy_s = float(busy.prefill_S.sum()), float((busy.prefill_S + busy.decode_S).sum())
    shares: tuple[float | None, float | None]
    if pricing.per_token:
        bill = _api_bill(tables, pricing, outputs)
        total, shares = sum(bill), bill
    else:
        total = tables.duration_s * pricing.usd_per_second + (power_usd or 0.0)
        shares = _shares(total, prefill_s, busy_s, inputs, outputs) if len(tables.steps) else (None, None)
    usd_input, usd_output = shares
    recomputed = float(np.nansum(column(tables.requests, "recomputed_tokens")))
    done = tables.done
    characters = column(tables.requests, "num_characters")[done]
    known = len(characters) > 0 and bool((np.isfinite(characters) & (characters >= 0)).all())
    if busy.clamped_steps:
        reasons = (*reasons, f"{busy.clamped_steps} of {busy.mixed_steps} mixed steps were split at a border")
    return CostSplit(
        name=tables.name,
        run_cost_usd=total,
        power_usd=power_usd,
        billed_s=tables.duration_s,
        busy_s=busy_s,
        input_tokens=inputs,
        output_tokens=outputs,
        cached_tokens=float(np.nansum(column(tables.requests, "cached_tokens"))),
        recomputed_tokens=recomputed,
        usd_input=usd_input,
        usd_output=usd_output,
        input_bounds_usd=_bounds(total, busy, busy_s, inputs, outputs),
        request_seconds=_request_seconds(tables),
        wasted_usd=_wasted(tables, inputs, outputs, recomputed, usd_input, usd_output),
        requests_done=int(done.sum()),
        characters=float(characters.sum()) if known else None,
        busy=busy,
        reasons=reasons,
    )


def _api_bill(tables: PassTables, pricing: Pricing, outputs: float) -> tuple[float, float]:
    """What a hosted API asks: prompts as it counts them, cached ones at their own price where it has one."""
    told = column(tables.requests, "told_input_tokens")
    prompts = np.where(np.isfinite(told), told, column(tables.requests, "input_tokens"))
    got_tokens = np.isfinite(column(tables.requests, "first_token_s"))
    cached = float(np.nansum(column(tables.requests, "cached_tokens")[got_tokens]))
    computed = max(float(np.nansum(prompts[got_tokens])) - cached, 0.0)
    per_input, per_output = pricing.api_usd_per_1m_input_tokens or 0.0, pricing.api_usd_per_1m_output_tokens or 0.0
    per_cached = pricing.api_usd_per_1m_cached_input_tokens
    usd_input = computed * per_input + cached * (per_input if per_cached is None else per_cached)
    return usd_input / MILLION, outputs * per_output / MILLION


def _power(tables: PassTables, pricing: Pricing) -> tuple[float | None, tuple[str, ...]]:
    """Energy * PUE * price where the rent excludes power."""
    if pricing.includes_power:
        return None, ()
    energy = pass_energy(tables)
    if energy.joules is None:
        return None, (NO_POWER.format(energy.reason),)
    assert pricing.usd_per_kwh is not None, "a Pricing without power has usd_per_kwh"
    return energy.joules / 3.6e6 * pricing.pue * pricing.usd_per_kwh, ()


def _shares(
    total: float, prefill_s: float, busy_s: float, inputs: float, outputs: float
) -> tuple[float | None, float | None]:
    """C by phase; a side without tokens owes nothing, and nobody owes when nothing was processed."""
    if inputs <= 0 and outputs <= 0:
        return None, None
    if inputs <= 0 or outputs <= 0:
        return (total, 0.0) if inputs > 0 else (0.0, total)
    share = prefill_s / busy_s if busy_s > 0 else inputs / (inputs + outputs)
    usd_input = total * share
    return usd_input, total - usd_input


def _bounds(total: float, busy: BusySplit, busy_s: float, inputs: float, outputs: float) -> tuple[float, float] | None:
    if busy_s <= 0 or inputs <= 0 or outputs <= 0:
        return None
    return total * busy.least_prefill_s / busy_s, total * busy.most_prefill_s / busy_s


def _request_seconds(tables: PassTables) -> tuple[float, float] | None:
    """Prefill and decode seconds of requests as a server's counters sum them: concurrent requests count each second."""
    begun = tables.requests[np.isfinite(column(tables.requests, "first_token_s"))]
    first, last = column(begun, "first_token_s"), column(begun, "last_token_s")
    prefill_s = float((first - column(begun, "first_scheduled_s")).sum())
    decode_s = float((last - first).sum())
    known = math.isfinite(prefill_s + decode_s) and prefill_s + decode_s > 0
    return (prefill_s, decode_s) if known else None


def _wasted(
    tables: PassTables,
    inputs: float,
    outputs: float,
    recomputed: float,
    usd_input: float | None,
    usd_output: float | None,
) -> float | None:
    """At the pass's own prices per computed token: prompts and outputs of requests that failed or did not finish."""
    if usd_input is None or usd_output is None:
        return None
    table = tables.requests
    lost = ~is_done(table) & np.isfinite(column(table, "first_token_s"))
    prompts = column(table, "input_tokens") - np.nan_to_num(column(table, "cached_tokens"))
    lost_inputs = float(np.nansum(prompts[lost])) + recomputed
    lost_outputs = float(np.nansum(column(table, "output_tokens")[lost]))
    computed = inputs + recomputed
    per_input = usd_input / computed if computed else 0.0
    per_output = usd_output / outputs if outputs else 0.0
    return per_input * lost_inputs + per_output * lost_outputs


def cost_splits(
    rounds: Sequence[PassTables],
    pricing: Pricing,
    calibration: pd.DataFrame | None = None,
    *,
    facts: ModelFacts | None = None,
    peaks: tuple[float, float] | None = None,
) -> tuple[CostSplit, ...]:
    """:func:`cost_split` of each round; none where nothing can be billed."""
    if pricing.unknown is not None:
        return ()
    return tuple(cost_split(tables, pricing, calibration, facts=facts, peaks=peaks) for tables in rounds)
