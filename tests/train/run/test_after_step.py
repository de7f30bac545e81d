"""The training loop against one written by hand, and what it does when things around it break."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import command, environment, invoke, losses, make_build, rows, write_config
from train.config import load_config
from train.core.device import choose_device
from train.data.batches import TrainingData
from train.data.builds import open_builds
from train.model import make_model
from train.run.checkpoint import find_newest_checkpoint, list_checkpoints, open_checkpoint, origin_of, restore, save
from train.run.run_dir import forget
from train.run.state import Training, new_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    make_build(folder / "tiny")
    return folder


def test_five_steps_are_what_a_plain_loop_computes(folder: Path) -> None:
    """Accumulation, clipping, warmup, betas, decay: none may be ignored, so each is set where it matters."""
    settings = {
        "max_steps": 5,
        "warmup_steps": 2,
        "learning_rate": 0.02,
        "grad_clip": 0.3,
        "beta1": 0.8,
        "beta2": 0.9,
        "weight_decay": 0.5,
    }
    path = write_config(folder / "five.py", folder / "tiny", dropout=0.0, **settings)
    assert invoke("train.py", path).returncode == 0
    config, builds = load_config(path, {}), open_builds(str(folder / "tiny"))
    torch.manual_seed(config.seed)
    model = make_model(config, builds.vocab_size)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.9))
    data = TrainingData(builds, config, device=torch.device("cpu"))
    rates = [0.02 / 3, 0.04 / 3, *(0.001 + 0.5 * 0.019 * (1 + math.cos(math.pi * k / 2)) for k in range(3))]
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = sum(model(*data.batch(4 * (2 * step + micro), 4))[0] for micro in range(2)) / 2
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        row = next(r for r in rows(folder / "five") if r["step"] == step + 1 and "train_loss" in r)
        assert row["learning_rate"] == pytest.approx(rate)
        assert (row["train_loss"], row["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-4)


def test_the_gradient_scaler_comes_back(folder: Path, tmp_path: Path) -> None:
    path, device = write_config(folder / "scaler.py", folder / "tiny", precision="fp16"), torch.device("cpu")
    config, builds = load_config(path, {}), open_builds(str(folder / "tiny"))

    def fresh() -> Training:
        return new_training(config, builds.vocab_size, device=device)

    one, two = fresh(), fresh()
    one.scaler.scale(one.model(*TrainingData(builds, config, device=device).batch(0, 4))[0] * math.inf).backward()
    one.scaler.unscale_(one.optimizers[0])
    one.scaler.update()
    one.step = 1
    restore(open_checkpoint(save(one, tmp_path, origin=origin_of(config, builds), keep=1)), two)
    assert two.scaler.get_scale() == one.scaler.get_scale() == 32768.0


@pytest.mark.parametrize(
    "intervals",
    [
        {"checkpoint_interval": 3, "eval_interval": 1000, "log_interval": 1000},
        {"checkpoint_interval": 1, "eval_interval": 1000},
        {"checkpoint_interval": 1, "eval_interval": 1},
        {"checkpoint_interval": 1000, "eval_interval": 1},
    ],
    ids=str,
)
def test_weights_that_are_no_good_are_never_saved(folder: Path, intervals: dict[str, int]) -> None:
    """The first update is finite, and ruins them: no gradient tells so before the next step."""
    name = "nan" + "_".join(map(str, intervals.values()))
    path = write_config(
        folder / f"{name}.py", folder / "tiny", learning_rate=1e18, min_lr=0.0, warmup_steps=0, **intervals
    )
    done = invoke("train.py", path)
    assert done.returncode == 1 and "training has diverged; lower learning_rate" in done.stderr
    assert list_checkpoints(folder / name) == []


def test_what_contradicts_itself_is_refused(folder: Path) -> None:
    path = write_config(folder / "both.py", folder / "tiny")
    assert invoke("train.py", path).returncode == 0
    for arguments, complaint in (
        ([f"--resume={folder / 'both'}", "--init_from=x", f"--out_dir={folder / 'n'}"], "brings weights of its own"),
        (
            [f"--resume={folder / 'both'}", "--optimizer=muon", f"--out_dir={folder / 'n'}", "--max_steps=30"],
            "set --optimizer=adamw",
        ),
        ([f"--init_from={folder / 'both'}", "--restart"], "lies in out_dir"),
        (["--restart=true"], "wanted --restart alone"),
        (["--init_from="], "init_from is empty"),
    ):
        done = invoke("train.py", path, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and complaint in done.stderr, done.stderr
    assert len(list_checkpoints(folder / "both")) == 3


def test_a_joiner_is_no_control_character(folder: Path) -> None:
    path = write_config(folder / "init_processes.py", folder / "tiny", max_steps=4)
    assert (
        "no sample: "
        in invoke("train.py", path, "--completion_prompt=\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645").stdout
    )


def test_samples_come_when_they_are_due(folder: Path) -> None:
    seldom = {"log_interval": 1000, "eval_interval": 1000, "checkpoint_interval": 1000}
    path = write_config(
        folder / "samples.py", folder / "tiny", **seldom, completion_interval=7, completion_author="Anna Akimova"
    )
    assert (
        invoke("train.py", path).stdout.count("<author_Anna_Akimova> ") == 4
    )  # after 7, 14 and 21 steps, and at the end


def test_a_fork_of_a_run_that_ran_out_of_patience_goes_on(folder: Path, tmp_path: Path) -> None:
    """On other data the best of the old run says nothing, and its checkpoint is not in the new folder."""
    settings = {
        "max_steps": 60,
        "warmup_steps": 60,
        "learning_rate": 2.0,
        "dropout": 0.0,
        "eval_interval": 2,
        "patience": 2,
    }
    path = write_config(folder / "impatient.py", folder / "tiny", **settings)
    assert "stopped early" in invoke("train.py", path).stdout
    other = make_build(tmp_path / "other", train_repeats=30, val_repeats=6)
    fork = [path, f"--data={other}", f"--out_dir={tmp_path / 'fork'}", f"--resume={folder / 'impatient'}"]
    done = invoke("train.py", *fork, "--patience=none")
    assert done.returncode == 0 and "finished after step 60" in done.stdout, done.stderr
    best = find_newest_checkpoint(tmp_path / "fork", pytest.fail)
    assert best is not None and best.best_step is not None
    assert invoke("sample.py", tmp_path / "fork", "--best", "--tokens", 2).returncode == 0


def test_a_run_that_was_never_evaluated_has_no_best(folder: Path) -> None:
    path = write_config(
        folder / "unknown.py", folder / "tiny", max_steps=100_000, eval_interval=100_000, checkpoint_interval=5
    )
    with subprocess.Popen(command("train.py", path), stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 6/"):
            assert process.poll() is None
        process.kill()
    done = invoke("sample.py", folder / "unknown", "--best")
    assert (
        done.returncode == 2 and "has no checkpoint that an evaluation found the best; leave --best out" in done.stderr
    )


STRANGE: dict[str, tuple[dict[str, object], str]] = {
    "a scale that is text": ({"scaler": {"scale": "x"}}, "cannot be continued"),
    "a scale below zero": ({"scaler": {"scale": -1.0}}, "cannot be continued"),
    "an interval that is text": ({"scaler": {"growth_interval": "x"}}, "cannot be continued"),
    "a factor that does not back off": ({"scaler": {"backoff_factor": 2.0}}, "cannot be continued"),
    "a micro-batch of none": ({"micro_batch": "all"}, "cannot be continued"),
    "a context without end": (
        {"settings": {"block_size": 10**13}},
        "block_size is 10000000000000, wanted a number up to 16,777,216",
    ),
    "layers without end": ({"settings": {"n_layer": 10**9}}, "n_layer is 1000000000, wanted a number up to 1,000"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_numbers_that_no_run_has_are_one_line(folder: Path, name: str) -> None:
    path = write_config(folder / "strange.py", folder / "tiny", precision="fp16", arch="modern")
    assert invoke("train.py", path, "--restart").returncode == 0
    changes, complaint = STRANGE[name]
    for checkpoint in list_checkpoints(folder / "strange"):
        info = json.loads((checkpoint / "checkpoint.json").read_text())
        for key, value in changes.items():
            info[key] = info[key] | value if isinstance(value, dict) else value
        (checkpoint / "checkpoint.json").write_text(json.dumps(info))
    if "settings" in changes:
        done = invoke("sample.py", folder / "strange")
    else:
        done = invoke(
            "train.py", path, f"--resume={folder / 'strange'}", f"--out_dir={folder / 'fork'}", "--max_steps=30"
        )
    assert (done.returncode, done.stderr.count("\n")) == (
        2 if "settings" in changes else 1,
        1,
    ) and complaint in done.stderr, done.stderr


@pytest.mark.parametrize("streams", ["stdout", "both"])
def test_a_reader_that_dies_of_the_same_ctrl_c_costs_no_checkpoint(folder: Path, streams: str) -> None:
    """`train.py … 2>&1 | tee log`, and Ctrl-C: the terminal sends it to both."""
    path = write_config(folder / f"tee_{streams}.py", folder / "tiny", max_steps=100_000)
    stderr = subprocess.STDOUT if streams == "both" else subprocess.DEVNULL
    with subprocess.Popen(
        command("train.py", path), stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
    ) as process:
        assert process.stdout
        while not process.stdout.readline().startswith("step 5/"):
            assert process.poll() is None
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGINT
    assert len(list_checkpoints(folder / f"tee_{streams}")) > 0


def test_a_run_goes_on_with_nobody_to_tell(folder: Path) -> None:
    path = write_config(folder / "closed.py", folder / "tiny")
    line = " ".join(f"'{word}'" for word in command("train.py", path)) + " >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], env=environment(), timeout=120).returncode == 0
    assert len(list_checkpoints(folder / "closed")) > 0


@pytest.mark.parametrize(
    ("argument", "status", "complaint"),
    [
        ("--n_embd=10000000000", 1, "do not fit the memory of cpu; take a smaller model"),
        ("--completion_prompt=\udcff", 2, "that is UTF-8"),
        ("--completion_author=Nobody", 2, "has no author 'Nobody'"),
        ("--max_steps=" + "9" * 400, 2, "wanted a number up to 1e+18"),
        ("--device=cuda:01", 2, "wanted auto, cpu, mps"),
    ],
)
def test_restart_forgets_nothing_until_the_new_run_can_start(
    folder: Path, argument: str, status: int, complaint: str
) -> None:
    path = write_config(folder / "kept.py", folder / "tiny")
    if not (folder / "kept").exists():
        assert invoke("train.py", path).returncode == 0
    before = losses(folder / "kept")
    done = invoke("train.py", path, "--restart", argument)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1) and complaint in done.stderr, done.stderr
    assert losses(folder / "kept") == before and len(list_checkpoints(folder / "kept")) == 3


def test_restart_with_a_checkpoint_of_another_shape_forgets_nothing(folder: Path) -> None:
    path = write_config(folder / "shaped.py", folder / "tiny")
    assert invoke("train.py", path).returncode == 0
    done = invoke(
        "train.py",
        path,
        "--out_dir=" + str(folder / "fresh"),
        f"--resume={folder / 'shaped'}",
        "--n_embd=16",
        "--max_steps=40",
    )
    assert (
        done.returncode == 2
        and "the settings ask for" in done.stderr
        and not (folder / "fresh" / "metrics.jsonl").exists()
    )


def test_a_deletion_cut_short_leaves_no_run_to_continue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(folder / "half.py", folder / "tiny")
    assert invoke("train.py", path).returncode == 0
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        forget(folder / "half")
    monkeypatch.undo()
    assert list_checkpoints(folder / "half") == []
    assert invoke("train.py", path).returncode == 0
    assert not [p for p in (folder / "half").iterdir() if p.name.startswith(".checkpoints")]


def test_rows_without_a_checkpoint_are_not_overwritten_by_other_settings(folder: Path) -> None:
    path = write_config(folder / "rows.py", folder / "tiny", max_steps=5, checkpoint_interval=1000)
    assert invoke("train.py", path).returncode == 0
    for checkpoint in list_checkpoints(folder / "rows"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    before = rows(folder / "rows")
    done = invoke("train.py", path, "--learning_rate=0.5")
    assert done.returncode == 2 and "learning_rate 0.01 → 0.5" in done.stderr and rows(folder / "rows") == before


def test_a_stray_file_costs_no_checkpoint(folder: Path) -> None:
    path = write_config(folder / "stray.py", folder / "tiny")
    assert invoke("train.py", path).returncode == 0
    before = [p.name for p in list_checkpoints(folder / "stray")]
    (list_checkpoints(folder / "stray")[-1] / ".DS_Store").write_bytes(b"")
    assert "is finished" in invoke("train.py", path).stdout
    (list_checkpoints(folder / "stray")[-1] / "notes.txt").write_text("")
    done = invoke("train.py", path)
    assert (
        done.returncode == 1
        and "take it out" in done.stderr
        and [p.name for p in list_checkpoints(folder / "stray")] == before
    )


@pytest.mark.parametrize(
    "edit",
    [
        {"step": -5},
        {"step": 5},
        {"step": 10**400},
        {"vocab_size": -64},
        {"vocab_size": 10**15},
        {"tokenizer_sha256": None},
    ],
)
def test_values_that_no_save_wrote_are_passed_over(folder: Path, edit: dict) -> None:
    path = write_config(folder / "edited.py", folder / "tiny")
    assert invoke("train.py", path, "--restart").returncode == 0
    info = list_checkpoints(folder / "edited")[-1] / "checkpoint.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | edit))
    done = invoke("train.py", path)
    assert done.returncode == 0 and "is malformed" in done.stderr and "continuing after step 18" in done.stdout


def test_another_tokenizer_of_the_same_size_is_refused(folder: Path, tmp_path: Path) -> None:
    path = write_config(folder / "spoken.py", folder / "tiny")
    assert invoke("train.py", path).returncode == 0
    other = make_build(tmp_path / "other", tokenizer={"kind": "byte", "files": {}, "settings": {}})
    done = invoke(
        "train.py",
        path,
        f"--data={other}",
        f"--out_dir={tmp_path / 'run'}",
        f"--resume={folder / 'spoken'}",
        "--max_steps=40",
    )
    assert done.returncode == 2 and "has another tokenizer than" in done.stderr


def test_a_flipped_bit_in_a_shard_is_told(folder: Path, tmp_path: Path) -> None:
    build = make_build(tmp_path / "flipped")
    shard = build / "val-00000.bin"
    data = bytearray(shard.read_bytes())
    data[1] = 0xFF
    shard.write_bytes(data)
    done = invoke("train.py", write_config(tmp_path / "run.py", build))
    assert done.returncode == 1 and "its vocabulary ends at" in done.stderr and "preprocess verify" in done.stderr


def test_the_settings_on_disk_say_what_was_meant_by_auto(folder: Path) -> None:
    path = write_config(folder / "auto.py", folder / "tiny", max_steps=4, device="auto", precision="auto")
    assert invoke("train.py", path).returncode == 0
    saved = json.loads((folder / "auto" / "settings.json").read_text())
    assert saved["device"] == str(choose_device("auto")) and saved["precision"] != "auto"


def test_a_home_folder_is_meant_by_its_sign(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_config(folder / "home.py", folder / "tiny", out_dir="~/run", max_steps=4)
    assert invoke("train.py", path).returncode == 0 and (tmp_path / "run" / "metrics.jsonl").is_file()
    assert not os.path.exists("~")
