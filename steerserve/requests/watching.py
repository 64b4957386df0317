"""From the field `features` to what the engine watches, and from the engine's readings to the entries of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError
from steerserve.core.findings import show_value
from steerserve.core.literals import JSON_WORDS
from steerserve.engine.request import Watch
from steerserve.wire.texts import ActiveFeature
from steerserve.wire.watching import WatchedActivations, WatchedToken

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.request import FeatureReading, TokenEvent, TokenReadings
    from steerserve.requests.served import ServedModel
    from steerserve.wire.watching import FeatureOptions

_MAX_PROMPT_ENTRIES = 200_000
"""Largest number of activations at the prompt tokens of one request; more would be tens of megabytes."""
_MAX_ENTRIES = 2_000_000
"""Largest number of activations of one request; each takes 300 to 700 bytes until the answer is written."""
_LEAST_COUNTED = 4
"""Cost of reading a token, counted in activations, even if fewer are returned."""
_LEAST_TOKENS = 256
"""Smallest limit that a sample is cut to if the client set none."""
_MAX_AT_ONCE = 2_000
"""Number of activations that the event loop writes itself, in about ten milliseconds."""


def resolve_watch(served: ServedModel, options: FeatureOptions | None) -> Watch | None:
    """Check the watched features of a request against the loaded dictionaries; None if it watches none.

    Raises:
        InvalidRequestError: a dictionary is not loaded, or a dictionary does not have a watched feature.
    """
    if options is None:
        return None
    snapshot = served.registry.snapshot()
    if options.dictionaries:
        names = options.dictionaries
        dictionaries = [
            snapshot.find(name, f"features.dictionaries[{names.index(name)}]") for name in dict.fromkeys(names)
        ]
    elif snapshot.default is not None:
        dictionaries = [snapshot.default]
    else:
        message = "No dictionary is loaded, so there are no features to watch. Start the server with --dictionary."
        raise InvalidRequestError(message, param="features")
    for dictionary in dictionaries:
        _check_features(dictionary, options.watch)
    return Watch(tuple(dictionaries), options.top, tuple(options.watch), options.prompt)


def watched_limits(
    watch: Watch | None,
    num_prompt_tokens: int,
    max_tokens: Sequence[int],
    *,
    num_samples: int,
    num_edits: int,
    can_cut: bool,
) -> list[int]:
    """Return how many tokens the samples of each prompt may have, so that activations cannot fill the memory.

    Args:
        watch: The watched features.
        num_prompt_tokens: Number of prompt tokens of all samples.
        max_tokens: For each prompt, how many tokens its context has room for.
        num_samples: Number of samples of each prompt.
        num_edits: Largest number of edits of a sample; each of them may add an activation.
        can_cut: Whether shorter samples are acceptable, because the client set no limit.

    Raises:
        InvalidRequestError: the answer would have too many activations.
    """
    if watch is None:
        return list(max_tokens)
    num_features = watch.top + len(watch.features)
    num_dictionaries = len(watch.dictionaries)
    if watch.prompt and (entries := num_prompt_tokens * num_dictionaries * max(num_features, 1)) > _MAX_PROMPT_ENTRIES:
        message = (
            f"The answer would have {entries} activations at prompt tokens, and at most {_MAX_PROMPT_ENTRIES} are "
            "allowed. Ask for a smaller 'top', for fewer choices, or leave out 'prompt'."
        )
        raise InvalidRequestError(message, param="features.prompt")
    cost = num_dictionaries * max(num_features, _LEAST_COUNTED) + num_edits
    num_read = num_prompt_tokens if watch.prompt else 0
    room = _MAX_ENTRIES // cost - num_read
    if num_samples * sum(max_tokens) <= room:
        return list(max_tokens)
    limit = room // (num_samples * len(max_tokens))
    if can_cut and limit >= _LEAST_TOKENS:
        return [min(tokens, limit) for tokens in max_tokens]
    num_tokens = num_read + num_samples * (_LEAST_TOKENS * len(max_tokens) if can_cut else sum(max_tokens))
    message = (
        f"The answer could have {num_tokens * cost} activations ({num_tokens} tokens, {num_dictionaries} dictionaries, "
        f"{num_features} features of each (at least {_LEAST_COUNTED} are counted) and {num_edits} edits), and at most "
        f"{_MAX_ENTRIES} are allowed. Ask for a smaller 'top', fewer features in 'watch', fewer samples or a smaller "
        "'max_tokens'."
    )
    raise InvalidRequestError(message, param="features.top")


def is_long(parts: Iterable[Sequence[TokenReadings] | None]) -> bool:
    """Tell whether writing these entries would hold up the event loop."""
    num_entries = sum(
        len(reading.top) + len(reading.watch) + len(reading.edited) + _LEAST_COUNTED
        for part in parts
        for token in part or ()
        for reading in token.readings.values()
    )
    return num_entries > _MAX_AT_ONCE


class FeatureWriter:
    """Writes the readings of tokens, with the labels of the features. Any thread."""

    def __init__(self, served: ServedModel, watch: Watch | None) -> None:
        """Write the readings of a request that watches `watch`."""
        self._stores = served.stores
        self._tokenizer = served.tokenizer
        self._dictionaries: Sequence[Dictionary] = watch.dictionaries if watch is not None else ()

    def of_choice(self, event: TokenEvent) -> list[WatchedToken] | None:
        """Return the entries of a whole choice; None if the request watches nothing."""
        return self.entries(event.features) if self._dictionaries else None

    def of_prompt(self, event: TokenEvent) -> list[WatchedToken] | None:
        """Return the entries of the choice's prompt; None if the request does not watch it."""
        return self.entries(event.prompt_features) if event.prompt_features is not None else None

    def entries(self, tokens: Sequence[TokenReadings]) -> list[WatchedToken]:
        """Return one entry for each token."""
        written: list[dict[str, WatchedActivations]] = [{} for _ in tokens]
        for dictionary in self._dictionaries:
            readings = [token.readings[dictionary.id] for token in tokens]
            labels = self._stores.labels(dictionary, _shown(readings))
            for entry, reading in zip(written, readings, strict=True):
                entry[dictionary.id] = _activations(reading, labels)
        return [
            WatchedToken(
                token=self._tokenizer.token_text(token.token_id),
                token_id=token.token_id,
                position=token.position,
                dictionaries=entry,
            )
            for token, entry in zip(tokens, written, strict=True)
        ]


def _check_features(dictionary: Dictionary, features: Sequence[int]) -> None:
    for index, feature in enumerate(features):
        if not 0 <= feature < dictionary.d_sae:
            message = (
                f"features.watch[{index}]: dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}, not "
                f"{show_value(feature, JSON_WORDS)}. Every dictionary in 'dictionaries' must have the watched features."
            )
            raise InvalidRequestError(message, param=f"features.watch[{index}]")


def _shown(readings: Iterable[FeatureReading]) -> set[int]:
    return {feature for reading in readings for feature, _ in reading.top}


def _activations(reading: FeatureReading, labels: dict[int, str]) -> WatchedActivations:
    top = [
        ActiveFeature(feature=feature, activation=_rounded(activation), label=labels.get(feature))
        for feature, activation in reading.top
    ]
    return WatchedActivations(
        top=top,
        watch=[_rounded(activation) for activation in reading.watch],
        skipped=reading.skipped,
        edited={str(feature): _rounded(activation) for feature, activation in reading.edited} or None,
    )


def _rounded(activation: float) -> float:
    """Round to the digits that float32 has."""
    return float(f"{activation:.7g}")
