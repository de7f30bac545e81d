"""The first phase of a build: find the input files, make partitions, and load the tokenizer.

Everything that can be checked without reading a document is checked here, so that a wrong setting
is reported at once and not after hours of work.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from preprocess.build.work_dir import get_work_root
from preprocess.errors import FolioError, format_quantity, shorten
from preprocess.filters.chain import load_recipe_filters
from preprocess.inputs.describe import resolve_format
from preprocess.inputs.find_inputs import Sample, find_input_files, find_sample
from preprocess.inputs.input_files import InputFile
from preprocess.progress import Progress
from preprocess.readers.chat_columns import (
    add_input_column,
    advise_about_chats,
    find_unread_parts,
    recognize_chats,
    resolve_chat_template,
)
from preprocess.readers.input_checks import InputChecker
from preprocess.readers.partitions import Partition, is_one_document, make_partitions
from preprocess.readers.records import MissingColumnError
from preprocess.recipes.schema import Recipe
from preprocess.stages.evaluation_items import find_evaluation_files
from preprocess.tokenizers import find_tokenizer_kind
from preprocess.tokenizers.for_recipe import load_recipe_tokenizer
from preprocess.tokenizers.interface import Tokenizer
from preprocess.versions import collect_versions

# The work directory and the shards together need, per byte of text, 1 byte for ids and up to 0.5
# bytes for tables. A token represents about 4 bytes of text, and its id of 2 bytes is stored twice.
DISK_BYTES_PER_INPUT_BYTE = 1.5
NEAR_DEDUP_BYTES_PER_INPUT_BYTE = 0.75  # 4 bytes for each word; the number of documents is not known yet
TEXT_BYTES_PER_COMPRESSED_BYTE = 4
DISK_BYTES_PER_SYNTHETIC_PAIR = 400


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first document is read."""

    recipe: Recipe
    input_files: list[InputFile]
    partitions: list[Partition]
    tokenizer_kind: str
    tokenizer: Tokenizer | None  # None if it is to be trained on the documents
    num_empty_files: int  # without a document, not even an empty one
    num_files_left_out: int = 0  # of an estimate: remote files that are not copied, and their size
    num_bytes_left_out: int = 0
    evaluation_files: tuple[InputFile, ...] = ()  # with the items of the setting `decontaminate`

    @property
    def formats(self) -> set[str]:
        """The formats of the input files."""
        return {input_file.format for input_file in self.input_files}

    def collect_versions(self) -> dict[str, str]:
        """Return the version of each program and library that affects the bytes of the build, by name."""
        return collect_versions(self.tokenizer_kind, self.formats, self.recipe.filters)

    def source_entries(self) -> list[dict[str, str | int]]:
        """Return the manifest's `sources`."""
        return [input_file.manifest_entry() for input_file in self.input_files]

    @property
    def has_divided_text(self) -> bool:
        """Whether a file that the contiguous split cuts is read by several tasks."""
        spans = (span for partition in self.partitions for span in partition.spans)
        return self.recipe.split == "contiguous" and any(span.stop is not None for span in spans)

    def partition_bytes(self) -> list[int]:
        """Return the approximate number of input bytes of each partition, for the progress bar."""
        return [sum(span.size_bytes for span in partition.spans) for partition in self.partitions]

    def count_input_bytes(self) -> int:
        """Return the size of the input files on the disk."""
        return sum({file.disk.path: file.disk.size_bytes for file in self.input_files}.values())

    def describe_partition(self, number: int) -> str:
        """Return the number and the first file of a partition as text, for error messages."""
        numbers = dict.fromkeys(span.file_number for span in self.partitions[number].spans)
        name = shorten(self.input_files[next(iter(numbers))].name)
        others = f" and {format_quantity(len(numbers) - 1, 'other file')}" if len(numbers) > 1 else ""
        return f"partition {number} ({name}{others})"


def make_plan(recipe: Recipe, source: Path | None, progress: Progress, *, num_threads: int = 1) -> Plan:
    """Return the plan of the build of `recipe`.

    `source`: path of the user's copy of the file of a corpus that has exactly one, or None.
    `num_threads`: for hashing the input files. Raises MisuseError or FolioError if the build cannot
    be made.
    """
    find_tokenizer_kind(recipe.tokenizer)  # raises MisuseError for an unknown one before files are copied
    recipe, evaluation_files = find_evaluation_files(load_recipe_filters(recipe))
    sample = Sample(find_input_files(recipe, source, progress, num_threads=num_threads))
    return _plan(recipe, sample, evaluation_files, progress)


