"""k-mer logistic regression: the classifier that a language model of DNA has to beat.

A sequence becomes, for each k, the square roots of its k-mer frequencies (Hellinger map): every
block has length 1 whatever the sequence's length, so one L2 penalty suits all k and no scaling has
to be learnt. A k-mer with another letter than A C G T is left out; the soft mask is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as scipy_sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from dnassm.baselines.majority import check_training
from dnassm.data.alphabet import BASE, Codes, N, encode_ascii
from dnassm.errors import ConfigError, FormatError, LabelError

sparse: Any = scipy_sparse  # scipy ships no types

_MAX_K = 8
_BASES_PER_CHUNK = 2_000_000
_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)


def kmer_features(
    sequences: Sequence[str], ks: Sequence[int], *, canonical: bool = False
) -> scipy_sparse.csr_matrix:
    """Square roots of k-mer frequencies of each sequence, the blocks of each k side by side.

    Args:
        sequences: DNA of any lengths; one shorter than k has an empty block.
        ks: k-mer lengths, 1 to 8.
        canonical: count a k-mer and its reverse complement as one, so that the strand is lost.

    Returns:
        (n, F) sparse float64; F is the sum of 4**k, or of the number of canonical k-mers.

    Raises:
        ConfigError: a k out of range.
        FormatError: a character that is no base, with the number of its sequence.
    """
    for k in ks:
        if not 1 <= k <= _MAX_K:
            raise ConfigError(f"k-mer length: expected 1 to {_MAX_K}, got {k}")
    chunks = [
        sparse.hstack([_block(codes, lengths, k, canonical=canonical) for k in ks], format="csr")
        for codes, lengths in _encoded_chunks(sequences)
    ]
    features: scipy_sparse.csr_matrix = sparse.vstack(chunks, format="csr")
    return features


class KmerClassifier:
    """Logistic regression on k-mer frequencies; penalty chosen within the training set.

    Args:
        ks: k-mer lengths, concatenated.
        canonical: see `kmer_features`.
        penalties: inverse strengths C of the L2 penalty; the one with the lowest cross-validated
            log loss is used.
        folds: of the stratified cross-validation; fewer when a class has fewer sequences, and
            with a single sequence of a class C = 1 is taken untried.
        seed: shuffles the folds.
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 2, 3, 4, 5, 6),
        *,
        canonical: bool = False,
        penalties: Sequence[float] = _PENALTIES,
        folds: int = 3,
        seed: int = 0,
    ) -> None:
        self.ks = tuple(ks)
        self.canonical = canonical
        self.penalties = tuple(penalties)
        self.folds = folds
        self.seed = seed
        self.C: float | None = None
        self._model: LogisticRegression | None = None

    @property
    def name(self) -> str:
        """See Baseline."""
        strands = ", both strands" if self.canonical else ""
        return f"k-mer logistic regression (k = {', '.join(map(str, self.ks))}{strands})"

    @property
    def classes(self) -> tuple[str, ...]:
        """See Baseline."""
        return tuple(self._fitted().classes_.tolist())

    def fit(self, sequences: Sequence[str], labels: Sequence[str]) -> Self:
        """See Baseline.

        Raises:
            LabelError: no sequence, one class only, or not one label per sequence.
            FormatError: a character that is no base.
        """
        check_training(sequences, labels)
        truth = np.asarray(labels, dtype=str)
        if len(np.unique(truth)) < 2:
            raise LabelError(
                f"training set: expected at least 2 classes, got only {str(truth[0])!r}"
            )
        features = kmer_features(sequences, self.ks, canonical=self.canonical)
        self.C = self._choose_penalty(features, truth)
        self._model = _regression(self.C).fit(features, truth)
        return self

    def predict_proba(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        """See Baseline."""
        model = self._fitted()
        if not len(sequences):
            return np.zeros((0, len(model.classes_)))
        features = kmer_features(sequences, self.ks, canonical=self.canonical)
        return np.asarray(model.predict_proba(features), dtype=np.float64)

    def _fitted(self) -> LogisticRegression:
        if self._model is None:
            raise LabelError(f"{self.name}: asked before fit; call fit first")
        return self._model

    def _choose_penalty(self, features: scipy_sparse.csr_matrix, truth: NDArray[np.str_]) -> float:
        smallest = int(np.unique(truth, return_counts=True)[1].min())
        if smallest < 2:
            return 1.0
        folds = StratifiedKFold(min(self.folds, smallest), shuffle=True, random_state=self.seed)
        splits = list(folds.split(features, truth))

        def loss(penalty: float) -> float:
            return sum(_held_out_loss(penalty, features, truth, *split) for split in splits)

        return min(self.penalties, key=loss)


def _regression(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=2000, tol=1e-4)


def _held_out_loss(
    penalty: float,
    features: scipy_sparse.csr_matrix,
    truth: NDArray[np.str_],
    kept: NDArray[np.int64],
    held: NDArray[np.int64],
) -> float:
    model = _regression(penalty).fit(features[kept], truth[kept])
    return float(log_loss(truth[held], model.predict_proba(features[held]), labels=model.classes_))


def _encoded_chunks(sequences: Sequence[str]) -> Iterator[tuple[Codes, NDArray[np.int64]]]:
    """Codes of many sequences end to end, and their lengths; at least one chunk."""
    start, size = 0, 0
    for index, sequence in enumerate(sequences):
        size += len(sequence)
        if size >= _BASES_PER_CHUNK or index == len(sequences) - 1:
            yield _encode(sequences[start : index + 1], start)
            start, size = index + 1, 0
    if not len(sequences):
        yield _encode([], 0)


def _encode(sequences: Sequence[str], first: int) -> tuple[Codes, NDArray[np.int64]]:
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    try:
        return encode_ascii("".join(sequences).encode("ascii", "replace")), lengths
    except FormatError:
        for index, sequence in enumerate(sequences):
            try:
                encode_ascii(sequence.encode("ascii", "replace"))
            except FormatError as error:
                raise FormatError(f"sequence {first + index + 1}: {error}") from error
        raise


def _block(
    codes: Codes, lengths: NDArray[np.int64], k: int, *, canonical: bool
) -> scipy_sparse.csr_matrix:
    """Square roots of the frequencies of one k: (n, 4**k) or (n, canonical k-mers)."""
    bases = (codes & BASE).astype(np.int64)
    ends = np.cumsum(lengths)
    count = max(len(bases) - k + 1, 0)
    words = np.zeros(count, dtype=np.int64)
    clean = np.ones(count, dtype=bool)
    for offset in range(k):
        letter = bases[offset : offset + count]
        words = words * 4 + letter
        clean &= letter < N
    row = np.searchsorted(ends, np.arange(count), side="right")
    clean &= np.arange(count) + k <= ends[row] if count else True
    words, row = words[clean], row[clean]
    width = 4**k
    if canonical:
        columns, width = _canonical_columns(k)
        words = columns[words]
    shape = (len(lengths), width)
    ones = np.ones(len(words))
    matrix: scipy_sparse.csr_matrix = sparse.coo_matrix((ones, (row, words)), shape=shape).tocsr()
    total = np.maximum(np.bincount(row, minlength=len(lengths)), 1)
    matrix.data = np.sqrt(matrix.data / np.repeat(total, np.diff(matrix.indptr)))
    return matrix


def _canonical_columns(k: int) -> tuple[NDArray[np.int64], int]:
    """Column of each k-mer, shared with its reverse complement, and the number of columns."""
    words = np.arange(4**k)
    other = np.zeros_like(words)
    rest = words.copy()
    for _ in range(k):
        other = other * 4 + (3 - rest % 4)
        rest //= 4
    smaller = np.minimum(words, other)
    kept, columns = np.unique(smaller, return_inverse=True)
    return columns.astype(np.int64), len(kept)
