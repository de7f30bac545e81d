"""The library lm_eval: load tasks by name or file, and evaluate a model on them."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import datasets
import evaluate
import lm_eval
import lm_eval.evaluator
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from preprocess.errors import MAX_SHOWN, FolioError, MisuseError, first_line, shorten
from preprocess.shards.files import JsonObject
from train.evaluation.harness.task_files import is_task_file, read_task_file

HARNESS_VERSION = lm_eval.__version__
FEWSHOT_SEED = 1234  # the harness's default
BOOTSTRAP_SAMPLES = 1000  # to estimate a standard error that has no formula, to about 2 %
DISABLE_PROCESSES = "DISABLE_MULTIPROC"  # an environment variable of the harness


@dataclass(frozen=True, kw_only=True)
class LoadedTasks:
    """Tasks with their data."""

    task_dict: JsonObject  # the harness's TaskDict: its tasks and groups by name
    files: dict[str, str]  # of the tasks that YAML files describe: name → file name


def load_tasks(names: Sequence[str], *, num_fewshot: int | None, note: Callable[[str], None]) -> LoadedTasks:
    """Return the tasks and groups of tasks that `names` are, each a name or the path of a YAML file.

    `num_fewshot` replaces the number of examples before each question. `note` is called with a line before
    something slow. Raises MisuseError for an unknown task, or if its file does not describe one, and
    FolioError if its data cannot be downloaded.
    """
    if repeated := [name for name in names if names.count(name) > 1]:
        raise MisuseError(f"--tasks names {repeated[0]!r:.80} twice")
    specs = [read_task_file(Path(name)) if is_task_file(name) else name for name in names]
    with restrict_harness():
        has_names = any(isinstance(spec, str) for spec in specs)
        if has_names:
            note("reading the names of the harness's tasks")
        manager = TaskManager(include_defaults=has_names)
        loaded: JsonObject = {"tasks": {}, "groups": {}, "group_map": {}}
        for name, spec in zip(names, specs, strict=True):
            if isinstance(spec, str):
                _check_name(spec, manager.all_tasks)
                note(f"loading the data of {spec}")
            part = _load_task(name, spec, manager)
            if both := loaded["tasks"].keys() & part["tasks"].keys():
                raise MisuseError(f"--tasks has the task {min(both)!r:.80} twice; name it once")
            for key, values in loaded.items():
                values.update(part.get(key, {}))
    for name, task in loaded["tasks"].items():
        _set_fewshot(name, task, num_fewshot)
    pairs = zip(names, specs, strict=True)
    files = {spec["task"]: Path(name).name for name, spec in pairs if isinstance(spec, dict)}
    return LoadedTasks(task_dict=loaded, files=files)


def _check_name(name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name[:MAX_SHOWN], known, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise MisuseError(
            f"lm-evaluation-harness has no task {name!r:.80}; {hint}`lm_eval ls tasks` lists them. For a task of your "
            "own, pass the path of its .yaml file"
        )


def _load_task(name: str, spec: str | JsonObject, manager: Any) -> JsonObject:
    try:
        loaded: JsonObject = manager.load([spec])
    except (FolioError, MemoryError):
        raise
    except (ConnectionError, OSError) as e:
        raise FolioError(f"the data of the task {name:.80} cannot be read: {shorten(first_line(e))}") from e
    except Exception as e:  # lm_eval checks little, so a wrong description raises errors of any kind
        what = "is not a task of lm-evaluation-harness" if isinstance(spec, dict) else "cannot be loaded"
        raise MisuseError(f"{name:.200} {what}: {shorten(f'{type(e).__name__}: {first_line(e)}')}") from e
    for task_name, task in loaded["tasks"].items():
        missing = [metric for metric, function in getattr(task, "_metric_fn_list", {}).items() if function is None]
        if missing and task.get_config("process_results") is None:
            _reject_metric(missing[0])
        if getattr(task, "UNSAFE_CODE", False):
            raise MisuseError(f"the task {task_name:.80} runs code that the model writes, which Folio does not do")
        if getattr(task, "MULTIMODAL", False):
            raise MisuseError(f"the task {task_name:.80} has images or sound, and the model reads only text")
    return loaded


def _set_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    """Set the number of examples, as the harness does: a task that fixes it at 0 keeps it."""
    default = task.get_config("num_fewshot")
    count = (default or 0) if num_fewshot is None or default == 0 else num_fewshot
    if num_fewshot is not None and default == 0 and num_fewshot:
        raise MisuseError(f"the task {name:.80} has num_fewshot 0 and takes no examples; omit --num-fewshot")
    task.set_config(key="num_fewshot", value=count)
    if not count:
        return
    own_split = task.get_config("fewshot_split") or task.get_config("training_split")
    other_split = task.has_validation_docs() and task.has_test_docs()
    samples = getattr(task, "fewshot_cfg", None) is not None and task.fewshot_cfg.samples is not None
    if not (own_split or other_split or samples):
        raise MisuseError(
            f"the task {name:.80} has no split for {count} examples besides the one that it is evaluated on; omit "
            "--num-fewshot, or name a training_split"
        )


def evaluate_model(model: Any, loaded: LoadedTasks, *, limit: int | None, warn: Callable[[str], None]) -> JsonObject:
    """Return the results of the harness for `model` on the tasks that `load_tasks` returned.

    `limit` is the maximum number of documents of each task. `warn` is called with what the harness warns
    of. Raises MisuseError if a template does not fit the data of its task.
    """
    for task in loaded.task_dict["tasks"].values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with restrict_harness() as warnings:
        try:
            results: JsonObject = lm_eval.evaluator.evaluate(
                model, loaded.task_dict, limit=limit, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=False
            )
        except TemplateError as e:
            raise MisuseError(f"a template of the task does not fit its data: {shorten(first_line(e))}") from e
        except (ValueError, TypeError, LookupError) as e:
            if _is_raised_here(e):
                raise
            problem = shorten(f"{type(e).__name__}: {first_line(e)}")
            raise MisuseError(f"the description of a task does not fit its data: {problem}") from e
    for warning in dict.fromkeys(warnings):
        warn(f"lm_eval: {warning}")
    return results


def _is_raised_here(error: Exception) -> bool:
    """Return whether the harness called the code of this package, which raised `error`."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)[1:]]
    return any(file.is_relative_to(Path(__file__).parents[2]) for file in files)


