"""Every tokenizer by its name: load, encode a batch, decode, train.

Named are: gpt2 and tiktoken's other encodings; sentencepiece and char, which are trained; byte; and files, by path.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.schema import nearest
from preprocess.shards.files import sha256_bytes
from preprocess.tokenizers.interface import Tokenizer

TRAINED = ("sentencepiece", "char")  # named without a file, these are trained on the corpus


def load_named(name: str, *, has_eot: bool = True) -> Tokenizer:
    """A tokenizer that needs no training: an encoding of tiktoken's, `byte`, or the path of a tokenizer's file or folder.

    `has_eot`: whether `byte` and `char` have an end-of-text id. Raises MisuseError for what is none of these, FolioError
    where a file cannot be had or read.
    """
    kind = tokenizer_kind(name)
    if is_path(name):
        from preprocess.tokenizers import folders

        return folders.load_folder(Path(name), has_eot=has_eot)
    if kind in TRAINED:
        raise MisuseError(
            f"the {name} tokenizer is trained on a corpus and was asked for without one; name the file of a trained one"
        )
    if kind == "byte":
        from preprocess.tokenizers import characters

        return characters.ByteTokenizer(has_eot=has_eot)
    from preprocess.tokenizers import tiktoken_bpe

    return tiktoken_bpe.load(name)


def tokenizer_kind(name: str) -> str:
    """gpt2, tiktoken, sentencepiece, huggingface, char or byte: the kind of what `name` names, nothing of it read.

    Raises MisuseError with the nearest known name, or with what a folder lacks.
    """
    if is_path(name):
        from preprocess.tokenizers import folders

        return folders.find_tokenizer(Path(name))[0]
    if name in ("gpt2", "byte", *TRAINED):
        return name
    from preprocess.tokenizers import tiktoken_bpe

    if name in tiktoken_bpe.encoding_names():
        return "tiktoken"
    instead = f"did you mean ./{name}?" if Path(name).exists() else nearest(name, tokenizer_names())
    raise MisuseError(
        f"no tokenizer is called {name!r}; a file is named by its path, such as ./tokenizer.json; {instead}"
    )


def tokenizer_names() -> list[str]:
    """Every tokenizer that has a name, sorted."""
    from preprocess.tokenizers import tiktoken_bpe

    return sorted({*tiktoken_bpe.encoding_names(), "byte", *TRAINED})


def is_path(name: str) -> bool:
    """A value with a separator or a tokenizer file's suffix is a path; so that a file here hides no name, no other is."""
    return (
        "/" in name or os.sep in name or name in (".", "..") or name.endswith((".json", ".model", ".tiktoken", ".txt"))
    )


def load_tokenizer(folder: Path, manifest: dict[str, Any]) -> Tokenizer:
    """The tokenizer stored with the build in `folder`; needs no network. Raises FolioError where a file does not match."""
    from preprocess.shards.format import TOKENIZER_DIR, read_vouched

    stored = manifest["tokenizer"]
    files = {name: read_vouched(folder / TOKENIZER_DIR / name, sha256) for name, sha256 in stored["files"].items()}
    try:
        return _from_files(stored["kind"], files, stored["settings"], has_eot=manifest["eot_id"] is not None)
    except (ValueError, KeyError, RuntimeError) as e:
        raise FolioError(
            f"the {stored['kind']} tokenizer in {folder / TOKENIZER_DIR} cannot be read ({e}); copy the build again or rebuild it"
        ) from e


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer` of a manifest, from which and its files `load_tokenizer` makes it again."""
    hashes = {name: sha256_bytes(data) for name, data in tokenizer.files.items()}
    return {"kind": tokenizer.kind, "files": hashes, "settings": tokenizer.settings}


def _from_files(kind: str, files: dict[str, bytes], settings: dict[str, Any], *, has_eot: bool) -> Tokenizer:
    if kind in ("gpt2", "tiktoken"):
        from preprocess.tokenizers import tiktoken_bpe

        name = "gpt2" if kind == "gpt2" else str(settings["encoding"])
        return tiktoken_bpe.from_rank_file(name, files[name + tiktoken_bpe.RANK_SUFFIX])
    if kind == "sentencepiece":
        from preprocess.tokenizers import sentencepiece_bpe

        return sentencepiece_bpe.SentencePieceTokenizer(files[sentencepiece_bpe.MODEL_FILE])
    if kind == "huggingface":
        from preprocess.tokenizers import huggingface

        return huggingface.HuggingFaceTokenizer(files[huggingface.JSON_FILE])
    from preprocess.tokenizers import characters

    if kind == "char":
        return characters.CharTokenizer(files[characters.ALPHABET_FILE].decode("utf-8"), has_eot=has_eot)
    if kind == "byte":
        return characters.ByteTokenizer(has_eot=has_eot)
    raise FolioError(
        f"this build's tokenizer is of kind {kind!r}, this Folio knows gpt2, tiktoken, sentencepiece, huggingface, char and byte; "
        "install a newer one"
    )
