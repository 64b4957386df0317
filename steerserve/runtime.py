"""The composition root: builds the model, the dictionaries and the engine, and wires them together."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from steerserve.compare.running import ScoringLine
from steerserve.compare.store import FOLDER as COMPARISONS_FOLDER
from steerserve.compare.store import ComparisonStore
from steerserve.core.errors import (
    ConfigError,
    DictionaryBusyError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFoundError,
    PresetError,
    UnavailableError,
)
from steerserve.core.memory import give_back_freed
from steerserve.core.pool import Pool
from steerserve.core.progress import stage_bar
from steerserve.core.sent_names import short_name
from steerserve.dictionaries.loader import DictionaryLoader
from steerserve.dictionaries.registry import DictionaryRegistry
from steerserve.dictionaries.sources import locate_dictionary
from steerserve.engine.engine import Engine
from steerserve.engine.runner import Runner, default_chunk
from steerserve.engine.selfcheck import check_cache
from steerserve.features.contrast import ContrastLine
from steerserve.features.doses import Doses
from steerserve.features.stores import FeatureStores
from steerserve.features.vectors import FOLDER as VECTORS_FOLDER
from steerserve.features.vectors import VectorStore
from steerserve.jobs.supervisor import Supervisor
from steerserve.model.lens import load_lens
from steerserve.model.names import model_names
from steerserve.model.norms import measure_norms
from steerserve.model.source import fetch_model
from steerserve.presets.fit import PresetFits, check_fit
from steerserve.presets.library import open_library
from steerserve.presets.naming import check_count, presets_in, split_model
from steerserve.presets.poll import PresetPoll
from steerserve.steering.resolve import SteeringResolver
from steerserve.steering.scales import UnknownDosesError
from steerserve.steering.units import asks_lookup

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from steerserve.core.config import Settings
    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.dictionaries.registry import RegistrySnapshot
    from steerserve.engine.request import GenerationRequest
    from steerserve.engine.stats import EngineStats
    from steerserve.engine.stream import TokenStream
    from steerserve.model.lens import LensModel
    from steerserve.model.source import ModelFiles
    from steerserve.presets.library import PresetSnapshot
    from steerserve.presets.preset import Preset
    from steerserve.steering.resolved import ResolvedSteering

_log = logging.getLogger(__name__)


class Runtime:
    """One served model with its dictionaries. What the server, the command line and Ray talk to."""

    def __init__(self, settings: Settings, lens: LensModel, loader: DictionaryLoader, engine: Engine) -> None:
        """Keep the parts; `build_runtime` makes them."""
        self.settings = settings
        self.lens = lens
        self.registry = DictionaryRegistry()
        self.engine = engine
        self.tokenizer = lens.tokenizer
        self.model_id = lens.id
        self.created = int(time.time())
        self.context_length = engine.runner.cache.context
        self._loader = loader
        self._loading: set[str] = set()
        self._loading_lock = threading.Lock()
        self.jobs = Supervisor(settings.dictionary_dirs[0], settings.jobs, self.load_dictionary)
        """Call it from any thread but that of an event loop."""
        # Of their own: what waits for a disk or a hub must not keep long prompts from being tokenised.
        self.job_calls = Pool("job-calls", 4)
        self.loads = Pool("loads", 4)
        self.stores = FeatureStores(settings.dictionary_dirs, settings.allowed_dictionary_dirs)
        """What is known of the features of each dictionary."""
        self.stores.serve(self.model_id, loader.model_names)
        self._is_started = False
        self._is_stopping = False
        self._widths = {hook_name: lens.width(hook_name) for hook_name in lens.hook_names}
        self.vectors = VectorStore(settings.dictionary_dirs[0] / VECTORS_FOLDER)
        self.comparisons = ComparisonStore(settings.dictionary_dirs[0] / COMPARISONS_FOLDER)
        self.scoring = ScoringLine(engine.run_exclusive)
        """Measures what was generated, beside generation."""
        self.contrast_line = ContrastLine()
        self._doses = Doses(lens, self.stores, loader.norms, engine.run_exclusive)
        self.presets = open_library(settings, self.model_id)
        self._preset_fits = PresetFits(self._check_fit)
        self._preset_poll = PresetPoll(self.presets.snapshot)

    def __enter__(self) -> Self:
        """Start the engine."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the engine."""
        self.stop()

    @property
    def state(self) -> Literal["loading", "ready", "stopping"]:
        """Whether it generates; a thread that has died counts as stopping."""
        if not self._is_started:
            return "loading"
        return "ready" if self.engine.is_alive and not self._is_stopping else "stopping"

    def start(self, *, with_jobs: bool = True) -> None:
        """Start generating, and go on with the jobs that there are where that is wanted.

        Raises:
            ConfigError: the jobs of an earlier server cannot be read.
        """
        if with_jobs:
            self.jobs.start()
            self._preset_poll.start()
        self.engine.start()
        self._is_started = True

    def stop(self) -> None:
        """Let jobs save what they have, and stop generating; requests that are left get an error."""
        self._is_stopping = True
        self.jobs.stop()
        self._preset_poll.stop()
        self.engine.stop()
        self.job_calls.close()
        self.loads.close()
        self._doses.stop()
        self.scoring.stop()

    def check_model(self, name: str, presets: PresetSnapshot | None = None) -> tuple[str, ...]:
        """Check that `name` is the served model, alone or with presets, as `model@a+b`; return their names.

        Args:
            name: What a client sent.
            presets: Those that there are; without it they are looked up, which is not for an event loop.

        Raises:
            ModelNotFoundError: it is another model.
            InvalidRequestError: it names a preset that there is not, or that cannot be used.
        """
        named = split_model(name, self.model_id)
        if named is None:
            message = f"The model {short_name(name)!r} does not exist. This server serves {self.model_id!r}."
            raise ModelNotFoundError(message, param="model")
        if named:
            check_count(named, self.settings.engine.max_edits, param="model")
            found = presets if presets is not None else self.presets.snapshot()
            for one in named:
                try:
                    found.find(one)
                except (NotFoundError, PresetError) as error:
                    raise InvalidRequestError(error.message, param="model") from error
        return named

    def check_preset(self, preset: Preset) -> None:
        """Check a preset against the model and what is loaded now. Not for an event loop.

        Raises:
            PresetError: it cannot be used here.
        """
        self._check_fit(preset, self.registry.snapshot())

    def preset_problem(self, preset: Preset) -> str | None:
        """Say why a preset cannot be used with what is loaded now; None where it can. Not for an event loop."""
        return self._preset_fits.problem(preset, self.registry.snapshot())

    def _check_fit(self, preset: Preset, snapshot: RegistrySnapshot) -> None:
        check_fit(preset, self._resolver(None), snapshot, self.model_id)

    def resolve_steering(
        self, value: object, model_presets: Sequence[str] = (), presets: PresetSnapshot | None = None
    ) -> ResolvedSteering | None:
        """Check what a request asks for against what is loaded now; None where it asks for nothing.

        Waits while doses are measured that nobody knows yet. Not for an event loop, which has the method below.

        Args:
            value: The JSON value of `steering`.
            model_presets: What `check_model` returned; these add up with `value`.
            presets: Those that there are; without it they are looked up.

        Raises:
            InvalidRequestError: it cannot be honoured.
            QueueFullError: a dose is not known, and cannot be measured now.
        """
        snapshot, resolver = self.registry.snapshot(), self._resolver(presets)
        check_count(presets_in(value), self.settings.engine.max_edits)
        try:
            return resolver.resolve(value, snapshot, model_presets=model_presets)
        except UnknownDosesError as error:
            unknown = error.targets
        if self.state != "ready":
            raise UnavailableError(f"The server is {self.state}, so that doses cannot be measured.")
        for future in self._doses.measure(unknown):
            future.result()
        return resolver.resolve(value, snapshot, model_presets=model_presets)

    async def resolve_steering_async(
        self, value: object, model_presets: Sequence[str] = (), presets: PresetSnapshot | None = None
    ) -> ResolvedSteering | None:
        """Do what `resolve_steering` does, without holding up the event loop.

        Raises:
            InvalidRequestError: it cannot be honoured.
            QueueFullError: a dose is not known, and cannot be measured now.
        """
        snapshot = self.registry.snapshot()
        check_count(presets_in(value), self.settings.engine.max_edits)
        resolve = functools.partial(self._resolver(presets).resolve, value, snapshot, model_presets=model_presets)
        if not asks_lookup(value) and not model_presets:
            return resolve()
        try:
            return await asyncio.to_thread(resolve)
        except UnknownDosesError as error:
            unknown = error.targets
        for future in self._doses.measure(unknown):
            # Others may wait for the same dose, whoever of them goes away.
            await asyncio.shield(asyncio.wrap_future(future))
        return await asyncio.to_thread(resolve)

    def submit(self, requests: Sequence[GenerationRequest]) -> list[TokenStream]:
        """Queue samples, all or none, from an event loop.

        Raises:
            QueueFullError: too many wait already.
            InvalidRequestError: a token is outside the model's vocabulary.
        """
        vocab_size = self.tokenizer.vocab_size
        if any(token_id >= vocab_size for request in requests for token_id in request.prompt_ids):
            message = (
                f"The prompt holds a token that the tokenizer knows and the model does not (ids from {vocab_size})."
            )
            raise InvalidRequestError(message)
        return self.engine.submit(requests)

    def dictionaries(self) -> list[Dictionary]:
        """Return what is loaded."""
        return list(self.registry.snapshot().dictionaries.values())

    def describe(self, dictionary: Dictionary) -> dict[str, Any]:
        """Return the dictionary object of the API, with what is known of its features. Not for an event loop."""
        described = dictionary.as_json()
        return {**described, "statistics": described["statistics"] | self.stores.statistics(dictionary)}

    def load_dictionary(self, dictionary_id: str, source: str, *, force: bool = False) -> Dictionary:
        """Load a dictionary while serving, in place of one of the same id where there is one.

        Any thread but that of an event loop. Requests under way finish on the contents that they started with.

        Raises:
            DictionarySourceError: it cannot be used; nothing has changed.
            DictionaryBusyError: one of the same id is being loaded.
        """
        with self._loading_of(dictionary_id):
            added = self.registry.add(self._loader.load(dictionary_id, source, force=force))
        give_back_freed()
        _log.info("dictionary %s: %s features at %s, from %s", added.id, added.d_sae, added.hook_name, source)
        for warning in added.warnings:
            _log.warning("dictionary %s: %s", added.id, warning)
        return added

    def unload_dictionary(self, dictionary_id: str) -> None:
        """Serve a dictionary no longer; its memory is free once the requests under way have ended.

        Raises:
            NotFoundError: there is none of that id.
            DictionaryBusyError: one of that id is being loaded, and would be served after all.
        """
        with self._loading_of(dictionary_id):
            self.registry.remove(dictionary_id)
        give_back_freed()
        _log.info("dictionary %s: unloaded", dictionary_id)

    @contextlib.contextmanager
    def _loading_of(self, dictionary_id: str) -> Iterator[None]:
        """Let one load of an id run at a time: the last to end, not the last to be asked for, would stay otherwise."""
        with self._loading_lock:
            if dictionary_id in self._loading:
                message = f"The dictionary {dictionary_id!r} is being loaded right now. Try again in a moment."
                raise DictionaryBusyError(message, param="id")
            self._loading.add(dictionary_id)
        try:
            yield
        finally:
            with self._loading_lock:
                self._loading.remove(dictionary_id)

    def _resolver(self, presets: PresetSnapshot | None) -> SteeringResolver:
        """Return what checks one request: it finds the same presets from beginning to end."""
        return SteeringResolver(
            self._widths,
            self.settings.engine.max_edits,
            self._doses,
            model_id=self.model_id,
            vectors=self.vectors,
            presets=presets if presets is not None else self.presets,
        )

    def stats(self) -> EngineStats:
        """Return the engine's numbers."""
        return self.engine.stats()

    def system_fingerprint(self, steering: ResolvedSteering | None) -> str:
        """Return OpenAI's fingerprint of the set-up: it changes with the steering and only with it."""
        return "fp_" + (steering.fingerprint[:12] if steering is not None else "unsteered")


