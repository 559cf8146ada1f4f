"""Fixtures shared by every test: where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real genomes and benchmark sets; the test is skipped, visibly, without it."""
    folder = Path(os.environ.get("DNASSM_REAL_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set DNASSM_REAL_DATA")
    return folder
