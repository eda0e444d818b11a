"""Does a comparison say what it should? Reads compare.json and compare.html of the quickstart as a stranger would."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Check one folder of ``moeprof compare --write html,json``; raises SystemExit with the first thing wrong."""
    data = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    require("moe costs" in data["verdict"] and "x [" in data["verdict"], f"verdict {data['verdict']!r}")
    first = data["comparison"][0]
    require(first["reference"] == "dense", f"reference {first['reference']}")
    rows = {row["name"]: row for row in first["rows"]}
    for name in ("usd_per_1m_total_tokens", "output_tokens_per_s", "ttft_p50_s", "itl_p50_s"):
        require(name in rows, f"no row {name}")
        ratios = [ratio for ratio in rows[name]["ratios"] if ratio is not None and ratio["value"] is not None]
        require(len(ratios) == 1 and ratios[0]["verdict"] != "", f"{name}: ratios {rows[name]['ratios']}")
    named = {row["name"] for table in data["comparison"] for row in table["rows"]}
    require("bits_per_byte" in named, "the quality of the trained demo models is missing")
    html = (folder / "compare.html").read_text(encoding="utf-8")
    require("<svg" in html or "Side by side" in html, "compare.html without its table")
    require("http://" not in html.replace("http://www.w3.org", ""), "compare.html is not self-contained")
    print(f"{folder.name}: the comparison says what it should")


def require(condition: bool, what: str) -> None:
    """Stop with a sentence."""
    if not condition:
        raise SystemExit(f"compare: {what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
