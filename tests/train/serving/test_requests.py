"""Requests in OpenAI's format."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import assert_one_line
from train.serving.requests import RequestError, parse_chat, parse_completion

MESSAGES = [{"role": "user", "content": "Hi"}]
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": "5"}, "max_tokens must be a whole number"),
    ({"max_tokens": 0}, "max_tokens must be a whole number from 1"),
    ({"max_tokens": True}, "max_tokens must be a whole number"),
    ({"max_tokens": 10**400}, "max_tokens must be a whole number"),
    ({"temperature": "hot"}, "temperature must be a number from 0 to 2, got a text"),
    ({"temperature": -0.1}, "temperature must be a number from 0 to 2, got -0.1"),
    ({"temperature": 10**400}, "temperature must be a number from 0 to 2"),
    ({"top_p": 1.5}, "top_p must be a number from 0 to 1, got 1.5"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"seed": 1 << 63}, "seed must be a whole number"),
    ({"stream": 1}, "stream must be true or false"),
    ({"stop": ""}, "stop must be a text of 1 to 100 characters"),
    ({"stop": ["a", 1]}, "stop must be a text"),
    ({"stop": list("abcde")}, "at most 4"),
    ({"model": 5}, "model must be a text, got a number"),
    ({"n": 2}, "'n' is not supported"),
    ({"logit_bias": {"5": 100}}, "'logit_bias' is not supported"),
    ({"generation_config": "{}"}, "'generation_config' is not supported"),
    ({"x" * 500: 1}, "is not supported"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS)
def test_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    for parse, body in ((parse_completion, {"prompt": "Hi"}), (parse_chat, {"messages": MESSAGES})):
        with pytest.raises(RequestError) as e:
            parse(body | fields)
        assert message in str(e.value)
        assert_one_line(str(e.value))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "must be a JSON object, got a list"),
        ({}, "prompt is missing"),
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": 5}, "prompt must be a text, got a number"),
        ({"prompt": ["a", "b"]}, "prompt must be a text, got a list"),
        ({"prompt": "a", "messages": MESSAGES}, "'messages' is not supported"),
    ],
)
def test_completion_without_a_prompt_is_an_error(body: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_completion(body)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages is missing"),
        ([], "messages has no messages"),
        ("Hi", "messages must be a list of messages, got text"),
        ([5], "got a list with a number"),
        ([{"content": "Hi"}], "expected one of system"),
        ([{"role": "admin", "content": "Hi"}], "with the role 'admin'"),
        ([{"role": "user"}], "without text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "such as an image"),
        ([{"role": "assistant", "tool_calls": []}], "such as a call of a tool"),
    ],
)
def test_messages_that_are_not_a_chat_are_an_error(messages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_chat({"messages": messages})


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    ignored = {
        "user": "me",
        "n": 1,
        "logprobs": None,
        "frequency_penalty": 0,
        "stream_options": {"include_usage": True},
    }
    assert parse_completion({"prompt": ["Hi"], "model": "m", **ignored}) == {"prompt": "Hi", "model": "m"}


def test_chat_has_roles_and_texts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "developer", "content": parts}, *MESSAGES], "max_completion_tokens": 5, "stop": "x"}
    assert parse_chat(body) == {
        "messages": [{"role": "system", "content": "ab"}, {"role": "user", "content": "Hi"}], "max_tokens": 5,
        "stop": ["x"],
    }  # fmt: skip


def test_tiny_temperature_takes_the_most_likely_token() -> None:
    assert parse_completion({"prompt": "", "temperature": 1e-30})["temperature"] == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["prompt", "messages", "model", "max_tokens", "temperature", "stop", "seed", "n", "tools"])


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_any_json_is_parsed_or_rejected(body: dict[str, Any]) -> None:
    for parse in (parse_completion, parse_chat):
        try:
            parse(body)
        except RequestError as e:
            assert_one_line(str(e))
