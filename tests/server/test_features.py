"""Features over HTTP: searched, looked at, labelled, named in receipts."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from steerserve.store.placement import replacing
from steerserve.store.records import Calibration, Label, TextSnippet
from steerserve.store.store import FeatureStore
from steerserve.store.stored import StoreMeta
from tests.interpret.known import byte_of, feature
from tests.server.asking import CHAT, COMPLETIONS, chat, client_of, completion, events_of
from tests.tiny import tiny_sae_folder, tiny_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx

FEATURES = "/v1/features"
ADMIN = "/admin/features"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Serve one dictionary that was interpreted, and one that was not."""
    folder = tmp_path_factory.mktemp("features")
    tiny_sae_folder(folder / "dictionaries" / "bare", seed=1)
    with build_runtime(tiny_settings(folder, engine={"threads": 1})) as runtime:
        runtime.dictionary_library.load("bare", f"path:{folder / 'dictionaries' / 'bare'}")
        interpret(runtime)
        yield runtime


def interpret(runtime: Runtime) -> None:
    dictionary = runtime.dictionaries()[0]
    meta = StoreMeta(dictionary.sha256, dictionary.d_sae, "tiny", 1000, ("path:corpus",), {}, 1.0)
    with replacing(runtime.stores.location(dictionary).prepare(), meta) as store:
        features = [
            feature(0, ["the river", "a bridge"], maximum=4.0, active=20, promoted="ab"),
            feature(1, ["a b€"], label="bridges"),
            feature(2, (), active=0, maximum=0.0),
            *(feature(number, ["filler"]) for number in range(3, 96)),
        ]
        store.write_features(features, byte_of)
        store.write_calibrations({0: Calibration(40.0, 0.2), 1: Calibration(50.0, 0.001)})


