"""`/v1/compare` and `/v1/comparisons`."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.engine.request import GenerationRequest, SamplingParams
from steerserve.engine.sampling import Choice, choose
from steerserve.presets.library import PresetLibrary
from steerserve.requests.comparison_running import ArmSample, ComparisonGeneration, TextDelta
from steerserve.server.app import create_app
from steerserve.wire.compare import ArmRequest
from tests.server.asking import CHAT, chat, client_of
from tests.server.test_malformed import any_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    import httpx
    from fastapi import FastAPI
    from torch import Tensor

    from steerserve.engine.sequence import Sequence as EngineSequence
    from steerserve.runtime import Runtime

pytestmark = pytest.mark.slow

COMPARE = "/v1/compare"
ADD = [{"feature": 3, "scale": 4.0}]
ADD_LATER = [{"feature": 3, "scale": 4.0, "positions": "generated"}]
ARMS: list[dict[str, Any]] = [
    {"name": "baseline"},
    {"name": "steered", "steering": ADD},
    {"name": "later", "steering": ADD_LATER},
    {"name": "zero", "steering": {"edits": ADD, "strength": 0}},
    {"name": "nothing", "steering": [{"feature": 3, "scale": 0.0}]},
    {"name": "control", "control_of": "steered"},
    {"name": "prompted", "system": "Speak of bridges."},
]


def compare(**fields: object) -> dict[str, Any]:
    """Give the body of a short comparison, sampled at temperature 1, with `fields` changed."""
    body = chat(arms=ARMS, n=2, seed=11, max_tokens=10, temperature=1.0, logprobs=None) | fields
    return {name: value for name, value in body.items() if value is not None}


async def ask(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    response = await client.post(COMPARE, json=compare(**fields))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def by_name(comparison: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {arm["name"]: arm["samples"] for arm in comparison["arms"]}


def texts(comparison: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [sample["text"] for sample in samples] for name, samples in by_name(comparison).items()}


def named_events(response: httpx.Response) -> list[tuple[str, Any]]:
    """Read a stream of named events, which must end with [DONE]."""
    *events, last, rest = response.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    found = []
    for event in events:
        name, data = event.split("\n")
        assert name.startswith("event: ")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_every_arm_gives_what_a_chat_request_of_its_seed_gives(client: httpx.AsyncClient) -> None:
    found = texts(await ask(client))
    for arm in ARMS:
        if "control_of" in arm:
            continue
        messages = [{"role": "user", "content": "hi"}]
        if "system" in arm:
            messages.insert(0, {"role": "system", "content": arm["system"]})
        body = chat(messages=messages, steering=arm.get("steering"), n=2, seed=11, max_tokens=10, temperature=1.0)
        answer = (await client.post(CHAT, json=body)).json()
        assert found[arm["name"]] == [choice["message"]["content"] for choice in answer["choices"]], arm["name"]


async def test_arms_that_change_nothing_equal_the_baseline(client: httpx.AsyncClient) -> None:
    found = await ask(client)
    arms = by_name(found)
    for name in ("zero", "nothing"):
        assert texts(found)[name] == texts(found)["baseline"]
        for sample in arms[name]:
            assert sample["metrics"]["kl"] == sample["metrics"]["kl_p95"] == 0.0
            assert sample["metrics"]["first_divergence"] is None
            assert sample["metrics"]["side_effects"] == []
    assert texts(found)["steered"] != texts(found)["baseline"]
    assert all(sample["metrics"]["kl"] > 0 for name in ("steered", "control") for sample in arms[name])


async def test_an_arm_does_not_depend_on_the_others_nor_on_other_traffic(client: httpx.AsyncClient) -> None:
    import asyncio

    alone = [await ask(client, arms=[ARMS[0], arm]) for arm in ARMS[1:3]]
    together, *_ = await asyncio.gather(
        ask(client), *(client.post(CHAT, json=chat(max_tokens=20, seed=place)) for place in range(9))
    )
    for arm, found in zip(ARMS[1:3], alone, strict=True):
        [mine] = [one for one in together["arms"] if one["name"] == arm["name"]]
        for one, other in zip(by_name(found)[arm["name"]], mine["samples"], strict=True):
            assert one["text"] == other["text"]
            assert one["steering"] == other["steering"]
            assert one["metrics"]["kl"] == pytest.approx(other["metrics"]["kl"], abs=1e-5)


def active(entries: list[dict[str, Any]]) -> list[tuple[int, int, list[int]]]:
    """Return what entries say but for the numbers, whose last digit depends on how many rows are read at once."""
    return [
        (
            entry["token_id"],
            entry["position"],
            [one["feature"] for one in entry["dictionaries"]["res0"]["top"]],
        )
        for entry in entries
    ]


async def test_every_arm_is_watched(client: httpx.AsyncClient) -> None:
    watching = {"top": 2, "watch": [3], "prompt": True}
    found = await ask(client, features=watching)
    assert texts(found) == texts(await ask(client))
    for samples in by_name(found).values():
        for sample in samples:
            assert len(sample["features"]) == sample["usage"]["completion_tokens"]
            assert len(sample["prompt_features"]) == sample["usage"]["prompt_tokens"]
    steered = by_name(found)["steered"][0]["features"]
    assert all(entry["dictionaries"]["res0"]["edited"].keys() == {"3"} for entry in steered[1:])
    request = {"messages": chat()["messages"], "seed": found["seed"], "temperature": 1.0, "max_tokens": 10}
    alone = await client.post(CHAT, json=chat(**request, features=watching))
    assert active(alone.json()["choices"][0]["features"]) == active(by_name(found)["baseline"][0]["features"])
    events = named_events(await client.post(COMPARE, json=compare(features=watching, stream=True)))
    streamed = [
        entry
        for name, event in events
        if name == "arm.delta" and (event["arm"], event["index"]) == ("steered", 0)
        for entry in event["features"]
    ]
    assert active(streamed) == active(by_name(found)["steered"][0]["prompt_features"] + steered)


async def test_a_stream_begins_with_the_prompts_entries_of_each_sample(client: httpx.AsyncClient) -> None:
    arms = [{"name": "base"}, {"name": "steered", "steering": ADD}]
    events = named_events(await client.post(COMPARE, json=compare(arms=arms, features={"prompt": True}, stream=True)))
    for arm in events[-1][1]["arms"]:
        for sample in arm["samples"]:
            key = (arm["name"], sample["index"])
            deltas = [event for name, event in events if name == "arm.delta" and (event["arm"], event["index"]) == key]
            assert (deltas[0]["delta"], deltas[0]["features"]) == ("", sample["prompt_features"])
            assert [entry for delta in deltas[1:] for entry in delta["features"]] == sample["features"]


async def test_a_comparison_is_repeated_by_its_seed(client: httpx.AsyncClient) -> None:
    drawn = await ask(client, seed=None)
    assert texts(await ask(client, seed=drawn["seed"])) == texts(drawn)
    assert texts(await ask(client, seed=drawn["seed"] + 1)) != texts(drawn)


async def test_a_sample_says_what_was_done_and_how_it_reads(client: httpx.AsyncClient) -> None:
    found = await ask(client)
    assert found["object"] == "comparison"
    assert found["id"].startswith("cmp-")
    assert [arm["name"] for arm in found["arms"]] == [arm["name"] for arm in ARMS]
    arms = by_name(found)
    assert "steering" not in arms["baseline"][0]
    control = arms["control"][0]["steering"]
    assert control["control"] is True
    assert control["fingerprint"] != arms["steered"][0]["steering"]["fingerprint"]
    assert control["edits"][0]["raw_scale"] == 4.0
    for name, samples in arms.items():
        for index, sample in enumerate(samples):
            assert sample["index"] == index
            assert sample["usage"]["total_tokens"] == sample["usage"]["prompt_tokens"] + 10
            assert sample["finish_reason"] == "length"
            assert set(sample["metrics"]["features"]) == {"res0"}
            assert set(sample["metrics"]["features"]["res0"]) == {"3"}
            assert len(sample["metrics"]["side_effects"]) == (0 if name in {"baseline", "zero", "nothing"} else 8)
    prompts = {name: samples[0]["usage"]["prompt_tokens"] for name, samples in arms.items()}
    assert prompts["prompted"] != prompts["baseline"] == prompts["control"]


async def test_a_control_takes_the_system_prompt_of_what_it_controls(client: httpx.AsyncClient) -> None:
    arms = [{"name": "a", "steering": ADD, "system": "Be long-winded."}, {"name": "b", "control_of": "a"}]
    found = by_name(await ask(client, arms=arms))
    assert found["a"][0]["usage"]["prompt_tokens"] == found["b"][0]["usage"]["prompt_tokens"]


async def test_an_arms_system_prompt_stands_in_place_of_the_conversations(client: httpx.AsyncClient) -> None:
    system = [{"role": "system", "content": "Something else."}, {"role": "user", "content": "hi"}]
    arms = [{"name": "own", "system": "Speak of bridges."}]
    assert texts(await ask(client, arms=arms, messages=system)) == texts(await ask(client, arms=arms))


async def test_a_comparison_larger_than_the_slots_gives_the_same(
    client: httpx.AsyncClient, build: Callable[..., Runtime]
) -> None:
    small = build(engine={"slots": 1, "queue": 64})
    with small:
        async with client_of(create_app(small)) as other:
            one, two = await ask(client), await ask(other)
    assert texts(one) == texts(two)


async def test_a_prompt_is_computed_once_for_the_arms_that_leave_it_alone(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    messages = [{"role": "user", "content": "a prompt that nobody has sent before " * 2}]
    arms = [{"name": "base"}, *({"name": str(place), "steering": ADD_LATER} for place in range(3))]
    before = runtime.stats()
    found = await ask(client, arms=arms, messages=messages, metrics=False)
    after = runtime.stats()
    num_prompt = found["arms"][0]["samples"][0]["usage"]["prompt_tokens"]
    num_shared = 7 * num_prompt
    assert after.num_cached_tokens_total - before.num_cached_tokens_total >= num_shared
    assert after.num_prompt_tokens_total - before.num_prompt_tokens_total <= num_prompt
    assert [
        sample["usage"]["prompt_tokens_details"]["cached_tokens"] for arm in found["arms"] for sample in arm["samples"]
    ][1:] == [num_prompt] * 7


async def test_without_metrics_nothing_is_measured(client: httpx.AsyncClient) -> None:
    found = await ask(client, metrics=False)
    assert all("metrics" not in sample for arm in found["arms"] for sample in arm["samples"])


async def test_a_text_without_a_token_has_no_averages(client: httpx.AsyncClient) -> None:
    found = by_name(await ask(client, logit_bias={"257": 100}))
    for name in ("baseline", "steered"):
        [metrics, _] = [sample["metrics"] for sample in found[name]]
        assert [metrics[key] for key in ("surprise", "relevance", "first_divergence")] == [None, None, None]
        assert metrics["features"] == {"res0": {"3": None}}
        assert (metrics["repetition"], metrics["distinct_2"], metrics["side_effects"]) == (0.0, 1.0, [])
    assert found["baseline"][0]["metrics"]["kl"] == 0.0
    assert found["steered"][0]["metrics"]["kl"] is None
    assert (found["steered"][0]["text"], found["steered"][0]["finish_reason"]) == ("", "stop")


async def test_a_preset_gives_an_arm_what_it_gives_a_chat_request(
    client: httpx.AsyncClient, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "name: odd\nsystem: Speak of bridges.\nedits: [{feature: 5, scale: 3.0}]\nsampling: {temperature: 0.5}\n"
    (tmp_path / "odd.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(runtime, "presets", PresetLibrary(tmp_path))
    arms = [{"name": "model", "model": "tiny@odd"}, {"name": "named", "steering": "odd"}]
    found = await ask(client, arms=[*arms, {"name": "control", "control_of": "named"}], temperature=None)
    body = chat(model="tiny@odd", n=2, seed=11, max_tokens=10, temperature=None)
    answer = (await client.post(CHAT, json=body)).json()
    assert texts(found)["model"] == texts(found)["named"]
    assert texts(found)["model"] == [choice["message"]["content"] for choice in answer["choices"]]
    prompts = {name: samples[0]["usage"]["prompt_tokens"] for name, samples in by_name(found).items()}
    assert set(prompts.values()) == {answer["usage"]["prompt_tokens"]}
    assert by_name(found)["control"][0]["steering"]["edits"][0]["preset"] == "odd"


async def test_a_model_with_an_at_sign_in_its_id_names_no_preset(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "model_id", "tiny@v2")
    arms: list[dict[str, Any]] = [{"name": "a", "steering": ADD}, {"name": "b", "model": "tiny@v2", "control_of": "a"}]
    assert by_name(await ask(client, model="tiny@v2", arms=arms)).keys() == {"a", "b"}
    arms[1]["model"] = "tiny@v3"
    refused = await client.post(COMPARE, json=compare(model="tiny@v2", arms=arms))
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "arms[1].model")


async def test_no_arms_are_answered_with_a_5xx(client: httpx.AsyncClient) -> None:
    source = random.Random(3)
    statuses = set()
    for _ in range(100):
        arm = {"name": "b"} | {source.choice([*ArmRequest.model_fields, "x"]): any_json(source) for _ in range(2)}
        arms: object = any_json(source) if source.random() < 0.2 else [{"name": "a"}, arm]
        body = compare(arms=arms, n=1, max_tokens=2, stream=source.random() < 0.2)
        response = await client.post(COMPARE, json=body)
        assert response.status_code in {200, 400, 404}, body
        assert "event: error" not in response.text, body
        statuses.add(response.status_code)
    assert {200, 400} <= statuses


async def test_a_stream_says_the_same_in_named_events(client: httpx.AsyncClient) -> None:
    whole = await ask(client)
    events = named_events(await client.post(COMPARE, json=compare(stream=True)))
    assert {name for name, _ in events} == {"arm.delta", "arm.done", "comparison.done"}
    assert [name for name, _ in events][-1] == "comparison.done"
    last = events[-1][1]
    assert texts(last) == texts(whole)
    grown: dict[tuple[str, int], str] = {}
    done: set[tuple[str, int]] = set()
    for name, event in events[:-1]:
        key = event["arm"], event["index"]
        if name == "arm.delta":
            assert key not in done
            grown[key] = grown.get(key, "") + event["delta"]
            continue
        done.add(key)
        [arm] = [one for one in last["arms"] if one["name"] == event["arm"]]
        assert event["sample"] == arm["samples"][event["index"]]
        assert event["sample"]["text"] == grown[key]
    assert len(done) == len(ARMS) * 2


class AllAtOnce(ComparisonGeneration):
    """Reads what happened only once all samples are there, those of the last arm first."""

    async def _next_updates(self) -> list[TextDelta | ArmSample | Exception]:
        texts: list[TextDelta | ArmSample | Exception] = []
        samples: list[ArmSample] = []
        while len(samples) < len(self._samples):
            for one in await super()._next_updates():
                if isinstance(one, ArmSample):
                    samples.append(one)
                else:
                    texts.append(one)
        return [*texts, *sorted(samples, key=lambda sample: (-sample.arm, -sample.index))]


@pytest.mark.parametrize("metrics", [True, False])
async def test_samples_that_are_done_at_once_come_by_index_and_arm(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, metrics: bool
) -> None:
    monkeypatch.setattr("steerserve.server.routes.compare.ComparisonGeneration", AllAtOnce)
    events = named_events(await client.post(COMPARE, json=compare(stream=True, metrics=metrics)))
    done = [(event["index"], event["arm"]) for name, event in events if name == "arm.done"]
    assert done == [(index, arm["name"]) for index in range(2) for arm in ARMS]


async def test_without_metrics_no_sample_waits_for_the_first_arms(
    client: httpx.AsyncClient, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brief.yaml").write_text("name: brief\nsampling: {max_tokens: 1}\n", encoding="utf-8")
    monkeypatch.setattr(runtime, "presets", PresetLibrary(tmp_path))
    arms = [{"name": "long"}, {"name": "short", "model": "tiny@brief"}]
    for metrics, expected in ((False, ["short", "long"]), (True, ["long", "short"])):
        body = compare(arms=arms, n=1, max_tokens=None, ignore_eos=True, metrics=metrics, stream=True)
        events = named_events(await client.post(COMPARE, json=body))
        assert [event["arm"] for name, event in events if name == "arm.done"] == expected


async def test_a_comparison_holds_only_the_scores_that_others_are_measured_against(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    class Observed(ComparisonGeneration):
        async def updates(self) -> AsyncIterator[list[TextDelta | ArmSample]]:
            written: list[ArmSample] = []
            async for happened in super().updates():
                num_written = Counter(sample.index for sample in written)
                for sample in written:
                    assert (sample.features, sample.prompt_features, sample.token_texts) == ([], None, [])
                    is_first = sample.arm == 0 and num_written[sample.index] < len(ARMS)
                    assert (sample.score is not None) == is_first
                written += [one for one in happened if isinstance(one, ArmSample)]
                yield happened
            ended.append([sample.score for sample in written])

    monkeypatch.setattr("steerserve.server.routes.compare.ComparisonGeneration", Observed)
    for stream in (False, True):
        response = await client.post(COMPARE, json=compare(features={"prompt": True}, by_token=True, stream=stream))
        assert "event: error" not in response.text
    assert ended == [[None] * 2 * len(ARMS)] * 2


@pytest.mark.parametrize("more", [{}, {"include_stop_str_in_output": True}])
async def test_tokens_of_a_stop_string_are_not_measured(client: httpx.AsyncClient, more: dict[str, Any]) -> None:
    found = await ask(client, arms=ARMS[:1], n=1, ignore_eos=True, max_tokens=20, by_token=True)
    tokens = found["arms"][0]["samples"][0]["metrics"]["tokens"]
    stop = next(
        "".join(tokens[place : place + 3])
        for place in range(3, 17)
        if all(tokens[place : place + 3]) and "\ufffd" not in "".join(tokens[place : place + 3])
    )
    [sample] = (
        await ask(client, arms=ARMS[:2], n=1, ignore_eos=True, max_tokens=20, by_token=True, stop=[stop], **more)
    )["arms"][0]["samples"]
    assert (sample["finish_reason"], sample["stop_reason"]) == ("stop", stop)
    assert "".join(sample["metrics"]["tokens"]) == sample["text"]
    assert sample["text"].endswith(stop) == bool(more)
    num_read = len(sample["metrics"]["tokens"])
    assert sample["usage"]["completion_tokens"] == num_read + (0 if more else 3)
    cut = await ask(client, arms=ARMS[:2], n=1, ignore_eos=True, max_tokens=num_read, by_token=True)
    [other] = cut["arms"][0]["samples"]
    assert other["text"] == sample["text"]
    for name in ("surprise", "relevance"):
        assert sample["metrics"].pop(name) == pytest.approx(other["metrics"].pop(name), abs=1e-5)
    assert sample["metrics"]["features_by_token"]["res0"]["3"] == pytest.approx(
        other["metrics"]["features_by_token"]["res0"]["3"], abs=1e-5
    )


async def test_an_arm_that_breaks_the_model_is_named_in_the_error(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerserve.engine.runner.choose", choose_until_the_third_of_a_steered)
    arms = [{"name": "base"}, {"name": "broken", "steering": ADD_LATER}]
    response = await client.post(COMPARE, json=compare(arms=arms, stream=True))
    [(_, error)] = [event for event in named_events(response) if event[0] == "error"]
    assert (error["error"]["param"], error["error"]["type"]) == ("arms[1].steering", "invalid_request_error")
    assert "'broken'" in error["error"]["message"]
    plain = await client.post(COMPARE, json=compare(arms=arms))
    assert (plain.status_code, plain.json()) == (400, error)


def choose_until_the_third_of_a_steered(logits: Tensor, sequences: Sequence[EngineSequence]) -> list[Choice]:
    chosen = choose(logits, sequences)
    return [
        Choice(None) if sequence.edits is not None and len(sequence.generated) == 2 else choice
        for sequence, choice in zip(sequences, chosen, strict=True)
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"arms": None}, "arms"),
        ({"arms": []}, "arms"),
        ({"arms": [{"name": str(place)} for place in range(17)]}, "arms"),
        ({"arms": {"name": "a"}}, "arms"),
        ({"arms": [{"steering": ADD}]}, "arms[0].name"),
        ({"arms": [{"name": ""}]}, "arms[0].name"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "arms[1].name"),
        ({"arms": [{"name": "a", "sytem": "x"}]}, "arms[0].sytem"),
        ({"arms": [{"name": "a", "system": 3}]}, "arms[0].system"),
        (
            {"arms": [{"name": "a"}, {"name": "b", "steering": [{"feature": 96, "scale": 1}]}]},
            "arms[1].steering.edits[0].feature",
        ),
        ({"arms": [{"name": "a", "steering": [{"feature": 1, "scal": 1}]}]}, "arms[0].steering.edits[0].scal"),
        ({"arms": [{"name": "a", "steering": 7}]}, "arms[0].steering"),
        ({"arms": [{"name": "a", "steering": "no such preset"}]}, "arms[0].steering.presets[0]"),
        ({"arms": [{"name": "a", "model": "tiny@no-such-preset"}]}, "arms[0].model"),
        ({"arms": [{"name": "a", "model": "another"}]}, "arms[0].model"),
        ({"model": "another"}, "model"),
        ({"model": "another", "arms": [{"name": "a", "model": "tiny"}]}, "model"),
        ({"arms": [*ARMS[:2], {"name": "c", "model": "another", "control_of": "steered"}]}, "arms[2].model"),
        ({"arms": [{"name": "a"}, {"name": "b", "control_of": "c"}]}, "arms[1].control_of"),
        ({"arms": [{"name": "a"}, {"name": "b", "control_of": "a"}]}, "arms[1].control_of"),
        ({"arms": [{"name": "a", "control_of": "a"}]}, "arms[0].control_of"),
        ({"arms": [*ARMS, {"name": "c", "control_of": "control"}]}, "arms[7].control_of"),
        ({"arms": [*ARMS, {"name": "c", "control_of": "steered", "steering": ADD}]}, "arms[7].steering"),
        ({"arms": [{"name": "a", "system": "x" * 200}]}, "arms[0].system"),
        ({"n": 129}, "n"),
        ({"n": 100}, "n"),
        ({"steering": ADD}, "steering"),
        ({"features": {"watch": [9999]}}, "features.watch[0]"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{}]}, "tools"),
        ({"metrics": 1}, "metrics"),
    ],
)
async def test_what_is_wrong_is_refused_with_the_place_of_the_mistake(
    fields: dict[str, Any], param: str, client: httpx.AsyncClient
) -> None:
    response = await client.post(
        COMPARE, json=compare(**fields) | ({} if fields.get("arms", 1) else {"arms": fields["arms"]})
    )
    assert response.status_code in {400, 404}, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 20


async def test_a_comparison_is_kept_listed_exported_and_deleted(client: httpx.AsyncClient) -> None:
    found = await ask(client, metadata={"purpose": "test"})
    assert found["kept"] is True
    listed = (await client.get("/v1/comparisons", params={"limit": 1})).json()
    assert [one["id"] for one in listed["data"]] == [found["id"]]
    assert listed["data"][0]["arms"] == [arm["name"] for arm in ARMS]
    kept = (await client.get(f"/v1/comparisons/{found['id']}")).json()
    request = kept.pop("request")
    assert kept == found
    assert texts(await ask(client, **{name: request[name] for name in ("arms", "messages", "seed")})) == texts(found)
    export = await client.get(f"/v1/comparisons/{found['id']}/export")
    lines = [json.loads(line) for line in export.text.splitlines()]
    assert [(line["arm"], line["index"]) for line in lines] == [(arm["name"], i) for arm in ARMS for i in range(2)]
    assert lines[3]["metrics"] == by_name(found)["steered"][1]["metrics"]
    deleted = await client.delete(f"/v1/comparisons/{found['id']}")
    assert deleted.json() == {"id": found["id"], "object": "comparison", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/export"), ("DELETE", "")):
        response = await client.request(method, f"/v1/comparisons/{found['id']}{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "comparison_not_found")


async def test_what_is_not_to_be_kept_is_not(client: httpx.AsyncClient) -> None:
    found = await ask(client, store=False)
    assert found["kept"] is False
    assert (await client.get(f"/v1/comparisons/{found['id']}")).status_code == 404


async def test_a_comparison_that_cannot_be_kept_is_answered_all_the_same(
    client: httpx.AsyncClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerserve.compare.store import ComparisonStore

    blocked = runtime.settings.dictionary_dirs[0] / "blocked"
    blocked.write_text("a file where a folder would be")
    monkeypatch.setattr(runtime, "comparisons", ComparisonStore(blocked / "below"))
    assert (await ask(client))["kept"] is False


async def test_all_samples_are_queued_or_none(build: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    small = build(engine={"slots": 1, "queue": 3})
    # Its engine is not started, so that what is submitted stays where it is.
    monkeypatch.setattr(type(small), "state", "ready")
    small.engine.submit([GenerationRequest("waits", (1,), SamplingParams(max_tokens=1))])
    async with client_of(create_app(small)) as client:
        response = await client.post(COMPARE, json=compare(n=1))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert small.stats().num_waiting == 1


async def test_deleting_takes_an_admin(app: FastAPI) -> None:
    async with client_of(app, address="10.0.0.9") as stranger:
        assert (await stranger.get("/v1/comparisons")).status_code == 200
        response = await stranger.delete("/v1/comparisons/cmp-none")
    assert response.status_code == 403


def test_the_document_describes_requests_answers_and_events(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]
    assert {"ComparisonRequest", "ArmRequest", "Comparison", "SampleMetrics", "ArmDelta", "ArmDone"} <= schemas.keys()
    assert schemas["ArmRequest"]["additionalProperties"] is False
