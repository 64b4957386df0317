"""What reads a transcoder reads where it reads, leaves out the sinks of where it is edited, and pushes there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.contrast.contrast import pooled_activations
from steerserve.contrast.text_sets import TextSets
from steerserve.dose.calibrate import calibrate, prepare_texts
from steerserve.dose.direction_facts import direction_facts
from steerserve.engine.background import drive, run_pieces
from steerserve.engine.inspection import Inspection
from steerserve.engine.readings import read_texts, text_ids
from steerserve.interpret.scan import scan
from steerserve.model.norms import SINK_RATIO
from tests.conformance.random_dictionaries import D_SAE, write_random
from tests.dose.pushing import dose_by_bisection
from tests.interpret.toy import batches_of, loader_of, texts
from tests.tiny import D_MODEL
from tests.training.quiet import Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from steerserve.dictionaries.dictionary import Dictionary
    from steerserve.model.lens import LensModel
    from steerserve.runtime import Runtime

READS, WRITES = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
TEXTS = ("The bridge is closed ~ until further notice.", "A short one.")


@pytest.fixture
def transcoder(llama: Runtime, tmp_path: Path) -> Dictionary:
    folder = write_random(
        tmp_path / "code", "jumprelu_skip_transcoder", READS, d_in=D_MODEL, d_out=D_MODEL, hook_name_out=WRITES
    )
    return loader_of(llama.lens, tmp_path).load("code", f"path:{folder}")


@torch.no_grad()
def expected(lens: LensModel, found: Dictionary, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the activations of a text, and which of its tokens count."""
    values = lens.read(torch.tensor([ids]), found.hook_names)
    plain = torch.tensor([token_id not in lens.tokenizer.special_ids for token_id in ids])
    return found.sae.encode(values[READS][0]), plain & (
        values[WRITES][0].norm(dim=-1) <= SINK_RATIO * found.median_norm
    )


def test_a_text_is_inspected_where_it_reads(llama: Runtime, transcoder: Dictionary) -> None:
    ids = text_ids(llama.tokenizer, TEXTS[0])
    inspection = Inspection(transcoder, top=4, watch=[5], special_ids=llama.tokenizer.special_ids)
    drive(llama.engine.run_exclusive, read_texts(llama.lens, [ids], transcoder.hook_names, inspection.take))
    acts, keep = expected(llama.lens, transcoder, ids)
    assert [token.skipped is None for token in inspection.tokens] == keep.tolist()
    watched = torch.tensor([token.watch[0] for token in inspection.tokens])
    torch.testing.assert_close(watched, acts[:, 5] * keep, atol=1e-4, rtol=1e-4)


def test_a_text_is_counted_where_it_reads(llama: Runtime, transcoder: Dictionary, tmp_path: Path) -> None:
    lens, some = llama.lens, texts(10)
    tally = scan(lens, {"code": transcoder}, batches_of(lens, some), 10**6, tmp_path / "state", Quiet())["code"]
    active, num_tokens = torch.zeros(D_SAE), 0
    for batch in batches_of(lens, some):
        for ids, wanted in zip(batch.ids, batch.is_plain, strict=True):
            acts, keep = expected(lens, transcoder, ids.tolist())
            active += (acts[keep & wanted] != 0).sum(0)
            num_tokens += int((keep & wanted).sum())
    found = list(tally.spread.activities())
    assert {one.num_tokens for one in found} == {num_tokens}
    assert sum(one.num_active > 0 for one in found) > D_SAE / 2
    # Batches are computed together: an activation at its threshold may fall on either side.
    assert max(abs(one.num_active - int(count)) for one, count in zip(found, active, strict=True)) <= 1


async def test_sets_of_texts_are_contrasted_where_it_reads(llama: Runtime, transcoder: Dictionary) -> None:
    rows = tuple(text_ids(llama.tokenizer, text) for text in TEXTS)
    pooled = await pooled_activations(llama.engine, transcoder, TextSets(rows, 1, ("positive[0]", "negative[0]")))
    for row, ids in zip(pooled, rows, strict=True):
        acts, keep = expected(llama.lens, transcoder, ids)
        torch.testing.assert_close(torch.from_numpy(row), acts[keep].amax(0), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_dose_is_measured_where_it_is_edited(llama: Runtime, transcoder: Dictionary) -> None:
    built_in = run_pieces(prepare_texts(llama.lens, transcoder))
    [found] = run_pieces(calibrate(llama.lens, transcoder, built_in, [5])).values()
    direction = transcoder.sae.W_dec[5]
    wanted = dose_by_bisection(llama.lens, WRITES, transcoder.median_norm, lambda x: direction.expand(len(x), -1))
    assert found.dose == pytest.approx(wanted, rel=0.1)


def test_its_directions_are_those_that_it_writes(llama: Runtime, transcoder: Dictionary) -> None:
    facts = direction_facts(llama.lens, transcoder, Quiet())
    logits = llama.lens.unembed(transcoder.sae.W_dec[:1])[0]
    assert facts[0].promoted[0][0] == int(logits[: llama.tokenizer.vocab_size].argmax())
