"""`steerserve bench` against a server that streams canned tokens."""

from __future__ import annotations

import json
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from steerserve.cli import app
from steerserve.core.errors import ConfigError, StartupError
from tests.bench.stub import Stub, served

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

QUICK = ["--concurrency", "1,3", "--tokens", "8", "--repeats", "2"]


def bench(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def refusal(stub: Stub, *arguments: str) -> str:
    with served(stub) as url, pytest.raises(StartupError) as caught:
        bench("--url", url, *QUICK, *arguments)
    return caught.value.message


def test_a_run_writes_every_figure_with_what_it_was_made_on(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.json"
    with served(Stub()) as url:
        printed = bench("--url", url, *QUICK, "--json", str(file), "--seed", "5")
    report = json.loads(file.read_text(encoding="utf-8"))
    assert [(point["concurrency"], point["edits"]) for point in report["sweep"]] == [(1, 1), (3, 1)]
    assert all(point["tokens_per_s"] > 0 and point["ttft_ms"]["p99"] > 0 for point in report["sweep"])
    assert [cost["rows"] for cost in report["step_costs"]] == ["0", "1", "16", "mixed"]
    assert set(report["speed_ups"]) == {"1", "3"}
    assert report["health_ms"]["p99"] > 0
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["cpu"]
    assert report["target"]["model"] == "tiny"
    assert report["target"]["version"]["torch"] == "9.9"
    assert (report["seed"], report["max_tokens"], report["repeats"]) == (5, 8, 2)
    assert {"date", "load_before", "load_after"} <= set(report)
    assert "torch 9.9" in printed
    assert "/health" in printed


def test_rows_are_greedy_of_fixed_length_and_no_two_share_a_prompt() -> None:
    stub = Stub()
    with served(stub) as url:
        bench("--url", url, *QUICK)
    assert all(body["temperature"] == 0 and body["ignore_eos"] and body["max_tokens"] == 8 for body in stub.bodies)
    assert len({body["prompt"] for body in stub.bodies}) == len(stub.bodies)
    # One warm-up batch, two sweeps of 1 and 3, two rounds of four kinds of rows, one batch beside /health.
    assert len(stub.bodies) == 3 + 2 * (1 + 3) + 2 * 4 * 3 + 3


def test_kinds_of_rows_take_turns_and_mixed_rows_share_a_batch() -> None:
    stub = Stub()
    with served(stub) as url:
        bench("--url", url, *QUICK)
    edits = [len(body.get("steering", ())) for body in stub.bodies]
    rounds = edits[11 : 11 + 24]
    assert rounds[:9] == rounds[12:21] == [0, 0, 0, 1, 1, 1, 16, 16, 16]
    assert Counter(rounds[9:12]) == Counter([0, 1, 16])
    assert {edit["dictionary"] for body in stub.bodies for edit in body.get("steering", ())} == {"main"}


def test_a_server_without_dictionaries_is_measured_without_edits() -> None:
    stub = Stub(has_dictionary=False)
    with served(stub) as url:
        printed = bench("--url", url, *QUICK)
    assert not any("steering" in body for body in stub.bodies)
    assert "no dictionary, so no request carries edits" in printed
    assert "mixed" not in printed


def test_the_key_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "right")
    with served(Stub(key="right")) as url:
        bench("--url", url, *QUICK, "--key-env", "MY_KEY")


def test_no_server_is_one_clear_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StartupError, match=r"No server answers at http://127\.0\.0\.1.*steerserve serve"):
            bench("--url", url)


@pytest.mark.parametrize("url", ["localhost:8000", "nonsense", "http://a:b", "http://127.0.0.1:99999"])
def test_an_impossible_url_is_one_clear_line(url: str) -> None:
    with pytest.raises(StartupError, match=r"^'.*' is not the URL of a web server"):
        bench("--url", url)


def test_what_the_server_says_reaches_the_person() -> None:
    assert "401: Send an API key." in refusal(Stub(key="k"))
    assert "503: The queue is full." in refusal(Stub(refuse_from=1))
    assert "503: The queue is full." in refusal(Stub(refuse_from=38))
    assert "The engine failed." in refusal(Stub(failure={"message": "The engine failed."}))
    assert "Out of memory." in refusal(Stub(failure="Out of memory."))
    assert "without a token" in refusal(Stub(empty_streams=True))
    assert "serves no model" in refusal(Stub(models=[]))
    assert "serves no model" in refusal(Stub(models=None))


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    stub = Stub()
    said = refusal(stub, "--json", str(tmp_path))
    assert said == f"--json: {tmp_path} cannot be written: Is a directory."
    assert stub.bodies == []


def test_a_run_that_fails_leaves_no_file(tmp_path: Path) -> None:
    refusal(Stub(refuse_from=1), "--json", str(tmp_path / "bench.json"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--concurrency", "0,1"), ("--concurrency", "one"), ("--edits", "-1")])
def test_numbers_that_are_none_are_refused_before_anything_runs(arguments: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="is not a list of whole numbers"):
        bench(*arguments)
