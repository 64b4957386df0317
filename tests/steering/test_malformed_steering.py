"""Hundreds of ways to get `steering` wrong: each is refused before anything runs, and at the place of the mistake."""

from __future__ import annotations

import base64
import copy
import json
import math
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steerserve.core.errors import InvalidRequestError
from steerserve.wire.edits import Edit, Gate, InlineVector, Steering
from tests.tiny import D_MODEL, HOOK_NAME

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

Path = tuple[str | int, ...]
Mistake = tuple[Any, str]
"""A value of `steering`, and the `param` that its refusal must name."""
QUICK = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = [1.0] * D_MODEL
ENCODED = base64.b64encode(struct.pack(f"<{D_MODEL}f", *VALUES)).decode()
FEATURE = {
    "feature": 4,
    "dictionary": "topk",
    "mode": "clamp",
    "scale": 2.0,
    "unit": "raw",
    "positions": "generated",
    "start": 1,
    "stop": 9,
    "ramp": 3,
    "special_tokens": False,
    "when": {"feature": 1, "dictionary": "standard", "above": 0.5},
}
VECTOR = {
    "vector": {"hook": "blocks.1.hook_resid_pre", "values": VALUES},
    "scale": 1.0,
    "when": {"feature": 2, "below": 1},
}
PACKED = {"vector": {"hook": HOOK_NAME, "base64": ENCODED, "dtype": "float32"}, "scale": -1, "positions": "prompt"}
WELL_FORMED: dict[str, Any] = {
    "short": [{"feature": 3, "scale": 1.0}],
    "feature": {"edits": [FEATURE], "strength": 0.5},
    "several": {"edits": [{"feature": 3, "scale": 1.0}, VECTOR, PACKED, FEATURE], "strength": 1},
    "list": [VECTOR, FEATURE, {"feature": 5, "mode": "remove"}],
}
WORD, NUMBER, WHOLE, FLAG, LIST, OBJECT = "x", 1.5, 7, True, ["x"], {"x": 1}
NOT_FINITE = [math.nan, math.inf, -math.inf, 1e300, -1e7, 10**400]
NOT_A_FEATURE: list[Any] = [WORD, NUMBER, FLAG, LIST, OBJECT, "4", 4.0, -1, 96, 1 << 80, 10**5000, math.nan]
NOT_A_NUMBER: list[Any] = [WORD, "1.0", FLAG, LIST, OBJECT, *NOT_FINITE]
NOT_A_COUNT: list[Any] = [WORD, "1", 1.0, NUMBER, FLAG, LIST, OBJECT, -1, 1 << 40, math.inf]
WRONG: dict[str, list[Any]] = {
    "feature": NOT_A_FEATURE,
    "dictionary": [WHOLE, NUMBER, FLAG, LIST, OBJECT, "", "topc", "TOPK", "topk "],
    "mode": [WHOLE, FLAG, LIST, OBJECT, "", "CLAMP", "set", "clamp "],
    "scale": NOT_A_NUMBER,
    "unit": [WHOLE, FLAG, LIST, OBJECT, "", "percent", "Raw", "norm"],
    "positions": [WHOLE, FLAG, LIST, OBJECT, "", "none", "Generated", "all", "prompt"],
    "start": NOT_A_COUNT,
    "stop": [*NOT_A_COUNT, 0, 1],
    "ramp": NOT_A_COUNT,
    "special_tokens": [WORD, "true", 1, 0, NUMBER, LIST, OBJECT],
    "when": [WORD, WHOLE, FLAG, [], LIST],
}
WRONG_IN_GATE: dict[str, list[Any]] = {
    "feature": NOT_A_FEATURE,
    "dictionary": [WHOLE, NUMBER, FLAG, LIST, OBJECT, "", "standart", "late"],
    "above": NOT_A_NUMBER,
}
WRONG_IN_VECTOR: dict[str, list[Any]] = {
    "hook": [WHOLE, FLAG, LIST, OBJECT, "", "resid", "blocks.9.hook_resid_post", "blocks.0.mlp.hook_in"],
    "values": [WORD, WHOLE, FLAG, OBJECT, [], VALUES[1:], [*VALUES, 1.0]],
    "base64": [WHOLE, FLAG, LIST, OBJECT, "", "%%%", "AAA=", ENCODED[:-4], ENCODED + "AAAA", "é"],
    "dtype": [WHOLE, FLAG, LIST, OBJECT, "", "int8", "Float32"],
}
KINDS = ["hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"]
ORDER = [f"blocks.{layer}.{kind}" for layer in range(2) for kind in KINDS]
READ_AT = {
    "z": "blocks.0.attn.hook_z",
    "standard": HOOK_NAME,
    "heads": "blocks.1.attn.hook_z",
    "mlp": "blocks.1.hook_mlp_out",
    "late": "blocks.1.hook_resid_post",
}