def build_runtime(settings: Settings) -> Runtime:
    """Load the model and the dictionaries, with progress on stderr; the engine is not started yet.

    Raises:
        StartupError: the model or a dictionary cannot be used.
    """
    if settings.engine.threads is not None:
        torch.set_num_threads(settings.engine.threads)
    for wanted in settings.dictionaries:  # before a model is fetched and loaded for nothing
        locate_dictionary(wanted.source, settings.allowed_dictionary_dirs)
    files = fetch_model(
        settings.model.source, cache_dir=settings.cache_dir, trust_remote_code=settings.model.trust_remote_code
    )
    with stage_bar(f"Loading {files.id}", num_stages=4) as begin:
        begin("weights")
        lens = load_lens(
            files,
            device=settings.model.device,
            dtype=settings.model.dtype,
            backend=settings.model.backend,
            process_weights=settings.model.process_weights,
        )
        begin("norms")
        norms = measure_norms(lens)
        begin("cache")
        runner = _build_runner(settings, lens, {name: median for name, (median, _) in norms.items()})
        chunk = settings.engine.prefill_chunk
        chunk = default_chunk(lens.device) if chunk == "auto" else chunk
        engine = Engine(runner, num_slots=settings.engine.slots, max_queue=settings.engine.queue, chunk=chunk)
        begin("dictionaries")
        runtime = Runtime(settings, lens, _loader(settings, files, lens, norms), engine)
        for wanted in settings.dictionaries:
            runtime.load_dictionary(wanted.id, wanted.source, force=wanted.force)
    return runtime


