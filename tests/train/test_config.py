"""Settings: from a file that is parsed and never run, from the command line, in their ranges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from train.config import Config, changed_settings, config_from_saved, describe_settings, load_config, parse_command_line


def load(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return load_config(path, parse_command_line([str(path), *overrides]).overrides)


def test_file_then_command_line(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "data = 'x'\nmax_steps = 200\ndropout = 0\n",
        "--max_steps=1_000",
        "--completion_prompt=a=b",
        "--grad_clip=none",
    )
    assert (config.max_steps, config.dropout, config.completion_prompt, config.grad_clip) == (1000, 0.0, "a=b", None)
    assert type(config.dropout) is float
    assert config.n_layer == Config(data="x", out_dir="y").n_layer
    assert config.out_dir == "runs/mine"


def test_arithmetic_and_earlier_names(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "data = 'x'  # why\nmax_steps = 12 * 1024\nwarmup_steps = max_steps // 10\nlearning_rate = 3e-4\nmin_lr = -(-learning_rate) / 10\n",
    )
    assert (config.max_steps, config.warmup_steps, config.min_lr) == (12288, 1228, 3e-4 / 10)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_booleans(tmp_path: Path, text: str, value: bool) -> None:
    assert load(tmp_path, "data = 'x'", f"--compile={text}").compile is value


@pytest.mark.parametrize(
    "line",
    [
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
        "max_steps = 'many'",
        "max_steps = 1.5",
        "max_steps = None",
        "compile = 1",
        "data = ('a', 'b')",
        "data = ['a']",
        "max_steps = [3]",
        "track = 'mlflow'",
        "track = ('mlflow',)",
        "track = {'mlflow'}",
        "track = [1]",
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
        "seed = True",
    ],
)
def test_anything_but_a_fitting_assignment_is_refused(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MisuseError, match=r"mine\.py") as error:
        load(tmp_path, f"data = 'x'\n{line}\n")
    assert "\n" not in str(error.value)
    assert "line 2" in str(error.value) or "-----" in line
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]


@given(st.text() | st.text("dat=max_ stp12'(*)\n-", max_size=60))
def test_no_text_does_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("config") / "c.py"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_config(path, {})
    except MisuseError as e:
        assert str(path) in str(e) or "wanted" in str(e)


def test_misspelt_setting_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        MisuseError, match=r"mine\.py, line 2: no setting is called 'learning_rat'; did you mean 'learning_rate'\?"
    ):
        load(tmp_path, "data = 'x'\nlearning_rat = 1\n")
    with pytest.raises(MisuseError, match="command line: no setting is called 'max_step'; did you mean 'max_steps'"):
        load(tmp_path, "data = 'x'", "--max_step=1")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("--n_layer=0", "n_layer is 0, wanted 1 or more"),
        ("--n_head=5", "no multiple of n_head 5"),
        ("--dropout=1", "less than 1"),
        ("--dropout=-0.1", "0 or more"),
        ("--learning_rate=nan", "learning_rate is nan"),
        ("--learning_rate=0", "learning_rate is 0"),
        ("--min_lr=1", "above learning_rate"),
        ("--warmup_steps=6000", "more than max_steps"),
        ("--precision=fp8", "wanted one of auto, fp32, tf32, bf16, fp16"),
        ("--eval_tokens=10", "holds no window of block_size"),
        ("--grad_clip=0", "grad_clip is 0"),
        ("--max_steps=1e3", "max_steps is '1e3', wanted a whole number"),
        ("--max_steps=none", "wanted a whole number"),
        ("--eval_tokens=many", "wanted a whole number or none"),
        ("--compile=yes", "wanted true or false"),
        ("--seed=-1", "seed is -1"),
        ("--data=", "data is empty"),
    ],
)
def test_ranges(tmp_path: Path, override: str, complaint: str) -> None:
    with pytest.raises(MisuseError, match=complaint):
        load(tmp_path, "data = 'x'", override)


@pytest.mark.parametrize(
    "arguments", [["a.py", "--max_steps", "3"], ["a.py", "-n=3"], ["a.py", "--verbose"], [], ["a.py", "b.py"]]
)
def test_command_lines_that_cannot_be_read(arguments: list[str]) -> None:
    with pytest.raises(MisuseError, match="usage: python train/train.py"):
        parse_command_line(arguments)


@pytest.mark.parametrize(
    ("line", "override", "track"),
    [
        ("track = ['tensorboard', 'mlflow']", None, ("tensorboard", "mlflow")),
        ("track = []", None, ()),
        ("track = None", None, ()),
        ("track = ['wandb']", "tensorboard, mlflow", ("tensorboard", "mlflow")),
        ("track = ['wandb']", "none", ()),
        ("track = ['wandb']", "", ()),
    ],
)
def test_lists(tmp_path: Path, line: str, override: str | None, track: tuple[str, ...]) -> None:
    config = load(tmp_path, f"data = 'x'\n{line}\n", *([] if override is None else [f"--track={override}"]))
    assert config.track == track
    assert config.as_dict()["track"] == list(track)
    assert config_from_saved(json.loads(json.dumps(config.as_dict())), "here") == config
    assert f"track                        {', '.join(track) or 'none'}" in config.lines()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "tensorbord",
            "track holds 'tensorbord'; did you mean 'tensorboard'? wanted any of tensorboard, mlflow, wandb",
        ),
        ("x" * 1000, "wanted any of"),
        ("mlflow,,wandb", "track holds ''; wanted any of"),
        ("mlflow,mlflow", "in which one stands twice"),
        ("none,mlflow", "track holds none, which switches all off; write it alone, or leave it out"),
        ("\x1b[31m", r"track holds '\x1b[31m'; wanted any of"),
    ],
)
def test_trackers_that_nobody_knows(tmp_path: Path, text: str, complaint: str) -> None:
    for arguments in ([f"data = 'x'\ntrack = {text.split(',')!r}\n"], ["data = 'x'", f"--track={text}"]):
        with pytest.raises(MisuseError) as error:
            load(tmp_path, *arguments)
        assert complaint in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    "text", ["['tensorboard', 'mlflow']", '["tensorboard","mlflow"]', "[tensorboard, mlflow]", "tensorboard, mlflow"]
)
def test_trackers_may_be_written_as_in_a_config_file(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, "data = 'x'", f"--track={text}").track == ("tensorboard", "mlflow")
    assert load(tmp_path, "data = 'x'", "--track=[]").track == ()


@pytest.mark.parametrize("saved", [3, {}, [1], [["mlflow"]], "mlflow", [None], ["mlflow"] * 1000])
def test_saved_lists_that_are_none(tmp_path: Path, saved: object) -> None:
    settings = load(tmp_path, "data = 'x'").as_dict() | {"track": saved}
    with pytest.raises(MisuseError, match="track is"):
        config_from_saved(settings, "here")


def test_data_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="does not set data"):
        load(tmp_path, "max_steps = 3")


def test_saved_settings_come_back(tmp_path: Path) -> None:
    config = load(tmp_path, "data = 'x'", "--top_k=none", "--completion_author=Анна")
    assert config_from_saved(json.loads(json.dumps(config.as_dict())), "here") == config
    with pytest.raises(MisuseError, match="no setting is called 'n_layers'"):
        config_from_saved(config.as_dict() | {"n_layers": 1}, "here")
    with pytest.raises(MisuseError, match="not written by Folio"):
        config_from_saved([], "here")


def test_only_settings_that_losses_depend_on_count_as_changed(tmp_path: Path) -> None:
    old = load(tmp_path, "data = 'x'")
    new = load(
        tmp_path,
        "data = 'y'",
        "--seed=2",
        "--dropout=0.5",
        "--out_dir=z",
        "--device=cpu",
        "--keep_checkpoints=9",
        "--top_k=1",
    )
    assert changed_settings(old, new) == ["seed 1337 → 2", "dropout 0.0 → 0.5"]


def test_help_names_every_setting() -> None:
    text = describe_settings()
    assert all(f"\n  {key} " in text for key in Config(data="x", out_dir="y").as_dict())


def test_the_configs_that_ship_are_whole() -> None:
    configs = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    assert {"demo", "small", "shakespeare_char"} <= {p.stem for p in configs}
    for path in configs:
        assert load_config(path, {}).out_dir == f"runs/{path.stem}"
