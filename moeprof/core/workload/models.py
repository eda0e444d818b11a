"""One model of an experiment, as the workload names it: a checkpoint, random weights, or the dense twin of another.

A twin is the same network with every MoE block replaced by a dense MLP; docs/metrics.md#sparsity says what it is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from moeprof.core.errors import WorkloadError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MATCH = r"active|total|\d+|\d+(\.\d+)?x"
ONLY_TWINS = "belongs to a twin; add `twin_of: <name of the MoE model>`, or leave it out"
WIDTHS = "active, total, a width such as 768, or a multiple of the active width such as 2x"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPolicy:
    """How tokens are routed: the model's own router, or an override that every page of the report names.

    Attributes:
        policy: ``native`` or an override.
        path: popularity counts for ``profile``: a JSON list, a CSV file, a routing.npz, or a round's or a model's
            folder of a record; a pass of a record with ``picks`` for ``replay``.
        seed: of the drawn picks.
        exponent: of ``zipf``.
        select: of a CSV file, column to value, such as ``{model: olmoe, domain: c4}``.
        layers: which MoE layers the lists of a file stand for, where it has fewer than the model.
        correlation: chance that a token keeps the experts of the token before it (``profile`` and ``zipf``).
    """

    policy: Literal["native", "profile", "replay", "balanced", "concentrated", "zipf"] = "native"
    path: str | None = None
    seed: int = 0
    exponent: float = 1.0
    select: dict[str, str] = field(default_factory=dict, hash=False)
    layers: tuple[int, ...] = ()
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if self.policy == "profile" and self.path is None:
            raise WorkloadError("path: missing; routing policy profile needs a file of popularity counts")
        if self.policy != "profile" and (self.select or self.layers):
            key = "select" if self.select else "layers"
            raise WorkloadError(f"{key}: belongs to routing policy profile, whose file it is about; leave it out")
        if not 0 <= self.correlation < 1:
            raise WorkloadError(f"correlation: found {self.correlation:g}; 0 up to, but not, 1 is allowed")
        if self.correlation and self.policy not in ("profile", "zipf"):
            raise WorkloadError("correlation: belongs to routing policies profile and zipf; leave it out")
        if self.seed < 0:
            raise WorkloadError(f"seed: found {self.seed}; 0 or more is allowed")
        if any(layer < 0 for layer in self.layers):
            raise WorkloadError(f"layers: found {min(self.layers)}; 0 or more is allowed")
        if self.policy == "replay" and self.path is None:
            raise WorkloadError(
                "path: missing; routing policy replay needs a pass of a record made with --save-detailed "
                "(RUN/MODEL/launch-0/round-0)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of the experiment.

    Attributes:
        name: what reports call it; also its folder in the record.
        path: Hugging Face hub id or local folder.
        config: a named config (``moeprof params --list``) or a config.json, for random weights at true shapes.
        twin_of: name of the MoE model of this workload whose dense twin this is.
        match: width of a twin's MLPs: ``active`` (k experts and the shared ones), ``total`` (all of them), a width in
            units, or a multiple of the active width such as ``2x``.
        ladder: instead of ``match``, one twin per multiple of the active width, named ``<name>-<multiple>x``.
        initialise: weights of a twin's MLPs: ``random``, or ``popular_experts`` (the experts that the router uses
            most; for the active width only).
        weights: ``checkpoint`` or ``random``. A twin of a checkpoint has its weights outside of the MLPs; a twin of
            random weights draws its own.
        revision: hub revision.
        dtype: overrides ``engine.dtype`` for this model.
        routing: routing policy.
        override: for random weights, keys of the config with other values, such as ``{num_hidden_layers: 8}``.
        trust_remote_code: run code that comes with the checkpoint.
        served_as: what a server calls it (``engine.kind: openai``); not stated: the only model that it has.
        url: address of a server of its own, in place of ``engine.url``.
    """

    name: str
    path: str | None = None
    config: str | None = None
    twin_of: str | None = None
    match: str | None = None
    ladder: tuple[float, ...] = ()
    initialise: Literal["random", "popular_experts"] = "random"
    weights: Literal["checkpoint", "random"] = "checkpoint"
    revision: str | None = None
    dtype: Dtype | None = None
    routing: RoutingPolicy = field(default_factory=RoutingPolicy)
    override: dict[str, Any] = field(default_factory=dict, hash=False)
    trust_remote_code: bool = False
    served_as: str | None = None
    url: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise WorkloadError(f"name: found {self.name!r}; letters, digits, '.', '_' and '-' are allowed, 64 at most")
        if sum(given is not None for given in (self.path, self.config, self.twin_of)) != 1:
            raise WorkloadError(
                "give path (a checkpoint), config (random weights) or twin_of (a dense twin), one of them"
            )
        if self.config is not None and self.weights == "checkpoint":
            raise WorkloadError("weights: a model given by config has no checkpoint; say `weights: random`")
        if self.override and (self.twin_of is not None or self.weights == "checkpoint"):
            raise WorkloadError(
                "override: belongs to a model of random weights (a checkpoint is what it is, a twin follows its MoE); "
                "say `weights: random`, or leave it out"
            )
        if self.twin_of is None:
            self._is_no_twin()
        else:
            self._is_twin()

    def _is_no_twin(self) -> None:
        for key, value in (("match", self.match), ("ladder", self.ladder or None)):
            if value is not None:
                raise WorkloadError(f"{key}: {ONLY_TWINS}")
        if self.initialise != "random":
            raise WorkloadError(f"initialise: {ONLY_TWINS}")

    def _is_twin(self) -> None:
        if self.match is not None and self.ladder:
            raise WorkloadError("ladder: beside match; give one of them, a ladder is one twin per multiple")
        if self.match is None and not self.ladder:
            raise WorkloadError(
                f"match: missing; say how wide the twin is: {WIDTHS}; or give ladder, a list of such multiples"
            )
        if self.match is not None and not re.fullmatch(MATCH, self.match):
            raise WorkloadError(f"match: found {self.match!r}; allowed: {WIDTHS}")
        if self.match is not None and re.fullmatch(r"0+|0+(\.0+)?x", self.match):
            raise WorkloadError(f"match: found {self.match!r}; more than 0 is allowed")
        for ratio in self.ladder:
            if not 0 < ratio < 1e6:
                raise WorkloadError(f"ladder: found {ratio:g}; more than 0 is allowed")
        if len(set(self.ladder)) != len(self.ladder):
            raise WorkloadError("ladder: a multiple stands twice; each needs to stand once")
        if self.ladder and len(self.ladder) < 3:
            raise WorkloadError(
                f"ladder: found {len(self.ladder)} multiples; 3 or more are needed, because the size that an MoE "
                "equals is read off a curve through them; for single twins give match"
            )
        if self.initialise == "popular_experts" and self.match != "active":
            raise WorkloadError("initialise: popular_experts needs `match: active`, the width of the experts it takes")
        if self.routing.policy != "native":
            raise WorkloadError("routing: a dense twin has no router; leave it out")


def expand(models: tuple[ModelSpec, ...]) -> tuple[ModelSpec, ...]:
    """The models with each ``ladder`` written out as one twin per size.

    Raises:
        WorkloadError: ``twin_of`` names no model, or a twin.
    """
    by_name = {spec.name: spec for spec in models}
    found: list[ModelSpec] = []
    for spec in models:
        if spec.twin_of is not None:
            of = by_name.get(spec.twin_of)
            if of is None or of.twin_of is not None:
                moes = ", ".join(other.name for other in models if other.twin_of is None) or "none"
                what = "no model of this workload" if of is None else "itself a twin"
                raise WorkloadError(f"models: twin_of {spec.twin_of!r} of {spec.name} is {what}; allowed: {moes}")
        found += [_rung(spec, ratio) for ratio in spec.ladder] or [spec]
    return tuple(found)


def _rung(spec: ModelSpec, ratio: float) -> ModelSpec:
    changes: dict[str, Any] = {"name": f"{spec.name}-{ratio:g}x", "match": f"{ratio:g}x", "ladder": ()}
    return replace(spec, **changes)
