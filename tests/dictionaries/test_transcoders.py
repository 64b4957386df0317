"""Transcoders read at one hook point and are edited at another; what does not fit that is refused in plain words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sae_lens import SAE

from steerserve.core.errors import DictionarySourceError, InvalidRequestError
from steerserve.dictionaries.loader import DictionaryLoader
from steerserve.dictionaries.releases import read_release
from steerserve.dictionaries.weights import SizeLimit
from steerserve.model.lens import load_lens
from steerserve.model.norms import measure_norms
from steerserve.model.source import ModelFiles
from steerserve.text.corpus import load_corpus
from steerserve.training.judge import judge
from tests.conformance.random_dictionaries import D_SAE, TRANSCODERS, write_random
from tests.conformance.splice import D_HEAD, NUM_HEADS, model_folder
from tests.tiny import D_MODEL
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel
    from steerserve.runtime import Runtime

D_IN = NUM_HEADS * D_HEAD
READS, WRITES = "blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> LensModel:
    """Load a Llama whose heads are wider than its stream."""
    folder = model_folder(tmp_path_factory.mktemp("wide"))
    return load_lens(ModelFiles("tiny", folder, str(folder)), device="cpu")


def load(lens: LensModel, folder: Path, *, force: bool = False) -> Dictionary:
    loader = DictionaryLoader(lens, ("tiny",), measure_norms(lens), (folder.parent,), max_bytes=1 << 20)
    return loader.load("code", f"path:{folder}", force=force)


def write(root: Path, architecture: str = "transcoder", reads: str = READS, **changed: Any) -> Path:  # noqa: ANN401
    usual: dict[str, Any] = {"d_in": D_IN if reads == READS else D_MODEL, "d_out": D_MODEL, "hook_name_out": WRITES}
    return write_random(root / "code", architecture, reads, **{**usual, **changed})


def inputs(width: int = D_IN) -> Tensor:
    return 2 * torch.randn(50, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("normalised", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_it_encodes_and_decodes_as_saelens_does(
    lens: LensModel, tmp_path: Path, architecture: str, normalised: str
) -> None:
    folder = write(tmp_path, architecture, normalize_activations=normalised)
    ours, theirs = load(lens, folder), SAE.load_from_disk(folder)
    acts = theirs.encode(inputs())
    assert int((acts != 0).sum()) > 100
    torch.testing.assert_close(ours.encode(inputs()), acts, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.decode(inputs(), acts), theirs(inputs()), atol=1e-5, rtol=0)
    # What an edit of a feature adds is its direction, whatever the input.
    more = acts.clone()
    more[:, 5] += 2.0
    added = ours.decode(inputs(), more) - ours.decode(inputs(), acts)
    gains = ours.gains(inputs(D_MODEL))
    torch.testing.assert_close(
        added, 2 * gains[:, None] * ours.directions(torch.tensor([5])).expand_as(added), atol=1e-4, rtol=0
    )
    assert ours.is_pointwise == (normalised == "none")


@torch.no_grad()
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_its_columns_read_what_it_encodes_and_write_at_the_other_width(
    lens: LensModel, tmp_path: Path, architecture: str
) -> None:
    dictionary = load(lens, write(tmp_path, architecture))
    columns = dictionary.columns(range(D_SAE))
    pre = inputs() @ columns.encoder.T
    acts = (pre * columns.gain + columns.bias).clamp(min=0) * (pre + columns.gate_bias > columns.threshold)
    torch.testing.assert_close(acts, dictionary.encode(inputs()), atol=1e-5, rtol=1e-5)
    assert columns.decoder.shape == (D_SAE, D_MODEL)
    assert dictionary.change_norm(5) == pytest.approx(float(dictionary.sae.W_dec[5].norm()))


def test_it_says_where_it_reads_and_where_it_is_edited(lens: LensModel, tmp_path: Path) -> None:
    dictionary = load(lens, write(tmp_path, "skip_transcoder"))
    assert (dictionary.read_hook_name, dictionary.hook_name, dictionary.hook_names) == (READS, WRITES, (READS, WRITES))
    shown = dictionary.as_json()
    assert (shown["hook_in"], shown["hook"]) == (READS, WRITES)
    assert (shown["d_in"], shown["d_out"]) == (D_IN, D_MODEL)
    # Sinks and the unit `norm` are recognised by the vectors that are edited.
    assert (dictionary.median_norm, dictionary.mean_norm) == measure_norms(lens)[WRITES]
    assert "hook_in" not in load(lens, write_random(tmp_path / "plain", "standard", WRITES, d_in=D_MODEL)).as_json()


def test_the_same_weights_read_elsewhere_are_other_contents(lens: LensModel, tmp_path: Path) -> None:
    one, other = (load(lens, write(tmp_path / str(layer), reads=f"blocks.{layer}.mlp.hook_in")) for layer in range(2))
    assert one.sha256 == other.sha256
    assert one.contents != other.contents


@pytest.mark.parametrize(
    ("reads", "recorded", "expected"),
    [
        ("hook_mlp_in", "model.layers.0.pre_feedforward_layernorm.output", "mlp.hook_in"),
        ("hook_mlp_in", None, "hook_mlp_in"),
        ("ln2.hook_normalized", None, "ln2.hook_normalized"),
        ("mlp.hook_in", None, "mlp.hook_in"),
    ],
)
def test_what_gemma_scope_calls_the_mlps_input_is_read_behind_the_norm(
    lens: LensModel, tmp_path: Path, reads: str, recorded: str | None, expected: str
) -> None:
    metadata = {"hf_hook_name": recorded} if recorded else {}
    dictionary = load(lens, write(tmp_path, reads=f"blocks.0.{reads}", metadata=metadata))
    assert dictionary.read_hook_name == f"blocks.0.{expected}"


def test_one_trained_on_folded_weights_carries_a_warning(lens: LensModel, tmp_path: Path) -> None:
    metadata = {"model_from_pretrained_kwargs": {"fold_ln": True}}
    with pytest.warns(UserWarning, match="model_from_pretrained_kwargs"):
        folders = [
            write(tmp_path / kind, reads=f"blocks.0.{kind}", metadata=metadata)
            for kind in ("mlp.hook_in", "ln2.hook_normalized")
        ]
    assert [len(load(lens, folder).warnings) for folder in folders] == [1, 0]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no hook point to write": ({"hook_name_out": None}, "does not name the hook point that it writes"),
    "read after it is written": ({"reads": READS, "hook_name_out": "blocks.0.hook_resid_pre"}, "only after"),
    "read where there is nothing": ({"reads": "blocks.7.mlp.hook_in"}, r"reads the hook point 'blocks.7.*It offers"),
    "written where one can only read": ({"hook_name_out": "blocks.1.mlp.hook_in"}, "writes the hook point"),
    "reads another width": ({"d_in": D_MODEL}, f"reads vectors of width {D_MODEL}.* at {READS} have width {D_IN}"),
    "writes another width": ({"d_out": D_IN}, f"writes vectors of width {D_IN}.* at {WRITES} have width {D_MODEL}"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_transcoder_that_does_not_fit_is_refused(lens: LensModel, tmp_path: Path, name: str) -> None:
    changed, hint = REFUSED[name]
    with pytest.raises(DictionarySourceError, match=hint):
        load(lens, write(tmp_path, **changed))


@pytest.mark.parametrize("d_out", [None, 0, "48", 1 << 40])
def test_a_transcoder_without_its_second_width_is_refused(lens: LensModel, tmp_path: Path, d_out: object) -> None:
    folder = write(tmp_path)
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    (folder / "cfg.json").write_text(json.dumps(config | {"d_out": d_out}), encoding="utf-8")
    with pytest.raises(DictionarySourceError, match="d_out"):
        load(lens, folder)


def test_what_is_no_transcoder_and_names_two_hook_points_is_refused(lens: LensModel, tmp_path: Path) -> None:
    folder = write_random(tmp_path / "one", "topk", "blocks.0.hook_mlp_out", d_in=D_MODEL, hook_name_out=WRITES)
    with pytest.raises(DictionarySourceError, match="is not a transcoder"):
        load(lens, folder)


def test_what_reads_where_nobody_may_edit_must_write_elsewhere(lens: LensModel, tmp_path: Path) -> None:
    folder = write_random(tmp_path / "one", "standard", "blocks.0.mlp.hook_in", d_in=D_MODEL)
    with pytest.raises(DictionarySourceError, match="does not offer"):
        load(lens, folder)


def test_a_client_cannot_edit_where_transcoders_read(llama: Runtime) -> None:
    for kind in ("mlp.hook_in", "ln2.hook_normalized", "hook_mlp_in"):
        vector = {"hook": f"blocks.0.{kind}", "values": [1.0] * D_MODEL}
        with pytest.raises(InvalidRequestError, match="has no hook point"):
            llama.resolve_steering([{"vector": vector, "scale": 1.0}])


@pytest.mark.slow
def test_a_layer_of_a_transcoder_across_layers_is_refused() -> None:
    name = "mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_0"
    with pytest.raises(DictionarySourceError, match="write at many hook points"):
        read_release(name, f"sae_lens:{name}", SizeLimit(1 << 30))


def test_what_it_keeps_of_the_model_is_not_judged(lens: LensModel, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"The bridge {number} is closed. " * 50, encoding="utf-8")
    dictionary = load(lens, write(tmp_path))
    with pytest.raises(DictionarySourceError, match="is a transcoder"):
        judge(
            lens,
            dictionary,
            load_corpus([str(tmp_path / "0.txt"), str(tmp_path / "1.txt")]),
            context_size=16,
            heldout_tokens=64,
            feature_tokens=64,
            observer=Quiet(),
        )
