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


class _PandasRefuser:
    """The first of the import system's finders. It raises for pandas, and leaves other modules to the next finders."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("the command preprocess does not use pandas", name=fullname)


def leave_out_pandas() -> None:
    """Make `import pandas` raise ModuleNotFoundError. Has no effect on Arrow after its first array was made."""
    sys.meta_path.insert(0, _PandasRefuser())


def limit_blas_threads() -> None:
    """Make NumPy use one thread for linear algebra. Has no effect after NumPy was imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
