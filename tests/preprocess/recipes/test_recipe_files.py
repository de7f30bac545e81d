"""Builds from recipe files, and from recipes of corpora on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.build.build import build
from preprocess.build.plan import make_plan
from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.filter_settings import parse_filter
from preprocess.shards.format import Build, check_name
from tests.helpers.file_builds import QUIET, WORDS, build_files, read_texts

HUB = {
    "synth": [
        {
            "query": f"q{i}",
            "synthetic_reasoning": f"r{i}",
            "synthetic_answer": f"a{i}",
            "language": "en" if i % 2 else "fr",
        }
        for i in range(4000)
    ],
    "fineweb-edu": [{"text": f"t{i}", "id": str(i), "language": "en", "score": 3.0} for i in range(2000)],
    "openwebtext": [{"text": f"t{i}"} for i in range(4000)],
}


@pytest.mark.parametrize("corpus", HUB)
def test_hub_recipes_read_local_files(tmp_path: Path, corpus: str) -> None:
    pq.write_table(pa.Table.from_pylist(HUB[corpus]), tmp_path / "a.parquet")
    recipe = load_recipe(corpus, inputs=(str(tmp_path / "*.parquet"),), tokenizer="byte")
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    found = read_texts(Build(tmp_path / "x"))
    if corpus == "synth":
        assert found[0] == "Q: q1\n\nReasoning:\nr1\n\nA: a1" and len(found) == 2000
    else:
        assert found == [row["text"] for row in HUB[corpus]]


@pytest.mark.parametrize(
    ("corpus", "names"), [("wikitext-103", ("train", "validation", "test")), ("tinystories", ("train", "validation"))]
)
def test_hub_recipes_take_the_split_from_file_names(tmp_path: Path, corpus: str, names: tuple[str, ...]) -> None:
    for name in names:
        pq.write_table(
            pa.table({"text": [f"{name} {i}" for i in range(5)]}), tmp_path / f"{name}-00000-of-00001.parquet"
        )
    recipe = load_recipe(corpus, inputs=(str(tmp_path),), tokenizer="byte")
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    result = Build(tmp_path / "x")
    assert [result.manifest.splits[s].documents for s in ("train", "val")] == [5, 5]


def test_files_of_filters_of_a_recipe_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('inputs = ["a.txt"]\nfilters = ["bad_words:file=words.txt", "c4"]\n')
    first, second = load_recipe(str(tmp_path / "mine.toml")).filters
    assert parse_filter(first)[1].file == str(tmp_path / "words.txt")  # type: ignore[attr-defined]
    assert second.startswith("c4")


def test_inputs_of_a_recipe_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data/a.jsonl").write_text("\n".join(json.dumps({"q": w, "lang": "en"}) for w in WORDS))
    (folder / "mine.toml").write_text(
        'inputs = ["data/*.jsonl"]\ntemplate = "Q: {q}"\nwhere = \'lang == "en"\'\ntokenizer = "byte"\n'
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("project/mine.toml")
    assert recipe.corpus == "mine"
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    assert read_texts(Build(tmp_path / "x")) == [f"Q: {w}" for w in WORDS]


def test_inputs_of_a_recipe_file_may_be_urls(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('inputs = ["hf://datasets/some/stories", "data"]\n')
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert recipe.inputs == ("hf://datasets/some/stories", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('template = "{x.__class__}"', "x.__class__"),
        ("where = 'open(\"/etc/passwd\") == 1'", "function call"),
        ("where = '__import__(\"os\") == 1'", "function call"),
        ('name_pattern = "(?<=a)(?P<year>b)"', "name_pattern|pattern"),
        ('corpus = "../../evil"', "the name of a corpus must consist of letters"),
        ('inputz = ["a"]', "no setting is called 'inputz'; did you mean 'inputs'"),
        ("max_documents = 0", "max_documents must be from 1 to .*, got 0"),
        ("= broken", "is not TOML"),
        ('split = "given"', "no column or file name gives it; set split_column"),
        ('tokenizer = "../../../etc/passwd"', "passwd"),
        ('[[files]]\nname = "../../x"\nbytes = 1\nsha256 = "00"', "a file name must consist of letters"),
    ],
)
def test_hostile_and_mistaken_recipes_are_rejected(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
    names_inputs = "inputz" in text or "[[files]]" in text
    (tmp_path / "mine.toml").write_text(text if names_inputs else f'inputs = ["a.jsonl"]\n{text}')
    with pytest.raises(FolioError, match=message):
        recipe = load_recipe(str(tmp_path / "mine.toml"))
        check_name(recipe.corpus)
        make_plan(recipe, None, QUIET)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1\nseed." + "a." * 50_000 + "a = 1", "line 2 has a key of 100 parts or more"),
        ("x = {" + "'a' . " * 50_000 + "a = 1}", "line 1 has a key of 100 parts or more"),
        ("corpus" + ".a" * 90 + " = 1", "corpus must be of type str, got a table"),
        ("seed = " + "7" * 5_000, "is not TOML .a number has thousands of digits"),
        ("seed = 0x" + "f" * 5_000, "seed must be from 0 to .*, got a number of 20,000 bits"),
        ("a = " + "[" * 50_000, "is not TOML .maximum recursion depth"),
        ("a = '" + "x" * (1 << 20) + "'", "has 1,048,582 bytes, expected at most 1,048,576"),
        ("seed = 1\0", "is not TOML"),
        ("a" * 1_000_000, "is not TOML"),
        (b"author = '\xff'", "is not TOML .'utf-8' codec can't decode"),
    ],
)
def test_recipe_of_any_shape_is_rejected_with_one_short_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "mine.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MisuseError, match=message) as caught:
        load_recipe(str(tmp_path / "mine.toml"))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_recipe_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfseed = 3")
    assert load_recipe(str(tmp_path / "mine.toml")).seed == 3


@pytest.mark.timeout(20)
def test_recipe_that_is_not_a_regular_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", tmp_path / ".", Path("/dev/zero")):
        with pytest.raises(MisuseError, match="the recipe .* is not a regular file"):
            load_recipe(f"{path}/" if path.is_dir() else str(path))


def test_missing_recipe_is_an_error() -> None:
    for name in ("nowhere/mine.toml", __file__ + "/mine.toml"):
        with pytest.raises(MisuseError, match=f"no recipe {name}"):
            load_recipe(name)
    with pytest.raises(MisuseError, match="no corpus 'x{80}…'"):
        load_recipe("x" * 100_000)


def test_settings_of_other_formats_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    for overrides in ({"where": 'lang == "en"'}, {"text_column": "body"}, {"template": "{a}"}, {"author_column": "a"}):
        with pytest.raises(MisuseError, match="has no effect on text files"):
            build_files(tmp_path, tmp_path / "a.txt", document="line", **overrides)
    with pytest.raises(MisuseError, match="document has no effect on jsonl files"):
        build_files(tmp_path, tmp_path / "b.jsonl", document="line")
    with pytest.raises(MisuseError, match="where and template apply to tables, but .*a.txt is text"):
        build_files(tmp_path, tmp_path, where='text == "one"')
    with pytest.raises(MisuseError, match="split_column requires split 'given'"):
        build_files(tmp_path, tmp_path / "b.jsonl", split_column="s")


def test_tokenizer_file_is_identified_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": w}) for w in WORDS))
    (tmp_path / "my.txt").write_text("\nabcdefghijklmnopqrstuvwxyz0123456789")
    recipe = load_recipe(None, inputs=("a.jsonl",), tokenizer="my.txt", val_fraction=0.5)
    build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)
    assert build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET) is False
    (tmp_path / "my.txt").write_text("\n0123456789abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(MisuseError, match="holds another build .other tokenizer_sha256"):
        build(recipe, tmp_path / "x", name="x", replace=False, progress=QUIET)


def test_load_recipe_explains_a_url_in_place_of_a_corpus() -> None:
    with pytest.raises(MisuseError) as error:
        load_recipe("https://user:secret@host/a.jsonl?token=secret")
    assert str(error.value) == "--corpus https://host/a.jsonl?… is a URL; pass it with --input, or name a recipe"
