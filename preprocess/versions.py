"""The versions that a build depends on.

A recipe and its input files decide the bytes of a build, but so do the libraries: another version
of ftfy may clean a text differently. The manifest therefore records their versions as `made_with`,
and the work of an interrupted build is continued only by the same versions.
"""

from __future__ import annotations

import importlib.metadata
import platform
import unicodedata
from collections.abc import Iterable

from preprocess import __version__

PROGRAMS = {"folio": __version__, "python": platform.python_version(), "unicode": unicodedata.unidata_version}
LIBRARIES = ("numpy", "pyarrow", "xxhash", "orjson", "ftfy")
LIBRARIES_OF_TOKENIZER = {
    "gpt2": ("tiktoken", "gigatoken"),
    "tiktoken": ("tiktoken", "gigatoken"),
    "sentencepiece": ("sentencepiece", "gigatoken"),
    "huggingface": ("tokenizers", "gigatoken"),
}


LIBRARIES_OF_FORMAT = {"html": ("resiliparse",), "warc": ("resiliparse", "fastwarc")}
LIBRARIES_OF_FILTER = {"language": ("py3langid",), "perplexity": ("torch",)}


def collect_versions(tokenizer_kind: str, formats: Iterable[str] = (), filters: Iterable[str] = ()) -> dict[str, str]:
    """Return the version of each program and library that affects the bytes of a build, by name.

    `tokenizer_kind` selects the tokenizer libraries, `formats`, of the input files, those of readers
    that only some builds need, and `filters`, of the recipe, those of filters. The version of a
    library that is not installed is "absent".
    """
    of_formats = sorted({name for format_ in formats for name in LIBRARIES_OF_FORMAT.get(format_, ())})
    used = {spec.partition(":")[0] for spec in filters}
    of_filters = sorted({name for filter_ in used for name in LIBRARIES_OF_FILTER.get(filter_, ())})
    of_tokenizer = LIBRARIES_OF_TOKENIZER.get(tokenizer_kind, ())
    names = (*PROGRAMS, *LIBRARIES, *of_tokenizer, *of_formats, *of_filters)
    return {name: find_version(name) for name in names}


def find_version(name: str) -> str:
    """Return the version of one of PROGRAMS or of a library, "absent" if it is not installed."""
    if name in PROGRAMS:
        return PROGRAMS[name]
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
