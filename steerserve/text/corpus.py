"""Text for training: documents from folders and files, and the split that keeps some of them unseen.

A document is plain text or a conversation. What is kept in memory is where each one lies: it is read when it is due.
This module knows documents and their places, not what is in a file.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from steerserve.core.errors import CorpusError
from steerserve.text.files import document_of, find_documents, opened_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steerserve.text.files import Document

SUFFIXES = (".txt", ".md", ".jsonl")
HELDOUT_SHARE = 0.05
_DIGEST_BYTES = 32


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
        message = (
            f"There is no folder or file {str(path)!r}. Give one with text ({', '.join(SUFFIXES)}), or 'sample' for "
            "the sample corpus."
        )
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
        with opened_text(file, self.roots) as opened:
            opened.seek(int(self.starts[number]))
            content = opened.read(int(self.lengths[number]))
        with contextlib.suppress(CorpusError):  # it says less than what follows
            document = document_of(file, content)
            if document.digest == self.digests[number].tobytes():
                return document
        message = f"{file} has changed since the run began to read it. Leave text as it is while it is used."
        raise CorpusError(message, param="corpus")


def _index(files: tuple[Path, ...], roots: tuple[Path, ...] | None) -> _Index:
    file_numbers, starts, lengths, digests = array("I"), array("Q"), array("I"), bytearray()
    for number, file in enumerate(files):
        with opened_text(file, roots) as opened:
            for piece in find_documents(file, opened):
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
