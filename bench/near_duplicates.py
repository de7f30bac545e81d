"""Measure what finding nearly equal documents adds to a build, beside datasketch and datatrove.

The text has 200,000 random documents of 60 to 240 words; every fifth has a copy in which 1 to 15 %
of the words are replaced. A build with `--near-dedup group` is compared with one without, with
datasketch's MinHashLSH on the first tenth of the text (one in --share), and with datatrove's three steps (signatures,
buckets and clusters) on the same part, each on one core. The case `part` is a build of this part with one worker.
Neither library compares the documents, nor writes the text that is left.

    python bench/near_duplicates.py
    python bench/near_duplicates.py --documents 335000 --share 1 --cases part datatrove --repeat 0   # 331 MB
    python bench/near_duplicates.py --documents 2000 --cases off group drop
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import itertools
import json
import random

from bench.lib.cases import measure_cases
from bench.lib.folio_build import build_job, input_options
from bench.lib.measure import Job
from bench.lib.options import add_case_options, add_run_options, add_texts_folder_option, parse_positive
from bench.lib.texts import make_text_folder, write_if_missing

CASES = {
    "off": (),
    "group": ("--near-dedup", "group"),
    "drop": ("--near-dedup", "drop"),
    "part": ("--near-dedup", "drop"),
    "datasketch": (),
    "datatrove": (),
}
EDITED_FRACTIONS = (0.01, 0.02, 0.03, 0.05, 0.15)

# datasketch with the same parameters: five words, 20 bands of 5 values. Prints the documents, the seconds, and the
# pairs that have a band in common.
DATASKETCH = """
import json, sys, time
from datasketch import MinHash, MinHashLSH
begin = time.perf_counter()
index, pairs, count = MinHashLSH(num_perm=100, params=(20, 5)), 0, int(sys.argv[2])
with open(sys.argv[1]) as file:
    for number, line in zip(range(count), file):
        words = json.loads(line)["text"].split()
        shingles = {" ".join(words[i : i + 5]).encode() for i in range(max(len(words) - 4, 1))}
        signature = MinHash(num_perm=100)
        signature.update_batch(list(shingles))
        pairs += len(index.query(signature))
        index.insert(number, signature, check_duplication=False)
print(count, round(time.perf_counter() - begin, 2), pairs)
"""

# datatrove with the same parameters, as one task. Prints the seconds of the three steps and the
# number of documents that are to be removed.
DATATROVE = """
import json, os, sys, tempfile, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
path, scratch, seconds = sys.argv[1], tempfile.mkdtemp(dir=sys.argv[2]), []
config = MinhashConfig(n_grams=5, num_buckets=20, hashes_per_bucket=5)
reader = JsonlReader(os.path.dirname(path), glob_pattern=os.path.basename(path), id_key="id")
steps = [
    ([reader, MinhashDedupSignature(f"{scratch}/signatures", config)], 1),
    ([MinhashDedupBuckets(f"{scratch}/signatures", f"{scratch}/buckets", config=config)], 20),
    ([MinhashDedupCluster(f"{scratch}/buckets", f"{scratch}/removed", config=config)], 1),
]
for number, (pipeline, tasks) in enumerate(steps):
    begin = time.perf_counter()
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=f"{scratch}/logs-{number}").run()
    seconds.append(round(time.perf_counter() - begin, 2))
num_removed = sum(entry.stat().st_size // 4 for entry in os.scandir(f"{scratch}/removed"))
print(seconds, num_removed)
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


def write_first(path: Path, count: int, partial: Path) -> None:
    """Write the first `count` lines of `path` to `partial`."""
    with open(path) as file, open(partial, "w") as first:
        first.writelines(itertools.islice(file, count))


def make_job(case: str, arguments: argparse.Namespace) -> Job:
    """Write the text if it is missing, and return the job of a case."""
    folder = make_text_folder(arguments)
    path = folder / f"near-duplicates-{arguments.documents}.jsonl"
    write_if_missing(path, lambda partial: write_documents(partial, arguments.documents))
    count = max(arguments.documents // arguments.share, 1)
    workers = arguments.workers
    if case in ("datasketch", "datatrove", "part"):
        workers, whole = 1, path
        path = folder / f"near-duplicates-{arguments.documents}-first-{count}.jsonl"
        write_if_missing(path, lambda partial: write_first(whole, count, partial))
    if case == "datasketch":
        return lambda _: [str(arguments.datasketch_python), "-c", DATASKETCH, str(path), str(count)]
    if case == "datatrove":
        return lambda scratch: [str(arguments.datatrove_python), "-c", DATATROVE, str(path), str(scratch)]
    options = ("--tokenizer", "gpt2", "--workers", str(workers), *CASES[case])
    return build_job(arguments.folio_python, *input_options([path]), *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_options(parser, CASES)
    parser.add_argument(
        "--documents", type=parse_positive, default=200_000, help="without the copies (default: 200000)"
    )
    parser.add_argument(
        "--share", type=parse_positive, default=10, help="the libraries read one in so many documents (default: 10)"
    )
    parser.add_argument("--datasketch-python", type=Path, default=Path(sys.executable), help="a Python with datasketch")
    parser.add_argument("--datatrove-python", type=Path, default=Path(sys.executable), help="a Python with datatrove")
    add_texts_folder_option(parser)
    add_run_options(parser, repeat=3)
    measure_cases(make_job, parser.parse_args())


if __name__ == "__main__":
    main()
