"""Loading dictionaries: what does not fit or is damaged is refused and named."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steerserve.core.errors import DictionarySourceError, InvalidRequestError
from steerserve.dictionaries.loader import DictionaryLoader
from steerserve.dictionaries.registry import DictionaryRegistry
from tests.tiny import HOOK_NAME, tiny_sae_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.runtime import Runtime

NORMS = (10.0, 12.0)


@pytest.fixture
def folder(dictionary_folders: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of a dictionary's folder, to be damaged."""
    return shutil.copytree(dictionary_folders["standard"], tmp_path / "copy")


def load(runtime: Runtime, source: str, *allowed: Path) -> Dictionary:
    norms = dict.fromkeys(runtime.lens.hook_names, NORMS)
    return DictionaryLoader(runtime.lens, ("org/Tiny",), norms, allowed, max_bytes=1 << 20).load("res", source)


def test_a_dictionary_says_what_it_is(llama: Runtime, folder: Path) -> None:
    dictionary = load(llama, f"path:{folder}", folder.parent)
    described = dictionary.as_json()
    assert (dictionary.hook_name, dictionary.d_in, dictionary.d_sae, dictionary.architecture) == (
        HOOK_NAME,
        48,
        96,
        "standard",
    )
    assert dictionary.sha256 == hashlib.sha256((folder / "sae_weights.safetensors").read_bytes()).hexdigest()
    assert described["statistics"] == {"median_norm": NORMS[0], "mean_norm": NORMS[1]}
    assert described["dtype"] == "float32"
    assert described["report"] is None
    json.dumps(described)


def test_norms_recorded_in_training_are_taken_over_measured_ones(llama: Runtime, folder: Path) -> None:
    change_config(folder, lambda config: config["metadata"].update(steerserve={"median_norm": 3.0, "mean_norm": 4.0}))
    dictionary = load(llama, f"path:{folder}", folder)
    assert (dictionary.median_norm, dictionary.mean_norm) == (3.0, 4.0)


def test_half_precision_weights_are_used_in_float32(llama: Runtime, folder: Path) -> None:
    change_weights(folder, lambda weights: {name: tensor.half() for name, tensor in weights.items()})
    dictionary = load(llama, f"path:{folder}", folder)
    assert dictionary.stored_dtype == "float16"
    assert dictionary.sae.W_dec.dtype is torch.float32


def test_its_report_comes_with_it(llama: Runtime, folder: Path) -> None:
    (folder / "report.json").write_text('{"l0": 8.5}', encoding="utf-8")
    assert load(llama, f"path:{folder}", folder).as_json()["report"] == {"l0": 8.5}


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    change(config)
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "sae_weights.safetensors"
    save_file(change(load_file(path)), path)


