"""The run directory: what is continued, rejected or deleted, and what is written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers.runs import (
    AUTHOR_ID,
    EOT_ID,
    VOCAB_SIZE,
    delete_checkpoints_after,
    edit_checkpoint,
    invoke,
    list_steps,
    make_build,
    read_files,
    read_losses,
    read_metric_rows,
    train_run,
    write_config,
)
from train.core.device import choose_device
from train.run.checkpoint import list_checkpoints, open_checkpoint
from train.run.checkpoint_info import INFO_FILE
from train.run.run_dir import delete_run

# A directory that has a run


def test_finished_run_is_unchanged(long_run: Path) -> None:
    before = read_files(long_run)
    result = invoke("train.py", long_run.with_suffix(".py"))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1 and "is finished: all 150 steps are done" in result.stdout
    assert read_files(long_run) == before


def test_changed_settings_are_rejected_by_name(long_run: Path) -> None:
    before = read_files(long_run)
    arguments = ["--learning_rate=0.02", "--max_steps=151", "--keep_checkpoints=1"]
    result = invoke("train.py", long_run.with_suffix(".py"), *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "max_steps 150 → 151, learning_rate 0.01 → 0.02" in result.stderr
    assert "keep_checkpoints" not in result.stderr
    assert "--restart" in result.stderr and "--out_dir" in result.stderr
    assert read_files(long_run) == before


def test_run_without_base_width_continues_with_unchanged_rates(folder: Path) -> None:
    """As runs of earlier versions do, after a config of this version has a base_width."""
    train_run(folder, "earlier", max_steps=4, checkpoint_interval=2)
    losses = read_losses(folder / "earlier")
    for checkpoint in list_checkpoints(folder / "earlier"):
        settings = json.loads((checkpoint / INFO_FILE).read_bytes())["settings"]
        edit_checkpoint(checkpoint, settings={key: value for key, value in settings.items() if key != "base_width"})
    delete_checkpoints_after(folder / "earlier", 2)
    config = write_config(folder / "earlier.py", folder / "tiny", max_steps=4, checkpoint_interval=2, base_width=16)
    scaled = invoke("train.py", config)
    assert scaled.returncode == 2
    assert "(learning_rate 0.01 → 0.005, base_width none → 32, min_lr 0.001 → 0.0005)" in scaled.stderr
    for base_width in (32, "none"):
        copy = folder / f"from_{base_width}"
        shutil.copytree(folder / "earlier", copy)
        result = invoke("train.py", config, f"--base_width={base_width}", f"--out_dir={copy}")
        assert result.returncode == 0 and "continuing after step 2" in result.stdout, result.stderr
        assert read_losses(copy) == losses


def test_run_with_scaled_rates_is_continued_by_the_same_command(folder: Path) -> None:
    run = train_run(folder, "scaled", max_steps=4, checkpoint_interval=2, base_width=16)
    losses = read_losses(run)
    equal = train_run(folder, "equal", max_steps=4, checkpoint_interval=2, learning_rate=0.005, min_lr=0.0005)
    assert losses == read_losses(equal)
    delete_checkpoints_after(run, 2)
    result = invoke("train.py", folder / "scaled.py")
    assert result.returncode == 0 and read_losses(run) == losses
    assert "learning_rate is 0.005 at n_embd 32 (0.01 at base_width 16)" in result.stdout.splitlines()


def test_changed_data_is_rejected_and_a_moved_build_accepted(folder: Path, long_run: Path) -> None:
    config, build = long_run.with_suffix(".py"), long_run.parent / "tiny"
    make_build(folder / "other", train_repeats=41)
    result = invoke("train.py", config, f"--data={folder / 'other'}")
    assert result.returncode == 2
    assert f"data {build} " in result.stderr and f" → {folder / 'other'} " in result.stderr
    shutil.copytree(build, folder / "moved")
    assert invoke("train.py", config, f"--data={folder / 'moved'}").returncode == 0


def test_larger_vocabulary_is_rejected(folder: Path, long_run: Path) -> None:
    make_build(folder / "larger", vocab_size=VOCAB_SIZE + 5)
    for arguments in ([], [f"--resume={long_run}", f"--out_dir={folder / 'grown'}", "--max_steps=200"]):
        result = invoke("train.py", long_run.with_suffix(".py"), f"--data={folder / 'larger'}", *arguments)
        assert result.returncode == 2
        assert "the vocabulary of larger has 36 ids, more than the 31 of the model" in result.stderr


def test_tokenizer_of_the_same_size_is_rejected(folder: Path, tmp_path: Path) -> None:
    train_run(folder, "spoken")
    other = make_build(tmp_path / "other", tokenizer={"kind": "byte", "files": {}, "settings": {}})
    done = invoke(
        "train.py",
        folder / "spoken.py",
        f"--data={other}",
        f"--out_dir={tmp_path / 'run'}",
        f"--resume={folder / 'spoken'}",
        "--max_steps=40",
    )
    assert done.returncode == 2 and "has another tokenizer than" in done.stderr


def test_resume_on_a_build_whose_control_tokens_have_other_ids_is_rejected(folder: Path, long_run: Path) -> None:
    """The author of the new build would continue with the embedding of the old one's."""
    tokens = {"<|endoftext|>": EOT_ID, "<author_Boris_Berg>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
    other = make_build(folder / "boris", special_tokens=tokens)
    arguments = [f"--data={other}", f"--out_dir={folder / 'renamed'}", f"--resume={long_run}", "--max_steps=160"]
    done = invoke("train.py", long_run.with_suffix(".py"), *arguments)
    assert done.returncode == 2
    assert f"<author_Boris_Berg> is id {AUTHOR_ID} in boris and unknown in " in done.stderr
    assert "by --init_from" in done.stderr and not (folder / "renamed").exists()


@pytest.mark.parametrize("command", ["sample.py", "export.py", "evaluate.py"])
def test_vocabulary_of_another_build_in_a_run_is_rejected(long_run: Path, tmp_path: Path, command: str) -> None:
    """Its tokenizer is the same, but its control tokens mean other authors."""
    copy = Path(shutil.copytree(long_run, tmp_path / "copy"))
    shutil.rmtree(copy / "build")
    tokens = {"<|endoftext|>": EOT_ID, "<author_Boris_Berg>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
    make_build(copy / "build", special_tokens=tokens)
    (tmp_path / "prompts.txt").write_text("the")
    arguments = {
        "sample.py": ["--author=Boris Berg"],
        "export.py": [f"--output={tmp_path / 'exported'}"],
        "evaluate.py": [f"--prompts={tmp_path / 'prompts.txt'}"],
    }[command]
    done = invoke(command, copy, *arguments)
    assert done.returncode == 1 and "has the vocabulary of another build than that of " in done.stderr


def test_rows_without_a_checkpoint_are_not_overwritten_by_a_run_with_other_settings(folder: Path) -> None:
    run = train_run(folder, "rows", max_steps=5, checkpoint_interval=1000)
    for checkpoint in list_checkpoints(run):
        shutil.rmtree(checkpoint)
    before = read_metric_rows(run)
    done = invoke("train.py", folder / "rows.py", "--learning_rate=0.5")
    assert done.returncode == 2 and "learning_rate 0.01 → 0.5" in done.stderr and read_metric_rows(run) == before


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ("[" * 100_000, 1, "is not JSON (its values are nested too deeply); start again with --restart"),
        ("\0" * 100, 1, "is not JSON"),
        ("[]", 2, "has no settings; it was not written by Folio"),
        ('{"data": [], "out_dir": "x"}', 2, "settings.json: data must be text, got []"),
        ('{"data": "x", "out_dir": "x", "n_layer": {"a": [1]}}', 2, "settings.json: n_layer must be a whole number"),
        ('{"data": "x", "out_dir": "x", "n_layer": 1e999}', 1, "is not JSON"),
        ('{"data": "x", "out_dir": "x", "n_layer": 0}', 2, "settings.json: n_layer must be at least 1, got 0"),
        (None, 1, "settings.json is not a regular file"),
    ],
)
def test_damaged_settings_of_a_run_without_a_checkpoint_are_one_line(
    folder: Path, tmp_path: Path, content: str | None, status: int, message: str
) -> None:
    config = write_config(tmp_path / "run.py", folder / "tiny")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "val_loss": 3.5}\n')
    if content is None:
        os.mkfifo(tmp_path / "run" / "settings.json")
    else:
        (tmp_path / "run" / "settings.json").write_text(content)
    done = invoke("train.py", config)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1) and message in done.stderr, done.stderr
    assert read_metric_rows(tmp_path / "run") == [{"step": 0, "val_loss": 3.5}]


