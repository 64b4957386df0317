"""The engine against SAELens' own splice, for every architecture, hook point, treatment of the input and mode."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.registry import SAE_CLASS_REGISTRY

from steerserve.core.config import Settings
from steerserve.core.errors import DictionarySourceError
from steerserve.dictionaries.saelens import read_config
from steerserve.runtime import build_runtime
from tests.conformance.cells import COLUMNS, MODES, NUM_EDITS, POSITIONS, REFUSED, SAES, Cell, cells, table
from tests.conformance.random_dictionaries import TRANSCODERS, write_random
from tests.conformance.splice import RowEdit, load_sae, model_folder, reference_model, spliced
from tests.engine.harness import ask, run
from tests.tiny import D_MODEL, VOCAB_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from steerserve.runtime import Runtime

NUM_BATCHES = int(os.environ.get("CONFORMANCE_BATCHES", "1"))
"""Of each cell; `CONFORMANCE_BATCHES=20` looks longer."""
NUM_PROMPT, NUM_TOKENS = 10, 4
TOLERANCE = 1e-4
PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
NUM_FAVOURITES = 8


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Any]]:
    """Serve the tiny Llama without dictionaries; yields the runtime and SAELens' model of the same weights."""
    root = tmp_path_factory.mktemp("conformance")
    folder = model_folder(root / "tiny")
    values = {
        "model": {"source": str(folder), "device": "cpu"},
        "dictionary_dirs": [str(tmp_path_factory.getbasetemp())],
        "cache_dir": str(root / "cache"),
        "engine": {"slots": 8, "context": 64, "prefill_chunk": 8, "queue": 64, "threads": 1},
    }
    with build_runtime(Settings.model_validate(values)) as runtime:
        yield runtime, reference_model(folder)


@pytest.fixture(scope="module")
def measured() -> dict[Cell, float]:
    """Return the largest differences, filled as the tests run."""
    return {}


@pytest.fixture(scope="module")
def sizes(served: tuple[Runtime, Any]) -> dict[str, float]:
    """Return how large a component of the value at each hook point is."""
    lens = served[0].lens
    found = lens.read(torch.randint(256, (4, 16), generator=torch.Generator().manual_seed(1)), lens.readable)
    return {name: float(value.square().mean().sqrt()) for name, value in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("cell", cells(), ids=str)
def test_edits_equal_saelens_splice(
    cell: Cell,
    served: tuple[Runtime, Any],
    sizes: dict[str, float],
    measured: dict[Cell, float],
    tmp_path: Path,
) -> None:
    runtime, model = served
    is_scaled = cell.config.get("normalize_activations") in {"layer_norm", "constant_norm_rescale"}
    folder = write_random(
        tmp_path / "one",
        cell.architecture,
        cell.hook_name,
        d_in=runtime.lens.width(cell.hook_name),
        d_out=runtime.lens.width(cell.hook_name_out or cell.hook_name),
        hook_name_out=cell.hook_name_out,
        size=1.0 if is_scaled else sizes[cell.hook_name],
        **cell.config,
    )
    runtime.dictionary_library.load("one", f"path:{folder}", force=True)
    sae = load_sae(folder)
    differences: list[float] = []

    @settings(max_examples=NUM_BATCHES, derandomize=True, database=None, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def compare(seed: int) -> None:
        differences.append(largest_difference(runtime, model, sae, seed))

    compare()
    assert len(differences) == NUM_BATCHES
    measured[cell] = max(differences)
    assert measured[cell] <= TOLERANCE


def largest_difference(runtime: Runtime, model: Any, sae: Any, seed: int) -> float:  # noqa: ANN401
    """Return the largest difference of a log-probability over a batch with an edit of each kind."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(256, (NUM_PROMPT,), generator=generator).tolist()
    edits = draw_edits(model, sae, prompt, generator)
    wanted: dict[str, Any] = {"num_prompt_logprobs": VOCAB_SIZE, "num_logprobs": VOCAB_SIZE, "max_tokens": NUM_TOKENS}
    answers = run(runtime.engine, *(ask(runtime, prompt, [edit.as_json("one")], **wanted) for edit in edits))
    rows = []
    for answer in answers:
        assert answer.prompt_logprobs is not None
        tops = [entry.top for entry in answer.prompt_logprobs if entry is not None] + list(answer.tops)
        rows.append(torch.stack([as_row(top) for top in tops]))
    ours = torch.stack(rows)
    ids = torch.tensor([[*prompt, *answer.token_ids[:-1]] for answer in answers])
    theirs = spliced(model, sae, ids, edits, NUM_PROMPT)
    plain = model(ids).log_softmax(-1)
    felt = (theirs - plain).abs().amax((1, 2)) > 100 * TOLERANCE
    assert int(felt.sum()) > NUM_EDITS / 2, "the edits that were drawn change next to nothing"
    return float((ours - theirs).abs().max())


@torch.no_grad()
def draw_edits(model: Any, sae: Any, prompt: list[int], generator: torch.Generator) -> list[RowEdit]:  # noqa: ANN401
    """Return an edit of each mode at each choice of positions, of features that the prompt activates."""
    seen: list[Tensor] = []
    where = sae.cfg.metadata.hook_name_out or sae.cfg.metadata.hook_name
    with model.saes([sae], use_error_term=True):
        model.run_with_hooks(
            torch.tensor([prompt]),
            fwd_hooks=[(f"{where}.hook_sae_acts_post", lambda acts, hook: seen.append(acts[0]))],  # noqa: ARG005
        )
    favourites = seen[0].abs().clamp(max=10).sum(0).topk(NUM_FAVOURITES).indices
    usual = float(seen[0].abs().amax(0)[favourites].median())
    edits = []
    for mode in MODES:
        for positions in POSITIONS:
            feature = int(favourites[torch.randint(NUM_FAVOURITES, (), generator=generator)])
            drawn = float(torch.randn((), generator=generator))
            scale = round(usual * {"ceiling": 0.3, "floor": 1.0}.get(mode, 2 * drawn), 4)
            edits.append(RowEdit(feature, mode, round(drawn - 2, 4) if mode == "multiply" else scale, positions))
    return edits


def as_row(top: tuple[tuple[int, float], ...]) -> Tensor:
    """Return log-probabilities by token."""
    row = torch.empty(len(top))
    row[[token_id for token_id, _ in top]] = torch.tensor([value for _, value in top])
    return row


def test_every_architecture_is_compared_or_refused() -> None:
    assert {*SAES, *TRANSCODERS, *REFUSED} == SAE_CLASS_REGISTRY.keys()


def test_a_temporal_dictionary_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "some", "standard", "blocks.0.hook_resid_post", d_in=D_MODEL)
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    with pytest.raises(DictionarySourceError, match="tokens before"):
        read_config(config | {"architecture": "temporal"}, "path:some")


def test_the_page_says_what_was_compared() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in COLUMNS:
        assert table(name, {cell: str(NUM_EDITS) for cell in cells()}) in page


def test_the_page_bounds_what_was_measured(measured: dict[Cell, float], capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for architecture in (*SAES, *TRANSCODERS):
        largest = max((one for cell, one in measured.items() if cell.architecture == architecture), default=0.0)
        assert (found := re.search(rf"^\| `{architecture}` \| at most ([\d.e-]+) \|$", page, re.MULTILINE)), (
            architecture
        )
        assert largest <= float(found[1]) <= TOLERANCE
    with capsys.disabled():
        for name in COLUMNS:
            shown = table(name, {cell: f"{one:.0e}" for cell, one in measured.items()})
            sys.stdout.write(f"\n\nLargest difference of a log-probability, by {name}\n\n{shown}\n")
