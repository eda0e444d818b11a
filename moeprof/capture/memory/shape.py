"""What one model needs in memory, by part, estimated from its config alone before anything is loaded.

No torch: the parent predicts before any worker starts. Estimates lean to the large side; the worker measures the
activation peak on a GPU (kv_space.py) before it allocates the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moeprof.capture.devices.environment import cpu_flags
from moeprof.capture.models.shapes import (
    DTYPE_BYTES,
    Widths,
    kv_bytes_per_token,
    read_widths,
    stored_bytes,
    text_values,
)
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec


def activation_bytes(
    widths: Widths, *, tokens: int, logit_rows: int, width_bytes: int, match: str | None = None
) -> int:
    """Peak of one forward, each part as if it lived at once with the residual stream.

    Per token: the residual stream, its norm and two outputs (4 d); queries, keys and values twice, for the rotary
    embedding; in a layer of experts the gathered inputs, outputs and weighted outputs of k experts (3 k d) and their
    gate, up and product (3 k I), else 3 W of a dense MLP. Logits: the vocabulary in the dtype and in float32, per row.

    Args:
        widths: the model.
        tokens: of a step.
        logit_rows: rows of which logits are made.
        width_bytes: of an element.
        match: width of a dense twin of this model, or None.
    """
    keys = widths.kv_heads * (widths.key_dim + widths.value_dim)
    attention = 2 * (widths.heads * widths.key_dim + keys) + widths.heads * widths.value_dim
    if match is not None:
        mlp = 3 * widths.twin_units(match)
    elif widths.experts:
        mlp = 3 * widths.top_k * (widths.model_dim + widths.expert_units) + 3 * widths.shared_units
    else:
        mlp = 3 * widths.dense_units
    logits = logit_rows * widths.vocabulary * (width_bytes + 4)
    return tokens * (4 * widths.model_dim + attention + mlp) * width_bytes + logits


def load_extra_bytes(widths: Widths, width_bytes: int) -> int:
    """What loading a checkpoint holds beside the weights at its worst: experts become one tensor per layer.

    The files have a matrix per expert. Gates and ups of a layer are stacked, then joined: twice that tensor on top of
    the matrices that were read.
    """
    return 2 * 2 * widths.experts * widths.expert_units * widths.model_dim * width_bytes


MIB = 2**20
# A worker's resident set before it loads anything, where it could not be measured (capture/run/examine.py does).
HOST_BASE_BYTES = 700 * MIB
# Of a host: tables under way and events of recorders; what loading gave back and malloc keeps (it returns blocks over
# 32 MiB, of which two are under way at once); the parsed trace of profiled steps, per decoder layer.
RECORDER_BYTES = 20 * MIB
MOST_KEPT_BYTES = 64 * MIB
TRACE_BYTES_PER_LAYER = 20 * MIB
DEVICE_BASE_BYTES = 614 * MIB  # a CUDA context with its kernels, about 0.6 GiB
LIBRARY_WORKSPACE_BYTES = 64 * MIB  # of matrix products, twice the 32 MiB that torch gives cuBLAS on Hopper
UNKNOWN_ACTIVATION_BYTES = 256 * MIB  # for a config whose sizes are not understood


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Memory of the device, or of the host for a CPU run.

    Attributes:
        total_bytes: all of it.
        free_bytes: free before the run.
        is_host: True for a CPU run.
        is_limited: True where a container's limit binds, not the machine.
    """

    total_bytes: int
    free_bytes: int
    is_host: bool
    is_limited: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What one model needs, in bytes.

    Attributes:
        weights_bytes: on the device in its dtype; None when only loading will tell.
        load_extra_bytes: beside the weights while loading.
        kv_bytes_per_token: None for caches of another kind.
        activation_bytes: estimated peak of one step.
        workspace_bytes: captured steps and libraries.
        base_bytes: the process itself: libraries on a host, the context on a device.
        kept_bytes: of a host: what loading gave back and malloc keeps.
        instruments_bytes: of a host: recorders, and the trace of profiled steps.
        layers_to_cut: decoder layers of random weights, of which there may be fewer; 0 for a checkpoint.
    """

    weights_bytes: int | None
    load_extra_bytes: int
    kv_bytes_per_token: int | None
    activation_bytes: int
    workspace_bytes: int
    base_bytes: int
    kept_bytes: int = 0
    instruments_bytes: int = 0
    layers_to_cut: int = 0

    @property
    def beside_bytes(self) -> int:
        """All but weights and KV cache."""
        mine = self.activation_bytes + self.workspace_bytes + self.kept_bytes + self.instruments_bytes
        return self.base_bytes + mine

    @property
    def fixed_bytes(self) -> int:
        """All but the KV cache."""
        return (self.weights_bytes or 0) + self.beside_bytes

    def kv_bytes(self, kv_tokens: int) -> int:
        """The KV cache; 0 where bytes per token are unknown."""
        return kv_tokens * (self.kv_bytes_per_token or 0)

    def needed_bytes(self, kv_tokens: int) -> int | None:
        """The larger of loading and running; None when the weights are unknown."""
        if self.weights_bytes is None:
            return None
        loading = self.base_bytes + self.weights_bytes + self.load_extra_bytes
        return max(loading, self.fixed_bytes + self.kv_bytes(kv_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """What is known of the process of a CPU run.

    Attributes:
        base_bytes: resident before anything is loaded.
        file_bytes: of the weight files that it reads; 0 for random weights.
        profiles: steps will be profiled after the rounds.
    """

    base_bytes: int = HOST_BASE_BYTES
    file_bytes: int = 0
    profiles: bool = False


def _instruments_bytes(host: HostMemory, widths: Widths | None) -> int:
    layers = widths.layers if host.profiles and widths is not None else 0
    return RECORDER_BYTES + layers * TRACE_BYTES_PER_LAYER


def model_memory(
    spec: ModelSpec,
    config: dict[str, Any],
    weights_bytes: int | None,
    settings: TransformersSettings,
    *,
    is_host: bool,
    base: ModelSpec | None = None,
    host: HostMemory | None = None,
) -> ModelMemory:
    """What one model needs.

    Args:
        spec: the model.
        config: its config.json; that of the MoE for a twin.
        weights_bytes: of its weights, or None.
        settings: of the engine.
        is_host: True for a CPU run.
        base: for a twin, the spec of its MoE.
        host: of a CPU run, what is known of its process.
    """
    host = host or HostMemory()
    widths, element = read_widths(config), dtype_bytes(spec, config, settings, is_host=is_host, base=base)
    paged = is_paged(settings, is_host=is_host)
    tokens = settings.max_batch_tokens
    activations, extra, captured = UNKNOWN_ACTIVATION_BYTES, 0, 0
    if widths is not None:
        rows = min(tokens, settings.max_sequences) if paged else tokens
        size = {"width_bytes": element, "match": spec.match}
        activations = activation_bytes(widths, tokens=tokens, logit_rows=rows, **size)  # type: ignore[arg-type]
        if not is_host and settings.decode_graphs != "off":
            most = settings.max_sequences
            captured = activation_bytes(widths, tokens=most, logit_rows=most, **size)  # type: ignore[arg-type]
        reads_files = (base or spec).weights == "checkpoint" and (base is None or spec.initialise != "random")
        extra = load_extra_bytes(widths, element) if reads_files else 0
    return ModelMemory(
        weights_bytes=weights_bytes,
        load_extra_bytes=extra,
        kv_bytes_per_token=kv_bytes_per_token(config, width_bytes=element, paged=paged),
        activation_bytes=activations,
        workspace_bytes=captured + (0 if is_host else LIBRARY_WORKSPACE_BYTES),
        base_bytes=host.base_bytes if is_host else DEVICE_BASE_BYTES,
        kept_bytes=min(extra + host.file_bytes, MOST_KEPT_BYTES) if is_host else 0,
        instruments_bytes=_instruments_bytes(host, widths) if is_host else 0,
        layers_to_cut=widths.layers if widths is not None and (base or spec).weights == "random" else 0,
    )


def dtype_bytes(
    spec: ModelSpec,
    config: dict[str, Any],
    settings: TransformersSettings,
    *,
    is_host: bool,
    base: ModelSpec | None = None,
) -> int:
    """Bytes of an element in the dtype that the model will have; see ``loading.choose_dtype``."""
    asked = spec.dtype or (base.dtype if base is not None else None) or settings.dtype
    if asked != "auto":
        return DTYPE_BYTES[asked]
    text = text_values(config)
    own = next((str(c[key]) for c in (config, text) for key in ("dtype", "torch_dtype") if c.get(key)), "float32")
    if not is_host or own == "float32" or (own == "bfloat16" and "avx512_bf16" in cpu_flags()):
        return stored_bytes(config)
    return DTYPE_BYTES["float32"]  # a CPU without instructions for it computes in float32


def is_paged(settings: TransformersSettings, *, is_host: bool) -> bool:
    """Whether moeprof's own engine is expected to run: asked for, or chosen on a GPU."""
    return settings.batching == "continuous" or (settings.batching == "auto" and not is_host)