@pytest.fixture
async def asked(known: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    interpret(known)
    async with client_of(create_app(known)) as opened:
        yield opened


async def test_a_search_gives_the_best_match_first_with_what_it_takes_to_choose(asked: httpx.AsyncClient) -> None:
    answer = (await asked.get(FEATURES, params={"q": "bridge"})).json()
    assert [row["feature"] for row in answer["data"]] == [1, 0]
    assert (answer["object"], answer["has_more"]) == ("list", False)
    row = answer["data"][1]
    assert row.pop("relevance") > 0
    assert row == {
        "object": "feature",
        "dictionary": "res0",
        "feature": 0,
        "label": None,
        "label_origin": None,
        "density": 0.02,
        "max": 4.0,
        "dose": 40.0,
        "output_score": 0.2,
        "role": "writes",
        "snippet": {
            "tokens": list("the river"),
            "activations": [0.0] * 8 + [4.0],
            "peak": 8,
            "interval": None,
        },
        "promoted": ["a", "b"],
    }
    assert (answer["data"][0]["label"], answer["data"][0]["label_origin"]) == ("bridges", "words")
    assert answer["data"][0]["role"] == "reads"


async def test_lists_are_sorted_and_come_in_pages(asked: httpx.AsyncClient) -> None:
    first = (await asked.get(FEATURES, params={"sort": "max", "limit": 2})).json()
    second = (await asked.get(FEATURES, params={"sort": "max", "limit": 100, "offset": 2})).json()
    assert [row["feature"] for row in first["data"]] == [0, 1]
    assert (first["has_more"], second["has_more"], len(second["data"])) == (True, False, 94)
    dead = second["data"][-1]
    assert (dead["feature"], dead["max"], dead["dose"], dead["role"], dead["snippet"]) == (2, 0.0, None, None, None)


async def test_a_feature_shows_everything_that_is_known(asked: httpx.AsyncClient) -> None:
    found = (await asked.get(f"{FEATURES}/res0/0")).json()
    known = feature(0, ["the river", "a bridge"], maximum=4.0, active=20, promoted="ab")
    assert found["hook"] == "blocks.0.hook_resid_post"
    assert found["activity"] == {
        "tokens": 1000,
        "active": 20,
        "mean": 2.0,
        "quantiles": {"0.5": 0.5, "0.75": 0.75, "0.9": 1.0, "0.95": 1.5, "0.99": 2.0},
        "histogram": list(range(64)),
    }
    assert [as_snippet(snippet) for snippet in found["snippets"]] == list(known.snippets)
    assert found["peak_tokens"] == [
        {"token": "e", "token_id": 101, "count": 7},
        {"token": " ", "token_id": 32, "count": 2},
    ]
    assert found["promoted"][0] == {"token": "a", "token_id": 97, "score": 3.0}
    assert found["suppressed"] == [{"token": "z", "token_id": 122, "score": -2.5}]
    assert found["nearest"] == [{"feature": 1, "cosine": 0.5, "label": "bridges"}]
    assert (found["dose"], found["output_score"], found["role"]) == (40.0, 0.2, "writes")


def as_snippet(snippet: dict[str, Any]) -> TextSnippet:
    ids = tuple("".join(snippet["tokens"]).encode())
    return TextSnippet(ids, tuple(snippet["activations"]), snippet["peak"], snippet["interval"])


async def test_a_character_of_several_tokens_stands_at_the_last_of_them(asked: httpx.AsyncClient) -> None:
    (snippet,) = (await asked.get(f"{FEATURES}/res0/1")).json()["snippets"]
    assert snippet["tokens"] == ["a", " ", "b", "", "", "€"]
    assert snippet["activations"][5] == 2.0


async def test_a_label_is_set_shown_everywhere_and_taken_away(asked: httpx.AsyncClient) -> None:
    answer = await asked.patch(f"{ADMIN}/res0/1", json={"label": "  spans of steel "})
    assert answer.status_code == 200
    found = answer.json()
    assert (found["label"], found["label_origin"]) == ("spans of steel", "person")
    assert [label["text"] for label in found["labels"]] == ["spans of steel", "bridges"]
    assert (await asked.get(f"{FEATURES}/res0/1")).json() == found
    assert (await asked.get(FEATURES, params={"q": "steel"})).json()["data"][0]["feature"] == 1
    assert (await asked.get(f"{FEATURES}/res0/0")).json()["nearest"][0]["label"] == "spans of steel"
    taken = (await asked.patch(f"{ADMIN}/res0/1", json={"label": None})).json()
    assert (taken["label"], taken["label_origin"]) == ("bridges", "words")


async def test_receipts_name_their_features(asked: httpx.AsyncClient) -> None:
    steering = [{"feature": 1, "scale": 1.0}, {"feature": 0, "scale": 1.0}]
    whole = (await asked.post(CHAT, json=chat(steering=steering))).json()
    assert [edit["label"] for edit in whole["steering"]["edits"]] == ["bridges", None]
    await asked.patch(f"{ADMIN}/res0/0", json={"label": "by hand"})
    streamed = events_of(await asked.post(COMPLETIONS, json=completion(steering=steering, stream=True)))
    assert [edit["label"] for edit in streamed[-1]["steering"]["edits"]] == ["bridges", "by hand"]
    await asked.patch(f"{ADMIN}/res0/0", json={"label": None})


async def test_dictionaries_say_what_is_known_of_their_features(asked: httpx.AsyncClient) -> None:
    listed = (await asked.get("/v1/dictionaries")).json()["data"]
    statistics = [one["statistics"] for one in listed]
    assert statistics[0].items() >= {"interpreted": True, "tokens": 1000, "num_live": 95, "calibrated": 2}.items()
    assert statistics[0]["median_norm"] > 0
    assert statistics[1]["interpreted"] is False
    assert (await asked.get("/v1/dictionaries/res0")).json() == listed[0]
    assert (await asked.get("/admin/dictionaries")).json()["data"] == listed


async def test_a_dictionary_that_was_not_interpreted_says_how(asked: httpx.AsyncClient) -> None:
    for path in (f"{FEATURES}?dictionary=bare", f"{FEATURES}/bare/0"):
        answer = await asked.get(path)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "not_interpreted")
        assert "POST /admin/interpret" in error["message"]


