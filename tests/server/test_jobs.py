"""The routes of jobs: what is refused and where, what is listed, and following a job to its end."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from steerserve.core.errors import InvalidRequestError
from steerserve.interpret.options import InterpretOptions
from steerserve.jobs import admission, needs
from steerserve.jobs import supervisor as supervisor_module
from steerserve.jobs.job import Job, JobSpec
from steerserve.jobs.store import JobStore
from steerserve.jobs.supervisor import Supervisor
from steerserve.requests.interpretation import interpretation_spec
from steerserve.requests.training import training_spec
from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from steerserve.server.routes.jobs import _events
from steerserve.training.options import TrainOptions
from steerserve.wire.jobs import InterpretRequest, TrainRequest
from tests.jobs.conftest import end_of_job, stand_in_command, until
from tests.server.asking import client_of, events_of
from tests.server.test_malformed import any_json
from tests.tiny import HOOK_NAME, tiny_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx

DEADLINE_S = 60
ENDED = {"done", "failed", "cancelled"}
LATE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("jobs")
    (root / "corpus" / "books").mkdir(parents=True)
    (root / "corpus" / "book.txt").write_text("text", encoding="utf-8")
    (root / "corpus" / "picture.png").touch()
    (root / "elsewhere").mkdir()
    (root / "corpus" / "way-out").symlink_to(root / "elsewhere")
    (root / "corpus" / "circle").symlink_to(root / "corpus" / "circle")
    return root


@pytest.fixture(scope="module")
def job_runtime(folder: Path) -> Iterator[Runtime]:
    """Serve the tiny model; its jobs do nothing but count to the number of tokens."""
    settings = tiny_settings(folder, engine={"threads": 1})
    settings = settings.model_copy(update={"corpus_dirs": (folder / "corpus",)})
    runtime = build_runtime(settings)
    runtime.jobs = Supervisor(
        settings.dictionary_dirs[0], settings.jobs, lambda *_: None, command=stand_in_command, grace_s=1.0
    )
    with runtime:
        yield runtime


@pytest.fixture
async def admin(job_runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(job_runtime)) as opened:
        yield opened
        for job in job_runtime.jobs.active():
            await ended(opened, (await opened.delete(f"/admin/jobs/{job.id}")).json())


async def ended(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    """Wait until a job has ended, and return it."""
    async with asyncio.timeout(DEADLINE_S):
        while job["state"] not in ENDED:
            await asyncio.sleep(0.02)
            job = (await client.get(f"/admin/jobs/{job['id']}")).json()
    return job


async def started(client: httpx.AsyncClient, **body: object) -> dict[str, Any]:
    response = await client.post("/admin/train", json={"corpus": "self", "tokens": 16, **body})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/admin/jobs/{job['id']}"
    return job


def spec_of(runtime: Runtime, **body: object) -> JobSpec:
    return training_spec(TrainRequest.model_validate(body), runtime, promised_bytes=runtime.jobs.promised_bytes())


def options_of(runtime: Runtime, **body: object) -> TrainOptions:
    return TrainOptions.from_json(spec_of(runtime, **body).options)


async def test_a_job_is_answered_found_listed_and_done(admin: httpx.AsyncClient) -> None:
    job = await started(admin, id="one")
    assert set(job) == {"id", "kind", "state", "progress", "error", "result", "created", "started", "ended"}
    assert (job["kind"], job["state"], job["progress"]) == ("train", "queued", {})
    done = await ended(admin, job)
    assert done["state"] == "done"
    assert done["result"]["dictionaries"][0]["counted"] == 16
    assert job["created"] <= done["started"] <= done["ended"]
    listed = (await admin.get("/admin/jobs")).json()
    assert (listed["object"], listed["data"][0]) == ("list", done)
    assert (await admin.delete(f"/admin/jobs/{job['id']}")).json() == done


async def test_jobs_are_listed_by_state_and_cut_at_the_limit(admin: httpx.AsyncClient) -> None:
    jobs = [await started(admin, id=f"list{number}", seed=1) for number in range(3)]
    queued = (await admin.get("/admin/jobs?state=queued&limit=1")).json()
    assert ([job["id"] for job in queued["data"]], queued["has_more"]) == ([jobs[2]["id"]], True)
    queued = (await admin.get("/admin/jobs?state=queued&limit=3")).json()
    assert {jobs[1]["id"], jobs[2]["id"]} <= {job["id"] for job in queued["data"]}
    assert not queued["has_more"]
    cancelled = (await admin.delete(f"/admin/jobs/{jobs[2]['id']}")).json()
    assert cancelled["state"] == "cancelled"
    listed = (await admin.get("/admin/jobs?state=cancelled")).json()["data"]
    assert cancelled["id"] in {job["id"] for job in listed}


async def test_only_the_single_job_is_answered_with_its_reports(admin: httpx.AsyncClient, job_runtime: Runtime) -> None:
    job = Job("train-listed-0", "train", JobSpec(claims=("listed",), options={}, cache_dir=Path("cache"), threads=1))
    result = {"dictionaries": [{"id": "listed", "source": "path:listed", "report": {"l0": 8.0}}], "loaded": []}
    with JobStore(job_runtime.jobs.store_path) as store:
        store.add(job)
        store.move(job.id, "cancelled", result=result)
    assert (await admin.get(f"/admin/jobs/{job.id}")).json()["result"] == result
    listed = (await admin.get("/admin/jobs?limit=1")).json()["data"][0]
    assert listed["id"] == job.id
    assert listed["result"] == {"dictionaries": [{"id": "listed", "source": "path:listed"}], "loaded": []}


@pytest.mark.parametrize("query", ["state=over", "limit=0", "limit=1001", "limit=x"])
async def test_odd_queries_are_refused(admin: httpx.AsyncClient, query: str) -> None:
    response = await admin.get(f"/admin/jobs?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == query.partition("=")[0]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_job_that_there_is_not_is_404(admin: httpx.AsyncClient, method: str) -> None:
    response = await admin.request(method, "/admin/jobs/train-none-0")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "job_not_found")
    assert (await admin.get("/admin/jobs/train-none-0/events")).status_code == 404


async def test_a_job_is_followed_from_its_beginning_to_its_end(admin: httpx.AsyncClient) -> None:
    job = await started(admin, id="followed")
    response = await admin.get(f"/admin/jobs/{job['id']}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {event["job"] for event in events} == {job["id"]}
    assert [event["state"] for event in events if event["type"] == "state"] == ["queued", "running", "done"]
    assert events[-1]["type"] == "state"
    progress = [event for event in events if event["type"] == "progress"]
    assert {"stage", "done", "total", "step", "num_steps", "tokens", "l0"} <= progress[-1].keys()
    later = events_of(await admin.get(f"/admin/jobs/{job['id']}/events?after=2"))
    assert later == events[2:]
    assert events_of(await admin.get(f"/admin/jobs/{job['id']}/events?after=1000")) == []


async def test_who_follows_a_job_of_a_stopping_server_is_told(admin: httpx.AsyncClient, job_runtime: Runtime) -> None:
    job = await started(admin, id="interrupted", seed=1)
    stopping = anyio.Event()
    events = _events(job_runtime, job["id"], 0, stopping)
    assert b'"queued"' in await anext(events)
    stopping.set()
    rest = [event async for event in events]
    assert b"service_unavailable" in rest[-2]
    assert rest[-1] == b"data: [DONE]\n\n"


async def test_a_dictionary_that_is_being_trained_is_busy(admin: httpx.AsyncClient) -> None:
    await started(admin, id="busy", seed=1)
    response = await admin.post("/admin/train", json={"id": "busy", "corpus": "self"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "dictionary_busy")


async def test_a_second_server_on_the_folder_takes_no_jobs_and_serves_all_the_same(
    admin: httpx.AsyncClient, job_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await started(admin, id="shared")
    await ended(admin, job)
    settings = job_runtime.settings
    other = Supervisor(settings.dictionary_dirs[0], settings.jobs, lambda *_: None, command=stand_in_command)
    monkeypatch.setattr(job_runtime, "jobs", other)
    other.start()
    response = await admin.post("/admin/train", json={"id": "mine", "corpus": "self"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (409, "jobs_folder_busy")
    assert "dictionary_dirs" in error["message"]
    assert (await admin.get(f"/admin/jobs/{job['id']}")).json()["state"] == "done"
    assert (await admin.get("/v1/models")).status_code == 200
    await asyncio.to_thread(other.stop)
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "id", "missing_required_parameter"),
        ({"id": None}, "id", "missing_required_parameter"),
        ({"id": ""}, "id", "invalid_value"),
        ({"id": ".jobs"}, "id", "invalid_value"),
        ({"id": "../x"}, "id", "invalid_value"),
        ({"id": "a/b"}, "id", "invalid_value"),
        ({"id": "a\n"}, "id", "invalid_value"),
        ({"id": "x" * 65}, "id", "invalid_value"),
        ({"id": 5}, "id", "invalid_type"),
        ({"id": "res0"}, "id", "invalid_value"),
        ({"id": "x" * 64, "d_sae": [8, 16]}, "id", "invalid_value"),
        ({"tokns": 5}, "tokns", "unknown_parameter"),
        ({"keep_run": True}, "keep_run", "unknown_parameter"),
        ({"model": "gpt-4"}, "model", "model_not_found"),
        ({"hook": "blocks.9.hook_resid_post"}, "hook", "invalid_value"),
        ({"hook": ""}, "hook", "invalid_value"),
        ({"hook": 3}, "hook", "invalid_type"),
        ({"hook": []}, "hook", "invalid_value"),
        ({"hook": [HOOK_NAME, "x"]}, "hook[1]", "invalid_value"),
        ({"hook": [HOOK_NAME, 7]}, "hook[1]", "invalid_type"),
        ({"hook": [HOOK_NAME] * 65}, "hook", "invalid_value"),
        ({"architecture": "transformer"}, "architecture", "invalid_value"),
        ({"d_sae": 0}, "d_sae", "invalid_value"),
        ({"d_sae": 2**21}, "d_sae", "invalid_value"),
        ({"d_sae": "4096"}, "d_sae", "invalid_type"),
        ({"d_sae": True}, "d_sae", "invalid_type"),
        ({"d_sae": [8, 0]}, "d_sae[1]", "invalid_value"),
        ({"d_sae": []}, "d_sae", "invalid_value"),
        ({"d_sae": list(range(1, 18))}, "d_sae", "invalid_value"),
        ({"k": 0}, "k", "invalid_value"),
        ({"k": 9, "d_sae": 8}, "k", "invalid_value"),
        ({"k": 9, "architecture": "standard"}, "k", "invalid_value"),
        ({"l1_coefficient": 5}, "l1_coefficient", "invalid_value"),
        ({"l1_coefficient": -1, "architecture": "gated"}, "l1_coefficient", "invalid_value"),
        ({"tokens": 0}, "tokens", "invalid_value"),
        ({"tokens": 1.5}, "tokens", "invalid_type"),
        ({"tokens": 10**18}, "tokens", "invalid_value"),
        ({"tokens": 10**10}, "tokens", "insufficient_disk_space"),
        ({"epochs": 0}, "epochs", "invalid_value"),
        ({"epochs": 1001}, "epochs", "invalid_value"),
        ({"corpus": "books"}, "corpus", "invalid_value"),
        ({"corpus": ""}, "corpus", "invalid_value"),
        ({"corpus": "selfie"}, "corpus", "invalid_value"),
        ({"corpus": {"path": "x"}}, "corpus", "invalid_type"),
        ({"corpus": ["self", 5]}, "corpus[1]", "invalid_type"),
        ({"corpus": ["self", "books"]}, "corpus[1]", "invalid_value"),
        ({"corpus": ["hf:", "self"]}, "corpus[0]", "invalid_value"),
        ({"corpus": ["path:/etc"]}, "corpus[0]", "invalid_value"),
        ({"corpus": []}, "corpus", "invalid_value"),
        ({"corpus": "hf:"}, "corpus", "invalid_value"),
        ({"corpus": "hf:one name"}, "corpus", "invalid_value"),
        ({"corpus": "path:"}, "corpus", "invalid_value"),
        ({"corpus": "path:/etc/passwd"}, "corpus", "invalid_value"),
        ({"corpus": "path:\x00"}, "corpus", "invalid_value"),
        ({"corpus": f"path:/{'x' * 3000}"}, "corpus", "invalid_value"),
        ({"corpus": "path:{corpus}/../elsewhere"}, "corpus", "invalid_value"),
        ({"corpus": "path:{corpus}/way-out"}, "corpus", "invalid_value"),
        ({"corpus": "path:{corpus}/circle"}, "corpus", "invalid_value"),
        ({"corpus": "path:{corpus}/none"}, "corpus", "invalid_value"),
        ({"corpus": "path:{corpus}/picture.png"}, "corpus", "invalid_value"),
        ({"batch_size": 0}, "batch_size", "invalid_value"),
        ({"batch_size": 2**18}, "batch_size", "invalid_value"),
        ({"lr": 0}, "lr", "invalid_value"),
        ({"lr": 1}, "lr", "invalid_value"),
        ({"lr": "fast"}, "lr", "invalid_type"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**32}, "seed", "invalid_value"),
        ({"resample": [0.5, 1.5]}, "resample[1]", "invalid_value"),
        ({"resample": 0.5}, "resample", "invalid_type"),
        ({"dtype": "int8"}, "dtype", "invalid_value"),
        ({"context_size": 8}, "context_size", "invalid_value"),
        ({"context_size": 4096}, "context_size", "invalid_value"),
        ({"storage": "tape"}, "storage", "invalid_value"),
        ({"load": 1}, "load", "invalid_type"),
        ({"load": "yes"}, "load", "invalid_type"),
    ],
)
async def test_what_no_training_can_honour_is_refused_with_its_parameter(
    admin: httpx.AsyncClient, folder: Path, body: dict[str, Any], param: str, code: str
) -> None:
    if isinstance(body.get("corpus"), str):
        body = {**body, "corpus": body["corpus"].replace("{corpus}", str(folder / "corpus"))}
    whole = body if not body or "id" in body else {"id": "wrong", **body}
    response = await admin.post("/admin/train", json=whole)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (404 if "model" in body else 400, param, code), (
        error
    )
    assert (await admin.get("/admin/jobs?state=queued")).json()["data"] == []


async def test_a_misspelt_key_is_answered_with_the_right_one(admin: httpx.AsyncClient) -> None:
    response = await admin.post("/admin/train", json={"id": "x", "batchsize": 5})
    assert response.json()["error"]["message"] == "Unknown parameter: 'batchsize'. Did you mean 'batch_size'?"


async def test_a_folder_outside_is_refused_with_the_allowed_ones_whether_it_exists_or_not(
    admin: httpx.AsyncClient, folder: Path
) -> None:
    messages = []
    for outside in ("elsewhere", "nowhere"):
        path = f"path:{folder / outside}"
        error = (await admin.post("/admin/train", json={"id": "x", "corpus": path})).json()["error"]
        assert str(folder / "corpus") in error["message"]
        messages.append(error["message"].replace(outside, ""))
    assert messages[0] == messages[1]


def test_an_empty_request_is_a_sensible_run(job_runtime: Runtime) -> None:
    spec = spec_of(job_runtime, id="x")
    options = TrainOptions.from_json(spec.options)
    (one,) = options.dictionaries
    assert (one.hook, one.architecture, one.d_sae, one.k) == (LATE, "batchtopk", 4096, 32)
    assert (options.corpus, options.model, options.device) == (("self",), job_runtime.settings.model.source, "cpu")
    assert options.out == job_runtime.settings.dictionary_dirs[0].resolve() / "x"
    assert (spec.load, spec.claims, spec.threads) == (False, ("x",), 1)


def test_a_job_takes_the_model_as_the_server_does_from_any_folder(
    job_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job_runtime.settings
    folder = Path(settings.model.source)
    values = {"source": f"./{folder.name}", "dtype": "bfloat16", "trust_remote_code": True}
    model = settings.model.model_copy(update=values)
    monkeypatch.setattr(job_runtime, "settings", settings.model_copy(update={"model": model}))
    monkeypatch.chdir(folder.parent)
    trained = options_of(job_runtime, id="x")
    body = InterpretRequest.model_validate({})
    interpreted = InterpretOptions.from_json(interpretation_spec(body, job_runtime, promised_bytes=0).options)
    for options in (trained, interpreted):
        assert (options.model_dtype, options.trust_remote_code) == ("bfloat16", True)
        assert options.model == str(folder)
        assert options.corpus_dirs == (folder.parent / "corpus",)
        assert options.text_dirs == (folder.parent / "corpus", options.text_dir)
    assert "trust_remote_code" not in trained.what_shapes_the_result()
    assert trained.what_shapes_the_result()["model_dtype"] == "bfloat16"
    assert "model_dtype" not in replace(trained, model_dtype="auto").what_shapes_the_result()


def test_a_request_is_honoured_in_every_field(job_runtime: Runtime, folder: Path) -> None:
    body = {
        "id": "grid",
        "model": "tiny",
        "hook": [HOOK_NAME, LATE],
        "architecture": "standard",
        "d_sae": [8, 16],
        "l1_coefficient": 2,
        "tokens": 77,
        "epochs": 3,
        "corpus": ["self", f"path:{folder / 'corpus' / 'books'}", f"path:{folder / 'corpus' / 'book.txt'}"],
        "batch_size": 16,
        "lr": 0.01,
        "seed": 9,
        "resample": [0.5],
        "dtype": "float16",
        "context_size": 32,
        "storage": "buffer",
        "load": True,
    }
    spec = spec_of(job_runtime, **body)
    options = TrainOptions.from_json(spec.options)
    assert [(one.hook, one.d_sae) for one in options.dictionaries] == [
        (HOOK_NAME, 8),
        (HOOK_NAME, 16),
        (LATE, 8),
        (LATE, 16),
    ]
    assert {
        (one.architecture, one.l1_coefficient, one.lr, one.resample, one.dtype) for one in options.dictionaries
    } == {("standard", 2, 0.01, (0.5,), "float16")}
    values = (options.tokens, options.epochs, options.batch_size, options.seed, options.context_size, options.storage)
    assert values == (77, 3, 16, 9, 32, "buffer")
    corpus = folder / "corpus"
    assert options.corpus == ("self", str((corpus / "books").resolve()), str((corpus / "book.txt").resolve()))
    assert spec.load is True
    assert spec.claims == tuple(sorted({"grid", *(dictionary.id for dictionary in options.dictionaries)}))


def test_resampling_is_the_usual_one_or_none_where_that_is_said(job_runtime: Runtime) -> None:
    given = [options_of(job_runtime, id="x", resample=value).dictionaries[0] for value in (True, False, None)]
    assert given[0].resample
    assert [one.resample for one in given[1:]] == [(), None]


def test_text_of_the_hub_is_taken_by_its_name(job_runtime: Runtime) -> None:
    assert options_of(job_runtime, id="x", corpus="hf:owner/name").corpus == ("hf:owner/name",)


async def test_a_run_that_was_begun_otherwise_is_not_gone_on_with(
    admin: httpx.AsyncClient, job_runtime: Runtime
) -> None:
    options = options_of(job_runtime, id="begun", tokens=50)
    options.run_dir.mkdir(parents=True)
    claim = options.run_dir / "options.json"
    claim.write_text('{"tokens": 50, "seed": 4}', encoding="utf-8")
    error = (await admin.post("/admin/train", json={"id": "begun", "tokens": 50})).json()["error"]
    assert error["param"] == "id"
    assert "another" in error["message"]
    assert "seed" in error["message"]
    assert "tokens" not in error["message"]


@pytest.mark.parametrize(
    ("files", "is_finished"),
    [
        (["cfg.json", "report.json"], True),
        (["cfg.json"], True),
        (["cfg.json", "run/options.json"], False),
        (["cfg.json", "report.json", "run/options.json"], True),
    ],
)
def test_a_run_that_was_stopped_before_its_report_goes_on_and_a_finished_one_is_left_alone(
    job_runtime: Runtime, files: list[str], is_finished: bool
) -> None:
    options = replace(options_of(job_runtime, id="x"), out=job_runtime.settings.dictionary_dirs[0] / "measured")
    shutil.rmtree(options.out, ignore_errors=True)
    options.run_dir.mkdir(parents=True)
    for file in files:
        content = options.what_shapes_the_result() if file == "run/options.json" else {}
        (options.out / file).write_text(json.dumps(content), encoding="utf-8")
    if is_finished:
        with pytest.raises(InvalidRequestError, match="holds a finished dictionary"):
            admission.check_folder(options)
    else:
        admission.check_folder(options)


def test_a_run_that_was_stopped_between_two_reports_goes_on(job_runtime: Runtime) -> None:
    options = options_of(job_runtime, id="pair", d_sae=[32, 64])
    options.run_dir.mkdir(parents=True)
    (options.run_dir / "options.json").write_text(json.dumps(options.what_shapes_the_result()), encoding="utf-8")
    for one, names in zip(options.dictionaries, (["cfg.json", "report.json"], ["cfg.json"]), strict=True):
        options.folder(one).mkdir()
        for name in names:
            (options.folder(one) / name).touch()
    assert options_of(job_runtime, id="pair", d_sae=[32, 64]) == options


async def test_disk_that_is_kept_for_other_jobs_is_not_given_twice(
    admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "_DISK_MARGIN_BYTES", 0)
    body = {"tokens": 1000, "corpus": "self", "d_sae": 8, "k": 1}
    needed = 1000 * (2 * 48 + 16) + 2 * 48 * 8 * 4 * 6

    class Usage:
        free = 2 * needed - 1

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    await started(admin, id="first", seed=1, **body)
    response = await admin.post("/admin/train", json={"id": "second", **body})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "insufficient_disk_space")
    assert "other jobs" in error["message"]


async def test_two_requests_at_once_do_not_get_the_same_room(
    admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "_DISK_MARGIN_BYTES", 0)
    body = {"tokens": 1000, "corpus": "self", "d_sae": 8, "k": 1, "seed": 1}
    needed = 1000 * (2 * 48 + 16) + 2 * 48 * 8 * 4 * 6

    class Usage:
        free = 3 * needed

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    posts = [admin.post("/admin/train", json={"id": f"race{number}", **body}) for number in range(8)]
    statuses = [response.status_code for response in await asyncio.gather(*posts)]
    assert sorted(statuses) == [202, 202, 202, 400, 400, 400, 400, 400]


async def test_a_job_whose_disk_has_filled_up_while_it_waited_fails_with_a_sentence(
    admin: httpx.AsyncClient, job_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await started(admin, id="first-of-two", seed=1)
    second = await started(admin, id="second-of-two")
    monkeypatch.setattr(needs, "_DISK_MARGIN_BYTES", 1 << 60)
    go = job_runtime.settings.dictionary_dirs[0] / "first-of-two" / "go"
    await asyncio.to_thread(until, go.parent.is_dir, lambda: end_of_job(job_runtime.jobs, first["id"]))
    go.touch()
    assert (await ended(admin, first))["state"] == "done"
    failed = await ended(admin, second)
    assert failed["state"] == "failed"
    assert "on the disk" in failed["error"]


def test_all_that_a_run_holds_is_counted(job_runtime: Runtime, folder: Path) -> None:
    book = folder / "corpus" / "long.txt"
    book.write_text("x" * 10_000, encoding="utf-8")
    options = options_of(
        job_runtime, id="x", corpus=f"path:{book}", d_sae=64, tokens=100_000, storage="buffer", batch_size=32
    )
    weights, buffer = 2 * 48 * 64 * 4, options.buffer_mb * 1_000_000
    computing = 1_000_000 + 4 * weights + 3 * 32 * 64 * 4 + 512 * 259 * 4 * 5
    holding = buffer + 100_000 * 48 * 4 + 10_000 // 2
    on_cpu = needs.training_needs(options, needs.ModelSize(1_000_000, 259, {LATE: 48}))
    assert on_cpu == needs.Needs(6 * weights + 2 * buffer, holding + computing)
    on_device = needs.training_needs(options, needs.ModelSize(1_000_000, 259, {LATE: 48}, is_on_cpu=False))
    assert on_device == needs.Needs(on_cpu.disk, holding, computing)
    with pytest.raises(InvalidRequestError, match="of the device's memory") as caught:
        needs.check_needs("train", on_device, folder, promised_bytes=0, device_free=computing - 1)
    assert caught.value.code == "insufficient_memory"


def test_the_models_own_size_is_that_of_its_files(job_runtime: Runtime) -> None:
    weights = Path(job_runtime.settings.model.source) / "model.safetensors"
    assert job_runtime.lens.weight_bytes == pytest.approx(weights.stat().st_size, rel=0.1)


async def test_a_corpus_of_any_size_is_not_read(admin: httpx.AsyncClient, folder: Path) -> None:
    vast = folder / "corpus" / "vast.txt"
    with vast.open("wb") as opened:
        opened.truncate(needs.MAX_CORPUS_BYTES + 1)
    try:
        for route, body in (("train", {"id": "x"}), ("interpret", {})):
            response = await admin.post(f"/admin/{route}", json={"corpus": f"path:{vast.parent}", **body})
            assert response.status_code == 400, response.text
            assert "one job reads at most 4.0 GB" in response.json()["error"]["message"]
    finally:
        vast.unlink()


async def test_a_dictionary_that_the_server_could_not_load_is_not_trained(
    admin: httpx.AsyncClient, job_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = job_runtime.settings.model_copy(update={"max_dictionary_bytes": 8 * 48 * 100})
    monkeypatch.setattr(job_runtime, "settings", small)
    error = (await admin.post("/admin/train", json={"id": "big", "d_sae": [50, 101]})).json()["error"]
    assert error["param"] == "d_sae"
    assert "max_dictionary_bytes" in error["message"]


@pytest.mark.slow
async def test_no_training_request_is_answered_with_a_5xx(admin: httpx.AsyncClient) -> None:
    source = random.Random("train")
    for _ in range(200):
        body = {"id": "fuzz", "tokens": 16, source.choice([*TrainRequest.model_fields, "x"]): any_json(source)}
        response = await admin.post("/admin/train", json=body)
        assert response.status_code in {202, 400, 404, 409}, (body, response.text)
        if response.status_code == 202:
            await admin.delete(f"/admin/jobs/{response.json()['id']}")


@pytest.fixture
def locked(job_runtime: Runtime) -> Iterator[sqlite3.Connection]:
    """Hold the write lock of the file with the jobs, as a backup of it might."""
    with JobStore(job_runtime.jobs.store_path):
        pass
    connection = sqlite3.connect(job_runtime.jobs.store_path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


async def test_a_file_that_something_else_locks_is_read_and_what_would_be_written_is_told_to_come_back(
    admin: httpx.AsyncClient, job_runtime: Runtime, locked: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job_runtime.settings
    await asyncio.to_thread(job_runtime.jobs.stop)
    monkeypatch.setattr(supervisor_module, "_BUSY_S", 0.01)
    hasty = Supervisor(settings.dictionary_dirs[0], settings.jobs, lambda *_: None, command=stand_in_command)
    monkeypatch.setattr(job_runtime, "jobs", hasty)
    hasty.start()
    try:
        response = await admin.post("/admin/train", json={"id": "late", "corpus": "self", "tokens": 16})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (503, "service_unavailable"), error
        assert "locked" in error["message"]
        assert int(response.headers["retry-after"]) > 0
        assert (await admin.get("/admin/jobs")).status_code == 200
        locked.execute("ROLLBACK")
        job = (await admin.post("/admin/train", json={"id": "late", "corpus": "self", "tokens": 16})).json()
        assert (await ended(admin, job))["state"] == "done"
    finally:
        await asyncio.to_thread(hasty.stop)
        monkeypatch.undo()
        job_runtime.jobs.start()


async def test_requests_that_wait_for_the_jobs_keep_nobody_else_waiting(
    admin: httpx.AsyncClient, locked: sqlite3.Connection
) -> None:
    body = {"corpus": "self", "tokens": 16}
    waiting = [
        asyncio.create_task(admin.post("/admin/train", json={"id": f"wait{number}", **body})) for number in range(64)
    ]
    prompt = "x" * 20_000  # long enough to be tokenised in a thread
    for _ in range(8):
        response = await admin.post("/v1/completions", json={"model": "tiny", "prompt": prompt})
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert not any(task.done() for task in waiting)
    locked.execute("ROLLBACK")
    responses = await asyncio.gather(*waiting)
    assert {response.status_code for response in responses} == {202}
    for response in responses:
        await admin.delete(response.headers["location"])


async def test_without_keys_jobs_answer_this_machine_alone(job_runtime: Runtime) -> None:
    client = client_of(create_app(job_runtime), "10.0.0.7")
    for method, path in (("POST", "train"), ("GET", "jobs"), ("GET", "jobs/x"), ("DELETE", "jobs/x")):
        response = await client.request(method, f"/admin/{path}", json={"id": "x"})
        assert response.status_code == 403
