"""Where a dictionary's feature store is: beside the weights, or where those may not be written, among our own files."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerserve.dictionaries.sources import locate_dictionary
from steerserve.features.schema import told
from steerserve.features.store import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from steerserve.features.stored import StoreMeta

STORE_FILE = "features.sqlite3"
STORES_FOLDER = ".features"


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """The places of one dictionary's store."""

    sha256: str
    """Of the dictionary's weights."""
    own: Path
    """Where it is written."""
    shipped: Path | None = None
    """Where one came with the dictionary, if one did; never written."""

    def existing(self) -> Path | None:
        """Return the file that is read; None where there is none. A link is none: it could lead anywhere."""
        places = (place for place in (self.own, self.shipped) if place is not None)
        return next((place for place in places if place.is_file() and not place.is_symlink()), None)

    def prepare(self) -> Path:
        """Return where the store is to be written, with a copy there of what came with the dictionary.

        Raises:
            FeatureStoreError: it cannot be copied.
        """
        shipped = self.existing()
        if shipped is not None and shipped != self.own and FeatureStore.open(shipped).is_about(self.sha256):
            _copy(shipped, self.own)
        return self.own

    def store(self, meta: StoreMeta) -> FeatureStore:
        """Return the store where it can be written; made where there is none, or one of other weights.

        Raises:
            FeatureStoreError: it cannot be made, or what is in its place is no feature store.
        """
        path = self.prepare()
        if not path.exists() or not FeatureStore.open(path).is_about(self.sha256):
            with FeatureStore.replacing(path, meta):
                pass
        return FeatureStore.open(path)


def locate_store(
    source: str, sha256: str, dictionary_dirs: Sequence[Path], allowed_dirs: Sequence[Path]
) -> StoreLocation:
    """Return where the store of the dictionary at `source` is, or would be.

    Args:
        source: Of the dictionary.
        sha256: Of its weights.
        dictionary_dirs: Our own files are in the first of them.
        allowed_dirs: Folders that `path:` sources may lie in.

    Raises:
        DictionarySourceError: there is no such folder, or it may not be read.
    """
    folder = locate_dictionary(source, allowed_dirs)
    if folder is not None and source.startswith("path:") and os.access(folder.path, os.W_OK):
        return StoreLocation(sha256, folder.path / STORE_FILE)
    return own_location(sha256, dictionary_dirs, folder.path / STORE_FILE if folder is not None else None)


def own_location(sha256: str, dictionary_dirs: Sequence[Path], shipped: Path | None = None) -> StoreLocation:
    """Return the place among our own files, which does not depend on where the dictionary is."""
    return StoreLocation(sha256, dictionary_dirs[0] / STORES_FOLDER / f"{sha256}.sqlite3", shipped)


def _copy(shipped: Path, own: Path) -> None:
    aside = own.with_name(f".{own.name}.{os.getpid()}-{threading.get_ident()}")
    with told(own):
        own.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(shipped, aside)
            os.link(aside, own)
        except FileExistsError:  # another process was quicker
            pass
        finally:
            aside.unlink(missing_ok=True)
