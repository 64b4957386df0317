"""Files that are whole or absent: written aside and moved into place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PLAIN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def atomic_file(path: Path, content: str) -> Iterator[Path]:
    """Write `content` beside `path`, for the caller to move it there; what was not moved is gone afterwards.

    The content is on the disk before it can be moved, and no other process, in a container or not, writes the same
    file: its name is drawn.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with aside.open("xb") as opened:
            opened.write(content.encode())
            opened.flush()
            os.fsync(opened.fileno())
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path`; a reader sees the old file or the new one, never half of it."""
    with atomic_file(path, content) as aside:
        aside.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` as JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_plain(path: Path, limit: int) -> bytes:
    """Read the first `limit` bytes of a file that is no folder, pipe, device or link; never waits for a pipe's writer.

    Raises:
        OSError: it is one of those, or cannot be read.
    """
    descriptor = os.open(path, _PLAIN)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is no plain file")
        with open(descriptor, "rb", closefd=False) as opened:
            return opened.read(limit)
    finally:
        os.close(descriptor)


def opened_path(descriptor: int) -> Path | None:
    """Return where an open file really lies, whatever its path has become since; None where nobody can say."""
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:  # not Linux
        return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that this program wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
