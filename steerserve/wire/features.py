"""What is known of features, as the server gives it, and a label as a person sends it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from steerserve.core.errors import InvalidRequestError
from steerserve.core.label_text import MAX_LABEL_CHARS, clean_label, is_one_line
from steerserve.core.literals import LabelOrigin, Role
from steerserve.wire.base import ResponseModel, StrictRequestModel


class LabelRequest(StrictRequestModel):
    """A person's label for a feature."""

    label: str | None = Field(
        default=None,
        max_length=MAX_LABEL_CHARS,
        description="A few words on one line; null takes a person's label away, and the next best one shows again.",
        examples=["bridges"],
        json_schema_extra={"required": True},
    )

    @model_validator(mode="before")
    @classmethod
    def _need_label(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        # Null must be said: a body without the key would take a label away by accident.
        if isinstance(data, dict) and "label" not in data:
            message = "Missing required parameter: 'label'. Send a text, or null to take a person's label away."
            raise InvalidRequestError(message, param="label", code="missing_required_parameter")
        return data

    @field_validator("label")
    @classmethod
    def _check_label(cls, label: str | None) -> str | None:
        if label is None:
            return None
        if not is_one_line(label):
            message = "label must be one line of visible text, or null to take a person's label away."
            raise InvalidRequestError(message, param="label")
        return clean_label(label, MAX_LABEL_CHARS)


class LabelObject(ResponseModel):
    """One label of a feature."""

    text: str = Field(description="A few words.")
    origin: LabelOrigin = Field(
        description="Who made it: a person, a language model (`llm`), `neuronpedia`, or what it fires on (`peak`), "
        "promotes (`promoted`) or stands among (`words`)."
    )
    score: float | None = Field(
        description="How well it predicts activity (`llm`), or how pure it is; null if unknown."
    )
    created: float = Field(description="Unix time in seconds.")
    author: str | None = Field(description="The name of the model that made it.")


class Snippet(ResponseModel):
    """A piece of text around a token where the feature was active."""

    tokens: list[str] = Field(description="The text, token by token.")
    activations: list[float] = Field(description="The feature's activation at each token.")
    peak: int = Field(description="Place of the token that the piece was chosen for.")
    interval: int | None = Field(
        description="Null for one of the strongest; else 0 to 4, the fifth of the range up to the maximum it is from."
    )


class PeakToken(ResponseModel):
    """A token at which the feature peaked."""

    token: str = Field(description="Its text.")
    token_id: int = Field(description="Its id.")
    count: int = Field(description="How often.")


class ScoredToken(ResponseModel):
    """A token whose logit the feature's direction changes."""

    token: str = Field(description="Its text.")
    token_id: int = Field(description="Its id.")
    score: float = Field(description="Change of its logit, in standard deviations over the vocabulary.")


class Neighbour(ResponseModel):
    """A feature of the same dictionary with a similar direction."""

    feature: int = Field(description="Its index.")
    cosine: float = Field(description="Of the two directions.")
    label: str | None = Field(description="Its label.")


class FeatureSummary(ResponseModel):
    """What a feature's row in a list and its own page both say."""

    object: Literal["feature"] = Field(default="feature", description="Always this.")
    dictionary: str = Field(description="What edits call its dictionary.")
    feature: int = Field(description="What edits call it.")
    label: str | None = Field(description="The label that wins.")
    label_origin: LabelOrigin | None = Field(description="Who made it.")
    density: float | None = Field(description="Share of tokens where it was active.")
    max: float | None = Field(description="Its largest activation; 0 for a feature that was never active.")
    dose: float | None = Field(description="Raw change of its activation that is one dose; null where not calibrated.")
    output_score: float | None = Field(description="Whether pushing it makes its own promoted tokens appear, 0 to 1.")
    role: Role | None = Field(description="`writes` what it promotes, or mostly `reads`; null where not calibrated.")


class FeatureRow(FeatureSummary):
    """A feature in a list."""

    relevance: float | None = Field(description="How well it matches the search; null in a plain list.")
    snippet: Snippet | None = Field(description="The strongest snippet.")
    promoted: list[str] = Field(description="Tokens that its direction promotes most, the first first.")


class FeatureList(ResponseModel):
    """Features, in the order that was asked for."""

    object: Literal["list"] = Field(default="list", description="Always this.")
    data: list[FeatureRow] = Field(description="The features.")
    has_more: bool = Field(description="Whether a larger `offset` gives more.")


class ActivityObject(ResponseModel):
    """How often and how strongly a feature was active in the text."""

    tokens: int = Field(description="Tokens that were read, special ones and sinks left out.")
    active: int = Field(description="Tokens where it was active.")
    mean: float = Field(description="Mean activation over these.")
    quantiles: dict[str, float] = Field(description="Of these, at 0.5, 0.75, 0.9, 0.95 and 0.99.")
    histogram: list[int] = Field(description="Of these, in equal bins from 0 to the largest activation.")


class FeatureObject(FeatureSummary):
    """All that is known of a feature."""

    hook: str = Field(description="The dictionary's hook point.")
    labels: list[LabelObject] = Field(description="The label of each origin, the winner first.")
    activity: ActivityObject | None = Field(description="Null where the dictionary was not interpreted.")
    snippets: list[Snippet] = Field(description="The strongest first, then some of each fifth of the range.")
    peak_tokens: list[PeakToken] = Field(description="Tokens at which it peaked, the most frequent first.")
    promoted: list[ScoredToken] = Field(description="Tokens that its direction promotes most.")
    suppressed: list[ScoredToken] = Field(description="Tokens that its direction suppresses most.")
    nearest: list[Neighbour] = Field(description="Features with the nearest directions.")
