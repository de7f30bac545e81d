"""Check that the libraries of the selected trackers are installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from preprocess.errors import MisuseError


def check_trackers(names: Sequence[str], *, option: str = "track") -> None:
    """Raise MisuseError if the library of one of the trackers `names` is not installed.

    `option` is the setting or flag that selects them, for the message.
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
    # W&B writes its runs to a folder `wandb`, which Python also finds, as a namespace package. Such
    # a package has no origin.
    return spec is not None and spec.origin is not None
