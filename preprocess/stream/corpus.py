"""What a stream reads, opened but not read: files found and not hashed, the tokenizer, and ids for the control tokens.

A build may look at all documents before it decides; a stream meets each once. What that rules out is refused here, or told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.find_inputs import find_input_files
from preprocess.inputs.input_files import InputFile, settle_format
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import STRADDLING, Recipe, may_straddle
from preprocess.shards import format as shard_format
from preprocess.shards.files import canonical_json, readable_json, sha256_bytes, write_durable
from preprocess.shards.format import CONTROL_FIELDS, MANIFEST, SPLITS, TOKENIZER_DIR, format_control_token
from preprocess.tokenizers import TRAINED, describe_tokenizer, is_path, load_named
from preprocess.tokenizers.interface import Tokenizer
from preprocess.versions import made_with

Tell = Callable[[str], None]


@dataclass(frozen=True)
class StreamCorpus:
    """A corpus as streams read it; any number of them may share one."""

    recipe: Recipe  # as a stream can follow it
    sources: tuple[InputFile, ...]
    tokenizer: Tokenizer
    control_ids: dict[str, int]  # spelling → id, behind the tokenizer's own
    tell: Tell

    def __reduce__(self) -> NoReturn:
        """Its engines are compiled: pickle would stumble over one of their modules, and say no more than that."""
        raise MisuseError(
            "an open corpus cannot be sent to another process; send its recipe, and open the stream there"
        )

    @property
    def name(self) -> str:
        return self.recipe.corpus

    @property
    def vocab_size(self) -> int:
        """How many ids there are, control tokens among them."""
        return self.tokenizer.vocab_size + len(self.control_ids)

    @property
    def dtype(self) -> np.dtype:
        """Of the blocks: uint16 where every id fits, else uint32."""
        return np.dtype(shard_format.token_dtype(self.vocab_size))

    @property
    def sha256(self) -> str:
        """Of all that decides the tokens and is known without reading: the recipe, the files' names and sizes, the tokenizer."""
        return sha256_bytes(
            canonical_json([self.recipe.resolved(), self._entries(), describe_tokenizer(self.tokenizer)])
        )

    def manifest(self) -> dict[str, Any]:
        """A build's manifest with no shards: what `load_tokenizer`, sampling and exporting want to know of a vocabulary."""
        tokenizer = self.tokenizer
        empty = {"tokens": 0, "documents": 0, "text_bytes": 0, "shards": []}
        return shard_format.seal(
            {
                "format": shard_format.FORMAT,
                "version": shard_format.VERSION,
                "name": self.name,
                "dtype": shard_format.token_dtype(self.vocab_size),
                "vocab_size": self.vocab_size,
                "bos_id": tokenizer.bos_id,
                "eot_id": tokenizer.eot_id,
                "pad_id": tokenizer.pad_id,
                "unk_id": tokenizer.unk_id,
                "special_tokens": {**tokenizer.special_tokens, **self.control_ids},
                "tokenizer": describe_tokenizer(tokenizer),
                "splits": dict.fromkeys(SPLITS, empty),
                "recipe": self.recipe.resolved(),
                "sources": self._entries(),
                "languages": {},
                "stats_sha256": "",
                "made_with": made_with(tokenizer.kind),
            }
        )

    def save_vocabulary(self, folder: Path) -> None:
        """Write the manifest and the tokenizer's files into `folder`, where `read_manifest` and `load_tokenizer` find them."""
        (folder / TOKENIZER_DIR).mkdir(parents=True, exist_ok=True)
        for name, data in self.tokenizer.files.items():
            write_durable(folder / TOKENIZER_DIR / name, data)
        write_durable(folder / MANIFEST, readable_json(self.manifest()))

    def _entries(self) -> list[dict[str, Any]]:
        return [{"name": source.name, "bytes": source.size_bytes} for source in self.sources]


