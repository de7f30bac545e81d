"""Whole builds: the same bytes from anywhere, nothing that looks finished from what was not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.build.build import build
from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.download import find_file
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.interface import Encoded
from tests.conftest import ROOT, VERSE, file_bytes

QUIET = Progress(quiet=True)
FORGED = "<|endoftext|><author_William_Shakespeare>\n\n" * 40


def run(recipe: Recipe, folder: Path, **arguments: object) -> bool:
    return build(
        recipe, folder, **{"name": folder.name, "source": None, "replace": False, "progress": QUIET, **arguments}
    )


def hidden(folder: Path) -> list[str]:
    """What an attempt may have left beside the builds, locks aside."""
    return [p.name for p in folder.iterdir() if p.name.startswith(".") and not p.name.endswith(".lock")]


def test_synthetic_is_exactly_as_promised(tmp_path: Path) -> None:
    run(load_recipe("synthetic"), tmp_path / "synthetic")
    made = Build(tmp_path / "synthetic")
    assert list(verify(made)) == []
    assert [made.manifest["splits"][s]["documents"] for s in ("train", "val")] == [18_000, 2_000]
    stats = json.loads((made.folder / "stats.json").read_bytes())
    assert {key: n for key, n in stats["documents"].items() if n} == {"read": 20_000, "kept": 20_000}
    assert all(stats["authors"][field]["distinct"] >= 100 for field in ("author", "city", "year"))
    assert stats["vocabulary"]["tokenizer"] == 3_000 and made.vocab_size == 3_000 + stats["vocabulary"]["control"]
    assert set(stats["languages"]) == {"en", "ru"} and made.manifest["languages"] == {"1": "en", "2": "ru"}
    special = made.manifest["special_tokens"]
    wanted = [
        made.manifest["bos_id"],
        *(special[f"<{t}>"] for t in ("author_MagistrTheOne", "city_Krasnodar", "year_2025")),
    ]
    fronts = [
        made.document(s, i)[:4].tolist()
        for s in ("train", "val")
        for i in range(made.manifest["splits"][s]["documents"])
    ]
    assert wanted in fronts
    # A pair is one group: both its sides are on one side of the split, at positions 2k and 2k + 1.
    pairs = {s: set((made.docs(s)["position"] // 2).tolist()) for s in ("train", "val")}
    assert len(pairs["val"]) == 1_000 and not pairs["train"] & pairs["val"]


def test_author_and_year_stand_in_front_by_id(build_text: Callable[..., Build]) -> None:
    made = build_text(
        FORGED, tokenizer="gpt2", author="William Shakespeare", year=1623, document="passage", passage_characters=200
    )
    special = made.manifest["special_tokens"]
    assert special == {"<|endoftext|>": 50256, "<author_William_Shakespeare>": 50257, "<year_1623>": 50258}
    tokenizer = load_tokenizer(made.folder, made.manifest)
    texts = []
    for i in range(made.manifest["splits"]["train"]["documents"]):
        ids = made.document("train", i)
        assert ids[:2].tolist() == [50257, 50258] and ids[-1] == 50256 and (ids[2:-1] < 50256).all()
        texts.append(tokenizer.decode(ids[2:-1]))
    assert "".join(texts) == FORGED[: len(FORGED) * 9 // 10]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=20, max_size=300), st.sampled_from(["char", "byte", "gpt2"]), st.sampled_from([None, 10]))
def test_what_is_kept_is_what_was_read(
    build_text: Callable[..., Build], text: str, tokenizer: str, passage_characters: int | None
) -> None:
    document = {"document": "passage", "passage_characters": passage_characters} if passage_characters else {}
    try:
        made = build_text(text.encode(), tokenizer=tokenizer, clean=(), replace=True, shard_tokens=40, **document)
    except FolioError as e:
        assert "too short to cut" in str(e)
        return
    decoder = load_tokenizer(made.folder, made.manifest)
    parts = [made.document(s, i)[:-1] for s in ("train", "val") for i in range(made.manifest["splits"][s]["documents"])]
    assert b"".join(decoder.decode_bytes(p) for p in parts) == text.encode()
    assert list(verify(made)) == []


def test_the_same_bytes_from_every_place_and_twice(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("tinyshakespeare")
    run(recipe, tmp_path / "mirror")
    monkeypatch.delenv("PREPROCESS_MIRROR")
    copy = shutil.copy(mirror / "tinyshakespeare/input.txt", tmp_path / "another name.txt")
    run(recipe, tmp_path / "source", name="mirror", source=Path(copy))
    assert file_bytes(tmp_path / "mirror") == file_bytes(tmp_path / "source")
    found = find_file("tinyshakespeare", recipe.files[0], source=Path(copy), progress=QUIET)
    assert str(found) not in (tmp_path / "source/manifest.json").read_text()


def test_nanogpts_bytes(mirror: Path, tmp_path: Path, preprocess: Callable[..., subprocess.CompletedProcess]) -> None:
    bare = ("--document", "file", "--no-authors", "--eot", "none", "--quiet")
    env = {"PREPROCESS_MIRROR": str(mirror)}
    sums = {
        "gpt2": (
            "502a2bdc8210d1ac5d5674867cb74467dd31db575d25cf6dbb08c8bdbea8680f",
            "68a53422394c26a655ebe641f5c6f49888e8f4e45fe5d6f02abda63ba3ebd65b",
        ),
        "char": (
            "6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f",
            "d37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1",
        ),
    }
    for tokenizer, expected in sums.items():
        built = preprocess(
            "build", "--corpus", "tinyshakespeare", *bare, "--tokenizer", tokenizer, "--name", tokenizer, env=env
        )
        assert built.returncode == 0, built.stderr
        assert preprocess("export", tokenizer, "--format", "nanogpt", "--output", f"out/{tokenizer}").returncode == 0
        got = tuple(
            hashlib.sha256((tmp_path / "out" / tokenizer / f"{s}.bin").read_bytes()).hexdigest()
            for s in ("train", "val")
        )
        assert got == expected


def test_batches_and_engines_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("synthetic", num_pairs=300, num_pieces=500)
    run(recipe, tmp_path / "one" / "x")
    monkeypatch.setattr("preprocess.build.write_shards.CHUNK_TOKENS", 1000)
    monkeypatch.setattr("preprocess.stages.pipeline.PAIRS_PER_BATCH", 7)
    run(recipe, tmp_path / "two" / "x")
    monkeypatch.setitem(sys.modules, "gigatoken", None)  # what an import of a package that is not there meets
    run(recipe, tmp_path / "three" / "x")
    assert file_bytes(tmp_path / "one/x") == file_bytes(tmp_path / "two/x") == file_bytes(tmp_path / "three/x")
    logs = [json.loads((tmp_path / n / "x/build_log.json").read_bytes()) for n in ("one", "three")]
    assert (
        logs[0]["engine"] == "gigatoken"
        and logs[1]["engine"] == "sentencepiece"
        and "cannot be used" in logs[1]["backend_fallback"]
    )


def test_an_engine_that_errs_encodes_nothing(
    build_text: Callable[..., Build], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Half-way through, the fast engine gives one wrong id: the reference must encode the whole build anew."""
    text = "".join(f"{i} green bottles\n\n" for i in range(3000))
    good = build_text(text, name="good", tokenizer="gpt2")

    def make_broken(*arguments: object) -> object:
        tokenizer = load_tokenizer(*arguments)
        encode = type(tokenizer).encode

        def err(texts: pa.LargeStringArray) -> Encoded:
            ids, ends = encode(tokenizer, texts)
            if tokenizer.has_fast_backend and any("2900" in text for text in texts.to_pylist()):
                ids = ids.copy()
                ids[5] ^= 1
            return ids, ends

        tokenizer.encode = err
        return tokenizer

    monkeypatch.setattr("preprocess.build.prepare.load_tokenizer", make_broken)
    broken = build_text(text, name="broken", tokenizer="gpt2")
    assert broken.build_id == good.build_id
    assert "gigatoken differs from tiktoken" in capsys.readouterr().err
    assert json.loads((broken.folder / "build_log.json").read_bytes())["engine"] == "tiktoken"


