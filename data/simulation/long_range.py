"""A signal over a long distance: a key whose answer stands a fixed number of bases before it.

    ... SIGNAL barcode value ......... distance ......... KEY barcode value ...

SIGNAL and KEY are one word each, `value` is one of two words, and the barcode, which both share,
stands behind no other SIGNAL. The value behind a key can be told only by looking back `distance`
bases: it costs a causal model one bit, or nothing if it does; and a classifier that reads from the
signal to the key can tell the label.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnassm.artifact import staged_folder
from dnassm.data.alphabet import Codes, decode, encode_ascii, reverse_complement
from dnassm.data.interval import Interval
from dnassm.data.simulation.files import bed_text, fasta_text, table_text
from dnassm.errors import ConfigError
from dnassm.provenance import write_run_json

WORD_BP, BARCODE_BP, VALUE_BP = 12, 12, 8
SLOT_BP = 500
"""One signal stands in each stretch of this many bases, at a random place."""
_ELEMENT_BP = WORD_BP + BARCODE_BP + VALUE_BP
_FREQUENCIES = (0.3, 0.2, 0.2, 0.3)
_LEAST_DIFFERING = 5
_TRUTH_COLUMNS = (
    "name", "contig", "signal_start", "key_start", "answer_start", "answer_end", "distance",
    "barcode", "value", "label", "split",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """A signal and the key that asks for its value; positions 0-based on the plus strand.

    Attributes:
        contig: that both lie on.
        signal: first base of the word SIGNAL.
        key: first base of the word KEY; `distance` bases behind.
        barcode: letters that both share.
        value: letters behind both barcodes.
        label: "0" or "1", which of the two values it is.
        split: "train", "valid" or "test"; the same for all of a contig.
    """

    contig: str
    signal: int
    key: int
    barcode: str
    value: str
    label: str
    split: str

    @property
    def window(self) -> Interval:
        """From the signal to the barcode of the key, without the answer."""
        return Interval(self.contig, self.signal, self.answer.start)

    @property
    def answer(self) -> Interval:
        """The value behind the key."""
        start = self.key + WORD_BP + BARCODE_BP
        return Interval(self.contig, start, start + VALUE_BP)


@dataclasses.dataclass(frozen=True, slots=True)
class LongRange:
    """Contigs with their examples.

    Attributes:
        contigs: name -> sequence.
        examples: by contig and place of the signal.
        words: "signal", "key", "0" and "1" -> letters.
        distance: bases from the first base of a signal to that of its key.
        seed: that all was made from.
    """

    contigs: Mapping[str, str]
    examples: tuple[Example, ...]
    words: Mapping[str, str]
    distance: int
    seed: int

    def summary(self) -> dict[str, Any]:
        """Counts, words, and the rule that splits the genome as the examples are, as JSON."""
        held_out = dict.fromkeys(
            f"{e.split}={e.contig}" for e in self.examples if e.split != "train"
        )
        return {
            "bases": sum(map(len, self.contigs.values())),
            "contigs": len(self.contigs),
            "distance": self.distance,
            "examples": dict(Counter(f"{e.split} {e.label}" for e in self.examples)),
            "words": dict(self.words),
            "split": f"contig:{','.join(held_out)}",
        }


def simulate_long_range(
    *, length: int, seed: int, contigs: int = 2, distance: int = 500_000
) -> LongRange:
    """Simulate contigs with keys and answers; the same arguments give the same contigs.

    The last contig tests, of three or more the one before validates; the labels of every contig are
    even.

    Args:
        length: bases of all contigs together.
        seed: 0 or more.
        contigs: 2 or more, each long enough for 2 examples.
        distance: bases between signal and key.

    Raises:
        ConfigError: an argument out of range.
    """
    _check(length, seed, contigs, distance)
    rng = np.random.default_rng(seed)
    words = _draw_words(rng)
    found: dict[str, str] = {}
    examples: list[Example] = []
    barcodes: set[str] = set()
    for number in range(contigs):
        name = f"far{number + 1}"
        size = length // contigs + (number < length % contigs)
        held = {contigs - 1: "test"} | ({contigs - 2: "valid"} if contigs > 2 else {})
        codes = _bases(rng, size)
        new = _examples(name, size, distance, words, barcodes, held.get(number, "train"), rng)
        for example in new:
            _plant(codes, example, words)
        _remove_strays(codes, new, words, rng)
        found[name] = decode(codes)
        examples += new
    return LongRange(found, tuple(examples), words, distance, seed)


def write_long_range(made: LongRange, out: Path, *, force: bool = False) -> None:
    """Write genome.fa, labels.bed (windows without their answer), truth.tsv and run.json.

    Raises:
        ArtifactError: `out` is taken, or cannot be written; nothing half-written is left.
    """
    names = [f"far{number:06d}" for number in range(1, len(made.examples) + 1)]
    labels = bed_text(
        (e.contig, e.window.start, e.window.end, name, 0, "+", e.label, e.split)
        for name, e in zip(names, made.examples, strict=True)
    )
    rows = [
        (name, e.contig, e.signal, e.key, e.answer.start, e.answer.end, made.distance, e.barcode,
         e.value, e.label, e.split)
        for name, e in zip(names, made.examples, strict=True)
    ]  # fmt: skip
    summary = made.summary()
    with staged_folder(out, force=force) as folder:
        note = f"keys {made.distance} bases behind their answers, seed {made.seed}"
        (folder / "genome.fa").write_text(fasta_text(made.contigs, note), encoding="ascii")
        (folder / "labels.bed").write_text(labels, encoding="ascii")
        (folder / "truth.tsv").write_text(table_text([_TRUTH_COLUMNS, *rows]), encoding="ascii")
        write_run_json(
            folder,
            command="simulate",
            config={"kind": "long-range", "length": summary["bases"], "truth": summary},
            seed=made.seed,
            inputs={},
        )


def _check(length: int, seed: int, contigs: int, distance: int) -> None:
    if seed < 0:
        raise ConfigError(f"simulate: seed must be 0 or more, got {seed}")
    if contigs < 2:
        raise ConfigError(
            f"simulate: long-range needs at least 2 contigs, one tests; got {contigs}"
        )
    if distance < 2 * SLOT_BP:
        raise ConfigError(f"simulate: distance must be at least {2 * SLOT_BP}, got {distance}")
    least = distance + 2 * SLOT_BP
    if length < least * contigs:
        raise ConfigError(
            f"simulate: length must be at least {least:,} bases for each contig, the distance and "
            f"room for two examples ({least * contigs:,} for {contigs}), got {length:,}"
        )


def _draw_words(rng: np.random.Generator) -> dict[str, str]:
    """Two words, and two values that differ in most places."""
    while True:
        signal, key = (decode(_bases(rng, WORD_BP)) for _ in range(2))
        zero, one = (decode(_bases(rng, VALUE_BP)) for _ in range(2))
        differing = sum(a != b for a, b in zip(zero, one, strict=True))
        turned = {_turned(word) for word in (signal, key)}
        if differing >= _LEAST_DIFFERING and signal != key and not turned & {signal, key}:
            return {"signal": signal, "key": key, "0": zero, "1": one}


def _examples(
    contig: str,
    size: int,
    distance: int,
    words: Mapping[str, str],
    barcodes: set[str],
    split: str,
    rng: np.random.Generator,
) -> list[Example]:
    """Signals side by side for as long as their keys are not reached; then the next such round."""
    signals: list[int] = []
    begin = 0
    while (slots := min(distance, size - begin - distance) // SLOT_BP) > 0:
        starts = begin + SLOT_BP * np.arange(slots)
        signals += (starts + rng.integers(0, SLOT_BP - _ELEMENT_BP, slots)).tolist()
        begin += distance + slots * SLOT_BP
    labels = rng.permutation(np.arange(len(signals)) % 2).astype(str).tolist()
    examples = []
    for signal, label in zip(signals, labels, strict=True):
        barcode = _new_barcode(barcodes, words, rng)
        examples.append(
            Example(contig, signal, signal + distance, barcode, words[label], label, split)
        )
    return examples


def _new_barcode(taken: set[str], words: Mapping[str, str], rng: np.random.Generator) -> str:
    while True:
        barcode = decode(_bases(rng, BARCODE_BP))
        elements = [words[w] + barcode + words[v] for w in ("signal", "key") for v in "01"]
        pattern = _pattern(words)
        if barcode not in taken and all(len(pattern.findall(text)) == 1 for text in elements):
            taken.add(barcode)
            return barcode


def _plant(codes: Codes, example: Example, words: Mapping[str, str]) -> None:
    for start, word in ((example.signal, words["signal"]), (example.key, words["key"])):
        text = word + example.barcode + example.value
        codes[start : start + _ELEMENT_BP] = encode_ascii(text.encode())


def _remove_strays(
    codes: Codes, examples: list[Example], words: Mapping[str, str], rng: np.random.Generator
) -> None:
    """Change a base of every word, on either strand, that stands where none was planted."""
    planted = {e.signal for e in examples} | {e.key for e in examples}
    free = np.ones(len(codes), dtype=bool)
    for start in planted:
        free[start : start + _ELEMENT_BP] = False
    pattern = _pattern(words)
    while True:
        text = decode(codes)
        strays = [at for found in pattern.finditer(text) if (at := found.start()) not in planted]
        places = [np.flatnonzero(free[at : at + WORD_BP]) + at for at in strays]
        if not any(map(len, places)):
            return
        for place in filter(len, places):
            at = int(rng.choice(place))
            codes[at] = (codes[at] + rng.integers(1, 4)) % 4


def _pattern(words: Mapping[str, str]) -> re.Pattern[str]:
    """Where SIGNAL or KEY begins, on either strand."""
    both = [words["signal"], words["key"]]
    return re.compile(f"(?={'|'.join([*both, *map(_turned, both)])})")


def _bases(rng: np.random.Generator, length: int) -> Codes:
    return rng.choice(4, size=length, p=_FREQUENCIES).astype(np.uint8)


def _turned(word: str) -> str:
    return decode(reverse_complement(encode_ascii(word.encode())))
