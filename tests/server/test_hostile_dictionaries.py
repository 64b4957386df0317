"""Corrupt and hostile dictionaries, loaded into a running app: each is refused in a sentence and changes nothing."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from tests.server.asking import CHAT, chat, client_of
from tests.tiny import D_MODEL, tiny_sae_folder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

ADMIN = "/admin/dictionaries"
WEIGHTS, CONFIG, REPORT = "sae_weights.safetensors", "cfg.json", "report.json"
STEERED = chat(steering=[{"feature": 3, "scale": 8.0}], max_tokens=12)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Serve a dictionary that must be the same after each test, next to room for others."""
    folder = tmp_path_factory.mktemp("hostile")
    tiny_sae_folder(folder / "outside")
    with build_runtime(tiny_settings(folder, engine={"threads": 1})) as started:
        yield started


@pytest.fixture
def allowed(served: Runtime) -> Path:
    """Return the folder that `path:` may name."""
    return served.settings.dictionary_dirs[0]


@pytest.fixture
def bad(allowed: Path) -> Iterator[Path]:
    """Return a sound dictionary in the allowed folder, to be damaged."""
    folder = shutil.copytree(allowed / "res0", allowed / "bad")
    yield folder
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


async def generated(client: httpx.AsyncClient) -> tuple[str, str]:
    """Return what the loaded dictionary makes of a request, and its sha256."""
    answer = (await client.post(CHAT, json=STEERED)).json()
    return answer["choices"][0]["message"]["content"], answer["steering"]["edits"][0]["sha256"]


async def assert_refused(served: Runtime, body: dict[str, Any], param: str = "source") -> str:
    """Load what cannot be loaded; return the message."""
    client = client_of(create_app(served))
    before = await generated(client), served.dictionaries()
    response = await client.post(ADMIN, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"]
    assert error["message"][-1] in "?.\"')"
    assert "\n" not in error["message"]
    assert (await generated(client), served.dictionaries()) == before
    return str(error["message"])


def change_config(**changed: object) -> Callable[[Path], None]:
    """Set values of the configuration."""

    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps(config | changed), encoding="utf-8")

    return change


def change_metadata(**changed: object) -> Callable[[Path], None]:
    """Set values of the configuration's metadata."""

    def change(folder: Path) -> None:
        metadata = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["metadata"]
        change_config(metadata=metadata | changed)(folder)

    return change


def change_tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Write other tensors."""

    def apply(folder: Path) -> None:
        changed = {name: tensor.contiguous() for name, tensor in change(load_file(folder / WEIGHTS)).items()}
        save_file(changed, folder / WEIGHTS)

    return apply


def poison(name: str, value: float, dtype: torch.dtype = torch.float32) -> Callable[[Path], None]:
    """Put one value into a tensor."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[-1] = value
        return tensors

    return change_tensors(change)


