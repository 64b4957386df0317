"""Whether a run may begin here: its text, its folder and the room it needs. Asked before it is queued."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from steerserve.core.errors import CorpusError, InvalidRequestError
from steerserve.jobs.hub_text import HubText
from steerserve.training.corpus import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.training.options import TrainOptions

OWN_TEXT = "self"
_FLOAT16_BYTES, _FLOAT32_BYTES = 2, 4
_CHECKPOINT_COPIES = 4
"""Weights and Adam's two moments, and the checkpoint before, which stays until the new one is whole."""
_TRAINING_COPIES = 4
"""Weights, gradients and Adam's two moments."""
_BATCH_COPIES = 3
"""Of a batch's feature activations: before and after the non-linearity, and their gradient."""
_TEXT_BYTES_PER_TOKEN = 16
"""Of text that must be fetched or written first, generously."""
TALLY_BYTES = 24_000
"""Of what an interpretation keeps of one feature while it reads, at most."""
_STORE_BYTES = 8_000
"""Of a feature in the store, with its indexes, generously."""
_INTERPRET_BYTES = 512 * 1024**2
"""Of batches and of logits, whatever the dictionary."""
_DISK_MARGIN_BYTES = 512 * 1024**2
"""Left to whatever else writes on the same disk."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a run takes at most, in bytes."""

    disk: int
    memory: int


def check_corpus(entry: str, allowed_dirs: Sequence[Path]) -> str:
    """Return an entry of a request's corpus as training takes it; files only from the allowed folders.

    Raises:
        InvalidRequestError: it is none of `self`, `path:...` and `hf:NAME`, lies elsewhere, or does not exist.
    """
    kind, colon, name = entry.partition(":")
    if entry == OWN_TEXT:
        return entry
    if kind == "hf" and colon:
        try:
            HubText.parse(name)
        except CorpusError as error:
            raise InvalidRequestError(error.message, param="corpus") from error
        return entry
    if kind == "path" and colon:
        return str(_check_path(name, allowed_dirs))
    message = (
        f"The corpus '{_short(entry)}' is none of 'self' (text that the model writes), 'path:FOLDER_OR_FILE' and "
        "'hf:OWNER/NAME'."
    )
    raise InvalidRequestError(message, param="corpus")


