"""BED: any text is read as it says or refused; blocks; the intervals of a real annotation."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.aliases import match_contigs
from dnassm.data.alphabet import decode
from dnassm.data.annotation import BedRecord, bed_blocks, read_bed, read_gff
from dnassm.data.centre import centred_codes
from dnassm.data.interval import Interval
from dnassm.data.store import build_store
from dnassm.errors import ArtifactError, FormatError


def outcome(read, path):
    try:
        return read(path), ""
    except (FormatError, ArtifactError) as error:
        return None, str(error)


def plain_bed(text):
    """Records of text that a reader has accepted: the numbers where they belong."""
    found = []
    for line in text.replace("\r\n", "\n").split("\n"):
        fields = line.split("\t") if "\t" in line else line.split()
        if line.startswith("#") or not line.strip() or fields[0] in ("track", "browser"):
            continue
        if line.startswith(("track ", "browser ")):
            continue
        if not found and len(fields) > 2 and fields[1].strip().lower() in ("start", "chromstart"):
            continue
        strand = fields[5] if len(fields) > 5 else "."
        found.append((fields[0], int(fields[1]), int(fields[2]), "-" if strand == "-" else "+"))
    return found


junk = st.text(st.characters(max_codepoint=0x250), max_size=8)
numbers = st.integers(-2, 10**20).map(str) | st.sampled_from(["1e3", "", " 7 ", "1_0", "٣"])
good = st.tuples(
    st.sampled_from(["c", "chr2"]),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.sampled_from(["", "\tx", "\tx\t0\t-", "\tx\t0\t+\t1\t2", "\tx\t.\t."]),
).map(lambda t: f"{t[0]}\t{min(t[1:3])}\t{max(t[1:3])}{t[3]}")
wild = st.lists(
    st.sampled_from(["c", "track", "#", "-", "+"]) | numbers | junk, max_size=13
).flatmap(lambda words: st.sampled_from(["\t", " "]).map(lambda sep: sep.join(words)))
heads = st.sampled_from(["track name=x", "browser position c:1-2", "# x", "chrom\tstart\tend", ""])
lines = st.lists(good | good.map(lambda line: line.replace("\t", "  ")) | heads | wild, max_size=6)


@settings(max_examples=400, deadline=None)
@given(lines, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_bed_is_read_as_it_says_or_refused_in_one_line(tmp_path_factory, body, end, packed):
    text = end.join(body)
    path = tmp_path_factory.mktemp("fuzz") / "x.bed"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found, message = outcome(read_bed, path)
    if found is None:
        assert str(path) in message
        assert "\n" not in message
        assert body
    else:
        intervals = [record.interval for record in found]
        assert [(i.contig, i.start, i.end, i.strand) for i in intervals] == plain_bed(text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([read_bed, read_gff]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, read):
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(content)
    found, message = outcome(read, path)
    assert str(path) in message or found is not None


gff_lines = st.lists(
    st.tuples(
        st.sampled_from(["c", "a%20b", ""]),
        st.just("x"),
        st.sampled_from(["gene", "CDS", ""]),
        numbers | st.integers(1, 99).map(str),
        numbers | st.integers(99, 999).map(str),
        st.just("."),
        st.sampled_from(["+", "-", ".", "?", "x"]),
        st.just("."),
        st.sampled_from(["ID=a;Parent=b,c", 'gene_id "a; b"; x 3;', ".", "=", ";;", '"']) | junk,
    ).map("\t".join)
    | st.sampled_from(["##gff-version 3", "", "##FASTA", ">c"])
    | junk,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(gff_lines)
def test_any_gff_is_read_as_it_says_or_refused_in_one_line(tmp_path_factory, body):
    path = tmp_path_factory.mktemp("fuzz") / "x.gff"
    path.write_bytes("\n".join(body).encode())
    found, message = outcome(read_gff, path)
    if found is None:
        assert message.startswith(f"{path}:")
        assert "\n" not in message
        return
    text = "\n".join(body).split("\n")
    for feature in found:
        fields = text[feature.line - 1].split("\t")
        assert feature.interval.start == int(fields[3]) - 1
        assert feature.interval.end == int(fields[4])
        assert feature.interval.strand == ("-" if fields[6] == "-" else "+")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"c\t1\t{'9' * 5000}", "x.bed:1: end: expected a whole number of bases"),
        ("\t1\t2", "x.bed:1: expected the name of a contig in column 1, got ''"),
        ("c\t5\t4", "x.bed:1: expected 0 <= start <= end, got start 5 and end 4"),
        ("c\t-1\t4", "got start -1"),
    ],
)
def test_a_line_that_is_no_interval_is_refused(tmp_path, line, said):
    path = tmp_path / "x.bed"
    path.write_text(line + "\n")
    with pytest.raises(FormatError, match=said):
        read_bed(path)


def bed12(tmp_path, count, sizes, starts, strand="-"):
    path = tmp_path / "x.bed"
    path.write_text(f"c\t100\t200\tn\t0\t{strand}\t100\t200\t0\t{count}\t{sizes}\t{starts}\n")
    (record,) = read_bed(path)
    return record


def test_the_blocks_of_bed12_are_intervals_on_the_strand_of_the_record(tmp_path):
    record = bed12(tmp_path, "2", "10,30,", "0,70,")
    assert bed_blocks(record) == (Interval("c", 100, 110, "-"), Interval("c", 170, 200, "-"))
    assert bed_blocks(BedRecord(Interval("c", 1, 5))) == (Interval("c", 1, 5),)
    assert bed_blocks(bed12(tmp_path, "0", "", "")) == (record.interval,)


@pytest.mark.parametrize(
    ("count", "sizes", "starts", "said"),
    [
        ("2", "10", "0,70", r"x\.bed:1: expected 2 block sizes and starts, got 1 and 2"),
        ("1", "10", "x", "block start: expected a whole number of bases, got 'x'"),
        ("1", "101", "0", r"block \[100, 201\) lies outside of the record"),
        ("1", "10", "-5", r"block \[95, 105\) lies outside"),
        ("1", "-5", "10", "lies outside"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path, count, sizes, starts, said):
    record = bed12(tmp_path, count, sizes, starts)
    with pytest.raises(FormatError, match=said):
        bed_blocks(record, source=tmp_path / "x.bed")


def test_names_of_ucsc_find_the_contigs_of_ensembl_in_yeast(real_data, tmp_path):
    """The FASTA says IV, the BED chrIV; 5,866 nuclear reading frames of 5,889 begin with ATG."""
    folder = real_data / "yeast_s288c"
    store = build_store(
        [folder / "Saccharomyces_cerevisiae.R64-1-1.dna.toplevel.fa.gz"], tmp_path / "g"
    )
    records = read_bed(folder / "Scer_nondubious_ORFs_and_blocked_reading_frames.bed.gz")
    match = match_contigs((r.interval.contig for r in records), store)
    assert match.missing == ()
    assert match.names["chrIV"] == "IV"
    starts = 0
    for record in records:
        interval = record.interval
        at = interval.start if interval.strand == "+" else interval.end - 1
        middle = at + 1 if interval.strand == "+" else at - 1  # of the first codon
        base = Interval(match.names[interval.contig], middle, middle + 1, interval.strand)
        nuclear = base.contig != "Mito"
        starts += nuclear and decode(centred_codes(store, base, 3)).upper() == "ATG"
    assert (len(records), starts) == (5889, 5866)
    assert match.names["chrM"] == "Mito"
    gtf = read_gff(folder / "sacCer3_chrIV.annotation.gtf.gz")
    assert match_contigs({f.interval.contig for f in gtf}, store).names == {"chrIV": "IV"}