def put(value: Any, path: Path, new: Any) -> Any:  # noqa: ANN401 malformed on purpose
    """Return a copy with `new` at a path."""
    found = whole = copy.deepcopy(value)
    for part in path[:-1]:
        found = found[part]
    found[path[-1]] = new
    return whole


def without(value: Any, path: Path) -> Any:  # noqa: ANN401
    """Return a copy that lacks what is at a path."""
    found = whole = copy.deepcopy(value)
    for part in path[:-1]:
        found = found[part]
    del found[path[-1]]
    return whole


def param_of(path: Path) -> str:
    """Write a path as errors do; a short list of edits stands for the full form."""
    full = path if isinstance(path[0], str) else ("edits", *path)
    keys = (
        part if isinstance(part, int) or part.isprintable() else part.encode("unicode_escape").decode() for part in full
    )
    return "steering" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)


def at(name: str, kind: str) -> Path:
    """Return where the edit of a kind is in a well-formed value."""
    value = WELL_FORMED[name]
    edits = value["edits"] if isinstance(value, dict) else value
    wanted = {"feature": FEATURE, "vector": VECTOR, "packed": PACKED}[kind]
    return (*(("edits",) if isinstance(value, dict) else ()), edits.index(wanted))


def wrong_values() -> list[Mistake]:
    found: list[Mistake] = []
    for name in ("feature", "several", "list"):
        edit = at(name, "feature")
        paths = [((*edit, key), some) for key, some in WRONG.items()]
        paths += [((*edit, "when", key), some) for key, some in WRONG_IN_GATE.items()]
        for path, some in paths:
            for new in some:
                # A gate that is read too late is refused as a whole.
                param = param_of(path[:-1] if new == "late" else path)
                found.append((put(WELL_FORMED[name], path, new), param))
    for kind, keys in (("vector", ("hook", "values")), ("packed", ("hook", "base64", "dtype"))):
        edit = at("several", kind)
        for key in keys:
            path = (*edit, "vector", key)
            found += [(put(WELL_FORMED["several"], path, new), param_of(path)) for new in WRONG_IN_VECTOR[key]]
        for new in (WHOLE, FLAG, LIST, "no-such-vector", ""):
            found.append((put(WELL_FORMED["several"], (*edit, "vector"), new), param_of((*edit, "vector"))))
    for new in [*NOT_A_NUMBER, 1e4, -1e4]:
        found.append((put(WELL_FORMED["feature"], ("strength",), new), "steering.strength"))
    return found


def missing() -> list[Mistake]:
    edit, vector, packed = at("several", "feature"), at("several", "vector"), at("several", "packed")
    places: list[tuple[Path, Path]] = [
        ((*edit, "feature"), (*edit, "feature")),
        ((*edit, "scale"), (*edit, "scale")),
        ((*edit, "positions"), (*edit, "positions")),
        ((*edit, "when", "feature"), (*edit, "when", "feature")),
        ((*edit, "when", "above"), (*edit, "when")),
        ((*vector, "vector"), (*vector, "feature")),
        ((*vector, "vector", "hook"), (*vector, "vector", "hook")),
        ((*vector, "vector", "values"), (*vector, "vector")),
        ((*vector, "when", "below"), (*vector, "when")),
        ((*packed, "vector", "base64"), (*packed, "vector")),
    ]
    return [
        (change, param_of(named))
        for path, named in places
        for change in (without(WELL_FORMED["several"], path), put(WELL_FORMED["several"], path, None))
    ]


