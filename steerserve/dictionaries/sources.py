"""Sources of dictionaries: bundled with the package, a folder, a hub repository, or SAELens' registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from steerserve.core.files import expand_home
from steerserve.dictionaries.files import SourceFolder, is_within, refusal
from steerserve.dictionaries.hub import fetch_folder, split_repo
from steerserve.dictionaries.layouts import CONFIG_FILE, StoredDictionary, read_folder
from steerserve.dictionaries.releases import read_release

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.dictionaries.weights import SizeLimit

BUNDLED_DIR = Path(__file__).parent / "bundled"

_MAX_SOURCE_CHARS = 1024


def read_source(source: str, allowed_dirs: Sequence[Path], limit: SizeLimit) -> StoredDictionary:
    """Read the dictionary at `source`; a remote one is fetched first.

    Args:
        source: `bundled:NAME`, `path:DIR`, `hf:REPO[/FOLDER]` or `sae_lens:RELEASE/SAE_ID`.
        allowed_dirs: `path:` sources must lie within one of these folders, links followed.
        limit: Limit of the dictionary's size.

    Raises:
        DictionarySourceError: the source holds no dictionary, it cannot be fetched, its files are damaged, or it is
            too large.
    """
    return read_fetched(fetch_source(source, allowed_dirs, limit), source, limit)


def fetch_source(source: str, allowed_dirs: Sequence[Path], limit: SizeLimit) -> SourceFolder | None:
    """Return the folder of a source, fetched if it is remote; None for a release, which `read_fetched` fetches.

    Raises:
        DictionarySourceError: as `read_source`.
    """
    located = locate_dictionary(source, allowed_dirs)
    kind, _, name = source.partition(":")
    return fetch_folder(name, source, limit) if located is None and kind == "hf" else located


def read_fetched(folder: SourceFolder | None, source: str, limit: SizeLimit) -> StoredDictionary:
    """Read the dictionary in the folder that `fetch_source` returned.

    Raises:
        DictionarySourceError: as `read_source`.
    """
    return read_release(source.partition(":")[2], source, limit) if folder is None else read_folder(folder, limit)


def locate_dictionary(source: str, allowed_dirs: Sequence[Path]) -> SourceFolder | None:
    """Return the folder of a source; None for a source that must be fetched.

    Raises:
        DictionarySourceError: the source is malformed, or its folder does not exist or must not be read.
    """
    kind, _, name = source.partition(":")
    if len(source) > _MAX_SOURCE_CHARS or not source.isprintable():
        raise refusal(source[:100], f"must be at most {_MAX_SOURCE_CHARS} printable characters")
    if kind == "bundled":
        return _bundled(name, source)
    if kind == "path" and name:
        return _folder(name, source, allowed_dirs)
    if kind == "hf":
        split_repo(name, source)
        return None
    if kind == "sae_lens" and "/" in name:
        return None
    raise refusal(source, "must be bundled:MODEL/NAME, path:FOLDER, hf:REPOSITORY[/FOLDER] or sae_lens:RELEASE/SAE_ID")


def bundled_names() -> list[str]:
    """Return the names of the bundled dictionaries."""
    return sorted(str(file.parent.relative_to(BUNDLED_DIR)) for file in BUNDLED_DIR.rglob(CONFIG_FILE))


def _bundled(name: str, source: str) -> SourceFolder:
    if name not in (names := bundled_names()):
        raise refusal(source, f"does not exist. Bundled are {', '.join(names) or 'none'}")
    return SourceFolder(BUNDLED_DIR / name, source, Path(name).name)


def _folder(name: str, source: str, allowed_dirs: Sequence[Path]) -> SourceFolder:
    try:
        folder = expand_home(Path(name)).resolve()
        roots = tuple(expand_home(allowed).resolve() for allowed in allowed_dirs)
        is_folder = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, links in a circle
        raise refusal(source, f"is not a valid path: {error}") from error
    if not is_within(folder, roots):
        folders = ", ".join(str(allowed) for allowed in allowed_dirs) or "none"
        raise refusal(source, f"lies outside the configured folders ({folders}); add its folder to dictionary_dirs")
    if not is_folder:
        raise refusal(source, f"does not exist: {folder} is not a folder")
    return SourceFolder(folder, source, folder.name, roots)
