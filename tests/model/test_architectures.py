"""Every architecture here computes the same with the slot cache as without, steered too; others are refused."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sae_lens import SAE
from transformers import AutoModelForCausalLM

from steerserve.core.config import Settings
from steerserve.core.errors import ModelSourceError
from steerserve.engine.runner import Runner
from steerserve.engine.selfcheck import check_cache
from steerserve.runtime import build_runtime
from tests.conformance.random_dictionaries import write_random
from tests.engine.harness import ask, run
from tests.model.architectures import SERVED, STEERED, load, write_model
from tests.tiny import VOCAB_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from tests.engine.harness import Answer

REFUSED: dict[str, dict[str, Any]] = {"Mamba": {}, "Bloom": {"n_layer": 2, "n_head": 4}}


@pytest.mark.parametrize("name", SERVED)
def test_an_architecture_computes_the_same_with_the_cache(name: str, tmp_path: Path) -> None:
    lens = load(name, SERVED[name], tmp_path)
    check_cache(Runner(lens, num_slots=2, context=64, median_norms={}))


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_the_cache_cannot_follow_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError):
        check_cache(Runner(load(name, REFUSED[name], tmp_path), num_slots=2, context=64, median_norms={}))


POST, MLP = "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"
DICTIONARIES = {"post": ("jumprelu", POST), "sparse": ("topk", POST), "mlp": ("standard", MLP)}
REQUESTS: list[list[dict[str, Any]]] = [
    [],
    [{"dictionary": "post", "mode": "add", "scale": 2.0}],
    [{"dictionary": "mlp", "mode": "clamp", "scale": 3.0}],
    [
        {"dictionary": "sparse", "mode": "clamp", "scale": 2.5, "positions": "prompt"},
        {"dictionary": "mlp", "mode": "multiply", "scale": -2.0, "positions": "generated"},
    ],
    [
        {"dictionary": "post", "mode": "floor", "scale": 1.5, "positions": "generated"},
        {"dictionary": "mlp", "mode": "add", "scale": -1.5},
    ],
]
NUM_TOKENS = 6


@pytest.mark.slow
@pytest.mark.parametrize("name", STEERED)
def test_a_steered_generation_is_that_of_transformers_with_hooks(name: str, tmp_path: Path) -> None:
    """A batch of prompts, longer than a chunk and than a sliding window, in which each request has its own edits."""
    files = write_model(name, STEERED[name], tmp_path / "model", std=0.15)
    values = {
        "model": {"source": str(files.path), "device": "cpu"},
        "dictionary_dirs": [str(tmp_path)],
        "cache_dir": str(tmp_path / "cache"),
        "engine": {"slots": 4, "context": 64, "prefill_chunk": 6, "queue": 64, "threads": 1},
    }
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(256, (10 + 3 * row,), generator=generator).tolist() for row in range(len(REQUESTS))]
    with build_runtime(Settings.model_validate(values)) as runtime:
        read = runtime.lens.read(torch.tensor([prompts[-1]]), [POST, MLP])
        saes: dict[str, Any] = {}
        favourites: dict[str, int] = {}
        for place, (dictionary, (architecture, hook_name)) in enumerate(DICTIONARIES.items()):
            size = float(read[hook_name].square().mean().sqrt())
            folder = write_random(tmp_path / dictionary, architecture, hook_name, d_in=48, size=size, seed=place)
            runtime.dictionary_library.load(dictionary, f"path:{folder}", force=True)
            saes[dictionary] = SAE.load_from_disk(folder)
            favourites[dictionary] = int(saes[dictionary].encode(read[hook_name][0]).sum(0).argmax())
        edits = [[{**edit, "feature": favourites[edit["dictionary"]]} for edit in some] for some in REQUESTS]
        wanted: dict[str, Any] = {"max_tokens": NUM_TOKENS, "num_logprobs": VOCAB_SIZE}
        requests = [
            ask(runtime, prompt, [{**edit, "special_tokens": True} for edit in some], **wanted)
            for prompt, some in zip(prompts, edits, strict=True)
        ]
        answers = run(runtime.engine, *requests)
    model = AutoModelForCausalLM.from_pretrained(files.path, attn_implementation="eager", dtype=torch.float32).eval()
    for prompt, some, answer in zip(prompts, edits, answers, strict=True):
        theirs, plain = (steered(model, saes, prompt, answer, these) for these in (some, []))
        torch.testing.assert_close(answer.all_logprobs(), theirs, atol=1e-4, rtol=0)
        assert answer.token_ids == tuple(theirs.argmax(-1).tolist())
        assert not some or (theirs - plain).abs().max() > 1e-2


@torch.no_grad()
def steered(
    model: Any,  # noqa: ANN401 transformers' own
    saes: dict[str, Any],
    prompt: list[int],
    answer: Answer,
    edits: Sequence[dict[str, Any]],
) -> Tensor:
    """Return the log-probabilities `[tokens, vocab]` of a text by one forward pass with hooks, and no cache."""
    body = model.base_model
    blocks = next(getattr(body, name) for name in ("layers", "h") if hasattr(body, name))
    # Behind its MLP Gemma has a norm, and what that gives is added to the stream.
    behind_mlp = "post_feedforward_layernorm" if hasattr(blocks[1], "post_feedforward_layernorm") else "mlp"
    modules = {POST: blocks[0], MLP: getattr(blocks[1], behind_mlp)}

    def change(x: Tensor, here: Sequence[dict[str, Any]]) -> Tensor:
        dx = torch.zeros_like(x)
        for edit in here:
            sae, feature, scale = saes[edit["dictionary"]], edit["feature"], edit["scale"]
            acts = sae.encode(x)
            f, after = acts[:, feature], acts.clone()
            after[:, feature] = {
                "add": f + scale,
                "clamp": torch.full_like(f, scale),
                "multiply": f * scale,
                "floor": f.clamp(min=scale),
            }[edit["mode"]]
            meant = torch.ones(len(x), 1)
            if edit.get("positions") == "prompt":
                meant[len(prompt) :] = 0
            elif edit.get("positions") == "generated":
                meant[: len(prompt)] = 0
            dx += meant * (sae.decode(after) - sae.decode(acts))
        return dx

    def hook(here: Sequence[dict[str, Any]]) -> Any:  # noqa: ANN401 a hook of torch
        def edit(_: object, __: object, out: Any) -> Any:  # noqa: ANN401 a tensor, or a tuple that begins with one
            if isinstance(out, tuple):
                return (out[0] + change(out[0][0], here), *out[1:])
            return out + change(out[0], here)

        return edit

    with contextlib.ExitStack() as stack:
        for hook_name, module in modules.items():
            here = [edit for edit in edits if DICTIONARIES[edit["dictionary"]][1] == hook_name]
            if here:
                stack.callback(module.register_forward_hook(hook(here)).remove)
        logits: Tensor = model(torch.tensor([[*prompt, *answer.token_ids[:-1]]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 :].log_softmax(-1)
