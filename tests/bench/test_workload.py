"""The requests of a measurement."""

from __future__ import annotations

from steerserve.bench.workload import DictionaryInfo, Workload

DICTIONARY = DictionaryInfo("d", 20)


def workload(dictionary: DictionaryInfo | None = DICTIONARY, seed: int = 1) -> Workload:
    return Workload(model="m", max_tokens=8, dictionary=dictionary, seed=seed)


def test_no_prompt_is_sent_twice_so_that_prefix_reuse_flatters_nothing() -> None:
    load = workload()
    prompts = [body["prompt"] for _ in range(3) for body in load.batch([0] * 16)]
    assert len(set(prompts)) == 48


def test_the_same_seed_gives_the_same_requests() -> None:
    assert workload().batch([1, 2]) == workload().batch([1, 2])
    assert workload(seed=2).batch([1]) != workload().batch([1])


def test_each_row_has_its_number_of_edits_on_features_that_differ() -> None:
    plain, one, three = workload().batch([0, 1, 3])
    assert "steering" not in plain
    assert [edit["feature"] for edit in one["steering"]] == [1]
    assert [edit["feature"] for edit in three["steering"]] == [6, 7, 8]
    assert all(edit["dictionary"] == "d" and edit["mode"] == "clamp" for edit in three["steering"])


def test_features_stay_within_a_small_dictionary() -> None:
    rows = workload().batch([16] * 4)
    features = [[edit["feature"] for edit in body["steering"]] for body in rows]
    assert all(0 <= feature < 20 for row in features for feature in row)
    assert all(len(set(row)) == 16 for row in features)


def test_a_server_without_dictionaries_gets_plain_requests() -> None:
    assert "steering" not in workload(dictionary=None).batch([1])[0]
