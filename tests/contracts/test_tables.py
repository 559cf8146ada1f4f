"""Tables in docs/ that are made from results are those of the results."""

from __future__ import annotations

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
