"""Compare the quality filters with those of datatrove: verdicts and reasons document by document, and time.

The documents are the corpora of --mirror, cut at paragraphs, the text files of the Python environment
(sources, licences, descriptions of packages), and adversarial documents. Each of datatrove's filters
judges every document twice: with the words of Folio, through datatrove's own interface for word
tokenizers, and with its default words, those of spaCy. Each document with another verdict is explained:
datatrove must agree on it if it has the words of Folio, and the words or sentences that differ are
counted by kind (lib/word_differences.py). `bad_words` is compared with datatrove's filter on words of
these documents. Then the four filters of FineWeb's pipeline are timed in turn, each document through all
filters that keep it: on documents of the corpora, of --timed-file, or made of their paragraphs.

This runs in the environment of bench/requirements.txt.

    python bench/quality_filters.py --mirror CORPORA
    python bench/quality_filters.py --mirror CORPORA --explain differences.jsonl   # one line for each difference
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4BadWordsFilter,
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

from bench.lib.report import describe_machine
from bench.lib.word_differences import count_kinds
from preprocess.documents import make_batch
from preprocess.filters.catalog import load_filter
from preprocess.filters.characters import MARK, SINGLE, SPACE, TERMINAL, WORD, find_kind

BATCH_BYTES = 4 << 20  # as in a build
MAX_FILE_BYTES = 20_000
MAX_SHOWN = 5  # differences of a filter

Verdict = tuple[str | None, str]  # the reason, None if the document is kept, and the new text
BAD_WORDS = ["war", "the mat", "e.g", "javascript", "u.s", "naïve", "foo_bar", "c++", "größe"]

# Reasons of datatrove and of Folio.
REASONS = {
    "gopher_short_doc": "too_few_words", "gopher_long_doc": "too_many_words",
    "gopher_below_avg_threshold": "words_too_short", "gopher_above_avg_threshold": "words_too_long",
    "gopher_too_many_hashes": "too_many_hash_signs", "gopher_too_many_ellipsis": "too_many_ellipses",
    "gopher_too_many_bullets": "too_many_bullet_lines",
    "gopher_too_many_end_ellipsis": "too_many_lines_end_with_ellipsis",
    "gopher_below_alpha_threshold": "too_few_alphabetic_words", "gopher_enough_stop_words": "too_few_stop_words",
    "dup_para_frac": "duplicate_paragraphs", "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines", "dup_line_char_frac": "duplicate_line_characters",
    "line_punct_ratio": "too_few_lines_end_with_punctuation", "short_line_ratio": "too_many_short_lines",
    "char_dup_ratio": "duplicate_line_characters", "list_ratio": "too_many_line_feeds",
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
}  # fmt: skip


def make_class(bits: int) -> str:
    """Return the characters of a kind as a class of a regular expression."""
    is_member = [bool(find_kind(code_point) & bits) for code_point in range(0x110000)]
    edges = np.flatnonzero(np.diff(np.array([False, *is_member, False]).astype(np.int8))).reshape(-1, 2).tolist()
    return "".join(f"{re.escape(chr(first))}-{re.escape(chr(last - 1))}" for first, last in edges)


class FolioWords(WordTokenizer):
    """Folio's words and sentences by regular expressions, for datatrove."""

    def __init__(self) -> None:
        super().__init__("en")
        word, single, mark, space = (make_class(bits) for bits in (WORD, SINGLE, MARK, SPACE))
        more = rf"(?:[{word}]|(?<=[{word}])[.'’](?=[{word}]))*"
        self._word = re.compile(rf"[{word}]{more}|[{single}](?:[{mark}]{more})?|([^{space}])\1*")
        self._begins_word = re.compile(f"[{word}{single}]")

    def word_tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return [match[0] for match in self._word.finditer(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return a span for each sentence. datatrove only counts them."""
        count, has_end = 1, False
        for word in self.word_tokenize(text):
            if self._begins_word.match(word):
                count, has_end = count + has_end, False
            elif find_kind(ord(word[0])) & TERMINAL and not word.startswith(".."):
                has_end = True
        return [(0, len(text))] * count

    def sent_tokenize(self, text: str) -> list[str]:
        """Not used by the filters."""
        raise NotImplementedError


def read_corpora(mirror: Path, rng: random.Random) -> Iterator[str]:
    """Yield documents of 200 to 20,000 characters, cut between paragraphs."""
    for path in sorted(mirror.rglob("*.txt")):
        separator = "\n" if "wikitext" in str(path) else "\n\n"
        paragraphs = path.read_text("utf-8", errors="replace").split(separator)
        begin, size, wanted = 0, 0, rng.choice((200, 1_000, 4_000, 20_000))
        for end, paragraph in enumerate(paragraphs, start=1):
            size += len(paragraph)
            if size >= wanted or end == len(paragraphs):
                yield separator.join(paragraphs[begin:end])
                begin, size, wanted = end, 0, rng.choice((200, 1_000, 4_000, 20_000))


def read_text_files(folder: Path) -> Iterator[str]:
    """Yield the sources, licences and descriptions of packages in a Python environment."""
    for path in sorted(folder.rglob("*")):
        is_text = path.suffix in {".py", ".md", ".rst", ".txt", ".html"} or path.name in {"METADATA", "LICENSE"}
        if is_text and path.is_file() and 0 < path.stat().st_size <= MAX_FILE_BYTES:
            yield path.read_text("utf-8", errors="replace")


def make_adversarial(rng: random.Random) -> list[str]:
    """Return documents at the limits of the rules."""
    prose = "The cat sat on the mat, and that was all it had to be. It is good to have one with a hat of wool. "
    parts = [
        "", " ", "\n", "\n\n\n", "word", "…", "...", "!?!?", "# # #", "中文" * 40, "日本語の文。" * 30, "กำลังทำ" * 30,
        "😀" * 60, "😀 🎉 " * 40, prose, prose * 30, "- item\n" * 30, "• item\n", "-\n" * 20, "and so on...\n" * 9,
        "and so on…\n", "a\r\nb\r\n" * 30, prose.replace(". ", ".\r\n") * 5, "line\n" * 50, "one two three " * 60,
        "x" * 1_000_000, "x " * 20_000, "a\u2028b\x85c\x0bd\n" * 20, "[1] [edit] [citation needed] [١] []",
        prose + "[1]", "Lorem ipsum dolor sit amet. ", "function() { return; }. ", "Enable JavaScript now.\n",
        "Our Privacy Policy applies here.\n", prose + "\n" + prose + "\n", "The end. \n", "\tindented text.  \n",
        "e.g. the U.S. has 3.5 of 10,000.\n", "Don't 'quote' \"this\"!\n", "___ --- === ***\n", "１２３ ％\n",
        "e\u0301a\u0300 co\u00ADop zero\u200bwidth\n", "\ufeffmark\n", "\x1c\x1d\x1e\x1f\n", "1 2 3 4 5 6 7 8 9\n",
        "the be to of and that have with ", "\U0001F1E9\U0001F1EA " * 9, "[" * 50, "[中[中", "a" * 1001 + " b c.\n",
        'He said "no."\n', "A full line of words that ends here.\n", "\n\n" + prose + "\n\n" + prose + "\n\n",
    ]  # fmt: skip
    mixed = ["".join(rng.choices(parts[:25] + parts[27:], k=rng.randint(1, 12))) for _ in range(1_500)]
    repeated = []
    for _ in range(500):
        words = rng.choices([*prose.split(), "river", "stone", "walks", "green", "night"], k=rng.randint(5, 40))
        repeated.append(" ".join(words[: rng.randint(3, len(words))] * rng.randint(1, 4) + rng.choices(words, k=60)))
    return parts + mixed + repeated


def judge(spec: str, texts: list[str]) -> Iterator[Verdict]:
    """Yield the verdict on each document."""
    judged = load_filter(spec)
    for batch in iter_batches(texts):
        verdict = judged.judge(batch, batch.column("text"))
        new_texts = (verdict.batch or batch).column("text").to_pylist()
        for reason, text in zip(verdict.reasons.tolist(), new_texts, strict=True):
            yield (None if reason < 0 else judged.reasons[reason]), text


def iter_batches(texts: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield batches of about BATCH_BYTES."""
    begin = size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text.encode())
        if size >= BATCH_BYTES or end == len(texts):
            yield make_batch({"text": texts[begin:end], "source": 0, "position": list(range(begin, end))}, end - begin)
            begin, size = end, 0


def judge_by_datatrove(filter_: Any, text: str) -> Verdict:
    """Return what `judge` yields, or as the reason the exception that the filter raises."""
    document = Document(text=text, id="")
    try:
        result = filter_.filter(document)
    except (ZeroDivisionError, ValueError) as e:
        return type(e).__name__, text
    is_kept, reason = result if isinstance(result, tuple) else (result, None)
    return (None if is_kept else REASONS.get(reason, reason)), document.text


def make_filters(**arguments: Any) -> dict[str, Any]:
    """Return datatrove's filters, by the spec of Folio's. `arguments`: of all of them."""
    return {
        "gopher_repetition": GopherRepetitionFilter(**arguments),
        "gopher_quality": GopherQualityFilter(**arguments),
        "c4": C4QualityFilter(**arguments),
        "c4:terminal_punctuation=false": C4QualityFilter(filter_no_terminal_punct=False, **arguments),
        "fineweb_quality": FineWebQualityFilter(**arguments),
    }


def compare(texts: list[str], words: str, filters: dict[str, Any], explanations: TextIO | None = None) -> None:
    """Print in how many documents each filter and datatrove's differ, and the first of them.

    With `explanations`, also print why, and write a line for each of them to this file.
    """
    # One text after the other, because datatrove remembers the words of a few texts.
    all_theirs = [[judge_by_datatrove(filter_, text) for filter_ in filters.values()] for text in texts]
    for spec, theirs in zip(filters, zip(*all_theirs, strict=True), strict=True):
        ours = list(judge(spec, texts))
        different = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if is_different(a, b)]
        verdicts = sum((ours[i][0] is None) != (theirs[i][0] is None) for i in different)
        num_dropped = sum(reason is not None for reason, _ in ours)
        print(
            f"{words:14} {spec:32} {len(texts):>8,} documents, {num_dropped:>6,} dropped, {len(different):>5,} "
            f"different ({len(different) / len(texts):.2%}), of these {verdicts:,} in whether they are kept"
        )
        if explanations is not None and different:
            explain(spec, [(texts[i], ours[i], theirs[i]) for i in different], explanations)
        pairs = Counter((ours[i][0], theirs[i][0]) for i in different)
        for (our_reason, their_reason), count in pairs.most_common(MAX_SHOWN):
            example = next(i for i in different if (ours[i][0], theirs[i][0]) == (our_reason, their_reason))
            print(f"{'':15}{count:,} times {our_reason} / {their_reason}, such as {texts[example][:60]!r}")


