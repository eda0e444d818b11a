"""``python -m benchmarks.gpu.carry DATA``: what the workloads need that the repository does not hold, in ``.carry/``.

A minute of the Azure conversation trace (Azure/AzurePublicDataset, CC-BY-4.0), popularity of Mixtral's experts
(efeslab/fiddler, Apache-2.0, 32 layers, seven subjects of MMLU, summed) and of OLMoE's (allenai/OLMoE, Apache-2.0,
layers 0, 7 and 15 on C4). A few hundred kilobytes, to be copied along to a
machine that has only the repository.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARRY = ROOT / ".carry"
MINUTE_S = 61.0  # the workload takes 60; a second to spare
MIXTRAL = "mixtral-popularity.json"
OLMOE = "olmoe-popularity.json"
MINUTE = "azure-conversation-minute.csv"
OLMOE_EXPERTS, OLMOE_DOMAIN = 64, "c4"


def main(arguments: list[str] | None = None) -> int:
    """Write the files; exit code 2 and one line where a source is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carry", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with traces/ and routing/")
    parser.add_argument("--to", type=Path, default=CARRY, help="folder for the files (default: .carry)")
    options = parser.parse_args(arguments)
    try:
        for path in prepare(options.data, options.to):
            print(f"{path} ({path.stat().st_size:,} bytes)")
    except FileNotFoundError as error:
        print(f"gpu-carry: {error.filename}: no such file; workloads/gpu say where it comes from", file=sys.stderr)
        return 2
    return 0


def prepare(data: Path, to: Path) -> list[Path]:
    """Write all files and return their paths.

    Raises:
        FileNotFoundError: a source is missing.
    """
    to.mkdir(parents=True, exist_ok=True)
    counts = {
        MIXTRAL: mixtral_counts(data / "routing" / "mixtral_8x7b_original"),
        OLMOE: olmoe_counts(data / "routing" / "olmoe_mixtral_expert_counts.csv"),
    }
    for name, counts_LE in counts.items():
        (to / name).write_text(json.dumps({"counts": counts_LE}) + "\n", encoding="utf-8")
    with (data / "traces" / "AzureLLMInferenceTrace_conv.csv").open(encoding="utf-8") as stream:
        (to / MINUTE).write_text("".join(first_minute(stream.read().splitlines())), encoding="utf-8")
    return [to / name for name in (*counts, MINUTE)]


def mixtral_counts(folder: Path) -> list[list[int]]:
    """Assignments by layer and expert, summed over the subjects [32, 8].

    Raises:
        FileNotFoundError: no such folder, or an empty one.
    """
    files = sorted(folder.glob("expert_popularity_*.json"))
    if not files:
        raise FileNotFoundError(2, "no popularity files", str(folder))
    tables = [json.loads(file.read_text(encoding="utf-8"))["expert_popularity"] for file in files]
    return [[sum(column) for column in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


def olmoe_counts(file: Path) -> list[list[int]]:
    """Assignments by measured layer (0, 7, 15) and expert on C4 [3, 64]."""
    measured: dict[int, list[int]] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if (row["model"], row["kind"], row["domain"]) == ("olmoe", "expert_counts", OLMOE_DOMAIN):
                counts = measured.setdefault(int(row["layer"]), [0] * OLMOE_EXPERTS)
                counts[int(row["expert"])] = int(row["count"])
    return [measured[layer] for layer in sorted(measured)]


def first_minute(lines: list[str]) -> list[str]:
    """The header and the rows of the first minute, each with its newline."""
    start = _seconds(lines[1])
    return [f"{lines[0]}\n", *(f"{line}\n" for line in lines[1:] if line and _seconds(line) - start <= MINUTE_S)]


def _seconds(line: str) -> float:
    stamp = line.split(",", 1)[0]
    whole, _, fraction = stamp.partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")


if __name__ == "__main__":
    sys.exit(main())
