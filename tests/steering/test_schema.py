"""What a client may write as `steering`: every mistake is refused before anything runs, at its own place."""

from __future__ import annotations

import base64
import json
import math
import random
import struct
import time
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steerserve.core.errors import InvalidRequestError
from steerserve.dictionaries.registry import RegistrySnapshot
from tests.tiny import D_MODEL, HOOK_NAME

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

ADD = {"feature": 3, "scale": 1.0}
VALUES = [1.0] * D_MODEL
QUICK = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def encoded(values: list[float], kind: str = "f") -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}{kind}", *values)).decode()


def edit(**fields: Any) -> list[dict[str, Any]]:  # noqa: ANN401 malformed on purpose
    return [{**ADD, **fields}]


def vector(**fields: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    return [{"vector": {"hook": HOOK_NAME, **fields}, "scale": 1.0}]


E0 = "steering.edits[0]"
MALFORMED: list[tuple[Any, str]] = [
    # the whole
    (5, "steering"),
    (True, "steering"),
    (1.5, "steering"),
    ("no-such-preset", "steering.presets[0]"),
    ("", "steering.presets[0]"),
    ([5], E0),
    ([None], E0),
    ([[]], E0),
    ([[ADD]], E0),
    ({"edit": [ADD]}, "steering.edit"),
    ({"feature": 3, "scale": 1.0}, "steering.feature"),
    ({"edits": ADD}, "steering.edits"),
    ({"edits": "x"}, "steering.edits"),
    ({"edits": [ADD], "presets": "formal"}, "steering.presets"),
    ({"edits": [ADD], "presets": [1]}, "steering.presets[0]"),
    ({"edits": [ADD], "presets": ["formal"]}, "steering.presets[0]"),
    (["formal", ADD], "steering.presets[0]"),
    ([ADD] * 65, "steering.edits"),
    ({"edits": [ADD] * 65}, "steering.edits"),
    ({"edits": [ADD], "strength": "1"}, "steering.strength"),
    ({"edits": [ADD], "strength": True}, "steering.strength"),
    ({"edits": [ADD], "strength": math.inf}, "steering.strength"),
    ({"edits": [ADD], "strength": math.nan}, "steering.strength"),
    ({"edits": [ADD], "strength": 1e4}, "steering.strength"),
    ({"edits": [ADD], "Strength": 1}, "steering.Strength"),
    # features
    (edit(feature="3"), f"{E0}.feature"),
    (edit(feature=3.0), f"{E0}.feature"),
    (edit(feature=True), f"{E0}.feature"),
    (edit(feature=-1), f"{E0}.feature"),
    (edit(feature=96), f"{E0}.feature"),
    (edit(feature=1 << 80), f"{E0}.feature"),
    (edit(feature=10**5000), f"{E0}.feature"),
    (edit(feature=[3]), f"{E0}.feature"),
    ([{"scale": 1.0}], f"{E0}.feature"),
    ([{}], f"{E0}.feature"),
    ([ADD, {**ADD, "feature": 4096}], "steering.edits[1].feature"),
    (edit(vector={"hook": HOOK_NAME, "values": VALUES}), f"{E0}.feature"),
    # dictionaries
    (edit(dictionary="standart"), f"{E0}.dictionary"),
    (edit(dictionary=""), f"{E0}.dictionary"),
    (edit(dictionary=1), f"{E0}.dictionary"),
    # modes and scales
    (edit(mode="boost"), f"{E0}.mode"),
    (edit(mode="ADD"), f"{E0}.mode"),
    (edit(mode=1), f"{E0}.mode"),
    ([{"feature": 3}], f"{E0}.scale"),
    ([{"feature": 3, "mode": "clamp"}], f"{E0}.scale"),
    ([{"feature": 3, "scale": None}], f"{E0}.scale"),
    (edit(scale="1"), f"{E0}.scale"),
    (edit(scale=True), f"{E0}.scale"),
    (edit(scale=math.nan), f"{E0}.scale"),
    (edit(scale=-math.inf), f"{E0}.scale"),
    (edit(scale=1e300), f"{E0}.scale"),
    (edit(scale=10**400), f"{E0}.scale"),
    (edit(mode="ablate"), f"{E0}.scale"),
    (edit(mode="remove"), f"{E0}.scale"),
    (edit(mode="multiply", unit="raw"), f"{E0}.unit"),
    ([{"feature": 3, "mode": "ablate", "unit": "raw"}], f"{E0}.unit"),
    (edit(unit="percent"), f"{E0}.unit"),
    (edit(strength=2.0), f"{E0}.strength"),
    (edit(Feature=1), f"{E0}.Feature"),
    # positions
    (edit(positions="none"), f"{E0}.positions"),
    (edit(positions=["all"]), f"{E0}.positions"),
    (edit(start=1), f"{E0}.positions"),
    (edit(positions="prompt", stop=4), f"{E0}.positions"),
    (edit(positions="generated", start=-1), f"{E0}.start"),
    (edit(positions="generated", start=1.5), f"{E0}.start"),
    (edit(positions="generated", start="1"), f"{E0}.start"),
    (edit(positions="generated", start=4, stop=4), f"{E0}.stop"),
    (edit(positions="generated", stop=0), f"{E0}.stop"),
    (edit(positions="generated", stop=1 << 70), f"{E0}.stop"),
    (edit(special_tokens="yes"), f"{E0}.special_tokens"),
    (edit(special_tokens=1), f"{E0}.special_tokens"),
    # two that set one feature
    ([{"feature": 3, "mode": "ablate"}, {"feature": 3, "mode": "clamp", "scale": 1.0}], "steering.edits[1]"),
    (
        [{"feature": 3, "mode": "floor", "scale": 1.0}, ADD, {"feature": 3, "mode": "ceiling", "scale": 2.0}],
        "steering.edits[2]",
    ),
    (
        [{"feature": 3, "mode": "ablate"}, {"feature": 3, "mode": "ablate", "dictionary": "standard"}],
        "steering.edits[1]",
    ),
    # vectors
    ([{"vector": "stored", "scale": 1.0}], f"{E0}.vector"),
    ([{"vector": 5, "scale": 1.0}], f"{E0}.vector"),
    ([{"vector": VALUES, "scale": 1.0}], f"{E0}.vector"),
    ([{"vector": {"values": VALUES}, "scale": 1.0}], f"{E0}.vector.hook"),
    ([{"vector": {"hook": HOOK_NAME}, "scale": 1.0}], f"{E0}.vector"),
    (vector(values=VALUES, base64=encoded(VALUES)), f"{E0}.vector"),
    (vector(values=VALUES, dtype="float32"), f"{E0}.vector"),
    (vector(values=VALUES, unit="raw"), f"{E0}.vector.unit"),
    (vector(values=VALUES[1:]), f"{E0}.vector.values"),
    (vector(values=[]), f"{E0}.vector.values"),
    (vector(values=[*VALUES, 1.0]), f"{E0}.vector.values"),
    (vector(values=[*VALUES[1:], math.nan]), f"{E0}.vector.values[{D_MODEL - 1}]"),
    (vector(values=[*VALUES[1:], "1"]), f"{E0}.vector.values[{D_MODEL - 1}]"),
    (vector(values="1"), f"{E0}.vector.values"),
    (vector(base64="not base64!"), f"{E0}.vector.base64"),
    (vector(base64="AAA="), f"{E0}.vector.base64"),
    (vector(base64="é"), f"{E0}.vector.base64"),
    (vector(base64=encoded(VALUES[1:])), f"{E0}.vector.base64"),
    (vector(base64=encoded([*VALUES[1:], math.inf])), f"{E0}.vector.base64"),
    (vector(base64=encoded(VALUES), dtype="int8"), f"{E0}.vector.dtype"),
    (vector(base64=encoded(VALUES), dtype="float64"), f"{E0}.vector.base64"),
    ([{"vector": {"hook": "blocks.9.hook_resid_post", "values": VALUES}, "scale": 1.0}], f"{E0}.vector.hook"),
    ([{"vector": {"hook": "blocks.0.hook_mlp_in", "values": VALUES}, "scale": 1.0}], f"{E0}.vector.hook"),
    ([{"vector": {"hook": HOOK_NAME, "values": VALUES}, "mode": "clamp", "scale": 1.0}], f"{E0}.mode"),
    ([{"vector": {"hook": HOOK_NAME, "values": VALUES}, "dictionary": "standard", "scale": 1.0}], f"{E0}.dictionary"),
    ([{"vector": {"hook": HOOK_NAME, "values": [0.0] * D_MODEL}, "mode": "remove"}], f"{E0}.vector"),
    # gates and ramps
    (edit(positions="generated", ramp=-1), f"{E0}.ramp"),
    (edit(ramp=4), f"{E0}.positions"),
    (edit(when="always"), f"{E0}.when"),
    (edit(when={}), f"{E0}.when.feature"),
    (edit(when={"feature": 1}), f"{E0}.when"),
    (edit(when={"feature": 1, "above": 0.5, "below": 2.0}), f"{E0}.when"),
    (edit(when={"feature": 1, "abov": 0.5}), f"{E0}.when.abov"),
    (edit(when={"feature": 96, "above": 0.5}), f"{E0}.when.feature"),
    (edit(when={"feature": 1, "above": 0.5, "dictionary": "standart"}), f"{E0}.when.dictionary"),
    (edit(when={"feature": 1, "above": math.inf}), f"{E0}.when.above"),
    (edit(when={"feature": 1, "above": 0.5, "dictionary": "late"}), f"{E0}.when"),
]


@pytest.mark.parametrize(
    ("steering", "param"), MALFORMED, ids=[f"{number}-{param}" for number, (_, param) in enumerate(MALFORMED)]
)
def test_a_mistake_is_refused_at_its_place(llama: Runtime, steering: Any, param: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidRequestError) as caught:
        llama.resolve_steering(steering)
    assert caught.value.param == param
    assert caught.value.code
    assert caught.value.message.endswith((".", "?"))


@pytest.mark.parametrize(
    ("steering", "hint"),
    [
        (edit(feature=96), "0 to 95"),
        (edit(dictionary="standart"), "'standard'"),
        ([{"vector": {"hook": "blocks.0.hook_resid_pos", "values": VALUES}, "scale": 1.0}], HOOK_NAME),
        (edit(scal=1), "scale"),
        (edit(mode="boost"), "clamp"),
        (vector(values=VALUES[1:]), f"{D_MODEL} values"),
        ([ADD] * 65, "at most 64"),
        (edit(when={"feature": 96, "above": 0.5}), "0 to 95"),
        (edit(when={"feature": 1, "above": 0.5, "dictionary": "standart"}), "'standard'"),
        (edit(when={"feature": 1, "above": 0.5, "dictionary": "late"}), "blocks.1.hook_resid_post, which comes after"),
        (edit(when={"feature": 1, "abov": 0.5}), "did you mean above?"),
    ],
)
def test_a_refusal_says_what_would_be_right(llama: Runtime, steering: Any, hint: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidRequestError) as caught:
        llama.resolve_steering(steering)
    assert hint in caught.value.message


LONG = "x" * (4 << 20)


@pytest.mark.parametrize(
    "steering",
    [
        edit(mode=LONG),
        edit(dictionary=LONG),
        edit(**{LONG: 1}),
        edit(when={"feature": 1, "above": 0.5, "dictionary": LONG}),
        edit(when={"feature": 1, LONG: 0.5}),
        [{"vector": LONG, "scale": 1.0}],
        [{"vector": {"hook": LONG, "values": VALUES}, "scale": 1.0}],
        vector(**{LONG: 1}),
        edit(feature=[LONG]),
        {LONG: 1},
        LONG,
        [LONG],
        {"presets": [LONG]},
    ],
)
def test_a_refusal_of_a_long_name_is_quick_and_short(llama: Runtime, steering: Any) -> None:  # noqa: ANN401
    began = time.perf_counter()
    with pytest.raises(InvalidRequestError) as caught:
        llama.resolve_steering(steering)
    assert time.perf_counter() - began < 1  # matched whole, a name of 4 MB takes many seconds
    assert len(caught.value.message) < 1000
    assert len(caught.value.param or "") < 200


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        ([{"vector": {"hook": "x"}, "scale": 1}], f"{E0}.vector: a vector has exactly one of values and base64."),
        ([{"vector": 5, "scale": 1}], f"{E0}.vector must be a stored vector's name or an object, not 5."),
        ([{"vector": {"hook": 5, "values": VALUES}}], f"{E0}.vector.hook must be a string, not 5."),
        ([True], f"{E0} must be an object, not true."),
        ([None], f"{E0} must be an object, not null."),
        (edit(feature=True), f"{E0}.feature must be an integer, not true."),
        (edit(feature={"x": 1}), f"{E0}.feature must be an integer, not an object."),
        (edit(scale="1"), f"{E0}.scale must be a number, not '1'; write 1, without quotes."),
        (edit(scale=1e300), f"{E0}.scale must be at most 1000000, not 1e+300."),
        (edit(positions="x"), f"{E0}.positions must be 'all', 'prompt' or 'generated', not 'x'."),
        (edit(when=5), f"{E0}.when must be an object, not 5."),
        (True, "steering must be an array of edits, a preset's name, an object or null, not true."),
    ],
)
def test_a_refusal_speaks_of_json(llama: Runtime, steering: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidRequestError) as caught:
        llama.resolve_steering(steering)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("steering", "code"),
    [
        (edit(when={"above": 1}), "missing_required_parameter"),
        (edit(when={"feature": 1}), "missing_required_parameter"),
        (edit(when={"feature": 1, "above": 1, "below": 2}), "invalid_value"),
        ([{"feature": 1}], "missing_required_parameter"),
        ([{}], "missing_required_parameter"),
        (edit(vector={"hook": HOOK_NAME, "values": VALUES}), "invalid_value"),
        ([{"vector": {"values": VALUES}, "scale": 1}], "missing_required_parameter"),
        ([{"vector": {"hook": HOOK_NAME}, "scale": 1}], "missing_required_parameter"),
        (vector(values=VALUES, base64=encoded(VALUES)), "invalid_value"),
        (edit(mode="ablate"), "invalid_value"),
        (edit(scale=True), "invalid_type"),
        ([{"vector": 5, "scale": 1}], "invalid_type"),
        ([5], "invalid_type"),
        (edit(scal=1), "unknown_parameter"),
    ],
)
def test_a_refusal_has_the_code_of_its_kind(llama: Runtime, steering: Any, code: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidRequestError) as caught:
        llama.resolve_steering(steering)
    assert caught.value.code == code


