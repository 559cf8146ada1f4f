"""metrics.csv of a run: one row per logged step, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from dnassm.artifact import staged_file

COLUMNS = ("step", "tokens", "seconds", "train_bits", "valid_bits", "lr", "tokens_per_s")


class MetricsLog:
    """Appends rows to a CSV file; a cell that was not measured is empty."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Open `path`, dropping rows of steps later than `after_step`."""
        self._path = path
        kept: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= after_step]
        with staged_file(path) as staging:
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
            staging.write_text(text.getvalue(), encoding="utf-8", newline="")

    def write(self, row: Mapping[str, object]) -> None:
        """Append one row; it is on disk when this returns."""
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
