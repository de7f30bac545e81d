"""A stand-in for the Hugging Face hub: the part of its API that huggingface_hub uses for datasets and models.

Large files (LFS) are redirected to another server, as on the hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.helpers.file_server import FileServer, Request

API = re.compile(r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?")
WRITE = re.compile(
    r"/api/datasets/([^/]+/[^/]+)/(preupload|commit)/([^/]+)|/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch"
)
RESOLVE = re.compile(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
PAGE = 2  # entries of a listing
LFS_BYTES = 1_000  # files from this size on are LFS


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """Return the body of a request, which may be sent in chunks."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    body = b""
    while num_bytes := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(num_bytes)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


@dataclass
class Dataset:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> content
    branches: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    token: str = ""  # that is needed to read the dataset
    is_gated: bool = False
    is_private: bool = False


class HubServer(FileServer):
    """Sends datasets and models. `storage` is the server of large files."""

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, Dataset] = {}
        self.storage = FileServer()
        self.commit_status = 0  # that is answered to a commit
        self.uploads: list[str] = []  # SHA-256 of the large files that were sent

    def write(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request that makes a dataset, uploads a file or makes a commit."""
        body = read_body(handler)
        path = urlsplit(handler.path).path
        if path.startswith("/lfs/"):
            self.storage.files[path] = body
            self.uploads.append(path.removeprefix("/lfs/"))
            self.send(handler, 200, {"ETag": '"of the storage"'}, b"")
            return
        if path == "/api/repos/create":
            self.create(handler, json.loads(body))
            return
        match = WRITE.fullmatch(path)
        assert match, path
        if match[2] == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LFS_BYTES else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.send_json(handler, {"files": modes})
        elif match[2] == "commit" and self.commit_status:
            self.send(handler, self.commit_status, {}, b"{}")
        elif match[2] == "commit":
            self.commit_operations(match[1], unquote(match[3]), [json.loads(line) for line in body.splitlines()])
            self.send_json(handler, {"commitUrl": f"{self.url}/datasets/{match[1]}", "commitOid": "0" * 40})
        else:
            self.send_json(
                handler, {"transfer": "basic", "objects": [self.plan_upload(o) for o in json.loads(body)["objects"]]}
            )

    def create(self, handler: BaseHTTPRequestHandler, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or 'ann'}/{wanted['name']}"
        if repo in self.datasets:
            self.send(handler, 409, {}, json.dumps({"url": f"{self.url}/datasets/{repo}"}).encode())
            return
        self.commit(
            repo, {}, is_private=wanted["visibility"] == "private" if "visibility" in wanted else wanted["private"]
        )
        self.send_json(handler, {"url": f"{self.url}/datasets/{repo}", "name": repo})

    def plan_upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if f"/lfs/{wanted['oid']}" in self.storage.files:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}}

    def commit_operations(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> None:
        dataset = self.datasets[repo]
        files = dict(dataset.commits[dataset.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.storage.files[f"/lfs/{value['oid']}"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.commit(repo, files, branch)

    def close(self) -> None:
        super().close()
        self.storage.close()

    def commit(
        self, repo: str, files: dict[str, bytes], branch: str = "main", commit: str = "", **settings: Any
    ) -> str:
        """Make a commit of a dataset or a model, and return its name."""
        dataset = self.datasets.setdefault(repo, Dataset())
        for name, value in settings.items():
            setattr(dataset, name, value)
        names = json.dumps([[path, hashlib.sha256(data).hexdigest()] for path, data in sorted(files.items())])
        commit = commit or hashlib.sha1(names.encode()).hexdigest()
        dataset.commits[commit], dataset.branches[branch] = files, commit
        for data in files.values():
            self.storage.files[f"/lfs/{hashlib.sha256(data).hexdigest()}"] = data
        return commit

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        match = API.fullmatch(path) or RESOLVE.fullmatch(path)
        if self.faults or match is None:
            super().answer(handler)
            return
        self.requests.append(Request(handler.path, None, dict(handler.headers)))
        dataset = self.datasets.get(match[1])
        if dataset is None or (dataset.token and handler.headers.get("Authorization") != f"Bearer {dataset.token}"):
            if dataset is not None and dataset.is_gated and match.re is RESOLVE:
                self.send(handler, 403, {"X-Error-Code": "GatedRepo"}, b"")
            else:
                self.send(handler, 401, {"X-Error-Code": "RepoNotFound"}, b"Repository not found")
            return
        wanted = unquote(match[3] or "main") if match.re is API else unquote(match[2])
        commit = dataset.branches.get(wanted, wanted)
        if commit not in dataset.commits:
            self.send(handler, 404, {"X-Error-Code": "RevisionNotFound"}, b"")
        elif match.re is RESOLVE:
            self.resolve(handler, dataset.commits[commit][unquote(match[3])], commit)
        elif match[2] == "tree":
            self.send_tree(handler, dataset.commits[commit])
        else:
            self.send_json(handler, {"id": match[1], "sha": commit, "cardData": dataset.card, "siblings": []})

    def resolve(self, handler: BaseHTTPRequestHandler, data: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(len(data))}
        if len(data) >= LFS_BYTES:
            sha256 = hashlib.sha256(data).hexdigest()
            headers |= {"Location": f"{self.storage.url}/lfs/{sha256}", "X-Linked-ETag": f'"{sha256}"'}
            self.send(handler, 302, headers, b"")
        else:
            self.send(handler, 200, {**headers, "ETag": '"of the hub"'}, data)

    def send_tree(self, handler: BaseHTTPRequestHandler, files: dict[str, bytes]) -> None:
        rows = [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}]
        for path, data in files.items():
            git = hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()
            row: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git}
            if len(data) >= LFS_BYTES:
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            rows.append(row)
        match = re.search(r"cursor=(\d+)", handler.path)
        begin = int(match[1]) if match else 0
        headers = {}
        if begin + PAGE < len(rows):
            path = urlsplit(handler.path).path
            headers["Link"] = f'<{self.url}{path}?recursive=true&cursor={begin + PAGE}>; rel="next"'
        self.send_json(handler, rows[begin : begin + PAGE], headers)

    def send_json(self, handler: BaseHTTPRequestHandler, value: Any, headers: dict[str, str] | None = None) -> None:
        self.send(handler, 200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())