@pytest.mark.parametrize(
    "label", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f469\u200d\U0001f467"]
)
async def test_a_label_may_have_the_joiners_that_spelling_needs(asked: httpx.AsyncClient, label: str) -> None:
    found = (await asked.patch(f"{ADMIN}/res0/1", json={"label": label})).raise_for_status().json()
    assert found["label"] == label
    await asked.patch(f"{ADMIN}/res0/1", json={"label": None})


async def test_labels_need_no_interpretation(known: Runtime) -> None:
    folder = known.settings.dictionary_dirs[0]
    tiny_sae_folder(folder / "labelled", seed=2)
    known.dictionary_library.load("labelled", f"path:{folder / 'labelled'}")
    async with client_of(create_app(known)) as asked:
        found = (await asked.patch(f"{ADMIN}/labelled/7", json={"label": "mine"})).json()
        assert (found["label"], found["max"], found["activity"], found["snippets"]) == ("mine", None, None, [])
        assert (await asked.get(f"{FEATURES}/labelled/8")).json()["label"] is None
        (row,) = (await asked.get(FEATURES, params={"dictionary": "labelled"})).json()["data"]
        # Words are searched in what was read, and nothing was: that is no empty answer.
        searched = await asked.get(FEATURES, params={"dictionary": "labelled", "q": "mine"})
        assert (searched.status_code, searched.json()["error"]["code"]) == (404, "not_interpreted")
        assert (await asked.get(FEATURES, params={"dictionary": "labelled", "q": " "})).json()["data"] == [row]
        assert (row["feature"], row["label"], row["density"]) == (7, "mine", None)
        statistics = (await asked.get("/v1/dictionaries/labelled")).json()["statistics"]
        assert (statistics["interpreted"], statistics["labelled"], statistics["num_live"]) == (False, 1, None)
    known.dictionary_library.unload("labelled")


async def test_an_interpretation_and_another_version_of_a_dictionary_are_seen_at_once(known: Runtime) -> None:
    folder = known.settings.dictionary_dirs[0]
    tiny_sae_folder(folder / "swapped", seed=3)
    source = f"path:{folder / 'swapped'}"
    known.dictionary_library.load("swapped", source)
    async with client_of(create_app(known)) as asked:
        path = f"{FEATURES}/swapped/0"
        assert (await asked.get(path)).status_code == 404
        dictionary = known.registry.snapshot().dictionaries["swapped"]
        meta = StoreMeta(dictionary.sha256, 96, "tiny", 10)
        for label in ("one", "two"):
            with replacing(folder / "swapped" / "features.sqlite3", meta) as store:
                store.write_features([feature(0, label=label)], byte_of)
            assert (await asked.get(path)).json()["label"] == label
        tiny_sae_folder(folder / "swapped", seed=4)
        known.dictionary_library.load("swapped", source)
        assert (await asked.get(path)).json()["error"]["code"] == "not_interpreted"
        assert (await asked.patch(f"{ADMIN}/swapped/0", json={"label": "new"})).json()["label"] == "new"
        tiny_sae_folder(folder / "swapped", seed=3)
        known.dictionary_library.load("swapped", source)
        assert (await asked.get(path)).json()["label"] == "two"
    known.dictionary_library.unload("swapped")


