"""The folder of an experiment's results: what it was run with, and every sample, so that a run can go on.

`run.json` says what the samples depend on, `samples.jsonl` has a line for each. A line that a crash left half written,
and a comparison of which lines are missing, are dropped when the folder is opened.
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
"""One sample with what it came from: `key`, `prompt`, `seed`, `arm`, and all that `/v1/compare` says of it."""


def digest(value: object, size: int = 32) -> str:
    """Name data that is JSON by its contents."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=size).hexdigest()


@dataclass(frozen=True, slots=True)
class Planned:
    """One comparison of an experiment: a prompt and a seed."""

    prompt: int
    """Its place among the experiment's."""
    seed: int
    messages: list[dict[str, str]]

    @property
    def key(self) -> str:
        """Names it by what it is, so that samples stay good when prompts are added or put in another order."""
        return digest([self.messages, self.seed], _KEY_BYTES)


def planned(experiment: Experiment) -> list[Planned]:
    """Return the comparisons of an experiment: all seeds of a prompt, then those of the next."""
    return [
        Planned(place, seed, messages) for place, messages in enumerate(experiment.prompts) for seed in experiment.seeds
    ]


class ResultsFolder:
    """The files of one experiment."""

    def __init__(self, path: Path) -> None:
        """Work in `path`, which is made when the first thing is written."""
        self.path = path
        self._samples = path / SAMPLES_FILE

    def run(self) -> dict[str, Any] | None:
        """Return what the samples were made with; None where there are none.

        Raises:
            ConfigError: the file cannot be read.
        """
        file = self.path / RUN_FILE
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read: {error}. Give another folder with --out.") from error
        return found

    def begin(self, run: Mapping[str, Any]) -> None:
        """Write what the samples are made with."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / RUN_FILE, run)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def clear(self) -> None:
        """Forget all samples.

        Raises:
            ConfigError: the files cannot be removed.
        """
        try:
            for name in (SAMPLES_FILE, RUN_FILE, "judgements.jsonl"):
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def append(self, records: Sequence[Record]) -> None:
        """Add the samples of one comparison, on disk when this returns."""
        append_lines(self._samples, records)

    def repaired(self, sizes: Mapping[str, int]) -> dict[str, list[Record]]:
        """Return the samples of each complete comparison, and drop what a crash left of others from the file.

        Args:
            sizes: The number of samples of the comparisons that are wanted; others are kept as they are.
        """
        found: dict[str, list[Record]] = {}
        lines = repaired_lines(self._samples)
        for record in lines:
            found.setdefault(record["key"], []).append(record)
        partial = {key for key, records in found.items() if key in sizes and len(records) != sizes[key]}
        if partial:
            kept = [record for record in lines if record["key"] not in partial]
            _rewrite(self._samples, kept)
        return {key: records for key, records in found.items() if key in sizes and key not in partial}


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add lines of JSON to a file, on disk when this returns.

    Raises:
        ConfigError: they cannot be written, as on a full disk; what was written of them is dropped by the next run.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, records)))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path.parent, error) from error


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Return what to tell of a folder that cannot be written."""
    kept = "What was kept before is there; the same command goes on."
    return ConfigError(f"{folder} cannot be written: {error.strerror}. {kept} Or give another folder with --out.")


def repaired_lines(path: Path) -> list[Record]:
    """Return the lines of a file, and take off it what a crash left of one: else the next would be added to that.

    Raises:
        ConfigError: the file cannot be read.
    """
    lines, is_whole = read_lines(path)
    if not is_whole:
        _rewrite(path, lines)
    return lines


def read_lines(path: Path) -> tuple[list[Record], bool]:
    """Return the lines of a file up to the first that is broken, and whether that is all of it.

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
        except ValueError:  # what follows may be good, but cannot be trusted to be
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
