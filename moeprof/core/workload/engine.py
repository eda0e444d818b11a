"""What a workload's ``engine:`` says: which kind of engine, and how it runs. Each kind has settings of its own.

``engine: {kind: ...}`` names a row of ``moeprof.capture.engines.ENGINES``; the row names the class that reads and
checks the other keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from moeprof.core.errors import WorkloadError
from moeprof.core.workload.models import ModelSpec
from moeprof.core.yamlfile import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Several ranks run one model.

    In a workload: ``engine: {parallel: {plan: expert, ranks: 2}}``.

    Attributes:
        plan: ``tensor`` cuts every matrix, experts by width; ``expert`` gives each rank whole experts and cuts the rest
            as ``tensor`` does. The rules are those of transformers for the architecture.
        ranks: processes; on GPUs rank r takes device r.
    """

    plan: Literal["tensor", "expert"]
    ranks: int

    def __post_init__(self) -> None:
        if not 2 <= self.ranks <= 64:
            raise WorkloadError(f"ranks: found {self.ranks}; 2 to 64 is allowed (leave parallel out for one)")

    def check_alone(self, **settings: str) -> None:
        """Refuse engine settings that a shared model does not run with: key -> what the workload says."""
        for key, value in settings.items():
            if value not in ("auto", "off"):
                raise WorkloadError(f"{key}: found {value!r} beside parallel; ranks run eager steps, leave {key} out")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the house asks of the settings of any kind.

    Attributes:
        kind: the row of the table.
        in_worker: True where a worker loads the model by itself, so that its memory is predicted, and lock-step,
            ladder, twins and overridden routing can be had.
        is_local: False where the model runs on a server, whose devices are not looked at, metered, or priced as this
            machine's.
    """

    kind: str
    in_worker: ClassVar[bool] = False
    is_local: ClassVar[bool] = True

    def where(self, models: tuple[ModelSpec, ...]) -> str | None:
        """Addresses of the servers; None where a model runs on this machine."""
        return None

    def check_models(self, models: tuple[ModelSpec, ...]) -> None:
        """Refuse models that this kind cannot run, as far as it shows before anything is opened."""
        asked = next((spec.name for spec in models if spec.served_as is not None or spec.url is not None), None)
        if asked is not None:
            raise WorkloadError(
                f"model {asked}: served_as and url belong to a model on a server; set engine.kind to openai, or leave "
                "them out"
            )

    @property
    def devices(self) -> int | None:
        """Billed devices of a deployment that is elsewhere; None: not known."""
        return None

    @property
    def parallel(self) -> Parallel | None:
        """How several processes of ours share the model; None: they do not."""
        return None

    @property
    def compile(self) -> str:
        """What is compiled; a step may then take long."""
        return "off"

    @property
    def interpreter(self) -> Path | None:
        """The Python of the worker; None: this one's."""
        return None

    @property
    def num_devices(self) -> int:
        """Devices that a model takes, where no processes of ours share it."""
        return 1

    def sized(self, wanted_kv_tokens: int, device: str) -> Self:
        """With cache slots for all requests at once, where an engine that is not predicted must know them."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersSettings(EngineSettings):
    """How the engine of our own runs models of transformers.

    Attributes:
        kind: ``auto`` takes it as well.
        python: under ``auto``, an interpreter with vLLM to consider; the embedded engine itself runs under moeprof's.
        dtype: ``auto`` = the checkpoint's where the device computes in it, float32 elsewhere.
        max_batch_tokens: tokens in one step.
        experts: experts implementation of transformers, or ``auto``.
        kv_tokens: KV cache slots; None = what the schedule needs, bounded by memory. Equal for all models.
        prefix_cache: reuse the KV of shared prefixes (changes token counts).
        batching: ``continuous`` is our own loop over a paged cache, ``static`` knows whole batches only; ``auto``
            chooses by architecture.
        max_batch: sequences in a static batch.
        max_sequences: sequences in flight in a continuous batch.
        decode_graphs: capture decode steps once per batch size and replay them; ``auto`` = on a GPU.
        compile: ``layers`` applies torch.compile to the decoder layers.
        fuse: norms and rotations in one launch each, where a check on the device agrees; ``auto`` = on a GPU.
        run_ahead: launch a step while the one before still runs; ``auto`` = on a GPU where nothing forbids it.
        decode_attention: kernel of paged decode; ``auto`` takes the fastest that agrees with ``torch`` on the device.
        cpu_kernels: ``experts`` compiles our own kernel for the experts of a model on a CPU and runs with it; ``all``
            also those of norms, linear layers on few tokens, and attention in decode steps of the paged engine.
        memory_margin_ratio: share of the device's memory that stays free (fragmentation, libraries, neighbours).
        parallel: several processes, each with a device of its own, share the model; None: one holds it whole.
    """

    kind: Literal["auto", "transformers"] = "auto"
    in_worker: ClassVar[bool] = True
    python: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_batch_tokens: int = 512
    experts: str = "auto"
    kv_tokens: int | None = None
    prefix_cache: bool = False
    batching: Literal["auto", "continuous", "static"] = "auto"
    max_batch: int = 16
    max_sequences: int = 256
    decode_graphs: Literal["auto", "on", "off"] = "auto"
    compile: Literal["off", "layers"] = "off"
    fuse: Literal["auto", "off"] = "auto"
    run_ahead: Literal["auto", "on", "off"] = "auto"
    decode_attention: Literal["auto", "torch", "triton", "varlen"] = "auto"
    cpu_kernels: Literal["off", "experts", "all"] = "off"
    memory_margin_ratio: float = 0.05
    parallel: Parallel | None = None

    def __post_init__(self) -> None:
        at_least(16, max_batch_tokens=self.max_batch_tokens, kv_tokens=self.kv_tokens)
        at_least(1, max_batch=self.max_batch, max_sequences=self.max_sequences)
        if not 0 <= self.memory_margin_ratio < 0.5:
            found = self.memory_margin_ratio
            raise WorkloadError(f"memory_margin_ratio: found {found}; 0 up to, but not, 0.5 is allowed")
        if self.python is not None and self.kind != "auto":
            raise WorkloadError(
                "python: the embedded engine runs under moeprof's own; say kind: vllm or auto, or leave it"
            )
        if self.parallel is not None:
            self.parallel.check_alone(decode_graphs=self.decode_graphs, run_ahead=self.run_ahead, compile=self.compile)


def ours(settings: EngineSettings) -> TransformersSettings:
    """Settings of a model that a worker holds itself."""
    assert isinstance(settings, TransformersSettings)
    return settings


OWN_KINDS: dict[str, type[EngineSettings]] = {"auto": TransformersSettings, "transformers": TransformersSettings}
