"""Export the text of a build with its metadata, one JSON object per document and line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess.errors import FolioError
from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.tokens import iter_records, name_languages, name_sources
from preprocess.shards.files import JsonObject
from preprocess.shards.format import CONTROL_FIELDS, SPLITS, Build
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.decode_build import decode_documents
from preprocess.tokenizers.interface import Tokenizer

SLICE_BYTES = 1 << 20  # of a text that is escaped at once
MAX_LEADING_TOKENS = 1 + len(CONTROL_FIELDS)  # begin of text, author, city and year


def export_jsonl(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write the documents of a build to `train.jsonl` and `val.jsonl`, and return the paths of the files.

    An object has the keys `text`, `author`, `city`, `year`, `language`, `source` and `position` (the
    document's number in its source). Without a value, it is null. Authors and cities are written as in
    their control tokens, with `_` for white space; they are null in a build without these tokens. A split
    without documents gets no file. Raises MisuseError like `prepare_output`, and FolioError if the build
    is damaged.
    """
    paths = {split: output / f"{split}.jsonl" for split in SPLITS if build.manifest.splits[split].documents}
    with build.reading():
        tokenizer = load_tokenizer(build.folder, build.manifest)
    prepare_output(output, paths.values(), patterns=[f"{split}.jsonl" for split in SPLITS], replace=replace)
    with write_together() as new, build.reading():
        for split, path in paths.items():
            with new.open(path) as file:
                texts = decode_documents(build, split, tokenizer)
                for (_, text), metadata in zip(texts, _iter_metadata(build, split, tokenizer), strict=True):
                    file.writelines(_format(text, metadata))
    return list(paths.values())


def _format(text: bytes, metadata: JsonObject) -> Iterator[bytes]:
    """Yield the line of a document in parts. As one object, a long text would be in memory four times."""
    yield b'{"text": "'
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for start in range(0, len(text), SLICE_BYTES):
        part = decoder.decode(text[start : start + SLICE_BYTES], final=start + SLICE_BYTES >= len(text))
        yield json.dumps(part, ensure_ascii=False)[1:-1].encode()
    yield b'", ' + json.dumps(metadata, ensure_ascii=False)[1:].encode() + b"\n"


def _iter_metadata(build: Build, split: str, tokenizer: Tokenizer) -> Iterator[JsonObject]:
    """Yield the object of each document without its text."""
    values = _list_values(build, tokenizer)
    for entry in build.manifest.splits[split].shards:
        tokens, begin = build.map_shard(entry).tokens, 0
        for docs, ends in iter_records(build, entry):
            rows = zip(
                ends.tolist(), name_languages(build, docs), name_sources(build, docs), docs["position"].tolist(),
                strict=True,
            )  # fmt: skip
            for end, language, source, position in rows:
                authors = _find_values(tokens[begin : min(begin + MAX_LEADING_TOKENS, end)], values)
                yield {**authors, "language": language, "source": source, "position": position}
                begin = end


def _list_values(build: Build, tokenizer: Tokenizer) -> dict[int, tuple[str, str | int]]:
    """Return the field and the value of each control token of an author, city or year, by id."""
    values: dict[int, tuple[str, str | int]] = {}
    for token, token_id in build.manifest.special_tokens.items():
        field, _, value = token.removeprefix("<").removesuffix(">").partition("_")
        if token_id < tokenizer.vocab_size or field not in CONTROL_FIELDS:
            continue
        if field == "year" and not (value.isascii() and value.isdigit() and len(value) == 4):
            raise FolioError(
                f"{build.folder} has the control token {token!r:.80}, expected a year of four digits; check it with "
                "`preprocess verify`"
            )
        values[token_id] = field, int(value) if field == "year" else value
    return values


def _find_values(ids: np.ndarray, values: dict[int, tuple[str, str | int]]) -> JsonObject:
    found: JsonObject = dict.fromkeys(CONTROL_FIELDS)
    found.update(values[i] for i in ids.tolist() if i in values)
    return found
