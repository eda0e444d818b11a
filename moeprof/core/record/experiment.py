"""``experiment.json``: what a run was to do, on which machine, with which requests, and how its models ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msgspec import UNSET, UnsetType, field

from moeprof.core.pricing import Pricing
from moeprof.core.record.headers import FORMAT_VERSION, Facts, Header, written
from moeprof.core.workload.gates import GateSettings


class GpuIdentity(Facts, frozen=True, kw_only=True):
    """Which GPU, under which driver."""

    uuid: str | None = None
    driver: str | None = None


class EnvironmentHeader(Facts, frozen=True, kw_only=True):
    """What machine this is; ``num_devices`` are used and billed."""

    moeprof: str | None = None
    python: str | None = None
    system: str | None = None
    machine: str | None = None
    cpu: str | None = None
    cpu_cores: int | None = None
    cpu_flags: tuple[str, ...] = ()
    memory_bytes: int | None = None
    device: str | None = None
    device_name: str | None = None
    num_devices: int = 1
    gpu: GpuIdentity | None = None
    threads: int | None = None
    load_average_1min: float | None = None
    packages: dict[str, str | None] = field(default_factory=dict)


class ScheduleNote(Facts, frozen=True, kw_only=True):
    """What happened to requests on their way into the schedule."""

    code: str
    count: int | None = None
    text: str


class PointHeader(Facts, frozen=True, kw_only=True):
    """The requests of one point of a sweep."""

    file: str | None = None
    sha256: str | None = None
    num_requests: int | None = None
    pattern: str | None = None
    notes: tuple[ScheduleNote, ...] = ()


class SessionsHeader(Facts, frozen=True, kw_only=True):
    """The conversations of a schedule.

    Attributes:
        sessions: ``closed``: turns wait for the answer to the one before; ``open``: they do not.
        num_conversations: with more than one request.
        num_later_turns: requests that follow another.
        prompts: of later turns, as the file states them: ``whole``, or what they add (``added``).
        own_answers: later prompts hold what the model itself answered, so models get different ones.
    """

    sessions: str | None = None
    num_conversations: int | None = None
    num_later_turns: int | None = None
    prompts: str | None = None
    own_answers: bool = False


class ScheduleHeader(Facts, frozen=True, kw_only=True):
    """The requests that one model was sent; ``sessions`` is None where none belongs to another's."""

    file: str | None = None
    sha256: str | None = None
    tokenizer_hash: str | None = None
    bundled_tokenizer: bool | None = None
    num_requests: int | None = None
    pattern: str | None = None
    concurrency: int | None = None
    outputs: str | None = None
    realism: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    span_s: float | None = None
    classes: tuple[str, ...] = ()
    sessions: SessionsHeader | None = None
    notes: tuple[ScheduleNote, ...] = ()
    sweep: tuple[PointHeader, ...] = ()


class ModelFit(Facts, frozen=True, kw_only=True):
    """Memory that one model was predicted to need."""

    weights_bytes: int | None = None
    load_extra_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    activation_bytes: int | None = None
    workspace_bytes: int | None = None
    base_bytes: int | None = None
    kept_bytes: int | None = None
    instruments_bytes: int | None = None
    layers_to_cut: int | None = None
    needed_bytes: int | None = None


class FitHeader(Facts, frozen=True, kw_only=True):
    """The prediction of memory: whether all models fit at once, and the KV slots that each got."""

    together: bool = True
    kv_tokens: int | None = None
    wanted_kv_tokens: int | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    margin_bytes: int | None = None
    models: dict[str, ModelFit] = field(default_factory=dict)


class DeviceHeader(Facts, frozen=True, kw_only=True):
    """What the driver tells of a GPU; null where it does not."""

    uuid: str | None = None
    name: str | None = None
    driver: str | None = None
    reason: str | None = None
    power_source: str | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    max_sm_clock_mhz: int | None = None
    memory_bytes: int | None = None
    persistence: bool | None = None
    mig: str | None = None
    num_mps_processes: int | None = None
    ecc_corrected_errors: int | None = None
    ecc_uncorrected_errors: int | None = None


