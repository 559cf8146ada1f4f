"""bigWig: the values of a window, read on its strand; a damaged file is an error, never a crash."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import sys

import numpy as np
import pytest

from dnassm.data.bigwig import BigWig
from dnassm.data.interval import Interval
from dnassm.errors import ArtifactError, FormatError, GenomeError, MissingExtraError


@pytest.fixture
def path(tmp_path):
    pybigtools = pytest.importorskip("pybigtools", reason="needs the extra tracks")
    path = tmp_path / "signal.bw"
    values = [("one", 10, 13, 1.5), ("one", 13, 14, -2.0), ("one", 20, 90, 4.0), ("two", 0, 5, 7.0)]
    pybigtools.open(str(path), "w").write({"one": 100, "two": 50}, iter(values))
    return path


def test_values_of_a_window_with_gaps_as_nan(path):
    track = BigWig(path)
    assert track.lengths == {"one": 100, "two": 50}
    values = track.fetch(Interval("one", 8, 16))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [np.nan, np.nan, 1.5, 1.5, 1.5, -2, np.nan, np.nan])
    np.testing.assert_array_equal(track.fetch(Interval("two", 45, 50)), [np.nan] * 5)
    assert track.fetch(Interval("one", 5, 5)).size == 0


def test_on_the_other_strand_the_last_base_comes_first(path):
    track = BigWig(path)
    forward, backward = (track.fetch(Interval("one", 11, 25, strand)) for strand in "+-")
    np.testing.assert_array_equal(backward, forward[::-1])


def test_the_suffix_of_the_file_does_not_matter(path, tmp_path):
    other = path.rename(tmp_path / "signal.dat")
    assert BigWig(other).fetch(Interval("two", 0, 1)) == 7


def test_what_lies_outside_is_refused(path):
    with pytest.raises(GenomeError, match=r"no contig 'onee'; it has one, two\. Did you mean"):
        BigWig(path).fetch(Interval("onee", 0, 1))
    with pytest.raises(GenomeError, match=r"ends at 50 bp, asked for \[49, 51\)"):
        BigWig(path).fetch(Interval("two", 49, 51))


# From Python 3.12 on, a fork beside threads warns, those of numpy's library included.
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_it_at_once(path, method):
    track = BigWig(path)
    track.fetch(Interval("one", 0, 100))
    windows = [Interval("one", start, start + 20) for start in range(0, 80, 4)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(track.fetch, windows)
    for window, values in zip(windows, found, strict=True):
        np.testing.assert_array_equal(values, track.fetch(window))
    assert pickle.loads(pickle.dumps(track)).lengths == track.lengths


# The same reason.
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_process_that_is_forked_does_not_share_the_position_in_the_file(path):
    track = BigWig(path)
    expected = track.fetch(Interval("one", 0, 100))
    reader = track._reader

    def read():
        same = np.array_equal(track.fetch(Interval("one", 0, 100)), expected, equal_nan=True)
        os._exit(0 if same and track._reader is not reader else 1)

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_what_is_no_bigwig_is_refused(path, tmp_path):
    (tmp_path / "text.bw").write_text("chr1 1 2\n")
    with pytest.raises(FormatError, match="expected a bigWig file"):
        BigWig(tmp_path / "text.bw")
    with pytest.raises(ArtifactError, match="cannot be read"):
        BigWig(tmp_path / "nothing.bw")


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_file_is_read_or_refused_in_one_line(path, seed):
    dice = random.Random(seed)
    data = bytearray(path.read_bytes())
    if seed % 3 == 0:
        del data[dice.randrange(4, len(data)) :]
    else:
        for _ in range(1 + seed % 5):
            data[dice.randrange(4, len(data))] = dice.randrange(256)
    path.write_bytes(data)
    try:
        track = BigWig(path)
        for name, length in track.lengths.items():
            track.fetch(Interval(name, 0, min(length, 1000)))
        message = ""
    except FormatError as error:
        message = str(error)
    assert "\n" not in message


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pybigtools", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dnassm\[tracks\]'"):
        BigWig(tmp_path / "signal.bw")
