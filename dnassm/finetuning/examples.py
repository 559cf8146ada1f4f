"""Labelled sequences of one classification task, divided as its authors divided them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnassm.data.labelled import LabelledSequences, read_labelled
from dnassm.data.lines import read_lines
from dnassm.embedding import sha256_of
from dnassm.errors import ConfigError, LabelError

_SPLIT_OF_ALIAS = {"dev": "valid", "val": "valid", "validation": "valid"}
_PARTS = ("train", "test", "valid", *_SPLIT_OF_ALIAS)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Sequences and their classes.

    Attributes:
        sequences: n sequences of letters.
        labels: class index of each.
        names: where each comes from, for predictions.tsv: its row in the file.
    """

    sequences: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sequences)

    def subset(self, indices: Iterable[int]) -> Examples:
        """Return the examples at `indices`, in their order."""
        chosen = [int(i) for i in indices]
        return Examples(
            tuple(self.sequences[i] for i in chosen),
            tuple(self.labels[i] for i in chosen),
            tuple(self.names[i] for i in chosen),
        )

    def label_array(self) -> npt.NDArray[np.int64]:
        """(n,) class indices."""
        return np.array(self.labels, dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: of the data file or folder.
        classes: label of each class index, sorted; of two classes the second is the positive one.
        train: what weights are learnt from; every sequence when there is no test set.
        dev: what settings are chosen on; None when the data name no such part.
        test: what is reported; None means cross-validation.
        files: path of each input file -> sha256.
    """

    name: str
    classes: tuple[str, ...]
    train: Examples
    dev: Examples | None
    test: Examples | None
    files: dict[str, str]


def load_task(path: Path, *, test_split: str | None = None) -> Task:
    """Read labelled sequences and divide them as their split column or their files say.

    Args:
        path: CSV, TSV or parquet with the columns sequence, label and perhaps split; or a folder
            with train, dev and test tables.
        test_split: name of the part to test on; "test" when None.

    Raises:
        FormatError: the table is broken.
        ConfigError: the data have parts, but none to learn from or to test on.
        LabelError: fewer than two classes, or a label that training never shows.
    """
    data = read_labelled(path)
    files = _tables(path)
    if data.split is None:
        if test_split is not None:
            raise ConfigError(
                f"{path} has no split column, so no part {test_split!r}; leave --test-split away "
                "for cross-validation"
            )
        return _task(path, files, data, {"train": list(range(len(data)))})
    parts: dict[str, list[int]] = {}
    for row, split in enumerate(data.split):
        parts.setdefault(split, []).append(row)
    test = _SPLIT_OF_ALIAS.get(test_split or "test", test_split or "test")
    if "train" not in parts or (test not in parts and (test_split or len(parts) > 1)):
        raise ConfigError(
            f"{path}: expected a part 'train' and a part {test!r} to test on, got "
            f"{', '.join(parts)}; name the part to test on with --test-split"
        )
    chosen = {"train": parts["train"]}
    if test in parts and test != "train":
        chosen["test"] = parts[test]
    if "valid" in parts and test != "valid":
        chosen["valid"] = parts["valid"]
    return _task(path, files, data, chosen)


def _task(
    path: Path, files: list[Path], data: LabelledSequences, parts: dict[str, list[int]]
) -> Task:
    classes = tuple(sorted({data.labels[row] for row in parts["train"]}))
    if len(classes) < 2:
        raise LabelError(
            f"{path}: expected at least 2 classes to learn, got only {classes[0]!r} in "
            f"{len(parts['train'])} training sequences"
        )
    for part, rows in parts.items():
        for row in rows:
            if data.labels[row] not in classes:
                raise LabelError(
                    f"{_place(files, part, data.sequences[row], data.labels[row])}: label "
                    f"{data.labels[row]!r} of the part {part!r} is not among the training labels "
                    f"{', '.join(map(repr, classes))}; add examples of it to train, or remove it"
                )
    index = {label: number for number, label in enumerate(classes)}

    def examples(part: str) -> Examples | None:
        if part not in parts:
            return None
        rows = parts[part]
        return Examples(
            tuple(data.sequences[row] for row in rows),
            tuple(index[data.labels[row]] for row in rows),
            tuple(f"{part}:{number}" for number in range(1, len(rows) + 1)),
        )

    train = examples("train")
    assert train is not None  # noqa: S101  load_task put it there
    digests = {str(file): sha256_of(file) for file in files}
    return Task(path.name, classes, train, examples("valid"), examples("test"), digests)


def _tables(path: Path) -> list[Path]:
    """The files that `read_labelled` read."""
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.iterdir()
        if file.name.removesuffix(".gz").endswith((".csv", ".tsv"))
        and file.name.partition(".")[0] in _PARTS
    )


def _place(files: list[Path], part: str, sequence: str, label: str) -> str:
    """File and line of a row; looked up only when there is something to complain about."""
    for file in files:
        name = file.name.partition(".")[0]
        if len(files) > 1 and _SPLIT_OF_ALIAS.get(name, name) != part:
            continue
        if file.suffix in {".parquet", ".pq"}:
            return str(file)
        for number, line in read_lines(file):
            if sequence in line and label in line.replace(sequence, ""):
                return f"{file}:{number}"
    return str(files[0])
