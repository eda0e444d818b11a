"""Popularity from the files that people have, and what the record says about it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture.models.shapes import LayerShape
from moeprof.capture.routing.popularity import load_popularity, routing_words
from moeprof.core import yamlfile
from moeprof.core.errors import WorkloadError
from moeprof.core.record.routing import Routing
from moeprof.core.workload.models import RoutingPolicy
from tests.helpers.shared_data import shared

SHAPES = [LayerShape(num_experts=4, top_k=2)] * 3
CSV = "model,kind,domain,layer,expert,count\n" + "".join(
    f"{model},{kind},{domain},{layer},{expert},{10 * layer + expert + 1}\n"
    for model in ("a", "b")
    for kind in ("expert_counts", "expert_counts_top1")
    for domain in ("code", "prose")
    for layer in (0, 2)
    for expert in range(4)
)


def policy(path: Path, **more: Any) -> RoutingPolicy:
    return RoutingPolicy(policy="profile", path=str(path), **more)


def written(path: Path, value: Any) -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    "value",
    [[1, 2, 3, 4], {"counts": [1, 2, 3, 4]}, {"expert_popularity": [[1, 2, 3, 4]] * 3}, [[1, 2, 3, 4]] * 3],
)
def test_lists_and_tables_in_json_are_read(tmp_path: Path, value: Any) -> None:
    found = load_popularity(policy(written(tmp_path / "p.json", value)), SHAPES)
    assert found.counts_LE.tolist() == [[1, 2, 3, 4]] * 3


def test_counts_per_token_are_added_up_and_layers_are_named_by_the_workload(tmp_path: Path) -> None:
    tokens = [{"1": {"7": 2, "9": 3}, "3": {"7": 1}}, {"0": {"7": 4}, "3": {"5": 5}}]
    path = written(tmp_path / "tokens.json.gz", tokens)
    with pytest.raises(WorkloadError, match=r"routing\.layers"):
        load_popularity(policy(path), SHAPES)
    found = load_popularity(policy(path, layers=(0, 2)), SHAPES)
    # Layer 1 is as near to 0 as to 2; the lower one is taken.
    assert found.counts_LE.tolist() == [[0, 5, 0, 1], [0, 5, 0, 1], [4, 0, 0, 5]]
    assert "layers 0, 2" in found.words and "nearest" in found.words


def test_a_csv_file_is_narrowed_to_one_set_of_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "counts.csv", CSV)
    found = load_popularity(policy(path, select={"model": "a", "domain": "code"}), SHAPES)
    assert found.counts_LE.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4], [21, 22, 23, 24]]
    assert "model a, kind expert_counts, domain code" in found.words
    pooled = load_popularity(policy(path, select={"model": "a", "domain": "all"}), SHAPES)
    assert pooled.counts_LE[0].tolist() == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ({}, r"select\.model: counts\.csv holds several; choose one of a, b, or `all`"),
        ({"model": "c"}, r"select\.model: counts\.csv holds no 'c'; choose one of a, b"),
        ({"dataset": "c4"}, "found 'dataset'; columns of counts.csv to choose by: model, kind, domain"),
    ],
)
def test_a_choice_that_is_open_or_wrong_is_told_with_what_can_be_chosen(
    tmp_path: Path, select: dict[str, str], words: str
) -> None:
    with pytest.raises(WorkloadError, match=words):
        load_popularity(policy(written(tmp_path / "counts.csv", CSV), select=select), SHAPES)


def test_a_model_that_was_cut_takes_the_first_layers_of_a_longer_file(tmp_path: Path) -> None:
    counts = [[layer + 1, 1, 1, 1] for layer in range(5)]
    found = load_popularity(policy(written(tmp_path / "long.json", counts)), SHAPES)
    assert found.counts_LE[:, 0].tolist() == [1, 2, 3] and "3 of its 5 layers, those that this" in found.words


DEEPSEEK = [LayerShape(num_experts=4, top_k=2, number=number) for number in (1, 2, 3)]  # layer 0 is dense
ROWS = [[10, 1, 1, 1], [1, 10, 1, 1], [1, 1, 10, 1]]  # of its three MoE layers


def csv_of(rows: list[list[int]], first: int, columns: str = "layer,expert,count") -> str:
    lines = [f"{i},{e},{n}" for i, row in enumerate(rows, start=first) for e, n in enumerate(row)]
    return "\n".join([columns, *lines])


@pytest.mark.parametrize(
    "text",
    [
        csv_of(ROWS, 1),  # as the model counts
        csv_of(ROWS, 0),  # layer 0 has counts and no experts: the MoE layers are counted alone
        csv_of([[0, 0, 0, 0], *ROWS], 0),  # as the model counts, the dense layer with zeros
        csv_of(ROWS, 1, "layer_id,expert_id,count"),
        json.dumps(ROWS),
        json.dumps([[0, 0, 0, 0], *ROWS]),  # a row for each layer of the model
        json.dumps([*ROWS, [7, 7, 7, 7]]),  # MoE layers of a longer model
        json.dumps([dict(enumerate(row)) for row in ROWS]),
    ],
)
def test_layers_are_counted_as_the_model_does(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / ("p.csv" if text.startswith("layer") else "p.json"), text)
    assert load_popularity(policy(path), DEEPSEEK).counts_LE.tolist() == ROWS


def test_layers_that_the_workload_names_are_the_models_own_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "p.json", ROWS[1:])
    assert load_popularity(policy(path, layers=(2, 3)), DEEPSEEK).counts_LE.tolist() == [ROWS[1], ROWS[1], ROWS[2]]
    with pytest.raises(WorkloadError, match=r"found 0; this model has 3 MoE layers, 1 to 3 as it counts them"):
        load_popularity(policy(path, layers=(0, 2)), DEEPSEEK)


def test_experts_that_a_file_of_named_experts_lacks_count_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", csv_of([[5, 6]] * 3, 0))
    found = load_popularity(policy(path), SHAPES)
    assert found.counts_LE.tolist() == [[5, 6, 0, 0]] * 3
    assert "experts 2 to 3 are not named and count 0" in found.words
    tables = written(tmp_path / "p.json", [{"0": 5, "1": 6}, {"0": 5, "2": 6}, {"0": 5, "1": 6}])
    assert load_popularity(policy(tables), SHAPES).counts_LE.tolist() == [[5, 6, 0, 0], [5, 0, 6, 0], [5, 6, 0, 0]]
    with pytest.raises(WorkloadError, match=r"counts of shape \[3, 5\].* this model has 4 experts"):
        load_popularity(policy(written(tmp_path / "more.csv", csv_of([[1] * 5] * 3, 0))), SHAPES)


def routing_npz(folder: Path, scale: int) -> None:
    folder.mkdir(parents=True)
    Routing(
        counts_WPCLE=np.full((1, 2, 1, 3, 4), scale, dtype=np.int64),
        real_tokens_WPC=np.full((1, 2, 1), 2 * scale, dtype=np.int64),
        window_start_s=np.zeros(1),
        window_first_step=np.zeros(1, dtype=np.int64),
        distinct_SL=np.full((1, 3), 4, dtype=np.int16),
        max_load_SL=np.full((1, 3), scale, dtype=np.int32),
        step_counts_SPLE=None,
        layer_names=("0", "1", "2"),
        class_names=("all",),
        top_k_L=np.full(3, 2),
        dropped_PL=np.zeros((2, 3), dtype=np.int64),
        identity_PL=np.zeros((2, 3), dtype=np.int64),
    ).save(folder / "routing.npz")


def test_a_record_is_read_by_file_by_round_and_by_model(tmp_path: Path) -> None:
    model = tmp_path / "run" / "moe"
    for launch, scale in enumerate((1, 2)):
        routing_npz(model / f"launch-{launch}" / "round-0", scale)
        routing_npz(model / f"launch-{launch}" / "capacity-0", 100)  # no round: not counted
    one_round = model / "launch-1" / "round-0"
    for path, each in ((one_round / "routing.npz", 4), (one_round, 4), (model / "launch-1", 4), (model, 6)):
        assert load_popularity(policy(path), SHAPES).counts_LE.tolist() == [[each] * 4] * 3
    with pytest.raises(WorkloadError, match=r"no routing\.npz of a round"):
        load_popularity(policy(tmp_path / "run"), SHAPES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[1, 2]", "this model has 4 experts"),
        ("[1, 0, 0, 0]", "fewer have popularity"),
        ("[1, -1, 1, 1]", "negative"),
        ("[]", "cannot be read"),
        ('{"experts": [1]}', "cannot be read"),
        ('"counts"', "cannot be read"),
        ("[[1, 2, 3, 4], [1, 2, 3]]", "cannot be read"),
    ],
)
def test_files_that_do_not_serve_are_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path / "p.json", text)
    with pytest.raises(WorkloadError, match=words) as error:
        load_popularity(policy(path), SHAPES)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["layer,expert\n0,1\n", "layer,expert,count\n", "layer,expert,count\n0,x,1\n"])
def test_a_csv_file_without_counts_is_one_clear_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(WorkloadError, match="cannot be read as popularity counts"):
        load_popularity(policy(written(tmp_path / "c.csv", text)), SHAPES)


def test_the_record_says_what_replaces_the_router(tmp_path: Path) -> None:
    path = written(tmp_path / "p.json", [1, 2, 3, 4])
    words = routing_words(policy(path, correlation=0.25, seed=7), SHAPES)
    assert words is not None and words.startswith(
        "routing is not the model's own: policy profile, drawn from counts in"
    )
    assert "p.json" in words and "all 3 MoE layers" in words and "seed 7" in words and "correlation 0.25" in words
    assert routing_words(RoutingPolicy(), SHAPES) is None
    assert routing_words(RoutingPolicy(policy="balanced"), []) is None
    zipf = routing_words(RoutingPolicy(policy="zipf", exponent=0.8), SHAPES)
    assert zipf is not None and "1/rank^0.8" in zipf and "correlation 0:" in zipf


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("policy: profile", "path: missing"),
        ("{policy: zipf, correlation: 1}", "correlation: found 1; 0 up to, but not, 1"),
        ("{policy: balanced, correlation: 0.5}", "correlation: belongs to"),
        ("{policy: zipf, select: {model: a}}", "select: belongs to"),
        ("{policy: profile, path: p, layers: [-1]}", "layers: found -1"),
        ("{policy: zipf, seed: -1}", "seed: found -1"),
    ],
)
def test_keys_that_do_not_fit_are_named(text: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        yamlfile.loads(text, RoutingPolicy)


def test_all_keys_are_read_from_a_workload() -> None:
    text = "{policy: profile, path: p.csv, select: {model: a}, layers: [0, 7], correlation: 0.5, seed: 3}"
    found = yamlfile.loads(text, RoutingPolicy)
    assert found.select == {"model": "a"} and found.layers == (0, 7) and found.correlation == 0.5
    assert isinstance(hash(found), int)


# --- measured counts --------------------------------------------------------------------------------------------------


def test_measured_counts_of_mixtral_serve_a_model_of_its_shape() -> None:
    shapes = [LayerShape(num_experts=8, top_k=2)] * 32
    found = load_popularity(
        policy(shared("routing/mixtral_8x7b_original/expert_popularity_college_medicine.json")), shapes
    )
    assert found.counts_LE.shape == (32, 8) and (found.counts_LE.sum(axis=1) == found.counts_LE[0].sum()).all()


def test_counts_per_token_agree_with_the_table_of_counts() -> None:
    shapes = [LayerShape(num_experts=64, top_k=8)] * 16
    tokens = policy(shared("routing/olmoe__eid2token__github.json.gz"), layers=(0, 7, 15))
    table = policy(shared("routing/olmoe_mixtral_expert_counts.csv"), select={"model": "olmoe", "domain": "github"})
    first, second = load_popularity(tokens, shapes).counts_LE, load_popularity(table, shapes).counts_LE
    assert np.allclose(first / first.sum(axis=1, keepdims=True), second / second.sum(axis=1, keepdims=True), atol=2e-3)
