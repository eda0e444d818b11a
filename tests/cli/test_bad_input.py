"""Bad input through ``main``: one clear line on stderr, the right exit code, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.helpers.records import make_facts, make_pass, make_routing, write_record
from tests.helpers.tiny_run import SHAPE, SHORT, Ran, run_main

TRAFFIC = """\
  arrivals: {pattern: poisson, rate: 40}
  lengths: {input: {distribution: fixed, value: 8}, output: {distribution: fixed, value: 4}}
  prompts: {source: packaged}
  num_requests: 8
"""
GOOD = f"name: tiny\ntraffic:\n{TRAFFIC}models: [{{name: dense, path: dense}}]\ndevice: cpu\n"
PRICED = GOOD + "prices: {usd_per_device_hour: 1}\n"


@pytest.fixture
def here(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the dense model in it."""
    shutil.copytree(tiny / "dense", tmp_path / "dense")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(ran: Ran, code: int = 2) -> str:
    """The one line of a refusal."""
    assert ran.code == code, ran
    lines = ran.stderr.splitlines()
    assert len(lines) == 1, ran.stderr
    assert lines[0].startswith("moeprof: ")
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
    return lines[0].removeprefix("moeprof: ")


def refused(here: Path, text: str, *options: object, code: int = 2) -> str:
    """What ``run`` says to a workload that it refuses before anything starts; nothing may be written."""
    (here / "w.yaml").write_text(text, encoding="utf-8")
    before = sorted(here.rglob("*"))
    said = line(run_main(["run", "w.yaml", *options]), code)
    assert sorted(here.rglob("*")) == before, "something was written"
    return said


def test_the_workload_that_the_others_are_made_from_is_good(here: Path) -> None:
    (here / "w.yaml").write_text(PRICED, encoding="utf-8")
    ran = run_main(["run", "w.yaml", "--dry-run"])
    assert (ran.code, ran.stderr) == (0, "")
    assert "8, open" in ran.stdout
    assert not (here / "reports").exists()


# -- the workload file -------------------------------------------------------------------------------------------------

