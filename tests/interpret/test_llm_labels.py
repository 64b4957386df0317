"""Labels by a language model over a real socket: what it is shown, how it is scored, what a stop or a budget keeps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from steerserve.core.errors import ConfigError
from steerserve.core.observer import StoppedError
from steerserve.interpret.endpoint import ChatEndpoint, EndpointError
from steerserve.interpret.llm_labels import Labelled, label_features
from steerserve.store.records import Activity, FeatureRecord, Label, TextSnippet
from steerserve.store.store import FeatureStore
from steerserve.store.stored import StoreMeta
from tests.interpret.clever import Clever, answering
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.slow

NUM_FEATURES = 8


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return filled(tmp_path / "features.sqlite3")


def filled(path: Path, num_live: int = NUM_FEATURES) -> FeatureStore:
    """FeatureRecord n fires on the letter n (a, b, c, ...), and its snippets differ in what is around it."""
    made = FeatureStore.create(path, StoreMeta("0" * 64, NUM_FEATURES, "tiny", num_tokens=1000))

    def snippet(feature: int, place: int) -> TextSnippet:
        ids = [ord(".")] * 5 + [ord("0") + place]
        ids[place % 5] = ord("a") + feature
        acts = [4.0 if token == ord("a") + feature else 0.0 for token in ids]
        return TextSnippet(tuple(ids), tuple(acts), place % 5, None)

    made.write_features(
        (
            FeatureRecord(
                feature=feature,
                activity=Activity(1000, 30 if feature < num_live else 0, 4.0, 4.0, (4.0,) * 5, (0,) * 63 + (30,)),
                snippets=tuple(snippet(feature, place) for place in range(9) if feature < num_live),
                peak_tokens=((ord("a") + feature, 30),),
                promoted=(),
                suppressed=(),
                neighbours=(),
            )
            for feature in range(NUM_FEATURES)
        ),
        lambda token_id: bytes([token_id]),
    )
    return made


async def labelled(
    store: FeatureStore,
    url: str,
    observer: Quiet | None = None,
    *,
    features: Sequence[int] = range(NUM_FEATURES),
    budget: int | None = None,
    key: str | None = None,
) -> Labelled:
    endpoint = ChatEndpoint(url, "clever", key)
    try:
        return await label_features(
            store,
            features,
            endpoint,
            budget_tokens=budget,
            concurrency=2,
            seed=0,
            observer=observer or Quiet(),
        )
    finally:
        await endpoint.close()


async def test_every_feature_gets_a_label_and_a_score_on_windows_that_were_not_shown(store: FeatureStore) -> None:
    model = Clever()
    with answering(model) as url:
        done = await labelled(store, url, key="secret")

    assert (done.num_labelled, done.num_failed, done.is_spent) == (NUM_FEATURES, 0, False)
    assert done.num_tokens == 100 * 2 * NUM_FEATURES
    assert model.keys == {"Bearer secret"}
    stored = store.feature(2)
    assert stored is not None
    assert stored.label is not None
    assert (stored.label.text, stored.label.origin, stored.label.author) == ("about c", "llm", "clever")
    assert stored.label.score == 1.0
    naming = [body["messages"][1]["content"] for body in model.bodies if "<<c>>" in body["messages"][1]["content"]]
    choosing = [text for body in model.bodies if "about c\n" in (text := body["messages"][1]["content"])]
    shown, heldout = set(naming[0].replace("<<", "").replace(">>", "").split("\n")), choosing[0]
    assert len(shown) == 4
    assert not any(piece in heldout for piece in shown)


async def test_a_label_that_says_nothing_scores_as_chance(store: FeatureStore) -> None:
    with answering(Clever(says="about z")) as url:
        await labelled(store, url)
    stored = store.feature(2)
    assert stored is not None
    assert stored.label is not None
    assert stored.label.score == 0.5


def score_of(store: FeatureStore, feature: int) -> float | None:
    stored = store.feature(feature)
    assert stored is not None
    assert stored.label is not None
    return stored.label.score


async def test_the_first_features_too_are_told_from_those_of_the_whole_store(store: FeatureStore) -> None:
    yes_to_all = ", ".join(map(str, range(1, 11)))
    with answering(Clever(chooses=yes_to_all)) as url:
        await labelled(store, url, features=[0, 1])
    assert [score_of(store, 0), score_of(store, 1)] == [0.5, 0.5]


async def test_a_label_has_no_score_where_there_is_too_little_to_tell_it_from(tmp_path: Path) -> None:
    model = Clever()
    with answering(model) as url:
        made = filled(tmp_path / "few.sqlite3", num_live=5)
        await labelled(made, url, features=[2])
    assert score_of(made, 2) is None
    assert len(model.bodies) == 1


async def test_a_persons_label_wins_and_a_second_run_asks_nothing_again(store: FeatureStore) -> None:
    store.set_label(3, Label("my own words", "person"))
    model = Clever()
    with answering(model) as url:
        await labelled(store, url)
        num_requests = len(model.bodies)
        again = await labelled(store, url)
    assert store.labels([3, 4]) == {3: "my own words", 4: "about e"}
    assert again.num_labelled == 0
    assert len(model.bodies) == num_requests


async def test_a_budget_and_a_stop_keep_what_was_labelled(store: FeatureStore) -> None:
    model = Clever()
    with answering(model) as url:
        first = await labelled(store, url, budget=500)
        assert first.is_spent
        assert 2 <= first.num_labelled <= 4
        with pytest.raises(StoppedError):
            await labelled(store, url, Quiet(stop_at=1))
        kept = len(store.labels(range(NUM_FEATURES)))
        assert first.num_labelled < kept < NUM_FEATURES
        last = await labelled(store, url)
    assert last.num_labelled == NUM_FEATURES - kept


@dataclass
class Impatient(Quiet):
    """Wants a stop as soon as the model was asked anything."""

    model: Clever

    def __post_init__(self) -> None:
        super().__init__()

    def should_stop(self) -> bool:
        return bool(self.model.bodies)


@pytest.mark.parametrize("model", [Clever(hangs=True), Clever(statuses=[503] * 99, retry_after="50")])
async def test_a_stop_waits_for_no_answer(store: FeatureStore, model: Clever) -> None:
    with answering(model) as url:
        start = time.monotonic()
        with pytest.raises(StoppedError, match="after 0 labels"):
            await labelled(store, url, Impatient(model))
        assert time.monotonic() - start < 10


@pytest.mark.parametrize("usage", [0, -5, None, "many", True])
async def test_an_endpoint_that_does_not_say_what_it_used_uses_up_the_budget(
    store: FeatureStore, usage: object
) -> None:
    with answering(Clever(usage=usage)) as url:
        done = await labelled(store, url, budget=500)
    assert done.is_spent
    assert done.num_labelled < NUM_FEATURES
    assert done.num_tokens >= 500


async def test_fields_that_a_model_does_not_know_are_left_out_or_renamed(store: FeatureStore) -> None:
    model = Clever(refuses={"max_tokens": 400, "temperature": 422})
    with answering(model) as url:
        assert (await labelled(store, url)).num_labelled == NUM_FEATURES
    answered = [body for body in model.bodies if not body.keys() & model.refuses.keys()]
    assert len(answered) == 2 * NUM_FEATURES
    assert len(model.bodies) <= len(answered) + 4
    assert all(body["max_completion_tokens"] > 1000 for body in answered)


async def test_thoughts_are_no_part_of_a_label(store: FeatureStore) -> None:
    with answering(Clever(says="<think>\nHm, tea.\n</think>\n\nabout c")) as url:
        await labelled(store, url, features=[2])
    assert store.labels([2]) == {2: "about c"}
    assert score_of(store, 2) == 1.0


async def test_a_model_that_was_cut_off_while_it_thought_gets_more_room_and_then_no_label(store: FeatureStore) -> None:
    model = Clever(says="<think> Hm")
    with answering(model) as url:
        done = await labelled(store, url, features=[2])
    assert (done.num_failed, store.labels([2])) == (1, {})
    assert [body["max_tokens"] > 1000 for body in model.bodies] == [False, True]


async def test_what_may_pass_is_tried_again_and_what_will_not_is_said(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.0)
    with answering(Clever(statuses=[429, 503])) as url:
        assert (await labelled(store, url)).num_labelled == NUM_FEATURES
    with answering(Clever(statuses=[401] * 9)) as url, pytest.raises(EndpointError, match=r"refuses requests .*401"):
        await _again(store, url)
    with pytest.raises(EndpointError, match="does not answer"):
        await _again(store, "http://127.0.0.1:9/v1")


async def _again(store: FeatureStore, url: str) -> None:
    endpoint = ChatEndpoint(url, "another", None)
    try:
        await label_features(store, [0], endpoint, budget_tokens=None, concurrency=1, seed=0, observer=Quiet())
    finally:
        await endpoint.close()


@pytest.mark.parametrize("url", ["http://[::1", "ftp://there", "http://", "there:80/v1", "http://there:port/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the address"):
        ChatEndpoint(url, "clever", None)


@pytest.mark.parametrize("key", ["s\u00e9cret", "\u200bsecret", "a\nb", "\ud800"])
def test_a_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="key") as caught:
        ChatEndpoint("http://127.0.0.1:9/v1", "clever", key)
    assert key not in caught.value.message


async def test_what_no_terminal_should_get_is_left_out_of_a_label(store: FeatureStore) -> None:
    with answering(Clever(says='"\x1b[31mfires on\x00 tea\udcff\u202e."')) as url:
        await labelled(store, url, features=[2])
    assert store.labels([2]) == {2: "[31mfires on tea"}


async def test_an_empty_answer_labels_nothing(store: FeatureStore) -> None:
    with answering(Clever(says="  ")) as url:
        done = await labelled(store, url)
    assert (done.num_labelled, done.num_failed) == (0, NUM_FEATURES)
    assert store.labels(range(NUM_FEATURES)) == {}


def test_the_command_labels_those_that_write_most_first(store: FeatureStore) -> None:
    from steerserve.commands.labelling import ask_for_labels, summary
    from steerserve.store.records import Calibration

    store.write_calibrations({5: Calibration(1.0, 0.9), 6: Calibration(1.0, 0.5)})
    with answering(Clever()) as url:
        done = ask_for_labels(store.path, url, "clever", key=None, limit=2, observer=Quiet())
    assert store.labels(range(NUM_FEATURES)) == {5: "about f", 6: "about g"}
    assert summary(done) == "2 features labelled with 400 tokens"
