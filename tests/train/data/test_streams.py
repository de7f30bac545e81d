"""A run straight from text: it learns, it is continued to the last bit, and it leaves all that its text needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from preprocess.errors import MisuseError
from tests.helpers.runs import REPO, SENTENCE, environment, invoke, losses, make_build, rows, write_config
from train.config import Config
from train.core.distributed import World
from train.data.batches import Prefetcher
from train.data.streams import StreamedText, open_data_source, open_data_splits
from train.evaluation.results import NUMBERS
from train.run.checkpoint import list_checkpoints

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
    """A recipe of 400 one-line documents, of which no two are alike."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "input.txt").write_text("".join(f"{n} {SENTENCE}" for n in range(400)))
    recipe = 'inputs = ["input.txt"]\ndocument = "line"\ntokenizer = "byte"\nsplit = "threshold"\ndedup = false\nval_fraction = 0.2\n'
    (folder / "mine.toml").write_text(recipe)
    return folder


def config_of(folder: Path, name: str, **settings: object) -> Path:
    return write_config(
        folder / f"{name}.py", folder, **SETTINGS | {"data": f"stream:{folder / 'mine.toml'}"} | settings
    )


def test_it_learns_and_leaves_what_text_needs(folder: Path) -> None:
    config = config_of(folder, "learns", max_steps=120, eval_interval=60, checkpoint_interval=60)
    result = invoke("train.py", config)
    assert (result.returncode, result.stderr) == (0, "")
    assert "no end of training tokens, 16 validation windows" in result.stdout and "read as it comes" in result.stdout
    evaluations = [row["val_loss"] for row in rows(folder / "learns") if "val_loss" in row]
    assert evaluations[-1] < evaluations[0] / 2
    assert rows(folder / "learns")[-1]["bits_per_byte"] > 0
    shutil.move(folder / "input.txt", folder / "away.txt")  # text needs neither the source nor the recipe
    try:
        done = invoke("sample.py", folder / "learns", "--prompt", "12 the quick", "--tokens", 8)
    finally:
        shutil.move(folder / "away.txt", folder / "input.txt")
    assert done.returncode == 0 and done.stdout.startswith("12 the quick"), done.stderr


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_is_as_never_interrupted(folder: Path, optimizer: str) -> None:
    config = config_of(folder, optimizer, optimizer=optimizer)
    assert invoke("train.py", config).returncode == 0
    for after in (4, 8):
        copy = folder / f"{optimizer}_from_{after}"
        shutil.copytree(folder / optimizer, copy)
        for checkpoint in list_checkpoints(copy):
            if int(checkpoint.name[-8:]) > after:
                shutil.rmtree(checkpoint)
        assert invoke("train.py", config, f"--out_dir={copy}").returncode == 0
        assert losses(copy) == losses(folder / optimizer)
        for file in ("model.safetensors", "training.safetensors"):
            assert (list_checkpoints(copy)[-1] / file).read_bytes() == (
                list_checkpoints(folder / optimizer)[-1] / file
            ).read_bytes()


def test_a_preflight_takes_nothing_from_the_stream(folder: Path) -> None:
    config = Config(
        data=f"stream:{folder / 'mine.toml'}",
        out_dir="y",
        block_size=16,
        batch_size=4,
        stream_buffer=0,
        eval_tokens=256,
    )
    source, cpu = open_data_source(config.data, world=World()), torch.device("cpu")
    data = open_data_splits(source, config, device=cpu, world=World())
    fresh = open_data_splits(source, config, device=cpu, world=World())
    tried = data.train.trial_batch(10)[0]
    prefetcher = Prefetcher(data.train, windows_per_step=8, micro_batch=4, world=World())
    taken = torch.cat([prefetcher.take(prefetcher.first_sample(0, micro))[0] for micro in range(2)])
    assert torch.equal(taken, torch.cat([fresh.train.batch(n, 4)[0] for n in (0, 4)])) and torch.equal(taken, tried[:8])
    assert torch.equal(prefetcher.take(4)[0], taken[4:]), "asked again, the same"
    prefetcher.prepare(8)
    state = data.train.state_at(8)
    ahead = [data.train.batch(n, 4)[0] for n in (8, 12)]
    fresh.train.go_to(state)
    assert all(torch.equal(fresh.train.batch(n, 4)[0], batch) for n, batch in zip((8, 12), ahead, strict=True))