def test_lock_admits_one_process(folder: Path) -> None:
    config = write_config(folder / "locked.py", folder / "tiny")
    (folder / "locked").mkdir()
    with FileLock(folder / "locked" / ".lock"):
        result = invoke("train.py", config)
    assert result.returncode == 1 and "another process is training in" in result.stderr


# --restart


def test_restart_deletes_only_the_run(folder: Path) -> None:
    config, out_dir = write_config(folder / "again.py", folder / "tiny"), folder / "again"
    assert invoke("train.py", config).returncode == 0
    (out_dir / "notes.txt").write_text("mine")
    (out_dir / "served").mkdir()
    (out_dir / "served" / "receipt.json").write_text("{}")
    before = read_files(out_dir)
    assert invoke("train.py", config, "--restart", "--block_size=4000").returncode == 2
    assert invoke("train.py", config, "--restart", "--completion_author=Nobody").returncode == 2
    assert read_files(out_dir) == before, "a command that fails deletes nothing"
    assert invoke("train.py", config, "--restart", "--max_steps=7").returncode == 0
    assert list_steps(out_dir) == [6, 7]
    assert max(row["step"] for row in read_metric_rows(out_dir)) == 7
    assert (out_dir / "notes.txt").read_text() == "mine"
    assert not (out_dir / "served").exists(), "the export for `folio serve` is of the deleted run"
    (out_dir / "served").mkdir()
    (out_dir / "served" / "notes.txt").write_text("mine")
    delete_run(out_dir)
    assert read_files(out_dir / "served") == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("--n_embd=65536 --n_layer=1000", 1, "do not fit the memory of cpu; use a smaller model"),
        ("--completion_prompt=\udcff", 2, "completion_prompt must be UTF-8 text"),
        ("--completion_author=Nobody", 2, "has no author 'Nobody'"),
        ("--max_steps=" + "9" * 400, 2, "max_steps must be at most 1e+18"),
        ("--device=cuda:01", 2, "device must be auto, cpu, mps"),
    ],
)
def test_restart_deletes_nothing_until_the_new_run_can_start(
    folder: Path, arguments: str, status: int, message: str
) -> None:
    path = write_config(folder / "kept.py", folder / "tiny")
    if not (folder / "kept").exists():
        assert invoke("train.py", path).returncode == 0
    before = read_losses(folder / "kept")
    done = invoke("train.py", path, "--restart", *arguments.split())
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: with the learning_rate")]
    assert (done.returncode, len(errors)) == (status, 1) and message in errors[0], done.stderr
    assert read_losses(folder / "kept") == before and len(list_checkpoints(folder / "kept")) == 3


