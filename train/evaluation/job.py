"""Evaluate one checkpoint: its loss on all validation windows, and its completions of prompts."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preprocess.console import Activity, Console
from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import canonical_json, sha256_bytes
from preprocess.shards.manifest import Manifest
from train.config import DOCUMENTS, STREAM_PREFIX, Config
from train.core.device import choose_precision, make_autocast, set_matmul_precision
from train.core.memory import is_out_of_memory
from train.data.batches import ValidationWindows
from train.data.builds import check_same_control_tokens, tokenizer_sha256
from train.data.streams import DataSource, StreamedText
from train.evaluation.prompts import Prompt, draw_prompts, encode_prompt
from train.evaluation.results import (
    Completion,
    EvaluationRow,
    LossInputs,
    finite_or_none,
    read_losses,
    write_losses,
)
from train.model import make_model
from train.model.base import LanguageModel
from train.model.generate import decode_stream, generate
from train.model.sampler import load_text_tokenizer
from train.run.checkpoint import Checkpoint, check_shapes, load_model
from train.run.checkpoint_info import CheckpointError, CheckpointInfo
from train.run.run_dir import EVALUATIONS_DIR, vocabulary_of
from train.run.validation import Evaluation, evaluate, summarize

# The maximum number of logits of one forward pass on a CPU: 0.5 GB in float32. A GPU raises an error
# if its memory does not suffice, and then a smaller batch is tried. On a CPU the system may kill the
# process instead.
MAX_CPU_LOGITS = 1 << 27


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of evaluate.py for each checkpoint. None means the value of the run."""

    data: str | None = None
    num_prompts: int = 0  # how many prompts to draw from the validation split
    prompts: tuple[str, ...] = ()  # prompts of a file
    completion_tokens: int | None = None
    temperature: float = 0.0

    @property
    def has_prompts(self) -> bool:
        return bool(self.num_prompts or self.prompts)


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """Everything that an evaluation needs except the weights and the windows."""

    checkpoint: Checkpoint
    config: Config  # the run's, with the device, precision and sampling settings of the evaluation
    build_id: str  # of the data
    times_sha256: str | None  # of the files of a stream; None if it cannot be opened, and for builds
    open_source: Callable[[], DataSource]  # opens the data; need not be called if the losses are known
    prompts: list[Prompt]
    manifest: Manifest | None  # of the run's vocabulary; None if there are no prompts
    tokenizer: Any  # of the run; None if there are no prompts
    console: Console = dataclasses.field(default_factory=lambda: Console(quiet=True))  # shows the progress

    @property
    def loss_inputs(self) -> LossInputs:
        return LossInputs(
            step=self.checkpoint.info.step,
            model_sha256=self.checkpoint.info.model_sha256,
            build_id=self.build_id,
            block_size=self.config.block_size,
            precision=self.config.precision,
            times_sha256=self.times_sha256,
        )

    @property
    def is_stream(self) -> bool:
        return self.config.data.startswith(STREAM_PREFIX)

    @property
    def key(self) -> str:
        """A hash of everything that the losses and the completions depend on."""
        config = self.config
        sampling: list[Any] = [config.completion_tokens, config.temperature]
        if config.temperature:  # at 0 the most likely token is taken, and these have no effect
            sampling += [config.top_k, config.top_p, config.seed]
        completions = [[prompt.ids for prompt in self.prompts], sampling] if self.prompts else None
        return sha256_bytes(canonical_json([self.loss_inputs.identify(), completions]))

    def make_row_without_loss(self) -> EvaluationRow:
        """Return a row of no windows, for completions if the data cannot be opened."""
        return EvaluationRow(
            **dataclasses.asdict(self.loss_inputs),
            key=self.key,
            data=self.config.data,
            num_windows=0,
            num_parameters=0,
            device=self.config.device,
        )


