"""A conversation with a model that was trained on chats: turns as ids, and replies as text.

A turn is the ids that its template puts around the text, and the ids of the text. The control
tokens are placed by id, and no tokenizer encodes text to a control token, so nothing that a user
types can end a turn or begin another one. The replies are kept as the ids that were generated.

The context of a model is limited to block_size tokens. If a conversation becomes longer, its oldest
exchanges (a message and its reply) are left out, but never the system message.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from preprocess.errors import MisuseError
from preprocess.shards.manifest import Manifest
from train.config import Config
from train.model.base import LanguageModel
from train.model.generate import decode_stream, generate
from train.model.sampler import encode_text

REPLY_SHARE = 4  # a quarter of the context, or completion_tokens if they are fewer, is left free for a reply


@dataclass
class Exchange:
    """A message of the user, and the ids of the reply so far."""

    message: str
    reply: list[int] = field(default_factory=list)
    has_ended: bool = False  # whether the model ended the reply


class Conversation:
    """The messages so far, and a model that replies to them."""

    def __init__(
        self, model: LanguageModel, tokenizer: Any, manifest: Manifest, *, config: Config, system: str
    ) -> None:
        """`tokenizer`: of `manifest`. `system`: the text of the system message; empty: none.

        Raises MisuseError if the data of `manifest` has no chat template, or if `system` cannot be
        encoded or is longer than the context.
        """
        from preprocess.chats.templates import TEMPLATES

        name = manifest.recipe.get("chat_template")
        if not isinstance(name, str) or name not in TEMPLATES:
            raise MisuseError(
                f"the run was trained on {manifest.name:.80}, which has no chat template, so the model knows no turns; "
                "train it further on chats (docs/chats.md), or use `folio sample`"
            )
        self._template, self._special_tokens = TEMPLATES[name], manifest.special_tokens
        if missing := [token for token in self._template.control_tokens if token not in self._special_tokens]:
            raise MisuseError(f"the build {manifest.name:.80} has no control token {missing[0]}; build it again")
        self._model, self._tokenizer, self._config, self._system = model, tokenizer, config, system
        self._bos = [manifest.bos_id] if manifest.recipe.get("bos") and manifest.bos_id is not None else []
        # Each of these ends a reply: no turn of the assistant has one inside.
        self._end_ids = {manifest.eot_id, *(self._special_tokens[token] for token in self._template.control_tokens)}
        self._silent_ids = {*manifest.special_tokens.values(), *range(manifest.vocab_size, model.vocab_size)}
        self._num_replies = 0
        self.exchanges: list[Exchange] = []
        self.num_left_out = 0  # the oldest exchanges, which do not fit the context any more
        self._fit([Exchange("")])  # checks the system message

    def reset(self) -> None:
        """Forget all messages except the system message."""
        self.exchanges, self.num_left_out = [], 0

    def reply(self, message: str) -> Generator[str, None, None]:
        """Add `message`, and yield the reply to it in parts, each as soon as it is generated.

        If the iterator is closed before its end, the reply so far belongs to the conversation. Raises
        MisuseError, without a change of the conversation, if `message` cannot be encoded or is
        longer than the context, and FolioError if the model's output is not finite.
        """
        exchange = Exchange(message)
        kept, prompt = self._fit([*self.exchanges, exchange])
        self.num_left_out += len(self.exchanges) + 1 - len(kept)
        self.exchanges = kept
        max_tokens = min(self._config.completion_tokens, self._model.block_size - len(prompt))
        number, self._num_replies = self._num_replies, self._num_replies + 1
        drawn = generate(self._model, prompt, config=self._config, eot_id=None, number=number)
        with closing(drawn):
            yield from decode_stream(self._tokenizer.decode_bytes, self._take_reply(drawn, exchange, max_tokens))

    def _take_reply(self, drawn: Iterator[int], exchange: Exchange, max_tokens: int) -> Iterator[int]:
        """Yield the ids of the reply that have text, and append all to `exchange`."""
        for i in itertools.islice(drawn, max_tokens):
            if i in self._end_ids:
                exchange.has_ended = True
                return
            exchange.reply.append(i)
            if i not in self._silent_ids:
                yield i

    def _fit(self, exchanges: list[Exchange]) -> tuple[list[Exchange], list[int]]:
        """Return the last of `exchanges` that leave room for a reply, and their ids; at least the last one.

        Raises MisuseError if the last one fills the context.
        """
        block_size = self._model.block_size
        max_prompt = block_size - max(min(self._config.completion_tokens, block_size // REPLY_SHARE), 1)
        while True:
            ids = self._encode(exchanges)
            if len(ids) <= max_prompt or len(exchanges) == 1:
                break
            exchanges = exchanges[1:]
        if len(ids) >= block_size:
            raise MisuseError(
                f"the message has {len(ids):,} tokens with the control tokens and the system message, but the model's "
                f"context has {block_size:,}, also for the reply; shorten it"
            )
        return exchanges, ids

    def _encode(self, exchanges: list[Exchange]) -> list[int]:
        """Return the ids of `exchanges` up to where the reply to the last one begins."""
        from preprocess.chats.messages import ASSISTANT, SYSTEM, USER, Message

        first = [Message(SYSTEM, self._system, False)] if self._system else []
        ids = list(self._bos)
        for exchange in exchanges:
            # A template without turns for a system message puts its text before the first message.
            for message in self._template.arrange([*first, Message(USER, exchange.message, False)]):
                turn = self._template.turns[message.role]
                ids += [self._special_tokens[turn.start], *self._encode_text(turn.header)]
                ids += self._encode_text(message.text)
                ids += [self._special_tokens[turn.end], *self._encode_text(turn.separator)]
            turn = self._template.turns[ASSISTANT]
            ids += [self._special_tokens[turn.start], *self._encode_text(turn.header)]
            if exchange is not exchanges[-1]:
                ids += [*exchange.reply, self._special_tokens[turn.end], *self._encode_text(turn.separator)]
            first = []
        return ids

    def _encode_text(self, text: str) -> list[int]:
        return encode_text(self._tokenizer, text, "the message") if text else []
