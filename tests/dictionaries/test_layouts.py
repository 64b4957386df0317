"""The layouts of other libraries encode as SAELens' own converters say, and plain SAELens files as SAELens does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as theirs
from safetensors.torch import load_file, save_file

from steerserve.core.errors import DictionarySourceError
from steerserve.dictionaries.loader import DictionaryLoader
from tests.tiny import D_MODEL, HOOK_NAME, tiny_sae_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.runtime import Runtime

D_SAE = 96
TOLERANCE = 1e-5


def load(runtime: Runtime, folder: Path, *, force: bool = False) -> Dictionary:
    norms = dict.fromkeys(runtime.lens.hook_names, (10.0, 12.0))
    loader = DictionaryLoader(runtime.lens, ("tiny",), norms, (folder.parents[1],), max_bytes=1 << 20)
    return loader.load("res", f"path:{folder}", force=force)


def inputs() -> Tensor:
    return 3 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))


def random(*shape: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(ours: Dictionary, sae: Any) -> None:  # noqa: ANN401 SAELens is not typed for us
    with torch.no_grad():
        acts = sae.encode(inputs())
        torch.testing.assert_close(ours.encode(inputs()), acts, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(ours.decode(inputs(), acts), sae.decode(acts), atol=TOLERANCE, rtol=0)
    assert int((acts != 0).sum()) > 100
    assert ours.hook_name == HOOK_NAME


@pytest.mark.parametrize("name", ["standard", "topk", "jumprelu", "gated"])
def test_what_plain_saelens_wrote_is_loaded_as_saelens_does(llama: Runtime, tmp_path: Path, name: Any) -> None:  # noqa: ANN401
    folder = tiny_sae_folder(tmp_path / "saved" / name, name)
    assert_same(load(llama, folder), SAE.load_from_disk(folder))


def test_the_form_of_saelens_first_years_is_read_too(llama: Runtime, tmp_path: Path) -> None:
    folder = tiny_sae_folder(tmp_path / "saved" / "old")
    old = {"model_name": "tiny", "hook_point": HOOK_NAME, "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "torch.float32"}
    (folder / "cfg.json").write_text(json.dumps(old), encoding="utf-8")
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file(tensors | {"scaling_factor": torch.ones(D_SAE)}, folder / "sae_weights.safetensors")
    assert_same(load(llama, folder), SAE.load_from_disk(folder))


# sparsify


def sparsify_folder(root: Path, *, name: str = "layers.0", decoder: str = "decoder.weight", **config: object) -> Path:
    """Write what EleutherAI's sparsify writes: a run with a folder for each hook point."""
    folder = root / "run" / name
    folder.mkdir(parents=True)
    (root / "run" / "config.json").write_text(json.dumps({"model": "org/tiny", "ctx_len": 128}), encoding="utf-8")
    described = {"d_in": D_MODEL, "expansion_factor": 2, "k": 8, "signed": False, "normalize_decoder": True, **config}
    (folder / "cfg.json").write_text(json.dumps(described), encoding="utf-8")
    rows = random(D_SAE, D_MODEL, seed=2)
    tensors = {
        "encoder.weight": random(D_SAE, D_MODEL, seed=3),
        "encoder.bias": random(D_SAE, seed=4),
        decoder: rows if decoder == "W_dec" else rows.T.contiguous(),
        "b_dec": random(D_MODEL, seed=5),
    }
    save_file(tensors, folder / "sae.safetensors")
    return folder


@pytest.mark.parametrize("subtracts", [True, False])
def test_a_sparsify_dictionary_equals_saelens_own_converter(llama: Runtime, tmp_path: Path, subtracts: bool) -> None:
    folder = sparsify_folder(tmp_path, normalize_decoder=not subtracts)
    sae = SAE.load_from_disk(folder, dtype="float32", converter=theirs.sparsify_disk_loader)
    ours = load(llama, folder)
    assert (ours.architecture, ours.d_sae) == ("topk", D_SAE)
    assert_same(ours, sae)


def test_the_decoder_is_taken_as_the_library_writes_it(llama: Runtime, tmp_path: Path) -> None:
    by_linear, by_rows = sparsify_folder(tmp_path / "a"), sparsify_folder(tmp_path / "b", decoder="W_dec")
    x = inputs()
    one, two = load(llama, by_linear), load(llama, by_rows)
    assert torch.equal(one.sae.W_dec, two.sae.W_dec)
    assert torch.equal(one.encode(x), two.encode(x))


def test_a_signed_dictionary_keeps_the_largest_of_both_signs(llama: Runtime, tmp_path: Path) -> None:
    ours = load(llama, sparsify_folder(tmp_path, signed=True))
    acts = ours.encode(inputs())
    assert ours.architecture == "abstopk"
    assert ((acts != 0).sum(dim=1) == 8).all()
    assert (acts < 0).any()


