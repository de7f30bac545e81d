"""Initial weights from a stand-in for the Hugging Face hub."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from preprocess.errors import FolioError, MisuseError
from tests.helpers.file_server import Fault
from tests.helpers.hub_server import LFS_BYTES, HubServer
from tests.helpers.runs import (
    VOCAB_SIZE,
    delete_checkpoints_after,
    invoke,
    list_steps,
    make_build,
    make_config,
    write_config,
)
from train.core.tensors import read_tensors
from train.model import get_architecture, make_model
from train.run.hub_models import download_model

ADDRESS = "hf:some/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Start a stand-in for the hub, and let huggingface_hub use it and an empty cache."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'folio-lm[hub]'")
    hub = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # The library reads the variable when it is imported, perhaps by a test that had set it.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    yield hub
    disconnect(hub)


def disconnect(hub: HubServer) -> None:
    """Stop the server, and close the connections to it that huggingface_hub keeps open."""
    hub.close()
    huggingface_hub = pytest.importorskip("huggingface_hub")
    huggingface_hub.close_session()


def make_files(seed: int = 1) -> dict[str, bytes]:
    """Return the files of a tiny model, and others that are not to be downloaded."""
    config = make_config()
    torch.manual_seed(seed)
    architecture = get_architecture(config.arch)
    tensors = {name: tensor.contiguous() for name, tensor in make_model(config, VOCAB_SIZE).state_dict().items()}
    exported = architecture.export_tensors({k: v[:VOCAB_SIZE] if k == "wte.weight" else v for k, v in tensors.items()})
    return {
        "config.json": json.dumps(architecture.export_config(config, VOCAB_SIZE)).encode(),
        "model.safetensors": save({name: tensor.contiguous() for name, tensor in exported.items()}),
        "pytorch_model.bin": b"a pickle" * 1_000,
        "onnx/model.safetensors": b"not of this folder" * 100,
        "modeling_x.py": b"raise SystemExit",
    }


def test_run_starts_with_a_model_of_the_hub_and_continues_without_it(hub: HubServer, tmp_path: Path) -> None:
    files = make_files()
    commit = hub.commit("some/model", files)
    config = write_config(tmp_path / "run.py", make_build(tmp_path / "tiny"), max_steps=4, checkpoint_interval=2)
    result = invoke("train.py", config, f"--init_from={ADDRESS}", "--learning_rate=1e-30", "--min_lr=0")
    assert result.returncode == 0, result.stderr
    assert commit in result.stderr and "its ids are assumed to be those of the tokenizer of tiny" in result.stderr
    trained = read_embedding(tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    torch.testing.assert_close(trained, read_embedding_of(files), atol=1e-6, rtol=0)
    downloaded = {path.name for path in (tmp_path / "hf").rglob("*") if path.suffix in (".bin", ".py", ".safetensors")}
    assert downloaded == {"model.safetensors"}
    assert not any("onnx" in request.path or ".bin" in request.path for request in hub.requests)
    # The run continues from its checkpoint, without the hub and without its cache.
    hub.requests.clear()
    (tmp_path / "hf").rename(tmp_path / "gone")
    delete_checkpoints_after(tmp_path / "run", 2)
    result = invoke("train.py", config, f"--init_from={ADDRESS}", "--learning_rate=1e-30", "--min_lr=0")
    assert (result.returncode, list_steps(tmp_path / "run"), hub.requests) == (0, [2, 4], [])


def read_embedding(path: Path) -> torch.Tensor:
    return dict(read_tensors(path))["wte.weight"][: VOCAB_SIZE - 2]


def read_embedding_of(files: dict[str, bytes]) -> torch.Tensor:
    return load(files["model.safetensors"])["transformer.wte.weight"][: VOCAB_SIZE - 2]


def test_revision_is_a_branch_or_a_commit(hub: HubServer) -> None:
    old = hub.commit("some/model", {"model.safetensors": b"old" * LFS_BYTES})
    hub.commit("some/model", {"model.safetensors": b"new" * LFS_BYTES})
    hub.commit("some/model", {"model.safetensors": b"other" * LFS_BYTES}, branch="refs/pr/1")
    found = {revision: (download_model(ADDRESS + revision) / "model.safetensors").read_bytes()[:3]
             for revision in ("", "@main", f"@{old}", "@refs/pr/1")}  # fmt: skip
    assert list(found.values()) == [b"new", b"new", b"old", b"oth"]


def test_cache_is_used_without_the_network(hub: HubServer) -> None:
    hub.commit("some/model", make_files())
    folder = download_model(ADDRESS)
    disconnect(hub)
    assert download_model(ADDRESS) == folder


def fails(address: str = ADDRESS) -> str:
    with pytest.raises(FolioError) as caught:
        download_model(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_model_that_cannot_be_read_is_one_line(hub: HubServer) -> None:
    assert fails().startswith("the hub has no model some/model, or it is private; check the name, or set HF_TOKEN")
    hub.commit("some/model", make_files(), token="secret")
    assert "the hub has no model some/model, or it is private" in fails()
    hub.commit("some/open", make_files())
    assert "the model some/open of the hub has no revision nowhere; name a branch" in fails("hf:some/open@nowhere")
    hub.commit("some/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert "hf:some/pickle has no model*.safetensors, the only weights that are downloaded" in fails("hf:some/pickle")


def test_hub_that_cannot_be_reached_is_one_line(hub: HubServer) -> None:
    disconnect(hub)
    assert fails().startswith("the hub cannot be reached (ConnectError), and its cache does not have all")


def test_broken_answer_is_one_line(hub: HubServer) -> None:
    hub.commit("some/model", make_files())
    hub.faults += [Fault(status=418)] * 20
    assert fails().startswith("the hub answered 418, and its cache does not have all files of the model some/model; ")


@pytest.mark.parametrize("address", ["hf:", "hf:gpt2", "hf:a/b/c", "hf:a/b@", "hf:../x", "hf:a/b@\n", "hf://a/b"])
def test_address_must_have_an_owner_and_a_name(address: str) -> None:
    with pytest.raises(MisuseError, match="expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION, for example hf:openai"):
        download_model(address)


def test_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def fail(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    assert fails() == (
        "init_from=hf:some/model needs huggingface_hub, which is not installed; pip install 'folio-lm[hub]'"
    )
