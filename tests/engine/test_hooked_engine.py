"""The engine and the HTTP app over a HookedTransformer, against HookedTransformer with a SAELens dictionary in it."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sae_lens import SAE

from steerserve.core.config import Settings
from steerserve.engine.request import Watch
from steerserve.model.hooked_lens import HookedLens
from steerserve.runtime import build_runtime
from steerserve.server.app import create_app
from tests.engine.harness import Answer, Stepper, ask, fresh_engine
from tests.model.hooked import hooked_folder, hooked_model
from tests.server.asking import client_of
from tests.tiny import D_MODEL, VOCAB_SIZE, tiny_sae_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from steerserve.runtime import Runtime

Served = tuple[str, "Runtime", "Path"]
NUM_TOKENS = 7
HOOKS = {"stream": "blocks.0.hook_resid_post", "heads": "blocks.1.attn.hook_z"}
ALWAYS = {"special_tokens": True}  # what is random may well generate some
EDITS: list[Any] = [
    None,
    [{"feature": 5, "mode": "clamp", "scale": 6.0, **ALWAYS}],
    [{"feature": 4, "dictionary": "heads", "mode": "multiply", "scale": 3.0, **ALWAYS}],
    [{"feature": 9, "mode": "ablate", **ALWAYS}, {"feature": 7, "dictionary": "heads", "scale": 2.0, **ALWAYS}],
    [{"vector": {"hook": "blocks.1.hook_attn_out", "values": [1.0, -0.7] * (D_MODEL // 2)}, "scale": 1.5, **ALWAYS}],
]
PROMPTS = ("A prompt of some length, which is read in chunks", "x", "and one that is shorter", "four", "five " * 12)
SAMPLING: dict[str, Any] = {"max_tokens": NUM_TOKENS, "num_logprobs": VOCAB_SIZE}


@pytest.fixture(scope="module", params=["learned", "grouped", "attn-only", "local", "alibi", "solu", "experts"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("hooked")
    folder = hooked_folder(request.param, root / "tiny", has_template=request.param != "attn-only")
    for name, hook_name in HOOKS.items():
        tiny_sae_folder(root / name, hook_name=hook_name, seed=len(name))
    settings = Settings.model_validate(
        {
            "model": {"source": str(folder), "device": "cpu", "backend": "hooked_transformer"},
            "dictionaries": [{"id": name, "source": f"path:{root / name}"} for name in HOOKS],
            "dictionary_dirs": [str(root)],
            "cache_dir": str(root / "cache"),
            "engine": {"slots": 5, "context": 128, "threads": 1},
        }
    )
    with build_runtime(settings) as runtime:
        yield request.param, runtime, root


def splice(x: Tensor, hook: object, sae: Any, edit: dict[str, Any]) -> Tensor:  # noqa: ANN401, ARG001
    """Change one feature as an edit says, and keep what the dictionary does not reconstruct."""
    acts = sae.encode(x.flatten(2))
    after = acts.clone()
    feature, scale = edit["feature"], edit.get("scale", 0.0)
    f = acts[..., feature]
    after[..., feature] = {"clamp": f * 0 + scale, "multiply": f * scale, "ablate": f * 0, "add": f + scale}[
        edit.get("mode", "add")
    ]
    change: Tensor = sae.decode(after) - sae.decode(acts)
    return x + change.view(x.shape)


def add(x: Tensor, hook: object, edit: dict[str, Any]) -> Tensor:  # noqa: ARG001 as TransformerLens calls it
    change: Tensor = edit["scale"] * torch.tensor(edit["vector"]["values"])
    return x + change


def hooks_of(edits: list[dict[str, Any]] | None, root: Path) -> list[tuple[str, Callable[..., Tensor]]]:
    hooks: list[tuple[str, Callable[..., Tensor]]] = []
    for edit in edits or []:
        if "vector" in edit:
            hooks.append((edit["vector"]["hook"], functools.partial(add, edit=edit)))
        else:
            name = edit.get("dictionary", "stream")
            sae = SAE.load_from_disk(root / name, dtype="float32")
            hooks.append((HOOKS[name], functools.partial(splice, sae=sae, edit=edit)))
    return hooks


@pytest.mark.slow
@torch.no_grad()
def test_steered_rows_of_one_batch_equal_hooked_transformer_with_a_dictionary_spliced_in(served: Served) -> None:
    name, runtime, root = served
    model = hooked_model(name)
    assert isinstance(runtime.lens, HookedLens)
    requests = [ask(runtime, prompt, edits, **SAMPLING) for prompt, edits in zip(PROMPTS, EDITS, strict=True)]
    with fresh_engine(runtime, slots=5, chunk=16, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(*requests)
        stepper.finish()
        for place, request in enumerate(requests):
            answer = stepper.answer(place)
            ids = torch.tensor([[*request.prompt_ids, *answer.token_ids[:-1]]])
            logits = model.run_with_hooks(ids, fwd_hooks=hooks_of(EDITS[place], root))[0, -NUM_TOKENS:]
            torch.testing.assert_close(answer.all_logprobs(), logits.log_softmax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_request_gives_the_same_bits_alone_and_among_others(served: Served) -> None:
    _, runtime, _ = served

    def answers(places: list[int]) -> list[Answer]:
        with fresh_engine(runtime, slots=5, chunk=16, start=False) as engine:
            stepper = Stepper(engine)
            stepper.submit(*(ask(runtime, PROMPTS[place], EDITS[place], **SAMPLING) for place in places))
            stepper.finish()
            return [stepper.answer(order) for order in range(len(places))]

    alone = [answers([place])[0] for place in range(len(PROMPTS))]
    assert answers([0, 1, 2, 3, 4]) == alone
    assert answers([4, 2, 0]) == [alone[4], alone[2], alone[0]]
    assert answers([3, 3, 1, 0]) == [alone[3], alone[3], alone[1], alone[0]]


@torch.no_grad()
def test_watched_tokens_carry_what_the_dictionary_encodes_of_hooked_transformers_own_stream(served: Served) -> None:
    name, runtime, root = served
    model = hooked_model(name)
    watch = Watch(tuple(runtime.dictionaries()), top=3, features=tuple(range(40)))
    plain = ask(runtime, PROMPTS[0], None, **SAMPLING)
    with fresh_engine(runtime, chunk=16, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(plain, replace(plain, watch=watch), ask(runtime, PROMPTS[1], EDITS[1], **SAMPLING))
        stepper.finish()
        assert stepper.answer(0) == stepper.answer(1)
        entries = [entry for event in stepper.events[1] for entry in getattr(event, "features", ())]
    ids = [*plain.prompt_ids, *(entry.token_id for entry in entries)]
    _, seen = model.run_with_cache(torch.tensor([ids]), names_filter=list(HOOKS.values()))
    for dictionary in runtime.dictionaries():
        sae: Any = SAE.load_from_disk(root / dictionary.id, dtype="float32")
        acts = sae.encode(seen[HOOKS[dictionary.id]][0].flatten(1))
        for entry in entries:
            reading = entry.readings[dictionary.id]
            if reading.skipped is None:
                assert reading.watch == pytest.approx(acts[entry.position, :40].tolist(), abs=1e-4)


async def test_the_routes_answer_and_a_model_without_a_chat_template_says_so(served: Served) -> None:
    name, runtime, _ = served
    steered = {"model": "tiny", "max_tokens": 5, "steering": [{"feature": 5, "mode": "clamp", "scale": 6.0}]}
    async with client_of(create_app(runtime)) as client:
        completed = await client.post("/v1/completions", json={**steered, "prompt": "Once"})
        assert completed.status_code == 200
        assert completed.json()["usage"]["prompt_tokens"] == 4
        chat = await client.post(
            "/v1/chat/completions", json={**steered, "messages": [{"role": "user", "content": "Hi"}]}
        )
        if name == "attn-only":
            assert chat.status_code == 400
            assert "no chat template" in chat.json()["error"]["message"]
        else:
            assert chat.status_code == 200
            assert chat.json()["choices"][0]["message"]["role"] == "assistant"
