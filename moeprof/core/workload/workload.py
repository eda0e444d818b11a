"""The workload: a whole experiment in one YAML file, read strictly into frozen dataclasses.

Traffic, models, engine settings, rounds, instruments, SLOs, prices. Unknown keys are errors; relative paths start at
the workload's own folder. "auto" values stay "auto" here: what they became is in the record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from moeprof.core import yamlfile
from moeprof.core.errors import WorkloadError
from moeprof.core.workload.engine import OWN_KINDS, EngineSettings, TransformersSettings
from moeprof.core.workload.gates import GateSettings
from moeprof.core.workload.models import ModelSpec, expand
from moeprof.core.workload.studies import Claim, Ladder, Lockstep, Sweep
from moeprof.core.workload.traffic import MOST_REQUESTS, Traffic
from moeprof.core.yamlfile import at_least, at_most, more_than_zero

MOST_PASSES = 10_000  # rounds, launches, threads

Outputs = Literal["forced", "forced_length", "free"]
FEWEST_ROUNDS, ROUNDS_ON_CPU = 3, 5  # fewer know their own spread too badly for an interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Service level objectives, in seconds. A request is good when it meets every one that is given.

    Attributes:
        ttft_s: to the first token, from the scheduled arrival.
        tpot_s: per further output token.
        e2e_s: to the last token.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        more_than_zero(ttft_s=self.ttft_s, tpot_s=self.tpot_s, e2e_s=self.e2e_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capital:
    """Owned hardware instead of rent: price / (life x utilisation), per device.

    Attributes:
        usd_per_device: what one cost.
        years: of use.
        utilisation_ratio: share of that time in which it works.
    """

    usd_per_device: float
    years: float = 4.0
    utilisation_ratio: float = 1.0

    def __post_init__(self) -> None:
        more_than_zero(usd_per_device=self.usd_per_device, years=self.years, utilisation_ratio=self.utilisation_ratio)
        if self.utilisation_ratio > 1:
            raise WorkloadError(f"utilisation_ratio: found {self.utilisation_ratio}; at most 1 is allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiPrices:
    """What an API asks for the same tokens, in USD per 1M, to break even with.

    Attributes:
        input: prompt tokens that the API has to compute.
        output: output tokens.
        cached_input: prompt tokens that it has in its cache; without it a run that took prompt tokens from a cache has
            no break-even.
    """

    input: float
    output: float
    cached_input: float | None = None

    def __post_init__(self) -> None:
        more_than_zero(input=self.input, output=self.output, cached_input=self.cached_input)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What the machine costs; without ``usd_per_device_hour`` or ``capital`` the price book is asked.

    Attributes:
        usd_per_device_hour: rent.
        includes_power: whether that price includes power.
        usd_per_kwh: power price, added when power is not included.
        pue: power usage effectiveness.
        capital: owned hardware.
        api: an API's prices to break even with.
        api_usd_per_1m_output_tokens: older spelling of ``api: {output: ...}``.
        api_usd_per_1m_input_tokens: older spelling of ``api: {input: ...}``.
        source: where the price comes from, for the report.
        applies_to: the kind of device that rent or capital are meant for; another kind asks the price book.
    """

    usd_per_device_hour: float | None = None
    includes_power: bool = True
    usd_per_kwh: float | None = None
    pue: float = 1.0
    capital: Capital | None = None
    api: ApiPrices | None = None
    api_usd_per_1m_output_tokens: float | None = None
    api_usd_per_1m_input_tokens: float | None = None
    source: str | None = None
    applies_to: Literal["any", "cpu", "cuda"] = "any"

    def for_device(self, device: str) -> Prices:
        """These prices, without rent and capital when they are meant for another kind of device."""
        if self.applies_to == "any" or device.startswith(self.applies_to):
            return self
        return replace(self, usd_per_device_hour=None, capital=None, source=None)

    def __post_init__(self) -> None:
        older = {
            "api_usd_per_1m_output_tokens": self.api_usd_per_1m_output_tokens,
            "api_usd_per_1m_input_tokens": self.api_usd_per_1m_input_tokens,
        }
        more_than_zero(usd_per_device_hour=self.usd_per_device_hour, usd_per_kwh=self.usd_per_kwh, **older)
        given = [name for name, price in older.items() if price is not None]
        if self.api is not None and given:
            raise WorkloadError(f"{given[0]}: give it or api, not both")
        at_least(1, pue=self.pue)
        if self.usd_per_device_hour is not None and self.capital is not None:
            raise WorkloadError("capital: give rent (usd_per_device_hour) or capital, not both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What is watched.

    Attributes:
        routing: the routing tap.
        overhead: measure the cost of the instruments in the run.
        power: sample NVML / RAPL.
        peaks: measure peak bandwidth and matmul rate.
        capacity: offline pass after each open-loop round.
        window_steps: steps per routing window.
        step_counts_cap_mib: memory for per-step expert counts.
        save_detailed: keep every pick of every token.
        picks_cap_mib: bound for them.
        quality: bits per byte of the forced outputs.
        forced_picks: where about 2,048 forced tokens are sent, one request at a time.
        gap: steps of a few sizes itemised by part of the model (see core/record/breakdown.py).
        skip: names of other measurements that are left out; those there are stand in capture/measure/__init__.py.
    """

    routing: bool = True
    overhead: bool = True
    power: bool = True
    peaks: bool = True
    capacity: bool = True
    window_steps: int = 16
    step_counts_cap_mib: int = 64
    save_detailed: bool = False
    picks_cap_mib: int = 256
    quality: bool = True
    forced_picks: bool = True
    gap: bool = True
    skip: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        at_least(1, window_steps=self.window_steps)
        at_least(0, step_counts_cap_mib=self.step_counts_cap_mib, picks_cap_mib=self.picks_cap_mib)

    def wants(self, name: str) -> bool:
        """Whether something measured once a launch is wanted."""
        return name not in (self.skip or ()) and getattr(self, name, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """Warm-up: other prompts, until step times settle or the bound is reached.

    Attributes:
        num_requests: other prompts that are sent.
        max_seconds: bound.
    """

    num_requests: int = 8
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        at_least(0, num_requests=self.num_requests, max_seconds=self.max_seconds)
        at_most(MOST_REQUESTS, num_requests=self.num_requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A whole experiment. See the classes above for each part.

    Attributes:
        name: of the workload, in the record's folder and on every page.
        traffic: what is sent.
        models: what is measured, each on the same requests.
        engine: how models are run.
        rounds: passes over the schedule in one launch; not stated: 3, or 5 on a CPU where ``max_minutes`` leaves time.
        launches: fresh processes per model, which make the launch the unit of intervals.
        seed: of every random stream.
        outputs: ``forced`` feeds the text's own continuation, so that every model runs the same tokens (without such
            text: ``forced_length``); ``forced_length`` fixes how many tokens the model chooses; ``free`` ends where it
            ends.
        warmup: what runs before anything is measured.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of torch on a CPU; else as torch chooses.
        max_minutes: the run ends in time, with what was measured.
        watchdog_s: a model is ended when a step takes longer than this and than fifty times the longest step so far;
            0: never.
        slo: what a good request is.
        prices: what an hour costs.
        instruments: what is watched.
        lockstep: models stepped in turn in one process.
        ladder: the sparsity ladder.
        sweep: several loads.
        claim: a statement put to the test.
        gates: of ``moeprof regress``.
        label: a text that tells this run from others.
    """

    name: str
    traffic: Traffic
    models: tuple[ModelSpec, ...]
    engine: EngineSettings = field(default_factory=TransformersSettings)
    rounds: int | None = None
    launches: int = 1
    seed: int = 0
    outputs: Outputs = "forced"
    warmup: Warmup = field(default_factory=Warmup)
    device: str = "auto"
    threads: int | None = None
    max_minutes: float | None = None
    watchdog_s: float = 120.0
    slo: Slo = field(default_factory=Slo)
    prices: Prices = field(default_factory=Prices)
    instruments: Instruments = field(default_factory=Instruments)
    lockstep: Lockstep | None = None
    ladder: Ladder | None = None
    sweep: Sweep | None = None
    claim: Claim | None = None
    gates: GateSettings | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise WorkloadError(f"name: found {self.name!r}; letters, digits, '.', '_' and '-' are allowed, 64 at most")
        if not self.models:
            raise WorkloadError("models: found an empty list; at least one model is needed")
        object.__setattr__(self, "models", expand(self.models))
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise WorkloadError(f"models: the name {twice[0]!r} stands twice; each model needs its own")
        if self.claim is not None:
            self.claim.check_names(names)
        self._check_chosen(names)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise WorkloadError(f"device: found {self.device!r}; auto, cpu, cuda or cuda:N is allowed")
        at_least(1, rounds=self.rounds, launches=self.launches, threads=self.threads)
        at_most(MOST_PASSES, rounds=self.rounds, launches=self.launches, threads=self.threads)
        at_least(0, seed=self.seed, watchdog_s=self.watchdog_s)
        more_than_zero(max_minutes=self.max_minutes)

    def _check_chosen(self, names: list[str]) -> None:
        """Sweep and lock-step may name some of the models."""
        for key, settings, least in (("sweep", self.sweep, 1), ("lockstep", self.lockstep, 2)):
            chosen = settings.models if settings is not None else ()
            unknown = next((name for name in chosen if name not in names), None)
            if unknown is not None:
                raise WorkloadError(
                    f"{key}.models: found {unknown!r}, no model of this workload; allowed: {', '.join(names)}"
                )
            if 0 < len(chosen) < least:
                raise WorkloadError(f"{key}.models: found {chosen[0]!r} alone; at least {least} models are needed")

    @property
    def num_rounds(self) -> int:
        """Of a prepared workload."""
        assert self.rounds is not None, "with_rounds came before"
        return self.rounds

    def with_rounds(self, device: str, round_s: float | None = None, *, reloads: bool = False) -> Workload:
        """Rounds settled: those that are stated, else FEWEST_ROUNDS, or ROUNDS_ON_CPU where time allows.

        The rounds of a CPU differ more, and some are disturbed and set aside. Time does not allow more where
        ``max_minutes`` would end the run before, or may do so, and where each round would load the models again.

        Args:
            device: ``cpu`` or ``cuda:N``.
            round_s: what a round of all models in all launches lasts by its arrivals; None: as long as they take.
            reloads: the models do not fit in memory together.
        """
        if self.rounds is not None:
            return self
        most = ROUNDS_ON_CPU if device == "cpu" and not reloads else FEWEST_ROUNDS
        if self.max_minutes is not None:
            fit = 0 if round_s is None else int(60 * self.max_minutes / max(round_s, 1e-9))
            most = min(most, max(fit, FEWEST_ROUNDS))
        return replace(self, rounds=most)

    @property
    def few_repeats(self) -> tuple[str, ...]:
        """What to say before a run whose figures will have no interval and no verdict."""
        said = []
        if self.launches > 1 and self.launches < FEWEST_ROUNDS:
            said.append(f"launches: {self.launches}: figures will have no interval and no verdict; say {FEWEST_ROUNDS} "
                        "or more (6 for claims), or 1")  # fmt: skip
        elif self.launches == 1 and self.rounds is not None and self.rounds < FEWEST_ROUNDS:
            said.append(f"rounds: {self.rounds}: figures will have no interval and no verdict; say {FEWEST_ROUNDS} "
                        "or more")  # fmt: skip
        if self.launches == 1 and self.sweep is not None and self.sweep.rounds < FEWEST_ROUNDS:
            said.append(f"sweep.rounds: {self.sweep.rounds}: values of a load will have no interval; say "
                        f"{FEWEST_ROUNDS} or more")  # fmt: skip
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """As JSON types, for the record."""
        return asdict(self)


def load_workload(path: Path, engine_kinds: Mapping[str, type[EngineSettings]] = OWN_KINDS) -> Workload:
    """Read and check a workload; file paths in it are resolved against its folder.

    Args:
        path: the file.
        engine_kinds: what ``engine.kind`` may say -> the class of that kind's settings.

    Raises:
        WorkloadError: see :func:`moeprof.core.yamlfile.load`.
    """
    return resolve_paths(yamlfile.load(path, Workload, {EngineSettings: engine_kinds}), path.resolve().parent)


def resolve_paths(workload: Workload, folder: Path) -> Workload:
    """A workload whose relative file paths start at ``folder``.

    A model ``path`` that names an existing folder beside the workload is local; anything else is a hub id.
    """

    def model(spec: ModelSpec) -> ModelSpec:
        changes: dict[str, Any] = {}
        if spec.path is not None and (spec.path.startswith((".", "/", "~")) or (folder / spec.path).is_dir()):
            changes["path"] = _absolute(spec.path, folder)
        if spec.config is not None and spec.config.endswith(".json"):
            changes["config"] = _absolute(spec.config, folder)
        if spec.routing.path is not None:
            changes["routing"] = replace(spec.routing, path=_absolute(spec.routing.path, folder))
        return replace(spec, **changes)

    return replace(
        workload,
        traffic=workload.traffic.with_paths(lambda text: _absolute(text, folder)),
        models=tuple(model(spec) for spec in workload.models),
    )


def _absolute(text: str, folder: Path) -> str:
    path = Path(text).expanduser()
    return str(path if path.is_absolute() else (folder / path).resolve())
