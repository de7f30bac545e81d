"""What the page shows of runs: facts, warnings, tables, samples, and the points of the charts.

The result has only text and numbers. How they look is decided in runs.html and charts.js.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocess.console import format_duration
from preprocess.errors import printable
from preprocess.pages.content import Cell, Page, Table, clean_text
from preprocess.shards.files import JsonObject, canonical_json
from preprocess.shards.manifest import Manifest
from train.config import Config
from train.core.settings import format_value
from train.reporting.read_run import ReportedRun
from train.reporting.series import EVALUATION_METRICS, STEP_METRICS, Series

MAX_POINTS = 12_000  # of all runs together, of each of the two kinds of series
MAX_POINTS_OF_RUN = 1_500
MAX_ROWS = 300  # of a table
DIFFERS = "differs"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of metrics that have the same unit."""

    id: str
    title: str
    metrics: tuple[str, ...]
    height: int = 200  # pixels
    is_loss: bool = False  # losses have a logarithmic axis if the reader wants, and no axis from 0


CHARTS = (
    Chart(id="loss", title="Loss, nats per token", metrics=("train_loss", "val_loss"), height=360, is_loss=True),
    Chart(id="bits", title="Bits per byte of validation", metrics=("bits_per_byte",), height=240, is_loss=True),
    Chart(id="rate", title="Learning rate", metrics=("learning_rate",)),
    Chart(id="gradient", title="Gradient norm", metrics=("grad_norm",)),
    Chart(id="throughput", title="Throughput, tokens per second", metrics=("tokens_per_s",)),
    Chart(id="utilization", title="Share of the peak rate of the device (MFU)", metrics=("mfu",)),
    Chart(id="memory", title="Peak memory, bytes", metrics=("peak_memory_bytes",)),
)


@dataclass(frozen=True, kw_only=True)
class RunsPage(Page):
    """The page of one or several runs."""

    charts: list[Chart]  # those with values
    data: JsonObject  # for charts.js
    samples: list[tuple[str, list[tuple[int, str]]]]  # (name of a run, (step, text) of each)


