from __future__ import annotations

import pytest

from preprocess.chats.messages import Message
from preprocess.chats.templates import TEMPLATES, number_chat_tokens


def make(*turns: str) -> list[Message]:
    """Return messages from texts such as "user hello"."""
    return [Message(role, text, role == "assistant") for role, text in (turn.split(" ", 1) for turn in turns)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["system Be brief.", "user hi", "assistant yo"], ["user Be brief.\n\nhi", "assistant yo"]),
        (["system a", "system b", "user hi"], ["user a\n\nb\n\nhi"]),
        (["system a", "assistant yo"], ["user a", "assistant yo"]),
        (["user hi", "system a"], ["user hi", "user a"]),
    ],
)
def test_nanochat_puts_system_messages_before_the_message_of_the_user(given: list[str], expected: list[str]) -> None:
    assert TEMPLATES["nanochat"].arrange(make(*given)) == make(*expected)
    assert TEMPLATES["chatml"].arrange(make(*given)) == make(*given)


def test_number_chat_tokens_keeps_the_ids_that_the_tokenizer_has() -> None:
    assert number_chat_tokens(None, {}, 100) == {}
    assert number_chat_tokens("chatml", {}, 100) == {"<|im_start|>": 100, "<|im_end|>": 101}
    assert number_chat_tokens("chatml", {"<|im_start|>": 7}, 100) == {"<|im_start|>": 7, "<|im_end|>": 100}
