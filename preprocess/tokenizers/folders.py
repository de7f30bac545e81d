"""Save a tokenizer to a folder, and load one from a file or folder, outside of builds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import write_durable
from preprocess.tokenizers import KIND_BY_SUFFIX
from preprocess.tokenizers.interface import Tokenizer, read_tokenizer_file

# A folder is searched for these, in this order. A folder downloaded from Hugging Face may hold
# several of them.
FILE_PATTERNS = ("sentencepiece.model", "tokenizer.json", "*.model", "*.tiktoken", "alphabet.txt")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files of `tokenizer` into `folder`, which is created if necessary.

    Each file is written completely or not at all. Raises MisuseError for `byte`, which has no
    files, and if `folder` holds another tokenizer.
    """
    if not tokenizer.files:
        raise MisuseError(f"the {tokenizer.kind} tokenizer has no files to save; use it by its name instead")
    check_no_other_tokenizer(folder, tokenizer.files.keys())
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in tokenizer.files.items():
        write_durable(folder / name, data)


def check_no_other_tokenizer(folder: Path, names: Iterable[str]) -> None:
    """Raise MisuseError if `folder` holds a tokenizer's file that is not one of `names`."""
    for pattern in FILE_PATTERNS:
        if others := sorted({p.name for p in folder.glob(pattern)} - set(names)):
            raise MisuseError(f"{folder} already holds another tokenizer, {others[0]}; choose another folder")


def load_from_path(path: Path, *, has_eot: bool = True) -> Tokenizer:
    """Load the tokenizer in the file or folder `path`.

    `has_eot` says whether a `char` tokenizer gets an end-of-text id. Raises MisuseError like
    `find_tokenizer_file`, and FolioError if the file cannot be read.
    """
    kind, file = find_tokenizer_file(path)
    if kind == "sentencepiece":
        from preprocess.tokenizers import sentencepiece_bpe

        return sentencepiece_bpe.load(file)
    if kind == "huggingface":
        from preprocess.tokenizers import huggingface

        return huggingface.load(file)
    try:
        if kind == "char":
            from preprocess.tokenizers import characters

            return characters.CharTokenizer(read_tokenizer_file(file).decode("utf-8"), has_eot=has_eot)
        from preprocess.tokenizers import tiktoken_bpe

        return tiktoken_bpe.from_rank_file(file.stem, read_tokenizer_file(file))
    except ValueError as e:
        raise FolioError(f"{file} cannot be read ({e}); pass a file that Folio wrote, under its original name") from e


def find_tokenizer_file(path: Path) -> tuple[str, Path]:
    """Return the kind and the file of the tokenizer at `path`, a file or folder.

    The kind follows from the file's name. In a folder, the first of FILE_PATTERNS that matches a
    file is used. Raises MisuseError if there is no tokenizer at `path`, or if two files match that
    pattern.
    """
    file = _find_only_file(path) if path.is_dir() else path
    if not file.is_file():
        problem = "is not a regular file" if file.exists() else "does not exist"
        raise MisuseError(f"{file} {problem}; pass a tokenizer's file, or the folder that holds it")
    if file.suffix not in KIND_BY_SUFFIX:
        raise MisuseError(
            f"{file} is not named like a tokenizer's file; pass one whose name ends in {', '.join(KIND_BY_SUFFIX)}"
        )
    kind = KIND_BY_SUFFIX[file.suffix]
    return "gpt2" if file.name == "gpt2.tiktoken" else kind, file


def _find_only_file(folder: Path) -> Path:
    for pattern in FILE_PATTERNS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise MisuseError(f"{folder} holds both {found[0].name} and {found[1].name}; pass the path of one file")
        if found:
            return found[0]
    raise MisuseError(f"{folder} holds no tokenizer, expected one of {', '.join(FILE_PATTERNS)}; pass another folder")
