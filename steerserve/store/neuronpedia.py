"""Labels that Neuronpedia exports: a JSON list, or one object a line, also compressed with gzip.

Source: the bulk export (`explanations/batch-N.jsonl.gz`) and the API's `/api/explanation/export`, whose objects have
`index` (text or a number), `description` and `explanationModelName` among others.
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError
from steerserve.core.label_text import clean_label
from steerserve.store.records import Label

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_BYTES = 1 << 30
"""Of the text, unpacked."""
_MAX_LABEL_CHARS = 500
_ABSENT = object()
"""No description; null is one that was never written, and no fault of the file."""


def read_neuronpedia(file: Path, d_sae: int) -> dict[int, Label]:
    """Return the label of each feature; of several for one feature the last.

    Args:
        file: A `.json` or `.jsonl` file, or one of these as `.gz`.
        d_sae: The features that the dictionary has.

    Raises:
        ConfigError: it cannot be read, is of another form, or speaks of features that the dictionary has not.
    """
    labels: dict[int, Label] = {}
    for number, entry in enumerate(_entries(file, _read(file)), start=1):
        feature, text = _index(entry), entry.get("description", _ABSENT) if isinstance(entry, dict) else _ABSENT
        if feature is None or not isinstance(text, str | None):
            message = f'{file}, entry {number}: an object with "index" and "description" is needed.'
            raise ConfigError(message)
        if not 0 <= feature < d_sae:
            message = f"{file}, entry {number}: the dictionary has features 0 to {d_sae - 1}, and not {feature}."
            raise ConfigError(message)
        if words := clean_label(text or "", _MAX_LABEL_CHARS):
            author = entry.get("explanationModelName")
            made_by = clean_label(author, _MAX_LABEL_CHARS) if isinstance(author, str) else ""
            labels[feature] = Label(words, "neuronpedia", author=made_by or None)
    if not labels:
        message = f"{file} holds no label."
        raise ConfigError(message)
    return labels


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            is_packed = opened.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(file) if is_packed else file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            message = f"{file} holds more than {_MAX_BYTES >> 20} MiB. Split it."
            raise ConfigError(message)
        return content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        message = f"{file} cannot be read: {error}."
        raise ConfigError(message) from error


def _entries(file: Path, content: str) -> Iterator[Any]:
    if content.lstrip().startswith("["):
        try:
            yield from json.loads(content)
        except (ValueError, RecursionError) as error:
            message = f"{file} is no JSON: {error}."
            raise ConfigError(message) from error
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                message = f"{file}, line {number}: no JSON: {error}."
                raise ConfigError(message) from error


def _index(entry: object) -> int | None:
    found = entry.get("index") if isinstance(entry, dict) else None
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 20:  # noqa: PLR2004 any index
        return int(found)
    return found if isinstance(found, int) and not isinstance(found, bool) else None
