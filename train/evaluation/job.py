"""One evaluation: a checkpoint, the text it is evaluated on, what it is asked; and the row that tells of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import canonical_json, sha256_bytes
from train.config import Config, config_from_saved
from train.core.device import choose_precision, make_autocast, set_matmul_precision
from train.data.batches import MOST_WINDOWS, ValidationWindows
from train.data.builds import check_same_control_tokens
from train.data.streams import DataSource
from train.evaluation.prompts import Question, draw_questions, question_of
from train.evaluation.results import IDENTITY, NUMBERS, Row, finite, losses_file, read_losses, write_losses
from train.model import make_model
from train.model.base import LanguageModel
from train.model.generate import decode_stream, generate
from train.model.sampler import load_text_tokenizer
from train.run.checkpoint import ADVICE, MODEL_FILE, Checkpoint, CheckpointError, check_shapes, load_model
from train.run.preflight import is_out_of_memory
from train.run.run_dir import EVALUATIONS_DIR, vocabulary_of
from train.run.validation import Evaluation, evaluate, summarize

MOST_LOGITS = (
    1 << 27
)  # of a forward pass on a CPU, 0.5 GB: where its memory ends, the system ends the process without a word


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to do with every checkpoint: settings that are None are the run's own."""

    data: str | None = None
    num_questions: int = 0
    prompts: tuple[str, ...] = ()
    completion_tokens: int | None = None
    temperature: float = 0.0

    @property
    def is_asking(self) -> bool:
        return bool(self.num_questions or self.prompts)


@dataclass(frozen=True, kw_only=True)
class Job:
    """An evaluation to make: a checkpoint, the settings that it is made under, the text, and what is asked."""

    checkpoint: Checkpoint
    config: Config
    source: DataSource
    manifest: dict[str, Any]  # of the run's own vocabulary
    tokenizer: Any  # None where nothing is asked
    questions: list[Question]

    @property
    def identity(self) -> dict[str, Any]:
        """IDENTITY, by name."""
        sha256 = self.checkpoint.numbers["files"][MODEL_FILE]["sha256"]
        values = (self.checkpoint.step, sha256, self.source.build_id, self.config.block_size, self.config.precision)
        return dict(zip(IDENTITY, values, strict=True))

    @property
    def key(self) -> str:
        """The same for the same evaluation: the same losses, and the same questions answered in the same way."""
        config = self.config
        how = [
            config.completion_tokens,
            config.temperature,
            *([config.top_k, config.top_p, config.seed] if config.temperature else []),
        ]
        asked = [[question.ids for question in self.questions], how] if self.questions else None
        return sha256_bytes(canonical_json([self.identity, asked]))


def prepare(
    checkpoint: Checkpoint,
    asked: Asked,
    *,
    device: torch.device,
    open_data_source: Callable[[str], DataSource],
    warn: Callable[[str], None],
) -> Job:
    """What evaluating `checkpoint` takes, but for its weights and the windows.

    Raises MisuseError for data that are not there or do not fit, and for settings out of their range.
    """
    saved = config_from_saved(checkpoint.origin.settings, str(checkpoint.folder))
    config = dataclasses.replace(
        saved,
        data=asked.data or saved.data,
        device=str(device),
        precision=_precision(saved.precision, device, warn=warn),
        eval_tokens=None,
        completion_tokens=asked.completion_tokens or saved.completion_tokens,
        temperature=asked.temperature,
        completion_author=None,
        completion_city=None,
        completion_year=None,
    )
    source = _open(
        config.data, checkpoint, is_other=asked.data is not None, open_data_source=open_data_source, warn=warn
    )
    if not asked.is_asking:
        return Job(checkpoint=checkpoint, config=config, source=source, manifest={}, tokenizer=None, questions=[])
    folder, manifest = vocabulary_of(checkpoint)
    tokenizer = load_text_tokenizer(folder, manifest)
    questions = draw_questions(source, asked.num_questions, tokenizer)
    questions += [question_of(prompt, manifest, tokenizer, config) for prompt in asked.prompts]
    return Job(
        checkpoint=checkpoint, config=config, source=source, manifest=manifest, tokenizer=tokenizer, questions=questions
    )


def _precision(trained_in: str, device: torch.device, *, warn: Callable[[str], None]) -> str:
    """The precision of training where `device` can compute in it."""
    try:
        return choose_precision(trained_in, device)
    except MisuseError:
        instead = choose_precision("auto", device)
        warn(f"the run trained in {trained_in}, which {device} cannot; it is evaluated in {instead}")
        return instead


