"""Weights & Biases: what the files of an offline run hold."""

from __future__ import annotations

import html
import json
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import invoke, read_metric_rows, write_config
from tests.train.trackers.helpers import LONG_RUN, assert_same_values, assert_untouched, needs, stop_at

pytestmark = [pytest.mark.slow, needs("wandb")]


def read_records(folder: Path) -> Iterator[Any]:
    """Yield the records of an offline run's file, which has the block format of LevelDB's log."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def read_history(out_dir: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return the values in all of a run's offline folders by name."""
    values: dict[str, list[tuple[int, Any]]] = {}
    for folder in sorted((out_dir / "wandb").glob("offline-run-*")):
        for record in read_records(folder):
            if record.HasField("history"):
                row = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                for key, value in row.items():
                    if key != "step" and not key.startswith("_"):
                        values.setdefault(key, []).append((row["step"], value))
    return values


def test_wandb_has_metrics_completions_and_settings_of_a_run(folder: Path, untracked: Path) -> None:
    config = write_config(folder / "biases.py", folder / "tiny", track=["wandb"], completion_interval=9)
    result = invoke("train.py", config)
    assert_untouched(result, folder / "biases", untracked)
    history = read_history(folder / "biases")
    completions = history.pop("completion.path")
    history = {key: values for key, values in history.items() if not key.startswith("completion.")}
    assert_same_values(
        {key: [(step, float(value)) for step, value in values] for key, values in history.items()}, folder / "biases"
    )
    (run_folder,) = (folder / "biases" / "wandb").glob("offline-run-*")
    assert [step for step, _ in completions] == [9, 18, 24]
    page = html.unescape((run_folder / "files" / completions[-1][1]).read_text())
    text = page.partition(">")[2].removesuffix("</pre>")
    assert " ".join(text.split()) in " ".join(result.stdout.split())
    (run,) = [record.run for record in read_records(run_folder) if record.HasField("run")][:1]
    assert (run.display_name, run.project) == ("biases", "folio")
    assert json.loads((folder / "biases" / "trackers" / "wandb.json").read_text()) == {"run_id": run.run_id}
    updates = [r.config.update for r in read_records(run_folder) if r.HasField("config")] + [run.config.update]
    settings = {item.key or item.nested_key[0]: json.loads(item.value_json) for items in updates for item in items}
    assert (settings["max_steps"], settings["build_name"], settings["track"]) == (24, "tiny", ["wandb"])
    assert [r.exit.exit_code for r in read_records(run_folder) if r.HasField("exit")] == [0]


def test_wandb_continues_one_run_and_has_each_step_once(folder: Path) -> None:
    config = write_config(folder / "once.py", folder / "tiny", track=["wandb"], **LONG_RUN)
    assert stop_at(config, "step 17/", signal.SIGINT) == 130
    run_id = (folder / "once" / "trackers" / "wandb.json").read_text()
    shutil.rmtree(sorted((folder / "once" / "checkpoints").iterdir())[-1])  # to remove rows
    last_step = read_metric_rows(folder / "once")[-1]["step"]
    assert stop_at(config, f"step {last_step + 5}/", signal.SIGTERM) == 128 + signal.SIGTERM
    assert (folder / "once" / "trackers" / "wandb.json").read_text() == run_id
    assert len([*(folder / "once" / "wandb").glob("offline-run-*")]) == 2
    last_step = read_metric_rows(folder / "once")[-1]["step"]
    assert [step for step, _ in read_history(folder / "once")["train_loss"]] == list(range(1, last_step + 1))
