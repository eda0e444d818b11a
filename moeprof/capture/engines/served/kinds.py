"""Which servers there are: the table of kinds. What a kind promises is tried before it is used (trial.py).

``checked`` says how a row is known: ``run`` (against a server of it), ``source`` (read there), or ``documentation``
(theirs, nothing of it was run). A server of no known kind is ``generic``: everything is tried.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a server said when it was looked at. Paths start at its root; a value is JSON, or text, of status 200.

    Attributes:
        said: path -> answer.
        server: the header ``Server``.
    """

    said: Mapping[str, Any]
    server: str = ""

    def key(self, path: str, key: str) -> Any:
        """A key of an answer that is a JSON object; None where there is none."""
        found = self.said.get(path)
        return found.get(key) if isinstance(found, dict) else None

    @property
    def metrics(self) -> str:
        """The text of its counters."""
        found = self.said.get("/metrics")
        return found if isinstance(found, str) else ""

    @property
    def owners(self) -> set[str]:
        """``owned_by`` of its models."""
        listed = self.key("/v1/models", "data")
        rows = listed if isinstance(listed, list) else []
        return {str(row["owned_by"]) for row in rows if isinstance(row, dict) and row.get("owned_by")}


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLength:
    """How a server is made to go on to the length that was asked for.

    Attributes:
        name: what it is called.
        fields: of the body, from the number of tokens.
    """

    name: str
    fields: Callable[[int], dict[str, Any]]


IGNORE_AND_LEAST = FixedLength(name="ignore_eos, min_tokens", fields=lambda n: {"ignore_eos": True, "min_tokens": n})
IGNORE = FixedLength(name="ignore_eos", fields=lambda n: {"ignore_eos": True})
NO_END_ID = FixedLength(
    name="generation_config without end ids",
    fields=lambda n: {"generation_config": json.dumps({"eos_token_id": None})},
)
EVERY_LENGTH = (IGNORE_AND_LEAST, IGNORE, NO_END_ID)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKind:
    """A row.

    Attributes:
        name: in the record.
        title: for people.
        checked: how the row is known.
        looks_like: whether these answers are its.
        version: of it, or None where it does not tell.
        fixed_length: ways to a fixed length, best first.
        counters: what its counters are called: our name -> its (see counters.py).
        routing: why its routing is not visible here.
    """

    name: str
    title: str
    checked: Literal["run", "source", "documentation"]
    looks_like: Callable[[Answers], bool]
    version: Callable[[Answers], Any] = lambda answers: None
    fixed_length: tuple[FixedLength, ...] = EVERY_LENGTH
    counters: Mapping[str, str] = field(default_factory=dict)
    routing: str = "routing not visible: the server's API does not return it"


# Histograms are named without _sum and _count.
VLLM = {
    "input_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
    "queue": "vllm:request_queue_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "decode": "vllm:request_decode_time_seconds",
    "step_tokens": "vllm:iteration_tokens_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_use": "vllm:kv_cache_usage_perc",
}
SGLANG = {
    "input_tokens": "sglang:prompt_tokens_total",
    "output_tokens": "sglang:generation_tokens_total",
    "prefix_hits": "sglang:cached_tokens_total",
    "queue": "sglang:queue_time_seconds",
    "running": "sglang:num_running_reqs",
    "waiting": "sglang:num_queue_reqs",
    "kv_use": "sglang:token_usage",
}
LLAMA_CPP = {
    "input_tokens": "llamacpp:prompt_tokens_total",
    "output_tokens": "llamacpp:tokens_predicted_total",
    "prefill_s": "llamacpp:prompt_seconds_total",
    "decode_s": "llamacpp:tokens_predicted_seconds_total",
    "running": "llamacpp:requests_processing",
    "waiting": "llamacpp:requests_deferred",
    "kv_use": "llamacpp:kv_cache_usage_ratio",
}
RAY = {ours: theirs.replace("vllm:", "ray_vllm_") for ours, theirs in VLLM.items()}
DYNAMO = {
    "output_tokens": "dynamo_frontend_output_sequence_tokens_sum",
    "input_tokens": "dynamo_frontend_input_sequence_tokens_sum",
    "running": "dynamo_frontend_inflight_requests",
    "waiting": "dynamo_frontend_queued_requests",
}
VISIBLE_ONLY_ELSEWHERE = (
    "routing not visible: a stream carries none; where you own the server, engine.kind vllm runs the model with its "
    "router in view"
)

# The first that fits is taken: routers in front of an engine answer much as the engine does, so they come first.
KINDS: tuple[ServerKind, ...] = (
    ServerKind(
        name="dynamo", title="NVIDIA Dynamo", checked="documentation",
        looks_like=lambda a: "dynamo_" in a.metrics or a.key("/health", "instances") is not None,
        counters=DYNAMO,
    ),
    ServerKind(
        name="litellm", title="LiteLLM proxy", checked="documentation",
        looks_like=lambda a: a.key("/health/readiness", "litellm_version") is not None or "litellm_" in a.metrics,
        version=lambda a: a.key("/health/readiness", "litellm_version"),
        routing="routing not visible: a proxy hands on text",
    ),
    ServerKind(
        name="ray", title="Ray Serve LLM", checked="source",
        looks_like=lambda a: "ray_vllm_" in a.metrics or isinstance(a.said.get("/-/healthz"), str),
        counters=RAY, routing=VISIBLE_ONLY_ELSEWHERE,
    ),
    ServerKind(
        name="sglang", title="SGLang", checked="source",
        looks_like=lambda a: "sglang" in a.owners or "sglang:" in a.metrics
        or a.key("/server_info", "schedule_policy") is not None,
        version=lambda a: a.key("/server_info", "version"),
        counters=SGLANG, routing=VISIBLE_ONLY_ELSEWHERE,
    ),
    ServerKind(
        name="vllm", title="vLLM", checked="run",
        looks_like=lambda a: "vllm" in a.owners or "vllm:" in a.metrics,
        version=lambda a: a.key("/version", "version"),
        counters=VLLM, routing=VISIBLE_ONLY_ELSEWHERE,
    ),
    ServerKind(
        name="llama.cpp", title="llama.cpp server", checked="documentation",
        looks_like=lambda a: "llamacpp" in a.owners or "llamacpp:" in a.metrics
        or a.key("/props", "default_generation_settings") is not None or "llama.cpp" in a.server,
        version=lambda a: a.key("/props", "build_info"),
        fixed_length=(IGNORE,), counters=LLAMA_CPP,
    ),
    ServerKind(
        name="tensorrt-llm", title="TensorRT-LLM", checked="documentation",
        looks_like=lambda a: "tensorrt_llm" in a.owners or "trtllm_" in a.metrics,
        version=lambda a: a.key("/version", "version"),
        fixed_length=(IGNORE_AND_LEAST, IGNORE),
    ),
    ServerKind(
        name="transformers", title="transformers serve", checked="run",
        looks_like=lambda a: a.said.get("/health") == {"status": "ok"} and "/version" not in a.said,
        fixed_length=(NO_END_ID,),
    ),
)  # fmt: skip
GENERIC = ServerKind(
    name="generic", title="OpenAI-compatible server", checked="documentation", looks_like=lambda answers: True
)
PATHS = (
    "/v1/models", "/version", "/server_info", "/metrics", "/props", "/health", "/health/readiness", "/-/healthz",
)  # fmt: skip


def kind_of(answers: Answers) -> ServerKind:
    """The row that these answers fit."""
    return next((kind for kind in KINDS if kind.looks_like(answers)), GENERIC)
