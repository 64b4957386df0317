"""Labels that Neuronpedia exports: a JSON list, or one object on each line, also compressed with gzip.

Source: Neuronpedia's bulk export (`explanations/batch-N.jsonl.gz`) and its API `/api/explanation/export`, whose objects
have `index` (text or a number), `description` and `explanationModelName` among others.
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
"""Most bytes of the text, uncompressed."""
_MAX_LABEL_CHARS = 500
_MAX_DIGITS = 19
"""Most digits of a feature's index that is given as text."""
_MISSING = object()
"""Value of an absent description. A description that is null was never written, which is no error of the file."""


def read_neuronpedia(file: Path, d_sae: int) -> dict[int, Label]:
    """Return the label of each feature; of several labels for one feature, the last.

    Args:
        file: A `.json` or `.jsonl` file, or one of these as `.gz`.
        d_sae: Number of features of the dictionary.

    Raises:
        ConfigError: the file cannot be read, has another form, or names features that the dictionary does not have.
    """
    labels: dict[int, Label] = {}
    for number, entry in enumerate(_entries(file, _read(file)), start=1):
        fields = entry if isinstance(entry, dict) else {}
        feature, text = _index(fields.get("index")), fields.get("description", _MISSING)
        if feature is None or not isinstance(text, str | None):
            message = f'{file}, entry {number}: an object with "index" and "description" is needed.'
            raise ConfigError(message)
        if not 0 <= feature < d_sae:
            message = f"{file}, entry {number}: the dictionary has features 0 to {d_sae - 1}, and not {feature}."
            raise ConfigError(message)
        if words := clean_label(text or "", _MAX_LABEL_CHARS):
            author = fields.get("explanationModelName")
            name = clean_label(author, _MAX_LABEL_CHARS) if isinstance(author, str) else ""
            labels[feature] = Label(words, "neuronpedia", author=name or None)
    if not labels:
        message = f"{file} has no label."
        raise ConfigError(message)
    return labels


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            is_compressed = opened.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(file) if is_compressed else file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            message = f"{file} has more than {_MAX_BYTES >> 20} MiB of text. Split it."
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
            message = f"{file} is not JSON: {error}."
            raise ConfigError(message) from error
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                message = f"{file}, line {number} is not JSON: {error}."
                raise ConfigError(message) from error


def _index(value: object) -> int | None:
    """Return a feature's index, given as a number or as text; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
