"""The id that every answer carries, and the line that the log has for it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import pytest

from steerserve.server.middleware import clean_request_id
from tests.server.asking import CHAT, chat

if TYPE_CHECKING:
    import httpx


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/nowhere"), ("PUT", CHAT), ("POST", CHAT)])
async def test_every_answer_carries_an_id(client: httpx.AsyncClient, method: str, path: str) -> None:
    made = (await client.request(method, path)).headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9a-f]{32}", made)
    sent = await client.request(method, path, headers={"x-request-id": "mine-1"})
    assert sent.headers.get_list("x-request-id") == ["mine-1"]


@pytest.mark.parametrize(
    ("sent", "cleaned"),
    [("abc", "abc"), ("a b\tc", "abc"), ("a\r\nset-cookie: x", "aset-cookie:x"), ("é~", "~"), ("x" * 500, "x" * 128)],
)
def test_an_id_is_reduced_to_visible_ascii(sent: str, cleaned: str) -> None:
    assert clean_request_id(sent) == cleaned


@pytest.mark.parametrize("sent", [None, "", "  ", "éé"])
def test_an_id_without_anything_usable_is_replaced(sent: str | None) -> None:
    assert clean_request_id(sent).startswith("req_")


async def test_a_finished_request_is_one_line_with_counts_and_no_text(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    secret = [{"role": "user", "content": "swordfish"}]
    body = chat(messages=secret, ignore_eos=True, stream=True, steering=[{"feature": 3, "scale": 1.0}])
    response = await client.post(CHAT, json=body, headers={"x-request-id": "mine"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "steerserve.server.summary"]
    assert re.fullmatch(
        r"request mine POST /v1/chat/completions id=chatcmpl-\w+ status=200 prompt_tokens=51 generated_tokens=4 "
        r"ttft_ms=\d+\.\d total_ms=\d+\.\d finish=length edits=1",
        line,
    )
    assert "swordfish" not in caplog.text
    assert response.status_code == 200


async def test_probes_are_not_logged_at_info(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="steerserve")
    await client.get("/health")
    await client.get("/metrics")
    assert caplog.records == []


async def test_a_path_cannot_write_lines_of_its_own(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="steerserve")
    await client.get("/x%0arequest%20forged")
    (record,) = caplog.records
    assert "unmatched" in record.getMessage()
    assert "\n" not in record.getMessage()
