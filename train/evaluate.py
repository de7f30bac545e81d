"""How good a run's checkpoints are, on the whole validation split: `python train/evaluate.py RUN [--all] [--questions N] …`.

RUN/evaluations.jsonl                    a row an evaluation, written when it is complete; the same one is never made twice
RUN/evaluations/<step>-<key>.safetensors the loss of each window, by which two runs are compared: `--compare RUN RUN …`
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from builds import Builds, open_builds
from checkpoint import (
    ADVICE,
    CHECKPOINTS_DIR,
    INFO_FILE,
    MODEL_FILE,
    Checkpoint,
    CheckpointError,
    committed,
    find_checkpoint,
    load_model,
    open_checkpoint,
    require_shapes,
)
from command import Parser, run_command, warn
from comparison import compare, spell, spell_loss
from config import Config, config_from_saved
from data import MOST_WINDOWS, ValidationData
from device import choose_device, choose_precision, make_autocast, set_matmul_precision
from evaluation import Evaluation, evaluate, summarize
from evaluations import IDENTITY, KINDS, NUMBERS, Row, append_row, finite, losses_file, read_evaluations, read_losses, write_losses
from generate import decode_stream, generate
from language_model import LanguageModel
from model import make_model
from preflight import is_out_of_memory
from preprocess.errors import FolioError, MisuseError, one_line, printable, shown
from preprocess.shards.files import canonical_json, sha256_bytes
from questions import Question, draw_questions, question_of, read_prompts
from run_folder import EVALUATIONS_DIR, LOCK_FILE, vocabulary_of
from sample import load_text_tokenizer

MOST_LOGITS = 1 << 27  # of a forward pass on a CPU, 0.5 GB: where its memory ends, the system ends the process without a word
TAG = "folio_evaluation"  # by which MLflow finds an evaluation again


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to do with every checkpoint: settings that are None are the run's own."""

    data: str | None = None
    num_questions: int = 0
    prompts: tuple[str, ...] = ()
    sample_tokens: int | None = None
    temperature: float = 0.0

    @property
    def is_asking(self) -> bool:
        return bool(self.num_questions or self.prompts)


@dataclass(frozen=True, kw_only=True)
class Job:
    """An evaluation to make: a checkpoint, the settings that it is made under, the data, and what is asked."""

    checkpoint: Checkpoint
    config: Config
    builds: Builds
    tokenizer: Any  # None where nothing is asked
    questions: list[Question]

    @property
    def identity(self) -> dict[str, Any]:
        """IDENTITY, by name."""
        sha256 = self.checkpoint.numbers["files"][MODEL_FILE]["sha256"]
        values = (self.checkpoint.step, sha256, self.builds.build_id, self.config.block_size, self.config.precision)
        return dict(zip(IDENTITY, values, strict=True))

    @property
    def key(self) -> str:
        """The same for the same evaluation: the same losses, and the same questions answered in the same way."""
        config = self.config
        how = [config.sample_tokens, config.temperature, *([config.top_k, config.top_p, config.seed] if config.temperature else [])]
        asked = [[question.ids for question in self.questions], how] if self.questions else None
        return sha256_bytes(canonical_json([self.identity, asked]))


def evaluate_run(run: Path, which: str, asked: Asked, *, device: torch.device, log: Callable[[Path, Row], bool] | None) -> tuple[Path, Row]:
    """Evaluate the checkpoints of `run` that `which` names, newest, best or all, unless they have been; tell all about it.

    `log` takes each row, of before or of now, somewhere else, and returns whether it was not there yet. Returns the run's folder
    and the last row. Raises MisuseError for what does not fit, FolioError where no checkpoint can be evaluated.
    """
    out_dir, once = _folder_of(run), functools.cache(warn)
    num_new, last = 0, None
    with _alone(out_dir):
        for checkpoint in _checkpoints(run, which):
            try:
                job = prepare(checkpoint, asked, device=device, warn=once)
                row = next((row for row in read_evaluations(out_dir) if row["key"] == job.key), None)
                is_new = row is None
                if row is None:
                    row = perform(job, out_dir)
                    append_row(out_dir, row)
            except CheckpointError as e:
                if which != "all":
                    raise
                _pass_over(e)
                continue
            print(one_line(describe(row)) + ("" if is_new else "  (evaluated before)"), flush=True)
            _show_answers(row if is_new else {})
            if log and log(out_dir, row):
                print(f"step {row['step']:,} is logged to MLflow", flush=True)
            num_new, last = num_new + is_new, row
    if last is None:
        raise FolioError(f"no checkpoint of {run} can be evaluated; train again, or restore one")
    if not num_new:
        print("nothing was left to evaluate")
    return out_dir, last


