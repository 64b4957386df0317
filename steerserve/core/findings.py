"""From what pydantic finds wrong with some data to one sentence, and the path of the value that it is about.

Requests, presets, experiments and settings are refused through `explain`. It knows how JSON and YAML call their types
and nothing of what the data mean; where a value stands in a file is for the caller to say.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from steerserve.core.literals import Words
from steerserve.core.names import nearest_name, short_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import BaseModel

DataPath = tuple[str | int, ...]
"""The keys and list indices that lead to a value; `()` is the whole of the data."""

UNKNOWN_KEY = "extra_forbidden"
MISSING = "missing"


_TYPES = {
    "string_type": "string",
    "int_type": "integer",
    "int_from_float": "integer",
    "int_parsing": "integer",
    "float_type": "number",
    "float_parsing": "number",
    "bool_type": "boolean",
    "bool_parsing": "boolean",
    "list_type": "array",
    "tuple_type": "array",
    "dict_type": "mapping",
    "model_type": "mapping",
    "model_attributes_type": "mapping",
}
"""The field of `Words` with the right type, by pydantic's type of error."""
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "greater_than": "greater than {gt}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "int_parsing_size": "{integer} of fewer digits",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "string_unicode": "{string} of whole characters",
    "string_pattern_mismatch": "{string} that matches {pattern}",
}
_LENGTHS = {
    "string_too_short": "{string} of at least {min_length} {unit}",
    "string_too_long": "{string} of at most {max_length} {unit}",
    "too_short": "{array} of at least {min_length} {unit}",
    "too_long": "{array} of at most {max_length} {unit}",
}
_PATH_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_MAX_SHOWN = 60
_MAX_DIGITS = 20
_MAX_WHOLE = 1e15


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with some data."""

    path: DataPath
    """Path of the value; the data need not have its last key."""
    sentence: str
    """What is wrong and what would be right, without the final stop."""
    kind: str = "value_error"
    """Pydantic's type of error, such as `missing` or `int_type`."""
    expected: str = ""
    """What the value must be, such as `a whole number` or `at most 2`; empty if the sentence is a validator's own."""
    value: object = None
    context: Mapping[str, Any] = field(default_factory=dict)
    """What the validator adds to its error, such as a bound."""

    @property
    def is_wrong_type(self) -> bool:
        """Whether the value has a type that the schema does not take."""
        return self.kind in _TYPES

    @property
    def message(self) -> str:
        """The sentence with its final stop."""
        return self.sentence if self.sentence.endswith(("?", ".")) else f"{self.sentence}."


def explain(
    details: Sequence[Mapping[str, Any]],
    data: object,
    words: Words,
    *,
    schema: type[BaseModel] | None = None,
    patterns: Mapping[str, str] | None = None,
    prefix: DataPath = (),
    order: Callable[[DataPath], Any] | None = None,
) -> Finding:
    """Return the finding that tells most: an unknown key, since it explains what is missing, or else the first.

    Args:
        details: What `ValidationError.errors()` lists.
        data: The data that were checked.
        words: What the types are called in the format of the data.
        schema: The model of the data, if a message about an unknown key is to name the keys that it has.
        patterns: What regular expressions of the schema mean, in words.
        prefix: What comes before the paths of the data, such as the field of a request that holds them.
        order: A sort key for the paths, such as positions in a file; pydantic's own order by default.
    """
    located = [(_data_path(detail, data), detail) for detail in details]
    # In a union the branch that got furthest is what was meant.
    paths = {path for path, _ in located}
    branches = {path[:length] for path in paths for length in range(len(path))}
    deepest = [(path, detail) for path, detail in located if path not in branches]
    path, _ = min(deepest, key=lambda pair: (pair[1]["type"] != UNKNOWN_KEY, order(pair[0]) if order else 0))
    same_value = [detail for other, detail in deepest if other == path]
    # A branch whose types are right and that contradicts itself got further than one with another type.
    detail = next((detail for detail in same_value if _own_sentence(detail)), same_value[0])
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    path = (*prefix, *path)
    if context.get("field") is not None:
        path = (*path, context["field"])
    name = spell_path(path)
    expected = ""
    if kind == UNKNOWN_KEY:
        sentence = f"{name} is not known{_suggest(path, path[len(prefix) :], schema)}"
    elif kind == MISSING:
        sentence = f"{name} is missing"
    elif own := _own_sentence(detail):
        sentence = f"{name}: {own}" if name else own
    else:
        expected = " or ".join(dict.fromkeys(_expected(other, words, patterns or {}) for other in same_value))
        sentence = f"{name or 'it'} must be {expected}, not {show_value(value, words)}{_hint(detail)}"
    return Finding(path, sentence, kind, expected, value, context)


