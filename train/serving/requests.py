"""Check the JSON of requests in OpenAI's format, and return what the server needs of them.

A request is data from outside: every value is checked before a library sees it. A field that would
change the answer but is not supported is an error, because an answer that ignores it would be wrong.
Fields that do not change the answer are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from preprocess.shards.files import JsonObject

MAX_STOPS = 4
MAX_STOP_CHARACTERS = 100
MIN_TEMPERATURE = 1e-6  # below it the most likely token is taken, as `folio sample` does
IGNORED = {"user", "metadata", "store", "service_tier", "stream_options", "safety_identifier", "prompt_cache_key"}
# Fields that are not supported, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "logprobs": (False,), "top_logprobs": (0,), "suffix": ("",),
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "response_format": ({"type": "text"},),
    "tools": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "modalities": (["text"],),
}  # fmt: skip


class RequestError(ValueError):
    """The request is wrong. The message is for the client."""


def parse_completion(body: Any) -> JsonObject:
    """Return the checked fields of a request to /v1/completions; those that are null are left out.

    `body`: the parsed JSON. Raises RequestError.
    """
    request = _parse(body, {"prompt": _parse_prompt})
    if "prompt" not in request:
        raise RequestError("prompt is missing; it is the text that the model continues")
    return request


def parse_chat(body: Any) -> JsonObject:
    """Return the checked fields of a request to /v1/chat/completions; those that are null are left out.

    The messages have the keys `role` and `content`, both of them text. Raises RequestError.
    """
    request = _parse(body, {"messages": _parse_messages, "max_completion_tokens": _parse_max_tokens})
    if "messages" not in request:
        raise RequestError('messages is missing; for example [{"role": "user", "content": "Hello"}]')
    if "max_completion_tokens" in request:
        request["max_tokens"] = request.pop("max_completion_tokens")
    return request


def _parse(body: Any, parsers: dict[str, Callable[[str, Any], Any]]) -> JsonObject:
    if not isinstance(body, dict):
        raise RequestError(f"the request must be a JSON object, got {_name_type(body)}")
    parsers = COMMON | parsers
    request: JsonObject = {}
    for name, value in body.items():
        if value is None or name in IGNORED:
            continue
        if name in parsers:
            request[name] = parsers[name](name, value)
        elif value not in NEUTRAL.get(name, ()):
            raise RequestError(f"{name!r:.80} is not supported; leave it out")
    return request


def _parse_messages(name: str, value: Any) -> list[JsonObject]:
    from preprocess.chats.messages import ChatError, parse_chat

    try:
        messages = parse_chat((name,), (value,))
    except ChatError as e:
        raise RequestError(str(e)) from e
    return [{"role": message.role, "content": message.text} for message in messages or []]


def _parse_prompt(name: str, value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return _parse_text(name, value)


def _parse_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a text, got {_name_type(value)}")
    return value


def _parse_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {_name_type(value)}")
    return value


def _parse_max_tokens(name: str, value: Any) -> int:
    return _parse_whole_number(name, value, low=1, high=1 << 31)


def _parse_seed(name: str, value: Any) -> int:
    return _parse_whole_number(name, value, low=-(1 << 63), high=(1 << 63) - 1)


def _parse_whole_number(name: str, value: Any, *, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        shown = value if isinstance(value, int | float) else _name_type(value)
        raise RequestError(f"{name} must be a whole number from {low} to {high}, got {shown!s:.40}")
    return value


def _parse_temperature(name: str, value: Any) -> float:
    number = _parse_number(name, value, high=2)
    return 0.0 if number < MIN_TEMPERATURE else number


def _parse_top_p(name: str, value: Any) -> float:
    return _parse_number(name, value, high=1)


def _parse_number(name: str, value: Any, *, high: int) -> float:
    if type(value) not in (int, float) or not 0 <= value <= high:
        shown = value if isinstance(value, int | float) else _name_type(value)
        raise RequestError(f"{name} must be a number from 0 to {high}, got {shown!s:.40}")
    return float(value)


def _parse_stop(name: str, value: Any) -> list[str]:
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARACTERS for s in stops):
        raise RequestError(
            f"{name} must be a text of 1 to {MAX_STOP_CHARACTERS} characters, or a list of at most {MAX_STOPS} of them"
        )
    return stops


def _name_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


COMMON: dict[str, Callable[[str, Any], Any]] = {
    "model": _parse_text,
    "stream": _parse_bool,
    "max_tokens": _parse_max_tokens,
    "temperature": _parse_temperature,
    "top_p": _parse_top_p,
    "seed": _parse_seed,
    "stop": _parse_stop,
}
