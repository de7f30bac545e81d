"""Identify the language of each document, and drop documents in other languages.

The problem: text from the web is in many languages, and the input rarely says in which.

The idea: the model of py3langid counts how often each of 100,000 byte sequences occurs in a text. A
naive Bayes classifier computes the probability of each of 139 languages from these counts.
docs/languages.md reports the accuracy, and compares it with other libraries.

The cost: at most 0.35 ms for a document. Of a text of more than SAMPLE_BYTES, only parts from the
beginning, the end and two positions between them are read. The model takes 100 MB in each process.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.documents import replace_column, view_text
from preprocess.errors import FolioError, MisuseError
from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.recipes.filter_settings import Language
from preprocess.recipes.language_codes import MODEL_SHA256, PACKAGE, UNDETERMINED

OTHER_LANGUAGE, LOW_SCORE = 0, 1  # indices of LanguageFilter.reasons
NUM_PARTS, PART_BYTES = 4, 160
SAMPLE_BYTES = NUM_PARTS * PART_BYTES
LETTER = re.compile(r"[^\W\d_]")
SCORE_DIGITS = 4  # scores are rounded, because the last bits of a sum may depend on the processor


class LanguageFilter(Filter):
    """Sets the language of documents, and drops documents in languages that the settings do not list."""

    reasons = ("other_language", "low_score")

    def __init__(self, settings: Language) -> None:
        """Raises MisuseError if py3langid is not installed, and FolioError if its model has another SHA-256."""
        self._settings = settings
        self._wanted = frozenset(settings.languages)
        self._identifier = _load_identifier()

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        languages: list[str | None] = batch.column("lang").to_pylist()
        reasons, scores = np.full(len(texts), KEEP, np.int8), np.full(len(texts), np.nan)
        details = {}
        min_score = self._settings.min_score or 0
        for row, given in enumerate(languages):
            if given is not None and not self._settings.override:
                if self._wanted and _get_code(given) not in self._wanted:
                    reasons[row], details[row] = OTHER_LANGUAGE, given
                continue
            code, scores[row] = identify(self._identifier, sample_text(texts, row))
            languages[row] = code if scores[row] >= min_score else UNDETERMINED
            if self._wanted and languages[row] not in self._wanted:
                reasons[row] = LOW_SCORE if languages[row] == UNDETERMINED else OTHER_LANGUAGE
                details[row] = code
        new_batch = replace_column(batch, "lang", pa.array(languages, pa.string()))
        return Verdict(reasons, scores, details, new_batch, measured={"low_score": scores})


def identify(identifier: Any, text: str) -> tuple[str, float]:
    """Return the code of the most probable language of `text`, and its probability.

    A text without letters has the code `und` and the probability 0.
    """
    if not LETTER.search(text):
        return UNDETERMINED, 0.0
    code, score = identifier.classify(text)
    return code, min(round(score, SCORE_DIGITS), 1.0)


def sample_text(texts: pa.LargeStringArray, row: int) -> str:
    """Return the text of a row, or if it has more than SAMPLE_BYTES, parts of it, joined by spaces.

    The NUM_PARTS parts of PART_BYTES are at equal distances, from the beginning to the end. Characters
    that are cut at the ends of a part are left out.
    """
    data = view_text(texts, row)
    if data.size <= SAMPLE_BYTES:
        return str(data, "utf-8")
    distance = (data.size - PART_BYTES) / (NUM_PARTS - 1)
    starts = [int(distance * number) for number in range(NUM_PARTS)]
    # Only characters that the cuts have divided are invalid, as the texts are UTF-8.
    return " ".join(str(data.slice(start, PART_BYTES), "utf-8", "ignore") for start in starts)


def _get_code(tag: str) -> str:
    """Return the language code of a tag that the input gives, such as `en` for `EN` or `en-US`."""
    return re.split("[-_]", tag.strip().lower(), maxsplit=1)[0]


@functools.cache
def _load_identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError as e:
        raise MisuseError(
            f"the filter language needs the package {PACKAGE}; install it with `pip install 'folio-lm[languages]'`, "
            "or leave the filter out"
        ) from e
    path = Path(langid.MODEL_DIR) / langid.MODEL_FILE
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != MODEL_SHA256:
        raise FolioError(
            f"{path} has the SHA-256 {found[:12]}…, expected {MODEL_SHA256[:12]}…; install the version of {PACKAGE} "
            "that `pip install 'folio-lm[languages]'` chooses"
        )
    return langid.LanguageIdentifier.from_model_file(path, norm_probs=True)