WELL_FORMED: list[Any] = [
    [ADD],
    {"edits": [ADD]},
    {"edits": [ADD], "presets": [], "strength": 1},
    {"edits": [{**ADD, "mode": "add", "unit": "raw", "positions": "all", "special_tokens": False}]},
    [{**ADD, "dictionary": None, "mode": None, "unit": None, "when": None, "stop": None, "ramp": None}],
    [{**ADD, "start": 0, "ramp": 0, "dictionary": "standard", "scale": 1}],
]


def test_all_spellings_of_one_edit_have_one_fingerprint(llama: Runtime) -> None:
    resolved = [llama.resolve_steering(steering) for steering in WELL_FORMED]
    assert len({found.fingerprint for found in resolved if found is not None}) == 1
    assert None not in resolved


@pytest.mark.parametrize("steering", [None, [], {}, {"edits": []}, {"edits": None}, {"strength": 2.0}, {"presets": []}])
def test_what_asks_for_nothing_is_nothing(llama: Runtime, steering: Any) -> None:  # noqa: ANN401
    assert llama.resolve_steering(steering) is None


def test_numbers_and_base64_are_the_same_vector(llama: Runtime) -> None:
    spellings = [
        vector(values=VALUES),
        vector(base64=encoded(VALUES)),
        vector(base64=encoded(VALUES, "e"), dtype="float16"),
        vector(base64=encoded(VALUES, "d"), dtype="float64"),
    ]
    resolved = [llama.resolve_steering(steering) for steering in spellings]
    assert len({found.fingerprint for found in resolved if found is not None}) == 1


