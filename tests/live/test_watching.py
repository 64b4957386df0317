"""Live activations as OpenAI's own client and `steerserve watch` read them, over a real socket."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import openai
import pytest
from rich.console import Console
from typer.testing import CliRunner

from steerserve.cli import app
from steerserve.client.answers import RefusedError, ServerError
from steerserve.client.server_client import ServerClient
from steerserve.commands.watch_stream import FeatureInfo, SeenFeature, SeenToken
from steerserve.commands.watch_view import WatchView
from steerserve.core.errors import ConfigError
from tests.live.conftest import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai.types.chat import ChatCompletionMessageParam

    from tests.live.conftest import LiveServer

pytestmark = pytest.mark.slow

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
WATCHED = {"features": {"top": 2, "watch": [3]}, "steering": [{"feature": 3, "mode": "clamp", "scale": 9.0}]}


@pytest.fixture
def client(live: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url, api_key=KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERSERVE_API_KEY", KEY)


def test_openais_client_reads_them_as_an_extra_field_of_a_chunks_choice(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, seed=1, extra_body=WATCHED)
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=8, seed=1, stream=True, extra_body=WATCHED
    )
    entries = []
    for chunk in stream:
        [choice] = chunk.choices
        entries += (choice.model_extra or {}).get("features", [])
    assert len(entries) == 8
    assert entries == whole.choices[0].features  # type: ignore[attr-defined]
    assert [entry["dictionaries"]["res0"]["edited"] for entry in entries[1:]] == [{"3": 9.0}] * 7


def test_its_completions_and_its_stream_helper_read_them_too(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["a", "b"], max_tokens=3, extra_body={"features": {"prompt": True}}
    )
    for choice in answer.choices:
        assert choice.model_extra is not None
        assert len(choice.model_extra["features"]) == 3
        assert len(choice.model_extra["prompt_features"]) == 1
    with client.chat.completions.stream(
        model="tiny", messages=MESSAGES, seed=2, logit_bias={"257": 100}, extra_body={"features": True, "min_tokens": 4}
    ) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert sum(len(getattr(choice, "features", None) or []) for chunk in chunks for choice in chunk.choices) == 4


def test_a_client_that_leaves_while_it_watches_frees_its_place(client: openai.OpenAI, live: LiveServer) -> None:
    for _ in range(3):  # more than there are slots
        stream = client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, extra_body={"features": True, "ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, extra_body=WATCHED)
    assert len(answer.choices[0].features) == 2  # type: ignore[attr-defined]
    assert live.runtime.stats().num_waiting == 0


def watch(live: LiveServer, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["watch", "hi", "--url", live.url, *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_command_writes_a_line_for_each_token_where_there_is_no_terminal(live: LiveServer) -> None:
    lines = watch(live, "--feature", "3", "--max-tokens", "6", "--temperature", "0").splitlines()
    assert len(lines) == 6
    for line in lines:
        text, activation, top = line.split("\t")
        assert text.startswith(("'", '"'))
        assert float(activation) >= 0
        assert len(top.split(", ")) == 3
    steered = watch(live, "--steering", '[{"feature": 3, "scale": 50}]', "--max-tokens", "6", "--temperature", "0")
    assert [line.split("\t")[0] for line in steered.splitlines()] != [line.split("\t")[0] for line in lines]


def test_the_servers_address_goes_without_v1_too(live: LiveServer) -> None:
    for url in (live.url, f"{live.url}/", live.url.removesuffix("/v1")):
        with ServerClient(url, KEY) as client:
            assert client.get("/v1/models")["data"][0]["id"] == "tiny"


def test_the_command_shows_the_prompt_where_that_is_wanted(live: LiveServer) -> None:
    lines = watch(live, "--prompt-tokens", "--max-tokens", "1", "--system", "Be odd.").splitlines()
    assert lines[0].split("\t")[2] == "special"
    assert "'B'" in [line.split("\t")[0] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--feature", "96"], "0 to 95"),
        (["--dictionary", "res1"], "Did you mean 'res0'?"),
        (["--steering", "nosuch"], "There is no preset 'nosuch'"),
        (["--steering", '[{"feature": 3}]'], "scale"),
        (["--model", "other"], "does not exist"),
    ],
)
def test_what_the_server_says_against_it_is_what_the_command_says(
    live: LiveServer, arguments: list[str], said: str
) -> None:
    with pytest.raises(RefusedError, match=re.escape(said)):
        watch(live, *arguments)


def test_a_wrong_key_a_wrong_address_and_broken_json_are_told(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--steering"):
        watch(live, "--steering", "[{")
    with pytest.raises(ConfigError, match="is not the URL of a web server"):
        watch(live, "--url", "nonsense")
    monkeypatch.delenv("STEERSERVE_API_KEY")
    with pytest.raises(ConfigError, match="API key"):
        watch(live)
    with pytest.raises(ServerError, match="steerserve serve"):
        watch(live, "--url", "http://127.0.0.1:9")


def drawn(view: WatchView, *, height: int = 30) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=height, color_system="truecolor")
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def seen(text: str, watched: float, **edited: float) -> SeenToken:
    top = (SeenFeature(7, 3.0, "seven"), SeenFeature(9, 1.5, None))
    after = {int(name.removeprefix("f")): value for name, value in edited.items()}
    return SeenToken(text, is_prompt=False, watched=watched, top=top, skipped=None, edited=after)


def test_a_tokens_background_is_the_stronger_the_more_active_the_feature_was() -> None:
    view = WatchView(7, FeatureInfo("seven", 4.0), title="title")
    for text, watched in (("none", 0.0), ("half", 2.0), ("full", 4.0), ("over", 9.0)):
        view.add(seen(text, watched, f7=12.0))
    picture = drawn(view)
    assert "none\x1b[0m" not in picture
    shades = [
        picture[: picture.index(text)].rpartition("48;2;")[2].partition("m")[0] for text in ("half", "full", "over")
    ]
    assert shades == ["127;66;27", "214;93;14", "214;93;14"]
    assert "3 → 12" in picture
    assert "seven" in picture


def test_while_it_runs_only_the_newest_lines_are_drawn_and_in_the_end_all() -> None:
    view = WatchView(None, FeatureInfo(None, None), title="title")
    for number in range(60):
        view.add(seen(f"line{number:02}\n", 1.0))
    view.is_live = True
    live = drawn(view, height=12)
    assert "line59" in live
    assert "line00" not in live
    assert live.count("\n") <= 12
    view.is_live = False
    assert {"line00", "line59"} <= {f"line{number:02}" for number in range(60) if f"line{number:02}" in drawn(view)}


def test_a_terminal_does_not_obey_what_a_model_or_a_label_says() -> None:
    evil = "[/INST]\x1b]0;owned\x07\x9b2J\x1b[2J\r\n\tend"
    view = WatchView(7, FeatureInfo(evil, 4.0), title=f"7 {evil}")
    token = SeenToken(evil, False, 1.0, (SeenFeature(7, 1.0, evil),), None, {})
    view.add(token)
    for picture in (drawn(view), view.line(token)):
        left = re.sub(r"\x1b\[[0-9;]*m", "", picture)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", left)
        assert "[/INST]" in left
        assert "end" in left
    assert "\n" not in view.line(token)
    assert view.line(token).count("\t") == 2
