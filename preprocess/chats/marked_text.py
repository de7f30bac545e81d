"""A chat as one text: before each message stands a mark that says whose turn it is.

The problem: stages that read, clean, hash and split documents handle texts. A chat is a list of
messages, and the boundaries between them must not be forgeable by what a message says.

The idea: Unicode reserves the 32 noncharacters U+FDD0 to U+FDEF for use inside of a program. They
are never exchanged, so a message that has one is damaged, and it is replaced by U+FFFD before the
messages are joined. After that, such a character is a mark.

The cost: three bytes for each message, and one scan of the bytes for each stage that needs the
messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.chats.messages import ASSISTANT, SYSTEM, TOOL, USER, Message
from preprocess.documents import count_text_bytes, get_text_buffers

# The turns by number. A text that is not a chat has no mark; it is one turn of the kind PLAIN.
TURNS = ((SYSTEM, False), (USER, False), (ASSISTANT, False), (ASSISTANT, True), (TOOL, False))
PLAIN = len(TURNS)
IS_LEARNT = np.array([*(is_learnt for _, is_learnt in TURNS), True])  # (T,) bool, by the number of a turn
MARKS = {turn: chr(0xFDD0 + number) for number, turn in enumerate(TURNS)}
NONCHARACTERS = "[\ufdd0-\ufdef]"
REPLACEMENT = "\ufffd"
FIND_NONCHARACTERS = re.compile(NONCHARACTERS)
MARK_BYTES = 3
FIRST_BYTE, SECOND_BYTE, MIN_THIRD_BYTE, MAX_THIRD_BYTE = 0xEF, 0xB7, 0x90, 0xAF  # of the noncharacters in UTF-8


@dataclass(frozen=True)
class Turns:
    """The M turns of D documents, in order."""

    texts: pa.LargeStringArray  # (M,), without marks
    kinds: np.ndarray  # (M,) uint8, the number of each turn in TURNS, or PLAIN
    firsts: np.ndarray  # (D + 1,) int64, index of the first turn of each document; at the end M


def join_messages(messages: Sequence[Message]) -> str:
    """Return the marked text of a chat."""
    return "".join(
        MARKS[role, is_learnt] + (text if text.isascii() else FIND_NONCHARACTERS.sub(REPLACEMENT, text))
        for role, text, is_learnt in messages
    )


def replace_marks(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return texts with U+FFFD in place of each character that would be a mark."""
    if not len(_find_marks(get_text_buffers(texts)[0])):
        return texts
    return pc.replace_substring_regex(texts, NONCHARACTERS, REPLACEMENT)


def remove_marks(texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return the texts of D documents without the marks."""
    turns = split_turns(texts)
    data, offsets = get_text_buffers(turns.texts)
    return _make_array(data, offsets[turns.firsts])


def count_text_bytes_of_turns(texts: pa.LargeStringArray) -> np.ndarray:
    """Return the number of UTF-8 bytes of each of D marked texts without the marks: (D,) int64."""
    data, offsets = get_text_buffers(texts)
    num_before = np.searchsorted(_find_marks(data), offsets)
    sizes: np.ndarray = np.diff(offsets) - MARK_BYTES * np.diff(num_before)
    return sizes


def get_plain_texts(texts: pa.LargeStringArray, *, has_chats: bool) -> pa.LargeStringArray:
    """Return the texts of D documents, without marks if they may be chats. Without chats, no character is a mark."""
    return remove_marks(texts) if has_chats else texts


def count_plain_bytes(texts: pa.LargeStringArray, *, has_chats: bool) -> np.ndarray:
    """Return the number of UTF-8 bytes of each text that `get_plain_texts` returns: (D,) int64."""
    return count_text_bytes_of_turns(texts) if has_chats else count_text_bytes(texts)


def get_turn_lines(turns: Turns, document: int) -> str:
    """Return the text of a document with a line for each turn, so that no word is made of the words of two."""
    first, last = int(turns.firsts[document]), int(turns.firsts[document + 1])
    return "\n".join(turns.texts.slice(first, last - first).to_pylist())


def split_turns(texts: pa.LargeStringArray) -> Turns:
    """Return the turns of D marked texts. Every document has at least one, which may be empty."""
    data, offsets = get_text_buffers(texts)
    marks = _find_marks(data)
    if not len(marks):
        return Turns(texts, np.full(len(texts), PLAIN, np.uint8), np.arange(len(texts) + 1))
    # A turn begins at each mark, and at the start of each document that does not begin with a mark.
    starts_with_mark = np.zeros(len(texts), bool)
    positions = np.searchsorted(marks, offsets[:-1])
    inside = positions < len(marks)
    starts_with_mark[inside] = marks[positions[inside]] == offsets[:-1][inside]
    is_empty = np.diff(offsets) == 0  # the mark at its offset belongs to a later document
    plain_starts = offsets[:-1][~starts_with_mark | is_empty]
    # At equal offsets, the turns of empty documents are before those of the document that begins with a mark.
    starts = np.concatenate([plain_starts, marks])
    kinds = np.concatenate([np.full(len(plain_starts), PLAIN), data[marks + 2].astype(np.int64) - MIN_THIRD_BYTE])
    order = np.argsort(starts, kind="stable")
    starts, kinds = starts[order], kinds[order]
    is_text = np.ones(len(data), bool)
    for i in range(MARK_BYTES):
        is_text[marks + i] = False
    num_marks_before = np.cumsum(kinds != PLAIN) - (kinds != PLAIN)
    new_offsets = np.append(starts - MARK_BYTES * num_marks_before, np.count_nonzero(is_text))
    num_turns = np.diff(np.searchsorted(marks, offsets)) + (~starts_with_mark | is_empty)  # of each document
    firsts = np.concatenate([[0], np.cumsum(num_turns)])
    return Turns(_make_array(data[is_text], new_offsets), kinds.astype(np.uint8), firsts)


def join_turns(turns: Turns) -> pa.LargeStringArray:
    """Return the marked texts of D documents. Noncharacters in the turns are replaced."""
    if (turns.kinds == PLAIN).all():
        return replace_marks(turns.texts)
    data, offsets = get_text_buffers(replace_marks(turns.texts))
    is_marked = turns.kinds != PLAIN
    new_starts = offsets[:-1] + MARK_BYTES * (np.cumsum(is_marked) - is_marked)
    new_data = np.empty(len(data) + MARK_BYTES * np.count_nonzero(is_marked), np.uint8)
    is_text = np.ones(len(new_data), bool)
    marks = new_starts[is_marked]
    for i in range(MARK_BYTES):
        is_text[marks + i] = False
    new_data[is_text] = data
    new_data[marks], new_data[marks + 1] = FIRST_BYTE, SECOND_BYTE
    new_data[marks + 2] = MIN_THIRD_BYTE + turns.kinds[is_marked]
    return _make_array(new_data, np.append(new_starts, len(new_data))[turns.firsts])


def _find_marks(data: np.ndarray) -> np.ndarray:
    """Return the offset of each mark in UTF-8 bytes, (K,) int64, in ascending order."""
    found = np.flatnonzero(data == FIRST_BYTE)
    if not len(found):
        return found
    # 0xEF is the first of three bytes, so two others follow.
    third = data[found + 2]
    is_mark = (data[found + 1] == SECOND_BYTE) & (third >= MIN_THIRD_BYTE) & (third <= MAX_THIRD_BYTE)
    return found[is_mark]


def _make_array(data: np.ndarray, offsets: np.ndarray) -> pa.LargeStringArray:
    offsets = np.ascontiguousarray(offsets, np.int64)
    return pa.LargeStringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))
    )
