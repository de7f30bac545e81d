"""Decode the documents of a build back to text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.chats.templates import TEMPLATES, list_chat_tokens
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.interface import Tokenizer

UNKNOWN_LANGUAGE = "unknown"
CHUNK_DOCUMENTS = 1 << 16  # whose records are read at once
CHUNK_TOKENS = 1 << 16  # whose ids are Python objects at once
# Of a document that is decoded, which is in memory as a whole. Builds cut documents at 64 MB; 33 million tokens, the
# longest document that is imported, have 130 MB of text, but 4 GB if all of them are the longest token of GPT-2.
MAX_TEXT_BYTES = 1 << 28
SUM_TOKENS = 1 << 20  # whose sizes are added at once


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
    check_text = _TextCheck(build, tokenizer)
    ids, is_learnt = build.document(split, number), build.document_mask(split, number)
    check_text(ids)
    is_control = np.isin(ids, list(names))
    is_first = np.ones(len(ids), bool)  # of a part
    is_first[1:] = is_control[1:] | is_control[:-1] | (is_learnt[1:] != is_learnt[:-1])
    parts = []
    for begin, end in itertools.pairwise([*np.flatnonzero(is_first).tolist(), len(ids)]):
        control = bool(is_control[begin])
        data = names[int(ids[begin])].encode() if control else tokenizer.decode_bytes(ids[begin:end])
        parts.append(DocumentPart(data, control, bool(is_learnt[begin])))
    return parts


@dataclass(frozen=True)
class ShownToken:
    """A token of a document: its id, and its text or the name of a control token."""

    id: int
    text: str  # bytes that are not UTF-8 alone, as a part of a character, are escapes
    is_control: bool


def decode_tokens(build: Build, split: str, number: int) -> Iterator[ShownToken]:
    """Yield the tokens of document `number` of `split`, in order. Raises the errors of `decode_document`."""
    data = load_tokenizer(build.folder, build.manifest).id_to_bytes
    names = {token_id: name for name, token_id in build.manifest.special_tokens.items()}
    ids = build.check_ids(build.document(split, number))
    for start in range(0, len(ids), CHUNK_TOKENS):
        for i in ids[start : start + CHUNK_TOKENS].tolist():
            text = data[i].decode("utf-8", "backslashreplace") if i < len(data) else ""
            yield ShownToken(i, names.get(i, text), i in names)


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
    turns = _find_turns(build) if build.has_masks else None
    check_text = _TextCheck(build, tokenizer)
    for language, ids in _read_documents(build, split):
        check_text(build.check_ids(ids))
        text = _decode_text(ids, is_control, tokenizer, turns)
        if authors:  # their ids come after those of the tokenizer
            text = b"".join([names[i] for i in ids[ids >= tokenizer.vocab_size].tolist() if i not in chat_ids]) + text
        yield language, text


class _TextCheck:
    """Raises FolioError for a document whose text is too long to be decoded."""

    def __init__(self, build: Build, tokenizer: Tokenizer) -> None:
        self._build, self._sizes = build, np.zeros(build.vocab_size, np.uint32)
        sizes = [len(data) for data in tokenizer.id_to_bytes]
        self._sizes[: len(sizes)] = sizes
        self._max_tokens = MAX_TEXT_BYTES // max([1, *sizes])  # of documents that are short enough in any case

    def __call__(self, ids: np.ndarray) -> None:
        """Check a document with these ids, (L,)."""
        if len(ids) <= self._max_tokens:
            return
        chunks = (ids[start : start + SUM_TOKENS] for start in range(0, len(ids), SUM_TOKENS))
        num_bytes = sum(int(self._sizes[self._build.check_ids(chunk)].sum(dtype=np.int64)) for chunk in chunks)
        if num_bytes > MAX_TEXT_BYTES:
            raise FolioError(
                f"{self._build.folder} has a document of {num_bytes:,} bytes of text, expected at most "
                f"{MAX_TEXT_BYTES:,}; divide it, and make the build again"
            )


def find_document(build: Build, split: str, text: str) -> int | None:
    """Return the number of the first document of `split` whose text contains `text`, or None.

    Control tokens are not part of the text. Raises FolioError like `decode_documents`.
    """
    wanted = text.encode("utf-8", "surrogateescape")
    documents = decode_documents(build, split, load_tokenizer(build.folder, build.manifest))
    return next((number for number, (_, data) in enumerate(documents) if wanted in data), None)


@dataclass(frozen=True)
class _TurnTokens:
    """What divides a chat into turns."""

    start_ids: list[int]
    separators: tuple[bytes, ...]  # text after the control token that ends a turn

    def remove_separator(self, text: bytes) -> bytes:
        separator = next((each for each in self.separators if each and text.endswith(each)), b"")
        return text.removesuffix(separator)


def _find_turns(build: Build) -> _TurnTokens | None:
    """Return the tokens of the chat template of a build with chats, or None if the template is not known."""
    template = TEMPLATES.get(str(build.manifest.recipe.get("chat_template")))
    if template is None:
        return None
    ids = {build.manifest.special_tokens.get(turn.start) for turn in template.turns.values()}
    separators = {turn.separator.encode() for turn in template.turns.values()}
    return _TurnTokens(sorted(i for i in ids if i is not None), tuple(sorted(separators)))


def _decode_text(ids: np.ndarray, is_control: np.ndarray, tokenizer: Tokenizer, turns: _TurnTokens | None) -> bytes:
    """Return the text of a document without its control tokens, with a line feed between the turns of a chat.

    `is_control`: of each id of the vocabulary.
    """
    starts = () if turns is None else np.flatnonzero(np.isin(ids, turns.start_ids))
    if turns is None or not len(starts):
        return tokenizer.decode_bytes(ids[~is_control[ids]])
    texts = [tokenizer.decode_bytes(part[~is_control[part]]) for part in np.split(ids, starts)]
    return b"\n".join(text for text in map(turns.remove_separator, texts) if text)


def iter_languages(build: Build, split: str) -> Iterator[np.ndarray]:
    """Yield the language numbers of the documents of `split`, in order: arrays (D,) uint32."""
    for entry in build.manifest.splits[split].shards:
        yield from (docs["lang"] for docs in build.iter_docs(entry, CHUNK_DOCUMENTS))


def _read_documents(build: Build, split: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the language number and the ids of each document of `split`.

    A shard may have a hundred million documents, so their ends are read in chunks. One shard is mapped at
    a time, because the pages of a mapped file that were read count as memory of this process.
    """
    for entry in build.manifest.splits[split].shards:
        shard = build.map_shard(entry)
        first = begin = 0
        for docs in build.iter_docs(entry, CHUNK_DOCUMENTS):
            languages = docs["lang"]
            ends = shard.ends[first : first + len(languages)].tolist()
            for language, (start, end) in zip(languages.tolist(), itertools.pairwise([begin, *ends]), strict=True):
                yield language, shard.tokens[start:end]
            first, begin = first + len(ends), ends[-1]
