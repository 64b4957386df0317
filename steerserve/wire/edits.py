"""The schema of `steering`, checked before anything runs. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from steerserve.core.errors import InvalidRequestError
from steerserve.core.findings import MISSING, UNKNOWN_KEY, explain, show_value, spell_path
from steerserve.core.literals import JSON_WORDS
from steerserve.wire.base import StrictModel

Mode = Literal["add", "clamp", "multiply", "ablate", "floor", "ceiling", "remove"]
Unit = Literal["raw", "max", "norm", "dose"]
Positions = Literal["all", "prompt", "generated"]

SETTING_MODES: frozenset[str] = frozenset({"clamp", "ablate", "floor", "ceiling"})
"""Modes that set a feature's activation, so that two of them on one feature contradict each other."""
UNITS: dict[str, tuple[Unit, ...]] = {
    "add": ("raw", "max", "norm", "dose"),
    "clamp": ("raw", "max", "dose"),
    "floor": ("raw", "max"),
    "ceiling": ("raw", "max"),
}
"""Units that the scale of each mode can have; modes that are not listed take no unit."""
SCALELESS_MODES: frozenset[str] = frozenset({"ablate", "remove"})
VECTOR_MODES: frozenset[str] = frozenset({"add", "remove"})
MAX_SCALE = 1e6
MAX_VECTOR_VALUES = 1 << 17
MAX_STRENGTH = 1e3
_MAX_INDEX = 1 << 31
_LOOKED_UP_UNITS = ("max", "dose")
"""Units whose worth is read from feature stores."""
_TOP_LEVEL = 2
"""Length of the path of a field of `steering` itself."""

Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]

Values = Annotated[list[Scale], Field(max_length=MAX_VECTOR_VALUES, fail_fast=True)]


class Problem(NamedTuple):
    """What is wrong with an object whose fields are each valid but do not fit together."""

    field: str | None
    """The field that is wrong; None if it is the whole object."""
    sentence: str
    is_missing: bool = False
    """Whether a required field is missing."""


def _problem_error(problem: Problem) -> PydanticCustomError:
    context = {"problem": problem.sentence, "field": problem.field, "is_missing": problem.is_missing}
    return PydanticCustomError("edit", "{problem}", context)


class InlineVector(StrictModel):
    """A direction that the request itself brings."""

    hook: str = Field(description="Hook point, such as blocks.17.hook_resid_post.")
    values: Values | None = Field(
        default=None,
        description="The vector's values: d_model of them, or heads times head size at attn.hook_z.",
    )
    base64: str | None = Field(
        default=None, description="Instead of `values`: the same numbers as base64 of little-endian bytes."
    )
    dtype: Literal["float32", "float16", "float64"] | None = Field(
        default=None, description="Type of the numbers in `base64`; float32 if absent."
    )

    @model_validator(mode="after")
    def _one_form(self) -> InlineVector:
        if (self.values is None) == (self.base64 is None):
            is_missing = self.values is None
            raise _problem_error(Problem(None, "a vector has exactly one of values and base64", is_missing=is_missing))
        if self.dtype is not None and self.base64 is None:
            raise _problem_error(Problem(None, "dtype goes with base64"))
        return self


