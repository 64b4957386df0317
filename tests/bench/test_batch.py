"""What a batch's timings say, worked out by hand."""

from __future__ import annotations

import pytest

from steerserve.bench.batch import Batch, Percentiles, percentiles
from steerserve.bench.stream import StreamTiming


def stream(sent: float, *arrivals: float) -> StreamTiming:
    return StreamTiming(sent, arrivals, num_tokens=len(arrivals), num_prompt_tokens=1)


def test_decoding_is_measured_only_while_every_stream_generates() -> None:
    # The first stream waits two seconds while the second one's prompt is read, and ends first.
    batch = Batch((stream(0.0, 1.0, 3.0, 3.1, 3.2), stream(0.0, 3.0, 3.1, 3.2, 9.0)))
    assert batch.decode_gaps == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert batch.step_ms == pytest.approx(100)
    assert batch.decode_tokens_per_s == pytest.approx(20)


def test_throughput_counts_everything_from_the_first_request_to_the_last_token() -> None:
    batch = Batch((stream(0.0, 1.0, 2.0), stream(0.5, 1.0, 2.0, 4.0)))
    assert batch.tokens_per_s == pytest.approx(5 / 4)


def test_tokens_are_those_the_server_counted_where_a_chunk_carried_two() -> None:
    batch = Batch((StreamTiming(0.0, (1.0, 2.0), num_tokens=4, num_prompt_tokens=1),))
    assert batch.tokens_per_s == pytest.approx(2)
    assert batch.step_ms == pytest.approx(1000)
    assert batch.decode_tokens_per_s == pytest.approx(2)


def test_a_pause_over_an_end_of_the_window_counts_as_far_as_it_lies_within() -> None:
    batch = Batch((stream(0.0, 1.0, 5.0), stream(0.0, 0.0, 2.0, 2.0, 6.0)))
    assert batch.decode_gaps == [4.0, 0.0]
    assert batch.decode_tokens_per_s == pytest.approx(3 / 4)


def test_streams_that_never_run_together_have_no_decode_step() -> None:
    batch = Batch((stream(0.0, 1.0, 2.0), stream(0.0, 3.0, 4.0)))
    assert batch.decode_gaps == []
    assert batch.step_ms is None
    assert batch.decode_tokens_per_s is None


def test_one_slow_step_does_not_move_the_step() -> None:
    assert Batch((stream(0.0, 1.0, 1.1, 1.2, 5.2, 5.3, 5.4),)).step_ms == pytest.approx(100)


def test_percentiles_are_times_that_were_seen() -> None:
    found = percentiles([0.001 * number for number in range(1, 101)])
    assert (found.p50, found.p99) == pytest.approx((50, 99))
    assert percentiles([0.003]) == Percentiles(3.0, 3.0)
