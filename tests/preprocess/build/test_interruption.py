"""Interrupted builds: kills change no byte, finished work is used again, and stale work is not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from preprocess.build import prepare
from preprocess.build.work_dir import get_work_root
from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from tests.conftest import ROOT, file_bytes
from tests.preprocess.build.helpers import (
    COLUMNS,
    SHARD_TOKENS,
    build_corpus,
    list_leftovers,
    make_corpus_recipe,
    run_build,
)


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def test_finished_partitions_are_not_prepared_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3000)
    expected = file_bytes(build_corpus(corpus, tmp_path / "expected/x").folder)
    prepared: list[int] = []
    prepare_partition = prepare.prepare_partition

    def interrupt_eighth(context: Any, partition: Any) -> Any:
        if len(prepared) == 7:
            raise KeyboardInterrupt
        prepared.append(partition.number)
        return prepare_partition(context, partition)

    monkeypatch.setattr("preprocess.build.build.prepare_partition", interrupt_eighth)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(corpus, tmp_path / "x")
    assert prepared == list(range(7)) and not (tmp_path / "x").exists()
    prepared_again: list[int] = []

    def record(context: Any, partition: Any) -> Any:
        prepared_again.append(partition.number)
        return prepare_partition(context, partition)

    monkeypatch.setattr("preprocess.build.build.prepare_partition", record)
    # Damage one of the finished files, as a power failure may do. Its task must run again.
    ids = next(get_work_root(tmp_path / "x").glob("*/part-00003.ids"))
    ids.write_bytes(bytes(ids.stat().st_size))
    assert file_bytes(build_corpus(corpus, tmp_path / "x").folder) == expected
    assert prepared_again[0] == 3 and not set(prepared_again) & {0, 1, 2, 4, 5, 6}
    assert not list(get_work_root(tmp_path / "x").glob("*/*"))


@pytest.mark.parametrize("change", ["recipe", "input", "same size and time"])
def test_stale_work_is_not_used(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    path = folder / "a.jsonl"
    path.write_bytes((corpus / "0.jsonl").read_bytes())
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3000)
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.dedup_and_split", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(folder, tmp_path / "x")
    overrides: dict[str, Any] = {"clean": ()} if change == "recipe" else {}
    if change != "recipe":
        before = path.stat()
        path.write_bytes(path.read_bytes().replace("слово1 ".encode(), "слово2 ".encode()))
        if change == "same size and time":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_size == before.st_size
    continued = build_corpus(folder, tmp_path / "x", **overrides)
    fresh = build_corpus(folder, tmp_path / "fresh/x", **overrides)
    assert file_bytes(continued.folder) == file_bytes(fresh.folder)


def test_finished_shards_are_not_written_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = file_bytes(build_corpus(corpus, tmp_path / "expected/x").folder)
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(corpus, tmp_path / "x")
    shards = sorted(get_work_root(tmp_path / "x").glob("*/build/train-*.bin"))
    mtimes_before = {p.name: p.stat().st_mtime_ns for p in shards}
    receipts = sorted(get_work_root(tmp_path / "x").glob("*/train-*.shard.json"))
    receipts[1].unlink()
    time.sleep(0.02)
    build = build_corpus(corpus, tmp_path / "x")
    mtimes = {p.name: p.stat().st_mtime_ns for p in sorted(build.folder.glob("train-*.bin"))}
    assert file_bytes(build.folder) == expected and len(mtimes) > 2
    assert [name for name in mtimes if mtimes[name] != mtimes_before[name]] == ["train-00001.bin"]


def test_partly_written_file_of_a_killed_attempt_is_not_published(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(corpus, tmp_path / "x")
    (next(get_work_root(tmp_path / "x").glob("*/build")) / ".manifest.json.77.partial").write_text("half")
    build = build_corpus(corpus, tmp_path / "x")
    assert not [p.name for p in build.folder.iterdir() if p.name.startswith(".")]


def test_work_of_a_build_killed_after_publishing_is_deleted_by_the_next(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def exit_now(*_: object) -> NoReturn:
        raise SystemExit

    work_root = get_work_root(tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.delete_work", exit_now)
        with pytest.raises(SystemExit):
            build_corpus(corpus, tmp_path / "x")
    assert (tmp_path / "x/manifest.json").exists() and list(work_root.glob("*/part-*"))
    assert run_build(make_corpus_recipe(corpus), tmp_path / "x") is False
    assert [p.name for p in work_root.iterdir()] == ["refused.jsonl"]
    assert "27 records that could not be read, or were changed, were saved in" in capsys.readouterr().err


def test_disk_for_near_duplicates_is_part_of_the_check(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = sum(path.stat().st_size for path in corpus.iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("preprocess.build.plan.shutil.disk_usage", lambda _: usage._replace(free=2 * num_bytes))
    build_corpus(corpus, tmp_path / "x")
    with pytest.raises(FolioError, match="not enough space on the disk"):
        build_corpus(corpus, tmp_path / "y", near_dedup="drop")


def test_too_small_disk_is_reported_before_the_work(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("preprocess.build.plan.shutil.disk_usage", lambda _: usage._replace(free=1000))
    message = "not enough space on the disk: .* has 1,000 bytes free, but this build may need about"
    with pytest.raises(FolioError, match=message):
        build_corpus(corpus, tmp_path / "x")
    assert not list(tmp_path.glob(".x.work"))


def start_corpus_build(corpus: Path, output_dir: Path, workers: int, *more: str) -> subprocess.Popen:
    """Start `preprocess build` on the fixture `corpus`, with partitions of 3,000 bytes and `more` options."""
    columns = [text for name, value in COLUMNS.items() for text in (f"--{name.replace('_', '-')}", value)]
    return start_build(3000, "--input", corpus, "--output", output_dir, "--workers", workers, *columns, *more)


def start_build(partition_bytes: int, *options: object) -> subprocess.Popen:
    """Start `preprocess build` with the given size of partitions."""
    code = (
        f"import sys; from preprocess.inputs import input_files; input_files.PARTITION_BYTES = {partition_bytes}\n"
        "from preprocess.cli.main import main; main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "build", "--shard-tokens", SHARD_TOKENS, "--name", "x", *options]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def list_workers(pid: int) -> list[int]:
    """Return the processes that were forked by the fork server of process `pid`."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    return [child for child, parent in parents.items() if parents.get(parent) == pid]


