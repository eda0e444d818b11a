"""What changes a workload without editing its file: flags of ``moeprof run``, keywords of :func:`moeprof.run`.

They are spelt as people already type them in ``vllm bench`` and its peers. What is given here wins over the file; the
resolved workload is in the record.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from moeprof.core.errors import WorkloadError
from moeprof.core.workload.traffic import Arrivals, Traffic
from moeprof.core.workload.workload import ApiPrices, Slo, Workload


def parse_api(text: str | None) -> ApiPrices | None:
    """``0.15/0.60`` or ``0.15/0.60/0.02``: an API's USD per 1M input, output and cached input tokens.

    Raises:
        WorkloadError: another form, or a price of 0 or less.
    """
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split("/")]
    except ValueError:
        found = []
    if len(found) not in (2, 3):
        raise WorkloadError(
            f"--api {text!r}: allowed is INPUT/OUTPUT or INPUT/OUTPUT/CACHED in USD per 1M tokens, as in 0.15/0.60/0.02"
        )
    try:
        return ApiPrices(input=found[0], output=found[1], cached_input=found[2] if len(found) == 3 else None)
    except WorkloadError as error:
        raise WorkloadError(f"--api {text!r}: {error}") from None


GOODPUT_KEYS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s", "e2e": "e2e_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """Options of ``run`` that change the workload; None leaves it alone.

    Attributes:
        request_rate, burstiness, max_concurrency: traffic.
        num_prompts: requests to send.
        num_warmups: warm-up requests.
        seed: of everything random.
        rounds, launches: repetition.
        ignore_eos: True forces the asked output lengths.
        goodput: SLOs such as ``ttft:500`` in milliseconds.
        usd_per_device_hour: the price.
        api: of an API, as ``--api`` spells it.
        device: where to run.
        threads: CPU threads.
        max_minutes: bound on the whole run.
        save_detailed: keep every pick.
        label: free text for the record.
    """

    request_rate: float | None = None
    burstiness: float | None = None
    max_concurrency: int | None = None
    num_prompts: int | None = None
    num_warmups: int | None = None
    seed: int | None = None
    rounds: int | None = None
    launches: int | None = None
    ignore_eos: bool | None = None
    goodput: tuple[str, ...] = ()
    usd_per_device_hour: float | None = None
    api: str | None = None
    device: str | None = None
    threads: int | None = None
    max_minutes: float | None = None
    save_detailed: bool = False
    label: str | None = None


def apply(workload: Workload, options: Overrides) -> Workload:
    """The workload with the options in force.

    Raises:
        WorkloadError: an option's value is not allowed; the message names the option.
    """
    changes: dict[str, Any] = {
        name: value
        for name in ("seed", "rounds", "launches", "device", "threads", "max_minutes", "label")
        if (value := getattr(options, name)) is not None
    }
    if options.ignore_eos is not None and workload.outputs == "free" and options.ignore_eos:
        changes["outputs"] = "forced_length"
    if options.num_warmups is not None:
        changes["warmup"] = replace(workload.warmup, num_requests=options.num_warmups)
    if options.goodput:
        changes["slo"] = replace(workload.slo, **_slo(options.goodput))
    if options.usd_per_device_hour is not None:
        changes["prices"] = replace(
            workload.prices,
            usd_per_device_hour=options.usd_per_device_hour,
            capital=None,
            source="given on the command line",
            applies_to="any",
        )
    api = parse_api(options.api)
    if api is not None:
        prices = changes.get("prices", workload.prices)
        changes["prices"] = replace(
            prices, api=api, api_usd_per_1m_input_tokens=None, api_usd_per_1m_output_tokens=None
        )
    if options.save_detailed:
        changes["instruments"] = replace(workload.instruments, save_detailed=True)
    changes["traffic"] = _traffic(workload.traffic, options)
    return replace(workload, **changes)


def _traffic(traffic: Traffic, options: Overrides) -> Traffic:
    """Rate and burstiness keep the pattern where it has them; ``--max-concurrency`` makes the loop closed."""
    if options.num_prompts is not None:
        traffic = replace(traffic, num_requests=options.num_prompts)
    if options.max_concurrency is not None:
        if options.request_rate is not None or options.burstiness is not None:
            raise WorkloadError(
                "--max-concurrency closes the loop, so --request-rate and --burstiness do not go with it"
            )
        return replace(traffic, arrivals=Arrivals(pattern="concurrency", concurrency=options.max_concurrency))
    if options.request_rate is None and options.burstiness is None:
        return traffic
    old = traffic.arrivals
    rate = options.request_rate if options.request_rate is not None else old.rate if old is not None else None
    if rate is None:
        raise WorkloadError("--burstiness: the workload has no request rate; give --request-rate too")
    if options.burstiness is not None:
        return replace(traffic, arrivals=Arrivals(pattern="gamma", rate=rate, burstiness=options.burstiness))
    if old is not None and old.is_open:
        return replace(traffic, arrivals=replace(old, rate=rate))
    return replace(traffic, arrivals=Arrivals(pattern="poisson", rate=rate))


def _slo(goodput: tuple[str, ...]) -> dict[str, float]:
    values = {}
    for text in goodput:
        key, _, number = text.partition(":")
        if key not in GOODPUT_KEYS:
            close = difflib.get_close_matches(key, GOODPUT_KEYS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise WorkloadError(f"--goodput {text!r}: allowed are {', '.join(GOODPUT_KEYS)}, as in ttft:500 (ms){hint}")
        try:
            values[GOODPUT_KEYS[key]] = float(number) / 1e3
        except ValueError:
            raise WorkloadError(f"--goodput {text!r}: {number!r} is no number of milliseconds") from None
    Slo(**values)  # checks the ranges
    return values
