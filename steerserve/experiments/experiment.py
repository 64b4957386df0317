"""An experiment: read from a file, checked in full, and what is asked of a server for it. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from steerserve.compare.control import NamedArm, control_sources
from steerserve.core.errors import ConfigError, InvalidRequestError
from steerserve.core.findings import YAML_WORDS, Finding, explain, find_null, parse_path, spell_path
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
"""Of an arm; the server may take fewer, and then says so."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """What a file says. Its contents never change."""

    content: ExperimentFile
    text: str
    """As it stands in the file."""
    document: YamlDocument = field(repr=False)

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.content.name

    @property
    def prompts(self) -> list[list[dict[str, str]]]:
        """The conversations that are continued."""
        return [
            [{"role": "user", "content": prompt}]
            if isinstance(prompt, str)
            else [message.model_dump() for message in prompt]
            for prompt in self.content.prompts
        ]

    @property
    def seeds(self) -> list[int]:
        """Of each prompt."""
        seeds = self.content.seeds
        return list(range(seeds)) if isinstance(seeds, int) else list(seeds)

    @property
    def sampling(self) -> dict[str, Any]:
        """How tokens are drawn and what ends a text, the same for every arm."""
        stop = self.content.stop
        said = {name: getattr(self.content, name) for name in Sampling.model_fields}
        return {**said, "stop": [stop] if isinstance(stop, str) else stop}

    @property
    def arms(self) -> list[dict[str, Any]]:
        """The arms as `/v1/compare` takes them."""
        return [_sent(arm) for arm in self.content.arms]

    def check_model(self, model_id: str) -> None:
        """Check that it may run on that model.

        Raises:
            ConfigError: it was made for another.
        """
        model = self.content.model
        if model is not None and plain_name(model) != plain_name(model_id):
            sentence = f"the experiment was made for the model {model!r}, and {model_id!r} is served"
            raise _error(self.document, Finding(("model",), sentence))

    def refusal(self, message: str, param: str | None) -> ConfigError:
        """Return the error of a server that refuses a request, with the place in the file that it speaks of."""
        path = parse_path(param or "")
        if path[:1] != ("arms",):
            path = ("prompts",) if path[:1] == ("messages",) else path[:1]
        elif path[2:3] in {("steering",), ("model",)}:
            path = _steering_path(self.content.arms[int(path[1])], path[:2], path[3:])
        return _error(self.document, Finding(path, message))


def load_experiment(path: Path) -> Experiment:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, or something is wrong with it; the message says where.
    """
    return parse_experiment(read_text(path, MAX_FILE_BYTES), file=str(path))


def parse_experiment(text: str, *, file: str) -> Experiment:
    """Read an experiment from YAML; `file` is what messages call it.

    Raises:
        ConfigError: something is wrong with it; the message says where.
    """
    document = parse_yaml(text, name=file)
    if not isinstance(document.data, dict):
        what = "the file is empty" if document.data is None else "this is something else"
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
    """Refuse a conversation that is there twice, however it is written: its samples would have one name."""
    places: dict[str, int] = {}
    for place, messages in enumerate(experiment.prompts):
        first = places.setdefault(json.dumps(messages), place)
        if first != place:
            sentence = (
                f"prompts[{place}] is prompts[{first}] again, and would give the same texts; take one of them out"
            )
            raise _error(experiment.document, Finding(("prompts", place), sentence))


def _check_arms(content: ExperimentFile, document: YamlDocument) -> None:
    """Check what a server would refuse of the arms, before one is asked."""
    for place, arm in enumerate(content.arms):
        try:
            parse_steering(arm.steering, max_edits=MAX_EDITS)
        except InvalidRequestError as error:
            path = _steering_path(arm, ("arms", place), parse_path(error.param or "")[1:])
            raise _error(document, Finding(path, f"arms[{place}].{error.message}")) from error
    try:
        control_sources([NamedArm(arm.name, arm.control_of, bool(arm.preset or arm.steering)) for arm in content.arms])
    except InvalidRequestError as error:
        raise _error(document, Finding(parse_path(error.param or ""), error.message)) from error


def _steering_path(arm: ArmFile, arm_path: DataPath, inside: DataPath) -> DataPath:
    """Return where in the file a path of the full form of `steering` is written, whichever spelling it has."""
    if arm.steering is None:
        return (*arm_path, "preset")
    steering = (*arm_path, "steering")
    if not isinstance(arm.steering, list) or inside[:1] not in {("edits",), ("presets",)} or len(inside) == 1:
        return (*steering, *inside)
    wants_preset, number = inside[0] == "presets", int(inside[1])
    places = [place for place, part in enumerate(arm.steering) if isinstance(part, str) == wants_preset]
    return (*steering, places[number], *inside[2:]) if number < len(places) else steering


def _sent(arm: ArmFile) -> dict[str, Any]:
    sent: dict[str, Any] = {"name": arm.name}
    if (steering := _steering(arm)) is not None:
        sent["steering"] = steering
    for name in ("system", "control_of"):
        if (value := getattr(arm, name)) is not None:
            sent[name] = value
    return sent


def _steering(arm: ArmFile) -> object:
    """Return the steering in full, its presets first; None where there is none."""
    presets = [arm.preset] if isinstance(arm.preset, str) else arm.preset or []
    own = parse_steering(arm.steering, max_edits=MAX_EDITS)
    if own is None and not presets:
        return None
    full = own.model_dump(exclude_unset=True) if own is not None else {}
    named = [*presets, *full.get("presets", [])]
    return {**full, **({"presets": named} if named else {})}


def _error(document: YamlDocument, finding: Finding) -> ConfigError:
    message = f"{document.where(finding.path)}: {finding.message}"
    return ConfigError(message, param=spell_path(finding.path) or None)
