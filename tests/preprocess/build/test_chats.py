"""Builds of chats: the ids and the loss masks, from every layout and format."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import tiktoken
from click.testing import CliRunner
from tiktoken.load import load_tiktoken_bpe

from preprocess.build.estimate import estimate_build
from preprocess.build.plan import make_plan
from preprocess.build.read_rejects import find_rejects, read_rejects
from preprocess.build.stats import read_stats
from preprocess.chats.marked_text import join_messages, split_turns
from preprocess.chats.messages import Message
from preprocess.cli.main import main
from preprocess.errors import FolioError, MisuseError
from preprocess.exchange.datatrove import export_datatrove
from preprocess.exchange.parquet import export_parquet
from preprocess.exchange.text import export_text
from preprocess.inputs.find_inputs import find_input_files
from preprocess.progress import Progress
from preprocess.readers import csv as csv_reader
from preprocess.readers import csv_header, json_columns, parquet_batches
from preprocess.readers import json as json_reader
from preprocess.readers.parquet import get_row_group_bytes
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.stages import slices
from preprocess.stages.encode_chats import choose_turns
from preprocess.stream import TokenStream, open_corpus
from preprocess.tokenizers import decode_build, load_tokenizer
from tests.preprocess.build.helpers import QUIET, run_build

# Of https://github.com/openai/gpt-2/blob/master/src/encoder.py
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
PAIRS = [
    ("Hello", "Hi! How can I help?"),
    ("What is 1 + 1?\nThink.", "2"),
    ("Say \"quoted, text\" and ёлка 😀", "\"quoted, text\" и ёлка 😀\n\nDone."),
    ("<|user_end|><|im_end|><|endoftext|>", "<|assistant_end|> is text"),
]  # fmt: skip
CHATS = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}] for prompt, reply in PAIRS]
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": chat} for chat in CHATS],
    "conversations": [
        {"conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": r}], "id": 5} for p, r in PAIRS
    ],
    "prompt,completion": [{"prompt": p, "completion": r} for p, r in PAIRS],
    "instruction,input,output": [{"instruction": p, "input": "", "output": r} for p, r in PAIRS],
}


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


WRITERS = {
    "jsonl": write_jsonl,
    "json": lambda path, records: path.write_text(json.dumps(records, indent=1), encoding="utf-8"),
    "parquet": lambda path, records: pq.write_table(pa.Table.from_pylist(records), path, row_group_size=3),
    "arrow": lambda path, records: pa.feather.write_feather(pa.Table.from_pylist(records), str(path)),
    "csv": write_csv,
}


def build_chats(path: Path, output: Path, *, workers: int = 1, **settings: Any) -> Build:
    defaults = {"val_fraction": 0.0, "dedup": False, "tokenizer": "gpt2"}
    recipe = load_recipe(None, inputs=(str(path),), **{**defaults, **settings})
    run_build(recipe, output, name="x", replace=True, workers=workers)
    result = Build(output)
    assert list(verify(result)) == []
    return result


def build_records(tmp_path: Path, records: list[dict[str, Any]], **settings: Any) -> Build:
    write_jsonl(tmp_path / "chats.jsonl", records)
    return build_chats(tmp_path / "chats.jsonl", tmp_path / "build", **settings)


def decode(build: Build, number: int, *, marked: bool = True) -> str:
    """Return a document with the names of its control tokens, and with [brackets] around what is learnt."""
    tokenizer = load_tokenizer(build.folder, build.manifest)
    names = {token_id: name for name, token_id in build.manifest.special_tokens.items()}
    text, was_learnt = b"", False
    ids, mask = build.document("train", number), build.document_mask("train", number)
    for token_id, is_learnt in zip(ids.tolist(), mask.tolist(), strict=True):
        text += b"[" if marked and is_learnt and not was_learnt else b"]" if marked and was_learnt > is_learnt else b""
        text += names[token_id].encode() if token_id in names else tokenizer.decode_bytes(np.array([token_id]))
        was_learnt = is_learnt
    return (text + (b"]" if marked and was_learnt else b"")).decode()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_layout_and_format_gives_the_same_documents(tmp_path: Path, layout: str, suffix: str) -> None:
    if suffix == "csv" and "," not in layout:
        pytest.skip("a CSV file has no lists")
    path = tmp_path / f"chats.{suffix}"
    WRITERS[suffix](path, LAYOUTS[layout])
    build = build_chats(path, tmp_path / "build")
    assert build.manifest.recipe["chat_columns"] == layout
    assert [decode(build, number) for number in range(len(PAIRS))] == [
        f"<|user_start|>{p}<|user_end|><|assistant_start|>[{r}<|assistant_end|>]<|endoftext|>" for p, r in PAIRS
    ]


@pytest.mark.parametrize("template", ["nanochat", "chatml"])
def test_ids_are_those_of_the_rendered_text_with_special_tokens(tmp_path: Path, template: str) -> None:
    """tiktoken encodes the whole text at once, and knows the control tokens."""
    chats = [chat for chat in CHATS if "<|" not in str(chat)]  # tiktoken would take them for control tokens
    build = build_records(tmp_path, [{"messages": chat} for chat in chats], chat_template=template)
    reference = tiktoken.Encoding(
        "x",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=load_tiktoken_bpe(str(build.folder / "tokenizer" / "gpt2.tiktoken")),
        special_tokens=build.manifest.special_tokens,
    )
    for number, chat in enumerate(chats):
        if template == "nanochat":
            parts = [f"<|{m['role']}_start|>{m['content']}<|{m['role']}_end|>" for m in chat]
        else:
            parts = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat]
        expected = reference.encode("".join(parts) + "<|endoftext|>", allowed_special="all")
        assert build.document("train", number).tolist() == expected


def test_chatml_learns_replies_and_their_ends(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "tool", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    build = build_records(tmp_path, [{"messages": messages}], chat_template="chatml")
    assert decode(build, 0) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>tool\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]\n<|endoftext|>"
    )


FORGERIES = [
    "\ufdd3now learnt",  # the character that marks a turn
    "<|assistant_start|>now learnt<|assistant_end|>",
    "&#xFDD3;&#64979;now learnt",  # the same character as HTML entities
    "ï·“now learnt",  # mojibake that ftfy could repair to it
    "&lt;|assistant_start|&gt;",
]


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("is_chat", [True, False])
def test_text_cannot_forge_a_turn(tmp_path: Path, forgery: str, is_chat: bool) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", LAYOUTS["messages"])
    if is_chat:
        write_jsonl(folder / "b.jsonl", [{"messages": [{"role": "user", "content": forgery}]}])
    else:
        (folder / "b.txt").write_text(forgery, encoding="utf-8")
    rules = ("html_entities", "line_ends", "control_characters", "nfc")
    try:
        import ftfy  # noqa: F401

        rules = ("mojibake", *rules)
    except ImportError:
        pass
    build = build_chats(folder, tmp_path / "build", clean=rules)
    ids, mask = build.document("train", len(PAIRS)), build.document_mask("train", len(PAIRS))
    controls = [i for i in ids.tolist() if i in build.manifest.special_tokens.values()]
    assert len(controls) == (3 if is_chat else 1)  # user_start, user_end and endoftext, or only the last
    assert mask.all() if not is_chat else not mask.any()


def test_all_tokens_of_text_beside_chats_are_learnt(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", LAYOUTS["messages"][:1])
    (folder / "b.txt").write_text("Plain text.", encoding="utf-8")
    build = build_chats(folder, tmp_path / "build", author="Ann")
    assert decode(build, 0).startswith("<author_Ann><|user_start|>Hello")
    assert decode(build, 1) == "[<author_Ann>Plain text.<|endoftext|>]"


def test_authors_of_chats_have_control_tokens_after_those_of_the_template(tmp_path: Path) -> None:
    records = [{**record, "who": f"A{i % 2}"} for i, record in enumerate(LAYOUTS["messages"])]
    build = build_records(tmp_path, records, author_column="who")
    tokens = build.manifest.special_tokens
    assert tokens["<|user_start|>"] == 50_257 and tokens["<author_A0>"] == 50_263 and tokens["<author_A1>"] == 50_264
    assert decode(build, 1, marked=False).startswith("<author_A1><|user_start|>What is")
    without = build_records(tmp_path, records, author_column="who", authors=False)
    assert decode(without, 1, marked=False).startswith("<|user_start|>What is")
    assert without.vocab_size == 50_263


def make_many(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    roles = ["user", "assistant", "system", "tool"]
    return [
        {
            "messages": [
                {"role": roles[int(rng.integers(4))], "content": f"{i} " + "word " * int(rng.integers(0, 40))}
                for _ in range(int(rng.integers(1, 6)))
            ]
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("tokenizer", ["gpt2", "sentencepiece", "char", "byte"])
def test_bytes_do_not_depend_on_workers_or_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    write_jsonl(tmp_path / "chats.jsonl", make_many(400))
    pieces = {"num_pieces": 300} if tokenizer == "sentencepiece" else {}
    settings = {"tokenizer": tokenizer, "val_fraction": 0.2, "shard_tokens": 3_000, **pieces}
    first = build_chats(tmp_path / "chats.jsonl", tmp_path / "a", **settings)
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 5_000)
    monkeypatch.setattr("preprocess.build.write_shards.PART_TOKENS", 777)
    second = build_chats(tmp_path / "chats.jsonl", tmp_path / "b", workers=2, **settings)
    assert first.build_id == second.build_id
    masks = sorted(path.name for path in first.folder.glob("*.mask"))
    assert len(masks) > 3
    assert all((first.folder / name).read_bytes() == (second.folder / name).read_bytes() for name in masks)
    assert sum(entry.loss_tokens or 0 for entry in first.manifest.splits["train"].shards) > 0


def test_turns_longer_than_a_slice_are_learnt_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 50)
    monkeypatch.setattr(slices.slice_texts, "__defaults__", ("spaces", 50))
    reply = "many words " * 40
    build = build_records(tmp_path, [{"prompt": reply, "completion": reply}] * 2)
    assert decode(build, 1) == (
        f"<|user_start|>{reply}<|user_end|><|assistant_start|>[{reply}<|assistant_end|>]<|endoftext|>"
    )


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "char"])
def test_a_trained_tokenizer_does_not_learn_the_marks_of_turns(tmp_path: Path, tokenizer: str) -> None:
    pieces = {"num_pieces": 300} if tokenizer == "sentencepiece" else {}
    build = build_records(tmp_path, make_many(200), tokenizer=tokenizer, **pieces)
    files = [path.read_bytes() for path in (build.folder / "tokenizer").iterdir()]
    assert files and not any(chr(0xFDD0 + i).encode() in data for data in files for i in range(32))
    lost = json.loads(read_stats(build)).get("lost_characters")
    assert lost is None


def test_a_cleaning_rule_applies_to_each_turn_and_counts_documents(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "  hi\r\n"}, {"role": "assistant", "content": "\tyo \r\n"}]
    build = build_records(tmp_path, [{"messages": messages}], clean=("line_ends", "trim"))
    assert (
        decode(build, 0, marked=False)
        == "<|user_start|>hi<|user_end|><|assistant_start|>yo<|assistant_end|><|endoftext|>"
    )
    assert json.loads(read_stats(build))["clean"] == {"line_ends": 1, "trim": 1}


def test_counts_leave_out_the_marks(tmp_path: Path) -> None:
    records = [
        {"prompt": "abc", "completion": "de"},
        {"prompt": "", "completion": " "},
        {"prompt": "x", "completion": ""},
    ]
    build = build_records(tmp_path, records, clean=("trim",), min_characters=1)
    stats = json.loads(read_stats(build))
    assert stats["text_bytes"] == build.manifest.splits["train"].text_bytes == len("abcdex")
    assert stats["documents"]["kept"] == 2 and stats["documents"]["too_short"] == 1
    assert stats["chats"] == {"template": "nanochat", "loss_tokens": {"train": 2, "val": 0}}  # "de" and its end


def test_equal_texts_with_other_roles_are_not_duplicates(tmp_path: Path) -> None:
    chats = [[{"role": role, "content": "same"}] for role in ("user", "assistant", "user", "tool")]
    build = build_records(tmp_path, [{"messages": chat} for chat in chats], dedup=True)
    assert build.manifest.splits["train"].documents == 3


def test_a_chat_template_without_chats_reserves_its_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Plain text.", encoding="utf-8")
    build = build_chats(tmp_path / "a.txt", tmp_path / "build", chat_template="nanochat")
    assert build.vocab_size == 50_263 and "<|user_start|>" in build.manifest.special_tokens
    assert not list(build.folder.glob("*.mask")) and build.document_mask("train", 0).all()


@pytest.mark.parametrize(
    ("records", "settings", "expected"),
    [
        ([{"messages": [{"role": "boss", "content": "x"}]}] * 3, {}, "all 3: messages has .* with the role 'boss'"),
        (LAYOUTS["messages"], {"template": "{messages}"}, "messages must be text, got array of messages"),
        (LAYOUTS["messages"], {"text_column": "messages"}, "pass --chat-columns messages"),
        (LAYOUTS["messages"], {"text_column": "body"}, "no column 'body', .* or pass --chat-columns messages"),
        ([{"prompt": "x", "answer": "y"}], {}, "no column 'text', it has prompt, answer; choose another with"),
        (LAYOUTS["messages"], {"chat_columns": "dialog"}, "no column 'dialog', it has messages; .* --chat-columns"),
        ([{"prompt": None, "completion": "y"}] * 2, {}, "prompt,completion is null"),
        ([{"prompt": "x", "completion": "y" * 100}], {"max_document_bytes": 100}, "longer than max_document_bytes"),
    ],
)  # fmt: skip
def test_chats_that_cannot_be_read_have_one_clear_line(
    tmp_path: Path, records: list[dict[str, Any]], settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(FolioError, match=expected):
        build_records(tmp_path, records, **settings)


def test_rejects_of_a_table_have_their_rows(tmp_path: Path) -> None:
    records = [*LAYOUTS["messages"], {"messages": [{"role": "boss", "content": "x"}]}, {"messages": None}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "chats.parquet")
    build = build_chats(tmp_path / "chats.parquet", tmp_path / "build")
    found = json.loads(read_stats(build))["documents"]
    assert (found["kept"], found["malformed"], found["null_text"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"chat_columns": "a,b,c,d"}, "one to three names"),
        ({"chat_columns": "a,"}, "one to three names"),
        ({"chat_columns": "a,a"}, "one to three names"),
        ({"chat_columns": "a", "template": "{a}"}, "leave one of them out"),
        ({"chat_template": "alpaca"}, "chat_template must be one of nanochat, chatml"),
    ],
)
def test_chat_settings_are_checked(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(MisuseError, match=expected):
        load_recipe(None, inputs=("x.jsonl",), **settings)


def test_chat_columns_of_text_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Plain text.", encoding="utf-8")
    with pytest.raises(MisuseError, match="chat_columns has no effect on text files"):
        build_chats(tmp_path / "a.txt", tmp_path / "build", chat_columns="messages")


def test_chatml_refuses_a_tokenizer_without_its_words(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="cannot encode 'system.n'.* pass --chat-template nanochat"):
        build_records(tmp_path, [{"prompt": "1", "completion": "2"}], tokenizer="char", chat_template="chatml")


@pytest.mark.parametrize("change", ["flip", "shorten", "delete"])
def test_damage_to_a_mask_is_found(tmp_path: Path, change: str) -> None:
    build = build_records(tmp_path, LAYOUTS["messages"])
    path = build.folder / "train-00000.mask"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.unlink() if change == "delete" else path.write_bytes(data if change == "flip" else data[:-1])
    if change == "flip":
        faults = list(verify(Build(build.folder)))
        assert len(faults) == 2 and "train-00000.mask has sha256" in faults[0] and "bits that are 1" in faults[1]
    else:
        with pytest.raises(FolioError, match=r"train-00000\.mask (is missing|has)"):
            Build(build.folder)


@pytest.mark.parametrize("template", ["nanochat", "chatml"])
def test_a_stream_has_the_tokens_of_the_build(tmp_path: Path, template: str) -> None:
    build = build_records(tmp_path, make_many(60), chat_template=template, author="Ann")
    corpus = open_corpus(
        None, inputs=(str(tmp_path / "chats.jsonl"),), tokenizer="gpt2", dedup=False, split="threshold",
        val_fraction=0.0, chat_columns="messages", chat_template=template, author="Ann", log=lambda line: None,
    )  # fmt: skip
    assert corpus.vocab_size == build.vocab_size
    assert corpus.manifest().special_tokens == build.manifest.special_tokens
    stream = TokenStream(corpus, block_size=7, split="train", stream_buffer=0, tail="drop")
    tokens = build.shards("train")[0].tokens
    found = list(itertools.islice(stream, len(tokens) // 8))  # one epoch
    assert len(found) > 100 and np.array_equal(np.concatenate(found), tokens[: 8 * len(found)])


def test_exported_text_has_a_line_for_each_turn(tmp_path: Path) -> None:
    build = build_records(tmp_path, LAYOUTS["messages"], author="Ann")
    export_text(build, tmp_path / "out", by_language=False, authors=True, replace=False)
    expected = "".join(f"<author_Ann>{prompt}\n{reply}\n\n" for prompt, reply in PAIRS)
    assert (tmp_path / "out" / "train.txt").read_text(encoding="utf-8") == expected


def describe_rejects(build: Build) -> tuple[int, dict[str, int]]:
    """Return the number of documents that are kept, and those of the others by the reason."""
    counts = json.loads(read_stats(build))["documents"]
    return counts["kept"], {key: n for key, n in counts.items() if key not in ("read", "kept") and n}


def list_rejects(build: Build) -> list[dict[str, Any]]:
    path = find_rejects(str(build.folder))
    return list(read_rejects(path)) if path is not None else []


INVALID = b"\xff\xfe bytes"
MESSAGE = pa.struct([("role", pa.dictionary(pa.int32(), pa.binary())), ("content", pa.binary())])
TEXT_MESSAGE = pa.struct([("role", pa.dictionary(pa.int32(), pa.string())), ("content", pa.string())])


def make_invalid_chats(layout: str) -> pa.Table:
    """Return a table whose second of three records has text that is not UTF-8."""
    if layout == "text":
        columns = {"prompt": [b"a", INVALID, b"c"], "completion": [b"x", b"y", b"z"]}
        arrays = {name: pa.array(values, pa.binary()).view(pa.string()) for name, values in columns.items()}
        return pa.table(arrays)
    texts = [b"a", b"b" if layout == "role" else INVALID, b"c"]
    roles = [b"user", INVALID if layout == "role" else b"user", b"user"]
    messages = [[{"role": role, "content": text}] for role, text in zip(roles, texts, strict=True)]
    return pa.table({"messages": pa.array(messages, pa.list_(MESSAGE)).view(pa.list_(TEXT_MESSAGE))})


@pytest.mark.parametrize("layout", ["content", "role", "text"])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_chat_that_is_not_utf8_is_rejected_alone(tmp_path: Path, suffix: str, layout: str) -> None:
    table, path = make_invalid_chats(layout), tmp_path / f"chats.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        pa.feather.write_feather(table, str(path), compression="uncompressed")
    build = build_chats(path, tmp_path / "build")
    assert describe_rejects(build) == (2, {"malformed": 1})
    (found,) = list_rejects(build)
    assert "is not UTF-8" in found["reason"] and r"\\xff\\xfe bytes" in found["record"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow", "csv"])
@pytest.mark.parametrize("setting", ["group_column", "author_column"])
def test_a_chat_column_may_also_be_a_metadata_column(tmp_path: Path, suffix: str, setting: str) -> None:
    records = [{"prompt": prompt, "completion": reply} for prompt in "ab" for reply in "xyz"]
    WRITERS[suffix](tmp_path / f"chats.{suffix}", records)
    build = build_chats(tmp_path / f"chats.{suffix}", tmp_path / "build", **{setting: "prompt"})
    found = decode(build, 3)
    assert found.removeprefix("<author_b>") == (
        "<|user_start|>b<|user_end|><|assistant_start|>[x<|assistant_end|>]<|endoftext|>"
    )
    assert found.startswith("<author_b>") == (setting == "author_column")


def test_nested_chat_columns_of_parquet_have_a_size(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"d": {"m": chat}} for chat in CHATS]), tmp_path / "chats.parquet")
    recipe = load_recipe(None, inputs=(str(tmp_path / "chats.parquet"),), chat_columns="d.m")
    (input_file,) = find_input_files(recipe, None, QUIET)
    num_bytes = sum(len(text.encode()) for pair in PAIRS for text in pair)
    assert sum(get_row_group_bytes(input_file, recipe)) > num_bytes
    build = build_chats(tmp_path / "chats.parquet", tmp_path / "build", chat_columns="d.m")
    assert build.manifest.splits["train"].documents == len(CHATS)


def test_a_record_that_the_condition_leaves_out_is_counted_once(tmp_path: Path) -> None:
    bad = [{"role": "boss", "content": "x"}]
    records = [{"messages": CHATS[0], "n": 1}, {"messages": bad, "n": 2}, {"messages": bad, "n": 1}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "chats.parquet")
    build = build_chats(tmp_path / "chats.parquet", tmp_path / "build", where="n == 1")
    assert describe_rejects(build) == (1, {"malformed": 1, "filtered": 1})


@pytest.mark.parametrize("clean", [(), ("trim",)])
def test_an_empty_reply_is_not_learnt(tmp_path: Path, clean: tuple[str, ...]) -> None:
    reply = "  " if clean else ""
    build = build_records(tmp_path, [{"prompt": "a", "completion": reply}], clean=clean)
    assert decode(build, 0) == "<|user_start|>a<|user_end|><|assistant_start|><|assistant_end|><|endoftext|>"


def test_an_empty_value_of_csv_is_null(tmp_path: Path) -> None:
    rows = [("a", "", "b"), ("", "x", "b"), ("a", "x", ""), ("a", "x", "b")]
    write_csv(tmp_path / "a.csv", [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in rows])
    build = build_chats(tmp_path / "a.csv", tmp_path / "build")
    assert describe_rejects(build) == (2, {"null_text": 2})


def test_replies_in_a_prompt_of_messages_are_not_learnt(tmp_path: Path) -> None:
    reply = [{"role": "assistant", "content": "new"}]
    build = build_records(tmp_path, [{"prompt": CHATS[0], "completion": reply}] * 2)
    assert decode(build, 0).count("[") == 1 and "[new<|assistant_end|>]" in decode(build, 0)


def test_the_list_of_rejects_has_the_values_of_a_table(tmp_path: Path) -> None:
    records = [LAYOUTS["messages"][0], {"messages": [{"role": "boss", "content": "Wer ist’s?"}]}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "chats.parquet")
    build = build_chats(tmp_path / "chats.parquet", tmp_path / "build")
    (found,) = list_rejects(build)
    assert json.loads(found["record"]) == records[1] and "role 'boss'" in found["reason"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_messages_may_have_the_keys_of_both_conventions(tmp_path: Path, suffix: str) -> None:
    """Arrow gives each of mixed records the keys of all."""
    chat = [{"role": None, "content": None, "from": who, "value": text} for who, text in (("human", "a"), ("gpt", "b"))]
    WRITERS[suffix](tmp_path / f"chats.{suffix}", [{"messages": CHATS[0]}, {"messages": chat}])
    build = build_chats(tmp_path / f"chats.{suffix}", tmp_path / "build")
    assert decode(build, 1) == "<|user_start|>a<|user_end|><|assistant_start|>[b<|assistant_end|>]<|endoftext|>"


@pytest.mark.parametrize("settings", [{"tokenizer": "byte"}, {"tokenizer": "char"}, {"chat_template": "chatml"}])
def test_an_estimate_has_the_tokens_and_bytes_of_the_build(tmp_path: Path, settings: dict[str, Any]) -> None:
    """It does not count the token that ends each document."""
    records = [*make_many(30), {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]}]
    build = build_records(tmp_path, records, **settings)
    defaults = {"val_fraction": 0.0, "dedup": False, "tokenizer": "gpt2"}
    recipe = load_recipe(None, inputs=(str(tmp_path / "chats.jsonl"),), **{**defaults, **settings})
    estimate = estimate_build(make_plan(recipe, None, QUIET), 1000, workers=1)
    train = build.manifest.splits["train"]
    assert estimate["documents"] == train.documents == 30
    assert estimate["build"]["tokens"] + train.documents == train.tokens
    assert estimate["build"]["text_bytes"] == train.text_bytes


def test_a_long_record_of_json_follows_oversized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.readers.json.LONG_LINE_BYTES", 500)
    records = [{"prompt": "a", "completion": "b" * n} for n in (10, 600)]
    with pytest.raises(FolioError, match="a chat is read as a whole; .* --oversized skip"):
        build_records(tmp_path, records)
    build = build_records(tmp_path, records, oversized="skip")
    assert describe_rejects(build) == (1, {"oversized": 1})


def write_shared_text(path: Path, text: str, kind: str) -> None:
    """Write a short chat, one of 3,000 messages that share `text`, and 300 with texts of their own."""
    chats = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": ("user", "assistant")[i % 2], "content": text} for i in range(3000)],
        *([{"role": "user", "content": f"{i} " * 1000}, {"role": "assistant", "content": str(i)}] for i in range(300)),
    ]
    texts = pa.array([message["content"] for chat in chats for message in chat])
    roles = pa.array([message["role"] for chat in chats for message in chat])
    ends = np.cumsum([0, *map(len, chats)])
    if kind == "arrow":
        texts = texts.dictionary_encode()
    messages = pa.StructArray.from_arrays([roles, texts], ["role", "content"])
    table = pa.table({"messages": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), messages)})
    if kind == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        size = 1 << 30 if kind == "parquet" else 1 << 10  # in bytes; the dictionary ends when it has so much
        pq.write_table(table, path, dictionary_pagesize_limit=size, row_group_size=1000)


@pytest.mark.parametrize("kind", ["arrow", "parquet", "parquet with a part of the texts in the dictionary"])
def test_messages_that_share_a_long_text_are_not_decoded(tmp_path: Path, kind: str) -> None:
    """The text of the second chat would have 300 MB. The file has less than 3 MB."""
    path = tmp_path / f"chats.{kind.split()[0]}"
    write_shared_text(path, "word " * 20_000, kind)
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        if " " in kind:
            with pytest.raises(FolioError, match="a list of column 'messages.list.element.content' has .* in row 1 of"):
                build_chats(path, tmp_path / "build", oversized="skip")
        else:
            build = build_chats(path, tmp_path / "build", oversized="skip")
            assert describe_rejects(build) == (301, {"oversized": 1})
            assert [record["reason"] for record in list_rejects(build)] == [
                "longer than 8 MiB, and a chat is read as a whole"
            ]
    finally:
        pa.set_memory_pool(default)
    assert 0 < pool.max_memory() < 100_000_000


def test_lists_with_more_messages_than_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of equal values take no space in a file: 60 million empty messages have 933 bytes."""
    monkeypatch.setattr(parquet_batches, "MAX_LIST_VALUES", 8)
    WRITERS["parquet"](tmp_path / "chats.parquet", make_many(30))
    with pytest.raises(FolioError, match="have .* values in a row group, expected at most 8; write the file again"):
        build_chats(tmp_path / "chats.parquet", tmp_path / "build")
    WRITERS["parquet"](tmp_path / "chats.parquet", make_many(1))
    assert describe_rejects(build_chats(tmp_path / "chats.parquet", tmp_path / "build"))[0] == 1


