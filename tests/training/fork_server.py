"""Run by the tests: imports dnassm once, then forks a process for every job that comes by stdin.

A job is a line of JSON: argv of the command line, where stdout and stderr go, a file that records
the batches, and a hook, "NAME" or "NAME:NUMBER", that does harm at a chosen moment. Answers are two
lines, the process id at once and the exit code at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from lightning.fabric import Fabric

from dnassm.pipelines.cli import main
from dnassm.training import checkpoint, command  # noqa: F401  the command's imports, done once
from dnassm.training.learner import Learner


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: object, name: str, number: int, harm) -> None:
    """Do `harm` when the function is called for the `number`-th time, from 1."""
    function, calls = getattr(owner, name), []

    def harmed(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            harm()
        return function(*args, **kwargs)

    setattr(owner, name, harmed)


def fill_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))


def hang() -> None:
    print("hangs", file=sys.stderr, flush=True)
    while True:
        time.sleep(1)


HOOKS = {
    # Gradients are there and the weights are not yet changed.
    "kill_in_step": lambda number: at_call(Fabric, "clip_gradients", number, die),
    # Two files of tensors per checkpoint: an even number dies between them.
    "kill_in_save": lambda number: at_call(checkpoint, "save_file", number, die),
    "disk_full_in_save": lambda number: at_call(checkpoint, "save_file", number, fill_disk),
    "hang_in_step": lambda number: at_call(Learner, "step", number, hang),
}


def record_batches(path: str) -> None:
    step = Learner.step

    def recorded(self, batch, *, number, rate):
        parts = (b"-" if part is None else part.numpy().tobytes() for part in batch)
        digest = hashlib.sha256(b"|".join(parts)).hexdigest()
        with Path(path).open("a") as file:
            file.write(f"{number} {digest}\n")
        return step(self, batch, number=number, rate=rate)

    Learner.step = recorded


def run(job: dict) -> int:
    for stream, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(job[stream], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the whole group
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job["record"]:
        record_batches(job["record"])
    if job["hook"]:
        name, _, number = job["hook"].partition(":")
        HOOKS[name](int(number))
    sys.argv = ["dnassm", *job["argv"]]
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = run(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
