"""Whether a run may begin here: its text, its folder and the room it needs. Asked before it is queued."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from steerserve.core.errors import CorpusError, InvalidRequestError
from steerserve.text.corpus import SUFFIXES
from steerserve.text.hub import HubText
from steerserve.text.sample import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.jobs.job import Job
    from steerserve.training.options import TrainOptions

OWN_TEXT = "self"
_FLOAT16_BYTES, _FLOAT32_BYTES = 2, 4
_CHECKPOINT_COPIES = 6
"""Weights and Adam's two moments, twice: the checkpoint before stays until the new one is whole."""
_BUFFER_COPIES = 2
"""One in each checkpoint."""
_TRAINING_COPIES = 4
"""Weights, gradients and Adam's two moments."""
_BATCH_COPIES = 3
"""Of a batch's feature activations: before and after the non-linearity, and their gradient."""
_SAMPLED_ROWS = 200_000
"""Of activations that a dictionary is measured on when it is trained."""
_LOGIT_COPIES = 5
"""Of a batch's logits that lie side by side while held-out text is measured."""
_LOGIT_ROWS = 512
_INDEX_SHARE = 0.5
"""Of a corpus's size: some 200 bytes a document while all are found, and most have over 400. None is held in memory."""
MAX_CORPUS_BYTES = 4 * 10**9
"""Of the files that one job reads."""
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
    """Of the machine."""
    device_memory: int = 0
    """Of the model's device, where that has a memory of its own."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the model takes in a process of its own."""

    weight_bytes: int
    vocab_size: int
    widths: Mapping[str, int]
    """Of the vectors at its hook points."""
    is_on_cpu: bool = True


def check_corpus(entry: str, allowed_dirs: Sequence[Path], param: str = "corpus") -> str:
    """Return an entry of a request's corpus as training takes it; files only from the allowed folders.

    `param` is what the request calls it.

    Raises:
        InvalidRequestError: it is none of `self`, `sample`, `path:...` and `hf:NAME`; or the path does not exist or
            lies outside of `allowed_dirs`.
    """
    kind, colon, name = entry.partition(":")
    if entry in {OWN_TEXT, SAMPLE}:
        return entry
    if kind == "hf" and colon:
        try:
            HubText.parse(name)
        except CorpusError as error:
            raise InvalidRequestError(error.message, param=param) from error
        return entry
    if kind == "path" and colon:
        return str(_check_path(name, allowed_dirs, param))
    message = (
        f"The corpus '{_short(entry)}' is none of 'self' (text that the model writes), 'sample' (the sample corpus), "
        "'path:FOLDER_OR_FILE' and 'hf:OWNER/NAME'."
    )
    raise InvalidRequestError(message, param=param)


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


def corpus_bytes(corpus: Sequence[str], tokens: int) -> int:
    """Return the size of a job's text: of its files, and of what must be fetched or written first.

    Raises:
        InvalidRequestError: its files are more than one job reads.
    """
    paths = [Path(entry) for entry in corpus if not _is_made(entry)]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,))]
    found = sum(file.stat().st_size for file in files if file.suffix.lower() in SUFFIXES and file.is_file())
    if found > MAX_CORPUS_BYTES:
        message = (
            f"The corpus has {_size(found)} of text, and one job reads at most {_size(MAX_CORPUS_BYTES)}. Send a "
            "folder with a part of it."
        )
        raise InvalidRequestError(message, param="corpus")
    return found + (tokens * _TEXT_BYTES_PER_TOKEN if any(map(_is_made, corpus)) else 0)


def room_for(options: TrainOptions, model: ModelSize) -> Room:
    """Return what a run takes.

    Raises:
        InvalidRequestError: its corpus is more than one job reads.
    """
    widths = model.widths
    num_weights = [2 * widths[one.hook] * one.d_sae for one in options.dictionaries]
    weights = sum(num_weights) * _FLOAT32_BYTES
    buffer = options.buffer_mb * 1_000_000 if options.storage == "buffer" else 0
    disk = weights * _CHECKPOINT_COPIES + buffer * _BUFFER_COPIES
    if options.storage == "disk":
        disk += sum(options.tokens * widths[hook] * _FLOAT16_BYTES for hook in options.hooks)
    if any(map(_is_made, options.corpus)):
        disk += options.tokens * _TEXT_BYTES_PER_TOKEN
    batch = options.tokens_a_step * max(one.d_sae for one in options.dictionaries) * _FLOAT32_BYTES
    logits = _LOGIT_ROWS * model.vocab_size * _FLOAT32_BYTES * _LOGIT_COPIES
    computing = model.weight_bytes + weights * _TRAINING_COPIES + batch * _BATCH_COPIES + logits
    rows = min(options.tokens, _SAMPLED_ROWS) * max(widths[hook] for hook in options.hooks) * _FLOAT32_BYTES
    holding = buffer + rows + int(corpus_bytes(options.corpus, options.tokens) * _INDEX_SHARE)
    return Room(disk, holding + computing) if model.is_on_cpu else Room(disk, holding, computing)