def _folder_of(run: Path) -> Path:
    """The folder of the run that `run` is, or is a checkpoint of."""
    if not (run / INFO_FILE).exists():
        if not committed(run):
            raise MisuseError(f"{run} is neither a checkpoint nor a run that has one; name the out_dir of a run that has saved")
        return run
    folder = run.resolve().parent
    if folder.name != CHECKPOINTS_DIR:
        raise MisuseError(f"{run} lies in no run, where its evaluations would be kept; name a checkpoint inside its run")
    return folder.parent


@contextmanager
def _alone(out_dir: Path) -> Iterator[None]:
    """Hold the evaluations of a run for this process; a process that trains in it goes on meanwhile."""
    (out_dir / EVALUATIONS_DIR).mkdir(exist_ok=True)
    try:
        with FileLock(out_dir / EVALUATIONS_DIR / LOCK_FILE, timeout=0):
            yield
    except Timeout as e:
        raise FolioError(f"another process is evaluating {out_dir}; wait until it ends") from e


def _checkpoints(run: Path, which: str) -> Iterator[Checkpoint]:
    """The checkpoints that `which` names; of all, those that are whole, oldest first."""
    if which != "all":
        yield find_checkpoint(run, warn, best=which == "best")
        return
    if (run / INFO_FILE).exists():
        raise MisuseError(f"{run} is one checkpoint, --all takes those of a run; name the run, or leave --all out")
    for folder in committed(run):
        try:
            checkpoint = open_checkpoint(folder)
        except FolioError as e:
            _pass_over(e)
        except FileNotFoundError:  # training goes on, and keeps only the last ones
            warn(f"{folder} has been deleted meanwhile; passed over")
        else:
            yield checkpoint


def _pass_over(error: FolioError) -> None:
    warn(f"{str(error).removesuffix(ADVICE)}; passed over")


def prepare(checkpoint: Checkpoint, asked: Asked, *, device: torch.device, warn: Callable[[str], None]) -> Job:
    """What evaluating `checkpoint` takes, but for its weights.

    Raises MisuseError for data that are not there or do not fit, and for settings out of their range.
    """
    saved = config_from_saved(checkpoint.origin.settings, str(checkpoint.folder))
    config = dataclasses.replace(
        saved,
        data=asked.data or saved.data,
        device=str(device),
        precision=_precision(saved.precision, device, warn=warn),
        eval_tokens=None,
        sample_tokens=asked.sample_tokens or saved.sample_tokens,
        temperature=asked.temperature,
        sample_author=None,
        sample_city=None,
        sample_year=None,
    )
    builds = _open(config.data, checkpoint, is_other=asked.data is not None, warn=warn)
    tokenizer = load_text_tokenizer(builds.vocabulary.folder, builds.manifest) if asked.is_asking else None
    questions = draw_questions(builds, asked.num_questions, tokenizer) + [question_of(p, builds, tokenizer, config) for p in asked.prompts]
    return Job(checkpoint=checkpoint, config=config, builds=builds, tokenizer=tokenizer, questions=questions)


def _precision(trained_in: str, device: torch.device, *, warn: Callable[[str], None]) -> str:
    """The precision of training where `device` can compute in it."""
    try:
        return choose_precision(trained_in, device)
    except MisuseError:
        instead = choose_precision("auto", device)
        warn(f"the run trained in {trained_in}, which {device} cannot; it is evaluated in {instead}")
        return instead


def _open(data: str, checkpoint: Checkpoint, *, is_other: bool, warn: Callable[[str], None]) -> Builds:
    """The builds to evaluate on: those that the run trained on, or others that it was told to take."""
    try:
        builds = open_builds(data)
    except MisuseError as e:
        raise e if is_other else MisuseError(f"{e}; or name the build that the run trained on by --data") from e
    if builds.build_id == checkpoint.origin.build_id:
        return builds
    if builds.tokenizer_sha256 != checkpoint.origin.tokenizer_sha256:
        raise MisuseError(
            f"{builds.name} has another tokenizer than {checkpoint.folder} was trained with, so that every id means something else; "
            "name data of its tokenizer by --data"
        )
    if not is_other:
        raise MisuseError(
            f"{builds.name} is not the build any more that {checkpoint.folder} was trained on; --data={data} takes it all the same"
        )
    _require_same_ids(builds, checkpoint)
    warn(f"{builds.name} is not the data that the run trained on, but of the same tokenizer")
    return builds


