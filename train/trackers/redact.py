"""Describe the errors of tracking libraries in one line, without passwords, tokens and keys."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from preprocess.errors import one_line
from train.core.cli import describe_os_error

MAX_CHARACTERS = 300
MIN_SECRET_CHARACTERS = 4  # replacing shorter values would make a message unreadable
SECRET_VARIABLE = re.compile(r"(MLFLOW|WANDB|AWS|AZURE|DATABRICKS)_.*(PASSWORD|TOKEN|KEY|SECRET)", re.IGNORECASE)
USER_INFO = re.compile(r"://[^/\s'\"]*@")


def describe_error(error: BaseException) -> str:
    """Return the first line of an error's message, without secrets, in at most MAX_CHARACTERS."""
    text = describe_os_error(error) if isinstance(error, OSError) else str(error)
    # Remove the secrets before the text is cut, because half of a secret would not be recognized.
    lines = [line.strip() for line in remove_secrets(text, os.environ).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__)[:MAX_CHARACTERS]


def remove_secrets(text: str, environment: Mapping[str, str]) -> str:
    """Return `text` with *** for the secrets in `environment`, and URLs without user and password."""
    _, _, uri_rest = environment.get("MLFLOW_TRACKING_URI", "").partition("://")
    user_info = uri_rest.rpartition("@")[0]
    values = [value for key, value in environment.items() if SECRET_VARIABLE.fullmatch(key)]
    secrets = [s for s in (user_info, *user_info.split(":", 1), *values) if len(s) >= MIN_SECRET_CHARACTERS]
    for secret in sorted(secrets, key=len, reverse=True):  # a secret may contain another one
        text = text.replace(secret, "***")
    return USER_INFO.sub("://", text)
