"""Config files: which statements are accepted, and how a config is based on another."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from tests.conftest import assert_one_line
from train.config import load_config
from train.core.config_file import MAX_BASES, MAX_CONFIG_BYTES, read_assignments


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read_values(path: Path) -> dict[str, Any]:
    return {name: assignment.value for name, assignment in read_assignments(path).items()}


def test_read_assignments_computes_arithmetic_with_earlier_names(tmp_path: Path) -> None:
    text = (
        "data = 'x'  # a comment\nmax_steps = 12 * 1024\nwarmup_steps = max_steps // 10\nlearning_rate = 3e-4\n"
        "min_lr = -(-learning_rate) / 10\ntrack = ['mlflow', 'wandb']\npatience = None\ncompile = True\n"
    )
    assert read_values(write(tmp_path / "c.py", text)) == {
        "data": "x",
        "max_steps": 12288,
        "warmup_steps": 1228,
        "learning_rate": 3e-4,
        "min_lr": 3e-4 / 10,
        "track": ["mlflow", "wandb"],
        "patience": None,
        "compile": True,
    }


def test_read_assignments_keeps_the_last_value_and_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.py", "seed = 1\nseed = seed + 1\n")
    assignment = read_assignments(path)["seed"]
    assert (assignment.value, assignment.where) == (2, f"{path}, line 2")


REJECTED_LINES = [
    "data = __import__('os').system('touch hacked')",
    "import os",
    "data = open('hacked', 'w')",
    "max_steps = [n for n in (1,)][0]",
    "max_steps = (lambda: 1)()",
    "data = f'{1}'",
    "max_steps += 1",
    "max_steps: int = 3",
    "data.x = 1",
    "max_steps = undefined",
    "max_steps = 9 ** 9 ** 9",
    "max_steps = (-8) ** 0.5",
    "max_steps = 10 ** 17 * 10 ** 17",
    "data = 'a' * 10 ** 9",
    "max_steps = 1 / 0",
    "max_steps = True + 1",
    "max_steps = " + "-" * 5_000 + "1",
    "data = b'x'",
    "if True: max_steps = 3",
    "max_steps = = 3",
    "data = ('a', 'b')",
    "track = ('mlflow',)",
    "track = {'mlflow'}",
    "track = [['mlflow']]",
    "names = ['mlflow']; track = [names]",
    "track = [*['mlflow']]",
    "track = ['mlflow'] + ['wandb']",
    "track = ['mlflow'] * 3",
    "track = ['mlflow'][0]",
    "track = [t for t in 'ab']",
    "track = [open('hacked', 'w')]",
    "track = [" + "'mlflow'," * 101 + "]",
    "track = [" * 300 + "]" * 300,
]


@pytest.mark.parametrize("line", REJECTED_LINES)
def test_read_assignments_rejects_all_other_statements_and_runs_nothing(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "mine.py", f"data = 'x'\n{line}\n")
    for read in (read_assignments, lambda path: load_config(path, {})):
        with pytest.raises(MisuseError, match=r"mine\.py") as error:
            read(path)
        assert "\n" not in str(error.value)
        assert "line 2" in str(error.value) or "-----" in line
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


@given(st.text() | st.text("dat=max_ stp12'(*)\n-", max_size=60) | st.text("base='./c\n", max_size=20))
def test_any_text_is_read_or_rejected_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("config") / "c.py"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_assignments(path)
    except MisuseError as e:
        assert str(path) in str(e)
    try:
        load_config(path, {})
    except MisuseError as e:
        assert "\n" not in str(e).replace(str(path), "")


BAD_FILES = {
    "deep sum": (b"a = " + b"1+" * 20_000 + b"1", "cannot be read, because an expression is nested too deeply"),
    "deep brackets": (b"a = " + b"(" * 20_000, "line 1: an expression is nested too deeply"),
    "long number": (b"a = " + b"9" * 5000, r"line 1: a number is larger than 1e\+18"),
    "long number in a call": (b"a = f(0x" + b"f" * 20_000 + b")", "cannot read an expression with a huge number"),
    "f-string": (b"a = f'" + b"{1}" * 20_000 + b"'", "line 1: cannot read"),
    "NUL": (b"a = 1\0", "contains a NUL character"),
    "escape": (b'a = "C:\\users"', "line 1: a text has a backslash that does not begin an escape sequence"),
    "not UTF-8": (b"a = '\xff'", r"is not UTF-8 text \(byte 5\); save it as UTF-8"),
    "binary": (bytes(range(256)) * 200, "is not UTF-8 text"),
    "large": (b"#" * (MAX_CONFIG_BYTES + 1), "has 65,537 bytes, expected at most 65,536"),
    "many names": (b"".join(b"a%d=1\n" % i for i in range(7000)), "line 1: no setting is called 'a0'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_line_at_once(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / "mine.py").write_bytes(content)
    began = time.process_time()
    with pytest.raises(MisuseError, match=message) as error:
        load_config(tmp_path / "mine.py", {})
    assert_one_line(str(error.value))
    assert "sys." not in str(error.value) and "()" not in str(error.value)
    assert time.process_time() - began < 2


def test_what_is_not_a_regular_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path(os.devnull), Path("/dev/zero")):
        with pytest.raises(MisuseError, match="the config file .* is not a regular file; put a file there"):
            load_config(path, {})
    with pytest.raises(MisuseError, match="the config file .*nowhere.py does not exist; name a file of assignments"):
        load_config(tmp_path / "nowhere.py", {})


def test_unknown_escape_prints_no_warning_of_python(tmp_path: Path) -> None:
    path = write(tmp_path / "c.py", r"out_dir = 'C:\data'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_values(path) == {"out_dir": r"C:\data"}


def test_renamed_settings_can_be_used_by_either_name(tmp_path: Path) -> None:
    write(tmp_path / "old.py", "data = 'x'\nsample_tokens = 5\n")
    path = write(
        tmp_path / "new.py", "base = 'old.py'\nseed = completion_tokens + 1\nmax_steps = 2000 * sample_tokens\n"
    )
    config = load_config(path, {})
    assert (config.completion_tokens, config.seed, config.max_steps) == (5, 6, 10_000)
    write(tmp_path / "old.py", "data = 'x'\ncompletion_tokens = 6\n")
    assert load_config(path, {}).seed == 7


# base


def test_base_is_read_first_and_overridden(tmp_path: Path) -> None:
    write(tmp_path / "small.py", "data = 'x'\nn_layer = 6\nlearning_rate = 1e-3\n")
    path = write(tmp_path / "mine.py", "base = 'small.py'\nn_layer = 12\n")
    assert read_values(path) == {"data": "x", "n_layer": 12, "learning_rate": 1e-3}
    assert read_assignments(path)["learning_rate"].where == f"{tmp_path / 'small.py'}, line 3"


def test_names_of_base_can_be_used_in_arithmetic(tmp_path: Path) -> None:
    write(tmp_path / "small.py", "max_steps = 1000\nlearning_rate = 1e-3\n")
    path = write(tmp_path / "mine.py", "base = 'small.py'\nmax_steps = 3 * max_steps\nmin_lr = learning_rate / 10\n")
    assert read_values(path) == {"max_steps": 3000, "learning_rate": 1e-3, "min_lr": 1e-4}


def test_base_is_relative_to_the_file_and_may_have_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shared" / "first.py", "seed = 1\nn_head = 4\n")
    write(tmp_path / "shared" / "second.py", "base = 'first.py'\nseed = 2\n")
    path = write(tmp_path / "mine" / "third.py", "base = '../shared/second.py'\nn_layer = 3\n")
    monkeypatch.chdir("/")
    assert read_values(path) == {"seed": 2, "n_head": 4, "n_layer": 3}


def test_load_config_names_the_run_after_the_file_and_not_its_base(tmp_path: Path) -> None:
    write(tmp_path / "small.py", "data = 'x'\nseed = 3\n")
    config = load_config(write(tmp_path / "mine.py", "base = 'small.py'\n"), {})
    assert (config.data, config.seed, config.out_dir) == ("x", 3, "runs/mine")


def test_last_assignment_wins_across_base_and_renamed_settings(tmp_path: Path) -> None:
    write(tmp_path / "small.py", "data = 'x'\ndata_order = 'random'\n")
    path = write(tmp_path / "mine.py", "base = 'small.py'\nsampling = 'epochs'\n")
    assert load_config(path, {}).data_order == "epochs"
    path = write(tmp_path / "other.py", "base = 'mine.py'\ndata_order = 'random'\n")
    assert load_config(path, {}).data_order == "random"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base = 'nowhere.py'\n",
            "mine.py, line 1: base 'nowhere.py' does not exist in the folder FOLDER; give its path from there",
        ),
        ("base = '.'\n", "mine.py, line 1: base '.' is not a file; name a config file"),
        ("base = 'pipe'\n", "mine.py, line 1: base 'pipe' is not a file; name a config file"),
        ("base = 'dangling.py'\n", "base 'dangling.py' does not exist in the folder"),
        ("base = '~nosuchuser/a.py'\n", "mine.py, line 1: base is '~nosuchuser/a.py', but the home directory of"),
        ("base = 'a\\0b'\n", r"mine.py, line 1: base must be a path, got 'a\x00b'"),
        ("base = '" + "x" * 5000 + "'\n", "mine.py, line 1: base is longer than this system allows, 5,000 characters"),
        ("seed = 1\nbase = 'mine.py'\n", "mine.py, line 2: base must be the first assignment; move it to the top"),
        ("base = 3\n", "mine.py, line 1: base must be the path of a config file in quotes, got 3"),
        ("base = ''\n", "base must be the path of a config file in quotes, got ''"),
        ("base = ['a.py', 'b.py']\n", "base must be the path of a config file in quotes, got ['a.py', 'b.py']"),
        ("base = small\n", "mine.py, line 1: cannot read 'small'"),
        (
            "base = 'mine.py'\n",
            "mine.py, line 1: the config would be based on itself (mine.py → mine.py); remove a base",
        ),
        ("base = 'link.py'\n", "the config would be based on itself (mine.py → link.py); remove a base"),
        ("base = 'broken.py'\n", "broken.py, line 2: expected an assignment of a setting"),
    ],
)
def test_base_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "broken.py", "seed = 1\nimport os\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling.py").symlink_to("nowhere.py")
    (tmp_path / "link.py").symlink_to("mine.py")
    path = write(tmp_path / "mine.py", text)
    with pytest.raises(MisuseError) as error:
        read_assignments(path)
    assert message.replace("FOLDER", str(tmp_path)) in str(error.value)
    assert_one_line(str(error.value))


def test_cycle_of_bases_is_named(tmp_path: Path) -> None:
    for name, base in (("first", "second"), ("second", "third"), ("third", "second")):
        write(tmp_path / f"{name}.py", f"base = '{base}.py'\n")
    with pytest.raises(MisuseError, match=r"itself \(second\.py → third\.py → second\.py\); remove a base"):
        read_assignments(tmp_path / "first.py")


def test_base_of_a_symbolic_link_is_relative_to_the_link(tmp_path: Path) -> None:
    write(tmp_path / "shared" / "mine.py", "base = 'small.py'\nn_layer = 3\n")
    write(tmp_path / "small.py", "seed = 5\n")
    (tmp_path / "link.py").symlink_to("shared/mine.py")
    assert read_values(tmp_path / "link.py") == {"seed": 5, "n_layer": 3}


def test_misspelt_base_is_explained(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="line 1: no setting is called 'bose'; did you mean 'base'"):
        load_config(write(tmp_path / "mine.py", "bose = 'small.py'\n"), {})


def test_ten_bases_are_accepted_and_eleven_are_rejected(tmp_path: Path) -> None:
    write(tmp_path / "c0.py", "seed = 7\n")
    for number in range(1, MAX_BASES + 2):
        write(tmp_path / f"c{number}.py", f"base = 'c{number - 1}.py'\n")
    assert read_values(tmp_path / f"c{MAX_BASES}.py") == {"seed": 7}
    with pytest.raises(MisuseError, match=f"more than {MAX_BASES} configs are based on each other"):
        read_assignments(tmp_path / f"c{MAX_BASES + 1}.py")
