"""Files of text for training: the positions of the documents in a file, and documents from their bytes.

In a `.jsonl` file each line is a document; plain text is cut at blank lines. This module knows one file at a time.
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
"""Greatest length of a JSON line, or of text without a blank line: several copies are in memory while it is read."""
_MAX_CHARS = 4000
"""Number of characters after which plain text is cut at the next blank line: a large file is many documents."""
_BREAK = re.compile(r"\n\s*\n")
_ROLES = {"system", "developer", "user", "assistant"}


@dataclass(frozen=True, slots=True)
class Document:
    """A text or a conversation; exactly one of `text` and `messages` is set."""

    source: str
    """Name of the file, for the report."""
    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    """Role and content of each turn."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of the content, which is the same in any file."""
        content = self.text if self.messages is None else json.dumps(self.messages, ensure_ascii=False)
        return hashlib.sha256((content or "").encode("utf-8", errors="replace")).digest()

    def chat(self) -> list[dict[str, str]]:
        """Return the conversation as chat templates expect it."""
        return [{"role": role, "content": content} for role, content in self.messages or ()]

    def read(self) -> Document:
        """Return the document itself, so that it can take the place of a `StoredDocument`."""
        return self


class DocumentSpan(NamedTuple):
    """Position of a document in its file."""

    start: int
    """Number of its first byte."""
    length: int
    """Number of bytes."""
    digest: bytes
    """SHA-256 of its content."""


@contextlib.contextmanager
def opened_text(file: Path, roots: tuple[Path, ...] | None) -> Iterator[BinaryIO]:
    """Open a file that lies within one of `roots`; with None, any file.

    Raises:
        CorpusError: the file lies elsewhere, or cannot be read.
    """
    try:
        with file.open("rb") as opened:
            real = opened_path(opened.fileno()) or file.resolve()
            if roots is not None and not any(real.is_relative_to(root) for root in roots):
                message = f"{file} leads outside the folders that a corpus may lie in. Remove the link."
                raise CorpusError(message, param="corpus")
            yield opened
    except OSError as error:
        raise _unreadable(file, error) from error


def document_spans(file: Path, opened: BinaryIO) -> Iterator[DocumentSpan]:
    """Yield the positions of a file's documents, in order.

    Raises:
        CorpusError: the file cannot be read as text, or has a document that is too long.
    """
    return _records(file, opened) if _is_records(file) else _texts(file, opened)


def document_of(file: Path, content: bytes) -> Document:
    """Return the document that these bytes of a file are.

    Raises:
        CorpusError: they are not a document.
    """
    text = _decoded(file, content)
    if _is_records(file):
        return _record(file, text, str(file))
    return Document(file.name, text="\n\n".join(_BREAK.split(re.sub(r"\r\n?", "\n", text))))


def _is_records(file: Path) -> bool:
    return file.suffix.lower() == ".jsonl"


def _records(file: Path, opened: BinaryIO) -> Iterator[DocumentSpan]:
    for number, line in enumerate(_lines(file, opened), start=1):
        text = _decoded(file, line.content)
        if text.strip():
            yield DocumentSpan(line.start, len(line.content), _record(file, text, f"{file}, line {number}").digest)


def _texts(file: Path, opened: BinaryIO) -> Iterator[DocumentSpan]:
    paragraphs: list[str] = []
    length = start = end = 0
    for first, last, paragraph in _paragraphs(file, opened):
        start = start if paragraphs else first
        end = last
        paragraphs.append(paragraph)
        length += len(paragraph)
        if length >= _MAX_CHARS:
            yield DocumentSpan(start, end - start, Document(file.name, text="\n\n".join(paragraphs)).digest)
            paragraphs, length = [], 0
    rest = "\n\n".join(paragraphs)
    if rest.strip():
        yield DocumentSpan(start, end - start, Document(file.name, text=rest).digest)


def _paragraphs(file: Path, opened: BinaryIO) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and text of each paragraph. They are those of `_BREAK.split`, read a line at a time.

    Lines:  text | text | blank | blank | text | text (not ended)
            -----------   the break       ------------------------
    The first line of a file, and one that is not ended, belong to a paragraph even if they are blank.
    """
    lines: list[str] = []
    start = end = 0
    is_first = True
    for line in _lines(file, opened):
        text = _decoded(file, line.content)
        if line.is_ended and not is_first and not text.strip():
            if lines:
                yield start, end, "\n".join(lines)
                lines = []
            continue
        start = start if lines else line.start
        end = line.start + len(line.content)
        _check_length(file, end - start)
        lines.append(text)
        is_first = False
    yield start, end, "\n".join(lines)


class _Line(NamedTuple):
    start: int
    content: bytes
    """The line without its end."""
    is_ended: bool
    """Whether an end of line follows. The last line of a file is not ended, and may be empty."""


def _lines(file: Path, opened: BinaryIO) -> Iterator[_Line]:
    r"""Yield the lines of a file, the last of which is not ended. Only \n, \r\n and \r end a line.

    `splitlines` would end one at U+2028 and others too, which JSON allows inside a string.
    """
    start, is_ended, limit = 0, True, MAX_DOCUMENT_BYTES + 2
    while raw := opened.readline(limit):
        content = raw.removesuffix(b"\n")
        is_ended = len(content) < len(raw)
        parts = (content.removesuffix(b"\r") if is_ended else content).split(b"\r")
        if len(raw) == limit and not is_ended and len(parts) > 2:  # noqa: PLR2004 the last one, and a \r before a \n
            # Lines that end with \r, cut by the limit: the last two are read again.
            del parts[-2:]
            is_ended = True
        for index, part in enumerate(parts):
            _check_length(file, len(part))
            yield _Line(start, part, is_ended or index < len(parts) - 1)
            start += len(part) + 1
        if len(raw) == limit:
            opened.seek(start)
        start = opened.tell()
    if is_ended:
        yield _Line(start, b"", is_ended=False)


def _check_length(file: Path, num_bytes: int) -> None:
    if num_bytes > MAX_DOCUMENT_BYTES:
        message = (
            f"{file} has a document of over {MAX_DOCUMENT_BYTES >> 20} MiB. Split it; plain text with blank lines."
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
        message = f"{where}: not JSON: {error}"
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
