"""Copy a build to a dataset of the Hugging Face hub: hf://datasets/OWNER/NAME[@BRANCH][/PATH].

huggingface_hub uploads the files, several at once. Files that an interrupted push has uploaded are
not sent again, because the hub knows them by their SHA-256. One commit makes all of them visible,
so a reader finds the whole build or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preprocess.build.publish import BUILD_FILE
from preprocess.errors import FolioError, MisuseError, first_line, format_quantity, shorten
from preprocess.inputs.remote.addresses import show_url
from preprocess.inputs.remote.fetch import several_at_once
from preprocess.inputs.remote.hub import HubAddress, HubService, explain_hub_errors, parse_hub_url
from preprocess.inputs.remote.remote_file import RemoteFile, TransferBroken
from preprocess.progress import Progress
from preprocess.shards.format import Build
from preprocess.shards.manifest_file import MANIFEST, ShardError, check_manifest
from preprocess.sharing.build_files import BuildFile, list_build_files
from preprocess.sharing.checked_file import has_file


def push_to_hub(build: Build, manifest_data: bytes, url: str, *, replace: bool, progress: Progress) -> bool:
    """Copy a build to the folder of a dataset, and return whether anything had to be copied.

    A dataset that does not exist is made, as a private one. Errors are as for `push`.
    """
    address = parse_hub_url(url)
    if address.is_pinned:
        raise MisuseError(f"{show_url(url)} names a commit, which cannot be changed; name a branch")
    service = HubService()
    with several_at_once(lambda num_bytes: None) as (transfers, _):
        transfers.try_again(lambda: _make_dataset(service, address), shown=show_url(url))
        found = transfers.try_again(lambda: service.list_folder(url), shown=show_url(url))
        there = transfers.try_again(lambda: _read_manifest(service, found), shown=show_url(url))
    files = list_build_files(build.manifest, str(build.folder / MANIFEST))
    if there is not None and not replace:
        _check_same_build(build, there, found, url)
        return False
    with progress.phase("check the files"):
        for file in files:
            if not has_file(build.folder, file):
                raise ShardError(
                    f"{build.folder / file.name} does not have the size and sha256 in its manifest; copy the build "
                    "again or rebuild it"
                )
    operations = _list_operations(address, build, files, manifest_data, found)
    progress.log(f"copying {format_quantity(len(operations), 'file')} to {show_url(url)}")
    with progress.phase("push"), several_at_once(lambda num_bytes: None) as (transfers, _):
        transfers.try_again(lambda: _commit(service, address, build, operations), shown=show_url(url))
    return True


def _make_dataset(service: HubService, address: HubAddress) -> None:
    with _explain_rejection(address, service.endpoint):
        _make_api(service).create_repo(address.repo, repo_type="dataset", private=True, exist_ok=True)


def _make_api(service: HubService) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=service.endpoint)


def _read_manifest(service: HubService, found: dict[str, RemoteFile]) -> bytes | None:
    """Return the content of the manifest in the folder, None if it has none."""
    if MANIFEST not in found:
        return None
    with service.open(found[MANIFEST], 0) as body:
        data = bytearray()
        for chunk in body.chunks:
            data += chunk
        return bytes(data)


def _check_same_build(build: Build, manifest_data: bytes, found: dict[str, RemoteFile], url: str) -> None:
    """Raise MisuseError if the folder has another build, ShardError if it is not whole."""
    shown = show_url(url)
    there = check_manifest(manifest_data, f"{MANIFEST} of {shown}", advice="pass --replace to replace it")
    if there.build_id != build.build_id:
        raise MisuseError(
            f"{shown} holds another build ({there.build_id[:12]}, not {build.build_id[:12]}); pass --replace, or "
            "choose another folder"
        )
    for file in list_build_files(there, shown):
        entry = found.get(file.name)
        is_wrong = entry is None or (entry.digest.startswith("sha256:") and entry.digest != f"sha256:{file.sha256}")
        if is_wrong:
            raise ShardError(f"{shorten(file.name)} of {shown} is missing or changed; pass --replace to push it again")


def _list_operations(
    address: HubAddress, build: Build, files: list[BuildFile], manifest_data: bytes, found: dict[str, RemoteFile]
) -> list[Any]:
    """Return the operations of a commit that adds the missing files, and deletes those of another build."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    start = f"{address.path.rstrip('/')}/" if address.path.rstrip("/") else ""
    operations: list[Any] = [CommitOperationAdd(f"{start}{MANIFEST}", manifest_data)]
    for file in files:
        if file.name not in found or found[file.name].digest != f"sha256:{file.sha256}":
            operations.append(CommitOperationAdd(f"{start}{file.name}", build.folder / file.name))
    stale = found.keys() - {MANIFEST, *(file.name for file in files)}
    return operations + [
        CommitOperationDelete(f"{start}{name}")
        for name in sorted(stale)
        if BUILD_FILE.fullmatch(name.partition("/")[0])
    ]


def _commit(service: HubService, address: HubAddress, build: Build, operations: list[Any]) -> None:
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        with _explain_rejection(address, service.endpoint):
            _make_api(service).create_commit(
                address.repo, operations, commit_message=f"Build {build.name} ({build.build_id[:12]})",
                repo_type="dataset", revision=address.revision,
            )  # fmt: skip
    finally:
        enable_progress_bars()


@contextmanager
def _explain_rejection(address: HubAddress, endpoint: str) -> Iterator[None]:
    """Raise the errors of writing to the hub."""
    from huggingface_hub import errors

    try:
        with explain_hub_errors(address, endpoint):
            yield
    except FolioError as e:
        status = getattr(getattr(e.__cause__, "response", None), "status_code", 0)
        if isinstance(e.__cause__, errors.HfHubHTTPError) and status in (401, 403):
            raise FolioError(
                f"the hub does not let this account write to {shorten(address.repo)}; set HF_TOKEN to a token with "
                "write access"
            ) from e
        raise
    except RuntimeError as e:  # of the upload of one file
        raise TransferBroken(f"{first_line(e)} ({type(e.__cause__ or e).__name__})") from e
