"""Tasks of lm-evaluation-harness that a YAML file describes, with data in JSON lines beside it.

A file in the harness's format can name Python functions, metrics that are downloaded programs, and
pickled data. Files are data here, so this module accepts only what needs no code, and rejects the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from preprocess.errors import FolioError, MisuseError, first_line, shorten
from preprocess.shards.files import JsonObject, parse_json, read_small_file

MAX_TASK_BYTES, MAX_DATA_BYTES = 1 << 20, 256 << 20
SPLITS = ("training_split", "validation_split", "test_split")
KEYS = {
    "task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", *SPLITS, "fewshot_split",
    "output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter",
    "fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list", "generation_kwargs", "repeats",
    "filter_list", "should_decontaminate", "doc_to_decontamination_query", "gen_prefix", "metadata",
}  # fmt: skip


def is_task_file(name: str) -> bool:
    """Return whether `name` is the path of a task file, not the name of a task."""
    return name.endswith((".yaml", ".yml")) or "/" in name or "\\" in name


def read_task_file(path: Path) -> JsonObject:
    """Return the description of a task, as a dict for the harness.

    Local data is in the key `custom_dataset`, a function that returns the rows of each split. Raises
    MisuseError if the file or its data is missing or is not what docs/evaluating.md describes.
    """
    task = _read_yaml(path)
    name = task.get("task")
    if not isinstance(name, str) or not name:
        raise MisuseError(f"{path} must have the name of one task as `task`, got {shorten(repr(name))}")
    if unknown := sorted(map(str, task.keys() - KEYS)):
        raise MisuseError(f"{path} has the key {unknown[0]!r:.80}, which Folio does not support; leave it out")
    _check_metrics(path, task.get("metric_list"))
    if task.get("dataset_path") != "json":
        if "/" not in str(task.get("dataset_path")):
            raise MisuseError(
                f"{path} has dataset_path {shorten(repr(task.get('dataset_path')))}, expected json with "
                "dataset_kwargs: {data_files: {SPLIT: FILE}}, or OWNER/NAME of a dataset of the Hugging Face hub"
            )
        return task
    rows = {split: read_rows(file) for split, file in _find_data_files(path, task).items()}
    for key in SPLITS:
        if task.get(key) is not None and task[key] not in rows:
            raise MisuseError(f"{path} has {key} {shorten(repr(task[key]))}, which data_files do not name")
    if not any(task.get(key) for key in SPLITS[1:]):
        raise MisuseError(f"{path} has neither test_split nor validation_split; name the split to evaluate on")
    return task | {"custom_dataset": lambda **_: _make_datasets(rows)}


def _read_yaml(path: Path) -> JsonObject:
    try:
        task = yaml.safe_load(read_small_file(path, MAX_TASK_BYTES).decode())
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MisuseError(f"there is no task file {path}; pass the name of a task, or the path of its YAML file") from e
    except (UnicodeDecodeError, RecursionError) as e:
        raise MisuseError(f"{path} is not YAML ({first_line(e)})") from e
    except yaml.YAMLError as e:
        if "'!function'" in str(e):
            raise MisuseError(
                f"{path} calls a Python function (!function), and Folio runs no code from a task file; write a "
                "template instead, or export the run and use the command lm_eval"
            ) from e
        raise MisuseError(f"{path} is not YAML: {shorten(' '.join(str(e).split()))}") from e
    if not isinstance(task, dict):
        raise MisuseError(f"{path} must be a YAML mapping with the key `task`, got {shorten(repr(task))}")
    return task


def _check_metrics(path: Path, metrics: Any) -> None:
    """Raise MisuseError unless each metric is one that the harness has itself."""
    if metrics is None:
        return
    if not isinstance(metrics, list) or not all(isinstance(each, dict) and "metric" in each for each in metrics):
        raise MisuseError(f"{path} must have as metric_list a list of objects with the key `metric`")
    from lm_eval.api import metrics as _  # noqa: F401  # registers the metrics
    from lm_eval.api.registry import METRIC_REGISTRY

    for each in metrics:
        if not isinstance(each["metric"], str) or each["metric"] not in METRIC_REGISTRY or each.get("hf_evaluate"):
            known = ", ".join(sorted(METRIC_REGISTRY.keys()))
            raise MisuseError(f"{path} has the metric {shorten(repr(each['metric']))}, expected one of {known}")


def _find_data_files(path: Path, task: JsonObject) -> dict[str, Path]:
    """Return the data file of each split. Relative paths are relative to the folder of the task file."""
    kwargs = task.get("dataset_kwargs")
    files = kwargs.get("data_files") if isinstance(kwargs, dict) else None
    files = {"train": files} if isinstance(files, str) else files  # as the library datasets names it
    if not isinstance(files, dict) or not files or set(kwargs or {}) != {"data_files"}:
        raise MisuseError(f"{path} must have the data as dataset_kwargs: {{data_files: {{SPLIT: FILE}}}}")
    if not all(isinstance(file, str) for file in files.values()):
        raise MisuseError(f"{path} must name one file for each split in data_files")
    return {str(split): path.parent / file for split, file in files.items()}


def read_rows(path: Path) -> list[JsonObject]:
    """Return the objects of a file in JSON lines, all of which have the same keys.

    Raises MisuseError if the file is missing, is empty, or has a line of another form.
    """
    try:
        lines = read_small_file(path, MAX_DATA_BYTES).splitlines()
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MisuseError(f"the data file {path} of the task is missing; put it there, or change data_files") from e
    except FolioError as e:
        raise MisuseError(f"data of the task: {e}") from e
    rows: list[JsonObject] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as e:
            raise MisuseError(f"{path}, line {number:,} is not JSON: {shorten(str(e))}") from e
        if not isinstance(row, dict):
            raise MisuseError(f"{path}, line {number:,} must be a JSON object, got {shorten(repr(row))}")
        if rows and row.keys() != rows[0].keys():
            key = min(row.keys() ^ rows[0].keys())
            relation = "lacks" if key in rows[0] else "has"
            raise MisuseError(
                f"{path}, line {number:,} {relation} the key {key!r:.80}, unlike the first line; give all the same keys"
            )
        rows.append(row)
    if not rows:
        raise MisuseError(f"the data file {path} of the task is empty; write one JSON object per line")
    return rows


def _make_datasets(rows: dict[str, list[JsonObject]]) -> Any:
    import datasets

    return datasets.DatasetDict({split: datasets.Dataset.from_list(objects) for split, objects in rows.items()})
