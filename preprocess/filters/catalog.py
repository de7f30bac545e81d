"""The classes of all filters, by name."""

from __future__ import annotations

import functools
import importlib

from preprocess.filters.interface import Filter
from preprocess.recipes.filter_settings import parse_filter

# Module and class of each filter in FILTERS. A module is imported when one of its filters is used.
CLASSES = {
    "gopher_quality": ("preprocess.filters.gopher_quality", "GopherQualityFilter"),
    "gopher_repetition": ("preprocess.filters.gopher_repetition", "GopherRepetitionFilter"),
    "c4": ("preprocess.filters.c4", "C4Filter"),
    "fineweb_quality": ("preprocess.filters.fineweb_quality", "FinewebQualityFilter"),
    "bad_words": ("preprocess.filters.bad_words", "BadWordsFilter"),
    "word_count": ("preprocess.filters.word_count", "WordCountFilter"),
    "language": ("preprocess.filters.language", "LanguageFilter"),
    "classifier": ("preprocess.filters.classifier", "ClassifierFilter"),
    "perplexity": ("preprocess.filters.perplexity", "PerplexityFilter"),
    "pii": ("preprocess.filters.pii", "PiiFilter"),
}


@functools.lru_cache(maxsize=64)
def load_filter(spec: str) -> Filter:
    """Return the filter that `spec` describes. It is cached for the next tasks of this process.

    Raises MisuseError if the spec is invalid, and FolioError if a file that it names cannot be read.
    """
    name, settings = parse_filter(spec)
    module, class_name = CLASSES[name]
    made: Filter = getattr(importlib.import_module(module), class_name)(settings)
    return made
