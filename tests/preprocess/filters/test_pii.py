"""Personal data is found, ordinary numbers are not, and nothing of what is found is stored anywhere."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.errors import MisuseError
from preprocess.filters.chain import FilterChain
from preprocess.filters.interface import KEEP
from preprocess.filters.pii import PiiFilter
from preprocess.filters.pii_kinds import KINDS, mask_text
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.filter_settings import PII_KINDS, Pii, parse_filter
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.decode_build import decode_documents
from tests.preprocess.build.helpers import run_build

# What each kind must find. No key works: they have the shape of one, and random characters.
LETTERS = "aB3xY9kLmN0pQrStUvWz12fGhJ4cDe5Tt6Ii7Oo8"
FOUND = {
    "email": (
        "bob@mail.com", "first.last@uni-bonn.de", "a_b+tag@sub.mail.co.uk", "x1@a.io", "O'Neil@home.ie",
    ),
    "ip": ("8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "2a00:1450:4001:82a:0:0:0:200e"),
    "phone": (
        "+1 415 555 2671", "+44 20 7946 0958", "+49 (30) 901820", "+7 (912) 345-67-89", "+33.6.12.34.56.78",
        "+14155552671", "+91-98765-43210", "+34 612 345 678",
    ),
    "card": (
        "4111 1111 1111 1111", "4111111111111111", "5500-0000-0000-0004", "3782 822463 10005", "6011000990139424",
        "2223003122003222", "3530111333300000", "30569309025904",
    ),
    "iban": (
        "DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "FR14 2004 1010 0505 0001 3M02 606",
        "NO9386011117947",
    ),
    "key": (
        "AKIA" + "ABCDEFGH23456723", "gh" + "p_" + LETTERS[:36], "github" + "_pat_" + LETTERS * 2,
        "xox" + "b-123456789012-" + LETTERS[:24], "sk-" + LETTERS + "abcdEFGH", "sk-" + "proj-" + LETTERS * 2,
        "AI" + "za" + LETTERS[:35], "sk_" + "live_" + LETTERS[:24], "h" + "f_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH",
        "npm" + "_" + LETTERS[:36], "glpat" + "-" + LETTERS[:20], "SG." + LETTERS[:22] + "." + LETTERS + "abc",
        "eyJ" + LETTERS[:20] + ".eyJ" + LETTERS + "." + LETTERS,
        "-----BEGIN RSA PRIVATE " + "KEY-----\nProc-Type: 4,ENCRYPTED\n\n" + (LETTERS + "+/\n") * 9
        + "-----END RSA PRIVATE " + "KEY-----",
    ),
}  # fmt: skip
# What looks like one of them and is not. Each is in the middle of a sentence, too.
NOT_FOUND = (
    "version 1.2.3.4", "v10.0.19041.1", "1.2.3", "1.2.3.4.5", "256.1.2.3", "192.168.0.1", "127.0.0.1", "10.0.0.7",
    "0.0.0.0", "section 8.8.4.4", "fe80::1", "::1", "12:34:56", "std::vector<int>", "aa:bb:cc:dd:ee:ff",
    "2024-11-28T12:34:56", "28.11.2024", "2024:11:28", "ISBN 978-3-16-148410-0", "9783161484100", "0-306-40615-2",
    "1234 5678 9012 3456", "4111111111111112", "4111 1111-1111 1111", "41111111111111110000", "3.14159265358979",
    "1234567890123456", "0.4111111111111111", "x = y+12345678901", "+1 000 000 000", "+10%", "+1.5", "+100 points",
    "1+1=2", "C++11", "GMT+01:00", "2024-11-28 12:00:00+01:00", "12345678", "user@host", "a @ b.com", "@name",
    "x@1.2", "foo@bar.c", "git@", "price @ $3.50", "@media (max-width:600px)", "DE89 3704 0044 0532 0130 01",
    "GB82 WEST", "AB12 CDEF 3456", "sk-learn-contrib-package-with-a-long-name", "task-1234567890abcdefghij",
    "AKIAshort", "ghp_short", "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----", "eyJub3QgYSB0b2tlbg",
    "http://localhost:8080/a@b", "d41d8cd98f00b204e9800998ecf8427e", "https://example.com:443/path",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "1,234,567,890,123", "10^13 = 10000000000000",
)  # fmt: skip
ALL_FOUND = [(kind, text) for kind, texts in FOUND.items() for text in texts]
FRAGMENTS = [text for _, text in ALL_FOUND] + list(NOT_FOUND)


def run_filter(texts: list[str], **settings_: Any) -> tuple[list[str], list[int], dict[str, int]]:
    """Return the texts after the filter, the reasons, and the counts."""
    batch = make_batch({"text": pa.array(texts, pa.large_string())}, len(texts))
    verdict = PiiFilter(Pii(**settings_)).judge(batch, batch.column("text"))
    made = batch if verdict.batch is None else verdict.batch
    return made.column("text").to_pylist(), verdict.reasons.tolist(), dict(verdict.counts)


@pytest.mark.parametrize(("kind", "text"), ALL_FOUND)
def test_each_kind_is_replaced_by_its_mask_in_a_sentence(kind: str, text: str) -> None:
    mask = KINDS[kind].mask.decode()
    for before, after in (
        ("See ", " there."),
        ("", ""),
        ("(", ")"),
        ("«", "»"),
        ("Вот: ", ", и"),
        ("\n", "\n"),
        ('"', '"'),
    ):
        assert run_filter([before + text + after])[::2] == ([before + mask + after], {kind: 1})


@pytest.mark.parametrize("text", NOT_FOUND)
def test_numbers_and_code_of_other_meaning_are_kept(text: str) -> None:
    texts = [text, f"See {text} there.", f"({text})", f"Вот: {text}, и"]
    assert run_filter(texts) == (texts, [KEEP] * 4, {})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("card 4111 1111 1111 1111 12/27", "card <CARD_NUMBER> 12/27"),
        ("card 4111111111111111 12/27", "card <CARD_NUMBER> 12/27"),
        ("paid 20 4111 1111 1111 1111 today", "paid 20 <CARD_NUMBER> today"),
        ("code 1234 4111 1111 1111 1111 123", "code 1234 <CARD_NUMBER> 123"),
        ("3782 822463 10005 1234", "<CARD_NUMBER> 1234"),
        ("AT61 1904 3002 3457 3201 EUR", "<IBAN> EUR"),
        ("ES9121000418450200051332 EUR 20", "<IBAN> EUR 20"),
        ("US12 ABCD BE68 5390 0754 7034 BE68 5390 0754 7034", "US12 ABCD <IBAN> <IBAN>"),
    ],
)
def test_card_and_account_numbers_are_found_beside_other_numbers_and_words(text: str, masked: str) -> None:
    assert run_filter([text])[0] == [masked]


@pytest.mark.parametrize("text", ["AT61 1904 3002 3457 3201EUR", "4111 1111 1111 1111-1234", "4111-1111 1111 1111"])
def test_a_number_that_goes_on_or_changes_its_separator_is_kept(text: str) -> None:
    assert run_filter([text])[0] == [text]


def test_the_password_of_a_url_is_replaced_and_its_host_is_kept() -> None:
    assert run_filter(["postgres://bob:hunter2@db.mail.com/x"])[0] == ["postgres://<KEY>@db.mail.com/x"]


def test_a_private_key_without_its_end_is_replaced() -> None:
    key = "-----BEGIN PRIVATE " + "KEY-----\n" + (LETTERS + "\n") * 5
    assert run_filter([f"a {key}"])[0] == ["a <KEY>"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from(FRAGMENTS), st.text("0123456789+-. :@abAB_<>/", max_size=8), st.text(max_size=3))
    )
)
def test_masking_twice_is_masking_once_and_batches_do_not_matter(parts: list[str]) -> None:
    text = "".join(parts)
    once, _, counts = run_filter([text])
    assert run_filter(once) == (once, [KEEP], {})
    assert run_filter(["x", text, "y 8.8.8.8"])[0][1] == once[0]
    # The pass of RE2 leaves out no document in which the patterns find something.
    assert mask_text(text.encode(), PII_KINDS) == (once[0].encode(), counts)


def test_what_a_replacement_uncovers_is_replaced_too() -> None:
    phone = "+49 (30) 901820"
    assert run_filter([phone * 30])[0] == ["<PHONE>" * 30]
    # As long as the phone number stands there, its last digits and the card number are one number of too many digits.
    assert run_filter(["+1 415 555 2671 30569309025904"])[0] == ["<PHONE> <CARD_NUMBER>"]
    assert run_filter(["git@@8.8.4@uni-bonn.de-@a.io"])[0] == ["git@@<EMAIL><EMAIL>"]


def test_policy_drop_drops_the_documents_by_the_first_kind_and_edits_none() -> None:
    texts = ["nothing", "bob@mail.com", "call +1 415 555 2671", "8.8.8.8 and bob@mail.com"]
    assert run_filter(texts, policy="drop") == (
        texts,
        [KEEP, PII_KINDS.index("email"), PII_KINDS.index("phone"), PII_KINDS.index("email")],
        {"email": 2, "phone": 1, "ip": 1},
    )


def test_only_the_given_kinds_are_replaced() -> None:
    assert run_filter(["bob@mail.com 8.8.8.8"], kinds=("ip",))[0] == ["bob@mail.com <IP_ADDRESS>"]


def test_the_kinds_are_replaced_in_the_order_of_the_reasons() -> None:
    assert tuple(KINDS) == PII_KINDS


@pytest.mark.parametrize(
    ("spec", "message"),
    [("pii:kinds=mail", "got 'mail'"), ("pii:kinds=", "must not be empty"), ("pii:policy=hide", "got 'hide'")],
)
def test_unknown_settings_are_reported(spec: str, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        parse_filter(spec)


@pytest.mark.parametrize(
    "text",
    ["a" * 400_000, "1" * 400_000, "+1" * 200_000, "a.b-" * 100_000, "a@" * 200_000, "a@b." * 100_000, "1.2." * 100_000,
     "4111 " * 80_000, "DE89" * 100_000, "2001:" * 80_000, "eyJ" * 130_000, "eyJ" + "a" * 400_000, "://a:" * 80_000,
     "+49 (30) 901820" * 27_000, "bob@mail.com+49 (30) 901820" * 15_000, "8.8.8.8-" * 50_000,
     "-----BEGIN PRIVATE KEY-----\n" * 14_000, "-----BEGIN PRIVATE KEY-----" + "A" * 400_000, "sk-ant-" * 60_000,
     "xoxb-1234-" * 40_000],
)  # fmt: skip
def test_texts_made_to_be_slow_need_linear_time(text: str) -> None:
    start = time.process_time()
    run_filter([text])
    assert time.process_time() - start < 5


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_rows(count: int) -> list[dict[str, Any]]:
    rng = random.Random(5)
    words = ["alpha", "beta", "gamma", "delta", "привет", "мир", "1.2.3", "x+1"]
    rows = []
    for number in range(count):
        parts = [*rng.choices(words, k=rng.randint(3, 40)), str(number)]
        if rng.random() < 0.4:
            parts.insert(rng.randrange(len(parts)), rng.choice(ALL_FOUND)[1])
        rows.append({"text": " ".join(parts)})
    return rows


@pytest.mark.parametrize("policy", ["mask", "drop"])
def test_builds_have_nothing_of_what_was_found_in_any_file(tmp_path: Path, policy: str) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_rows(300))
    # The second filter drops documents with examples, some of which had something that was masked.
    filters = (f"pii:policy={policy}", "word_count:min_words=20")
    builds = []
    for workers in (1, 2):
        recipe = load_recipe(None, inputs=(str(source),), tokenizer="byte", filters=filters, near_dedup="drop")
        run_build(recipe, tmp_path / f"out{workers}", name="x", workers=workers)
        builds.append(Build(tmp_path / f"out{workers}"))
    assert builds[0].manifest.build_id == builds[1].manifest.build_id
    files = [path for path in (tmp_path / "out1").rglob("*") if path.is_file()]
    stored = b"".join(path.read_bytes() for path in files)
    stored += "".join(document for split in ("train", "val") for document in decode_texts(builds[0], split)).encode()
    for _, text in ALL_FOUND:
        assert text.encode() not in stored
        assert json.dumps(text)[1:-1].encode() not in stored
    stats = json.loads((tmp_path / "out1/stats.json").read_text())
    entry, words = stats["filters"]
    assert sum(entry["counts"].values()) > 50
    assert entry["examples"] == {}
    assert words["examples"]["too_few_words"]
    assert (sum(entry["dropped"].values()) > 0) == (policy == "drop")


def decode_texts(build: Build, split: str) -> list[str]:
    tokenizer = load_tokenizer(build.folder, build.manifest)
    return [data.decode() for _, data in decode_documents(build, split, tokenizer)]


def test_filters_before_it_have_no_examples(tmp_path: Path) -> None:
    recipe = load_recipe(None, inputs=(str(tmp_path / "x.jsonl"),), filters=("word_count:min_words=5", "pii"))
    batch = make_batch({"text": pa.array(["bob@mail.com"], pa.large_string()), "source": 0, "position": [0]}, 1)
    chain = FilterChain(recipe)
    chain.apply(batch, np.zeros(1, np.int8), lambda *_: None)
    assert chain.counts[0].dropped == {"too_few_words": 1}
    assert chain.counts[0].examples == {}


def test_messages_of_chats_are_masked_one_by_one(tmp_path: Path) -> None:
    contents = ("I am user@", "mail.com", "no, user@mail.com", "ok +1 415")
    chats = [
        {"messages": [
            {"role": ("user", "assistant")[turn % 2], "content": f"{number} {content}"}
            for turn, content in enumerate(contents)
        ]}
        for number in range(20)
    ]  # fmt: skip
    source = write_jsonl(tmp_path / "chats.jsonl", chats)
    recipe = load_recipe(None, inputs=(str(source),), tokenizer="byte", filters=("pii",))
    run_build(recipe, tmp_path / "out", name="x")
    build = Build(tmp_path / "out")
    documents = [document for split in ("train", "val") for document in decode_texts(build, split)]
    assert all(
        "no, <EMAIL>" in document and "ok +1 415" in document and "mail.com" in document for document in documents
    )
    assert json.loads((tmp_path / "out/stats.json").read_text())["filters"][0]["counts"] == {"email": 20}


def test_masking_many_matches_takes_a_few_times_the_bytes_of_the_text() -> None:
    text = b"u@example.com " * 20_000
    tracemalloc.start()
    try:
        _, counts = mask_text(text, ("email",))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts == {"email": 20_000}
    assert peak < 4 * len(text), f"{peak / len(text):.1f} bytes for a byte of text"
