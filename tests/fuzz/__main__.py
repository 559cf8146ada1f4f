"""Coverage-guided fuzzing of the readers with atheris, one target after the other.

    python -m tests.fuzz --minutes 60
    python -m tests.fuzz --minutes 5 --target vcf --corpus DIR

Inputs that reached new code are kept in the corpus folder and used again the next time. An input
that breaks a check is written to DIR/TARGET.finding-*, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS


def main() -> int:
    """Parse the command line and fuzz; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of all targets together")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="may be repeated")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed; run: pip install atheris", file=sys.stderr)
        return 2
    names = arguments.target or list(TARGETS)
    arguments.corpus.mkdir(parents=True, exist_ok=True)
    seconds = max(1, int(arguments.minutes * 60 / len(names)))
    codes = [_run(name, arguments.corpus, seconds) for name in names]
    return 1 if any(codes) else 0


def _run(name: str, corpus: Path, seconds: int) -> int:
    """Fuzz one target, print a line about it, and return its exit code."""
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(corpus), str(seconds)]
    log = corpus / f"{name}.log"
    began = time.monotonic()
    with log.open("wb") as file:
        code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    text = log.read_text(encoding="utf-8", errors="replace")
    counts = [int(number) for number in re.findall(r"^#(\d+)\s", text, re.MULTILINE)]
    minutes = (time.monotonic() - began) / 60
    said = f"exit code {code}, see {log}" if code else "nothing found"
    print(
        f"{name}: {max(counts, default=0):,} executions, {minutes:.1f} minutes, {said}", flush=True
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
