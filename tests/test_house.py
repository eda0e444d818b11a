"""The plan of the house: rooms keep their libraries, folders and functions stay small, cards are whole.

Which floor may import which is written in pyproject.toml (import-linter); ``make lint`` checks it.
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

from moeprof.analysis.metrics import server
from moeprof.analysis.metrics.cards import all_cards, card_for
from tests.helpers.tiny_run import Ran

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "moeprof"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FUNCTION_LINES = 60
MAX_FILES, MIN_FILES = 16, 3
# Folders that are one table: one file a format, a metric, a command.
TABLES = ("sources/formats", "analysis/metrics", "cli")
# library -> where it may be imported: a room, or one file
HOMES = {
    "torch": ("capture/",),
    "transformers": ("capture/",),
    "safetensors": ("capture/",),
    "accelerate": ("capture/",),
    "huggingface_hub": ("capture/",),
    "pynvml": ("capture/devices/gpu.py",),
    "triton": ("capture/kernels/",),
    "aiohttp": ("sources/proxy/", "capture/engines/served/"),
    "uvloop": ("capture/engines/served/",),
    "orjson": ("capture/engines/served/",),
    "prometheus_client": ("render/", "capture/engines/served/"),
    "yaml": ("core/yamlfile.py",),
    "typer": ("cli/",),
    "rich": ("cli/", "render/terminal.py"),
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


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_no_function_is_over_60_lines() -> None:
    wrong = []
    for file in FILES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{name(file)}: {node.name} has {length} lines")
    assert wrong == []


def test_a_folder_holds_3_to_16_files() -> None:
    wrong = []
    for folder in sorted({file.parent for file in FILES} - {PACKAGE}):
        num = len([file for file in folder.glob("*.py") if file.name != "__init__.py"])
        rooms = len([inner for inner in folder.iterdir() if (inner / "__init__.py").exists()])
        where = folder.relative_to(PACKAGE).as_posix()
        if num + rooms < MIN_FILES or (num > MAX_FILES and where not in TABLES):
            wrong.append(f"{where} holds {num} files")
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


TABLES_OF_NUMBERS = """
import sys
from moeprof.cli.main import main
code = main(sys.argv[1:])
print("LOADED", [m for m in ("pandas", "scipy", "pyarrow", "torch") if m in sys.modules], code, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["explain"], ["explain", "ttft_p99_s"], ["params", "--list"]], ids=" ".join)
def test_what_needs_no_record_imports_no_tables_of_numbers(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TABLES_OF_NUMBERS, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == "LOADED [] 0", done.stderr


# -- cards -------------------------------------------------------------------------------------------------------------

SECTIONS = ("latency", "conversations", "server", "throughput", "cost", "parameters", "routing", "memory", "work",
            "gap", "energy", "quality", "validity", "comparison")  # fmt: skip


def test_every_card_is_whole() -> None:
    for card in all_cards():
        for part in ("name", "title", "unit", "formula", "source"):
            assert getattr(card, part).strip(), f"{card.name} has no {part}"
        assert card.better in ("lower", "higher", "neither"), card.name
        assert card.section in SECTIONS, card.name
        assert "\n" not in card.formula + card.title, card.name


def test_no_card_stands_twice() -> None:
    names = [card.name for card in all_cards()]
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
    elsewhere = {card.name for card in server.CARDS}  # of runs on servers: tests/capture/run/test_run_served.py
    # Those are of `moeprof compare`, and of traffic with sessions (test_run_sessions.py).
    elsewhere |= {card.name for card in all_cards() if card.section in ("comparison", "conversations")}
    promised = {card.name for card in all_cards()} - elsewhere
    assert promised - emitted == set()


# -- the door ----------------------------------------------------------------------------------------------------------

DOOR = "core/files.py"
METHODS = {"open", "read_text", "read_bytes", "write_text", "write_bytes"}  # of paths
OF_MODULES = {
    "json": {"load", "loads", "JSONDecoder"}, "yaml": {"load", "safe_load", "load_all", "compose"}, "os": {"fdopen"},
    "np": {"load", "loadtxt", "genfromtxt", "fromfile", "memmap", "savez", "savez_compressed"},
    "pq": {"read_table", "ParquetFile", "write_table"}, "pa": {"open_stream", "open_file", "memory_map"},
    "pd": {"read_csv", "read_parquet", "read_json", "read_pickle"}, "zipfile": {"ZipFile"}, "pickle": {"load", "loads"},
    "gzip": {"decompress", "GzipFile"}, "bz2": {"decompress"}, "lzma": {"decompress"}, "torch": {"load"},
}  # fmt: skip
# What goes round the door, by function, and why it may.
ROUND = {
    "the kernel's own files": {
        "capture/devices/cpu_energy.py:__init__",
        "capture/devices/cpu_energy.py:_counters_uj",
        "capture/devices/cpu_energy.py:_is_package",
        "capture/devices/environment.py:_cpuinfo",
        "capture/devices/peaks.py:_parse_size",
        "capture/devices/run_queue.py:run_queue_clock",
        "capture/devices/host_memory.py",
        "capture/devices/process.py",
        "capture/kernels/cpu/build.py:_processor",
        "capture/memory/measure.py:rss_peak_bytes",
        "capture/memory/measure.py:_forget_rss_peak",
        "core/record/owner.py:_alone",
        "sources/chat_template.py:_limit_memory",
    },
    "packaged data and the standard library": {
        "capture/kernels/cpu/build.py:_library",
        "cli/init.py:ci_files",
        "cli/init.py:requirement",
        "cli/init.py:init",
        "core/known_models.py:_stored_facts",
        "sources/corpus.py:_packaged",
        "sources/corpus.py:_source",
    },
    "what a process of ours says to another": {
        "capture/lockstep/protocol.py:decode",
        "capture/parallel/group.py:receive",
        "capture/measure/breakdown.py:_profiled",
        "capture/run/examine.py:_answer_all",
        "capture/run/resume.py:_compared",
        "capture/worker/server.py:_take_channel",
        "capture/worker/watch.py:answer_stack_requests",
        "capture/worker/watch.py:_read",
        "sources/chat_template.py:render",
        "sources/chat_template.py:serve",
        "cli/main.py:_drop_stdout",
        "capture/engines/vllm/choose.py:ask_unknown",
        "capture/engines/vllm/environment.py:_ask",
        "capture/worker/elsewhere.py",
        "cli/output.py:show",
        "core/scratch.py",
    },
    "rows of text that came through the door, millions of them, refused row by row": {
        "sources/formats/chat.py:parsed",
        "sources/formats/file.py:_objects_over_lines",
        "sources/formats/file.py:_is_json",
        "sources/formats/file.py:_first_object",
        "sources/formats/file.py:_parse",
        "sources/formats/named.py:_unpacked",
        "sources/formats/recording.py:_is_json",
        "sources/proxy/prompts.py:parsed",
    },
    "a trace, read in pieces so that millions of rows are never in memory; sizes and unpacking are bounded there": {
        "sources/formats/file.py:_stored",
        "sources/formats/file.py:open_source",
        "sources/formats/packing.py:read_head",
        "sources/formats/parquet.py:open",
        "sources/formats/stored.py",
    },
    "the answer of a server, of which so many bytes are read": {
        "capture/engines/served/client.py:_status_failure",
        "capture/engines/served/counters.py:_look",
        "capture/engines/served/loopback.py:data_received",
        "capture/engines/served/probe.py:_get",
        "capture/engines/served/trial.py:_word",
    },
    "bytes that came through the door, unpacked by it": {"capture/routing/popularity.py:_text"},
    "written into a file that the door opened, or that is made anew": {
        "capture/recorders/stream.py:__init__",
        "capture/recorders/stream.py:close",
        "core/trace.py:save",
        "core/baseline/file.py:pack",
        "sources/proxy/writer.py:_open",
        "capture/engines/served/counters.py:_write_gauges",
        "core/record/merge.py:_write_requests",
        "render/picture.py:take_picture",
        "sources/formats/forms.py:write_form",
    },
    "a file that the user names to be written": {
        "cli/init.py:_write",
        "cli/output.py:_append_summary",
        "sources/formats/jsonl.py:write",
    },
    "the YAML reader, whose text comes through the door": {"core/yamlfile.py:loads"},
    "no file: a session, an engine": {
        "capture/worker/lanes.py:_open",
        "capture/worker/solo.py:prepare",
        "capture/parallel/engine.py:open",
    },
}


def reads(tree: ast.AST, function: str = "") -> Iterator[str]:
    """Functions that call what reads or writes a file, or makes values of its content."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == "open":
                yield inner
            if isinstance(called, ast.Attribute):
                root = called.value
                while isinstance(root, ast.Attribute):
                    root = root.value
                of_module = OF_MODULES.get(root.id, set()) if isinstance(root, ast.Name) else set()
                if called.attr in METHODS or called.attr in of_module:
                    yield inner
        yield from reads(node, inner)


def round_the_door(files: Iterator[tuple[str, ast.AST]]) -> list[str]:
    allowed = {place for places in ROUND.values() for place in places}
    found = [(file, function) for file, tree in files if file != DOOR for function in reads(tree)]
    return [f"{file}:{function}" for file, function in found if not {file, f"{file}:{function}"} & allowed]


def test_every_read_of_a_file_goes_through_the_door() -> None:
    assert round_the_door((name(file), parsed(file)) for file in FILES) == []


@pytest.mark.parametrize(
    "leak",
    [
        "open(path)", "path.read_text()", "json.loads(path)", "json.load(file)", "np.load(path)", "pq.read_table(path)",
        "yaml.safe_load(text)", "gzip.decompress(data)", "Path(a).open('rb')", "zipfile.ZipFile(path)",
        "pa.ipc.open_stream(file)", "pd.read_csv(path)", "(path / 'a').write_text('')",
    ],
)  # fmt: skip
def test_a_read_that_goes_round_the_door_is_found(leak: str) -> None:
    planted = ast.parse(f"class A:\n    def leak(self):\n        return [{leak}]\n")
    assert round_the_door(iter([("core/record/layout.py", planted)])) == ["core/record/layout.py:leak"]
    assert round_the_door(iter([(DOOR, planted)])) == []
