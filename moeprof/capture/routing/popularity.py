"""Popularity of experts for ``routing.policy: profile``: read from files that people have, fitted to a model.

JSON: a list [experts] or [layers, experts], the same below ``counts`` or ``expert_popularity``, or a list of one table
per layer from expert to count or to {token: count}. CSV: one row per layer and expert, with columns ``layer``,
``expert``, ``count``. A record: routing.npz, a pass, a launch or a model's folder. Any of JSON and CSV may end in .gz.
Numpy only. Suffix legend: L MoE layers of the model, F layers of the file, E experts.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.capture.models.shapes import LayerShape
from moeprof.core.errors import MoeprofError, WorkloadError
from moeprof.core.record.routing import Routing
from moeprof.core.workload.models import RoutingPolicy

NUMBERS = ("layer", "expert", "count")
DEFAULTS = {"kind": "expert_counts"}  # all k picks, where a file also counts first choices
ALL = "all"
ALLOWED = (
    "a JSON list [experts] or [layers, experts], a CSV file with columns layer, expert and count, or the routing.npz, "
    "a round or a model's folder of a record"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a file holds.

    Attributes:
        counts_FE: counts, or shares, of experts.
        words: which file, and which part of it.
        layers: which layers these are, where the file says so.
    """

    counts_FE: FloatArray
    words: str
    layers: tuple[int, ...] = ()


