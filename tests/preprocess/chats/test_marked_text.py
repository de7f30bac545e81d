from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from preprocess.chats import marked_text
from preprocess.chats.marked_text import PLAIN, TURNS, count_text_bytes_of_turns, join_messages, join_turns, split_turns
from preprocess.chats.messages import Message

# Texts in which the bytes of a mark occur, whole or in part.
characters = st.one_of(
    st.sampled_from("a\n\ufdd0\ufdd3\ufdef\ufdcf\ufdf0\ufeff\uffff"), st.characters(exclude_categories=["Cs"])
)
texts = st.text(characters, max_size=6)
messages = st.lists(st.tuples(st.sampled_from(TURNS), texts), min_size=1, max_size=4)
chats = st.lists(st.one_of(messages, texts), max_size=6)  # a text is a document that is not a chat


def replace(text: str) -> str:
    return "".join("\ufffd" if "\ufdd0" <= c <= "\ufdef" else c for c in text)


def join(chat: list[tuple[tuple[str, bool], str]] | str) -> str:
    if isinstance(chat, str):
        return marked_text.replace_marks(pa.array([chat], pa.large_string()))[0].as_py()
    return join_messages([Message(role, text, is_learnt) for (role, is_learnt), text in chat])


def expect_turns(chat: list[tuple[tuple[str, bool], str]] | str) -> list[tuple[int, str]]:
    if isinstance(chat, str):
        return [(PLAIN, replace(chat))]
    return [(TURNS.index(turn), replace(text)) for turn, text in chat]


@given(chats, st.integers(0, 2))
def test_turns_are_those_that_were_joined(found: list, num_before: int) -> None:
    marked = pa.array(["x"] * num_before + [join(chat) for chat in found], pa.large_string())[num_before:]
    turns = split_turns(marked)
    assert turns.firsts[0] == 0 and turns.firsts[-1] == len(turns.texts) == len(turns.kinds)
    for chat, first, last in zip(found, turns.firsts[:-1], turns.firsts[1:], strict=True):
        kinds, of_chat = turns.kinds[first:last].tolist(), turns.texts.slice(first, last - first).to_pylist()
        assert list(zip(kinds, of_chat, strict=True)) == expect_turns(chat)
    assert join_turns(turns).equals(marked)
    expected = ["".join(text for _, text in expect_turns(chat)) for chat in found]
    assert marked_text.remove_marks(marked).to_pylist() == expected
    assert count_text_bytes_of_turns(marked).tolist() == [len(text.encode()) for text in expected]


@given(chats, st.data())
def test_join_turns_replaces_marks_that_a_stage_has_made(found: list, data: st.DataObject) -> None:
    turns = split_turns(pa.array([join(chat) for chat in found], pa.large_string()))
    new_texts = data.draw(st.lists(texts, min_size=len(turns.texts), max_size=len(turns.texts)))
    joined = join_turns(dataclasses.replace(turns, texts=pa.array(new_texts, pa.large_string())))
    again = split_turns(joined)
    assert again.texts.to_pylist() == [replace(text) for text in new_texts]
    assert np.array_equal(again.kinds, turns.kinds) and np.array_equal(again.firsts, turns.firsts)
