"""The catalogue that is shipped: complete, by https, without invented checksums."""

from __future__ import annotations

import re

import pytest

from dnassm.data.fetch.catalogue import CATALOGUE, entries, find, read_catalogue
from dnassm.errors import FormatError, UnknownNameError

GOOD = """
[[entry]]
name = "toy"
kind = "genome"
about = "a toy"
source = "https://example.org/"
untried = true
[[entry.part]]
base = "https://example.org/d/"
files = { "genome.fa" = "genome.fa" }
"""


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_every_entry_says_what_it_is_and_where_it_is_published(entry):
    assert entry.files
    assert entry.source.startswith("https://")
    assert 0 < len(entry.about) <= 100
    assert len({file.url for file in entry.files}) == len(entry.files)
    for file in entry.files:
        assert "{" not in file.url
        # What lies on the hub is named with the commit, so that it cannot change.
        if "huggingface.co" in file.url:
            assert re.search(r"/resolve/[0-9a-f]{40}/", file.url)
            assert file.checksums is not None


def test_the_genomes_and_benchmarks_that_people_ask_for_are_there():
    names = {entry.name for entry in entries()}
    assert {"hg38", "hs1", "T2T-CHM13", "mm10", "mm39", "sacCer3", "ecoli-k12"} <= names
    assert {"genomic-benchmarks", "nucleotide-transformer", "gue", "traitgym"} <= names
    assert len(find("gue").files) == 28 * 3
    assert len(find("nucleotide-transformer").files) == 18 * 2


def test_the_catalogue_holds_no_checksum_of_a_file():
    text = CATALOGUE.read_text(encoding="utf-8")
    commits = set(re.findall(r"/(?:resolve|tree|raw)/([0-9a-f]{40})/", text))
    assert set(re.findall(r"\b[0-9a-f]{32,64}\b", text)) == commits


def test_the_lists_of_ucsc_ncbi_and_the_hub_are_where_they_publish_them():
    assert find("HG38").files[0].checksums.endswith("/goldenPath/hg38/bigZips/md5sum.txt")
    for file in find("ecoli-k12").files:
        assert file.checksums == file.url.rpartition("/")[0] + "/md5checksums.txt"
    file = find("traitgym").files[0]
    listed = file.url.replace(".co/datasets/", ".co/api/datasets/").replace("/resolve/", "/tree/")
    assert file.checksums == listed.rpartition("/")[0]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'hg38'"):
        find("hg83")
    with pytest.raises(UnknownNameError, match="--list"):
        find("xyzzyx")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("https://example.org/d/", "http://example.org/d/"),
        ('"genome.fa" =', '"../genome.fa" ='),
        ('"genome.fa" =', '"/genome.fa" ='),
        ('"genome.fa" =', '".hidden" ='),
        ('"genome"', '"plant"'),
        ('"toy"', '"../toy"'),
        ("[[entry.part]]", '[[entry.part]]\nformat = "sums"'),
        ("[[entry.part]]", '[[entry.part]]\nchecksums = "ftp://example.org/md5"'),
    ],
)
def test_a_catalogue_with_a_fault_is_refused(tmp_path, old, new):
    path = tmp_path / "catalogue.toml"
    path.write_text(GOOD)
    assert read_catalogue(path)[0].files[0].url == "https://example.org/d/genome.fa"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(FormatError, match="expected"):
        read_catalogue(path)


def test_a_name_twice_is_refused(tmp_path):
    path = tmp_path / "catalogue.toml"
    path.write_text(GOOD + GOOD.replace("toy", "Toy"))
    with pytest.raises(FormatError, match="every name once"):
        read_catalogue(path)
