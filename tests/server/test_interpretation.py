"""`POST /admin/interpret`: what is refused and where, and a job that a real worker does."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.errors import InvalidRequestError
from steerserve.interpret.options import InterpretOptions
from steerserve.jobs import needs
from steerserve.requests.interpretation import interpretation_spec
from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from steerserve.store.store import FeatureStore
from steerserve.wire.jobs import InterpretRequest
from tests.server.asking import client_of
from tests.tiny import tiny_sae_folder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx

DEADLINE_S = 120
TEXT = "path:corpus"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("interpretation")
    corpus = made / "corpus"
    corpus.mkdir()
    source = random.Random(0)
    for number in range(20):
        words = " ".join("".join(source.choices("abcdefgh", k=4)) for _ in range(20))
        (corpus / f"{number}.txt").write_text(words, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def real_runtime(folder: Path) -> Iterator[Runtime]:
    settings = tiny_settings(folder, engine={"threads": 1})
    settings = settings.model_copy(update={"corpus_dirs": (folder / "corpus",)})
    with build_runtime(settings) as runtime:
        runtime.dictionary_library.load("other", f"path:{tiny_sae_folder(folder / 'dictionaries' / 'other', seed=1)}")
        yield runtime


@pytest.fixture
async def admin(real_runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(real_runtime)) as opened:
        yield opened


def options_of(runtime: Runtime, **body: object) -> InterpretOptions:
    return InterpretOptions.from_json(
        interpretation_spec(InterpretRequest.model_validate(body), runtime, promised_bytes=0).options
    )


@pytest.mark.slow
async def test_a_dictionary_is_interpreted_beside_serving(
    admin: httpx.AsyncClient, real_runtime: Runtime, folder: Path
) -> None:
    corpus = f"path:{folder / 'corpus'}"
    body = {"dictionaries": ["other", "res0"], "corpus": corpus, "tokens": 900, "calibrate": False}
    response = await admin.post("/admin/interpret", json=body)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/admin/jobs/{job['id']}"
    assert job["kind"] == "interpret"
    busy = await admin.post("/admin/interpret", json={"dictionary": "res0", "corpus": corpus})
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "dictionary_busy")
    async with asyncio.timeout(DEADLINE_S):
        while job["state"] in {"queued", "running"}:
            await asyncio.sleep(0.05)
            job = (await admin.get(f"/admin/jobs/{job['id']}")).json()

    assert job["state"] == "done", job["error"]
    for found, dictionary_id in zip(job["result"]["dictionaries"], ["other", "res0"], strict=True):
        dictionary = real_runtime.registry.snapshot().dictionaries[dictionary_id]
        assert (found["id"], found["sha256"], found["num_tokens"]) == (dictionary_id, dictionary.sha256, 900)
        assert found["num_features"] == dictionary.d_sae
        assert FeatureStore.open(Path(found["store"])).counts().num_live == found["num_live"] > 10


async def test_what_is_left_out_has_a_default(real_runtime: Runtime) -> None:
    spec = interpretation_spec(InterpretRequest(), real_runtime, promised_bytes=0)
    options = InterpretOptions.from_json(spec.options)
    assert spec.claims == ("res0",)
    assert (options.corpus, options.tokens, options.calibrate) == (("self",), 200_000, True)
    assert options.dictionaries[0].sha256 == real_runtime.registry.snapshot().dictionaries["res0"].sha256
    assert options_of(real_runtime, dictionaries=["res0", "res0", "other"]).dictionaries[1].id == "other"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"dictionary": "res9"}, "dictionary", "invalid_value"),
        ({"dictionaries": ["res0", "othr"]}, "dictionaries[1]", "invalid_value"),
        ({"dictionaries": []}, "dictionaries", "invalid_value"),
        ({"dictionaries": ["res0"], "dictionary": "res0"}, "dictionaries", "invalid_value"),
        ({"dictionary": 5}, "dictionary", "invalid_type"),
        ({"tokens": 0}, "tokens", "invalid_value"),
        ({"tokens": 10**9 + 1}, "tokens", "invalid_value"),
        ({"context_size": 15}, "context_size", "invalid_value"),
        ({"context_size": 4096}, "context_size", "invalid_value"),
        ({"corpus": "path:/etc"}, "corpus", "invalid_value"),
        ({"corpus": ["self", "somewhere"]}, "corpus[1]", "invalid_value"),
        ({"corpus": ["hf:", "self"]}, "corpus[0]", "invalid_value"),
        ({"corpus": ["self", "self", "path:/etc"]}, "corpus[2]", "invalid_value"),
        ({"calibrate": "yes"}, "calibrate", "invalid_type"),
        ({"layer": 3}, "layer", "unknown_parameter"),
        ({"model": "tiny@formal"}, "model", "invalid_value"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(
    admin: httpx.AsyncClient, body: dict[str, Any], param: str, code: str
) -> None:
    response = await admin.post("/admin/interpret", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


async def test_another_model_is_not_found(admin: httpx.AsyncClient) -> None:
    response = await admin.post("/admin/interpret", json={"model": "gpt-4"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("name", "code"), [("_STORE_BYTES", "insufficient_disk_space"), ("_INTERPRET_BYTES", "insufficient_memory")]
)
def test_a_run_that_would_fill_the_disk_or_the_memory_is_refused(
    real_runtime: Runtime, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    monkeypatch.setattr(needs, name, 1 << 50)
    with pytest.raises(InvalidRequestError, match="are free") as caught:
        options_of(real_runtime)
    assert caught.value.code == code