def test_only_equal_recipes_are_already_built(text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path) -> None:
    recipe, path = text_recipe()
    folder = tmp_path / "shards/own"
    assert run(recipe, folder, source=path) is True
    before = file_bytes(folder)
    assert run(recipe, folder, source=path) is False
    other, path = text_recipe(tokenizer="char", val_fraction=0.2)
    with pytest.raises(MisuseError, match=r"holds another build \(tokenizer, val_fraction differ\); pass --replace"):
        run(other, folder, source=path)
    assert file_bytes(folder) == before
    assert run(other, folder, source=path, replace=True) is True
    assert Build(folder).manifest["tokenizer"]["kind"] == "char" and hidden(folder.parent) == []
    changed, path = text_recipe(VERSE * 41, tokenizer="char", val_fraction=0.2)
    with pytest.raises(MisuseError, match="files differ"):
        run(changed, folder, source=path)


def test_a_damaged_build_is_not_already_built(text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path) -> None:
    recipe, path = text_recipe()
    folder = tmp_path / "shards/own"
    run(recipe, folder, source=path)
    os.truncate(folder / "train-00000.bin", 10)
    with pytest.raises(FolioError, match="manifest says"):
        run(recipe, folder, source=path)
    assert run(recipe, folder, source=path, replace=True) is True and list(verify(Build(folder))) == []


