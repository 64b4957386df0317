"""Every architecture here computes the same with the slot cache as without; those that cannot are refused."""

from pathlib import Path
from typing import Any

import pytest

from steerserve.core.errors import ModelSourceError
from steerserve.engine.runner import Runner
from steerserve.engine.selfcheck import check_cache
from tests.model.architectures import SERVED, load

REFUSED: dict[str, dict[str, Any]] = {"Mamba": {}, "Bloom": {"n_layer": 2, "n_head": 4}}


@pytest.mark.parametrize("name", SERVED)
def test_an_architecture_computes_the_same_with_the_cache(name: str, tmp_path: Path) -> None:
    lens = load(name, SERVED[name], tmp_path)
    check_cache(Runner(lens, num_slots=2, context=64, median_norms={}))


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_the_cache_cannot_follow_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError):
        check_cache(Runner(load(name, REFUSED[name], tmp_path), num_slots=2, context=64, median_norms={}))
