"""The light installation: what reads records works without a library of the extra, what runs models names the extra."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from moeprof.cli.main import EXTRAS

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests/records/format-1"
SMOKE = ROOT / "workloads/ci-smoke.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# distribution -> the module that is imported from it, where the names differ
MODULES = {"nvidia-ml-py": "pynvml"}
BLOCKED = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*EXTRAS["run"], *EXTRAS["serve"])!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
from moeprof.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def light(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, where nothing that the extra installs can be imported."""
    command = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", str(RECORD), "--write", "md,html,json,csv", "--output-dir", "out"],
        ["compare", str(RECORD), "--write", "md,html,json", "--output-dir", "out"],
        ["regress", str(RECORD), "--baseline", str(RECORD), "--allow-undecided", "--no-github"],
        ["baseline", "save", str(RECORD), "main"],
        ["params", "--list"],
        ["params", "gpt-4", "mixtral-8x7b"],
        ["explain", "dead_experts"],
        ["trace", "synth", "trace.jsonl", "--request-rate", "2", "--num-prompts", "4"],
        ["trace", "inspect", "trace.jsonl"],
        ["init", "--ci", "github"],
    ],
    ids=lambda arguments: " ".join(a for a in arguments[:2] if "/" not in a),
)
def test_what_reads_needs_no_extra(arguments: list[str], tmp_path: Path) -> None:
    if arguments[1] == "inspect":
        (tmp_path / "trace.jsonl").write_text('{"arrival_s": 0.0, "input_tokens": 8, "output_tokens": 2}\n')
    ran = light(arguments, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout or arguments[0] in ("baseline", "trace")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", str(SMOKE), "--output-dir", "out"],
        ["run", str(SMOKE), "--dry-run"],
        ["ladder", str(SMOKE), "--output-dir", "out"],
        ["regress", "--ab", str(SMOKE), str(SMOKE), "--output-dir", "out"],
        ["params", str(ROOT / "moeprof/data/ci/ci-smoke-moe.json")],
        ["doctor"],
        ["doctor", "--coverage"],
    ],
    ids=lambda arguments: " ".join(a for a in arguments[:3] if "/" not in a),
)
def test_what_runs_a_model_names_the_extra_in_one_line_and_leaves_nothing(arguments: list[str], tmp_path: Path) -> None:
    ran = light(arguments, tmp_path)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    line = r"moeprof: \w+ is not installed, and this command needs it: pip install 'moeprof\[run\]'\n"
    assert re.fullmatch(line, ran.stderr), ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_talks_to_servers_names_its_own_extra(tmp_path: Path) -> None:
    ran = light(["trace", "record", "--upstream", "http://127.0.0.1:9"], tmp_path)
    line = "moeprof: aiohttp is not installed, and this command needs it: pip install 'moeprof[serve]'\n"
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", line)
    assert list(tmp_path.iterdir()) == []


def test_help_loads_nothing_that_reads_tables() -> None:
    """It is what people type first, and each of these takes longer than all the rest."""
    heavy = ("pandas", "pyarrow", "scipy", "aiohttp")
    program = f"import sys, moeprof.cli.main; print([n for n in {heavy} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_a_missing_module_of_no_extra_is_our_mistake(tmp_path: Path) -> None:
    program = BLOCKED.replace(repr((*EXTRAS["run"], *EXTRAS["serve"])), repr(("rich",)))
    ran = subprocess.run(
        [sys.executable, "-c", program, "params", "--list"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr and "No module named 'rich" in ran.stderr


def names(requirements: list[str]) -> set[str]:
    """Of the packages, as pip compares them."""
    return {re.split(r"[>=<\[]", text)[0].lower().replace("_", "-") for text in requirements}


def test_the_table_of_extras_is_that_of_the_package() -> None:
    for extra, libraries in EXTRAS.items():
        installed = {MODULES.get(name, name) for name in names(PROJECT["optional-dependencies"][extra])}
        assert installed <= set(libraries)
        assert not set(libraries) & names(PROJECT["dependencies"])
    assert "moeprof[run,serve]" in PROJECT["optional-dependencies"]["dev"]


@pytest.mark.parametrize(
    ("file", "extras"), [("constraints.txt", ("run", "serve", "dev")), ("constraints-517.txt", ("run",))]
)
def test_every_package_that_is_named_is_pinned(file: str, extras: tuple[str, ...]) -> None:
    pinned = names([line for line in (ROOT / file).read_text().splitlines() if "==" in line])
    wanted = names(PROJECT["dependencies"]).union(*(names(PROJECT["optional-dependencies"][extra]) for extra in extras))
    assert wanted - {"moeprof"} <= pinned
