"""The composition root: builds the model, the dictionaries and the engine, and connects them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from steerserve.compare.store import FOLDER as COMPARISONS_FOLDER
from steerserve.compare.store import ComparisonStore
from steerserve.core.errors import ConfigError
from steerserve.core.pool import Pool
from steerserve.core.progress import stage_bar
from steerserve.dictionaries.loader import DictionaryLoader
from steerserve.dictionaries.sources import locate_dictionary
from steerserve.engine.runner import Runner, default_chunk
from steerserve.engine.selfcheck import check_cache
from steerserve.engine.slot_engine import SlotEngine
from steerserve.jobs.supervisor import Supervisor
from steerserve.model.lens import load_lens
from steerserve.model.names import model_names
from steerserve.model.norms import measure_norms
from steerserve.model.source import fetch_model
from steerserve.presets.poll import PresetPoll
from steerserve.requests.served import ServedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from steerserve.core.config import Settings
    from steerserve.model.lens import LensModel
    from steerserve.model.source import ModelFiles

_log = logging.getLogger(__name__)


class Runtime(ServedModel):
    """A served model together with jobs, kept comparisons and the polling of preset files."""

    engine: SlotEngine

    def __init__(self, settings: Settings, lens: LensModel, loader: DictionaryLoader, engine: SlotEngine) -> None:
        """Keep the parts that `build_runtime` makes."""
        super().__init__(settings, lens, loader, engine)
        self.jobs = Supervisor(settings.dictionary_dirs[0], settings.jobs, self.dictionary_library.load)
        """The supervisor of the jobs. Not for an event loop."""
        # Separate pools: calls that wait for a disk or a hub must not delay the tokenising of long prompts.
        self.job_calls = Pool("job-calls", 4)
        self.load_calls = Pool("loads", 4)
        self.comparisons = ComparisonStore(settings.dictionary_dirs[0] / COMPARISONS_FOLDER)
        self._preset_poll = PresetPoll(self.presets.snapshot)

    def start(self, *, with_jobs: bool = True) -> None:
        """Start generating; with `with_jobs`, also continue unfinished jobs and poll the preset files.

        Raises:
            ConfigError: the saved jobs cannot be read.
        """
        if with_jobs:
            self.jobs.start()
            self._preset_poll.start()
        super().start()

    def stop(self) -> None:
        """Stop jobs, which save their progress, and stop generating; running requests end with an error."""
        self._is_stopping = True
        self.jobs.stop()
        self._preset_poll.stop()
        super().stop()
        self.job_calls.close()
        self.load_calls.close()


def build_runtime(settings: Settings) -> Runtime:
    """Load the model and the dictionaries, with progress on stderr. The engine is not started.

    Raises:
        StartupError: the model or a dictionary cannot be used.
    """
    if settings.engine.threads is not None:
        torch.set_num_threads(settings.engine.threads)
    for entry in settings.dictionaries:  # a wrong source is found before a model is fetched and loaded
        locate_dictionary(entry.source, settings.allowed_dictionary_dirs)
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
        engine = SlotEngine(runner, num_slots=settings.engine.slots, max_queue=settings.engine.queue, chunk=chunk)
        begin("dictionaries")
        runtime = Runtime(settings, lens, _loader(settings, files, lens, norms), engine)
        for entry in settings.dictionaries:
            runtime.dictionary_library.load(entry.id, entry.source, force=entry.force)
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
        _log.info("engine.context is %s; reduced to the %s tokens that %s reads", context, lens.max_context, lens.id)
        context = lens.max_context
    _check_cache_memory(lens, settings.engine.slots, context)
    runner = Runner(lens, settings.engine.slots, context, median_norms)
    check_cache(runner)
    return runner


def _check_cache_memory(lens: LensModel, num_slots: int, context: int) -> None:
    """Check that the slots fit into the free memory, before they fill it."""
    needed, free = num_slots * context * lens.cache_bytes_per_token, lens.free_bytes()
    if needed > free:
        message = (
            f"{num_slots} slots of {context} tokens need {needed / 1e9:.1f} GB for keys and values, but only "
            f"{free / 1e9:.1f} GB are free on {lens.device}. Set a smaller engine.slots or engine.context."
        )
        raise ConfigError(message)