BAD_WORKLOADS: dict[str, tuple[str, str]] = {
    "syntax": ("name: [tiny\ntraffic: {", "w.yaml:2: not valid YAML"),
    "tab": ("name: tiny\n\ttraffic: 1", "w.yaml:2: not valid YAML"),
    "empty": ("", "w.yaml:1: the file is empty; `moeprof init` writes starter workloads"),
    "a list": ("- name: tiny\n", "w.yaml:1: found a list; keys and values are allowed"),
    "unknown key": (PRICED + "round: 3\n", "w.yaml:10: round: unknown key; allowed here: "),
    "nearest key": (PRICED + "round: 3\n", "did you mean 'rounds'?"),
    "unknown inner key": (
        PRICED.replace("rate: 40", "rates: 40"),
        "w.yaml:3: traffic.arrivals.rates: unknown key; allowed here: burst_size, burstiness, concurrency, pattern, "
        "rate; did you mean 'rate'?",
    ),
    "missing keys": ("name: tiny\n", "w.yaml:1: missing traffic, models"),
    "missing length": (
        PRICED.replace(", output: {distribution: fixed, value: 4}", ""),
        "traffic: lengths.output: missing; synthetic traffic needs it",
    ),
    "text for a number": (PRICED + "rounds: three\n", "w.yaml:10: rounds: found 'three'; a number is allowed"),
    "a list for a number": (PRICED + "rounds: [3]\n", "w.yaml:10: rounds: found a list; one value is allowed"),
    "half a round": (PRICED + "rounds: 2.5\n", "w.yaml:10: rounds: found 2.5; a whole number is allowed"),
    "not a number": (PRICED + "rounds: .nan\n", "rounds: found '.nan'; a number is allowed"),
    "infinite": (PRICED + "max_minutes: .inf\n", "max_minutes: found '.inf'; a number is allowed"),
    "huge": (PRICED + "seed: 1e400\n", "seed: found '1e400'; a number is allowed"),
    "a number for yes": (
        PRICED + "instruments: {power: 1}\n",
        "instruments.power: found '1'; true or false is allowed",
    ),
    "negative rate": (PRICED.replace("rate: 40", "rate: -1"), "traffic.arrivals: rate: found -1; more than 0"),
    "negative length": (PRICED.replace("value: 8", "value: -8"), "value: found -8; 1 to 10,000,000 is allowed"),
    "no rounds": (PRICED + "rounds: 0\n", "rounds: found 0; 1 or more is allowed"),
    "negative seed": (PRICED + "seed: -1\n", "seed: found -1; 0 or more is allowed"),
    "negative price": (
        GOOD + "prices: {usd_per_device_hour: -1}\n",
        "prices: usd_per_device_hour: found -1.0; more than 0 is allowed",
    ),
    "key twice": (PRICED + "device: cpu\n", "w.yaml:10: device: the key stands here twice"),
    "model twice": (
        PRICED.replace("path: dense}]", "path: dense}, {name: dense, path: dense}]"),
        "models: the name 'dense' stands twice",
    ),
    "no models": (PRICED.replace("[{name: dense, path: dense}]", "[]"), "models: found an empty list"),
    "choice": (
        PRICED.replace("pattern: poisson", "pattern: poison"),
        "traffic.arrivals.pattern: found 'poison'; allowed: poisson, gamma, constant, burst, concurrency, offline; "
        "did you mean 'poisson'?",
    ),
    "device": (PRICED.replace("device: cpu", "device: tpu"), "device: found 'tpu'; auto, cpu, cuda or cuda:N"),
    "empty value": (PRICED.replace("name: tiny", "name:"), "w.yaml:1: name: found nothing; one value is allowed"),
    "a name with a path in it": (PRICED.replace("name: dense", "name: ../x"), "found '../x'; letters, digits"),
    "a name with markup": (PRICED.replace("name: tiny", 'name: "[bold]x"'), "found '[bold]x'; letters, digits"),
    "negative API price": (
        GOOD + "prices:\n  api: {input: 1, output: -4}\n",
        ":10: prices.api: output: found -4.0; more than 0 is allowed",
    ),
    "API price of an older key, for nothing": (
        GOOD + "prices: {api_usd_per_1m_output_tokens: 0}\n",
        "prices: api_usd_per_1m_output_tokens: found 0.0; more than 0 is allowed",
    ),
    "API price twice": (
        GOOD + "prices: {api: {input: 1, output: 4}, api_usd_per_1m_input_tokens: 1}\n",
        "prices: api_usd_per_1m_input_tokens: give it or api, not both",
    ),
    "half an API price": (GOOD + "prices: {api: {input: 1}}\n", "prices.api: missing output"),
    "power below 0": (
        GOOD + "prices: {usd_per_kwh: -0.2, includes_power: false}\n",
        "prices: usd_per_kwh: found -0.2; more than 0 is allowed",
    ),
    "pue below 1": (GOOD + "prices: {pue: 0.9}\n", "prices: pue: found 0.9; 1 or more is allowed"),
    "capital below 0": (
        GOOD + "prices: {capital: {usd_per_device: -30000}}\n",
        "prices.capital: usd_per_device: found -30000.0; more than 0 is allowed",
    ),
    "a price in text": (GOOD + "prices: {usd_per_device_hour: 1 USD}\n", "found '1 USD'; a number is allowed"),
}


@pytest.mark.parametrize("case", BAD_WORKLOADS)
def test_a_bad_workload_is_refused_in_one_line(here: Path, case: str) -> None:
    text, expected = BAD_WORKLOADS[case]
    assert expected in refused(here, text)


def test_a_missing_workload_is_said(here: Path) -> None:
    assert line(run_main(["run", "none.yaml"])) == "none.yaml: no such file"


