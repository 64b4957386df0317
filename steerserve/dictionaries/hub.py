"""Dictionaries from a model hub, through its own client: only the wanted folder's files, looked at before they come."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from steerserve.core.errors import DictionarySourceError
from steerserve.core.progress import progress_line
from steerserve.dictionaries.conversions import OUTER_CONFIG_FILE
from steerserve.dictionaries.files import MAX_JSON_BYTES, SourceFolder, refusal
from steerserve.dictionaries.layouts import LAYOUTS, REPORT_FILE, find_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steerserve.dictionaries.weights import SizeLimit

_REPO = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?", re.ASCII)
_TIMEOUT_S = 30.0
_TRANSPORTS = frozenset({"httpx", "httpcore"})
_MOST_ITEM_BYTES = 8
"""Of a stored value, against the four of float32 in which the limit counts."""


def split_repo(name: str, source: str) -> tuple[str, str]:
    """Return repository and folder of `ORGANISATION/NAME[/FOLDER]`.

    Raises:
        DictionarySourceError: it is not written so.
    """
    found = _REPO.fullmatch(name.rstrip("/"))
    folder = (found[2] or "") if found else ""
    if found is None or not {"", ".", ".."}.isdisjoint(folder.split("/") if folder else ()):
        raise refusal(source, "must be hf:ORGANISATION/REPOSITORY or hf:ORGANISATION/REPOSITORY/FOLDER")
    return found[1], folder


def fetch_folder(name: str, source: str, limit: SizeLimit) -> SourceFolder:
    """Fetch the files of a dictionary, or take them from the hub's cache where it cannot be reached.

    Raises:
        DictionarySourceError: there is no such folder, it holds no dictionary, or the hub cannot be reached.
    """
    repo, folder = split_repo(name, source)
    with hub_refusals(source, repo), progress_line(f"Fetching {source}"):
        path = _fetch(repo, folder, source, limit)
    return SourceFolder(path, source, PurePosixPath(folder).name or PurePosixPath(repo).name)


@contextlib.contextmanager
def hub_refusals(source: str, repo: str) -> Iterator[None]:
    """Say in one sentence what the hub's client, or a library on top of it, failed at.

    Raises:
        DictionarySourceError: it failed.
    """
    from huggingface_hub.errors import (  # noqa: PLC0415 slow import, needed for hub sources alone
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except DictionarySourceError:
        raise
    except GatedRepoError as error:
        raise refusal(source, f"is in the gated repository {repo}: accept its terms there and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise refusal(
            source, f"is not there: the hub has no repository {repo}, or HF_TOKEN does not open it"
        ) from error
    except HFValidationError as error:
        raise refusal(source, f"is not there: {repo} is no name of a hub repository") from error
    except LocalEntryNotFoundError as error:
        raise _unreachable(source) from error
    except EntryNotFoundError as error:
        raise refusal(
            source, f"is not there: the hub repository {repo} has no such folder, or not all files"
        ) from error
    except HfHubHTTPError as error:
        raise refusal(source, f"cannot be fetched: the hub answered {error.response.status_code}") from error
    except Exception as error:
        # The client's transport raises errors of its own where there is no answer at all.
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _TRANSPORTS:
            raise _unreachable(source) from error
        raise


def _fetch(repo: str, folder: str, source: str, limit: SizeLimit) -> Path:
    from huggingface_hub import hf_hub_download, model_info  # noqa: PLC0415 as above
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError  # noqa: PLC0415

    try:
        info = model_info(repo, files_metadata=True, timeout=_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # noqa: BLE001 the hub gave no answer, whatever the client's transport calls that
        return _cached(repo, folder)
    files = {PurePosixPath(file.rfilename): file.size for file in info.siblings or ()}
    sizes = {path.name: size for path, size in files.items() if path.parent == PurePosixPath(folder)}
    if not sizes:
        raise EntryNotFoundError(folder)
    layout = find_layout(sizes, source)
    wanted = [layout.config, *([REPORT_FILE] if REPORT_FILE in sizes else []), layout.weights]
    limits = dict.fromkeys(wanted, MAX_JSON_BYTES)
    limits[layout.weights] = MAX_JSON_BYTES + _MOST_ITEM_BYTES * limit.max_bytes // 4
    for name in wanted:
        size = sizes[name]
        if size is None:
            raise refusal(source, f"cannot be fetched: the hub does not say how large {name} is")
        if size > limits[name]:
            raise refusal(source, f"is too large: {name} has {size} bytes, and at most {limits[name]} are read")
    prefix = f"{folder}/" if folder else ""
    # Of the very commit whose sizes were looked at.
    paths = {Path(hf_hub_download(repo, prefix + name, revision=info.sha)).parent for name in wanted}
    # By its branch once more, which is how it is found in the cache where there is no hub: nothing comes twice.
    paths.add(Path(hf_hub_download(repo, prefix + layout.config)).parent)
    if len(paths) > 1:
        raise refusal(source, "changed while it was fetched; try again")
    outer = PurePosixPath(folder).parent / OUTER_CONFIG_FILE
    outer_size = files.get(outer)
    if folder and layout.config != OUTER_CONFIG_FILE and outer_size is not None and outer_size <= MAX_JSON_BYTES:
        hf_hub_download(repo, str(outer), revision=info.sha)
    return paths.pop()


def _cached(repo: str, folder: str) -> Path:
    """Return the folder in the hub client's cache, which must have a whole dictionary."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 as above
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    prefix = f"{folder}/" if folder else ""
    for layout in LAYOUTS:
        with contextlib.suppress(LocalEntryNotFoundError):
            hf_hub_download(repo, prefix + layout.weights, local_files_only=True)
            return Path(hf_hub_download(repo, prefix + layout.config, local_files_only=True)).parent
    raise LocalEntryNotFoundError(repo)


def _unreachable(source: str) -> DictionarySourceError:
    reason = (
        "cannot be fetched: the hub gives no answer, and the local cache does not have its files. Check the network "
        "(HF_ENDPOINT, proxies), or use bundled: or path:"
    )
    return refusal(source, reason)
