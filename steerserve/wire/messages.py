"""The messages of a conversation, as a client sends them and as the chat template takes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from steerserve.wire.base import Identifier, RequestModel

MAX_MESSAGES = 4096
"""Largest number of messages in a conversation."""
_OTHER_MEDIA = frozenset({"image_url", "input_audio", "file", "video_url", "audio_url", "input_image", "input_file"})
_TOOL_FIELDS = ("tool_calls", "function_call", "audio")


class TextPart(RequestModel):
    """A part of a message's content."""

    type: Literal["text", "refusal"] = Field(description="`text`; `refusal` only in an assistant's message.")
    text: str = Field(description="The text.")

    @model_validator(mode="before")
    @classmethod
    def _read_refusal(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if not isinstance(data, dict):
            return data
        if data.get("type") in _OTHER_MEDIA:
            raise PydanticCustomError(
                "unsupported_value",
                "{problem}",
                {"problem": f"content of type {data['type']!r} is not supported; this model reads only text"},
            )
        return {**data, "text": data.get("refusal")} if data.get("type") == "refusal" else data


def _content_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "string"
    return "parts" if isinstance(value, list) else None


MAX_PARTS = 4096

Content = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="one_or_many",
        custom_error_message="{expected}",
        custom_error_context={"expected": "a string or an array of content parts"},
    ),
]


class Message(RequestModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Author of the message. `developer` is treated as `system`."
    )
    content: Content = Field(
        description="A string, or text parts, which are joined by line breaks. An assistant's message may have "
        "`refusal` instead."
    )
    name: Identifier | None = Field(default=None, description="A participant's name, passed to the chat template.")
    tool_call_id: Identifier | None = Field(
        default=None, description="Id of the tool call that a tool's message answers, passed to the chat template."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_assistant(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        if not isinstance(data, dict) or data.get("role") != "assistant":
            return data
        for field in _TOOL_FIELDS:
            if data.get(field):
                problem = f"the model knows no tools and no audio, so it cannot read {field!r}; write it into 'content'"
                raise PydanticCustomError("unsupported_parameter", "{problem}", {"problem": problem})
        if data.get("content") is None and data.get("refusal") is not None:
            return {**data, "content": data["refusal"]}
        return data

    def as_template_input(self) -> dict[str, str]:
        """Return the message as chat templates take it, with its content as one string."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        names = {"name": self.name, "tool_call_id": self.tool_call_id}
        return {"role": self.role, "content": text} | {key: value for key, value in names.items() if value is not None}
