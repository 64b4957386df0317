"""Fetches dictionaries from a model hub with the hub's client: only one folder's files, after checking their sizes."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from steerserve.core.errors import DictionarySourceError
from steerserve.core.hub import UNREACHABLE, hub_failure
from steerserve.core.progress import progress_line
from steerserve.dictionaries.conversions import OUTER_CONFIG_FILE
from steerserve.dictionaries.files import MAX_JSON_BYTES, SourceFolder, refusal
from steerserve.dictionaries.layouts import LAYOUTS, REPORT_FILE, find_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.dictionaries.weights import SizeLimit

_REPO = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?", re.ASCII)
_TIMEOUT_S = 30.0
_MAX_VALUE_BYTES = 8
"""Bytes of the largest stored value; the limit counts four, those of float32."""


def split_repo(name: str, source: str) -> tuple[str, str]:
    """Return repository and folder of `ORGANISATION/NAME[/FOLDER]`.

    Raises:
        DictionarySourceError: the name has another form.
    """
    match = _REPO.fullmatch(name.rstrip("/"))
    folder = (match[2] or "") if match else ""
    if match is None or not {"", ".", ".."}.isdisjoint(folder.split("/") if folder else ()):
        raise refusal(source, "must be hf:ORGANISATION/REPOSITORY or hf:ORGANISATION/REPOSITORY/FOLDER")
    return match[1], folder


def fetch_folder(name: str, source: str, limit: SizeLimit) -> SourceFolder:
    """Fetch the files of a dictionary, or take them from the client's cache if the hub cannot be reached.

    Raises:
        DictionarySourceError: the folder does not exist or holds no dictionary, or the hub cannot be reached.
    """
    repo, folder = split_repo(name, source)
    with hub_refusals(source, repo), progress_line(f"Fetching {source}"):
        path = _fetch(repo, folder, source, limit)
    return SourceFolder(path, source, PurePosixPath(folder).name or PurePosixPath(repo).name)


@contextlib.contextmanager
def hub_refusals(source: str, repo: str) -> Iterator[None]:
    """Turn the errors of the hub's client, and of libraries that use it, into one sentence.

    Raises:
        DictionarySourceError: the client failed.
    """
    try:
        yield
    except DictionarySourceError:
        raise
    except Exception as error:
        failure = hub_failure(error, repo)
        if failure is None:
            raise
        advice = ", or give a bundled: or path: source" if failure == UNREACHABLE else ""
        raise refusal(source, f"cannot be fetched: {failure}{advice}") from error


def _fetch(repo: str, folder: str, source: str, limit: SizeLimit) -> Path:
    from huggingface_hub import hf_hub_download, model_info  # noqa: PLC0415 slow import, needed for hub sources alone
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        info = model_info(repo, files_metadata=True, timeout=_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # noqa: BLE001 the hub did not answer; the transport has many errors for that
        return _cached(repo, folder)
    files = {PurePosixPath(file.rfilename): file.size for file in info.siblings or ()}
    sizes = {path.name: size for path, size in files.items() if path.parent == PurePosixPath(folder)}
    if not sizes:
        raise EntryNotFoundError(folder)
    layout = find_layout(sizes, source)
    names = [layout.config, *([REPORT_FILE] if REPORT_FILE in sizes else []), layout.weights]
    limits = dict.fromkeys(names, MAX_JSON_BYTES)
    limits[layout.weights] = MAX_JSON_BYTES + _MAX_VALUE_BYTES * limit.max_bytes // 4
    for name in names:
        size = sizes[name]
        if size is None:
            raise refusal(source, f"cannot be fetched: the hub does not say how large {name} is")
        if size > limits[name]:
            raise refusal(source, f"is too large: {name} has {size} bytes, and at most {limits[name]} are read")
    prefix = f"{folder}/" if folder else ""
    # From the same commit as the checked sizes.
    paths = {Path(hf_hub_download(repo, prefix + name, revision=info.sha)).parent for name in names}
    # Again by its branch, as the cache is searched when the hub does not answer; nothing is transferred twice.
    paths.add(Path(hf_hub_download(repo, prefix + layout.config)).parent)
    if len(paths) > 1:
        raise refusal(source, "changed while it was fetched; try again")
    outer = PurePosixPath(folder).parent / OUTER_CONFIG_FILE
    outer_size = files.get(outer)
    if folder and layout.config != OUTER_CONFIG_FILE and outer_size is not None and outer_size <= MAX_JSON_BYTES:
        hf_hub_download(repo, str(outer), revision=info.sha)
    return paths.pop()


def _cached(repo: str, folder: str) -> Path:
    """Return the folder in the client's cache, which must hold a complete dictionary."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 slow import, needed for hub sources alone
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    prefix = f"{folder}/" if folder else ""
    for layout in LAYOUTS:
        with contextlib.suppress(LocalEntryNotFoundError):
            hf_hub_download(repo, prefix + layout.weights, local_files_only=True)
            return Path(hf_hub_download(repo, prefix + layout.config, local_files_only=True)).parent
    raise LocalEntryNotFoundError(repo)
