"""Doses that nobody knows are measured at first use, once, and then kept."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.errors import InvalidRequestError, UnavailableError
from steerserve.dose.dose_lookup import Doses
from steerserve.model.norms import measure_norms
from steerserve.runtime import Runtime, build_runtime
from steerserve.server.app import create_app
from steerserve.steering.unit_values import FeatureTarget, UnknownDosesError, VectorTarget
from steerserve.store.stores import FeatureStores
from tests.server.asking import CHAT, chat, client_of
from tests.tiny import D_MODEL, HOOK_NAME, tiny_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from steerserve.dictionaries.dictionary import Dictionary


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Runtime]:
    with build_runtime(tiny_settings(tmp_path, engine={"threads": 1})) as started:
        yield started


@pytest.fixture
def dictionary(served: Runtime) -> Dictionary:
    return served.registry.snapshot().dictionaries["res0"]


class Pieces:
    """Runs work on a server's engine and counts it."""

    def __init__(self, served: Runtime) -> None:
        self.served = served
        self.count = 0

    def __call__(self, fn: Callable[[], None]) -> Future[None]:
        self.count += 1
        return self.served.engine.run_exclusive(fn)


def doses_of(served: Runtime, pieces: Pieces, *, stores: FeatureStores | None = None) -> Doses:
    return Doses(served.lens, stores or served.stores, measure_norms(served.lens), pieces)


def wait(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def test_what_was_measured_is_kept_in_the_store(served: Runtime, dictionary: Dictionary) -> None:
    target, pieces = FeatureTarget(dictionary, 5), Pieces(served)
    doses = doses_of(served, pieces)
    with pytest.raises(UnknownDosesError):
        doses.dose(target)
    wait(doses.measure([target]))
    doses.stop()
    store = served.stores.find(dictionary)
    assert store is not None
    calibration = store.calibration(5)
    assert calibration is not None
    others = Pieces(served)
    assert doses_of(served, others).dose(target) == doses.dose(target) == calibration.dose
    assert others.count == 0


def test_where_the_store_cannot_be_written_doses_are_kept_in_memory(
    served: Runtime, dictionary: Dictionary, caplog: pytest.LogCaptureFixture
) -> None:
    path = served.stores.location(dictionary).beside
    assert path is not None
    path.mkdir(parents=True)  # a folder where the file should be
    target = FeatureTarget(dictionary, 5)
    doses = doses_of(served, Pieces(served))
    wait(doses.measure([target]))
    assert doses.dose(target)
    assert "until the server stops" in caplog.text


def test_two_that_ask_at_once_wait_for_one_measurement(served: Runtime, dictionary: Dictionary) -> None:
    targets = [FeatureTarget(dictionary, 5), FeatureTarget(dictionary, 6)]
    alone, together = Pieces(served), Pieces(served)
    apart = FeatureStores([served.settings.dictionary_dirs[0] / "apart"], ())
    wait(doses_of(served, alone, stores=apart).measure(targets))
    doses, gate = doses_of(served, together), threading.Event()
    held = served.engine.run_exclusive(gate.wait)
    futures = [doses.measure(some) for some in (targets, targets[:1], targets[::-1])]
    gate.set()
    held.result()
    for some in futures:
        wait(some)
    assert together.count == alone.count
    assert {id(future) for some in futures for future in some} == {id(futures[0][0])}


def test_many_threads_get_the_same_dose(served: Runtime) -> None:
    steering = [{"feature": 8, "scale": 1.0, "unit": "dose"}]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(served.resolve_steering, [steering] * 12))
    assert len({steering.fingerprint for steering in found if steering is not None}) == 1


def test_a_vectors_dose_is_kept_by_its_values(served: Runtime) -> None:
    pieces = Pieces(served)
    doses = doses_of(served, pieces)
    one = VectorTarget(((HOOK_NAME, (1.0,) * D_MODEL),))
    wait(doses.measure([one]))
    count = pieces.count
    assert doses.dose(VectorTarget(((HOOK_NAME, (1.0,) * D_MODEL),))) == doses.dose(one)
    assert pieces.count == count
    for other in (((HOOK_NAME, (2.0,) * D_MODEL),), (("blocks.1.hook_resid_post", (1.0,) * D_MODEL),)):
        with pytest.raises(UnknownDosesError):
            doses.dose(VectorTarget(other))


