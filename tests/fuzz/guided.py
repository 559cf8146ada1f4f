"""One target in a process of its own, which libFuzzer ends: started by `python -m tests.fuzz`."""

from __future__ import annotations

import sys
from pathlib import Path

_SLOWEST_SECONDS = 10
_MEMORY_MB = 2048
_MOST_BYTES = 8192


def main(name: str, corpus: Path, seconds: int) -> None:
    """Fuzz until the time is over or something is found; never returns."""
    import atheris

    with atheris.instrument_imports(include=["dnassm", "tarfile", "zipfile"]):
        from tests.fuzz.targets import TARGETS, seeds
    target = TARGETS[name]
    kept = corpus / name
    kept.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (kept / f"seed-{number}").write_bytes(seed)
    words = corpus / f"{name}.dict"
    listed = "".join(f'"{_escaped(word)}"\n' for word in target.words)
    words.write_text(listed or "# an empty file would be an error\n", encoding="ascii")
    options = {
        "max_total_time": seconds,
        "timeout": _SLOWEST_SECONDS,
        "rss_limit_mb": _MEMORY_MB,
        "max_len": _MOST_BYTES,
        "dict": words,
        "artifact_prefix": f"{corpus}/{name}.finding-",
        "print_final_stats": 1,
    }
    flags = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([name, *flags, str(kept)], target.check)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
