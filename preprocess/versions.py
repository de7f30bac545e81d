"""TODO."""

from __future__ import annotations

import importlib.metadata
import platform
import unicodedata

from preprocess import __version__

# Libraries that touch a build's bytes, by tokenizer.
LIBRARIES = ("numpy", "pyarrow", "xxhash", "orjson", "ftfy")
TOKENIZER_LIBRARIES = {
    "gpt2": ("tiktoken", "gigatoken"), "tiktoken": ("tiktoken", "gigatoken"), "sentencepiece": ("sentencepiece", "gigatoken"),
    "huggingface": ("tokenizers", "gigatoken"),
}  # fmt: skip


def made_with(tokenizer: str) -> dict[str, str]:
    """Versions of Folio, Python, its Unicode tables and the libraries that touch bytes."""
    names = (*LIBRARIES, *TOKENIZER_LIBRARIES.get(tokenizer, ()))
    versions = {"folio": __version__, "python": platform.python_version(), "unicode": unicodedata.unidata_version}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
