"""No page holds two ratios, or two verdicts, for one metric of one pair of models or runs.

Every published record, as a report, a comparison and a check, in every format that prints ratios.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moeprof.analysis.compare.models import COSTS, cost_ratio
from moeprof.analysis.metrics.cost.pricing import repriced
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.report.compare import compare_document
from moeprof.analysis.report.data import comparison_json
from moeprof.analysis.report.document import Document, Table
from moeprof.analysis.report.result import Comparison
from moeprof.analysis.report.run import build_document
from moeprof.analysis.report.sections.lockstep import ratio_text
from moeprof.analysis.sparsity.roles import roles
from moeprof.core.record.layout import open_record
from tests.helpers.golden_outputs import AB, FORMAT_1, QUICKSTART, ROOT, SWEEPS
from tests.helpers.tiny_run import run_main

RUNS = (FORMAT_1, QUICKSTART, SWEEPS)
PAIR_OF_RUNS = (f"{AB}/base", f"{AB}/new")
Said = dict[tuple[Any, ...], set[tuple[Any, ...]]]


@cache
def summary_of(run: str) -> Summary:
    record = open_record(ROOT / run)
    return summarise(record, repriced(record, usd_per_device_hour=2.0))


@cache
def comparison_of(*runs: str) -> Comparison:
    return compare_document([summary_of(run) for run in runs], reference=None, allow=frozenset({"revision"}))


def tables_of(document: Document) -> Iterable[Table]:
    return (block for section in document.sections for block in section.blocks if isinstance(block, Table))


def in_tables(tables: Iterable[Table]) -> Said:
    """(metric, labels, model, reference) -> every ratio and verdict that stands for it.

    Figures of one load or phase carry no labels: their row, and the table, say which they are.
    """
    found: Said = defaultdict(set)
    for table in tables:
        for row in table.rows if table.reference is not None else ():
            for column, cell in zip(table.columns, row.cells, strict=True):
                if cell.ratio is not None and cell.value is not None:
                    labels = tuple(sorted(cell.value.labels.items()))
                    place = () if "traffic" in cell.value.labels else (table.title, row.label)
                    key = (row.name, labels, *place, column, table.columns[table.reference or 0])
                    one = cell.ratio
                    found[key].add((one.value, one.low, one.high, one.verdict, one.by))
    return found


@pytest.mark.parametrize("runs", [*((run,) for run in RUNS), PAIR_OF_RUNS], ids=lambda runs: Path(runs[-1]).name)
def test_tables_and_data_of_a_comparison_hold_one_ratio_for_each_pair(runs: tuple[str, ...]) -> None:
    comparison = comparison_of(*runs)
    said = in_tables([*tables_of(comparison.document), *comparison.tables])
    assert said and [key for key, ratios in said.items() if len(ratios) > 1] == []
    in_data: Said = defaultdict(set)
    for table in comparison_json(comparison)["comparison"]:
        for row in table["rows"]:
            for column, value, one in zip(table["columns"], row["values"], row["ratios"], strict=True):
                if one is not None and value is not None and "traffic" in value["labels"]:
                    key = (row["name"], tuple(sorted(value["labels"].items())), column, table["reference"])
                    in_data[key].add((one["value"], one["ci_low"], one["ci_high"], one["verdict"], one["by"]))
    assert in_data == {key: said[key] for key in in_data}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: Path(run).name)
def test_sentences_of_both_pages_say_the_ratio_of_the_table(run: str) -> None:
    summary, comparison = summary_of(run), comparison_of(run)
    parts = roles(summary)
    assert parts.moe is not None
    said = in_tables(comparison.tables)
    for dense in [m for m in (parts.total, parts.active) if m is not None] or parts.rivals[:1]:
        one = cost_ratio(summary, parts.moe, dense)
        if dense.name == comparison.reference:
            keys = [key for key in said if key[0] in COSTS and key[-2:] == (parts.moe.name, dense.name)]
            assert (one.value, one.low, one.high, one.verdict, one.by) in {r for key in keys for r in said[key]}
        for document in (build_document(summary), comparison.document):
            if one.value is not None and one.verdict != "incomparable" and "price to speak of" not in document.headline:
                assert ratio_text(one) in document.headline
                is_claimed = "it cannot be said" not in document.headline and "cannot tell" not in document.headline
                assert is_claimed or one.verdict == "cannot tell"


CHECKS = {
    "launch pairs": (AB,),
    "a run against itself": (QUICKSTART, "--baseline", QUICKSTART),
    "a run against another": (f"{AB}/new", "--baseline", f"{AB}/base", "--allow", "revision"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_format_of_a_check_says_the_ratio_and_verdict_of_the_gate(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    formats = ("--write", "json,md,comment,junit,github,codequality", "--output-dir", str(tmp_path))
    run_main(["regress", *CHECKS[name], *formats])
    found = json.loads((tmp_path / "regress.json").read_text())
    changes = {(c["model"], c["metric"], str(c["labels"])): c for c in found["changes"]}
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found["gates"]
    for gate in found["gates"]:
        if gate["kind"] == "bound":
            continue
        change = changes[gate["model"], gate["metric"], str(gate["labels"])]
        assert (change["ratio"], change["verdict"]) == (gate["ratio"], gate["verdict"])
        ratio = gate["ratio"]["value"]
        if ratio is not None and ratio != 1 and gate["verdict"] in ("worse", "cannot tell"):
            assert all(f"{ratio:.3f}" in texts[file] for file in texts if file.endswith(".xml")), gate["label"]
