"""What a client gets when the server cannot do what it should."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, NoReturn

import pytest

from steerserve.engine.request import GenerationRequest, SamplingParams
from steerserve.server.app import create_app
from tests.server.asking import CHAT, COMPLETIONS, chat, client_of, completion

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from steerserve.engine.sampling import Choice
    from steerserve.engine.sequence import Sequence
    from steerserve.runtime import Runtime

SECRET = "/secret/path"
State = Literal["loading", "stopping"]


@pytest.mark.parametrize("state", ["loading", "stopping"])
async def test_a_server_that_is_not_ready_says_when_to_try_again(build: Callable[..., Runtime], state: State) -> None:
    runtime = build()
    if state == "stopping":
        runtime.start()
        runtime.stop()
    response = await client_of(create_app(runtime)).post(CHAT, json=chat())
    assert_try_again(response)
    assert state in response.json()["error"]["message"]


async def test_a_full_queue_says_when_to_try_again(
    build: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = build(engine={"slots": 1, "queue": 1})
    # Its engine is not started, so that what is submitted stays where it is.
    monkeypatch.setattr(type(runtime), "state", "ready")
    app = create_app(runtime)
    waiting = [GenerationRequest(str(number), (1,), SamplingParams(max_tokens=1)) for number in range(2)]
    runtime.submit(waiting)
    assert_try_again(await client_of(app).post(CHAT, json=chat(stream=True)))
    assert_try_again(await client_of(app).post(COMPLETIONS, json=completion()))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_forward_pass_that_fails_at_once_is_a_500_without_details(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(runtime.engine.runner, "prefill", fail)
    response = await client_of(create_app(runtime)).post(COMPLETIONS, json=completion(prompt="new", stream=stream))
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, None)
    assert SECRET not in response.text
    (line,) = [record.getMessage() for record in caplog.records if record.name == "steerserve.server.summary"]
    assert "finish=error" in line


async def test_a_forward_pass_that_fails_later_ends_the_stream_with_an_error(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = runtime.engine.runner.decode
    steps = []

    def fail_on_the_fifth(sequences: list[Sequence]) -> list[Choice]:
        steps.append(1)
        return fail() if len(steps) == 5 else decode(sequences)

    monkeypatch.setattr(runtime.engine.runner, "decode", fail_on_the_fifth)
    body = completion(prompt="fresh", max_tokens=50, ignore_eos=True, stream=True)
    response = await client_of(create_app(runtime)).post(COMPLETIONS, json=body)
    assert response.status_code == 200
    *chunks, error, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert error.startswith('data: {"error":{"message":')
    assert all(chunk.startswith('data: {"id":') for chunk in chunks)
    assert '"finish_reason":"' not in response.text
    assert SECRET not in response.text


async def test_the_server_goes_on_after_a_failure(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(create_app(runtime))
    with monkeypatch.context() as patch:
        patch.setattr(runtime.engine.runner, "prefill", fail)
        assert (await client.post(COMPLETIONS, json=completion(prompt="lost"))).status_code == 500
    assert (await client.post(COMPLETIONS, json=completion(prompt="lost"))).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_a_500_without_details_and_with_an_id(
    app: FastAPI, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    monkeypatch.setattr(runtime, "resolve_steering_async", fail)
    response = await client_of(app).post(CHAT, json=chat(stream=stream), headers={"x-request-id": "mine"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "mine"
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert SECRET not in response.text
    assert SECRET in caplog.text


def fail(*_: object) -> NoReturn:
    raise RuntimeError(SECRET)


def assert_try_again(response: httpx.Response) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (503, "server_error", "service_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert int(response.headers["retry-after-ms"]) == 1000 * int(response.headers["retry-after"])
