"""Text for training: the documents of folders and files, some of which are held out.

A document is plain text or a conversation. Memory holds only the position of each document in its file; a document is
read when it is used. This module knows documents and positions, not the formats of files.
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
from steerserve.text.files import document_of, document_spans, opened_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steerserve.text.files import Document

SUFFIXES = (".txt", ".md", ".jsonl")
HELDOUT_SHARE = 0.05
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document that is still in its file."""

    index: _Index
    number: int

    def read(self) -> Document:
        """Return the document.

        Raises:
            CorpusError: its file has changed since the corpus was loaded, or cannot be read.
        """
        return self.index.read(self.number)


class Documents(Sequence[StoredDocument]):
    """A part of a corpus's documents, in order."""

    def __init__(self, index: _Index, numbers: NDArray[np.uint32]) -> None:
        """Hold the documents of `index` with these numbers."""
        self._index = index
        self._numbers = numbers

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._numbers)

    @overload
    def __getitem__(self, position: int) -> StoredDocument: ...
    @overload
    def __getitem__(self, position: slice) -> Documents: ...
    def __getitem__(self, position: int | slice) -> StoredDocument | Documents:
        """Return the document at a position, or those of a slice."""
        if isinstance(position, slice):
            return Documents(self._index, self._numbers[position])
        return StoredDocument(self._index, int(self._numbers[position]))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in an order that depends on their content alone."""

    training: Documents
    heldout: Documents
    sha256: str
    """SHA-256 of the documents' digests."""
    index: _Index

    def sources(self) -> dict[str, int]:
        """Return the number of documents by the name of their file."""
        counts: dict[str, int] = {}
        for file, count in zip(self.index.files, np.bincount(self.index.file_numbers).tolist(), strict=False):
            if count:
                counts[file.name] = counts.get(file.name, 0) + count
        return dict(sorted(counts.items()))


def load_corpus(
    sources: Sequence[str | Path], *, heldout_share: float = HELDOUT_SHARE, allowed_dirs: Sequence[Path] | None = None
) -> Corpus:
    """Find the documents of folders and files, drop repeated ones, shuffle them and hold some of them out.

    Whether a document is held out depends on its content alone, so that it is the same when the corpus grows. Each file
    must lie within one of `allowed_dirs`, links followed; None allows all.

    Raises:
        CorpusError: a path does not exist, a file cannot be read or lies elsewhere, a document is too long, or the
            corpus has fewer than two different documents.
    """
    roots = None if allowed_dirs is None else tuple(folder.resolve() for folder in allowed_dirs)
    files = tuple(file for source in sources for file in corpus_files(source))
    with_repeated = _index(files, roots)
    different = with_repeated.different()
    if len(different) < 2:  # noqa: PLR2004 one to train on, one to hold out
        names = ", ".join(str(source) for source in sources)
        message = f"The corpus ({names}) has {len(different)} different documents; training needs two or more."
        raise CorpusError(message, param="corpus")
    digests = with_repeated.digests[different]
    is_heldout = digests[:, :4].copy().view(">u4")[:, 0] < heldout_share * 16**8
    if not is_heldout.any():
        is_heldout[0] = True
    if is_heldout.all():
        is_heldout[-1] = False
    # The first four bytes decide what is held out, so the order is that of the other bytes.
    order = _sorted(digests[:, 4:])
    index, is_heldout = with_repeated.part(different[order]), is_heldout[order]
    return Corpus(
        training=Documents(index, np.flatnonzero(~is_heldout).astype(np.uint32)),
        heldout=Documents(index, np.flatnonzero(is_heldout).astype(np.uint32)),
        sha256=_sha256(digests),
        index=index,
    )


def corpus_files(source: str | Path) -> list[Path]:
    """Return the files of a folder, or the file itself; a path may be written `path:PATH`.

    Raises:
        CorpusError: the path does not exist, or is not text and has none in it.
    """
    path = Path(str(source).removeprefix("path:"))
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            message = f"{path} is not text to train on. Give a folder or a file of type {', '.join(SUFFIXES)}."
            raise CorpusError(message, param="corpus")
        return [path]
    if not path.is_dir():
        message = (
            f"There is no folder or file {str(path)!r}. Give one with text ({', '.join(SUFFIXES)}), or 'sample' for "
            "the sample corpus."
        )
        raise CorpusError(message, param="corpus")
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not files:
        message = f"The folder {path} has no file of type {', '.join(SUFFIXES)}."
        raise CorpusError(message, param="corpus")
    return files


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """Positions of documents in their files: each array has one row a document."""

    files: tuple[Path, ...]
    roots: tuple[Path, ...] | None
    """Folders that files must lie in. None if they may lie anywhere."""
    file_numbers: NDArray[np.uint32]
    starts: NDArray[np.uint64]
    """First byte of each document in its file."""
    lengths: NDArray[np.uint32]
    """Length of each document in bytes."""
    digests: NDArray[np.uint8]
    """SHA-256 of each document: rows of 32 bytes."""

    def different(self) -> NDArray[np.int64]:
        """Return the numbers of all different documents in the order of their digests; of equal ones, the last."""
        order = _sorted(self.digests)
        ordered = self.digests[order]
        is_last = np.ones(len(order), dtype=bool)
        is_last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
        return order[is_last]

    def part(self, numbers: NDArray[np.int64]) -> _Index:
        """Return an index of these documents, in this order."""
        return _Index(
            self.files,
            self.roots,
            self.file_numbers[numbers],
            self.starts[numbers],
            self.lengths[numbers],
            self.digests[numbers],
        )

    def read(self, number: int) -> Document:
        """Return a document; see `StoredDocument.read`."""
        file = self.files[self.file_numbers[number]]
        with opened_text(file, self.roots) as opened:
            opened.seek(int(self.starts[number]))
            content = opened.read(int(self.lengths[number]))
        with contextlib.suppress(CorpusError):  # the message below says more
            document = document_of(file, content)
            if document.digest == self.digests[number].tobytes():
                return document
        message = f"{file} has changed since the run began to read it. Do not change text that a run uses."
        raise CorpusError(message, param="corpus")


def _index(files: tuple[Path, ...], roots: tuple[Path, ...] | None) -> _Index:
    file_numbers, starts, lengths, digests = array("I"), array("Q"), array("I"), bytearray()
    for number, file in enumerate(files):
        with opened_text(file, roots) as opened:
            for span in document_spans(file, opened):
                file_numbers.append(number)
                starts.append(span.start)
                lengths.append(span.length)
                digests += span.digest
    return _Index(
        files,
        roots,
        np.frombuffer(file_numbers, np.uint32),
        np.frombuffer(starts, np.uint64),
        np.frombuffer(lengths, np.uint32),
        np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES),
    )


def _sorted(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the numbers of rows of bytes in sorted order; equal rows keep their order."""
    width = digests.shape[1]
    return np.argsort(np.ascontiguousarray(digests).view(f"V{width}")[:, 0], kind="stable")


def _sha256(digests: NDArray[np.uint8]) -> str:
    sha256 = hashlib.sha256()
    for start in range(0, len(digests), 1 << 12):
        sha256.update(digests[start : start + (1 << 12)].tobytes().hex().encode())
    return sha256.hexdigest()