def test_a_folder_or_a_binary_file_is_no_workload(here: Path) -> None:
    assert "cannot be read" in line(run_main(["run", "dense"]))
    (here / "w.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as UTF-8 text" in line(run_main(["run", "w.yaml"]))


def test_control_characters_of_a_workload_do_not_reach_the_terminal(here: Path) -> None:
    said = refused(here, PRICED + '"\\e[31mred\\e[0m\\nmoeprof: fine": 1\n')
    assert "\x1b" not in said
    assert "unknown key" in said


OPTIONS: dict[str, tuple[list[object], str]] = {
    "rate": (["--request-rate", -1], "rate: found -1; more than 0 is allowed"),
    "rate 0": (["--request-rate", 0], "rate: found 0; more than 0 is allowed"),
    "prompts": (["--num-prompts", 0], "num_requests: found 0; 1 to 1,000,000 is allowed"),
    "rounds": (["--rounds", 0], "rounds: found 0; 1 or more is allowed"),
    "rounds text": (["--rounds", "x"], "Invalid value for '--rounds'"),
    "goodput key": (["--goodput", "tftt:5"], "did you mean ttft?"),
    "goodput number": (["--goodput", "ttft:fast"], "'fast' is no number of milliseconds"),
    "goodput negative": (["--goodput", "ttft:-5"], "more than 0 is allowed"),
    "loops": (["--max-concurrency", 2, "--request-rate", 3], "--max-concurrency closes the loop"),
    "price": (["--usd-per-device-hour", -2], "'--usd-per-device-hour': found -2; more than 0 is allowed"),
    "format": (["--write", "pdf"], "--write 'pdf': unknown format 'pdf'; allowed: md, html, json, csv"),
    "unknown option": (["--request-rates", 3], "No such option: --request-rates"),
    "minutes": (["--max-minutes", 0], "max_minutes: found 0.0; more than 0 is allowed"),
    "minutes nan": (["--max-minutes", "nan"], "max_minutes: found nan"),
    "price inf": (["--usd-per-device-hour", "inf"], "'--usd-per-device-hour': found inf"),
    "api of one side": (["--api", "0.15"], "--api '0.15': allowed is INPUT/OUTPUT or INPUT/OUTPUT/CACHED"),
    "api below 0": (["--api", "0.15/-0.6"], "--api '0.15/-0.6': output: found -0.6; more than 0 is allowed"),
    "api for nothing": (["--api", "0.15/0.6/0"], "--api '0.15/0.6/0': cached_input: found 0.0; more than 0 is allowed"),
    "api nan": (["--api", "nan/1"], "--api 'nan/1': input: found nan"),
    "rate nan": (["--request-rate", "nan"], "rate: found nan"),
    "threads": (["--threads", 0], "threads: found 0; 1 or more is allowed"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option_is_refused_in_one_line(here: Path, case: str) -> None:
    options, expected = OPTIONS[case]
    assert expected in refused(here, PRICED, *options)


# -- files that the workload names -------------------------------------------------------------------------------------


def with_trace(path: str) -> str:
    return (
        f"name: t\ntraffic: {{trace: {{path: {path}}}, prompts: {{source: packaged}}}}\n"
        + PRICED[PRICED.index("models") :]
    )


TRACES: dict[str, tuple[str, str]] = {
    "empty": ("", "empty; a trace has at least one request"),
    "no rows": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n",
        "no rows after the header; a trace has at least one request",
    ),
    "missing column": (
        "TIMESTAMP,ContextTokens\n2023-11-16 18:00:00,5\n",
        "not a known trace (found columns TIMESTAMP, ContextTokens)",
    ),
    "text in a number": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,5,5\n2023-11-16 18:00:01.0,many,5\n",
        ":3: ContextTokens is 'many'; a number is expected",
    ),
    "nan": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,5,nan\n",
        ":2: GeneratedTokens is nan; a whole number from 0",
    ),
    "negative": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0,-5,5\n",
        ":2: ContextTokens is -5; a whole number from 0",
    ),
}


