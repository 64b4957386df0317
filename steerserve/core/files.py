"""Files that are complete or absent: written under a temporary name, then moved."""

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
def staged_file(path: Path, content: str) -> Iterator[Path]:
    """Write `content` to a temporary file beside `path`, for the caller to move; delete it if it was not moved.

    The content is flushed to the disk before the caller can move it. The name is random, so that no other process,
    in this container or another, writes the same file.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as opened:
            opened.write(content.encode())
            opened.flush()
            os.fsync(opened.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path`; a reader sees the old file or the new one, never a part of it."""
    with staged_file(path, content) as temporary:
        temporary.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` as JSON; a reader sees the old file or the new one, never a part of it."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_plain(path: Path, limit: int) -> bytes:
    """Read the first `limit` bytes of a regular file; never follow a link or wait for the writer of a pipe.

    Raises:
        OSError: `path` is a folder, pipe, device or link, or cannot be read.
    """
    descriptor = os.open(path, _PLAIN)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
        with open(descriptor, "rb", closefd=False) as opened:
            return opened.read(limit)
    finally:
        os.close(descriptor)


def opened_path(descriptor: int) -> Path | None:
    """Return the real path of an open file, even if it was moved since; None if the system does not tell."""
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:  # not Linux
        return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that steerserve wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def expand_home(path: Path) -> Path:
    """Replace a leading `~` by the home folder; `~name` of an unknown user stays as it is, as in a shell."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path
