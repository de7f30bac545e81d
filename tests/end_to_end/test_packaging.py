"""The wheel and the sdist: what they contain, and that the wheel's commands work outside a
checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

MIN_SETUPTOOLS = 77  # as pyproject.toml requires
GENERATED = {".git", ".venv", "build", "dist", "runs"}
BUILD_CODE = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # each of the calls changes sys.argv
build_meta.build_wheel(folder)
build_meta.build_sdist(folder)
"""
# Tests that need no corpus and take seconds.
SDIST_TESTS = ["tests/test_packaging.py", "tests/preprocess/recipes", "tests/train/core/test_cli.py"]


@dataclass(frozen=True)
class Distributions:
    wheel: Path
    sdist: Path
    sources: frozenset[str]  # names of the files that both were built from


def run(command: list[str | Path], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `cwd` without the variables that would let it find this checkout. Asserts
    that it succeeds.
    """
    hidden = ("PYTHONPATH", "FOLIO_SHARDS", "PREPROCESS_MIRROR")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | env
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def list_sources() -> Iterator[Path]:
    """Yield the files of this checkout, or of an unpacked sdist, without what was generated in
    it.
    """
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [ROOT / name for name in names if name]
    else:
        paths = list(ROOT.rglob("*"))
    for path in paths:
        if path.is_file() and path.relative_to(ROOT).parts[0] not in GENERATED and path.suffix != ".pyc":
            yield path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The wheel and the sdist of a clean copy of the sources."""
    setuptools = pytest.importorskip("setuptools", reason="needs setuptools to build the wheel")
    if int(setuptools.__version__.split(".")[0]) < MIN_SETUPTOOLS:
        pytest.skip(f"needs setuptools >= {MIN_SETUPTOOLS} to build the wheel, found {setuptools.__version__}")
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = frozenset(path.relative_to(ROOT).as_posix() for path in list_sources())
    for name in names:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    run([sys.executable, "-c", BUILD_CODE, output], source)
    (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
    return Distributions(wheel, sdist, names)


@pytest.fixture(scope="module")
def bin_folder(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a new environment with the wheel, which takes its dependencies
    from this one.
    """
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", folder], folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    run([scripts / "python", "-m", "pip", "install", "--no-index", "--no-deps", distributions.wheel], folder)
    # Written last: otherwise pip finds the Folio of this environment and installs nothing. Python
    # does not read .pth files in a folder that a .pth file names, so that an editable installation
    # of Folio in this environment has no effect.
    purelib = run([scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(purelib.stdout.strip()) / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    return scripts


def test_wheel_contains_packages_their_data_and_configs(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    suffixes = (".py", ".toml", ".html", ".css", ".js")
    sources = {name for name in distributions.sources if name.endswith(suffixes)}
    packages = {name for name in sources if name.startswith(("preprocess/", "train/"))}
    configs = {f"train/{name}" for name in sources if name.startswith("configs/")}
    assert "train/configs/demo.py" in configs and "preprocess/report/build.html" in packages
    assert names == packages | configs


def test_wheel_builds_and_trains_in_an_empty_folder(bin_folder: Path, tmp_path: Path) -> None:
    found = run([bin_folder / "python", "-c", "import preprocess, train; print(train.__file__)"], tmp_path).stdout
    assert Path(found.strip()).is_relative_to(bin_folder.parent)
    assert "synthetic" in run([bin_folder / "preprocess", "corpora"], tmp_path).stdout
    small = ["--num-pairs", "200", "--tokenizer", "byte", "--quiet"]
    run([bin_folder / "preprocess", "build", "--corpus", "synthetic", *small], tmp_path)
    assert (tmp_path / "shards/synthetic/manifest.json").is_file()
    settings = {
        "max_steps": 2, "warmup_steps": 1, "eval_interval": 2, "checkpoint_interval": 2, "eval_tokens": 64,
        "completion_author": "none", "completion_city": "none", "completion_year": "none", "completion_tokens": 2,
        "device": "cpu",
    }  # fmt: skip
    run([bin_folder / "preprocess", "report", "synthetic", "--quiet"], tmp_path)
    assert (tmp_path / "synthetic.html").is_file()
    run([bin_folder / "folio", "train", "demo", *(f"--{key}={value}" for key, value in settings.items())], tmp_path)
    assert (tmp_path / "runs/demo/metrics.jsonl").is_file()
    sampled = run([bin_folder / "folio", "sample", "runs/demo", "--tokens", "2", "--device", "cpu"], tmp_path)
    assert sampled.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "runs", "synthetic.html"}


def test_folio_without_arguments_prints_help(bin_folder: Path, tmp_path: Path) -> None:
    assert run([bin_folder / "folio"], tmp_path).stdout.startswith("usage: folio ")
    assert run([bin_folder / "folio", "--version"], tmp_path).stdout.startswith("folio, version ")
    assert run([bin_folder / "preprocess"], tmp_path).stdout.startswith("Usage: preprocess ")


def test_sdist_contains_its_tests_and_they_pass(distributions: Distributions, tmp_path: Path) -> None:
    with tarfile.open(distributions.sdist) as file:
        file.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in distributions.sources if not name.startswith((".git", "folio_lm.egg-info"))} <= found
    options = ["-q", "-p", "no:cacheprovider", "--no-header"]
    done = run([sys.executable, "-m", "pytest", *options, *SDIST_TESTS], folder, PYTHONDONTWRITEBYTECODE="1")
    assert " passed" in done.stdout and "failed" not in done.stdout
