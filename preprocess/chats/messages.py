"""The messages of a chat, as the columns of one record give them.

Data sets write a chat in one of three ways, and the number of chat columns says which:

    one     a list of messages: objects with `role` and `content` (OpenAI, Hugging Face) or with
            `from` and `value` (ShareGPT)
    two     a prompt and the reply to it; each may also be a list of messages (TRL)
    three   an instruction, an input that belongs to it and may be empty, and the output (Alpaca)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"
# The names that data sets use for the roles.
ROLES = {
    SYSTEM: SYSTEM, "developer": SYSTEM,
    USER: USER, "human": USER, "prompter": USER,
    ASSISTANT: ASSISTANT, "gpt": ASSISTANT, "model": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT,
    "bard": ASSISTANT,
    TOOL: TOOL, "function": TOOL, "ipython": TOOL, "observation": TOOL,
}  # fmt: skip
# The columns of an instruction, of what it may refer to, and of the reply.
INSTRUCTION, INPUTS, REPLIES = "instruction", ("input", "context"), ("output", "response")
# The columns that are recognised if a table has no column with the text, in the order of preference.
KNOWN_COLUMNS = (
    ("messages",), ("conversations",), ("conversation",),
    (INSTRUCTION, "input", "output"), (INSTRUCTION, "context", "response"),
    (INSTRUCTION, "input", "response"), (INSTRUCTION, "context", "output"),
    *((INSTRUCTION, reply) for reply in REPLIES),
    ("prompt", "completion"), ("prompt", "response"),
)  # fmt: skip
# Columns that other programs put into a chat. Beside a chat that is recognised, they are not read.
UNREAD_PARTS = (*INPUTS, "system", "system_prompt", "history")
MESSAGE_KEYS = {("role", "content"): "messages", ("from", "value"): "conversations"}  # and the column of such messages
CALL_KEYS = ("tool_calls", "function_call")  # of a message that calls a tool (OpenAI)
INPUT_SEPARATOR = "\n\n"  # between an instruction and its input


class ChatError(ValueError):
    """A record is not a chat. The message is the reason."""


class Message(NamedTuple):
    """One turn of a chat."""

    role: str  # a value of ROLES
    text: str
    is_learnt: bool  # whether a model is trained to write it; only messages of the assistant are


def find_chat_columns(names: Collection[str]) -> tuple[str, ...] | None:
    """Return the chat columns of a table with the columns `names`, or None if it has none that are known."""
    return next((columns for columns in KNOWN_COLUMNS if set(columns) <= set(names)), None)


def parse_chat(columns: Sequence[str], values: Sequence[Any]) -> list[Message] | None:
    """Return the messages of one record, or None if a value that must be there is null.

    `columns`: the names of the chat columns, one to three. `values`: of the record, as a JSON parser
    or Arrow's `to_pylist` returns them; texts may be bytes. Raises ChatError if the values are not a
    chat.
    """
    if len(columns) == 1:
        messages = None if values[0] is None else _parse_messages(columns[0], values[0])
    elif values[0] is None or values[-1] is None:
        messages = None
    elif len(columns) == 2:
        prompt_turns = _parse_turns(columns[0], values[0], USER)
        messages = [
            *(message._replace(is_learnt=False) for message in prompt_turns),
            *_parse_turns(columns[1], values[1], ASSISTANT),
        ]
    else:
        parts = [_parse_text(name, "" if value is None else value) for name, value in zip(columns, values, strict=True)]
        prompt = INPUT_SEPARATOR.join(part for part in parts[:2] if part)
        messages = [Message(USER, prompt, False), Message(ASSISTANT, parts[2], True)]
    if messages is not None and not messages:
        raise ChatError(f"{columns[0]} has no messages")
    return messages


def _parse_turns(name: str, value: Any, role: str) -> list[Message]:
    if isinstance(value, list):
        return _parse_messages(name, value)
    return [Message(role, _parse_text(name, value), role == ASSISTANT)]


def _parse_messages(name: str, value: Any) -> list[Message]:
    if not isinstance(value, list):
        raise ChatError(f"{name} must be a list of messages, got {_name_type(value)}")
    return [_parse_message(name, message) for message in value]


def _parse_message(name: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise ChatError(f"{name} must be a list of messages, got a list with {_name_type(value)}")
    # Arrow gives every message the keys of all, with null for those that it does not have.
    given = value["from"] if value.get("role") is None and "from" in value else value.get("role")
    said = _parse_text("role", given) if given is not None else None
    role = ROLES.get(said.lower()) if said is not None else None
    if role is None:
        raise ChatError(f"{name} has a message with the role {said!r:.40}, expected one of {', '.join(ROLES)}")
    content = value.get("value") if value.get("content") is None else value["content"]
    if content is None:
        raise ChatError(f"{name} has a message of the {role} without text, such as a call of a tool")
    if any(_is_given(value.get(key)) for key in CALL_KEYS):  # the text alone would not be what the assistant wrote
        raise ChatError(f"{name} has a message of the {role} that calls a tool")
    weight = value.get("weight")  # OpenAI's key: 0 for a reply that is not to be learnt
    if weight is not None and not isinstance(weight, int | float):
        raise ChatError(f"weight must be a number, got {_name_type(weight)}")
    return Message(role, _parse_content(name, content), role == ASSISTANT and (weight is None or weight > 0))


def _is_given(call: Any) -> bool:
    """Return whether the value of a key is a call. Some writers of Arrow give an object of nulls for none."""
    return any(each is not None for each in call.values()) if isinstance(call, dict) else bool(call)


def _parse_content(name: str, value: Any) -> str:
    """Return the text of a message, which may be divided into parts (OpenAI)."""
    if not isinstance(value, list):
        return _parse_text(f"the text in {name}", value)
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("text") is None:
            raise ChatError(f"{name} has a message with a part that is not text, such as an image")
        texts.append(_parse_text(f"the text in {name}", part["text"]))
    return "".join(texts)


def _parse_text(name: str, value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as e:
            raise ChatError(f"{name} is not UTF-8 ({e.reason})") from e
    if not isinstance(value, str):
        raise ChatError(f"{name} must be text, got {_name_type(value)}")
    return value


def _name_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bytes: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
