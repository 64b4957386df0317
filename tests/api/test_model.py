"""`SteeredModel` gives what HTTP gives: the same checks, the same engine, the same objects."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from starlette.testclient import TestClient

import steerserve
from steerserve import Edit, Receipt, SteeredModel
from steerserve.core.errors import (
    ConfigError,
    InvalidRequestError,
    StartupError,
    SteerserveError,
    UnavailableError,
)
from steerserve.presets.preset import parse_preset
from steerserve.server.app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.runtime import Runtime

EDIT = {"feature": 3, "scale": 4.0}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "seed": 1}
VOLATILE = {"id", "created", "cached_tokens"}
"""What two answers to the same request need not share: names, times, and how much of a prompt was shared."""


def lasting(value: object) -> object:
    if isinstance(value, dict):
        return {key: lasting(part) for key, part in value.items() if key not in VOLATILE}
    return [lasting(part) for part in value] if isinstance(value, list) else value


def same(python: dict[str, Any], http: dict[str, Any]) -> None:
    assert lasting(python) == lasting(http)


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, steerserve; steerserve.__version__; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_names_what_it_offers() -> None:
    assert {"Edit", "Preset", "Receipt", "SteeredModel"} <= set(dir(steerserve))
    with pytest.raises(AttributeError, match="no attribute 'SteerdModel'"):
        _ = steerserve.SteerdModel


def test_a_chat_is_that_of_the_route(model: SteeredModel, llama: Runtime) -> None:
    answer = model.chat("Hi", steering=[EDIT], features=True, logprobs=True, top_logprobs=2, n=2, **GREEDY)
    body = {
        "model": llama.model_id,
        "messages": [{"role": "user", "content": "Hi"}],
        "steering": [EDIT],
        "features": True,
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        **GREEDY,
    }
    with TestClient(create_app(llama), base_url="http://127.0.0.1") as client:
        response = client.post("/v1/chat/completions", json=body).json()
    same(answer.completion.model_dump(mode="json"), response)
    assert answer.texts == [choice["message"]["content"] for choice in response["choices"]]
    assert answer.finish_reason == response["choices"][0]["finish_reason"]
    assert answer.receipt is not None
    assert answer.receipt.as_json() == response["steering"]
    assert [token.token_id for token in answer.features] == [
        token["token_id"] for token in response["choices"][0]["features"]
    ]


def test_a_text_is_continued_as_the_route_continues_it(model: SteeredModel, llama: Runtime) -> None:
    answer = model.complete("Tell me", steering=[EDIT], **GREEDY)
    body = {"model": llama.model_id, "prompt": "Tell me", "steering": [EDIT], **GREEDY}
    with TestClient(create_app(llama), base_url="http://127.0.0.1") as client:
        same(answer.completion.model_dump(mode="json"), client.post("/v1/completions", json=body).json())


def test_a_stream_adds_up_to_the_answer(model: SteeredModel) -> None:
    answer = model.chat("Hi", steering=[EDIT], features={"top": 2}, **GREEDY)
    stream = model.stream("Hi", steering=[EDIT], features={"top": 2}, **GREEDY)
    tokens = list(stream)
    assert "".join(map(str, tokens)) == answer.text == stream.text
    assert [entry for token in tokens for entry in token.features] == answer.features
    assert tokens[-1].finish_reason == answer.finish_reason
    assert stream.receipt == answer.receipt == tokens[-1].receipt


def test_leaving_a_stream_gives_its_slot_back(local: SteeredModel) -> None:
    runtime = local._backend._runtime  # type: ignore[attr-defined]
    with local.stream("Hi", temperature=0, ignore_eos=True) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 30
    while runtime.stats().num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert runtime.stats().num_running == 0


def test_steering_takes_edits_and_presets_as_objects(model: SteeredModel) -> None:
    plain = model.chat("Hi", steering=[EDIT, {"feature": 5, "mode": "ablate"}], **GREEDY)
    preset = parse_preset("name: two\nedits:\n  - {feature: 3, scale: 4.0}\n", file="two.yaml")
    objects = model.chat("Hi", steering=[preset, Edit(feature=5, mode="ablate")], **GREEDY)
    assert objects.text == plain.text
    assert objects.receipt is not None
    assert plain.receipt is not None
    assert objects.receipt.fingerprint == plain.receipt.fingerprint
    assert model.chat("Hi", steering=Edit(feature=3, scale=4.0), **GREEDY).receipt is not None


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"steering": [{"feature": 9999, "scale": 1}]}, "steering.edits[0].feature", "features 0 to 95"),
        ({"steering": [{"feature": 3, "scal": 1}]}, "steering.edits[0].scal", "scale"),
        ({"max_tokens": "many"}, "max_tokens", "an integer"),
        ({"temperature": float("nan")}, None, "JSON"),
        ({"model": "other"}, "model", "does not exist"),
        ({"stop": {1, 2}}, None, "JSON"),
    ],
)
def test_mistakes_are_refused_as_over_http(
    model: SteeredModel, options: dict[str, Any], param: str | None, message: str
) -> None:
    with pytest.raises(Exception, match=message) as caught:
        model.chat("Hi", **options)
    assert getattr(caught.value, "param", "none") == param


def test_a_comparison_is_that_of_the_route(model: SteeredModel, llama: Runtime) -> None:
    arms: list[dict[str, Any]] = [{"name": "base"}, {"name": "pushed", "steering": [EDIT]}]
    comparison = model.compare("Hi", arms=arms, **GREEDY)
    body = {"messages": [{"role": "user", "content": "Hi"}], "arms": arms, "store": False, **GREEDY}
    with TestClient(create_app(llama), base_url="http://127.0.0.1") as client:
        same(comparison.model_dump(mode="json"), client.post("/v1/compare", json=body).json())
    assert set(comparison.texts()) == {"base", "pushed"}
    assert comparison.arms[1].samples[0].metrics is not None


def test_texts_are_read_as_over_http(model: SteeredModel, llama: Runtime) -> None:
    sets = {"positive": ["aaaa b", "aaab"], "negative": ["cccc", "dddd"]}
    with TestClient(create_app(llama), base_url="http://127.0.0.1") as client:
        inspected = client.post("/v1/features/inspect", json={"text": "Hello", "top": 3}).json()
        contrasted = client.post("/v1/features/contrast", json=sets).json()
    assert model.inspect("Hello", top=3).model_dump(mode="json") == inspected
    assert model.contrast(**sets).model_dump(mode="json") == contrasted
    assert model.inspect([{"role": "user", "content": "Hello"}]).tokens


def test_activations_are_those_of_the_model(local: SteeredModel, llama: Runtime) -> None:
    one = local.activations("Hello", "blocks.0.hook_resid_post")
    both = local.activations("Hello", ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"])
    assert isinstance(one, torch.Tensor)
    assert isinstance(both, dict)
    ids = torch.tensor([[256, *b"Hello"]])
    read = llama.engine.run_exclusive(lambda: llama.lens.read(ids, list(both))).result()
    assert torch.equal(one, both["blocks.0.hook_resid_post"])
    for name, values in both.items():
        assert torch.allclose(values, read[name][0], atol=1e-5)
    with pytest.raises(InvalidRequestError, match="hook_resid_post"):
        local.activations("Hello", "blocks.0.hook_resid_pst")


def test_dictionaries_are_listed_loaded_and_unloaded(local: SteeredModel) -> None:
    from tests.tiny import tiny_sae_folder

    runtime = local._backend._runtime  # type: ignore[attr-defined]
    folder = tiny_sae_folder(runtime.settings.dictionary_dirs[0] / "mine", seed=3)
    assert local.load_dictionary("mine", f"path:{folder}")["id"] == "mine"
    assert "mine" in {entry["id"] for entry in local.dictionaries}
    assert sum(entry["default"] for entry in local.dictionaries) == 1
    local.unload_dictionary("mine")
    assert "mine" not in {entry["id"] for entry in local.dictionaries}


def test_it_can_be_used_from_several_threads(local: SteeredModel) -> None:
    alone = [local.chat(f"Hi {index}", steering=[EDIT], **GREEDY).text for index in range(4)]
    together: dict[int, str] = {}

    def ask(index: int) -> None:
        together[index] = local.chat(f"Hi {index}", steering=[EDIT], **GREEDY).text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index] for index in range(4)] == alone


def test_a_closed_model_says_so(llama: Runtime, tmp_path_factory: pytest.TempPathFactory) -> None:
    from steerserve.api.local import LocalBackend

    folder = tmp_path_factory.mktemp("closed")
    model = SteeredModel(LocalBackend(llama.settings.model_copy(update={"dictionary_dirs": (folder,)})))
    model.close()
    model.close()
    with pytest.raises(UnavailableError, match="closed"):
        model.chat("Hi")


def test_settings_are_checked_by_their_names() -> None:
    with pytest.raises(ConfigError, match="engine"):
        SteeredModel.load(engine__slot=4)


def test_a_receipt_reads_its_json(local: SteeredModel) -> None:
    receipt = local.chat("Hi", steering=[EDIT], **GREEDY).receipt
    assert receipt is not None
    assert Receipt.model_validate(receipt.as_json()) == receipt
    assert receipt.edits[0].raw_scale == 4.0


def test_a_server_lists_what_it_serves(remote: SteeredModel, llama: Runtime) -> None:
    assert remote.id == llama.model_id
    assert [entry["id"] for entry in remote.dictionaries] == [entry.id for entry in llama.dictionaries()]
    assert remote.presets == []
    with pytest.raises(InvalidRequestError, match=r"SteeredModel\.load"):
        remote.activations("Hello", "blocks.0.hook_resid_post")


def test_leaving_a_servers_stream_frees_its_slot(remote: SteeredModel, llama: Runtime) -> None:
    with remote.stream("Hi", temperature=0, ignore_eos=True) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 30
    while llama.stats().num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llama.stats().num_running == 0


def test_connecting_to_nothing_says_how_to_start_a_server() -> None:
    with pytest.raises(StartupError, match="steerserve serve"):
        SteeredModel.connect("http://127.0.0.1:9")
    with pytest.raises(StartupError, match="not the URL"):
        SteeredModel.connect("nowhere")


def idle(runtime: Runtime) -> bool:
    deadline = time.monotonic() + 30
    while runtime.stats().num_running + runtime.stats().num_waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    return not runtime.stats().num_running + runtime.stats().num_waiting


def test_a_stream_that_is_closed_before_its_first_token_gives_its_slot_back(local: SteeredModel) -> None:
    runtime = local._backend._runtime  # type: ignore[attr-defined]
    before = runtime.stats().num_aborted_total
    for _ in range(20):
        local.stream("Hi", temperature=0, ignore_eos=True).close()
    assert idle(runtime)
    assert runtime.stats().num_aborted_total == before + 20


def test_a_stream_that_has_ended_yields_nothing_more(local: SteeredModel) -> None:
    stream = local.stream("Hi", **GREEDY)
    assert list(stream)
    assert list(stream) == []
    left = local.stream("Hi", temperature=0, ignore_eos=True)
    next(iter(left))
    left.close()
    assert list(left) == []


def test_closing_the_model_ends_calls_of_other_threads(
    llama: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from steerserve.api.local import LocalBackend

    folder = tmp_path_factory.mktemp("closing")
    model = SteeredModel(LocalBackend(llama.settings.model_copy(update={"dictionary_dirs": (folder,)})))
    errors: list[Exception] = []

    def ask(call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 the test looks at it
            errors.append(error)

    long: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    calls = [lambda: model.chat("Hi", **long), lambda: list(model.stream("Hi", **long))]
    threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    runtime = model._backend._runtime  # type: ignore[attr-defined]
    while runtime.stats().num_running < len(calls) and any(thread.is_alive() for thread in threads):
        time.sleep(0.001)
    model.close()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert all(isinstance(error, SteerserveError) for error in errors)
