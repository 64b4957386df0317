"""A JSONL file that is written over several runs, line by line, and gets its name when it is complete."""

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
"""The key of a record's number in its source."""


class RecordFile:
    """Records in the order of their source; items of the source may be left out.

    A run that is killed loses only the line that it was writing: the next run appends behind the last complete record.
    Only one run at a time may write a file.
    """

    def __init__(self, path: Path) -> None:
        """Write to `path` with `.part` behind it, and to `path` when the file is complete."""
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._file: IO[str] | None = None
        self.num_seen = 0
        """Number of items of the source that earlier runs have read."""

    @property
    def is_whole(self) -> bool:
        """Whether the file is complete."""
        return self.path.is_file()

    def open(self) -> list[dict[str, Any]]:
        """Open the file to append to it; return the records that it has.

        Raises:
            CorpusError: the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            records, size = self._read()
            if self._part.exists():
                os.truncate(self._part, size)
            self._file = self._part.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        self.num_seen = records[-1][NUMBER] + 1 if records else 0
        return records

    def add(self, number: int, record: dict[str, Any]) -> None:
        """Append the record made from item `number` of the source, and hand it to the operating system."""
        if self._file is None:
            message = f"{self._part} is not open."
            raise CorpusError(message, param="corpus")
        try:
            self._file.write(json.dumps({**record, NUMBER: number}, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self.num_seen = number + 1

    def finish(self) -> None:
        """Close the file, and give it its name."""
        self.close()
        self._part.replace(self.path)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        """Return the file, which `open` opens."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def _unwritable(self, error: OSError) -> CorpusError:
        return CorpusError(f"{self._part} cannot be written: {error.strerror}.", param="corpus")

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        """Return the complete records, and the length in bytes up to the end of the last of them."""
        records: list[dict[str, Any]] = []
        size = 0
        for line in self._lines():
            try:
                record = json.loads(line)
                records.append({**record, NUMBER: int(record[NUMBER])})
            except (ValueError, TypeError, KeyError):  # damaged by a crash of the machine
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
