"""The story of a build: plan, prepare, decide, assemble, seal.

Everything is made in a hidden folder beside the build; the manifest comes last; one rename makes the build appear. A build that fails or
is killed leaves nothing that looks finished, and what it had done of the partitions is there for the next.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.build.build_log import BuildLog
from preprocess.build.dedup_and_split import Decided, decide_sides
from preprocess.build.engines.local import InProcess, ProcessPool, Task, WorkerDied
from preprocess.build.plan import Plan, check_space, make_plan
from preprocess.build.prepare import Job, encode_partition, prepare_partition
from preprocess.build.publish import finish_interrupted_replace, is_there_already, one_at_a_time, publish
from preprocess.build.shard_layout import ShardLayout, lay_out_shards
from preprocess.build.stats import describe_build, sum_counts
from preprocess.build.train_tokenizer import TRAINED_FILE, train_tokenizer
from preprocess.build.work_dir import REFUSED, open_work, work_root
from preprocess.build.write_shards import Target, assemble
from preprocess.errors import FolioError, MisuseError
from preprocess.progress import Progress
from preprocess.readers.partitions import Partition
from preprocess.readers.records import UNMEANT, format_counts
from preprocess.recipes.schema import Recipe
from preprocess.shards import format as shard_format
from preprocess.shards.files import canonical_json, readable_json, sha256_bytes, write_durable
from preprocess.shards.format import BUILD_LOG, MANIFEST, STATS, TOKENIZER_DIR, check_no_build
from preprocess.stages.encode import BackendMismatch, has_bos
from preprocess.tokenizers import TRAINED, describe_tokenizer
from preprocess.tokenizers.folders import check_no_other, save
from preprocess.tokenizers.interface import Tokenizer
from preprocess.versions import made_with

WORK_VERSION = 1  # of the files in the work folder


def build(
    recipe: Recipe,
    folder: Path,
    *,
    name: str,
    replace: bool,
    progress: Progress,
    source: Path | None = None,
    workers: int = 1,
) -> bool:
    """Make the build of `recipe` in `folder`; False where it is there already.

    `source`: a copy of the one file the recipe vouches for. Raises MisuseError or FolioError with one line that says what to do;
    whatever was in `folder` is then untouched.
    """
    # Resolved, so that a link and the folder it leads to share one lock, and the build lands where the link leads.
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder):
        finish_interrupted_replace(folder)
        log = BuildLog()
        with log.phase("plan"):
            plan = make_plan(recipe, source, progress, num_threads=workers)
            if is_there_already(folder, plan.recipe.resolved(), plan.entries(), replace=replace):
                clear_work(folder, progress)  # of a build that was killed when it was there and its work not yet gone
                return False
            check_space(plan, folder)
        with _kept_for_the_next(folder, progress):
            for use_reference in (False, True):
                try:
                    # Workers of its own for each attempt: those of one that failed may still have its tasks.
                    with _pool(plan, workers) as pool:
                        # One partition cannot be shared between processes: then the encoding of each batch is, between threads.
                        num_threads = workers if pool.num_workers == 1 else 1
                        _Attempt(plan, folder, name, pool, progress, log, use_reference, num_threads).run()
                    break
                except BackendMismatch as e:
                    progress.warn(f"{e}; the reference library encodes the whole build")
                    log.note("backend_fallback", str(e))
    return True


def train_alone(
    recipe: Recipe, output: Path, *, source: Path | None, replace: bool, progress: Progress, workers: int
) -> Tokenizer:
    """Train the tokenizer that `recipe` asks for as a build would, and write its files to the folder `output`.

    Raises MisuseError where it is one that is not trained, or where `output` holds one and `replace` is not set.
    """
    if recipe.tokenizer not in TRAINED:
        raise MisuseError(f"the {recipe.tokenizer} tokenizer is not trained; wanted one of {', '.join(TRAINED)}")
    output = output.resolve()
    check_no_build(output, "which holds its own tokenizer")
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not replace:
        raise MisuseError(f"{output} is there already; pass --replace, or choose another --output")
    check_no_other(output, [TRAINED_FILE[recipe.tokenizer]])  # now, not after all the work
    output.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(output):
        plan = make_plan(recipe, source, progress, num_threads=workers)
        with _kept_for_the_next(output, progress), _pool(plan, workers) as pool:
            attempt = _Attempt(
                plan, output, output.name, pool, progress, BuildLog(), use_reference=False, num_threads=1
            )
            tokenizer = attempt.train()
            save(tokenizer, output)
            clear_work(output, progress)
    return tokenizer


def _pool(plan: Plan, workers: int) -> InProcess | ProcessPool:
    """Where the plan's tasks run: in no more processes than there are partitions, or in this one."""
    num_workers = min(workers, len(plan.partitions))
    return ProcessPool(num_workers) if num_workers > 1 else InProcess()


