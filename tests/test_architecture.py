"""The arrows between the rooms, held by the syntax trees of the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

PREPROCESS = sorted((ROOT / "preprocess").rglob("*.py"))
TRAIN = sorted((ROOT / "train").glob("*.py"))
TRAIN_MAY_IMPORT = ("preprocess.shards", "preprocess.errors")
TRAIN_FUNCTIONS_MAY_IMPORT = (*TRAIN_MAY_IMPORT, "preprocess.tokenizers", "preprocess.stream")
# What each room of preprocess/ may reach; build.py and what it alone calls stand above all of them, and cli.py above these.
CONTRACT = ("preprocess.errors", "preprocess.shards")
TORCH_DATA = ROOT / "preprocess/shards/torch_data.py"  # what other loops read builds with: the one file of preprocess/ that knows torch
LANGUAGES = ("preprocess.conditions", "preprocess.templates")  # of recipes
DATA = (*CONTRACT, *LANGUAGES, "preprocess.recipe", "preprocess.documents", "preprocess.sources", "preprocess.columns")
# A stream is another story told by the same rooms: it stands beside build.py, above what builds alone do with their work folder.
STREAM = (
    *DATA, "preprocess.readers", "preprocess.stages", "preprocess.tokenizers", "preprocess.stream", "preprocess.corpora", "preprocess.plan",
    "preprocess.partitions", "preprocess.pieces", "preprocess.prepare", "preprocess.decide", "preprocess.work", "preprocess.stats",
    "preprocess.progress", "preprocess.build_log",
)  # fmt: skip
ROOMS = {
    "shards": CONTRACT,
    "documents.py": CONTRACT,
    "columns.py": CONTRACT,
    "conditions.py": (*CONTRACT, "preprocess.columns"),
    "templates.py": (*CONTRACT, "preprocess.columns"),
    "recipe.py": (*CONTRACT, *LANGUAGES),
    "corpora.py": (*CONTRACT, "preprocess.recipe", "preprocess.recipes"),
    "sources.py": (*CONTRACT, *LANGUAGES, "preprocess.recipe"),
    "partitions.py": (*CONTRACT, "preprocess.recipe", "preprocess.sources", "preprocess.readers"),
    "readers": (*DATA, "preprocess.readers"),
    "synthetic.py": CONTRACT,
    "progress.py": CONTRACT,
    "publish.py": CONTRACT,
    "interchange.py": (*CONTRACT, "preprocess.publish", "preprocess.tokenizers"),
    "buckets.py": CONTRACT,
    "work.py": CONTRACT,
    "engines.py": CONTRACT,
    "build_log.py": ("preprocess.__version__",),
    "stats.py": (*CONTRACT, "preprocess.recipe", "preprocess.tokenizers.interface"),
    "decide.py": (*CONTRACT, "preprocess.recipe", "preprocess.work", "preprocess.buckets"),
    "download.py": (*CONTRACT, "preprocess.recipe", "preprocess.progress"),
    "tokenizers": (*CONTRACT, "preprocess.recipe", "preprocess.documents", "preprocess.tokenizers", "preprocess.download"),
    "stages": (*DATA, "preprocess.readers", "preprocess.tokenizers", "preprocess.stages"),
    "stream": STREAM,
}
# Each heavy or optional library lives in these files alone, and stays out of all others.
HOMES = {
    "click": {"preprocess/cli.py"},
    "gigatoken": {"preprocess/tokenizers/gigatoken_engine.py", "preprocess/worker_modules.py"},
    "awkward": {"preprocess/tokenizers/gigatoken_engine.py", "preprocess/worker_modules.py"},
    "tiktoken": {"preprocess/tokenizers/tiktoken_bpe.py"},
    "tiktoken_ext": {"preprocess/tokenizers/tiktoken_bpe.py"},
    "tokenizers": {"preprocess/tokenizers/huggingface.py"},
    "ftfy": {"preprocess/stages/mojibake.py"},
    "orjson": {"preprocess/readers/jsonl.py"},
    "sentencepiece": {"preprocess/tokenizers/sentencepiece_bpe.py"},
    "tqdm": {"preprocess/progress.py"},
    "matplotlib": {"train/plot.py"},
    "psutil": {"train/memory.py"},
    "tensorboard": {"train/tracker_tensorboard.py"},
    "mlflow": {"train/tracker_mlflow.py", "train/mlflow_evaluations.py"},
    "wandb": {"train/tracker_wandb.py"},
}


def imports(path: Path, *, in_functions: bool) -> Iterator[str]:
    """Full names of the modules that `path` imports at module level, or inside its functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for_types = {id(n) for f in ast.walk(tree) if isinstance(f, ast.If) and ast.unparse(f.test) == "TYPE_CHECKING" for n in ast.walk(f)}
    for node in ast.walk(tree):
        if (id(node) in inside) != in_functions or id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides an arrow"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # a name may be a module: `from preprocess import cli`