def open_corpus(
    corpus: Recipe | str | Path | None, *, tell: Tell | None = None, use_reference: bool = False, **overrides: Any
) -> StreamCorpus:
    """The corpus `corpus`, ready to be streamed: a Recipe, the name of a built-in one, the path of a TOML file, or None for `inputs` alone.

    `overrides`: settings of the recipe. `tell`: takes one line for whatever somebody should hear of, by default a warning on stderr.
    `use_reference`: encode with the reference library even where there is a faster one.
    Raises MisuseError for what a stream cannot do, FolioError where a file cannot be had. Inputs are listed, not read.
    """
    tell = tell or Progress(quiet=True).warn
    recipe = load_recipe(str(corpus) if isinstance(corpus, Path) else corpus, **overrides)
    _reject_trained(recipe)
    where = f"{corpus}: " if isinstance(corpus, str | Path) and "inputs" not in overrides else ""
    sources = find_input_files(recipe, None, _Telling(tell), is_hashed=False, asked_by=f"{where}inputs")
    recipe, notes = as_streamed(settle_format(recipe, sources))
    tokenizer = load_named(recipe.tokenizer, has_eot=recipe.eot == "append")
    if is_path(recipe.tokenizer):
        recipe = dataclasses.replace(recipe, tokenizer_sha256=sha256_bytes(b"".join(tokenizer.files.values())))
    if tokenizer.loss is not None:
        notes.append(f"the tokenizer does not give every text back as it was: {tokenizer.loss}")
    if not use_reference and (why := tokenizer.start_fast_backend()):
        notes.append(f"{why}; the reference library encodes this stream")
    for note in notes:
        tell(note)
    return StreamCorpus(recipe, tuple(sources), tokenizer, _control_ids(recipe, sources, tokenizer), tell)


class _Telling(Progress):
    """Of which only warnings are heard, by `tell`."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(quiet=True)
        self._tell = tell

    def warn(self, line: str) -> None:
        self._tell(line)


def _reject_trained(recipe: Recipe) -> None:
    if recipe.tokenizer in TRAINED:
        raise MisuseError(
            f"the {recipe.tokenizer} tokenizer is trained on a corpus, which a stream reads only once; train it with `preprocess tokenizer "
            "train` and name its folder as the tokenizer, or name gpt2 or byte"
        )


def as_streamed(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """`recipe` without what takes a look at all documents first, and a line for each difference.

    Raises MisuseError for control tokens whose number only all documents tell: every id of the vocabulary must be known beforehand.
    """
    if recipe.authors:
        names = [f"{field}_column" for field in CONTROL_FIELDS if getattr(recipe, f"{field}_column") is not None]
        if names or recipe.format == "synthetic":
            what = (
                f"{names[0]} is {getattr(recipe, names[0])!r}"
                if names
                else f"{recipe.corpus} is generated with authors"
            )
            raise MisuseError(
                f"{what}, and a stream knows the control tokens only of what the recipe or the files' names say; pass --no-authors "
                "(authors = false), or build the corpus"
            )
    changes: dict[str, Any] = {}
    notes = []
    if recipe.dedup:
        changes["dedup"] = False
        notes.append("a stream cannot remember every document: equal ones are not taken out (dedup = false says so)")
    if may_straddle(dataclasses.replace(recipe, dedup=False)):
        notes.append(STRADDLING)
    if recipe.split == "exact":
        changes["split"] = "threshold"
        notes.append(
            "a stream cannot count the documents first: the split is by threshold, not exact (split = 'threshold' says so)"
        )
    if recipe.max_documents is not None:
        notes.append(
            f"a stream cannot draw documents by rank: max_documents takes the first {recipe.max_documents:,} of both sides"
        )
    return dataclasses.replace(recipe, **changes), notes


def _control_ids(recipe: Recipe, sources: list[InputFile], tokenizer: Tokenizer) -> dict[str, int]:
    """Ids behind the tokenizer's for what recipe and files' names say of documents, in the order in which the files are read.

    A build numbers alike, but leaves out files of which it keeps no document. Raises FolioError where two are spelled alike.
    """
    found: dict[tuple[str, str | int], str] = {}
    for source in sources if recipe.authors else ():
        for field in CONTROL_FIELDS:
            value = source.metadata.get(field, getattr(recipe, field))
            if value is not None:
                found.setdefault((field, value), format_control_token(field, value))
    ids: dict[str, int] = {}
    for spelling in found.values():
        if spelling in ids or spelling in tokenizer.special_tokens:
            raise FolioError(f"two control tokens would be spelled {spelling!r}; rename one of the two in the source")
        ids[spelling] = tokenizer.vocab_size + len(ids)
    return ids
