"""Models of the Hugging Face hub as initial weights: `--init_from=hf:OWNER/NAME[@REVISION]`.

huggingface_hub downloads the files to its cache, and reads HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and
HF_HOME. Only safetensors and JSON files are downloaded, so no file can run code when it is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocess.errors import FolioError, MisuseError
from train.run.huggingface_folder import CONFIG_FILE, INDEX_FILE, TOKENIZER_FILE

PREFIX = "hf:"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
ADDRESS = re.compile(rf"hf:({NAME}/{NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/+-]{{0,199}}))?")
WEIGHTS = "model*.safetensors"
EXAMPLE = "hf:openai-community/gpt2"


def is_hub_address(text: str) -> bool:
    """Return whether a value of `init_from` names a model of the hub, not a path."""
    return text.startswith(PREFIX)


def download_model(address: str) -> Path:
    """Return a folder with the weights, the config.json and the tokenizer.json of a model of the hub.

    Files that are in the cache are not downloaded again. Without a network, the cached files of the
    revision are used. Raises MisuseError if the address is malformed or names a model without
    safetensors weights, and FolioError if the model cannot be downloaded.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise MisuseError(
            f"init_from is {address!r:.80}, expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, for example {EXAMPLE}"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise MisuseError(
            f"init_from={address} needs huggingface_hub, which is not installed; pip install 'folio-lm[hub]'"
        ) from e
    patterns = [CONFIG_FILE, WEIGHTS, INDEX_FILE, TOKENIZER_FILE]
    repo, revision = match[1], match[2]
    with _explain_errors(repo, revision):
        endpoint = os.environ.get("HF_ENDPOINT") or None
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, endpoint=endpoint))
    if not any(folder.glob(WEIGHTS)):
        raise MisuseError(
            f"init_from={address} has no {WEIGHTS}, the only weights that are downloaded, because a pickle can run "
            "code; name another model, or a revision that has them, such as @refs/pr/1"
        )
    return folder


@contextmanager
def _explain_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Raise the errors of huggingface_hub in one line. Their own messages have several."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as e:
        raise FolioError(
            f"the model {repo} of the hub is gated; accept its conditions on its page, and set HF_TOKEN to a token "
            "of that account"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise FolioError(
            f"the hub has no model {repo}, or it is private; check the name, or set HF_TOKEN to a token that may read "
            "it"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise FolioError(
            f"the model {repo} of the hub has no revision {revision}; name a branch, a tag or a commit"
        ) from e
    except errors.LocalEntryNotFoundError as e:
        raise FolioError(
            f"{_describe(e.__cause__ or e)}, and its cache does not have all files of the model {repo}; go online and "
            "run the same command again, or name a folder"
        ) from e
    except Exception as e:
        # The library of the requests differs by version of huggingface_hub, so its errors are known by name.
        if not {"HTTPError", "ConnectionError", "TimeoutError", "RequestError"} & {c.__name__ for c in type(e).__mro__}:
            raise
        raise FolioError(f"{_describe(e)} for the model {repo}; run the same command again") from e


def _describe(error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"the hub cannot be reached ({type(error).__name__})" if status is None else f"the hub answered {status}"
