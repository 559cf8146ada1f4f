"""Keep what a pretraining run on E. coli reached, and draw the curves of every kept run.

Usage::

    python -m benchmarks.ecoli keep RUN --name NAME --machine "2 cores of ..." --commit HASH
    python -m benchmarks.ecoli draw

`keep` reads metrics.csv, evaluation.json and run.json of a run folder and files them in
results/ecoli.json by name; `draw` makes docs/figures/ecoli.svg from that file alone.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from dnassm.artifact import read_json, staged_file, write_json

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "ecoli.json"
FIGURE = HERE.parent / "docs" / "figures" / "ecoli.svg"
# Okabe and Ito's colours: told apart by everybody.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MOST_POINTS = 200


def keep(run: Path, name: str, machine: str, commit: str) -> None:
    """File one run under `name`."""
    record = read_json(run / "run.json")
    evaluation = read_json(run / "evaluation.json")
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    results = read_json(RESULTS) if RESULTS.exists() else {"runs": {}}
    results.setdefault("baselines", evaluation["baselines"])  # of the first: E. coli alone
    results["runs"][name] = {
        "machine": machine,
        "commit": commit,
        "command": ["dnassm", *_without_paths(record["argv"][1:])],
        "versions": record["versions"],
        "device": record["device"],
        "config": record["config"],
        "bits_per_base": evaluation["bits_per_base"],
        "bases": evaluation["bases"],
        "split": evaluation["split"],
        "best_baseline": min(evaluation["baselines"], key=lambda row: row["bits_per_base"]),
        "steps": int(rows[-1]["step"]),
        "tokens": int(rows[-1]["tokens"]),
        "training_seconds": float(rows[-1]["seconds"]),
        "curve": [
            {key: float(row[key]) for key in ("tokens", "seconds", "train_bits", "valid_bits")}
            for row in rows
            if row["valid_bits"]
        ],
    }
    write_json(RESULTS, results)


def _without_paths(argv: list[str]) -> list[str]:
    """The command as anyone would give it: a path is its last part."""
    return [Path(word).name if "/" in word else word for word in argv]


def draw() -> None:
    """Held-out bits per base against tokens, beside the best Markov model."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dnassm", "font.size": 10})
    from matplotlib import pyplot as plt

    results = read_json(RESULTS)
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    for colour, (name, run) in zip(COLOURS, results["runs"].items(), strict=False):
        curve = run["curve"][:: max(1, len(run["curve"]) // MOST_POINTS)]
        tokens = [point["tokens"] / 1e6 for point in curve]
        label = f"{run['bits_per_base']:.3f}  {name}"
        axes.plot(
            tokens, [point["valid_bits"] for point in curve], color=colour, lw=1.8, label=label
        )
        axes.plot(tokens[-1], curve[-1]["valid_bits"], "o", color=colour, ms=5)
    axes.legend(frameon=False, title="on all held-out bases", alignment="left", loc="upper right")
    _markov_line(axes, results["baselines"])
    axes.set(xlabel="million tokens read", ylabel="bits per held-out base", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(1.81, 2.05)
    axes.spines[["top", "right"]].set_visible(False)
    with staged_file(FIGURE) as staging:
        figure.savefig(staging, format="svg", metadata={"Date": None})


def _markov_line(axes: Any, baselines: list[dict[str, Any]]) -> None:
    best = min(baselines, key=lambda row: row["bits_per_base"])
    axes.axhline(best["bits_per_base"], color="#555555", lw=1, ls="--")
    axes.annotate(
        f"{best['name']}: {best['bits_per_base']:.3f}",
        (1.0, best["bits_per_base"]),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        color="#555555",
        ha="right",
    )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    keeper = verbs.add_parser("keep")
    keeper.add_argument("run", type=Path)
    for option in ("--name", "--machine", "--commit"):
        keeper.add_argument(option, required=True)
    verbs.add_parser("draw")
    arguments = parser.parse_args()
    if arguments.verb == "keep":
        keep(arguments.run, arguments.name, arguments.machine, arguments.commit)
        print(json.dumps({"kept": arguments.name, "in": RESULTS.name}))
    else:
        draw()


if __name__ == "__main__":
    main()
