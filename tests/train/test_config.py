"""Settings: defaults, config files, the command line, ranges, and names of earlier versions."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preprocess import __version__
from preprocess.errors import MisuseError, one_line
from tests.conftest import ROOT, assert_one_line
from train.command_line import describe_usage, is_help_request, parse_command_line, print_help
from train.config import RENAMED, Config, changed_settings, config_from_saved, load_config
from train.core.config_file import read_assignments


def load(folder: Path, text: str, *arguments: str) -> Config:
    """Return the Config of a file with `text` and a command line with `arguments`."""
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return load_config(path, parse_command_line([str(path), *arguments]).overrides)


# Config file and command line


def test_command_line_overrides_file_and_file_overrides_defaults(tmp_path: Path) -> None:
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


def test_load_config_keeps_the_types_of_computed_values(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "data = 'x'  # a comment\nmax_steps = 12 * 1024\nwarmup_steps = max_steps // 10\nlearning_rate = 3e-4\n"
        "min_lr = -(-learning_rate) / 10\n",
    )
    assert (config.max_steps, config.warmup_steps, config.min_lr) == (12288, 1228, 3e-4 / 10)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_command_line_accepts_booleans(tmp_path: Path, text: str, value: bool) -> None:
    assert load(tmp_path, "data = 'x'", f"--compile={text}").compile is value


@pytest.mark.parametrize(
    "line",
    [
        "max_steps = 'many'",
        "max_steps = 1.5",
        "max_steps = None",
        "compile = 1",
        "data = ['a']",
        "max_steps = [3]",
        "track = 'mlflow'",
        "track = [1]",
        "seed = True",
    ],
)
def test_load_config_rejects_values_of_another_type(tmp_path: Path, line: str) -> None:
    with pytest.raises(MisuseError, match=r"mine\.py, line 2: .* must be ") as error:
        load(tmp_path, f"data = 'x'\n{line}\n")
    assert "\n" not in str(error.value)


def test_misspelled_setting_is_rejected_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(
        MisuseError, match=r"mine\.py, line 2: no setting is called 'learning_rat'; did you mean 'learning_rate'\?"
    ):
        load(tmp_path, "data = 'x'\nlearning_rat = 1\n")
    with pytest.raises(MisuseError, match="command line: no setting is called 'max_step'; did you mean 'max_steps'"):
        load(tmp_path, "data = 'x'", "--max_step=1")


def test_load_config_needs_data(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="does not set data; name a build in it"):
        load(tmp_path, "max_steps = 3")


def test_parse_command_line_accepts_every_form_of_an_option() -> None:
    for form in (["--max_steps", "3"], ["--max_steps=3"], ["--max-steps", "3"], ["--max-steps=3"]):
        command = parse_command_line(["a.py", *form, "--quiet"])
        assert (command.config_path, command.overrides) == (Path("a.py"), {"max_steps": "3"})
        assert command.quiet and not command.restart
    assert parse_command_line(["--max_steps", "3", "a.py", "--restart"]).restart


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--json", "the command line: no setting is called 'json'; `python train/train.py --help` lists them"),
        ("--max_step", "no setting is called 'max_step'; did you mean 'max_steps'?"),
        ("--restrat", "no setting is called 'restrat'; did you mean '--restart'?"),
        ("--base=small.py", "the command line: base can be set in a config file only; make it its first assignment"),
        ("--" + "x" * 9000, "no setting is called 'xxx"),
        ("--max_steps", "--max_steps has no value; write --max_steps=VALUE; usage: "),
        ("--version=1", "cannot read '--version=1': --version takes no value; write --version alone; usage: "),
    ],
)
def test_parse_command_line_names_the_unknown_before_the_incomplete(argument: str, message: str) -> None:
    for arguments in (["a.py", argument], [argument], ["a.py", "--seed=1", argument, "--compile"]):
        with pytest.raises(MisuseError) as error:
            parse_command_line(arguments)
        assert message in str(error.value)
        assert_one_line(str(error.value))


def test_last_of_two_names_of_a_setting_wins() -> None:
    for values, last in (((1, 2, 3), "3"), ((3, 2), "2")):
        names = ("sample_tokens", "completion_tokens", "sample_tokens")
        arguments = [f"--{name}={value}" for name, value in zip(names, values, strict=False)]
        assert parse_command_line(["a.py", *arguments]).overrides == {"completion_tokens": last}


@pytest.mark.parametrize(
    "arguments",
    [["a.py", "--max_steps"], ["a.py", "-n=3"], ["a.py", "--verbose"], [], ["a.py", "b.py"], ["a.py", "--quiet=1"]],
)
def test_parse_command_line_rejects_other_arguments(arguments: list[str]) -> None:
    with pytest.raises(MisuseError, match=r"usage: python train/train.py|lists them"):
        parse_command_line(arguments)


ODD_VALUES = [
    "",
    "-1",
    "nan",
    "1e400",
    "9" * 5000,
    "~nosuchuser",
    "a\0",
    "\udcff",
    "x" * 5000,
    "a,b:1",
    "stream:",
    "none",
    "--",
]
ODD_WORDS = st.sampled_from(ODD_VALUES) | st.text(max_size=5)
NAMES = st.sampled_from([field.name for field in dataclasses.fields(Config)] + [*RENAMED, "restart", "version", "base"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(NAMES, ODD_WORDS, st.sampled_from("=+ ")), max_size=3))
@example([("version", "1", "=")])
@example([("precision", "x" * 5000, "=")])
def test_any_command_line_is_accepted_or_rejected_in_one_line(options: list[tuple[str, str, str]]) -> None:
    arguments = [str(ROOT / "configs" / "small.py")]
    for name, value, form in options:
        arguments += {"=": [f"--{name}={value}"], "+": [f"--{name}", value], " ": [value]}[form]
    try:
        command = parse_command_line(arguments)
        load_config(command.config_path, command.overrides)
    except MisuseError as e:
        assert_one_line(one_line(str(e)))
        assert "Error" not in str(e) and "Errno" not in str(e)


# Ranges


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--n_layer=0", "n_layer must be at least 1, got 0"),
        ("--data_order=documents", "mask_documents must be True if data_order is documents, so that"),
        ("--num_epochs=0", "num_epochs must be > 0, got 0"),
        ("--n_head=5", "n_embd must be a multiple of n_head 5, got 768; change one of them"),
        ("--dropout=1", "dropout must be at least 0 and less than 1, got 1.0"),
        ("--dropout=-0.1", "dropout must be at least 0, got -0.1"),
        ("--learning_rate=nan", r"learning_rate must be at most 1e\+18, got nan"),
        ("--learning_rate=0", "learning_rate must be > 0, got 0; set --learning_rate=…"),
        ("--min_lr=1", "min_lr must be at most learning_rate 0.0006, got 1.0; lower it"),
        ("--warmup_steps=6000", "warmup_steps must be at most max_steps 5,000, got 6,000; lower it"),
        ("--precision=fp8", "precision must be one of auto, fp32, tf32, bf16, fp16, got 'fp8'"),
        ("--arch=" + "x" * 5000, "arch must be one of gpt2, modern, got 'xxx"),
        ("--eval_tokens=10", "eval_tokens must be at least block_size 1024, got 10"),
        ("--grad_clip=0", "grad_clip must be > 0, got 0"),
        ("--max_steps=1e3", "the command line: max_steps must be a whole number, got '1e3'"),
        ("--max_steps=none", "max_steps must be a whole number, got 'none'"),
        ("--eval_tokens=many", "eval_tokens must be a whole number or none, got 'many'"),
        ("--compile=yes", "compile must be true or false, got 'yes'"),
        ("--seed=-1", "seed must be at least 0, got -1"),
        ("--data=", "data is empty"),
        ("--completion_tokens=1000001", "completion_tokens must be at most 1,?000,?000, got 1,?000,?001"),
        ("--max_steps=1000000000001", "max_steps must be at most 1,?000,?000,?000,?000, got"),
        ("--batch_size=100000000", "batch_size must be at most 16,?777,?216, got"),
        ("--gradient_accumulation_steps=100000000", "gradient_accumulation_steps must be at most 16,?777,?216, got"),
        ("--n_embd=100000000", "n_embd must be at most 16,?777,?216, got"),
        ("--max_steps=" + "9" * 5000, r"max_steps must be at most 1e\+18, got 5,000 characters, '999"),
        ("--grad_clip=1" + "0" * 200, r"grad_clip must be at most 1e\+18, got 201 characters, '100"),
        ("--learning_rate=1e400", r"learning_rate must be at most 1e\+18, got inf"),
    ],
)
def test_values_out_of_range_are_rejected(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(MisuseError, match=message) as error:
        load(tmp_path, "data = 'x'", override)
    assert_one_line(str(error.value))


# Settings that have no effect


# Another value than the default for every setting.
OTHER_VALUES = {
    "data": "stream:other.toml", "out_dir": "elsewhere", "init_from": "runs/a", "device": "cpu", "seed": 2,
    "arch": "modern", "token_shift": True, "n_layer": 3, "n_head": 6, "n_embd": 1536, "block_size": 2048,
    "dropout": 0.5, "mask_documents": True, "data_order": "epochs", "stream_buffer": 5, "batch_size": 3,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True, "max_steps": 777, "num_epochs": 2.5, "optimizer": "muon", "learning_rate": 0.1,
    "base_width": 64, "num_threads": 3, "stream_shards": True, "parallel": "fsdp",
    "embedding_learning_rate": 0.1, "muon_learning_rate": 0.1, "min_lr": 1e-5, "schedule": "linear", "warmup_steps": 5,
    "minutes": 5.0, "max_params": 10**6,
    "decay_steps": 5, "weight_decay": 0.2, "beta1": 0.5, "beta2": 0.5, "muon_momentum": 0.5, "grad_clip": None,
    "precision": "fp32", "compile": True, "log_interval": 7, "eval_interval": 7, "eval_tokens": 2048, "patience": 3,
    "checkpoint_interval": 7, "keep_checkpoints": 7, "completion_interval": 7, "completion_tokens": 7,
    "completion_prompt": "fox", "completion_author": "Anna", "completion_city": "Omsk", "completion_year": 2025,
    "temperature": 0.5, "top_k": 7, "top_p": 0.5, "track": ["mlflow"], "resume": "never",
}  # fmt: skip
# The settings that need another one: a value of it without effect, how the message says it, and one with effect.
NEEDS: dict[str, tuple[dict[str, object], str, dict[str, object]]] = {
    "max_params": ({"minutes": None}, "minutes is none, not a number of minutes", {"minutes": 5.0}),
    "init_from": ({"resume": "runs/b"}, "resume is runs/b, not auto or never", {"resume": "never"}),
    "token_shift": ({"arch": "gpt2"}, "arch is gpt2, not modern", {"arch": "modern"}),
    "stream_buffer": ({"data": "x"}, "data is x, not stream:RECIPE", {"data": "stream:x"}),
    "stream_shards": ({"data": "x"}, "data is x, not a build at a URL", {"data": "s3://bucket/x"}),
    "muon_learning_rate": ({"optimizer": "adamw"}, "optimizer is adamw, not muon", {"optimizer": "muon"}),
    "muon_momentum": ({"optimizer": "adamw"}, "optimizer is adamw, not muon", {"optimizer": "muon"}),
    "decay_steps": ({"schedule": "cosine"}, "schedule is cosine, not wsd", {"schedule": "wsd"}),
    "top_k": ({"temperature": 0.0}, "temperature is 0.0, not above 0", {"temperature": 1.0}),
    "top_p": ({"temperature": 0.0}, "temperature is 0.0, not above 0", {"temperature": 1.0}),
}


def write_settings(settings: dict[str, object]) -> str:
    return "".join(f"{key} = {value!r}\n" for key, value in ({"data": "x"} | settings).items())


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_setting_is_accepted_if_and_only_if_it_has_an_effect(tmp_path: Path, field: dataclasses.Field[object]) -> None:
    """A new setting needs a value here, and `needs` if it depends on another setting."""
    name = field.name
    other = {name: OTHER_VALUES[name]}
    assert other[name] != field.default
    without, reason, with_effect = NEEDS.get(name, ({}, "", {}))
    assert (field.metadata["needs"] is None) == (name not in NEEDS)
    assert load(tmp_path, write_settings(with_effect | other)).as_dict()[name] == other[name]
    if reason:
        with pytest.raises(MisuseError) as error:
            load(tmp_path, write_settings(without | other))
        default = {"decay_steps": "none", "top_p": "none", "init_from": "none", "max_params": "none"}.get(
            name, str(field.default)
        )
        (needed,) = without
        advice = f"change {needed}, or set {name} to {default}"
        assert str(error.value).endswith(
            f", line {len({'data': 0} | without | other)}: {name} is {other[name]}, which has no effect because "
            f"{reason}; {advice}"
        )
        assert load(tmp_path, write_settings(without | {name: field.default})).as_dict()[name] == field.default


@pytest.mark.parametrize(
    ("base", "own", "overrides", "expected"),
    [
        ("max_steps = 200", "num_epochs = 3", [], (5_000, 3.0)),
        ("num_epochs = 3", "max_steps = 200", [], (200, None)),
        ("num_epochs = 3", "", ["--max_steps=200"], (200, None)),
        ("max_steps = 200", "num_epochs = 3", ["--num_epochs=2"], (5_000, 2.0)),
        ("", "max_steps = 200", ["--num_epochs=none"], (200, None)),
        ("", "", ["--num_epochs=2", "--max_steps=200"], (200, None)),
        ("", "", ["--max_steps=200", "--num_epochs=2"], (5_000, 2.0)),
        ("max_steps = 200", "num_epochs = 3\nwarmup_steps = 6000", [], (5_000, 3.0)),  # checked with max_steps, later
    ],
)
def test_last_of_max_steps_and_num_epochs_counts(
    tmp_path: Path, base: str, own: str, overrides: list[str], expected: tuple[int, float | None]
) -> None:
    (tmp_path / "base.py").write_text(f"data = 'x'\n{base}\n")
    (tmp_path / "run.py").write_text(f"base = 'base.py'\n{own}\n")
    command = parse_command_line([str(tmp_path / "run.py"), *overrides])
    config = load_config(command.config_path, command.overrides)
    assert (config.max_steps, config.num_epochs) == expected


def test_error_of_a_value_says_where_it_was_assigned(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("data = 'x'\nmax_steps = 50\n")
    path = tmp_path / "run.py"
    path.write_text("base = 'base.py'\nn_layer = 0\n")
    too_small = "n_layer must be at least 1, got 0"
    for overrides, message in (
        ({}, f"{path}, line 2: {too_small}"),
        ({"n_layer": "0"}, f"the command line: {too_small}"),
        ({"n_layer": "1", "n_embd": "33"}, "the command line: n_embd must be a multiple of n_head 12, got 33"),
        ({"n_layer": "1"}, "warmup_steps must be at most max_steps 50, got 100"),  # the default
    ):
        with pytest.raises(MisuseError) as error:
            load_config(path, overrides)
        assert str(error.value).startswith(message)
    with pytest.raises(MisuseError, match="^here: n_layer must be at least 1, got 0"):
        config_from_saved({"data": "x", "out_dir": "y", "n_layer": 0}, "here")


def test_saved_settings_without_effect_are_read_and_ignored(tmp_path: Path) -> None:
    """Earlier versions accepted them, and their runs can be sampled and continued."""
    old = dataclasses.replace(load(tmp_path, "data = 'x'"), muon_learning_rate=0.5, stream_buffer=7, decay_steps=5)
    assert config_from_saved(old.as_dict(), "here") == old
    new = load(tmp_path, "data = 'x'", "--seed=2")
    assert changed_settings(old, new) == ["seed 1337 → 2"]
    with_effect = dataclasses.replace(old, optimizer="muon")
    assert changed_settings(with_effect, dataclasses.replace(new, seed=1337, optimizer="muon")) == [
        "muon_learning_rate 0.5 → 0.02"
    ]


def test_base_width_is_compared_only_if_the_rates_differ(tmp_path: Path) -> None:
    """Runs of earlier versions do not have it. With none, they continue at another width too."""
    old = load(tmp_path, "data = 'x'\nn_embd = 96\nlearning_rate = 0.02")
    same = dataclasses.replace(old, base_width=96)
    scaled = dataclasses.replace(same, learning_rate=0.01)
    assert changed_settings(old, same) == changed_settings(same, old) == []
    assert changed_settings(old, scaled) == ["learning_rate 0.02 → 0.01", "base_width none → 96"]


# Paths


def test_home_directory_is_expanded_in_every_setting_that_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home = f"{tmp_path}/"
    config = load(tmp_path, "data = '~/b'", "--out_dir=~/o/", "--init_from=~/i")
    assert (config.data, config.out_dir, config.init_from) == (f"{home}b", f"{home}o", f"{home}i")
    assert load(tmp_path, "data = '~/a:0.7,~/b:0.3'").data == f"{home}a:0.7,{home}b:0.3"
    assert load(tmp_path, "data = 'stream:~/r.toml'").data == f"stream:{home}r.toml"
    assert load(tmp_path, "data = './x'", "--resume=~/r").resume == f"{home}r"
    assert (load(tmp_path, "data = './x'", "--resume=./auto").resume, load(tmp_path, "data = './x'").data) == (
        "./auto",
        "./x",
    )


@pytest.mark.parametrize("name", ["data", "out_dir", "init_from", "resume"])
def test_settings_that_cannot_be_a_path_are_rejected(tmp_path: Path, name: str) -> None:
    for value, message in (
        ("~nosuchuser/x", "but the home directory of '~nosuchuser' is not known"),
        ("x" * 5000, f"{name} is longer than this system allows"),
        ("\0", f"{name} must be UTF-8 text without control characters"),
        ("x\udcff", f"{name} must be UTF-8 text without control characters"),
        ("", f"{name} is empty"),
    ):
        with pytest.raises(MisuseError, match=message) as error:
            load(tmp_path, "data = 'x'", f"--{name}={value}")
        assert_one_line(str(error.value))


# Lists


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
def test_track_is_a_list_in_files_on_the_command_line_and_when_saved(
    tmp_path: Path, line: str, override: str | None, track: tuple[str, ...]
) -> None:
    config = load(tmp_path, f"data = 'x'\n{line}\n", *([] if override is None else [f"--track={override}"]))
    assert config.track == track
    assert config.as_dict()["track"] == list(track)
    assert config_from_saved(json.loads(json.dumps(config.as_dict())), "here") == config
    printed = [line for line in config.describe_changes() if line.startswith("track ")]
    assert printed == ([f"track    {', '.join(track)}"] if track else [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tensorbord",
            "track contains 'tensorbord'; did you mean 'tensorboard'? expected any of tensorboard, mlflow, wandb",
        ),
        ("x" * 1000, "expected any of"),
        ("mlflow,,wandb", "track contains ''; expected any of"),
        ("mlflow,mlflow", "which names a tracker twice; name each once"),
        ("none,mlflow", "track contains none, which switches all off; write it alone, or remove it"),
        ("\x1b[31m", r"track contains '\x1b[31m'; expected any of"),
    ],
)
def test_unknown_trackers_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    for arguments in ([f"data = 'x'\ntrack = {text.split(',')!r}\n"], ["data = 'x'", f"--track={text}"]):
        with pytest.raises(MisuseError) as error:
            load(tmp_path, *arguments)
        assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    "text", ["['tensorboard', 'mlflow']", '["tensorboard","mlflow"]', "[tensorboard, mlflow]", "tensorboard, mlflow"]
)
def test_command_line_accepts_lists_as_in_a_config_file(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, "data = 'x'", f"--track={text}").track == ("tensorboard", "mlflow")
    assert load(tmp_path, "data = 'x'", "--track=[]").track == ()


# Saved settings


@pytest.mark.parametrize("saved", [3, {}, [1], [["mlflow"]], "mlflow", [None], ["mlflow"] * 1000])
def test_config_from_saved_rejects_damaged_lists(tmp_path: Path, saved: object) -> None:
    settings = load(tmp_path, "data = 'x'").as_dict() | {"track": saved}
    with pytest.raises(MisuseError, match="track must be a list|track is mlflow"):
        config_from_saved(settings, "here")


def test_config_from_saved_restores_as_dict(tmp_path: Path) -> None:
    config = load(tmp_path, "data = 'x'", "--top_k=none", "--completion_author=Анна")
    assert config_from_saved(json.loads(json.dumps(config.as_dict())), "here") == config
    with pytest.raises(MisuseError, match="no setting is called 'n_layers'"):
        config_from_saved(config.as_dict() | {"n_layers": 1}, "here")
    with pytest.raises(MisuseError, match="here has no settings; it was not written by Folio"):
        config_from_saved([], "here")
    with pytest.raises(MisuseError, match="here does not set out_dir"):
        config_from_saved({"data": "x"}, "here")


# Values of the renamed settings that differ from the defaults.
OLD_SETTINGS = {
    "sampling": "epochs",
    "sample_interval": 7,
    "sample_tokens": 9,
    "sample_prompt": "fox",
    "sample_author": "Anna",
    "sample_city": "Omsk",
    "sample_year": 2025,
}


def test_old_names_of_settings_are_accepted_everywhere(tmp_path: Path) -> None:
    assert OLD_SETTINGS.keys() == RENAMED.keys()
    expected = {RENAMED[key]: value for key, value in OLD_SETTINGS.items()}
    assert all(value != getattr(Config(data="x", out_dir="y"), key) for key, value in expected.items())
    text = "data = 'x'\n" + "".join(f"{key} = {value!r}\n" for key, value in OLD_SETTINGS.items())
    from_file = load(tmp_path, text)
    from_command_line = load(tmp_path, "data = 'x'", *(f"--{key}={value}" for key, value in OLD_SETTINGS.items()))
    from_saved = config_from_saved({"data": "x", "out_dir": "runs/mine"} | OLD_SETTINGS, "here")
    for config in (from_file, from_command_line, from_saved):
        assert {key: getattr(config, key) for key in expected} == expected
        assert not OLD_SETTINGS.keys() & config.as_dict().keys(), "they are saved under the new names"


def test_new_name_on_the_command_line_overrides_old_name_in_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "data = 'x'\nsample_tokens = 9\n", "--completion_tokens=5").completion_tokens == 5
    assert load(tmp_path, "data = 'x'\ncompletion_tokens = 9\n", "--sample_tokens", "5").completion_tokens == 5


def test_old_name_with_a_bad_value_is_reported_by_the_new_name(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"mine\.py, line 2: completion_tokens must be a whole number, got 'many'"):
        load(tmp_path, "data = 'x'\nsample_tokens = 'many'\n")


def test_changed_settings_lists_only_what_losses_depend_on(tmp_path: Path) -> None:
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


# What is printed


def test_describe_changes_lists_only_settings_that_differ_from_the_defaults() -> None:
    config = Config(data="x", out_dir="runs/mine", n_layer=3, grad_clip=None, track=("mlflow", "wandb"))
    assert config.describe_changes() == [
        "data       x",
        "out_dir    runs/mine",
        "n_layer    3",
        "grad_clip  none",
        "track      mlflow, wandb",
    ]


def test_describe_usage_lists_every_setting_and_flag() -> None:
    text = describe_usage()
    assert all(f"\n  {field.name} " in text for field in dataclasses.fields(Config))
    assert all(f"\n  {flag} " in text for flag in ("--restart", "--quiet", "--version", "--help", "base"))


@pytest.mark.parametrize("columns", [20, 40, 60, 70, 72, 80, 132, 200])
def test_describe_usage_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = describe_usage().splitlines()
    too_long = [line for line in lines if len(line) > columns]
    assert not [line for line in too_long if " " in line.strip()], "only a word that is longer than the terminal"
    assert columns == 20 or not too_long
    words = " ".join(describe_usage().split())
    assert f"n_layer transformer blocks [{Config(data='x', out_dir='y').n_layer}] n_head " in words


def test_print_help_prints_settings_or_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], [], ["a.py", "--help"]):
        assert is_help_request(arguments) and print_help(arguments) == 0
        assert capsys.readouterr().out.startswith("usage: python train/train.py CONFIG.py")
    assert is_help_request(["--version"]) and print_help(["--version"]) == 0
    assert capsys.readouterr().out == f"folio, version {__version__}\n"
    assert not is_help_request(["a.py", "--restart"])


def test_shipped_configs_are_valid() -> None:
    configs = sorted((ROOT / "configs").glob("*.py"))
    complete = [path for path in configs if "data" in read_assignments(path)]  # the others are bases
    assert {"demo", "small", "shakespeare_char"} <= {path.stem for path in complete}
    for path in configs:
        overrides = {} if path in complete else {"data": "x"}
        assert load_config(path, overrides).out_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_config_states_its_time_in_the_first_line(path: Path) -> None:
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    if path.stem == "modern_recipe":  # has no data, so it is not a run
        assert first_line == "# Time: see the configs that start from it."
    else:
        assert re.fullmatch(r"# Time: CPU \(2 cores\): [^;]+; consumer GPU: [^;]+; H100: [^;]+\.", first_line)
