"""Open a model with vLLM, in the worker: vLLM's settings from the workload's, its engine, what it is, what it shows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moeprof.capture.engines.base import EngineFacts, ListenerSet
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.engines.end_ids import end_ids
from moeprof.capture.engines.vllm.engine import VllmEngine
from moeprof.capture.engines.vllm.inside import Inside
from moeprof.capture.engines.vllm.plugin import TAP, register
from moeprof.capture.engines.vllm.runner import METHODS, Here, Ranks, Runner
from moeprof.capture.engines.vllm.settings import VllmSettings
from moeprof.capture.engines.vllm.versions import check_version, version_note
from moeprof.capture.memory.measure import Watch
from moeprof.capture.models.find import ModelSource, find_model
from moeprof.capture.models.meta import facts_elsewhere
from moeprof.capture.models.shapes import TOP_K_KEYS
from moeprof.core.errors import EngineError, MoeprofError
from moeprof.core.model_facts import ModelFacts
from moeprof.core.trace import Schedule
from moeprof.core.workload.models import ModelSpec

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core is stepped in this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads are the workload's
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ROOM = 2  # the cache is given in blocks; vLLM also wants to see so much memory for it, in bytes


def open(
    spec: ModelSpec,
    settings: VllmSettings,
    device: torch.device,
    *,
    base: ModelSpec | None = None,
    warmup: Schedule | None = None,
    before_weights: Callable[[], None] = lambda: None,
) -> Deployment:
    """Load ``spec`` into vLLM.

    Raises:
        EngineError: vLLM cannot run it like this; its own first line.
    """
    os.environ.update(ENVIRONMENT)
    os.environ |= {TAP: "1"} if device.type == "cpu" else {"VLLM_USE_V2_MODEL_RUNNER": "1"}
    import vllm

    check_version(vllm.__version__, "this environment")
    register()  # vLLM does so too, from the entry point, in each process that it starts
    source, memory = find_model(spec, base), Watch(device)
    before_weights()
    memory.forget_peak()
    started_s = time.perf_counter()
    try:
        engine = _start(spec, settings, source, device)
    except MoeprofError:
        raise
    except Exception as error:  # whatever a model or a setting makes vLLM raise
        raise EngineError(f"model {spec.name}: vLLM {vllm.__version__} cannot open it: {_first(error)}") from error
    memory.loaded()
    runner = _runner(engine, is_cpu=device.type == "cpu")
    return deployment(
        spec,
        settings,
        Inside(engine, runner, _sampling(settings, runner.facts.runs_v2)),
        device,
        version=vllm.__version__,
        launch={"load_s": time.perf_counter() - started_s},
        memory=memory if settings.tensor_parallel == 1 else None,
        stop_ids=end_ids(spec, source) if warmup is not None and warmup.outputs == "free" else None,
    )


def _runner(engine: Any, *, is_cpu: bool) -> Runner:
    """The model's runner, in this process or on ranks of vLLM's."""
    executor = engine.engine_core.engine_core.model_executor
    if hasattr(executor, "driver_worker"):
        return Here(executor.driver_worker.worker.model_runner, is_cpu=is_cpu)
    return Ranks(executor.collective_rpc, is_cpu=is_cpu)


def deployment(
    spec: ModelSpec,
    settings: VllmSettings,
    inside: Inside,
    device: torch.device,
    *,
    version: str,
    launch: dict[str, Any],
    memory: Watch | None,
    stop_ids: Sequence[int] | None = None,
) -> Deployment:
    """A loaded vLLM as the worker wants it.

    Args:
        spec: the model.
        settings: of the workload.
        inside: vLLM.
        device: of the run.
        version: of vLLM.
        launch: what launch.json says of loading.
        memory: watches this process, where the model is in it.
        stop_ids: that end outputs which may end early; None: none may.
    """
    engine, runner = inside.engine, inside.runner.facts
    facts = _facts(inside, settings, device, version)

    def build(settings: VllmSettings, listeners: ListenerSet, *, in_turn: bool = False) -> VllmEngine:
        return VllmEngine(inside, facts, listeners, stop_ids or (), close=engine.engine_core.shutdown)

    def describe(tokenizer_hash: str | None, overridden: str | None) -> ModelFacts:
        return facts_elsewhere(spec, tokenizer_hash, facts.dtype)

    told = {
        "dtype_reason": "as vLLM reads the checkpoint" if settings.dtype == "auto" else "asked for",
        "taken": {**taken(engine.vllm_config), "weights_bytes": runner.weights_bytes},
    } | ({} if stop_ids is None else {"end_ids": tuple(stop_ids)})
    reasons = {
        "module": "vLLM runs the model, with kernels and layers of its own",
        "memory": "the model is in processes of vLLM's own, one a rank",
    } | ({} if runner.no_picks is None else {"routing": runner.no_picks})
    return Deployment(
        build=build,
        describe=describe,
        launch=launch | told,
        memory=memory,
        shown=None if runner.picks is None else inside,
        has_router=bool(runner.layers),
        reasons=reasons,
    )


def _start(spec: ModelSpec, settings: VllmSettings, source: ModelSource, device: torch.device) -> Any:
    """The engine, loaded and compiled."""
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    config = EngineArgs(**engine_args(spec, settings, source, device)).create_engine_config()
    if settings.kv_tokens is not None:
        _size_cache(config, settings.kv_tokens)
    return LLMEngine.from_vllm_config(config, disable_log_stats=True)


def engine_args(spec: ModelSpec, settings: VllmSettings, source: ModelSource, device: torch.device) -> dict[str, Any]:
    """The workload's words in those of ``EngineArgs``; what is left to vLLM is left out."""
    limit = _position_limit(source)
    longest = min((n for n in (limit, settings.kv_tokens) if n is not None), default=None)
    asked = {
        "max_model_len": longest,
        "revision": spec.revision,
        "quantization": settings.quantization,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "enable_chunked_prefill": settings.chunked_prefill,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
    }
    args = {key: value for key, value in asked.items() if value is not None} | {
        "model": str(source.folder) if source.folder is not None else spec.path,
        "dtype": spec.dtype or settings.dtype,
        "trust_remote_code": spec.trust_remote_code,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": settings.enforce_eager,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "enable_prefix_caching": settings.prefix_cache,
        "skip_tokenizer_init": True,
        "async_scheduling": False,  # each step tells of its own forward
        "additional_config": {"moeprof": "expert ids"},  # part of the key of what is compiled and cached
    }
    if settings.tensor_parallel > 1:
        args |= {"distributed_executor_backend": "mp", "worker_extension_cls": METHODS}
    if device.type == "cuda":
        # No GPU has run this: the second runner forces ids on the device, and vLLM's own capturer keeps the picks. That
        # wants its cache of prefixes; where the workload wants none, requests do not read it (see ``_sampling``).
        args |= {"enable_trace_replay": True}
        if any(key in source.config for key in TOP_K_KEYS):
            args |= {"enable_return_routed_experts": True, "enable_prefix_caching": True}
    return args


