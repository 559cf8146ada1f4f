"""A reader sees the old artifact or the whole new one, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dnassm.artifact import check_target, read_json, staged_file, staged_folder, write_json
from dnassm.errors import ArtifactError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_folder(target: Path, text: str, *, force: bool = False) -> None:
    with staged_folder(target, force=force) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a").write_text(text)


def content(target: Path) -> str:
    return (target / "sub" / "a").read_text()


# Well


def test_a_file_and_a_folder_appear_when_the_block_ends(tmp_path):
    with staged_file(tmp_path / "new" / "file") as staging:
        staging.write_text("x")
        assert not (tmp_path / "new" / "file").exists()
    with staged_folder(tmp_path / "new" / "folder") as staging:
        (staging / "a").write_text("y")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "file").read_text() == "x"
    assert (tmp_path / "new" / "folder" / "a").read_text() == "y"
    assert names(tmp_path / "new") == ["file", "folder"]


def test_a_file_is_replaced(tmp_path):
    for text in ("old", "new"):
        with staged_file(tmp_path / "file") as staging:
            staging.write_text(text)
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_folder_is_replaced_with_force_and_refused_without(tmp_path):
    write_folder(tmp_path / "out", "old")
    with pytest.raises(ArtifactError, match="out exists already; pass --force to replace it"):
        write_folder(tmp_path / "out", "new")
    assert content(tmp_path / "out") == "old"
    write_folder(tmp_path / "out", "new", force=True)
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", "x")
    assert content(tmp_path / "out") == "x"


def test_a_folder_takes_the_place_of_a_file_with_force(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArtifactError, match="exists already"):
        write_folder(tmp_path / "out", "x")
    write_folder(tmp_path / "out", "x", force=True)
    assert content(tmp_path / "out") == "x"
    assert names(tmp_path) == ["out"]


def test_names_with_characters_of_a_pattern_are_cleaned_as_well(tmp_path):
    stale = tmp_path / f".run[1]*.partial-{dead_pid()}"
    stale.mkdir()
    write_folder(tmp_path / "run[1]*", "x")
    assert names(tmp_path) == ["run[1]*"]


# Refused


@pytest.mark.parametrize("force", [False, True])
def test_a_parent_that_is_a_file_is_named(tmp_path, force):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file is a file, expected a folder"):
        check_target(tmp_path / "file" / "deeper" / "out", force=force)
    with pytest.raises(ArtifactError, match="file is a file, expected a folder"):
        write_folder(tmp_path / "file" / "out", "x", force=force)


def test_a_device_or_pipe_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="pipe is neither a file nor a folder"):
        check_target(tmp_path / "pipe", force=True)
    with (
        pytest.raises(ArtifactError, match="pipe is no file and cannot become one"),
        staged_file(tmp_path / "pipe"),
    ):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path):
    write_folder(tmp_path / "out", "x")
    with (
        pytest.raises(ArtifactError, match="out is no file and cannot become one"),
        staged_file(tmp_path / "out"),
    ):
        pass
    assert content(tmp_path / "out") == "x"


# Errors in the middle


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_inside_leaves_the_old_and_nothing_else(tmp_path, error):
    write_folder(tmp_path / "out", "old")
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), staged_folder(tmp_path / "out", force=True) as staging:
        (staging / "half").write_text("x")
        raise error
    with pytest.raises(error), staged_file(tmp_path / "file") as staging:
        staging.write_text("half")
        raise error
    assert content(tmp_path / "out") == "old"
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "out"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; nothing was changed"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "not writable; choose another --out"),
        (errno.EROFS, "not writable; choose another --out"),
    ],
)
def test_a_storage_error_is_one_line_with_what_to_do(tmp_path, number, message):
    write_folder(tmp_path / "out", "old")
    with (
        pytest.raises(ArtifactError, match=f"out: {message}") as caught,
        staged_folder(tmp_path / "out", force=True),
    ):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value)
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_an_error_that_is_not_of_the_storage_passes_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "out"):
        (tmp_path / "none").read_text()
    with pytest.raises(ArtifactError, match="mine"), staged_folder(tmp_path / "out"):
        raise ArtifactError("mine")


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_really_is_full_leaves_the_old_and_nothing_else(small_disk):
    write_folder(small_disk / "out", "old")
    with (
        pytest.raises(ArtifactError, match="the disk is full"),
        staged_folder(small_disk / "out", force=True) as staging,
    ):
        (staging / "large").write_bytes(bytes(1 << 20))
    with (
        pytest.raises(ArtifactError, match="the disk is full"),
        staged_file(small_disk / "file") as staging,
    ):
        staging.write_bytes(bytes(1 << 20))
    assert names(small_disk) == ["out"]
    assert content(small_disk / "out") == "old"


def test_a_full_disk_is_noticed_behind_safetensors_too(small_disk):
    import torch
    from safetensors.torch import save_file

    with (
        pytest.raises(ArtifactError, match="the disk is full"),
        staged_folder(small_disk / "out") as staging,
    ):
        save_file({"a": torch.zeros(1 << 20)}, staging / "weights")
    assert names(small_disk) == []


# Killed


def dead_pid() -> int:
    """Number of a process that has just ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def run_and_be_killed(folder: Path, code: str) -> None:
    """Run `code` in another process, which is expected to kill itself with SIGKILL."""
    prelude = """
        import os, signal
        from pathlib import Path
        from dnassm.artifact import staged_file, staged_folder

        def die():
            os.kill(os.getpid(), signal.SIGKILL)
    """
    script = textwrap.dedent(prelude) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


