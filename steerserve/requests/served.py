"""The served model: what requests are checked against, and the engine that runs them.

Knows neither HTTP nor jobs; `steerserve.runtime` builds it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, Any, Literal, Self

from steerserve.compare.running import ScoringQueue
from steerserve.contrast.contrast import ContrastQueue
from steerserve.contrast.vectors import FOLDER as VECTORS_FOLDER
from steerserve.contrast.vectors import VectorStore
from steerserve.core.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NotFoundError,
    PresetError,
    UnavailableError,
)
from steerserve.core.names import did_you_mean, short_name
from steerserve.dictionaries.library import DictionaryLibrary
from steerserve.dose.dose_lookup import Doses
from steerserve.presets.fit import PresetFits, check_fit
from steerserve.presets.library import open_library
from steerserve.presets.naming import split_model
from steerserve.steering.resolve import SteeringResolver
from steerserve.steering.unit_values import UnknownDosesError
from steerserve.store.stores import FeatureStores
from steerserve.wire.edits import Steering, check_num_presets, parse_steering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steerserve.core.config import Settings
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.dictionaries.loader import DictionaryLoader
    from steerserve.dictionaries.registry import RegistrySnapshot
    from steerserve.engine.protocols import Engine
    from steerserve.engine.request import EngineStats, GenerationRequest
    from steerserve.engine.stream import TokenStream
    from steerserve.model.lens import LensModel
    from steerserve.presets.library import PresetSnapshot
    from steerserve.presets.preset import Preset
    from steerserve.steering.resolved import ResolvedSteering


class ServedModel:
    """One model with its dictionaries, presets, feature stores and engine."""

    def __init__(self, settings: Settings, lens: LensModel, loader: DictionaryLoader, engine: Engine) -> None:
        """Keep the parts; nothing runs before `start`."""
        self.settings = settings
        self.lens = lens
        self.dictionary_library = DictionaryLibrary(loader)
        self.registry = self.dictionary_library.registry
        self.engine = engine
        self.tokenizer = lens.tokenizer
        self.model_id = lens.id
        self.created = int(time.time())
        self.context_length = engine.context_length
        self.stores = FeatureStores(settings.dictionary_dirs, settings.allowed_dictionary_dirs)
        """The feature stores of the dictionaries."""
        self.stores.serve(self.model_id, loader.model_names)
        self.vectors = VectorStore(settings.dictionary_dirs[0] / VECTORS_FOLDER)
        self.scoring = ScoringQueue(engine.run_exclusive)
        """Measures generated texts, beside generation."""
        self.contrast_queue = ContrastQueue()
        self.presets = open_library(settings, self.model_id)
        self._is_started = False
        self._is_stopping = False
        self._widths = {hook_name: lens.width(hook_name) for hook_name in lens.hook_names}
        self._doses = Doses(lens, self.stores, loader.norms, engine.run_exclusive)
        self._preset_fits = PresetFits(self._check_fit)

    def __enter__(self) -> Self:
        """Start the engine."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the engine."""
        self.stop()

    @property
    def state(self) -> Literal["loading", "ready", "stopping"]:
        """Whether the model generates; an engine thread that has died counts as stopping."""
        if not self._is_started:
            return "loading"
        return "ready" if self.engine.is_alive and not self._is_stopping else "stopping"

    def start(self) -> None:
        """Start generating."""
        self.engine.start()
        self._is_started = True

    def stop(self) -> None:
        """Stop generating; running requests end with an error. Calling it again does nothing."""
        self._is_stopping = True
        self.engine.stop()
        self._doses.stop()
        self.scoring.stop()

    def check_ready(self) -> None:
        """Check that requests are accepted now.

        Raises:
            UnavailableError: the server is loading or stopping.
        """
        if self.state != "ready":
            raise UnavailableError(f"The server is {self.state}. Try again in a moment.")

    def check_plain_model(self, name: str | None) -> None:
        """Check that `name` is the served model, without presets; None stands for it.

        Raises:
            ModelNotFoundError: `name` is another model.
            InvalidRequestError: `name` has a preset, which changes only generated text.
        """
        if name is not None and self.check_model(name):
            message = f"{name!r} names a preset, which changes only generated text. Send 'model': {self.model_id!r}."
            raise InvalidRequestError(message, param="model")

    def check_model(self, name: str, presets: PresetSnapshot | None = None) -> tuple[str, ...]:
        """Check that `name` is the served model, alone or with presets (`model@a+b`); return the presets' names.

        Args:
            name: The model's name in the request.
            presets: The presets to search. If None, the files are read, which is not for an event loop.

        Raises:
            ModelNotFoundError: `name` is another model.
            InvalidRequestError: a preset does not exist or cannot be used.
        """
        names = split_model(name, self.model_id)
        if names is None:
            message = f"The model {short_name(name)!r} does not exist. This server serves {self.model_id!r}."
            raise ModelNotFoundError(message, param="model")
        if names:
            check_num_presets(names, self.settings.engine.max_edits, param="model")
            snapshot = presets if presets is not None else self.presets.snapshot()
            for preset_name in names:
                try:
                    snapshot.find(preset_name)
                except (NotFoundError, PresetError) as error:
                    raise InvalidRequestError(error.message, param="model") from error
        return names

    def check_hook(self, hook_name: str, param: str) -> None:
        """Check that the model has a hook point.

        Raises:
            InvalidRequestError: the model does not have it.
        """
        if hook_name not in self.lens.hook_names:
            hint = did_you_mean(hook_name, self.lens.hook_names)
            offered = self.lens.offered_hooks
            message = f"The model {self.model_id} has no hook point {short_name(hook_name)!r}.{hint} It has {offered}."
            raise InvalidRequestError(message, param=param)

    def check_preset(self, preset: Preset) -> None:
        """Check a preset against the model and the loaded dictionaries. Not for an event loop.

        Raises:
            PresetError: the preset cannot be used.
        """
        self._check_fit(preset, self.registry.snapshot())

    def usable_presets(self) -> list[str]:
        """Return the names of the presets that fit the model and the loaded dictionaries. Not for an event loop."""
        presets = self.presets.snapshot()
        return [name for name in presets.usable() if self.preset_problem(presets.presets[name]) is None]

    def preset_problem(self, preset: Preset) -> str | None:
        """Return why a preset cannot be used with the loaded dictionaries; None if it can. Not for an event loop."""
        return self._preset_fits.problem(preset, self.registry.snapshot())

    def _check_fit(self, preset: Preset, snapshot: RegistrySnapshot) -> None:
        check_fit(preset, self._resolver(None), snapshot, self.model_id)

    def parse_steering(self, value: object) -> Steering:
        """Parse the JSON value of `steering`; what is parsed already is returned as it is.

        Raises:
            InvalidRequestError: the value is not valid.
        """
        return parse_steering(value, max_edits=self.settings.engine.max_edits) or Steering()

    def resolve_steering(
        self, value: object, model_presets: Sequence[str] = (), presets: PresetSnapshot | None = None
    ) -> ResolvedSteering | None:
        """Check the steering of a request against the loaded dictionaries; None if it has no edits.

        Waits while missing doses are measured. Not for an event loop; see `resolve_steering_async`.

        Args:
            value: The JSON value of `steering`, or the result of `parse_steering`.
            model_presets: The result of `check_model`; the edits of these presets are added to those of `value`.
            presets: The presets to search. If None, the files are read.

        Raises:
            InvalidRequestError: the steering cannot be applied.
            QueueFullError: a dose is missing and cannot be measured now.
        """
        snapshot, resolver = self.registry.snapshot(), self._resolver(presets)
        steering = self.parse_steering(value)
        try:
            return resolver.resolve(steering, snapshot, model_presets=model_presets)
        except UnknownDosesError as error:
            unknown = error.targets
        if self.state != "ready":
            raise UnavailableError(f"The server is {self.state}, so doses cannot be measured.")
        for future in self._doses.measure(unknown):
            future.result()
        return resolver.resolve(steering, snapshot, model_presets=model_presets)

    async def resolve_steering_async(
        self, value: object, model_presets: Sequence[str] = (), presets: PresetSnapshot | None = None
    ) -> ResolvedSteering | None:
        """Do what `resolve_steering` does, without holding up the event loop.

        Raises:
            InvalidRequestError: the steering cannot be applied.
            QueueFullError: a dose is missing and cannot be measured now.
        """
        snapshot = self.registry.snapshot()
        steering = self.parse_steering(value)
        resolve = functools.partial(self._resolver(presets).resolve, steering, snapshot, model_presets=model_presets)
        if not steering.needs_lookup and not model_presets:
            return resolve()
        try:
            return await asyncio.to_thread(resolve)
        except UnknownDosesError as error:
            unknown = error.targets
        for future in self._doses.measure(unknown):
            # Other requests may wait for the same dose: cancelling this one must not cancel the measurement.
            await asyncio.shield(asyncio.wrap_future(future))
        return await asyncio.to_thread(resolve)

    def submit(self, requests: Sequence[GenerationRequest]) -> list[TokenStream]:
        """Queue samples, all or none, from an event loop.

        Raises:
            QueueFullError: the queue is full.
            InvalidRequestError: a token is outside the model's vocabulary.
        """
        vocab_size = self.tokenizer.vocab_size
        if any(token_id >= vocab_size for request in requests for token_id in request.prompt_ids):
            message = (
                f"The prompt has a token that the tokenizer has and the model does not (an id of {vocab_size} or more)."
            )
            raise InvalidRequestError(message)
        return self.engine.submit(requests)

    def dictionaries(self) -> list[Dictionary]:
        """Return the loaded dictionaries."""
        return list(self.registry.snapshot().dictionaries.values())

    def describe(self, dictionary: Dictionary) -> dict[str, Any]:
        """Return the API's dictionary object, with the statistics of its feature store. Not for an event loop."""
        fields = dictionary.as_json()
        return {**fields, "statistics": fields["statistics"] | self.stores.statistics(dictionary)}

    def _resolver(self, presets: PresetSnapshot | None) -> SteeringResolver:
        """Return the resolver of one request, which sees the same presets from start to end."""
        return SteeringResolver(
            self._widths,
            self.settings.engine.max_edits,
            self._doses,
            model_id=self.model_id,
            vectors=self.vectors,
            presets=presets if presets is not None else self.presets,
        )

    def stats(self) -> EngineStats:
        """Return the engine's counters."""
        return self.engine.stats()

    def system_fingerprint(self, steering: ResolvedSteering | None) -> str:
        """Return OpenAI's fingerprint of the backend, which here changes with the steering and only with it."""
        return "fp_" + (steering.fingerprint[:12] if steering is not None else "unsteered")