def _require_same_ids(builds: Builds, checkpoint: Checkpoint) -> None:
    known = vocabulary_of(checkpoint)[1]["special_tokens"]
    for token, i in builds.manifest["special_tokens"].items():
        if known.get(token) != i:
            raise MisuseError(
                f"the control token {token} is id {i} in {builds.name} and {known.get(token, 'unknown')} in {checkpoint.folder}; "
                "build the data with --no-authors"
            )


def perform(job: Job, out_dir: Path) -> Row:
    """Make the evaluation: the row that tells of it. The losses of its windows are kept in `out_dir`.

    Raises CheckpointError where the weights are damaged or have been deleted, FolioError where memory does not hold a window.
    """
    began, config = time.monotonic(), job.config
    device = torch.device(config.device)
    set_matmul_precision(config.precision)
    model = _load(job.checkpoint, config).to(device)
    data = ValidationData(job.builds, config, device=device)
    result = _measure(job, model, data, out_dir / EVALUATIONS_DIR / losses_file(job.identity))
    is_finite = math.isfinite(result.loss)
    values = (result.loss, result.stderr, result.perplexity, result.bits_per_byte)
    return {
        **job.identity,
        **dict(zip(NUMBERS, map(finite, values), strict=True)),
        **{f"val_loss/{name}": finite(loss) for name, loss in result.by_build.items()},
        "data": job.builds.name,
        "num_windows": data.num_windows,
        "num_parameters": model.num_parameters,
        "device": str(device),
        "answers": [_answer(question, model, job) for question in job.questions] if is_finite else [],
        "elapsed_s": round(time.monotonic() - began, 3),
        "key": job.key,
    }


def _load(checkpoint: Checkpoint, config: Config) -> LanguageModel:
    try:
        require_shapes(checkpoint, config)
        model = make_model(config, checkpoint.vocab_size)
        load_model(checkpoint, model)
    except OSError as e:
        raise CheckpointError(f"{checkpoint.folder} cannot be read any more, was it deleted meanwhile?{ADVICE}") from e
    except MisuseError as e:
        raise CheckpointError(str(e)) from e
    return model


def _measure(job: Job, model: LanguageModel, data: ValidationData, path: Path) -> Evaluation:
    """The evaluation by the losses in `path`, where they have been kept before, else by the model, and they are kept."""
    kept = read_losses(path)
    if kept is not None and len(kept[0]) == data.num_windows:
        return summarize(kept[0], data)
    autocast, batch_size = make_autocast(job.config.precision, torch.device(job.config.device)), _batch_size(job)
    while True:
        try:
            result = evaluate(model, data, batch_size=batch_size, autocast=autocast)
            break
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e):
                raise
            if batch_size == 1:
                raise FolioError(f"a single window does not fit the memory of {job.config.device}; take another --device") from e
        batch_size //= 2
    write_losses(path, result)
    return result


