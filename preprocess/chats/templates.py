"""Chat templates: which control tokens and words stand before and after each turn of a chat.

A template has a name, by which other programs know how a model was trained:

    nanochat   <|user_start|>Hello<|user_end|><|assistant_start|>Hi<|assistant_end|>
    chatml     <|im_start|>user
               Hello<|im_end|>
               <|im_start|>assistant
               Hi<|im_end|>

In `nanochat` (https://github.com/karpathy/nanochat) everything except the text is a control token, so
each turn needs only two tokens, and every tokenizer encodes the text of a turn as it would alone. A
system message has no tokens of its own: it is put before the message of the user that follows.
`chatml` was introduced by OpenAI, and most programs know it. It also writes the name of the role.

Control tokens are placed by id. A tokenizer never encodes text to one, so a message that contains
the characters `<|im_end|>` does not end a turn.

`make_jinja` writes a template in the template language Jinja, as Hugging Face's tokenizers have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preprocess.chats.messages import ASSISTANT, SYSTEM, TOOL, USER, Message
from preprocess.shards.manifest import Manifest

DEFAULT_TEMPLATE = "nanochat"
SYSTEM_SEPARATOR = "\n\n"  # between a system message and the message of the user
# Every "-" at the end of a tag removes the white space beside it, so that only the expressions are written.
# `{% generation %}` marks what `apply_chat_template(…, return_assistant_tokens_mask=True)` returns: the tokens
# in the loss mask of a build.
JINJA = """\
{%- set starts = @STARTS -%}
{%- set ends = @ENDS -%}
{%- set state = namespace(text='', system='') -%}
{{- @BOS -}}
{%- for message in messages -%}
    {%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
    {%- if message['content'] is string -%}
        {%- set state.text = message['content'] -%}
    {%- elif message['content'] is not defined or message['content'] is none -%}
        {{- raise_exception('a message has no text') -}}
    {%- else -%}
        {%- set state.text = '' -%}
        {%- for part in message['content'] -%}
            {%- if part['text'] is not string -%}
                {{- raise_exception('a part of a message is not text') -}}
            {%- endif -%}
            {%- set state.text = state.text ~ part['text'] -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if role == 'system' and 'system' not in starts -%}
        {%- set state.system = state.system ~ state.text ~ @SEPARATOR -%}
    {%- elif role not in starts -%}
        {{- raise_exception('the role of a message must be one of @ROLES') -}}
    {%- else -%}
        {%- if state.system and role != 'user' -%}
            {{- starts['user'] ~ state.system[:-@LENGTH] ~ ends['user'] -}}
            {%- set state.system = '' -%}
        {%- endif -%}
        {{- starts[role] -}}
        {%- if role == 'assistant' and state.text -%}
            {%- generation -%}{{- state.system ~ state.text ~ @END -}}{%- endgeneration -%}
            {{- @AFTER -}}
        {%- else -%}
            {{- state.system ~ state.text ~ ends[role] -}}
        {%- endif -%}
        {%- set state.system = '' -%}
    {%- endif -%}
{%- endfor -%}
{%- if state.system -%}
    {{- starts['user'] ~ state.system[:-@LENGTH] ~ ends['user'] -}}
{%- endif -%}
{%- if add_generation_prompt -%}
    {{- starts['assistant'] -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Turn:
    """What stands before and after the text of a message."""

    start: str  # a control token
    end: str  # a control token, which is learnt if the message is
    header: str = ""  # text between `start` and the message
    separator: str = ""  # text after `end`


@dataclass(frozen=True)
class ChatTemplate:
    """A template. If it has no turn for system messages, they become part of the next user message."""

    name: str
    turns: Mapping[str, Turn]  # by role

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The control tokens of the template, each once, in order."""
        return tuple(dict.fromkeys(token for turn in self.turns.values() for token in (turn.start, turn.end)))

    def arrange(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages with roles that the template has."""
        if SYSTEM in self.turns:
            return list(messages)
        arranged: list[Message] = []
        pending: list[str] = []  # the texts of system messages
        for message in messages:
            if message.role == SYSTEM:
                pending.append(message.text)
                continue
            if pending and message.role != USER:
                arranged.append(Message(USER, SYSTEM_SEPARATOR.join(pending), False))
                pending = []
            arranged.append(message._replace(text=SYSTEM_SEPARATOR.join([*pending, message.text])))
            pending = []
        if pending:
            arranged.append(Message(USER, SYSTEM_SEPARATOR.join(pending), False))
        return arranged


TEMPLATES = {
    "nanochat": ChatTemplate(
        "nanochat",
        {
            USER: Turn("<|user_start|>", "<|user_end|>"),
            ASSISTANT: Turn("<|assistant_start|>", "<|assistant_end|>"),
            TOOL: Turn("<|output_start|>", "<|output_end|>"),
        },
    ),
    "chatml": ChatTemplate(
        "chatml",
        {role: Turn("<|im_start|>", "<|im_end|>", f"{role}\n", "\n") for role in (SYSTEM, USER, ASSISTANT, TOOL)},
    ),
}


def list_chat_tokens(name: object) -> tuple[str, ...]:
    """Return the control tokens of the template `name`, a value of a manifest; none for an unknown name."""
    return TEMPLATES[name].control_tokens if isinstance(name, str) and name in TEMPLATES else ()


def number_chat_tokens(name: str | None, special_tokens: Mapping[str, int], vocab_size: int) -> dict[str, int]:
    """Return the id of each control token of the template `name`; no tokens if it is None.

    `special_tokens`, `vocab_size`: of the tokenizer. A token that the tokenizer has keeps its id. The
    others get the ids from `vocab_size` on.
    """
    ids: dict[str, int] = {}
    num_new = 0
    for token in TEMPLATES[name].control_tokens if name is not None else ():
        ids[token] = special_tokens.get(token, vocab_size + num_new)
        num_new += token not in special_tokens
    return ids


def find_template(manifest: Manifest) -> ChatTemplate | None:
    """Return the chat template of a build, or None if it has none, or one of a newer Folio."""
    name = manifest.recipe.get("chat_template")
    return TEMPLATES.get(name) if isinstance(name, str) else None


def make_jinja(template: ChatTemplate, bos_token: str = "") -> str:
    """Return the template in Jinja. `bos_token`: the control token before each chat, if there is one.

    It needs `messages` (with `role` and `content`), `add_generation_prompt` and the function
    `raise_exception`, which all programs that use such templates define.
    """
    reply = template.turns[ASSISTANT]
    values = {
        "@STARTS": repr({role: turn.start + turn.header for role, turn in template.turns.items()}),
        "@ENDS": repr({role: turn.end + turn.separator for role, turn in template.turns.items()}),
        "@SEPARATOR": repr(SYSTEM_SEPARATOR),
        "@LENGTH": str(len(SYSTEM_SEPARATOR)),
        "@ROLES": ", ".join((SYSTEM, USER, ASSISTANT, TOOL)),
        "@END": repr(reply.end),
        "@AFTER": repr(reply.separator),
        "@BOS": repr(bos_token),  # the last one, because it may have any characters
    }
    text = JINJA
    for key, value in values.items():
        text = text.replace(key, value)
    return text