def test_processes_share_the_documents_out(folder: Path) -> None:
    config = Config(
        data=f"stream:{folder / 'mine.toml'}",
        out_dir="y",
        block_size=16,
        batch_size=4,
        stream_buffer=0,
        eval_tokens=256,
    )
    source = open_data_source(config.data, world=World())

    def documents(rank: int, size: int) -> list[str]:
        """Those of more than the first epoch, whole ones."""
        samples = open_data_splits(source, config, device=torch.device("cpu"), world=World(rank=rank, size=size)).train
        blocks = [
            torch.cat([inputs, targets[:, -1:]], 1)
            for inputs, targets, _ in (samples.batch(n, 4) for n in range(0, 1400 // size, 4))
        ]
        text = torch.cat(blocks).flatten().clamp(max=255).to(torch.uint8).numpy().tobytes().decode("latin-1")
        return text.split("\xff")[:-1]

    alone, shares = documents(0, 1), [documents(rank, 2) for rank in range(2)]
    assert 300 < len(set(alone)) < len(alone) and not set(shares[0]) & set(shares[1])
    assert set(shares[0]) | set(shares[1]) == set(alone)


def test_two_processes_resume_and_one_speaks(folder: Path) -> None:
    (folder / "capped.toml").write_text((folder / "mine.toml").read_text() + "max_documents = 390\n")
    config = config_of(folder, "two", dropout=0.0, data=f"stream:{folder / 'capped.toml'}")
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(REPO / "train" / "train.py"),
        str(config),
    ]

    def run(*arguments: str) -> str:
        done = subprocess.run([*line, *arguments], capture_output=True, text=True, env=environment(), timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("max_documents takes the first 390") == 1
        return done.stdout

    run()
    copy = folder / "two_from_4"
    shutil.copytree(folder / "two", copy)
    for checkpoint in list_checkpoints(copy)[1:]:
        shutil.rmtree(checkpoint)
    assert "continuing after step " in run(f"--out_dir={copy}")
    assert losses(copy) == losses(folder / "two")
    shutil.rmtree(list_checkpoints(copy)[-1])
    fewer = invoke("train.py", config, f"--out_dir={copy}")
    assert (
        fewer.returncode == 2
        and "a stream cannot be shared anew among 1; continue it with torchrun --nproc_per_node=2" in fewer.stderr
    )


def test_what_a_stream_cannot_have_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = make_build(tmp_path / "tiny")
    monkeypatch.chdir(REPO)
    for settings, complaint in (
        (
            "--data_order=epochs",
            "data_order is 'epochs', and a stream is read in its own order; set data_order = 'random'",
        ),
        ("--mask_documents=true", "mask_documents is True, and a stream"),
        ("--data=stream:nowhere", "nowhere"),
        ("--data=stream:", "no corpus ''"),
        (f"--data=stream:{folder / 'mine.toml'}:0.5", "a stream has no weight and is not mixed; name one recipe"),
        (f"--data=one:0.5,stream:{folder / 'mine.toml'}", "a stream has no weight and is not mixed"),
        (f"--data=stream:{folder / 'mine.toml'},two", "a stream has no weight and is not mixed"),
        (f"--data=stream:{build}", "is a build, which is read without 'stream:'"),
        (
            "--data=stream:docs",
            "no corpus 'docs', which is a folder; a recipe of your own is named by its path, such as ./mine.toml; wanted one of",
        ),
        ("--eval_tokens=none --block_size=100000", "too few for a block"),
    ):
        done = invoke("train.py", config_of(folder, "refused"), *settings.split())
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and complaint in done.stderr, done.stderr
        assert not (folder / "refused").exists()


def test_checkpoints_are_evaluated_on_all_of_the_streams_own_validation_text(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, "judged", eval_tokens=None, eval_interval=4)
    assert invoke("train.py", config).returncode == 0
    run, cpu = folder / "judged", ("--device", "cpu")
    (tmp_path / "prompts.txt").write_text("12 the quick\n")
    result = invoke("evaluate.py", run, "--all", "--prompts", tmp_path / "prompts.txt", "--tokens", 4, *cpu)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.count(
        "to its end for all of its validation text"
    ) == 1
    told = {row["step"]: row for row in rows(run) if "val_loss" in row}
    found = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == [4, 8, 12] and all(row["answers"] for row in found)
    for row in found:
        assert {key: row[key] for key in NUMBERS} == {key: told[row["step"]][key] for key in NUMBERS}
    again = invoke("evaluate.py", run, "--all", "--prompts", tmp_path / "prompts.txt", "--tokens", 4, *cpu)
    assert "nothing was left" in again.stdout and "to its end" not in again.stdout
    compared = invoke("evaluate.py", "--data", f"stream:{folder / 'mine.toml'}", "--compare", run)
    assert compared.returncode == 0 and compared.stdout.splitlines()[1].split()[1] == "12"
    asked = invoke("evaluate.py", run, "--questions", 2, *cpu)
    assert (
        asked.returncode == 2
        and "--questions is of a build's documents, and stream:mine keeps none; name prompts" in asked.stderr
    )
    source = folder / "input.txt"
    text = source.read_text()
    source.write_text(text + "one more line\n")
    other = invoke("evaluate.py", run, *cpu)
    source.unlink()
    gone = invoke("evaluate.py", run, *cpu)
    source.write_text(text)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1) and "takes it all the same" in other.stderr
    assert (gone.returncode, gone.stderr.count("\n")) == (
        2,
        1,
    ) and "name other data of its tokenizer by --data" in gone.stderr


def test_builds_and_streams_are_not_continued_as_the_other(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, "begun")
    assert invoke("train.py", config).returncode == 0
    build = make_build(tmp_path / "tiny")
    other = invoke("train.py", config, f"--data={build}")
    assert other.returncode == 2 and "another tokenizer" in other.stderr
    with pytest.raises(MisuseError, match="holds no place in a stream"):
        source = open_data_source(f"stream:{folder / 'mine.toml'}", world=World())
        assert isinstance(source, StreamedText)
        small = Config(data="x", out_dir="y", block_size=16, eval_tokens=64)
        open_data_splits(source, small, device=torch.device("cpu"), world=World()).train.go_to(None)


def test_a_stream_that_is_another_says_what_changed(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    (tmp_path / "texts").mkdir()
    shutil.copy(folder / "input.txt", tmp_path / "texts" / "input.txt")
    told = (folder / "mine.toml").read_text().replace("input.txt", "texts") + "max_documents = 390\n"
    recipe.write_text(told)
    config = config_of(tmp_path, "begun")
    first = invoke("train.py", config)
    assert first.returncode == 0 and "takes the first 390" in first.stderr
    again = invoke("train.py", config)
    assert again.returncode == 0 and "nothing is left to do" in again.stdout and again.stderr == ""
    size = (tmp_path / "texts" / "input.txt").stat().st_size

    def refusal() -> str:
        done = invoke("train.py", config)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"holds a run with other settings (stream:{recipe}: " in done.stderr
        return done.stderr.partition(f"stream:{recipe}: ")[2]

    recipe.write_text(told.replace("0.2", "0.3"))
    assert refusal().startswith("val_fraction 0.2 → 0.3); go back to them")
    recipe.write_text(told + 'corpus = "other"\n')
    assert refusal().startswith("corpus 'mine' → 'other')")
    recipe.write_text(told)
    (tmp_path / "texts" / "more.txt").write_text("more\n")
    assert refusal().startswith("more.txt no such file → 5 bytes)")
    (tmp_path / "texts" / "more.txt").unlink()
    with open(tmp_path / "texts" / "input.txt", "a") as file:
        file.write("more\n")
    assert refusal().startswith(f"input.txt {size:,} bytes → {size + 5:,} bytes)")
    shutil.rmtree(tmp_path / "begun" / "build")
    assert refusal().startswith("its recipe or its files changed)")
