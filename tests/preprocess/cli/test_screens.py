"""Tables on a terminal: their numbers, what is not a terminal, NO_COLOR, and texts that look like markup."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.shards.format import Build
from preprocess.terminal import Grid, Line, show
from tests.conftest import ROOT
from tests.helpers.terminal import render, run_on_terminal, terminal_stream

HOSTILE = "[bold]a[/bold] [link=http://x]b \x1b[2J \x1b]8;;http://x\x07 \u202e :smile:"


@pytest.fixture
def builds(build_text: Callable[..., Build]) -> Path:
    text = "".join(f"{HOSTILE} {i}\n" for i in [*range(50), 3, 4])
    settings = {
        "document": "line",
        "split": "exact",
        "clean": (),
        "dedup": True,
        "author": HOSTILE,
        "val_fraction": 0.2,
    }
    build = build_text(text, name="a", **settings)
    build_text(text + "more\n", name="b", **settings)
    return build.folder.parent


def run(builds: Path, *arguments: str, columns: int = 100, **variables: str) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FOLIO_SHARDS": str(builds), **variables}
    return run_on_terminal([sys.executable, "-m", "preprocess", *arguments], columns=columns, env=env)


def test_stats_are_tables_with_bars(builds: Path) -> None:
    status, output = run(builds, "stats", "a", columns=80)
    assert status == 0 and "\x1b[1m" in output and "\x1b[36m" in output
    lines = render(output)
    assert max(map(len, lines)) <= 80
    cells = {tuple(line.split()[:2]): line for line in lines if len(line.split()) > 1}
    assert cells["read", "52"].count("█") == 24 and "█" in cells["kept", "50"] and ("duplicates", "2") in cells
    # The names of the author are data: no markup, no link, no escape sequence.
    assert "[bold]a[/bold] [link=http://x]b \\x1b[2J" in "".join(line.strip() for line in lines).replace("  ", " ")
    assert not {"\x1b[2J", "\x1b]8", "\u202e"} & {
        output[m.start() : m.start() + 4] for m in re.finditer("\x1b", output)
    }
    assert "\x1b[2J" not in output and "\x1b]" not in output and "\u202e" not in output


def test_no_color_leaves_no_colour(builds: Path) -> None:
    for command in (["stats", "a"], ["diff", "a", "b"], ["show", "a", "--document", "0", "--tokens"]):
        _, output = run(builds, *command, NO_COLOR="1")
        assert not re.search(r"\x1b\[[0-9;]*[34]\d", output), command


def test_pipe_gets_the_plain_lines(builds: Path, preprocess: Callable) -> None:  # type: ignore[type-arg]
    for command in (["list"], ["show", "a"], ["stats", "a"], ["diff", "a", "b"]):
        out = preprocess(*command, env={"FOLIO_SHARDS": str(builds)}).stdout
        assert "\x1b" not in out and "─" not in out and "█" not in out, command
    _, on_terminal = run(builds, "stats", "a", "--quiet")
    assert render(on_terminal)[:-1] == preprocess("stats", "a", env={"FOLIO_SHARDS": str(builds)}).stdout.splitlines()


def test_tokens_are_tinted_on_a_terminal_and_lines_in_a_pipe(builds: Path, preprocess: Callable) -> None:  # type: ignore[type-arg]
    arguments = ["show", "a", "--document", "0", "--tokens"]
    _, output = run(builds, *arguments)
    text = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert output.count("\x1b[48;5;") > 30 and HOSTILE[:14] in text and "\x1b[2J" not in output
    tints = re.findall(r"\x1b\[48;5;(\d+)m", output)
    assert all(a != b for a, b in itertools.pairwise(tints))
    result = preprocess(*arguments, env={"FOLIO_SHARDS": str(builds)})
    ids, texts = zip(*(line.split("\t") for line in result.stdout.splitlines()), strict=True)
    build = Build(builds / "a")
    assert list(map(int, ids)) == build.document("train", 0).tolist()
    assert "".join(texts[-len(HOSTILE) :]).endswith("<|endoftext|>") and "\\x1b" in texts
    assert preprocess("show", "a", "--tokens", env={"FOLIO_SHARDS": str(builds)}).returncode == 2


def test_terminal_without_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal_stream(60) as (stream, read):
        stream.reconfigure(encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        show([Line(text="a\nb"), Grid(header=("x", "n"), rows=[("one", "4"), ("two", "1")], bars=[4, 1])])
        monkeypatch.undo()
        output = read()
    assert output.isascii() and "a\\nb" in output and "#" * 24 in output and "#" * 6 in output


def test_rich_is_imported_for_a_terminal_only(builds: Path) -> None:
    program = "import sys; from preprocess.cli.main import main; sys.argv = ['preprocess', 'list']\n"
    program += "try:\n    main()\nfinally:\n    print('rich' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FOLIO_SHARDS": str(builds)}
    _, output = run_on_terminal([sys.executable, "-c", program], env=env)
    assert render(output)[-2] == "True"
    _, output = run_on_terminal(["sh", "-c", f'{sys.executable} -c "$PROGRAM" | cat'], env={**env, "PROGRAM": program})
    assert render(output)[-2] == "False"
