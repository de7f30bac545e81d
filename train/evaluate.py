"""How good a run's checkpoints are, on the whole validation split: `python train/evaluate.py RUN [--all] [--questions N] …`.

RUN/evaluations.jsonl                    a row an evaluation, written when it is complete; the same one is never made twice
RUN/evaluations/<step>-<key>.safetensors the loss of each window, by which two runs are compared: `--compare RUN RUN …`
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import math
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

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
from config import Config, config_from_saved
from data import MOST_WINDOWS, ValidationData
from device import choose_device, choose_precision, make_autocast, set_matmul_precision
from evaluation import NOISE, Evaluation, Strata, evaluate, summarize
from generate import decode_stream, generate
from language_model import LanguageModel
from model import make_model
from plot import names_apart, shorten
from preflight import is_out_of_memory
from preprocess.errors import FolioError, MisuseError, one_line, printable, shown
from preprocess.shards.files import canonical_json, parse_json, sha256_bytes, write_durable
from preprocess.shards.permutation import keyed_hash, permute
from run_folder import EVALUATIONS_DIR, EVALUATIONS_FILE, vocabulary_of
from sample import control_tokens

LOCK_FILE = ".lock"
SHORT_KEY = 12  # hexadecimal digits of a file's name
IDENTITY = ("step", "model_sha256", "build_id", "block_size", "precision")  # what a window's loss follows from
KINDS = {"key": str, "data": str, "device": str, "num_windows": int, "num_parameters": int} | dict.fromkeys(IDENTITY, str)
KINDS |= {"step": int, "block_size": int}
NUMBERS = ("val_loss", "val_loss_stderr", "perplexity", "bits_per_byte")  # null where there is none
QUESTION_TOKENS = 16  # of a document's text, and at most half of it, so that something is left to answer
QUESTION_SEED = 0xA5C  # not a run's own: runs that are compared are asked the same
MOST_LOGITS = 1 << 27  # of a forward pass on a CPU, 0.5 GB: where its memory ends, the system ends the process without a word
TAG = "folio_evaluation"  # by which MLflow finds an evaluation again
NARROWEST_NAME = 8  # characters of a run's name that a table keeps
HEADER = ("run", "step", "val loss", "perplexity", "bits per byte", "parameters")

Row = dict[str, Any]


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
class Question:
    """What a model is to continue: as it is shown, control tokens as they are spelled, and its ids, of which there is one."""

    prompt: str
    ids: list[int]


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
                    _append(out_dir, row)
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
    tokenizer = _load_tokenizer(builds) if asked.is_asking else None
    questions = draw_questions(builds, asked.num_questions, tokenizer) + [_question(p, builds, tokenizer, config) for p in asked.prompts]
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


def _load_tokenizer(builds: Builds) -> Any:
    try:
        from preprocess.tokenizers import load_tokenizer
    except ImportError as e:
        raise FolioError(f"text needs the tokenizer's libraries, and {e.name} is not installed; pip install folio-lm") from e
    return load_tokenizer(builds.vocabulary.folder, builds.manifest)


def draw_questions(builds: Builds, count: int, tokenizer: Any) -> list[Question]:
    """The beginnings of `count` validation documents, their control tokens in front; fewer are the first of more.

    Raises MisuseError where there are not as many.
    """
    sizes = [build.manifest["splits"]["val"]["documents"] for build in builds.builds]
    if count > sum(sizes):
        raise MisuseError(f"--questions is {count:,}, the validation split has {sum(sizes):,} documents; ask for fewer")
    if not count:
        return []
    keys = keyed_hash(QUESTION_SEED, np.zeros(count, np.uint64))
    numbers = permute(np.arange(count, dtype=np.uint64), sum(sizes), keys).astype(np.int64)
    edges = np.cumsum(sizes)
    documents = []
    for number in numbers.tolist():
        build = int(np.searchsorted(edges, number, side="right"))
        documents.append(builds.builds[build].document("val", number - int(edges[build] - sizes[build])))
    return [_beginning(document.tolist(), builds, tokenizer) for document in documents]


def _beginning(ids: list[int], builds: Builds, tokenizer: Any) -> Question:
    """The control tokens that a document begins with, and the first of its text."""
    manifest = builds.manifest
    spelled = {i: token for token, i in manifest["special_tokens"].items()}
    body = ids[:-1] if ids[-1:] == [manifest["eot_id"]] else ids
    first = next((n for n, i in enumerate(body) if i not in spelled), len(body))
    most = max(1, min(QUESTION_TOKENS, (len(body) - first) // 2))
    text = body[first : first + most]
    prompt = " ".join([*(spelled[i] for i in body[:first]), tokenizer.decode(np.array(text, np.uint32))])
    return Question(prompt=prompt, ids=[*body[:first], *text] or [manifest["eot_id"] or 0])


def _question(prompt: str, builds: Builds, tokenizer: Any, config: Config) -> Question:
    """A prompt, with what every document begins with. Raises FolioError for text that the tokenizer cannot encode."""
    controls = control_tokens(builds.manifest, config)
    return Question(prompt=" ".join([*controls, prompt]), ids=[*controls.values(), *tokenizer.encode_text(prompt).tolist()])


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in a file, one a line: of a .jsonl the `prompt` of each object, else text. Empty lines are none. Raises MisuseError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise MisuseError(f"there is no file of prompts {path}; name one by --prompts") from e
    except UnicodeDecodeError as e:
        raise MisuseError(f"{path} is not UTF-8 ({e.reason} at byte {e.start:,}); save it as UTF-8") from e
    is_json = path.suffix.lower() == ".jsonl"
    told = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
    if not told:
        raise MisuseError(f"{path} has no prompts; write one a line")
    return tuple(_prompt_of(line, f"{path}, line {number}") if is_json else line for number, line in told)


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = parse_json(line.encode())["prompt"]
        if type(prompt) is not str or not prompt:
            raise TypeError("prompt is no text")
        prompt.encode()
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise MisuseError(f'{where} is {shown(line)}, wanted an object with a text as "prompt" ({type(e).__name__})') from e
    return prompt


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
        **dict(zip(NUMBERS, map(_finite, values), strict=True)),
        **{f"val_loss/{name}": _finite(loss) for name, loss in result.by_build.items()},
        "data": job.builds.name,
        "num_windows": data.num_windows,
        "num_parameters": model.num_parameters,
        "device": str(device),
        "answers": [_answer(question, model, job) for question in job.questions] if is_finite else [],
        "elapsed_s": round(time.monotonic() - began, 3),
        "key": job.key,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


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


def losses_file(identity: Row) -> str:
    """The name of the file that holds the losses of the windows; the same for all questions."""
    key = sha256_bytes(canonical_json({name: identity[name] for name in IDENTITY}))
    return f"{identity['step']:08d}-{key[:SHORT_KEY]}.safetensors"


def write_losses(path: Path, result: Evaluation) -> None:
    """Each window's loss, (W,) float32; how many are of each build, (B,) int64; and the builds' shares, (B,) float64."""
    counts = np.bincount(result.strata.source, minlength=len(result.strata.shares))
    shares = torch.tensor(result.strata.shares, dtype=torch.float64)
    write_durable(path, save({"losses": result.losses, "num_windows": torch.from_numpy(counts), "shares": shares}))


def read_losses(path: Path) -> tuple[Tensor, Strata] | None:
    """What write_losses wrote; None where there is nothing, or nothing whole."""
    try:
        tensors = load_file(path)
        losses, counts, shares = tensors["losses"], tensors["num_windows"], tensors["shares"]
        if losses.dtype != torch.float32 or losses.shape != (int(counts.sum()),) or counts.shape != shares.shape or counts.min() < 1:
            return None
        return losses, Strata(source=np.repeat(np.arange(len(counts)), counts.numpy()), shares=tuple(shares.tolist()))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
        return None


def read_evaluations(out_dir: Path) -> list[Row]:
    """The rows of a run's EVALUATIONS_FILE; none where there is no file. A torn last line is left out.

    Raises FolioError for a line before that is no row.
    """
    path = out_dir / EVALUATIONS_FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if bad := [key for key, kind in KINDS.items() if type(row[key]) is not kind]:
                raise TypeError(f"{bad[0]} is {row[bad[0]]!r:.40}")
            if bad := [key for key in NUMBERS if type(row[key]) not in (int, float, type(None))]:
                raise TypeError(f"{bad[0]} is no number")
            rows.append(row | {key: None if row[key] is None else float(row[key]) for key in NUMBERS})
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as e:
            raise FolioError(f"{path}, line {number} is no evaluation ({type(e).__name__}: {e}); take the line out") from e
    return rows


def _append(out_dir: Path, row: Row) -> None:
    """Add a row, and cut off a torn one before it. The file is replaced whole: a crash leaves it as it was or with the row."""
    path = out_dir / EVALUATIONS_FILE
    before = path.read_bytes() if path.is_file() else b""
    write_durable(path, before[: before.rfind(b"\n") + 1] + json.dumps(row, allow_nan=False).encode() + b"\n")


def describe(row: Row) -> str:
    """An evaluation in a line."""
    texts = [f"step {row['step']:,}", f"val loss {_spell_loss(row)}", f"perplexity {_spell(row['perplexity'], ',.2f')}"]
    texts += [f"bits per byte {_spell(row['bits_per_byte'], '.4f')}"]
    return "  ".join([*texts, f"{row['num_windows']:,} windows of {row['data']}, in {row['precision']} on {row['device']}"])


def _spell(value: float | None, form: str) -> str:
    return "n/a" if value is None else f"{value:{form}}"


def _spell_loss(row: Row) -> str:
    return _spell(row["val_loss"], ".4f") + ("" if row["val_loss_stderr"] is None else f" ± {row['val_loss_stderr']:.4f}")


def _show_answers(row: Row) -> None:
    for number, each in enumerate(row.get("answers", []), start=1):
        print(printable(f"question {number}: {each['prompt']}\nanswer {number}: {each['answer']}"), flush=True)


def compare(runs: Sequence[Path], *, best: bool, build_id: str | None, width: int) -> str:
    """A table of the newest or best evaluation of each run, and below what each differs by from the first, in lines of at most `width`.

    Of a run that has evaluations on `build_id`, one of these; else one on the data that it was evaluated on last.
    Raises MisuseError for a run without any, or one that stands twice.
    """
    names = names_apart(runs)
    rows = [_choose(run, best=best, build_id=build_id) for run in runs]
    lines = table(list(zip(names, rows, strict=True)), width)
    for run, name, row in list(zip(runs, names, rows, strict=True))[1:]:
        text = _difference((runs[0], names[0], rows[0]), (run, name, row))
        lines += textwrap.wrap(one_line(text), width, subsequent_indent="  ")
    return "\n".join(lines)


def _choose(run: Path, *, best: bool, build_id: str | None) -> Row:
    rows = read_evaluations(run)
    if not rows:
        raise MisuseError(f"{run} has no evaluations; make one: python train/evaluate.py {run}")
    on_these = [row for row in rows if row["build_id"] == build_id] or [row for row in rows if row["build_id"] == rows[-1]["build_id"]]
    latest_first = on_these[::-1]  # of a step that was trained twice, the one that was evaluated last
    if best:
        return min(latest_first, key=lambda row: math.inf if row["val_loss"] is None else row["val_loss"])
    return max(latest_first, key=lambda row: row["step"])


def table(entries: Sequence[tuple[str, Row]], width: int) -> list[str]:
    """Lines of a table, a run each, in at most `width` characters: names are shortened, then the last columns left out."""
    cells = [list(HEADER)] + [
        [name, f"{row['step']:,}", _spell_loss(row), _spell(row["perplexity"], ",.2f"), _spell(row["bits_per_byte"], ".4f"),
         f"{row['num_parameters']:,}"]
        for name, row in entries
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    narrowest = min(widths[0], NARROWEST_NAME)
    while len(widths) > 1 and narrowest + sum(2 + each for each in widths[1:]) > width:
        widths.pop()
    widths[0] = max(min(widths[0], width - sum(2 + each for each in widths[1:])), 1)
    return [
        "  ".join([f"{shorten(line[0], widths[0]):<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(line[1:], widths[1:], strict=False))])
        for line in cells
    ]


def _difference(one: tuple[Path, str, Row], other: tuple[Path, str, Row]) -> str:
    """How much higher or lower the loss of `other` is, window by window."""
    (folder, name, row), (other_folder, other_name, other_row) = one, other
    what = f"{other_name} − {name}"
    if any(row[key] != other_row[key] for key in ("build_id", "block_size", "num_windows")):
        return f"{what}: not evaluated on the same windows ({_spell_windows(other_row)}; {_spell_windows(row)})"
    kept = read_losses(folder / EVALUATIONS_DIR / losses_file(row))
    other_kept = read_losses(other_folder / EVALUATIONS_DIR / losses_file(other_row))
    if kept is None or other_kept is None or len(kept[0]) != len(other_kept[0]):
        return f"{what}: the losses of the windows are missing in {EVALUATIONS_DIR}"
    gain, stderr = kept[1].mean_and_stderr(other_kept[0].double() - kept[0].double())
    if not math.isfinite(gain):
        return f"{what}: n/a"
    error = "" if stderr is None else f" ± {stderr:.4f}"
    verdict = "" if stderr is None else ", beyond noise" if abs(gain) > NOISE * stderr else ", within noise"
    return f"{what}: {gain:+.4f}{error} nats a token on the same {row['num_windows']:,} windows{verdict}"


def _spell_windows(row: Row) -> str:
    return f"{row['num_windows']:,} of {row['data']} {row['build_id'][:SHORT_KEY]}, block_size {row['block_size']:,}"


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