KILLED_WHILE_WRITING = """
    with staged_folder(Path("out"), force=True) as staging:
        (staging / "half").write_text("half")
        die()
"""
KILLED_BETWEEN_THE_RENAMES = """
    rename, calls = Path.replace, []

    def replace(self, target):
        if Path("out") in calls:  # it was moved away by the call before
            die()
        calls.append(self)
        return rename(self, target)

    Path.replace = replace
    with staged_folder(Path("out"), force=True) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a").write_text("new")
"""


def test_killed_while_writing_the_old_survives_and_the_next_writer_cleans(tmp_path):
    write_folder(tmp_path / "out", "old")
    run_and_be_killed(tmp_path, KILLED_WHILE_WRITING)
    assert content(tmp_path / "out") == "old"
    assert len(names(tmp_path)) == 2
    write_folder(tmp_path / "out", "new", force=True)
    assert content(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


def test_a_file_killed_while_written_the_old_survives_and_the_next_writer_cleans(tmp_path):
    (tmp_path / "file").write_text("old")
    run_and_be_killed(
        tmp_path,
        """
        with staged_file(Path("file")) as staging:
            staging.write_text("half")
            die()
        """,
    )
    assert (tmp_path / "file").read_text() == "old"
    write_json(tmp_path / "file", "new")
    assert read_json(tmp_path / "file") == "new"
    assert names(tmp_path) == ["file"]


def test_killed_between_the_two_renames_the_old_comes_back_and_is_not_overwritten(tmp_path):
    write_folder(tmp_path / "out", "old")
    run_and_be_killed(tmp_path, KILLED_BETWEEN_THE_RENAMES)
    assert not (tmp_path / "out").exists()
    with (
        pytest.raises(ArtifactError, match="exists already; pass --force"),
        staged_folder(tmp_path / "out"),
    ):
        pytest.fail("hours of work begin, only to be refused at the end")
    assert content(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_killed_between_the_two_renames_force_replaces_the_old(tmp_path):
    write_folder(tmp_path / "out", "old")
    run_and_be_killed(tmp_path, KILLED_BETWEEN_THE_RENAMES)
    write_folder(tmp_path / "out", "newer", force=True)
    assert content(tmp_path / "out") == "newer"
    assert names(tmp_path) == ["out"]


# Several writers


def test_what_a_living_process_is_writing_is_left_alone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dnassm.artifact import staged_folder\n"
        "with staged_folder(Path('out'), force=True) as staging:\n"
        "    (staging / 'sub').mkdir(); (staging / 'sub' / 'a').write_text('theirs')\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=pipe, stdout=pipe, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        write_folder(tmp_path / "out", "ours", force=True)
        assert content(tmp_path / "out") == "ours"
        assert len(names(tmp_path)) == 2
        other.communicate()
    assert other.returncode == 0
    assert content(tmp_path / "out") == "theirs"
    assert names(tmp_path) == ["out"]


def test_a_writer_without_force_does_not_replace_what_appeared_meanwhile(tmp_path):
    with (
        pytest.raises(ArtifactError, match="exists already"),
        staged_folder(tmp_path / "out") as staging,
    ):
        (staging / "a").write_text("late")
        (tmp_path / "out" / "sub").mkdir(parents=True)
        (tmp_path / "out" / "sub" / "a").write_text("first")
    assert content(tmp_path / "out") == "first"
    assert names(tmp_path) == ["out"]


MANY_WRITES = """
import sys
from pathlib import Path
from dnassm.artifact import staged_folder
from dnassm.errors import ArtifactError

for turn in range(30):
    try:
        with staged_folder(Path("out"), force=True) as staging:
            for name in ("a", "b"):
                (staging / name).write_text(f"{sys.argv[1]} {turn}")
    except ArtifactError as error:
        assert "at the same time" in str(error), error
"""


def test_concurrent_writers_never_mix_and_leave_one_whole_folder(tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", MANY_WRITES, str(number)],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for writer in writers:
        _, stderr = writer.communicate()
        assert writer.returncode == 0, stderr
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == (tmp_path / "out" / "b").read_text()


def test_a_reader_of_a_file_sees_only_whole_versions(tmp_path):
    target, stop, seen = tmp_path / "value.json", threading.Event(), set()
    write_json(target, ["x" * 1000] * 100)

    def read() -> None:
        while not stop.is_set():
            seen.add(len(read_json(target)))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(50):
        write_json(target, ["x" * 1000] * (100 + turn % 2))
        time.sleep(0.001)
    stop.set()
    reader.join()
    assert seen <= {100, 101}


# JSON


def test_json_comes_back_and_nan_is_refused(tmp_path):
    value = {"a": [1, None, "ä"], "b": 0.1}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert read_json(tmp_path / "x.json") == value
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize(
    "content_", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"]
)
def test_broken_json_names_its_file(tmp_path, content_):
    (tmp_path / "x.json").write_bytes(content_)
    with pytest.raises(ArtifactError, match=r"x\.json: expected JSON, got .*; restore or rebuild"):
        read_json(tmp_path / "x.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"x\.json does not exist"):
        read_json(tmp_path / "x.json")
