"""Which features a text activates: from the request to its answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from steerserve.core.errors import ContextLengthError, InvalidRequestError
from steerserve.engine.background import drive_async
from steerserve.engine.inspection import Inspection
from steerserve.engine.readings import read_texts, text_ids
from steerserve.wire.texts import (
    ActiveFeature,
    InspectedToken,
    InspectionObject,
    StrongFeature,
    TokenActivations,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.readings import Span
    from steerserve.engine.request import FeatureReading
    from steerserve.requests.served import ServedModel
    from steerserve.wire.texts import InspectRequest

_MAX_ENTRIES = 200_000
"""Most activations in one answer; more would be tens of megabytes."""


async def inspect(served: ServedModel, body: InspectRequest) -> InspectionObject:
    """Return the features that a text or a conversation activates, at every token and over the whole text.

    Cancelling this stops before the next piece of the text is read.

    Raises:
        SteerserveError: the request cannot be honoured.
    """
    served.check_ready()
    served.check_plain_model(body.model)
    dictionaries = _dictionaries(served, body)
    ids = await asyncio.to_thread(_token_ids, served, body)
    if len(ids) * len(dictionaries) * max(body.top + len(body.watch), 1) > _MAX_ENTRIES:
        message = f"The answer would have over {_MAX_ENTRIES} activations. Send less text, or ask for a smaller 'top'."
        raise InvalidRequestError(message, param="top")
    special_ids = served.tokenizer.special_ids
    inspections = [
        Inspection(dictionary, top=body.top, watch=body.watch, special_ids=special_ids) for dictionary in dictionaries
    ]

    def take(span: Span) -> None:
        for inspection in inspections:
            inspection.take(span)

    hook_names = {name for dictionary in dictionaries for name in dictionary.hook_names}
    await drive_async(served.engine.run_exclusive, read_texts(served.lens, [ids], hook_names, take))
    return await asyncio.to_thread(_inspection, served, ids, inspections)


def _dictionaries(served: ServedModel, body: InspectRequest) -> list[Dictionary]:
    snapshot = served.registry.snapshot()
    if not body.dictionaries:
        dictionaries = [snapshot.find(None, "dictionaries")]
    else:
        names = dict.fromkeys(body.dictionaries)
        dictionaries = [snapshot.find(name, f"dictionaries[{body.dictionaries.index(name)}]") for name in names]
    for dictionary in dictionaries:
        for index, feature in enumerate(body.watch):
            if feature >= dictionary.d_sae:
                message = f"The dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}, not {feature}."
                raise InvalidRequestError(message, param=f"watch[{index}]")
    return dictionaries


def _token_ids(served: ServedModel, body: InspectRequest) -> tuple[int, ...]:
    if body.messages is not None:
        messages = [message.as_template_input() for message in body.messages]
        rendered = served.tokenizer.render_chat(messages, add_generation_prompt=body.add_generation_prompt)
        ids, param = tuple(rendered), "messages"
    else:
        ids, param = text_ids(served.tokenizer, body.text or ""), "text"
    if len(ids) > served.context_length:
        message = f"{param} has {len(ids)} tokens, and this server reads at most {served.context_length}."
        raise ContextLengthError(message, param=param)
    if not ids or max(ids) >= served.tokenizer.vocab_size:
        message = f"{param} has no token, or a token that the tokenizer has and the model does not."
        raise InvalidRequestError(message, param=param)
    return ids


def _inspection(served: ServedModel, ids: Sequence[int], inspections: Sequence[Inspection]) -> InspectionObject:
    texts = [served.tokenizer.token_text(token_id) for token_id in ids]
    tokens: list[dict[str, TokenActivations]] = [{} for _ in ids]
    strongest: dict[str, list[StrongFeature]] = {}
    for inspection in inspections:
        over_text = inspection.strongest()
        shown = {feature for token in inspection.tokens for feature, _ in token.top}
        labels = served.stores.labels(inspection.dictionary, shown | {strong.feature for strong in over_text})
        for entry, token in zip(tokens, inspection.tokens, strict=True):
            entry[inspection.dictionary.id] = _activations(token, labels)
        strongest[inspection.dictionary.id] = [
            StrongFeature(
                feature=strong.feature,
                activation=strong.activation,
                label=labels.get(strong.feature),
                position=strong.position,
                token=texts[strong.position],
                mean_activation=strong.mean_activation,
                tokens_active=strong.tokens_active,
            )
            for strong in over_text
        ]
    entries = [
        InspectedToken(token=text, token_id=token_id, position=position, dictionaries=entry)
        for position, (token_id, text, entry) in enumerate(zip(ids, texts, tokens, strict=True))
    ]
    return InspectionObject(model=served.model_id, tokens=entries, strongest=strongest)


def _activations(token: FeatureReading, labels: Mapping[int, str]) -> TokenActivations:
    top = [
        ActiveFeature(feature=feature, activation=activation, label=labels.get(feature))
        for feature, activation in token.top
    ]
    return TokenActivations(top=top, watch=list(token.watch), skipped=token.skipped)