def _sampling(settings: VllmSettings, runs_v2: bool) -> Callable[..., Any]:
    """What makes ``SamplingParams``. The first runner's tokens are seen at the sampler, so only ends are told."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    kind = RequestOutputKind.DELTA if runs_v2 else RequestOutputKind.FINAL_ONLY
    skip = {} if settings.prefix_cache else {"skip_reading_prefix_cache": True}
    return partial(SamplingParams, output_kind=kind, **skip)


def _size_cache(config: Any, kv_tokens: int) -> None:
    """So many token slots in whole blocks, one more for vLLM's placeholder."""
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    cache.num_gpu_blocks_override = -(-kv_tokens // cache.block_size) + 1
    per_token = 2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
    slots = cache.num_gpu_blocks_override * cache.block_size
    cache.kv_cache_memory_bytes = ROOM * slots * per_token * torch.empty(0, dtype=model.dtype).element_size()


def _position_limit(source: ModelSource) -> int | None:
    text = source.config.get("text_config")
    for values in (source.config, text if isinstance(text, dict) else {}):
        limit = values.get("max_position_embeddings")
        if isinstance(limit, int):
            return limit
    return None


def _facts(inside: Inside, settings: VllmSettings, device: torch.device, version: str) -> EngineFacts:
    config, runner = inside.engine.vllm_config, inside.runner.facts
    graphs = device.type == "cuda" and not settings.enforce_eager
    forced = "on the device" if runner.runs_v2 else "by writing over what was sampled"
    notes = [
        f"vLLM {version}",
        version_note(version),
        None if device.type == "cpu" else "no GPU has run this engine",
        f"KV use is counted in blocks of {inside.block_tokens} tokens; outputs are forced {forced}",
        runner.picks and f"routing: {runner.picks}",
    ]
    return EngineFacts(
        kind="vllm",
        batching="continuous",
        attention=runner.attention,
        experts=runner.experts,
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        device=str(device),
        kv_tokens=inside.kv_slots,
        kv_bytes=runner.kv_bytes,
        max_batch_tokens=int(config.scheduler_config.max_num_batched_tokens),
        max_sequence_tokens=min(int(config.model_config.max_model_len), inside.kv_slots),
        notes=tuple(note for note in notes if note is not None),
        scheduler="vllm",
        decode="graph" if graphs else "eager",
        compiled=None if settings.enforce_eager else "model",
        ranks=settings.tensor_parallel,
        parallel="tensor" if settings.tensor_parallel > 1 else None,
    )


def taken(config: Any) -> dict[str, Any]:
    """What vLLM made of the settings, those that were left to it included; for launch.json."""
    scheduler, cache, model = config.scheduler_config, config.cache_config, config.model_config
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization and str(model.quantization),
        "max_model_len": model.max_model_len,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "chunked_prefill": bool(scheduler.enable_chunked_prefill),
        "async_scheduling": bool(scheduler.async_scheduling),
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "enforce_eager": bool(model.enforce_eager),
        "compilation_mode": str(getattr(config.compilation_config.mode, "name", config.compilation_config.mode)),
        "kv_cache_dtype": str(cache.cache_dtype),
        "block_size": cache.block_size,
        "num_blocks": cache.num_gpu_blocks,
        "prefix_cache": bool(cache.enable_prefix_caching),
    }


def _first(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if not line.endswith("validation error for VllmConfig")), type(error).__name__)
    return text.replace(str(Path.home()), "~")
