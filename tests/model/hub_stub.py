"""A stub of a model hub on loopback: one repository, in the hub's own layout, for the real client."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

COMMIT = "a" * 40


class _Hub(http.server.BaseHTTPRequestHandler):
    repo: ClassVar[str]
    folder: ClassVar[Path]

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        body, headers = b"", {}
        if path.startswith(f"/api/models/{self.repo}/tree/"):
            body = json.dumps([self._entry(file) for file in self.folder.iterdir()]).encode()
        elif path.startswith(f"/api/models/{self.repo}"):
            names = [{"rfilename": file.name} for file in self.folder.iterdir()]
            body = json.dumps({"id": self.repo, "sha": COMMIT, "siblings": names}).encode()
        elif path.startswith(f"/{self.repo}/resolve/") and (self.folder / Path(path).name).is_file():
            body = (self.folder / Path(path).name).read_bytes()
            headers = {"etag": f'"{hashlib.sha1(body).hexdigest()}"', "x-repo-commit": COMMIT}  # noqa: S324 as git
        self.send_response(200 if body else 404)
        if not body:
            headers = {"x-error-code": "RepoNotFound"}
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    @staticmethod
    def _entry(file: Path) -> dict[str, Any]:
        oid = hashlib.sha1(file.read_bytes()).hexdigest()  # noqa: S324 git's own naming
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid}


@contextmanager
def stub_hub(repo: str, folder: Path) -> Iterator[str]:
    """Serve `folder` as the repository `repo` while the context is open; yield the endpoint."""
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
