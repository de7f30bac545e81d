"""Train the model of the filter `classifier` by logistic regression.

The log-odds of a document are a bias plus the mean weight of its features. The weights are those of
fastText's supervised mode without its hidden layer: with two classes, the layer adds nothing.

They are found by Adagrad (Duchi et al. 2011), which gives a rare word a larger step than a frequent one.
Both classes have the same total weight, however many documents each has. Everything is computed by one
thread and in an order that the contents of the documents determine, so the same documents give the same
bytes.

The features are in a temporary file, four bytes for each, so that memory does not limit the number of
documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from preprocess.filters.classifier_model import ClassifierModel, quantize
from preprocess.filters.logistic import logistic
from preprocess.filters.spans import sum_between
from preprocess.filters.word_features import Features, iter_features
from preprocess.filters.words import iter_text_groups
from preprocess.shards.files import JsonObject
from preprocess.shards.permutation import keyed_hash

BUCKET_BITS = 20
MAX_FEATURES = 1 << 16  # of each document that are used for training; the rest of a longer document is not read
HELD_OUT_FRACTION = 0.1
NUM_EPOCHS = 10
BATCH_DOCUMENTS = 16
LEARNING_RATE = 1.0
EPSILON = 1e-12  # added to a sum of squares before its root is taken
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
THRESHOLD = 0.5  # at which precision and recall are measured
FIGURE_DIGITS = 4


@dataclass(frozen=True)
class Examples:
    """N documents with their features in a file, in the order of the hashes of their contents."""

    features: np.ndarray  # (F,) int32, of all documents
    starts: np.ndarray  # (N,) int64, index of the first feature of each document
    counts: np.ndarray  # (N,) int64, its number of features
    labels: np.ndarray  # (N,) int64: 1 for a document of --like, 0 for one of --unlike
    is_held_out: np.ndarray  # (N,) bool
    keys: np.ndarray  # (N,) uint64, the first half of the hash

    def gather(self, rows: np.ndarray) -> Features:
        """Return the features of the documents `rows`, (R,) int64."""
        starts, counts = self.starts[rows], self.counts[rows]
        parts = [self.features[start : start + count] for start, count in zip(starts, counts, strict=True)]
        return Features(np.concatenate(parts), np.concatenate([[0], np.cumsum(counts)]))


class ExampleWriter:
    """Writes the features of documents to a file, and keeps a row of 33 bytes for each document."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hashes: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []

    def add(self, texts: pa.LargeStringArray, hashes: np.ndarray, label: int) -> None:
        """Add D documents. `hashes`: (D, 16) uint8, of their contents. `label`: 1 for --like, 0 for --unlike.

        Raises OSError if the disk is full.
        """
        for group in iter_text_groups(texts):
            counts = np.zeros(group.num_documents, np.int64)
            for features in iter_features(group, BUCKET_BITS):
                sizes = np.minimum(np.diff(features.firsts), MAX_FEATURES - counts)
                for start, size in zip(features.firsts[:-1], sizes, strict=True):
                    self._file.write(features.buckets[start : start + size].data)
                counts += sizes
                if group.num_documents == 1 and counts[0] == MAX_FEATURES:
                    break
            self._counts.append(counts)
        self._hashes.append(hashes)
        self._labels.append(np.full(len(texts), label))

    def finish(self) -> Examples:
        """Return each different document once. In each class, those with the smallest hashes are held out."""
        self._file.flush()
        counts, labels = np.concatenate(self._counts), np.concatenate(self._labels)
        hashes = np.concatenate(self._hashes).view(">u8").astype(np.uint64)  # (N, 2)
        order = np.lexsort((labels, hashes[:, 1], hashes[:, 0]))
        identity = np.column_stack([hashes, labels.astype(np.uint64)])[order]
        order = order[np.concatenate([[True], (identity[1:] != identity[:-1]).any(axis=1)])]
        starts = np.cumsum(counts) - counts
        labels = labels[order]
        is_held_out = np.zeros(len(order), bool)
        for label in (0, 1):
            of_class = np.flatnonzero(labels == label)
            is_held_out[of_class[: max(1, round(len(of_class) * HELD_OUT_FRACTION))]] = True
        num_features = int(counts.sum())
        features = (
            np.memmap(self._file, np.int32, "r", shape=(num_features,)) if num_features else np.empty(0, np.int32)
        )
        return Examples(features, starts[order], counts[order], labels, is_held_out, hashes[order, 0])