def _batch_size(job: Job) -> int:
    """Windows a forward pass: as many as training found to fit, so that sums are rounded as its own were."""
    told = job.checkpoint.numbers.get("micro_batch")
    size = told if type(told) is int and 0 < told <= MOST_WINDOWS else job.config.batch_size
    if job.config.device != "cpu":
        return size
    return max(1, min(size, MOST_LOGITS // (job.config.block_size * job.checkpoint.vocab_size)))


def _answer(question: Question, model: LanguageModel, job: Job) -> dict[str, str]:
    manifest = job.builds.manifest
    silent = {*manifest["special_tokens"].values(), *range(manifest["vocab_size"], model.vocab_size)}
    try:
        drawn = [i for i in generate(model, question.ids, config=job.config, eot_id=manifest["eot_id"]) if i not in silent]
    except FolioError as e:
        raise CheckpointError(f"{job.checkpoint.folder}: {e}") from e
    return {"prompt": question.prompt, "answer": "".join(decode_stream(job.tokenizer.decode_bytes, drawn))}


def describe(row: Row) -> str:
    """An evaluation in a line."""
    texts = [f"step {row['step']:,}", f"val loss {spell_loss(row)}", f"perplexity {spell(row['perplexity'], ',.2f')}"]
    texts += [f"bits per byte {spell(row['bits_per_byte'], '.4f')}"]
    return "  ".join([*texts, f"{row['num_windows']:,} windows of {row['data']}, in {row['precision']} on {row['device']}"])


def _show_answers(row: Row) -> None:
    for number, each in enumerate(row.get("answers", []), start=1):
        print(printable(f"question {number}: {each['prompt']}\nanswer {number}: {each['answer']}"), flush=True)


def open_mlflow() -> Callable[[Path, Row], bool]:
    """What takes an evaluation's row to MLflow, one run a row, found again by the evaluation's key; it returns whether it was new.

    Where MLflow is, its own variables say: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (else the run's name). Raises FolioError.
    """
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError as e:
        raise FolioError("--mlflow needs mlflow, which is not installed; pip install mlflow") from e

    def log(out_dir: Path, row: Row) -> bool:
        client, name = mlflow.MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME") or out_dir.resolve().name
        try:
            experiment = client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
            found = client.search_runs([experiment_id], f"tags.{TAG} = '{row['key']}'", max_results=1)
            if found and found[0].info.status == "FINISHED":
                return False
            title = f"{out_dir.resolve().name} step {row['step']}"
            # One that was cut short is completed.
            info = (found[0] if found else client.create_run(experiment_id, run_name=title, tags={TAG: row["key"]})).info
            for key, value in row.items():
                if key in NUMBERS or key.startswith("val_loss/"):
                    if value is not None:
                        client.log_metric(info.run_id, key, value, step=row["step"])
                elif key in KINDS:
                    client.log_param(info.run_id, key, value)
            if row.get("answers"):
                client.log_dict(info.run_id, {"answers": row["answers"]}, "answers.json")
            client.set_terminated(info.run_id)
        except mlflow.exceptions.MlflowException as e:
            raise FolioError(
                f"MLflow refused step {row['step']:,} ({shown(str(e))}); run the same command again, it logs what is missing"
            ) from e
        return True

    return log


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    build_id = None if options.data is None else open_builds(options.data).build_id
    runs: list[Path] = options.compare
    if options.run is not None:
        asked = Asked(
            data=options.data,
            num_questions=options.questions or 0,
            prompts=read_prompts(options.prompts) if options.prompts else (),
            sample_tokens=options.tokens,
            temperature=options.temperature or 0.0,
        )
        which = "all" if options.all else "best" if options.best else "newest"
        log = open_mlflow() if options.mlflow else None
        out_dir, row = evaluate_run(options.run, which, asked, device=choose_device(options.device), log=log)
        runs, build_id = [out_dir, *runs], row["build_id"]
    if options.compare:
        print(compare(runs, best=options.best, build_id=build_id, width=shutil.get_terminal_size().columns))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python train/evaluate.py",
        description="The loss of a run's checkpoints on the whole validation split; each is evaluated once.",
    )
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="the out_dir of a run, or a checkpoint in it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every checkpoint, not the newest")
    which.add_argument("--best", action="store_true", help="the checkpoint of the lowest validation loss, not the newest")
    parser.add_argument("--data", metavar="BUILD", help="other data of the same tokenizer [the run's]")
    asking = parser.add_mutually_exclusive_group()
    asking.add_argument("--questions", type=int, metavar="N", help="have the beginnings of N validation documents continued")
    asking.add_argument("--prompts", type=Path, metavar="FILE", help="have prompts continued, one a line: text, or .jsonl with `prompt`")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of an answer at most [the run's sample_tokens]")
    parser.add_argument("--temperature", type=float, metavar="X", help="of answers; 0 always takes the likeliest token [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N [auto]")
    parser.add_argument("--mlflow", action="store_true", help="log each evaluation to MLflow, once")
    parser.add_argument("--compare", nargs="+", type=Path, default=[], metavar="RUN", help="a table of the evaluations of these and RUN")
    options = parser.parse_args(arguments)
    if options.run is None and not options.compare:
        parser.error("no run is named, wanted RUN, or --compare RUN RUN")
    is_asking = options.questions is not None or options.prompts is not None
    for name in ("all", "questions", "prompts", "mlflow", "tokens", "temperature"):
        if (value := getattr(options, name)) is None or value is False:
            continue
        if options.run is None:
            parser.error(f"--{name} evaluates, and --compare alone does not; name the RUN to evaluate before --compare")
        if name in ("tokens", "temperature") and not is_asking:
            parser.error(f"--{name} is of answers, and nothing is asked; add --questions N or --prompts FILE")
    for name in ("questions", "tokens"):
        if (number := getattr(options, name)) is not None and number < 1:
            parser.error(f"--{name} is {number}, wanted 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
