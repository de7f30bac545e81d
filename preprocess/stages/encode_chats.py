"""The control tokens and the words that a chat template puts around each turn, as ids.

Each turn is encoded by itself. What the template writes before and after it is the same for all
turns of a role, so it is encoded once, and inserted by id as the control tokens of a document are.

The loss mask says which tokens a model is trained to predict: of a chat, the messages of the
assistant and the tokens that end them; of any other document, all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from preprocess.chats.marked_text import IS_LEARNT, PLAIN, TURNS, Turns, split_turns
from preprocess.chats.messages import ASSISTANT
from preprocess.chats.templates import TEMPLATES, number_chat_tokens
from preprocess.documents import count_text_bytes
from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.schema import Recipe
from preprocess.tokenizers.interface import Tokenizer


class TurnIds:
    """The ids before and after each kind of turn. There are none if the recipe has no chat columns."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        """Raises MisuseError if the tokenizer cannot encode the words of the template."""
        self.has_chats = recipe.chat_columns is not None
        leading: list[list[int]] = [[] for _ in range(PLAIN + 1)]
        trailing: list[list[int]] = [[] for _ in range(PLAIN + 1)]
        if self.has_chats and recipe.chat_template is not None:
            template = TEMPLATES[recipe.chat_template]
            ids = number_chat_tokens(template.name, tokenizer.special_tokens, tokenizer.vocab_size)
            for kind, (role, _) in enumerate(TURNS):
                if turn := template.turns.get(role):
                    leading[kind] = [ids[turn.start], *_encode(tokenizer, turn.header, template.name)]
                    trailing[kind] = [ids[turn.end], *_encode(tokenizer, turn.separator, template.name)]
        self._leading, self._trailing = _make_table(leading), _make_table(trailing)

    def split(self, texts: pa.LargeStringArray) -> Turns:
        """Return the turns of D texts. Without chats, each text is one turn. Empty messages are not learnt."""
        if self.has_chats:
            turns = split_turns(texts)
            is_empty = count_text_bytes(turns.texts) == 0
            turns.kinds[is_empty & (turns.kinds == TURNS.index((ASSISTANT, True)))] = TURNS.index((ASSISTANT, False))
            return turns
        return Turns(texts, np.full(len(texts), PLAIN, np.uint8), np.arange(len(texts) + 1))

    def count(self, kinds: np.ndarray) -> np.ndarray:
        """Return the number of ids around each of M turns, (M,) int64. `kinds`: of the turns, (M,)."""
        counts: np.ndarray = ((self._leading >= 0).sum(axis=1) + (self._trailing >= 0).sum(axis=1))[kinds]
        return counts

    def add_to(
        self, leading: np.ndarray, trailing: np.ndarray, kinds: np.ndarray, first_slices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the tables of ids before and after each of S slices, with those of the turns.

        `leading` (S, F) and `trailing` (S, K) are those of the documents, -1 for no id. `kinds`: of
        the turns, (M,). `first_slices`: of each turn, with S at the end, (M + 1,).
        """
        if not self.has_chats:
            return leading, trailing
        firsts, lasts = first_slices[:-1], first_slices[1:] - 1
        before = np.full((len(leading), self._leading.shape[1]), -1, np.int64)
        after = np.full((len(trailing), self._trailing.shape[1]), -1, np.int64)
        before[firsts], after[lasts] = self._leading[kinds], self._trailing[kinds]
        return np.hstack([leading, before]), np.hstack([after, trailing])


def choose_turns(turns: Turns, documents: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return one turn of each of S documents, (S,) int64, chosen by the hash of its content.

    `documents`: the numbers of the documents, (S,). `hashes`: of all D documents, (D, 16) uint8.
    """
    firsts, ends = turns.firsts[documents], turns.firsts[documents + 1]
    keys = np.ascontiguousarray(hashes[documents, 8:]).view("<u8").reshape(-1)
    chosen: np.ndarray = firsts + (keys % (ends - firsts).astype(np.uint64)).astype(np.int64)
    return chosen


def count_ids(recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Return the number of ids of the tokenizer and of the chat template, without those of authors."""
    ids = number_chat_tokens(recipe.chat_template, tokenizer.special_tokens, tokenizer.vocab_size)
    return max([tokenizer.vocab_size - 1, *ids.values()]) + 1


def make_loss_mask(kinds: np.ndarray, lengths: np.ndarray, leading: np.ndarray, trailing: np.ndarray) -> np.ndarray:
    """Return the loss mask of S slices, with their control tokens: (N,) bool, flat.

    `kinds`: of the turn of each slice, (S,). `lengths`: of the slices with their control tokens,
    (S,). `leading` (S, F) and `trailing` (S, K): the ids before and after each slice, -1 for no id.
    The first id after a turn is the token that ends it.
    """
    is_plain, is_learnt = kinds == PLAIN, IS_LEARNT[kinds]
    num_leading, num_trailing = (leading >= 0).sum(axis=1), (trailing >= 0).sum(axis=1)
    num_ends = (trailing[:, 0] >= 0).astype(np.int64) if trailing.shape[1] else np.zeros(len(kinds), np.int64)
    counts = np.stack([num_leading, lengths - num_leading - num_trailing + num_ends, num_trailing - num_ends], axis=1)
    flags = np.stack([is_plain, is_learnt, is_plain], axis=1)
    return np.repeat(flags.reshape(-1), counts.reshape(-1))


def _encode(tokenizer: Tokenizer, text: str, template: str) -> Sequence[int]:
    if not text:
        return []
    try:
        ids, _ = tokenizer.encode_reference(pa.array([text], pa.large_string()))
        is_encoded = tokenizer.decode_bytes(ids) == text.encode()
    except FolioError:  # a tokenizer of characters does not have one of them
        is_encoded = False
    if not is_encoded:
        raise MisuseError(
            f"the tokenizer cannot encode {text!r}, which the chat template {template} writes in each turn; "
            "pass --chat-template nanochat, which has only control tokens, or choose another tokenizer"
        )
    return ids.tolist()


def _make_table(rows: list[list[int]]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table
