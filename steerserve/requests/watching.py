"""From the field `features` to what the engine reads, and from what it read to the entries of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerserve.core.errors import InvalidRequestError
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
"""Activations of the prompts of one request; more would be tens of megabytes."""
_MAX_ENTRIES = 2_000_000
"""Activations of all tokens of one request, at 300 to 700 bytes each until the answer is written."""
_LEAST_COUNTED = 4
"""What reading a token costs in activations, however few are given."""
_LEAST_TOKENS = 256
"""Of each sample, where its length is cut because the client named none."""
_MAX_AT_ONCE = 2_000
"""Activations that the event loop writes itself, in about ten milliseconds."""
_MAX_SHOWN_DIGITS = 20


def resolve_watch(served: ServedModel, options: FeatureOptions | None) -> Watch | None:
    """Check what a request wants to watch against what is loaded; None where it asks for nothing.

    Raises:
        InvalidRequestError: there is no such dictionary, or no such feature in one of those that are named.
    """
    if options is None:
        return None
    snapshot = served.registry.snapshot()
    if options.dictionaries:
        names = options.dictionaries
        found = [snapshot.find(name, f"features.dictionaries[{names.index(name)}]") for name in dict.fromkeys(names)]
    elif snapshot.default is not None:
        found = [snapshot.default]
    else:
        message = "No dictionary is loaded, so there are no features to watch. Start the server with --dictionary."
        raise InvalidRequestError(message, param="features")
    for dictionary in found:
        _check_features(dictionary, options.watch)
    return Watch(tuple(found), options.top, tuple(options.watch), options.prompt)


def check_size(watch: Watch | None, num_prompt_tokens: int) -> None:
    """Check that an answer can hold what is read of so many prompt tokens.

    Raises:
        InvalidRequestError: it would be too large.
    """
    if watch is None or not watch.prompt:
        return
    num_entries = num_prompt_tokens * len(watch.dictionaries) * max(watch.top + len(watch.features), 1)
    if num_entries > _MAX_PROMPT_ENTRIES:
        message = (
            f"The answer would have {num_entries} activations of prompt tokens, and at most {_MAX_PROMPT_ENTRIES} are "
            "possible. Ask for a smaller 'top', for fewer choices, or leave out 'prompt'."
        )
        raise InvalidRequestError(message, param="features.prompt")


def watched_limits(
    watch: Watch | None, num_prompt_tokens: int, max_tokens: Sequence[int], *, num_edits: int, can_cut: bool
) -> list[int]:
    """Return how many tokens each sample may have, so that one request cannot fill the memory with activations.

    Args:
        watch: What is read of each token.
        num_prompt_tokens: Prompt tokens of all samples.
        max_tokens: What each sample may have as far as its context goes.
        num_edits: Edits of a sample at most, each of which may give an activation too.
        can_cut: Whether the client left that open, so that less is an answer too.

    Raises:
        InvalidRequestError: there would be too many activations.
    """
    if watch is None:
        return list(max_tokens)
    num_given = watch.top + len(watch.features)
    cost = len(watch.dictionaries) * max(num_given, _LEAST_COUNTED) + num_edits
    num_read = num_prompt_tokens if watch.prompt else 0
    room = _MAX_ENTRIES // cost - num_read
    if sum(max_tokens) <= room:
        return list(max_tokens)
    limit = room // len(max_tokens)
    if can_cut and limit >= _LEAST_TOKENS:
        return [min(wanted, limit) for wanted in max_tokens]
    num_tokens = num_read + (_LEAST_TOKENS * len(max_tokens) if can_cut else sum(max_tokens))
    message = (
        f"The answer could have {num_tokens * cost} activations ({num_tokens} tokens, {len(watch.dictionaries)} "
        f"dictionaries, {num_given} features of each, where fewer count as {_LEAST_COUNTED}, and {num_edits} edits), "
        f"and at most {_MAX_ENTRIES} are possible. Ask for a smaller 'top', less in 'watch', "
        "fewer samples or a smaller 'max_tokens'."
    )
    raise InvalidRequestError(message, param="features.top")


def is_long(parts: Iterable[Sequence[TokenReadings] | None]) -> bool:
    """Whether writing these entries would hold up the event loop."""
    num_entries = sum(
        len(reading.top) + len(reading.watch) + len(reading.edited) + _LEAST_COUNTED
        for part in parts
        for token in part or ()
        for reading in token.readings.values()
    )
    return num_entries > _MAX_AT_ONCE


class FeatureWriter:
    """Writes what was read with tokens, labels included. Any thread."""

    def __init__(self, served: ServedModel, watch: Watch | None) -> None:
        """Write for a request that watches `watch`; for one that watches nothing there is nothing to write."""
        self._stores = served.stores
        self._tokenizer = served.tokenizer
        self._dictionaries: Sequence[Dictionary] = watch.dictionaries if watch is not None else ()

    def of_choice(self, event: TokenEvent) -> list[WatchedToken] | None:
        """Return the entries of a whole choice, None where nothing is watched."""
        return self.entries(event.features) if self._dictionaries else None

    def of_prompt(self, event: TokenEvent) -> list[WatchedToken] | None:
        """Return the entries of its prompt, None where that is not watched."""
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
    place = next((place for place, feature in enumerate(features) if not 0 <= feature < dictionary.d_sae), None)
    if place is not None:
        feature = features[place]
        said = str(feature) if abs(feature) < 10**_MAX_SHOWN_DIGITS else "a number of many digits"
        message = (
            f"features.watch[{place}]: dictionary {dictionary.id!r} has features 0 to {dictionary.d_sae - 1}, and not "
            f"{said}. Watched features are those of every dictionary that is named."
        )
        raise InvalidRequestError(message, param=f"features.watch[{place}]")


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
    """Keep the digits that float32 has."""
    return float(f"{activation:.7g}")
