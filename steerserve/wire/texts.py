"""What texts are read for: the features that they activate, and those that tell two sets of them apart."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steerserve.core.errors import InvalidRequestError
from steerserve.core.literals import MIN_TEXTS, Role
from steerserve.wire.base import ResponseModel, StrictRequestModel, absent_if_none
from steerserve.wire.messages import MAX_MESSAGES, Message

MAX_TOP = 64
MAX_WATCHED = 64
MAX_DICTIONARIES = 16
MAX_TEXTS = 200
MAX_TEXT_CHARS = 20_000
MAX_LISTED = 100
MAX_EDITS = 16
_MAX_INDEX = 2**31 - 1

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
Texts = Annotated[list[Text], Field(min_length=MIN_TEXTS, max_length=MAX_TEXTS, fail_fast=True)]
FeatureIndex = Annotated[int, Field(ge=0, le=_MAX_INDEX)]


class InspectRequest(StrictRequestModel):
    """A text, or a conversation, to be read."""

    model: str | None = Field(default=None, description="The served model, the only one that can read.")
    text: str | None = Field(
        default=None,
        min_length=1,
        description="Read after a BOS where the model has one, as dictionaries are trained to.",
        examples=["The bridge is closed."],
    )
    messages: list[Message] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description="Instead of `text`: a conversation, in the model's template.",
    )
    add_generation_prompt: bool = Field(
        default=False, description="With `messages`: let the template open an assistant's turn after the last one."
    )
    dictionaries: list[str] = Field(
        default_factory=list, max_length=MAX_DICTIONARIES, description="Dictionary ids; the default one if empty."
    )
    top: int = Field(default=8, ge=0, le=MAX_TOP, description="How many of the strongest features to give.")
    watch: list[FeatureIndex] = Field(
        default_factory=list, max_length=MAX_WATCHED, description="Features to give at every token, whatever they are."
    )

    @model_validator(mode="after")
    def _one_text(self) -> InspectRequest:
        if (self.text is None) == (self.messages is None):
            message = "Send exactly one of 'text' and 'messages'."
            raise InvalidRequestError(message, param="text")
        return self


class ActiveFeature(ResponseModel):
    """A feature at a token."""

    feature: int = Field(description="Index into the dictionary.")
    activation: float = Field(description="What it is there.")
    label: str | None = Field(description="Null where there is none.")


class TokenActivations(ResponseModel):
    """What one dictionary reads at a token."""

    top: list[ActiveFeature] = Field(description="The strongest active features, the strongest first.")
    watch: list[float] = Field(description="Activations of the watched features, in the order of the request.")
    skipped: Literal["special", "sink"] | None = absent_if_none("Why the dictionary does not read this token.")


class InspectedToken(ResponseModel):
    """One token of the text."""

    token: str = Field(description="Its text; a part of a character reads as the replacement character.")
    token_id: int = Field(description="Its id.")
    position: int = Field(description="Its place, from 0.")
    dictionaries: dict[str, TokenActivations] = Field(description="By dictionary id.")


class StrongFeature(ActiveFeature):
    """A feature over the whole text; `activation` is its largest."""

    position: int = Field(description="Of the token where it is largest.")
    token: str = Field(description="That token's text.")
    mean_activation: float = Field(description="Over all tokens that the dictionary reads.")
    tokens_active: int = Field(description="At how many tokens it is active.")


class InspectionObject(ResponseModel):
    """What a text activates."""

    object: Literal["inspection"] = Field(default="inspection", description="Always this.")
    model: str = Field(description="The model's id.")
    tokens: list[InspectedToken] = Field(description="Every token, special ones included.")
    strongest: dict[str, list[StrongFeature]] = Field(description="By dictionary id: the strongest over the text.")


class ContrastRequest(StrictRequestModel):
    """Two sets of texts that differ in what is looked for, and in as little else as possible."""

    model: str | None = Field(default=None, description="The served model, the only one that can read.")
    positive: Texts = Field(description="Texts that have it.")
    negative: Texts = Field(description="Texts that do not.")
    dictionary: str | None = Field(default=None, description="Dictionary id; the default one if absent.")
    limit: int = Field(default=20, ge=1, le=MAX_LISTED, description="How many features to give.")
    max_edits: int = Field(default=3, ge=0, le=MAX_EDITS, description="How many edits `steering` may have.")


class ContrastFeature(ResponseModel):
    """A feature that tells the sets apart."""

    feature: int = Field(description="Index into the dictionary.")
    label: str | None = Field(description="Null where there is none.")
    auc: float = Field(
        description="Probability that its largest activation is larger on a positive text than on a negative one: "
        "1 marks the positive set, 0 the negative one."
    )
    held_out_auc: float = Field(
        description="Mean AUC on texts left out of whichever feature had this rank on the others; chance is .5."
    )
    p_value: float = Field(description="How often shuffled labels give any feature that separates as well.")
    mean_difference: float = Field(description="Of the largest activations: positive set less negative set.")
    positive_mean: float = Field(description="Mean of the largest activations on the positive texts.")
    negative_mean: float = Field(description="The same on the negative ones.")
    role: Role | None = Field(
        description="`writes`: pushing it makes its own tokens likely; `reads`: it does not. Null where not known."
    )
    output_score: float | None = Field(description="How likely; null where it has no calibration.")
    dose: float | None = Field(description="Raw change that counts as one dose; null where it has no calibration.")


class ContrastObject(ResponseModel):
    """The features that tell two sets of texts apart."""

    object: Literal["contrast"] = Field(default="contrast", description="Always this.")
    model: str = Field(description="The model's id.")
    dictionary: str = Field(description="The dictionary's id.")
    held_out_auc: float | None = Field(
        description="What the best feature on some of the texts reaches on the others; null where none differs."
    )
    data: list[ContrastFeature] = Field(description="The best first.")
    steering: list[dict[str, Any]] = Field(
        description="Edits that lead towards the positive set, for the field `steering`; only with p <= .05."
    )
    warnings: list[str] = Field(description="What to be careful about, in sentences.")