def test_interrupted_deletion_leaves_no_run_to_continue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train_run(folder, "half")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        delete_run(run)
    monkeypatch.undo()
    assert list_checkpoints(run) == []
    assert invoke("train.py", folder / "half.py").returncode == 0
    assert not [p for p in run.iterdir() if p.name.startswith(".checkpoints")]


# --resume and --init_from


def test_resume_never_needs_an_empty_folder(folder: Path, long_run: Path) -> None:
    config = long_run.with_suffix(".py")
    result = invoke("train.py", config, "--resume=never")
    assert result.returncode == 2 and "already holds a run" in result.stderr
    arguments = ["--resume=never", f"--out_dir={folder / 'fresh'}", "--max_steps=6"]
    assert invoke("train.py", config, *arguments).returncode == 0


def test_resume_continues_another_run_in_a_new_folder(folder: Path, long_run: Path) -> None:
    config, branch = long_run.with_suffix(".py"), folder / "branch"
    start = long_run / "checkpoints" / "step-00000140"
    arguments = [config, f"--resume={start}", f"--out_dir={branch}"]
    assert invoke("train.py", *arguments).returncode == 0
    assert read_losses(branch) == [row for row in read_losses(long_run) if row["step"] > 140]
    assert list_steps(branch) == [140, 150]
    again = invoke("train.py", *arguments)
    assert again.returncode == 2 and "already holds a run" in again.stderr
    past = invoke("train.py", config, f"--resume={long_run}", f"--out_dir={folder / 'past'}")
    assert past.returncode == 2
    assert "max_steps must be more than the 150 steps of " in past.stderr and "raise --max_steps" in past.stderr
    inside = invoke("train.py", config, f"--resume={start}", "--restart")
    assert inside.returncode == 2 and f"resume={start} is inside out_dir" in inside.stderr
    assert start.exists()
    missing = invoke("train.py", config, f"--resume={folder / 'nowhere'}", f"--out_dir={folder / 'past'}")
    assert missing.returncode == 2 and "neither a checkpoint nor a run" in missing.stderr