def unknown_keys() -> list[Mistake]:
    edit, vector = at("several", "feature"), at("several", "vector")
    places: dict[Path, tuple[str, ...]] = {
        (): ("edit", "preset", "Strength", "feature", "when", "ramp", "str", "0", "a.b"),
        edit: ("Feature", "strength", "above", "gate", "layer", "hook", "str", "InlineVector", "vector.x", " "),
        (*edit, "when"): ("abov", "ABOVE", "equals", "scale", "positions", "str", "when", "above "),
        vector: ("values", "hooks", "str"),
        (*vector, "vector"): ("value", "feature", "scale", "str", "InlineVector", "vector"),
    }
    return [
        (put(WELL_FORMED["several"], (*place, key), 1), param_of((*place, key)))
        for place, keys in places.items()
        for key in keys
    ]


def gates_too_late() -> list[Mistake]:
    found: list[Mistake] = []
    for hook_name in ORDER:
        for dictionary, read_at in READ_AT.items():
            if ORDER.index(read_at) > ORDER.index(hook_name):
                gate = {"feature": 1, "dictionary": dictionary, "above": 0.0}
                inline = {"vector": {"hook": hook_name, "values": VALUES}, "scale": 1.0, "when": gate}
                found.append(([inline], "steering.edits[0].when"))
    return found


def combinations() -> list[Mistake]:
    """Return what is well-formed in each part and not as a whole."""
    e0 = "steering.edits[0]"
    gate = {"feature": 1, "above": 0.5}
    no_edits: list[Any] = [5, None, [], True]
    no_presets: list[Any] = [5, [], {}, True]
    return [
        ([{**FEATURE, "when": {**gate, "below": 2.0}}], f"{e0}.when"),
        ([{**FEATURE, "mode": "ablate"}], f"{e0}.scale"),
        ([{**FEATURE, "mode": "remove"}], f"{e0}.scale"),
        ([{**FEATURE, "mode": "multiply"}], f"{e0}.unit"),
        ([{**FEATURE, "mode": "floor", "unit": "dose"}], f"{e0}.unit"),
        ([{**FEATURE, "unit": "max"}], f"{e0}.unit"),
        ([{**FEATURE, "start": 9}], f"{e0}.stop"),
        ([{**FEATURE, "vector": VECTOR["vector"]}], f"{e0}.feature"),
        ([{**VECTOR, "mode": "clamp"}], f"{e0}.mode"),
        ([{**VECTOR, "unit": "max"}], f"{e0}.unit"),
        ([{**VECTOR, "dictionary": "topk"}], f"{e0}.dictionary"),
        ([{**VECTOR, "ramp": 2}], f"{e0}.positions"),
        ([{**VECTOR, "positions": "prompt", "ramp": 2}], f"{e0}.positions"),
        ([{"vector": {"hook": HOOK_NAME, "values": [0.0] * D_MODEL}, "mode": "remove"}], f"{e0}.vector"),
        ([{"vector": {"hook": HOOK_NAME, "values": [0.0] * D_MODEL}, "scale": 1, "unit": "norm"}], f"{e0}.vector"),
        ([{"vector": {"hook": HOOK_NAME, "values": VALUES, "base64": ENCODED}, "scale": 1}], f"{e0}.vector"),
        ([{"vector": {"hook": HOOK_NAME, "values": VALUES, "dtype": "float32"}, "scale": 1}], f"{e0}.vector"),
        ([FEATURE, {"feature": 4, "dictionary": "topk", "mode": "ablate"}], "steering.edits[1]"),
        ([FEATURE, {"feature": 3, "scale": 1}, {**FEATURE, "when": gate}], "steering.edits[2]"),
        ([{**FEATURE, "feature": place, "mode": "add"} for place in range(65)], "steering.edits"),
        ({"edits": [VECTOR] * 65}, "steering.edits"),
        *((whole, "steering") for whole in (5, 1.5, True, False, b"x", ("x",))),
        *(([item], e0) for item in (*no_edits, [FEATURE], 1.5)),
        *(({"edits": edits}, "steering.edits") for edits in (FEATURE, "x", 5, True, {"0": FEATURE})),
        *(({"edits": [item]}, e0) for item in (*no_edits, "formal")),
        *(({"presets": presets}, "steering.presets") for presets in ("formal", 5, {"formal": 1}, True)),
        *(({"presets": [item]}, "steering.presets[0]") for item in (*no_presets, "no-such-preset", "")),
        ("no-such-preset", "steering.presets[0]"),
        ([FEATURE, "no-such-preset"], "steering.presets[0]"),
        (FEATURE, "steering.feature"),
    ]


