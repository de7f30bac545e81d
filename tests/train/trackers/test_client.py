"""Trackers that fail, hang or lag: the run has the same losses, and one warning."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import REPO, invoke, small_disk, write_config
from tests.train.trackers.helpers import RUN_INFO, assert_same_values, assert_untouched, needs
from tests.train.trackers.test_tensorboard import read_events
from train.config import load_config
from train.run.logger import RunInfo, RunLogger, StepCost
from train.trackers import client


@needs("tensorboard")
def test_file_in_place_of_the_folder_switches_tensorboard_off(folder: Path, untracked: Path) -> None:
    config = write_config(folder / "blocked.py", folder / "tiny", track=["tensorboard"])
    (folder / "blocked").mkdir()
    path = folder / "blocked" / "tensorboard"
    path.write_text("in the way")
    reason = f"a file is in the way at {path}; after fixing that, run the same command again"
    warning = f"tensorboard is switched off for the rest of this run: {reason}"
    assert_untouched(invoke("train.py", config), folder / "blocked", untracked, warning)


@needs("tensorboard")
def test_worker_does_not_import_modules_of_the_user_with_its_names(
    folder: Path, untracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("client", "protocol", "redact", "tensorboard_backend", "worker"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not of Folio')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPO)]))
    config = write_config(folder / "namesake.py", folder / "tiny", track=["tensorboard"])
    assert_untouched(invoke("train.py", config), folder / "namesake", untracked)
    assert_same_values(read_events(folder / "namesake")[0], folder / "namesake")


@needs("tensorboard")
def test_full_disk_switches_tensorboard_off(folder: Path, untracked: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        config = write_config(folder / "full.py", folder / "tiny", track=["tensorboard"])
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        (folder / "full").mkdir()
        path = folder / "full" / "tensorboard"
        path.symlink_to(disk)
        warning = f"this run: No space left on device ({path}); after fixing that, run the same command again"
        assert_untouched(invoke("train.py", config), folder / "full", untracked, warning)


def fake_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Make `code` the worker of every tracker."""
    path = tmp_path / "fake.py"
    path.write_text(code)
    monkeypatch.setattr(client, "WORKER_SCRIPT", path)


FOR_EACH_LINE = "import os, sys, time\nfor number, line in enumerate(sys.stdin):\n "
# By what the worker does: its code, and the reason in the warning.
FAULTS = {
    "exits": (FOR_EACH_LINE + "os._exit(3)", "its process ended with status 3"),
    "exits at once": ("raise SystemExit(4)", "its process ended with status 4"),
    "is killed": (FOR_EACH_LINE + "os.kill(os.getpid(), 9)", "its process ended with status -9"),
    "does not answer JSON": (FOR_EACH_LINE + "print('hello', flush=True)", "Expecting value"),
    "fails later": (
        FOR_EACH_LINE + """print('{"run_id": null}' if number < 1 else '{"error": "enough\\\\u001b"}', flush=True)""",
        r"this run: enough\x1b",
    ),
    "never answers": (FOR_EACH_LINE + "time.sleep(1000)", "no answer for 0.02 s"),
    "never reads": ("import time\ntime.sleep(1000)", "no answer for 0.02 s"),
    "lags": (FOR_EACH_LINE + "time.sleep(1000)", "20 rows are waiting to be sent"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_worker_is_switched_off_while_the_run_continues(
    fault: str, folder: Path, untracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, reason = FAULTS[fault]
    fake_worker(monkeypatch, tmp_path, code)
    monkeypatch.setattr(client, "MAX_CLOSE_S", 10.0)
    if fault == "lags":
        monkeypatch.setattr(client, "MAX_QUEUED_EVENTS", 20)
    elif "never" in fault:
        monkeypatch.setattr(client, "MAX_CALL_S", 0.02)  # the run takes about 0.2 s after the first call
    config = write_config(tmp_path / "run.py", folder / "tiny", track=["tensorboard"])
    began_at = time.monotonic()
    assert_untouched(invoke("train.py", config), tmp_path / "run", untracked, reason)
    assert time.monotonic() - began_at < 9, "switched off during the run, not at its end"


@pytest.mark.parametrize(("max_silent_wait_s", "is_slow"), [(0.1, True), (60.0, False)])
def test_close_prints_that_it_waits_for_a_slow_worker(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_silent_wait_s: float, is_slow: bool
) -> None:
    """A worker that never answers, and one that answers at once."""
    fake_worker(monkeypatch, tmp_path, FOR_EACH_LINE + ("time.sleep(1000)" if is_slow else "print('{}', flush=True)"))
    monkeypatch.setattr(client, "MAX_SILENT_WAIT_S", max_silent_wait_s)
    if is_slow:
        monkeypatch.setattr(client, "MAX_CLOSE_S", 3.0)
    result = invoke("train.py", write_config(tmp_path / "run.py", folder / "tiny", track=["tensorboard"]))
    assert result.stdout.count("\nwaiting up to 3 s for tensorboard\n") == is_slow
    assert ("it did not finish within 3 s after the run ended" in result.stderr) == is_slow
    assert ("waiting" in result.stdout) == is_slow


def test_only_the_main_process_starts_trackers(folder: Path, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path / "run.py", folder / "tiny", track=["tensorboard"]), {})
    info = RunInfo(config=config, build_id="", build_name="")
    cost = StepCost(tokens_per_step=1, flops_per_token=1.0, peak_flops=None, memory_bytes=lambda: None)
    with RunLogger(info, cost, step=-1, is_main=False) as logger:
        logger.log_step(1, loss=1.0, learning_rate=1.0, grad_norm=1.0, skipped_updates=0)
    assert [*tmp_path.iterdir()] == [tmp_path / "run.py"]


def test_log_row_leaves_out_values_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    trackers = client.Trackers((), tmp_path, run_info=RUN_INFO, step=-1, open_history=None, warn=lambda _: None)
    monkeypatch.setattr(trackers, "_send", events.append)
    trackers.log_row(1, {"a": float("nan"), "b": float("-inf"), "c": None, "d": 10**400, "e": -1.5, "f": 2})
    assert [event["values"] for event in events] == [{"e": -1.5, "f": 2}]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"step": "x"}', b'{"step": null}', b'{"step": 1e999}', b"[" * 100_000]
)
def test_damaged_finished_file_counts_as_incomplete(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "wandb.finished.json").write_bytes(content)
    assert client._read_finished_step(tmp_path, "wandb") is None
    assert client._read_finished_step(tmp_path, "mlflow") is None
