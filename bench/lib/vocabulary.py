"""GPT-2's vocabulary in the forms that the peers want, made offline from the two files that tiktoken caches."""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
VARIABLE = "TIKTOKEN_CACHE_DIR"


@dataclass(frozen=True)
class Vocabulary:
    rank_file: Path  # tiktoken's own text format, for gigatoken
    tokenizer_json: Path  # for Hugging Face's tokenizers


def default_cache() -> Path:
    """Where tiktoken's files are: its own cache folder, else the one that Folio fills."""
    folio = Path(os.environ.get("FOLIO_CACHE") or Path.home() / ".cache" / "folio")
    return Path(os.environ.get(VARIABLE) or folio / "tiktoken")


def cached(cache: Path, name: str) -> Path:
    """tiktoken names a file in its cache by the SHA-1 of its URL."""
    path = cache / hashlib.sha1((URL + name).encode()).hexdigest()
    if not path.exists():
        sys.exit(
            f"{name} of GPT-2 is not in {cache}; `preprocess build --corpus synthetic --tokenizer gpt2` fills Folio's cache"
        )
    return path


def write_vocabulary(cache: Path, folder: Path) -> Vocabulary:
    """Writes both forms into `folder`, and points tiktoken, here and in processes to come, at `cache`."""
    os.environ[VARIABLE] = str(cache)
    folder.mkdir(parents=True, exist_ok=True)
    forms = Vocabulary(folder / "gpt2.tiktoken", folder / "tokenizer.json")
    _write_ranks(forms.rank_file, cached(cache, "vocab.bpe"), cached(cache, "encoder.json"))
    _write_tokenizer_json(forms.tokenizer_json, cached(cache, "vocab.bpe"), cached(cache, "encoder.json"))
    return forms


def _write_ranks(path: Path, merges: Path, vocabulary: Path) -> None:
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    ranks = data_gym_to_mergeable_bpe_ranks(str(merges), str(vocabulary))
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))


def _write_tokenizer_json(path: Path, merges: Path, vocabulary: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(path))
