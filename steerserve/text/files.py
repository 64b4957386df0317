"""Files of text for training: where the documents in one lie, and a document out of its bytes.

One JSON object a line is a document of a `.jsonl` file; plain text is cut at blank lines. This module knows one file at
a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from steerserve.core.errors import CorpusError
from steerserve.core.files import opened_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_DOCUMENT_BYTES = 1 << 26
"""Of a line of JSON, or of text without a blank line: more is held in memory several times while it is read."""
_MAX_CHARS = 4000
"""Plain files are cut at the first blank line after so many characters, so that one large file is many documents."""
_BREAK = re.compile(r"\n\s*\n")
_ROLES = {"system", "developer", "user", "assistant"}


@dataclass(frozen=True, slots=True)
class Document:
    """One piece of text; exactly one of `text` and `messages` is set."""

    source: str
    """The file's name, for the report."""
    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    """Role and content of each turn."""

    @property
    def digest(self) -> bytes:
        """The sha256 of the content: the same text has the same digest wherever it lies."""
        content = self.text if self.messages is None else json.dumps(self.messages, ensure_ascii=False)
        return hashlib.sha256((content or "").encode("utf-8", errors="replace")).digest()

    def chat(self) -> list[dict[str, str]]:
        """Return the conversation in the shape that chat templates take."""
        return [{"role": role, "content": content} for role, content in self.messages or ()]

    def read(self) -> Document:
        """Return the document itself, as `StoredDocument` does."""
        return self


class Piece(NamedTuple):
    """Where a document lies, in bytes."""

    start: int
    length: int
    digest: bytes


@contextlib.contextmanager
def opened_text(file: Path, roots: tuple[Path, ...] | None) -> Iterator[BinaryIO]:
    """Open a file that lies where it may.

    Raises:
        CorpusError: it does not, or it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            real = opened_path(opened.fileno()) or file.resolve()
            if roots is not None and not any(real.is_relative_to(root) for root in roots):
                message = f"{file} leads outside the folders that corpora may lie in; remove the link."
                raise CorpusError(message, param="corpus")
            yield opened
    except OSError as error:
        raise _unreadable(file, error) from error


def find_documents(file: Path, opened: BinaryIO) -> Iterator[Piece]:
    """Yield where the documents of a file lie, in order.

    Raises:
        CorpusError: it cannot be read as text, or has a document that is too long.
    """
    return _records(file, opened) if _is_records(file) else _texts(file, opened)


def document_of(file: Path, content: bytes) -> Document:
    """Return a document out of its bytes.

    Raises:
        CorpusError: they are none.
    """
    text = _decoded(file, content)
    if _is_records(file):
        return _record(file, text, str(file))
    return Document(file.name, text="\n\n".join(_BREAK.split(re.sub(r"\r\n?", "\n", text))))


def _is_records(file: Path) -> bool:
    return file.suffix.lower() == ".jsonl"


def _records(file: Path, opened: BinaryIO) -> Iterator[Piece]:
    for number, line in enumerate(_lines(file, opened), start=1):
        text = _decoded(file, line.content)
        if text.strip():
            yield Piece(line.start, len(line.content), _record(file, text, f"{file}, line {number}").digest)


def _texts(file: Path, opened: BinaryIO) -> Iterator[Piece]:
    held: list[str] = []
    length = start = end = 0
    for first, last, paragraph in _paragraphs(file, opened):
        start = start if held else first
        end = last
        held.append(paragraph)
        length += len(paragraph)
        if length >= _MAX_CHARS:
            yield Piece(start, end - start, Document(file.name, text="\n\n".join(held)).digest)
            held, length = [], 0
    rest = "\n\n".join(held)
    if rest.strip():
        yield Piece(start, end - start, Document(file.name, text=rest).digest)


def _paragraphs(file: Path, opened: BinaryIO) -> Iterator[tuple[int, int, str]]:
    """Yield what lies between breaks, with the places where it begins and ends: as `_BREAK.split`, a line at a time.

    Lines:  text | text | blank | blank | text | text (not ended)
            -----------   the break       ------------------------
    The first line of a file, and one that is not ended, belong to a paragraph although they may be blank.
    """
    held: list[str] = []
    start = end = 0
    is_first = True
    for line in _lines(file, opened):
        text = _decoded(file, line.content)
        if line.is_ended and not is_first and not text.strip():
            if held:
                yield start, end, "\n".join(held)
                held = []
            continue
        start = start if held else line.start
        end = line.start + len(line.content)
        _check_length(file, end - start)
        held.append(text)
        is_first = False
    yield start, end, "\n".join(held)


class _Line(NamedTuple):
    start: int
    content: bytes
    """Without what ends it."""
    is_ended: bool
    """The last line of a file is not, and may be empty."""


def _lines(file: Path, opened: BinaryIO) -> Iterator[_Line]:
    r"""Yield the lines of a file, the last one not ended; \n, \r\n and \r end a line, and nothing else does.

    Not `splitlines`: JSON allows U+2028 and its like inside a string.
    """
    start, is_ended, limit = 0, True, MAX_DOCUMENT_BYTES + 2
    while raw := opened.readline(limit):
        content = raw.removesuffix(b"\n")
        is_ended = len(content) < len(raw)
        parts = (content.removesuffix(b"\r") if is_ended else content).split(b"\r")
        if len(raw) == limit and not is_ended and len(parts) > 2:  # noqa: PLR2004 the last one, and a \r before a \n
            # Lines that \r ends, cut somewhere: the last ones are read again.
            del parts[-2:]
            is_ended = True
        for place, part in enumerate(parts):
            _check_length(file, len(part))
            yield _Line(start, part, is_ended or place < len(parts) - 1)
            start += len(part) + 1
        if len(raw) == limit:
            opened.seek(start)
        start = opened.tell()
    if is_ended:
        yield _Line(start, b"", is_ended=False)


def _check_length(file: Path, num_bytes: int) -> None:
    if num_bytes > MAX_DOCUMENT_BYTES:
        message = (
            f"{file} has a document of over {MAX_DOCUMENT_BYTES >> 20} MiB. Cut it, with blank lines if it is text."
        )
        raise CorpusError(message, param="corpus")


def _decoded(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> CorpusError:
    return CorpusError(f"{file} cannot be read as UTF-8 text: {error}", param="corpus")


def _record(file: Path, line: str, where: str) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = f"{where}: no JSON: {error}"
        raise CorpusError(message, param="corpus") from error
    return _document(file.name, where, record)


def _document(source: str, where: str, record: Any) -> Document:  # noqa: ANN401 JSON, checked here
    if isinstance(record, dict):
        text, messages = record.get("text"), record.get("messages")
        if isinstance(text, str) and messages is None:
            return Document(source, text=text)
        if isinstance(messages, list) and messages and text is None and all(map(_is_turn, messages)):
            return Document(source, messages=tuple((turn["role"], turn["content"]) for turn in messages))
    message = (
        f'{where}: give {{"text": "..."}} or {{"messages": [{{"role": ..., "content": ...}}, ...]}} '
        f"with roles {', '.join(sorted(_ROLES))} and text as content."
    )
    raise CorpusError(message, param="corpus")


def _is_turn(turn: Any) -> bool:  # noqa: ANN401 JSON, checked here
    return isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("content"), str)