@contextmanager
def restrict_harness() -> Iterator[list[str]]:
    """Inside the block, let the harness run no code from a task file or a download, and print nothing.

    Templates are rendered in a sandbox. Yields a list to which the first line of each warning of the
    harness is appended.
    """
    environment = lm_eval.utils.env
    sandbox = ImmutableSandboxedEnvironment(undefined=environment.undefined, keep_trailing_newline=True)
    sandbox.filters.update(environment.filters)
    load_metric, processes = evaluate.load, os.environ.get(DISABLE_PROCESSES)
    progress_bar: Any = tqdm
    initialize_bar = progress_bar.__init__
    had_bars = datasets.is_progress_bar_enabled()
    handler = _WarningList()
    with _log_to(logging.getLogger("lm_eval"), handler), _log_to(logging.getLogger("huggingface_hub"), None):
        lm_eval.utils.env, evaluate.load = sandbox, _reject_metric
        os.environ[DISABLE_PROCESSES] = "1"  # a process that is forked while torch has threads may hang
        progress_bar.__init__ = functools.partialmethod(initialize_bar, disable=True)
        datasets.disable_progress_bars()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield handler.lines
        finally:
            lm_eval.utils.env, evaluate.load, progress_bar.__init__ = environment, load_metric, initialize_bar
            if processes is None:
                del os.environ[DISABLE_PROCESSES]
            else:
                os.environ[DISABLE_PROCESSES] = processes
            if had_bars:
                datasets.enable_progress_bars()


class _WarningList(logging.Handler):
    """Keeps the first line of each warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(shorten(record.getMessage().partition("\n")[0]))


@contextmanager
def _log_to(logger: logging.Logger, handler: logging.Handler | None) -> Iterator[None]:
    """Inside the block, send what `logger` logs only to `handler`."""
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler or logging.NullHandler()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


def _reject_metric(name: str, *_: object, **__: object) -> NoReturn:
    raise MisuseError(
        f"the metric {name!r:.80} of the task is a program that the library evaluate downloads; Folio runs no code "
        "from downloads"
    )
