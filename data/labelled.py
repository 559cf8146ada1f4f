"""Labelled sequences: the input of a classification task, from CSV, TSV or parquet."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dnassm.artifact import check_target, staged_file
from dnassm.data.lines import read_lines
from dnassm.data.tokenizer import encode_letters
from dnassm.errors import ArtifactError, ConfigError, FormatError
from dnassm.extras import require
from dnassm.registry import did_you_mean

_SEQUENCE_NAMES = ("sequence", "seq", "seqs")
_LABEL_NAMES = ("label", "labels", "class")
_SPLIT_NAMES = ("split",)
_SPLIT_OF_ALIAS = {"dev": "valid", "val": "valid", "validation": "valid"}
_FOLDER_PARTS = ("train", "dev", "valid", "val", "validation", "test")
_FOLDER_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")

# The limit of the standard library, 131,072 letters, is below the length of a long sequence.
csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))

Row = tuple[int, Sequence[str]]
"""Line of the file, from 1, and its fields."""


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledSequences:
    """Sequences, each with a label and, where there is an official one, its split.

    Raises:
        ConfigError: the columns differ in length.
    """

    sequences: list[str]
    """As written in the file, lower case kept, white space around them removed."""
    labels: list[str]
    split: list[str] | None = None
    """ "train", "valid" or "test", or what else the file says; None without a split."""

    def __post_init__(self) -> None:
        columns = [self.labels] if self.split is None else [self.labels, self.split]
        if any(len(column) != len(self.sequences) for column in columns):
            raise ConfigError(
                f"labelled sequences: expected columns of one length, got {len(self.sequences)} "
                f"sequences and {[len(column) for column in columns]} labels and splits"
            )

    def __len__(self) -> int:
        return len(self.sequences)

    def part(self, name: str) -> LabelledSequences:
        """Return the rows whose split is `name`.

        Raises:
            ConfigError: there is no split, or none of that name.
        """
        if self.split is None or name not in self.split:
            have = ", ".join(dict.fromkeys(self.split or [])) or "no split at all"
            raise ConfigError(f"labelled sequences: no split named {name!r}; have {have}")
        rows = [i for i, split in enumerate(self.split) if split == name]
        return LabelledSequences(
            [self.sequences[i] for i in rows], [self.labels[i] for i in rows], [name] * len(rows)
        )


def read_labelled(
    path: Path | str,
    *,
    sequence_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> LabelledSequences:
    """Read sequences and labels from a table, or from a folder of train, dev and test tables.

    The table is CSV or TSV, plain or gzip, with a header line, or parquet. Column names are found
    whatever their case; without the arguments they are sequence, seq or seqs; label, labels or
    class; and split, which may be absent. "dev", "val" and "validation" all mean the split "valid".

    Args:
        path: the table; or a folder with train.csv and, as far as they exist, dev.csv and test.csv
            (also .tsv, also .gz), whose names are then the splits.
        sequence_column: name of the column of sequences.
        label_column: name of the column of labels.
        split_column: name of the column of splits, which must then exist.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: a column is missing or occurs twice, or a row has no sequence, no label, no
            split, another number of fields or a letter that is not IUPAC; names file and line.
        MissingExtraError: parquet without the extra that reads it.
    """
    path = Path(path)
    wanted = (sequence_column, label_column, split_column)
    if not path.is_dir():
        return _read_table(path, wanted)
    parts = {}
    for name, file in _folder_tables(path).items():
        table = _read_table(file, wanted)
        parts[name] = dataclasses.replace(table, split=[name] * len(table))
    return LabelledSequences(
        [sequence for part in parts.values() for sequence in part.sequences],
        [label for part in parts.values() for label in part.labels],
        [name for name, part in parts.items() for _ in part.sequences],
    )


def write_labelled(path: Path | str, data: LabelledSequences, *, force: bool = False) -> None:
    """Write CSV, or TSV if the name says so, with the header sequence,label[,split]; gzip for .gz.

    Equal data give equal bytes: the gzip header carries no time.

    Raises:
        ArtifactError: the file exists and `force` is off, or cannot be written.
    """
    path = Path(path)
    check_target(path, force=force)
    columns = [data.sequences, data.labels] + ([] if data.split is None else [data.split])
    text = io.StringIO()
    writer = csv.writer(text, delimiter=_delimiter_of(path), lineterminator="\n")
    writer.writerow(("sequence", "label", "split")[: len(columns)])
    writer.writerows(zip(*columns, strict=True))
    content = text.getvalue().encode()
    with staged_file(path) as staging:
        staging.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _folder_tables(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for part in _FOLDER_PARTS:
        split = _SPLIT_OF_ALIAS.get(part, part)
        for file in (folder / f"{part}{ending}" for ending in _FOLDER_ENDINGS):
            if not file.is_file():
                continue
            if split in found:
                raise FormatError(
                    f"{folder}: expected one table per split, got {found[split].name} and "
                    f"{file.name}; remove one"
                )
            found[split] = file
    if "train" not in found:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise ArtifactError(
            f"{folder}: expected train.csv, and dev.csv or test.csv, plain or .gz; got {there}"
        )
    return found


def _read_table(path: Path, wanted: tuple[str | None, str | None, str | None]) -> LabelledSequences:
    parquet = path.suffix.lower() in (".parquet", ".pq")
    header, rows = _parquet_rows(path) if parquet else _text_rows(path)
    columns = _columns(path, header, wanted)
    sequences: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    for number, fields in rows:
        where = f"{path}:{number}"
        if len(fields) != len(header):
            raise FormatError(
                f"{where}: expected {len(header)} fields as in the header, got {len(fields)}"
            )
        values = {kind: fields[column].strip() for kind, column in columns.items()}
        for kind, value in values.items():
            if not value:
                raise FormatError(
                    f"{where}: expected a {kind} in column {header[columns[kind]]!r}, got nothing"
                )
        _check_letters(values["sequence"], where)
        sequences.append(values["sequence"])
        labels.append(values["label"])
        if "split" in values:
            splits.append(_split_name(values["split"]))
    if not sequences:
        raise FormatError(f"{path}: expected at least one row below the header, got none")
    return LabelledSequences(sequences, labels, splits if "split" in columns else None)


def _split_name(text: str) -> str:
    return _SPLIT_OF_ALIAS.get(text.lower(), text.lower())


def _check_letters(sequence: str, where: str) -> None:
    try:
        encode_letters(sequence)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def _columns(
    path: Path, header: Sequence[str], wanted: tuple[str | None, str | None, str | None]
) -> Mapping[str, int]:
    """Find the columns of sequence, label and split: kind -> index."""
    names = [name.lower() for name in header]
    for name in names:
        if names.count(name) > 1:
            raise FormatError(
                f"{path}:1: column {name!r} occurs {names.count(name)} times; rename one"
            )
    defaults = {"sequence": _SEQUENCE_NAMES, "label": _LABEL_NAMES, "split": _SPLIT_NAMES}
    found = {}
    for (kind, usual), asked in zip(defaults.items(), wanted, strict=True):
        accepted = usual if asked is None else (asked.strip().lower(),)
        indices = [names.index(alias) for alias in accepted if alias in names]
        if indices:
            found[kind] = indices[0]
        elif kind != "split" or asked is not None:
            raise FormatError(
                f"{path}:1: expected a column {' or '.join(accepted)}, got {', '.join(header)}; "
                f"rename the column (from Python: {kind}_column).{did_you_mean(accepted[0], names)}"
            )
    return found


def _text_rows(path: Path) -> tuple[list[str], Iterator[Row]]:
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        raise FormatError(f"{path}: expected a header line with column names, got an empty file")
    delimiter = _delimiter_of(path, first[1])
    header = [name.strip() for name in _fields(first[1], delimiter, f"{path}:1")]
    rows = (
        (number, _fields(line, delimiter, f"{path}:{number}"))
        for number, line in lines
        if line.strip()
    )
    return header, rows


def _fields(line: str, delimiter: str, where: str) -> list[str]:
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise FormatError(f"{where}: expected CSV with one row per line, got {error}") from error


def _delimiter_of(path: Path, header: str = "") -> str:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".tsv", ".tab")):
        return "\t"
    return "\t" if "\t" in header and "," not in header else ","


def _parquet_rows(path: Path) -> tuple[list[str], Iterator[Row]]:
    parquet = require("pyarrow.parquet", "tables", "reading .parquet")
    arrow = require("pyarrow", "tables", "reading .parquet")
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; check the path")
    try:
        table = parquet.read_table(path)
    except arrow.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise FormatError(f"{path}: expected parquet, got {reason}; write it again") from error
    columns = [
        ["" if v is None else str(v) for v in column.to_pylist()] for column in table.columns
    ]
    return list(table.column_names), iter(list(enumerate(zip(*columns, strict=True), 1)))