@contextmanager
def _kept_for_the_next(folder: Path, progress: Progress) -> Iterator[None]:
    """Where the build is interrupted, leave what it has done of the partitions and tell of it; else leave nothing.

    A build that fails by its recipe or its text is not gone on with: what mends it makes it another build.
    """
    try:
        yield
    except BaseException as e:
        root = work_root(folder)
        is_final = isinstance(e, FolioError) and not isinstance(e, WorkerDied)
        if not is_final and any(root.glob("*/part-*.json")):
            progress.say(f"what is done so far is kept in {root}; the same command goes on from there")
        else:
            clear_work(folder, progress)
        raise


@dataclass(frozen=True)
class _Prepared:
    receipts: list[dict[str, Any]]
    tokenizer: Tokenizer
    decided: Decided


class _Attempt:
    """One way through the phases, in a work folder of its own."""

    def __init__(
        self, plan: Plan, folder: Path, name: str, pool: InProcess | ProcessPool, progress: Progress, log: BuildLog,
        use_reference: bool, num_threads: int,
    ) -> None:  # fmt: skip
        self._plan, self._recipe, self._folder, self._name = plan, plan.recipe, folder, name
        self._pool, self._progress, self._log = pool, progress, log
        key = {
            "work": WORK_VERSION, "format": shard_format.VERSION, "recipe": plan.recipe.resolved(), "sources": plan.entries(),
            "metadata": [s.metadata for s in plan.sources], "partitions": [dataclasses.astuple(p) for p in plan.partitions],
            "made_with": made_with(plan.tokenizer_kind), "use_reference": use_reference,
        }  # fmt: skip
        self._work = open_work(folder, sha256_bytes(canonical_json(key))[:16])
        self._job = Job(plan.recipe, {}, self._work, None, use_reference, num_threads)

    def run(self) -> None:
        prepared = self._prepare()
        layout = self._place(prepared)
        aside = self._work.path / "build"
        (aside / TOKENIZER_DIR).mkdir(parents=True, exist_ok=True)
        shards = self._assemble(prepared, layout, aside)
        self._seal(prepared, layout, shards, aside)
        self._warn_about_rejects(prepared)
        publish(aside, self._folder)
        clear_work(self._folder, self._progress)

    def train(self) -> Tokenizer:
        """The tokenizer of the build, and no more."""
        receipts = self._read()
        return self._train(receipts, self._decide(receipts))

    def _read(self) -> list[dict[str, Any]]:
        with self._log.phase("prepare"):
            partitions = [(p.number, (self._job_for(p), p)) for p in self._plan.partitions]
            return self._run("prepare", prepare_partition, partitions, self._plan.partition_bytes())

    def _job_for(self, partition: Partition) -> Job:
        numbers = {span.source for span in partition.spans}
        return dataclasses.replace(self._job, sources={number: self._plan.sources[number] for number in numbers})

    def _decide(self, receipts: list[dict[str, Any]]) -> Decided:
        self._check_documents(receipts)
        with self._log.phase("decide"):
            decided = decide_sides(self._recipe, self._work, [receipt["num_documents"] for receipt in receipts])
        if decided.note:
            self._progress.warn(decided.note)
        return decided

    def _check_documents(self, receipts: list[dict[str, Any]]) -> None:
        if not any(receipt["num_documents"] for receipt in receipts):
            dropped = {reason: n for reason, n in sum_counts(receipts, "dropped").items() if n}
            read = "; ".join([f"{sum(dropped.values()):,} documents were read", *format_counts(dropped)])
            raise FolioError(
                f"no document is left of {self._recipe.corpus}: {read}; check its files, columns, conditions and cleaning rules"
            )

    def _train(self, receipts: list[dict[str, Any]], decided: Decided) -> Tokenizer:
        with self._log.phase("train_tokenizer"):
            return train_tokenizer(self._recipe, self._work, decided, receipts, self._progress)

    def _prepare(self) -> _Prepared:
        """Every partition read, the sides decided, and every document encoded."""
        tokenizer = None
        if self._plan.tokenizer is not None:
            tokenizer = self._plan.tokenizer
            self._job = self._with_tokenizer(tokenizer)
        receipts = self._read()
        decided = self._decide(receipts)
        if tokenizer is None:
            tokenizer = self._train(receipts, decided)
            self._job = self._with_tokenizer(tokenizer)
            with self._log.phase("encode"):
                numbers = [(p.number, (self._job, p.number)) for p in self._plan.partitions]
                self._log_backends(
                    self._run("encode", encode_partition, numbers, [receipt["text_bytes"] for receipt in receipts])
                )
        else:
            self._log_backends(receipts)
        return _Prepared(receipts, tokenizer, decided)

    def _with_tokenizer(self, tokenizer: Tokenizer) -> Job:
        """The job with a tokenizer whose files lie in the work folder, where tasks find them."""
        (self._work.path / TOKENIZER_DIR).mkdir(exist_ok=True)
        for file_name, data in tokenizer.files.items():
            write_durable(self._work.path / TOKENIZER_DIR / file_name, data)
        return dataclasses.replace(
            self._job, tokenizer={"tokenizer": describe_tokenizer(tokenizer), "eot_id": tokenizer.eot_id}
        )

    def _run(
        self, task: str, function: Any, arguments: list[tuple[int, Any]], sizes: list[int]
    ) -> list[dict[str, Any]]:
        """The receipts of `function` for every partition; those that an earlier attempt has left are taken as they are."""
        receipts = {
            number: receipt for number, _ in arguments if (receipt := self._work.receipt(number, task)) is not None
        }
        if receipts:
            self._progress.say(f"{len(receipts):,} of {len(arguments):,} partitions are done already")
        tasks = (
            Task(f"partition {number}", function, args, number) for number, args in arguments if number not in receipts
        )
        with self._progress.bar(task, total=sum(sizes), unit="B") as bar:
            bar.update(sum(sizes[number] for number in receipts))
            documents = sum(receipt.get("num_documents", 0) for receipt in receipts.values())
            for done, receipt in self._pool.run(tasks):
                receipts[done.key] = receipt
                documents += receipt.get("num_documents", 0)
                bar.update(sizes[done.key], documents if "num_documents" in receipt else None)
        return [receipts[number] for number, _ in arguments]

    def _log_backends(self, receipts: list[dict[str, Any]]) -> None:
        self._log.note_memory([receipt["peak_memory_bytes"] for receipt in receipts])
        self._log.note("engine", ", ".join(sorted({receipt["engine"] for receipt in receipts})))
        if reasons := sorted({receipt["backend_fallback"] for receipt in receipts if receipt["backend_fallback"]}):
            self._log.note("backend_fallback", reasons[0])
            self._progress.warn(f"{reasons[0]}; the reference library encodes this build")

    def _place(self, prepared: _Prepared) -> ShardLayout:
        with self._log.phase("place"):
            return lay_out_shards(self._recipe, self._work, prepared.decided, prepared.receipts, prepared.tokenizer)

    def _assemble(self, prepared: _Prepared, layout: ShardLayout, aside: Path) -> dict[str, list[dict[str, Any]]]:
        tokenizer = prepared.tokenizer
        target = Target(
            self._work, aside, tokenizer.vocab_size + len(layout.control_ids), shard_format.token_dtype(tokenizer.vocab_size),
            has_bos(self._recipe, tokenizer),
        )  # fmt: skip
        with self._log.phase("assemble"):
            return assemble(target, layout, prepared.receipts, self._pool, self._progress)

    def _warn_about_rejects(self, prepared: _Prepared) -> None:
        """One warning for what the corpus may not have meant to lose; stats.json has all of it."""
        dropped = sum_counts(prepared.receipts, "dropped")
        if lost := {reason: dropped[reason] for reason in UNMEANT if dropped[reason]}:
            counted = ", ".join(format_counts(lost))
            self._progress.warn(
                f"some documents were not taken as they are: {counted}; `preprocess stats` tells of all"
            )

    def _seal(
        self, prepared: _Prepared, layout: ShardLayout, shards: dict[str, list[dict[str, Any]]], aside: Path
    ) -> None:
        """Tokenizer in, stats.json, build_log.json, and last manifest.json."""
        tokenizer, recipe, counts = prepared.tokenizer, self._recipe, layout.counts
        for source in self._plan.sources:
            if source.path:
                source.check_unchanged()
        for file_name, data in tokenizer.files.items():
            write_durable(aside / TOKENIZER_DIR / file_name, data)
        vocab_size = tokenizer.vocab_size + len(layout.control_ids)
        stats = readable_json(
            describe_build(recipe, prepared.receipts, prepared.decided.dropped, counts, tokenizer, vocab_size)
        )
        write_durable(aside / STATS, stats)
        write_durable(
            aside / BUILD_LOG, readable_json(self._log.finish(counts.total("text_bytes"), self._pool.num_workers))
        )
        fields = {
            "format": shard_format.FORMAT,
            "version": shard_format.VERSION,
            "name": self._name,
            "dtype": shard_format.token_dtype(vocab_size),
            "vocab_size": vocab_size,
            "bos_id": tokenizer.bos_id,
            "eot_id": tokenizer.eot_id,
            "pad_id": tokenizer.pad_id,
            "unk_id": tokenizer.unk_id,
            "special_tokens": {**tokenizer.special_tokens, **layout.control_ids},
            "tokenizer": describe_tokenizer(tokenizer),
            "splits": {split: {**counts.splits[split], "shards": entries} for split, entries in shards.items()},
            "recipe": recipe.resolved(),
            "sources": self._plan.entries(),
            "languages": {str(number): tag for tag, number in layout.languages.items()},
            "stats_sha256": sha256_bytes(stats),
            "made_with": made_with(tokenizer.kind),
        }
        write_durable(aside / MANIFEST, readable_json(shard_format.seal(fields)))


def clear_work(folder: Path, progress: Progress) -> None:
    """Delete the work on the build `folder`; what could not be read stays, in one file beside the builds."""
    root = work_root(folder)
    if refused := sorted(root.glob("*/part-*.refused")):
        with open(root / REFUSED, "wb") as out:
            for path in refused:
                with open(path, "rb") as file:
                    shutil.copyfileobj(file, out)
        with open(root / REFUSED, "rb") as file:
            count = sum(1 for _ in file)
        progress.warn(
            f"{count:,} records that could not be read were left out; they are kept, with place and reason, in {root / REFUSED}"
        )
    for path in root.iterdir() if root.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    if root.is_dir() and not any(root.iterdir()):
        root.rmdir()