def all_imports(path: Path) -> set[str]:
    return {*imports(path, in_functions=False), *imports(path, in_functions=True)}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def under(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == a or module.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_training_crosses_only_to_the_shards(path: Path) -> None:
    for module in imports(path, in_functions=False):
        assert not module.startswith("preprocess") or under(module, TRAIN_MAY_IMPORT), module
    for module in imports(path, in_functions=True):
        assert not module.startswith("preprocess") or under(module, TRAIN_FUNCTIONS_MAY_IMPORT), module


@pytest.mark.parametrize("path", PREPROCESS, ids=name)
def test_preprocessing_knows_nothing_of_training(path: Path) -> None:
    siblings = {p.stem for p in TRAIN}
    for module in all_imports(path):
        assert module.split(".")[0] not in {"torch", "train", *siblings} or (path == TORCH_DATA and under(module, ("torch",))), module


@pytest.mark.parametrize("path", PREPROCESS + TRAIN, ids=name)
def test_datasets_for_other_loops_are_for_those_alone(path: Path) -> None:
    assert "preprocess.shards.torch_data" not in all_imports(path)


LIGHT = [ROOT / "preprocess" / n for n in ("__init__.py", "errors.py")] + sorted(
    {*(ROOT / "preprocess/shards").glob("*.py")} - {TORCH_DATA}
)


@pytest.mark.parametrize("path", LIGHT, ids=name)
def test_the_contract_needs_numpy_alone(path: Path) -> None:
    for module in all_imports(path):
        assert module.split(".")[0] in {"numpy", *sys.stdlib_module_names} or under(module, ("preprocess.errors", "preprocess.shards")), (
            module
        )


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_run_one_way(room: str) -> None:
    place = ROOT / "preprocess" / room
    for path in sorted(place.glob("*.py")) if place.is_dir() else [place]:
        for module in all_imports(path):
            is_own = module.split(".")[0] == "preprocess" and module != "preprocess"
            assert not is_own or under(module, ROOMS[room]), f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "preprocess/stages").glob("*.py")), ids=name)
def test_stages_know_no_clock(path: Path) -> None:
    assert not all_imports(path) & {"time", "datetime", "random", "os"}


@pytest.mark.parametrize("path", [p for p in PREPROCESS if p.name not in ("cli.py", "__main__.py")], ids=name)
def test_nothing_imports_the_command(path: Path) -> None:
    assert "preprocess.cli" not in all_imports(path)


@pytest.mark.parametrize("path", PREPROCESS + TRAIN, ids=name)
def test_heavy_libraries_stay_at_home(path: Path) -> None:
    for module in all_imports(path):
        home = HOMES.get(module.split(".")[0])
        assert home is None or name(path) in home, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", PREPROCESS + TRAIN + sorted((ROOT / "tests").glob("*.py")), ids=name)
def test_nobody_unpickles(path: Path) -> None:
    assert not all_imports(path) & {"pickle", "dill", "joblib", "shelve", "marshal"}


def loaded_by(code: str) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


def test_the_contract_loads_no_arrow() -> None:
    loaded = loaded_by("import preprocess.shards.format, preprocess.shards.windows")
    assert "numpy" in loaded and not loaded & {"pyarrow", "click", "tiktoken", "torch", "requests"}


def test_help_loads_click_alone() -> None:
    loaded = loaded_by("import preprocess.cli")
    assert "click" in loaded and not loaded & {"numpy", "pyarrow", "torch", "requests", "tiktoken"}
