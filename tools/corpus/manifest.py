"""The list of sources of text: a YAML file, checked strictly. Knows what to fetch, not how."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from steerserve.core.errors import ConfigError
from steerserve.core.yaml_document import YamlDocument, load_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic_core import ErrorDetails

    from steerserve.core.findings import DataPath

Kind = Literal["npm", "debian", "pypi"]
Extractor = Literal["aiml", "fortunes", "html", "json", "mail", "pod", "tagged", "text"]
SHIPPED = Path(__file__).parent / "manifest.yaml"
# No name can be read as a flag, a path or an address by the tool it is given to.
_PACKAGES = {
    "npm": re.compile(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*"),
    "debian": re.compile(r"[a-z0-9][a-z0-9.+-]+"),
    "pypi": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"),
}
_VERSION = r"^[A-Za-z0-9][A-Za-z0-9.+:~!_-]*$"
# In place of pydantic's messages that speak of Python.
_SENTENCES = {
    "model_type": "a mapping of names to values is needed",
    "tuple_type": "a list is needed",
    "string_type": "text is needed (put quotes around a number)",
}


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, hide_input_in_errors=True)


class Source(_Entry):
    """One package with text in it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="The name of its file: NAME.jsonl.")
    kind: Kind = Field(description="Which package index has it: npm, debian (apt) or pypi.")
    package: str = Field(max_length=200, description="The package's name there.")
    version: str | None = Field(
        None, pattern=_VERSION, description="The version. Debian's may be left out: then apt chooses it."
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the archive, if the index always gives the same file."
    )
    licence: str = Field(min_length=1, description="The licence of the text.")
    files: tuple[str, ...] = Field(
        min_length=1, description="Patterns of the paths in the archive to read; `*` also matches `/`."
    )
    exclude: tuple[str, ...] = Field((), description="Patterns of paths to leave out of these.")
    extract: Extractor = Field(description="How text is read from these files.")
    field: str | None = Field(None, description="For json: the key whose texts are taken; without it, all texts.")
    max_chars: int = Field(
        ge=1000, le=10**9, description="Most characters of text to keep, taken from all of the files alike."
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not _PACKAGES[self.kind].fullmatch(self.package):
            message = f"{self.package!r} is not a name that a package of {self.kind} can have"
            raise ValueError(message)
        if self.version is None and self.kind != "debian":
            message = f"{self.name} has no version, which only a source of kind debian may leave out"
            raise ValueError(message)
        if self.field is not None and self.extract != "json":
            message = f"{self.name} has a field, which only the extractor json reads"
            raise ValueError(message)
        return self


class Manifest(_Entry):
    """All sources."""

    sources: tuple[Source, ...] = Field(min_length=1)

    def choose(self, names: Sequence[str]) -> tuple[Source, ...]:
        """Return the sources of these names, in the manifest's order; without names, all of them.

        Raises:
            ConfigError: the manifest has no source of a name.
        """
        own = {source.name for source in self.sources}
        for name in names:
            if name not in own:
                near = difflib.get_close_matches(name, own, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(sorted(own))}."
                message = f"The manifest has no source {name!r}. {hint}"
                raise ConfigError(message, param="only")
        return tuple(source for source in self.sources if not names or source.name in names)


def load_manifest(path: Path | None = None) -> Manifest:
    """Read a manifest; without a path, `manifest.yaml` beside this module.

    Raises:
        ConfigError: the file cannot be read or an entry is wrong; the message has file, line and column.
    """
    document = load_yaml(path or SHIPPED)
    try:
        manifest = Manifest.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(_message(document, error.errors(include_url=False))) from error
    names: set[str] = set()
    for index, source in enumerate(manifest.sources):
        if source.name in names:
            where = document.where(("sources", index, "name"))
            message = f"{where}: two sources have the name {source.name}."
            raise ConfigError(message)
        names.add(source.name)
    return manifest


def _message(document: YamlDocument, problems: list[ErrorDetails]) -> str:
    # A misspelt name also leaves the right one missing; the misspelling is what the person must see.
    problem = min(problems, key=lambda other: other["type"] != "extra_forbidden")
    path: DataPath = problem["loc"]
    where, name = document.where(path), ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join((Manifest if len(path) == 1 else Source).model_fields)
        return f"{where}: {name} is not a field; the fields are {allowed}."
    if problem["type"] == "missing":
        return f"{where}: {name} is missing."
    reason = _SENTENCES.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    return f"{where}: {name or 'the manifest'}: {reason[:1].lower() + reason[1:]}."
