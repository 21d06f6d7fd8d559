from __future__ import annotations

from itertools import combinations

import pytest
import torch

from packforcing_core.sampler.noise import seeded_noise

SHAPE = (1, 16, 3, 4, 6)


def test_noise_is_a_float32_gaussian_on_the_cpu():
    drawn = torch.stack([seeded_noise(3, SHAPE)(block, 0) for block in range(60)])
    mean, deviation = drawn.mean().item(), drawn.std().item()
    print(f"{drawn.numel()} numbers, mean {mean:+.4f}, deviation {deviation:.4f}")
    assert (drawn.dtype, drawn.device.type, drawn.shape[1:]) == (torch.float32, "cpu", SHAPE)
    assert abs(mean) < 0.02
    assert abs(deviation - 1) < 0.02


def test_noise_does_not_depend_on_the_order_or_on_what_was_drawn_before():
    keys = [(block, step) for block in range(4) for step in range(3)]
    noise = seeded_noise(11, SHAPE)
    forwards = {key: noise(*key) for key in keys}
    other = seeded_noise(11, SHAPE)
    for key in reversed(keys):
        assert torch.equal(other(*key), forwards[key])
        assert torch.equal(noise(*key), forwards[key])


def test_noise_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = seeded_noise(1, SHAPE)(0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(seeded_noise(1, SHAPE)(0, 0), first)


def test_neighbours_are_independent():
    """Keys that a careless sum or a string without separators would confuse."""
    keys = [(1, 23, 0), (12, 3, 0), (123, 0, 0), (1, 2, 3), (12, 0, 3), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    drawn = {key: seeded_noise(key[0], SHAPE)(*key[1:]).flatten() for key in keys}
    likest = max(abs(torch.corrcoef(torch.stack((drawn[a], drawn[b])))[0, 1].item()) for a, b in combinations(keys, 2))
    print(f"largest correlation {likest:.3f} among {len(keys)} draws of {drawn[keys[0]].numel()} numbers")
    assert likest < 0.15


@pytest.mark.parametrize("seed", [0, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**64 - 1])
def test_seeds_of_64_bits_are_all_their_own(seed):
    drawn = [seeded_noise(other, SHAPE)(0, 0) for other in (seed, seed ^ 1, seed ^ (1 << 40), seed ^ (1 << 63))]
    assert not any(torch.equal(a, b) for a, b in combinations(drawn, 2))


def test_a_seed_gives_the_same_noise_in_every_version():
    """Films are had again by their seed: this value may never change."""
    first = seeded_noise(2603, SHAPE)(5, 2).flatten()[:3]
    assert first.tolist() == pytest.approx([-1.466549, -0.877328, 0.981847], abs=1e-5)
