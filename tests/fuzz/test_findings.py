"""What the fuzzers found, each with its smallest input."""

from __future__ import annotations

import pytest

from dnassm.data.annotation import read_bed, read_gff
from dnassm.errors import FormatError
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("blank", ["\x1c", "\x1d", "\x1e", "\x1f", "\xa0", "\x0b", "\r"])
def test_a_number_with_odd_white_space_beside_it_is_refused(tmp_path, blank):
    """`\\s` of a regular expression matches more than int() strips: it was a ValueError."""
    (tmp_path / "x.bed").write_bytes(f"c\t0\t0{blank}\t\n".encode())
    with pytest.raises(FormatError, match=r"x\.bed:1: end: expected a whole number of bases"):
        read_bed(tmp_path / "x.bed")
    (tmp_path / "x.gff").write_bytes(f"c\tx\tgene\t1\t{blank}9\t.\t+\t.\t.\n".encode())
    with pytest.raises(FormatError, match=r"x\.gff:1: end: expected a whole number of bases"):
        read_gff(tmp_path / "x.gff")
    TARGETS["bed"].check(f"c\t0\t0{blank}\n".encode())
