"""The same bytes for any number of workers, any partitions, any order and any interruption; and stale work is never taken."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.build import prepare
from preprocess.build.build import build
from preprocess.build.engines import local as engines
from preprocess.build.work_dir import work_root
from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.stages.encode import BackendMismatch
from tests.conftest import ROOT, file_bytes

QUIET = Progress(quiet=True)
COLUMNS = {"author_column": "who", "year_column": "year", "lang_column": "lang", "group_column": "pair"}
FIXTURE = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines in three files: authors, groups, duplicates, bad lines, empty texts."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = [f"слово{i}" if i % 3 else f"word{i}" for i in range(300)]
    for number in range(3):
        lines = []
        for i in range(400):
            row = {
                "text": " ".join(rng.choices(words, k=rng.randint(0, 12))) + (" ü\r\n" if i % 5 == 0 else ""),
                "who": rng.choice(["Анна", "Борис", None, f"A {i % 7}"]),
                "year": rng.choice([None, 1990 + i % 30]),
                "lang": rng.choice(["ru", "en", None]),
                "pair": str(i // 2) if number else None,
            }
            lines.append(json.dumps(row, ensure_ascii=False) if i % 50 else '{"broken')
        lines += lines[:20]
        (folder / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def run(corpus: Path, folder: Path, *, workers: int = 1, **overrides: Any) -> Build:
    recipe = load_recipe(
        None, inputs=(str(corpus),), **{**COLUMNS, "tokenizer": "gpt2", "shard_tokens": 4000, **overrides}
    )
    build(recipe, folder, name="x", replace=True, progress=QUIET, workers=workers)
    made = Build(folder)
    assert list(verify(made)) == []
    return made


@pytest.mark.parametrize(
    "tokenizer", [{"tokenizer": "gpt2"}, {"tokenizer": "sentencepiece", "num_pieces": 500}, {"tokenizer": "char"}]
)
def test_workers_and_partitions_change_no_byte(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: dict[str, Any]
) -> None:
    whole = file_bytes(run(corpus, tmp_path / "whole/x", **tokenizer).folder)
    for number, (workers, partition_bytes) in enumerate([(2, 3000), (5, 7001), (1, 500), (2, 1 << 20)]):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition_bytes)
        folder = tmp_path / str(number) / "x"
        assert file_bytes(run(corpus, folder, workers=workers, **tokenizer).folder) == whole, (workers, partition_bytes)
        assert list(folder.parent.iterdir()) == [work_root(folder), folder] or {
            p.name for p in folder.parent.iterdir()
        } <= {
            "x",
            ".x.lock",
            ".x.work",
        }


class Shuffled(engines.InProcess):
    """Tasks in an order of the test's own."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def run(self, tasks: Any) -> Iterator[Any]:
        tasks = list(tasks)
        self._rng.shuffle(tasks)
        yield from super().run(tasks)


@FIXTURE
@given(st.integers(0, 10**6), st.integers(300, 9000), st.integers(500, 50_000))
def test_the_order_in_which_tasks_end_changes_nothing(
    corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    partition_bytes: int,
    shard_tokens: int,
) -> None:
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.InProcess", lambda: Shuffled(seed))
        patch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition_bytes)
        shuffled = file_bytes(run(corpus, one / "x", shard_tokens=shard_tokens).folder)
    assert shuffled == file_bytes(run(corpus, other / "x", shard_tokens=shard_tokens).folder)


def test_sides_share_no_content_and_no_group(corpus: Path, tmp_path: Path) -> None:
    made = run(corpus, tmp_path / "x")
    hashes = {s: {bytes(h) for h in made.docs(s)["hash"]} for s in ("train", "val")}
    counts = json.loads((made.folder / "stats.json").read_bytes())["documents"]
    assert not hashes["train"] & hashes["val"] and sum(map(len, hashes.values())) == counts["kept"]
    assert (
        counts["read"] == 3 * 420
        and counts["malformed"] == 3 * 9
        and counts["duplicates"] >= 3 * 20
        and counts["empty"] > 0
    )
    pairs = {s: {(int(d["source"]), int(d["position"])) for d in made.docs(s)} for s in ("train", "val")}
    rows = [
        [json.loads(x) for x in (corpus / f"{n}.jsonl").read_text().splitlines() if "broken" not in x] for n in range(3)
    ]
    groups = {s: {rows[source][position]["pair"] for source, position in pairs[s]} - {None} for s in pairs}
    assert groups["train"] and groups["val"] and not groups["train"] & groups["val"]


