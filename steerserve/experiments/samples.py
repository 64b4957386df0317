"""The folder of an experiment's results: its settings and every sample, so that a run can continue.

`run.json` has what the samples depend on, `samples.jsonl` one line for each sample. A line that a crash left half
written, and a comparison with missing lines, are dropped when the folder is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steerserve.core.errors import ConfigError
from steerserve.core.files import write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from steerserve.experiments.experiment import Experiment

RUN_FILE, SAMPLES_FILE = "run.json", "samples.jsonl"
_KEY_BYTES = 8

Record = dict[str, Any]
"""One sample: `key`, `prompt`, `seed`, `arm`, and the sample object of `POST /v1/compare`."""


def digest(value: object, size: int = 32) -> str:
    """Return a hash of JSON data, `size` bytes in hexadecimal."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=size).hexdigest()


@dataclass(frozen=True, slots=True)
class Planned:
    """One comparison of an experiment: a prompt and a seed."""

    prompt: int
    """Index of the prompt in the experiment."""
    seed: int
    messages: list[dict[str, str]]

    @property
    def key(self) -> str:
        """Hash of messages and seed, so that samples stay valid if prompts are added or reordered."""
        return digest([self.messages, self.seed], _KEY_BYTES)


def planned(experiment: Experiment) -> list[Planned]:
    """Return the comparisons of an experiment: all seeds of a prompt, then those of the next."""
    return [
        Planned(index, seed, messages) for index, messages in enumerate(experiment.prompts) for seed in experiment.seeds
    ]


class ResultsFolder:
    """The files of one experiment."""

    def __init__(self, path: Path) -> None:
        """Use `path`, which is created with the first file."""
        self.path = path
        self._samples = path / SAMPLES_FILE

    def run(self) -> dict[str, Any] | None:
        """Return the content of `run.json`; None if the file does not exist.

        Raises:
            ConfigError: the file cannot be read.
        """
        file = self.path / RUN_FILE
        try:
            run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}. Give another folder with --out.") from error
        return run

    def begin(self, run: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / RUN_FILE, run)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def clear(self) -> None:
        """Delete all samples.

        Raises:
            ConfigError: the files cannot be removed.
        """
        try:
            for name in (SAMPLES_FILE, RUN_FILE, "judgements.jsonl"):
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def append(self, records: Sequence[Record]) -> None:
        """Add the samples of one comparison; they are on the disk when this returns."""
        append_lines(self._samples, records)

    def repaired(self, sizes: Mapping[str, int]) -> dict[str, list[Record]]:
        """Return the samples of each complete comparison; drop incomplete comparisons from the file.

        Args:
            sizes: The number of samples of each planned comparison, by key; other comparisons are left alone.
        """
        samples: dict[str, list[Record]] = {}
        lines = repaired_lines(self._samples)
        for record in lines:
            samples.setdefault(record["key"], []).append(record)
        partial = {key for key, records in samples.items() if key in sizes and len(records) != sizes[key]}
        if partial:
            kept = [record for record in lines if record["key"] not in partial]
            _rewrite(self._samples, kept)
        return {key: records for key, records in samples.items() if key in sizes and key not in partial}


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add lines of JSON to a file; they are on the disk when this returns.

    Raises:
        ConfigError: the file cannot be written, such as on a full disk; the next run drops a partial write.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path.parent, error) from error


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Return the error for a folder that cannot be written."""
    message = (
        f"{folder} cannot be written: {error.strerror}. Earlier results are kept; run the same command to continue, or "
        "give another folder with --out."
    )
    return ConfigError(message)


def repaired_lines(path: Path) -> list[Record]:
    """Return the lines of a file, and remove a partial last line, to which the next line would be added.

    Raises:
        ConfigError: the file cannot be read.
    """
    lines, is_whole = read_lines(path)
    if not is_whole:
        _rewrite(path, lines)
    return lines


def read_lines(path: Path) -> tuple[list[Record], bool]:
    """Return the lines of a file up to the first broken one, and whether the file has no broken line.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return [], True
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    records: list[Record] = []
    *lines, rest = text.split(b"\n")
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # the lines after a broken one cannot be trusted
            return records, False
        if not isinstance(record, dict):
            return records, False
        records.append(record)
    return records, not rest


def _rewrite(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    try:
        write_text(path, "".join(map(_line, records)))
    except OSError as error:
        raise unwritable(path.parent, error) from error


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