def fit_classifier(examples: Examples) -> ClassifierModel:
    """Train a model on the documents that are not held out, and return it with its results on the others."""
    weights, bias = _train(examples)
    model = ClassifierModel(quantize(weights), float(bias))
    return dataclasses.replace(model, training=_evaluate(model, examples))


def _train(examples: Examples) -> tuple[np.ndarray, float]:
    """Return the weights, (B,) float64, and the bias."""
    rows = np.flatnonzero(~examples.is_held_out)
    labels = examples.labels[rows]
    class_weights = len(rows) / (2 * np.bincount(labels, minlength=2))  # (2,)
    # The last element is for the bias, a feature of every document.
    weights, squares, gradient = np.zeros((3, (1 << BUCKET_BITS) + 1))
    for epoch in range(NUM_EPOCHS):
        order = rows[np.argsort(keyed_hash(epoch, examples.keys[rows]), kind="stable")]
        rate = LEARNING_RATE * (1 - epoch / NUM_EPOCHS)
        for batch in _cut(order):
            batch_labels = examples.labels[batch]
            features = examples.gather(batch)
            counts = np.diff(features.firsts)
            documents = np.repeat(np.arange(len(batch)), counts)
            sums = np.bincount(documents, weights[features.buckets], minlength=len(batch))
            log_odds = weights[-1] + sums / np.maximum(counts, 1)
            errors = (logistic(log_odds) - batch_labels) * class_weights[batch_labels] / len(batch)
            buckets = np.append(features.buckets, len(weights) - 1)
            parts = np.append((errors / np.maximum(counts, 1))[documents], errors.sum())
            np.add.at(gradient, buckets, parts)
            # A bucket that occurs several times is assigned the same value several times.
            of_buckets = gradient[buckets]
            squares[buckets] = of_squares = squares[buckets] + of_buckets * of_buckets
            weights[buckets] = weights[buckets] - rate * of_buckets / np.sqrt(of_squares + EPSILON)
            gradient[buckets] = 0
    return weights[:-1], weights[-1]


def _cut(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), BATCH_DOCUMENTS):
        yield rows[first : first + BATCH_DOCUMENTS]


def _evaluate(model: ClassifierModel, examples: Examples) -> JsonObject:
    """Return the results of a model on the documents that are held out, and the numbers of documents."""
    rows = np.flatnonzero(examples.is_held_out)
    scores = np.concatenate([_score(model, examples.gather(batch)) for batch in _cut(rows)])
    is_like, is_kept = examples.labels[rows] == 1, scores >= THRESHOLD
    num_right = int((is_like & is_kept).sum())
    return {
        "documents_like": int((examples.labels == 1).sum()),
        "documents_unlike": int((examples.labels == 0).sum()),
        "held_out_like": int(is_like.sum()),
        "held_out_unlike": int((~is_like).sum()),
        "accuracy": _round((is_like == is_kept).mean()),
        "precision": _round(num_right / is_kept.sum()) if is_kept.any() else None,
        "recall": _round(num_right / is_like.sum()),
        "quantiles": list(QUANTILES),
        "scores_like": [_round(value) for value in np.quantile(scores[is_like], QUANTILES)],
        "scores_unlike": [_round(value) for value in np.quantile(scores[~is_like], QUANTILES)],
    }


def _score(model: ClassifierModel, features: Features) -> np.ndarray:
    sums = sum_between(model.weights[features.buckets], features.firsts)
    return model.compute_scores(sums, np.diff(features.firsts))


def _round(value: float) -> float:
    return round(float(value), FIGURE_DIGITS)