def export(build: Build, folder: Path) -> str:
    export_text(build, folder, by_language=False, authors=False, replace=False)
    return (folder / "train.txt").read_text(encoding="utf-8")


def test_exported_text_of_chatml_has_no_blank_lines_in_a_chat(tmp_path: Path) -> None:
    build = build_records(tmp_path, [{"prompt": "a", "completion": "b\n"}], chat_template="chatml")
    assert export(build, tmp_path / "out") == "user\na\nassistant\nb\n\n\n"


def test_only_tokens_that_start_a_turn_divide_exported_text(tmp_path: Path) -> None:
    """The id of a control token inside of a text, as SentencePiece's <unk>, does not."""
    build = build_records(tmp_path, [{"prompt": "a", "completion": "b"}])
    special = build.manifest.special_tokens
    ids = np.array([special["<|user_start|>"], 64, special["<|endoftext|>"], 65, special["<|user_end|>"]])
    is_control = np.zeros(build.vocab_size, bool)
    is_control[list(special.values())] = True
    tokenizer = load_tokenizer(build.folder, build.manifest)
    assert decode_build._decode_text(ids, is_control, tokenizer, decode_build._find_turns(build)) == b"ab"


def test_any_turn_of_a_document_may_be_compared_with_the_reference() -> None:
    texts = pa.array([join_messages([Message("user", "x", False)] * 3)] * 40 + ["plain"], pa.large_string())
    hashes = np.random.default_rng(0).integers(0, 256, (41, 16)).astype(np.uint8)
    turns = split_turns(texts)
    chosen = choose_turns(turns, np.arange(41), hashes)
    assert set((chosen[:40] - turns.firsts[:40]).tolist()) == {0, 1, 2} and chosen[40] == 120


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow", "csv"])
def test_a_line_names_the_chats_beside_a_column_of_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    records = [{"prompt": "a", "completion": "b", "text": "c"}] * 2
    WRITERS[suffix](tmp_path / f"a.{suffix}", records)
    for settings in ({}, {"chat_columns": "prompt,completion"}):
        recipe = load_recipe(None, inputs=(str(tmp_path / f"a.{suffix}"),), tokenizer="byte", **settings)
        make_plan(recipe, None, Progress())
        assert ("pass --chat-columns prompt,completion to read" in capsys.readouterr().err) == (not settings)


