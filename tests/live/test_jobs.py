"""Jobs over a real socket: followed while others chat, and outliving the server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from steerserve.jobs.store import JobStore
from steerserve.jobs.supervisor import Supervisor
from steerserve.runtime import build_runtime
from tests.jobs.conftest import end_of_job, stand_in_command, until
from tests.live.conftest import LiveServer, serving
from tests.live.test_disconnect import line_of
from tests.tiny import tiny_settings

if TYPE_CHECKING:
    import queue
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "ignore_eos": True}
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def counting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Serve the tiny model; a job counts to the number of tokens and waits at the step that the seed says."""
    settings = tiny_settings(tmp_path_factory.mktemp("jobs"), engine={"threads": 1}, server={"keep_alive_s": 1})
    runtime = build_runtime(settings)
    runtime.jobs = Supervisor(
        settings.dictionary_dirs[0], settings.jobs, lambda *_: None, command=stand_in_command, grace_s=1.0
    )
    with serving(runtime) as started:
        yield started


def base(server: LiveServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def job_of(url: str, **body: object) -> dict[str, Any]:
    response = httpx.post(f"{url}/admin/train", json={"corpus": "self", **body})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def followed(url: str, job_id: str) -> list[str]:
    """Follow a job to its end, and return all lines that came."""
    with httpx.stream("GET", f"{url}/admin/jobs/{job_id}/events", timeout=TIMEOUT_S) as response:
        return list(response.iter_lines())


def test_a_job_is_followed_to_its_end_while_a_chat_streams(counting_server: LiveServer) -> None:
    url = base(counting_server)
    job = job_of(url, id="beside", tokens=16, seed=2)
    lines: list[str] = []
    follower = threading.Thread(target=lambda: lines.extend(followed(url, job["id"])))
    follower.start()
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=TIMEOUT_S) as chat:
        answer = list(chat.iter_lines())
    assert answer[-2] == "data: [DONE]"
    folder = counting_server.runtime.settings.dictionary_dirs[0] / "beside"
    until(folder.is_dir, lambda: end_of_job(counting_server.runtime.jobs, job["id"]))
    (folder / "go").touch()
    follower.join(TIMEOUT_S)
    told = [line for line in lines if line and not line.startswith(":")]
    assert told[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in told[:-1]]
    assert [event["state"] for event in events if event["type"] == "state"] == ["queued", "running", "done"]
    assert events[-1]["result"]["dictionaries"][0]["counted"] == 16


def test_silence_is_filled_and_who_leaves_is_noticed(counting_server: LiveServer, log_lines: queue.Queue[str]) -> None:
    url = base(counting_server)
    job = job_of(url, id="left", tokens=16, seed=1)
    headers = {"x-request-id": "leaver-of-a-job"}
    with httpx.stream("GET", f"{url}/admin/jobs/{job['id']}/events", headers=headers, timeout=TIMEOUT_S) as response:
        assert any(line == ": ping" for line in response.iter_lines())
    assert "/events" in line_of("leaver-of-a-job", log_lines)
    assert httpx.delete(f"{url}/admin/jobs/{job['id']}").status_code == 200
    assert followed(url, job["id"])[-2] == "data: [DONE]"


@contextmanager
def real_server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `steerserve serve` in a process of its own, with real workers; gives its address."""
    settings = {
        "STEERSERVE_DICTIONARY_DIRS": str(folder / "dictionaries"),
        "STEERSERVE_CORPUS_DIRS": str(folder / "corpus"),
        "STEERSERVE_ENGINE__CONTEXT": "128",
    }
    command = [sys.executable, "-m", "steerserve", "serve", "--model", str(folder / "tiny"), "--port", "0"]
    with subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
    ) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://[\d.:]+", server.stdout.readline())
            assert found is not None
            yield server, found[0]
        finally:
            server.kill()


def test_training_outlives_a_server_that_is_killed_and_is_served_in_the_end(tmp_path: Path) -> None:
    tiny_settings(tmp_path)
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"text number {number} " * 10, encoding="utf-8")
    with real_server(tmp_path) as (server, url):
        job = job_of(
            url,
            id="mine",
            corpus=f"path:{tmp_path / 'corpus'}",
            d_sae=64,
            k=4,
            tokens=600,
            epochs=100,
            batch_size=16,
            context_size=32,
            load=True,
        )
        with JobStore(tmp_path / "dictionaries" / ".jobs" / "jobs.sqlite3") as store:

            def end() -> str | None:
                status = server.poll()
                return end_of_job(store, job["id"]) if status is None else f"the server ended with exit code {status}"

            until(lambda: httpx.get(f"{url}/admin/jobs/{job['id']}").json()["progress"].get("step", 0) > 1, end)
        server.send_signal(signal.SIGKILL)
        server.wait()
    with real_server(tmp_path) as (_, url):
        *_, last, _, done, _ = followed(url, job["id"])
        assert done == "data: [DONE]"
        state = json.loads(last.removeprefix("data: "))
        assert state["state"] == "done", state
        assert state["result"]["loaded"] == ["mine"]
        assert httpx.get(f"{url}/v1/dictionaries/mine").json()["d_sae"] == 64
        steered = {**CHAT, "steering": [{"dictionary": "mine", "feature": 3, "scale": 2.0}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=steered, timeout=TIMEOUT_S).json()
        assert answer["steering"]["edits"][0]["dictionary"] == "mine"
