"""Presets over HTTP: named by requests, listed as models, changed while serving, administrated."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.config import ServerSettings
from steerserve.presets.library import PresetLibrary
from steerserve.runtime import build_runtime
from steerserve.server.app import create_app
from tests.presets.broken import broken_files
from tests.server.asking import CHAT, COMPLETIONS, chat, client_of, completion, events_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import httpx

    from steerserve.core.config import Settings
    from steerserve.runtime import Runtime

ADMIN = "/admin/presets"
YAML = {"content-type": "application/yaml"}
STRONG = "name: {}\nedits: [{{feature: 3, scale: 9.0}}]\n"
WEAK = "name: {}\nedits: [{{feature: 5, scale: 0.25, positions: generated}}]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("presets")


@pytest.fixture(scope="module")
def presets_runtime(settings: Settings, folder: Path) -> Iterator[Runtime]:
    changed = settings.model_copy(update={"presets_dir": folder})
    with build_runtime(changed) as started:
        yield started


@pytest.fixture
async def client(presets_runtime: Runtime, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(presets_runtime)) as opened:
        yield opened
    empty(folder)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def files_in(folder: Path, pattern: str = "**/*") -> list[str]:
    return sorted(file.name for file in folder.glob(pattern) if file.is_file())


def write(folder: Path, name: str, text: str = STRONG) -> None:
    (folder / f"{name}.yaml").write_text(text.replace("{{", "{").replace("}}", "}").replace("{}", name))


async def asked(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    answer = await client.post(CHAT, json=chat(**fields))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def refused(client: httpx.AsyncClient, status: int = 400, **fields: object) -> dict[str, Any]:
    answer = await client.post(CHAT, json=chat(**fields))
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


async def put(client: httpx.AsyncClient, name: str, text: str, **headers: str) -> httpx.Response:
    return await client.put(f"{ADMIN}/{name}", content=text.encode(), headers={**YAML, **headers})


async def test_a_preset_does_what_its_edits_do_however_it_is_named(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "strong")
    edits = [{"feature": 3, "scale": 9.0}]
    sent, plain = await asked(client, steering=edits), await asked(client)
    assert sent["choices"] != plain["choices"]
    for fields in (
        {"steering": "strong"},
        {"steering": ["strong"]},
        {"steering": {"presets": ["strong"]}},
        {"model": "tiny@strong"},
    ):
        found = await asked(client, **fields)
        assert found["choices"] == sent["choices"]
        assert found["steering"]["fingerprint"] == sent["steering"]["fingerprint"]
        assert found["model"] == fields.get("model", "tiny")


async def test_model_and_steering_add_up(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "strong")
    write(folder, "weak", WEAK)
    both = await asked(client, model="tiny@strong+weak")
    assert both["model"] == "tiny@strong+weak"
    for fields in ({"model": "tiny@strong", "steering": "weak"}, {"steering": ["strong", "weak"]}):
        assert (await asked(client, **fields))["steering"]["fingerprint"] == both["steering"]["fingerprint"]
    more = await asked(client, model="tiny@strong", steering=["weak", {"feature": 7, "scale": 1.0}])
    assert [edit["feature"] for edit in more["steering"]["edits"]] == [3, 5, 7]


async def test_a_stream_and_a_raw_completion_echo_the_name(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "strong")
    events = events_of(await client.post(CHAT, json=chat(model="tiny@strong", stream=True)))
    assert {event["model"] for event in events} == {"tiny@strong"}
    raw = (await client.post(COMPLETIONS, json=completion(model="tiny@strong"))).json()
    assert (raw["model"], len(raw["steering"]["edits"])) == ("tiny@strong", 1)


async def test_presets_that_there_are_not_are_refused_with_the_nearest(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "strong")
    for name in ("stron", "strong+stron", "stron+strong"):
        error = await refused(client, model=f"tiny@{name}")
        assert (error["param"], error["type"]) == ("model", "invalid_request_error")
        assert "'stron'. Did you mean 'strong'?" in error["message"]
    error = await refused(client, steering=["strong", "stron"])
    assert error["param"] == "steering.presets[1]"
    assert "Did you mean 'strong'?" in error["message"]
    for model in ("tiny@", "tiny@strong+", "tiny@+strong", "tiny@+"):
        assert "has an empty preset name" in (await refused(client, model=model))["message"]
    assert (await refused(client, 404, model="other@strong"))["code"] == "model_not_found"
    error = await refused(client, steering=["strong"] * 65)
    assert (error["param"], "at most 64 presets" in error["message"]) == ("steering.presets", True)
    assert (await refused(client, model="tiny@" + "+".join(["strong"] * 65)))["param"] == "model"


async def test_a_preset_for_another_model_is_refused_with_both_names(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "big", "name: {}\nmodel: someone/Big-Model\nsystem: x\n")
    message = (await refused(client, model="tiny@big"))["message"]
    assert "'someone/Big-Model'" in message
    assert "'tiny'" in message
    assert [one["id"] for one in (await client.get("/v1/models")).json()["data"]] == ["tiny"]
    assert (await client.get("/ready")).json() == {"status": "ready", "reasons": []}
    (listed,) = (await client.get(ADMIN)).json()["data"]
    assert "'someone/Big-Model'" in listed["problem"]


async def test_a_preset_of_a_dictionary_that_is_not_loaded_is_refused(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "lost", "name: {}\nedits: [{{feature: 3, scale: 1, dictionary: res9}}]\n")
    error = await refused(client, model="tiny@lost")
    assert error["param"] == "model"
    assert "The preset 'lost' cannot be used here: There is no dictionary 'res9'." in error["message"]


async def test_what_reads_and_does_not_generate_takes_no_preset(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "strong")
    for path, body in (
        ("/v1/features/inspect", {"text": "hi"}),
        ("/admin/interpret", {"dictionaries": ["res0"], "corpus": "path:x"}),
        ("/admin/train", {"id": "new"}),
    ):
        answer = await client.post(path, json={**body, "model": "tiny@strong"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
        assert "Send 'model': 'tiny'" in answer.json()["error"]["message"]


async def test_models_are_listed_with_their_presets(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "strong")
    write(folder, "broken", "name: [")
    plain, steered = (await client.get("/v1/models")).json()["data"]
    assert (plain["id"], plain["parent"]) == ("tiny", None)
    assert (steered["id"], steered["parent"], steered["root"]) == ("tiny@strong", "tiny", "tiny")
    assert (await client.get("/v1/models/tiny@strong")).json() == steered
    assert (await client.get("/v1/models/tiny@strong+strong")).json()["parent"] == "tiny"
    gone = await client.get("/v1/models/tiny@stron")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert "Did you mean 'strong'?" in gone.json()["error"]["message"]


async def prompt_tokens(client: httpx.AsyncClient, **fields: object) -> int:
    return int((await asked(client, **fields))["usage"]["prompt_tokens"])


async def test_the_system_prompt_is_used_where_the_request_brings_none(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "brief", "name: {}\nsystem: Be brief.\n")
    write(folder, "kind", "name: {}\nsystem: Be kind.\n")
    user = {"role": "user", "content": "hi"}

    def with_system(text: str, role: str = "system") -> list[dict[str, str]]:
        return [{"role": role, "content": text}, user]

    brief = await asked(client, model="tiny@brief", max_tokens=12)
    assert brief["choices"] == (await asked(client, messages=with_system("Be brief."), max_tokens=12))["choices"]
    assert brief["choices"] != (await asked(client, max_tokens=12))["choices"]
    plain = await asked(client)
    assert "steering" not in brief
    assert brief["system_fingerprint"] == plain["system_fingerprint"]
    for role in ("system", "developer"):
        own = with_system("Mine.", role)
        assert await prompt_tokens(client, model="tiny@brief", messages=own) == await prompt_tokens(
            client, messages=own
        )
    both = await prompt_tokens(client, model="tiny@kind", steering="brief")
    assert both == await prompt_tokens(client, messages=with_system("Be kind.\n\nBe brief."))
    raw = await client.post(COMPLETIONS, json=completion(model="tiny@brief"))
    assert raw.json()["usage"]["prompt_tokens"] == len("hi")


async def test_sampling_is_the_requests_then_the_presets_then_the_servers(
    client: httpx.AsyncClient, folder: Path, presets_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    submit = presets_runtime.submit

    def remember(requests: Any) -> Any:  # noqa: ANN401 those of the engine
        seen.extend(requests)
        return submit(requests)

    monkeypatch.setattr(presets_runtime, "submit", remember)
    defaults = presets_runtime.settings.sampling.model_copy(update={"temperature": 0.25, "top_k": 11})
    served = presets_runtime.settings.model_copy(update={"sampling": defaults})
    monkeypatch.setattr(presets_runtime, "settings", served)
    write(
        folder,
        "set",
        "name: {}\nsampling: {{temperature: 0.5, top_p: 0.9, presence_penalty: 1, stop: [zz], max_tokens: 3,"
        " seed: 5}}\n",
    )
    write(folder, "later", "name: {}\nsampling: {{temperature: 0.75, frequency_penalty: 0.5}}\n")
    bare: dict[str, Any] = {"model": "tiny@set", "messages": [{"role": "user", "content": "hi"}]}

    async def sampling(url: str = CHAT, **body: object) -> Any:  # noqa: ANN401 a request's
        assert (await client.post(url, json=body)).status_code == 200
        return seen[-1].sampling

    one = await sampling(**bare)
    assert (one.temperature, one.top_p, one.top_k, one.presence_penalty) == (0.5, 0.9, 11, 1.0)
    assert (one.stop, one.max_tokens, one.seed) == (("zz",), 3, 5)
    own: dict[str, Any] = {
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "stop": [],
        "max_tokens": 2,
        "seed": 6,
        "top_k": 0,
    }
    two = await sampling(**bare, **own)
    assert (two.temperature, two.top_p, two.presence_penalty, two.stop) == (1.0, 1.0, 0.0, ())
    assert (two.max_tokens, two.seed, two.top_k) == (2, 6, 0)
    three = await sampling(**bare, steering="later", temperature=None)
    assert (three.temperature, three.frequency_penalty, three.top_p) == (0.75, 0.5, 0.9)
    four = await sampling(COMPLETIONS, model="tiny@set", prompt="hi")
    assert (four.temperature, four.max_tokens, four.seed) == (0.5, 3, 5)
    assert (await sampling(COMPLETIONS, model="tiny@set", prompt="hi", max_tokens=5)).max_tokens == 5
    write(folder, "long", "name: {}\nsampling: {{max_tokens: 1000000, temperature: 0}}\n")
    rest = presets_runtime.context_length - 2
    assert (
        await sampling(COMPLETIONS, model="tiny@long", prompt="hi", stop_token_ids=[*range(256)])
    ).max_tokens == rest


async def test_a_change_is_live_at_the_next_request_and_a_broken_one_changes_nothing(
    client: httpx.AsyncClient, folder: Path
) -> None:
    for scale in (1.0, 2.0, 3.0):
        write(folder, "strong", STRONG.replace("9.0", str(scale)))
        assert (await asked(client, model="tiny@strong"))["steering"]["edits"][0]["scale"] == scale
    assert (await client.get("/ready")).json() == {"status": "ready", "reasons": []}
    write(folder, "strong", "name: {}\nedits: [{{feature: 3, scale: 4.0")
    ready = await client.get("/ready")
    assert ready.status_code == 200
    (broken,) = ready.json()["presets"]["broken"]
    assert broken["name"] == "strong"
    assert broken["message"].startswith("strong.yaml:2:32: not valid YAML")
    assert (await asked(client, model="tiny@strong"))["steering"]["edits"][0]["scale"] == 3.0
    assert "tiny@strong" in (await client.get("/v1/models")).text
    (listed,) = (await client.get(ADMIN)).json()["data"]
    assert (listed["problem"], listed["edits"][0]["scale"]) == (broken["message"], 3.0)
    write(folder, "strong", STRONG.replace("9.0", "4.0"))
    assert (await client.get("/ready")).json() == {"status": "ready", "reasons": []}
    assert (await asked(client, model="tiny@strong"))["steering"]["edits"][0]["scale"] == 4.0
    (folder / "strong.yaml").unlink()
    assert "There is no preset 'strong'" in (await refused(client, model="tiny@strong"))["message"]


async def test_a_preset_that_never_was_good_says_where_it_is_wrong(client: httpx.AsyncClient, folder: Path) -> None:
    write(folder, "bad", "name: {}\nedits: [{{feature: 3}}]\n")
    error = await refused(client, model="tiny@bad")
    assert "bad.yaml:2:9: edits[0].scale: mode add needs a scale" in error["message"]
    assert (await client.head("/ready")).status_code == 200


async def test_a_preset_is_put_listed_used_replaced_and_deleted(client: httpx.AsyncClient, folder: Path) -> None:
    first, second = STRONG.format("mine"), WEAK.format("mine") + "# with a comment\n"
    made = await put(client, "mine", first)
    assert made.status_code == 201
    assert (made.json()["name"], made.json()["id"], made.json()["origin"]) == ("mine", "tiny@mine", "folder")
    assert (made.json()["text"], made.json()["has_previous"]) == (first, False)
    assert (await client.get(f"{ADMIN}/mine")).json() == made.json()
    assert (await asked(client, model="tiny@mine"))["steering"]["edits"][0]["feature"] == 3
    assert (await client.get(f"{ADMIN}/mine?version=previous")).status_code == 404
    assert (await put(client, "mine", second)).status_code == 200
    assert (folder / "mine.yaml").read_text() == second
    assert (await asked(client, model="tiny@mine"))["steering"]["edits"][0]["feature"] == 5
    before = await client.get(f"{ADMIN}/mine", params={"version": "previous"})
    assert (before.json()["text"], before.json()["edits"][0]["feature"]) == (first, 3)
    # The way back: what was before is put again.
    text = await client.get(f"{ADMIN}/mine?version=previous", headers={"accept": "application/yaml"})
    assert (text.text, text.headers["content-type"]) == (first, "application/yaml; charset=utf-8")
    assert (await put(client, "mine", text.text)).status_code == 200
    gone = await client.delete(f"{ADMIN}/mine")
    assert gone.json() == {"name": "mine", "object": "preset", "deleted": True}
    assert not (folder / "mine.yaml").exists()
    assert (await client.get(f"{ADMIN}/mine?version=previous")).json()["text"] == first
    assert (await client.delete(f"{ADMIN}/mine")).status_code == 404
    assert (await client.get(f"{ADMIN}/mine")).json()["error"]["code"] == "preset_not_found"
    assert (await client.get(ADMIN)).json() == {"object": "list", "data": [], "has_more": False}


async def test_json_is_put_as_yaml_that_says_the_same(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {
        "name": "mine",
        "description": "on: 1e3 \u2028 \U0001f600",
        "system": None,
        "edits": [
            {"feature": 3, "scale": 1e-7, "unit": None},
            {"vector": {"hook": "blocks.0.hook_resid_post", "values": [1] * 48}, "scale": 1},
        ],
        "sampling": {"stop": ["yes", "\n"], "seed": 3},
    }
    made = await client.put(f"{ADMIN}/mine", json=body)
    assert made.status_code == 201, made.text
    found = made.json()
    assert re.match(r"# yaml-language-server: \$schema=\S+\nname: mine\n", found["text"])
    assert (found["description"], found["system"], found["sampling"]) == (body["description"], None, body["sampling"])
    assert found["edits"][0] == {"feature": 3, "scale": 1e-7}
    assert (await put(client, "mine", found["text"])).json()["edits"] == found["edits"]
    wrong = await client.put(f"{ADMIN}/mine", json=body | {"edits": [{"featur": 3}]})
    assert wrong.json()["error"]["param"] == "edits[0].featur"
    assert wrong.json()["error"]["message"].startswith("mine.yaml:2:29: ")
    for content in (b"[1]", b"3", b"null", b'{"name": "mine"', b'\t{"name":\t"mine",\t"edits":[3]}', b"\xff"):
        answer = await client.put(f"{ADMIN}/mine", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, content
    assert (await client.get(f"{ADMIN}/mine")).json()["edits"] == found["edits"]


@pytest.mark.parametrize(
    ("rest", "param", "said"),
    [
        ("edits: [{feature: 96, scale: 1}]", "edits[0].feature", "mine.yaml:2:10: edits[0].feature: "),
        (
            "edits: [{feature: 3, scale: 1, dictionary: res9}]",
            "edits[0].dictionary",
            "mine.yaml:2:32: There is no dict",
        ),
        ("edits:\n- {feature: 1, scale: 1}\n- {feature: 2, scale: 1, unit: max}", "edits[1].unit", "mine.yaml:4:26: "),
        ("edits: [{vector: polite, scale: 1}]", "edits[0].vector", "mine.yaml:2:10: "),
        (
            "edits: [{vector: {hook: blocks.9.hook_resid_post, values: [1]}, scale: 1}]",
            "edits[0].vector.hook",
            ":2:19: ",
        ),
        ("edits: [{feature: 3}]", "edits[0].scale", "mine.yaml:2:9: "),
        ("model: big\nsystem: x", "model", "mine.yaml:2:1: The preset 'mine' was made for the model 'big'"),
        (
            "system: x\nchecks: [{prompt: hi, activates: {feature: 99, above: 1}}]",
            "checks[0].activates.feature",
            ":3:35: ",
        ),
        (
            "system: x\nchecks: [{prompt: hi, activates: {feature: 9, dictionary: x, above: 1}}]",
            "checks[0].activates.dictionary",
            ":3:47: ",
        ),
        ("system: x\nsistem: y", "sistem", "mine.yaml:3:1: sistem is not known; did you mean system?"),
    ],
)
async def test_what_cannot_be_used_is_not_put(
    client: httpx.AsyncClient, folder: Path, rest: str, param: str, said: str
) -> None:
    answer = await put(client, "mine", f"name: mine\n{rest}\n")
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["code"]
    assert said in error["message"]
    assert not (folder / "mine.yaml").exists()


async def test_no_broken_text_is_put_and_none_is_a_bug(client: httpx.AsyncClient, folder: Path) -> None:
    for text, line in broken_files():
        if line is None:
            continue
        answer = await put(client, "formal", text)
        error = answer.json()["error"]
        assert (answer.status_code, error.keys()) == (400, {"message", "type", "param", "code"}), text
        assert error["message"].startswith(f"formal.yaml:{line}:"), text
    for data in (b"\xff\xfe", b"\x00" * 100, b"name: formal\nsystem: \xe9"):
        answer = await client.put(f"{ADMIN}/formal", content=data, headers=YAML)
        assert answer.status_code == 400
    assert files_in(folder) == []


@pytest.mark.parametrize("name", ["..%2Fup", "%2e%2e", "a%2Fb", "Formal", ".hidden", "a@b", "a+b", "x" * 65, "%00"])
async def test_names_that_are_none_are_refused(client: httpx.AsyncClient, folder: Path, name: str) -> None:
    answer = await put(client, name, STRONG.format("x"))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")
    for method in ("GET", "DELETE"):
        assert (await client.request(method, f"{ADMIN}/{name}")).status_code == 404
    assert files_in(folder) == []
    assert not (folder.parent / "up.yaml").exists()


async def test_bodies_that_are_no_presets_are_refused(client: httpx.AsyncClient, folder: Path) -> None:
    text = STRONG.format("mine")
    for kind in ("text/yaml", "text/plain; charset=utf-8", "application/x-yaml"):
        assert (await put(client, "mine", text, **{"content-type": kind})).status_code in {200, 201}
    for kind in ("application/octet-stream", "multipart/form-data", ""):
        answer = await put(client, "mine", text, **{"content-type": kind})
        assert (answer.status_code, "Content-Type" in answer.json()["error"]["message"]) == (400, True)
    large = await put(client, "mine", text + "#" * 300_000)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    other = await put(client, "other", text)
    assert "write name: other" in other.json()["error"]["message"]
    assert (folder / "mine.yaml").read_text() == text


async def test_texts_put_at_once_never_mix(client: httpx.AsyncClient, folder: Path) -> None:
    texts = [f"{STRONG.format('mine')}# {str(place) * 500}\n" for place in range(6)]
    answers = await asyncio.gather(*(put(client, "mine", text) for text in texts * 2))
    assert {answer.status_code for answer in answers} <= {200, 201}
    assert (folder / "mine.yaml").read_text() in texts
    assert (folder / ".previous" / "mine.yaml").read_text() in texts
    assert files_in(folder) == ["mine.yaml", "mine.yaml"]


async def test_a_broken_file_can_be_seen_replaced_and_deleted(client: httpx.AsyncClient, folder: Path) -> None:
    for change in ("delete", "put"):
        write(folder, "bad", "name: [")
        found = (await client.get(f"{ADMIN}/bad")).json()
        assert (found["text"], found["edits"], found["version"]) == ("name: [", [], None)
        assert "bad.yaml:1:8" in found["problem"]
        if change == "put":
            assert (await put(client, "bad", STRONG.format("bad"))).status_code == 200
        else:
            assert (await client.delete(f"{ADMIN}/bad")).status_code == 200
        assert (await client.get("/ready")).json() == {"status": "ready", "reasons": []}
        previous = (await client.get(f"{ADMIN}/bad?version=previous")).json()
        assert (previous["text"], "bad.yaml:1:8" in previous["problem"]) == ("name: [", True)


async def test_presets_are_for_admins(presets_runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ServerSettings.model_validate({"api_keys": ["user"], "admin_keys": ["boss"]})
    keyed = presets_runtime.settings.model_copy(update={"server": server})
    monkeypatch.setattr(presets_runtime, "settings", keyed)
    async with client_of(create_app(presets_runtime)) as client:
        for method, path in (("GET", ADMIN), ("GET", f"{ADMIN}/x"), ("PUT", f"{ADMIN}/x"), ("DELETE", f"{ADMIN}/x")):
            for key, status in ((None, 401), ("user", 403), ("wrong", 401)):
                headers = {"authorization": f"Bearer {key}"} if key else {}
                answer = await client.request(method, path, headers=headers, content=b"x" * 500_000)
                assert answer.status_code == status
        assert (await client.get(ADMIN, headers={"authorization": "Bearer boss"})).status_code == 200
    assert files_in(folder) == []


async def test_a_folder_that_cannot_be_written_is_the_servers_fault(client: httpx.AsyncClient, folder: Path) -> None:
    assert (await put(client, "mine", STRONG.format("mine"))).status_code == 201
    (folder / ".previous").symlink_to(folder.parent)
    answer = await put(client, "mine", WEAK.format("mine"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "presets_unwritable")
    assert (await client.get(f"{ADMIN}/mine")).json()["edits"][0]["feature"] == 3


def test_the_document_says_that_yaml_is_read(presets_runtime: Runtime) -> None:
    document = create_app(presets_runtime).openapi()
    content = document["paths"]["/admin/presets/{name}"]["put"]["requestBody"]["content"]
    assert set(content) == {"application/yaml", "application/json"}
    assert json.dumps(document["components"]["schemas"]["PresetFile"])


async def test_a_put_answers_with_what_it_wrote_whatever_is_there_by_then(
    client: httpx.AsyncClient, folder: Path, presets_runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file = PresetLibrary.put

    def put_and_lose(self: PresetLibrary, name: str, text: str) -> bool:
        is_new = write_file(self, name, text)
        (folder / f"{name}.yaml").unlink()
        return is_new

    monkeypatch.setattr(PresetLibrary, "put", put_and_lose)
    text = STRONG.replace("{}", "mine", 1).replace("{{", "{").replace("}}", "}")
    answer = await put(client, "mine", text)
    assert (answer.status_code, answer.json()["text"], answer.json()["origin"]) == (201, text, "folder")
    assert answer.json()["edits"] == [{"feature": 3, "scale": 9.0}]
    assert not presets_runtime.presets.snapshot().presets


async def test_presets_of_what_is_not_loaded_are_listed_with_why_and_not_as_models(
    client: httpx.AsyncClient, folder: Path, presets_runtime: Runtime
) -> None:
    write(folder, "strong")
    write(folder, "lost", "name: {}\nedits: [{{feature: 3, scale: 1, dictionary: res9}}]\n")
    write(folder, "far", "name: {}\nedits: [{{feature: 300, scale: 1}}]\n")
    write(folder, "unvectored", "name: {}\nedits: [{{vector: no-such, scale: 1}}]\n")

    async def problems() -> dict[str, str | None]:
        return {one["name"]: one.get("problem") for one in (await client.get(ADMIN)).json()["data"]}

    async def models() -> list[str]:
        return [one["id"] for one in (await client.get("/v1/models")).json()["data"]]

    for _ in range(2):
        found = await problems()
        assert found["strong"] is None
        assert str(found["lost"]).startswith("lost.yaml:2:32: There is no dictionary 'res9'")
        assert str(found["far"]).startswith("far.yaml:2:10: ")
        assert "no-such" in str(found["unvectored"])
        assert await models() == ["tiny", "tiny@strong"]
    gone = await client.get("/v1/models/tiny@lost")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert "'res9'" in gone.json()["error"]["message"]
    assert (await client.get("/ready")).json() == {"status": "ready", "reasons": []}
    source = presets_runtime.registry.snapshot().find(None, "dictionary").source
    presets_runtime.dictionary_library.load("res9", source)
    try:
        assert await models() == ["tiny", "tiny@lost", "tiny@strong"]
    finally:
        presets_runtime.dictionary_library.unload("res9")
    assert await models() == ["tiny", "tiny@strong"]


async def test_a_folder_in_place_of_a_preset_is_said_without_its_path(client: httpx.AsyncClient, folder: Path) -> None:
    (folder / "mine.yaml").mkdir()
    for answer in (await put(client, "mine", "name: mine\nsystem: x\n"), await client.delete(f"{ADMIN}/mine")):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")
        assert answer.json()["error"]["message"].startswith("mine.yaml in the folder of presets is itself a folder")
    (folder / "mine.yaml").rmdir()


async def test_a_name_that_ends_in_a_line_break_is_not_the_name_without_it(
    client: httpx.AsyncClient, folder: Path
) -> None:
    write(folder, "a")
    url = f"{ADMIN}/a%0a"
    for answer in (
        await client.put(url, content=b"name: a\nsystem: x\n", headers=YAML),
        await client.get(url),
        await client.delete(url),
    ):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")
        assert "not a name for a preset" in answer.json()["error"]["message"]
    assert files_in(folder) == ["a.yaml"]
    assert "9.0" in (folder / "a.yaml").read_text()
