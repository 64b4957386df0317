"""A model in this process: requests go through the same checks and the same engine as over HTTP.

The engine has a thread of its own, and an event loop runs in another, so that calls work in scripts and in notebooks,
whose own event loop is busy.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from steerserve.api.local_chunks import LocalChunks
from steerserve.core.errors import InvalidRequestError, UnavailableError
from steerserve.engine.background import drive_async
from steerserve.engine.readings import read_texts, text_ids
from steerserve.requests.answers.chat import ChatWriter
from steerserve.requests.answers.comparison import ComparisonWriter
from steerserve.requests.answers.completions import CompletionWriter
from steerserve.requests.comparison import prepare_comparison
from steerserve.requests.comparison_running import ComparisonGeneration
from steerserve.requests.contrast import contrast
from steerserve.requests.generation import prepare_chat, prepare_completion
from steerserve.requests.inspection import inspect
from steerserve.requests.interpretation import start_interpretation
from steerserve.requests.preset_checks import run_check
from steerserve.requests.preset_making import make_preset
from steerserve.requests.running import Generation, GenerationObserver
from steerserve.requests.search import search_features, view_feature
from steerserve.requests.training import start_training
from steerserve.requests.validation import parse_body
from steerserve.runtime import build_runtime
from steerserve.wire.chat import ChatCompletionRequest
from steerserve.wire.compare import ComparisonRequest
from steerserve.wire.completions import CompletionRequest
from steerserve.wire.jobs import InterpretRequest, TrainRequest
from steerserve.wire.texts import ContrastRequest, InspectRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from steerserve.api.backend import Json, Kind
    from steerserve.core.config import Settings
    from steerserve.engine.readings import Span
    from steerserve.requests.answers.writer import AnswerWriter
    from steerserve.requests.generation import PreparedGeneration
    from steerserve.requests.preset_checks import CheckResult
    from steerserve.requests.preset_making import MadePreset
    from steerserve.store.search import Sort
    from steerserve.wire.generation import GenerationFields

Result = TypeVar("Result")

_ROUTES: dict[
    Kind, tuple[type[GenerationFields], Callable[..., Awaitable[PreparedGeneration]], type[AnswerWriter[Any, Any]]]
]
_ROUTES = {
    "chat": (ChatCompletionRequest, prepare_chat, ChatWriter),
    "completions": (CompletionRequest, prepare_completion, CompletionWriter),
}
"""The schema of a generating route's body, what prepares it, and what writes its answer."""


