"""A tokenizer on its own, outside a build: a folder with its files, or a file that comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import write_durable
from preprocess.tokenizers.interface import Tokenizer, read_bounded

# What a folder is searched for, in this order; one of Hugging Face's may hold several.
PATTERNS = ("sentencepiece.model", "tokenizer.json", "*.model", "*.tiktoken", "alphabet.txt")
KIND_OF_SUFFIX = {".model": "sentencepiece", ".json": "huggingface", ".tiktoken": "tiktoken", ".txt": "char"}


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files of `tokenizer` into `folder`, made where it is missing, each whole or not there.

    Raises MisuseError for `byte`, which has none, and where the folder has another tokenizer's.
    """
    if not tokenizer.files:
        raise MisuseError(f"the {tokenizer.kind} tokenizer has no files to save; name it where it is wanted")
    check_no_other(folder, tokenizer.files.keys())
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in tokenizer.files.items():
        write_durable(folder / name, data)


def check_no_other(folder: Path, names: Iterable[str]) -> None:
    """Raise MisuseError where `folder` has a tokenizer's files of other names than these."""
    for pattern in PATTERNS:
        if others := sorted({p.name for p in folder.glob(pattern)} - set(names)):
            raise MisuseError(f"{folder} already has the tokenizer {others[0]}; name another folder for this one")


def load_folder(path: Path, *, has_eot: bool = True) -> Tokenizer:
    """The tokenizer in the file or folder `path`; `has_eot`: whether an alphabet gets an end-of-text id.

    Raises MisuseError where there is none or no single one, FolioError where its file cannot be read.
    """
    kind, file = find_tokenizer(path)
    if kind == "sentencepiece":
        from preprocess.tokenizers import sentencepiece_bpe

        return sentencepiece_bpe.load(file)
    if kind == "huggingface":
        from preprocess.tokenizers import huggingface

        return huggingface.load(file)
    try:
        if kind == "char":
            from preprocess.tokenizers import characters

            return characters.CharTokenizer(read_bounded(file).decode("utf-8"), has_eot=has_eot)
        from preprocess.tokenizers import tiktoken_bpe

        return tiktoken_bpe.from_rank_file(file.stem, read_bounded(file))
    except ValueError as e:
        raise FolioError(f"{file} cannot be read ({e}); wanted a file that Folio wrote, under its own name") from e


def find_tokenizer(path: Path) -> tuple[str, Path]:
    """Kind and file of the tokenizer at `path`, by names alone. Raises MisuseError."""
    file = _only_file(path) if path.is_dir() else path
    if not file.is_file():
        raise MisuseError(f"{file} is not there; name a tokenizer's file, or the folder that holds it")
    if file.suffix not in KIND_OF_SUFFIX:
        raise MisuseError(
            f"{file} is no tokenizer's file by its name, wanted one that ends in {', '.join(KIND_OF_SUFFIX)}"
        )
    kind = KIND_OF_SUFFIX[file.suffix]
    return "gpt2" if file.name == "gpt2.tiktoken" else kind, file


def _only_file(folder: Path) -> Path:
    for pattern in PATTERNS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise MisuseError(f"{folder} has {found[0].name} and {found[1].name}; name the one that is meant")
        if found:
            return found[0]
    raise MisuseError(f"{folder} holds no tokenizer, wanted one of {', '.join(PATTERNS)}; name another folder")