MISTAKES = [*wrong_values(), *missing(), *unknown_keys(), *gates_too_late(), *combinations()]


def refusal(runtime: Runtime, steering: Any) -> InvalidRequestError:  # noqa: ANN401
    with pytest.raises(InvalidRequestError) as caught:
        runtime.resolve_steering(steering)
    error = caught.value
    json.dumps([error.message, error.param, error.code]).encode()
    assert error.message.endswith((".", "?"))
    assert error.code
    return error


def test_there_are_hundreds_of_mistakes() -> None:
    assert len(MISTAKES) >= 300


@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_the_mistakes_are_made_from_is_taken(llama: Runtime, name: str) -> None:
    assert llama.resolve_steering(WELL_FORMED[name]) is not None


@pytest.mark.parametrize("place", range(len(MISTAKES)))
def test_a_mistake_is_refused_at_its_place(llama: Runtime, place: int) -> None:
    steering, param = MISTAKES[place]
    assert refusal(llama, steering).param == param


OBJECTS: list[tuple[Path, frozenset[str]]] = [
    ((), frozenset(Steering.model_fields)),
    (at("several", "feature"), frozenset(Edit.model_fields)),
    ((*at("several", "feature"), "when"), frozenset(Gate.model_fields)),
    ((*at("several", "vector"), "vector"), frozenset(InlineVector.model_fields)),
]
UNKNOWN = st.sampled_from(OBJECTS).flatmap(
    lambda place: st.text(max_size=8).filter(lambda key: key not in place[1]).map(lambda key: (*place[0], key))
)
TYPED: dict[Path, tuple[type, ...]] = {
    ("strength",): (int, float),
    **{
        (*at("several", "feature"), *path): kinds
        for path, kinds in {
            ("feature",): (int,),
            ("dictionary",): (str,),
            ("mode",): (str,),
            ("scale",): (int, float),
            ("positions",): (str,),
            ("start",): (int,),
            ("stop",): (int,),
            ("ramp",): (int,),
            ("special_tokens",): (bool,),
            ("when", "feature"): (int,),
            ("when", "dictionary"): (str,),
            ("when", "above"): (int, float),
        }.items()
    },
    (*at("several", "vector"), "vector", "values", 3): (int, float),
    (*at("several", "packed"), "vector", "base64"): (str,),
}
ANYTHING = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


@QUICK
@given(path=UNKNOWN, value=ANYTHING)
def test_an_unknown_key_is_refused_wherever_it_is(llama: Runtime, path: Path, value: Any) -> None:  # noqa: ANN401
    assert refusal(llama, put(WELL_FORMED["several"], path, value)).param == param_of(path)


@QUICK
@given(path=st.sampled_from(list(TYPED)), value=ANYTHING)
def test_a_value_of_another_type_is_refused_at_its_place(llama: Runtime, path: Path, value: Any) -> None:  # noqa: ANN401
    is_right = isinstance(value, TYPED[path]) and (TYPED[path] == (bool,) or not isinstance(value, bool))
    if is_right and (not isinstance(value, float) or math.isfinite(value)):
        return
    assert refusal(llama, put(WELL_FORMED["several"], path, value)).param == param_of(path)
