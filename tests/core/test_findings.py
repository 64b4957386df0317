"""What pydantic finds becomes one sentence about one value, in the words of the data's format."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from steerserve.core.findings import Finding, explain, find_null, parse_path, spell_path
from steerserve.core.literals import JSON_WORDS, YAML_WORDS, Words


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Inner(Strict):
    hook: str
    values: Annotated[list[float], Field(max_length=2)] = []

    @model_validator(mode="after")
    def _has_values(self) -> Inner:
        if self.hook == "empty":
            problem = "a hook needs values"
            raise PydanticCustomError("own", "{problem}", {"problem": problem, "field": "values"})
        return self


class Outer(Strict):
    scale: Annotated[float, Field(ge=0, le=2)] = 1.0
    mode: Literal["add", "clamp"] = "add"
    name: Annotated[str, Field(pattern="^[a-z]+$", min_length=1)] = "a"
    vector: str | Inner | None = None
    parts: Annotated[list[Inner], Field(min_length=1)] = [Inner(hook="x")]


def finding(data: Any, words: Words = YAML_WORDS, **options: Any) -> Finding:  # noqa: ANN401
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)
    return explain(caught.value.errors(include_url=False), data, words, schema=Outer, **options)


@pytest.mark.parametrize(
    ("data", "in_yaml", "in_json"),
    [
        ({"scale": [1]}, "scale must be a number, not a list of 1", "scale must be a number, not an array of 1"),
        ({"scale": None}, "scale must be a number, not null", "scale must be a number, not null"),
        ({"name": True}, "name must be text, not true", "name must be a string, not true"),
        (
            {"name": ""},
            "name must be text of at least 1 character, not ''",
            "name must be a string of at least 1 character, not ''",
        ),
        (
            {"parts": []},
            "parts must be a list of at least 1 item, not a list of 0",
            "parts must be an array of at least 1 entry, not an array of 0",
        ),
        (
            {"vector": {"hook": "x", "values": [1, 2, 3]}},
            "vector.values must be a list of at most 2 items, not a list of 3",
            "vector.values must be an array of at most 2 entries, not an array of 3",
        ),
        (
            {"vector": 5},
            "vector must be text or a mapping of names to values, not 5",
            "vector must be a string or an object, not 5",
        ),
    ],
)
def test_types_are_called_as_the_format_calls_them(data: Any, in_yaml: str, in_json: str) -> None:  # noqa: ANN401
    assert finding(data).sentence == in_yaml
    assert finding(data, JSON_WORDS).sentence == in_json


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"scale": 3}, "scale must be at most 2, not 3."),
        ({"scale": "1e0"}, "scale must be a number, not '1e0'; write 1, without quotes."),
        ({"mode": "clmap"}, "mode must be 'add' or 'clamp', not 'clmap'; did you mean clamp?"),
        ({"scal": 3}, "scal is not known; did you mean scale?"),
        ({"zzz": 3}, "zzz is not known; it must be one of scale, mode, name, vector, parts."),
        ({"parts": [{"hok": "x"}]}, "parts[0].hok is not known; did you mean hook?"),
        ({"parts": [{}]}, "parts[0].hook is missing."),
        ({"vector": {"hook": 5}}, "vector.hook must be text, not 5."),
        ({"vector": {"str": 5}}, "vector.str is not known; it must be one of hook, values."),
        ({"vector": {"hook": "empty"}}, "vector.values: a hook needs values."),
        ({"name": "x" * 100 + "5"}, f"name must be text that matches ^[a-z]+$, not '{'x' * 56}..."),
    ],
)
def test_the_sentence_says_what_would_be_right(data: Any, message: str) -> None:  # noqa: ANN401
    assert finding(data).message == message


def test_patterns_have_words() -> None:
    assert finding({"name": "5"}, patterns={"^[a-z]+$": "letters"}).sentence == "name must be letters, not '5'"


def test_an_unknown_key_comes_first_then_the_callers_order() -> None:
    data = {"scale": "x", "name": 5, "parts": [{"hook": "x", "hooks": 1}]}
    assert finding(data).path == ("parts", 0, "hooks")
    del data["parts"]
    assert finding(data).path == ("scale",)
    assert finding(data, order=lambda path: path != ("name",)).path == ("name",)


def test_a_prefix_comes_before_the_path() -> None:
    assert finding({"scale": 3}, prefix=("steering",)).sentence == "steering.scale must be at most 2, not 3"
    assert finding({"scal": 3}, prefix=("steering",)).message == "steering.scal is not known; did you mean scale?"


def test_a_key_without_a_value_is_named() -> None:
    null = find_null({"a": [1, {"b": None}]})
    assert null == Finding(("a", 1, "b"), "a[1].b has no value; give it one, or take the line out")
    assert find_null({"a": [1]}) is None


def test_a_path_is_read_as_it_is_written() -> None:
    path = ("arms", 1, "steering", "edits", 0, "scale")
    assert spell_path(path) == "arms[1].steering.edits[0].scale"
    assert parse_path(spell_path(path)) == path
    assert spell_path(("x" * 1000,)) == "x" * 97 + "..."
    assert spell_path(("a\nb", "\ud800")) == r"a\nb.\ud800"
