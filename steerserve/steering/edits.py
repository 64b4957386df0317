"""The schema of `steering`: what a client may write, checked before anything runs. No torch."""

from __future__ import annotations

import difflib
import itertools
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from steerserve.core.errors import InvalidRequestError

Mode = Literal["add", "clamp", "multiply", "ablate", "floor", "ceiling", "remove"]
Unit = Literal["raw", "max", "norm", "dose"]
Positions = Literal["all", "prompt", "generated"]

SETTING_MODES: frozenset[str] = frozenset({"clamp", "ablate", "floor", "ceiling"})
"""Modes that set a feature to something, so that two of them on one feature contradict each other."""
UNITS: dict[str, tuple[Unit, ...]] = {
    "add": ("raw", "max", "norm", "dose"),
    "clamp": ("raw", "max", "dose"),
    "floor": ("raw", "max"),
    "ceiling": ("raw", "max"),
}
"""What the scale of a mode may count; the other modes take no unit."""
SCALELESS_MODES: frozenset[str] = frozenset({"ablate", "remove"})
VECTOR_MODES: frozenset[str] = frozenset({"add", "remove"})
MAX_SCALE = 1e6
MAX_VECTOR_VALUES = 1 << 17
MAX_STRENGTH = 1e3
_MAX_INDEX = 1 << 31

Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]

