"""Check that the trackers that a user asks for can run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from preprocess.errors import MisuseError


def check_trackers(names: Sequence[str], *, option: str = "track") -> None:
    """Raise MisuseError if the library of one of the trackers is not installed.

    `option` is the setting or flag that asks for them; the message names it.
    """
    for name in names:
        if not _is_installed(name):
            raise MisuseError(
                f"{option} needs {name}, which is not installed; pip install 'folio-lm[{name}]', or leave it out"
            )
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI") and not _is_installed("sqlalchemy"):
        raise MisuseError(
            f"{option} needs mlflow, but mlflow-skinny cannot store runs by itself and MLFLOW_TRACKING_URI is not set; "
            "set it to a server, or pip install 'folio-lm[mlflow]'"
        )


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    # W&B writes its runs into a folder `wandb`, which Python finds as a namespace package: that has
    # no origin.
    return spec is not None and spec.origin is not None
