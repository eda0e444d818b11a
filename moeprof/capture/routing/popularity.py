"""Popularity of experts for ``routing.policy: profile``: read from files that people have, fitted to a model.

JSON: a list [experts] or [layers, experts], the same below ``counts`` or ``expert_popularity``, or a list of one table
per layer from expert to count or to {token: count}. CSV: one row per layer and expert, with columns ``layer``,
``expert``, ``count``, or as a recorder calls them (``COLUMNS``). A record: routing.npz, a pass, a launch or a model's
folder. Any of JSON and CSV may end in .gz. Numpy only.

Layers are counted as the model does, dense ones included: layer 1 of DeepSeek-V2 is its first with experts. A file that
has counts for a layer without experts counts the MoE layers alone. An expert that a file names nowhere was never picked
and counts 0; a list of counts must have one for each expert.
 Suffix legend: L MoE layers of the model, F layers of the file, E experts.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.capture.models.shapes import LayerShape, layer_number
from moeprof.core.errors import MoeprofError, WorkloadError
from moeprof.core.files import MOST_TEXT_BYTES, UnreadableError, parse_json, read_bytes, unpacked
from moeprof.core.record.routing import Routing
from moeprof.core.workload.models import RoutingPolicy

# What a column may be called: the first of each, or as recorders of serving engines write it.
COLUMNS = {
    "layer": ("layer", "layer_id", "layer_idx", "layer_index"),
    "expert": ("expert", "expert_id", "expert_idx", "expert_index"),
    "count": ("count", "counts", "num_tokens", "token_count"),
}
DEFAULTS = {"kind": "expert_counts"}  # all k picks, where a file also counts first choices
ALL = "all"
MOST_EXPERTS, MOST_COUNTS = 2**16, 2**22  # in one layer, and of all layers together
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
        by_id: experts are named one by one, so that those that are not there count 0.
    """

    counts_FE: FloatArray
    words: str
    layers: tuple[int, ...] = ()
    by_id: bool = False


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
        counts_FE, by_id = _of_json(parse_json(path, _text(path)))
        return Counts(counts_FE=counts_FE, words=f"counts in {path.name}", by_id=by_id)
    except (UnreadableError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        what = error.why if isinstance(error, UnreadableError) else f"{type(error).__name__}: {error}".splitlines()[0]
        raise WorkloadError(f"{path}: cannot be read as popularity counts ({what}); give {ALLOWED}") from error


def _text(path: Path) -> str:
    data = read_bytes(path, MOST_TEXT_BYTES)
    if path.suffix == ".gz":
        with gzip.open(io.BytesIO(data)) as stream:
            data = unpacked(path, len(data), stream, "gzip")
    return data.decode("utf-8")


def _of_json(value: Any) -> tuple[FloatArray, bool]:
    """Counts [F, E], and whether the file names its experts one by one."""
    if isinstance(value, dict):
        value = value["counts"] if "counts" in value else value["expert_popularity"]
    by_id = bool(value) and isinstance(value[0], dict)
    if by_id:
        tables = [_by_number(table) for table in value]
        width = _width(len(tables), max(map(max, tables)))
        value = [[float(table.get(expert, 0)) for expert in range(width)] for table in tables]
    counts = np.array(value, dtype=np.float64)
    if counts.ndim not in (1, 2) or not counts.size:
        raise ValueError(f"a list of shape {list(counts.shape)}")
    return counts.reshape(-1, counts.shape[-1]), by_id


def _by_number(table: dict[str, Any]) -> dict[int, Any]:
    """One layer: expert to count, or to a table of counts per token; experts that are not named count 0."""
    return {int(expert): sum(n.values()) if isinstance(n, dict) else n for expert, n in table.items()}


def _width(layers: int, expert: int) -> int:
    """Experts of a layer, where the last one that is named has this number; before a row is made for all below it."""
    if not 0 <= expert < MOST_EXPERTS or layers * (expert + 1) > MOST_COUNTS:
        raise ValueError(f"{layers:,} layers with an expert {expert}; no model has as many")
    return expert + 1


def _of_csv(path: Path, text: str, select: Mapping[str, str]) -> Counts:
    reader = csv.DictReader(text.splitlines())
    rows, columns = list(reader), list(reader.fieldnames or ())
    own = {name: next((known for known in allowed if known in columns), None) for name, allowed in COLUMNS.items()}
    missing = next((name for name, column in own.items() if column is None), None)
    if missing is not None or not rows:
        raise ValueError("no rows" if missing is None else f"column {missing} is missing")
    others = [name for name in columns if name not in own.values()]
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
        layer, expert, number = (row[str(own[name])] for name in COLUMNS)
        if int(layer) < 0 or int(expert) < 0:
            raise ValueError(f"layer {layer}, expert {expert}: numbers count from 0")
        key = int(layer), int(expert)
        counts[key] = counts.get(key, 0.0) + float(number)
    layers = sorted({layer for layer, _ in counts})
    counts_FE = np.zeros((len(layers), _width(len(layers), max(expert for _, expert in counts))))
    row_of = {layer: row for row, layer in enumerate(layers)}
    for (of_layer, of_expert), total in counts.items():
        counts_FE[row_of[of_layer], of_expert] = total
    part = ", ".join(f"{name} {value}" for name, value in chosen.items())
    words = f"counts in {path.name} ({part})" if part else f"counts in {path.name}"
    return Counts(counts_FE=counts_FE, words=words, layers=tuple(layers), by_id=True)


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
        loaded = [Routing.load(file) for file in files]
    except MoeprofError as error:
        raise ValueError(str(error)) from error
    parts = [routing.counts_WPCLE.sum(axis=(0, 1, 2)) for routing in loaded]
    numbers = [layer_number(name) for name in loaded[0].layer_names]
    layers = tuple(number for number in numbers if number is not None)
    layers = layers if len(set(layers)) == len(numbers) else ()
    counts_FE = np.sum(parts, axis=0).astype(np.float64)
    rounds = f" ({len(files)} rounds of {path.name})" if path.is_dir() else ""
    return Counts(counts_FE=counts_FE, words=f"a record's own counts in {path}{rounds}", layers=layers)


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
    See the top of this file for how layers and experts are counted.

    Raises:
        WorkloadError: not readable, of other experts than the model, or with fewer than k experts in use.
    """
    path = Path(str(policy.path))
    found = _all_experts(path, read_counts(path, policy.select), max(shape.num_experts for shape in shapes))
    if not np.isfinite(found.counts_FE).all() or (found.counts_FE < 0).any():
        raise WorkloadError(f"{path}: popularity must be finite and not negative")
    layers, numbers = _layers(path, found, policy, numbers_of(shapes))
    nearest_L = np.array([min(range(len(layers)), key=lambda i: abs(layers[i] - n)) for n in numbers])
    counts_LE = found.counts_FE[nearest_L]
    for number, shape, row in zip(numbers_of(shapes), shapes, counts_LE, strict=True):
        if (row[: shape.num_experts] > 0).sum() < shape.top_k:
            raise WorkloadError(f"{path}: layer {number} picks {shape.top_k} experts but fewer have popularity above 0")
    return Popularity(counts_LE=counts_LE, words=found.words + _filled(layers, numbers))


def numbers_of(shapes: Sequence[LayerShape]) -> tuple[int, ...]:
    """How the model counts its MoE layers, dense ones included; 0, 1, 2 ... where their names do not tell."""
    numbers = [shape.number for shape in shapes if shape.number is not None]
    return tuple(numbers) if len(set(numbers)) == len(shapes) else tuple(range(len(shapes)))


def _all_experts(path: Path, found: Counts, experts: int) -> Counts:
    """Counts of every expert of the model: those that a file of named experts lacks count 0, and it is said.

    Raises:
        WorkloadError: the file is of more experts, or is a list of fewer.
    """
    known = found.counts_FE.shape[1]
    if known > experts or (known < experts and not found.by_id):
        raise WorkloadError(
            f"{path}: counts of shape {list(found.counts_FE.shape)} (layers, experts); this model has {experts} experts"
        )
    if known == experts:
        return found
    which = f"expert {known} is" if experts == known + 1 else f"experts {known} to {experts - 1} are"
    counts_FE = np.pad(found.counts_FE, ((0, 0), (0, experts - known)))
    return replace(found, counts_FE=counts_FE, words=f"{found.words}, where {which} not named and count 0")


def _filled(layers: Sequence[int], numbers: Sequence[int]) -> str:
    if len(layers) == 1:
        return f"; one list of counts stands for all {len(numbers)} MoE layers"
    if set(numbers) == set(layers):
        return ""
    if set(numbers) < set(layers):
        return f"; {len(numbers)} of its {len(layers)} layers, those that this model has"
    known = ", ".join(map(str, layers))
    return f"; it knows layers {known}; each of the {len(numbers)} MoE layers takes the nearest of them"


def _layers(
    path: Path, found: Counts, policy: RoutingPolicy, numbers: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the rows of the file are called, and what the model's MoE layers are called in the same way of counting."""
    rows, plain = len(found.counts_FE), tuple(range(len(numbers)))
    if policy.layers:
        return _named_layers(path, policy.layers, rows, numbers), numbers
    if not found.layers and rows in (1, len(numbers)):
        return tuple(range(rows)), plain
    if found.layers or rows > max(numbers):  # a row for each layer of the model, or for each MoE layer of a longer one
        layers = found.layers or tuple(range(rows))
        used = [layer for layer, total in zip(layers, found.counts_FE.sum(axis=1), strict=True) if total > 0]
        return layers, plain if _skips_dense(used, numbers) else numbers
    raise WorkloadError(
        f"{path}: popularity of {rows} layers, of shape {list(found.counts_FE.shape)}; this model has {len(numbers)} "
        "MoE layers; say which of them these are with routing.layers, for example "
        f"`layers: [{', '.join(map(str, numbers[:rows]))}]`"
    )


def _skips_dense(layers: Sequence[int], numbers: tuple[int, ...]) -> bool:
    """True for a file with counts for a layer that has no experts in the model: it counts the MoE layers alone."""
    return any(layer not in numbers for layer in layers if layer < max(numbers))


def _named_layers(path: Path, layers: tuple[int, ...], rows: int, numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(layers) != rows or len(set(layers)) < rows:
        raise WorkloadError(
            f"routing.layers: found {len(layers)} numbers for {rows} layers of {path}; one each is needed"
        )
    unknown = next((layer for layer in layers if layer not in numbers), None)
    if unknown is not None:
        known = (
            f"{numbers[0]} to {numbers[-1]}"
            if numbers == tuple(range(numbers[0], numbers[-1] + 1))
            else (", ".join(map(str, numbers)))
        )
        raise WorkloadError(
            f"routing.layers: found {unknown}; this model has {len(numbers)} MoE layers, {known} as it counts them"
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
