"""The table of the blocks: time and memory asked for and reached, floors, parts, and what is left.

    python -m benchmarks.block_table [--measure]

Writes docs/blocks.md from results/mamba_block_gpu.json and mamba2_block_gpu.json; `--measure` has a
GPU measure both first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from dnassm.artifact import read_json, staged_file
from dnassm.errors import ArtifactError

RESULTS, TABLE = ROOT / "benchmarks" / "results", ROOT / "docs" / "blocks.md"
# (B, M, L) -> ms and GiB (None: not asked) of forward + backward.
ASKED: dict[str, dict[tuple[int, int, int], tuple[float, float | None]]] = {
    "mamba": {
        (1, 256, 1 << 20): (30.0, 6.0),
        (1, 256, 1 << 17): (3.8, None),
        (8, 768, 1 << 13): (5.5, 1.4),
    },
    "mamba2": {(1, 256, 1 << 20): (32.0, 8.0), (8, 768, 1 << 13): (6.5, None)},
}
STEP_ASKED = {1: 150.0, 64: 200.0}  # us, by batch
FILES = {"mamba": "mamba_block_gpu.json", "mamba2": "mamba2_block_gpu.json"}
FLOORS = {"bytes_ms": "bytes", "products_floor_ms": "products", "ex2_ms": "exponentials"}
PARTS = {
    "scan_ms": "scan",
    "ssd_ms": "SSD",
    "conv_ms": "convolution",
    "norm_ms": "norm",
    "products_ms": "products",
}
NEEDED = {"python_ms", "graph_ms"}  # results of earlier versions lack it
_ALIKE = 1.005  # two runs of one call differ by as much
COLUMNS = (
    "B, d_model, L",
    *("mamba_ssm", "asked", "dnassm", "fits best"),
    *("floors", "alone", "rest", "Python, graph"),
)
HEAD = """# The Mamba and Mamba-2 blocks on a GPU

bf16, forward + backward, medians of CUDA events; peak is all that is allocated at the worst moment,
x, y and their gradients included. Made by `python -m benchmarks.block_table` from the results of
`benchmarks.mamba_block_gpu` and `benchmarks.mamba2_block_gpu`, which say what a floor and a part is
(`--measure` has a GPU measure both first). mamba_ssm 2.3.2: measured once on the same kind of
machine, another day.

`fits best`: the fastest of the measured choices of what to keep for the backward, in the memory
that was asked for. `floors`: what must be moved, multiplied and exponentiated takes so long by
itself, ms; they overlap, so neither one of them nor their sum can be reached. `alone`: the parts by
themselves, the same operators and products in the same run. `rest`: what the block takes beyond
them: what is computed once more because it was not kept, a recurrence in parts where memory asks
for it, small sums and launches. `Python`: what a call takes the CPU of that machine; times are the
GPU's, which never waited for it, but where it takes longer than the GPU it is what calls take that
follow each other; a CUDA graph of the call needs none (`graph`).
"""


def main() -> None:
    """Read the results, measured before if asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure both first, on a GPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of both")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    if options.measure:
        measure(options.results)
    try:
        found = {kind: read_json(options.results / name) for kind, name in FILES.items()}
        tables = [blocks(kind, found[kind]) for kind in ASKED]
        with staged_file(options.out) as staged:
            staged.write_text("\n".join([HEAD, *tables, steps(found["mamba"])]), encoding="utf-8")
    except ArtifactError as error:
        raise SystemExit(str(error)) from None


def measure(folder: Path) -> None:
    """Have both measured, each in a process of its own."""
    for name in FILES.values():
        module = f"benchmarks.{name.removesuffix('.json')}"
        done = subprocess.run(
            [sys.executable, "-m", module, "--out", str(folder.absolute() / name)],
            cwd=ROOT,
            check=False,
        )
        if done.returncode:  # it has said why
            raise SystemExit(done.returncode)


def blocks(kind: str, result: dict[str, Any]) -> str:
    """The table of one kind of block."""
    lines = [
        f"## {'Mamba-2' if kind == 'mamba2' else 'Mamba'}",
        "",
        source(result),
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for shape, asked in ASKED[kind].items():
        rows = [row for row in result["block"] if tuple(row["shape_BML"]) == shape]
        here = default_row(kind, shape, rows)
        fit = [row for row in rows if asked[1] is None or row["peak_gib"] <= asked[1]]
        best = min(fit, key=lambda row: row["forward_backward_ms"])
        if here in fit and here["forward_backward_ms"] <= _ALIKE * best["forward_backward_ms"]:
            best = here
        name = best["variant"] or "as it is"
        parts = {name: here[key] for key, name in PARTS.items() if key in here}
        rest = here["forward_backward_ms"] - sum(parts.values())
        cells = [
            f"{shape[0]}, {shape[1]}, {shape[2]:,}",
            cost(here["peer_forward_backward_ms"], here["peer_peak_gib"]),
            cost(*asked),
            f"**{cost(here['forward_backward_ms'], here['peak_gib'])}**",
            f"{name}: {cost(best['forward_backward_ms'], best['peak_gib'])}",
            listed({name: here[key] for key, name in FLOORS.items()}),
            listed(parts),
            f"{rest:.2f}",
            f"{here['python_ms']:.1f}, {here['graph_ms']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def default_row(
    kind: str, shape: tuple[int, int, int], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """The block as it is, with all that the table says of it."""
    for row in rows:
        if row["variant"] == "" and row.keys() >= NEEDED:
            return row
    wanted = f"a row of B, d_model, L {shape} as it is, with {' and '.join(sorted(NEEDED))}"
    raise ArtifactError(f"{FILES[kind]}: expected {wanted}, found none; measure it (--measure)")


def steps(result: dict[str, Any]) -> str:
    """The table of the generation step."""
    lines = [
        "## One token of a Mamba model, d_model 256, 8 layers",
        "",
        "By a CUDA graph, us; the floor moves weights and states.",
        "",
        "| batch | dtype | asked | dnassm | floor | kernels |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["step"]:
        asked = STEP_ASKED.get(row["batch"]) if row["dtype"] == "bfloat16" else None
        cells = [row["batch"], row["dtype"], f"{asked:.0f}" if asked else ""]
        cells += [f"{row['graph_us']:.0f}", f"{row['floor_us']:.1f}", row["kernels"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def source(result: dict[str, Any]) -> str:
    """Machine, versions and code of a result."""
    machine, versions = result["machine"], result["versions"]
    code = result.get("code", result["commit"]).partition(";")[0]
    return f"{machine['device']}, torch {versions['torch']}, code {code}. Times in ms."


def cost(ms: float, gib: float | None) -> str:
    """Time and memory."""
    time = f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms"
    return time if gib is None else f"{time}, {gib:.2f} GiB"


def listed(values: dict[str, float]) -> str:
    """Names and milliseconds."""
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())


if __name__ == "__main__":
    main()
