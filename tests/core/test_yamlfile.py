"""Strict YAML into dataclasses: what is accepted, what is refused, and where the complaint points."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.core.errors import WorkloadError
from moeprof.core.yamlfile import load, loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A part."""

    size: int = 1
    ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """A whole."""

    name: str
    on: bool = False
    kind: Literal["big", "small"] = "small"
    part: Inner = field(default_factory=Inner)
    parts: tuple[Inner, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    size_or_name: int | str | None = None
    anything: Any = None


def outer(text: str) -> Outer:
    return loads("name: x\n" + text, Outer, "f.yaml")


def refused(text: str) -> str:
    with pytest.raises(WorkloadError) as found:
        outer(text)
    return str(found.value)


def test_every_kind_of_value_is_read() -> None:
    text = """
on: true
kind: big
part: {size: 3, ratio: 0.5}
parts: [{size: 1}, {}]
table: {a: 1, b: 2.5}
size_or_name: 7
anything: {free: [1, two, null]}
"""
    assert outer(text) == Outer(
        name="x",
        on=True,
        kind="big",
        part=Inner(size=3, ratio=0.5),
        parts=(Inner(), Inner()),
        table={"a": 1.0, "b": 2.5},
        size_or_name=7,
        anything={"free": [1, "two", None]},
    )


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3", ".001"])
def test_a_number_is_a_number_however_it_is_written(text: str) -> None:
    assert outer(f"part: {{ratio: {text}}}").part.ratio == 0.001


def test_thousands_may_be_grouped_and_whole_floats_are_whole() -> None:
    assert outer("part: {size: 1_000}").part.size == 1000
    assert outer("part: {size: 1e3}").part.size == 1000
    assert outer("part: {size: 2.0}").part.size == 2


def test_a_large_whole_number_keeps_every_digit() -> None:
    assert outer("part: {size: 9007199254740993}").part.size == 9007199254740993


@pytest.mark.parametrize("text", ["yes", "no", "on", "y", "1", "0"])
def test_only_true_and_false_are_truth(text: str) -> None:
    assert refused(f"on: {text}") == f"f.yaml:2: on: found {text!r}; true or false is allowed"


def test_text_that_looks_like_something_else_stays_text() -> None:
    for text in ("1e3", "no", "null-island", "2024-01-01", "0x10", "12:30"):
        assert loads(f"name: {text}", Outer).name == text


def test_null_means_left_out_only_where_that_is_allowed() -> None:
    assert outer("part: {ratio: null}").part.ratio is None
    assert outer("part: {ratio: ~}").part.ratio is None
    assert "found nothing; one value is allowed" in refused("part: {size: null}")


def test_the_complaint_names_file_line_and_key() -> None:
    assert refused("part:\n  size: 1\n  ratio: x") == "f.yaml:4: part.ratio: found 'x'; a number is allowed"
    assert refused("parts:\n- {size: 1}\n- {size: x}") == "f.yaml:4: parts[1].size: found 'x'; a number is allowed"


def test_unknown_keys_get_the_nearest_name() -> None:
    assert refused("part: {sizes: 1}").endswith("unknown key; allowed here: ratio, size; did you mean 'size'?")
    assert "did you mean" not in refused("part: {zzz: 1}")


def test_a_key_that_stands_twice_is_refused_also_with_merge_keys() -> None:
    assert refused("on: true\non: true") == "f.yaml:3: on: the key stands here twice"
    assert "unknown key" in refused("part: {<<: {size: 1}}")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(WorkloadError, match=r"f.yaml:1: missing name"):
        loads("on: true", Outer, "f.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("part: 3", "found '3'; keys and values are allowed"),
        ("part: [1]", "found a list; keys and values are allowed"),
        ("parts: {size: 1}", "found keys and values; a list is allowed"),
        ("name2: &a [*a]", "the alias *a is not followed"),
        ("table: {a: x}", "table.a: found 'x'; a number is allowed"),
        ("kind: bigg", "did you mean 'big'?"),
        ("? [a, b]\n: 1", "a key must be plain text"),
        ("part: {size: 1.5}", "a whole number is allowed"),
        ("part: {size: nan}", "a number is allowed"),
        ("part: {size: -.inf}", "a number is allowed"),
        ("anything: !!python/object/apply:os.system [ls]", "f.yaml:2: anything"),
        ("anything: {[a]: 1}", "f.yaml:2: anything"),
        ("anything: &a [*a]", "f.yaml:2: not valid YAML: the alias *a is not followed"),
        ("part: *none", "not valid YAML"),
        ("---\nname: y", "not valid YAML"),
        ("x: 'open", "not valid YAML"),
        ("%TAG", "not valid YAML"),
        ("on: \x07", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_a_workload_error(text: str, expected: str) -> None:
    assert expected in refused(text)


def test_aliases_are_refused_so_that_a_bomb_of_them_does_no_harm() -> None:
    assert "f.yaml:3: not valid YAML: the alias *p is not followed" in refused("part: &p {size: 2}\nparts: [*p, *p]")
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    assert "the alias *a0 is not followed" in refused(bomb)


def test_deep_nesting_is_refused_not_a_crash() -> None:
    assert "not valid YAML" in refused("anything: " + "[" * 3000 + "]" * 3000)


def test_files_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no such file"):
        load(tmp_path / "none.yaml", Outer)
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(WorkloadError, match="cannot be read as UTF-8 text"):
        load(tmp_path / "latin.yaml", Outer)
    with pytest.raises(WorkloadError, match="cannot be read"):
        load(tmp_path, Outer)


@given(st.text(max_size=200))
def test_any_text_gives_a_value_or_a_workload_error(text: str) -> None:
    try:
        loads(text, Outer)
    except WorkloadError as error:
        assert str(error).startswith("<text>:")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
trees = st.recursive(
    scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.sampled_from(
        ["name", "on", "kind", "part", "parts", "size", "ratio", "table", "anything", "size_or_name"]
    ) | st.text(max_size=3), t, max_size=5), max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["name", "on", "kind", "part", "parts", "table", "size_or_name"]), trees))
def test_any_tree_gives_a_value_or_a_workload_error(tree: dict[str, Any]) -> None:
    import yaml

    try:
        found = loads(yaml.safe_dump(tree), Outer)
    except WorkloadError:
        return
    assert isinstance(found.name, str) and isinstance(found.on, bool) and isinstance(found.part.size, int)
