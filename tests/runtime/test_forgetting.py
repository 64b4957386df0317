"""Memory comes back: nobody holds a dictionary once it is unloaded and its last request has ended."""

from __future__ import annotations

import gc
import json
import statistics
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import psutil
import pytest

from steerserve.core.errors import DictionaryBusyError, EngineError, NotFoundError
from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from tests.engine.harness import ask
from tests.server.asking import CHAT, COMPLETIONS, chat, client_of, completion
from tests.tiny import tiny_sae_folder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

STEERING = [{"feature": 3, "scale": 8.0, "dictionary": "x"}]
WATCHED = {"dictionaries": ["x"], "watch": [3]}
REQUESTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "plain": (CHAT, chat(steering=STEERING), 200),
    "stream": (CHAT, chat(steering=STEERING, stream=True), 200),
    "several choices": (CHAT, chat(steering=STEERING, n=6, max_tokens=1), 200),
    "prompt alone": (COMPLETIONS, completion(steering=STEERING, max_tokens=0, echo=True, logprobs=1), 200),
    "watched": (CHAT, chat(features=WATCHED, steering=STEERING, n=6), 200),
    "watched stream": (COMPLETIONS, completion(features=WATCHED | {"prompt": True}, stream=True), 200),
    "refused": (CHAT, chat(steering=[{"feature": 10**6, "scale": 1.0, "dictionary": "x"}]), 400),
    "refused late": (CHAT, chat(steering=STEERING, max_tokens=10**6), 400),
}
KINDS = ("standard", "topk", "normalised")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Serve, with dictionaries of each kind to load."""
    folder = tmp_path_factory.mktemp("forgetting")
    settings = tiny_settings(folder, engine={"threads": 1})
    tiny_sae_folder(folder / "dictionaries" / "standard")
    tiny_sae_folder(folder / "dictionaries" / "topk", "topk")
    config = tiny_sae_folder(folder / "dictionaries" / "normalised") / "cfg.json"
    changed = json.loads(config.read_text(encoding="utf-8")) | {"normalize_activations": "layer_norm"}
    config.write_text(json.dumps(changed), encoding="utf-8")
    with build_runtime(settings) as started:
        yield started


def source(served: Runtime, kind: str) -> str:
    return f"path:{served.settings.dictionary_dirs[0] / kind}"


@contextmanager
def watched(served: Runtime, kind: str) -> Iterator[None]:
    """Load a dictionary, and check that it goes with its unloading: by itself, not with the next collection."""
    gc.collect()
    gc.disable()
    try:
        served.dictionary_library.load("x", source(served, kind))
        loaded = served.registry.snapshot().dictionaries["x"]
        references = [weakref.ref(loaded), weakref.ref(loaded.sae), weakref.ref(loaded.sae.W_dec)]
        del loaded
        yield
        served.dictionary_library.unload("x")
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


async def settle(served: Runtime) -> None:
    """Wait until the engine's thread and the event loop have done all that was asked before."""
    assert (await client_of(create_app(served)).post(CHAT, json=chat())).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_leaves_nothing(served: Runtime, kind: str, name: str) -> None:
    path, body, status = REQUESTS[name]
    client = client_of(create_app(served))
    with watched(served, kind):
        assert (await client.post(path, json=body)).status_code == status
        await settle(served)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_read", [0, 2])
async def test_a_request_that_was_given_up_leaves_nothing(served: Runtime, kind: str, num_read: int) -> None:
    with watched(served, kind):
        [stream] = served.submit([ask(served, "some text", STEERING, max_tokens=100)])
        events = aiter(stream)
        for _ in range(num_read):
            await anext(events)
        stream.abort()
        await settle(served)
        del stream, events


async def test_a_request_that_failed_leaves_nothing(served: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        message = "no."
        raise EngineError(message)

    client = client_of(create_app(served))
    with watched(served, "standard"):
        with monkeypatch.context() as patched:
            patched.setattr(served.engine.runner, "prefill", fail)
            body = completion(steering=STEERING, prompt="not seen yet")
            assert (await client.post(COMPLETIONS, json=body)).status_code == 500
        await settle(served)


def test_a_swap_lets_go_of_what_it_replaced(served: Runtime) -> None:
    with watched(served, "standard"):
        replaced = weakref.ref(served.registry.snapshot().dictionaries["x"].sae)
        served.dictionary_library.load("x", source(served, "topk"))
        assert replaced() is None


async def test_swaps_and_requests_do_not_make_the_process_grow(served: Runtime) -> None:
    large = tiny_sae_folder(served.settings.dictionary_dirs[0] / "large", d_sae=1 << 15)
    num_bytes = (large / "sae_weights.safetensors").stat().st_size
    client, process, sizes = client_of(create_app(served)), psutil.Process(), []
    for _ in range(20):
        response = await client.post("/admin/dictionaries", json={"id": "x", "source": f"path:{large}"})
        assert response.status_code == 201
        assert (await client.post(CHAT, json=chat(steering=STEERING))).status_code == 200
        sizes.append(process.memory_info().rss)
    # The C library keeps some of what each thread freed, so that single sizes differ by about a dictionary, in a large
    # process by two. A swap that kept what it replaced would make eight of it.
    assert statistics.mean(sizes[-8:]) - statistics.mean(sizes[4:12]) < 2 * num_bytes
    assert max(sizes[4:]) - min(sizes[4:]) < 4 * num_bytes
    served.dictionary_library.unload("x")


# The registry's order


def test_the_default_goes_to_the_next_and_a_swap_keeps_the_place(served: Runtime) -> None:
    for name in ("x", "y"):
        served.dictionary_library.load(name, source(served, "standard"))
    swapped = served.dictionary_library.load("res0", source(served, "topk"))
    assert (swapped.is_default, swapped.architecture) == (True, "topk")
    assert [(found.id, found.is_default) for found in served.dictionaries()] == [
        ("res0", True),
        ("x", False),
        ("y", False),
    ]
    served.dictionary_library.unload("res0")
    assert [(found.id, found.is_default) for found in served.dictionaries()] == [("x", True), ("y", False)]
    served.dictionary_library.unload("y")
    assert [(found.id, found.is_default) for found in served.dictionaries()] == [("x", True)]
    served.dictionary_library.unload("x")
    assert served.dictionaries() == []
    assert served.dictionary_library.load("res0", source(served, "standard")).is_default


def test_what_is_not_loaded_cannot_be_unloaded(served: Runtime) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'res0'") as caught:
        served.dictionary_library.unload("res1")
    assert (caught.value.param, caught.value.code) == ("dictionary_id", "dictionary_not_found")


def test_an_id_is_loaded_once_at_a_time_and_others_beside_it(served: Runtime, tmp_path: Path) -> None:
    with served.dictionary_library._reserved("x"):
        with pytest.raises(DictionaryBusyError, match="being loaded") as caught:
            served.dictionary_library.load("x", f"path:{tmp_path}")
        served.dictionary_library.load("y", source(served, "standard"))
    assert (caught.value.param, caught.value.code) == ("id", "dictionary_busy")
    served.dictionary_library.load("x", source(served, "standard"))
    for name in ("x", "y"):
        served.dictionary_library.unload(name)
