"""Where settings come from: a YAML file, then the environment, then flags; the later wins.

Every complaint names the place of the value it is about: file, line and column, the variable, or the flag.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from steerserve.core.config import Settings, expand_home, setting_names
from steerserve.core.errors import ConfigError
from steerserve.core.findings import UNKNOWN_KEY, YAML_WORDS, DataPath, explain, spell_path
from steerserve.core.keys import KEY_FIELDS, KEY_VARIABLES, KEYS_ADVICE, read_keys
from steerserve.core.yaml_document import YamlDocument, load_yaml, parse_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic_core import ErrorDetails

PREFIX = "STEERSERVE_"
CONFIG_VARIABLE = "STEERSERVE_CONFIG"
# What Kubernetes puts into the environment of every pod beside a service called steerserve or steerserve-something,
# as `NAME=VALUE`.
_KUBERNETES = re.compile(r"STEERSERVE_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?=.*|PORT_\d+_\w+=.*|(?<!__)PORT=\w+://.*)")


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that was given on the command line."""

    name: str
    """As the person wrote it, `--port`."""
    path: DataPath
    value: object


def load_settings(config: Path | None = None, *, environ: Mapping[str, str], flags: Iterable[Flag] = ()) -> Settings:
    """Merge the layers and check the result.

    Args:
        config: The YAML file; without one, what `STEERSERVE_CONFIG` names.
        environ: The environment; only variables that begin with `STEERSERVE_` are read, and empty ones are not.
        flags: What was given on the command line.

    Raises:
        ConfigError: something is unknown, wrong or out of bounds; the message says where.
    """
    layers = _Layers()
    if config is None and environ.get(CONFIG_VARIABLE):
        config = Path(environ[CONFIG_VARIABLE])
    if config is not None:
        layers.add_file(load_yaml(expand_home(config)))
    layers.add_environment(environ)
    for flag in flags:
        layers.put(flag.path, flag.value, flag.name)
    layers.add_keys(environ)
    return layers.settings()


@dataclass(slots=True)
class _Layers:
    """The merged data, and the origin of each of its values."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[DataPath, str] = field(default_factory=dict)

    def add_file(self, document: YamlDocument) -> None:
        if not isinstance(document.data, dict | None):
            message = f"{document.where(())}: a configuration is a mapping of names to values."
            raise ConfigError(message)
        # `engine:` with every line below it commented out is null, and means the defaults.
        data = {k: v for k, v in (document.data or {}).items() if v is not None or k not in Settings.model_fields}
        server = data.get("server")
        for name in KEY_FIELDS:
            if isinstance(server, dict) and name in server:
                message = f"{document.where(('server', name))}: {KEYS_ADVICE}"
                raise ConfigError(message)
        self.data = data
        self.origins = {path: document.where(path) for path in document.marks}

    def add_environment(self, environ: Mapping[str, str]) -> None:
        for name, value in sorted(environ.items()):
            if not name.startswith(PREFIX) or name in KEY_VARIABLES or name == CONFIG_VARIABLE or not value:
                continue
            if _KUBERNETES.fullmatch(f"{name}={value}"):
                continue
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
            parsed = _parse_variable(name, value)
            if not {path[-1], *(parsed if isinstance(parsed, dict) else ())}.isdisjoint(KEY_FIELDS):
                message = f"{name}: {KEYS_ADVICE}"
                raise ConfigError(message)
            self.put(path, parsed, name)

    def put(self, path: DataPath, value: object, origin: str) -> None:
        """Set one value, over whatever an earlier layer put there."""
        place: Any = self.data
        for key in path[:-1]:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[path[-1]] = value
        self.origins = {known: where for known, where in self.origins.items() if known[: len(path)] != path}
        self.origins[path] = origin

    def add_keys(self, environ: Mapping[str, str]) -> None:
        server = self.data.get("server")
        keys_file = server.get("keys_file") if isinstance(server, dict) else None
        file = expand_home(Path(keys_file)) if isinstance(keys_file, str | Path) else None
        for name, keys in read_keys(environ, file).items():
            self.put(("server", name), keys, "the keys")

    def settings(self) -> Settings:
        try:
            return Settings.model_validate(self.data)
        except ValidationError as error:
            raise ConfigError(self._message(error.errors(include_url=False))) from error

    def _message(self, details: Sequence[ErrorDetails]) -> str:
        finding = explain(details, self.data, YAML_WORDS)
        origin = self._origin(finding.path)
        if finding.kind == UNKNOWN_KEY:
            return f"{origin}: there is no setting {spell_path(finding.path)}; {_suggest(finding.path)}"
        return f"{origin}: {finding.message}"

    def _origin(self, path: DataPath) -> str:
        # A variable can name a place within something that must not have places: STEERSERVE_DICTIONARIES__0.
        if within := next((known for known in self.origins if known[: len(path)] == path), None):
            path = path if path in self.origins else within
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, "settings")


def _parse_variable(name: str, text: str) -> object:
    """Read `[..]` and `{..}` as YAML; anything else stays text."""
    return parse_yaml(text, name=name).data if text.startswith(("[", "{")) else text


def _suggest(path: DataPath) -> str:
    """Say which setting was probably meant, or which there are beside it."""
    names = setting_names()
    dotted = ".".join(str(part) for part in path if not isinstance(part, int))
    section, _, last = dotted.rpartition(".")
    siblings = [name for name in names if name.rpartition(".")[0] == section]
    elsewhere = [name for name in names if name.rpartition(".")[2] == last]
    if (
        close := difflib.get_close_matches(dotted, siblings, n=1)
        or elsewhere
        or difflib.get_close_matches(dotted, names, n=1)
    ):
        return f"did you mean {close[0]}?"
    return f"it must be one of {', '.join(siblings)}."