class Gate(StrictModel):
    """A condition on another feature, token by token."""

    feature: int = Field(description="Index of the gate's feature in the dictionary.")
    dictionary: str | None = Field(default=None, description="Dictionary id; the default dictionary if absent.")
    above: Scale | None = Field(
        default=None, description="Edit only the tokens at which the gate's activation is larger than this."
    )
    below: Scale | None = Field(
        default=None, description="Edit only the tokens at which the gate's activation is smaller than this."
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Gate:
        if (self.above is None) == (self.below is None):
            is_missing = self.above is None
            raise _problem_error(Problem(None, "a gate has exactly one of above and below", is_missing=is_missing))
        return self


class Edit(StrictModel):
    """One change of one feature (or along one vector) for the tokens of one request."""

    feature: int | None = Field(default=None, description="Index of the feature in the dictionary.")
    vector: str | InlineVector | None = Field(
        default=None, description="Instead of `feature`: a stored vector's name, or an inline vector."
    )
    dictionary: str | None = Field(default=None, description="Dictionary id; the default dictionary if absent.")
    mode: Mode = Field(default="add", description="How the edit changes the feature's activation.")
    scale: Scale | None = Field(
        default=None, description="The change, new value, factor or bound, depending on `mode`; counted in `unit`."
    )
    unit: Unit | None = Field(
        default=None,
        description=(
            "Unit of `scale`: raw (activation, the default), max (multiples of the feature's largest activation), norm "
            "(fractions of the mean residual norm at the hook point) or dose (1 is the change at which the output "
            "visibly shifts)."
        ),
    )
    positions: Positions = Field(default="all", description="The tokens that are edited.")
    start: int = Field(default=0, ge=0, le=_MAX_INDEX, description="Index of the first generated token that is edited.")
    stop: int | None = Field(
        default=None,
        ge=0,
        le=_MAX_INDEX,
        description="Index of the generated token before which the edit ends; null for no end.",
    )
    ramp: int = Field(
        default=0, ge=0, le=_MAX_INDEX, description="Number of tokens over which the change grows to its full size."
    )
    special_tokens: bool = Field(
        default=False, description="Whether control tokens and attention sinks are edited too; that breaks most models."
    )
    when: Gate | None = Field(
        default=None, description="A gate: edit only the tokens at which another feature is active, or is not."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Edit:
        if (problem := next(filter(None, (check(self) for check in _CHECKS)), None)) is not None:
            raise _problem_error(problem)
        return self


class Steering(StrictModel):
    """The full form of `steering`."""

    edits: list[Edit] = Field(
        default_factory=list, description="The edits. All of them read the same unedited residual stream."
    )
    presets: list[str] = Field(
        default_factory=list, description="Names of presets; their edits are added to those of `edits`."
    )
    strength: float = Field(
        default=1.0,
        ge=-MAX_STRENGTH,
        le=MAX_STRENGTH,
        allow_inf_nan=False,
        description="Factor by which every change is multiplied.",
    )

    @property
    def needs_lookup(self) -> bool:
        """Whether resolving it may read files: presets, stored vectors, or facts about features."""
        return bool(self.presets) or any(
            edit.unit in _LOOKED_UP_UNITS or isinstance(edit.vector, str) for edit in self.edits
        )


def parse_steering(value: object, *, max_edits: int) -> Steering | None:
    """Parse any of the five forms of `steering` into the full form; None for null. The full form is returned as it is.

    Raises:
        InvalidRequestError: the value is not valid; `param` is a path such as `steering.edits[0].scale`.
    """
    if value is None or isinstance(value, Steering):
        return value
    if isinstance(value, str):
        value = {"presets": [value]}
    elif isinstance(value, list):
        check_num_presets([part for part in value if isinstance(part, str)], max_edits)
        _check_num_edits(value, max_edits)
        presets = [part for part in value if isinstance(part, str)]
        full = {"edits": [part for part in value if not isinstance(part, str)]}
        value = {**full, "presets": presets} if presets else full
    elif not isinstance(value, dict):
        got = show_value(value, JSON_WORDS)
        message = f"steering must be an array of edits, a preset's name, an object or null, not {got}."
        raise InvalidRequestError(message, param="steering", code="invalid_type")
    else:
        check_num_presets(value.get("presets"), max_edits)
        _check_num_edits(value.get("edits"), max_edits)
    try:
        value = _without_nulls(value)
        return Steering.model_validate(value)
    except ValidationError as error:
        raise _steering_error(error, value) from error
    except RecursionError as error:
        message = "steering is nested too deeply."
        raise InvalidRequestError(message, param="steering") from error


def _steering_error(error: ValidationError, value: object) -> InvalidRequestError:
    finding = explain(error.errors(include_url=False), value, JSON_WORDS, schema=Steering, prefix=("steering",))
    param, message, code = spell_path(finding.path), finding.message, None
    if finding.kind == UNKNOWN_KEY:
        code = "unknown_parameter"
        if len(finding.path) == _TOP_LEVEL and finding.path[-1] in Edit.model_fields:
            message = f'{param}: an edit goes into a list, such as "steering": [{{"feature": 17, "scale": 8}}].'
    elif finding.kind == MISSING or finding.context.get("is_missing"):
        code = "missing_required_parameter"
    elif finding.is_wrong_type:
        code = "invalid_type"
        if finding.path[-1] == "vector":
            got = show_value(finding.value, JSON_WORDS)
            message = f"{param} must be a stored vector's name or an object, not {got}."
    return InvalidRequestError(message, param=param, code=code)


def _without_nulls(value: object) -> object:
    """Drop explicit nulls, which some clients send for fields that they leave out."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return [_without_nulls(part) for part in value]
    return value


def check_num_presets(presets: object, limit: int, *, param: str = "steering.presets") -> None:
    """Check that a request does not name too many presets; anything but a list or a tuple of them passes.

    Raises:
        InvalidRequestError: it names more than `limit`.
    """
    if isinstance(presets, (list, tuple)) and len(presets) > limit:
        message = f"A request may name at most {limit} presets, and this one names {len(presets)}."
        raise InvalidRequestError(message, param=param)


def _check_num_edits(edits: object, max_edits: int) -> None:
    if isinstance(edits, list) and len(edits) > max_edits:
        message = f"A request may carry at most {max_edits} edits, and this one has {len(edits)}."
        raise InvalidRequestError(message, param="steering.edits")


def _target(edit: Edit) -> Problem | None:
    if (edit.feature is None) == (edit.vector is None):
        is_missing = edit.feature is None
        return Problem("feature", "an edit names exactly one of feature and vector", is_missing=is_missing)
    if edit.vector is not None and edit.mode not in VECTOR_MODES:
        return Problem("mode", f"a vector takes mode add or remove, not {edit.mode}")
    if edit.vector is not None and edit.dictionary is not None:
        return Problem("dictionary", "dictionary goes with feature, not with vector")
    return None


def _scale(edit: Edit) -> Problem | None:
    if edit.mode in SCALELESS_MODES:
        return Problem("scale", f"mode {edit.mode} takes no scale") if edit.scale is not None else None
    if edit.scale is None:
        return Problem("scale", f"mode {edit.mode} needs a scale, a finite number", is_missing=True)
    return None


def _unit(edit: Edit) -> Problem | None:
    if edit.unit is None:
        return None
    units = UNITS.get(edit.mode)
    if units is None:
        return Problem("unit", f"mode {edit.mode} takes no unit")
    if edit.unit not in units:
        return Problem("unit", f"mode {edit.mode} takes unit {', '.join(units[:-1])} or {units[-1]}, not {edit.unit}")
    if edit.unit == "max" and edit.vector is not None:
        return Problem("unit", "a vector has no activations that unit max could count; take unit raw, norm or dose")
    return None


def _window(edit: Edit) -> Problem | None:
    if edit.positions != "generated" and (edit.start or edit.stop is not None or edit.ramp):
        return Problem("positions", "start, stop and ramp go with positions: generated")
    if edit.stop is not None and edit.stop <= edit.start:
        return Problem("stop", f"stop ({edit.stop}) must lie after start ({edit.start})")
    return None


_CHECKS = (_target, _scale, _unit, _window)
