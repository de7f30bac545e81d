"""The model of the filter `classifier`: its file, and the score of a text.

The file is a safetensors file with one tensor, `weights`, (B,) int32, and one entry of metadata, a JSON
text with the version, the number of buckets, the bias, what the model was trained on, and a SHA-256 of all of
it. Reading it runs no code.

The log-odds of a text are the bias plus the mean weight of its features. The weights are whole multiples of
WEIGHT_UNIT, so that their sum is exact: it does not depend on the order in which they are added, and
therefore not on the other texts of a batch or on the size of windows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from preprocess.errors import FolioError, shorten
from preprocess.filters.files import check_filter_files
from preprocess.filters.logistic import logistic
from preprocess.filters.spans import sum_between
from preprocess.filters.word_features import NGRAM_ORDER, iter_features
from preprocess.filters.words import TextGroup, iter_text_groups
from preprocess.shards.files import JsonObject, canonical_json, parse_json, read_small_file, sha256_bytes, write_durable

VERSION = 1
METADATA_KEY = "folio_classifier"
WEIGHT_UNIT = 2.0**-20
MAX_WEIGHT = 2.0**10  # the sum over 120 million features, the most in a text of 128 MB, is below 2 ** 63 units
MIN_BITS, MAX_BITS = 8, 24  # log2 of the number of buckets
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = (4 << MAX_BITS) + MAX_HEADER_BYTES
LENGTH_BYTES = 8  # of the length of the header, at the beginning of a safetensors file


@dataclass(frozen=True)
class ClassifierModel:
    """A logistic regression on words and pairs of words."""

    weights: np.ndarray  # (B,) int32, multiples of WEIGHT_UNIT; B is a power of two
    bias: float
    training: JsonObject = field(default_factory=dict)  # the numbers of documents, and results on the held-out ones

    @property
    def bucket_bits(self) -> int:
        return len(self.weights).bit_length() - 1

    def score(self, texts: pa.LargeStringArray) -> np.ndarray:
        """Return the score of each text, (D,) float64 from 0 to 1: the probability that it belongs to `--like`."""
        scores = [self._score_group(group) for group in iter_text_groups(texts)]
        return np.concatenate(scores) if scores else np.empty(0)

    def _score_group(self, group: TextGroup) -> np.ndarray:
        sums, counts = np.zeros((2, group.num_documents), np.int64)
        for features in iter_features(group, self.bucket_bits):
            sums += sum_between(self.weights[features.buckets], features.firsts)
            counts += np.diff(features.firsts)
        return self.compute_scores(sums, counts)

    def compute_scores(self, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the scores of D texts, (D,) float64 from 0 to 1.

        `sums`: (D,) int64, the sum of the weights of each text's features. `counts`: (D,) int64, their number.
        """
        return logistic(self.bias + sums / np.maximum(counts, 1) * WEIGHT_UNIT)


def quantize(weights: np.ndarray) -> np.ndarray:
    """Return float weights, (B,), as multiples of WEIGHT_UNIT: (B,) int32."""
    return np.rint(np.clip(weights, -MAX_WEIGHT, MAX_WEIGHT) / WEIGHT_UNIT).astype(np.int32)


def write_classifier(path: Path, model: ClassifierModel) -> None:
    """Write the file of a model. Raises OSError if that fails, for example if the disk is full."""
    header: JsonObject = {
        "version": VERSION,
        "ngram_order": NGRAM_ORDER,
        "bucket_bits": model.bucket_bits,
        "bias": model.bias,
        "training": model.training,
    }
    header["sha256"] = _hash(header, model.weights)
    # One entry, because the library writes several in any order.
    metadata = {METADATA_KEY: json.dumps(header, sort_keys=True)}
    write_durable(path, save({"weights": model.weights}, metadata=metadata))


def read_classifier(path: Path, sha256: str = "") -> ClassifierModel:
    """Return the model in the file `path`.

    Raises FolioError if the file is damaged, is not such a model, is too large, or does not have the
    hash `sha256`, if given, and MisuseError if it does not exist.
    """
    check_filter_files("classifier", (str(path),), sha256)
    data = read_small_file(path, MAX_FILE_BYTES)
    try:
        return _parse(data)
    except (ValueError, KeyError, SafetensorError) as e:  # KeyError: the library does not know the type of a tensor
        raise FolioError(
            f"the file {shorten(str(path))} is not a model of the filter classifier ({shorten(str(e))}); "
            "write one with `preprocess filter train`"
        ) from e


def _parse(data: bytes) -> ClassifierModel:
    """Raises ValueError, KeyError or SafetensorError for anything that `write_classifier` cannot write."""
    num_bytes = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES or num_bytes > MAX_HEADER_BYTES:
        raise ValueError("it is not a safetensors file")
    weights = load(data).get("weights")
    metadata = parse_json(data[LENGTH_BYTES : LENGTH_BYTES + num_bytes]).get("__metadata__") or {}
    header = parse_json(metadata.get(METADATA_KEY, "").encode() or b"null")
    if weights is None or not isinstance(header, dict):
        raise ValueError("it is a safetensors file of another program")
    versions = header.get("version"), header.get("ngram_order")
    if versions != (VERSION, NGRAM_ORDER):
        raise ValueError(f"its version and n-gram order are {versions!r:.40}, expected {(VERSION, NGRAM_ORDER)}")
    if header.pop("sha256", None) != _hash(header, weights):
        raise ValueError("it is damaged: its checksum differs")
    bits, bias, training = (header.get(key) for key in ("bucket_bits", "bias", "training"))
    if type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bucket_bits must be from {MIN_BITS} to {MAX_BITS}, got {bits!r:.20}")
    if weights.dtype != np.int32 or weights.shape != (1 << bits,):
        raise ValueError(f"its weights are {weights.dtype} of shape {weights.shape}, expected int32 of ({1 << bits},)")
    if np.abs(weights.astype(np.int64)).max() * WEIGHT_UNIT > MAX_WEIGHT:
        raise ValueError(f"a weight is beyond ±{MAX_WEIGHT:g}")
    if type(bias) is not float or not abs(bias) <= MAX_WEIGHT or not isinstance(training, dict):
        raise ValueError(f"its bias {bias!r:.20} or its training figures are not as expected")
    return ClassifierModel(weights, bias, training)


def _hash(header: JsonObject, weights: np.ndarray) -> str:
    return sha256_bytes(canonical_json(header) + weights.tobytes())
