"""What is built from the checkout, and from the files that the Dockerfile copies, has everything that it needs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import steerserve

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
PRESETS = """\
import steerserve.presets.library as library
from pathlib import Path
folder = library.bundled_folder()
assert Path(library.__file__).is_relative_to(Path.cwd()), library.__file__
print(*sorted(file.stem for file in folder.glob("*.yaml")))
"""


def run(code: str, *arguments: str, cwd: Path) -> str:
    """Run code with nothing of the checkout on its path; returns what it prints."""
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(cwd)!r})\n{code}", *arguments]
    done = subprocess.run(command, cwd=cwd, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_wheel(project: Path, folder: Path) -> Path:
    run(BUILD, str(folder), cwd=project)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_a_wheel_holds_everything_in_the_package_even_weights_that_an_ignore_rule_matches(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "steerserve", project / "steerserve", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    (project / ".gitignore").write_text("*.safetensors\n", encoding="utf-8")
    planted = project / "steerserve" / "dictionaries" / "bundled" / "tiny" / "planted"
    planted.mkdir(parents=True)
    for name in ("sae_weights.safetensors", "cfg.json", "report.json"):
        (planted / name).touch()
    wheel = build_wheel(project, tmp_path)
    assert wheel.name.startswith(f"steerserve-{steerserve.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("steerserve/")}
    assert packed == {str(file.relative_to(project)) for file in (project / "steerserve").rglob("*") if file.is_file()}
    assert "steerserve/dictionaries/bundled/tiny/planted/sae_weights.safetensors" in packed
    assert "steerserve/py.typed" in packed


def instructions() -> list[list[str]]:
    """Return the words of each instruction of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line]


def copy_context(image: Path) -> None:
    """Copy into `image` what the Dockerfile's COPY lines name, of the files that .dockerignore lets pass."""
    everything, *patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert everything == "*"
    sent = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    ignored = shutil.ignore_patterns(*(pattern.removeprefix("**/") for pattern in patterns if pattern[0] != "!"))
    for _, *sources, target in (words for words in instructions() if words[0] == "COPY"):
        assert set(sources) <= sent, ".dockerignore leaves out what the Dockerfile copies"
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, image / target, ignore=ignored)
            else:
                shutil.copy(ROOT / source, image / target)


def test_an_image_has_ten_presets(tmp_path: Path) -> None:
    image, wheels, installed = (tmp_path / name for name in ("image", "wheels", "installed"))
    image.mkdir()
    copy_context(image)
    # The network has no part in this: pip would build the same wheel, and install the pins of constraints.txt.
    installs = [words[words.index("install") :] for words in instructions() if words[0] == "RUN" and "pip" in words]
    assert [words[1:4] for words in installs] == [["-c", "constraints.txt", "."]]
    assert (image / "constraints.txt").is_file()
    with zipfile.ZipFile(build_wheel(image, wheels)) as archive:
        archive.extractall(installed)
    names = run(PRESETS, cwd=installed).split()
    assert len(names) == 10
    assert set(names) == {file.stem for file in (ROOT / "presets").glob("*.yaml")}