def test_what_has_no_dose_is_known_to_have_none(served: Runtime) -> None:
    pieces = Pieces(served)
    doses = doses_of(served, pieces)
    # Behind the last block the final norm takes the stream's length away, and a bit of noise changes nothing.
    target = VectorTarget((("blocks.1.hook_resid_post", (1e-12,) * D_MODEL),))
    wait(doses.measure([target]))
    assert doses.dose(target) is None


def test_after_the_stop_nothing_is_measured(served: Runtime, dictionary: Dictionary) -> None:
    doses = doses_of(served, Pieces(served))
    doses.stop()
    doses.stop()
    with pytest.raises(UnavailableError):
        doses.measure([FeatureTarget(dictionary, 5)])


def test_a_measurement_under_way_ends_with_the_engine(served: Runtime, dictionary: Dictionary) -> None:
    gate = threading.Event()
    held = served.engine.run_exclusive(gate.wait)
    doses = doses_of(served, Pieces(served))
    futures = doses.measure([FeatureTarget(dictionary, 5)])
    stopping = threading.Thread(target=served.engine.stop)
    stopping.start()
    gate.set()
    held.result()
    stopping.join()
    with pytest.raises(UnavailableError):
        wait(futures)
    doses.stop()


def dosed(**edit: Any) -> dict[str, Any]:  # noqa: ANN401
    return chat(steering=[{"feature": 5, "scale": 1.0, "unit": "dose", **edit}])


async def test_others_are_served_while_a_request_waits_for_its_dose(served: Runtime) -> None:
    gate = threading.Event()
    async with client_of(create_app(served)) as client:
        held = served.engine.run_exclusive(gate.wait)
        waiting = [asyncio.create_task(client.post(CHAT, json=dosed())) for _ in range(3)]
        assert (await client.get("/health")).status_code == 200
        # What is wrong is told at once, before a dose is measured.
        refused = await client.post(CHAT, json=chat(steering=[*dosed()["steering"], {"feature": 10**6, "scale": 1.0}]))
        assert refused.json()["error"]["param"] == "steering.edits[1].feature"
        assert not any(task.done() for task in waiting)
        gate.set()
        answers = [(await task).json() for task in waiting]
    held.result()
    receipts = [answer["steering"] for answer in answers]
    assert len({receipt["fingerprint"] for receipt in receipts}) == 1
    assert receipts[0]["edits"][0]["unit"] == "dose"
    assert receipts[0]["edits"][0]["raw_scale"] > 0


async def test_a_client_that_goes_away_takes_no_dose_from_the_others(served: Runtime) -> None:
    gate = threading.Event()
    held = served.engine.run_exclusive(gate.wait)
    value = dosed()["steering"]
    gone, staying = (asyncio.create_task(served.resolve_steering_async(value)) for _ in range(2))
    while not served._doses._under_way:
        await asyncio.to_thread(lambda: None)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    gate.set()
    assert await staying is not None
    held.result()


def test_before_the_engine_runs_a_dose_is_unavailable(tmp_path: Path) -> None:
    runtime = build_runtime(tiny_settings(tmp_path, engine={"threads": 1}))
    with pytest.raises(UnavailableError):
        runtime.resolve_steering(dosed()["steering"])
    assert runtime.resolve_steering([{"feature": 5, "scale": 1.0, "unit": "norm"}]) is not None
    runtime.stop()


async def test_with_the_full_form_and_wrong_types_nothing_breaks(served: Runtime) -> None:
    for value in ({"edits": [{"feature": 5, "scale": 1.0, "unit": "dose"}], "strength": 0.5},):
        assert await served.resolve_steering_async(value) is not None
    for wrong in ([{"feature": 5, "scale": 1.0, "unit": ["dose"]}], {"edits": {"unit": "dose"}}, [[{"unit": "max"}]]):
        with pytest.raises(InvalidRequestError):
            await served.resolve_steering_async(wrong)