def describe_page(runs: Sequence[ReportedRun], *, reload_s: int | None = None) -> RunsPage:
    """Return what the page shows of `runs`. With `reload_s`, the page reloads itself every so many seconds."""
    num_points = min(MAX_POINTS_OF_RUN, MAX_POINTS // len(runs))
    training = [run.series.training.thin(num_points) for run in runs]
    evaluations = [run.series.evaluations.thin(num_points) for run in runs]
    charts = [chart for chart in CHARTS if _has_values(chart, [*training, *evaluations])]
    data: JsonObject = {
        "reload_s": reload_s,
        "charts": [dataclasses.asdict(chart) for chart in charts],
        "runs": [
            {
                "name": run.name,
                "tokens_per_step": run.tokens_per_step,
                "training": _list_points(of_steps),
                "evaluations": _list_points(of_evaluations),
                "rollbacks": [step for step, _ in run.series.rollbacks],
            }
            for run, of_steps, of_evaluations in zip(runs, training, evaluations, strict=True)
        ],
    }
    tables = [
        _describe_runs(runs),
        _describe_settings(runs),
        _describe_builds(runs),
        _drop_empty_columns(_describe_evaluations(runs)),
        _drop_empty_columns(_describe_steps(runs)),
    ]
    return RunsPage(
        title=", ".join(run.name for run in runs),
        facts=_list_facts(runs),
        warnings=_list_warnings(runs),
        tables=[table for table in tables if table.rows],
        charts=charts,
        data=data,
        samples=[
            (run.name, [(sample.step, printable(sample.text)) for sample in run.samples]) for run in runs if run.samples
        ],
    )


def _has_values(chart: Chart, parts: Sequence[Series]) -> bool:
    return any(
        not np.isnan(part.values[key]).all() for part in parts for key in chart.metrics if len(part.values.get(key, ()))
    )


def _list_points(series: Series) -> JsonObject:
    """Return the columns of a series, with None for NaN. Five digits are more than a screen can show."""
    columns = {"step": series.steps, "seconds": series.seconds, **series.values}
    return {key: [_round(value) for value in column.tolist()] for key, column in columns.items()}


def _round(value: float) -> float | int | None:
    if np.isnan(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _list_facts(runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    if len(runs) > 1:
        return [("runs", f"{len(runs):,}")]
    [run] = runs
    config, train = run.config, run.manifest.splits["train"]
    return [
        ("data", clean_text(f"{config.data}, {train.tokens:,} training tokens, {run.manifest.tokenizer.kind}")),
        ("build_id", run.manifest.build_id),
        ("model", f"{config.arch}, {config.n_layer} layers, width {config.n_embd}, context {config.block_size:,}"),
        ("steps", f"{max(run.last_step, 0):,} of {config.max_steps:,}, of {run.tokens_per_step:,} tokens each"),
    ]


def _list_warnings(runs: Sequence[ReportedRun]) -> list[str]:
    warnings = []
    if len({canonical_json(run.manifest.tokenizer.files) for run in runs}) > 1:
        warnings.append("The runs have different tokenizers. Compare their bits per byte, not their losses per token.")
    elif len({run.manifest.build_id for run in runs}) > 1:
        warnings.append(
            "The runs were validated on different builds, so their validation losses are not comparable. "
            "`folio evaluate --data` evaluates them on the same one."
        )
    warnings += [
        f"{run.name} returned from step {from_step:,} to its checkpoint of step {step:,}, because its loss was not "
        "finite or grew too much."
        for run in runs
        for step, from_step in run.series.rollbacks
    ]
    return warnings


def _describe_runs(runs: Sequence[ReportedRun]) -> Table:
    header = (
        "run", "steps", "of", "tokens", "time", "training loss", "validation loss", "lowest", "at step",
        "bits per byte", "tokens per second", "peak memory, GB",
    )  # fmt: skip
    return Table(id="runs", title="Runs", header=header, rows=[_summarize(run) for run in runs])


def _summarize(run: ReportedRun) -> tuple[Cell, ...]:
    training, evaluations = run.series.training, run.series.evaluations
    losses = evaluations.values["val_loss"]
    best = int(np.nanargmin(losses)) if len(losses) and not np.isnan(losses).all() else None
    rates, memory = training.values["tokens_per_s"], training.values["peak_memory_bytes"]
    return (
        run.name,
        max(run.last_step, 0),
        run.config.max_steps,
        max(run.last_step, 0) * run.tokens_per_step,
        format_duration(training.seconds[-1] if len(training.seconds) else 0),
        _last(training.values["train_loss"]),
        _last(losses),
        None if best is None else float(losses[best]),
        None if best is None else int(evaluations.steps[best]),
        _last(evaluations.values["bits_per_byte"]),
        float(np.nanmedian(rates)) if not np.isnan(rates).all() else None,
        float(np.nanmax(memory)) / 1e9 if not np.isnan(memory).all() else None,
    )


def _last(values: np.ndarray) -> float | None:
    finite = values[~np.isnan(values)]
    return float(finite[-1]) if len(finite) else None


def _describe_settings(runs: Sequence[ReportedRun]) -> Table:
    """Return the settings of all runs side by side; those of one run beside the defaults."""
    columns: list[tuple[str, dict[str, str]]] = [
        (run.name, {field.name: format_value(getattr(run.config, field.name)) for field in dataclasses.fields(Config)})
        for run in runs
    ]
    if len(runs) == 1:
        defaults = {
            field.name: "" if field.default is dataclasses.MISSING else format_value(field.default)
            for field in dataclasses.fields(Config)
        }
        columns.append(("default", defaults))
    return _compare("settings", "Settings", "setting", columns)


def _describe_builds(runs: Sequence[ReportedRun]) -> Table:
    columns = [(run.name, _list_build(run.manifest)) for run in runs]
    return _compare("builds", "Builds", "of the build", columns, marks=len(runs) > 1)


def _list_build(manifest: Manifest) -> dict[str, str]:
    """Return what a manifest says about a build, by name."""
    facts: dict[str, Any] = {"name": manifest.name, "build_id": manifest.build_id}
    facts |= {"tokenizer": manifest.tokenizer.kind, "vocab_size": f"{manifest.vocab_size:,}", "dtype": manifest.dtype}
    for split, entry in manifest.splits.items():
        facts |= {f"{split} documents": f"{entry.documents:,}", f"{split} tokens": f"{entry.tokens:,}"}
    facts |= {f"recipe.{key}": canonical_json(value).decode() for key, value in sorted(manifest.recipe.items())}
    facts |= {f"made with {name}": version for name, version in manifest.made_with.items()}
    return {key: str(value) for key, value in facts.items()}


def _compare(
    table_id: str, title: str, what: str, columns: Sequence[tuple[str, Mapping[str, str]]], *, marks: bool = True
) -> Table:
    """Return a table with a row for each key and a column of values for each run. Rows that differ come first."""
    keys = list(dict.fromkeys(key for _, values in columns for key in values))
    rows: list[tuple[Cell, ...]] = []
    for key in keys:
        values = [of_column.get(key, "") for _, of_column in columns]
        mark = (DIFFERS if len(set(values)) > 1 else "",) if marks else ()
        rows.append((clean_text(key), *map(clean_text, values), *mark))
    names = (what, *(name for name, _ in columns))
    if not marks:
        return Table(id=table_id, title=title, header=names, rows=rows)
    rows.sort(key=lambda row: row[-1] == "")
    num_different = sum(row[-1] != "" for row in rows)
    note = f"{num_different:,} of {len(rows):,} differ"
    header = (*names, DIFFERS)
    return Table(id=table_id, title=title, header=header, rows=rows, mark=len(names), note=note)


def _describe_evaluations(runs: Sequence[ReportedRun]) -> Table:
    header = ("run", "step", "tokens", "seconds", "validation loss", "standard error", "bits per byte")
    parts = [run.series.evaluations for run in runs]
    rows = _list_rows(runs, parts, EVALUATION_METRICS)
    return Table(id="evaluations", title="Evaluations", header=header, rows=rows, note=_note_thinning(parts, rows))


def _describe_steps(runs: Sequence[ReportedRun]) -> Table:
    header = (
        "run", "step", "tokens", "seconds", "training loss", "learning rate", "gradient norm", "tokens per second",
        "MFU", "peak memory, bytes",
    )  # fmt: skip
    parts = [run.series.training for run in runs]
    rows = _list_rows(runs, parts, STEP_METRICS)
    return Table(id="steps", title="Steps", header=header, rows=rows, note=_note_thinning(parts, rows))


def _note_thinning(parts: Sequence[Series], rows: Sequence[tuple[Cell, ...]]) -> str:
    is_thinned = len(rows) < sum(len(part.steps) for part in parts)
    return "A row of a long run is the mean of the rows since the one before." if is_thinned else ""


def _drop_empty_columns(table: Table) -> Table:
    """Return the table without the columns that have no values, such as the MFU on a CPU."""
    used = [column for column in range(len(table.header)) if any(row[column] is not None for row in table.rows)]
    rows = [tuple(row[column] for column in used) for row in table.rows]
    return dataclasses.replace(table, header=tuple(table.header[column] for column in used), rows=rows)


def _list_rows(runs: Sequence[ReportedRun], parts: Sequence[Series], keys: Sequence[str]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for run, part in zip(runs, parts, strict=True):
        thin = part.thin(max(MAX_ROWS // len(runs), 2))
        columns = [[_round(value) for value in thin.values[key].tolist()] for key in keys]
        for step, seconds, *values in zip(thin.steps.tolist(), thin.seconds.tolist(), *columns, strict=True):
            rows.append((run.name, int(step), int(step) * run.tokens_per_step, round(seconds, 1), *values))
    return rows