@pytest.mark.parametrize("case", TRACES)
def test_a_bad_trace_is_refused_with_file_and_row(here: Path, case: str) -> None:
    content, expected = TRACES[case]
    (here / "trace.csv").write_text(content)
    said = refused(here, with_trace("trace.csv"))
    assert expected in said
    assert "trace.csv" in said


def test_unsorted_times_are_accepted_and_said(here: Path) -> None:
    rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    rows += "".join(f"2023-11-16 18:00:0{s}.0,{8 + s},4\n" for s in (2, 1, 3))
    (here / "trace.csv").write_text(rows)
    (here / "w.yaml").write_text(with_trace("trace.csv"))
    ran = run_main(["run", "w.yaml", "--dry-run"])
    assert ran.code == 0, ran.stderr
    assert "sorted" in ran.stdout
    assert "3, open" in ran.stdout


def test_missing_files_are_named_with_the_folder_of_the_workload(here: Path) -> None:
    assert str(here / "none.csv") in refused(here, with_trace("none.csv"))
    text = PRICED.replace("{source: packaged}", "{source: file, path: mine.txt}")
    assert str(here / "mine.txt") in refused(here, text)


def test_paths_start_at_the_folder_of_the_workload_not_at_the_current_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = here / "inner"
    inner.mkdir()
    shutil.move(here / "dense", inner / "dense")
    (inner / "mine.txt").write_text("one passage of my own text, said again and again. " * 40)
    text = PRICED.replace("{source: packaged}", "{source: file, path: mine.txt}")
    (inner / "w.yaml").write_text(text)
    ran = run_main(["run", inner / "w.yaml", "--dry-run"])
    assert (ran.code, ran.stderr) == (0, "")


# -- models ------------------------------------------------------------------------------------------------------------


def test_an_unknown_folder_is_no_model(here: Path) -> None:
    said = refused(here, PRICED.replace("path: dense", "path: ./densse"))
    assert f"model dense: no folder {here / 'densse'}" in said


def test_an_unknown_hub_id_fails_at_once_without_a_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    from moeprof.capture.models import find

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(find.socket, "getaddrinfo", Mock(side_effect=OSError))
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    said = refused(here, PRICED.replace("path: dense", "path: nobody/nothing"))
    assert said.startswith("model dense: nobody/nothing is no local folder, not in the hub's cache, and the hub cannot")


@pytest.mark.usefixtures("spawned_workers")  # what a process reads of its environment when it begins
def test_a_hub_model_of_the_cache_is_found_without_a_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    snapshot = here / "cache" / "models--some--body" / "snapshots" / ("a" * 40)
    shutil.copytree(here / "dense", snapshot)
    (here / "cache" / "models--some--body" / "refs").mkdir()
    (here / "cache" / "models--some--body" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(here / "cache"))  # of the process that looks at the model
    (here / "w.yaml").write_text(PRICED.replace("path: dense", "path: some/body"))
    ran = run_main(["run", "w.yaml", "--dry-run"])
    assert (ran.code, ran.stderr) == (0, "")


def test_what_is_no_hub_id_is_said(here: Path) -> None:
    assert "give a local folder or a hub id like org/name" in refused(
        here, PRICED.replace("path: dense", "path: a/b/c")
    )
    assert "neither a local folder nor a hub id" in refused(here, PRICED.replace("path: dense", "path: a--b/c.."))


def test_a_folder_without_a_config_is_no_model(here: Path) -> None:
    (here / "dense" / "config.json").unlink()
    assert "no config.json in" in refused(here, PRICED)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '"x"', "\x00"])
def test_a_damaged_config_is_said(here: Path, content: str) -> None:
    (here / "dense" / "config.json").write_text(content)
    assert refused(here, PRICED).startswith("model dense: ")


def test_a_damaged_tokenizer_is_said(here: Path) -> None:
    (here / "dense" / "tokenizer.json").write_text('{"model": 3}')
    assert "damaged tokenizer" in refused(here, PRICED)


