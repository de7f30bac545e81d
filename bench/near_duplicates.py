"""Measure what finding nearly equal documents adds to a build, beside datasketch.

The text has 200,000 random documents of 60 to 240 words; every fifth has a copy in which 1 to 15 %
of the words are replaced. A build with `--near-dedup group` is compared with one without, and with
datasketch's MinHashLSH on the first tenth of the text, on one core.

    python bench/near_duplicates.py
    python bench/near_duplicates.py --documents 2000 --cases off group drop
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import random

from bench.lib.cases import measure_cases
from bench.lib.folio_build import build_job, input_options
from bench.lib.measure import Job
from bench.lib.options import add_case_options, add_run_options, add_texts_folder_option, parse_positive
from bench.lib.texts import make_text_folder, write_if_missing

CASES = {"off": (), "group": ("--near-dedup", "group"), "drop": ("--near-dedup", "drop"), "datasketch": ()}
EDITED_FRACTIONS = (0.01, 0.02, 0.03, 0.05, 0.15)
DATASKETCH_SHARE = 10  # it reads one in so many documents

# datasketch with the same parameters: five words, 14 bands of 8 values. Prints the documents, the seconds, and the
# pairs that have a band in common.
DATASKETCH = """
import json, sys, time
from datasketch import MinHash, MinHashLSH
begin = time.perf_counter()
index, pairs, count = MinHashLSH(num_perm=112, params=(14, 8)), 0, int(sys.argv[2])
with open(sys.argv[1]) as file:
    for number, line in zip(range(count), file):
        words = json.loads(line)["text"].split()
        shingles = {" ".join(words[i : i + 5]).encode() for i in range(max(len(words) - 4, 1))}
        signature = MinHash(num_perm=112)
        signature.update_batch(list(shingles))
        pairs += len(index.query(signature))
        index.insert(number, signature, check_duplication=False)
print(count, round(time.perf_counter() - begin, 2), pairs)
"""


def write_documents(path: Path, count: int) -> None:
    """Write `count` random documents, and a copy of every fifth with other words, in random order."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    texts = []
    for number in range(count):
        document = rng.choices(words, k=rng.randint(60, 240))
        texts.append(" ".join(document))
        if number % 5 == 0:
            for _ in range(max(1, int(len(document) * rng.choice(EDITED_FRACTIONS)))):
                document[rng.randrange(len(document))] = rng.choice(words)
            texts.append(" ".join(document))
    rng.shuffle(texts)
    with open(path, "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def make_job(case: str, arguments: argparse.Namespace) -> Job:
    """Write the text if it is missing, and return the job of a case."""
    path = make_text_folder(arguments) / f"near-duplicates-{arguments.documents}.jsonl"
    write_if_missing(path, lambda partial: write_documents(partial, arguments.documents))
    if case == "datasketch":
        count = str(max(arguments.documents // DATASKETCH_SHARE, 1))
        return lambda _: [str(arguments.datasketch_python), "-c", DATASKETCH, str(path), count]
    options = ("--tokenizer", "gpt2", "--workers", str(arguments.workers), *CASES[case])
    return build_job(arguments.folio_python, *input_options([path]), *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_options(parser, CASES)
    parser.add_argument(
        "--documents", type=parse_positive, default=200_000, help="without the copies (default: 200000)"
    )
    parser.add_argument("--datasketch-python", type=Path, default=Path(sys.executable), help="a Python with datasketch")
    add_texts_folder_option(parser)
    add_run_options(parser, repeat=3)
    measure_cases(make_job, parser.parse_args())


if __name__ == "__main__":
    main()
