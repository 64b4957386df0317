"""Features as the server describes them, and a label as a person sends it."""

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
        description="A few words on one line. Null removes the person's label; the next best label then shows again.",
        examples=["bridges"],
        json_schema_extra={"required": True},
    )

    @model_validator(mode="before")
    @classmethod
    def _require_label(cls, data: Any) -> Any:  # noqa: ANN401 whatever the client sent
        # Null must be sent explicitly: a body without the key would remove a label by accident.
        if isinstance(data, dict) and "label" not in data:
            message = "Missing required parameter: 'label'. Send a text, or null to remove a person's label."
            raise InvalidRequestError(message, param="label", code="missing_required_parameter")
        return data

    @field_validator("label")
    @classmethod
    def _check_label(cls, label: str | None) -> str | None:
        if label is None:
            return None
        if not is_one_line(label):
            message = "label must be one line of visible text, or null to remove a person's label."
            raise InvalidRequestError(message, param="label")
        return clean_label(label, MAX_LABEL_CHARS)


class LabelObject(ResponseModel):
    """One label of a feature."""

    text: str = Field(description="The label: a few words.")
    origin: LabelOrigin = Field(
        description="Origin of the label: a `person`, a language model (`llm`), `neuronpedia`, or the tokens that the "
        "feature peaks at (`peak`), promotes (`promoted`) or occurs among (`words`)."
    )
    score: float | None = Field(
        description="How well the label predicts the feature's activity (`llm`), or the label's purity (labels made of "
        "tokens); null if not measured."
    )
    created: float = Field(description="Unix time in seconds.")
    author: str | None = Field(description="Name of the language model that wrote the label; null for other origins.")


class Snippet(ResponseModel):
    """A piece of text around a token at which the feature was active."""

    tokens: list[str] = Field(description="The text, token by token.")
    activations: list[float] = Field(description="The feature's activation at each token.")
    peak: int = Field(description="Index of the token that the snippet was chosen for.")
    interval: int | None = Field(
        description="Fifth of the activation range that the snippet was sampled from, 0 to 4; null if the snippet is "
        "one of the strongest."
    )


class PeakToken(ResponseModel):
    """A token at which the feature peaked."""

    token: str = Field(description="The token's text.")
    token_id: int = Field(description="The token's id.")
    count: int = Field(description="Number of peaks at this token.")


class ScoredToken(ResponseModel):
    """A token whose logit the feature's direction changes."""

    token: str = Field(description="The token's text.")
    token_id: int = Field(description="The token's id.")
    score: float = Field(description="Change of the token's logit, in standard deviations over the vocabulary.")


class Neighbour(ResponseModel):
    """A feature of the same dictionary with a similar direction."""

    feature: int = Field(description="Index of the neighbour in the dictionary.")
    cosine: float = Field(description="Cosine similarity of the two directions.")
    label: str | None = Field(description="Label of the neighbour; null if it has none.")


class FeatureSummary(ResponseModel):
    """The fields that a feature has in lists and on its own page."""

    object: Literal["feature"] = Field(default="feature", description="Always `feature`.")
    dictionary: str = Field(description="The dictionary's id.")
    feature: int = Field(description="Index of the feature in the dictionary.")
    label: str | None = Field(description="The label of the strongest origin; null if the feature has none.")
    label_origin: LabelOrigin | None = Field(description="Origin of `label`.")
    density: float | None = Field(description="Share of tokens at which the feature was active.")
    max: float | None = Field(description="Largest activation; 0 if the feature was never active.")
    dose: float | None = Field(
        description="Raw change of the activation that is one dose; null if the feature is not calibrated."
    )
    output_score: float | None = Field(
        description="Whether a larger activation makes the promoted tokens appear, from 0 to 1; null if the feature is "
        "not calibrated."
    )
    role: Role | None = Field(
        description="`writes`: a larger activation makes the promoted tokens appear. `reads`: it does not. Null if the "
        "feature is not calibrated."
    )


class FeatureRow(FeatureSummary):
    """A feature in a list."""

    relevance: float | None = Field(description="How well the feature matches the query; null without a query.")
    snippet: Snippet | None = Field(description="The strongest snippet; null if the feature was never active.")
    promoted: list[str] = Field(description="The tokens that the direction promotes most, strongest first.")


class FeatureList(ResponseModel):
    """Features in the requested order."""

    object: Literal["list"] = Field(default="list", description="Always `list`.")
    data: list[FeatureRow] = Field(description="The features.")
    has_more: bool = Field(description="Whether a larger `offset` returns more.")


class ActivityObject(ResponseModel):
    """How often and how strongly a feature was active in the text that was read."""

    tokens: int = Field(description="Number of tokens read, without special tokens and attention sinks.")
    active: int = Field(description="Number of tokens at which the feature was active.")
    mean: float = Field(description="Mean activation over the active tokens.")
    quantiles: dict[str, float] = Field(
        description="Quantiles 0.5, 0.75, 0.9, 0.95 and 0.99 of the activation over the active tokens."
    )
    histogram: list[int] = Field(
        description="Numbers of active tokens in equal bins of the activation, from 0 to the largest."
    )


class FeatureObject(FeatureSummary):
    """Everything that the feature store holds about a feature."""

    hook: str = Field(description="The dictionary's hook point.")
    labels: list[LabelObject] = Field(description="The label of each origin, strongest origin first.")
    activity: ActivityObject | None = Field(description="Activity statistics; null if the dictionary has none.")
    snippets: list[Snippet] = Field(
        description="The strongest snippets first, then some from each fifth of the activation range."
    )
    peak_tokens: list[PeakToken] = Field(description="Tokens at which the feature peaked, most frequent first.")
    promoted: list[ScoredToken] = Field(description="The tokens that the direction promotes most.")
    suppressed: list[ScoredToken] = Field(description="The tokens that the direction suppresses most.")
    nearest: list[Neighbour] = Field(description="The features with the most similar directions.")