def plan_estimate(recipe: Recipe, source: Path | None, progress: Progress) -> Plan:
    """Return the plan for an estimate, which has only some of the remote files if these are large.

    The files of `inputs` are not hashed. Arguments and errors are those of `make_plan`.
    """
    find_tokenizer_kind(recipe.tokenizer)
    recipe, evaluation_files = find_evaluation_files(load_recipe_filters(recipe))
    return _plan(recipe, find_sample(recipe, source, progress), evaluation_files, progress)


def _plan(recipe: Recipe, sample: Sample, evaluation_files: list[InputFile], progress: Progress) -> Plan:
    tokenizer_kind, input_files = find_tokenizer_kind(recipe.tokenizer), sample.files
    recipe = resolve_chat_template(resolve_format(recipe, input_files))
    try:
        checker, partitions = _check_files(recipe, input_files)
    except MissingColumnError as e:
        recipe, checker, partitions = _check_chats(recipe, input_files, e)
        progress.log(f"reading chats from {recipe.chat_columns} with the chat template {recipe.chat_template}")
        if unread := find_unread_parts(recipe, e.names):
            progress.warn(
                f"the chats are read without {format_quantity(len(unread), 'column')} ({', '.join(unread)}); if a chat "
                "includes them, write them into its messages, or name other columns with --chat-columns"
            )
    if line := advise_about_chats(recipe, input_files, checker.first_columns):
        progress.log(line)
    # The statistics do not count files that have no document.
    num_empty = sum(
        file.path in checker.empty_files or (not file.size_bytes and not is_one_document(file, recipe))
        for file in input_files
    )
    if num_empty:
        have = "has" if len(input_files) == 1 else "have"
        progress.warn(f"{num_empty:,} of {format_quantity(len(input_files), 'input file')} {have} no content")
    recipe, tokenizer, warnings = load_recipe_tokenizer(recipe)
    for line in warnings:
        progress.warn(line)
    return Plan(
        recipe,
        input_files,
        partitions,
        tokenizer_kind,
        tokenizer,
        num_empty,
        sample.num_files_left_out,
        sample.num_bytes_left_out,
        tuple(evaluation_files),
    )


def _check_files(recipe: Recipe, input_files: list[InputFile]) -> tuple[InputChecker, list[Partition]]:
    """Return what the check of the files found, and the partitions.

    Raises MissingColumnError if a table lacks a column, and the errors of `InputChecker.check`.
    """
    checker = InputChecker(input_files, recipe)
    checker.check_all()
    return checker, make_partitions(input_files, recipe)


def _check_chats(
    recipe: Recipe, input_files: list[InputFile], error: MissingColumnError
) -> tuple[Recipe, InputChecker, list[Partition]]:
    """Return the recipe with the chat columns that the files have instead of a text column, and their partitions.

    Raises `error`, which says that the text column is missing, if the files are not chats.
    """
    recipe = recognize_chats(recipe, error)
    try:
        found = _check_files(recipe, input_files)
    except MissingColumnError:
        raise error from None
    with_input = add_input_column(recipe, input_files)
    return (recipe, *found) if with_input == recipe else (with_input, *_check_files(with_input, input_files))


def estimate_disk_bytes(plan: Plan) -> int:
    """Return the approximate number of bytes on the disk that the build needs while it is made."""
    if plan.recipe.format == "synthetic":
        return plan.recipe.num_pairs * DISK_BYTES_PER_SYNTHETIC_PAIR
    num_bytes = 0
    for input_file in plan.input_files:
        is_compressed = input_file.compression or input_file.archive or input_file.format == "parquet"
        num_bytes += input_file.size_bytes * (TEXT_BYTES_PER_COMPRESSED_BYTE if is_compressed else 1)
    factor = DISK_BYTES_PER_INPUT_BYTE + (NEAR_DEDUP_BYTES_PER_INPUT_BYTE if plan.recipe.near_dedup else 0)
    return int(num_bytes * factor)


def check_disk_space(plan: Plan, output_dir: Path) -> None:
    """Raise FolioError if the disk of `output_dir` has less free space than the build may need.

    The space of an interrupted attempt at this build counts as free.
    """
    work_bytes = sum(path.stat().st_size for path in get_work_root(output_dir).rglob("*") if path.is_file())
    needed_bytes = estimate_disk_bytes(plan)
    free_bytes = shutil.disk_usage(output_dir.parent).free + work_bytes
    if needed_bytes > free_bytes:
        raise FolioError(
            f"not enough space on the disk: {output_dir.parent} has {free_bytes:,} bytes free, but this build may need "
            f"about {needed_bytes:,}; free some space, or choose another disk with --output"
        )