def test_a_checkpoint_of_pickles_is_refused(here: Path) -> None:
    (here / "dense" / "model.safetensors").rename(here / "dense" / "pytorch_model.bin")
    said = refused(here, PRICED)
    assert "found pytorch_model.bin, which may hold code" in said
    (here / "dense" / "pytorch_model.bin").unlink()
    assert "found none" in refused(here, PRICED)


def test_a_config_name_that_is_nearly_known_gets_the_nearest(here: Path) -> None:
    from moeprof.capture.models.find import named_configs

    name = sorted(named_configs())[0]
    text = PRICED.replace("path: dense", f"config: {name[:-1]}, weights: random")
    assert f"did you mean {name!r}?" in refused(here, text)


def test_a_vocabulary_smaller_than_the_tokenizers_is_said(here: Path) -> None:
    change_config(here, vocab_size=50)
    assert "its vocabulary has 50 entries, the tokenizer made id" in refused(here, PRICED)


def change_config(here: Path, **values: Any) -> None:
    file = here / "dense" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_out_of_memory_is_predicted_with_what_is_needed_and_what_is_there(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeprof.capture.memory.predict.free_memory_bytes", lambda device, gpu: 100 * 2**20)
    said = refused(here, PRICED)
    assert said.startswith("model dense: needs about ") and " KiB weights" in said
    assert "100 MiB of " in said and "stays as margin (engine.memory_margin_ratio 0.05)" in said
    assert "its weights leave no room for a step" in said


def test_a_dry_run_shows_what_does_not_fit_and_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeprof.capture.memory.predict.free_memory_bytes", lambda device, gpu: 100 * 2**20)
    (here / "w.yaml").write_text(PRICED, encoding="utf-8")
    ran = run_main(["run", "w.yaml", "--dry-run"])
    assert ran.code == 2 and "does not fit" in ran.stdout and "for the process itself" in ran.stderr


def test_a_device_without_a_price_is_an_error_that_says_how_to_give_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeprof.capture.devices.environment.cpu_name", lambda: "Abacus 9000")
    said = refused(here, GOOD)
    assert "device 'Abacus 9000': no price is known for it; give one with --usd-per-device-hour" in said


# A worker finds these when it loads; with no model left, bad input is exit 2.

BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "damaged weights": (
        lambda here: shorten(here / "dense" / "model.safetensors", 500),
        "damaged weights file",
    ),
    "mismatching weights": (
        lambda here: change_config(here, num_hidden_layers=3, layer_types=["full_attention"] * 3),
        "config and weights do not match",
    ),
    "mismatching shapes": (lambda here: change_config(here, intermediate_size=64), "cannot be loaded"),
}
# What is refused before anything starts.
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown architecture": (
        lambda here: change_config(here, model_type="no_such_thing", architectures=["NoSuchThing"]),
        "has no class for model_type 'no_such_thing'",
    ),
    "remote code": (
        lambda here: change_config(
            here,
            model_type="their_own",
            architectures=["TheirOwn"],
            auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
        ),
        "its code comes with the checkpoint (`auto_map`); read it, then set `trust_remote_code: true`",
    ),
}


def shorten(file: Path, num_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:-num_bytes])


