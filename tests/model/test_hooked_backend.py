"""A HookedTransformer as the served model, against HookedTransformer itself."""

from __future__ import annotations

import contextlib
import functools
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer

from steerserve.core.errors import ModelSourceError
from steerserve.model.bridge_lens import BridgeLens
from steerserve.model.hooked_lens import HookedLens
from steerserve.model.kv_cache import SlotCache
from steerserve.model.lens import load_lens
from steerserve.model.names import HOOK_Z, LN2_NORMALIZED, MLP_OUT, READ_KINDS, RESID_POST, RESID_PRE, model_names
from steerserve.model.source import fetch_model
from tests.model.architectures import GROUPED, SERVED, write_model
from tests.model.hooked import SHAPES, hooked_folder, hooked_model
from tests.tiny import CONTEXT, D_MODEL, VOCAB_SIZE, tiny_gpt2_folder, tiny_llama_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from steerserve.model.lens import LensModel

pytestmark = pytest.mark.slow

Both = tuple[HookedLens, HookedTransformer]
FAMILIES = {name: SERVED[name] for name in ("Mistral", "Qwen2", "Qwen3", "Phi3", "OPT")} | {
    "GPTNeoX": {"rotary_pct": 0.5},
    "GPTJ": {"n_layer": 2, "n_head": 4, "n_embd": 48, "rotary_dim": 8},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mixtral": GROUPED | {"num_local_experts": 4},
}
LENGTHS = (37, 3, 18)
CHUNK = 7
NUM_STEPS = 5


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Return a served model and TransformerLens' own of the same weights."""
    folder = hooked_folder(request.param, tmp_path_factory.mktemp("hooked") / "model")
    return load(folder), hooked_model(request.param)


def load(folder: Path, *, dtype: str = "auto", process_weights: bool = True) -> HookedLens:
    lens = load_lens(
        fetch_model(str(folder)),
        device="cpu",
        dtype=dtype,
        backend="hooked_transformer",
        process_weights=process_weights,
    )
    assert isinstance(lens, HookedLens)
    return lens


