"""A stub of a hub with one data set, on loopback, in the hub's own layout, for the real client."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

COMMIT = "b" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    repo: ClassVar[str]
    folder: ClassVar[Path]

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        names = {name for name in body.decode().replace("%2F", "/").replace("&", "=").split("=") if name}
        if self.headers.get("content-type", "").startswith("application/json"):
            names = set(json.loads(body)["paths"])
        entries = [_entry(file) for file in self.folder.iterdir() if file.name in names]
        self._send(200, json.dumps(entries).encode(), {}, with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        api = f"/api/datasets/{self.repo}"
        if path.startswith(f"{api}/tree/"):
            entries = [_entry(file) for file in self.folder.iterdir()] if path.count("/") <= api.count("/") + 2 else []
            self._send(200, json.dumps(entries).encode(), {}, with_body=with_body)
        elif path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": file.name} for file in self.folder.iterdir()]
            body = {"id": self.repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            self._send(200, json.dumps(body).encode(), {}, with_body=with_body)
        elif path.startswith(f"/datasets/{self.repo}/resolve/"):
            self._file(self.folder / path.rpartition("/")[2], with_body=with_body)
        else:
            self._send(404, b"", {"x-error-code": "RepoNotFound"}, with_body=False)

    def _file(self, file: Path, *, with_body: bool) -> None:
        if not file.is_file():
            self._send(404, b"", {"x-error-code": "EntryNotFound", "x-repo-commit": COMMIT}, with_body=False)
            return
        body = file.read_bytes()
        headers = {"etag": f'"{_oid(file)}"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
        byte_range = self.headers.get("range")
        if byte_range is None:
            self._send(200, body, headers, with_body=with_body)
            return
        start, _, end = byte_range.removeprefix("bytes=").partition("-")
        part = body[int(start) : int(end) + 1 if end else None]
        headers["content-range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(body)}"
        self._send(206, part, headers, with_body=with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()  # noqa: S324 git's own naming


def _entry(file: Path) -> dict[str, Any]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _oid(file)}


@contextmanager
def dataset_hub(repo: str, folder: Path) -> Iterator[str]:
    """Serve `folder` as the data set `repo` while the context is open; yield the endpoint."""
    handler = type("Hub", (_Hub,), {"repo": repo, "folder": folder})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
