"""What is to be built, from which files, in which partitions, and whether there is room for it."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.build.work_dir import work_root
from preprocess.errors import FolioError
from preprocess.inputs.find_inputs import find_input_files
from preprocess.inputs.input_files import InputFile, settle_format
from preprocess.progress import Progress
from preprocess.readers import check_input_file
from preprocess.readers.partitions import Partition, cut
from preprocess.recipes.schema import STRADDLING, Recipe, may_straddle
from preprocess.shards.files import sha256_bytes
from preprocess.tokenizers import TRAINED, is_path, load_named, tokenizer_kind
from preprocess.tokenizers.interface import Tokenizer

# Work and shards together, in bytes for a byte of input: ids of two bytes, at four bytes of text each, twice, and tables.
DISK_PER_INPUT_BYTE = 1.5
COMPRESSED = 4  # how much text a compressed file may hold for each of its bytes
SYNTHETIC_BYTES_PER_PAIR = 400


@dataclass(frozen=True)
class Plan:
    """All that is known before the first document is read."""

    recipe: Recipe
    sources: list[InputFile]
    partitions: list[Partition]
    tokenizer_kind: str
    tokenizer: Tokenizer | None  # where it needs no training

    def entries(self) -> list[dict[str, Any]]:
        """The manifest's `sources`."""
        return [source.entry() for source in self.sources]

    def partition_bytes(self) -> list[int]:
        """About how many bytes of input each partition is, for the bar."""
        return [sum(span.size_bytes for span in p.spans) for p in self.partitions]


def make_plan(recipe: Recipe, source: Path | None, progress: Progress, *, num_threads: int = 1) -> Plan:
    """The inputs found, vouched for and cut; the tokenizer loaded. `num_threads`: to hash in. Raises MisuseError or FolioError."""
    kind = tokenizer_kind(recipe.tokenizer)
    sources = find_input_files(recipe, source, progress, num_threads=num_threads)
    recipe = settle_format(recipe, sources)
    if may_straddle(recipe):
        progress.warn(STRADDLING)
    for entry in sources:
        check_input_file(entry, recipe)
    tokenizer = None if recipe.tokenizer in TRAINED else load_named(recipe.tokenizer, has_eot=recipe.eot == "append")
    if tokenizer is not None and tokenizer.loss is not None:
        progress.warn(f"the tokenizer does not give every text back as it was: {tokenizer.loss}")
    if is_path(recipe.tokenizer) and tokenizer is not None:
        recipe = dataclasses.replace(recipe, tokenizer_sha256=sha256_bytes(b"".join(tokenizer.files.values())))
    return Plan(recipe, sources, cut(sources, recipe), kind, tokenizer)


def estimated_disk_bytes(plan: Plan) -> int:
    """About how much disk the build needs while it is made."""
    if plan.recipe.format == "synthetic":
        return plan.recipe.num_pairs * SYNTHETIC_BYTES_PER_PAIR
    sizes = (s.size_bytes * (COMPRESSED if s.compression or s.format == "parquet" else 1) for s in plan.sources)
    return int(sum(sizes) * DISK_PER_INPUT_BYTE)


def check_space(plan: Plan, folder: Path) -> None:
    """Raise FolioError where the disk has visibly too little room for the build `folder`; what work on it holds already counts as free."""
    done = sum(path.stat().st_size for path in work_root(folder).rglob("*") if path.is_file())
    needed, free = estimated_disk_bytes(plan), shutil.disk_usage(folder.parent).free + done
    if needed > free:
        raise FolioError(
            f"no space left on the disk: {folder.parent} has {free:,} bytes free, this build may need about {needed:,}; free some, or "
            "choose another disk with --output"
        )
