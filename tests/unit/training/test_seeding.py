"""Streams of random numbers, and the batches drawn from them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fitserve_training.fit import curve_marks, epoch_indices
from fitserve_training.seeding import derive, generator

CPU = torch.device("cpu")


@given(seed=st.integers(0, 2**63), names=st.lists(st.text(max_size=5) | st.integers(0, 9), max_size=3))
def test_a_derived_seed_fits_torch_and_is_always_the_same(seed: int, names: list[str | int]) -> None:
    assert 0 <= derive(seed, *names) < 2**63
    assert derive(seed, *names) == derive(seed, *names)


def test_streams_differ_by_seed_name_and_epoch() -> None:
    streams = [(0, "init"), (1, "init"), (0, "shuffle", 1), (0, "shuffle", 2), (0, "shuffle", 12)]
    assert len({derive(*stream) for stream in streams}) == len(streams)  # type: ignore[arg-type]


def test_generators_of_one_stream_draw_the_same_numbers() -> None:
    first, second = (torch.rand(4, generator=generator(7, "data")) for _ in range(2))
    assert torch.equal(first, second)


@given(count=st.integers(1, 200), batch_size=st.integers(1, 64), epoch=st.integers(1, 5))
def test_an_epoch_takes_every_example_once(count: int, batch_size: int, epoch: int) -> None:
    batches = [indices for indices in epoch_indices(3, epoch, count, batch_size, CPU) if indices is not None]

    assert torch.equal(torch.cat(batches).sort().values, torch.arange(count))
    assert {len(indices) for indices in batches[:-1]} <= {batch_size}


def test_epochs_are_shuffled_differently() -> None:
    (first,), (second,) = (list(epoch_indices(0, epoch, 50, 50, CPU)) for epoch in (1, 2))
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)


def test_full_batch_is_not_gathered() -> None:
    assert list(epoch_indices(0, 1, 50, 0, CPU)) == [None]


@given(batch_count=st.integers(1, 1000))
def test_curve_points_end_with_the_epoch(batch_count: int) -> None:
    marks = curve_marks(batch_count)
    assert max(marks) == batch_count
    assert min(marks) >= 1
    assert len(marks) == min(5, batch_count)
