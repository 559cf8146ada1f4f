"""Tables in docs/ that are made from results are those of the results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("script", "table"), [("block_table", "blocks.md")])
def test_a_table_is_that_of_the_results_beside_it(script, table, tmp_path):
    out = tmp_path / table
    command = [sys.executable, "-m", f"benchmarks.{script}", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    made, kept = (path.read_text(encoding="utf-8") for path in (out, ROOT / "docs" / table))
    assert made == kept, f"run: python -m benchmarks.{script}"


@pytest.mark.parametrize("dropped", ["python_ms", "graph_ms", "the row"])
def test_results_of_an_earlier_version_are_named_in_one_line(dropped, tmp_path):
    folder = ROOT / "benchmarks" / "results"
    for name in ("mamba_block_gpu.json", "mamba2_block_gpu.json"):
        result = json.loads((folder / name).read_text(encoding="utf-8"))
        for row in result["block"]:
            row.pop(dropped, None)
        if dropped == "the row":
            result["block"] = [row for row in result["block"] if row["variant"]]
        (tmp_path / name).write_text(json.dumps(result), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.block_table", "--results", str(tmp_path)]
    out = tmp_path / "table.md"
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "mamba_block_gpu.json: expected" in done.stderr
    assert not out.exists()
