"""How the CUDA scan is cut into chunks: laws for any size, and the cuts that were measured."""

from __future__ import annotations

import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.kernels.selective_scan.cuda import cut, shape

H200 = types.SimpleNamespace(
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    multi_processor_count=132,
)
LANES = 4  # 16 states
LAYOUTS = shape._layouts(LANES, H200)
BACKWARD = shape.Shape(LANES, 256, 64, 128, 1, LAYOUTS, 2)
FORWARD = cut.PrePass(BACKWARD.ends, shape.TILE, 0.72)


def problem(batch: int, channels: int, length: int) -> cut.Problem:
    return cut.Problem(-(-channels * LANES // 32), batch, length, H200.multi_processor_count)


@given(
    batch=st.integers(1, 300),
    channels=st.integers(1, 5000),
    length=st.integers(1, 1 << 23),
    span=st.sampled_from([8, 16, 64, 128]),
    layouts=st.sampled_from([LAYOUTS, (BACKWARD.of_backward,)]),
)
def test_chunks_cover_a_row_once_in_whole_tiles(batch, channels, length, span, layouts):
    asked = problem(batch, channels, length)
    found = cut.cut(asked, layouts, FORWARD, span)
    assert found.layout in layouts
    assert found.width in found.layout.widths
    assert found.steps % span == found.steps % found.layout.tile == 0
    assert (found.chunks - 1) * found.steps < length <= found.chunks * found.steps
    if found.chunks > 1:
        ends = cut.cut_ends(asked, FORWARD, found.steps)
        assert found.steps // ends.steps in (1, 2, 4)
        assert found.steps % ends.steps == ends.steps % shape.TILE == 0
        assert ends.chunks * ends.steps == (found.chunks - 1) * found.steps
        assert ends.width in ends.layout.widths


@given(
    batch=st.integers(1, 40),
    channels=st.integers(1, 5000),
    length=st.integers(1, 1 << 20),
    span=st.sampled_from([16, 64, 128]),
)
def test_rows_end_to_end_are_covered_once_in_whole_spans(batch, channels, length, span):
    asked = problem(batch, channels, length).end_to_end(span)
    assert asked.row == -(-length // span) * span
    assert asked.steps == batch * asked.row
    found = cut.cut(asked, (BACKWARD.of_backward,), FORWARD, span)
    assert found.steps % span == 0
    assert (found.chunks - 1) * found.steps < asked.steps <= found.chunks * found.steps
    if asked.borders(found.steps):
        ends = cut.cut_ends(asked, FORWARD, found.steps)
        assert found.steps % ends.steps == ends.steps % shape.TILE == 0


@given(rows=st.integers(1, 50), spans=st.integers(1, 200), of_chunk=st.integers(1, 400))
def test_borders_inside_of_rows_are_counted(rows, spans, of_chunk):
    asked = cut.Problem(1, rows, spans, 132).end_to_end(1)
    begins = range(0, rows * spans, of_chunk)
    inside = [at % spans for at in begins if at % spans]
    assert asked.borders(of_chunk) == len(inside)
    if inside:
        assert asked.first_border(of_chunk) <= min(inside)


def test_many_rows_are_whole_where_that_is_as_fast():
    """Nothing has to be found, and 64 rows of 2 columns fill the device once."""
    asked = problem(64, 512, 1024).end_to_end(16)
    found = cut.cut(asked, (BACKWARD.of_backward,), FORWARD, 16)
    assert (found.steps, found.chunks, asked.borders(found.steps)) == (1024, 64, 0)


def test_rows_that_fill_the_device_unevenly_are_cut_so_that_chunks_are_equal():
    """70 rows of 2 columns on 132 multiprocessors would be two rounds, the second nearly empty."""
    asked = problem(70, 512, 1024).end_to_end(16)
    found = cut.cut(asked, (BACKWARD.of_backward,), FORWARD, 16)
    assert found.chunks * 2 <= 132
    assert found.steps < 1.1 * 70 * 1024 / 66


# (B, D, L) of benchmarks/scan_gpu.py on an H200: channels per thread, warps of a block, chunks, and
# channels per thread and pieces of a chunk in what comes before. README of the op, section cuda.
MEASURED = {
    (1, 512, 1 << 20): (4, 16, 132, 2, 1),
    (1, 256, 1 << 20): (2, 16, 132, 4, 2),
    (1, 512, 1 << 17): (4, 16, 132, 4, 1),
    (1, 2048, 1 << 17): (4, 16, 33, 2, 1),
    (8, 1536, 1 << 13): (1, 4, 1, None, None),
    (64, 512, 1 << 10): (2, 16, 1, None, None),
}


@pytest.mark.parametrize("size", MEASURED, ids=str)
def test_an_h200_is_cut_as_it_was_measured(size):
    asked = problem(*size)
    found = cut.cut(asked, LAYOUTS, FORWARD, shape.TILE)
    before = (None, None)
    if found.chunks > 1:
        ends = cut.cut_ends(asked, FORWARD, found.steps)
        before = (ends.layout.channels, found.steps // ends.steps)
    assert (found.layout.channels, found.width, found.chunks, *before) == MEASURED[size]


# The backward's: (B, D, L, steps between marks), chunks of all rows, and of what comes before its
# channels per thread, warps of a block and pieces of a chunk: the fastest that was measured, or
# within 1.2 % of it.
MEASURED_END_TO_END = {
    (8, 1536, 1 << 13, 64): (22, 4, 4, 4),
    (16, 768, 1 << 13, 64): (44, 4, 4, 4),
    (70, 512, 1 << 10, 16): (66, 4, 4, 4),
    (1, 2048, 1 << 17, 64): (16, 2, 4, 2),
    (1, 512, 1 << 17, 16): (66, 4, 8, 2),
}


@pytest.mark.parametrize("size", MEASURED_END_TO_END, ids=str)
def test_rows_end_to_end_are_cut_as_it_was_measured(size):
    *sizes, span = size
    asked = problem(*sizes).end_to_end(span)
    before = FORWARD._replace(share=0.33)
    found = cut.cut(asked, (BACKWARD.of_backward,), before, span)
    ends = cut.cut_ends(asked, before, found.steps)
    got = (found.chunks, ends.layout.channels, ends.width, found.steps // ends.steps)
    assert got == MEASURED_END_TO_END[size]


@pytest.mark.parametrize("length", [1, 17, 100, 4097, 65_537])
@pytest.mark.parametrize("span", [16, 64, 128])
def test_the_number_of_marks_says_how_far_apart_they_are(length, span):
    marks = -(-length // span)
    found = shape.span_of(length, marks)
    assert -(-length // found) == marks
    assert found == span or marks == 1