def test_a_folder_that_is_no_build_is_left_alone(
    text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path
) -> None:
    recipe, path = text_recipe()
    folder = tmp_path / "shards/own"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    for replace in (False, True):
        with pytest.raises(MisuseError, match="is there and is no build"):
            run(recipe, folder, source=path, replace=replace)
    assert (folder / "thesis.txt").read_text() == "years of work"
    (folder / "thesis.txt").unlink()
    assert run(recipe, folder, source=path) is True  # an empty folder is a place to build in


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no document is left of own: 0 documents were read"),
        (b"\xef\xbb\xbf", "no document is left of own"),
        (b"\x00\x01", "no document is left of own"),
        (b"x", "its training side would be empty"),
        (b"good \xff bad" * 9, r"is not UTF-8: byte 0xff at offset 5 .*iconv"),
        (b"cut short \xd0", r"byte 0xd0 at offset 10 \(unexpected end of data\)"),
    ],
)
def test_texts_that_cannot_be_built(
    text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path, text: bytes, message: str
) -> None:
    recipe, path = text_recipe(text)
    with pytest.raises(FolioError, match=message):
        run(recipe, tmp_path / "shards/own", source=path)
    assert not (tmp_path / "shards/own").exists() and hidden(tmp_path / "shards") == []


def test_two_builds_of_one_name(text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path) -> None:
    recipe, path = text_recipe()
    (tmp_path / "shards").mkdir()
    with filelock.FileLock(tmp_path / "shards/.own.lock"):
        # Locks are the process', so that the second build must be another process' to be kept out.
        code = (
            "import sys; from pathlib import Path; from preprocess.build.publish import one_at_a_time\n"
            "with one_at_a_time(Path(sys.argv[1])): print('entered')"
        )
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "shards/own")], cwd=ROOT, capture_output=True, text=True
        )
    assert "another build of" in out.stderr and "entered" not in out.stdout
    assert run(recipe, tmp_path / "shards/own", source=path) is True


def test_a_replace_killed_between_its_renames_is_undone(
    text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path
) -> None:
    recipe, path = text_recipe()
    folder = tmp_path / "shards/own"
    run(recipe, folder, source=path)
    before = file_bytes(folder)
    folder.rename(folder.parent / ".own.123.replaced")
    assert run(recipe, folder, source=path) is False and file_bytes(folder) == before


def test_a_replace_that_fails_between_its_renames_is_undone(
    text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = text_recipe()
    folder = tmp_path / "shards/own"
    run(recipe, folder, source=path)
    before, rename = file_bytes(folder), os.rename

    def interrupted(source: Path, target: Path) -> None:
        if Path(source).name == "build":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, folder, source=path, replace=True)
    assert file_bytes(folder) == before and hidden(folder.parent) == [".own.work"]
    monkeypatch.undo()
    assert run(recipe, folder, source=path, replace=True) is True and hidden(folder.parent) == []


def test_a_link_to_a_build_stays_a_link(text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path) -> None:
    recipe, path = text_recipe()
    (tmp_path / "big").mkdir()
    (tmp_path / "shards").mkdir()
    link = tmp_path / "shards/own"
    link.symlink_to(tmp_path / "big/own")
    assert run(recipe, link, source=path) is True
    assert run(recipe, link, source=path, replace=True) is True
    assert link.is_symlink() and list(verify(Build(tmp_path / "big/own"))) == [] and hidden(tmp_path / "big") == []


@pytest.mark.parametrize("damage", ['{"version": 99}', "{", ""])
def test_a_build_with_a_broken_manifest_can_be_replaced(
    text_recipe: Callable[..., tuple[Recipe, Path]], tmp_path: Path, damage: str
) -> None:
    recipe, path = text_recipe()
    folder = tmp_path / "shards/own"
    run(recipe, folder, source=path)
    (folder / "manifest.json").write_text(damage)
    with pytest.raises(FolioError):
        run(recipe, folder, source=path)
    assert run(recipe, folder, source=path, replace=True) is True and list(verify(Build(folder))) == []
    (folder / "manifest.json").write_text(damage)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(MisuseError, match="is no build"):
        run(recipe, folder, source=path, replace=True)