def poison(name: str, value: float) -> Callable[[Path], None]:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[name].view(-1)[0] = value
        return weights

    return lambda folder: change_weights(folder, change)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no-config": (lambda f: (f / "cfg.json").unlink(), r"cfg\.json"),
    "no-weights": (
        lambda f: (f / "sae_weights.safetensors").unlink(),
        r"needs cfg\.json with sae_weights\.safetensors",
    ),
    "config-no-json": (lambda f: (f / "cfg.json").write_text("{", encoding="utf-8"), "JSON"),
    "config-no-object": (lambda f: (f / "cfg.json").write_text("[]", encoding="utf-8"), "object"),
    "config-no-text": (lambda f: (f / "cfg.json").write_bytes(b"\xff\xfe\x00"), "JSON"),
    "report-no-json": (lambda f: (f / "report.json").write_text("x", encoding="utf-8"), r"report\.json"),
    "weights-empty": (lambda f: (f / "sae_weights.safetensors").write_bytes(b""), "is damaged"),
    "weights-cut": (
        lambda f: (f / "sae_weights.safetensors").write_bytes((f / "sae_weights.safetensors").read_bytes()[:5000]),
        "is damaged",
    ),
    "weights-pickled": (lambda f: (f / "sae_weights.safetensors").write_bytes(b"\x80\x04."), "damaged"),
    "weights-of-something-else": (lambda f: change_weights(f, lambda _: {"a": torch.zeros(2)}), "W_dec"),
    "a-tensor-missing": (
        lambda f: change_weights(f, lambda w: {name: w[name] for name in w if name != "b_enc"}),
        "has no tensor b_enc",
    ),
    "a-tensor-misshapen": (
        lambda f: change_weights(f, lambda w: w | {"b_enc": torch.zeros(5)}),
        r"b_enc of shape \[5\], but .* need shape \[96\]",
    ),
    "nan-decoder": (poison("W_dec", math.nan), "not finite"),
    "infinite-encoder": (poison("W_enc", math.inf), "not finite"),
    "nan-decoder-bias": (poison("b_dec", math.nan), "not finite"),
    "nan-encoder-bias": (poison("b_enc", math.nan), "not finite"),
    "unknown-architecture": (lambda f: change_config(f, lambda c: c.update(architecture="nonsense")), "not supported"),
    "unknown-hook": (
        lambda f: change_config(f, lambda c: c["metadata"].update(hook_name="blocks.9.hook_resid_post")),
        "hook point",
    ),
    "no-hook": (lambda f: change_config(f, lambda c: c["metadata"].pop("hook_name")), "hook point"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_dictionary_is_refused(llama: Runtime, folder: Path, name: str) -> None:
    damage, hint = DAMAGES[name]
    damage(folder)
    with pytest.raises(DictionarySourceError, match=hint) as caught:
        load(llama, f"path:{folder}", folder.parent)
    assert "\n" not in caught.value.message


def test_a_dictionary_of_another_width_is_refused(llama: Runtime, tmp_path: Path) -> None:
    other = tiny_sae_folder(tmp_path / "wide", d_in=64)
    with pytest.raises(DictionarySourceError, match="64") as caught:
        load(llama, f"path:{other}", tmp_path)
    assert "48" in caught.value.message


@pytest.mark.parametrize("source", ["", "x", "file:/tmp/x", "hf:someone/something", "PATH:/x", "bundled", "path"])
def test_a_source_of_no_known_kind_is_refused(llama: Runtime, source: str) -> None:
    with pytest.raises(DictionarySourceError):
        load(llama, source)


@pytest.mark.parametrize("name", ["", "nothing", "../sources.py", "..", "/etc", "../../../../../../etc"])
def test_a_bundled_name_never_leaves_the_package(llama: Runtime, name: str) -> None:
    with pytest.raises(DictionarySourceError, match="Bundled are"):
        load(llama, f"bundled:{name}")


def test_a_path_outside_the_configured_folders_is_refused(llama: Runtime, folder: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(folder)
    for source in (folder, inside / ".." / "copy", inside / "link", tmp_path / "inside-too"):
        with pytest.raises(DictionarySourceError, match="outside the configured folders"):
            load(llama, f"path:{source}", inside)
    with pytest.raises(DictionarySourceError, match="outside"):
        load(llama, f"path:{folder}")


# The registry


def test_the_first_dictionary_is_the_default_and_stays_it(llama: Runtime, folder: Path) -> None:
    dictionary = load(llama, f"path:{folder}", folder)
    registry = DictionaryRegistry()
    assert registry.snapshot().default is None
    for name in ("one", "two", "one"):
        registry.add(_named(dictionary, name))
    snapshot = registry.snapshot()
    assert list(snapshot.dictionaries) == ["one", "two"]
    assert snapshot.default is snapshot.dictionaries["one"]
    assert [entry.is_default for entry in snapshot.dictionaries.values()] == [True, False]


def test_a_snapshot_never_changes(llama: Runtime, folder: Path) -> None:
    dictionary = load(llama, f"path:{folder}", folder)
    registry = DictionaryRegistry()
    before = registry.snapshot()
    registry.add(_named(dictionary, "one"))
    assert dict(before.dictionaries) == {}
    with pytest.raises(TypeError):
        registry.snapshot().dictionaries["two"] = dictionary  # type: ignore[index]


def test_an_unknown_dictionary_is_told_the_nearest_name(llama: Runtime) -> None:
    with pytest.raises(InvalidRequestError, match="Did you mean 'jumprelu'") as caught:
        llama.registry.snapshot().find("jumprelo", "steering.edits[0].dictionary")
    assert caught.value.param == "steering.edits[0].dictionary"


def test_without_any_dictionary_a_feature_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="No dictionary"):
        DictionaryRegistry().snapshot().find(None, "param")


def _named(dictionary: Dictionary, name: str) -> Dictionary:
    from dataclasses import replace

    return replace(dictionary, id=name)
