"""The results of tasks, as they are stored and printed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from preprocess.errors import one_line
from preprocess.shards.files import JsonObject
from train.core.names import shorten_middle

HEADER = ("task", "version", "shots", "examples", "metric", "value")
MAX_TASK_CHARACTERS = 40
UNVERSIONED = "Yaml"  # what the harness has as the version of a task without one
NO_FILTER = "none"  # the harness's name for the answers of the model as they are


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """The model of a row, and how it was computed."""

    step: int
    model_sha256: str
    block_size: int
    precision: str
    device: str


@dataclass(frozen=True, kw_only=True)
class TaskRow(EvaluatedModel):
    """A row of task_evaluations.jsonl: the result of one task, or of a group of tasks."""

    task: str
    task_file: str | None  # the name of its YAML file, if it is not one of the harness
    version: str | None
    num_fewshot: int | None
    limit: int | None
    num_examples: int
    metrics: tuple[JsonObject, ...]  # each with metric, filter, value, stderr and higher_is_better
    lm_eval_version: str

    def as_dict(self) -> JsonObject:
        """Return the row as a JSON object, as it is stored."""
        return dataclasses.asdict(self) | {"metrics": list(self.metrics)}


def make_rows(
    results: JsonObject, model: EvaluatedModel, *, limit: int | None, files: dict[str, str], lm_eval_version: str
) -> list[TaskRow]:
    """Return a row for each task and group in the harness's `results`. `files` has the files of tasks."""
    rows = []
    for name, values in results["results"].items():
        metrics = tuple(_iter_metrics(values, results["higher_is_better"].get(name) or {}))
        if not metrics:  # a group without a result of its own
            continue
        version, num_fewshot = results["versions"].get(name), results["n-shot"].get(name)
        row = TaskRow(
            **dataclasses.asdict(model),
            task=name,
            task_file=files.get(name),
            version=None if version in (None, UNVERSIONED) else str(version),
            num_fewshot=num_fewshot if isinstance(num_fewshot, int) else None,
            limit=limit,
            num_examples=int(values["sample_len"]),
            metrics=metrics,
            lm_eval_version=lm_eval_version,
        )
        rows.append(row)
    return rows


def _iter_metrics(values: JsonObject, higher_is_better: JsonObject) -> Iterator[JsonObject]:
    """Yield the metrics in the harness's results of a task, whose keys are METRIC,FILTER."""
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        yield {
            "metric": metric,
            "filter": filter_name,
            "value": _finite(value),
            "stderr": _finite(values.get(f"{metric}_stderr,{filter_name}")),
            "higher_is_better": higher_is_better.get(metric),
        }


def _finite(value: Any) -> float | None:
    """Return `value` as a number, or None if it is not a finite one, such as "N/A"."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def list_cells(rows: Sequence[TaskRow]) -> list[tuple[str, ...]]:
    """Return the cells of a table with one line for each metric, after HEADER."""
    cells: list[tuple[str, ...]] = [HEADER]
    for row in rows:
        first = [shorten_middle(one_line(row.task), MAX_TASK_CHARACTERS), one_line(row.version or "n/a")]
        first += ["n/a" if row.num_fewshot is None else f"{row.num_fewshot:,}", f"{row.num_examples:,}"]
        for number, each in enumerate(row.metrics):
            name = each["metric"] if each["filter"] == NO_FILTER else f"{each['metric']} ({each['filter']})"
            value = "n/a" if each["value"] is None else f"{each['value']:,.4f}"
            stderr = "" if each["stderr"] is None else f" ± {each['stderr']:.4f}"
            cells.append((*(first if number == 0 else [""] * 4), one_line(name), value + stderr))
    return cells


def format_rows(rows: Sequence[TaskRow]) -> list[str]:
    """Return the lines of a table with one line for each metric."""
    cells = list_cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            f"{cell:>{width}}" if 1 <= column <= 3 else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
