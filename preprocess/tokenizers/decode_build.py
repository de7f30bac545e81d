"""Decode the documents of a build back to text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.chats.templates import list_chat_tokens
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.interface import Tokenizer

UNKNOWN_LANGUAGE = "unknown"


def list_language_tags(build: Build) -> dict[int, str]:
    """Return the tag of each language by its number; 0 is the unknown language."""
    return {0: UNKNOWN_LANGUAGE, **{int(number): tag for number, tag in build.manifest.languages.items()}}


@dataclass(frozen=True)
class DocumentPart:
    """A control token, or text that is in the loss mask as a whole or not at all."""

    data: bytes  # UTF-8; the name of a control token
    is_control: bool
    is_learnt: bool  # True in builds without loss masks

    def as_text(self) -> str:
        return self.data.decode("utf-8", errors="replace")


def decode_document(build: Build, split: str, number: int) -> list[DocumentPart]:
    """Return the parts of document `number` of `split`, in order.

    Raises MisuseError if the number is out of range, and FolioError for an id that is not in the
    vocabulary.
    """
    tokenizer = load_tokenizer(build.folder, build.manifest)
    names = {token_id: name for name, token_id in build.manifest.special_tokens.items()}
    ids, is_learnt = build.document(split, number), build.document_mask(split, number)
    is_control = np.isin(ids, list(names))
    is_first = np.ones(len(ids), bool)  # of a part
    is_first[1:] = is_control[1:] | is_control[:-1] | (is_learnt[1:] != is_learnt[:-1])
    parts = []
    for begin, end in itertools.pairwise([*np.flatnonzero(is_first).tolist(), len(ids)]):
        control = bool(is_control[begin])
        data = names[int(ids[begin])].encode() if control else tokenizer.decode_bytes(ids[begin:end])
        parts.append(DocumentPart(data, control, bool(is_learnt[begin])))
    return parts


def decode_documents(
    build: Build, split: str, tokenizer: Tokenizer, *, authors: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Yield (language number, UTF-8 text) of each document of `split`, without its control tokens.

    A line feed is between the turns of a chat. With `authors`, the control tokens of author, city and
    year are put before the text, such as `<author_Anna_Akimova>`. Raises FolioError for an id that is
    not in the build's vocabulary.
    """
    is_control = np.zeros(build.vocab_size, bool)
    is_control[list(build.manifest.special_tokens.values())] = True
    names = {token_id: token.encode() for token, token_id in build.manifest.special_tokens.items()}
    template = build.manifest.recipe.get("chat_template")
    chat_ids = {build.manifest.special_tokens.get(token) for token in list_chat_tokens(template)}
    for language, ids in zip(build.docs(split)["lang"], _read_documents(build, split), strict=True):
        if len(ids) and int(ids.max()) >= build.vocab_size:
            raise FolioError(
                f"{build.folder} holds id {int(ids.max())}, but its vocabulary ends at {build.vocab_size - 1}; "
                "check it with `preprocess verify`"
            )
        text = _decode_text(ids, is_control[ids], tokenizer, has_turns=bool(chat_ids))
        if authors:  # their ids come after those of the tokenizer
            text = b"".join([names[i] for i in ids[ids >= tokenizer.vocab_size].tolist() if i not in chat_ids]) + text
        yield int(language), text


def _decode_text(ids: np.ndarray, is_control: np.ndarray, tokenizer: Tokenizer, *, has_turns: bool) -> bytes:
    """Return the text of a document without its control tokens; they divide a chat into turns."""
    if not has_turns:
        return tokenizer.decode_bytes(ids[~is_control])
    parts = np.split(ids, np.flatnonzero(is_control))
    texts = [tokenizer.decode_bytes(part[1:] if i else part) for i, part in enumerate(parts)]
    return b"\n".join(text for text in texts if text)


def _read_documents(build: Build, split: str) -> Iterator[np.ndarray]:
    for shard in build.shards(split):
        for begin, end in itertools.pairwise([0, *shard.ends.tolist()]):
            yield shard.tokens[begin:end]