def prepare_job(
    checkpoint: Checkpoint,
    settings: EvaluationSettings,
    *,
    device: torch.device,
    open_data_source: Callable[[str], DataSource],
    warn: Callable[[str], None],
) -> EvaluationJob:
    """Return the job that evaluates `checkpoint`, with its prompts encoded.

    The data is opened here only if `settings` names data, or if prompts are drawn from it. Raises
    MisuseError if the data is missing or does not fit the checkpoint, if a prompt cannot be
    encoded, or if a setting is out of range.
    """
    saved = checkpoint.info.config
    config = dataclasses.replace(
        saved,
        data=settings.data or saved.data,
        device=str(device),
        precision=choose_supported_precision(saved.precision, device, warn=warn),
        eval_tokens=None,
        completion_tokens=settings.completion_tokens or saved.completion_tokens,
        temperature=settings.temperature,
        completion_author=None,
        completion_city=None,
        completion_year=None,
    )
    is_other = settings.data is not None
    open_source = functools.partial(
        _open_source, config.data, checkpoint, is_other=is_other, open_data_source=open_data_source, warn=warn
    )
    build_id = open_source().build_id if is_other else checkpoint.info.origin.build_id
    manifest, tokenizer, prompts = None, None, []
    if settings.has_prompts:
        folder, manifest = vocabulary_of(checkpoint)
        tokenizer = load_text_tokenizer(folder, manifest)
        prompts = draw_prompts(open_source(), settings.num_prompts, tokenizer) if settings.num_prompts else []
        prompts += [encode_prompt(text, manifest, tokenizer, config) for text in settings.prompts]
    return EvaluationJob(
        checkpoint=checkpoint,
        config=config,
        build_id=build_id,
        times_sha256=_find_times(open_source) if config.data.startswith(STREAM_PREFIX) else None,
        open_source=open_source,
        prompts=prompts,
        manifest=manifest,
        tokenizer=tokenizer,
    )


def choose_supported_precision(precision: str, device: torch.device, *, warn: Callable[[str], None]) -> str:
    """Return the precision of training, or another one if `device` does not support it."""
    try:
        return choose_precision(precision, device)
    except MisuseError:
        supported = choose_precision("auto", device)
        warn(f"the run was trained in {precision}, which {device} does not support; evaluating it in {supported}")
        return supported


def _find_times(open_source: Callable[[], DataSource]) -> str | None:
    """Return the hash of the modification times of a stream's files, None if it cannot be opened."""
    try:
        source = open_source()
    except FolioError:  # stored losses need no data
        return None
    return source.times_sha256 if isinstance(source, StreamedText) else None


def _open_source(
    data: str,
    checkpoint: Checkpoint,
    *,
    is_other: bool,
    open_data_source: Callable[[str], DataSource],
    warn: Callable[[str], None],
) -> DataSource:
    """Open `data`: what the run was trained on or, if `is_other`, other data of the same tokenizer.

    Raises MisuseError if it is missing, has changed or has another tokenizer.
    """
    try:
        source = open_data_source(data)
    except MisuseError as e:
        raise e if is_other else MisuseError(f"{e}; or set other data of its tokenizer with --data") from e
    if source.build_id == checkpoint.info.origin.build_id:
        return source
    _, manifest = vocabulary_of(checkpoint)
    if source.tokenizer_sha256 != tokenizer_sha256(manifest):
        raise MisuseError(
            f"{source.name} has another tokenizer than {checkpoint.folder} was trained with, "
            "so its ids mean something else; set data of the same tokenizer with --data"
        )
    if not is_other:
        raise MisuseError(
            f"{source.name} has changed since {checkpoint.folder} was trained on it; set --data={data} to use it anyway"
        )
    check_same_control_tokens(source.name, source.manifest, other_name=str(checkpoint.folder), other=manifest)
    warn(f"{source.name} is not the data that the run was trained on, but has the same tokenizer")
    return source


def run_job(
    job: EvaluationJob,
    out_dir: Path,
    *,
    known: EvaluationRow | None,
    open_windows: Callable[[], ValidationWindows],
    log: Callable[[EvaluationRow], None],
) -> EvaluationRow:
    """Evaluate a checkpoint, write the losses of its windows to `out_dir`, and return the row.

    `known` is a row with the same losses, if there is one; the windows are then not opened. `log`
    is called with the row as soon as the losses are computed, because writing them may fail, and
    completions may take long. Raises CheckpointError if the weights are damaged or deleted, and
    FolioError if the memory does not suffice for one window.
    """
    try:
        began_at = time.monotonic()
        set_matmul_precision(job.config.precision)
        with job.console.activity(f"reading the checkpoint of step {job.checkpoint.info.step:,}"):
            model = _load_model(job.checkpoint, job.config).to(torch.device(job.config.device))
        if known is None:
            row = _find_losses(job, model, out_dir, data=open_windows(), log=log)
        else:
            row = dataclasses.replace(known, key=job.key, device=job.config.device, num_parameters=model.num_parameters)
            log(row)
        completions = _complete_all(job, model) if row.val_loss is not None or not row.num_windows else ()
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise FolioError(
            f"the model and a single window do not fit the memory of {job.config.device}; use another --device"
        ) from e
    return dataclasses.replace(row, completions=completions, elapsed_s=round(time.monotonic() - began_at, 3))


