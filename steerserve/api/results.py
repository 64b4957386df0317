"""What the calls of `SteeredModel` return. Each shows itself as HTML in a notebook, and as text elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from steerserve.api import notebook
from steerserve.wire.chat import ChatCompletion
from steerserve.wire.compare import Comparison
from steerserve.wire.completions import Completion
from steerserve.wire.features import FeatureList, FeatureObject
from steerserve.wire.receipt import Receipt
from steerserve.wire.texts import ContrastObject, InspectionObject
from steerserve.wire.watching import WatchedToken

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from steerserve.api.backend import Chunks
    from steerserve.wire.generation import Usage


@dataclass(frozen=True)
class Answer:
    """A generated text with its receipt and its features."""

    completion: ChatCompletion | Completion
    """The response object, as over HTTP."""

    @property
    def texts(self) -> list[str]:
        """The text of each choice."""
        if isinstance(self.completion, Completion):
            return [choice.text for choice in self.completion.choices]
        return [choice.message.content for choice in self.completion.choices]

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.texts[0]

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended: `stop` or `length`."""
        return self.completion.choices[0].finish_reason

    @property
    def receipt(self) -> Receipt | None:
        """What the edits did; None without steering."""
        return Receipt.model_validate(self.completion.steering) if self.completion.steering else None

    @property
    def features(self) -> list[WatchedToken]:
        """The features behind each token of the first choice; empty unless `features` was requested."""
        return self.completion.choices[0].features or []

    @property
    def prompt_features(self) -> list[WatchedToken]:
        """The features at each token of the prompt; empty unless `features={"prompt": True}` was requested."""
        return self.completion.choices[0].prompt_features or []

    @property
    def usage(self) -> Usage | None:
        """The numbers of tokens."""
        return self.completion.usage

    def tinted(self, feature: int | None = None, dictionary: str | None = None) -> notebook.Html:
        """Show the first choice with each token tinted by a feature's activation.

        Args:
            feature: One of the features that the tokens carry; without it the edited feature if it is active, or
                else the one with the largest total.
            dictionary: The dictionary's id; the first one if absent.

        Raises:
            ValueError: no features were requested with the answer.
        """
        return notebook.Html(notebook.tinted_tokens(self.features, feature, dictionary, self._edited))

    @property
    def _edited(self) -> list[int]:
        edits = self.receipt.edits if self.receipt is not None else []
        return [edit.feature for edit in edits if edit.feature is not None]

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        receipt = self.receipt
        body = self.tinted().source if self.features else notebook.paragraph(self.text)
        return body + (notebook.receipt_table(receipt) if receipt is not None else "")


@dataclass(frozen=True)
class StreamedToken:
    """What one step of a stream added: usually one token, more if the reader was slow."""

    text: str
    index: int = 0
    """The choice that it belongs to."""
    features: tuple[WatchedToken, ...] = ()
    """The features behind each token, if they were requested."""
    finish_reason: str | None = None
    """Why the choice ended, with its last item."""
    receipt: Receipt | None = None
    """What the edits did, with the last item of the choice."""

    def __str__(self) -> str:
        return self.text


class SteeredComparison(Comparison):
    """The arms of a comparison side by side."""

    def texts(self) -> dict[str, list[str]]:
        """Return the texts of each arm by its name."""
        return {arm.name: [sample.text for sample in arm.samples] for arm in self.arms}

    def _repr_html_(self) -> str:
        return notebook.comparison_table(self)


class InspectedText(InspectionObject):
    """A text with the features that it activates."""

    def tinted(self, feature: int | None = None, dictionary: str | None = None) -> notebook.Html:
        """Show the text with each token tinted by a feature's activation, by default the strongest one's."""
        return notebook.Html(notebook.tinted_tokens(self.tokens, feature, dictionary))

    def _repr_html_(self) -> str:
        return notebook.tinted_tokens(self.tokens) + notebook.strongest_table(self)


class ContrastResult(ContrastObject):
    """The features that tell two sets of texts apart; `steering` can be sent as it is."""

    def _repr_html_(self) -> str:
        return notebook.contrast_table(self)


class FeatureHits(FeatureList):
    """Features that match a search, the best first."""

    def __iter__(self) -> Any:  # noqa: ANN401 pydantic's own __iter__ yields fields; a list of hits is wanted here
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 a FeatureRow
        return self.data[index]

    def _repr_html_(self) -> str:
        return notebook.feature_table(self.data)


class FeaturePage(FeatureObject):
    """Everything that the feature store holds about one feature."""

    def _repr_html_(self) -> str:
        return notebook.feature_page(self)


class AnswerStream:
    """A streamed answer: iterate over it for `StreamedToken` items; close it to end the generation early."""

    def __init__(self, chunks: Chunks) -> None:
        """Read `chunks`."""
        self._chunks = chunks
        self.text = ""
        """The text of the first choice so far."""
        self.receipt: Receipt | None = None
        """The receipt, once the first choice has ended."""

    def __enter__(self) -> Self:
        """Return the stream itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the generation."""
        self.close()

    def __iter__(self) -> Iterator[StreamedToken]:
        """Yield what each step added.

        Raises:
            SteerserveError: the generation failed.
        """
        for chunk in self._chunks:
            for choice in chunk["choices"]:
                token = _streamed(choice, chunk.get("steering"))
                if not (token.text or token.features or token.finish_reason):
                    continue
                if token.index == 0:
                    self.text += token.text
                    self.receipt = token.receipt or self.receipt
                yield token

    def close(self) -> None:
        """End the generation if it still runs. Any number of times."""
        self._chunks.close()


def _streamed(choice: Mapping[str, Any], receipt: Mapping[str, Any] | None) -> StreamedToken:
    return StreamedToken(
        text=choice["delta"].get("content") or "",
        index=choice["index"],
        features=tuple(map(WatchedToken.model_validate, choice.get("features") or ())),
        finish_reason=choice.get("finish_reason"),
        receipt=Receipt.model_validate(receipt) if receipt is not None else None,
    )
