"""Tests of `preprocess.build.engines.unused_libraries`."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib.util, sys
from preprocess.build.engines.unused_libraries import leave_out_pandas
leave_out_pandas()
importlib.util.find_spec("pandas")  # does not raise: PyTorch calls it when it creates its first model
try:
    import pandas
except ModuleNotFoundError:
    print("not installed")
import pyarrow
pyarrow.array(["text"])
assert not {"pandas", "pandas.core"} & sys.modules.keys()
"""


def test_leave_out_pandas_makes_its_import_raise_but_not_the_search_for_it() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "not installed\n"), result.stderr
