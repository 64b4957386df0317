"""Gates, ramps and transcoders in the engine, against the oracle."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.harness import ask, run
from tests.engine.transcoders import TRANSCODERS
from tests.tiny import D_MODEL, VOCAB_SIZE

if TYPE_CHECKING:
    from steerserve.runtime import Runtime
    from tests.engine.gated_oracle import GatedOracle

PROMPT = "<|im_start|>user\nTell me ~ about it, please.<|im_end|>\nwell"
NUM_TOKENS = 7
VECTOR = [(-1.0) ** place * (1 + place / 20) for place in range(D_MODEL)]
MODES: dict[str, dict[str, Any]] = {
    "add": {"scale": 6.0},
    "clamp": {"mode": "clamp", "scale": 5.0},
    "multiply": {"mode": "multiply", "scale": -3.0},
    "ablate": {"mode": "ablate"},
    "floor": {"mode": "floor", "scale": 3.0},
    "ceiling": {"mode": "ceiling", "scale": 0.1},
    "remove": {"mode": "remove"},
}
WINDOWS: dict[str, dict[str, Any]] = {
    "all": {},
    "prompt": {"positions": "prompt"},
    "generated": {"positions": "generated"},
    "ramp": {"positions": "generated", "ramp": 4},
    "ramp-within": {"positions": "generated", "start": 1, "stop": 5, "ramp": 3},
}
GATES: dict[str, dict[str, Any]] = {
    "none": {},
    "same-feature": {"when": {"feature": 7, "above": 0.1}},
    "same-hook": {"when": {"feature": 5, "above": 0.2}},
    "below": {"when": {"feature": 5, "below": 0.2}},
    "topk": {"when": {"feature": 3, "dictionary": "topk", "below": 0.5}},
    "earlier": {"when": {"feature": 6, "dictionary": "z", "above": 0.01}},
    "transcoder": {"when": {"feature": 6, "dictionary": "tc", "above": 0.1}},
}
TC_SKIP = {"feature": 8, "dictionary": "tc-skip", "when": {"feature": 9, "dictionary": "tc-jump", "below": 0.2}}
OTHERS: dict[str, dict[str, Any]] = {
    "normalised": {"feature": 4, "dictionary": "normalised", "above": 0.3},
    "late": {"feature": 3, "dictionary": "late", "above": 0.3},
    "jumprelu": {"feature": 3, "dictionary": "jumprelu", "above": 1},
    "layernorm": {"feature": 9, "dictionary": "tc-layernorm", "above": 0.2},
}
MIXED: dict[str, Any] = {
    "vectors": [
        {"vector": {"hook": "blocks.1.hook_resid_pre", "values": VECTOR}, "scale": 2.0, **GATES["same-hook"]},
        {"vector": {"hook": "blocks.1.hook_resid_mid", "values": VECTOR}, "mode": "remove", **GATES["topk"]},
        {"vector": {"hook": "blocks.0.hook_resid_post", "values": VECTOR}, **MODES["add"], **WINDOWS["ramp"]},
    ],
    "full": [
        {"feature": 1, "dictionary": "topk", **MODES["clamp"], **GATES["same-hook"]},
        {"feature": 2, "dictionary": "topk", **MODES["add"], **WINDOWS["ramp"]},
        {"feature": 2, "dictionary": "topk", **MODES["floor"], **GATES["earlier"]},
        {"feature": 4, **MODES["clamp"], "when": OTHERS["normalised"]},
        {"feature": 6, "dictionary": "mlp", **MODES["clamp"], **GATES["same-hook"]},
    ],
    "gates-see-what-earlier-edits-did": {
        "edits": [
            {"feature": 3, "scale": 9.0, "special_tokens": True},
            {"feature": 5, "dictionary": "late", "scale": 4.0, "when": OTHERS["late"]},
            {"feature": 3, "dictionary": "gated", **MODES["add"], "when": OTHERS["jumprelu"]},
        ],
        "strength": 0.8,
    },
    "late": [{"feature": 5, "dictionary": "late", **MODES["clamp"], "when": OTHERS["layernorm"]}],
    **{
        f"{name}-{mode}": [
            {"feature": 3, "dictionary": name, **MODES[mode]},
            {"feature": 5, "dictionary": name, **MODES["add"], **GATES["same-hook"], **WINDOWS["generated"]},
        ]
        for name, mode in itertools.product(TRANSCODERS, MODES)
        if name != "tc"
    },
    "transcoders-behind-edits-of-what-they-read": [
        {"feature": 3, "scale": 6.0},
        {"vector": {"hook": "blocks.1.hook_resid_mid", "values": VECTOR}, "scale": 0.4},
        *({"feature": 7, "dictionary": name, "mode": "clamp", "scale": 4.0} for name in TRANSCODERS if name != "tc"),
        {**TC_SKIP, **MODES["multiply"]},
    ],
}


def case(mode: str, window: str, gate: str) -> list[dict[str, Any]]:
    if gate == "transcoder":  # it reads in the same block before what the MLP adds is edited
        return [{"feature": 7, "dictionary": "tc", **MODES[mode], **WINDOWS[window], **GATES[gate]}]
    return [{"feature": 7, **MODES[mode], **WINDOWS[window], **GATES[gate]}]


def compare(runtime: Runtime, oracle: GatedOracle, *several: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """Compare tokens and logits of a batch, row by row; return the receipts."""
    requests = [ask(runtime, PROMPT, steering, max_tokens=NUM_TOKENS, num_logprobs=VOCAB_SIZE) for steering in several]
    receipts = []
    for request, steering, answer in zip(requests, several, run(runtime.engine, *requests), strict=True):
        token_ids, logits = oracle.generate(request.prompt_ids, steering, NUM_TOKENS)
        assert list(answer.token_ids) == token_ids, steering
        torch.testing.assert_close(answer.all_logprobs(), logits.log_softmax(-1), atol=1e-4, rtol=0)
        assert answer.receipt is not None
        receipts.append(answer.receipt)
    return receipts


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mode", MODES)
def test_gate_mode_positions_and_ramp_equal_the_oracles(
    transcoding: Runtime, gated_oracle: GatedOracle, mode: str, window: str
) -> None:
    compare(transcoding, gated_oracle, *(case(mode, window, gate) for gate in GATES))


@pytest.mark.parametrize("name", MIXED)
def test_mixed_edits_equal_the_oracles(transcoding: Runtime, gated_oracle: GatedOracle, name: str) -> None:
    [receipt] = compare(transcoding, gated_oracle, MIXED[name])
    ids = transcoding.tokenizer.encode_plain(PROMPT + " and so it goes on")
    num_prompt = len(transcoding.tokenizer.encode_plain(PROMPT))
    plain, steered = (gated_oracle.logits(ids, num_prompt, steering) for steering in (None, MIXED[name]))
    assert (plain - steered).abs().max() > 1e-3  # else it would pass with any engine
    assert all(edit["tokens_edited"] for edit in receipt["edits"])


@pytest.mark.parametrize("gate", [name for name in GATES if name != "none"])
def test_the_receipt_counts_what_the_gate_let_through(
    transcoding: Runtime, gated_oracle: GatedOracle, gate: str
) -> None:
    steering = case("add", "all", gate)
    request = ask(transcoding, PROMPT, steering, max_tokens=NUM_TOKENS)
    [answer] = run(transcoding.engine, request)
    ids = [*request.prompt_ids, *answer.token_ids[:-1]]
    gated_oracle.logits(ids, len(request.prompt_ids), steering)
    passed = gated_oracle.passes(steering[0])
    assert answer.receipt is not None
    [edit] = answer.receipt["edits"]
    asked = steering[0]["when"]
    wanted = {"dictionary": "standard", **asked, "tokens_passed": int(passed.sum())}
    assert {key: edit["gate"][key] for key in wanted} == wanted
    assert edit["gate"]["hook"] == transcoding.registry.snapshot().dictionaries[wanted["dictionary"]].read_hook_name
    special = torch.tensor([token_id >= 256 for token_id in ids])
    sinks = torch.tensor([token_id == ord("~") for token_id in ids])
    if gate != "transcoder":  # where the MLP writes, other tokens are sinks
        counts = {"special": special, "sink": sinks, "gate": ~passed & ~special & ~sinks}
        assert edit["skipped"] == {name: int(count.sum()) for name, count in counts.items()}
    assert edit["tokens_skipped"] == sum(edit["skipped"].values())
    assert edit["tokens_edited"] + edit["tokens_skipped"] == len(ids)
    assert 0 < edit["gate"]["tokens_passed"] < len(ids)


def test_the_receipt_says_what_was_asked(transcoding: Runtime) -> None:
    steering = [
        {"feature": 3, "scale": 1.0},
        {"feature": 4, "scale": 1.0, "positions": "generated", "start": 1, "stop": 3, "ramp": 2},
        {"feature": 5, "scale": 1.0, "positions": "generated", "ramp": 6, "when": {"feature": 1, "below": 2}},
    ]
    [answer] = run(transcoding.engine, ask(transcoding, PROMPT, steering, max_tokens=4))
    assert answer.receipt is not None
    plain, window, gated = answer.receipt["edits"]
    assert not {"start", "stop", "ramp", "gate"} & plain.keys()
    assert {key: window[key] for key in ("start", "stop", "ramp")} == {"start": 1, "stop": 3, "ramp": 2}
    assert gated["ramp"] == 6
    assert not {"start", "stop"} & gated.keys()
    assert gated["gate"]["below"] == 2
    assert "above" not in gated["gate"]
