"""Doses of features and vectors: looked up, or measured at first use between the engine's steps and then kept."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

from steerserve.core.errors import FeatureStoreError, UnavailableError
from steerserve.dose.calibrate import calibrate, calibrate_vector, prepare_texts
from steerserve.engine.background import drive
from steerserve.steering.unit_values import FeatureTarget, UnknownDosesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Future

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.engine.background import Pieces, RunExclusive
    from steerserve.model.lens import LensModel
    from steerserve.steering.unit_values import Target
    from steerserve.store.records import Calibration
    from steerserve.store.stores import FeatureStores

Result = TypeVar("Result")

_MAX_KEPT = 10_000
_MAX_DICTIONARIES = 64

_log = logging.getLogger(__name__)


class Doses:
    """The `UnitValues` of one served model. Any thread; `maximum` and `dose` read files."""

    def __init__(
        self,
        lens: LensModel,
        stores: FeatureStores,
        norms: Mapping[str, tuple[float, float]],
        run_exclusive: RunExclusive,
    ) -> None:
        """Measure with `lens`, one target after the other.

        Args:
            lens: The model, used only through `run_exclusive`.
            stores: Feature stores of the dictionaries, where new doses are kept.
            norms: Median and mean norm at each hook point of the model.
            run_exclusive: Runs one piece of the work.
        """
        self._lens = lens
        self._stores = stores
        self._norms = norms
        self._run_exclusive = run_exclusive
        self._lock = threading.Lock()
        self._measured: OrderedDict[str, float | None] = OrderedDict()
        """Doses that no store keeps: of vectors, of targets without a dose, and of stores that cannot be written."""
        self._usual: OrderedDict[str, float] = OrderedDict()
        """Usual doses by the contents of dictionaries."""
        self._under_way: dict[str, Future[None]] = {}
        self._worker: ThreadPoolExecutor | None = None
        self._is_stopped = False

    def maximum(self, target: FeatureTarget) -> float | None:
        """Return the feature's largest activation in the scanned text; None if it was not interpreted."""
        store = self._stores.find(target.dictionary)
        return _read(lambda: store.maximum(target.feature)) if store is not None else None

    def mean_norm(self, hook_name: str) -> float:
        """Return the mean norm of the values at a hook point of the model, without sinks."""
        return self._norms[hook_name][1]

    def dose(self, target: Target) -> float | None:
        """Return the raw scale of one dose; None if no allowed scale is large enough.

        Raises:
            UnknownDosesError: the dose was never measured.
        """
        if isinstance(target, FeatureTarget):
            store = self._stores.find(target.dictionary)
            stored = _read(lambda: store.calibration(target.feature)) if store is not None else None
            if stored is not None:
                return stored.dose
        with self._lock:
            if target.key in self._measured:
                self._measured.move_to_end(target.key)
                return self._measured[target.key]
        raise UnknownDosesError([target])

    def measure(self, targets: Iterable[Target]) -> list[Future[None]]:
        """Start to measure doses; those that are being measured already are not started again.

        Returns:
            Futures that are done when all doses are known. Do not cancel them: others may wait for the same ones.

        Raises:
            UnavailableError: the server is stopping. The futures raise it too, and QueueFullError and EngineError.
        """
        with self._lock:
            if self._is_stopped:
                raise UnavailableError("The server is stopping.")
            by_key = {target.key: target for target in targets}
            futures = {self._under_way[key] for key in by_key if key in self._under_way}
            new = {key: target for key, target in by_key.items() if key not in self._under_way}
            if new:
                self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="doses")
                future = self._worker.submit(self._measure, list(new.values()))
                self._under_way |= dict.fromkeys(new, future)
                futures.add(future)
        return list(futures)

    def stop(self) -> None:
        """End the thread, after the engine stopped taking work; calling it again does nothing."""
        with self._lock:
            self._is_stopped = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown()

    def _measure(self, targets: Sequence[Target]) -> None:
        features: dict[str, list[FeatureTarget]] = {}
        try:
            for target in targets:
                if isinstance(target, FeatureTarget):
                    features.setdefault(target.dictionary.contents, []).append(target)
                else:
                    self._remember({target.key: drive(self._run_exclusive, self._vector_pieces(dict(target.layers)))})
            for targets_of_dictionary in features.values():
                self._measure_features(targets_of_dictionary)
        finally:
            with self._lock:
                for target in targets:
                    self._under_way.pop(target.key, None)

    def _measure_features(self, targets: Sequence[FeatureTarget]) -> None:
        dictionary, features = targets[0].dictionary, [target.feature for target in targets]
        calibrations = drive(self._run_exclusive, self._feature_pieces(dictionary, features))
        self._remember(
            {
                target.key: calibrations[target.feature].dose if target.feature in calibrations else None
                for target in targets
            }
        )
        if not calibrations:
            return
        try:
            self._stores.for_writing(dictionary, self._lens.id).write_calibrations(calibrations)
        except FeatureStoreError as error:
            _log.warning("dictionary %s: doses are kept until the server stops: %s", dictionary.id, error.message)

    def _feature_pieces(self, dictionary: Dictionary, features: Sequence[int]) -> Pieces[dict[int, Calibration]]:
        texts = yield from prepare_texts(self._lens, dictionary, self._usual.get(dictionary.contents))
        self._usual[dictionary.contents] = texts.usual_dose
        if len(self._usual) > _MAX_DICTIONARIES:
            self._usual.popitem(last=False)
        calibrations = yield from calibrate(self._lens, dictionary, texts, features)
        return calibrations

    def _vector_pieces(self, layers: Mapping[str, tuple[float, ...]]) -> Pieces[float | None]:
        tensors = {hook_name: torch.tensor(values) for hook_name, values in layers.items()}
        medians = {hook_name: median for hook_name, (median, _) in self._norms.items()}
        dose = yield from calibrate_vector(self._lens, tensors, medians)
        return dose

    def _remember(self, doses: Mapping[str, float | None]) -> None:
        with self._lock:
            self._measured.update(doses)
            while len(self._measured) > _MAX_KEPT:
                self._measured.popitem(last=False)


def _read(look_up: Callable[[], Result | None]) -> Result | None:
    """Return the result of a look-up in a store; None if the store cannot be read."""
    try:
        return look_up()
    except FeatureStoreError as error:
        _log.warning("%s", error.message)
        return None
