"""Avoid parts of imported libraries that slow down the start of `preprocess` and are not needed.

The first call of `pyarrow.array` imports pandas if it is installed, so that it can recognise a
Series. This takes 0.2 s and 40 MB in every process. Arrow has no setting for it, but it can work
without pandas.

The import of NumPy starts a thread of OpenBLAS for each further core, and these threads wait in a
busy loop. This takes 0.05 s of processor time.

The functions change the process, so call them only in processes that run nothing else.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn


class _NotImported(Loader):
    """A loader whose module cannot be imported."""

    def create_module(self, spec: ModuleSpec) -> NoReturn:
        raise ModuleNotFoundError(f"the command preprocess does not use {spec.name}", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A loader must have this method. It is not called."""


class _PandasFinder:
    """The first of the import system's finders. It finds pandas, but with a loader that raises.

    `find_spec` itself must not raise: a library may call it to ask whether pandas is installed, as PyTorch does
    when it first creates a model.
    """

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != "pandas" or (spec := PathFinder.find_spec(fullname)) is None:
            return None
        return ModuleSpec(fullname, _NotImported(), origin=spec.origin)


def leave_out_pandas() -> None:
    """Make `import pandas` raise ModuleNotFoundError. Has no effect on Arrow after its first array was made."""
    sys.meta_path.insert(0, _PandasFinder())


def limit_blas_threads() -> None:
    """Make NumPy use one thread for linear algebra. Has no effect after NumPy was imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