def find_null(data: object, path: DataPath = ()) -> Finding | None:
    """Return the first key of a file whose value is missing: `scale:` with nothing behind it is no default."""
    if data is None:
        return Finding(path, f"{spell_path(path)} has no value; give it one, or take the line out")
    parts = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return next((null for key, part in parts if (null := find_null(part, (*path, key))) is not None), None)


def spell_path(path: DataPath) -> str:
    """Write a path as `edits[0].scale`; long keys are cut, and characters that would break a line are escaped."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{_spell_key(part)}" for part in path)
    return "".join(parts).removeprefix(".")


def parse_path(text: str) -> DataPath:
    """Read `edits[0].scale` as a path."""
    return tuple(int(index) if index else key for key, index in _PATH_PART.findall(text))


def show_value(value: object, words: Words) -> str:
    """Write a value of the data as its format does, and briefly."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, dict):
        return words.mapping
    if isinstance(value, list):
        return f"{words.array} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**_MAX_DIGITS:
        return "a number of many digits"
    text = repr(value[: _MAX_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def type_in_words(value: object, words: Words) -> str:
    """Return what the format calls the type of a value."""
    if value is None:
        return "null"
    types = {
        bool: words.boolean,
        int: words.integer,
        float: words.number,
        str: words.string,
        list: words.array,
        dict: words.mapping,
    }
    return types.get(type(value), "something else")


def _spell_key(key: str) -> str:
    key = short_name(key)
    return key if key.isprintable() else key.encode("unicode_escape").decode("ascii")


def _data_path(detail: Mapping[str, Any], data: object) -> DataPath:
    """Follow a finding's path through the data, leaving out the names of union branches, which are no keys."""
    path: list[str | int] = []
    is_missing = detail["type"] == MISSING
    for part in detail["loc"][:-1] if is_missing else detail["loc"]:
        if not isinstance(data, dict | list) or data is detail.get("input"):
            break
        if part in (data if isinstance(data, dict) else range(len(data))):
            data = data[part]
            path.append(part)
    return (*path, detail["loc"][-1]) if is_missing else tuple(path)


def _own_sentence(detail: Mapping[str, Any]) -> str:
    """Return the sentence of a validator of ours; empty if the finding is pydantic's own."""
    if detail["type"] == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ").removesuffix(".")
    return str(detail.get("ctx", {}).get("problem", ""))


def _expected(detail: Mapping[str, Any], words: Words, patterns: Mapping[str, str]) -> str:
    kind = detail["type"]
    context = {key: _plain_bound(value) for key, value in detail.get("ctx", {}).items()}
    if kind in _TYPES:
        return str(getattr(words, _TYPES[kind]))
    if context.get("pattern") in patterns:
        return patterns[context["pattern"]]
    if kind in _LENGTHS:
        unit = "character" if kind.startswith("string") else words.entry
        length = context.get("min_length", context.get("max_length"))
        template = _LENGTHS[kind]
        if context.get("field_type") == "Dictionary":
            template = template.replace("{array}", "{mapping}")
        return template.format(**asdict(words), **context, unit=unit if length == 1 else _plural(unit))
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**asdict(words), **context)
    return str(context.get("expected", detail["msg"])).removeprefix("Input should be ")


def _plain_bound(value: Any) -> Any:  # noqa: ANN401 a bound
    """Write a bound as people do: 2 and not 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plural(unit: str) -> str:
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def _hint(detail: Mapping[str, Any]) -> str:
    value = detail.get("input")
    if not isinstance(value, str):
        return ""
    if detail["type"] == "literal_error":
        words = [word.strip("' ") for word in str(detail["ctx"]["expected"]).replace(" or ", ",").split(",")]
        near = nearest_name(value, words)
        return f"; did you mean {near}?" if near else ""
    if detail["type"] in {"int_type", "float_type"}:
        try:
            number = float(value)
        except ValueError:
            return ""
        if math.isfinite(number):  # in quotes, or 1e3, which YAML takes for text
            return f"; write {_plain_bound(number) if abs(number) < _MAX_WHOLE else number}, without quotes"
    return ""


def _suggest(path: DataPath, inner: DataPath, schema: type[BaseModel] | None) -> str:
    if schema is None:
        return ""
    names = list(dict.fromkeys(name for model in _models_at(schema, inner[:-1]) for name in model.model_fields))
    near = nearest_name(str(path[-1]), names)
    return f"; did you mean {near}?" if near else f"; it must be one of {', '.join(names)}"


def _models_at(schema: type[BaseModel], path: DataPath) -> list[type[BaseModel]]:
    """Return the models that the value at `path` may be."""
    models = [schema]
    for part in path:
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [model for described in fields for model in models_in(described.annotation)]
    return models


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Find the pydantic models in a type annotation."""
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)
