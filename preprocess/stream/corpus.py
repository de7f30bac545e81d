"""The corpus of a stream: its recipe, its files, its tokenizer, and the ids of its control tokens.

A build reads all documents before it decides which to keep; a stream reads each document once. So a
stream cannot deduplicate, split by exact count, train a tokenizer, or number control tokens that it
has not read yet. `open_corpus` changes such settings and logs a line for each, or rejects them if a
change would alter the vocabulary. The files of `inputs` are listed, but neither read nor hashed, and
remote ones are not copied yet. Those of a built-in corpus with `files` are downloaded if necessary,
and hashed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from preprocess.chats.templates import number_chat_tokens
from preprocess.errors import MisuseError
from preprocess.filters.chain import load_recipe_filters
from preprocess.inputs.describe import resolve_format
from preprocess.inputs.find_inputs import find_stream_files
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.remote.on_demand import FilesOnDemand
from preprocess.progress import Progress
from preprocess.readers.chat_columns import resolve_chat_template
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import DUPLICATES_SPLIT_WARNING, Recipe, can_split_duplicates, has_validation
from preprocess.shards import format as shard_format
from preprocess.shards.control_tokens import ControlTokenIds
from preprocess.shards.files import canonical_json, readable_json, sha256_bytes, write_durable
from preprocess.shards.format import CONTROL_FIELDS, MANIFEST, TOKENIZER_DIR
from preprocess.shards.manifest import SPLITS, Manifest, drop_origins, parse_manifest
from preprocess.shards.manifest_file import FORMAT, VERSION
from preprocess.stages.decontaminate import Decontaminator
from preprocess.stages.evaluation_items import find_evaluation_files, make_decontaminator
from preprocess.tokenizers import TRAINED_KINDS, make_tokenizer_entry
from preprocess.tokenizers.for_recipe import load_recipe_tokenizer
from preprocess.tokenizers.interface import Tokenizer
from preprocess.versions import collect_versions

Log = Callable[[str], None]


@dataclass(frozen=True)
class StreamCorpus:
    """An open corpus. Several streams may share it."""

    recipe: Recipe  # with the changes that a stream needs
    input_files: tuple[InputFile, ...]
    on_demand: FilesOnDemand  # the remote ones among the files
    tokenizer: Tokenizer
    control_ids: dict[str, int]  # control token -> id, after the tokenizer's ids
    log: Log
    decontaminator: Decontaminator | None = None

    def __reduce__(self) -> NoReturn:
        """Reject pickling with advice: pickle would fail at a compiled object of the tokenizer."""
        raise MisuseError(
            "an open corpus cannot be sent to another process; send its recipe, and open the stream there"
        )

    @property
    def name(self) -> str:
        return self.recipe.corpus

    @property
    def has_validation(self) -> bool:
        """Whether some documents are for validation."""
        return has_validation(self.recipe)

    @property
    def vocab_size(self) -> int:
        """The number of ids, control tokens included."""
        return self.tokenizer.vocab_size + len(self.control_ids)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the blocks: uint16 if every id fits, else uint32."""
        return np.dtype(shard_format.token_dtype(self.vocab_size))

    @property
    def sha256(self) -> str:
        """The SHA-256 of what determines the tokens and is known without reading the files.

        That is the recipe, the names and sizes of the files, and the tokenizer.
        """
        sources = drop_origins(self._source_entries())
        return sha256_bytes(
            canonical_json([self.recipe.resolved(), sources, asdict(make_tokenizer_entry(self.tokenizer))])
        )

    @property
    def times_sha256(self) -> str:
        """The hash of the modification times or, of remote files, versions when the corpus was opened."""
        return sha256_bytes(
            canonical_json([file.origin.version if file.origin else file.disk.mtime_ns for file in self.input_files])
        )

    def manifest(self) -> Manifest:
        """Return the manifest of a build with this vocabulary and without shards.

        `load_tokenizer`, sampling and exporting read the vocabulary from it.
        """
        tokenizer = self.tokenizer
        empty_split = {"tokens": 0, "documents": 0, "text_bytes": 0, "shards": []}
        fields = shard_format.seal(
            {
                "format": FORMAT,
                "version": VERSION,
                "name": self.name,
                "dtype": shard_format.token_dtype(self.vocab_size),
                "vocab_size": self.vocab_size,
                "bos_id": tokenizer.bos_id,
                "eot_id": tokenizer.eot_id,
                "pad_id": tokenizer.pad_id,
                "unk_id": tokenizer.unk_id,
                "special_tokens": {**tokenizer.special_tokens, **self.control_ids},
                "tokenizer": asdict(make_tokenizer_entry(tokenizer)),
                "splits": dict.fromkeys(SPLITS, empty_split),
                "recipe": self.recipe.resolved(),
                "sources": self._source_entries(),
                "languages": {},
                "stats_sha256": "",
                "made_with": collect_versions(
                    tokenizer.kind, {file.format for file in self.input_files}, self.recipe.filters
                ),
            }
        )
        return parse_manifest(fields)

    def save_vocabulary(self, folder: Path) -> None:
        """Write the manifest and the tokenizer's files to `folder`, for `read_manifest` and `load_tokenizer`."""
        (folder / TOKENIZER_DIR).mkdir(parents=True, exist_ok=True)
        for name, data in self.tokenizer.files.items():
            write_durable(folder / TOKENIZER_DIR / name, data)
        write_durable(folder / MANIFEST, readable_json(self.manifest().as_dict()))

    def _source_entries(self) -> list[dict[str, str | int]]:
        return [{"name": file.name, "bytes": file.size_bytes, **file.origin_entry()} for file in self.input_files]


