"""Text for training: documents from folders and files, and the split that keeps some of them unseen.

A document is plain text or a conversation. What is kept in memory is where each one lies: it is read when it is due.
This module knows files, not tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, overload

import numpy as np

from steerserve.core.errors import CorpusError
from steerserve.core.files import opened_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SUFFIXES = (".txt", ".md", ".jsonl")
HELDOUT_SHARE = 0.05
MAX_DOCUMENT_BYTES = 1 << 26
"""Of a line of JSON, or of text without a blank line: more is held in memory several times while it is read."""
_MAX_CHARS = 4000
"""Plain files are cut at the first blank line after so many characters, so that one large file is many documents."""
_BREAK = re.compile(r"\n\s*\n")
_DIGEST_BYTES = 32
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


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document that is still in its file; two are equal where they lie at one place."""

    index: _Index
    number: int

    def read(self) -> Document:
        """Return the document.

        Raises:
            CorpusError: its file has changed since it was found, or cannot be read.
        """
        return self.index.read(self.number)


class Documents(Sequence[StoredDocument]):
    """Some of a corpus's documents, in order."""

    def __init__(self, index: _Index, numbers: NDArray[np.uint32]) -> None:
        """Give those of `index` with these numbers."""
        self._index = index
        self._numbers = numbers

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> StoredDocument: ...
    @overload
    def __getitem__(self, place: slice) -> Documents: ...
    def __getitem__(self, place: int | slice) -> StoredDocument | Documents:
        """Return one, or some of them."""
        if isinstance(place, slice):
            return Documents(self._index, self._numbers[place])
        return StoredDocument(self._index, int(self._numbers[place]))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in a fixed order that depends on their content alone."""

    training: Documents
    heldout: Documents
    digest: str
    """Changes when any document does."""
    index: _Index

    def sources(self) -> dict[str, int]:
        """Return how many documents came from each file."""
        counts: dict[str, int] = {}
        for file, count in zip(self.index.files, np.bincount(self.index.file_numbers).tolist(), strict=False):
            if count:
                counts[file.name] = counts.get(file.name, 0) + count
        return dict(sorted(counts.items()))


def load_corpus(
    sources: Sequence[str | Path], *, heldout_share: float = HELDOUT_SHARE, allowed_dirs: Sequence[Path] | None = None
) -> Corpus:
    """Find the documents of folders and files, drop repeated ones, shuffle them and set some aside by their content.

    Which side a document falls on depends on its text alone, so it stays there when a corpus grows. Each file must lie
    within one of `allowed_dirs`, links followed; None allows all.

    Raises:
        CorpusError: a path that does not exist, a file that cannot be read or lies elsewhere, a document that is too
            long, or fewer than two documents.
    """
    roots = None if allowed_dirs is None else tuple(folder.resolve() for folder in allowed_dirs)
    files = tuple(file for source in sources for file in corpus_files(source))
    found = _index(files, roots)
    kept = found.different()
    if len(kept) < 2:  # noqa: PLR2004 one to train on, one to hold out
        places = ", ".join(str(source) for source in sources)
        message = f"The corpus ({places}) has {len(kept)} different documents; training needs two or more."
        raise CorpusError(message, param="corpus")
    digests = found.digests[kept]
    held = digests[:, :4].copy().view(">u4")[:, 0] < heldout_share * 16**8
    if not held.any():
        held[0] = True
    if held.all():
        held[-1] = False
    # The first four bytes decide the side, so the order takes others.
    order = _sorted(digests[:, 4:])
    index, is_held = found.some(kept[order]), held[order]
    return Corpus(
        training=Documents(index, np.flatnonzero(~is_held).astype(np.uint32)),
        heldout=Documents(index, np.flatnonzero(is_held).astype(np.uint32)),
        digest=_digest(digests),
        index=index,
    )


def corpus_files(source: str | Path) -> list[Path]:
    """Return the files of a folder, or the file itself; a path may be written `path:PATH`.

    Raises:
        CorpusError: there is no such path, or nothing in it is text for training.
    """
    path = Path(str(source).removeprefix("path:"))
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            message = f"{path} is no text for training; give a folder or a file of type {', '.join(SUFFIXES)}."
            raise CorpusError(message, param="corpus")
        return [path]
    if not path.is_dir():
        message = f"There is no {path}; give a folder or a file of type {', '.join(SUFFIXES)}."
        raise CorpusError(message, param="corpus")
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not found:
        message = f"The folder {path} has no file of type {', '.join(SUFFIXES)}."
        raise CorpusError(message, param="corpus")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """Where documents lie: one row of each array a document."""

    files: tuple[Path, ...]
    roots: tuple[Path, ...] | None
    """Folders that files must lie in."""
    file_numbers: NDArray[np.uint32]
    starts: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    """In bytes, as `starts`."""
    digests: NDArray[np.uint8]
    """Rows of 32."""

    def different(self) -> NDArray[np.int64]:
        """Return the numbers of documents that differ, in order of their digests; of equal ones the last."""
        order = _sorted(self.digests)
        ordered = self.digests[order]
        is_last = np.ones(len(order), dtype=bool)
        is_last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
        return order[is_last]

    def some(self, numbers: NDArray[np.int64]) -> _Index:
        """Return the index of those documents alone."""
        return _Index(
            self.files,
            self.roots,
            self.file_numbers[numbers],
            self.starts[numbers],
            self.lengths[numbers],
            self.digests[numbers],
        )

    def read(self, number: int) -> Document:
        """Return a document, see `StoredDocument.read`."""
        file = self.files[self.file_numbers[number]]
        with _opened(file, self.roots) as opened:
            opened.seek(int(self.starts[number]))
            content = opened.read(int(self.lengths[number]))
        with contextlib.suppress(CorpusError):  # it says less than what follows
            document = _document_of(file, content)
            if document.digest == self.digests[number].tobytes():
                return document
        message = f"{file} has changed since the run began to read it. Leave text as it is while it is used."
        raise CorpusError(message, param="corpus")


class _Piece(NamedTuple):
    start: int
    length: int
    digest: bytes


class _Line(NamedTuple):
    start: int
    content: bytes
    """Without what ends it."""
    is_ended: bool
    """The last line of a file is not, and may be empty."""


def _index(files: tuple[Path, ...], roots: tuple[Path, ...] | None) -> _Index:
    file_numbers, starts, lengths, digests = array("I"), array("Q"), array("I"), bytearray()
    for number, file in enumerate(files):
        with _opened(file, roots) as opened:
            pieces = _records(file, opened) if _is_records(file) else _texts(file, opened)
            for piece in pieces:
                file_numbers.append(number)
                starts.append(piece.start)
                lengths.append(piece.length)
                digests += piece.digest
    return _Index(
        files,
        roots,
        np.frombuffer(file_numbers, np.uint32),
        np.frombuffer(starts, np.uint64),
        np.frombuffer(lengths, np.uint32),
        np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES),
    )


def _sorted(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the order of rows of bytes; equal ones stay in theirs."""
    width = digests.shape[1]
    return np.argsort(np.ascontiguousarray(digests).view(f"V{width}")[:, 0], kind="stable")


