"""Tests of tokenizers use no network and no tiktoken cache of the user."""

from __future__ import annotations

import pytest

from preprocess.tokenizers import tiktoken_bpe


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in tiktoken_bpe.USER_CACHES:
        monkeypatch.delenv(name, raising=False)