Values = Annotated[list[Scale], Field(max_length=MAX_VECTOR_VALUES, fail_fast=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class InlineVector(_Strict):
    """A direction of the client's own."""

    hook: str = Field(description="Hook point, such as blocks.17.hook_resid_post.")
    values: Values | None = Field(
        default=None,
        description="As many numbers as vectors have there: d_model, or heads times head size at attn.hook_z.",
    )
    base64: str | None = Field(default=None, description="The same numbers as base64 of little-endian bytes.")
    dtype: Literal["float32", "float16", "float64"] | None = Field(
        default=None, description="Type of the numbers in `base64`; float32 if absent."
    )

    @model_validator(mode="after")
    def _one_form(self) -> InlineVector:
        if (self.values is None) == (self.base64 is None):
            message = "a vector has exactly one of values and base64"
            raise ValueError(message)
        if self.dtype is not None and self.base64 is None:
            message = "dtype goes with base64"
            raise ValueError(message)
        return self


class Gate(_Strict):
    """A condition on another feature, token by token."""

    feature: int = Field(description="Index into the dictionary.")
    dictionary: str | None = Field(default=None, description="Dictionary id; the default dictionary if absent.")
    above: Scale | None = Field(default=None, description="Edit only where its activation is larger.")
    below: Scale | None = Field(default=None, description="Edit only where its activation is smaller.")

    @model_validator(mode="after")
    def _one_bound(self) -> Gate:
        if (self.above is None) == (self.below is None):
            message = "a gate has exactly one of above and below"
            raise ValueError(message)
        return self


class Edit(_Strict):
    """One change of one feature (or along one vector) for the tokens of one request."""

    feature: int | None = Field(default=None, description="Index into the dictionary.")
    vector: str | InlineVector | None = Field(default=None, description="A stored vector's name, or one inline.")
    dictionary: str | None = Field(default=None, description="Dictionary id; the default dictionary if absent.")
    mode: Mode = Field(default="add", description="What is done with the feature's activation.")
    scale: Scale | None = Field(default=None, description="The number of the mode.")
    unit: Unit | None = Field(
        default=None,
        description=(
            "What `scale` counts: raw (activation, the default), max (times the feature's largest activation), norm "
            "(fractions of the mean norm there) or dose (1 is the change at which the output visibly shifts)."
        ),
    )
    positions: Positions = Field(default="all", description="Which tokens are edited.")
    start: int = Field(default=0, ge=0, le=_MAX_INDEX, description="First generated token that is edited.")
    stop: int | None = Field(default=None, ge=0, le=_MAX_INDEX, description="First generated token no longer edited.")
    ramp: int = Field(default=0, ge=0, le=_MAX_INDEX, description="Tokens over which the change grows.")
    special_tokens: bool = Field(
        default=False, description="Whether control tokens and attention sinks are edited too; that breaks most models."
    )
    when: Gate | None = Field(default=None, description="A gate: edit only where another feature is active, or not.")

    @model_validator(mode="after")
    def _fits_together(self) -> Edit:
        if (found := next(filter(None, (check(self) for check in _CHECKS)), None)) is not None:
            field, problem = found
            raise PydanticCustomError("edit", "{problem}", {"problem": problem, "field": field})
        return self


class Steering(_Strict):
    """The full form of `steering`."""

    edits: list[Edit] = Field(default_factory=list, description="Edits, all reading the same unedited stream.")
    presets: list[str] = Field(default_factory=list, description="Presets by name, added to the edits.")
    strength: float = Field(
        default=1.0, ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False, description="Multiplies every change."
    )


def parse_steering(value: object, *, max_edits: int) -> Steering | None:
    """Read the five spellings of `steering` into the full form; None where there is nothing to do.

    Raises:
        InvalidRequestError: the value is no steering; `param` is a path such as `steering.edits[0].scale`.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = {"presets": [value]}
    elif isinstance(value, list):
        _check_count(value, max_edits)
        presets = [part for part in value if isinstance(part, str)]
        full = {"edits": [part for part in value if not isinstance(part, str)]}
        value = {**full, "presets": presets} if presets else full
    elif not isinstance(value, dict):
        message = f"steering must be a list of edits, a preset's name, an object or null, not {_kind(value)}."
        raise InvalidRequestError(message, param="steering", code="invalid_type")
    elif isinstance(value.get("edits"), list):
        _check_count(value["edits"], max_edits)
    try:
        return Steering.model_validate(_without_nulls(value))
    except ValidationError as error:
        raise _as_request_error(error) from error
    except RecursionError as error:
        message = "steering is nested too deeply."
        raise InvalidRequestError(message, param="steering") from error


def _without_nulls(value: object) -> object:
    """Drop explicit nulls, which clients send for what they leave out."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return [_without_nulls(part) for part in value]
    return value


def _check_count(edits: list[Any], max_edits: int) -> None:
    if len(edits) > max_edits:
        message = f"A request may carry at most {max_edits} edits, and this one has {len(edits)}."
        raise InvalidRequestError(message, param="steering.edits")


Problem = tuple[str, str]
"""The field that is wrong, and what is wrong with it."""


def _target(edit: Edit) -> Problem | None:
    if (edit.feature is None) == (edit.vector is None):
        return "feature", "an edit names exactly one of feature and vector"
    if edit.vector is not None and edit.mode not in VECTOR_MODES:
        return "mode", f"a vector takes mode add or remove, not {edit.mode}"
    if edit.vector is not None and edit.dictionary is not None:
        return "dictionary", "dictionary goes with feature, not with vector"
    return None


def _scale(edit: Edit) -> Problem | None:
    if edit.mode in SCALELESS_MODES:
        return ("scale", f"mode {edit.mode} takes no scale") if edit.scale is not None else None
    return ("scale", f"mode {edit.mode} needs a scale, a finite number") if edit.scale is None else None


def _unit(edit: Edit) -> Problem | None:
    if edit.unit is None:
        return None
    units = UNITS.get(edit.mode)
    if units is None:
        return "unit", f"mode {edit.mode} takes no unit"
    if edit.unit not in units:
        return "unit", f"mode {edit.mode} takes unit {', '.join(units[:-1])} or {units[-1]}, not {edit.unit}"
    if edit.unit == "max" and edit.vector is not None:
        return "unit", "a vector has no activations that unit max could count; take unit raw, norm or dose"
    return None


def _window(edit: Edit) -> Problem | None:
    if edit.positions != "generated" and (edit.start or edit.stop is not None or edit.ramp):
        return "positions", "start, stop and ramp go with positions: generated"
    if edit.stop is not None and edit.stop <= edit.start:
        return "stop", f"stop ({edit.stop}) must lie after start ({edit.start})"
    return None


_CHECKS = (_target, _scale, _unit, _window)


def _as_request_error(error: ValidationError) -> InvalidRequestError:
    # Of a union's branches the deepest complaint is the one that means what the client wrote.
    found = max(error.errors(include_url=False), key=lambda detail: len(detail["loc"]))
    param = "steering"
    for before, part in itertools.pairwise((None, *found["loc"])):
        if isinstance(part, int):
            param += f"[{part}]"
        elif before != "vector":  # there a branch of its union follows, in pydantic's words
            param += f".{part}"
    name = param.rpartition(".")[2]
    value = found.get("input")
    reason = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        return _unknown_key(param)
    if found["type"] == "edit":
        param = f"{param}.{found['ctx']['field']}"
        return InvalidRequestError(f"{param}: {reason}.", param=param)
    code = "invalid_type" if found["type"].endswith(("_type", "_from_float")) else None
    shown = f" (got {_shown(value)})" if name else ""
    return InvalidRequestError(f"{param}: {reason[0].lower()}{reason[1:]}{shown}.", param=param, code=code)


def _unknown_key(param: str) -> InvalidRequestError:
    parent, _, key = param.rpartition(".")
    inner: dict[str, type[BaseModel]] = {"vector": InlineVector, "when": Gate}
    kind = inner.get(parent.rpartition("].")[2], Edit if "[" in parent else Steering)
    if kind is Steering and key in Edit.model_fields:
        message = f'{param}: an edit goes into a list, such as "steering": [{{"feature": 17, "scale": 8}}].'
        return InvalidRequestError(message, param=param, code="unknown_parameter")
    known = list(kind.model_fields)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    message = f"{param[:200]} is not known.{hint} Known here: {', '.join(known)}."
    return InvalidRequestError(message, param=param, code="unknown_parameter")


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested beyond Python's limit, or an integer of thousands of digits
        return "a value too large to show"
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 as much as reads well


def _kind(value: object) -> str:
    return {bool: "a boolean", int: "a number", float: "a number"}.get(type(value), type(value).__name__)
