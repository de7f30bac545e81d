"""gpt2, sentencepiece, char, byte: load, encode a batch, decode, train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError
from preprocess.recipe import Recipe
from preprocess.tokenizers.interface import Tokenizer


def make_tokenizer(recipe: Recipe, train_texts: Iterator[str], all_texts: Iterator[str]) -> Tokenizer:
    """The tokenizer that `recipe` asks for, trained where it is one that is trained.

    `train_texts`: the training documents, which are all that SentencePiece sees. `all_texts`: both sides, for `char`,
    whose alphabet is that of the whole corpus.
    """
    if recipe.tokenizer == "gpt2":
        from preprocess.tokenizers import gpt2

        return gpt2.load()
    if recipe.tokenizer == "sentencepiece":
        from preprocess.tokenizers import sentencepiece_bpe

        return sentencepiece_bpe.train(train_texts, num_pieces=recipe.num_pieces)
    from preprocess.tokenizers import characters

    has_eot = recipe.eot == "append"
    return characters.train_char(all_texts, has_eot=has_eot) if recipe.tokenizer == "char" else characters.ByteTokenizer(has_eot=has_eot)


def load_tokenizer(folder: Path, manifest: dict[str, Any]) -> Tokenizer:
    """The tokenizer stored with the build in `folder`; needs no network. Raises FolioError where a file does not match."""
    from preprocess.shards.format import TOKENIZER_DIR, read_vouched

    expected = manifest["tokenizer"]["files"]
    files = {name: read_vouched(folder / TOKENIZER_DIR / name, sha256) for name, sha256 in expected.items()}
    kind = manifest["tokenizer"]["kind"]
    try:
        return _from_files(kind, files, has_eot=manifest["eot_id"] is not None)
    except (ValueError, KeyError, RuntimeError) as e:
        raise FolioError(
            f"the {kind} tokenizer in {folder / TOKENIZER_DIR} cannot be read ({e}); copy the build again or rebuild it"
        ) from e


def _from_files(kind: str, files: dict[str, bytes], *, has_eot: bool) -> Tokenizer:
    if kind == "gpt2":
        from preprocess.tokenizers import gpt2

        return gpt2.Gpt2Tokenizer(files[gpt2.RANK_FILE])
    if kind == "sentencepiece":
        from preprocess.tokenizers import sentencepiece_bpe

        return sentencepiece_bpe.SentencePieceTokenizer(files[sentencepiece_bpe.MODEL_FILE])
    from preprocess.tokenizers import characters

    if kind == "char":
        return characters.CharTokenizer(files[characters.ALPHABET_FILE].decode("utf-8"), has_eot=has_eot)
    if kind == "byte":
        return characters.ByteTokenizer(has_eot=has_eot)
    raise FolioError(
        f"this build's tokenizer is of kind {kind!r}, this Folio knows gpt2, sentencepiece, char and byte; install a newer one"
    )
