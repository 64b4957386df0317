"""Files that are whole or absent: written aside and moved into place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path`; a reader sees the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(content, encoding="utf-8")
    aside.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` as JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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
