"""The rules of C4 (Raffel et al. 2020, section 2.2), including those that only its code has, as FineWeb applies them.

Most rules remove lines. The text of a kept document is replaced by the lines that no rule removes,
without white space at their ends and without citations, separated by line feeds.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.documents import replace_column
from preprocess.filters import long_texts
from preprocess.filters.characters import ASCII_KINDS, SPACE
from preprocess.filters.edited_lines import EditedLines, find_edited_lines, join_lines
from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.filters.lines import split_at_line_feeds
from preprocess.filters.long_texts import ANY_LINE_END, iter_whole_lines
from preprocess.filters.rules import Judgement, join_judgements
from preprocess.filters.sentences import count_sentences, count_sentences_of_line
from preprocess.filters.spans import sum_between
from preprocess.filters.words import TextGroup, find_words, iter_text_groups
from preprocess.recipes.filter_settings import C4

ENDS_SENTENCE = np.zeros(256, bool)
ENDS_SENTENCE[list(b".?!\"'")] = True
DOTS = b"..."
MAYBE_SPACE = (ASCII_KINDS & SPACE) != 0  # bytes that are white space, or a part of it in other characters
MAYBE_SPACE[0x80:] = True
POLICY_PHRASES = (
    b"terms of use", b"privacy policy", b"cookie policy", b"uses cookies", b"use of cookies", b"use cookies",
)  # fmt: skip
MAX_MATCHES = 1 << 16  # occurrences of a phrase that are looked up at once
# Why a line is removed, in the order in which the rules are applied. Index 0: it is kept.
LINE_REASONS = ("", "lines_with_long_words", "lines_without_punctuation", "short_lines", "javascript", "policy")


class C4Filter(Filter):
    """Removes lines that are not prose, and drops documents with few sentences, code or placeholder text."""

    reasons = ("lorem_ipsum", "curly_bracket", "too_few_sentences")

    def __init__(self, settings: C4) -> None:
        self._settings = settings

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        judgements: list[Judgement] = []
        new_texts: list[pa.LargeStringArray] = []
        num_removed = np.zeros(len(LINE_REASONS), np.int64)
        for group in iter_text_groups(texts):
            of_group, new, removed = self._edit_group(group)
            judgements.append(of_group)
            new_texts.append(new)
            num_removed += removed
        edited = replace_column(batch, "text", pa.concat_arrays(new_texts)) if new_texts else None
        counts = {reason: int(n) for reason, n in zip(LINE_REASONS[1:], num_removed[1:], strict=True) if n}
        return dataclasses.replace(join_judgements(judgements, self.reasons), batch=edited, counts=counts)

    def _edit_group(self, group: TextGroup) -> tuple[Judgement, pa.LargeStringArray, np.ndarray]:
        """Return the judgement, the new texts, (D,), and how many lines were removed for each reason, (R,)."""
        judgement = Judgement(group.num_documents)
        is_long = len(group.data) > long_texts.LONG_BYTES
        kept, num_sentences, num_removed = (self._edit_long if is_long else self._edit_lines)(group, judgement)
        judgement.drop_below(2, num_sentences, self._settings.min_sentences)
        return judgement, _strip_texts(kept), num_removed[judgement.reasons == KEEP].sum(axis=0)

    def _edit_lines(
        self, group: TextGroup, judgement: Judgement, *, is_one_line: bool = False
    ) -> tuple[TextGroup, np.ndarray, np.ndarray]:
        """Return the texts without the lines that are removed, their sentences, (D,) int64, and how many lines were
        removed from each for each reason, or kept, (D, R) int64. Documents are dropped, too.
        """
        lines = find_edited_lines(group, has_citations=not self._settings.citations)
        removals = self._judge_lines(lines, judgement)
        kept = join_lines(lines, removals == 0)
        if is_one_line:
            num_sentences = np.array([count_sentences_of_line(kept)])
        else:
            new_lines = split_at_line_feeds(kept)
            num_sentences = sum_between(count_sentences(kept, find_words(kept), new_lines), new_lines.firsts)
        num_removed = np.stack([sum_between(removals == i, lines.firsts) for i in range(len(LINE_REASONS))], axis=1)
        num_sentences[num_removed[:, 0] == 0] = 0
        return kept, num_sentences, num_removed

    def _edit_long(self, group: TextGroup, judgement: Judgement) -> tuple[TextGroup, np.ndarray, np.ndarray]:
        """Return what `_edit_lines` does, for one long text, of which it edits some lines at a time."""
        text = bytearray()
        num_lines, num_sentences = 0, np.zeros(1, np.int64)
        num_removed = np.zeros((1, len(LINE_REASONS)), np.int64)
        for part in iter_whole_lines(group, ANY_LINE_END):
            of_part = Judgement(1)
            kept, in_part, removed = self._edit_lines(
                part, of_part, is_one_line=len(part.data) > long_texts.WINDOW_ELEMENTS
            )
            if judgement.reasons[0] == KEEP:  # the first line that drops the document decides
                judgement.reasons[0] = of_part.reasons[0]
            if removed[0, 0]:
                text += (b"\n" if num_lines else b"") + kept.data.tobytes()
            num_lines += int(removed[0, 0])
            num_sentences += in_part
            num_removed += removed
        return TextGroup(np.frombuffer(text, np.uint8), np.array([0, len(text)])), num_sentences, num_removed

    def _judge_lines(self, lines: EditedLines, judgement: Judgement) -> np.ndarray:
        """Return why each line is removed: indices into LINE_REASONS, (L,) int64. Also set reasons in `judgement`."""
        settings, lowered = self._settings, lines.data.tobytes().lower()
        removals = np.zeros(len(lines.starts), np.int64)

        def remove(reason: int, is_removed: np.ndarray) -> None:
            removals[(removals == 0) & is_removed] = reason

        if settings.max_word_characters is not None:
            remove(1, lines.longest_words > settings.max_word_characters)
        if settings.terminal_punctuation:
            remove(2, ~_end_sentences(lines))
        if settings.min_line_words is not None:
            remove(3, lines.num_words < settings.min_line_words)
        has_filler, has_bracket = np.zeros(len(removals), bool), np.zeros(len(removals), bool)
        if settings.lorem_ipsum:
            has_filler = (removals == 0) & _contain(lines, lowered, (b"lorem ipsum",))
        if settings.javascript:
            remove(4, _contain(lines, lowered, (b"javascript",)))
        if settings.curly_bracket:
            has_bracket = (removals == 0) & _contain(lines, lowered, (b"{",))
        # The first line with one of the two decides.
        rows = np.flatnonzero(has_filler | has_bracket)
        documents, first = np.unique(lines.documents[rows], return_index=True)
        judgement.reasons[documents] = np.where(has_filler[rows[first]], 0, 1)
        if settings.policy:
            remove(5, _contain(lines, lowered, POLICY_PHRASES))
        return removals


def _end_sentences(lines: EditedLines) -> np.ndarray:
    """Return whether each line ends with . ? ! or a straight quotation mark, but not with three full stops: (L,)."""
    lengths = lines.ends - lines.starts
    found = lengths > 0
    found[found] = ENDS_SENTENCE[lines.data[lines.ends[found] - 1]]
    rows = np.flatnonzero(found & (lengths >= len(DOTS)))
    tails = lines.data[lines.ends[rows, None] - np.arange(1, len(DOTS) + 1)]
    found[rows] = ~(tails == DOTS[0]).all(axis=1)
    return found


def _contain(lines: EditedLines, lowered: bytes, phrases: tuple[bytes, ...]) -> np.ndarray:
    """Return whether each line contains one of the phrases: (L,) bool. `lowered`: their bytes in lower case."""
    found = np.zeros(len(lines.starts), bool)
    for phrase in phrases:
        found_at = _find_all(lowered, phrase)
        while len(positions := np.fromiter(itertools.islice(found_at, MAX_MATCHES), np.int64)):
            rows = np.searchsorted(lines.starts, positions, side="right") - 1
            found[rows[positions + len(phrase) <= lines.ends[rows]]] = True
    return found


def _find_all(text: bytes, phrase: bytes) -> Iterator[int]:
    """Yield where `phrase` begins in `text`."""
    position = text.find(phrase)
    while position >= 0:
        yield position
        position = text.find(phrase, position + 1)


def _strip_texts(group: TextGroup) -> pa.LargeStringArray:
    """Return the texts of a group, without white space at their ends."""
    buffers = [None, pa.py_buffer(group.offsets), pa.py_buffer(group.data)]
    texts = pa.Array.from_buffers(pa.large_string(), group.num_documents, buffers)
    # White space is left only by the removal of a citation at an end, or if empty lines are kept.
    rows = np.flatnonzero(np.diff(group.offsets) > 0)
    outer = np.stack([group.offsets[:-1][rows], group.offsets[1:][rows] - 1])
    rows = rows[(MAYBE_SPACE[group.data[outer]]).any(axis=0)]
    if not len(rows):
        return texts
    stripped = {row: texts[row].as_py().strip() for row in rows.tolist()}
    is_changed = np.zeros(len(texts), bool)
    is_changed[[row for row, text in stripped.items() if text != texts[row].as_py()]] = True
    if not is_changed.any():
        return texts
    return pc.replace_with_mask(
        texts,
        pa.array(is_changed),
        pa.array([stripped[row] for row in np.flatnonzero(is_changed).tolist()], pa.large_string()),
    )
