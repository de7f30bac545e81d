"""The scripts of bench/ use functions of preprocess and train. Only slow tests run them."""

from __future__ import annotations

import importlib

import pytest

from bench.lib.measure import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("bench", "bench/lib")
    for path in (ROOT / folder).glob("*.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_bench_can_be_imported(module: str) -> None:
    importlib.import_module(module)