def _open(
    data: str,
    checkpoint: Checkpoint,
    *,
    is_other: bool,
    open_data_source: Callable[[str], DataSource],
    warn: Callable[[str], None],
) -> DataSource:
    """The text to evaluate on: what the run trained on, or other that it was told to take."""
    try:
        source = open_data_source(data)
    except MisuseError as e:
        raise e if is_other else MisuseError(f"{e}; or name other data of its tokenizer by --data") from e
    if source.build_id == checkpoint.origin.build_id:
        return source
    if source.tokenizer_sha256 != checkpoint.origin.tokenizer_sha256:
        raise MisuseError(
            f"{source.name} has another tokenizer than {checkpoint.folder} was trained with, so that every id means something else; "
            "name data of its tokenizer by --data"
        )
    if not is_other:
        raise MisuseError(
            f"{source.name} is not what {checkpoint.folder} was trained on any more; --data={data} takes it all the same"
        )
    check_same_control_tokens(
        source.name, source.manifest, known_by=str(checkpoint.folder), known=vocabulary_of(checkpoint)[1]
    )
    warn(f"{source.name} is not the data that the run trained on, but of the same tokenizer")
    return source


def perform(job: Job, data: ValidationWindows, out_dir: Path, *, tell: Callable[[Row], None]) -> Row:
    """Make the evaluation: the row that tells of it. The losses of its windows are kept in `out_dir`.

    `tell` is called with all of the row but the answers, before anything is written or asked: that may fail, or take long.
    Raises CheckpointError where the weights are damaged or have been deleted, FolioError where memory does not hold a window.
    """
    try:
        return _perform(job, data, out_dir, tell=tell)
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise FolioError(
            f"the model and a single window do not fit the memory of {job.config.device}; take another --device"
        ) from e


def _perform(job: Job, data: ValidationWindows, out_dir: Path, *, tell: Callable[[Row], None]) -> Row:
    began, config = time.monotonic(), job.config
    device = torch.device(config.device)
    set_matmul_precision(config.precision)
    model = _load(job.checkpoint, config).to(device)
    path = out_dir / EVALUATIONS_DIR / losses_file(job.identity)
    kept = read_losses(path)
    is_kept = kept is not None and len(kept[0]) == data.num_windows
    result = summarize(kept[0], data) if kept is not None and is_kept else _measure(job, model, data)
    is_finite = math.isfinite(result.loss)
    values = (result.loss, result.stderr, result.perplexity, result.bits_per_byte)
    row = {
        **job.identity,
        **dict(zip(NUMBERS, map(finite, values), strict=True)),
        **{f"val_loss/{name}": finite(loss) for name, loss in result.by_build.items()},
        "data": job.source.name,
        "num_windows": data.num_windows,
        "num_parameters": model.num_parameters,
        "device": str(device),
    }
    tell(row)
    if not is_kept:
        write_losses(path, result)
    answers = [_answer(question, model, job) for question in job.questions] if is_finite else []
    return {**row, "answers": answers, "elapsed_s": round(time.monotonic() - began, 3), "key": job.key}


def _load(checkpoint: Checkpoint, config: Config) -> LanguageModel:
    try:
        check_shapes(checkpoint, config)
        model = make_model(config, checkpoint.vocab_size)
        load_model(checkpoint, model)
    except OSError as e:
        raise CheckpointError(f"{checkpoint.folder} cannot be read any more, was it deleted meanwhile?{ADVICE}") from e
    except MisuseError as e:
        raise CheckpointError(str(e)) from e
    return model


def _measure(job: Job, model: LanguageModel, data: ValidationWindows) -> Evaluation:
    """The evaluation by the model, of fewer windows at once where the memory holds no more."""
    autocast, batch_size = make_autocast(job.config.precision, torch.device(job.config.device)), _batch_size(job)
    while True:
        try:
            return evaluate(model, data, batch_size=batch_size, autocast=autocast)
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e) or batch_size == 1:
                raise
        batch_size //= 2


def _batch_size(job: Job) -> int:
    """Windows a forward pass: as many as training found to fit, so that sums are rounded as its own were."""
    told = job.checkpoint.numbers.get("micro_batch")
    size = told if type(told) is int and 0 < told <= MOST_WINDOWS else job.config.batch_size
    if job.config.device != "cpu":
        return size
    return max(1, min(size, MOST_LOGITS // (job.config.block_size * job.checkpoint.vocab_size)))


def _answer(question: Question, model: LanguageModel, job: Job) -> dict[str, str]:
    manifest = job.manifest
    silent = {*manifest["special_tokens"].values(), *range(manifest["vocab_size"], model.vocab_size)}
    try:
        drawn = [
            i for i in generate(model, question.ids, config=job.config, eot_id=manifest["eot_id"]) if i not in silent
        ]
    except FolioError as e:
        raise CheckpointError(f"{job.checkpoint.folder}: {e}") from e
    return {"prompt": question.prompt, "answer": "".join(decode_stream(job.tokenizer.decode_bytes, drawn))}
