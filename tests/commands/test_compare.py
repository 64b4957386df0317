"""`steerserve compare` and `steerserve sweep` from the command line, against a server and without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from steerserve.cli import app, main
from steerserve.commands.terminal import EXIT_STOPPED
from tests.live.conftest import serving
from tests.tiny import tiny_llama_folder, tiny_sae_folder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

    from tests.live.conftest import LiveServer

pytestmark = pytest.mark.slow

EXPERIMENT = """\
name: little
prompts: [Tell me., Well]
arms:
  - name: baseline
  - {name: pushed, steering: [{feature: 3, scale: 30, positions: generated}]}
  - {name: control, control_of: pushed}
seeds: 2
max_tokens: 6
"""
KEY = "some-key"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("command")
    tiny_llama_folder(root / "tiny")
    tiny_sae_folder(root / "dictionaries" / "res0")
    return {
        "STEERSERVE_MODEL__SOURCE": str(root / "tiny"),
        "STEERSERVE_MODEL__DEVICE": "cpu",
        "STEERSERVE_DICTIONARIES": f"res0=path:{root / 'dictionaries' / 'res0'}",
        "STEERSERVE_DICTIONARY_DIRS": str(root / "dictionaries"),
        "STEERSERVE_ENGINE__SLOTS": "4",
        "STEERSERVE_ENGINE__CONTEXT": "128",
        "STEERSERVE_ENGINE__THREADS": "1",
        "STEERSERVE_CACHE_DIR": str(root / "cache"),
    }


@pytest.fixture
def here(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "little.yaml").write_text(EXPERIMENT)
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    from steerserve.runtime import build_runtime

    folder = tmp_path_factory.mktemp("server")
    settings = tiny_settings(folder, context=2048, engine={"threads": 1}, server={"api_keys": [KEY]})
    with serving(build_runtime(settings)) as started:
        yield started


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["steerserve", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_a_server_the_model_is_loaded_here_and_the_results_are_in_a_folder_of_its_name(here: Path) -> None:
    result = ran("compare", "little.yaml")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "runs/little/report.html"
    folder = here / "runs" / "little"
    files = {file.name for file in folder.iterdir()} - {".lock"}
    assert files == {"run.json", "samples.jsonl", "samples.csv", "summary.csv", "summary.json", "report.html"}
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 2 * 2 * 3
    page = (folder / "report.html").read_text()
    assert "feature: 3, scale: 30" in page
    before = (folder / "samples.jsonl").read_bytes()
    (folder / "report.html").unlink()
    assert ran("compare", "little.yaml", "--report-only").exit_code == 0
    assert (folder / "report.html").exists()
    assert (folder / "samples.jsonl").read_bytes() == before


def test_a_running_server_gives_the_same_samples(
    here: Path, server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "refuses the key" in refused(capsys, monkeypatch, "compare", "little.yaml", "--url", server.url)
    monkeypatch.setenv("STEERSERVE_API_KEY", KEY)
    result = ran("compare", "little.yaml", "--url", server.url, "--out", "there")
    assert result.exit_code == 0, result.output
    assert KEY not in "".join(file.read_text() for file in (here / "there").iterdir())
    assert ran("compare", "little.yaml").exit_code == 0
    texts = [
        [json.loads(line)["text"] for line in (here / folder / "samples.jsonl").read_text().splitlines()]
        for folder in ("there", "runs/little")
    ]
    assert texts[0] == texts[1]


def test_a_sweep_writes_its_experiment_and_draws_a_curve(
    here: Path, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERSERVE_API_KEY", KEY)
    sweep = ("sweep", "res0/3", "--scales", "0,10,20", "--unit", "raw", "--prompt", "Tell me.", "--max-tokens", 5)
    result = ran(*sweep, "--url", server.url)
    assert result.exit_code == 0, result.output
    folder = here / "runs" / "sweep-res0-3"
    page = (folder / "report.html").read_text()
    assert page.count("<polyline") == 8
    assert "add 3, raw" in page
    again = ran("compare", folder / "experiment.yaml", "--url", server.url, "--out", folder)
    assert again.exit_code == 0, again.output
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 2 * 4


def test_a_judge_can_be_added_and_samples_of_another_experiment_replaced(
    here: Path, server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEERSERVE_API_KEY", KEY)
    run = ("compare", "little.yaml", "--url", server.url)
    assert ran(*run).exit_code == 0
    folder = here / "runs" / "little"
    before = (folder / "samples.jsonl").read_bytes()
    judge = f"judge: {{url: {server.url}, model: tiny, criterion: Which is louder, key_env: JUDGE_KEY}}\n"
    (here / "little.yaml").write_text(EXPERIMENT + judge)
    assert "refuses requests" in refused(capsys, monkeypatch, *run)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    result = ran(*run)
    assert result.exit_code == 0, result.output
    assert (folder / "samples.jsonl").read_bytes() == before
    judged = json.loads((folder / "summary.json").read_text())["judge"]
    assert [arm["num_pairs"] + arm["num_unreadable"] for arm in judged["arms"]] == [4, 4]
    assert "Which is louder" in (folder / "report.html").read_text()
    (here / "little.yaml").write_text(EXPERIMENT.replace("scale: 30", "scale: 40"))
    assert "arms differs" in refused(capsys, monkeypatch, *run)
    assert ran(*run, "--replace").exit_code == 0
    assert not (folder / "judgements.jsonl").exists()


def test_mistakes_are_one_line(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "bad.yaml").write_text(EXPERIMENT.replace("seeds", "sedes"))
    said = "steerserve: bad.yaml:7:1: sedes is not known; did you mean seeds?"
    assert refused(capsys, monkeypatch, "compare", "bad.yaml") == said
    assert "Name the experiment's file" in refused(capsys, monkeypatch, "compare")
    assert "has no samples yet" in refused(capsys, monkeypatch, "compare", "little.yaml", "--report-only")
    assert "is not the URL of a web server" in refused(
        capsys, monkeypatch, "compare", "little.yaml", "--url", "localhost"
    )
    assert "No server answers at" in refused(
        capsys, monkeypatch, "compare", "little.yaml", "--url", "http://127.0.0.1:9"
    )
    (here / "file").touch()
    assert "cannot be written" in refused(capsys, monkeypatch, "compare", "little.yaml", "--out", "file/x")
    assert "numbers separated by commas" in refused(capsys, monkeypatch, "sweep", "3", "--scales", "a,b")
    assert json.loads(ran("compare", "--schema").stdout)["title"] == "steerserve experiment"


def test_ctrl_c_ends_with_a_sentence_and_the_same_command_goes_on(here: Path, environment: dict[str, str]) -> None:
    (here / "long.yaml").write_text(EXPERIMENT.replace("seeds: 2", "seeds: 400").replace("little", "long"))
    samples = here / "runs" / "long" / "samples.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "steerserve", "compare", "long.yaml"],
        cwd=here,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(200, process.kill)
    killer.start()
    while process.poll() is None and not (samples.exists() and samples.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    killer.cancel()
    assert process.returncode == EXIT_STOPPED, said
    assert "800 comparisons are kept; run the same command to continue." in said.splitlines()[-1]
    assert "Traceback" not in said
    num_kept = len(samples.read_text().splitlines())
    assert num_kept % 3 == 0
    assert ran("compare", "long.yaml", "--report-only").exit_code == 0
    assert f"{num_kept // 3} of 800 comparisons" in samples.with_name("report.html").read_text()
    before = samples.read_text()
    (here / "long.yaml").write_text(EXPERIMENT.replace("little", "long"))
    assert ran("compare", "long.yaml").exit_code == 0
    assert samples.read_text().startswith(before)
