"""Folio against its peers: Parquet in, tokens out, from the start of the process to its end.

First, on a part of each text, that all of them make the same tokens: with cleaning, deduplication and control tokens off, every
document of Folio's build must equal tiktoken's ids and an end of text, and the peers' documents must be those same ones. Then times,
with Folio's default settings: cleaning, deduplication, split, hashes and all.

    python bench/whole_job.py long.parquet short.parquet --peers gigatoken,datatrove,nanogpt --mb 80 --repeat 3
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Iterable

import numpy as np

from bench.baselines.jobs import PEERS, datatrove, gigatoken, job, nanogpt
from bench.lib.forms import Forms, documents_of, make_forms, read_datatrove, read_folio, read_gigatoken, read_nanogpt
from bench.lib.measure import (
    NAME,
    absolute,
    add_options,
    alternate,
    folio,
    fresh_folder,
    inputs,
    print_machine,
    print_runs,
    run_job,
    warm,
)
from bench.lib.vocabulary import Vocabulary, default_cache, write_vocabulary

NEUTRAL = ("--tokenizer", "gpt2", "--clean", "none", "--no-dedup", "--no-authors", "--workers", "2")


def reference(texts: list[str]) -> tuple[list[np.ndarray], int]:
    """tiktoken's ids of each text and an end of text behind them; the end of text's id."""
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    return [
        np.array([*encoding.encode_ordinary(text), encoding.eot_token], np.uint16) for text in texts
    ], encoding.eot_token


def check(name: str, found: Iterable[np.ndarray], wanted: Iterable[np.ndarray], *, ordered: bool = True) -> None:
    """Exits where the documents differ; not `ordered`: as a multiset."""
    sides = [[tokens.astype("<u2").tobytes() for tokens in side] for side in (found, wanted)]
    if not ordered:
        sides = [sorted(side) for side in sides]
    if len(sides[0]) != len(sides[1]):
        sys.exit(f"{name}: {len(sides[0]):,} documents, wanted {len(sides[1]):,}")
    if different := sum(a != b for a, b in zip(*sides, strict=True)):
        sys.exit(f"{name}: {different:,} of {len(sides[0]):,} documents have other tokens")
    num_tokens = sum(map(len, sides[0])) // 2
    order = "in order" if ordered else "in any order"
    print(f"same tokens: {name}, {len(sides[0]):,} documents, {num_tokens:,} tokens, {order}", flush=True)


def prove(peers: list[str], forms: Forms, vocabulary: Vocabulary, arguments: argparse.Namespace) -> None:
    """That Folio and the peers make the same tokens of `forms`."""
    scratch = arguments.scratch
    wanted, eot = reference(documents_of(forms.parquet))
    build = folio(arguments.folio_python, *inputs([forms.parquet]), *NEUTRAL)
    check("Folio = tiktoken", run_job(build, scratch, lambda folder: read_folio(folder / NAME)).found.values(), wanted)
    if "nanogpt" in peers:
        found = run_job(nanogpt(forms), scratch, lambda folder: read_nanogpt(folder, eot)).found
        check("nanogpt = Folio", found, wanted, ordered=False)
    if "datatrove" in peers:
        found = run_job(datatrove(forms, vocabulary), scratch, read_datatrove).found
        check("datatrove = Folio", found, wanted, ordered=False)
    if "gigatoken-parquet" in peers:
        found = run_job(
            gigatoken([forms.parquet], vocabulary, output="ids.npz"), scratch, lambda f: read_gigatoken(f / "ids.npz")
        ).found
        check("gigatoken-parquet = Folio", (np.append(ids, eot) for ids in found), wanted)
    if "gigatoken" in peers:
        prove_gigatoken(forms, vocabulary, arguments, eot)


def prove_gigatoken(forms: Forms, vocabulary: Vocabulary, arguments: argparse.Namespace, eot: int) -> None:
    """On text files, each of which is one document to gigatoken: Folio builds from the same files."""
    files = list(forms.text_halves)
    found = run_job(
        gigatoken(files, vocabulary, output="ids.npz"), arguments.scratch, lambda f: read_gigatoken(f / "ids.npz")
    ).found
    build = folio(arguments.folio_python, *inputs(files), *NEUTRAL, "--document", "file", "--val-fraction", "0.5")
    wanted = run_job(build, arguments.scratch, lambda folder: read_folio(folder / NAME)).found.values()
    check("gigatoken = Folio, from text files", (np.append(ids, eot) for ids in found), wanted)


def compare(peers: list[str], forms: Forms, vocabulary: Vocabulary, arguments: argparse.Namespace) -> None:
    """Times, interleaved."""
    build = folio(
        arguments.folio_python, *inputs([forms.parquet]), "--tokenizer", "gpt2", "--workers", str(arguments.workers)
    )
    warm(forms.files)
    jobs = {"folio": build, **{name: job(name, forms, vocabulary) for name in peers}}
    print(
        f"\n{forms.num_documents:,} documents, {forms.num_bytes:,} bytes of text, {forms.parquet.stat().st_size:,} of Parquet\n"
    )
    print_runs(alternate(jobs, arguments.repeat, arguments.scratch), against="folio")


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no peer is called {unknown[0]!r}, wanted some of {', '.join(PEERS)}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+", help="Parquet files with a column `text`")
    parser.add_argument("--peers", type=names, default=list(PEERS), help=f"of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--mb", type=float, help="take the first so many MB of each text (default: all)")
    parser.add_argument("--proof-mb", type=float, default=5, help="MB to compare tokens on; 0: none (default: 5)")
    parser.add_argument("--workers", type=int, default=2, help="Folio's (default: 2)")
    parser.add_argument(
        "--vocabulary", type=absolute, default=default_cache(), help="tiktoken's cache folder, GPT-2's files in it"
    )
    add_options(parser, repeat=3)
    arguments = parser.parse_args()
    print_machine(arguments.folio_python)
    for text in arguments.texts:
        print(f"\n## {text.name}\n", flush=True)
        with fresh_folder(arguments.scratch) as folder:
            vocabulary = write_vocabulary(arguments.vocabulary, folder / "vocabulary")
            if arguments.proof_mb:
                prove(
                    arguments.peers,
                    make_forms(text, folder / "proof", max_bytes=round(arguments.proof_mb * 1e6)),
                    vocabulary,
                    arguments,
                )
            if arguments.repeat:
                max_bytes = None if arguments.mb is None else round(arguments.mb * 1e6)
                compare(arguments.peers, make_forms(text, folder / "text", max_bytes=max_bytes), vocabulary, arguments)


if __name__ == "__main__":
    main()