def test_killed_worker_is_reported_and_the_build_can_be_continued(corpus: Path, tmp_path: Path) -> None:
    process = start_corpus_build(corpus, tmp_path / "x", 2)
    worker = None
    while worker is None:
        assert process.poll() is None, process.communicate()
        has_receipts = any(tmp_path.glob(".x.work/*/part-*.json"))
        worker = next((pid for pid in list_workers(process.pid) if has_receipts), None)
    os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert re.search(r"the worker on partition \d+ \(.*\) died \(SIGKILL", stderr.splitlines()[-1])
    assert process.returncode == 1 and "Traceback" not in stderr
    continued = start_corpus_build(corpus, tmp_path / "x", 2)
    assert continued.wait(60) == 0
    assert file_bytes(tmp_path / "x") == file_bytes(build_corpus(corpus, tmp_path / "expected/x").folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_fifty_kills_at_random_moments_change_no_byte(corpus: Path, tmp_path: Path, workers: int) -> None:
    expected = file_bytes(build_corpus(corpus, tmp_path / "expected/x").folder)
    kill_builds(50, corpus, tmp_path / "x", expected, workers)


@pytest.mark.slow
def test_kills_change_no_byte_with_near_duplicates_and_evaluation_items(corpus: Path, tmp_path: Path) -> None:
    folder, items = tmp_path / "near", tmp_path / "items.txt"
    shutil.copytree(corpus, folder)
    texts = [" ".join(f"w{number}x{i}" for i in range(40)) for number in range(60)]
    rows = [{"text": f"{text} {copy}", "pair": f"{copy}-{i}"} for copy in "ab" for i, text in enumerate(texts)]
    (folder / "copies.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    items.write_text("\n".join(texts[:10]), encoding="utf-8")
    settings_ = {"near_dedup": "group", "decontaminate": (str(items),), "dedup_lines": "line"}
    expected = file_bytes(build_corpus(folder, tmp_path / "expected/x", **settings_).folder)
    stats = json.loads((tmp_path / "expected/x/stats.json").read_bytes())
    assert (stats["split"]["near_duplicates_grouped"], stats["documents"]["contaminated"]) == (50, 20)
    lines = ("--dedup-lines", "line")
    kill_builds(10, folder, tmp_path / "x", expected, 2, "--near-dedup", "group", "--decontaminate", str(items), *lines)


def kill_builds(count: int, corpus: Path, output_dir: Path, expected: Any, workers: int, *more: str) -> None:
    """Kill builds at random moments. Each continues the killed one before it, until one is finished and deleted."""
    rng, num_kills = random.Random(workers), 0
    while num_kills < count:
        process = start_corpus_build(corpus, output_dir, workers, *more)
        try:
            process.wait(rng.uniform(0.3, 1.6))
        except subprocess.TimeoutExpired:
            process.kill()
            num_kills += 1
        process.communicate()
        if output_dir.exists():
            assert file_bytes(output_dir) == expected
            shutil.rmtree(output_dir)
    assert start_corpus_build(corpus, output_dir, workers, *more).wait(60) == 0
    assert file_bytes(output_dir) == expected


PROSE_WORDS = ["the", "and", "of", "to", "that", "with", "have", "be", "in", "on", "it", "was", "as", "at", "by"]


def write_pages(folder: Path) -> None:
    """Write documents of which the filters of FineWeb drop some, and copies of others with one other word."""
    folder.mkdir()
    rng = random.Random(4)
    names = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(400)]
    texts = []
    for number in range(240):
        words = [rng.choice(names if i % 2 else PROSE_WORDS) for i in range(rng.randint(60, 110))]
        lines = [" ".join(words[i : i + 12]) + ("" if number % 8 == 1 else ".") for i in range(0, len(words), 12)]
        texts.append("\n".join(lines * (3 if number % 8 == 2 else 1)))
        if number % 3 == 0:
            texts.append(texts[-1].replace(words[-5], "another", 1))
    rng.shuffle(texts)
    for number in range(4):
        rows = [json.dumps({"text": text}) for text in texts[number::4]]
        (folder / f"{number}.jsonl").write_text("\n".join(rows), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "partition_bytes"), [(1, 9000), (2, 4000), (5, 20_000)])