def test_control_ids_stand_only_where_they_were_put(corpus: Path, tmp_path: Path) -> None:
    made = run(corpus, tmp_path / "x")
    first, eot = 50257, 50256
    for split in ("train", "val"):
        for number in range(len(made.docs(split))):
            ids = made.document(split, number)
            is_control = ids >= eot
            front = int(np.argmin(is_control))
            assert front <= 2 and ids[-1] == eot and not is_control[front:-1].any() and (ids[:front] >= first).all()


def test_work_that_is_done_is_not_done_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3000)
    whole = file_bytes(run(corpus, tmp_path / "whole/x").folder)
    done: list[int] = []
    real = prepare.prepare_partition

    def interrupted(job: Any, partition: Any) -> Any:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(partition.number)
        return real(job, partition)

    monkeypatch.setattr("preprocess.build.build.prepare_partition", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "x")
    assert done == list(range(7)) and not (tmp_path / "x").exists()
    again: list[int] = []
    monkeypatch.setattr(
        "preprocess.build.build.prepare_partition", lambda job, p: (again.append(p.number), real(job, p))[1]
    )
    # One of the finished files is damaged, as a crash of the machine may leave it: its task is done again.
    ids = next(work_root(tmp_path / "x").glob("*/part-00003.ids"))
    ids.write_bytes(bytes(ids.stat().st_size))
    assert file_bytes(run(corpus, tmp_path / "x").folder) == whole
    assert again[0] == 3 and not set(again) & {0, 1, 2, 4, 5, 6} and not list(work_root(tmp_path / "x").glob("*/*"))


@pytest.mark.parametrize("change", ["recipe", "input", "same size and time"])
def test_stale_work_is_never_taken(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    path = own / "a.jsonl"
    path.write_bytes((corpus / "0.jsonl").read_bytes())
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3000)
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.decide_sides", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(own, tmp_path / "x")
    overrides: dict[str, Any] = {"clean": ()} if change == "recipe" else {}
    if change != "recipe":
        before = path.stat()
        path.write_bytes(path.read_bytes().replace("слово1 ".encode(), "слово2 ".encode()))
        if change == "same size and time":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_size == before.st_size
    assert file_bytes(run(own, tmp_path / "x", **overrides).folder) == file_bytes(
        run(own, tmp_path / "fresh/x", **overrides).folder
    )


def test_finished_shards_are_not_written_again(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = file_bytes(run(corpus, tmp_path / "whole/x").folder)
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "x")
    shards = sorted(work_root(tmp_path / "x").glob("*/build/train-*.bin"))
    written = {p.name: p.stat().st_mtime_ns for p in shards}
    receipts = sorted(work_root(tmp_path / "x").glob("*/train-*.shard.json"))
    receipts[1].unlink()
    time.sleep(0.02)
    made = run(corpus, tmp_path / "x")
    now = {p.name: p.stat().st_mtime_ns for p in sorted(made.folder.glob("train-*.bin"))}
    assert file_bytes(made.folder) == whole and len(now) > 2
    assert [name for name in now if now[name] != written[name]] == ["train-00001.bin"]


