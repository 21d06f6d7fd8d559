"""Decoding beside the transformer: on a stream of its own, on the same device or on a second one, without a race."""

from __future__ import annotations

import gc
from unittest.mock import patch

import pytest
import torch

from packforcing_core.cache.bank import CompressedShape, LayerBank
from packforcing_core.cache.config import PackForcing
from packforcing_core.queued import SideStream
from packforcing_core.render.parts import build_cache, build_compression
from packforcing_core.sampler import rollout as rollout_module
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import rollout
from packforcing_core.vae.config import VAEConfig
from tests.fakecuda.device import DEVICE, fake_cuda
from tests.fakecuda.ledger import MAIN, Ledger
from tests.fakecuda.render import Case, fake_model, fake_vae, plausible_choices

pytestmark = pytest.mark.budget

SHALLOW = VAEConfig(num_res_blocks=1)
SECOND = torch.device("cuda", 1)
BLOCKS = 4


def rendered(device: torch.device, waits: bool = True) -> Ledger:
    """The ledger of a short render whose VAE lies on `device`; its blocks are small."""
    case = Case(PackForcing(4, 4, 4, 8), layers=1)
    there = rollout_module._there if waits else lambda moment: None
    with fake_cuda() as ledger, torch.no_grad(), patch.object(rollout_module, "_there", there):
        model = fake_model(case)
        cache = build_cache(model, case.recipe)
        plausible_choices(cache)
        compression = build_compression(model, fake_vae(device=device, config=SHALLOW), None)
        noise = seeded_noise(0, case.recipe.geometry.block_shape)
        prompt = torch.empty(1, case.config.text_len, case.config.text_dim)
        ledger.forget_counts()
        for event in rollout(model, prompt, cache, noise, case.recipe.denoising, BLOCKS, compression=compression):
            if isinstance(event, BlockDone):
                assert event.video.device == device
                event.video.cpu()
    return ledger


@pytest.mark.parametrize("device", [DEVICE, SECOND], ids=["one", "two"])
def test_a_decode_queues_beside_the_commit_and_nothing_races(device):
    ledger = rendered(device)
    launched = {name: clock[name] for name, clock in ledger.clocks.items() if clock[name]}
    print(launched)
    assert not ledger.races, dict(ledger.races)
    assert not ledger.mixes, dict(ledger.mixes)
    beside = [name for name in launched if name.startswith("side")]
    # The decoder's launches are on none of the devices' own streams.
    assert len([name for name in beside if launched[name] > 150 * BLOCKS]) == 1
    assert launched[MAIN] > 150 * BLOCKS
    if device == SECOND:
        # The layout of the weights, which comes first, and frames on their way to the host.
        assert launched[f"{MAIN} of 1"] <= 46 + BLOCKS


def test_tokens_that_nobody_waits_for_are_reported():
    assert rendered(DEVICE, waits=False).races


def test_streams_of_two_devices_wait_for_each_other_both_ways():
    with fake_cuda() as ledger:
        x = torch.zeros(5, device=DEVICE)
        side = SideStream(DEVICE, SECOND)
        with side.beside(x):
            y = x.to(SECOND) + 1
        for wait in (False, True):
            if wait:
                side.wait(side.mark())
            found = sum(ledger.races.values())
            y + 1
            assert (sum(ledger.races.values()) > found) != wait
        side.hand_over(y)
    assert len(ledger.clocks) >= 4


@pytest.mark.parametrize("storage", ["vram", "ram"])
def test_a_bank_that_is_let_go_while_it_is_written_races_with_nothing(storage):
    """As when a render is cancelled: the bank's memory is another's as soon as nobody holds it."""
    shape = CompressedShape(1, 8, 2, 4, torch.bfloat16)
    with fake_cuda() as ledger, torch.no_grad():
        bank = LayerBank(shape, 3, storage, DEVICE, SideStream(DEVICE))
        bank.write(0, *(torch.empty(shape.sizes, dtype=shape.dtype, device=DEVICE) for _ in range(2)))
        del bank
        gc.collect()
    assert not ledger.races, dict(ledger.races)
