from __future__ import annotations

from typing import Any

import pytest

from preprocess.chats.messages import ChatError, Message, find_chat_columns, parse_chat

HELLO = [Message("user", "hello", False), Message("assistant", "hi", True)]


@pytest.mark.parametrize(
    ("columns", "values", "expected"),
    [
        ("messages", [[{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]], HELLO),
        ("conversations", [[{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]], HELLO),
        ("messages", [[{"role": b"User", "content": b"hello"}, {"role": "model", "content": "hi"}]], HELLO),
        ("messages", [[{"role": "user", "content": [{"type": "text", "text": "hel"}, {"text": "lo"}]}]], HELLO[:1]),
        ("prompt,completion", ["hello", "hi"], HELLO),
        ("prompt,completion", [[{"role": "user", "content": "hello"}], "hi"], HELLO),
        ("instruction,input,output", ["hello", None, "hi"], HELLO),
        ("instruction,input,output", ["hello", "", "hi"], HELLO),
        ("instruction,input,output", ["add", "1 2", "hi"], [Message("user", "add\n\n1 2", False), HELLO[1]]),
        ("messages", [[{"role": "user", "content": "hello", "tool_calls": {"name": None}}]], HELLO[:1]),
        ("messages", [None], None),
        ("prompt,completion", ["hello", None], None),
        ("instruction,input,output", [None, "x", "hi"], None),
    ],
)  # fmt: skip
def test_parse_chat(columns: str, values: list[Any], expected: list[Message] | None) -> None:
    assert parse_chat(columns.split(","), values) == expected


@pytest.mark.parametrize(("weight", "is_learnt"), [(0, False), (1, True), (None, True)])
def test_parse_chat_learns_no_reply_of_weight_0(weight: int | None, is_learnt: bool) -> None:
    message = {"role": "assistant", "content": "hi", "weight": weight}
    assert parse_chat(["messages"], [[message]]) == [Message("assistant", "hi", is_learnt)]


def test_parse_chat_learns_only_the_assistant() -> None:
    roles = ["system", "developer", "user", "tool", "function", "assistant"]
    messages = parse_chat(["messages"], [[{"role": role, "content": "x", "weight": 1} for role in roles]])
    assert messages is not None
    assert [(m.role, m.is_learnt) for m in messages] == [
        ("system", False), ("system", False), ("user", False), ("tool", False), ("tool", False), ("assistant", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "messages has no messages"),
        ("hello", "messages must be a list of messages, got text"),
        ({"role": "user"}, "got an object"),
        (["hello"], "got a list with text"),
        ([{"content": "hello"}], "a message with the role None"),
        ([{"role": "owner\x1b", "content": "hello"}], r"the role 'owner\\x1b', expected one of system"),
        ([{"role": 5, "content": "hello"}], "role must be text, got a number"),
        ([{"role": "assistant", "content": None, "tool_calls": [{}]}], "a message of the assistant without text"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "a message of the assistant that calls a tool"),
        ([{"role": "assistant", "content": "wait", "function_call": {"name": "f"}}], "assistant that calls a tool"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part that is not text, such as an image"),
        ([{"role": "user", "content": 5}], "the text in messages must be text, got a number"),
        ([{"role": "user", "content": b"\xff"}], "the text in messages is not UTF-8"),
        ([{"role": "assistant", "content": "x", "weight": "1"}], "weight must be a number, got text"),
    ],
)
def test_parse_chat_explains_what_is_not_a_chat(value: Any, expected: str) -> None:
    with pytest.raises(ChatError, match=expected):
        parse_chat(["messages"], [value])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["id", "messages", "prompt", "completion"], ("messages",)),
        (["instruction", "output", "input"], ("instruction", "input", "output")),
        (["instruction", "output"], ("instruction", "output")),
        (["prompt", "response"], ("prompt", "response")),
        (["prompt", "output"], None),
    ],
)
def test_find_chat_columns(names: list[str], expected: tuple[str, ...] | None) -> None:
    assert find_chat_columns(names) == expected