@pytest.fixture(scope="module")
def broken(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Ran, Path]:
    """One run of models that are all broken in their own ways: what was said of each."""
    folder = tmp_path_factory.mktemp("broken")
    specs = []
    for number, change in enumerate(BROKEN.values()):
        one = folder / f"m{number}"
        shutil.copytree(tiny / "dense", one / "dense")
        change[0](one)
        (one / "dense" / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
        specs.append(f"{{name: m{number}, path: m{number}/dense}}")
    text = SHORT.format(rate=20, num_requests=4, models=", ".join(specs))
    (folder / "w.yaml").write_text(text)
    ran = run_main(["run", folder / "w.yaml", "--output-dir", folder / "run", "--quiet"])
    models = json.loads((folder / "run" / "experiment.json").read_text())["models"]
    return {case: str(m["error"]) for case, m in zip(BROKEN, models, strict=True)}, ran, folder


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_named_with_what_is_wrong(broken: tuple[dict[str, str], Ran, Path], case: str) -> None:
    said = broken[0][case]
    assert said.startswith("model m")
    assert BROKEN[case][1] in said
    assert "\n" not in said


def test_a_run_of_broken_models_only_is_bad_input(broken: tuple[dict[str, str], Ran, Path]) -> None:
    _, ran, folder = broken
    assert ran.code == 2
    talk = [row for row in ran.stderr.splitlines() if not row.startswith(("record: ", "report: "))]
    assert len(talk) == 1 and talk[0].startswith("moeprof: m0 failed: model m0: damaged weights file")
    assert json.loads((folder / "run" / "experiment.json").read_text())["status"] == "failed"
    assert "No model produced tokens" in ran.stdout


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_class_builds_is_refused_before_the_run_and_its_code_is_not_run(here: Path, case: str) -> None:
    REFUSED[case][0](here)
    (here / "dense" / "code.py").write_text(f"open({str(here / 'ran')!r}, 'w').close()\n")
    said = refused(here, PRICED)
    assert said.startswith("model dense: ") and REFUSED[case][1] in said and "\n" not in said
    assert not (here / "ran").exists()


# -- output folders ----------------------------------------------------------------------------------------------------


def test_a_folder_that_has_something_in_it_is_not_overwritten(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "mine").write_text("precious")
    assert "is there already and is not empty" in refused(here, PRICED, "--output-dir", "out")
    assert (here / "out" / "mine").read_text() == "precious"


def test_a_file_in_place_of_the_folder_is_not_overwritten(here: Path) -> None:
    (here / "out").write_text("precious")
    assert "is there already" in refused(here, PRICED, "--output-dir", "out")
    assert "out/below: cannot be written" in refused(here, PRICED, "--output-dir", "out/below")


def test_init_does_not_overwrite(here: Path) -> None:
    assert run_main(["init", "mine"]).code == 0
    before = {p: p.read_text() for p in (here / "mine").iterdir()}
    assert before
    assert "is there already; nothing was written, use --force" in line(run_main(["init", "mine"]))
    assert {p: p.read_text() for p in (here / "mine").iterdir()} == before


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A small written record of one MoE model."""
    import numpy as np

    counts = np.ones((10, 2, 2, 4), dtype=np.int64)
    folder = write_record(tmp_path / "run", {"moe": (make_facts(), [[make_pass(routing=make_routing(counts))]])})
    rewrite(folder / "experiment.json", pricing={"usd_per_device_hour": 1.0})
    return folder


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def report(folder: Path) -> Ran:
    return run_main(["report", folder])


def test_the_record_that_the_others_are_made_from_is_good(record: Path) -> None:
    ran = report(record)
    assert (ran.code, ran.stderr) == (0, "")


def test_no_record_is_said(tmp_path: Path) -> None:
    assert "no such run folder" in line(report(tmp_path / "none"))
    assert "not a moeprof run (no experiment.json)" in line(report(tmp_path))


def test_a_record_from_a_newer_format_is_refused(record: Path) -> None:
    rewrite(record / "experiment.json", format_version=2)
    assert "format 2, this moeprof reads up to 1; upgrade moeprof" in line(report(record))


@pytest.mark.parametrize("value", ["1", None, 1.5, 0, -1, True])
def test_a_format_version_that_is_none_is_refused(record: Path, value: Any) -> None:
    rewrite(record / "experiment.json", format_version=value)
    assert "format" in line(report(record))


PASS = "moe/launch-0/round-0"
DAMAGED = (
    "experiment.json",
    "moe/model.json",
    "moe/launch-0/launch.json",
    f"{PASS}/pass.json",
    f"{PASS}/requests.parquet",
    f"{PASS}/steps.parquet",
    f"{PASS}/telemetry.parquet",
    f"{PASS}/routing.npz",
)


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("how", ["cut", "empty", "noise"])
def test_a_damaged_file_of_a_record_is_named(record: Path, name: str, how: str) -> None:
    file = record / name
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"\x93NUMPY\xff" * 20}[how])
    said = line(report(record))
    assert "damaged" in said
    assert str(file).removesuffix(".parquet") in said


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "models no list": ("experiment.json", {"models": 3}),
    "model without a name": ("experiment.json", {"models": [{}]}),
    "workload a list": ("experiment.json", {"workload": []}),
    "environment a text": ("experiment.json", {"environment": "here"}),
    "pricing a list": ("experiment.json", {"pricing": [1]}),
    "pricing of other keys": ("experiment.json", {"pricing": {"euro": 1}}),
    "facts without layers": ("moe/model.json", {"moe_layers": None}),
    "facts of other layers": ("moe/model.json", {"moe_layers": [{"x": 1}]}),
    "slo unknown": ("experiment.json", {"workload": {"slo": {"ttft_parsec": 1}}}),
    "schedules a text": ("experiment.json", {"schedules": "none"}),
    "a model outside of the record": ("experiment.json", {"models": [{"name": "x", "folder": "../../etc"}]}),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_record_of_another_shape_is_damaged_not_a_crash(record: Path, case: str) -> None:
    name, values = SHAPES[case]
    rewrite(record / name, **values)
    assert "damaged" in line(report(record))


def test_missing_columns_are_damage(record: Path) -> None:
    import pyarrow.parquet as pq

    file = record / PASS / "requests.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["arrival_s"]), file)
    said = line(report(record))
    assert "damaged" in said and "arrival_s" in said


def test_a_report_is_not_written_over_anything(record: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    said = line(run_main(["report", record, "--write", "md", "--output-dir", tmp_path / "out"]))
    assert "is there already and is not empty" in said
    said = line(run_main(["report", record, "--write", "md", "--output-dir", record]))
    assert "is there already and is not empty" in said


@pytest.mark.parametrize(
    "options",
    [
        ["--usd-per-device-hour", "-3"],
        ["--usd-per-device-hour", "nan"],
        ["--pue", "0.5"],
        ["--usd-per-kwh", "0"],
        ["--usd-per-kwh", "0.2"],
        ["--api", "1/0"],
        ["--api", "1/2/3/4"],
        ["--write", "docx"],
        ["--format", "xml"],
    ],
)
def test_a_bad_option_of_report_is_refused(record: Path, options: list[str]) -> None:
    line(run_main(["report", record, *options]))


EVIL = "<script>alert(1)</script>[bold red]`x`|\x1b[31m"


def test_text_of_a_record_stays_text_in_every_form(record: Path, tmp_path: Path) -> None:
    rewrite(
        record / "experiment.json",
        workload={"name": EVIL},
        workload_text=EVIL,
        environment={"device_name": EVIL, "cpu": EVIL},
        models=[{"name": "moe", "folder": "moe", "status": "failed", "error": EVIL}],
    )
    rewrite(record / "moe" / "model.json", source=EVIL, notes=[EVIL])
    options = ["--write", "md,html", "--output-dir", tmp_path / "out", "--format", "table"]
    ran = run_main(["report", record, *options])
    assert ran.code == 0, ran.stderr
    assert "[bold red]" in ran.stdout  # said as it is, not taken as markup
    assert "\x1b" not in ran.stdout
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in html
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "<script>" not in markdown.replace("\\<script\\>", "")
    for form in ("json", "csv", "md"):
        assert run_main(["report", record, "--format", form]).code == 0


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_an_unknown_command_or_metric_is_said() -> None:
    assert "No such command 'rum'" in line(run_main(["rum"]))
    assert "did you mean ttft_p50_s" in line(run_main(["explain", "tftt_p99_s"]))


def test_the_shape_of_the_tiny_models_is_what_these_tests_think() -> None:
    assert SHAPE["hidden_size"] == 32
