"""The Jinja templates render what the Python templates say. tests/train/test_export_chats.py compares with builds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.chats.messages import Message
from preprocess.chats.templates import TEMPLATES, find_template, make_jinja
from tests.helpers.manifests import make_manifest

jinja2 = pytest.importorskip("jinja2")
chat_utils = pytest.importorskip("transformers.utils.chat_template_utils")

roles = st.sampled_from(["system", "user", "assistant", "tool"])
texts = st.one_of(st.sampled_from(["", " ", "\n", " {{ x }} {% if %} ", "a\n\nb ", "'\"\\"]), st.text(max_size=5))
messages = st.lists(st.tuples(roles, texts), min_size=1, max_size=6)


def render(name: str, chat: list[dict[str, Any]], **options: Any) -> str:
    text, _ = chat_utils.render_jinja_template([chat], chat_template=make_jinja(TEMPLATES[name]), **options)
    return text[0]


def render_in_python(name: str, chat: list[tuple[str, str]]) -> str:
    template = TEMPLATES[name]
    arranged = template.arrange([Message(role, text, False) for role, text in chat])
    turns = [(template.turns[message.role], message.text) for message in arranged]
    return "".join(turn.start + turn.header + text + turn.end + turn.separator for turn, text in turns)


@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_renders_what_the_template_says(name: str) -> None:
    @settings(max_examples=200, deadline=None)
    @given(messages)
    def check(chat: list[tuple[str, str]]) -> None:
        dicts = [{"role": role, "content": text} for role, text in chat]
        parts = [{"role": role, "content": [{"type": "text", "text": c} for c in text]} for role, text in chat]
        expected = render_in_python(name, chat)
        assert render(name, dicts) == render(name, parts) == expected
        reply = TEMPLATES[name].turns["assistant"]
        prompt = expected + reply.start + reply.header
        assert render(name, dicts, add_generation_prompt=True) == prompt

    check()


@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_does_not_depend_on_how_the_environment_trims_blocks(name: str) -> None:
    chat = [
        {"role": role, "content": " a\n"} for role in ("developer", "system", "user", "assistant", "tool", "system")
    ]
    # Only transformers has the tag `generation`.
    text = make_jinja(TEMPLATES[name]).replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    expected = render_in_python(name, [(m["role"].replace("developer", "system"), m["content"]) for m in chat])
    for trims in (False, True):
        environment = jinja2.Environment(trim_blocks=trims, lstrip_blocks=trims, keep_trailing_newline=trims)
        assert environment.from_string(text).render(messages=chat) == expected


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "pirate", "content": "a"}, "the role of a message must be one of system, user, assistant, tool"),
        ({"role": "assistant", "tool_calls": []}, "a message has no text"),
        ({"role": "user", "content": None}, "a message has no text"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "a part of a message is not text"),
    ],
)
@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_raises_for_messages_that_a_build_rejects(name: str, message: dict[str, Any], error: str) -> None:
    with pytest.raises(jinja2.TemplateError, match=error):
        render(name, [message])


def test_jinja_puts_the_bos_token_first() -> None:
    for bos_token in ("<s>", "'{{ @END }}\n\\", "<é>"):
        text, _ = chat_utils.render_jinja_template(
            [[{"role": "user", "content": "a"}]], chat_template=make_jinja(TEMPLATES["nanochat"], bos_token)
        )
        assert text == [f"{bos_token}<|user_start|>a<|user_end|>"]


def test_find_template_ignores_templates_of_a_newer_version() -> None:
    assert find_template(make_manifest(recipe={"chat_template": "chatml"})) is TEMPLATES["chatml"]
    for recipe in ({}, {"chat_template": None}, {"chat_template": "later"}, {"chat_template": ["chatml"]}):
        assert find_template(make_manifest(recipe=recipe)) is None