@pytest.mark.parametrize("limit", [0, 63, 64])
def test_edits_up_to_the_limit_are_taken(llama: Runtime, limit: int) -> None:
    resolved = llama.resolve_steering([{"feature": place, "scale": 1.0} for place in range(limit)])
    assert (len(resolved.edits) if resolved is not None else 0) == limit


def test_adding_to_a_feature_that_is_set_is_no_contradiction(llama: Runtime) -> None:
    steering = [ADD, {"feature": 3, "mode": "clamp", "scale": 2.0}, {"feature": 3, "mode": "multiply", "scale": 2.0}]
    assert llama.resolve_steering(steering) is not None
    other_dictionary = [{"feature": 3, "mode": "ablate", "dictionary": name} for name in ("standard", "topk")]
    assert llama.resolve_steering(other_dictionary) is not None


def test_one_dictionary_under_two_ids_contradicts_itself(llama: Runtime) -> None:
    loaded = llama.registry.snapshot().dictionaries
    twice = {**loaded, "again": replace(loaded["standard"], id="again", is_default=False)}
    snapshot = RegistrySnapshot(MappingProxyType(twice))
    steering = [{"feature": 3, "mode": "ablate", "dictionary": name} for name in ("standard", "again")]
    with pytest.raises(InvalidRequestError, match="the same contents as 'standard'") as caught:
        llama._resolver(None).resolve(llama.parse_steering(steering), snapshot)
    assert caught.value.param == "steering.edits[1]"