def test_kills_change_no_byte_with_filters_and_near_duplicates(
    tmp_path: Path, workers: int, partition_bytes: int
) -> None:
    """KILLS in the environment sets how many builds are killed for each number of workers."""
    write_pages(tmp_path / "pages")
    options = ("--input", tmp_path / "pages", "--quality", "fineweb", "--near-dedup", "drop")
    expected_dir, output_dir = tmp_path / "expected/x", tmp_path / "x"
    assert start_build(1 << 24, *options, "--workers", 1, "--output", expected_dir).wait(120) == 0
    stats = json.loads((expected_dir / "stats.json").read_bytes())
    assert sum(len(entry["dropped"]) for entry in stats["filters"]) >= 2 and stats["documents"]["near_duplicates"] > 50
    expected, rng, num_kills = file_bytes(expected_dir), random.Random(workers), 0
    num_files = 0  # in the work folder of the build that is killed, at least
    while num_kills < int(os.environ.get("KILLS", 4)):
        process = start_build(partition_bytes, *options, "--workers", workers, "--output", output_dir)
        if kill_after_files(process, tmp_path, num_files, rng):
            num_kills += 1
            assert not output_dir.exists() or file_bytes(output_dir) == expected
            num_files = len(list(tmp_path.glob(".x.work/*/*"))) + rng.randrange(12)
        else:
            assert file_bytes(output_dir) == expected
        if output_dir.exists():
            shutil.rmtree(output_dir)
            num_files = rng.randrange(12)
    last = start_build(partition_bytes, *options, "--workers", workers, "--output", output_dir)
    assert last.wait(120) == 0 and file_bytes(output_dir) == expected


def kill_after_files(process: subprocess.Popen, folder: Path, num_files: int, rng: random.Random) -> bool:
    """Kill a build a random time after its work folder has `num_files` files. Return False if it ends before."""
    while process.poll() is None:
        if len(list(folder.glob(".x.work/*/*"))) >= num_files:
            break
        time.sleep(0.001)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def start_synthetic_build(output_dir: Path) -> subprocess.Popen:
    options = ["--corpus", "synthetic", "--num-pairs", "4000", "--output", str(output_dir)]
    command = [sys.executable, "-m", "preprocess", "build", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("signal_", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_leaves_no_build_and_work_that_continues(tmp_path: Path, signal_: signal.Signals, status: int) -> None:
    output_dir = tmp_path / "out" / "synthetic"
    process = start_synthetic_build(output_dir)
    while not list(output_dir.parent.glob(".synthetic.work/*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.send_signal(signal_)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status and not output_dir.exists()
    if signal_ != signal.SIGKILL:
        word = "terminated" if signal_ == signal.SIGTERM else "interrupted"
        assert stderr.splitlines()[-1] == f"error: {word}; run the same command again"
        assert list_leftovers(output_dir.parent) in ([], [".synthetic.work"])
    assert start_synthetic_build(output_dir).wait(timeout=120) == 0
    assert list_leftovers(output_dir.parent) == [] and list(verify(Build(output_dir))) == []


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_whole_build_or_none(tmp_path: Path) -> None:
    expected_dir, output_dir = tmp_path / "expected" / "synthetic", tmp_path / "out" / "synthetic"
    assert start_synthetic_build(expected_dir).wait() == 0
    expected = file_bytes(expected_dir)
    for seconds in np.random.default_rng(0).uniform(0.1, 3.0, 40).tolist():
        process = start_synthetic_build(output_dir)
        threading.Timer(seconds, process.kill).start()
        status = process.wait(timeout=60)
        if output_dir.exists():
            assert file_bytes(output_dir) == expected
            shutil.rmtree(output_dir)
        else:
            assert status == -9
    assert start_synthetic_build(output_dir).wait() == 0 and file_bytes(output_dir) == expected
