"""Make a build, from the recipe to the published directory, in these phases:

    plan             find the input files, divide them into partitions, load the tokenizer
    prepare          read, clean, hash and encode the documents of each partition (parallel)
    dedup_and_split  drop duplicates, and assign each remaining document to train or val
    shard_layout     compute the shard and the offset of every document
    write_shards     copy the documents to their offsets (parallel)
    publish          write statistics and manifest, and rename the directory to its final name

If the tokenizer is trained on the documents, `prepare` does not encode them. After
`dedup_and_split` the phases train_tokenizer and encode (parallel) follow.

Everything is made in a hidden work directory beside the build (work_dir.py). A build that fails or
is killed therefore never looks finished, and the next attempt does not repeat the finished tasks.
If the fast encoding backend fails or is wrong, all phases are repeated with the reference backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from preprocess.build.build_log import BuildLog
from preprocess.build.contamination import write_index
from preprocess.build.contiguous import set_boundaries
from preprocess.build.dedup_and_split import dedup_and_split
from preprocess.build.engines.interface import Engine, StartEngine, Task, WorkerDied, Workload
from preprocess.build.engines.local import start_local_engine
from preprocess.build.metadata import BuildContents, write_metadata, write_tokenizer
from preprocess.build.plan import Plan, check_disk_space, make_plan
from preprocess.build.prepare import TaskContext, count_lines, count_partition, encode_partition, prepare_partition
from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.publish import is_already_built, lock_build, publish
from preprocess.build.receipts import (
    CountReceipt,
    EncodeReceipt,
    EncodingReport,
    LinesReceipt,
    PartitionReceipt,
    PrepareReceipt,
)
from preprocess.build.repeated_lines import find_repeated_units
from preprocess.build.shard_layout import ShardLayout, lay_out_shards
from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.stats import list_warnings, sum_counts
from preprocess.build.train_tokenizer import TRAINED_FILE_NAMES, train_tokenizer
from preprocess.build.work_dir import delete_work, get_work_root, open_work_dir
from preprocess.build.write_shards import ShardOutput, write_shards
from preprocess.errors import FolioError, MisuseError, format_quantity
from preprocess.progress import Progress
from preprocess.readers.partitions import Partition
from preprocess.readers.records import format_counts
from preprocess.readers.reject_messages import describe_rejects, explain_no_document
from preprocess.readers.reject_reasons import sum_reasons
from preprocess.recipes.schema import Recipe
from preprocess.shards import format as shard_format
from preprocess.shards.files import canonical_json, restore_replaced_directory, sha256_bytes
from preprocess.shards.format import check_no_build
from preprocess.shards.manifest import ShardEntry, drop_origins
from preprocess.shards.manifest_file import VERSION
from preprocess.stages.encode import BackendMismatch, has_bos
from preprocess.stages.encode_chats import count_ids
from preprocess.tokenizers import TRAINED_KINDS, make_tokenizer_entry
from preprocess.tokenizers.folders import check_no_other_tokenizer, save_tokenizer
from preprocess.tokenizers.interface import Tokenizer

WORK_VERSION = 4  # of the files in the work directory

Receipt = TypeVar("Receipt", bound=PartitionReceipt)


def build(
    recipe: Recipe,
    output_dir: Path,
    *,
    name: str,
    replace: bool,
    progress: Progress,
    source: Path | None = None,
    workers: int = 1,
    start_engine: StartEngine = start_local_engine,
) -> bool:
    """Make the build of `recipe` in `output_dir`. Returns False if it is there already.

    `name` is the name of the build in its manifest. With `replace`, a build that `output_dir`
    contains is replaced. `source` is the path of the user's copy of the file of a corpus that has
    exactly one. `workers` is the maximum number of processes on this machine that work at once.
    `start_engine` returns where tasks run: in these processes, or on a cluster. Raises MisuseError
    or FolioError if the build cannot be made; a build that was in `output_dir` is then unchanged.
    """
    output_dir = output_dir.resolve()  # so that a link and its target share one lock, and a link remains a link
    with lock_build(output_dir):
        restore_replaced_directory(output_dir)
        log = BuildLog()
        with log.phase("plan"), progress.phase("plan"):
            plan = make_plan(recipe, source, progress, num_threads=workers)
            if is_already_built(output_dir, plan.recipe.resolved(), plan.source_entries(), replace=replace):
                delete_work(output_dir, progress)  # if the build was killed after it was published
                return False
            check_disk_space(plan, output_dir)
        with _keep_work_if_interrupted(output_dir, progress):
            for use_reference in (False, True):
                try:
                    # Start new workers for every attempt: those of a failed attempt may still have tasks of it.
                    with start_engine(_describe_workload(plan, output_dir, workers)) as engine:
                        _Build(plan, output_dir, engine, progress, log, use_reference).run(name)
                    break
                except BackendMismatch as e:
                    progress.warn(f"{e}; the reference library encodes the whole build")
                    log.add_backend_fallback(str(e))
    return True


def _describe_workload(plan: Plan, output_dir: Path, workers: int) -> Workload:
    paths = (input_file.disk.path for input_file in plan.input_files if input_file.disk.path)
    sample_input = next(map(Path, paths), None)  # a generated corpus has no file
    return Workload(len(plan.partitions), workers, output_dir, sample_input, plan.collect_versions())


@contextmanager
def _keep_work_if_interrupted(output_dir: Path, progress: Progress) -> Iterator[None]:
    """If the block is interrupted, keep the finished tasks for the next attempt.

    After an error in the recipe or the input, delete them: the corrected build needs other tasks.
    """
    try:
        yield
    except BaseException as e:
        work_root = get_work_root(output_dir)
        can_continue = not isinstance(e, FolioError) or isinstance(e, WorkerDied)
        if can_continue and any(work_root.glob("*/part-*.json")):
            progress.log(f"the finished work is kept in {work_root}; the same command continues from it")
        else:
            delete_work(output_dir, progress)
        raise


@dataclass
class _Build:
    """The phases after the plan. `run` calls them in order."""

    plan: Plan
    output_dir: Path
    engine: Engine
    progress: Progress
    log: BuildLog
    use_reference: bool = False

    def __post_init__(self) -> None:
        self.recipe = self.plan.recipe
        everything_that_decides_the_work = {
            "work": WORK_VERSION, "format": VERSION, "recipe": self.recipe.resolved(),
            "sources": drop_origins(self.plan.source_entries()),
            "metadata": [file.metadata for file in self.plan.input_files],
            "partitions": self.plan.partitions,
            "made_with": self.plan.collect_versions(),
            "use_reference": self.use_reference,
        }  # fmt: skip
        key = sha256_bytes(canonical_json(everything_that_decides_the_work))[:16]
        self.work_dir = open_work_dir(self.output_dir, key, is_durable=self.engine.has_several_machines)
        self.staging_dir = self.work_dir.path / "build"
        self.context = TaskContext(self.recipe, {}, self.work_dir, None, self.use_reference, self.engine.num_threads)

    def run(self, name: str) -> None:
        """Run the phases, and publish the build as `name`."""
        tokenizer = self.plan.tokenizer
        if tokenizer is not None:
            self._set_tokenizer(tokenizer)  # so that `prepare` encodes the documents
        receipts = self._prepare()
        assignment = self._dedup_and_split(receipts)
        reports = [receipt.encoding for receipt in receipts if receipt.encoding is not None]
        if tokenizer is None:
            tokenizer = self._train_tokenizer(assignment)
            self._set_tokenizer(tokenizer)
            reports = [receipt.encoding for receipt in self._encode(receipts)]
        self._log_backends(reports)
        corpus = PreparedCorpus(self.recipe, self.work_dir, receipts, assignment, tokenizer)
        layout = self._lay_out_shards(corpus)
        shards = self._write_shards(corpus, layout)
        self._publish(BuildContents(name, self.plan, corpus, layout, shards))

    def train(self) -> Tokenizer:
        """Run the phases up to `train_tokenizer`, and return the tokenizer."""
        receipts = self._prepare()
        tokenizer = self._train_tokenizer(self._dedup_and_split(receipts))
        self._check_input_files()
        return tokenizer

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Record the time of the block as that of the phase `name`, and show the phase meanwhile."""
        with self.log.phase(name), self.progress.phase(name):
            yield

    def _set_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Write `tokenizer` to the work directory, from which the tasks that follow load it."""
        write_tokenizer(self.work_dir.path, tokenizer)
        self.context = dataclasses.replace(self.context, tokenizer=make_tokenizer_entry(tokenizer))

    def _prepare(self) -> list[PrepareReceipt]:
        sizes, partitions = self.plan.partition_bytes(), self.plan.partitions
        with self.log.phase("prepare"):
            if self.plan.evaluation_files:
                for line in write_index(self.work_dir, self.plan.evaluation_files):
                    self.progress.warn(line)
            if self.plan.has_divided_text:
                counts = self._run_tasks(count_partition, CountReceipt, self._add_contexts(partitions), sizes)
                num_characters = [receipt.num_characters for receipt in counts]
                partitions = set_boundaries(partitions, num_characters, self.recipe.val_fraction)
            if self.recipe.dedup_lines:
                lines = self._run_tasks(count_lines, LinesReceipt, self._add_contexts(partitions), sizes)
                find_repeated_units(self.work_dir, self.recipe, [receipt.num_documents for receipt in lines])
            return self._run_tasks(prepare_partition, PrepareReceipt, self._add_contexts(partitions), sizes)

    def _add_contexts(self, partitions: list[Partition]) -> list[tuple[TaskContext, Partition]]:
        """Return the arguments of the tasks that read `partitions`."""
        arguments = []
        for partition in partitions:
            numbers = {span.file_number for span in partition.spans}
            input_files = {number: self.plan.input_files[number] for number in numbers}
            arguments.append((dataclasses.replace(self.context, input_files=input_files), partition))
        return arguments

    def _encode(self, receipts: list[PrepareReceipt]) -> list[EncodeReceipt]:
        with self.log.phase("encode"):
            arguments = [(self.context, partition.number) for partition in self.plan.partitions]
            sizes = [receipt.text_bytes for receipt in receipts]
            return self._run_tasks(encode_partition, EncodeReceipt, arguments, sizes)

    def _run_tasks(
        self,
        function: Callable[..., Receipt],
        receipt_type: type[Receipt],
        arguments: Sequence[tuple[Any, ...]],
        sizes: list[int],
    ) -> list[Receipt]:
        """Call `function` with the `arguments` of each partition, and return the receipts in order.

        A partition that an interrupted attempt has finished is skipped; its receipt is read from
        the work directory. `sizes`: bytes of each partition, for the progress bar.
        """
        receipts: dict[int, Receipt] = {}
        for partition in range(len(arguments)):
            if (finished := self.work_dir.read_receipt(partition, receipt_type)) is not None:
                receipts[partition] = finished
        if receipts:
            self.progress.log(f"{len(receipts):,} of {len(arguments):,} partitions are finished already")
        unfinished = [partition for partition in range(len(arguments)) if partition not in receipts]
        tasks = (Task(self.plan.describe_partition(i), function, arguments[i], key=i) for i in unfinished)
        num_documents = sum(receipt.num_documents for receipt in receipts.values())
        done = sum(sizes[partition] for partition in receipts)
        with self.progress.bar(receipt_type.TASK, total=sum(sizes), unit="B", done=done) as bar:
            for task, receipt in self.engine.run(tasks):
                receipts[task.key] = receipt
                num_documents += receipt.num_documents
                bar.update(sizes[task.key], num_documents)
        return [receipts[partition] for partition in range(len(arguments))]

    def _dedup_and_split(self, receipts: list[PrepareReceipt]) -> SplitAssignment:
        if not any(receipt.num_documents for receipt in receipts):
            dropped = {reason: n for reason, n in sum_counts(receipt.dropped for receipt in receipts).items() if n}
            counts = "; ".join([f"{format_quantity(sum(dropped.values()), 'document')} read", *format_counts(dropped)])
            if self.plan.num_empty_files == len(self.plan.input_files):
                counts = f"all input files are empty ({format_quantity(len(self.plan.input_files), 'file')})"
            reasons = sum_reasons(receipt.reasons for receipt in receipts)
            raise FolioError(explain_no_document(self.recipe.corpus, counts, reasons, self.plan.input_files))
        self._warn_about_rejects(receipts)
        with self._phase("dedup_and_split"):
            num_documents = [receipt.num_documents for receipt in receipts]
            assignment = dedup_and_split(self.recipe, self.work_dir, num_documents, self.engine)
        if assignment.warning:
            self.progress.warn(assignment.warning)
        return assignment

    def _train_tokenizer(self, assignment: SplitAssignment) -> Tokenizer:
        with self._phase("train_tokenizer"):
            return train_tokenizer(self.recipe, assignment, self.progress)

    def _log_backends(self, reports: list[EncodingReport]) -> None:
        self.log.add_encoding_reports(reports)
        if reasons := sorted({report.backend_fallback for report in reports if report.backend_fallback}):
            self.log.add_backend_fallback(reasons[0])
            self.progress.warn(f"{reasons[0]}; the reference library encodes this build")

    def _lay_out_shards(self, corpus: PreparedCorpus) -> ShardLayout:
        with self._phase("shard_layout"):
            return lay_out_shards(corpus)

    def _write_shards(self, corpus: PreparedCorpus, layout: ShardLayout) -> dict[str, list[ShardEntry]]:
        self.staging_dir.mkdir(exist_ok=True)
        tokenizer = corpus.tokenizer
        output = ShardOutput(
            self.work_dir,
            self.staging_dir,
            vocab_size=tokenizer.vocab_size + len(layout.control_ids),
            stored_dtype=shard_format.token_dtype(count_ids(self.recipe, tokenizer)),
            has_bos=has_bos(self.recipe, tokenizer),
        )
        with self.log.phase("write_shards"):
            return write_shards(output, layout, self.engine, self.progress)

    def _publish(self, contents: BuildContents) -> None:
        with self.progress.phase("publish"):
            self._write_and_rename(contents)
        delete_work(self.output_dir, self.progress)

    def _write_and_rename(self, contents: BuildContents) -> None:
        self._check_input_files()
        build_log = self.log.to_json(contents.layout.counts.total("text_bytes"), self.engine.num_workers)
        write_metadata(self.staging_dir, contents, build_log)
        for line in list_warnings(contents.corpus, self.plan.input_files, contents.layout.counts.num_u2581):
            self.progress.warn(line)
        publish(self.staging_dir, self.output_dir)

    def _check_input_files(self) -> None:
        """Raise FolioError if an input file has changed or was removed, even if it was read before."""
        for input_file in (*self.plan.input_files, *self.plan.evaluation_files):
            if input_file.path:  # a generated corpus has no file
                input_file.check_unchanged()

    def _warn_about_rejects(self, receipts: list[PrepareReceipt]) -> None:
        counts = sum_counts(receipt.dropped for receipt in receipts)
        reasons = sum_reasons(receipt.reasons for receipt in receipts)
        if line := describe_rejects(counts, reasons, self.plan.input_files):
            self.progress.warn(line)


def build_tokenizer(
    recipe: Recipe, output_dir: Path, *, source: Path | None, replace: bool, progress: Progress, workers: int
) -> Tokenizer:
    """Train the tokenizer of `recipe` as a build does, and write its files to `output_dir`.

    `source`, `replace` and `workers` are as in `build`. Raises MisuseError if the recipe's
    tokenizer is not trained, if `output_dir` contains a build or another tokenizer, or if it is not
    empty and `replace` is false. Raises FolioError if the corpus cannot be read.
    """
    if recipe.tokenizer not in TRAINED_KINDS:
        raise MisuseError(f"the {recipe.tokenizer} tokenizer is not trained; choose one of {', '.join(TRAINED_KINDS)}")
    output_dir = output_dir.resolve()
    check_no_build(output_dir, "which has a tokenizer of its own")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())) and not replace:
        raise MisuseError(f"{output_dir} exists already; pass --replace, or choose another --output")
    # `save_tokenizer` checks this too, but only after the training.
    check_no_other_tokenizer(output_dir, [TRAINED_FILE_NAMES[recipe.tokenizer]])
    with lock_build(output_dir):
        with progress.phase("plan"):
            plan = make_plan(recipe, source, progress, num_threads=workers)
        workload = _describe_workload(plan, output_dir, workers)
        with _keep_work_if_interrupted(output_dir, progress), start_local_engine(workload) as engine:
            tokenizer = _Build(plan, output_dir, engine, progress, BuildLog()).train()
            save_tokenizer(tokenizer, output_dir)
            delete_work(output_dir, progress)
    return tokenizer
