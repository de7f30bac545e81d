"""Read and write nanoGPT's format: one file of uint16 token ids per split.

nanoGPT maps `train.bin` and `val.bin` into memory and reads windows at random offsets. The files
have no header: the tokens of all shards are concatenated, and only the end-of-text ids mark the
boundaries between documents.

nanoGPT's train.py and sample.py read the vocabulary of a character-level model from a file
`meta.pkl`, so a build with the `char` tokenizer gets one. Without this file, they assume GPT-2's
vocabulary. The file is a pickle because nanoGPT reads nothing else; Folio itself never reads a
pickle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from pickle import dumps

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.read_tokens import iter_ids, split_at_eot
from preprocess.exchange.tokens import iter_tokens
from preprocess.inputs.token_files import TokenBatch, TokenFile, TokenIds, TokenNames
from preprocess.shards.format import SPLITS, Build
from preprocess.tokenizers import load_tokenizer

VOCABULARY_FILE = "meta.pkl"
NAMES = TokenNames(".bin")
MIN_CLEAR_IDS = 256  # of these, every second one is practically never 0 by chance


def export_nanogpt(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write a build in nanoGPT's format to the folder `output`, and return the paths of the files.

    The files are `train.bin` and `val.bin`, with the token ids as little-endian uint16, and
    `meta.pkl` for a build with the `char` tokenizer. Raises MisuseError if the ids need more than
    16 bits, if the folder has a `meta.pkl` that this build must not have, or like `prepare_output`,
    and FolioError if the build is damaged.
    """
    if build.dtype != np.dtype("<u2"):
        raise MisuseError(
            f"{build.name} has {build.vocab_size:,} ids, but nanoGPT reads uint16; "
            "rebuild with a vocabulary of at most 65,536"
        )
    token_paths = [output / f"{split}.bin" for split in SPLITS]
    vocabulary_path = output / VOCABULARY_FILE
    with build.reading():
        vocabulary = _make_vocabulary(build) if build.manifest.tokenizer.kind == "char" else None
    if vocabulary is None and vocabulary_path.exists():
        raise MisuseError(
            f"{vocabulary_path} exists, and nanoGPT would use it as the vocabulary of {build.name}; "
            "delete it, or choose another --output"
        )
    paths = [*token_paths, *([] if vocabulary is None else [vocabulary_path])]
    prepare_output(output, paths, replace=replace)
    with write_together() as new, build.reading():
        for split, path in zip(SPLITS, token_paths, strict=True):
            with new.open(path) as file:
                for tokens in iter_tokens(build, split):
                    file.write(tokens.data)
        if vocabulary is not None:
            with new.open(vocabulary_path) as file:
                file.write(vocabulary)
    return paths


def _make_vocabulary(build: Build) -> bytes:
    """Return the content of `meta.pkl`: the dict of nanoGPT's data/shakespeare_char/prepare.py.

    Its keys are `vocab_size`, `itos` (id -> character) and `stoi` (character -> id). The id of a
    control token has the token as its text, such as `<|endoftext|>`. The pickle, of protocol 0,
    contains only dicts, strings and integers, and no instruction that loads or calls a class.
    """
    alphabet = load_tokenizer(build.folder, build.manifest).id_to_bytes
    itos = {i: text.decode() for i, text in enumerate(alphabet)}
    itos |= {i: token for token, i in build.manifest.special_tokens.items()}
    itos = dict(sorted(itos.items()))
    return dumps(
        {"vocab_size": build.vocab_size, "itos": itos, "stoi": {text: i for i, text in itos.items()}}, protocol=0
    )


def read_nanogpt(files: list[TokenFile], ids: TokenIds) -> Iterator[TokenBatch]:
    """Yield the documents of files of uint16. A document ends with the end-of-text id or at the end of a file.

    A file `meta.pkl` is not read. Raises MisuseError if the ids of the tokenizer need more than 16 bits,
    and FolioError if a file is damaged or a document is too long.
    """
    if ids.vocab_size > 1 << 16:
        raise MisuseError(
            f"the tokenizer has {ids.vocab_size:,} ids, but nanoGPT's files have uint16; choose the tokenizer with "
            "which the files were written"
        )
    for file in files:
        yield from split_at_eot(_iter_checked_ids(file), ids.eot_id)


def _iter_checked_ids(file: TokenFile) -> Iterator[tuple[TokenFile, np.ndarray]]:
    """Yield the file and its ids in parts. Raises FolioError if they are those of a wider dtype.

    The file does not say its dtype. Read as uint16, ids of 32 or 64 bits have zeros after each of them.
    """
    for part in iter_ids(file, "<u2"):
        if len(part) >= MIN_CLEAR_IDS and not part[1::2].any() and part.any():
            num_bits = 32 if part[2::4].any() else 64
            raise FolioError(
                f"every second id of {file.path} is 0, so it seems to have ids of {num_bits} bits, expected uint16; "
                f"convert it: numpy.fromfile(FILE, 'uint{num_bits}').astype('uint16').tofile(OTHER)"
            )
        yield file, part