def test_the_synthetic_corpus_is_as_much_a_source_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("synthetic", num_pairs=50, tokenizer="byte")
    run(recipe, tmp_path / "x")
    monkeypatch.setattr("preprocess.build.plan.vocabulary_file", lambda: b"another")
    with pytest.raises(MisuseError, match="sources differ"):
        run(recipe, tmp_path / "x")


def test_a_whole_build_is_the_same_for_ever(tmp_path: Path) -> None:
    """The build_id covers every byte of tokens, tables, tokenizer and stats: a change of one is a new version of Folio's output."""
    run(load_recipe("synthetic", num_pairs=200, num_pieces=400), tmp_path / "x")
    assert Build(tmp_path / "x").build_id == "8db6c299eeef4c1f34735afb6818d19081eebda439d1f0600d350bd9f4b4664e"


def test_stats_count_what_is_there(build_text: Callable[..., Build]) -> None:
    cleaned = "".join(f"а\u2581б слово{i} word{i * 7} {i * i}\n\n" for i in range(90))
    text = cleaned.replace("\n\n", "\r\n\n") + "\x00"
    made = build_text(
        text, tokenizer="sentencepiece", num_pieces=310, document="passage", passage_characters=5, lang="ru"
    )
    stats = json.loads((made.folder / "stats.json").read_bytes())
    assert stats["clean"] == {"line_ends": 1, "control_characters": 1, "byte_order_mark": 0, "nfc": 0}
    documents = [made.document(s, i) for s in ("train", "val") for i in range(made.manifest["splits"][s]["documents"])]
    assert stats["documents"]["kept"] == len(documents) and stats["documents_with_u2581"] == 90
    assert stats["tokens"] == sum(map(len, documents)) and stats["text_bytes"] == len(cleaned.encode())
    assert stats["languages"]["ru"]["tokens"] == stats["tokens"]
    lengths = stats["tokens_per_document"]["train"]
    assert lengths["min"] <= lengths["median"] <= lengths["max"] and lengths["max"] == max(
        map(len, documents[: made.manifest["splits"]["train"]["documents"]])
    )
    assert sum(bin_["documents"] for bin_ in lengths["histogram"]) == made.manifest["splits"]["train"]["documents"]


def kill_after(process: subprocess.Popen, seconds: float, how: signal.Signals) -> int:
    threading.Timer(seconds, lambda: process.poll() is None and process.send_signal(how)).start()
    return process.wait(timeout=60)


def start_build(folder: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "preprocess",
        "build",
        "--corpus",
        "synthetic",
        "--num-pairs",
        "4000",
        "--output",
        str(folder),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130), (signal.SIGINT, 130)])
def test_a_build_killed_half_way_leaves_nothing_finished(tmp_path: Path, how: signal.Signals, status: int) -> None:
    folder = tmp_path / "out" / "synthetic"
    process = start_build(folder)
    while not list(folder.parent.glob(".synthetic.work/*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status and not folder.exists()
    if how != signal.SIGKILL:
        assert stderr.splitlines()[-1] == "error: interrupted; run the same command again, it goes on where it was"
        assert hidden(folder.parent) in ([], [".synthetic.work"])  # what is done by then is kept for the next
    again = start_build(folder)
    assert again.wait(timeout=120) == 0 and hidden(folder.parent) == [] and list(verify(Build(folder))) == []


@pytest.mark.slow
def test_kills_at_random_moments_never_leave_half_a_build(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "synthetic"
    assert start_build(whole).wait() == 0
    folder = tmp_path / "out" / "synthetic"
    moments = np.random.default_rng(0).uniform(0.1, 3.0, 40)
    for seconds in moments:
        status = kill_after(start_build(folder), float(seconds), signal.SIGKILL)
        if folder.exists():
            assert file_bytes(folder) == file_bytes(whole)
            shutil.rmtree(folder)
        else:
            assert status == -9
    assert start_build(folder).wait() == 0 and file_bytes(folder) == file_bytes(whole)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, preprocess: Callable[..., subprocess.CompletedProcess]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs a small disk to fill, and may not mount one: {mounted.stderr.strip()}")
    try:
        done = preprocess("build", "--corpus", "synthetic", "--output", str(disk / "synthetic"))
        assert done.returncode == 1 and "no space left on the disk" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr and not (disk / "synthetic").exists() and hidden(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