def _find_losses(
    job: EvaluationJob,
    model: LanguageModel,
    out_dir: Path,
    *,
    data: ValidationWindows,
    log: Callable[[EvaluationRow], None],
) -> EvaluationRow:
    """Compute and write the losses, unless `out_dir` has them, and return a row without completions."""
    path = out_dir / EVALUATIONS_DIR / job.loss_inputs.losses_file
    saved = read_losses(path)
    is_saved = saved is not None and len(saved[0]) == data.num_windows
    result = summarize(saved[0], data) if saved is not None and is_saved else _evaluate(job, model, data)
    row = EvaluationRow(
        **dataclasses.asdict(job.loss_inputs),
        key=job.key,
        val_loss=finite_or_none(result.loss),
        val_loss_stderr=finite_or_none(result.stderr),
        perplexity=finite_or_none(result.perplexity),
        bits_per_byte=finite_or_none(result.bits_per_byte),
        val_loss_by_build={name: finite_or_none(loss) for name, loss in result.by_build.items()},
        data=job.open_source().name,
        num_windows=data.num_windows,
        num_parameters=model.num_parameters,
        device=job.config.device,
        is_packed=job.config.data_order == DOCUMENTS,
    )
    log(row)
    if not is_saved:
        write_losses(path, result)
    return row


def _load_model(checkpoint: Checkpoint, config: Config) -> LanguageModel:
    try:
        check_shapes(checkpoint, config)
        model = make_model(config, checkpoint.info.vocab_size)
        load_model(checkpoint, model)
    except MisuseError as e:
        raise CheckpointError(str(e)) from e
    return model


def _evaluate(job: EvaluationJob, model: LanguageModel, data: ValidationWindows) -> Evaluation:
    """Compute the losses. If memory runs out, try again with half as many windows at once."""
    autocast = make_autocast(job.config.precision, torch.device(job.config.device))
    batch_size = choose_batch_size(job.checkpoint.info, job.config)
    while True:
        try:
            with job.console.show(Activity("evaluating", total=data.num_windows, unit="windows")) as activity:
                return evaluate(model, data, batch_size=batch_size, autocast=autocast, count=activity.count)
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e) or batch_size == 1:
                raise
        batch_size //= 2


def choose_batch_size(info: CheckpointInfo, config: Config) -> int:
    """Return the number of windows of a forward pass.

    If possible it is the micro-batch of training: sums are then rounded in the same way, and the
    losses equal those that training logged.
    """
    size = info.micro_batch or config.batch_size
    if config.device != "cpu":
        return size
    return max(1, min(size, MAX_CPU_LOGITS // (config.block_size * info.vocab_size)))


def _complete_all(job: EvaluationJob, model: LanguageModel) -> tuple[Completion, ...]:
    """Complete the prompts.

    Raises CheckpointError if the output of the model is not finite.
    """
    completions = []
    with job.console.show(Activity("completing", total=len(job.prompts), unit="prompts")) as activity:
        for prompt in job.prompts:
            completions.append(_complete(prompt, model, job))
            activity.count(1)
    return tuple(completions)


def _complete(prompt: Prompt, model: LanguageModel, job: EvaluationJob) -> Completion:
    manifest = job.manifest
    assert manifest is not None
    # Ids without text: control tokens, and ids that the run's vocabulary does not have.
    silent_ids = {*manifest.special_tokens.values(), *range(manifest.vocab_size, model.vocab_size)}
    try:
        generated = list(generate(model, prompt.ids, config=job.config, eot_id=manifest.eot_id))
    except FolioError as e:
        raise CheckpointError(f"{job.checkpoint.folder}: {e}") from e
    pieces = decode_stream(job.tokenizer.decode_bytes, (i for i in generated if i not in silent_ids))
    return Completion(prompt=prompt.text, completion="".join(pieces))