def read_counts(path: Path, select: Mapping[str, str]) -> Counts:
    """Read a file or folder.

    Args:
        path: what to read.
        select: for CSV: column to value; ``all`` adds up.

    Raises:
        WorkloadError: not there, not readable, or not one set of counts.
    """
    name = path.name.removesuffix(".gz")
    if select and not name.endswith(".csv"):
        raise WorkloadError(f"routing.select: {path} is no CSV file and has no columns to choose by; leave it out")
    try:
        if path.is_dir() or name.endswith(".npz"):
            return _of_record(path)
        if name.endswith(".csv"):
            return _of_csv(path, _text(path), select)
        return Counts(counts_FE=_of_json(json.loads(_text(path))), words=f"counts in {path.name}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WorkloadError(f"{path}: cannot be read as popularity counts ({what}); give {ALLOWED}") from error


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def _of_json(value: Any) -> FloatArray:
    if isinstance(value, dict):
        value = value["counts"] if "counts" in value else value["expert_popularity"]
    if value and isinstance(value[0], dict):
        value = [_row(table) for table in value]
    counts = np.array(value, dtype=np.float64)
    if counts.ndim not in (1, 2) or not counts.size:
        raise ValueError(f"a list of shape {list(counts.shape)}")
    return counts.reshape(-1, counts.shape[-1])


def _row(table: dict[str, Any]) -> list[float]:
    """One layer: expert to count, or to a table of counts per token; experts that are not named count 0."""
    counts = {int(expert): sum(n.values()) if isinstance(n, dict) else n for expert, n in table.items()}
    return [float(counts.get(expert, 0)) for expert in range(max(counts) + 1)]


def _of_csv(path: Path, text: str, select: Mapping[str, str]) -> Counts:
    reader = csv.DictReader(text.splitlines())
    rows, columns = list(reader), list(reader.fieldnames or ())
    missing = [name for name in NUMBERS if name not in columns]
    if missing or not rows:
        raise ValueError(f"column {missing[0]} is missing" if missing else "no rows")
    others = [name for name in columns if name not in NUMBERS]
    for name in select:
        if name not in others:
            raise WorkloadError(
                f"routing.select: found {name!r}; columns of {path.name} to choose by: {', '.join(others) or 'none'}"
            )
    chosen: dict[str, str] = {}
    for name in others:
        rows, value = _narrowed(path, rows, name, select.get(name))
        chosen[name] = value
    counts: dict[tuple[int, int], float] = {}
    for row in rows:
        key = int(row["layer"]), int(row["expert"])
        counts[key] = counts.get(key, 0.0) + float(row["count"])
    layers = sorted({layer for layer, _ in counts})
    counts_FE = np.zeros((len(layers), max(expert for _, expert in counts) + 1))
    for (layer, expert), number in counts.items():
        counts_FE[layers.index(layer), expert] = number
    part = ", ".join(f"{name} {value}" for name, value in chosen.items())
    return Counts(counts_FE=counts_FE, words=f"counts in {path.name} ({part})", layers=tuple(layers))


def _narrowed(
    path: Path, rows: list[dict[str, str]], name: str, wanted: str | None
) -> tuple[list[dict[str, str]], str]:
    """The rows with the wanted value of a column; without one the column must not leave a choice."""
    values = list(dict.fromkeys(row[name] for row in rows))
    if wanted is None:
        wanted = DEFAULTS.get(name) if DEFAULTS.get(name) in values else values[0] if len(values) == 1 else None
    if wanted == ALL and ALL not in values:
        return rows, "all added up"
    if wanted is None or wanted not in values:
        found = "holds several" if wanted is None else f"holds no {wanted!r}"
        raise WorkloadError(
            f"routing.select.{name}: {path.name} {found}; choose one of {', '.join(values)}, or `{ALL}` to add them up"
        )
    return [row for row in rows if row[name] == wanted], wanted


def _of_record(path: Path) -> Counts:
    """Counts of a file, or of all measured passes below a folder."""
    files = [path] if path.is_file() or path.suffix == ".npz" else sorted(_passes(path))
    if not files:
        raise ValueError("no routing.npz of a round in it")
    try:
        parts = [Routing.load(file).counts_WPCLE.sum(axis=(0, 1, 2)) for file in files]
    except MoeprofError as error:
        raise ValueError(str(error)) from error
    counts_FE = np.sum(parts, axis=0).astype(np.float64)
    rounds = f" ({len(files)} rounds of {path.name})" if path.is_dir() else ""
    return Counts(counts_FE=counts_FE, words=f"a record's own counts in {path}{rounds}")


def _passes(folder: Path) -> list[Path]:
    if (folder / "routing.npz").exists():
        return [folder / "routing.npz"]
    return [*folder.glob("round-*/routing.npz"), *folder.glob("launch-*/round-*/routing.npz")]


FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Popularity:
    """How often each expert is picked, relative to the others of its layer.

    Attributes:
        counts_LE: one row per MoE layer.
        words: where it comes from, and what was filled in.
    """

    counts_LE: FloatArray
    words: str


def load_popularity(policy: RoutingPolicy, shapes: Sequence[LayerShape]) -> Popularity:
    """Popularity of every MoE layer, from the file or folder that the policy names.

    One list of counts stands for every layer. Layers that the file lacks take those of the nearest layer that it has.

    Raises:
        WorkloadError: not readable, of other experts than the model, or with fewer than k experts in use.
    """
    path = Path(str(policy.path))
    found = read_counts(path, policy.select)
    experts = max(shape.num_experts for shape in shapes)
    if found.counts_FE.shape[1] != experts:
        raise WorkloadError(
            f"{path}: counts of shape {list(found.counts_FE.shape)} (layers, experts); this model has {experts} experts"
        )
    if not np.isfinite(found.counts_FE).all() or (found.counts_FE < 0).any():
        raise WorkloadError(f"{path}: popularity must be finite and not negative")
    layers = _layers(path, found, policy, len(shapes))
    nearest_L = np.array([min(range(len(layers)), key=lambda i: abs(layers[i] - n)) for n in range(len(shapes))])
    counts_LE = found.counts_FE[nearest_L]
    for number, (shape, row) in enumerate(zip(shapes, counts_LE, strict=True)):
        if (row[: shape.num_experts] > 0).sum() < shape.top_k:
            raise WorkloadError(
                f"{path}: MoE layer {number} picks {shape.top_k} experts but fewer have popularity above 0"
            )
    filled = "" if set(range(len(shapes))) == set(layers) else _filled(layers, len(shapes))
    return Popularity(counts_LE=counts_LE, words=found.words + filled)


def _filled(layers: Sequence[int], num_layers: int) -> str:
    if len(layers) == 1:
        return f"; one list of counts stands for all {num_layers} MoE layers"
    if set(range(num_layers)) < set(layers):
        return f"; the first {num_layers} of its {len(layers)} layers"
    known = ", ".join(map(str, layers))
    return f"; it knows layers {known}; each of the {num_layers} MoE layers takes the nearest of them"


def _layers(path: Path, found: Counts, policy: RoutingPolicy, num_layers: int) -> tuple[int, ...]:
    """Which MoE layers of the model the rows of the file stand for."""
    rows = len(found.counts_FE)
    layers = policy.layers or found.layers
    if not layers and (rows == 1 or rows >= num_layers):
        layers = tuple(range(rows))
    if not layers:
        raise WorkloadError(
            f"{path}: popularity of {rows} layers, of shape {list(found.counts_FE.shape)}; this model has {num_layers} "
            "MoE layers; say which of them these are with routing.layers, for example `layers: [0, 7, 15]`"
        )
    if len(layers) != rows or len(set(layers)) < rows:
        raise WorkloadError(
            f"routing.layers: found {len(layers)} numbers for {rows} layers of {path}; one each is needed"
        )
    if policy.layers and max(layers) >= num_layers:
        raise WorkloadError(
            f"routing.layers: found {max(layers)}; this model has {num_layers} MoE layers, 0 to {num_layers - 1}"
        )
    return layers


def routing_words(policy: RoutingPolicy, shapes: Sequence[LayerShape]) -> str | None:
    """One sentence for the record and the report, or None where the model routes itself (or is dense).

    Raises:
        WorkloadError: see :func:`load_popularity`.
    """
    if policy.policy == "native" or not shapes:
        return None
    how = {
        "balanced": "a round robin over the tokens of each forward",
        "concentrated": "every token goes to the first k experts",
        "zipf": f"drawn from popularity 1/rank^{policy.exponent:g}, ranks shuffled per layer, seed {policy.seed}",
        "replay": f"picks recorded in {policy.path}",
    }.get(policy.policy)
    if policy.policy == "profile":
        how = f"drawn from {load_popularity(policy, shapes).words}, seed {policy.seed}"
    if policy.policy in ("profile", "zipf"):
        kept = "keeps the experts of the token before it" if policy.correlation else "is drawn by itself"
        how = f"{how}; correlation {policy.correlation:g}: each token {kept}"
        if policy.correlation:
            how = f"{how} with that chance"
    return f"routing is not the model's own: policy {policy.policy}, {how}"