class LocalBackend:
    """The `Backend` of a model that this process has loaded. Any thread."""

    def __init__(self, settings: Settings) -> None:
        """Load the model and its dictionaries, with progress on stderr.

        Raises:
            StartupError: the model or a dictionary cannot be used.
        """
        # Whoever calls this may read the whole disk: the folders that requests are held to protect only a server.
        anywhere = (*settings.corpus_dirs, Path(Path.cwd().anchor))
        self._runtime = build_runtime(settings.model_copy(update={"corpus_dirs": anywhere}))
        self._runtime.start(with_jobs=False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="steerserve-api", daemon=True)
        self._thread.start()
        self._has_jobs = False
        self._is_closed = False

    @property
    def model_id(self) -> str:
        """The name of the loaded model."""
        return self._runtime.model_id

    def generate(self, kind: Kind, body: Json) -> dict[str, Any]:
        """Return the whole answer of a generating route."""

        async def answer() -> dict[str, Any]:
            generation, writer = await self._started(kind, body)
            with generation:
                whole: dict[str, Any] = writer.whole(await generation.results()).model_dump(mode="json")
                return whole

        return self._wait(answer())

    def stream(self, kind: Kind, body: Json) -> LocalChunks:
        """Return the chunks of a generating route as they come."""
        generation, writer = self._wait(self._started(kind, body))
        return LocalChunks(self._loop, generation, writer)

    def compare(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/compare` answers; kept in the data folder only if the body says `store`."""
        request = parse_body(ComparisonRequest, {"store": False, **body})

        async def answer() -> dict[str, Any]:
            prepared = await prepare_comparison(self._runtime, request)
            generation = ComparisonGeneration(
                self._runtime,
                prepared,
                self._runtime.submit(prepared.requests),
                GenerationObserver(),
                with_metrics=request.metrics,
                by_token=request.by_token,
            )
            writer = ComparisonWriter(self._runtime, request, prepared, generation)
            with generation:
                await writer.write_samples()
            whole = await asyncio.to_thread(writer.kept, self._runtime.comparisons)
            return whole.model_dump(mode="json")

        return self._wait(answer())

    def inspect(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/features/inspect` answers."""
        request = parse_body(InspectRequest, body)
        return self._wait(inspect(self._runtime, request)).model_dump(mode="json")

    def contrast(self, body: Json) -> dict[str, Any]:
        """Return what `/v1/features/contrast` answers."""
        request = parse_body(ContrastRequest, body)
        return self._wait(contrast(self._runtime, request)).model_dump(mode="json")

    def search(self, query: str, *, dictionary: str | None, sort: Sort, limit: int) -> dict[str, Any]:
        """Return what `/v1/features` answers."""
        searched = self._runtime.registry.snapshot().find(dictionary, "dictionary")
        return search_features(self._runtime, searched, query, sort=sort, limit=limit).model_dump(mode="json")

    def feature(self, dictionary: str | None, feature: int) -> dict[str, Any]:
        """Return what `/v1/features/{dictionary}/{feature}` answers."""
        viewed = self._runtime.registry.snapshot().find(dictionary, "dictionary")
        return view_feature(self._runtime, viewed, feature).model_dump(mode="json")

    def dictionaries(self) -> list[dict[str, Any]]:
        """Return the loaded dictionaries, the default one marked."""
        return [self._runtime.describe(dictionary) for dictionary in self._runtime.dictionaries()]

    def load_dictionary(self, dictionary_id: str, source: str) -> dict[str, Any]:
        """Load a dictionary, in place of one with the same id; return its object."""
        return self._runtime.describe(self._runtime.dictionary_library.load(dictionary_id, source))

    def unload_dictionary(self, dictionary_id: str) -> None:
        """Stop serving a dictionary."""
        self._runtime.dictionary_library.unload(dictionary_id)

    def presets(self) -> list[str]:
        """Return the names of the presets that can be used with the model."""
        return self._runtime.usable_presets()

    def check_preset(self, name: str) -> list[CheckResult]:
        """Run a preset's checks on the model."""
        preset = self._runtime.presets.find(name)
        return [self._wait(run_check(self._runtime, preset, check)) for check in preset.content.checks]

    def make_preset(
        self,
        name: str,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        dictionary: str | None,
        max_edits: int,
        description: str,
    ) -> MadePreset:
        """Make a preset of the features that tell two sets of texts apart."""
        making = make_preset(
            self._runtime,
            name,
            positive,
            negative,
            dictionary_id=dictionary,
            max_edits=max_edits,
            description=description,
        )
        return self._wait(making)

    def activations(self, text: str, hook_names: Sequence[str]) -> dict[str, Float[Tensor, "pos d_model"]]:
        """Return the activations of a text, after the model's BOS token, at hook points, in float32 on the CPU."""
        for index, hook_name in enumerate(hook_names):
            self._runtime.check_hook(hook_name, f"hook_names[{index}]")
        ids = text_ids(self._runtime.tokenizer, text)
        if not ids:
            raise InvalidRequestError("The text has no token. Send some text.", param="text")
        parts: dict[str, list[Tensor]] = {name: [] for name in hook_names}

        def take(span: Span) -> None:
            for name in hook_names:
                parts[name].append(span.values[name].cpu())

        self._wait(
            drive_async(self._runtime.engine.run_exclusive, read_texts(self._runtime.lens, [ids], hook_names, take))
        )
        return {name: torch.cat(values) for name, values in parts.items()}

    def start_job(self, kind: Literal["train", "interpret"], body: Json) -> dict[str, Any]:
        """Start a job in a process of its own; return its object.

        Raises:
            ConfigError: another process, such as a server, runs the jobs of this data folder.
        """
        jobs = self._runtime.jobs
        if not self._has_jobs:
            jobs.start()
            self._has_jobs = True
        body = {**body, "corpus": _corpus(body["corpus"])} if "corpus" in body else body
        if kind == "train":
            return start_training(parse_body(TrainRequest, body), self._runtime, jobs).as_json()
        return start_interpretation(parse_body(InterpretRequest, body), self._runtime, jobs).as_json()

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as it is now."""
        return self._runtime.jobs.find(job_id).as_json()

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; return it as it is then."""
        return self._runtime.jobs.cancel(job_id).as_json()

    def close(self) -> None:
        """Stop the engine and free the model; what still runs ends with an error. Any number of times."""
        if self._is_closed:
            return
        self._is_closed = True
        self._runtime.stop()
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _started(self, kind: Kind, body: Json) -> tuple[Generation, AnswerWriter[Any, Any]]:
        schema, prepare, writer = _ROUTES[kind]
        request = parse_body(schema, {"model": self.model_id, **body})
        prepared = await prepare(self._runtime, request)
        generation = Generation(self._runtime.submit(prepared.requests), GenerationObserver())
        return generation, writer(request, self._runtime, prepared, generation)

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run something on the event loop and wait for it; an interrupt cancels it."""
        if self._is_closed:
            work.close()
            raise UnavailableError("The model is closed. Load it again.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError as error:
            raise UnavailableError("The model was closed before this call was complete.") from error
        except BaseException:
            future.cancel()
            raise


async def _cancel_all() -> None:
    """Cancel what still runs on this event loop, and wait until it has ended."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _corpus(entry: object) -> object:
    """Write a bare path as the entry of a request; other entries stay as they are."""
    if isinstance(entry, Path) or (isinstance(entry, str) and ":" not in entry and Path(entry).exists()):
        return f"path:{Path(entry).absolute()}"
    return [_corpus(part) for part in entry] if isinstance(entry, list) else entry
