"""Rows of a run: metrics.csv, cut back to the checkpoint when a run is resumed, and TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnassm.artifact import staged_file
from dnassm.extras import require
from dnassm.training.checkpoint import writing

COLUMNS = ("step", "tokens", "seconds", "train_bits", "valid_bits", "lr", "tokens_per_s")
_SCALARS = ("train_bits", "valid_bits", "lr", "tokens_per_s")


class MetricsLog:
    """Appends rows to a CSV file; a cell that was not measured is empty."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Open `path`, dropping rows of steps later than `after_step` and a row cut short."""
        self._path = path
        kept = [row for row in _whole_rows(path) if int(row["step"]) <= after_step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)
        with writing(path), staged_file(path) as staging:
            staging.write_text(text.getvalue(), encoding="utf-8", newline="")

    def write(self, row: Mapping[str, object]) -> None:
        """Append one row; the file is closed when this returns.

        Raises:
            ArtifactError: the disk is full.
        """
        with writing(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)


class TensorBoardLog:
    """The same rows as TensorBoard events."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Write to `folder`; events of steps later than `after_step` are dropped by the viewer.

        Raises:
            MissingExtraError: tensorboard is not installed.
        """
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter  # half a second, and an extra

        writer: Any = SummaryWriter
        self._writer = writer(str(folder), purge_step=after_step + 1 if after_step else None)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one event per measured cell."""
        for name in _SCALARS:
            if row[name] != "":
                self._writer.add_scalar(name, float(row[name]), row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._writer.close()


def require_tensorboard() -> None:
    """Raise MissingExtraError, naming the extra, when TensorBoard is not installed."""
    require("tensorboard", "log", "logging for TensorBoard")


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """Rows that end with their line: a process killed in the middle of one leaves a part."""
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    rows = csv.DictReader(io.StringIO(whole, newline=""))
    return [
        row
        for row in rows
        if row.keys() == set(COLUMNS) and None not in row.values() and row["step"].isdecimal()
    ]
