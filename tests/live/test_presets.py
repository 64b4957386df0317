"""OpenAI's own client uses presets by the model's name alone, while their files change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai
import pytest

from steerserve.runtime import build_runtime
from tests.live.conftest import KEY, LiveServer, serving
from tests.tiny import tiny_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from openai.types.chat import ChatCompletionMessageParam

pytestmark = pytest.mark.slow

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("presets")
    write(path, 2.0)
    (path / "brief.yaml").write_text("name: brief\nsystem: Be brief.\nsampling: {max_tokens: 5, temperature: 0}\n")
    return path


@pytest.fixture(scope="module")
def live_presets(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[LiveServer]:
    settings = tiny_settings(
        tmp_path_factory.mktemp("live"), engine={"slots": 2, "threads": 1}, server={"api_keys": [KEY]}
    )
    with serving(build_runtime(settings.model_copy(update={"presets_dir": folder}))) as started:
        yield started


@pytest.fixture
def client(live_presets: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live_presets.url, api_key=KEY, max_retries=0) as opened:
        yield opened


def write(folder: Path, scale: float) -> None:
    (folder / "strong.yaml").write_text(f"name: strong\nedits: [{{feature: 3, scale: {scale}}}]\n")


def test_it_lists_and_retrieves_them(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@brief", "tiny@strong"]
    found = client.models.retrieve("tiny@brief+strong")
    assert found.model_extra is not None
    assert (found.id, found.model_extra["parent"]) == ("tiny@brief+strong", "tiny")
    with pytest.raises(openai.NotFoundError, match="Did you mean 'strong'"):
        client.models.retrieve("tiny@stron")


def test_it_is_steered_by_the_models_name_and_sees_a_change(client: openai.OpenAI, folder: Path) -> None:
    for scale in (3.0, 4.0):
        write(folder, scale)
        answer = client.chat.completions.create(model="tiny@brief+strong", messages=MESSAGES)
        assert answer.model == "tiny@brief+strong"
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 5
        assert answer.model_extra is not None
        assert [edit["scale"] for edit in answer.model_extra["steering"]["edits"]] == [scale]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny@stron", messages=MESSAGES)
    assert (caught.value.param, "Did you mean 'strong'?" in str(caught.value)) == ("model", True)


def test_a_stream_carries_the_name(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny@strong", messages=MESSAGES, max_tokens=6, seed=1, stream=True)
    assert {chunk.model for chunk in stream} == {"tiny@strong"}
