"""Results show themselves in a notebook, with every text escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from steerserve import SteeredModel

EDIT = {"feature": 3, "scale": 4.0}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


def test_an_answer_tints_its_tokens_and_shows_its_receipt(local: SteeredModel) -> None:
    answer = local.chat("Hi", steering=[EDIT], features={"top": 4, "watch": [3]}, **GREEDY)
    shown = answer._repr_html_()
    assert shown.count("<span") == len(answer.features)
    assert "background:rgba" in shown
    assert "standard/3" in shown
    assert answer.receipt is not None
    assert answer.receipt.fingerprint[:12] in shown


def test_an_answer_without_features_shows_its_text_escaped(local: SteeredModel) -> None:
    from steerserve.api.notebook import paragraph

    assert "&lt;b&gt;" in paragraph("<b>")
    assert local.chat("Hi", **GREEDY)._repr_html_().startswith("<div")


def test_tinting_needs_features_and_names_those_there_are(local: SteeredModel) -> None:
    with pytest.raises(ValueError, match="features=True"):
        local.chat("Hi", **GREEDY).tinted()
    answer = local.chat("Hi", features=True, **GREEDY)
    with pytest.raises(ValueError, match="standard"):
        answer.tinted(dictionary="other")
    feature = answer.features[0].dictionaries["standard"].top[0].feature
    assert f"standard/{feature}" in answer.tinted(feature)._repr_html_()


def test_tables_show_comparisons_inspections_and_contrasts(local: SteeredModel) -> None:
    comparison = local.compare("Hi", arms=[{"name": "a<b"}, {"name": "b", "steering": [EDIT]}], **GREEDY)
    shown = comparison._repr_html_()
    assert "a&lt;b" in shown
    assert "<b>" not in shown
    assert "KL" in shown
    assert local.inspect("Hello")._repr_html_().count("<span") == len(local.inspect("Hello").tokens)
    assert "AUC" in local.contrast(["aaaa", "aaab"], ["cccc", "dddd"])._repr_html_()