def some_ids(num_rows: int, num_tokens: int) -> Tensor:
    return torch.randint(0, VOCAB_SIZE, (num_rows, num_tokens), generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def test_logits_equal_transformer_lenss(both: Both) -> None:
    lens, model = both
    ids = some_ids(2, 40)
    torch.testing.assert_close(lens.forward(ids, use_cache=False), model(ids), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lens.forward(ids, logits_to_keep=3), model(ids)[:, -3:], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_chunks_and_batched_steps_of_rows_of_any_length_equal_each_row_alone(both: Both) -> None:
    lens, model = both
    ids = some_ids(len(LENGTHS), max(LENGTHS) + NUM_STEPS)
    expected = [model(row[None, : length + NUM_STEPS])[0] for row, length in zip(ids, LENGTHS, strict=True)]
    cache = SlotCache(lens, 4, CONTEXT)
    for slot, length in enumerate(LENGTHS):
        for start in range(0, length, CHUNK):
            stop = min(start + CHUNK, length)
            logits = lens.forward(ids[slot : slot + 1, start:stop], **cache.view_prefill(slot, start, stop))[0]
            torch.testing.assert_close(logits, expected[slot][start:stop], atol=1e-4, rtol=1e-4)
    for step in range(NUM_STEPS):
        positions = torch.tensor([length + step for length in LENGTHS] + [CONTEXT])  # the last only fills up
        tokens = torch.stack([ids[row, positions[row]] for row in range(len(LENGTHS))] + [ids[0, 0]])[:, None]
        logits = lens.forward(tokens, **cache.view_decode(positions, max(LENGTHS) + step), logits_to_keep=1)
        wanted = torch.stack([rows[length + step] for rows, length in zip(expected, LENGTHS, strict=True)])
        torch.testing.assert_close(logits[: len(LENGTHS), -1], wanted, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_values_at_hook_points_equal_transformer_lenss_and_are_in_the_pass_order(both: Both) -> None:
    lens, model = both
    ids = some_ids(2, 9)
    _, cache = model.run_with_cache(ids)
    found = lens.read(ids, lens.readable)
    names = [name for name in cache if name in found]
    assert [name for name in lens.readable if name in names] == names
    for name in names:
        value = cache[name].flatten(2)
        assert lens.width(name) == value.shape[-1]
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
    kinds = {name.split(".", 2)[2] for name in lens.readable}
    assert kinds >= {RESID_PRE, HOOK_Z, RESID_POST}
    assert model.cfg.attn_only == (not kinds & {MLP_OUT, *READ_KINDS})
    assert set(lens.readable) - set(lens.hook_names) == {name for name in found if name.endswith(READ_KINDS)}


@torch.inference_mode()
def test_replacing_a_value_gives_transformer_lenss_logits(both: Both) -> None:
    lens, model = both
    ids = some_ids(2, 9)
    for name in lens.hook_names:
        value = torch.randn(2, 9, lens.width(name), generator=torch.Generator().manual_seed(3))

        def replace(x: Tensor, hook: object = None, new: Tensor = value) -> Tensor:  # noqa: ARG001 as TransformerLens calls it
            return new.view(x.shape)

        expected = model.run_with_hooks(ids, fwd_hooks=[(name, replace)])
        with lens.hooked(name, replace):
            torch.testing.assert_close(lens.forward(ids), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(lens.run_from(name, value, ids), expected, atol=1e-4, rtol=1e-4)
        last = lens.run_from(name, value, ids, logits_to_keep=1)
        torch.testing.assert_close(last, expected[:, -1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lens.forward(ids), model(ids), atol=1e-4, rtol=1e-4)


def test_blocks_before_a_hook_point_in_the_stream_are_not_computed(both: Both) -> None:
    lens, _ = both
    for name, expected in ((f"blocks.0.{RESID_POST}", [1]), (f"blocks.0.{RESID_PRE}", [0, 1])):
        reached: list[int] = []

        def note(_: Tensor, layer: int, reached: list[int] = reached) -> None:
            reached.append(layer)

        with contextlib.ExitStack() as stack:
            for layer in range(2):
                stack.enter_context(lens.hooked(f"blocks.{layer}.{HOOK_Z}", functools.partial(note, layer=layer)))
            lens.run_from(name, torch.zeros(1, 4, D_MODEL), some_ids(1, 4))
        assert reached == expected


@torch.inference_mode()
def test_reading_with_a_cache_goes_on_where_it_ended(both: Both) -> None:
    lens, _ = both
    ids, name = some_ids(1, 20), f"blocks.1.{RESID_POST}"
    cache = lens.new_cache()
    parts = [lens.read(ids[:, start : start + 8], [name], cache=cache)[name] for start in (0, 8, 16)]
    torch.testing.assert_close(torch.cat(parts, dim=1), lens.read(ids, [name])[name], atol=1e-4, rtol=1e-4)


def test_unembedding_is_that_of_the_final_norm_and_head(both: Both) -> None:
    lens, model = both
    directions = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(4))
    norm = model.ln_final if model.cfg.normalization_type is not None else None
    centred = directions
    if norm is not None and "RMS" not in type(norm).__name__:
        centred = directions - directions.mean(dim=-1, keepdim=True)
    expected = (centred * getattr(norm, "w", torch.ones(D_MODEL))) @ model.W_U
    torch.testing.assert_close(lens.unembed(directions), expected, atol=1e-4, rtol=1e-4)


def test_sizes_are_those_of_the_configuration(both: Both) -> None:
    lens, model = both
    assert (lens.num_layers, lens.d_model, lens.vocab_size, lens.max_context) == (2, D_MODEL, VOCAB_SIZE, CONTEXT)
    num_values = sum(parameter.numel() for parameter in model.parameters())
    assert lens.weight_bytes == pytest.approx(4 * num_values, rel=0.03)  # biases of packed layers do not count
    cache = SlotCache(lens, 2, 16)
    lens.forward(some_ids(1, 3), **cache.view_prefill(0, 0, 3))
    sizes = [tensor.numel() for tensor in (*cache._keys.values(), *cache._values.values())]
    assert lens.cache_bytes_per_token == 4 * sum(sizes) // (2 * 17)


@pytest.mark.parametrize("write", [tiny_llama_folder, tiny_gpt2_folder])
@pytest.mark.parametrize("process_weights", [True, False])
@torch.inference_mode()
def test_a_transformers_model_gives_the_bridges_probabilities(
    write: Callable[[Path], Path],
    process_weights: bool,
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "llama-2-gemma")  # a path that names families of models says nothing about this one
    lens, bridge = load(folder, process_weights=process_weights), load_lens(fetch_model(str(folder)), device="cpu")
    ids = some_ids(2, 30)
    expected = bridge.forward(ids).log_softmax(-1)
    torch.testing.assert_close(lens.forward(ids).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)
    assert lens.readable == bridge.readable
    assert (lens.is_processed, bridge.is_processed) == (process_weights, False)
    assert lens.tokenizer.eos_ids == bridge.tokenizer.eos_ids
    normalized = f"blocks.1.{LN2_NORMALIZED}"
    torch.testing.assert_close(*(one.read(ids, [normalized])[normalized] for one in (lens, bridge)), atol=1e-4, rtol=0)
    stream = lens.read(ids, [f"blocks.1.{RESID_POST}"])[f"blocks.1.{RESID_POST}"]
    is_centred = bool(stream.mean(dim=-1).abs().max() < 1e-5)
    assert is_centred == (process_weights and write is tiny_gpt2_folder)  # only LayerNorm lets a mean go


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_families_of_models_give_the_bridges_probabilities(name: str, tmp_path: Path) -> None:
    files = write_model(name, FAMILIES[name], tmp_path, std=0.15)
    ids = some_ids(2, 20)
    expected = load_lens(files, device="cpu").forward(ids).log_softmax(-1)
    torch.testing.assert_close(load(files.path).forward(ids).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_a_family_that_transformer_lens_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="FalconForCausalLM is not currently supported"):
        load(write_model("Falcon", SERVED["Falcon"], tmp_path).path)


def test_a_folder_that_only_it_can_read_needs_no_setting(tmp_path: Path) -> None:
    folder = hooked_folder("learned", tmp_path / "model", has_template=False)
    lens: LensModel = load_lens(fetch_model(str(folder)), device="cpu")
    assert isinstance(lens, HookedLens)
    assert not lens.tokenizer.has_chat_template
    assert model_names(fetch_model(str(folder))) == ("model", "custom")
    assert isinstance(load_lens(fetch_model(str(tiny_llama_folder(tmp_path / "other"))), device="cpu"), BridgeLens)


def test_half_precision_stays_close(tmp_path: Path) -> None:
    folder = hooked_folder("grouped", tmp_path / "model")
    exact, rough = load(folder), load(folder, dtype="bfloat16")
    with torch.inference_mode():
        difference = exact.forward(some_ids(1, 20)) - rough.forward(some_ids(1, 20)).float()
    assert difference.abs().mean() < 0.1


def without_a_weight(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    del weights["blocks.1.attn.W_O"]
    save_file(weights, folder / "model.safetensors")
    return "they lack blocks.1.attn.W_O"


def with_another_weight(folder: Path) -> str:
    save_file(load_file(folder / "model.safetensors") | {"other": torch.zeros(1)}, folder / "model.safetensors")
    return "the model has no other"


def without_safetensors(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "model_final.pth")
    return "pickled weights are never loaded"


CHANGES: dict[str, Any] = {
    "text generation needs causal": {"attention_dir": "bidirectional"},
    "size mismatch": {"d_vocab_out": 5},
    "cannot load model as a HookedTransformer": {"d_model": "many"},
    "act_fn=sine": {"act_fn": "sine"},
}


@pytest.mark.parametrize("spoil", [without_a_weight, with_another_weight, without_safetensors])
def test_weights_that_cannot_be_served_are_refused_by_name(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    folder = hooked_folder("learned", tmp_path / "model")
    message = spoil(folder)
    with pytest.raises(ModelSourceError) as refused:
        load(folder)
    assert message in refused.value.message


@pytest.mark.parametrize("message", CHANGES)
def test_a_configuration_that_cannot_be_served_is_refused_with_its_reason(message: str, tmp_path: Path) -> None:
    folder = hooked_folder("learned", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | CHANGES[message]), encoding="utf-8")
    with pytest.raises(ModelSourceError) as refused:
        load(folder)
    assert message in refused.value.message
