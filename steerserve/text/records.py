"""A JSONL file that grows line by line over several runs, and has its name only once it is whole."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Self

from steerserve.core.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

NUMBER = "number"
"""The key of a record's place in its source; what follows the last one is still to come."""


class RecordFile:
    """Records in the order of their source, some of which may be left out.

    A run that is killed loses the line it was writing and nothing else: the next one takes up behind the last whole
    record. Two runs at a time on one file are not meant.
    """

    def __init__(self, path: Path) -> None:
        """Write to `path`; until it is whole, to `path` with `.part` behind it."""
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._file: IO[str] | None = None
        self.num_seen = 0
        """Items of the source that need not be looked at again."""

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing left to do."""
        return self.path.is_file()

    def open(self) -> list[dict[str, Any]]:
        """Begin to write; return the records that are there already.

        Raises:
            CorpusError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            there, size = self._read()
            if self._part.exists():
                os.truncate(self._part, size)
            self._file = self._part.open("a", encoding="utf-8")
        except OSError as error:
            message = f"{self._part} cannot be written: {error.strerror}."
            raise CorpusError(message, param="corpus") from error
        self.num_seen = there[-1][NUMBER] + 1 if there else 0
        return there

    def add(self, number: int, record: dict[str, Any]) -> None:
        """Append the record made from item `number` of the source; it is on its way to the disk when this returns."""
        if self._file is None:
            message = f"{self._part} is not open."
            raise CorpusError(message, param="corpus")
        try:
            self._file.write(json.dumps({**record, NUMBER: number}, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            message = f"{self._part} cannot be written: {error.strerror}."
            raise CorpusError(message, param="corpus") from error
        self.num_seen = number + 1

    def finish(self) -> None:
        """Give the file its name."""
        self.close()
        self._part.replace(self.path)

    def close(self) -> None:
        """End writing; any number of times."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        """Return the file, for `open` to begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """Return the whole records, and the length in bytes up to the end of the last of them."""
        records: list[dict[str, Any]] = []
        size = 0
        for line in self._lines():
            try:
                record = json.loads(line)
                records.append({**record, NUMBER: int(record[NUMBER])})
            except (ValueError, TypeError, KeyError):  # what a crash of the machine left
                break
            size += len(line)
        return records, size

    def _lines(self) -> Iterator[bytes]:
        if not self._part.exists():
            return
        with self._part.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line
