"""GPT-2's vocabulary in the formats that the baselines read, made offline from the two files that tiktoken caches."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
CACHE_VARIABLE = "TIKTOKEN_CACHE_DIR"


@dataclass(frozen=True)
class Vocabulary:
    """The files of GPT-2's vocabulary."""

    rank_file: Path  # tiktoken's text format, for gigatoken
    tokenizer_json: Path  # for Hugging Face's tokenizers


def default_cache() -> Path:
    """Return the folder of tiktoken's files: tiktoken's cache if TIKTOKEN_CACHE_DIR is set, else Folio's."""
    folio_cache = Path(os.environ.get("FOLIO_CACHE") or Path.home() / ".cache" / "folio")
    return Path(os.environ.get(CACHE_VARIABLE) or folio_cache / "tiktoken")


def find_cached(cache: Path, name: str) -> Path:
    """Return the path of GPT-2's file `name` in `cache`, or exit if it is missing.

    tiktoken names a file in its cache by the SHA-1 of its URL.
    """
    path = cache / hashlib.sha1((URL + name).encode()).hexdigest()
    if not path.exists():
        sys.exit(
            f"GPT-2's {name} is not in {cache}; run `preprocess build --corpus synthetic --tokenizer gpt2` to fill "
            "Folio's cache"
        )
    return path


def write_vocabulary(cache: Path, folder: Path) -> Vocabulary:
    """Write both formats to `folder`, and make tiktoken use `cache` here and in child processes."""
    os.environ[CACHE_VARIABLE] = str(cache)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary(folder / "gpt2.tiktoken", folder / "tokenizer.json")
    merges_file, ids_file = find_cached(cache, "vocab.bpe"), find_cached(cache, "encoder.json")
    _write_ranks(vocabulary.rank_file, merges_file, ids_file)
    _write_tokenizer_json(vocabulary.tokenizer_json, merges_file, ids_file)
    return vocabulary


def _write_ranks(path: Path, merges_file: Path, ids_file: Path) -> None:
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    ranks = data_gym_to_mergeable_bpe_ranks(str(merges_file), str(ids_file))
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))


def _write_tokenizer_json(path: Path, merges_file: Path, ids_file: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(ids_file), str(merges_file)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(path))