class DeviceAtStart(DeviceHeader, frozen=True, kw_only=True):
    """The GPU before anything of the run was on it, looked at for two seconds."""

    looked_for_s: float | None = None
    memory_used_bytes: int | None = None
    utilisation_ratio: float | None = None
    num_other_processes: int | None = None
    num_other_processes_reason: str | None = None
    idle_power_w: float | None = None
    idle_power_reason: str | None = None


class DeviceAtEnd(DeviceHeader, frozen=True, kw_only=True):
    """The GPU after the run, with the critical errors that the driver reported meanwhile."""

    xids: tuple[int, ...] = ()


class StudyHeader(Header, frozen=True, kw_only=True):
    """How the lock-step or the ladder ended."""

    status: str
    error: str | None = field(default_factory=written(None))
    reason: str | UnsetType | None = UNSET


class ModelHeader(Header, frozen=True, kw_only=True):
    """A model of the run and how it ended; ``exit_code`` 2: its input was bad."""

    name: str
    folder: str
    status: str = field(default_factory=written("started"))
    error: str | None = field(default_factory=written(None))
    exit_code: int | None = None
    reason: str | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.folder in ("", ".", "..") or "\0" in self.folder or Path(self.folder).name != self.folder:
            raise ValueError(f"folder {self.folder!r} is outside of the record")


class Resumption(Facts, frozen=True, kw_only=True):
    """One time that the run was gone on with, and the unfinished passes that were set aside."""

    at: str
    process: int
    set_aside: tuple[str, ...] = ()


class InstrumentsHeader(Header, frozen=True, kw_only=True):
    """What was watched, as far as readers ask."""

    routing: bool | None = None
    power: bool = True


class WorkloadHeader(Header, frozen=True, kw_only=True):
    """The resolved workload as far as readers of a record ask; :class:`moeprof.core.workload.workload.Workload` is it.

    A record keeps all of its keys, and one that this version would not run any more can still be read.
    """

    name: str | None = None
    label: str | None = None
    rounds: int | None = None
    launches: int | None = None
    max_minutes: float | None = None
    outputs: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    slo: dict[Literal["ttft_s", "tpot_s", "e2e_s"], float | None] | None = None
    instruments: InstrumentsHeader = InstrumentsHeader()
    claim: dict[str, Any] | None = None
    gates: GateSettings | None = None


class ExperimentHeader(Header, frozen=True, kw_only=True):
    """experiment.json.

    Attributes:
        format_version: of the whole record.
        status: ``started``, ``done``, ``failed`` or ``interrupted``.
        run: name of the folder.
        started_at, finished_at: UTC.
        workload: resolved, with all its keys; readers take ``Record.workload``.
        workload_text: the file as it was.
        environment: the machine.
        schedules: model -> what it was sent.
        fit: predicted memory.
        pricing: what an hour costs.
        content_kept: whether token ids stand in the schedules.
        device_why: why this device, where there was a choice.
        engine_why: why this kind of engine, where there was a choice.
        device_at_start, device_at_end, idle_power_w: of a GPU.
        resumed: once for each time the run was gone on with.
        lockstep, ladder: how they ended.
        notes: what readers should know.
        files: path -> bytes of what the run wrote, once it has ended; see whole.py.
        models: in the workload's order.
    """

    format_version: int = field(default_factory=written(FORMAT_VERSION))
    status: str = field(default_factory=written("started"))
    run: str | None = None
    started_at: str | None = None
    workload: dict[str, Any]
    workload_text: str | None = None
    environment: EnvironmentHeader
    schedules: dict[str, ScheduleHeader] = field(default_factory=dict)
    fit: FitHeader | None = None
    pricing: Pricing | None = None
    content_kept: bool | None = None
    device_why: str | None = field(default_factory=written(None))
    device_at_start: DeviceAtStart | None = field(default_factory=written(None))
    idle_power_w: float | None = field(default_factory=written(None))
    resumed: tuple[Resumption, ...] = ()
    lockstep: StudyHeader | None = None
    ladder: StudyHeader | None = None
    notes: tuple[str, ...] = ()
    engine_why: str | None = None
    device_at_end: DeviceAtEnd | UnsetType | None = UNSET
    finished_at: str | None = None
    files: dict[str, int] | None = None
    models: tuple[ModelHeader, ...]