def _digest(digests: NDArray[np.uint8]) -> str:
    whole = hashlib.sha256()
    for start in range(0, len(digests), 1 << 12):
        whole.update(digests[start : start + (1 << 12)].tobytes().hex().encode())
    return whole.hexdigest()


@contextlib.contextmanager
def _opened(file: Path, roots: tuple[Path, ...] | None) -> Iterator[BinaryIO]:
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


def _is_records(file: Path) -> bool:
    return file.suffix.lower() == ".jsonl"


def _document_of(file: Path, content: bytes) -> Document:
    """Return a document whose bytes are known."""
    text = _decoded(file, content)
    if _is_records(file):
        return _record(file, text, str(file))
    return Document(file.name, text="\n\n".join(_BREAK.split(re.sub(r"\r\n?", "\n", text))))


def _records(file: Path, opened: BinaryIO) -> Iterator[_Piece]:
    for number, line in enumerate(_lines(file, opened), start=1):
        text = _decoded(file, line.content)
        if text.strip():
            yield _Piece(line.start, len(line.content), _record(file, text, f"{file}, line {number}").digest)


def _texts(file: Path, opened: BinaryIO) -> Iterator[_Piece]:
    held: list[str] = []
    length = start = end = 0
    for first, last, paragraph in _paragraphs(file, opened):
        start = start if held else first
        end = last
        held.append(paragraph)
        length += len(paragraph)
        if length >= _MAX_CHARS:
            yield _Piece(start, end - start, Document(file.name, text="\n\n".join(held)).digest)
            held, length = [], 0
    rest = "\n\n".join(held)
    if rest.strip():
        yield _Piece(start, end - start, Document(file.name, text=rest).digest)


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