def check_interpretation_room(
    sizes: Sequence[tuple[int, int]],
    weight_bytes: int,
    corpus: Sequence[str],
    tokens: int,
    folder: Path,
    *,
    promised_bytes: int,
) -> int:
    """Check that the disk and the memory have room for an interpretation; return what it takes of the disk.

    Args:
        sizes: Vector width and number of features of each dictionary.
        weight_bytes: Of the model, where it lies in the machine's memory.
        corpus: Where the text comes from.
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
    memory += weight_bytes + int(corpus_bytes(corpus, tokens) * _INDEX_SHARE)
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
            f"Interpreting needs about {_size(memory + _INTERPRET_BYTES)} of memory, and "
            f"{_size(available)} are free. {advice}"
        )
        raise InvalidRequestError(message, param="dictionaries", code="insufficient_memory")
    return disk


def disk_shortage(job: Job, folder: Path) -> str | None:
    """Say what a job that is about to start for the first time lacks on the disk; None where it lacks nothing."""
    needed, free = int(job.spec.get("disk_bytes", 0)), shutil.disk_usage(_existing(folder)).free - _DISK_MARGIN_BYTES
    if job.started is not None or needed <= free:
        return None
    return (
        f"The job needs up to {_size(needed)} on the disk of the dictionaries, where {_size(max(free, 0))} are free by "
        "now. Free some, and send it again."
    )


def check_room(
    room: Room, folder: Path, *, promised_bytes: int, max_dictionary_bytes: int, largest: int, device_free: int
) -> None:
    """Check that the disk and the memory have room for a run.

    Args:
        room: What it takes.
        folder: Where its files go.
        promised_bytes: What other jobs take of the disk.
        max_dictionary_bytes: The largest dictionary that the server would load.
        largest: The size of the run's largest dictionary.
        device_free: The free memory of the model's device.

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
    if room.device_memory > device_free:
        message = (
            f"Training needs about {_size(room.device_memory)} of the device's memory, and {_size(device_free)} are "
            "free beside the server. Send a smaller d_sae or batch_size, or fewer dictionaries at once."
        )
        raise InvalidRequestError(message, param="d_sae", code="insufficient_memory")


def _is_made(entry: str) -> bool:
    """Tell whether text must be fetched or written first."""
    return entry in {OWN_TEXT, SAMPLE} or entry.startswith("hf:")


def _check_path(name: str, allowed_dirs: Sequence[Path], param: str) -> Path:
    allowed = ", ".join(str(folder) for folder in allowed_dirs) or "none"
    try:
        path = Path(name).resolve()
        roots = [folder.resolve() for folder in allowed_dirs]
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name too long, links in a circle
        message = f"The corpus 'path:{_short(name)}' is no path. Folders that it may lie in: {allowed}."
        raise InvalidRequestError(message, param=param) from error
    if not any(path.is_relative_to(root) for root in roots):
        message = f"The corpus 'path:{_short(name)}' lies outside the folders that corpora may lie in ({allowed})."
        raise InvalidRequestError(message, param=param)
    if not (path.is_dir() or (path.is_file() and path.suffix.lower() in SUFFIXES)):
        message = f"The corpus 'path:{_short(name)}' is neither a folder nor a file of type {', '.join(SUFFIXES)}."
        raise InvalidRequestError(message, param=param)
    return path


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that there is."""
    return next((path for path in (folder, *folder.parents) if path.exists()), Path.cwd())


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 10**8 else f"{num_bytes / 1e6:.1f} MB"


def _short(text: str) -> str:
    return repr(text[:200])[1:-1]