@pytest.mark.parametrize(
    ("steering", "expected"),
    [
        ([ADD], False),
        (vector(values=VALUES), False),
        ([ADD, {"vector": "formal", "scale": 1.0}], True),
        ({"edits": [{"vector": "formal", "scale": 1.0}]}, True),
        (edit(unit="max"), True),
        (["formal"], True),
    ],
)
def test_what_is_read_from_files_is_known_before(llama: Runtime, steering: Any, expected: bool) -> None:  # noqa: ANN401
    assert llama.parse_steering(steering).needs_lookup is expected


SEVERAL = [
    ADD,
    {"feature": 4, "mode": "clamp", "scale": 2.0, "positions": "generated", "start": 1, "stop": 9},
    {"feature": 5, "mode": "ablate", "dictionary": "topk"},
    *vector(values=VALUES),
]


@QUICK
@given(seed=st.integers(0, 1000))
def test_a_fingerprint_does_not_depend_on_the_order(llama: Runtime, seed: int) -> None:
    one = llama.resolve_steering(SEVERAL)
    two = llama.resolve_steering(random.Random(seed).sample(SEVERAL, len(SEVERAL)))
    assert one is not None
    assert two is not None
    assert (one.fingerprint, one.prompt_key) == (two.fingerprint, two.prompt_key)


