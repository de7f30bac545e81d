"""Messages of tracking libraries without secrets."""

from __future__ import annotations

import pytest

from train.trackers.redact import describe_error, remove_secrets


def test_remove_secrets_replaces_variables_and_users_in_urls() -> None:
    variables = {"MLFLOW_TRACKING_URI": "https://me:s3/cr@t!@host/x", "WANDB_API_KEY": "0123abcd"}
    assert (
        remove_secrets("GET https://me:s3/cr@t!@host/x refused, s3/cr@t! 0123abcd", variables)
        == "GET https://host/x refused, *** ***"
    )
    assert remove_secrets("http://who:what@host/path?a@b https://host", {}) == "http://host/path?a@b https://host"


def test_describe_error_removes_secrets_before_cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert "0123" not in describe_error(OSError("x" * 290 + "0123456789abcdef"))
    assert describe_error(OSError("  \n\ta\x1bb\nc")) == "a\\x1bb" and describe_error(OSError()) == "OSError"