@pytest.mark.parametrize(
    ("name", "hook_name"),
    [("h.1", "blocks.1.hook_resid_post"), ("model.layers.0.mlp", "blocks.0.hook_mlp_out")],
)
def test_its_folder_says_where_it_reads(llama: Runtime, tmp_path: Path, name: str, hook_name: str) -> None:
    assert load(llama, sparsify_folder(tmp_path, name=name)).hook_name == hook_name


SPARSIFY_DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "transcoder": ({"transcode": True}, "transcoders"),
    "other activation": ({"activation": "groupmax"}, "topk"),
    "sizes that do not fit": ({"expansion_factor": 3}, "do not fit the decoder"),
    "vast sizes": ({"d_in": 10**12}, "do not fit the decoder"),
    "negative sizes": ({"d_in": -D_MODEL, "num_latents": -D_SAE}, "cfg.json"),
    "a size in words": ({"num_latents": "many"}, "whole number"),
    "no k": ({"k": None}, "as k"),
    "a folder without a layer": ({"name": "somewhere"}, "layers.5"),
}


@pytest.mark.parametrize("name", SPARSIFY_DAMAGES)
def test_a_sparsify_dictionary_that_cannot_be_read_is_refused(llama: Runtime, tmp_path: Path, name: str) -> None:
    config, hint = SPARSIFY_DAMAGES[name]
    with pytest.raises(DictionarySourceError, match=hint):
        load(llama, sparsify_folder(tmp_path, **config))


@pytest.mark.parametrize("size", [{"d_in": 0}, {"d_in": -48, "num_latents": -96}, {"expansion_factor": 0}])
def test_a_size_below_one_allocates_nothing(llama: Runtime, tmp_path: Path, size: dict[str, Any]) -> None:
    with pytest.raises(DictionarySourceError, match="must be 1 or more"):
        load(llama, sparsify_folder(tmp_path, **size))


def test_a_few_bytes_that_promise_gigabytes_are_refused(llama: Runtime, tmp_path: Path) -> None:
    folder = sparsify_folder(tmp_path, num_latents=600_000_000, d_in=0)
    save_file({"W_enc": torch.zeros(0, 10**9), "W_dec": torch.zeros(0, 0)}, folder / "sae.safetensors")
    with pytest.raises(DictionarySourceError, match="is empty"):
        load(llama, folder)


# dictionary_learning