def explain(spec: str, differences: list[tuple[str, Verdict, Verdict]], explanations: TextIO) -> None:
    """Print why Folio and datatrove have other verdicts on documents: text, verdict of Folio, of datatrove."""
    words = FolioWords()
    default, with_folio_words = load_word_tokenizer("en"), make_filters(language=words)[spec]
    num_by_kind: Counter[str] = Counter()
    unexplained = 0
    for text, ours, theirs in differences:
        if spec.startswith("c4"):  # it counts the sentences of each line, and has no other use for words
            lines = [CITATION_REGEX.sub("", line.strip()) for line in text.splitlines()]
            counts = [[len(each.span_tokenize(line)) for line in lines] for each in (default, words)]
            kinds = Counter(sentences=sum(a != b for a, b in zip(*counts, strict=True)))
        else:
            kinds = count_kinds(default.word_tokenize(text), words.word_tokenize(text))
        agrees = not is_different(ours, judge_by_datatrove(with_folio_words, text))
        unexplained += not (agrees and kinds.total())
        num_by_kind.update(kinds.keys())
        row = {"filter": spec, "text": text[:200], "folio": ours[0], "datatrove": theirs[0]}
        explanations.write(json.dumps({**row, "agrees_with_words_of_folio": agrees, "kinds": kinds}) + "\n")
    print(
        f"{'':15}{len(differences) - unexplained} of {len(differences)} explained by words: documents by kind of "
        + ", ".join(f"{kind} {count}" for kind, count in num_by_kind.most_common())
    )


