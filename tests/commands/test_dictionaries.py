"""`steerserve dictionaries`: what is printed, and what is refused in one line with exit code 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

from steerserve.cli import main
from tests.tiny import tiny_sae_folder

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = "sae_weights.safetensors"


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run `steerserve dictionaries ...` with folders of its own; gives exit code, stdout and stderr."""
    monkeypatch.setenv("STEERSERVE_DICTIONARY_DIRS", str(tmp_path / "dictionaries"))
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # `main` sets it, and it must not leak into other tests

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["steerserve", "dictionaries", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a dictionary outside the configured folders, which whoever types its name can read."""
    folder = tiny_sae_folder(tmp_path / "elsewhere" / "my dictionary")
    (folder / "report.json").write_text('{"l0": 8.5, "ce_recovered": 0.98765, "notes": "x"}', encoding="utf-8")
    return folder


def test_show_prints_what_it_is(command: Callable[..., tuple[int, str, str]], folder: Path) -> None:
    code, out, _ = command("show", f"path:{folder}")
    assert code == 0
    for line in ("blocks.0.hook_resid_post", "standard", "96", "float32", "tiny", "0.9877", "8.5"):
        assert any(shown.endswith(f" {line}") for shown in out.splitlines()), line


def test_pull_writes_a_folder_that_serves_the_same_contents(
    command: Callable[..., tuple[int, str, str]], folder: Path, tmp_path: Path
) -> None:
    code, out, _ = command("pull", f"path:{folder}")
    target = tmp_path / "dictionaries" / "my-dictionary"
    assert code == 0
    assert out.splitlines()[-1].endswith(f"steerserve serve --model tiny --dictionary my-dictionary=path:{target}")
    assert (target / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert json.loads((target / "report.json").read_text(encoding="utf-8"))["l0"] == 8.5
    assert command("check", f"path:{target}")[0] == 0
    assert "my-dictionary" in command("list")[1]
    code, _, err = command("pull", f"path:{folder}")
    assert (code, err) == (2, f"steerserve: {target} exists already. Remove it, or give another folder with --out.\n")


def test_the_list_leaves_out_what_is_no_dictionary_and_says_what_is_broken(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    root = tmp_path / "dictionaries"
    for name in ("sound", "odd", "listed", "sound/run/checkpoints/9/one", ".jobs/x", "sound/.export"):
        (root / name).mkdir(parents=True)
        (root / name / "cfg.json").write_text('{"architecture": "topk", "d_sae": 7}', encoding="utf-8")
    (root / "odd" / "cfg.json").write_text('{"architecture": ', encoding="utf-8")
    (root / "listed" / "cfg.json").write_text('{"metadata": ["x"], "architecture": ["[/]"]}', encoding="utf-8")
    code, out, _ = command("list")
    assert code == 0
    listed = [line.split() for line in out.splitlines() if str(root) in line]
    assert [Path(row[0]).name for row in listed] == ["listed", "odd", "sound"]
    assert "cannot be read" in " ".join(listed[1])
    assert listed[2][1:3] == ["topk", "7"]


def test_pull_brings_other_layouts_into_saelens_own(
    command: Callable[..., tuple[int, str, str]], folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / WEIGHTS)
    sparsify = tmp_path / "elsewhere" / "layers.0"
    sparsify.mkdir()
    config = {"d_in": 48, "num_latents": 96, "k": 8}
    (sparsify / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    renamed = {"encoder.weight": tensors["W_enc"].T, "encoder.bias": tensors["b_enc"], "W_dec": tensors["W_dec"]}
    save_file({name: tensor.half().contiguous() for name, tensor in renamed.items()}, sparsify / "sae.safetensors")
    code, out, _ = command("pull", f"path:{sparsify}", "--out", str(tmp_path / "plain"))
    assert code == 0
    assert "--model" not in out
    written = load_file(tmp_path / "plain" / WEIGHTS)
    assert written["W_enc"].equal(tensors["W_enc"].half())
    described = json.loads((tmp_path / "plain" / "cfg.json").read_text(encoding="utf-8"))
    assert (described["architecture"], described["k"], described["dtype"]) == ("topk", 8, "float16")
    assert described["metadata"]["hook_name"] == "blocks.0.hook_resid_post"
    assert command("check", f"path:{tmp_path / 'plain'}")[0] == 0


def test_what_cannot_be_served_is_not_pulled(
    command: Callable[..., tuple[int, str, str]], folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["W_dec"][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    code, _, err = command("pull", f"path:{folder}")
    assert code == 2
    assert "not finite" in err
    assert not (tmp_path / "dictionaries").exists()


def test_check_says_whether_it_fits_a_model(
    command: Callable[..., tuple[int, str, str]], folder: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    model = str(model_folders["llama"])
    assert command("check", f"path:{folder}")[:2] == (
        0,
        f"path:{folder} is sound. (Give --model to check it against a model.)\n",
    )
    assert command("check", f"path:{folder}", "--model", model)[:2] == (
        0,
        f"path:{folder} is sound and fits llama at blocks.0.hook_resid_post.\n",
    )
    other = shutil.copytree(folder, tmp_path / "other")
    text = (other / "cfg.json").read_text(encoding="utf-8").replace('"tiny"', '"somebody/else"')
    (other / "cfg.json").write_text(text, encoding="utf-8")
    code, _, err = command("check", f"path:{other}", "--model", model)
    assert code == 2
    assert "was made for the model 'somebody/else'" in err
    code, out, _ = command("check", f"path:{other}", "--model", model, "--force")
    assert code == 0
    assert "But it was made for the model 'somebody/else'" in out


@pytest.mark.parametrize("name", ["show", "check", "pull"])
def test_a_source_that_is_none_is_one_line_and_exit_code_2(
    command: Callable[..., tuple[int, str, str]], name: str
) -> None:
    code, out, err = command(name, "nothing")
    assert (code, out) == (2, "")
    assert err.startswith("steerserve: The dictionary source 'nothing' must be bundled:MODEL/NAME")
    assert err.count("\n") == 1
