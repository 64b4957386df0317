"""Whether the corpus and the folder that a request names can be used. Checked before a job is queued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from steerserve.core.errors import CorpusError, InvalidRequestError
from steerserve.jobs.corpus import HUB, SELF
from steerserve.text.corpus import SUFFIXES
from steerserve.text.hub import HubText
from steerserve.text.sample import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.training.options import TrainOptions

_MAX_SHOWN_CHARS = 200


def check_corpus(corpus: str | Sequence[str], allowed_dirs: Sequence[Path]) -> tuple[str, ...]:
    """Return the `corpus` of a request as training and interpretation read it.

    Args:
        corpus: One entry or several: `self`, `sample`, `path:FOLDER_OR_FILE` or `hf:OWNER/NAME`.
        allowed_dirs: Files and folders must lie within these.

    Raises:
        InvalidRequestError: an entry is none of these, lies elsewhere, or does not exist.
    """
    if isinstance(corpus, str):
        return (_check_entry(corpus, allowed_dirs, "corpus"),)
    return tuple(_check_entry(entry, allowed_dirs, f"corpus[{index}]") for index, entry in enumerate(corpus))


def check_folder(options: TrainOptions) -> None:
    """Check that the run's folder holds no finished dictionary and no unfinished run with other options.

    Raises:
        InvalidRequestError: it holds one.
    """
    begun = options.run_dir / "options.json"
    # A run writes its dictionaries first and then their reports, and may be stopped between the two.
    folders = [options.folder(dictionary) for dictionary in options.dictionaries]
    is_under_way = begun.is_file() and not all((folder / "report.json").exists() for folder in folders)
    for dictionary, folder in zip(options.dictionaries, folders, strict=True):
        if not is_under_way and any((folder / name).exists() for name in ("cfg.json", "report.json")):
            message = (
                f"The first of dictionary_dirs holds a finished dictionary {dictionary.id!r} already. Send another id, "
                f"or serve that dictionary: POST /admin/dictionaries with the source 'path:{folder}'."
            )
            raise InvalidRequestError(message, param="id")
    if not begun.is_file():
        return
    try:
        previous = json.loads(begun.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # the run itself reports what is wrong with the file
    requested = json.loads(json.dumps(options.what_shapes_the_result()))
    if changed := [name for name in requested if previous.get(name) != requested[name]]:
        message = (
            f"The unfinished run of {options.out.name!r} has another {', '.join(changed)}. Send the same values to "
            f"continue it, send another id, or remove the folder {options.run_dir} on the server."
        )
        raise InvalidRequestError(message, param="id")


def _check_entry(entry: str, allowed_dirs: Sequence[Path], param: str) -> str:
    if entry in {SELF, SAMPLE}:
        return entry
    if entry.startswith(HUB):
        try:
            HubText.parse(entry.removeprefix(HUB))
        except CorpusError as error:
            raise InvalidRequestError(error.message, param=param) from error
        return entry
    if entry.startswith("path:"):
        return str(_check_path(entry, allowed_dirs, param))
    message = (
        f"The corpus '{_shown(entry)}' must be 'self' (text that the model writes), 'sample' (the sample corpus), "
        "'path:FOLDER_OR_FILE' or 'hf:OWNER/NAME'."
    )
    raise InvalidRequestError(message, param=param)


def _check_path(entry: str, allowed_dirs: Sequence[Path], param: str) -> Path:
    reason = None
    try:
        path = Path(entry.removeprefix("path:")).resolve()
        roots = [folder.resolve() for folder in allowed_dirs]
    except (OSError, ValueError, RuntimeError):  # a NUL character, a name too long, links in a circle
        reason = "is not a valid path"
    else:
        if not any(path.is_relative_to(root) for root in roots):
            folders = ", ".join(str(folder) for folder in allowed_dirs) or "none"
            reason = f"lies outside the folders that corpora may lie in ({folders})"
        elif not (path.is_dir() or (path.is_file() and path.suffix.lower() in SUFFIXES)):
            reason = f"is neither a folder nor a file of type {', '.join(SUFFIXES)}"
    if reason is not None:
        raise InvalidRequestError(f"The corpus '{_shown(entry)}' {reason}.", param=param)
    return path


def _shown(text: str) -> str:
    return repr(text[:_MAX_SHOWN_CHARS])[1:-1]
