"""A build's tokenizer as the two files a Hugging Face model folder wants: `tokenizer.json` and `tokenizer_config.json`.

Written as plain JSON: no library of Hugging Face's is needed but for a tokenizer that came from one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from preprocess.errors import FolioError
from preprocess.shards.files import canonical_json, parse_json, readable_json
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.characters import ByteTokenizer, CharTokenizer
from preprocess.tokenizers.huggingface import JSON_FILE, HuggingFaceTokenizer, byte_alphabet
from preprocess.tokenizers.interface import Tokenizer
from preprocess.tokenizers.sentencepiece_bpe import MODEL_FILE, SPACE, SentencePieceTokenizer
from preprocess.tokenizers.tiktoken_bpe import PRETOKENIZERS, RANK_SUFFIX, TiktokenTokenizer, find_encoding

CONFIG_FILE = "tokenizer_config.json"
PARTS = {"bos_id": "bos_token", "eot_id": "eos_token", "pad_id": "pad_token", "unk_id": "unk_token"}
NOTHING_AROUND = {"truncation": None, "padding": None, "post_processor": None}
EMPTY = {"version": "1.0", **NOTHING_AROUND, "normalizer": None, "pre_tokenizer": None, "decoder": None}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
NORMAL, USER_DEFINED, UNUSED, BYTE = 1, 4, 5, 6  # SentencePiece's types of pieces
BPE = 2  # of SentencePiece's models
Described = dict[str, Any]  # a tokenizer.json, or a part of one
Piece = TypeVar("Piece", bytes, str)


def huggingface_files(folder: Path, manifest: dict[str, Any], *, model_max_length: int) -> dict[str, bytes]:
    """File name → content, from the tokenizer in `folder` (a build, or a run with its copy) and its parsed manifest.

    `transformers.AutoTokenizer` then gives the ids that Folio gives, and the text of such ids, as far as the tokenizer is
    lossless. What differs:

    - Text never becomes a control token in Folio; there it does where it spells one, as Hugging Face's users expect (and as
      WikiText spells SentencePiece's `<unk>`). `split_special_tokens=True` turns that off, but for a tokenizer that came as
      a tokenizer.json.
    - A character that a `char` tokenizer does not know is an error in both, there in the library's words.
    - Ids that no text has, as a model may produce: of a run of SentencePiece's bytes that is no UTF-8, each becomes U+FFFD.
    - Names of control tokens are decoded as if they were pieces of bytes where those are bytes: `<author_José>` loses its é,
      `<author_Пушкин>` nothing. Their ids are right, and so is text → id.

    `model_max_length`: tokens. Nothing is put around the text (no bos, no template): Folio's documents have theirs by id.
    Raises ShardError where a file is not the manifest's, FolioError for a tokenizer that a tokenizer.json cannot express.
    """
    tokenizer = load_tokenizer(folder, manifest)
    special_tokens: dict[str, int] = manifest["special_tokens"]
    name_of = {i: name for name, i in special_tokens.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        **{part: name_of[manifest[key]] for key, part in PARTS.items() if manifest[key] is not None},
    }
    if isinstance(tokenizer, HuggingFaceTokenizer):
        described = _extend(tokenizer, special_tokens)
    else:
        described = (
            EMPTY | _describe(tokenizer) | {"added_tokens": [_added(name, i) for i, name in sorted(name_of.items())]}
        )
        # Without a gap: libraries take the number of pieces for the next id, or for the rows of an embedding.
        vocab = described["model"]["vocab"]
        free = set(range(manifest["vocab_size"])).difference(vocab.values())
        vocab |= {name_of.get(i, f"\U0010ffff{i}"): i for i in free}  # a character that Unicode will never assign
    return {JSON_FILE: canonical_json(described), CONFIG_FILE: readable_json(config)}


def recover_merges(ranks: Mapping[Piece, float]) -> Iterator[tuple[Piece, Piece]]:
    """The pairs that make each piece, in the order of the ranks.

    `ranks`: piece → rank, of an encoder that merges the two neighbours whose joined text has the lowest rank. When it comes
    to a piece, all lower ranks within it are merged, and none across its boundaries: where these alone leave two parts of the
    piece's text, no other pair ever makes it. Trained ranks leave two of every piece; if ever they do not, a part with a
    higher rank may make it, and every pair is named. Idea: Karpathy's minbpe (`recover_merges`), after tiktoken's issue 60.
    """
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _merge_below(piece, rank, ranks)
        pairs = [(parts[0], parts[1])] if len(parts) == 2 else [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        yield from ((a, b) for a, b in pairs if a in ranks and b in ranks)


def _merge_below(piece: Piece, rank: float, ranks: Mapping[Piece, float]) -> list[Piece]:
    """The two or more parts that the ranks below `rank` leave of `piece`; one, if it is that short."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        found = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        lowest = min(found)
        if lowest >= rank:
            break
        i = found.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _describe(tokenizer: Tokenizer) -> Described:
    if isinstance(tokenizer, TiktokenTokenizer):
        return _tiktoken(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece(tokenizer)
    if isinstance(tokenizer, ByteTokenizer):
        return _byte_level({bytes([b]): b for b in range(256)}, BYTE_LEVEL)
    if isinstance(tokenizer, CharTokenizer):
        return _char(tokenizer)
    raise FolioError(f"a tokenizer of kind {tokenizer.kind!r} is not known as a {JSON_FILE}; install a newer Folio")


def _added(name: str, i: int) -> Described:
    return {
        "id": i,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _extend(tokenizer: HuggingFaceTokenizer, special_tokens: dict[str, int]) -> Described:
    """Its own file with the control tokens, without what it would put around text, and with one encoding of one text."""
    described: Described = parse_json(tokenizer.files[JSON_FILE]) | NOTHING_AROUND
    if "dropout" in described["model"]:
        described["model"]["dropout"] = None
    added = {token["content"]: token for token in described.get("added_tokens") or []}
    for name, i in special_tokens.items():
        added[name] = {**_added(name, i), **added.get(name, {}), "normalized": False, "special": True}
    described["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    try:
        HuggingFaceTokenizer(
            canonical_json(described)
        )  # reads it with the library, and compares the ids of added tokens
    except ValueError as e:
        raise FolioError(
            f"this build's {JSON_FILE} does not take its control tokens ({e}); build with another tokenizer"
        ) from e
    return described


def _tiktoken(tokenizer: TiktokenTokenizer) -> Described:
    """tiktoken looks for a whole piece of its pattern first: `ignore_merges`."""
    [name] = (file.removesuffix(RANK_SUFFIX) for file in tokenizer.files)
    if PRETOKENIZERS.get(name) in ("gpt2", "r50k"):  # the pattern that the library has of its own
        pre_tokenizer = {**BYTE_LEVEL, "use_regex": True}
    else:
        split = _split(_for_oniguruma(find_encoding(name).pattern))
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    described = _byte_level(tokenizer.ranks, pre_tokenizer)
    described["model"]["ignore_merges"] = True
    return described


def _for_oniguruma(pattern: str) -> str:
    r"""tiktoken's `pattern` for the library's engine, to which `{1,3}+` is a group repeated and `$` the end of any line.

    Possessive quantifiers change no match of these patterns: nothing that follows one matches what it took.
    """
    return re.sub(r"(?<=[+*?])\+|(?<=\d})\+", "", pattern).replace("$", r"\z")


def _byte_level(ranks: Mapping[bytes, int], pre_tokenizer: Described) -> Described:
    character_of = {b: c for c, b in byte_alphabet().items()}

    def spell(piece: bytes) -> str:
        return "".join([character_of[b] for b in piece])

    vocab, merges = (
        {spell(piece): i for piece, i in ranks.items()},
        [[spell(a), spell(b)] for a, b in recover_merges(ranks)],
    )
    return {
        "pre_tokenizer": pre_tokenizer,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _split(regex: str) -> Described:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _char(tokenizer: CharTokenizer) -> Described:
    """Words of one character. The unknown token is none of the vocabulary, so that the library refuses unknown characters."""
    vocab = {piece.decode(): i for i, piece in enumerate(tokenizer.pieces) if piece}
    return {
        "pre_tokenizer": _split(r"[\s\S]"),
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": ""},
    }


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> Described:
    """By the numbers of sentencepiece_model.proto. Raises FolioError for a model that does what no tokenizer.json repeats."""
    fields = list(_fields(tokenizer.files[MODEL_FILE]))
    pieces = [dict(_fields(value)) for number, value in fields if number == 1]
    trainer, normalizer = (dict(_fields(dict(fields).get(number, b""))) for number in (2, 3))
    ranks = {p[1].decode(): -_float(p.get(2, bytes(4))) for p in pieces if p.get(3, NORMAL) == NORMAL}
    _check_plain(
        trainer, normalizer, types={p.get(3, NORMAL) for p in pieces}, has_ties=len(set(ranks.values())) < len(ranks)
    )
    spell = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    unspell = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    prefix = [{"type": "Prepend", "prepend": SPACE}] if normalizer.get(3, True) else []
    [unknown] = (name for name, i in tokenizer.special_tokens.items() if i == tokenizer.unk_id)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spell]},
        "decoder": {"type": "Sequence", "decoders": [unspell, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "vocab": {p[1].decode(): i for i, p in enumerate(pieces) if p.get(3, NORMAL) in (NORMAL, BYTE)},
            "merges": list(recover_merges(ranks)),
            "byte_fallback": bool(trainer.get(35)),
            "unk_token": unknown,
            "fuse_unk": True,
        },
    }


def _check_plain(trainer: dict[int, Any], normalizer: dict[int, Any], *, types: set[int], has_ties: bool) -> None:
    what = {
        "is no BPE": trainer.get(3) != BPE,
        "puts a space behind the text": trainer.get(24),
        "normalises": normalizer.get(2),
        "removes white space": normalizer.get(4, True),
        "keeps spaces as they are": not normalizer.get(5, True),
        "has pieces of its user's": types & {USER_DEFINED, UNUSED},
        "scores two pieces alike": has_ties,
    }
    if unlike := [name for name, is_so in what.items() if is_so]:
        raise FolioError(
            f"this SentencePiece model {unlike[0]}, and has no exact {JSON_FILE}; wanted one as Folio trains, build with that"
        )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a Protocol Buffers message that another has read before: int, or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
        else:
            size, at = _varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            yield key >> 3, message[at : at + size]
            at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that starts at `at`, seven bits a byte, and where it ends."""
    value = shift = 0
    while message[at] & 0x80:
        value, shift, at = value | (message[at] & 0x7F) << shift, shift + 7, at + 1
    return value | message[at] << shift, at + 1


def _float(data: bytes) -> float:
    value: float = struct.unpack("<f", data)[0]
    return value
