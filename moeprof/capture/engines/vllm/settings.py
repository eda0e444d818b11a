"""What a workload says of vLLM: ``engine: {kind: vllm, max_num_seqs: 64}``. Names are vLLM's own. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from moeprof.core.errors import WorkloadError
from moeprof.core.workload.engine import EngineSettings, TransformersSettings
from moeprof.core.yamlfile import at_least

BLOCKS_WASTE = 4  # a quarter more slots than tokens, because the last block of each sequence is not full
SHARED = {  # key of the embedded engine -> the same thing in vLLM's words
    "dtype": "dtype", "max_batch_tokens": "max_num_batched_tokens", "max_sequences": "max_num_seqs",
    "kv_tokens": "kv_tokens", "prefix_cache": "prefix_cache", "python": "python",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings(EngineSettings):
    """How vLLM runs the models. What is None is left to vLLM, and the record says what it took.

    Attributes:
        kind: the row of the table.
        python: interpreter of an environment that has vLLM; None: the one that ``moeprof engine install vllm`` made.
        dtype: ``auto`` is the checkpoint's, as vLLM reads it.
        quantization: vLLM's name of a method, such as ``fp8``; None: what the checkpoint says.
        max_num_seqs: sequences in one step.
        max_num_batched_tokens: tokens in one step.
        chunked_prefill: cut long prompts over steps.
        tensor_parallel: ranks that share the model, each a process of vLLM's.
        enforce_eager: neither compile nor capture.
        kv_cache_dtype: for example ``fp8``.
        kv_tokens: KV cache slots. None: on a CPU what the schedule needs, on a GPU what vLLM finds room for.
        gpu_memory_utilization: share of a GPU's memory that vLLM takes.
        prefix_cache: reuse the KV of shared prefixes (changes token counts).
    """

    kind: Literal["vllm"] = "vllm"
    python: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    chunked_prefill: bool | None = None
    tensor_parallel: int = 1
    enforce_eager: bool = False
    kv_cache_dtype: str = "auto"
    kv_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    prefix_cache: bool = False

    def __post_init__(self) -> None:
        at_least(1, max_num_seqs=self.max_num_seqs, tensor_parallel=self.tensor_parallel)
        at_least(16, max_num_batched_tokens=self.max_num_batched_tokens, kv_tokens=self.kv_tokens)
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise WorkloadError(f"gpu_memory_utilization: found {share}; above 0 and up to 1 is allowed")

    @property
    def interpreter(self) -> Path | None:
        """The Python that the worker runs under, once it is known."""
        return None if self.python is None else Path(self.python)

    @property
    def compile(self) -> str:
        """The whole model, when it is loaded; a shape that was not met then may still compile in a step."""
        return "off" if self.enforce_eager else "model"

    @property
    def num_devices(self) -> int:
        """A device for each rank."""
        return self.tensor_parallel

    def sized(self, wanted_kv_tokens: int, device: str) -> VllmSettings:
        """With the cache that the schedules need, where vLLM has no device memory to look at."""
        if self.kv_tokens is not None or device != "cpu":
            return self
        return replace(self, kv_tokens=wanted_kv_tokens + wanted_kv_tokens // BLOCKS_WASTE)


def translated(settings: TransformersSettings) -> VllmSettings | str:
    """What ``kind: auto`` says in vLLM's words, or the first key that only the embedded engine has."""
    plain, said = TransformersSettings(), dict[str, Any]()
    for key in TransformersSettings.__dataclass_fields__:
        value = getattr(settings, key)
        if key == "kind" or value == getattr(plain, key):
            continue
        if key not in SHARED:
            return key
        said[SHARED[key]] = value
    return VllmSettings(**said)