def learning_folder(root: Path, kind: str, **trainer: object) -> Path:
    """Write what dictionary_learning writes, its pickle converted and left beside the result."""
    folder = root / "run" / "trainer_0"
    folder.mkdir(parents=True)
    described = {
        "dict_class": kind,
        "activation_dim": D_MODEL,
        "dict_size": D_SAE,
        "layer": 0,
        "lm_name": "org/tiny",
        "k": 8,
        **trainer,
    }
    config = {"trainer": described, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    columns, rows = random(D_MODEL, D_SAE, seed=2), random(D_SAE, D_MODEL, seed=3)
    linear = {"encoder.weight": columns.T, "decoder.weight": rows.T}
    biases = {"encoder.bias": random(D_SAE, seed=4)}
    tensors = {
        "AutoEncoder": linear | biases | {"bias": random(D_MODEL, seed=5)},
        "GatedAutoEncoder": linear
        | {"decoder_bias": random(D_MODEL, seed=5), "r_mag": random(D_SAE, seed=6)}
        | {"mag_bias": random(D_SAE, seed=7), "gate_bias": random(D_SAE, seed=8)},
        "AutoEncoderTopK": linear | biases | {"b_dec": random(D_MODEL, seed=5), "k": torch.tensor(8)},
        "BatchTopKSAE": linear | biases | {"b_dec": random(D_MODEL, seed=5), "threshold": torch.tensor(0.5)},
        "JumpReluAutoEncoder": {
            "W_enc": columns,
            "W_dec": rows,
            "b_enc": random(D_SAE, seed=4),
            "b_dec": random(D_MODEL, seed=5),
            "threshold": random(D_SAE, seed=6).abs(),
        },
    }.get(kind, linear)
    torch.save(tensors, folder / "ae.pt")
    return folder


def convert(folder: Path) -> None:
    """Do what the refusal of a pickle says."""
    tensors = torch.load(folder / "ae.pt", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "ae.safetensors")


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Have SAELens' hub loaders find their files in a folder."""

    def use(root: Path) -> None:
        def local_file(repo_id: str, filename: str, **_: object) -> str:
            return str(root / repo_id / filename)

        monkeypatch.setattr(theirs, "hf_hub_download", local_file)

    return use


@pytest.mark.parametrize(
    "kind", ["AutoEncoder", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder"]
)
def test_a_dictionary_learning_dictionary_equals_saelens_own_converter(
    llama: Runtime, tmp_path: Path, local_hub: Callable[[Path], None], kind: str
) -> None:
    folder = learning_folder(tmp_path, kind)
    with pytest.raises(DictionarySourceError, match="save_file"):
        load(llama, folder)
    convert(folder)
    local_hub(tmp_path)

    def converter(path: Path, device: str, cfg_overrides: dict[str, Any] | None) -> Any:  # noqa: ANN401 SAELens' own
        read = theirs.dictionary_learning_sae_huggingface_loader_1
        return read("run", path.name, device, cfg_overrides=cfg_overrides)[:2]

    assert_same(load(llama, folder), SAE.load_from_disk(folder, dtype="float32", converter=converter))


def test_where_it_reads_is_told_by_its_submodule(llama: Runtime, tmp_path: Path) -> None:
    folder = learning_folder(tmp_path, "AutoEncoder", submodule_name="mlp_out_layer_1")
    convert(folder)
    assert load(llama, folder).hook_name == "blocks.1.hook_mlp_out"


@pytest.mark.parametrize(
    ("kind", "trainer", "hint"),
    [
        ("CrossCoder", {}, "CrossCoder"),
        ("AutoEncoder", {"submodule_name": "embeddings"}, "submodule_name"),
        ("AutoEncoder", {"activation_dim": "48"}, "d_in"),
        ("AutoEncoder", {"dict_size": 0}, "dict_size is 0; it must be 1 or more"),
        ("BatchTopKSAE", {"dict_size": 10**9}, "dict_size 1000000000 does not fit the encoder"),
        ("AutoEncoder", {"lm_name": 5}, "model_name"),
        ("AutoEncoder", {"lm_name": "org/other"}, "org/other"),
        ("AutoEncoderTopK", {"k": -1}, "as k"),
    ],
)
def test_a_dictionary_learning_dictionary_that_cannot_be_used_is_refused(
    llama: Runtime, tmp_path: Path, kind: str, trainer: dict[str, Any], hint: str
) -> None:
    folder = learning_folder(tmp_path, kind, **trainer)
    convert(folder)
    with pytest.raises(DictionarySourceError, match=hint):
        load(llama, folder)


# What serves is what was read


def test_what_happens_to_the_files_later_changes_nothing(llama: Runtime, tmp_path: Path) -> None:
    folder = tiny_sae_folder(tmp_path / "saved" / "standard")
    ours = load(llama, folder)
    before = ours.encode(inputs())
    weights = folder / "sae_weights.safetensors"
    with weights.open("r+b") as file:  # in place, as a copy over it would
        file.seek(1000)
        file.write(b"\xff" * 4000)
    assert torch.equal(ours.encode(inputs()), before)
    os.truncate(weights, 0)  # a mapped file would now kill this process
    assert torch.equal(ours.encode(inputs()), before)
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_memory_that_is_not_there_is_told_before_anything_is_read(
    llama: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_sae_folder(tmp_path / "saved" / "standard")
    monkeypatch.setattr("steerserve.dictionaries.weights.free_bytes", lambda _: 1000)
    with pytest.raises(DictionarySourceError, match="are free"):
        load(llama, folder)


# The model it was made for


@pytest.mark.parametrize(
    "name", ["tiny", "Tiny", "org/TINY", "/home/somebody/tiny/", "tiny.Q4_1.gguf", "tiny-GGUF", ""]
)
def test_a_name_is_known_in_each_of_its_spellings(llama: Runtime, tmp_path: Path, name: str) -> None:
    assert load(llama, tiny_sae_folder(tmp_path / "saved" / "x", model_name=name)).warnings == ()


@pytest.mark.parametrize("name", ["tiny-it", "mytiny", "org/other", "tiny/other"])
def test_another_name_is_refused_unless_it_is_forced(llama: Runtime, tmp_path: Path, name: str) -> None:
    folder = tiny_sae_folder(tmp_path / "saved" / "x", model_name=name)
    with pytest.raises(DictionarySourceError, match="force"):
        load(llama, folder)
    [warning] = load(llama, folder, force=True).warnings
    assert warning == f"The dictionary 'res' was made for the model {name!r}, and this server serves 'llama'."


def test_the_names_of_transformer_lens_are_known() -> None:
    from steerserve.model.lens import official_name

    assert official_name("gpt2-small").rpartition("/")[2] == "gpt2"
    assert official_name("Pythia-70M") == "EleutherAI/pythia-70m"
    assert official_name("somebody/else") == "somebody/else"


def test_what_a_processed_model_was_trained_on_is_told(llama: Runtime, tmp_path: Path) -> None:
    folder = tiny_sae_folder(tmp_path / "saved" / "x")
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    [warning] = load(llama, folder).warnings
    assert "center_writing_weights" in warning
