"""What the page shows of one run, read from its directory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.errors import FolioError
from preprocess.shards.files import parse_json, read_small_file
from preprocess.shards.format import read_manifest
from preprocess.shards.manifest import Manifest
from preprocess.shards.runs import SETTINGS_FILE, VOCABULARY_DIR
from train.config import Config, config_from_saved
from train.evaluation.results import read_evaluations
from train.plotting.curves import find_metrics
from train.reporting.series import RunSeries, read_series
from train.run.completions import COMPLETIONS_FILE, open_completions
from train.run.run_dir import EVALUATIONS_FILE

MAX_SAMPLES = 40  # of a run
MAX_SAMPLE_CHARACTERS = 3_000


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text that a model has written after `step` steps."""

    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run as the page shows it."""

    name: str
    config: Config
    manifest: Manifest  # of the build that it was trained on
    series: RunSeries
    samples: list[Sample]

    @property
    def tokens_per_step(self) -> int:
        return self.config.windows_per_step * self.config.block_size

    @property
    def last_step(self) -> int:
        """The last step of which the run has a row; -1 if there is none."""
        parts = (self.series.training, self.series.evaluations)
        return max((int(part.steps[-1]) for part in parts if len(part.steps)), default=-1)


def read_run(run: Path, name: str) -> ReportedRun:
    """Return what the page shows of the run directory `run`, which is called `name`.

    Raises MisuseError if there is no run, and FolioError if one of its files is damaged.
    """
    find_metrics(run)
    path = run / SETTINGS_FILE
    try:
        settings = parse_json(read_small_file(path))
    except (ValueError, OSError) as e:
        raise FolioError(f"{path} cannot be read ({e}); copy the run again") from e
    config = config_from_saved(settings, str(path))
    series = read_series(run, config.windows_per_step * config.block_size)
    manifest = read_manifest(run / VOCABULARY_DIR, advice="copy the run again")
    return ReportedRun(name=name, config=config, manifest=manifest, series=series, samples=_read_samples(run))


def list_watched_files(run: Path) -> list[Path]:
    """Return the files whose changes change the page."""
    return [find_metrics(run), run / SETTINGS_FILE, run / EVALUATIONS_FILE, run / COMPLETIONS_FILE]


def _read_samples(run: Path) -> list[Sample]:
    """Return at most MAX_SAMPLES texts, with the first and the last one, in the order of their steps.

    The completions are read twice, because all their texts together may not fit into memory.
    """
    steps = [row.step for row in open_completions(run)]
    num_completions = len(steps)
    evaluated = [
        Sample(step=row.step, text=_cut(each.prompt + each.completion))
        for row in read_evaluations(run)
        for each in row.completions
    ]
    order = np.argsort([*steps, *(sample.step for sample in evaluated)], kind="stable")
    if len(order) > MAX_SAMPLES:
        order = order[np.linspace(0, len(order) - 1, MAX_SAMPLES).round().astype(int)]
    chosen = set(order.tolist())
    samples = {
        number: Sample(step=row.step, text=_cut(row.text))
        for number, row in enumerate(itertools.islice(open_completions(run), num_completions))
        if number in chosen
    }
    samples |= dict(enumerate(evaluated, num_completions))
    return [samples[number] for number in order.tolist() if number in samples]  # the run may have been rewound


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SAMPLE_CHARACTERS else text[:MAX_SAMPLE_CHARACTERS] + "…"