DIFFERENT: list[Any] = [
    [ADD],
    [ADD, ADD],
    {"edits": [ADD], "strength": 0.5},
    edit(feature=4),
    edit(scale=1.0000001),
    edit(mode="multiply"),
    edit(mode="clamp"),
    edit(dictionary="topk"),
    edit(dictionary="late"),
    edit(positions="prompt"),
    edit(positions="generated"),
    edit(positions="generated", start=1),
    edit(positions="generated", stop=1),
    edit(special_tokens=True),
    edit(positions="generated", ramp=4),
    edit(when={"feature": 1, "above": 0.5}),
    edit(when={"feature": 2, "above": 0.5}),
    edit(when={"feature": 1, "above": 0.6}),
    edit(when={"feature": 1, "below": 0.5}),
    edit(when={"feature": 1, "above": 0.5, "dictionary": "topk"}),
    vector(values=VALUES),
    vector(values=[*VALUES[1:], 2.0]),
    [{"vector": {"hook": "blocks.1.hook_resid_post", "values": VALUES}, "scale": 1.0}],
]


def test_different_edits_have_different_fingerprints(llama: Runtime) -> None:
    resolved = [llama.resolve_steering(steering) for steering in DIFFERENT]
    assert len({found.fingerprint for found in resolved if found is not None}) == len(DIFFERENT)


