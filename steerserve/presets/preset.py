"""A preset: its file read from text and checked completely, with the position of every value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from steerserve.core.errors import ConfigError, PresetError
from steerserve.core.findings import MISSING, Finding, explain, find_null, spell_path
from steerserve.core.literals import YAML_WORDS
from steerserve.core.yaml_document import YamlDocument, decode_text, parse_yaml
from steerserve.model.names import plain_name
from steerserve.presets.schema import NAME_RULE, PRESET_NAME, PresetFile, PresetSampling
from steerserve.wire.edits import SETTING_MODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.core.findings import DataPath
    from steerserve.wire.edits import Edit

MAX_FILE_BYTES = 256 * 1024
SUFFIX = ".yaml"


@dataclass(frozen=True, slots=True)
class Preset:
    """The content of one preset file. It never changes."""

    content: PresetFile
    text: str
    """The file's text."""
    document: YamlDocument = field(repr=False)

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.content.name

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The preset's edits."""
        return self.content.edits

    def misfit(self, model_id: str | None) -> str | None:
        """Say in a sentence why the preset cannot be used with that model; None if it can."""
        model = self.content.model
        if model is None or model_id is None or plain_name(model) == plain_name(model_id):
            return None
        return f"The preset {self.name!r} was made for the model {model!r}, and this server serves {model_id!r}."

    def refusal(self, path: DataPath, sentence: str, code: str | None = None) -> PresetError:
        """Return the error that says what is wrong with one of its values."""
        return _error(self.document, Finding(path, sentence), code)


@dataclass(frozen=True, slots=True)
class PresetDefaults:
    """What the presets of a request add to it beside their edits."""

    system: str | None = None
    sampling: PresetSampling = field(default_factory=PresetSampling)


NO_DEFAULTS = PresetDefaults()


def defaults_of(presets: Sequence[Preset]) -> PresetDefaults:
    """Combine presets: system prompts follow each other, and the last preset decides a sampling parameter."""
    prompts = [preset.content.system for preset in presets if preset.content.system is not None]
    merged: dict[str, object] = {}
    for preset in presets:
        merged |= preset.content.sampling.model_dump(exclude_unset=True)
    return PresetDefaults("\n\n".join(prompts) or None, PresetSampling.model_validate(merged))


def decode_preset(data: bytes, *, file: str) -> str:
    """Read a file's bytes as text.

    Raises:
        PresetError: the file is not UTF-8, or too large.
    """
    try:
        return decode_text(data, name=file, max_bytes=MAX_FILE_BYTES)
    except ConfigError as error:
        raise PresetError(error.message) from error


def parse_preset(text: str, *, file: str, name: str | None = None) -> Preset:
    """Read a preset from YAML.

    Args:
        text: The file's text.
        file: Name of the file in messages.
        name: Name that the preset must have; any name if absent.

    Raises:
        PresetError: the preset is wrong; the message has the line and column, and `param` is the path of the value.
    """
    try:
        document = parse_yaml(text, name=file)
    except ConfigError as error:
        raise PresetError(error.message) from error
    if (null := find_null(document.data)) is not None and document.data is not None:
        raise _error(document, null)
    return check_preset(document, text, name=name)


def check_preset(document: YamlDocument, text: str, *, name: str | None = None) -> Preset:
    """Check the data of a preset's file.

    Raises:
        PresetError: as for `parse_preset`.
    """
    if not isinstance(document.data, dict):
        what = "the file is empty" if document.data is None else "this file holds something else"
        sentence = f"a preset is a mapping of names to values, such as name: {name or 'formal'}; {what}"
        raise _error(document, Finding((), sentence))
    try:
        content = PresetFile.model_validate(document.data)
    except ValidationError as error:
        finding = explain(
            error.errors(include_url=False),
            document.data,
            YAML_WORDS,
            schema=PresetFile,
            patterns={PRESET_NAME: NAME_RULE},
            order=document.position,
        )
        if finding.path == ("name",) and finding.kind == MISSING and name is not None:
            finding = Finding(finding.path, f"name is missing; write name: {name}")
        raise _error(document, finding) from error
    contradiction = _wrong_name(content, name) or _contradiction(content, document)
    if contradiction is not None:
        raise _error(document, contradiction)
    return Preset(content, text, document)


def _wrong_name(content: PresetFile, name: str | None) -> Finding | None:
    if name is None or content.name == name:
        return None
    sentence = (
        f"name is {content.name!r}, and the file is called {name}{SUFFIX}; write name: {name}, or rename the file"
    )
    return Finding(("name",), sentence)


def _contradiction(content: PresetFile, document: YamlDocument) -> Finding | None:
    setters: dict[tuple[str | None, int], int] = {}
    for index, edit in enumerate(content.edits):
        if edit.feature is None or edit.mode not in SETTING_MODES:
            continue
        first = setters.setdefault((edit.dictionary, edit.feature), index)
        if first != index:
            line = document.where(("edits", first)).rpartition(":")[0].rpartition(":")[2]
            sentence = (
                f"edits[{first}] (line {line}) and edits[{index}] both set the value of feature {edit.feature}, as "
                "clamp, ablate, floor and ceiling do; keep one of the two edits"
            )
            return Finding(("edits", index), sentence)
    return None


def _error(document: YamlDocument, finding: Finding, code: str | None = None) -> PresetError:
    message = f"{document.where(finding.path)}: {finding.message}"
    return PresetError(message, param=spell_path(finding.path) or None, code=code)
