"""`SteeredModel`: a model whose features can be turned up and down, from Python.

The same checks, engine and results as over HTTP: `SteeredModel.load` runs them in this process, `SteeredModel.connect`
asks a running server.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, Self

from steerserve.api.bodies import generation_body, messages_of, plain_json, steering_of
from steerserve.api.job import JobHandle
from steerserve.api.results import (
    Answer,
    AnswerStream,
    ContrastResult,
    FeatureHits,
    FeaturePage,
    InspectedText,
    SteeredComparison,
)
from steerserve.wire.chat import ChatCompletion
from steerserve.wire.completions import Completion

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from steerserve.api.backend import Backend
    from steerserve.api.bodies import Messages, Steering
    from steerserve.requests.preset_checks import CheckResult
    from steerserve.requests.preset_making import MadePreset
    from steerserve.store.search import Sort


class SteeredModel:
    """One model with its dictionaries and presets. A context manager; any thread."""

    def __init__(self, backend: Backend) -> None:
        """Use `load` or `connect`."""
        self._backend = backend

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        dictionaries: Mapping[str, str] | None = None,
        config: Path | None = None,
        **settings: Any,  # noqa: ANN401 settings of any type, checked by their schema
    ) -> Self:
        """Load a model into this process, with progress on stderr.

        Args:
            model: A built-in name, a hub repository, a folder or a .gguf file; the default model if absent.
            dictionaries: Sources by dictionary id, such as `{"mine": "path:dictionaries/mine"}`; those of the
                configuration if absent.
            config: A YAML file of settings, as for `steerserve serve --config`.
            settings: Single settings by their path with two underscores, such as `engine__slots=4`.

        Raises:
            StartupError: a setting is wrong, or the model or a dictionary cannot be used.
        """
        from steerserve.api.local import LocalBackend  # noqa: PLC0415 it loads torch
        from steerserve.core.settings_sources import Flag, load_settings  # noqa: PLC0415 the same

        flags = [Flag(name, tuple(name.split("__")), value) for name, value in settings.items()]
        if model is not None:
            flags.append(Flag("model", ("model", "source"), model))
        if dictionaries is not None:
            sources = [f"{name}={source}" for name, source in dictionaries.items()]
            flags.append(Flag("dictionaries", ("dictionaries",), sources))
        return cls(LocalBackend(load_settings(config, environ=os.environ, flags=flags)))

    @classmethod
    def connect(cls, url: str = "http://127.0.0.1:8000", *, key: str | None = None) -> Self:
        """Use the model of a running server.

        Args:
            url: The server's address, with or without `/v1`.
            key: An API key; the variable STEERSERVE_API_KEY if absent.

        Raises:
            SteerserveError: no steerserve answers there, or it refuses the key.
        """
        from steerserve.api.remote import RemoteBackend  # noqa: PLC0415 it loads an HTTP client, which load does not need

        return cls(RemoteBackend(url, key))

    def __enter__(self) -> Self:
        """Return the model itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the model."""
        self.close()

    def close(self) -> None:
        """Free the model, or the connections. Any number of times."""
        self._backend.close()

    @property
    def id(self) -> str:
        """The model's name."""
        return self._backend.model_id

    def chat(
        self,
        messages: Messages,
        *,
        steering: Steering = None,
        features: bool | Mapping[str, Any] = False,
        **options: Any,  # noqa: ANN401 the fields of a chat request
    ) -> Answer:
        """Continue a conversation.

        Args:
            messages: The conversation, or the text of one user message.
            steering: The edits.
            features: Whether the answer carries the features behind each token, or which (docs/watching.md).
            options: Other fields of a chat request: max_tokens, temperature, seed, n, stop, logprobs and so on.

        Raises:
            InvalidRequestError: something cannot be honoured; `param` names the field.
        """
        body = generation_body(steering, features, options, messages=messages_of(messages))
        return Answer(ChatCompletion.model_validate(self._backend.generate("chat", body)))

    def complete(
        self,
        prompt: str,
        *,
        steering: Steering = None,
        features: bool | Mapping[str, Any] = False,
        **options: Any,  # noqa: ANN401 the fields of a completion request
    ) -> Answer:
        """Continue a text as it stands, without the chat template; arguments as for `chat`."""
        body = generation_body(steering, features, options, prompt=prompt)
        return Answer(Completion.model_validate(self._backend.generate("completions", body)))

    def stream(
        self,
        messages: Messages,
        *,
        steering: Steering = None,
        features: bool | Mapping[str, Any] = False,
        **options: Any,  # noqa: ANN401 the fields of a chat request
    ) -> AnswerStream:
        """Continue a conversation token by token; arguments as for `chat`.

        Iterate over what it returns. Closing it (or leaving its `with` block) ends the generation.
        """
        body = generation_body(steering, features, options, messages=messages_of(messages), stream=True)
        return AnswerStream(self._backend.stream("chat", body))

    def compare(
        self,
        messages: Messages,
        arms: Sequence[Mapping[str, Any]],
        *,
        features: bool | Mapping[str, Any] = False,
        **options: Any,  # noqa: ANN401 the fields of a comparison request
    ) -> SteeredComparison:
        """Continue a conversation in several ways that differ by their steering alone, and measure each.

        Args:
            messages: The conversation, or the text of one user message.
            arms: `{"name": ..., "steering": ...}` each, with `system`, `model` or `control_of` (docs/comparing.md).
            features: As for `chat`.
            options: Other fields of a comparison: n, seed, max_tokens, metrics, by_token and so on.
        """
        plain = [{**arm, **({"steering": steering_of(arm["steering"])} if "steering" in arm else {})} for arm in arms]
        body = generation_body(None, features, options, messages=messages_of(messages), arms=plain)
        return SteeredComparison.model_validate(self._backend.compare(body))

    def search(
        self, query: str = "", *, dictionary: str | None = None, sort: Sort = "relevance", limit: int = 20
    ) -> FeatureHits:
        """Search features by label, snippets and promoted tokens; an empty query lists them all."""
        hits = self._backend.search(query, dictionary=dictionary, sort=sort, limit=limit)
        return FeatureHits.model_validate(hits)

    def feature(self, feature: int, *, dictionary: str | None = None) -> FeaturePage:
        """Return everything that is known of one feature."""
        name = dictionary if dictionary is not None else self._default_dictionary()
        return FeaturePage.model_validate(self._backend.feature(name, feature))

    def inspect(self, text: Messages, **options: Any) -> InspectedText:  # noqa: ANN401 fields of the request
        """Read a text (or a conversation, given as messages) and return the features that it activates.

        Args:
            text: The text, or the messages.
            options: `top`, `watch`, `dictionaries`.
        """
        body = {"text": text} if isinstance(text, str) else {"messages": list(text)}
        return InspectedText.model_validate(self._backend.inspect(plain_json({**body, **options})))

    def contrast(
        self,
        positive: Sequence[str],
        negative: Sequence[str],
        **options: Any,  # noqa: ANN401 fields of the request
    ) -> ContrastResult:
        """Return the features that tell two sets of texts apart, and `steering` that leads to the first set.

        Args:
            positive: Texts that have what is looked for.
            negative: Texts that do not, and are alike otherwise.
            options: `dictionary`, `limit`, `max_edits`.
        """
        body = {"positive": list(positive), "negative": list(negative), **options}
        return ContrastResult.model_validate(self._backend.contrast(plain_json(body)))

    @property
    def presets(self) -> list[str]:
        """The names of the presets that can be used with this model."""
        return self._backend.presets()

    def check_preset(self, name: str) -> list[CheckResult]:
        """Run a preset's checks; return the generated text and the verdicts of each. Not for a server's model.

        Raises:
            NotFoundError: there is no such preset.
        """
        return self._backend.check_preset(name)

    def make_preset(
        self,
        name: str,
        positive: Sequence[str],
        negative: Sequence[str],
        *,
        dictionary: str | None = None,
        max_edits: int = 3,
        description: str = "Made from two sets of texts.",
    ) -> MadePreset:
        """Make a preset that steers from the negative texts to the positive ones; `text` is its file's content.

        It is saved nowhere. Not for a server's model.

        Raises:
            InvalidRequestError: the texts or the dictionary cannot be used, or no feature tells the texts apart.
        """
        return self._backend.make_preset(
            name, positive, negative, dictionary=dictionary, max_edits=max_edits, description=description
        )

    @property
    def dictionaries(self) -> list[dict[str, Any]]:
        """The loaded dictionaries: id, hook point, sizes, contents, report, statistics."""
        return self._backend.dictionaries()

    def load_dictionary(self, dictionary_id: str, source: str) -> dict[str, Any]:
        """Load a dictionary, in place of one with the same id; return its object.

        Args:
            dictionary_id: The name that edits use for it.
            source: `bundled:MODEL/NAME`, `path:FOLDER`, `hf:REPOSITORY[/FOLDER]` or `sae_lens:RELEASE/SAE_ID`.
        """
        return self._backend.load_dictionary(dictionary_id, source)

    def unload_dictionary(self, dictionary_id: str) -> None:
        """Stop using a dictionary."""
        self._backend.unload_dictionary(dictionary_id)

    def activations(self, text: str, hook_names: str | Sequence[str]) -> Tensor | dict[str, Tensor]:
        """Return the activations of a text (after the model's BOS token) at a hook point, `[pos, width]` in float32.

        With several hook points, a dict by hook point. A server gives none: only for a model that `load` gave.
        """
        names = [hook_names] if isinstance(hook_names, str) else list(hook_names)
        values = self._backend.activations(text, names)
        return values[names[0]] if isinstance(hook_names, str) else values

    def train(self, dictionary_id: str, **options: Any) -> JobHandle:  # noqa: ANN401 fields of the request
        """Train a dictionary on the model's activations, in a process of its own; return the job.

        Args:
            dictionary_id: The dictionary's name.
            options: Fields of a training request (docs/jobs.md): hook, architecture, d_sae, tokens, corpus, load...
                For a model that was loaded, `corpus` may be the path of a folder or file.
        """
        return self._job("train", {"id": dictionary_id, **options})

    def interpret(self, **options: Any) -> JobHandle:  # noqa: ANN401 fields of the request
        """Read text with dictionaries and fill their feature stores, in a process of its own; return the job."""
        return self._job("interpret", options)

    def _job(self, kind: Literal["train", "interpret"], body: Mapping[str, Any]) -> JobHandle:
        return JobHandle(self._backend, self._backend.start_job(kind, plain_json(body))["id"])

    def _default_dictionary(self) -> str:
        return next((str(entry["id"]) for entry in self.dictionaries if entry.get("default")), "")
