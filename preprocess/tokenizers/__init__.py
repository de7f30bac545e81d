"""Load a tokenizer by its name, from a file or folder, or from a build.

A recipe names its tokenizer with one string:

- an encoding of tiktoken: `gpt2`, `cl100k_base`, `o200k_base`, …;
- `byte`: one id per byte;
- `sentencepiece` or `char`: trained on the corpus during the build;
- a path: the file or folder of an existing tokenizer, such as `./tokenizer.json`.

Each kind has its module. A module, and the library it needs, is imported only when it is used.
"""

from __future__ import annotations

import os
from pathlib import Path

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.schema import suggest
from preprocess.shards.files import JsonObject, sha256_bytes
from preprocess.shards.format import TOKENIZER_DIR
from preprocess.shards.manifest import Manifest, TokenizerEntry
from preprocess.shards.manifest_file import ADVICE, read_verified
from preprocess.tokenizers.interface import Tokenizer

TRAINED_KINDS = ("sentencepiece", "char")  # a build with one of these names trains its tokenizer
KIND_BY_SUFFIX = {".model": "sentencepiece", ".json": "huggingface", ".tiktoken": "tiktoken", ".txt": "char"}


def load_tokenizer_by_name(name: str, *, has_eot: bool = True) -> Tokenizer:
    """Load a tokenizer that needs no training: a tiktoken encoding, `byte`, or a file or folder.

    `has_eot` says whether `byte` and `char` tokenizers get an end-of-text id. Raises MisuseError if
    `name` is unknown or must be trained first, and FolioError if a file is unavailable or invalid.
    """
    kind = find_tokenizer_kind(name)
    if is_tokenizer_path(name):
        from preprocess.tokenizers import folders

        return folders.load_from_path(Path(name), has_eot=has_eot)
    if kind in TRAINED_KINDS:
        raise MisuseError(
            f"the {name} tokenizer must be trained on a corpus first, and no corpus was given; "
            "pass the path of a trained one"
        )
    if kind == "byte":
        from preprocess.tokenizers import characters

        return characters.ByteTokenizer(has_eot=has_eot)
    from preprocess.tokenizers import tiktoken_bpe

    return tiktoken_bpe.load(name)


def find_tokenizer_kind(name: str) -> str:
    """Return the kind of the tokenizer `name`.

    The kind is gpt2, tiktoken, sentencepiece, huggingface, char or byte. The kind of a file follows
    from its name; no file is read. Raises MisuseError for an unknown name (the message suggests a
    similar one) and for a path without a tokenizer.
    """
    if is_tokenizer_path(name):
        from preprocess.tokenizers import folders

        return folders.find_tokenizer_file(Path(name))[0]
    if name in ("gpt2", "byte", *TRAINED_KINDS):
        return name
    from preprocess.tokenizers import tiktoken_bpe

    if name in tiktoken_bpe.list_encodings():
        return "tiktoken"
    suggestion = f"did you mean ./{name}?" if Path(name).exists() else suggest(name, list_tokenizers())
    raise MisuseError(f"unknown tokenizer {name!r}; pass a file by its path, such as ./tokenizer.json; {suggestion}")


def list_tokenizers() -> list[str]:
    """Return all names that a recipe accepts for its tokenizer, sorted; paths are not included."""
    from preprocess.tokenizers import tiktoken_bpe

    return sorted({*tiktoken_bpe.list_encodings(), "byte", *TRAINED_KINDS})


def is_tokenizer_path(name: str) -> bool:
    """Return whether `name` is a path rather than the name of a tokenizer.

    It is a path if it contains a path separator, is `.` or `..`, or has the suffix of a tokenizer
    file. The file system is not accessed, so a file called `gpt2` in the working directory does not
    replace the encoding of that name.
    """
    return "/" in name or os.sep in name or name in (".", "..") or name.endswith(tuple(KIND_BY_SUFFIX))


def load_tokenizer(folder: Path, manifest: Manifest, *, advice: str = ADVICE) -> Tokenizer:
    """Load the tokenizer that is stored with the build in `folder`. No network is needed.

    Raises FolioError if a file is missing, differs from the manifest's hash or cannot be read, or
    if the tokenizer has another number of ids than the manifest says. `advice` is the last part of
    the message: what the user should do.
    """
    tokenizer = load_stored_tokenizer(folder, manifest.tokenizer, has_eot=manifest.eot_id is not None, advice=advice)
    num_control = len({i for i in manifest.special_tokens.values() if i >= tokenizer.vocab_size})
    if tokenizer.vocab_size + num_control != manifest.vocab_size:
        raise FolioError(
            f"the {manifest.tokenizer.kind} tokenizer in {folder / TOKENIZER_DIR} has {tokenizer.vocab_size:,} ids, "
            f"expected {manifest.vocab_size - num_control:,}; {advice}"
        )
    return tokenizer


def load_stored_tokenizer(folder: Path, entry: TokenizerEntry, *, has_eot: bool, advice: str = ADVICE) -> Tokenizer:
    """Load the tokenizer that `entry` describes from the subfolder TOKENIZER_DIR of `folder`.

    `has_eot` says whether a `byte` or `char` tokenizer has an end-of-text id. Raises FolioError if
    a file is missing, differs from the hash in `entry` or cannot be read. `advice` is the last part
    of the message: what the user should do.
    """
    files = {
        name: read_verified(folder / TOKENIZER_DIR / name, sha256, advice=advice)
        for name, sha256 in entry.files.items()
    }
    try:
        return _from_files(entry.kind, files, entry.settings, has_eot=has_eot)
    except KeyError as e:
        raise FolioError(f"the {entry.kind} tokenizer in {folder / TOKENIZER_DIR} lacks {e!s:.80}; {advice}") from e
    except (ValueError, RuntimeError) as e:
        raise FolioError(
            f"the {entry.kind} tokenizer in {folder / TOKENIZER_DIR} cannot be read ({e!s:.200}); {advice}"
        ) from e


def make_tokenizer_entry(tokenizer: Tokenizer) -> TokenizerEntry:
    """Return the entry `tokenizer` of a manifest, from which `load_tokenizer` loads it again."""
    hashes = {name: sha256_bytes(data) for name, data in tokenizer.files.items()}
    return TokenizerEntry(kind=tokenizer.kind, files=hashes, settings=tokenizer.settings)


def _from_files(kind: str, files: dict[str, bytes], settings: JsonObject, *, has_eot: bool) -> Tokenizer:
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
        f"the tokenizer of this build is of kind {kind!r}, but this version of Folio knows only "
        "gpt2, tiktoken, sentencepiece, huggingface, char and byte; install a newer Folio"
    )
