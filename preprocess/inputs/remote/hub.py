"""Datasets of the Hugging Face hub: hf://datasets/OWNER/NAME[@REVISION][/PATH].

huggingface_hub resolves the revision to a commit and lists the files with their digests. The files
themselves are copied by transfer.py, because `hf_hub_download` of huggingface_hub 2.4 begins a file
again after the process was killed, and compares sizes but not digests. A file that other programs
have put into the cache of huggingface_hub is read from there.

The library reads HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HOME.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.inputs.remote.addresses import show_url
from preprocess.inputs.remote.http import read_body, request
from preprocess.inputs.remote.hub_selection import select_files
from preprocess.inputs.remote.remote_file import AccessDenied, Body, RemoteFile, TransferBroken, Unreachable, make_key

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
ADDRESS = re.compile(
    rf"hf://(?:datasets/)?({NAME}/{NAME})(?:@(refs/convert/[^/]+|refs/pr/\d+|[^/]+))?(?:/(.*))?", re.DOTALL
)
OTHER_KINDS = ("models/", "spaces/", "buckets/", "kernels/")
COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT_ENDPOINT = "https://huggingface.co"
FALSE_VALUES = ("", "0", "OFF", "NO", "FALSE")


@dataclass(frozen=True)
class HubAddress:
    """What an hf:// URL names."""

    repo: str  # owner/name
    revision: str | None  # a branch, a tag, a commit, or None for the main branch
    path: str

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, so that the address always means the same files."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None


def parse_hub_url(url: str) -> HubAddress:
    """Return what an hf:// URL names. Raises MisuseError if it is not that of a dataset."""
    match = ADDRESS.fullmatch(url)
    if match is None or url.removeprefix("hf://").startswith(OTHER_KINDS) or match[1].startswith("datasets/"):
        raise MisuseError(
            f"{show_url(url)} is not the address of a dataset; expected hf://datasets/OWNER/NAME[@REVISION][/PATH]"
        )
    return HubAddress(match[1], unquote(match[2]) if match[2] else None, match[3] or "")


def name_hub_file(repo: str, path: str) -> str:
    """Return the name of a file of a dataset. The revision is not a part of it."""
    return f"hf/datasets/{repo}/{path}"


class HubService:
    """The hub at HF_ENDPOINT."""

    def __init__(self) -> None:
        try:
            import huggingface_hub  # noqa: F401
        except ImportError as e:
            raise MisuseError("hf:// needs huggingface_hub; install it with pip install 'folio-lm[hub]'") from e
        self.endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")

    def list_files(self, url: str, recipe_format: str) -> tuple[list[RemoteFile], list[str]]:
        """Return the files of a dataset that `url` means, at the commit that its revision is now, and skipped ones."""
        address = parse_hub_url(url)
        commit, found, card = self._list_tree(url, address)
        try:
            selected, skipped = select_files(found, address.path, recipe_format, card)
        except MisuseError as e:
            raise MisuseError(f"{show_url(url)}: {e}") from e
        if not selected:
            raise FolioError(_explain_no_file(url, address, list(found)))
        return [self._make_file(address.repo, commit, found[path]) for path in selected], skipped

    def list_folder(self, url: str) -> dict[str, RemoteFile]:
        """Return all files in the folder of a dataset that `url` means, by their path in the folder."""
        address = parse_hub_url(url)
        commit, found, _ = self._list_tree(url, address)
        start = f"{address.path.rstrip('/')}/" if address.path.rstrip("/") else ""
        return {
            path.removeprefix(start): self._make_file(address.repo, commit, entry)
            for path, entry in found.items()
            if path.startswith(start)
        }

    def _list_tree(self, url: str, address: HubAddress) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
        """Return the commit that the revision is now, its files, and the metadata in the dataset's card."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
        if offline.upper() not in FALSE_VALUES:
            raise Unreachable(f"{show_url(url)}: HF_HUB_OFFLINE is set; unset it, because the cache has not all files")
        with explain_hub_errors(address, self.endpoint):
            api = HfApi(endpoint=self.endpoint)
            info = api.dataset_info(address.repo, revision=address.revision)
            tree = api.list_repo_tree(address.repo, recursive=True, revision=info.sha, repo_type="dataset")
            found = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
            return str(info.sha), found, info.card_data.to_dict() if info.card_data else None

    def _make_file(self, repo: str, commit: str, entry: Any) -> RemoteFile:
        from huggingface_hub import hf_hub_url

        digest = f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"
        url = hf_hub_url(repo, entry.path, repo_type="dataset", revision=commit, endpoint=self.endpoint)
        # The key is that of the content, so a new commit that leaves a file as it was copies nothing.
        return RemoteFile(
            name=name_hub_file(repo, entry.path), key=make_key(f"hf://datasets/{repo}/{entry.path}", digest),
            size_bytes=entry.size, version=commit, origin=f"hf://datasets/{repo}/{entry.path}", digest=digest, url=url,
        )  # fmt: skip

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Body]:
        """Open a file at byte `start`. The token is not sent to the servers that the hub redirects to."""
        from huggingface_hub.utils import build_hf_headers

        repo, _ = _split_name(file.name)
        try:
            last = None if stop is None else stop - 1
            with request(file.url, start, stop=last, headers=build_hf_headers()) as response:
                yield read_body(response, start, file)
        except AccessDenied as e:
            raise FolioError(_explain_gate(repo, self.endpoint)) from e


def find_in_hub_cache(file: RemoteFile) -> Path | None:
    """Return the path of a file of the hub that another program has copied with huggingface_hub."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    repo, path = _split_name(file.name)
    found = try_to_load_from_cache(repo, path, revision=file.version, repo_type="dataset")
    return Path(found) if isinstance(found, str) and os.path.getsize(found) == file.size_bytes else None


