"""Which folder may import which, checked on the syntax trees of the sources."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PREPROCESS = sorted((ROOT / "preprocess").rglob("*.py"))
TRAIN = sorted((ROOT / "train").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CONTRACT = ("preprocess.errors", "preprocess.shards")
# What each folder or file may import from the same package besides itself. `build`, `stream` and `exchange` must
# not import each other.
PREPROCESS_RULES = {
    "errors.py": (),
    "limited_child.py": CONTRACT,
    "console.py": CONTRACT,
    "progress.py": (*CONTRACT, "preprocess.console"),
    "documents.py": CONTRACT,
    "versions.py": ("preprocess.__version__",),
    "pages": CONTRACT,
    "terminal.py": (*CONTRACT, "preprocess.console"),
    "shards": CONTRACT,
    "chats": (*CONTRACT, "preprocess.documents"),
    "recipes": (*CONTRACT, "preprocess.chats"),
    "inputs": (*CONTRACT, "preprocess.recipes", "preprocess.progress"),
    "readers": (
        *CONTRACT,
        "preprocess.limited_child",
        "preprocess.recipes",
        "preprocess.documents",
        "preprocess.chats",
        "preprocess.inputs",
    ),
    "tokenizers": (
        *CONTRACT,
        "preprocess.limited_child",
        "preprocess.recipes",
        "preprocess.documents",
        "preprocess.chats",
        "preprocess.inputs.download",
    ),
    "filters": (*CONTRACT, "preprocess.recipes", "preprocess.documents", "preprocess.chats"),
    "stages": (
        *CONTRACT,
        "preprocess.filters",
        "preprocess.recipes",
        "preprocess.documents",
        "preprocess.chats",
        "preprocess.inputs",
        "preprocess.readers",
        "preprocess.tokenizers",
    ),
}
LOWER = (*CONTRACT, *(f"preprocess.{name.removesuffix('.py')}" for name in PREPROCESS_RULES))
PREPROCESS_RULES |= {"build": LOWER, "stream": LOWER, "exchange": LOWER, "report": (*LOWER, "preprocess.build")}
# A build that arrives takes its place as one that was made here.
PREPROCESS_RULES |= {"sharing": (*LOWER, "preprocess.build.publish")}
TRAIN_CORE = ("train.config", "train.core")
TRAIN_RULES = {
    "core": (),
    "config.py": ("train.core", "train.model"),
    "command_line.py": TRAIN_CORE,
    "optim.py": (*TRAIN_CORE, "train.model"),
    "model": TRAIN_CORE,
    "data": TRAIN_CORE,
    "trackers": TRAIN_CORE,
    "run": (*TRAIN_CORE, "train.optim", "train.model", "train.data", "train.trackers"),
    "evaluation": (*TRAIN_CORE, "train.model", "train.data", "train.trackers", "train.run"),
    "plotting": (*TRAIN_CORE, "train.run"),
    "reporting": (*TRAIN_CORE, "train.run", "train.evaluation", "train.plotting"),
    "serving": (*TRAIN_CORE, "train.model", "train.run"),
}
COMMANDS = (
    "train.train",
    "train.sample",
    "train.chat",
    "train.evaluate",
    "train.export",
    "train.plot",
    "train.report",
    "train.serve",
    "preprocess.cli",
)
# The pages of runs look like those of builds, and so do the tables on a terminal.
TRAIN_MAY_IMPORT = (
    *CONTRACT, "preprocess.__version__", "preprocess.console", "preprocess.terminal", "preprocess.pages"
)  # fmt: skip
# The templates say which control tokens mark the turns of a chat, for `folio chat` as for a build. The recipes of the
# built-in corpora have their licences, for the model card.
TRAIN_FUNCTIONS_MAY_IMPORT = (
    *TRAIN_MAY_IMPORT,
    "preprocess.tokenizers",
    "preprocess.stream",
    "preprocess.chats",
    "preprocess.recipes",
    "preprocess.progress",
    "preprocess.sharing",
)
# The one module of preprocess/ that imports torch: for training loops other than ours.
TORCH_DATASET = ROOT / "preprocess/shards/torch_dataset.py"
# The one module of preprocess/ that imports train, inside its functions: for filters by a trained model.
RUN_MODELS, OF_RUN_MODELS = ROOT / "preprocess/filters/run_models.py", ("train.evaluation.document_bits",)
# Each heavy or optional library is imported by these files alone.
HOMES = {
    "click": {"preprocess/cli"},
    "gigatoken": {"preprocess/tokenizers/gigatoken_backend.py", "preprocess/build/engines/worker_modules.py"},
    "awkward": {"preprocess/tokenizers/gigatoken_backend.py", "preprocess/build/engines/worker_modules.py"},
    "tiktoken": {"preprocess/tokenizers/tiktoken_bpe.py"},
    "tiktoken_ext": {"preprocess/tokenizers/tiktoken_bpe.py"},
    "tokenizers": {f"preprocess/tokenizers/{name}.py" for name in ("huggingface", "encoder_child")},
    "ftfy": {"preprocess/stages/mojibake.py"},
    "py3langid": {"preprocess/filters/language.py"},
    "huggingface_hub": {
        "preprocess/inputs/remote/hub.py",
        "preprocess/sharing/push_to_hub.py",
        "train/run/hub_models.py",
    },
    "fsspec": {"preprocess/inputs/remote"},
    "ray": {"preprocess/build/engines/ray_cluster.py"},
    "orjson": {
        f"preprocess/readers/{name}.py" for name in ("json_finders", "json_layout", "json_records", "long_json")
    },
    "resiliparse": {"preprocess/readers/html_text.py"},
    "fastwarc": {"preprocess/readers/warc.py"},
    "gguf": {"train/run/export_gguf.py"},
    "lm_eval": {"train/evaluation/harness"},
    "evaluate": {"train/evaluation/harness"},
    "datasets": {"train/evaluation/harness"},
    "yaml": {"train/evaluation/harness"},
    "sentencepiece": {"preprocess/tokenizers/sentencepiece_bpe.py"},
    "tqdm": {"preprocess/console.py", "train/evaluation/harness/library.py"},
    "matplotlib": {"train/plotting"},
    "rich": {"preprocess/terminal.py"},
    "jinja2": {"preprocess/pages/render.py", "train/evaluation/harness"},
    "psutil": {"train/core/memory.py", "train/core/clock.py"},
    "triton": {"train/model/cuda_kernels.py"},
    "tensorboard": {"train/trackers/tensorboard_backend.py"},
    # An export contains modeling_folio.py.
    "transformers": {
        *(f"train/serving/{name}.py" for name in ("loaded_model", "openai_server")),
        "train/run/modeling_folio.py",
    },
    **{key: {"train/serving/openai_server.py"} for key in ("openai", "starlette")},
    "uvicorn": {"train/serving/openai_server.py", "train/serving/connections.py"},
    "mlflow": {"train/trackers/mlflow_backend.py", "train/evaluation/mlflow_runs.py"},
    "wandb": {"train/trackers/wandb_backend.py"},
}


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, in_functions: bool) -> Iterator[str]:
    """Full names of the modules that `path` imports at module level, or inside its functions."""
    tree = parse(path)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    type_checking = [f for f in ast.walk(tree) if isinstance(f, ast.If) and ast.unparse(f.test) == "TYPE_CHECKING"]
    for_types = {id(n) for f in type_checking for n in ast.walk(f)}
    for node in ast.walk(tree):
        if (id(node) in inside) != in_functions or id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use an absolute import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # a name may be a module


@functools.cache
def all_imports(path: Path) -> frozenset[str]:
    return frozenset({*imports(path, in_functions=False), *imports(path, in_functions=True)})


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def under(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == a or module.startswith(a + ".") for a in allowed)


def check_rule(package: str, folder: str, allowed: tuple[str, ...]) -> None:
    place = ROOT / package / folder
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert files and all(path.exists() for path in files)
    own = f"{package}.{folder.removesuffix('.py')}"
    for path in files:
        for module in all_imports(path) - {package}:
            assert module.split(".")[0] != package or under(module, (own, *allowed)), f"{name(path)} imports {module}"


@pytest.mark.parametrize("folder", PREPROCESS_RULES)
def test_preprocess_imports_point_one_way(folder: str) -> None:
    check_rule("preprocess", folder, PREPROCESS_RULES[folder])


@pytest.mark.parametrize("folder", TRAIN_RULES)
def test_train_imports_point_one_way(folder: str) -> None:
    check_rule("train", folder, TRAIN_RULES[folder])


@pytest.mark.parametrize("package", ["preprocess", "train"])
def test_every_folder_has_a_rule(package: str) -> None:
    rules = PREPROCESS_RULES if package == "preprocess" else TRAIN_RULES
    commands = {"cli", "__main__.py", "__init__.py", *(f"{c.split('.')[1]}.py" for c in COMMANDS)}
    found = {p.name for p in (ROOT / package).iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - commands == set(rules)


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_train_imports_only_the_contract_of_preprocess(path: Path) -> None:
    for module in {*imports(path, in_functions=False)} - {"preprocess"}:
        assert not module.startswith("preprocess") or under(module, TRAIN_MAY_IMPORT), module
    for module in imports(path, in_functions=True):
        assert not module.startswith("preprocess") or under(module, TRAIN_FUNCTIONS_MAY_IMPORT), module


@pytest.mark.parametrize("path", PREPROCESS, ids=name)
def test_preprocess_imports_neither_train_nor_torch(path: Path) -> None:
    for module in all_imports(path):
        is_allowed = path == TORCH_DATASET and under(module, ("torch",))
        is_allowed |= path == RUN_MODELS and under(module, OF_RUN_MODELS)
        assert module.split(".")[0] not in {"torch", "train"} or is_allowed
    assert not any(module.split(".")[0] == "train" for module in imports(path, in_functions=False))


@pytest.mark.parametrize("path", PREPROCESS + TRAIN, ids=name)
def test_torch_dataset_is_imported_by_users_only(path: Path) -> None:
    assert "preprocess.shards.torch_dataset" not in all_imports(path)


LIGHT = [ROOT / "preprocess" / n for n in ("__init__.py", "errors.py")] + sorted(
    {*(ROOT / "preprocess/shards").glob("*.py")} - {TORCH_DATASET}
)


@pytest.mark.parametrize("path", LIGHT, ids=name)
def test_contract_imports_numpy_and_stdlib_only(path: Path) -> None:
    for module in all_imports(path):
        assert module.split(".")[0] in {"numpy", *sys.stdlib_module_names} or under(module, CONTRACT), module


@pytest.mark.parametrize("path", sorted((ROOT / "preprocess/stages").glob("*.py")), ids=name)
def test_stages_import_no_clock_or_randomness(path: Path) -> None:
    assert not all_imports(path) & {"time", "datetime", "random", "os"}


LIBRARY = [p for p in PREPROCESS + TRAIN if name(p).removesuffix(".py").replace("/", ".") not in COMMANDS]


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library_modules_import_no_command(path: Path) -> None:
    if name(path) != "preprocess/__main__.py" and "preprocess/cli" not in name(path):
        assert not [module for module in all_imports(path) if under(module, COMMANDS)]


@pytest.mark.parametrize("path", PREPROCESS + TRAIN, ids=name)
def test_heavy_libraries_have_one_importer(path: Path) -> None:
    for module in all_imports(path):
        home = HOMES.get(module.split(".")[0])
        assert home is None or {name(path), name(path.parent)} & home, f"{name(path)} imports {module}"


PICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def imports_of_picklers(path: Path) -> list[str]:
    statements = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        if {module.split(".")[0] for module in modules} & PICKLERS:
            statements.append(ast.unparse(node))
    return statements


@pytest.mark.parametrize("path", PREPROCESS + TRAIN + TESTS, ids=name)
def test_nothing_unpickles(path: Path) -> None:
    # nanoGPT reads a vocabulary only from a pickle. Writing one is harmless, but reading one can run any code.
    writes_pickle = name(path) == "preprocess/exchange/nanogpt.py"
    assert imports_of_picklers(path) == (["from pickle import dumps"] if writes_pickle else [])


def loaded_by(code: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_contract_loads_no_arrow() -> None:
    loaded = loaded_by("import preprocess.shards.format, preprocess.shards.windows")
    assert "numpy" in loaded and not loaded & {"pyarrow", "click", "tiktoken", "torch", "requests"}


def test_help_loads_only_click() -> None:
    loaded = loaded_by("import preprocess.cli.main")
    assert "click" in loaded and not loaded & {"numpy", "pyarrow", "torch", "requests", "tiktoken"}


def test_folio_help_loads_no_library() -> None:
    loaded = loaded_by("import sys, train.__main__; sys.argv = ['folio']; train.__main__.main()")
    assert "train.core.cli" in loaded and not loaded & {"numpy", "pyarrow", "torch", "click"}
