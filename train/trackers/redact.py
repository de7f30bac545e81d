"""What libraries say of their failures, as a line that holds no secret of the environment's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from preprocess.errors import one_line
from train.core.cli import reason

MOST_CHARACTERS = 300
SECRET = re.compile(r"(MLFLOW|WANDB|AWS|AZURE|DATABRICKS)_.*(PASSWORD|TOKEN|KEY|SECRET)", re.IGNORECASE)
USER_INFO = re.compile(r"://[^/\s'\"]*@")


def describe(error: BaseException) -> str:
    """The first line of what an error says, and no more of it than a warning should hold."""
    text = reason(error) if isinstance(error, OSError) else str(error)
    lines = [line.strip() for line in without_secrets(text, os.environ).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__)[:MOST_CHARACTERS]


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """`text` without what stands before the host of a URL, and without the environment's passwords, tokens and keys."""
    _, _, rest = environment.get("MLFLOW_TRACKING_URI", "").partition("://")
    user_info = rest.rpartition("@")[0]
    secrets = [value for key, value in environment.items() if SECRET.fullmatch(key)]
    for secret in sorted(
        (s for s in [user_info, *user_info.split(":", 1), *secrets] if len(s) > 3), key=len, reverse=True
    ):
        text = text.replace(secret, "***")
    return USER_INFO.sub("://", text)
