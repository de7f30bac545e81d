"""TensorBoard: what its own reader finds, also after restarts and rollbacks."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.runs import invoke, make_build, read_metric_rows, write_config
from tests.train.trackers.helpers import LONG_RUN, Values, assert_same_values, assert_untouched, needs, stop_at
from train.run.checkpoint import list_checkpoints

pytestmark = needs("tensorboard")
SENT = "tensorboard has received the rows that it did not have"


def read_events(out_dir: Path) -> tuple[Values, dict[str, list[tuple[int, str]]]]:
    """Return scalars and texts by tag, as TensorBoard's reader shows them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    reader = EventAccumulator(str(out_dir / "tensorboard"), tensor_size_guidance={"scalars": 0, "text": 0})
    reader.Reload()
    scalars: Values = {}
    texts: dict[str, list[tuple[int, str]]] = {}
    for tag in reader.Tags()["tensors"]:
        for event in reader.Tensors(tag):
            value = make_ndarray(event.tensor_proto)
            if value.dtype == object:
                texts.setdefault(tag, []).append((event.step, value.item().decode()))
            else:
                scalars.setdefault(tag, []).append((event.step, float(value)))
    return {tag: sorted(values) for tag, values in scalars.items()}, texts


def test_tensorboard_reads_back_what_metrics_jsonl_holds(folder: Path, untracked: Path) -> None:
    config = write_config(folder / "board.py", folder / "tiny", track=["tensorboard"], completion_interval=9)
    result = invoke("train.py", config)
    assert_untouched(result, folder / "board", untracked)
    assert "\ntrack                        tensorboard\n" in result.stdout
    assert json.loads((folder / "board" / "settings.json").read_text())["track"] == ["tensorboard"]
    scalars, texts = read_events(folder / "board")
    assert_same_values(scalars, folder / "board")
    assert {
        "train_loss",
        "val_loss",
        "perplexity",
        "bits_per_byte",
        "learning_rate",
        "grad_norm",
        "skipped_updates",
        "tokens_per_s",
    } <= {*scalars}
    assert [step for step, _ in texts["completion"]] == [9, 18, 24]
    assert all(" ".join(text.split()) in " ".join(result.stdout.split()) for _, text in texts["completion"])
    assert "    max_steps = 24\n" in texts["config"][0][1]
    assert json.loads((folder / "tiny" / "manifest.json").read_text())["build_id"] in texts["build"][0][1]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_tensorboard_has_each_step_once_after_a_restart(folder: Path, signum: signal.Signals) -> None:
    config = write_config(folder / f"again_{signum.name}.py", folder / "tiny", track=["tensorboard"], **LONG_RUN)
    stop_at(config, "step 27/", signum)
    out_dir = config.with_suffix("")
    last_step = read_metric_rows(out_dir)[-1]["step"]
    stop_at(config, f"step {last_step + 5}/", signal.SIGTERM)
    scalars, _ = read_events(out_dir)
    assert_same_values(scalars, out_dir)
    assert len([*(out_dir / "tensorboard").iterdir()]) == 2


def test_tensorboard_has_each_step_once_after_a_rollback_and_with_restart(
    folder: Path, poison: Callable[[Path, range], None]
) -> None:
    config = write_config(
        folder / "back.py", folder / "tiny", track=["tensorboard"], dropout=0.0, max_steps=30, checkpoint_interval=5
    )
    poison(config, range(11, 16))
    result = invoke("train.py", config)
    assert result.returncode == 0 and "back from step 16 to the checkpoint of step 10" in result.stdout, result.stderr
    scalars, _ = read_events(folder / "back")
    assert_same_values(scalars, folder / "back")
    assert [step for step, _ in scalars["train_loss"]] == list(range(1, 31))
    assert invoke("train.py", config, "--restart", "--max_steps=6").returncode == 0
    assert_same_values(read_events(folder / "back")[0], folder / "back")


def test_tracker_added_to_a_stopped_run_gets_earlier_rows(folder: Path) -> None:
    config = write_config(folder / "later.py", folder / "tiny", **LONG_RUN)
    stop_at(config, "step 17/", signal.SIGINT)
    last_step = read_metric_rows(folder / "later")[-1]["step"]
    config = write_config(folder / "later.py", folder / "tiny", track=["tensorboard"], **LONG_RUN)
    stop_at(config, f"step {last_step + 5}/", signal.SIGKILL)
    stop_at(config, f"step {last_step + 15}/", signal.SIGINT)
    assert_same_values(read_events(folder / "later")[0], folder / "later")


def test_same_command_sends_missing_rows_of_a_finished_run(folder: Path) -> None:
    config, out_dir = write_config(folder / "rest.py", folder / "tiny", track=["tensorboard"]), folder / "rest"
    out_dir.mkdir()
    (out_dir / "tensorboard").write_text("in the way")
    for _ in range(2):  # the second finds the run finished, and the tracker still failing
        result = invoke("train.py", config)
        assert (result.returncode, result.stderr.count("\n")) == (0, 1) and "received" not in result.stdout
        assert "after fixing that, run the same command again to send the missing rows" in result.stderr
    metrics = (out_dir / "metrics.jsonl").read_bytes()
    (out_dir / "tensorboard").unlink()
    finished = result.stdout
    assert finished.startswith(f"{out_dir} is finished")
    assert invoke("train.py", config).stdout == SENT + "\n" + finished
    files = [*(out_dir / "tensorboard").iterdir()]
    assert invoke("train.py", config).stdout == finished and [*(out_dir / "tensorboard").iterdir()] == files
    assert_same_values(read_events(out_dir)[0], out_dir)
    assert (out_dir / "metrics.jsonl").read_bytes() == metrics


def test_tracker_added_to_a_finished_run_gets_all_rows(folder: Path, untracked: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "after.py", folder / "tiny")
    shutil.copytree(untracked, tmp_path / "after")
    assert SENT in invoke("train.py", config, "--track=tensorboard").stdout
    assert "received" not in invoke("train.py", config, "--track=tensorboard").stdout
    assert_same_values(read_events(tmp_path / "after")[0], tmp_path / "after")


def test_run_restarted_without_a_tracker_is_a_new_run_to_it(folder: Path) -> None:
    config, out_dir = folder / "anew.py", folder / "anew"
    tracked = write_config(config, folder / "tiny", track=["tensorboard"], max_steps=40)
    assert invoke("train.py", tracked).returncode == 0
    (out_dir / "trackers" / "mlflow.json").write_text('{"run_id": "of_the_run_before"}')
    assert invoke("train.py", write_config(config, folder / "tiny", seed=7), "--restart").returncode == 0
    assert not [*(out_dir / "trackers").glob("*.json")]
    shutil.rmtree(list_checkpoints(out_dir)[-1])
    assert invoke("train.py", write_config(config, folder / "tiny", seed=7, track=["tensorboard"])).returncode == 0
    assert_same_values(read_events(out_dir)[0], out_dir)


def test_tensorboard_has_the_losses_of_each_build(folder: Path, tmp_path: Path) -> None:
    make_build(tmp_path / "other", train_repeats=30, val_repeats=6)
    config = write_config(
        tmp_path / "mixed.py", folder / "tiny", data=f"{folder / 'tiny'}:1,{tmp_path / 'other'}:1", max_steps=6
    )
    assert invoke("train.py", config, "--track=tensorboard").returncode == 0
    scalars, texts = read_events(tmp_path / "mixed")
    assert_same_values(scalars, tmp_path / "mixed")
    assert {"val_loss/tiny", "val_loss/other"} <= {*scalars}
    assert "tiny 50.0%, other 50.0%" in texts["build"][0][1]
