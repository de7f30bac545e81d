"""Training on text without shards: samples, resuming, processes, errors, and evaluation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from preprocess.errors import MisuseError
from tests.helpers.runs import (
    REPO,
    SENTENCE,
    delete_checkpoints_after,
    invoke,
    make_build,
    make_environment,
    read_losses,
    read_metric_rows,
    read_val_losses,
    write_config,
)
from train.config import Config
from train.core.distributed import World
from train.data.batches import Prefetcher
from train.data.streams import StreamedText, open_data_source, open_data_splits
from train.evaluation.results import METRICS
from train.run.checkpoint import list_checkpoints

CPU = torch.device("cpu")
SETTINGS = {
    "dropout": 0.1,
    "stream_buffer": 16,
    "eval_tokens": 256,
    "max_steps": 12,
    "checkpoint_interval": 4,
    "keep_checkpoints": 9,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 400 one-line documents, all different."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "input.txt").write_text("".join(f"{n} {SENTENCE}" for n in range(400)))
    (folder / "mine.toml").write_text(
        'inputs = ["input.txt"]\ndocument = "line"\ntokenizer = "byte"\n'
        'split = "threshold"\ndedup = false\nval_fraction = 0.2\n'
    )
    return folder


def write_stream_config(folder: Path, name: str, **settings: object) -> Path:
    return write_config(
        folder / f"{name}.py", folder, **SETTINGS | {"data": f"stream:{folder / 'mine.toml'}"} | settings
    )


def make_stream_config(folder: Path) -> Config:
    return Config(
        data=f"stream:{folder / 'mine.toml'}",
        out_dir="y",
        block_size=16,
        batch_size=4,
        stream_buffer=0,
        eval_tokens=256,
    )


def test_stream_trains_and_its_run_needs_no_input_file(folder: Path) -> None:
    config = write_stream_config(folder, "learns", max_steps=120, eval_interval=60, checkpoint_interval=60)
    result = invoke("train.py", config)
    assert (result.returncode, result.stderr) == (0, "")
    assert "an unknown number of training tokens, 16 validation windows" in result.stdout
    assert "stream:mine: read while training, up to " in result.stdout
    val_losses = [*read_val_losses(folder / "learns").values()]
    assert val_losses[-1] < val_losses[0] / 2
    assert read_metric_rows(folder / "learns")[-1]["bits_per_byte"] > 0
    shutil.move(folder / "input.txt", folder / "away.txt")
    try:
        sampled = invoke("sample.py", folder / "learns", "--prompt", "12 the quick", "--tokens", 8)
    finally:
        shutil.move(folder / "away.txt", folder / "input.txt")
    assert sampled.returncode == 0 and sampled.stdout.startswith("12 the quick"), sampled.stderr


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_stream_equals_an_uninterrupted_one(folder: Path, optimizer: str) -> None:
    config = write_stream_config(folder, optimizer, optimizer=optimizer)
    assert invoke("train.py", config).returncode == 0
    for after in (4, 8):
        copy = folder / f"{optimizer}_from_{after}"
        shutil.copytree(folder / optimizer, copy)
        delete_checkpoints_after(copy, after)
        assert invoke("train.py", config, f"--out_dir={copy}").returncode == 0
        assert read_losses(copy) == read_losses(folder / optimizer)
        resumed, uninterrupted = (list_checkpoints(run)[-1] for run in (copy, folder / optimizer))
        for file in ("model.safetensors", "training.safetensors"):
            assert (resumed / file).read_bytes() == (uninterrupted / file).read_bytes()


def test_trial_batch_consumes_nothing_and_take_can_be_repeated(folder: Path) -> None:
    config = make_stream_config(folder)
    source = open_data_source(config.data, world=World())
    data = open_data_splits(source, config, device=CPU, world=World())
    other = open_data_splits(source, config, device=CPU, world=World())
    trial = data.train.trial_batch(10)[0]
    prefetcher = Prefetcher(data.train, windows_per_step=8, micro_batch=4, world=World())
    taken = torch.cat([prefetcher.take(prefetcher.first_sample(0, micro))[0] for micro in range(2)])
    assert torch.equal(taken, torch.cat([other.train.batch(n, 4)[0] for n in (0, 4)])) and torch.equal(taken, trial[:8])
    assert torch.equal(prefetcher.take(4)[0], taken[4:]), "the same sample again gives the same batch"
    prefetcher.prepare(8)
    state = data.train.resume_state(8)
    following = [data.train.batch(n, 4)[0] for n in (8, 12)]
    other.train.restore(state)
    assert all(torch.equal(other.train.batch(n, 4)[0], batch) for n, batch in zip((8, 12), following, strict=True))


def test_processes_share_documents(folder: Path) -> None:
    config = make_stream_config(folder)
    source = open_data_source(config.data, world=World())

    def read_documents(rank: int, size: int) -> list[str]:
        """Return the complete documents of more than an epoch."""
        samples = open_data_splits(source, config, device=CPU, world=World(rank=rank, size=size)).train
        blocks = [
            torch.cat([inputs, targets[:, -1:]], 1)
            for inputs, targets, _ in (samples.batch(n, 4) for n in range(0, 1400 // size, 4))
        ]
        text = torch.cat(blocks).flatten().clamp(max=255).to(torch.uint8).numpy().tobytes().decode("latin-1")
        return text.split("\xff")[:-1]

    alone, shares = read_documents(0, 1), [read_documents(rank, 2) for rank in range(2)]
    assert 300 < len(set(alone)) < len(alone) and not set(shares[0]) & set(shares[1])
    assert set(shares[0]) | set(shares[1]) == set(alone)


def test_two_processes_resume_and_warn_once(folder: Path) -> None:
    (folder / "capped.toml").write_text((folder / "mine.toml").read_text() + "max_documents = 390\n")
    config = write_stream_config(folder, "two", dropout=0.0, data=f"stream:{folder / 'capped.toml'}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    line = [*launcher, str(REPO / "train" / "train.py"), str(config)]

    def train_in_two_processes(*arguments: str) -> str:
        done = subprocess.run([*line, *arguments], capture_output=True, text=True, env=make_environment(), timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("max_documents keeps the first 390") == 1
        return done.stdout

    train_in_two_processes()
    copy = folder / "two_from_4"
    shutil.copytree(folder / "two", copy)
    delete_checkpoints_after(copy, 4)
    assert "continuing after step " in train_in_two_processes(f"--out_dir={copy}")
    assert read_losses(copy) == read_losses(folder / "two")
    shutil.rmtree(list_checkpoints(copy)[-1])
    alone = invoke("train.py", config, f"--out_dir={copy}")
    message = "its stream cannot be divided among 1; continue it with torchrun --nproc_per_node=2"
    assert alone.returncode == 2 and message in alone.stderr


def test_settings_that_a_stream_does_not_support_are_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = make_build(tmp_path / "tiny")
    monkeypatch.chdir(REPO)
    no_mixture = "a stream has no weight and cannot be mixed; name one recipe"
    for settings, message in (
        (
            "--data_order=epochs",
            "data_order is 'epochs', but a stream is read in its order; set data_order = 'random'",
        ),
        ("--mask_documents=true", "mask_documents is True, but the windows of a stream"),
        ("--data=stream:nowhere", "nowhere"),
        ("--data=stream:", "no corpus ''"),
        (f"--data=stream:{folder / 'mine.toml'}:0.5", no_mixture),
        (f"--data=one:0.5,stream:{folder / 'mine.toml'}", no_mixture),
        (f"--data=stream:{folder / 'mine.toml'},two", no_mixture),
        (f"--data=stream:{build}", "is a build: leave 'stream:' out"),
        (
            "--data=stream:docs",
            "no corpus 'docs' (it is a folder); to use a recipe file, name its path, such as ./mine.toml; "
            "choose one of",
        ),
        ("--eval_tokens=none --block_size=100000", "too few for a block"),
    ):
        done = invoke("train.py", write_stream_config(folder, "refused"), *settings.split())
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
        assert not (folder / "refused").exists()


def test_checkpoints_are_evaluated_on_the_validation_text_of_the_stream(folder: Path, tmp_path: Path) -> None:
    config = write_stream_config(folder, "judged", eval_tokens=None, eval_interval=4)
    assert invoke("train.py", config).returncode == 0
    run, cpu = folder / "judged", ("--device", "cpu")
    (tmp_path / "prompts.txt").write_text("12 the quick\n")
    result = invoke("evaluate.py", run, "--all", "--prompts", tmp_path / "prompts.txt", "--tokens", 4, *cpu)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("reading all of stream:mine for its validation text") == 1
    logged = {row["step"]: row for row in read_metric_rows(run) if "val_loss" in row}
    evaluated = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluated] == [4, 8, 12] and all(row["completions"] for row in evaluated)
    for row in evaluated:
        assert {key: row[key] for key in METRICS} == {key: logged[row["step"]][key] for key in METRICS}
    again = invoke("evaluate.py", run, "--all", "--prompts", tmp_path / "prompts.txt", "--tokens", 4, *cpu)
    assert (
        again.returncode == 0
        and "nothing was left to evaluate" in again.stdout
        and "reading all of" not in again.stdout
    )
    compared = invoke("evaluate.py", "--data", f"stream:{folder / 'mine.toml'}", "--compare", run)
    assert compared.returncode == 0 and compared.stdout.splitlines()[1].split()[1] == "12"
    drawn = invoke("evaluate.py", run, "--prompts", 2, *cpu)
    message = "--prompts 2 draws prompts from the documents of a build, but stream:mine stores no documents"
    assert drawn.returncode == 2 and message in drawn.stderr
    input_file = folder / "input.txt"
    text = input_file.read_text()
    input_file.write_text(text + "one more line\n")
    (run / "evaluations.jsonl").unlink()  # stored losses would need no data
    changed = invoke("evaluate.py", run, *cpu)
    input_file.unlink()
    missing = invoke("evaluate.py", run, *cpu)
    input_file.write_text(text)
    assert (changed.returncode, changed.stderr.count("\n")) == (2, 1) and "to use it anyway" in changed.stderr
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "or set other data of its tokenizer with --data" in missing.stderr


def test_stream_and_build_do_not_continue_each_other(folder: Path, tmp_path: Path) -> None:
    config = write_stream_config(folder, "begun")
    assert invoke("train.py", config).returncode == 0
    build = make_build(tmp_path / "tiny")
    other = invoke("train.py", config, f"--data={build}", "--stream_buffer=10_000")
    assert other.returncode == 2 and "another tokenizer" in other.stderr
    with pytest.raises(MisuseError, match="stores no position in a stream"):
        source = open_data_source(f"stream:{folder / 'mine.toml'}", world=World())
        assert isinstance(source, StreamedText)
        small = Config(data="x", out_dir="y", block_size=16, eval_tokens=64)
        open_data_splits(source, small, device=CPU, world=World()).train.restore(None)


def test_changed_stream_is_rejected_with_what_changed(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    (tmp_path / "texts").mkdir()
    shutil.copy(folder / "input.txt", tmp_path / "texts" / "input.txt")
    recipe_text = (folder / "mine.toml").read_text().replace("input.txt", "texts") + "max_documents = 390\n"
    recipe.write_text(recipe_text)
    config = write_stream_config(tmp_path, "begun")
    first = invoke("train.py", config)
    assert first.returncode == 0 and "keeps the first 390" in first.stderr
    again = invoke("train.py", config)
    assert again.returncode == 0 and "is finished: all 12 steps are done" in again.stdout and again.stderr == ""
    size = (tmp_path / "texts" / "input.txt").stat().st_size

    def read_difference() -> str:
        """Return what the error says after the name of the stream."""
        done = invoke("train.py", config)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"holds a run with other settings (stream:{recipe}: " in done.stderr
        return done.stderr.partition(f"stream:{recipe}: ")[2]

    recipe.write_text(recipe_text.replace("0.2", "0.3"))
    assert read_difference().startswith("val_fraction 0.2 → 0.3); use those to continue it")
    recipe.write_text(recipe_text + 'corpus = "other"\n')
    assert read_difference().startswith("corpus 'mine' → 'other')")
    recipe.write_text(recipe_text)
    (tmp_path / "texts" / "more.txt").write_text("more\n")
    assert read_difference().startswith("more.txt no such file → 5 bytes)")
    (tmp_path / "texts" / "more.txt").unlink()
    with open(tmp_path / "texts" / "input.txt", "a") as file:
        file.write("more\n")
    assert read_difference().startswith(f"input.txt {size:,} bytes → {size + 5:,} bytes)")
    shutil.rmtree(tmp_path / "begun" / "build")
    assert read_difference().startswith("its recipe or its files changed)")
