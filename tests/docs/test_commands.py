"""Every command in README.md and docs/ runs as written, or its page says why no test runs it."""

from __future__ import annotations

import gzip
import json
import re
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from preprocess.inputs.synthetic import generate_pairs
from tests.conftest import ROOT
from tests.helpers.doc_commands import PAGES, PROGRAMS, Shell, list_blocks
from tests.helpers.warc_files import make_page, make_response
from tests.preprocess.tokenizers.json_makers import byte_level

REASONS = re.compile(
    r"a synopsis|needs (a network|a bucket|a cluster|Docker|eight GPUs|two machines)|installs Folio\b.*"
    r"|(.*\b)?(\.ci/run|tests/\S+\.py)\b.*"
)
# Added to each training, whose settings are otherwise those of the page.
TINY = [
    "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=32", "--batch_size=16", "--max_steps=4",
    "--warmup_steps=0", "--eval_interval=2", "--eval_tokens=64", "--checkpoint_interval=4", "--minutes=none",
    "--completion_tokens=4", "--log_interval=1", "--precision=fp32", "--num_threads=1", "--device=cpu",
]  # fmt: skip


def make_texts(count: int, seed: int = 0, language: str = "en") -> list[str]:
    """Return different texts of twelve lines in English or Russian (`ru`)."""
    sentences = [getattr(pair, language) for pair in generate_pairs(12 * count, seed=seed)]
    return ["\n".join(sentences[i::count]) for i in range(count)]


def make_rows(count: int, seed: int = 0, language: str = "en") -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in make_texts(count, seed, language))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_tiny(command: list[str]) -> list[str]:
    """Return a command that does the same with less text and fewer steps."""
    program, *rest = command
    words = " ".join(rest)
    if program == "preprocess" and rest[0] == "build" and "--corpus synthetic" in words:
        return [*command, "--num-pairs", "60", *(["--num-pieces", "400"] if "-chat" not in words else [])]
    if "--max_params=10M" in rest:  # the plan, which measures the machine, is a part of this command
        return [*command, "--minutes=0.1", "--completion_tokens=4"]
    if re.match(r"(folio train|python train/train\.py) \w", f"{program} {words}"):
        epochs = ["--num_epochs=none"] if "chat" in words else []
        return [*command, *TINY, *epochs]
    return command


def write_inputs(folder: Path) -> None:
    """Write the files that the commands of the pages read."""
    from backports import zstd

    rows = make_rows(60)
    for name in ("texts.jsonl", "pages.jsonl", "hellaswag.jsonl"):
        write(folder / name, rows)
    (folder / "saved_dataset").mkdir()
    table = pa.table({"text": make_texts(30, seed=4)})
    with pa.ipc.new_stream(str(folder / "saved_dataset/data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    write(
        folder / "questions.txt", "Which of the five ships was in the harbour of that town on the first day of May?\n"
    )
    for name in ("data/a.jsonl.zst", "web/a.jsonl.zst"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(zstd.compress(make_rows(60, seed=1, language="ru").encode()))
    sentences = {"en": make_texts(1)[0], "de": "Das Schiff verließ den Hafen am Morgen, und der Kapitän schrieb. ",
                 "fr": "Le bateau a quitté le port ce matin, et le capitaine a écrit une lettre. ",
                 "ru": "Утром корабль покинул гавань, и капитан написал письмо владельцу. "}  # fmt: skip
    for language, text in sentences.items():
        for number in range(12):
            write(folder / f"pages/{language}{number}.txt", f"{text} {number}\n" * 5)
    for number, text in enumerate(make_texts(20, seed=2)):
        write(folder / f"good/{number}.txt", text)
    chats = [[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": f"Hi {n}!"}] for n in range(40)]
    write(folder / "chats.jsonl", "".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    pages = [make_response(make_page(text.replace("\n", " "))) for text in make_texts(40, seed=3)]
    (folder / "pages.warc.gz").write_bytes(b"".join(gzip.compress(page) for page in pages))


# What a page expects to be there, besides the files of `write_inputs`.
BEFORE = {
    "choosing_a_size.md": "preprocess build --input texts.jsonl --name mine --tokenizer byte",
    "evaluating.md": """
        preprocess build --input texts.jsonl --name own --tokenizer byte
        folio train own --out_dir=runs/one
        folio train own --out_dir=runs/two --seed=2
        folio evaluate runs/one
        folio evaluate runs/two
        """,
    "exporting.md": """
        preprocess build --input texts.jsonl --name owt
        preprocess export owt --format nanogpt --output data/openwebtext
        preprocess build --input texts.jsonl --name web --tokenizer ./tokenizer.json
        preprocess export web --format megatron --output tokenized
        for split in train val; do
            for suffix in bin idx; do mv tokenized/$split.$suffix tokenized/${split}_text_document.$suffix; done
        done
        rm -r shards
        """,
    "filters.md": """
        preprocess build --input texts.jsonl --name wiki --tokenizer byte
        folio train own --data=wiki --out_dir=runs/wiki
        """,
    "reports.md": """
        preprocess build --input texts.jsonl --name shakespeare --tokenizer byte
        preprocess build --input pages.jsonl --name poems --tokenizer byte --seed 1
        for name in small_cpu a b; do folio train own --data=shakespeare --out_dir=runs/$name; done
        """,
    "sharing.md": "preprocess build --input texts.jsonl --name wiki --tokenizer byte",
    "training.md": """
        preprocess build --input texts.jsonl --name mine --tokenizer byte --author 'William Shakespeare'
        folio train own --data=mine --out_dir=runs/small
        """,
}
# Files of PREPROCESS_MIRROR that a page reads.
FROM_MIRROR = {"README.md": ("inaugural", "tinyshakespeare"), "moving.md": ("tinyshakespeare",)}
RUN = [page for page in PAGES if any(block.reason is None for block in list_blocks(page))]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_commands_of_the_page_run_as_written(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    write_inputs(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level()))
    (tmp_path / "tok.json").write_text((tmp_path / "tokenizer.json").read_text())
    for name in FROM_MIRROR.get(page.name, ()):
        (tmp_path / name).symlink_to(request.getfixturevalue("mirror") / name)
    shell = Shell(tmp_path, make_tiny, answers="Hello\n")
    if page.name in BEFORE:
        shell.run(textwrap.dedent(BEFORE[page.name]))
    for block in list_blocks(page):
        if block.reason is None:
            shell.run(block.script)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_reasons_not_to_run_commands_are_known(page: Path) -> None:
    for block in list_blocks(page):
        assert block.reason is None or REASONS.fullmatch(block.reason), f"{block}: {block.reason}"
        for path in re.findall(r"tests/\S+\.py", block.reason or ""):
            assert (ROOT / path).exists(), f"{block}: {path} does not exist"
        assert block.script.strip(), f"{block}: an empty block"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_commands_are_in_blocks_that_are_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    others = [body for language, body in fences.findall(text) if language not in ("sh", "console")]
    others += re.findall(r"(?:^    \S.*\n)+", fences.sub("", text), re.MULTILINE)
    for body in others:
        assert not re.search(rf"^\s*\$? ?({'|'.join(PROGRAMS)}) \S", body, re.MULTILINE), f"{page.name}: {body[:200]}"
