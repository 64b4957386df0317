"""What a worker does for each kind of job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerserve.core.files import read_json
from steerserve.interpret.options import InterpretOptions
from steerserve.training.options import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from steerserve.core.observer import Observer

    Work = Callable[[Mapping[str, Any], Observer], dict[str, Any]]
    """Takes a job's spec and an observer, returns its result; may raise any error."""


def train_dictionaries(spec: Mapping[str, Any], observer: Observer) -> dict[str, Any]:
    """Train what `spec` says, going on where an earlier worker stopped; returns the dictionaries with their reports.

    Raises:
        StoppedError: the observer asked to stop, and what there is was saved.
        SteerserveError: what is asked for cannot be done.
    """
    import torch  # noqa: PLC0415 only once the process has stepped aside, since torch makes threads

    from steerserve.jobs.training import train_from_anywhere  # noqa: PLC0415

    torch.set_num_threads(spec["threads"])
    options = TrainOptions.from_json(spec["options"])
    folders = train_from_anywhere(options, observer)
    return {
        "dictionaries": [
            {
                "id": dictionary.id,
                "source": f"path:{folder}",
                "report": _report(folder),
            }
            for dictionary, folder in zip(options.dictionaries, folders, strict=True)
        ]
    }


def interpret_dictionaries(spec: Mapping[str, Any], observer: Observer) -> dict[str, Any]:
    """Interpret what `spec` says, going on where an earlier worker stopped; returns what is known of each dictionary.

    Raises:
        StoppedError: the observer asked to stop, and what there is was saved.
        SteerserveError: what is asked for cannot be done.
    """
    import torch  # noqa: PLC0415 only once the process has stepped aside, since torch makes threads

    from steerserve.jobs.interpreting import interpret_from_anywhere  # noqa: PLC0415

    torch.set_num_threads(spec["threads"])
    found = interpret_from_anywhere(InterpretOptions.from_json(spec["options"]), observer)
    return {"dictionaries": [one.as_json() for one in found]}


def _report(folder: Path) -> dict[str, Any]:
    """Return a dictionary's report without its curves, which are long, and which the dictionary itself has."""
    return {name: value for name, value in read_json(folder / "report.json").items() if name != "history"}


WORK: Mapping[str, Work] = {"train": train_dictionaries, "interpret": interpret_dictionaries}
