"""Tiny builds of chats for the tests of `train/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from preprocess.chats.templates import TEMPLATES, number_chat_tokens
from preprocess.shards.files import readable_json, sha256_bytes
from preprocess.shards.format import DOC_DTYPE, MANIFEST, STATS, seal
from tests.conftest import write_split
from tests.helpers.runs import ALPHABET, EOT_ID, encode, invoke, make_build, write_config

CHAT_IDS = number_chat_tokens("nanochat", {}, EOT_ID + 1)
SPECIAL_TOKENS = {"<|endoftext|>": EOT_ID, **CHAT_IDS}
USER_START, USER_END, ASSISTANT_START, ASSISTANT_END = (
    CHAT_IDS[f"<|{role}_{side}|>"] for role in ("user", "assistant") for side in ("start", "end")
)
CHAT_VOCAB_SIZE = max(CHAT_IDS.values()) + 1
REPLIES = {"what jumps": "the fox", "who is lazy": "the dog"}


def make_chat_build(folder: Path, *, repeats: int = 40, template: str | None = "nanochat", **recipe: Any) -> Path:
    """Write a complete build of the chats REPLIES, repeated; the replies and what ends them are learnt.

    `template`: what the manifest says. `recipe` adds settings to the manifest's recipe.
    """
    assert set(TEMPLATES["nanochat"].control_tokens) == set(CHAT_IDS)
    folder.mkdir(parents=True)
    ids, mask, ends = [], [], []
    for message, reply in REPLIES.items():
        before = [USER_START, *encode(message), USER_END, ASSISTANT_START]
        learnt = [*encode(reply), ASSISTANT_END]
        ids += [*before, *learnt, EOT_ID]
        mask += [False] * len(before) + [True] * len(learnt) + [False]
        ends.append(len(ids))
    tokens = np.array(ids * repeats, np.uint16)
    all_ends = (np.arange(repeats)[:, None] * len(ids) + ends).ravel()
    splits = {
        split: write_split(
            folder, split, tokens, all_ends, np.zeros(len(all_ends), DOC_DTYPE), vocab_size=CHAT_VOCAB_SIZE,
            text_bytes=len(tokens), mask=np.array(mask * repeats),
        )
        for split in ("train", "val")
    }  # fmt: skip
    (folder / STATS).write_bytes(b"{}\n")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "alphabet.txt").write_text(ALPHABET, encoding="utf-8")
    settings = {"bos": False, "eot": "append", "tokenizer": "char"} | recipe
    manifest = {
        "format": "folio-shards", "version": 1, "name": folder.name, "dtype": "<u2", "vocab_size": CHAT_VOCAB_SIZE,
        "bos_id": None, "eot_id": EOT_ID, "pad_id": None, "unk_id": None, "special_tokens": SPECIAL_TOKENS,
        "tokenizer": {"kind": "char", "files": {"alphabet.txt": sha256_bytes(ALPHABET.encode())}, "settings": {}},
        "splits": splits, "recipe": settings if template is None else settings | {"chat_template": template},
        "sources": [], "languages": {"0": "und"}, "stats_sha256": sha256_bytes(b"{}\n"), "made_with": {},
    }  # fmt: skip
    (folder / MANIFEST).write_bytes(readable_json(seal(manifest)))
    return folder


def train_chat_run(folder: Path) -> Path:
    """Train a run that has learnt REPLIES, and return its directory, `folder`/chat."""
    build = make_chat_build(folder / "chats")
    config = write_config(
        folder / "chat.py", build, arch="modern", block_size=64, dropout=0.0, mask_documents=True, batch_size=4,
        gradient_accumulation_steps=1, max_steps=150, eval_interval=150, checkpoint_interval=150, completion_tokens=20,
        eval_tokens=64,
    )  # fmt: skip
    result = invoke("train.py", config)
    assert result.returncode == 0, result.stderr
    return config.with_suffix("")


def make_packed_builds(folder: Path) -> Path:
    """Write the builds `chats`, `plain` without a loss mask, and `masked` to `folder`, and return it."""
    make_chat_build(folder / "chats")
    make_build(folder / "plain")
    make_build(folder / "masked", learnt=slice(30, 46))
    return folder
