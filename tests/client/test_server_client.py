"""The client of a server: addresses, keys, refusals, streams and retries, over a real socket and in a process."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from steerserve.client.answers import RefusedError, ServerError
from steerserve.client.served import default_dictionary, describe_server, served_model
from steerserve.client.server_client import AsyncServerClient, ServerClient, base_url, environment_key
from steerserve.core.errors import ConfigError
from tests.bench.stub import Stub, served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

pytestmark = pytest.mark.slow

KEY = "right"


@dataclass
class Answers(Stub):
    """A server that answers `/echo` with what it was sent and `/answer` with what the test put here."""

    stream: str = ""
    answers: list[Response] = field(default_factory=list)

    async def echo(self, request: Request) -> Response:
        return JSONResponse({"key": request.headers.get("authorization"), "body": await request.json()})

    async def answer(self, _: Request) -> Response:
        return self.answers.pop(0)

    async def events(self, _: Request) -> Response:
        return Response(self.stream, media_type="text/event-stream")

    def app(self) -> Starlette:
        app = super().app()
        app.routes.extend(
            [
                Route("/v1/echo", self.echo, methods=["POST"]),
                Route("/v1/answer", self.answer, methods=["GET", "POST"]),
                Route("/v1/events", self.events, methods=["POST"]),
            ]
        )
        return app


def refused(status: int, **error: object) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers={"retry-after": "0.1"})


@pytest.fixture
def server() -> Answers:
    return Answers()


@pytest.fixture
def client(server: Answers) -> Iterator[ServerClient]:
    with served(server) as url, ServerClient(url, KEY) as opened:
        yield opened


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
def test_an_address_may_end_with_v1(url: str) -> None:
    assert base_url(url) == "http://a:1"


@pytest.mark.parametrize("url", ["localhost:8000", "nonsense", "ftp://a", "http://a:b", "http://127.0.0.1:99999", ""])
def test_what_is_not_an_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is not the URL of a web server; write it as http://127\.0\.0\.1:8000\."):
        ServerClient(url, None)


def test_a_key_is_the_first_in_the_environment() -> None:
    environ = {"STEERSERVE_API_KEY": "", "STEERSERVE_API_KEYS": " a, b", "STEERSERVE_ADMIN_KEY": "c", "OTHER": "d"}
    assert environment_key(environ) == "a"
    assert environment_key(environ, "OTHER") == "d"
    assert environment_key({}) is None


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="The API key: a key is text of printable ASCII") as caught:
        ServerClient("http://a", "hush hush\n")
    assert "hush" not in caught.value.message


def test_objects_and_the_key_are_sent(client: ServerClient) -> None:
    assert client.post("/v1/echo", {"a": [1]}) == {"key": f"Bearer {KEY}", "body": {"a": [1]}}
    assert client.get("/health") == {"status": "ok"}


def test_a_refusal_keeps_the_servers_message_param_code_and_status(server: Answers, client: ServerClient) -> None:
    server.answers = [refused(400, message="n must be 1.", param="n", code="invalid_value")]
    with pytest.raises(RefusedError, match=r"^n must be 1\.$") as caught:
        client.get("/v1/answer")
    assert (caught.value.param, caught.value.code, caught.value.status) == ("n", "invalid_value", 400)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (refused(401, message="Send an API key."), ConfigError, "refuses the key, with status 401: Send an API key."),
        (refused(503, message="The queue is full."), ServerError, "answered 503: The queue is full."),
        (PlainTextResponse("oops", 500), ServerError, "answered 500: oops"),
        (PlainTextResponse("no such page", 404), RefusedError, "/v1/answer answered 404: no such page"),
        (PlainTextResponse("fine"), ServerError, "did not answer with a JSON object: fine"),
        (JSONResponse([1]), ServerError, "did not answer with a JSON object"),
    ],
)
def test_other_answers_are_errors_that_name_the_server(
    server: Answers, client: ServerClient, answer: Response, kind: type[Exception], message: str
) -> None:
    server.answers = [answer]
    with pytest.raises(kind, match=message):
        client.get("/v1/answer")


def test_events_come_with_their_names_until_the_end_mark(server: Answers, client: ServerClient) -> None:
    server.stream = ': hello\n\ndata: {"a": 1}\n\nevent: arm.done\ndata: {"b":\ndata: 2}\n\ndata: [DONE]\n\n'
    assert list(client.stream("/v1/events", {})) == [("message", {"a": 1}), ("arm.done", {"b": 2})]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ('data: {"error": {"message": "Out of memory."}}\n\n', "failed in the stream: Out of memory."),
        ('event: error\ndata: {"error": "Gone."}\n\n', "failed in the stream: Gone."),
        ("data: [1]\n\n", "sent an event that is not a JSON object"),
        ('data: {"a": 1}\n\n', "broke the stream off before its end"),
    ],
)
def test_a_stream_that_fails_is_an_error(server: Answers, client: ServerClient, stream: str, message: str) -> None:
    server.stream = stream
    with pytest.raises(ServerError, match=message):
        list(client.stream("/v1/events", {}))


def test_a_stream_that_is_refused_is_a_refusal(server: Answers, client: ServerClient) -> None:
    server.answers = [refused(400, message="n must be 1.", param="n")]
    with pytest.raises(RefusedError, match="n must be 1"):
        list(client.stream("/v1/answer", {}))


def test_a_server_that_is_not_there_is_named_with_what_to_do() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with ServerClient(url, None) as client, pytest.raises(ServerError, match=f"No server answers at {url} .*serve"):
            client.get("/v1/models")


def test_a_busy_server_is_asked_again_as_often_as_allowed(server: Answers) -> None:
    def busy() -> list[Response]:
        return [refused(429, message="Too much."), refused(503, message="Full."), JSONResponse({"ok": True})]

    with served(server) as url:
        server.answers = busy()
        with ServerClient(url, None, max_attempts=3) as client:
            assert client.get("/v1/answer") == {"ok": True}
        server.answers = busy()
        with ServerClient(url, None, max_attempts=2) as client, pytest.raises(ServerError, match="Full"):
            client.get("/v1/answer")


async def test_an_application_in_this_process_is_a_server_too(server: Answers) -> None:
    async with AsyncServerClient.inside(server.app(), KEY, max_attempts=2) as client:
        assert (await client.post("/v1/echo", {}))["key"] == f"Bearer {KEY}"
        server.answers = [refused(409, message="Busy."), JSONResponse({"ok": True}), refused(500, message="Broken.")]
        assert await client.get("/v1/answer") == {"ok": True}
        with pytest.raises(ServerError, match=r"the server in this process answered 500: Broken\."):
            await client.get("/v1/answer")
        server.stream = 'data: {"a": 1}\n\ndata: [DONE]\n\n'
        assert [event async for event in client.stream("/v1/events", {})] == [("message", {"a": 1})]
        server.stream = ""
        with pytest.raises(ServerError, match="broke the stream off"):
            [event async for event in client.stream("/v1/events", {})]


async def test_a_server_is_described_by_its_model_dictionaries_and_versions() -> None:
    async with AsyncServerClient.inside(Stub().app(), None) as client:
        description = await describe_server(client)
    assert (description.model, description.version) == ("tiny", {"version": "0.0.1", "torch": "9.9"})
    assert [dictionary["id"] for dictionary in description.dictionaries] == ["other", "main"]
    assert (default_dictionary(description.dictionaries) or {})["id"] == "main"
    async with AsyncServerClient.inside(Stub(has_dictionary=False).app(), None) as client:
        assert (await describe_server(client)).dictionaries == ()


def test_a_server_without_a_model_is_an_error() -> None:
    listing: dict[str, Any] = {"data": [{"id": "tiny@p", "parent": "tiny"}]}
    with pytest.raises(ServerError, match="http://a serves no model"):
        served_model(listing, "http://a")
    assert default_dictionary(()) is None
    with contextlib.suppress(ServerError):
        served_model({"data": None}, "http://a")
