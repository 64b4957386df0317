"""The bytes of server-sent events."""

from __future__ import annotations

from steerserve.server.sse import event_bytes
from steerserve.wire.chat import Delta


def test_an_event_is_one_line_whatever_the_text_holds() -> None:
    text = "a\nb\r\nc\u2028d\u2029e\x85f\x0bg\x1ch"
    event = event_bytes(Delta(content=text)).decode()
    assert event.endswith("\n\n")
    assert len(event.removesuffix("\n\n").splitlines()) == 1
    assert Delta.model_validate_json(event.removeprefix("data: ")).content == text
