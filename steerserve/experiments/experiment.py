"""An experiment: its file read and checked completely, and the requests that it needs. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from steerserve.compare.control import NamedArm, control_sources
from steerserve.core.errors import ConfigError, InvalidRequestError
from steerserve.core.findings import Finding, explain, find_null, parse_path, spell_path
from steerserve.core.literals import YAML_WORDS
from steerserve.core.yaml_document import YamlDocument, parse_yaml, read_text
from steerserve.experiments.schema import ExperimentFile, Sampling
from steerserve.model.names import plain_name
from steerserve.presets.schema import NAME_RULE, PRESET_NAME
from steerserve.wire.edits import parse_steering

if TYPE_CHECKING:
    from pathlib import Path

    from steerserve.core.findings import DataPath
    from steerserve.experiments.schema import ArmFile

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_EDITS = 4096
"""Largest number of edits of an arm; a server may take fewer, and then refuses the arm itself."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """The content of one experiment file. It never changes."""

    content: ExperimentFile
    text: str
    """The file's text."""
    document: YamlDocument = field(repr=False)

    @property
    def name(self) -> str:
        """The name of the experiment and of its results."""
        return self.content.name

    @property
    def prompts(self) -> list[list[dict[str, str]]]:
        """The conversations that the arms continue."""
        return [
            [{"role": "user", "content": prompt}]
            if isinstance(prompt, str)
            else [message.model_dump() for message in prompt]
            for prompt in self.content.prompts
        ]

    @property
    def seeds(self) -> list[int]:
        """The seeds with which every prompt is continued."""
        seeds = self.content.seeds
        return list(range(seeds)) if isinstance(seeds, int) else list(seeds)

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters and stop texts, the same for every arm."""
        stop = self.content.stop
        values = {name: getattr(self.content, name) for name in Sampling.model_fields}
        return {**values, "stop": [stop] if isinstance(stop, str) else stop}

    @property
    def arms(self) -> list[dict[str, Any]]:
        """The arms as `POST /v1/compare` takes them."""
        return [_arm_body(arm) for arm in self.content.arms]

    def check_model(self, model_id: str) -> None:
        """Check that the experiment may run on that model.

        Raises:
            ConfigError: it was made for another model.
        """
        model = self.content.model
        if model is not None and plain_name(model) != plain_name(model_id):
            sentence = f"the experiment was made for the model {model!r}, and {model_id!r} is served"
            raise _error(self.document, Finding(("model",), sentence))

    def refusal(self, message: str, param: str | None) -> ConfigError:
        """Return the error for a server's refusal, with the position in the file that `param` names."""
        path = parse_path(param or "")
        if path[:1] != ("arms",):
            path = ("prompts",) if path[:1] == ("messages",) else path[:1]
        elif path[2:3] in {("steering",), ("model",)}:
            path = _steering_path(self.content.arms[int(path[1])], path[:2], path[3:])
        return _error(self.document, Finding(path, message))


def load_experiment(path: Path) -> Experiment:
    """Read an experiment's file.

    Raises:
        ConfigError: the file cannot be read or is wrong; the message has the line and column.
    """
    return parse_experiment(read_text(path, MAX_FILE_BYTES), file=str(path))


def parse_experiment(text: str, *, file: str) -> Experiment:
    """Read an experiment from YAML; `file` is its name in messages.

    Raises:
        ConfigError: the text is wrong; the message has the line and column.
    """
    document = parse_yaml(text, name=file)
    if not isinstance(document.data, dict):
        what = "the file is empty" if document.data is None else "this file holds something else"
        sentence = f"an experiment is a mapping of names to values, such as name: ocean; {what}"
        raise _error(document, Finding((), sentence))
    if (null := find_null(document.data)) is not None:
        raise _error(document, null)
    try:
        content = ExperimentFile.model_validate(document.data)
    except ValidationError as error:
        finding = explain(
            error.errors(include_url=False),
            document.data,
            YAML_WORDS,
            schema=ExperimentFile,
            patterns={PRESET_NAME: NAME_RULE},
            order=document.position,
        )
        raise _error(document, finding) from error
    experiment = Experiment(content, text, document)
    _check_prompts(experiment)
    _check_arms(content, document)
    return experiment


def _check_prompts(experiment: Experiment) -> None:
    """Refuse the same conversation twice, however it is written: its samples would have the same key."""
    indices: dict[str, int] = {}
    for index, messages in enumerate(experiment.prompts):
        first = indices.setdefault(json.dumps(messages), index)
        if first != index:
            sentence = f"prompts[{index}] repeats prompts[{first}] and would give the same texts; remove one of them"
            raise _error(experiment.document, Finding(("prompts", index), sentence))


def _check_arms(content: ExperimentFile, document: YamlDocument) -> None:
    """Refuse arms that every server would refuse, before a request is sent."""
    for index, arm in enumerate(content.arms):
        try:
            parse_steering(arm.steering, max_edits=MAX_EDITS)
        except InvalidRequestError as error:
            path = _steering_path(arm, ("arms", index), parse_path(error.param or "")[1:])
            raise _error(document, Finding(path, f"arms[{index}].{error.message}")) from error
    try:
        control_sources([NamedArm(arm.name, arm.control_of, bool(arm.preset or arm.steering)) for arm in content.arms])
    except InvalidRequestError as error:
        raise _error(document, Finding(parse_path(error.param or ""), error.message)) from error


def _steering_path(arm: ArmFile, arm_path: DataPath, inside: DataPath) -> DataPath:
    """Return the path in the file of a path in the full form of `steering`, whichever form the file has."""
    if arm.steering is None:
        return (*arm_path, "preset")
    steering = (*arm_path, "steering")
    if not isinstance(arm.steering, list) or inside[:1] not in {("edits",), ("presets",)} or len(inside) == 1:
        return (*steering, *inside)
    is_preset, number = inside[0] == "presets", int(inside[1])
    indices = [index for index, part in enumerate(arm.steering) if isinstance(part, str) == is_preset]
    return (*steering, indices[number], *inside[2:]) if number < len(indices) else steering


def _arm_body(arm: ArmFile) -> dict[str, Any]:
    body: dict[str, Any] = {"name": arm.name}
    if (steering := _steering(arm)) is not None:
        body["steering"] = steering
    for name in ("system", "control_of"):
        if (value := getattr(arm, name)) is not None:
            body[name] = value
    return body


def _steering(arm: ArmFile) -> object:
    """Return the full form of an arm's steering, its presets first; None if it has no steering."""
    presets = [arm.preset] if isinstance(arm.preset, str) else arm.preset or []
    own = parse_steering(arm.steering, max_edits=MAX_EDITS)
    if own is None and not presets:
        return None
    full = own.model_dump(exclude_unset=True) if own is not None else {}
    all_presets = [*presets, *full.get("presets", [])]
    return {**full, **({"presets": all_presets} if all_presets else {})}


def _error(document: YamlDocument, finding: Finding) -> ConfigError:
    message = f"{document.where(finding.path)}: {finding.message}"
    return ConfigError(message, param=spell_path(finding.path) or None)
