"""Facts that differ between two runs are named, forbid what they must, and can be allowed by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeprof.analysis.compare.comparable import (
    FACTS,
    Difference,
    Facts,
    banners,
    check_allow,
    classes_of,
    differences,
    facts_of,
    forbidden_by,
    price_difference,
    refuse,
)
from moeprof.analysis.metrics.cards import all_cards
from moeprof.core.errors import InputError, RecordError
from moeprof.core.files import write_json
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import Record, open_record
from tests.helpers.records import make_facts, make_pass, write_record

ENVIRONMENT = {
    "device": "cpu", "device_name": "a processor", "cpu_cores": 2, "cpu_flags": ["avx2"], "threads": 1,
    "packages": {"torch": "2.13"},
}  # fmt: skip
ENGINE = {"dtype": "float32", "attention": "sdpa", "experts": "grouped_mm", "batching": "continuous"}
SCHEDULE = {"sha256": "a" * 64, "tokenizer_hash": "t", "num_requests": 4, "pattern": "offline", "notes": []}


def record(
    folder: Path,
    *,
    environment: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    workload: dict[str, Any] | None = None,
    schedule: dict[str, Any] | None = None,
    revision: str | None = "commit a",
    **facts: Any,
) -> Record:
    """A run of one model, ``moe``; what is given replaces the default."""
    path = write_record(
        folder,
        {"moe": (make_facts(**facts), [[make_pass()]])},
        environment={**ENVIRONMENT, **(environment or {})},
        launch_info={"engine": {**ENGINE, **(engine or {})}},
        workload=workload,
    )
    write_json(
        path / "moe" / "model.json", {**json.loads((path / "moe" / "model.json").read_text()), "revision": revision}
    )
    experiment = json.loads((path / "experiment.json").read_text())
    experiment["schedules"] = {"moe": {**SCHEDULE, **(schedule or {})}}
    write_json(path / "experiment.json", experiment)
    return open_record(path)


def found(tmp_path: Path, **other: Any) -> dict[str, Difference]:
    first, second = record(tmp_path / "a"), record(tmp_path / "b", **other)
    return {difference.name: difference for difference in differences(facts_of(first), facts_of(second))}


def test_two_runs_of_the_same_workload_do_not_differ(tmp_path: Path) -> None:
    assert found(tmp_path) == {}


@pytest.mark.parametrize(
    ("other", "name", "forbids"),
    [
        ({"environment": {"device_name": "another processor"}}, "device", {"timed"}),
        ({"environment": {"device": "cuda:0", "device_name": "a GPU"}}, "device", {"routing", "quality", "timed"}),
        ({"environment": {"threads": 2}}, "threads", {"timed"}),
        ({"environment": {"packages": {"torch": "2.14"}}}, "versions", set()),
        ({"engine": {"dtype": "bfloat16"}}, "dtype", {"routing", "quality", "timed"}),
        ({"engine": {"experts": "batched_mm"}}, "backend", {"routing", "quality", "timed"}),
        ({"workload": {"outputs": "free"}}, "outputs", {"routing", "quality", "timed"}),
        ({"workload": {"engine": {"max_batch_tokens": 64}}}, "max_batch_tokens", {"routing", "quality", "timed"}),
        ({"workload": {"engine": {"kv_tokens": 64}}}, "kv_tokens", {"routing", "quality", "timed"}),
        ({"workload": {"engine": {"prefix_cache": True}}}, "prefix_cache", {"routing", "quality", "timed"}),
        ({"schedule": {"sha256": "b" * 64}}, "schedule", {"routing", "quality", "timed"}),
        ({"schedule": {"sha256": "b" * 64, "tokenizer_hash": "u"}}, "tokenizer", {"routing", "tokens"}),
        ({"revision": "commit b"}, "revision", {"routing", "quality", "timed"}),
        ({"num_experts": 8}, "model", {"exact", "routing", "quality", "timed"}),
    ],
)
def test_a_fact_that_differs_is_named_with_what_it_forbids(
    tmp_path: Path, other: dict[str, Any], name: str, forbids: set[str]
) -> None:
    told = found(tmp_path, **other)
    assert list(told) == [name]
    assert told[name].forbids == forbids
    assert told[name].flag_to_allow == (f"--allow {name}" if forbids else None)


def test_a_revision_that_one_side_did_not_record_is_no_difference(tmp_path: Path) -> None:
    assert found(tmp_path, revision=None) == {}


def test_another_revision_leaves_exact_figures_comparable(tmp_path: Path) -> None:
    told = tuple(found(tmp_path, revision="commit b").values())
    names = ("total_params", "weights_bytes", "router_gini", "bits_per_byte", "step_mean_s")
    assert [bool(forbidden_by(told, classes_of(name), model="moe")) for name in names] == [False, False] + 3 * [True]


def test_facts_survive_json_and_a_long_hash_is_said_short(tmp_path: Path) -> None:
    first = facts_of(record(tmp_path / "a", revision="a" * 40))
    read = Facts(**json.loads(json.dumps({name: getattr(first, name) for name in ("run", "models", "device_kind")})))
    assert read == first and differences(first, read) == ()
    (told,) = differences(first, facts_of(record(tmp_path / "b", revision="b" * 40)))
    assert told.text == "revision of moe: aaaaaaaaaaaa against bbbbbbbbbbbb"


def test_a_fact_of_the_run_that_an_older_file_never_knew_is_no_difference(tmp_path: Path) -> None:
    first = facts_of(record(tmp_path / "a"))
    older = replace(first, run={name: value for name, value in first.run.items() if name != "threads"})
    assert differences(older, first) == ()
    assert [d.name for d in differences(replace(first, run={**first.run, "threads": None}), first)] == ["threads"]


def test_another_record_format_leaves_exact_figures_comparable(tmp_path: Path) -> None:
    first = facts_of(record(tmp_path / "a"))
    (told,) = differences(first, replace(first, run={**first.run, "format_version": 2}))
    assert (told.name, told.flag_to_allow) == ("format_version", "--allow format_version")
    assert told.forbids == {"routing", "quality", "timed"} and told.text == "format version: 1 against 2"


def test_other_requests_under_another_tokenizer_are_another_schedule_too(tmp_path: Path) -> None:
    told = found(tmp_path, schedule={"sha256": "b" * 64, "tokenizer_hash": "u", "num_requests": 5})
    assert set(told) == {"tokenizer", "schedule"}


def test_another_device_name_forbids_seconds_but_not_parameters_or_routing(tmp_path: Path) -> None:
    told = tuple(found(tmp_path, environment={"device_name": "another processor"}).values())

    def forbidden(name: str, allow: frozenset[str] = frozenset()) -> bool:
        return bool(forbidden_by(told, classes_of(name), model="moe", allow=allow))

    assert forbidden("step_mean_s") and forbidden("host_rss_peak_bytes") and forbidden("energy_j")
    assert not forbidden("total_params") and not forbidden("weights_bytes") and not forbidden("router_gini")
    assert not forbidden("step_mean_s", frozenset({"device"}))


def test_under_another_tokenizer_only_figures_of_text_and_requests_stay(tmp_path: Path) -> None:
    told = tuple(found(tmp_path, schedule={"sha256": "b" * 64, "tokenizer_hash": "u"}).values())
    names = ("usd_per_1m_characters", "usd_per_request", "e2e_p50_s", "bits_per_byte", "usd_per_1m_total_tokens",
             "itl_p50_s", "router_gini")  # fmt: skip
    forbidden = [bool(forbidden_by(told, classes_of(name), model="moe")) for name in names]
    assert forbidden == [False, False, False, False, True, True, True]


def test_a_difference_of_one_model_does_not_touch_another() -> None:
    of_moe = Difference(name="dtype", first="a", second="b", forbids=frozenset({"timed"}), model="moe")
    assert forbidden_by([of_moe], {"timed"}, model="moe") and not forbidden_by([of_moe], {"timed"}, model="dense")


def test_the_refusal_names_every_fact_and_the_flag(tmp_path: Path) -> None:
    told = found(tmp_path, environment={"threads": 2}, engine={"dtype": "bfloat16"}).values()
    with pytest.raises(RecordError, match=r"threads: 1 against 2.*--allow dtype,threads"):
        refuse(told)
    with pytest.raises(RecordError, match=r"threads: 1 against 2.*--allow dtype,threads"):
        refuse(told, {"dtype"})  # the flag is whole: it is typed anew
    refuse(told, {"threads", "dtype"})
    assert len(banners(told, {"threads", "dtype"})) == 2


def test_prices_and_versions_are_only_noted(tmp_path: Path) -> None:
    price = price_difference(Pricing(usd_per_device_hour=3.6), Pricing(usd_per_device_hour=7.2))
    assert price is not None and not price.forbids
    refuse([price])
    assert banners([price]) == ("Note: price: 3.6 USD/h against 7.2 USD/h.",)
    assert price_difference(Pricing(usd_per_device_hour=3.6), Pricing(usd_per_device_hour=3.6)) is None


def test_an_unknown_fact_to_allow_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match=f"'colour' is no fact of a run; allowed: {', '.join(FACTS)}"):
        check_allow(["dtype", "colour"])
    assert check_allow(["dtype", " device "]) == {"dtype", "device"}


def test_every_metric_has_a_class() -> None:
    for card in all_cards():
        assert classes_of(card.name.replace("*", "p50")) & {"exact", "routing", "quality", "timed"}, card.name
