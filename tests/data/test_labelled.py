"""Tables of labelled sequences: real ones read right, wrong ones refused by file and line."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dnassm.data.labelled import (
    LabelledSequences,
    read_labelled,
    write_labelled,
)
from dnassm.data.leakage_copies import Duplicates, count_duplicates
from dnassm.errors import ArtifactError, ConfigError, FormatError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


ROWS = LabelledSequences(["ACGT", "aacN"], ["1", "0"], None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "sequence,label\nACGT,1\naacN,0\n"),
        ("a.csv.gz", "sequence,label\nACGT,1\naacN,0"),
        ("a.tsv", "Label\tSEQ\n1\tACGT\n0\taacN\n"),
        ("a.txt", "label\tseqs\r\n1\tACGT\r\n\r\n0\taacN\r\n"),
        ("a.csv", "name, Class , Sequence \n'x',1,   ACGT\ny, 0 ,aacN  \n"),
        ("a.csv", '\ufeffsequence,label,note\n"ACGT",1,"a, b"\naacN,0,"say ""no"""\n'),
    ],
)
def test_a_table_is_read_whatever_its_separator_case_padding_and_line_ends(name, text, tmp_path):
    assert read_labelled(write(tmp_path / name, text)) == ROWS


def test_columns_and_splits_can_be_named(tmp_path):
    path = write(tmp_path / "a.csv", "Promoter,dna,part\n1,ACGT,train\n0,AAC,Dev\n1,GG,fold7\n")
    data = read_labelled(path, sequence_column="DNA", label_column="promoter", split_column="part")
    assert data.split == ["train", "valid", "fold7"]
    assert data.part("valid") == LabelledSequences(["AAC"], ["0"], ["valid"])
    with pytest.raises(ConfigError, match="no split named 'test'; have train, valid, fold7"):
        data.part("test")
    with pytest.raises(ConfigError, match="no split at all"):
        ROWS.part("test")


def test_a_sequence_longer_than_the_csv_module_allows_is_read(tmp_path):
    long = "ACGT" * 50_000
    path = write(tmp_path / "a.csv", f'sequence,label,note\n{long},1,"x"\n"{long}",0,y\n')
    assert read_labelled(path).sequences == [long, long]


def test_a_folder_of_tables_gives_the_splits(tmp_path):
    write(tmp_path / "train.csv", "sequence,label\nACGT,1\n")
    write(tmp_path / "dev.csv.gz", "sequence,label\nAC,0\n")
    write(tmp_path / "test.tsv", "sequence\tlabel\nGG\t1\nTT\t0\n")
    data = read_labelled(tmp_path)
    assert data.sequences == ["ACGT", "AC", "GG", "TT"]
    assert data.split == ["train", "valid", "test", "test"]
    write(tmp_path / "val.csv", "sequence,label\nAC,0\n")
    with pytest.raises(FormatError, match=r"got dev\.csv\.gz and val\.csv"):
        read_labelled(tmp_path)


def test_a_folder_without_a_training_table_is_refused(tmp_path):
    write(tmp_path / "test.csv", "sequence,label\nACGT,1\n")
    with pytest.raises(ArtifactError, match=r"expected train\.csv.*got test\.csv"):
        read_labelled(tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "an empty file"),
        ("sequence,label\n", None, "at least one row"),
        ("sequence,lable\nACGT,1\n", 1, "column label or labels or class, got sequence, lable"),
        ("sequence,lable\nACGT,1\n", 1, "Did you mean 'lable'?"),
        ("ACGT,1\nAC,0\n", 1, "expected a column sequence or seq or seqs"),
        ("sequence,label,Label\nACGT,1,1\n", 1, "column 'label' occurs 2 times"),
        ("sequence,label\nACGT,1\n\nACGT\n", 4, "expected 2 fields as in the header, got 1"),
        ("sequence,label\nACGT,1,2\n", 2, "expected 2 fields as in the header, got 3"),
        ("sequence,label\nACGT,1\n  ,1\n", 3, "expected a sequence in column 'sequence'"),
        ("sequence,label\nACGT, \n", 2, "expected a label in column 'label', got nothing"),
        ("sequence,label,split\nACGT,1,\n", 2, "expected a split in column 'split'"),
        ("sequence,label\nACGT,1\nACxT,1\n", 3, "got 'x' at position 2"),
        ("sequence,label\nAC GT,1\n", 2, "got ' ' at position 2"),
        ("sequence,label\nACÄGT,1\n", 2, "got 'Ä' at position 2"),
        ('sequence,label\n"ACGT,1\n', 2, "expected CSV with one row per line"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line_naming_file_and_line(text, line, message, tmp_path):
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(FormatError) as caught:
        read_labelled(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_column_asked_for_by_name_must_exist(tmp_path):
    path = write(tmp_path / "a.csv", "sequence,label\nACGT,1\n")
    with pytest.raises(FormatError, match="expected a column fold, got sequence, label"):
        read_labelled(path, split_column="fold")
    with pytest.raises(ArtifactError, match=r"none\.csv does not exist"):
        read_labelled(tmp_path / "none.csv")


def test_truncated_gzip_is_refused(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"sequence,label\n" + b"ACGT,1\n" * 1000)[:-20])
    with pytest.raises(FormatError, match="truncated"):
        read_labelled(path)


def test_parquet_is_read_and_refused_like_text(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"Sequence": ["ACGT", "aacN"], "label": [1, 0]}), path)
    assert read_labelled(path) == ROWS
    pq.write_table(pa.table({"sequence": ["ACGT", None], "label": [1, 0]}), path)
    with pytest.raises(FormatError, match="parquet:2: expected a sequence"):
        read_labelled(path)
    write(path, "sequence,label\n")
    with pytest.raises(FormatError, match="expected parquet"):
        read_labelled(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_labelled(tmp_path / "none.parquet")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz"])
@pytest.mark.parametrize("split", [None, ["train", "test"]])
def test_what_was_written_is_read_back_and_equal_data_are_equal_bytes(name, split, tmp_path):
    data = LabelledSequences(["ACGT", "aacN"], ["a,b", 'say "x"'], split)
    write_labelled(tmp_path / name, data)
    assert read_labelled(tmp_path / name) == data
    write_labelled(tmp_path / "again" / name, data)
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(ArtifactError, match="exists already"):
        write_labelled(tmp_path / name, data)
    write_labelled(tmp_path / name, ROWS, force=True)
    assert read_labelled(tmp_path / name) == ROWS


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ConfigError, match="columns of one length"):
        LabelledSequences(["A"], ["1", "0"])


def test_the_real_promoter_table_is_read(real_data):
    data = read_labelled(real_data / "ecoli_promoters" / "v9d3.csv.gz")
    assert Counter(data.labels) == {"1": 2860, "0": 2860}
    assert {len(sequence) for sequence in data.sequences} == {81}
    assert data.split is None


def test_the_real_splice_table_with_padded_fields_is_read(real_data):
    data = read_labelled(real_data / "uci_splice_promoter" / "splice.csv.gz")
    assert Counter(data.labels) == {"N": 1655, "IE": 768, "EI": 767}
    assert {len(sequence) for sequence in data.sequences} == {60}


def test_a_real_benchmark_folder_has_its_official_splits_and_the_known_leak(real_data):
    data = read_labelled(real_data / "gue" / "prom" / "prom_300_tata")
    assert Counter(data.split) == {"train": 4904, "valid": 613, "test": 613}
    leak = count_duplicates(data.part("test").sequences, data.part("train").sequences)
    assert leak == Duplicates(6, 0)