def change_header(change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    """Write another header before the same data."""

    def apply(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        end = 8 + struct.unpack("<Q", content[:8])[0]
        changed = change(content[8:end].decode())
        header = changed.encode() if isinstance(changed, str) else changed
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + content[end:])

    return apply


def change_entry(name: str, **changed: object) -> Callable[[Path], None]:
    """Describe a tensor in another way."""

    def change(header: str) -> str:
        entries = json.loads(header)
        return json.dumps(entries | {name: entries[name] | changed})

    return change_header(change)


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Write another file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def write(name: str, content: bytes) -> Callable[[Path], object]:
    """Write a file, whatever was there."""
    return lambda folder: (folder / name).write_bytes(content)


def replace_file(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Replace a file by something else."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


def keep_only(name: str) -> Callable[[Path], None]:
    """Leave nothing but one file with some bytes."""

    def apply(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        (folder / name).write_bytes(b"\x80\x04.")

    return apply


def make_file(folder: Path) -> None:
    """Replace the folder by a file."""
    shutil.rmtree(folder)
    folder.write_text("x", encoding="utf-8")


class Exploding:
    """Something that would act when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


def write_huge(path: Path) -> None:
    """Write a file of forty gigabytes without filling a disk."""
    header = json.dumps({"W_dec": {"dtype": "F32", "shape": [10**6, 10**4], "data_offsets": [0, 4 * 10**10]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 4 * 10**10)


def damage_topk(**changed: object) -> Callable[[Path], None]:
    """Make it a TopK dictionary, with some values changed."""

    def apply(folder: Path) -> None:
        shutil.rmtree(folder)
        change_config(**changed)(tiny_sae_folder(folder, "topk"))

    return apply


def remake(**changed: Any) -> Callable[[Path], None]:  # noqa: ANN401 any of tiny_sae_folder
    """Make another dictionary."""

    def apply(folder: Path) -> None:
        shutil.rmtree(folder)
        tiny_sae_folder(folder, **changed)

    return apply


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    # The weights' file
    "cut": (change_bytes(WEIGHTS, lambda content: content[: len(content) // 2]), "is damaged"),
    "cut by a byte": (change_bytes(WEIGHTS, lambda content: content[:-1]), "is damaged"),
    "longer than its tensors": (change_bytes(WEIGHTS, lambda content: content + b"\0"), "is damaged"),
    "empty": (write(WEIGHTS, b""), "safetensors"),
    "a few bytes": (write(WEIGHTS, b"\0" * 5), "safetensors"),
    "huge header": (change_bytes(WEIGHTS, lambda content: b"\xff" * 8 + content[8:]), "safetensors"),
    "header beyond the file": (write(WEIGHTS, struct.pack("<Q", 1000) + b"{}"), "safetensors"),
    "header no JSON": (change_header(lambda header: header.rstrip()[:-1]), "header is not JSON"),
    "header no text": (change_header(lambda _: b"\xff\xfe"), "header is not JSON"),
    "header a list": (change_header(lambda _: "[]"), "not a JSON object"),
    "header nested": (change_header(lambda _: "[" * 100_000), "header is not JSON"),
    "header of nothing": (change_header(lambda _: "{}"), "0 bytes"),
    "header of numbers": (change_header(lambda _: '{"W_dec": 5}'), "known type and shape"),
    "tensor twice": (change_header(lambda header: header.replace('"b_enc"', '"b_dec"')), "duplicate"),
    "more data than there is": (change_header(lambda header: header.replace("[96]", "[9600000]")), "misplaces"),
    "unknown type": (change_header(lambda header: header.replace("F32", "F31")), "known type and shape"),
    "negative shape": (change_header(lambda header: header.replace("[96]", "[-96]")), "known type and shape"),
    "absurd shape": (change_header(lambda header: header.replace("[96]", f"[{10**30}]")), "known type and shape"),
    "wrong offsets": (
        change_header(lambda header: header.replace('"data_offsets":[0,', '"data_offsets":[4,')),
        "is damaged",
    ),
    "tensors over each other": (change_entry("b_enc", data_offsets=[0, 384]), "misplaces"),
    "offsets backwards": (change_entry("b_enc", data_offsets=[384, 0]), "misplaces"),
    "offsets of three": (change_entry("b_enc", data_offsets=[0, 384, 384]), "known type and shape"),
    "no offsets": (change_entry("b_enc", data_offsets=None), "known type and shape"),
    "many dimensions": (change_entry("b_enc", shape=[1] * 1000 + [96]), "known type and shape"),
    "pickle by another name": (write(WEIGHTS, pickle.dumps(Exploding())), "pickles are never loaded"),
    "pickled tensors": (replace_file(WEIGHTS, lambda path: torch.save({"W_dec": torch.ones(2)}, path)), "never loaded"),
    "named pipe": (replace_file(WEIGHTS, os.mkfifo), "not a regular file"),
    "folder as weights": (replace_file(WEIGHTS, os.mkdir), "not a regular file"),
    "too large": (replace_file(WEIGHTS, write_huge), "max_dictionary_bytes"),
    # Which files exist
    "ae.pt alone": (keep_only("ae.pt"), "save_file"),
    "another pickle alone": (keep_only("sae.pth"), "never loaded"),
    "nothing of a dictionary": (keep_only("readme.txt"), "holds no dictionary"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "no cfg.json"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds no dictionary"),
    "no folder": (shutil.rmtree, "is not a folder"),
    "file as folder": (make_file, "is not a folder"),
    # The configuration
    "config no JSON": (write(CONFIG, b"{"), "as JSON"),
    "config no text": (write(CONFIG, b"\xff\xfe\x00"), "as JSON"),
    "config a list": (write(CONFIG, b"[]"), "JSON object"),
    "config nested": (write(CONFIG, b"[" * 500_000), "as JSON"),
    "config too large": (write(CONFIG, b" " * (1 << 20) + b"{}"), "1048576"),
    "config with NaN": (write(CONFIG, b'{"d_in": NaN}'), "as JSON"),
    "config with infinity": (change_bytes(CONFIG, lambda c: c.replace(b'"d_in": 48', b'"d_in": 1e999')), "not finite"),
    "config key twice": (
        change_bytes(CONFIG, lambda c: c.replace(b'"d_in": 48', b'"d_in": 48, "d_in": 48')),
        "uplicate",
    ),
    "config a pipe": (replace_file(CONFIG, os.mkfifo), "not a regular file"),
    "config a folder": (replace_file(CONFIG, os.mkdir), "not a regular file"),
    "config unreadable": (replace_file(CONFIG, lambda path: path.symlink_to(path)), "cfg.json"),
    "report a list": (write(REPORT, b"[]"), "JSON object"),
    "report not finite": (write(REPORT, b'{"l0": [1e999]}'), "not finite"),
    "unknown architecture": (change_config(architecture="nonsense"), "Supported are"),
    "architecture a list": (change_config(architecture=["standard"]), "Supported are"),
    "transcoder": (change_config(architecture="transcoder", d_out=48), "that it writes"),
    "of a far future": (change_metadata(sae_lens_version="x"), "SAELens"),
    "d_sae 0": (change_config(d_sae=0), "d_sae"),
    "d_sae negative": (change_config(d_sae=-96), "d_sae"),
    "d_sae vast": (change_config(d_sae=10**12), "d_sae"),
    "d_sae large": (change_config(d_sae=10**9), "has W_dec"),
    "d_sae a string": (change_config(d_sae="96"), "d_sae"),
    "d_sae true": (change_config(d_sae=True), "d_sae"),
    "d_in missing": (change_config(d_in=None), "d_in"),
    "d_in another": (change_config(d_in=47), "but its d_in 47"),
    "normalised unheard of": (change_config(normalize_activations="nonsense"), "normalize_activations"),
    "normalised by what is lost": (change_config(normalize_activations="expected_average_only_in"), "not folded"),
    "subtracts a string": (change_config(apply_b_dec_to_input="x"), "true or false"),
    "k 0": (damage_topk(k=0), "as k"),
    "k over d_sae": (damage_topk(k=97), "as k"),
    "k a string": (damage_topk(k="8"), "as k"),
    "rescaled perhaps": (damage_topk(rescale_acts_by_decoder_norm=2), "true or false"),
    "metadata a list": (change_config(metadata=[]), "dictionary source"),
    "metadata a number": (change_config(metadata=5), "dictionary source"),
    "metadata that replaces code": (change_metadata(to_dict=5), "to_dict"),
    "metadata of dunders": (change_metadata(__class__="x"), "__class__"),
    "no hook point": (change_metadata(hook_name=None), "hook point"),
    "wrong hook point": (change_metadata(hook_name="blocks.9.hook_resid_post"), "It offers"),
    "hook point a list": (change_metadata(hook_name=["blocks.0.hook_resid_post"]), "hook_name"),
    "hook point of another width": (remake(d_in=64), f"have width {D_MODEL}"),
    "another model's": (change_metadata(model_name="google/gemma-2-2b"), "force"),
    "model a number": (change_metadata(model_name=5), "model_name"),
    "norms negative": (change_metadata(steerserve={"median_norm": -1}), "positive norms"),
    "norms true": (change_metadata(steerserve={"mean_norm": True}), "positive norms"),
    "norms vast": (change_metadata(steerserve={"mean_norm": 10**400}), "positive norms"),
    # The tensors
    "NaN in the decoder": (poison("W_dec", math.nan), "W_dec"),
    "infinite encoder": (poison("W_enc", -math.inf), "W_enc"),
    "NaN in a bias": (poison("b_dec", math.nan), "b_dec"),
    "beyond float32": (poison("b_enc", 1e300, torch.float64), "b_enc"),
    "overflows when used": (change_tensors(lambda t: t | {"W_enc": torch.full_like(t["W_enc"], 3e38)}), "finite"),
    "transposed": (change_tensors(lambda t: t | {"W_dec": t["W_dec"].T}), "W_dec of shape"),
    "a bias too short": (change_tensors(lambda t: t | {"b_enc": torch.zeros(5)}), "b_enc of shape"),
    "no decoder": (change_tensors(lambda t: {name: t[name] for name in t if name != "W_dec"}), "no tensor W_dec"),
    "one too many": (change_tensors(lambda t: t | {"threshold": torch.zeros(96)}), "threshold"),
    "whole numbers": (change_tensors(lambda t: t | {"W_dec": t["W_dec"].int()}), "floating-point"),
    "of something else": (change_tensors(lambda _: {"lm_head": torch.zeros(2)}), "no tensor W_dec"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
async def test_a_damaged_dictionary_is_refused_and_changes_nothing(served: Runtime, bad: Path, name: str) -> None:
    damage, hint = DAMAGES[name]
    damage(bad)
    assert hint in await assert_refused(served, {"id": "bad", "source": f"path:{bad}"})
    assert not (bad / "unpickled").exists()


@pytest.mark.parametrize("name", ["cut", "NaN in the decoder", "another model's"])
async def test_a_bad_replacement_leaves_what_it_would_have_replaced(served: Runtime, bad: Path, name: str) -> None:
    DAMAGES[name][0](bad)
    await assert_refused(served, {"id": "res0", "source": f"path:{bad}"})


def link(name: str, target: str) -> Callable[[Path, Path], None]:
    """Replace a file by a link."""

    def apply(folder: Path, outside: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / target)

    return apply


def link_folder(folder: Path, outside: Path) -> None:
    """Replace the folder by a link."""
    shutil.rmtree(folder)
    folder.symlink_to(outside)


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "the folder": link_folder,
    "the weights": link(WEIGHTS, WEIGHTS),
    "the configuration": link(CONFIG, CONFIG),
    "the report": link(REPORT, CONFIG),
    "a device": link(WEIGHTS, "/dev/zero"),
}


@pytest.mark.parametrize("name", LINKS)
async def test_a_link_out_of_the_folders_is_not_followed(served: Runtime, allowed: Path, bad: Path, name: str) -> None:
    LINKS[name](bad, allowed.parent / "outside")
    assert "outside the configured folders" in await assert_refused(served, {"id": "bad", "source": f"path:{bad}"})


async def test_a_link_within_the_folders_is_followed(served: Runtime, allowed: Path, bad: Path) -> None:
    (bad / WEIGHTS).unlink()
    (bad / WEIGHTS).symlink_to(allowed / "res0" / WEIGHTS)
    client = client_of(create_app(served))
    assert (await client.post(ADMIN, json={"id": "linked", "source": f"path:{bad}"})).status_code == 201
    assert (await client.delete(f"{ADMIN}/linked")).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "path:{allowed}/../outside",
        "path:{allowed}/res0/../../outside",
        "path:/etc",
        "path:",
        "path:{allowed}/" + "x" * 300,
        "path:{allowed}/res0\0",
        "path:~nobody-at-all/x",
        "path:{allowed}",
        "bundled:../x",
        "bundled:",
        "bundled:/etc",
        "bundled:../bundled/smollm2-135m-instruct/res17",
        "file:/etc",
        "http://127.0.0.1/x",
        "res0",
        ":",
        "PATH:/x",
        "hf:",
        "hf:one",
        "hf:org/repo/../../x",
        "hf:org/repo//x",
        "hf:org/repo*/x",
        "hf:-org/re..po/x",
        "hf:https://example.com/org/repo",
        "sae_lens:",
        "sae_lens:release",
        "x" * 1025,
        "path:\n",
    ],
)
async def test_a_source_that_leads_nowhere_is_refused(served: Runtime, allowed: Path, source: str) -> None:
    await assert_refused(served, {"id": "bad", "source": source.replace("{allowed}", str(allowed))})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"source": "bundled:x"}, "id"),
        ({"id": "x"}, "source"),
        ({"id": None, "source": "x"}, "id"),
        ({"id": "a/b", "source": "x"}, "id"),
        ({"id": "../x", "source": "x"}, "id"),
        ({"id": "", "source": "x"}, "id"),
        ({"id": "x\n", "source": "x"}, "id"),
        ({"id": "x" * 65, "source": "x"}, "id"),
        ({"id": 5, "source": "x"}, "id"),
        ({"id": "x", "source": ""}, "source"),
        ({"id": "x", "source": ["x"]}, "source"),
        ({"id": "x", "source": "x", "force": "yes"}, "force"),
        ({"id": "x", "source": "x", "soruce": "y"}, "soruce"),
    ],
)
async def test_a_body_that_is_none_is_refused(served: Runtime, body: dict[str, Any], param: str) -> None:
    await assert_refused(served, body, param)


async def test_a_key_that_nobody_knows_is_told_the_nearest(served: Runtime) -> None:
    said = await assert_refused(served, {"id": "x", "source": "x", "forse": True}, "forse")
    assert "Did you mean 'force'?" in said