def _split_name(name: str) -> tuple[str, str]:
    owner, repo, path = name.removeprefix("hf/datasets/").split("/", 2)
    return f"{owner}/{repo}", path


@contextmanager
def explain_hub_errors(address: HubAddress, endpoint: str) -> Iterator[None]:
    """Raise the errors of huggingface_hub as those of a service. Their own messages contain URLs and request ids."""
    from huggingface_hub import errors

    repo = address.repo
    try:
        yield
    except errors.GatedRepoError as e:
        raise FolioError(_explain_gate(repo, endpoint)) from e
    except errors.RepositoryNotFoundError as e:
        raise FolioError(
            f"the hub has no dataset {shorten(repo)}, or it is private; check the name, or set HF_TOKEN to a token "
            "that may read it"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise FolioError(
            f"the dataset {shorten(repo)} has no revision {shorten(str(address.revision))}; name a branch, a tag or a "
            "commit"
        ) from e
    except errors.HfHubHTTPError as e:
        status = getattr(e.response, "status_code", 0)
        reason = f"the hub answered {status} for the dataset {shorten(repo)}"
        if status in (401, 403):
            raise FolioError(_explain_gate(repo, endpoint)) from e
        if status == 429 or status >= 500:
            value = e.response.headers.get("Retry-After", "")
            raise TransferBroken(reason, float(value) if value.isdecimal() else None) from e
        raise FolioError(f"{reason}; check the address") from e
    except Exception as e:
        # The library of the requests differs by version of huggingface_hub, so its errors are known by name.
        if not {"HTTPError", "ConnectionError", "TimeoutError", "RequestError"} & {c.__name__ for c in type(e).__mro__}:
            raise
        raise Unreachable(f"the hub at {show_url(endpoint)} cannot be reached ({type(e).__name__}); go online") from e


def _explain_gate(repo: str, endpoint: str) -> str:
    found = "the token in HF_TOKEN may not read it" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    return (
        f"the dataset {shorten(repo)} is gated or private, and {found}; accept its conditions at "
        f"{show_url(endpoint)}/datasets/{repo}, and set HF_TOKEN to a token of that account"
    )


def _explain_no_file(url: str, address: HubAddress, paths: list[str]) -> str:
    if not address.path:
        return f"{show_url(url)} has no file of a known format; add a glob such as /**/*.txt to the address"
    folders = {path.rpartition("/")[0] for path in paths}
    close = difflib.get_close_matches(address.path, [*paths, *folders], n=1, cutoff=0.4)
    advice = f"did you mean {shorten(close[0])!r}?" if close else "check the path"
    return f"{show_url(url)} matches no file of the dataset; {advice}"
