"""Convert a build's tokenizer to the tokenizer files of a Hugging Face model folder.

`tokenizer.json` describes how text becomes ids, `tokenizer_config.json` the roles of the control
tokens, and `chat_template.jinja` what stands around the turns of a chat. Each kind of tokenizer
becomes a pipeline of the library `tokenizers` that gives the same ids:

- tiktoken's encodings, and `byte`: a byte-level BPE. Every byte is represented by a printable
  character. tiktoken stores only a rank per token, but the library needs the pair that is merged
  into each token, so `recover_merges` computes the pairs. The pattern becomes a Split
  pre-tokenizer.
- `sentencepiece`: a BPE that replaces spaces by U+2581, with byte fallback. The rank of a piece is
  its negative score, and `recover_merges` computes the merges from the ranks.
- `char`: a word-level model, in which every character is a word.
- `huggingface`: the original file, to which the control tokens of the build are added. Only this
  kind needs the library: it checks the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from preprocess.chats.messages import ASSISTANT
from preprocess.chats.templates import find_template, make_jinja
from preprocess.errors import FolioError
from preprocess.shards.files import canonical_json, parse_json, readable_json
from preprocess.shards.manifest import Manifest
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.characters import ByteTokenizer, CharTokenizer
from preprocess.tokenizers.huggingface import (
    JSON_FILE,
    HuggingFaceTokenizer,
    make_byte_level_alphabet,
    strip_extras,
)
from preprocess.tokenizers.huggingface_spec import Spec
from preprocess.tokenizers.interface import Tokenizer
from preprocess.tokenizers.sentencepiece_bpe import MODEL_FILE, SPACE_MARKER, SentencePieceTokenizer
from preprocess.tokenizers.sentencepiece_model import BPE, BYTE, NORMAL, UNUSED, USER_DEFINED, SentencePieceModel
from preprocess.tokenizers.tiktoken_bpe import PRETOKENIZERS, RANK_SUFFIX, TiktokenTokenizer, find_encoding

CONFIG_FILE, CHAT_TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"
PIPELINE_STEPS = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
EMPTY_SPEC = {"version": "1.0", **dict.fromkeys(PIPELINE_STEPS)}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
Token = TypeVar("Token", bytes, str)


def make_huggingface_files(folder: Path, manifest: Manifest, *, model_max_length: int) -> dict[str, bytes]:
    """Return the tokenizer files of a Hugging Face model folder: their contents by file name.

    `folder` is a build, or a run directory with a copy of a build's tokenizer; `manifest` is its
    manifest; `model_max_length` is a number of tokens. With these files,
    `transformers.AutoTokenizer` encodes and decodes as Folio does if the tokenizer is lossless. The
    differences are:

    - A text that contains the name of a control token gets the control token, as users of Hugging
      Face expect. (WikiText contains SentencePiece's `<unk>`.) In Folio text never becomes a
      control token. `split_special_tokens=True` gives Folio's behaviour, except for the kind
      `huggingface`. For a chat, `apply_chat_template(…, sanitize_control_tokens=True)` prevents it.
    - A character that a `char` tokenizer does not know raises the library's error, not Folio's.
    - A model may generate SentencePiece byte pieces that are not valid UTF-8 together, which no
      text encodes to. Each of their bytes then becomes U+FFFD.
    - Names of control tokens are decoded as byte-level text if their characters allow it:
      `<author_José>` loses its é, `<author_Пушкин>` is unchanged. Their ids are correct, and so is
      encoding.

    No bos token is put before a text, because Folio inserts control tokens by id. If the build has a
    chat template, `apply_chat_template` gives the ids that the build of a chat has before its
    end-of-text token, except authors, cities and years.

    Raises ShardError if a file differs from the manifest, and FolioError if a tokenizer.json cannot
    express the tokenizer.
    """
    tokenizer = load_tokenizer(folder, manifest)
    name_of = {i: name for name, i in manifest.special_tokens.items()}
    roles = {
        "bos_token": manifest.bos_id,
        "eos_token": manifest.eot_id,
        "pad_token": manifest.pad_id,
        "unk_token": manifest.unk_id,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        **{role: name_of[i] for role, i in roles.items() if i in name_of},
    }
    if isinstance(tokenizer, HuggingFaceTokenizer):
        spec = _add_control_tokens(tokenizer, manifest.special_tokens)
    else:
        added = [_make_added_token(name, i) for i, name in sorted(name_of.items())]
        spec = EMPTY_SPEC | _convert(tokenizer) | {"added_tokens": added}
        # Fill the gaps in the vocabulary: libraries use the number of tokens as the next free id,
        # or as the number of rows of an embedding. Unicode will never assign U+10FFFF.
        vocab = spec["model"]["vocab"]
        unused_ids = set(range(manifest.vocab_size)).difference(vocab.values())
        vocab |= {name_of.get(i, f"\U0010ffff{i}"): i for i in unused_ids}
    files = {JSON_FILE: canonical_json(spec), CONFIG_FILE: readable_json(config)}
    if template := find_template(manifest):
        bos_id = manifest.bos_id if manifest.recipe.get("bos") is True else None
        jinja = make_jinja(template, "" if bos_id is None else name_of.get(bos_id, ""))
        files[CHAT_TEMPLATE_FILE] = jinja.encode()
    return files


def find_template_name(manifest: Manifest) -> str | None:
    """Return the name of the chat template in the files, or None if they have none."""
    template = find_template(manifest)
    return template.name if template else None


def list_end_ids(manifest: Manifest) -> list[int]:
    """Return the ids at which generation ends: of the end of text, and of the end of a reply in a chat."""
    template = find_template(manifest)
    end_of_reply = manifest.special_tokens.get(template.turns[ASSISTANT].end) if template else None
    return list(dict.fromkeys(i for i in (manifest.eot_id, end_of_reply) if i is not None))


def recover_merges(ranks: Mapping[Token, float]) -> Iterator[tuple[Token, Token]]:
    """Yield the pair of tokens that is merged into each token, in the order of the ranks.

    `ranks` (token → rank) belongs to an encoder that always merges the two neighbours whose
    concatenation has the lowest rank. When such an encoder makes a token, all merges of lower rank
    inside the token have been made, and no merge has crossed its ends. If two parts remain before
    the last merge, they are the only pair that ever makes the token. In trained ranks two always
    remain. If more remain, a part with a higher rank may make the token, so all pairs are yielded.

    Idea: `recover_merges` of Karpathy's minbpe, after tiktoken's issue 60.
    """
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _merge_below(token, rank, ranks)
        pairs = [(parts[0], parts[1])] if len(parts) == 2 else [(token[:i], token[i:]) for i in range(1, len(token))]
        yield from ((a, b) for a, b in pairs if a in ranks and b in ranks)


def _merge_below(token: Token, max_rank: float, ranks: Mapping[Token, float]) -> list[Token]:
    """Return the parts of `token` after all merges with a rank below `max_rank`.

    At least two parts remain, unless `token` is a single character or byte.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pair_ranks = [ranks.get(a + b, max_rank) for a, b in pairwise(parts)]
        lowest = min(pair_ranks)
        if lowest >= max_rank:
            break
        i = pair_ranks.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _convert(tokenizer: Tokenizer) -> Spec:
    if isinstance(tokenizer, TiktokenTokenizer):
        return _convert_tiktoken(tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _convert_sentencepiece(tokenizer)
    if isinstance(tokenizer, ByteTokenizer):
        return _make_byte_level({bytes([b]): b for b in range(256)}, BYTE_LEVEL)
    if isinstance(tokenizer, CharTokenizer):
        return _convert_char(tokenizer)
    raise FolioError(
        f"a tokenizer of kind {tokenizer.kind!r} cannot be written as a {JSON_FILE}; install a newer Folio"
    )


def _make_added_token(name: str, i: int) -> Spec:
    return {
        "id": i,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _add_control_tokens(tokenizer: HuggingFaceTokenizer, special_tokens: dict[str, int]) -> Spec:
    """Return the tokenizer's original file with the control tokens of the build added."""
    spec = strip_extras(parse_json(tokenizer.files[JSON_FILE]))
    added = {token["content"]: token for token in spec.get("added_tokens") or []}
    for name, i in special_tokens.items():
        added[name] = {**_make_added_token(name, i), **added.get(name, {}), "normalized": False, "special": True}
    spec["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    try:
        HuggingFaceTokenizer(canonical_json(spec))  # the library must give every added token its id
    except ValueError as e:
        raise FolioError(
            f"the {JSON_FILE} of this build cannot hold its control tokens ({e}); build with another tokenizer"
        ) from e
    return spec


def _convert_tiktoken(tokenizer: TiktokenTokenizer) -> Spec:
    [name] = (file.removesuffix(RANK_SUFFIX) for file in tokenizer.files)
    if PRETOKENIZERS.get(name) in ("gpt2", "r50k"):  # the library has this pattern built in
        pre_tokenizer = {**BYTE_LEVEL, "use_regex": True}
    else:
        split = _make_split(_adapt_pattern(find_encoding(name).pattern))
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}
    spec = _make_byte_level(tokenizer.ranks, pre_tokenizer)
    spec["model"]["ignore_merges"] = True  # tiktoken looks for the whole word among the ranks before it merges
    return spec


def _adapt_pattern(pattern: str) -> str:
    r"""Rewrite a pattern of tiktoken for Oniguruma, the library's regular expression engine.

    Oniguruma reads the possessive `{1,3}+` as a repetition of `{1,3}`, and `$` as the end of any
    line. These patterns match the same text without possessive quantifiers, because the part of the
    pattern after such a quantifier never matches a character that the quantifier matches.
    """
    return re.sub(r"(?<=[+*?])\+|(?<=\d})\+", "", pattern).replace("$", r"\z")


def _make_byte_level(ranks: Mapping[bytes, int], pre_tokenizer: Spec) -> Spec:
    character_of = {b: c for c, b in make_byte_level_alphabet().items()}

    def to_characters(token: bytes) -> str:
        return "".join([character_of[b] for b in token])

    vocab = {to_characters(token): i for token, i in ranks.items()}
    merges = [[to_characters(a), to_characters(b)] for a, b in recover_merges(ranks)]
    return {
        "pre_tokenizer": pre_tokenizer,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _make_split(regex: str) -> Spec:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _convert_char(tokenizer: CharTokenizer) -> Spec:
    """Return a word-level model of single characters.

    Its unknown token is not in the vocabulary, so the library raises an error for an unknown
    character.
    """
    vocab = {data.decode(): i for i, data in enumerate(tokenizer.id_to_bytes) if data}
    return {
        "pre_tokenizer": _make_split(r"[\s\S]"),
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": ""},
    }


def _convert_sentencepiece(tokenizer: SentencePieceTokenizer) -> Spec:
    """Return a BPE model with the pieces and scores of the ModelProto.

    Raises FolioError for a model with a feature that a tokenizer.json cannot express.
    """
    model = SentencePieceModel(tokenizer.files[MODEL_FILE])
    pieces, trainer, normalizer = model.read_pieces(), model.trainer, model.normalizer
    ranks = {piece.text.decode(): -piece.score for piece in pieces if piece.type == NORMAL}
    _check_convertible(model, types={piece.type for piece in pieces}, has_ties=len(set(ranks.values())) < len(ranks))
    mark_spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARKER}
    restore_spaces = {"type": "Replace", "pattern": {"String": SPACE_MARKER}, "content": " "}
    prefix = [{"type": "Prepend", "prepend": SPACE_MARKER}] if normalizer.get(3, True) else []  # add_dummy_prefix
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, mark_spaces]},
        "decoder": {"type": "Sequence", "decoders": [restore_spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "vocab": {piece.text.decode(): i for i, piece in enumerate(pieces) if piece.type in (NORMAL, BYTE)},
            "merges": list(recover_merges(ranks)),
            "byte_fallback": bool(trainer.get(35)),
            "unk_token": next((name for name, i in tokenizer.special_tokens.items() if i == tokenizer.unk_id), None),
            "fuse_unk": True,
        },
    }


def _check_convertible(model: SentencePieceModel, *, types: set[int], has_ties: bool) -> None:
    trainer, normalizer = model.trainer, model.normalizer
    problems = {
        "is not a BPE model": trainer.get(3) != BPE,
        "puts a space after the text": trainer.get(24),  # treat_whitespace_as_suffix
        "normalizes text": model.charsmap,
        "removes white space": normalizer.get(4, True),  # remove_extra_whitespaces
        "does not mark spaces by U+2581": not normalizer.get(5, True),  # escape_whitespaces
        "has user-defined or unused pieces": types & {USER_DEFINED, UNUSED},
        "gives two pieces the same score": has_ties,
    }
    if found := [problem for problem, is_present in problems.items() if is_present]:
        raise FolioError(
            f"this SentencePiece model {found[0]}, which a {JSON_FILE} cannot express exactly; "
            "build with a model that Folio trains (--tokenizer sentencepiece)"
        )