async def test_a_file_that_is_no_store_leaves_the_server_without_one(
    known: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    folder = known.settings.dictionary_dirs[0] / "broken"
    tiny_sae_folder(folder, seed=5)
    (folder / "features.sqlite3").write_bytes(b"no database at all")
    known.dictionary_library.load("broken", f"path:{folder}")
    async with client_of(create_app(known)) as asked:
        for _ in range(3):
            assert (await asked.get(f"{FEATURES}/broken/0")).json()["error"]["code"] == "not_interpreted"
        steered = await asked.post(CHAT, json=chat(steering=[{"dictionary": "broken", "feature": 0, "scale": 1.0}]))
        assert steered.json()["steering"]["edits"][0]["label"] is None
        refused = await asked.patch(f"{ADMIN}/broken/0", json={"label": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "feature_store_unusable")
    assert [record.message for record in caplog.records].count(caplog.records[-1].message) == 1
    assert sum("is used without its feature store" in record.message for record in caplog.records) == 1
    known.dictionary_library.unload("broken")


@pytest.mark.parametrize(
    ("query", "status", "param", "code"),
    [
        ("?dictionary=res1", 400, "dictionary", "invalid_value"),
        ("?sort=best", 400, "sort", "invalid_value"),
        ("?limit=0", 400, "limit", "invalid_value"),
        ("?limit=101", 400, "limit", "invalid_value"),
        ("?offset=-1", 400, "offset", "invalid_value"),
        (f"?q={'x' * 201}", 400, "q", "invalid_value"),
        (f"?q={'x ' * 17}", 400, "q", "invalid_value"),
        ("/res0/96", 404, "feature", "feature_not_found"),
        ("/res0/-1", 404, "feature", "feature_not_found"),
        ("/res0/99999999999999999999", 404, "feature", "feature_not_found"),
        ("/res0/one", 400, "feature", "invalid_type"),
        ("/res1/0", 404, "dictionary_id", "dictionary_not_found"),
    ],
)
async def test_a_wrong_question_is_refused(
    asked: httpx.AsyncClient, query: str, status: int, param: str, code: str
) -> None:
    answer = await asked.get(FEATURES + query)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code), error


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "label", "missing_required_parameter"),
        ({"label": ""}, "label", "invalid_value"),
        ({"label": "  "}, "label", "invalid_value"),
        ({"label": "two\nlines"}, "label", "invalid_value"),
        ({"label": "x" * 201}, "label", "invalid_value"),
        ({"label": 5}, "label", "invalid_type"),
        ({"label": "x", "lable": "y"}, "lable", "unknown_parameter"),
    ],
)
async def test_a_wrong_label_is_refused_and_changes_nothing(
    asked: httpx.AsyncClient, body: dict[str, Any], param: str, code: str
) -> None:
    answer = await asked.patch(f"{ADMIN}/res0/1", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code), error
    assert (await asked.get(f"{FEATURES}/res0/1")).json()["label"] == "bridges"


async def test_labels_are_for_admins(known: Runtime) -> None:
    async with client_of(create_app(known), "10.0.0.7") as stranger:
        assert (await stranger.patch(f"{ADMIN}/res0/1", json={"label": "x"})).status_code == 403
        assert (await stranger.get(f"{FEATURES}/res0/1")).status_code == 200


