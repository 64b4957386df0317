"""A stub of a model hub on loopback: one repository, in the hub's own layout, for the real client."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

COMMIT = "a" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    repo: ClassVar[str]
    folder: ClassVar[Path]
    asked: ClassVar[list[str]]

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = urllib.parse.unquote(self.path.split("?")[0])
        self.asked.append(f"{self.command} {path}")
        body: bytes | None = None
        headers: dict[str, str] = {}
        if path.startswith(f"/api/models/{self.repo}/tree/"):
            _, _, inner = path.removeprefix(f"/api/models/{self.repo}/tree/").partition("/")
            body = self._tree(inner)
        elif path.startswith(f"/api/models/{self.repo}"):
            names = [
                {"rfilename": str(file.relative_to(self.folder)), "size": file.stat().st_size, "blobId": COMMIT}
                for file in self._files()
            ]
            body = json.dumps({"id": self.repo, "sha": COMMIT, "siblings": names}).encode()
        elif path.startswith(f"/{self.repo}/resolve/"):
            file = self.folder / path.removeprefix(f"/{self.repo}/resolve/").partition("/")[2]
            if file.is_file():
                body = file.read_bytes()
                headers = {"etag": f'"{hashlib.sha1(body).hexdigest()}"', "x-repo-commit": COMMIT}  # noqa: S324 as git
        self.send_response(404 if body is None else 200)
        if body is None:
            is_here = f"/{self.repo}" in path
            headers = {"x-error-code": "EntryNotFound" if is_here else "RepoNotFound"}
        for name, value in (headers | {"content-length": str(len(body or b""))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and body is not None:
            self.wfile.write(body)

    def _files(self) -> list[Path]:
        return [file for file in self.folder.rglob("*") if file.is_file()]

    def _tree(self, inner: str) -> bytes | None:
        """List a folder, with all below it where the client wants that."""
        root = self.folder / inner
        if not root.is_dir():
            return None
        wants_all = "recursive=True" in self.path or "recursive=true" in self.path
        return json.dumps([self._entry(found) for found in (root.rglob("*") if wants_all else root.iterdir())]).encode()

    def _entry(self, found: Path) -> dict[str, Any]:
        path = str(found.relative_to(self.folder))
        if found.is_dir():
            return {"type": "directory", "path": path, "size": 0, "oid": COMMIT}
        oid = hashlib.sha1(found.read_bytes()).hexdigest()  # noqa: S324 git's own naming
        return {"type": "file", "path": path, "size": found.stat().st_size, "oid": oid}


class StubHub:
    """Where it answers, and what it was asked."""

    def __init__(self, endpoint: str, asked: list[str]) -> None:
        self.endpoint = endpoint
        self.asked = asked

    def fetched(self) -> set[str]:
        """Return the paths of the files that were downloaded."""
        return {
            line.partition("/resolve/")[2].partition("/")[2]
            for line in self.asked
            if line.startswith("GET") and "/resolve/" in line
        }


@contextmanager
def stub_hub(repo: str, folder: Path) -> Iterator[str]:
    """Serve `folder` as the repository `repo` while the context is open; yield the endpoint."""
    with watched_hub(repo, folder) as hub:
        yield hub.endpoint


@contextmanager
def watched_hub(repo: str, folder: Path) -> Iterator[StubHub]:
    """Serve `folder` as the repository `repo`, and keep what is asked."""
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"repo": repo, "folder": folder, "asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield StubHub(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