def open_corpus(
    corpus: Recipe | str | Path | None, *, log: Log | None = None, use_reference: bool = False, **overrides: Any
) -> StreamCorpus:
    """Return the corpus of a recipe, ready to be streamed. The files of `inputs` are not read.

    `corpus` is a Recipe, the name of a built-in corpus, the path of a TOML file, or None if the
    corpus consists of the files of `inputs` only. `overrides` replace settings of the recipe. `log`
    is called with each line that a user should see; by default the line is printed to stderr as a
    warning. With `use_reference`, the reference backend is used even if there is a fast one. Raises
    MisuseError for settings that are invalid or that a stream does not support, and FolioError if
    an input file or the tokenizer cannot be obtained.
    """
    log = log or Progress(quiet=True).warn
    recipe = load_recipe_filters(load_recipe(str(corpus) if isinstance(corpus, Path) else corpus, **overrides))
    _reject_trained_tokenizer(recipe)
    recipe, evaluation_files = find_evaluation_files(recipe)
    prefix = f"{corpus}: " if isinstance(corpus, str | Path) and "inputs" not in overrides else ""
    input_files, on_demand = find_stream_files(recipe, _WarningsToLog(log), f"{prefix}inputs")
    recipe, notes = adapt_recipe(resolve_chat_template(resolve_format(recipe, input_files)))
    recipe, tokenizer, warnings = load_recipe_tokenizer(recipe)
    assert tokenizer is not None  # a recipe that trains one was rejected
    notes += warnings
    if not use_reference and (reason := tokenizer.start_fast_backend()):
        notes.append(f"{reason}; the reference library encodes this stream")
    for note in notes:
        log(note)
    control_ids = _number_control_tokens(recipe, input_files, tokenizer)
    decontaminator = make_decontaminator(recipe, evaluation_files)
    return StreamCorpus(recipe, tuple(input_files), on_demand, tokenizer, control_ids, log, decontaminator)


class _WarningsToLog(Progress):
    """A Progress that forwards warnings to `log` and drops everything else."""

    def __init__(self, log: Log) -> None:
        super().__init__(quiet=True)
        self._forward = log

    def warn(self, line: str) -> None:
        self._forward(line)


def _reject_trained_tokenizer(recipe: Recipe) -> None:
    if recipe.tokenizer in TRAINED_KINDS:
        raise MisuseError(
            f"the {recipe.tokenizer} tokenizer is trained on a corpus, which a stream reads only once; train it with "
            "`preprocess tokenizer train` and name its folder as the tokenizer, or name gpt2 or byte"
        )


def adapt_recipe(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return `recipe` without settings that require all documents, and a line for each change.

    Raises MisuseError if the recipe takes control tokens from a column: every id of the vocabulary
    must be known before the first block.
    """
    _reject_unknown_control_tokens(recipe)
    changes: dict[str, Any] = {}
    notes = []
    if recipe.dedup:
        changes["dedup"] = False
        notes.append("a stream cannot remember every document: duplicates are kept (set dedup = false to confirm)")
    if recipe.near_dedup:
        raise MisuseError("a stream cannot find nearly equal documents; leave near_dedup out, or make a build")
    if recipe.dedup_lines:
        raise MisuseError("a stream cannot find repeated lines; leave dedup_lines out, or make a build")
    if recipe.decontaminate and recipe.decontaminate_policy == "report":
        raise MisuseError(
            "a stream writes no report about evaluation items; set decontaminate_policy to 'drop', or make a build"
        )
    if can_split_duplicates(dataclasses.replace(recipe, dedup=False)):
        notes.append(DUPLICATES_SPLIT_WARNING)
    if recipe.split == "exact":
        changes["split"] = "threshold"
        notes.append(
            "a stream cannot count the documents first: the split is by threshold, not exact "
            "(set split = 'threshold' to confirm)"
        )
    if recipe.max_documents is not None:
        notes.append(
            "a stream cannot draw documents at random from the whole corpus: max_documents keeps the first "
            f"{recipe.max_documents:,}, both splits together"
        )
    return dataclasses.replace(recipe, **changes), notes


def _reject_unknown_control_tokens(recipe: Recipe) -> None:
    if not recipe.authors:
        return
    columns = {f"{field}_column": getattr(recipe, f"{field}_column") for field in CONTROL_FIELDS}
    found = [f"{setting} is {column!r}" for setting, column in columns.items() if column is not None]
    if recipe.format == "synthetic":
        found.append(f"{recipe.corpus} is generated with authors")
    if found:
        raise MisuseError(
            f"{found[0]}, but a stream must know all control tokens before it reads documents, from the recipe or the "
            "names of the files; pass --no-authors (authors = false), or build the corpus"
        )


def _number_control_tokens(recipe: Recipe, input_files: list[InputFile], tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids, by token, of the control tokens that the recipe and the file names define.

    They are numbered in the order in which the files are read. A build has the same ids if it keeps
    a document of every file.
    """
    chat_tokens = number_chat_tokens(recipe.chat_template, tokenizer.special_tokens, tokenizer.vocab_size)
    control = ControlTokenIds(tokenizer.vocab_size, tokenizer.special_tokens, chat_tokens)
    for file in input_files if recipe.authors else ():
        for field in CONTROL_FIELDS:
            value = file.metadata.get(field, getattr(recipe, field))
            if value is not None:
                control.assign(field, value)
    return control.by_token