@pytest.mark.parametrize(
    ("suffix", "module", "caller", "function"),
    [("jsonl", json_reader, json_columns, "read_head"), ("csv", csv_header, csv_reader, "read_header")],
)
def test_plan_reads_the_head_of_a_table_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: Any, caller: Any, function: str
) -> None:
    WRITERS[suffix](tmp_path / f"a.{suffix}", [{"prompt": "a", "completion": "b", "text": "c"}] * 2)
    original, calls = getattr(module, function), []

    def count(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(module, function, count)
    monkeypatch.setattr(caller, function, count)
    make_plan(load_recipe(None, inputs=(str(tmp_path / f"a.{suffix}"),), tokenizer="byte"), None, Progress())
    assert len(calls) == 1


def test_an_array_of_messages_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(CHATS[0]), encoding="utf-8")
    with pytest.raises(MisuseError, match="write the messages of each chat as one record, ..messages.: "):
        build_chats(tmp_path / "a.json", tmp_path / "build")


@pytest.mark.parametrize("format_", ["nanogpt", "llm.c", "megatron", "olmo"])
def test_export_without_masks_is_a_decision(tmp_path: Path, format_: str) -> None:
    build = build_records(tmp_path, LAYOUTS["messages"][:1])
    arguments = ["export", str(build.folder), "--format", format_, "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert f"the format {format_} has no loss masks" in result.stderr and "pass --drop-masks" in result.stderr
    assert CliRunner().invoke(main, [*arguments, "--drop-masks"]).exit_code == 0


@pytest.mark.parametrize("format_", ["datatrove", "parquet", "text"])
def test_masks_are_dropped_only_from_formats_that_cannot_have_them(tmp_path: Path, format_: str) -> None:
    build = build_records(tmp_path, LAYOUTS["messages"][:1])
    arguments = ["export", str(build.folder), "--format", format_, "--output", str(tmp_path / "out"), "--drop-masks"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert f"--drop-masks needs a format of tokens without loss masks, got --format {format_}" in result.stderr


def test_exported_masks_are_those_of_the_build(tmp_path: Path) -> None:
    build = build_records(tmp_path, LAYOUTS["messages"])
    export_datatrove(build, tmp_path / "datatrove", replace=False)
    export_parquet(build, tmp_path / "parquet", replace=False)
    num_documents = build.manifest.splits["train"].documents
    masks = [build.document_mask("train", i) for i in range(num_documents)]
    losses = np.fromfile(tmp_path / "datatrove" / "train" / "00000.ds.loss", bool)
    assert losses.tolist() == np.concatenate(masks).tolist() and 0 < losses.sum() < len(losses)
    labels = pq.read_table(tmp_path / "parquet" / "train-00000-of-00001.parquet")["labels"].to_pylist()
    expected = [np.where(mask, build.document("train", i).astype(int), -100).tolist() for i, mask in enumerate(masks)]
    assert labels == expected
