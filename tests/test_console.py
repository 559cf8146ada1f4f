"""Progress and tables: the words a person reads."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from dnassm.console import Progress, quantity, table


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_with_amount_rate_time_left_and_facts():
    log, clock = io.StringIO(), Clock()
    with Progress(450e6, "B", "tokenize", every_s=1, stream=log, clock=clock) as progress:
        clock.now += 2
        progress.update(150e6, loss=1.9312345, contig="chr[1]")
        first = log.getvalue()
    assert first == "tokenize 150/450 MB 75 MB/s 4.0 s left loss 1.931 contig chr[1]\n"
    assert log.getvalue().splitlines()[1].startswith("tokenize 150/450 MB 75 MB/s done in 2.0 s")


def test_a_log_gets_at_most_one_line_per_interval():
    log, clock = io.StringIO(), Clock()
    with Progress(1000, "windows", "embed", every_s=10, stream=log, clock=clock) as progress:
        for done in range(1000):
            clock.now += 0.1
            progress.update(done)
    assert 9 <= len(log.getvalue().splitlines()) <= 11


def test_an_unknown_total_shows_what_is_done_and_the_time_so_far():
    log, clock = io.StringIO(), Clock()
    with Progress(None, "tokens", "read", every_s=1, stream=log, clock=clock) as progress:
        clock.now += 90
        progress.update(51e6)
    assert log.getvalue().splitlines()[0] == "read 51M tokens 567k tokens/s 1 min 30 s so far"


def test_work_done_by_an_earlier_run_counts_in_the_amount_and_not_in_the_rate():
    log, clock = io.StringIO(), Clock()
    options = {"start": 900, "every_s": 1, "stream": log, "clock": clock}
    with Progress(1000, "steps", "pretrain", **options) as progress:
        clock.now += 10
        progress.update(950)
    assert log.getvalue().startswith("pretrain 950/1000 steps 5 steps/s 10 s left\n")


def test_a_stopped_job_says_how_far_it_came():
    log, clock = io.StringIO(), Clock()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(10, "steps", "pretrain", stream=log, clock=clock) as progress,
    ):
        clock.now += 3
        progress.update(4)
        raise KeyboardInterrupt
    assert log.getvalue() == "pretrain 4/10 steps 1.33 steps/s stopped after 3.0 s\n"


def test_a_job_that_is_refused_before_any_work_says_nothing_of_it():
    log = io.StringIO()
    with pytest.raises(ValueError, match="taken"), Progress(10, "B", "tokenize", stream=log):
        raise ValueError("taken")
    assert log.getvalue() == ""


def test_nothing_done_yet_promises_no_time():
    log, clock = io.StringIO(), Clock()
    with Progress(10, "steps", "pretrain", every_s=1, stream=log, clock=clock) as progress:
        clock.now += 1
        progress.update(0)
    assert "? left" in log.getvalue()


def test_a_terminal_gets_one_bar_with_the_same_words(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen, clock = Terminal(), Clock()
    with Progress(450e6, "B", "tokenize", stream=screen, clock=clock) as progress:
        clock.now += 2
        progress.update(150e6, contig="chr[1]")
    shown = screen.getvalue()
    assert "33%" in shown
    assert "150/450 MB 75 MB/s 4.0 s left contig chr[1]" in shown


def test_progress_is_written_to_stderr_and_never_to_stdout(capsys):
    with Progress(1, "steps", "pretrain") as progress:
        progress.update(1)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pretrain 1/1 steps")


def test_console_loads_without_rich():
    code = "import sys, dnassm.console; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_table_aligns_numbers_right_and_text_left():
    assert table([("s4d", 3, True), ("mamba", 12, None)], ["mixer", "n", "exact"]).splitlines() == [
        "mixer   n  exact",
        "s4d     3  True",
        "mamba  12  -",
    ]


def test_a_table_without_rows_is_its_header():
    assert table([], ["mixer", "source"]) == "mixer  source"


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="argument"):
        table([(1, 2), (1,)], ["a", "b"])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1e9, "B", "1 GB"),
        (0.25, "steps", "0.25 steps"),
        (2e5, "bp", "200k bp"),
    ],
)
def test_quantities_are_short(value, unit, text):
    assert quantity(value, unit) == text
