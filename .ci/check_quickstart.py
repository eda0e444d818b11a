"""Does the quickstart's report say what it should? Reads the files as a stranger would: JSON, Markdown, HTML."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEADLINES = ("usd_per_1m_input_tokens", "usd_per_1m_output_tokens", "output_tokens_per_s", "ttft_p50_s", "itl_p50_s")


def main(run: Path) -> None:
    """Check one run folder; raises SystemExit with the first thing that is wrong."""
    experiment = json.loads((run / "experiment.json").read_text(encoding="utf-8"))
    require(experiment["status"] == "done", f"status {experiment['status']}")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    require(set(summary["models"]) == {"moe", "dense"}, f"models {sorted(summary['models'])}")
    for name, model in summary["models"].items():
        values = {m["name"]: m for m in model["metrics"] if m["value"] is not None}
        for metric in HEADLINES:
            require(metric in values and values[metric]["value"] > 0, f"{name}: no {metric}")
        done = values["num_requests_done"]["value"]
        require(done >= 64, f"{name}: {done} requests done")
    moe = {m["name"] for m in summary["models"]["moe"]["metrics"] if m["value"] is not None}
    require("router_load_max_over_mean" in moe and "distinct_experts_per_step" in moe, "no router figures")
    for launch in run.glob("*/launch-*/*/pass.json"):
        for check, result in json.loads(launch.read_text(encoding="utf-8"))["invariants"].items():
            require(result["passed"], f"{launch}: {check}: {result['text']}")
    markdown = (run / "report.md").read_text(encoding="utf-8")
    require("Reasons to doubt this" in markdown, "report.md without its doubts")
    html = (run / "report.html").read_text(encoding="utf-8")
    require(len(html) < 1_500_000, f"report.html has {len(html)} characters")
    require(
        "<svg" in html and "http://" not in html.replace("http://www.w3.org", ""), "report.html is not self-contained"
    )
    print(f"{run.name}: the report says what it should")


def require(condition: bool, what: str) -> None:
    """Stop with a sentence."""
    if not condition:
        raise SystemExit(f"quickstart: {what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
