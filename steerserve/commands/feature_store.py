"""The feature store of a dictionary that is named on the command line. Nothing heavy is imported before it is used."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steerserve.commands.shared import environment_settings
from steerserve.core.errors import ConfigError
from steerserve.core.files import expand_home

if TYPE_CHECKING:
    from steerserve.store.location import StoreLocation
    from steerserve.store.store import FeatureStore

DictionarySource = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The dictionary: bundled:MODEL/NAME, path:FOLDER, hf:REPOSITORY/FOLDER or sae_lens:RELEASE/SAE_ID.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class NamedDictionary:
    """A dictionary on the command line; no model is loaded for it."""

    source: str
    """Source of the dictionary."""
    location: StoreLocation
    """Location of its feature store."""
    d_sae: int
    """Number of its features."""

    def store(self) -> FeatureStore:
        """Return the store to read.

        Raises:
            ConfigError: the dictionary was not interpreted.
        """
        store = self.location.find()
        if store is None:
            message = f"{self.source} has no feature store yet; `steerserve interpret` reads text and makes one."
            raise ConfigError(message, param="source")
        return store

    def writable_store(self) -> FeatureStore:
        """Return the store to write to; it is made if there is no store. The model remains unknown."""
        from steerserve.store.stored import StoreMeta

        return self.location.store(StoreMeta(self.location.subject.sha256, self.d_sae, "", created=time.time()))

    def check_feature(self, feature: int) -> None:
        """Check that the dictionary has a feature.

        Raises:
            ConfigError: it does not.
        """
        if not 0 <= feature < self.d_sae:
            message = f"{self.source} has features 0 to {self.d_sae - 1}, and not {feature}."
            raise ConfigError(message, param="feature")


def find_dictionary(source: str) -> NamedDictionary:
    """Return the dictionary at `source`.

    Raises:
        DictionarySourceError: there is no dictionary, or it cannot be used.
    """
    from steerserve.dictionaries.saelens import read_config
    from steerserve.dictionaries.sources import read_source
    from steerserve.dictionaries.weights import SizeLimit
    from steerserve.store.location import locate_store
    from steerserve.store.stored import Subject

    settings = environment_settings()
    kind, _, name = source.partition(":")
    # A user who types the name of a folder may read it.
    allowed = [*settings.dictionary_dirs, *([expand_home(Path(name))] if kind == "path" else [])]
    stored = read_source(source, allowed, SizeLimit(settings.max_dictionary_bytes))
    config = read_config(stored.config, source)
    location = locate_store(source, Subject(stored.sha256), settings.dictionary_dirs, allowed)
    return NamedDictionary(source, location, int(config["d_sae"]))
