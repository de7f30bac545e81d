"""A corpus with everything that could depend on workers, partitions or interruptions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of JSONL files with groups, duplicates, malformed lines and empty texts."""
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
