"""The filter `language` sets the language of documents, and drops those in other languages."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.cli.main import main
from preprocess.documents import make_batch
from preprocess.errors import FolioError, MisuseError
from preprocess.filters import language
from preprocess.filters.catalog import load_filter
from preprocess.filters.interface import KEEP
from preprocess.filters.language import OTHER_LANGUAGE, SAMPLE_BYTES, LanguageFilter, sample_text
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.filter_settings import Language, expand_filters, parse_filter
from preprocess.recipes.language_codes import LANGUAGE_CODES, MODEL_SHA256
from preprocess.shards.format import Build
from preprocess.stream import TokenStream, open_corpus
from tests.conftest import file_bytes
from tests.preprocess.build.helpers import run_build

pytest.importorskip("py3langid", reason="needs py3langid: pip install 'folio-lm[languages]'")

SENTENCES = {
    "en": "The committee met on Tuesday to discuss the new budget for schools and libraries.",
    "ru": "Комитет собрался во вторник, чтобы обсудить новый бюджет школ и библиотек.",
    "de": "Der Ausschuss traf sich am Dienstag, um den neuen Haushalt für Schulen zu besprechen.",
    "fr": "Le comité s'est réuni mardi pour discuter du nouveau budget des écoles.",
    "zh": "委员会于星期二开会讨论学校和图书馆的新预算。",
    "ar": "اجتمعت اللجنة يوم الثلاثاء لمناقشة الميزانية الجديدة للمدارس والمكتبات.",
    "hi": "समिति ने मंगलवार को स्कूलों के नए बजट पर चर्चा करने के लिए बैठक की।",
    "el": "Η επιτροπή συνεδρίασε την Τρίτη για να συζητήσει τον νέο προϋπολογισμό.",
}


def judge(texts: list[str], *, given: list[str | None] | None = None, **settings_: Any) -> tuple[list[Any], list[int]]:
    """Return the languages after the filter, and the reasons."""
    columns = {"text": pa.array(texts, pa.large_string()), "lang": given or [None] * len(texts)}
    batch = make_batch(columns, len(texts))
    verdict = LanguageFilter(Language(**settings_)).judge(batch, batch.column("text"))
    assert verdict.batch is not None
    assert verdict.batch.drop_columns(["lang"]).equals(batch.drop_columns(["lang"]))
    return verdict.batch.column("lang").to_pylist(), verdict.reasons.tolist()


def test_each_sentence_has_its_language_in_capitals_too() -> None:
    codes, texts = list(SENTENCES), list(SENTENCES.values())
    assert judge(texts) == (codes, [KEEP] * len(texts))
    assert judge([text.upper() for text in texts])[0] == codes


def test_documents_in_other_languages_are_dropped() -> None:
    kept = [KEEP if code in ("en", "ru") else OTHER_LANGUAGE for code in SENTENCES]
    assert judge(list(SENTENCES.values()), languages=("ru", "en"))[1] == kept


def test_texts_without_a_probable_language_are_undetermined() -> None:
    texts = ["", "12345 67890", "...", "\U0001f600", "qz xw"]
    assert judge(texts)[0] == ["und"] * 5
    batch = make_batch({"text": pa.array(texts, pa.large_string())}, 5)
    verdict = LanguageFilter(Language(languages=("en",))).judge(batch, batch.column("text"))
    assert {LanguageFilter.reasons[reason] for reason in verdict.reasons.tolist()} == {"low_score"}
    assert judge(texts, languages=("en", "und"))[1] == [KEEP] * 5


def test_a_higher_min_score_leaves_fewer_languages() -> None:
    text = "Budget problem in the program."
    assert judge([text], min_score=None)[0] == ["en"]
    assert judge([text], min_score=1.0)[0] == ["und"]


def test_the_language_that_the_input_gives_is_kept_unless_it_is_overridden() -> None:
    texts = [SENTENCES["en"]] * 5
    given: list[str | None] = ["de", "EN", "en-US", "English", None]
    expected = [OTHER_LANGUAGE, KEEP, KEEP, OTHER_LANGUAGE, KEEP]
    assert judge(texts, given=given, languages=("en",)) == (["de", "EN", "en-US", "English", "en"], expected)
    assert judge(texts, given=given, languages=("en",), override=True) == (["en"] * 5, [KEEP] * 5)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=0, max_size=300), st.sampled_from([1, 7, 50]))
def test_the_sample_of_a_text_is_bounded_valid_and_from_all_of_it(text: str, repeats: int) -> None:
    text *= repeats
    sample = sample_text(pa.array(["x", text, "y"], pa.large_string()), 1)
    if len(text.encode()) <= SAMPLE_BYTES:
        assert sample == text
    else:
        assert len(sample.encode()) <= SAMPLE_BYTES + 3
        assert sample[0] == text[0]
        assert sample[-1] == text[-1]
        assert all(part in text for part in sample.split(" ") if " " not in text)


def test_a_long_document_is_judged_by_parts_from_all_of_it() -> None:
    menu = "Home | Login | Cart | 12345 | "
    assert judge([menu * 5 + SENTENCES["ru"] * 500, SENTENCES["zh"] * 100_000])[0] == ["ru", "zh"]


def make_texts(count: int) -> list[str]:
    rng = random.Random(2)
    texts = []
    for number in range(count):
        words = rng.choice(list(SENTENCES.values())).split()
        texts.append(" ".join([*rng.sample(words, len(words)), str(number)]))
    return texts


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_builds_have_the_languages_and_the_same_bytes_for_any_workers_and_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": text} for text in make_texts(200)]
    half = len(rows) // 2
    inputs = (write_jsonl(tmp_path / "a.jsonl", rows[:half]), write_jsonl(tmp_path / "b.jsonl", rows[half:]))
    recipe = load_recipe(None, inputs=inputs, tokenizer="byte", filters=("language:languages=en|ru|zh",))
    run_build(recipe, tmp_path / "one", name="x", workers=1)
    run_build(recipe, tmp_path / "two", name="x", workers=2)
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 4096)
    run_build(recipe, tmp_path / "small", name="x", workers=1)
    build = Build(tmp_path / "one")
    for other in ("two", "small"):
        assert file_bytes(tmp_path / other) == file_bytes(tmp_path / "one")
    assert set(build.manifest.languages.values()) == {"en", "ru", "zh"}
    assert build.manifest.made_with["py3langid"]
    stats = json.loads((tmp_path / "one/stats.json").read_text())
    assert set(stats["languages"]) == {"en", "ru", "zh"}
    assert stats["documents"]["by_filters"] == stats["filters"][0]["dropped"]["other_language"] > 50
    example = stats["filters"][0]["examples"]["other_language"][0]
    assert example["detail"] in SENTENCES
    assert 0.5 <= example["value"] <= 1


def test_a_stream_reads_only_the_wanted_languages(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(60)])
    corpus = open_corpus(None, inputs=(source,), tokenizer="byte", filters=("language:languages=el",))
    data = b"".join(bytes(block[block < 256].tolist()) for block in TokenStream(corpus, block_size=8, stream_buffer=0))
    assert len(data) > 200
    assert not set(data.decode(errors="ignore")) & set("абвгдежзклмнт" + "qwertyuiopas")


def test_chats_are_judged_by_their_messages(tmp_path: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"{text} {number}"}, {"role": "assistant", "content": text}]}
        for number in range(12)
        for text in (SENTENCES["en"], SENTENCES["ru"])
    ]
    recipe = load_recipe(
        None,
        inputs=(write_jsonl(tmp_path / "c.jsonl", chats),),
        tokenizer="byte",
        filters=("language:languages=ru",),
    )
    run_build(recipe, tmp_path / "out", name="x")
    assert set(Build(tmp_path / "out").manifest.languages.values()) == {"ru"}


def test_options_stand_for_the_filters(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(80)])
    options = (
        "--languages",
        "ru, en",
        "--min-language-score",
        "0.65",
        "--pii",
        "mask",
        "--filter",
        "word_count:min_words=2",
    )
    arguments = ["build", "--input", source, "--tokenizer", "byte", "--output", str(tmp_path / "out"), "--name", "x"]
    done = CliRunner().invoke(main, [*arguments, *options])
    assert done.exit_code == 0, done.output
    filters = Build(tmp_path / "out").manifest.recipe["filters"]
    assert filters == list(
        expand_filters(None, ("pii", "language:languages=en|ru,min_score=0.65", "word_count:min_words=2"))
    )


@pytest.mark.parametrize("code", ["english", "EN", "xx", "en|xx", "en_US", "\ud800"])
def test_unknown_languages_are_reported(code: str) -> None:
    with pytest.raises(MisuseError, match="docs/languages.md lists them"):
        parse_filter(f"language:languages={code}")


@pytest.mark.parametrize("command", [["build"], ["estimate"], ["tokenizer", "train"]])
def test_a_missing_library_is_reported_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    language._load_identifier.cache_clear()
    load_filter.cache_clear()
    source = write_jsonl(tmp_path / "a.jsonl", [{"no_text": "a"}])
    output = ["--output", str(tmp_path / "out")] if command != ["estimate"] else []
    done = CliRunner().invoke(main, [*command, "--input", source, "--languages", "en", *output])
    assert done.exit_code == 2
    assert "needs the package py3langid; install it with `pip install 'folio-lm[languages]'`" in done.output


def test_another_model_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "MODEL_SHA256", "0" * 64)
    language._load_identifier.cache_clear()
    with pytest.raises(FolioError, match=f"has the SHA-256 {MODEL_SHA256[:12]}…, expected 000000000000…"):
        LanguageFilter(Language())


def test_the_codes_are_those_of_the_model() -> None:
    from py3langid import langid

    assert hashlib.sha256((langid.MODEL_DIR / langid.MODEL_FILE).read_bytes()).hexdigest() == MODEL_SHA256
    assert set(LANGUAGE_CODES) == set(language._load_identifier().labels)