def compare_bad_words(texts: list[str], words: list[str], path: Path) -> None:
    """Print in how many documents the filter `bad_words` and datatrove's differ, with the same list of words."""
    path.write_text("\n".join(words), encoding="utf-8")
    filter_ = C4BadWordsFilter()
    # What datatrove makes of the list that it downloads.
    choices = "|".join(map(re.escape, words))
    filter_._badwords_regex["en"] = re.compile(rf"(?:\W|^)({choices})(?:\W|$)")
    theirs = [not is_kept(filter_, Document(text=text, id="")) for text in texts]
    ours = [reason is not None for reason, _ in judge(f"bad_words:file={path}", texts)]
    different = [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    print(
        f"{'':14} {'bad_words':32} {len(texts):>8,} documents, {sum(ours):>6,} dropped, {len(different):>5,} different"
        + "".join(f"\n{'':15}such as {text[:60]!r}" for text in different[:MAX_SHOWN])
    )


def recombine(mirror: Path, folder: Path, num_bytes: int) -> list[str]:
    """Return documents of 0.5 to 20 kB, about `num_bytes`: runs of paragraphs in random order.

    70 % of the documents have paragraphs of corpora, and the others also of texts in `folder`.
    """
    rng = random.Random(0)
    paragraphs = []
    for path in sorted(mirror.rglob("*.txt")):
        paragraphs += path.read_text("utf-8", errors="replace").split("\n" if "wikitext" in str(path) else "\n\n")
    num_in_corpora = len(paragraphs)
    for text in read_text_files(folder):
        paragraphs += text.split("\n\n")
    texts, size = [], 0
    while size < num_bytes:
        wanted, limit = 500 * 40 ** rng.random(), num_in_corpora if rng.random() < 0.7 else len(paragraphs)
        document: list[str] = []
        while sum(map(len, document)) < wanted:
            begin = rng.randrange(limit)
            document += filter(str.strip, paragraphs[begin : begin + rng.randint(1, 6)])
        texts.append("\n".join(document))
        size += len(texts[-1].encode())
    return texts


def read_timed(path: Path, num_bytes: int) -> list[str]:
    """Return the first documents of a JSON lines file with the key `text`, about `num_bytes` of text."""
    texts, size = [], 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size >= num_bytes:
                break
    return texts


def is_different(ours: Verdict, theirs: Verdict) -> bool:
    """Return whether the reasons differ, or the texts of documents that are kept."""
    return ours[0] != theirs[0] or (ours[0] is None and ours[1] != theirs[1])


def filter_all(texts: list[str], filters: list[str]) -> int:
    """Apply Folio's filters one after the other, and return how many documents are left."""
    count = 0
    for batch in iter_batches(texts):
        for spec in filters:
            verdict = load_filter(spec).judge(batch, batch.column("text"))
            batch = (verdict.batch or batch).filter(pa.array(verdict.reasons < 0))
        count += batch.num_rows
    return count


def filter_all_by_datatrove(texts: list[str], filters: list[Any]) -> int:
    """Apply datatrove's filters to one document after the other, and return how many are left."""
    count = 0
    for text in texts:
        document = Document(text=text, id="")
        count += all(is_kept(filter_, document) for filter_ in filters)
    return count


def is_kept(filter_: Any, document: Document) -> bool:
    """Return whether a filter keeps a document."""
    result = filter_.filter(document)
    return bool(result[0] if isinstance(result, tuple) else result)


def measure(texts: list[str], rounds: int, words: WordTokenizer) -> None:
    """Print the CPU time of the four filters of FineWeb's pipeline, with Folio, datatrove, Folio …"""
    specs = ["gopher_repetition", "gopher_quality", "c4:terminal_punctuation=false", "fineweb_quality"]
    default, with_folio_words = make_filters(), make_filters(language=words)
    jobs = {
        "Folio": lambda: filter_all(texts, specs),
        "datatrove": lambda: filter_all_by_datatrove(texts, [default[spec] for spec in specs]),
        "datatrove, words of Folio": lambda: filter_all_by_datatrove(texts, [with_folio_words[s] for s in specs]),
    }
    num_bytes = sum(len(text.encode()) for text in texts)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    kept = {}
    for _ in range(rounds):
        for name, job in jobs.items():
            begin = time.process_time()
            kept[name] = job()
            seconds[name].append(time.process_time() - begin)
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:28} {num_bytes / 1e6:,.1f} MB, {kept[name]:,} of {len(texts):,} documents kept, "
            f"{median:8.2f} s of CPU time (median of {rounds}), {num_bytes / 1e6 / median:7.2f} MB/s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", type=Path, default=os.environ.get("PREPROCESS_MIRROR"), required=False)
    parser.add_argument("--documents", type=int, default=6_000, help="real documents")
    parser.add_argument("--default-documents", type=int, default=1_000, help="real documents with datatrove's words")
    parser.add_argument("--timed", type=int, default=600, help="documents of the corpora that are timed")
    parser.add_argument("--timed-file", type=Path, help="JSON lines with the key text, timed instead of the corpora")
    parser.add_argument("--timed-mb", type=float, default=10, help="MB of text of --timed-file")
    parser.add_argument("--recombined-mb", type=float, help="time so many MB of paragraphs in random order")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--explain", type=Path, default=Path(os.devnull), help="write a line for each difference")
    parser.add_argument("--words", nargs="*", choices=("folio", "default"), default=["folio", "default"])
    arguments = parser.parse_args()
    rng = random.Random(0)
    corpora, files = list(read_corpora(arguments.mirror, rng)), list(read_text_files(Path(sys.prefix) / "lib"))
    rng.shuffle(corpora)
    files = rng.sample(files, min(max(arguments.documents - len(corpora), 0), len(files)))
    print(describe_machine())
    adversarial, words = make_adversarial(rng), FolioWords()
    with open(arguments.explain, "w", encoding="utf-8") as explanations:
        for name in arguments.words:
            is_folio = name == "folio"
            num_real = arguments.documents if is_folio else arguments.default_documents
            kinds = {"corpora": corpora[:num_real], "files": files[:num_real], "adversarial": adversarial}
            filters = make_filters(language=words) if is_folio else make_filters()
            for kind, texts in kinds.items():
                print(f"{kind} documents", flush=True)
                compare(texts, f"{name} words", filters, None if is_folio else explanations)
    with tempfile.TemporaryDirectory() as folder:
        compare_bad_words([*corpora, *files, *adversarial], BAD_WORDS, Path(folder) / "words.txt")
    if arguments.timed:
        timed = corpora[: arguments.timed]
        if arguments.timed_file:
            timed = read_timed(arguments.timed_file, int(arguments.timed_mb * 1e6))
        elif arguments.recombined_mb:
            timed = recombine(arguments.mirror, Path(sys.prefix) / "lib", int(arguments.recombined_mb * 1e6))
        measure(timed, arguments.rounds, words)


if __name__ == "__main__":
    main()
