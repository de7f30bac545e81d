"""Fixtures with object stores: fsspec's own in memory, S3 on moto's server, and an emulator of Google's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import requests

KEYS = {"AWS_ACCESS_KEY_ID": "key-secret", "AWS_SECRET_ACCESS_KEY": "very-secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Bucket:
    """A bucket, or a folder in memory, in which tests write objects."""

    def __init__(self, url: str, write: Callable[[str, bytes], Any], close: Callable[[], None]) -> None:
        self.url, self.write, self.close = url, write, close


@pytest.fixture
def memory() -> Iterator[Bucket]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield Bucket("memory://bucket", lambda name, data: system.pipe_file(f"/bucket/{name}", data), lambda: None)
    system.store.clear()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'folio-lm[s3]'")
    moto = pytest.importorskip("moto.server", reason="needs moto's server: pip install 'moto[s3]' flask flask-cors")
    import boto3

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(
        f"http://{host}:{port}/moto-api/reset", timeout=30
    ).raise_for_status()  # what other tests have written
    is_running = True

    def close() -> None:
        nonlocal is_running
        if is_running:
            server.stop()
        is_running = False

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="bucket")
    yield Bucket(
        "s3://bucket",
        lambda name, data: client.put_object(Bucket="bucket", Key=name, Body=data, ACL="public-read"),
        close,
    )
    close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    gcsfs = pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'folio-lm[gs]'")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    gcsfs.GCSFileSystem.clear_instance_cache()

    def write(name: str, data: bytes) -> None:
        address = f"{url}/upload/storage/v1/b/bucket/o"
        requests.post(address, params={"uploadType": "media", "name": name}, data=data, timeout=30).raise_for_status()

    yield Bucket("gs://bucket", write, server.stop)
    server.stop()
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture(params=["memory", *(pytest.param(name, marks=pytest.mark.slow) for name in ("s3", "gs"))])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found