def test_resume_with_a_model_of_another_shape_writes_nothing(folder: Path) -> None:
    run, new_run = train_run(folder, "shaped"), folder / "reshaped"
    arguments = [folder / "shaped.py", f"--out_dir={new_run}", f"--resume={run}", "--max_steps=40"]
    done = invoke("train.py", *arguments, "--n_embd=16")
    assert done.returncode == 2 and "but the settings need" in done.stderr
    # The weights have the same shapes for any number of heads.
    done = invoke("train.py", *arguments, "--n_head=4")
    assert done.returncode == 2 and done.stderr.endswith("which is another model; set --n_head=2\n")
    assert not (new_run / "metrics.jsonl").exists()


def test_contradictory_options_are_rejected(folder: Path) -> None:
    run, other = train_run(folder, "both"), folder / "n"
    for arguments, message in (
        ([f"--resume={run}", "--init_from=x", f"--out_dir={other}"], "init_from is x, which has no effect"),
        ([f"--resume={run}", "--optimizer=muon", f"--out_dir={other}", "--max_steps=30"], "set --optimizer=adamw"),
        ([f"--init_from={run}", "--restart"], "is inside out_dir"),
        (["--restart=true"], "--restart takes no value; write --restart alone"),
        (["--init_from="], "init_from is empty"),
    ):
        done = invoke("train.py", folder / "both.py", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and message in done.stderr, done.stderr
    assert len(list_checkpoints(run)) == 3


def test_start_that_fails_leaves_no_folder(folder: Path) -> None:
    config = write_config(folder / "failed.py", folder / "tiny")
    for arguments in (["--resume=nowhere"], ["--init_from=nowhere"], ["--keep_checkpoints=100000000000"]):
        assert invoke("train.py", config, *arguments).returncode in (1, 2)
        assert not (folder / "failed").exists()


# What is written


def test_saved_settings_have_the_resolved_device_and_precision(folder: Path) -> None:
    run = train_run(folder, "auto", max_steps=4, device="auto", precision="auto")
    saved = json.loads((run / "settings.json").read_text())
    assert saved["device"] == str(choose_device("auto")) and saved["precision"] != "auto"


def test_run_with_old_names_of_settings_is_saved_under_new_names_and_continues(folder: Path) -> None:
    settings = {"sampling": "epochs", "sample_tokens": 5, "max_steps": 8, "checkpoint_interval": 4, "eval_interval": 4}
    run = train_run(folder, "old_names", **settings)
    saved = json.loads((run / "settings.json").read_text())
    assert (saved["data_order"], saved["completion_tokens"]) == ("epochs", 5)
    assert "sampling" not in saved and "sample_tokens" not in saved
    before = read_losses(run)
    shutil.rmtree(list_checkpoints(run)[-1])
    newest = list_checkpoints(run)[-1]
    settings = open_checkpoint(newest).info.origin.settings
    settings["sampling"] = settings.pop("data_order")  # as an earlier version wrote it
    edit_checkpoint(newest, settings=settings)
    resumed = invoke("train.py", folder / "old_names.py")
    assert resumed.returncode == 0 and "continuing after step 4" in resumed.stdout, resumed.stderr
    assert read_losses(run) == before
    changed = invoke("train.py", folder / "old_names.py", "--sampling=random")
    assert changed.returncode == 2 and "data_order epochs → random" in changed.stderr


def test_out_dir_may_begin_with_a_tilde(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_config(folder / "home.py", folder / "tiny", out_dir="~/run", max_steps=4)
    assert invoke("train.py", path).returncode == 0 and (tmp_path / "run" / "metrics.jsonl").is_file()
    assert not os.path.exists("~")


def test_restart_keeps_files_that_are_not_a_run(folder: Path, tmp_path: Path) -> None:
    own = [tmp_path / "mine" / "checkpoints" / "my.pt", tmp_path / "mine" / "evaluations" / "thesis.txt"]
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    config = write_config(tmp_path / "mine.py", folder / "tiny")
    result = invoke("train.py", config, "--restart")
    assert result.returncode == 2 and "is not a run; move it away" in result.stderr, result.stderr
    assert all(path.read_text() == "mine" for path in own)
