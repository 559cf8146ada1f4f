"""Runs count covered bases as a mask would."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data.runs import Runs

stretches = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8)


@given(stretches=stretches)
def test_covered_bases_are_those_of_the_union_whatever_overlaps_or_nests(stretches):
    mask = np.zeros(80, dtype=bool)
    for start, size in stretches:
        mask[start : start + size] = True
    runs = Runs.merge([start for start, _ in stretches], [sum(pair) for pair in stretches])
    starts, ends = np.triu_indices(81)
    expected = [mask[start:end].sum() for start, end in zip(starts, ends, strict=True)]
    np.testing.assert_array_equal(runs.covered(starts, ends), expected)
    assert (runs.starts[1:] > runs.ends[:-1]).all()


def test_a_long_stretch_is_not_cut_by_one_inside_it():
    runs = Runs.merge([0, 2, 9, 12], [10, 4, 12, 15])
    assert (runs.starts.tolist(), runs.ends.tolist()) == ([0], [15])
