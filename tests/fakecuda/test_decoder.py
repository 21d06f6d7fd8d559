"""What a decode asks of a GPU, at most: the Wan VAE at 832x480 in bfloat16, a block of 4 latent frames."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.decode_bytes import decode_bytes, weight_bytes
from tests.fakecuda.device import DEVICE
from tests.fakecuda.render import HEIGHT, WIDTH, counted_decode, table

pytestmark = pytest.mark.budget

FINISHED = 4 * 3 * 16 * WIDTH * HEIGHT
"""Bytes of the frames of a block, float32."""


@pytest.mark.parametrize("kernels, launches, moved", [(True, 320, 112), (False, 470, 150)], ids=["Triton", "plain"])
def test_a_block_is_decoded_in_few_launches_and_bytes(kernels, launches, moved):
    ledger = counted_decode(kernels=kernels)
    total = ledger.total()
    print(table(ledger), *total.sites.most_common(12), sep="\n")
    assert total.launches <= launches
    assert total.moved_bytes <= moved * 1e9
    assert not total.waits
    assert not ledger.races
    assert not ledger.mixes
    assert not [where for where in total.sites if where.startswith("aten::cat") and "state.py" in where]


@pytest.mark.parametrize("memory", [80, 8], ids=["room", "8 GB"])
def test_the_peak_is_what_is_planned(memory, monkeypatch):
    ledger = counted_decode(memory=memory * 10**9)
    weights = weight_bytes(VAEConfig(), torch.bfloat16)
    size = SimpleNamespace(total_memory=memory * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    planned = decode_bytes(VAEConfig(), HEIGHT, WIDTH, torch.bfloat16, DEVICE)
    whole = planned + weights + FINISHED
    print(f"peak {ledger.peak / 1e9:.3f} GB, planned {whole / 1e9:.3f}: {ledger.peak / whole:.3f}")
    assert 0.95 * whole <= ledger.peak <= 1.02 * whole
