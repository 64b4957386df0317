"""The sources of settings: a YAML file, then the environment, then flags; the later wins.

Every error names the origin of the value that it is about: file, line and column, the variable, or the flag.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from steerserve.core.config import Settings
from steerserve.core.errors import ConfigError
from steerserve.core.files import expand_home
from steerserve.core.findings import UNKNOWN_KEY, DataPath, explain, models_in, spell_path
from steerserve.core.keys import KEY_FIELDS, KEY_VARIABLES, KEYS_ADVICE, read_keys
from steerserve.core.literals import YAML_WORDS
from steerserve.core.yaml_document import YamlDocument, load_yaml, parse_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic_core import ErrorDetails

PREFIX = "STEERSERVE_"
CONFIG_VARIABLE = "STEERSERVE_CONFIG"
# Variables, as `NAME=VALUE`, that Kubernetes sets in every pod if a service is called steerserve or
# steerserve-something.
_KUBERNETES = re.compile(r"STEERSERVE_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?=.*|PORT_\d+_\w+=.*|(?<!__)PORT=\w+://.*)")


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that was given on the command line."""

    name: str
    """The flag itself, such as `--port`."""
    path: DataPath
    """Path of its setting."""
    value: object
    """Its value."""


def load_settings(config: Path | None = None, *, environ: Mapping[str, str], flags: Iterable[Flag] = ()) -> Settings:
    """Merge the sources and check the result.

    Args:
        config: The YAML file; if None, the file that `STEERSERVE_CONFIG` names.
        environ: The environment; only variables that begin with `STEERSERVE_` and are not empty are read.
        flags: The flags of the command line.

    Raises:
        ConfigError: a setting is unknown, wrong or out of bounds; the message names its origin.
    """
    merged = _MergedSettings()
    if config is None and environ.get(CONFIG_VARIABLE):
        config = Path(environ[CONFIG_VARIABLE])
    if config is not None:
        merged.add_file(load_yaml(expand_home(config)))
    merged.add_environment(environ)
    for flag in flags:
        merged.put(flag.path, flag.value, flag.name)
    merged.add_keys(environ)
    return merged.settings()


@dataclass(slots=True)
class _MergedSettings:
    """The merged data, and the origin of each of its values."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[DataPath, str] = field(default_factory=dict)

    def add_file(self, document: YamlDocument) -> None:
        if not isinstance(document.data, dict | None):
            message = f"{document.where(())}: a configuration is a mapping of names to values."
            raise ConfigError(message)
        # A section whose lines are all commented out is null, and means the defaults.
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
        """Set one value, replacing that of an earlier source."""
        section: Any = self.data
        for key in path[:-1]:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[path[-1]] = value
        self.origins = {other: kept for other, kept in self.origins.items() if other[: len(path)] != path}
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
        # A variable can set a part of a value that must not have parts: STEERSERVE_DICTIONARIES__0.
        if inner := next((other for other in self.origins if other[: len(path)] == path), None):
            path = path if path in self.origins else inner
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, "settings")


def _parse_variable(name: str, text: str) -> object:
    """Parse `[..]` and `{..}` as YAML; any other value stays text."""
    return parse_yaml(text, name=name).data if text.startswith(("[", "{")) else text


def _suggest(path: DataPath) -> str:
    """Return the part of a message that names the setting that was probably meant, or all settings of its section."""
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


def setting_names(section: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted name of every setting and section; the fields of a list's items follow the list's name."""
    names: list[str] = []
    for name, described in section.model_fields.items():
        names.append(prefix + name)
        for inner in models_in(described.annotation):
            names += setting_names(inner, f"{prefix}{name}.")
    return names