def start(corpus: Path, folder: Path, workers: int) -> subprocess.Popen:
    code = "import sys; from preprocess.inputs import input_files; input_files.PARTITION_BYTES = 3000\nfrom preprocess.cli.cli import main; main(sys.argv[1:])\n"
    settings_ = [
        "--author-column",
        "who",
        "--year-column",
        "year",
        "--lang-column",
        "lang",
        "--group-column",
        "pair",
        "--shard-tokens",
        "4000",
    ]
    command = [
        sys.executable,
        "-c",
        code,
        "build",
        "--input",
        str(corpus),
        *settings_,
        "--workers",
        str(workers),
        "--output",
        str(folder),
    ]
    return subprocess.Popen(
        [*command, "--name", "x"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_worker_killed_from_outside_ends_the_build_loudly(corpus: Path, tmp_path: Path) -> None:
    process = start(corpus, tmp_path / "x", 2)
    victim = None
    while victim is None:
        assert process.poll() is None, process.communicate()
        victim = next((pid for pid in workers_of(process.pid) if list(tmp_path.glob(".x.work/*/part-*.json"))), None)
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "died (SIGKILL" in stderr.splitlines()[-1] and "Traceback" not in stderr
    again = start(corpus, tmp_path / "x", 2)
    assert again.wait(60) == 0 and file_bytes(tmp_path / "x") == file_bytes(run(corpus, tmp_path / "whole/x").folder)


def workers_of(pid: int) -> list[int]:
    """Processes that the fork server of `pid` has started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    return [child for child, parent in parents.items() if parents.get(parent) == pid]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_fifty_kills_at_random_moments_change_no_byte(corpus: Path, tmp_path: Path, workers: int) -> None:
    """Twice fifty: each attempt goes on where the one before was killed, until one ends; then the next begins."""
    whole = file_bytes(run(corpus, tmp_path / "whole/x").folder)
    rng, folder, kills, ended = random.Random(workers), tmp_path / "x", 0, 0
    while kills < 50:
        process = start(corpus, folder, workers)
        try:
            process.wait(rng.uniform(0.3, 1.6))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        if folder.exists():
            assert file_bytes(folder) == whole
            subprocess.run(["rm", "-r", str(folder)], check=True)
            ended += 1
    assert start(corpus, folder, workers).wait(60) == 0 and file_bytes(folder) == whole


def test_too_little_disk_is_said_before_anything_is_done(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("preprocess.build.plan.shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        FolioError, match="no space left on the disk: .* has 1,000 bytes free, this build may need about"
    ):
        run(corpus, tmp_path / "x")
    assert not list(tmp_path.glob(".x.work"))


def test_a_build_killed_behind_its_publication_leaves_no_work_for_ever(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.clear_work", lambda *_: (_ for _ in ()).throw(SystemExit()))
        with pytest.raises(SystemExit):
            run(corpus, tmp_path / "x")
    assert (tmp_path / "x/manifest.json").exists() and list(work_root(tmp_path / "x").glob("*/part-*"))
    recipe = load_recipe(None, inputs=(str(corpus),), tokenizer="gpt2", shard_tokens=4000, **COLUMNS)
    assert build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET) is False
    assert [p.name for p in work_root(tmp_path / "x").iterdir()] == [
        "refused.jsonl"
    ] and "27 records" in capsys.readouterr().err


def test_what_a_killed_attempt_left_half_written_is_not_published(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("preprocess.build.build.publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "x")
    (next(work_root(tmp_path / "x").glob("*/build")) / ".manifest.json.77.partial").write_text("half")
    made = run(corpus, tmp_path / "x")
    assert not [p.name for p in made.folder.iterdir() if p.name.startswith(".")]


def test_an_engine_that_errs_ends_its_workers_before_the_reference_begins(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The first pool fails half-way, with tasks still in its workers' hands: none of their answers may reach the second attempt."""
    pools: list[engines.ProcessPool] = []

    class Failing(engines.ProcessPool):
        def __init__(self, num_workers: int) -> None:
            super().__init__(num_workers)
            pools.append(self)

        def run(self, tasks: Any) -> Iterator[Any]:
            for number, done in enumerate(super().run(tasks)):
                if len(pools) == 1 and number == 5:
                    raise BackendMismatch("gigatoken differs from tiktoken on 'x'")
                yield done

    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3000)
    monkeypatch.setattr("preprocess.build.build.ProcessPool", Failing)
    made = run(corpus, tmp_path / "x", workers=2)
    assert len(pools) == 2 and not any(worker.process.is_alive() for worker in pools[0]._workers)
    assert "the reference library encodes the whole build" in capsys.readouterr().err
    assert json.loads((made.folder / "build_log.json").read_bytes())["engine"] == "tiktoken"
    assert file_bytes(made.folder) == file_bytes(run(corpus, tmp_path / "whole/x").folder)
