"""The hub is reached through its real client, in a process of its own since that reads its endpoint when imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.hub_stub import stub_hub
from tests.tiny import tiny_llama_folder

pytestmark = pytest.mark.slow

REPO = "somebody/tiny"


def fetch(source: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    environ = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PATH": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "steerserve", "models", "fetch", source]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=60)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_folder(tmp_path_factory.mktemp("repository"))


def test_a_hub_repository_is_fetched_into_a_folder(repository: Path, tmp_path: Path) -> None:
    with stub_hub(REPO, repository) as endpoint:
        done = fetch(REPO, endpoint, tmp_path)
    folder = Path(done.stdout.strip())
    assert done.returncode == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}


def test_an_unknown_repository_is_one_line_and_exit_code_2(repository: Path, tmp_path: Path) -> None:
    with stub_hub(REPO, repository) as endpoint:
        done = fetch("somebody/else", endpoint, tmp_path)
    assert done.returncode == 2
    assert "the hub has no repository somebody/else" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_hub_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = fetch(REPO, "http://127.0.0.1:9", tmp_path)
    assert done.returncode == 2
    assert "give a local folder or .gguf file" in done.stderr
    assert "Traceback" not in done.stderr
