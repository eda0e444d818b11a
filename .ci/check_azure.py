"""Is every request of the Azure window accounted for? Compares a run with an independent reading of the CSV."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

WINDOW_S = 60.0


def main(run: Path, trace: Path, scale: float) -> None:
    """Check arrivals, lengths and statuses of every pass of the workload's own traffic."""
    rows = pd.read_csv(trace)
    stamps = pd.to_datetime(rows["TIMESTAMP"])
    seconds = (stamps - stamps.iloc[0]).dt.total_seconds().to_numpy()
    inside = seconds < WINDOW_S
    scaled = [
        np.maximum(1, np.floor(rows[c].to_numpy()[inside] * scale + 0.5)) for c in ("ContextTokens", "GeneratedTokens")
    ]
    offline = None
    for pass_folder in sorted(run.glob("*/launch-0/round-*")):
        requests = pd.read_parquet(pass_folder / "requests.parquet").sort_values("request")
        offline = bool((requests["arrival_s"] == 0).all())
        require(
            len(requests) == int(inside.sum()), f"{pass_folder}: {len(requests)} requests, the CSV has {inside.sum()}"
        )
        require((requests["input_tokens"].to_numpy() == scaled[0]).all(), f"{pass_folder}: prompt lengths differ")
        require(
            (requests["asked_output_tokens"].to_numpy() == scaled[1]).all(), f"{pass_folder}: output lengths differ"
        )
        if not offline:
            apart = np.abs(requests["arrival_s"].to_numpy() - seconds[inside]).max()
            require(apart < 1e-6, f"{pass_folder}: arrivals differ by {apart} s")
        done = requests["status"] == "done"
        lag_ms = requests["send_slack_s"].quantile(0.99) * 1e3
        name = f"{pass_folder.parent.parent.name} {pass_folder.name}"
        print(f"{name}: {len(requests)} requests as in the CSV, {done.sum()} done, schedule lag p99 {lag_ms:.2f} ms")
    require(offline is not None, f"{run}: no pass was recorded")


def require(condition: bool, what: str) -> None:
    """Stop with a sentence."""
    if not condition:
        raise SystemExit(what)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