async def test_a_store_that_came_with_a_dictionary_is_read_there_and_written_elsewhere(
    known: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a package that was installed: a bundled dictionary's folder is never written."""
    folder = known.settings.dictionary_dirs[0]
    tiny_sae_folder(folder / "shipped" / "model" / "dict", seed=6)
    monkeypatch.setattr("steerserve.dictionaries.sources.BUNDLED_DIR", folder / "shipped")
    dictionary = known.dictionary_library.load("shipped", "bundled:model/dict")
    shipped = folder / "shipped" / "model" / "dict" / "features.sqlite3"
    with replacing(shipped, StoreMeta(dictionary.sha256, 96, "tiny", 10)) as store:
        store.write_features([feature(0, label="as shipped")], byte_of)
    before = shipped.read_bytes()
    async with client_of(create_app(known)) as asked:
        assert (await asked.get(f"{FEATURES}/shipped/0")).json()["label"] == "as shipped"
        labels = (await asked.patch(f"{ADMIN}/shipped/0", json={"label": "mine"})).json()["labels"]
        assert [label["text"] for label in labels] == ["mine", "as shipped"]
        assert (await asked.get(f"{FEATURES}/shipped/0")).json()["label"] == "mine"
    assert shipped.read_bytes() == before
    own = FeatureStore.open(folder / ".features" / f"{dictionary.sha256}.sqlite3")
    assert own.labels([0]) == {0: "mine"}
    known.dictionary_library.unload("shipped")


async def test_a_dictionary_whose_folder_has_gone_can_be_labelled_all_the_same(known: Runtime) -> None:
    folder = known.settings.dictionary_dirs[0]
    dictionary = known.dictionary_library.load("gone", f"path:{tiny_sae_folder(folder / 'gone', seed=7)}")
    shutil.rmtree(folder / "gone")
    async with client_of(create_app(known)) as asked:
        assert (await asked.get(f"{FEATURES}/gone/0")).status_code == 404
        assert (await asked.patch(f"{ADMIN}/gone/0", json={"label": "mine"})).json()["label"] == "mine"
    assert FeatureStore.open(folder / ".features" / f"{dictionary.sha256}.sqlite3").labels([0]) == {0: "mine"}
    known.dictionary_library.unload("gone")


async def test_a_store_that_breaks_while_it_is_served_spares_all_other_answers(known: Runtime) -> None:
    folder = known.settings.dictionary_dirs[0]
    dictionary = known.dictionary_library.load("breaking", f"path:{tiny_sae_folder(folder / 'breaking', seed=8)}")
    store = known.stores.for_writing(dictionary, "tiny")
    store.set_label(0, Label("mine", "person"))
    assert known.stores.label(dictionary, 0) == "mine"
    with store.path.open("r+b") as file:
        file.write(b"\xff" * 20_000)
    async with client_of(create_app(known)) as asked:
        listed = (await asked.get("/v1/dictionaries")).json()["data"]
        assert {one["id"]: one["statistics"]["interpreted"] for one in listed}["breaking"] is False
        error = (await asked.get(f"{FEATURES}/breaking/0")).json()["error"]
        assert error["code"] in {"feature_store_unusable", "not_interpreted"}
        steered = await asked.post(CHAT, json=chat(steering=[{"dictionary": "breaking", "feature": 0, "scale": 1.0}]))
        assert steered.status_code == 200
    known.dictionary_library.unload("breaking")


async def test_a_damaged_store_says_no_path_to_clients_and_spares_a_contrast(
    known: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    folder = known.settings.dictionary_dirs[0]
    dictionary = known.dictionary_library.load("damaged", f"path:{tiny_sae_folder(folder / 'damaged', seed=9)}")
    store = known.stores.for_writing(dictionary, "tiny")
    store.write_calibrations({number: Calibration(3.0, 0.5) for number in range(96)})
    assert known.stores.find(dictionary) is not None
    with store.path.open("r+b") as file:
        file.write(b"\xff" * 20_000)
    sets = {"positive": ["AAA", "AAAA"], "negative": ["777", "7777"], "dictionary": "damaged"}
    async with client_of(create_app(known)) as asked:
        for path in (f"{FEATURES}?dictionary=damaged", f"{FEATURES}?dictionary=damaged&q=x", f"{FEATURES}/damaged/0"):
            answer = await asked.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "feature_store_unusable")
            assert str(folder) not in answer.text
        contrasted = await asked.post(f"{FEATURES}/contrast", json=sets)
    assert contrasted.status_code == 200, contrasted.text
    assert {row["dose"] for row in contrasted.json()["data"]} == {None}
    assert str(store.path) in caplog.text
    known.dictionary_library.unload("damaged")


def test_a_persons_label_outlives_everything(known: Runtime) -> None:
    dictionary = known.dictionaries()[0]
    known.stores.for_writing(dictionary, "tiny").set_label(5, Label("kept", "person"))
    interpret(known)
    assert known.stores.label(dictionary, 5) == "kept"
    known.stores.for_writing(dictionary, "tiny").set_label(5, None)
