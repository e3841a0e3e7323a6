"""Seeds and noise: what is promised about which numbers come out."""

import math

import numpy as np
import pytest
import torch

from sbridge.errors import InvalidInputError
from sbridge.random import ROW_BLOCK, NormalNoise, as_seed, derive, generator

# Shapes that end inside, at and beyond the blocks of 32 steps and 1024 rows; fewer than 16 numbers, too,
# which torch fills by another routine.
SHAPES = [(1, 1, 1), (3, 2, 2), (33, 5, 3), (64, ROW_BLOCK, 1), (40, 2 * ROW_BLOCK + 7, 2), (1, ROW_BLOCK + 1, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_stored_noise_is_the_noise_of_each_step(shape, dtype):
    noise = NormalNoise(5, *shape, dtype=dtype)
    stored = noise.stored()
    assert stored.shape == shape
    assert stored.dtype == dtype
    # Backwards and with a jump: the order of asking must not matter.
    for k in [*reversed(range(shape[0])), 0, shape[0] - 1]:
        assert torch.equal(noise.step(k), stored[k])


def test_rows_of_chunks_are_rows_of_the_whole(dtype):
    noise = NormalNoise(9, 35, 3 * ROW_BLOCK + 10, 2, dtype=dtype)
    whole = noise.stored()
    for start, stop in [(0, ROW_BLOCK), (ROW_BLOCK, 3 * ROW_BLOCK), (2 * ROW_BLOCK, 3 * ROW_BLOCK + 10)]:
        assert torch.equal(noise.rows(start, stop).stored(), whole[:, start:stop])
    again = noise.rows(ROW_BLOCK, 3 * ROW_BLOCK).rows(ROW_BLOCK, 2 * ROW_BLOCK)
    assert torch.equal(again.stored(), whole[:, 2 * ROW_BLOCK : 3 * ROW_BLOCK])


def test_a_longer_batch_begins_with_the_blocks_of_a_shorter_one():
    short, long = (NormalNoise(2, 4, n, 3).stored() for n in (ROW_BLOCK, 2 * ROW_BLOCK + 1))
    assert torch.equal(short, long[:, :ROW_BLOCK])


@pytest.mark.parametrize("cut", [(1, ROW_BLOCK), (0, 500), (ROW_BLOCK, ROW_BLOCK), (0, 4 * ROW_BLOCK)])
def test_cuts_that_would_change_the_numbers_are_refused(cut):
    with pytest.raises(InvalidInputError, match="not a valid chunk"):
        NormalNoise(0, 2, 2 * ROW_BLOCK, 1).rows(*cut)


def test_noise_is_standard_normal_and_independent():
    noise = NormalNoise(11, 70, 1500, 2, dtype=torch.float64).stored()
    count = noise.numel()
    assert abs(noise.mean()) < 4 / math.sqrt(count)
    assert abs(noise.square().mean() - 1) < 4 * math.sqrt(2 / count)
    assert abs(noise.pow(4).mean() - 3) < 4 * math.sqrt(96 / count)
    # Between steps of one block and of neighbours, between rows of two blocks, and between coordinates.
    pairs = [(noise[:-1], noise[1:]), (noise[:32], noise[32:64]), (noise[:, :476], noise[:, ROW_BLOCK:])]
    for a, b in [*pairs, (noise[..., 0], noise[..., 1])]:
        assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_outside_is_an_error(step):
    with pytest.raises(InvalidInputError, match="steps 0 … 3"):
        NormalNoise(0, 4, 2, 2).step(step)


def test_child_seeds():
    children = [
        derive(3, "noise"),
        derive(3, "start"),
        derive(4, "noise"),
        derive(3, 1),
        derive(3, "1"),
        derive(3, 1, 1),
    ]
    assert len(set(children)) == len(children)
    assert derive(3, "noise") == derive(3, "noise")
    assert all(0 <= child < 2**63 for child in children)
    # A fixed number: results of old versions stay reproducible.
    assert derive(0, "noise") == 5270754821486917672


def test_seeds_are_integers_or_generators():
    assert as_seed(7) == 7
    for kind in (np.int64, np.uint8, np.int32):  # as numpy's generators draw them
        assert type(as_seed(kind(7))) is int
        assert as_seed(kind(7)) == 7
    source = torch.Generator().manual_seed(1)
    first, second = as_seed(source), as_seed(source)
    assert first != second
    assert as_seed(torch.Generator().manual_seed(1)) == first
    for bad in (-1, 2**63, 1.0, True, None, "7", np.int64(-1), np.uint64(2**63), np.True_):
        with pytest.raises(Exception, match=r"seed|hint"):  # beartype speaks first of foreign types
            as_seed(bad)


def test_the_global_state_stays_as_it_is():
    before = torch.random.get_rng_state()
    NormalNoise(1, 40, 1100, 2).stored()
    torch.randn(3, generator=generator(4))
    assert torch.equal(before, torch.random.get_rng_state())
