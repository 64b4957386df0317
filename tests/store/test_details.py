"""A feature's large part comes back from its blob as it was, in few bytes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerserve.store.details import Details, details_of, pack_details, unpack_details
from steerserve.store.details_v1 import unpack_details_v1
from steerserve.store.records import TextSnippet
from tests.interpret.known import feature
from tests.store.version_1 import pack_details_v1

TOKENS = st.integers(0, 500_000)
HALVES = st.floats(0, 65504, width=16)
PAIRS = st.lists(st.tuples(TOKENS, st.floats(-100, 100, width=16)), max_size=4).map(tuple)


@st.composite
def snippets(draw: st.DrawFn) -> TextSnippet:
    length = draw(st.integers(1, 41))
    ids = draw(st.lists(TOKENS, min_size=length, max_size=length))
    acts = draw(st.lists(st.one_of(st.just(0.0), HALVES), min_size=length, max_size=length))
    return TextSnippet(
        tuple(ids), tuple(acts), draw(st.integers(0, length - 1)), draw(st.sampled_from([None, 0, 1, 4]))
    )


DETAILS = st.builds(
    Details,
    quantiles=st.lists(st.floats(0, 1000, width=32), max_size=5).map(tuple),
    histogram=st.lists(st.integers(0, 2**32 - 1), max_size=64).map(tuple),
    snippets=st.lists(snippets(), max_size=4).map(tuple),
    peak_tokens=st.lists(st.tuples(TOKENS, st.integers(0, 2**32 - 1)), max_size=4).map(tuple),
    promoted=PAIRS,
    suppressed=PAIRS,
    neighbours=PAIRS,
)


@settings(deadline=None)
@given(DETAILS)
def test_what_is_packed_comes_back(details: Details) -> None:
    assert unpack_details(pack_details(details)) == details


@settings(deadline=None)
@given(DETAILS)
def test_what_is_split_can_be_put_together_again(details: Details) -> None:
    head, rest = details.split()
    assert unpack_details(pack_details(rest)).with_head(unpack_details(pack_details(head))) == details


@settings(deadline=None)
@given(DETAILS)
def test_details_of_version_1_are_read(details: Details) -> None:
    assert unpack_details_v1(pack_details_v1(details)) == details


@pytest.mark.parametrize("token", [0, 207, 208, 10_447, 10_448, 75_983, 75_984, 534_735])
def test_tokens_of_version_1_are_read_at_the_edges_of_one_two_and_three_bytes(token: int) -> None:
    details = Details(peak_tokens=((token, 1),))
    assert unpack_details_v1(pack_details_v1(details)) == details


@pytest.mark.parametrize("token", [0, 255, 256, 65_535, 65_536, 2**32 - 1])
def test_tokens_come_back_at_the_edges_of_one_two_and_four_bytes(token: int) -> None:
    details = Details(peak_tokens=((token, 1),))
    assert unpack_details(pack_details(details)) == details


def test_a_number_beyond_four_bytes_is_refused() -> None:
    with pytest.raises(OverflowError, match=str(2**32)):
        pack_details(Details(peak_tokens=((2**32, 1),)))


def test_activations_beyond_float16_are_kept_to_its_precision() -> None:
    acts = (1e6, 123_456.0, 0.0, 7.0)
    packed = pack_details(Details(snippets=(TextSnippet((1, 2, 3, 4), acts, 0, None),)))
    np.testing.assert_allclose(unpack_details(packed).snippets[0].acts, acts, rtol=2**-11)


@pytest.mark.parametrize("blob", [b"", b"not zlib", zlib.compress(b""), zlib.compress(b"\xff" * 100)])
def test_what_is_no_blob_is_refused(blob: bytes) -> None:
    for unpack in (unpack_details, unpack_details_v1):
        with pytest.raises(ValueError):  # noqa: PT011 what numpy, struct or zlib say
            unpack(blob)


def test_a_blob_that_was_cut_off_is_refused() -> None:
    content = zlib.decompress(pack_details(details_of(feature(0))))
    for length in range(len(content)):
        with pytest.raises(ValueError):  # noqa: PT011 what numpy, struct or zlib say
            unpack_details(zlib.compress(content[:length]))


def test_a_blob_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="over 1048576 bytes"):
        unpack_details(zlib.compress(b"\x01" + bytes(1 << 24)))
    with pytest.raises(ValueError, match="cut off"):
        unpack_details(pack_details(details_of(feature(0)))[:-1])


def test_tokens_are_renumbered_everywhere() -> None:
    details = details_of(feature(0, promoted="xy"))
    renumbered = details.renumbered({token: token + 1000 for token in details.tokens()})
    assert sorted(renumbered.tokens()) == sorted(token + 1000 for token in details.tokens())
    assert renumbered.renumbered({token: token - 1000 for token in renumbered.tokens()}) == details