def test_a_prompt_is_shared_only_among_the_same_edits_of_it(llama: Runtime) -> None:
    def key(steering: Any) -> str | None:  # noqa: ANN401
        resolved = llama.resolve_steering(steering)
        assert resolved is not None
        return resolved.prompt_key

    later = {"feature": 4, "scale": 2.0, "positions": "generated"}
    assert key([later]) is None
    assert key(edit(scale=0.0)) is None
    assert key({"edits": [ADD], "strength": 0}) is None
    assert key([ADD, later]) == key([ADD])
    assert key([ADD]) != key(edit(feature=4))
    assert key([ADD]) != key({"edits": [ADD], "strength": 0.5})
    assert key([ADD]) != key(edit(when={"feature": 1, "above": 0.5}))
    assert key([later | {"when": {"feature": 1, "above": 0.5}, "ramp": 4}]) is None


KEYS = st.sampled_from([
    "edits", "presets", "strength", "feature", "vector", "dictionary", "mode", "scale", "unit", "positions", "start",
    "stop", "ramp", "special_tokens", "when", "hook", "values", "base64", "dtype", "above", "below", "other",
])  # fmt: skip
WORDS = st.sampled_from(
    ["add", "clamp", "ablate", "remove", "raw", "dose", "generated", "standard", HOOK_NAME, "float32"]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 100), st.floats(), WORDS, st.text(max_size=5)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=6)),
    max_leaves=20,
)
EDITS = st.dictionaries(KEYS, SCALARS, max_size=6)


@pytest.mark.slow
@QUICK
@given(steering=st.one_of(JSON, st.lists(EDITS, max_size=4), st.fixed_dictionaries({"edits": st.lists(EDITS)})))
def test_nothing_but_a_refusal_comes_of_anything(llama: Runtime, steering: Any) -> None:  # noqa: ANN401
    refusal = None
    try:
        resolved = llama.resolve_steering(steering)
    except InvalidRequestError as error:
        refusal = error
    if refusal is None:
        assert resolved is None or (resolved.fingerprint and all(found.hook_name for found in resolved.edits))
        return
    assert (refusal.param or "").startswith("steering")
    json.dumps([refusal.message, refusal.param, refusal.code]).encode()


@pytest.mark.parametrize("depth", [50, 5_000])
def test_deep_nesting_is_refused_like_anything_else(llama: Runtime, depth: int) -> None:
    for nest in (lambda inner: [inner], lambda inner: {"edits": inner}, lambda inner: {"when": [{"a": inner}]}):
        steering: Any = [ADD]
        for _ in range(depth):
            steering = nest(steering)
        with pytest.raises(InvalidRequestError):
            llama.resolve_steering(steering)
