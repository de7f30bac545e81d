"""What is to be built, from which files, in which partitions, and whether there is room for it."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.download import find_file
from preprocess.errors import FolioError, MisuseError
from preprocess.partitions import Partition, cut
from preprocess.progress import Progress
from preprocess.readers import check_source
from preprocess.recipe import Recipe, refuse_without_effect
from preprocess.shards.files import sha256_bytes
from preprocess.sources import OPTION, Source, describe_sources, find_inputs
from preprocess.synthetic import VOCABULARY_FILE, vocabulary_file
from preprocess.tokenizers import TRAINED, is_path, load_named, tokenizer_kind
from preprocess.tokenizers.interface import Tokenizer
from preprocess.work import work_root

# Work and shards together, in bytes for a byte of input: ids of two bytes, at four bytes of text each, twice, and tables.
DISK_PER_INPUT_BYTE = 1.5
COMPRESSED = 4  # how much text a compressed file may hold for each of its bytes
SYNTHETIC_BYTES_PER_PAIR = 400
UNHASHED = "none"  # in place of a sha256
STRADDLING = "without deduplication equal documents of different groups may fall on both sides of the split"


@dataclass(frozen=True)
class Plan:
    """All that is known before the first document is read."""

    recipe: Recipe
    sources: list[Source]
    partitions: list[Partition]
    tokenizer_kind: str
    tokenizer: Tokenizer | None  # where it needs no training

    def entries(self) -> list[dict[str, Any]]:
        """The manifest's `sources`."""
        return [source.entry() for source in self.sources]

    def partition_bytes(self) -> list[int]:
        """About how many bytes of input each partition is, for the bar."""
        return [sum(piece.size_bytes for piece in p.pieces) for p in self.partitions]


def make_plan(recipe: Recipe, source: Path | None, progress: Progress, *, num_threads: int = 1) -> Plan:
    """The inputs found, vouched for and cut; the tokenizer loaded. `num_threads`: to hash in. Raises MisuseError or FolioError."""
    kind = tokenizer_kind(recipe.tokenizer)
    sources = find_sources(recipe, source, progress, num_threads=num_threads)
    recipe = settle_format(recipe, sources)
    if may_straddle(recipe):
        progress.warn(STRADDLING)
    for entry in sources:
        check_source(entry, recipe)
    tokenizer = None if recipe.tokenizer in TRAINED else load_named(recipe.tokenizer, has_eot=recipe.eot == "append")
    if tokenizer is not None and tokenizer.loss is not None:
        progress.warn(f"the tokenizer does not give every text back as it was: {tokenizer.loss}")
    if is_path(recipe.tokenizer) and tokenizer is not None:
        recipe = dataclasses.replace(recipe, tokenizer_sha256=sha256_bytes(b"".join(tokenizer.files.values())))
    return Plan(recipe, sources, cut(sources, recipe), kind, tokenizer)


def may_straddle(recipe: Recipe) -> bool:
    """Whether equal documents may fall on both sides of the split."""
    return not recipe.dedup and recipe.split in ("exact", "threshold") and (recipe.group_by != "content" or recipe.group_column is not None)


def settle_format(recipe: Recipe, sources: list[Source]) -> Recipe:
    """`recipe` with the one format of all `sources`, where they share one. Raises MisuseError for settings that do not go with theirs."""
    formats = {s.format for s in sources}
    if recipe.split == "contiguous" and formats - {"text"}:
        raise MisuseError(f"split is 'contiguous', which cuts text files, and {sources[0].path} is {sources[0].format}; wanted 'exact'")
    if recipe.format == "auto" and len(formats) == 1:
        # Known now, so that settings of other formats do not tell apart builds that are alike.
        recipe = dataclasses.replace(recipe, format=formats.pop())
        refuse_without_effect(recipe)
    elif "text" in formats and (recipe.where or recipe.template):
        text = next(s.path for s in sources if s.format == "text")
        raise MisuseError(f"where and template are for tables, and {text} is text; leave it out, or build it by itself")
    return recipe


def find_sources(
    recipe: Recipe, source: Path | None, progress: Progress, *, num_threads: int = 1, is_hashed: bool = True, asked_by: str = OPTION
) -> list[Source]:
    """The files that `recipe` names, found. `is_hashed`: whether those of `inputs` are read for their sha256, or have UNHASHED for it.

    `asked_by`: where `inputs` stand, as a message says it.
    """
    if source is not None and recipe.inputs:
        raise MisuseError("--source is a copy of the corpus' own file, --input names other files; leave one of them out")
    if source is not None and len(recipe.files) != 1:
        raise MisuseError(f"--source stands for one file, {recipe.corpus} has {len(recipe.files)}; leave it out")
    if recipe.format == "synthetic":
        if recipe.inputs:
            raise MisuseError(f"{asked_by} {recipe.inputs[0]}: {recipe.corpus} is generated and reads no file; leave it out")
        vocabulary = vocabulary_file()
        return [Source(0, VOCABULARY_FILE, "", "synthetic", "", len(vocabulary), 0, sha256_bytes(vocabulary), {})]
    if recipe.inputs:
        progress.say(f"reading the names and checksums of {', '.join(recipe.inputs)[:200]}")
        named, left_out = find_inputs(recipe.inputs, asked_by)
        if left_out:
            kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in left_out)
            shown = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common(6))
            progress.warn(f"{len(left_out):,} files were passed over, whose names tell no format: {shown}")
        vouched = {} if is_hashed else dict.fromkeys((name for name, _ in named), UNHASHED)
        return describe_sources(named, recipe, vouched, num_threads=num_threads)
    if not recipe.files:
        where = f"the Parquet files of {recipe.hub}" if recipe.hub else "its files"
        if asked_by == OPTION:
            raise MisuseError(f"{recipe.corpus} is not fetched by itself; pass --input with {where}, for example --input 'data/*.parquet'")
        file = f"a copy of preprocess/recipes/{recipe.corpus}.toml" if recipe.hub else "a recipe file"
        raise MisuseError(
            f"{recipe.corpus} names no files to read; in {file} write inputs = ['data/*.parquet'] with {where}, in Python pass "
            "inputs=('data/*.parquet',)"
        )
    paths = [find_file(recipe.corpus, file, source=source, progress=progress) for file in recipe.files]
    vouched = {file.name: file.sha256 for file in recipe.files}
    return describe_sources(
        [(file.name, path) for file, path in zip(recipe.files, paths, strict=True)], recipe, vouched, num_threads=num_threads
    )


def estimated_disk_bytes(plan: Plan) -> int:
    """About how much disk the build needs while it is made."""
    if plan.recipe.format == "synthetic":
        return plan.recipe.num_pairs * SYNTHETIC_BYTES_PER_PAIR
    sizes = (s.size_bytes * (COMPRESSED if s.compression or s.format == "parquet" else 1) for s in plan.sources)
    return int(sum(sizes) * DISK_PER_INPUT_BYTE)


def require_space(plan: Plan, folder: Path) -> None:
    """Raise FolioError where the disk has visibly too little room for the build `folder`; what work on it holds already counts as free."""
    done = sum(path.stat().st_size for path in work_root(folder).rglob("*") if path.is_file())
    needed, free = estimated_disk_bytes(plan), shutil.disk_usage(folder.parent).free + done
    if needed > free:
        raise FolioError(
            f"no space left on the disk: {folder.parent} has {free:,} bytes free, this build may need about {needed:,}; free some, or "
            "choose another disk with --output"
        )
