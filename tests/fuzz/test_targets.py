"""A short run of every target of the fuzzers, on whole files with some of their bytes changed.

`DNASSM_FUZZ_EXAMPLES=100000` makes it a long one; `make fuzz` looks for new code with atheris.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds

EXAMPLES = os.environ.get("DNASSM_FUZZ_EXAMPLES")


@st.composite
def changed(draw: st.DrawFn, name: str) -> bytes:
    """A whole file of a target after some changes of a few bytes each."""
    data = bytearray(draw(st.sampled_from(seeds(name))))
    words = [*TARGETS[name].words, b"\n", b"\t", b"\0", b"\xff", b"0", b"9" * 20, b"A", b","]
    for _ in range(draw(st.integers(0, 6))):
        first = draw(st.integers(0, len(data)))
        last = min(len(data), first + draw(st.sampled_from([0, 0, 1, 1, 4, 40, len(data)])))
        data[first:last] = draw(
            st.sampled_from(words)
            | st.binary(max_size=4)
            | st.builds(lambda at, size: bytes(data[at : at + size]), *[st.integers(0, 300)] * 2)
        )
    return bytes(data)


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_whole_file_of_a_target_passes_its_check(name):
    for seed in seeds(name):
        TARGETS[name].check(seed)


@pytest.mark.parametrize("name", list(TARGETS))
def test_changed_files_are_read_right_or_refused_in_one_line(name):
    @settings(
        max_examples=int(EXAMPLES or 40),
        derandomize=EXAMPLES is None,  # the short run is the same one every time
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if phase is not Phase.explain],
    )
    @given(changed(name))
    def run(data: bytes) -> None:
        TARGETS[name].check(data)

    run()