def check_folder(options: TrainOptions) -> None:
    """Check that the run does not meet the result, or the rest, of another one in its folder.

    Raises:
        InvalidRequestError: it does.
    """
    claim = options.run_dir / "options.json"
    # A run writes its dictionaries first and then their reports, and is stopped at any moment in between.
    folders = [options.folder(one) for one in options.dictionaries]
    is_under_way = claim.is_file() and not all((folder / "report.json").exists() for folder in folders)
    for one, folder in zip(options.dictionaries, folders, strict=True):
        if not is_under_way and any((folder / name).exists() for name in ("cfg.json", "report.json")):
            message = (
                f"There is a finished dictionary {one.id!r} in the first of dictionary_dirs already. Take another id, "
                f"or serve it: POST /admin/dictionaries with the source 'path:{folder}'."
            )
            raise InvalidRequestError(message, param="id")
    if not claim.is_file():
        return
    try:
        found = json.loads(claim.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # the run itself says what is wrong with it
    wanted = json.loads(json.dumps(options.what_shapes_the_result()))
    if others := [name for name in wanted if found.get(name) != wanted[name]]:
        message = (
            f"An unfinished run of {options.out.name!r} was begun with another {', '.join(others)}. Send the same "
            f"values to go on with it, take another id, or remove the folder {options.run_dir} on the server."
        )
        raise InvalidRequestError(message, param="id")


def room_for(options: TrainOptions, widths: Mapping[str, int]) -> Room:
    """Return what a run takes; `widths` are the sizes of the vectors at its hook points."""
    num_weights = [2 * widths[one.hook] * one.d_sae for one in options.dictionaries]
    weights = sum(num_weights) * _FLOAT32_BYTES
    disk = weights * (1 + _CHECKPOINT_COPIES)
    if options.storage == "disk":
        disk += sum(options.tokens * widths[hook] * _FLOAT16_BYTES for hook in options.hooks)
    if any(entry == OWN_TEXT or entry.startswith("hf:") for entry in options.corpus):
        disk += options.tokens * _TEXT_BYTES_PER_TOKEN
    batch = options.tokens_a_step * max(one.d_sae for one in options.dictionaries) * _FLOAT32_BYTES
    buffer = options.buffer_mb * 1_000_000 if options.storage == "buffer" else 0
    return Room(disk, weights * _TRAINING_COPIES + batch * _BATCH_COPIES + buffer)


def check_interpretation_room(
    sizes: Sequence[tuple[int, int]], tokens: int, folder: Path, *, promised_bytes: int
) -> int:
    """Check that the disk and the memory have room for an interpretation; return what it takes of the disk.

    Args:
        sizes: Vector width and number of features of each dictionary.
        tokens: That are read.
        folder: Where its files go.
        promised_bytes: What other jobs take of the disk.

    Raises:
        InvalidRequestError: they have not; the message says how much is missing.
    """
    num_features = sum(d_sae for _, d_sae in sizes)
    # The checkpoint before stays until the new one is whole, and so does the store.
    disk = num_features * 2 * (TALLY_BYTES + _STORE_BYTES) + tokens * _TEXT_BYTES_PER_TOKEN
    memory = num_features * TALLY_BYTES + 2 * sum(d_in * d_sae for d_in, d_sae in sizes) * _FLOAT32_BYTES
    advice = "Send fewer dictionaries at once."
    free = shutil.disk_usage(_existing(folder)).free - _DISK_MARGIN_BYTES - promised_bytes
    if disk > free:
        message = (
            f"Interpreting needs up to {_size(disk)} on the disk of the dictionaries, where {_size(max(free, 0))} are "
            f"free. {advice}"
        )
        raise InvalidRequestError(message, param="dictionaries", code="insufficient_disk_space")
    available = psutil.virtual_memory().available
    if memory + _INTERPRET_BYTES > available:
        message = (
            f"Interpreting needs about {_size(memory + _INTERPRET_BYTES)} of memory beside the model, and "
            f"{_size(available)} are free. {advice}"
        )
        raise InvalidRequestError(message, param="dictionaries", code="insufficient_memory")
    return disk


def check_room(room: Room, folder: Path, *, promised_bytes: int, max_dictionary_bytes: int, largest: int) -> None:
    """Check that the disk and the memory have room for a run.

    Args:
        room: What it takes.
        folder: Where its files go.
        promised_bytes: What other jobs take of the disk.
        max_dictionary_bytes: The largest dictionary that the server would load.
        largest: The size of the run's largest dictionary.

    Raises:
        InvalidRequestError: they have not; the message says how much is missing.
    """
    if largest > max_dictionary_bytes:
        message = (
            f"A dictionary of {_size(largest)} is over max_dictionary_bytes ({_size(max_dictionary_bytes)}), the "
            "largest that this server loads. Take a smaller d_sae."
        )
        raise InvalidRequestError(message, param="d_sae")
    free = shutil.disk_usage(_existing(folder)).free - _DISK_MARGIN_BYTES - promised_bytes
    if room.disk > free:
        promised = f" and {_size(promised_bytes)} are kept for other jobs" if promised_bytes else ""
        message = (
            f"Training needs up to {_size(room.disk)} on the disk of the dictionaries, where {_size(max(free, 0))} are "
            f"free{promised}. Send fewer tokens, a smaller d_sae, or 'storage': 'buffer'."
        )
        raise InvalidRequestError(message, param="tokens", code="insufficient_disk_space")
    available = psutil.virtual_memory().available
    if room.memory > available:
        message = (
            f"Training needs about {_size(room.memory)} of memory, and {_size(available)} are free. Send a smaller "
            "d_sae or batch_size, or fewer dictionaries at once."
        )
        raise InvalidRequestError(message, param="d_sae", code="insufficient_memory")


def _check_path(name: str, allowed_dirs: Sequence[Path]) -> Path:
    allowed = ", ".join(str(folder) for folder in allowed_dirs) or "none"
    try:
        path = Path(name).resolve()
        roots = [folder.resolve() for folder in allowed_dirs]
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name too long, links in a circle
        message = f"The corpus 'path:{_short(name)}' is no path. Folders that it may lie in: {allowed}."
        raise InvalidRequestError(message, param="corpus") from error
    if not any(path.is_relative_to(root) for root in roots):
        message = f"The corpus 'path:{_short(name)}' lies outside the folders that corpora may lie in ({allowed})."
        raise InvalidRequestError(message, param="corpus")
    if not (path.is_dir() or (path.is_file() and path.suffix.lower() in SUFFIXES)):
        message = f"The corpus 'path:{_short(name)}' is neither a folder nor a file of type {', '.join(SUFFIXES)}."
        raise InvalidRequestError(message, param="corpus")
    return path


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that there is."""
    return next((path for path in (folder, *folder.parents) if path.exists()), Path.cwd())


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 10**8 else f"{num_bytes / 1e6:.1f} MB"


def _short(text: str) -> str:
    return repr(text[:200])[1:-1]
