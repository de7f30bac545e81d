"""Measure the filter `pii`: its speed, and how much of what was planted in real text it finds.

Lines of the corpora in a mirror are joined to documents of about 3 KB. Into every tenth document one
item is planted: an address, number or key of a random kind, or something that only looks like one,
such as a version, a date, an ISBN or a card number with a wrong check digit. Every replaced item that
was planted counts as found, and every other replacement as wrong.

    python bench/pii.py --mirror $PREPROCESS_MIRROR
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import random
import string
import time
from collections import Counter

import pyarrow as pa

from bench.lib.options import parse_positive
from preprocess.documents import make_batch
from preprocess.filters.pii import PiiFilter
from preprocess.filters.pii_kinds import IBAN_LENGTHS, KINDS
from preprocess.recipes.filter_settings import Pii

DOCUMENT_BYTES = 3000
PLANTED_SHARE = 0.1
LOOKALIKE_SHARE = 0.5  # of what is planted
BATCH_DOCUMENTS = 1000
CALLING_CODES = (1, 7, 33, 34, 44, 49, 81, 91, 351, 420, 998)


def make_word(rng: random.Random, min_letters: int = 3, max_letters: int = 9) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(min_letters, max_letters)))


def make_digits(rng: random.Random, count: int) -> str:
    return str(rng.randint(1, 9)) + "".join(rng.choices(string.digits, k=count - 1))


def make_email(rng: random.Random) -> str:
    user = make_word(rng) + rng.choice(("", ".", "_", "-", "+")) + make_word(rng) + rng.choice(("", "7", "1984"))
    return f"{user}@{make_word(rng)}.{rng.choice(('com', 'org', 'de', 'co.uk', 'ru', 'info'))}"


def make_ip(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return "2001:4860:" + ":".join(f"{rng.randrange(1, 1 << 16):x}" for _ in range(6))
    return f"{rng.randint(11, 99)}.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"


def make_phone(rng: random.Random) -> str:
    groups = [make_digits(rng, rng.randint(2, 3)), make_digits(rng, 3), make_digits(rng, 4)]
    if rng.random() < 0.3:
        groups[0] = f"({groups[0]})"
    return f"+{rng.choice(CALLING_CODES)}" + rng.choice((" ", "-", ".")) + rng.choice((" ", "-")).join(groups)


def add_luhn_digit(digits: str) -> str:
    total = sum(sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def make_card(rng: random.Random) -> str:
    digits = add_luhn_digit(rng.choice(("4", "51", "55", "6011", "353")) + make_digits(rng, 15))[:16]
    digits = add_luhn_digit(digits[:15])
    return rng.choice(("", " ", "-")).join(digits[start : start + 4] for start in range(0, 16, 4))


def make_iban(rng: random.Random) -> str:
    country = rng.choice([code.decode() for code in sorted(IBAN_LENGTHS)])
    account = "".join(rng.choices(string.digits, k=IBAN_LENGTHS[country.encode()] - 4))
    number = "".join(str(int(character, 36)) for character in account + country + "00")
    text = f"{country}{98 - int(number) % 97:02d}{account}"
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4)) if rng.random() < 0.5 else text


def make_key(rng: random.Random) -> str:
    letters = "".join(rng.choices(string.ascii_letters + string.digits, k=90))
    upper = "".join(rng.choices(string.ascii_uppercase + "234567", k=16))
    return rng.choice(
        (f"AKIA{upper}", f"ghp_{letters[:36]}", f"sk-{letters[:48]}", f"sk-proj-{letters}", f"AIza{letters[:35]}",
         f"xoxb-123456789012-{letters[:24]}", f"npm_{letters[:36]}", f"eyJ{letters[:30]}.eyJ{letters}.{letters[:43]}",
         f"-----BEGIN RSA PRIVATE KEY-----\n{letters}\n-----END RSA PRIVATE KEY-----")
    )  # fmt: skip


MAKERS = {
    "email": make_email, "ip": make_ip, "phone": make_phone, "card": make_card, "iban": make_iban, "key": make_key,
}  # fmt: skip


def make_lookalike(rng: random.Random) -> str:
    digits, word = make_digits(rng, 16), make_word(rng)
    card = make_card(rng)
    return rng.choice(
        (f"version {rng.randint(1, 9)}.{rng.randint(0, 9)}.{rng.randint(0, 99)}.{rng.randint(0, 9)}",
         f"{rng.randint(1, 20)}.{rng.randint(0, 9)}.{rng.randint(0, 99)}", f"192.168.{rng.randint(0, 255)}.1",
         f"{rng.randint(1, 28)}.{rng.randint(1, 12)}.{rng.randint(1900, 2030)}", f"978-3-16-{digits[:6]}-{digits[6]}",
         card[:-1] + str((int(card[-1]) + 1) % 10), f"{rng.random():.15f}", f"x+{digits[:11]}", f"id={digits}",
         f"{int(digits):,}", f"@{word}", f"{word}@{word}", f"{word} @ {word}.com", f"std::{word}::{word}",
         f"{rng.randint(0, 23)}:{rng.randint(10, 59)}:{rng.randint(10, 59)}", f"+{digits[:3]}", f"sk-{word}-{word}",
         f"https://{word}.com:8080/{word}", f"{digits[:3]}-{digits[3:6]}-{digits[6:10]}", "+1 000 000 000")
    )  # fmt: skip


def make_documents(mirror: Path, num_documents: int, rng: random.Random) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the documents, and of each the kind that was planted, "" for none and "lookalike", and the text."""
    lines = [
        line
        for path in sorted(mirror.rglob("*.txt"))
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines()
        if line.strip()
    ]
    documents, planted = [], []
    for _ in range(num_documents):
        parts: list[str] = []
        while sum(map(len, parts)) < DOCUMENT_BYTES:
            parts.append(rng.choice(lines))
        kind, text = "", ""
        if rng.random() < PLANTED_SHARE:
            if rng.random() < LOOKALIKE_SHARE:
                kind, text = "lookalike", make_lookalike(rng)
            else:
                kind = rng.choice(sorted(MAKERS))
                text = MAKERS[kind](rng)
            parts.insert(rng.randrange(len(parts)), f"{make_word(rng)} {text} {make_word(rng)}")
        documents.append("\n".join(parts))
        planted.append((kind, text))
    return documents, planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", type=Path, default=os.environ.get("PREPROCESS_MIRROR"), help="folder of corpora")
    parser.add_argument("--documents", type=parse_positive, default=20_000, help="(default: 20000)")
    arguments = parser.parse_args()
    if arguments.mirror is None:
        parser.error("no corpora; pass --mirror")
    documents, planted = make_documents(arguments.mirror, arguments.documents, random.Random(1))
    batches = [
        make_batch({"text": pa.array(part, pa.large_string())}, len(part))
        for part in (documents[i : i + BATCH_DOCUMENTS] for i in range(0, len(documents), BATCH_DOCUMENTS))
    ]
    pii = PiiFilter(Pii())
    start = time.process_time()
    verdicts = [pii.judge(batch, batch.column("text")) for batch in batches]
    seconds = time.process_time() - start
    num_bytes = sum(len(text.encode()) for text in documents)
    print(f"{num_bytes / 1e6:,.0f} MB in {seconds:.2f} s of CPU time: {num_bytes / seconds / 1e6:,.0f} MB/s")
    found, wrong, missed = Counter[str](), Counter[str](), Counter[str]()
    row = 0
    for batch, verdict in zip(batches, verdicts, strict=True):
        after = (verdict.batch or batch).column("text").to_pylist()
        for text in after:
            kind, item = planted[row]
            expected = documents[row]
            if kind in KINDS:
                expected = expected.replace(item, KINDS[kind].mask.decode())
                (found if text == expected else missed)[kind] += 1
            elif text != expected:
                wrong[kind or "text of the corpora"] += 1
                print(f"wrong: {item or text[:80]!r}")
            row += 1
    for kind in KINDS:
        print(f"{kind}: found {found[kind]:,} of {found[kind] + missed[kind]:,}")
    num_lookalikes = sum(kind == "lookalike" for kind, _ in planted)
    print(
        f"replaced by mistake: {wrong['lookalike']:,} of {num_lookalikes:,} lookalikes, and in the corpora "
        f"{wrong['text of the corpora']:,} documents of {len(documents):,}"
    )


if __name__ == "__main__":
    main()
