"""The plan of the house: imports go one way, rooms keep their libraries, files stay small, cards are whole.

Read from the source with ``ast``, local imports included; what only type checkers see is left out.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeprof.analysis.metrics.cards import CARDS, card_for
from tests.helpers.tiny_run import Ran

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "moeprof"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60
# room -> rooms it may import from
MAY_IMPORT = {
    "core": {"core"},
    "sources": {"core", "sources"},
    "capture": {"core", "sources", "capture"},
    "analysis": {"core", "analysis"},
    "render": {"core", "analysis", "render"},
    "cli": {"core", "sources", "capture", "analysis", "render", "cli"},
}
# library -> where it may be imported: a room, or one file
HOMES = {
    "torch": ("capture/",),
    "transformers": ("capture/",),
    "safetensors": ("capture/",),
    "accelerate": ("capture/",),
    "huggingface_hub": ("capture/",),
    "pynvml": ("capture/gpu.py",),
    "triton": ("capture/kernels/",),
    "yaml": ("core/yamlfile.py",),
    "typer": ("cli/",),
    "rich": ("cli/", "render/terminal.py", "render/terminal_compare.py", "render/terminal_gates.py"),
    "jinja2": ("render/", "sources/"),
    "matplotlib": (),
    "requests": (),
    "pickle": (),
}
# heavy libraries that no file of these rooms may import at module level (start-up)
LATE = {"core": {"pandas", "pyarrow", "scipy", "tokenizers"}, "sources": {"pandas", "scipy", "tokenizers"}}
LATE |= {"cli": {"pandas", "pyarrow", "scipy", "tokenizers"}, "analysis": {"scipy"}, "render": {"scipy"}}


def name(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0]


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(tree: ast.AST, *, only_at_start: bool = False) -> Iterator[str]:
    """Full dotted names that a file imports; ``if TYPE_CHECKING`` is for type checkers, not for the house."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (only_at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(node, only_at_start=only_at_start)


def test_imports_go_one_way() -> None:
    wrong = []
    for file in FILES:
        allowed = MAY_IMPORT.get(room(file), set(MAY_IMPORT))  # moeprof/__init__.py and __main__.py may all
        for full in imports(parsed(file)):
            parts = full.split(".")
            if parts[0] == "moeprof" and len(parts) > 1 and parts[1] in MAY_IMPORT and parts[1] not in allowed:
                wrong.append(f"{name(file)} imports {full}")
    assert wrong == []


def test_libraries_stay_in_their_rooms() -> None:
    wrong = []
    for file in FILES:
        for full in imports(parsed(file)):
            homes = HOMES.get(full.split(".")[0])
            if homes is not None and not name(file).startswith(homes):
                wrong.append(f"{name(file)} imports {full}")
    assert wrong == []


def test_heavy_libraries_are_imported_only_where_they_are_used() -> None:
    wrong = []
    for file in FILES:
        early = {full.split(".")[0] for full in imports(parsed(file), only_at_start=True)}
        wrong += [f"{name(file)} imports {library} early" for library in early & LATE.get(room(file), set())]
    assert wrong == []


def test_there_is_no_circle_of_imports() -> None:
    modules = {f"moeprof.{name(file)[:-3].replace('/', '.')}".removesuffix(".__init__"): file for file in FILES}
    needs = {
        module: {
            max((m for m in modules if full == m or full.startswith(m + ".")), key=len)
            for full in imports(parsed(file), only_at_start=True)
            if full.startswith("moeprof.")
        }
        - {module, "moeprof"}
        for module, file in modules.items()
    }
    left = dict(needs)
    while left:
        free = [module for module, wanted in left.items() if not wanted & set(left)]
        assert free, f"a circle among {sorted(left)[:6]}"
        for module in free:
            del left[module]


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_no_file_is_over_300_lines_and_no_function_over_60() -> None:
    wrong = []
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        if len(text.splitlines()) > MAX_FILE_LINES:
            wrong.append(f"{name(file)} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{name(file)}: {node.name} has {length} lines")
    assert wrong == []


def test_no_error_is_swallowed_whole() -> None:
    """A bare ``except``, or ``except Exception`` that returns or passes, would turn an error into an answer."""
    wrong = []
    for file in FILES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ExceptHandler):
                broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                silent = isinstance(node.body[-1], ast.Return | ast.Pass | ast.Continue)
                if node.type is None or (broad and silent):
                    wrong.append(f"{name(file)}:{node.lineno}")
    assert wrong == []


def test_every_file_says_what_lives_in_it() -> None:
    assert [name(file) for file in FILES if file.stat().st_size and not ast.get_docstring(parsed(file))] == []


def test_warnings_are_errors_in_the_tests() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["filterwarnings"][0] == "error"
    assert options["xfail_strict"] is True


# -- start-up ----------------------------------------------------------------------------------------------------------

COUNT = """
import sys
from moeprof.cli.main import main
code = main(sys.argv[1:])
print("LOADED", [m for m in ("torch", "transformers", "huggingface_hub") if m in sys.modules], code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["trace", "--help"], ["trace", "inspect", "--help"], ["report", "--help"],
     ["compare", "--help"], ["compare", "RUN", "--format", "json"],
     ["explain"], ["explain", "ttft_p99_s"], ["report", "RUN", "--format", "json"], ["--version"],
     ["params", "--help"], ["params", "--list"], ["params", "gpt-4", "glam-64b-64e"]],
    ids=" ".join,
)  # fmt: skip
def test_commands_that_run_no_model_import_no_torch(arguments: list[str]) -> None:
    record = str(Path(__file__).parent / "records" / "format-1")
    words = [record if word == "RUN" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *words], capture_output=True, text=True, cwd=ROOT, env={**os.environ}
    )
    assert done.stderr.splitlines()[-1] == "LOADED [] 0", done.stderr


# -- cards -------------------------------------------------------------------------------------------------------------

SECTIONS = ("latency", "throughput", "cost", "parameters", "routing", "memory", "work", "gap", "energy", "quality",
            "validity", "comparison")  # fmt: skip


def test_every_card_is_whole() -> None:
    for card in CARDS:
        for part in ("name", "title", "unit", "formula", "source"):
            assert getattr(card, part).strip(), f"{card.name} has no {part}"
        assert card.better in ("lower", "higher", "neither"), card.name
        assert card.section in SECTIONS, card.name
        assert "\n" not in card.formula + card.title, card.name


def test_no_card_stands_twice() -> None:
    names = [card.name for card in CARDS]
    assert len(names) == len(set(names))


def test_every_metric_of_a_real_run_has_its_card(tiny_run: tuple[Path, Ran]) -> None:
    summary = json.loads((tiny_run[0] / "summary.json").read_text())
    names = {m["name"] for model in summary["models"].values() for m in model["metrics"]}
    assert len(names) > 100
    for metric in names:
        assert card_for(metric).unit


def test_every_card_is_of_a_metric_that_a_run_reports(tiny_run: tuple[Path, Ran]) -> None:
    """A card that nothing ever emits would promise what is not there."""
    summary = json.loads((tiny_run[0] / "summary.json").read_text())
    emitted = {card_for(m["name"]).name for model in summary["models"].values() for m in model["metrics"]}
    promised = {card.name for card in CARDS if card.section != "comparison"}  # those are of `moeprof compare`
    assert promised - emitted == set()