def _loader(
    settings: Settings, files: ModelFiles, lens: LensModel, norms: Mapping[str, tuple[float, float]]
) -> DictionaryLoader:
    return DictionaryLoader(
        lens=lens,
        model_names=model_names(files),
        norms=norms,
        allowed_dirs=settings.allowed_dictionary_dirs,
        max_bytes=settings.max_dictionary_bytes,
    )


def _build_runner(settings: Settings, lens: LensModel, median_norms: Mapping[str, float]) -> Runner:
    context = settings.engine.context
    if context > lens.max_context:
        _log.info("engine.context is %s, and %s reads %s tokens: taking that", context, lens.id, lens.max_context)
        context = lens.max_context
    _check_cache_memory(lens, settings.engine.slots, context)
    runner = Runner(lens, settings.engine.slots, context, median_norms)
    check_cache(runner)
    return runner


def _check_cache_memory(lens: LensModel, num_slots: int, context: int) -> None:
    """Refuse slots that would not fit into memory, before they fill it."""
    needed, free = num_slots * context * lens.cache_bytes_per_token, lens.free_bytes()
    if needed > free:
        message = (
            f"{num_slots} slots of {context} tokens need {needed / 1e9:.1f} GB for keys and values, and "
            f"{free / 1e9:.1f} GB are free on {lens.device}. Set smaller engine.slots or engine.context."
        )
        raise ConfigError(message)
