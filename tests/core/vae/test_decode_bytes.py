import pytest
import torch

from packforcing_core.laboratory.training.live_bytes import LiveBytes
from packforcing_core.vae import state as state_module
from packforcing_core.vae import wan_vae
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.decode_bytes import HELD_BY_CALLS, decode_bytes, state_bytes
from packforcing_core.vae.streaming import StreamingDecoder
from tests.vaes import random_latents, random_vae

HEIGHT, WIDTH = 64, 96


def measured(config: VAEConfig, dtype: torch.dtype, pushes: list[int]) -> tuple[int, int]:
    """(state between pushes, worst moment without the finished frames), in bytes."""
    # Shapes tell the bytes: nothing is computed.
    vae = random_vae(config).to("meta", dtype)
    decoder = StreamingDecoder(vae)
    with LiveBytes(vae.parameters()) as memory:
        for frames in pushes:
            latents = random_latents(frames, HEIGHT // 8, WIDTH // 8).to("meta")
            memory.peak = 0
            video = decoder.push(latents)
            # The pieces and the video that they are joined to, float32.
            peak = memory.peak - 2 * video.nbytes
    return sum(tail.nbytes for tail in decoder._state.tails.values()), peak


@pytest.fixture(params=[0, wan_vae.SMALL], ids=["frame by frame", "in pairs"], autouse=True)
def small(request, monkeypatch):
    monkeypatch.setattr(wan_vae, "SMALL", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [VAEConfig(32, 32), VAEConfig(16, 24, num_res_blocks=1)], ids=["standard", "tiny"])
def test_the_plan_is_the_state_exactly_and_the_worst_moment_closely(config, dtype, monkeypatch):
    monkeypatch.setattr(state_module, "UNFOLDED_SIZE", 0)  # As at every size of use; small ones take less.
    state, peak = measured(config, dtype, [1, 2])
    planned = decode_bytes(config, HEIGHT, WIDTH, dtype)
    print(f"state {state:,}, worst moment {peak:,}, planned {planned:,} bytes: {planned / peak:.3f}")
    assert state_bytes(config, HEIGHT, WIDTH, dtype) == state
    assert peak <= planned <= 1.2 * peak


def test_longer_pushes_take_no_more_memory():
    config = VAEConfig(16, 16, num_res_blocks=1)
    (_, short), (_, long) = (measured(config, torch.float32, [1, frames]) for frames in (1, 6))
    print(f"one latent frame {short:,} bytes, six {long:,}")
    assert long <= 1.02 * short


def test_the_standard_vae_at_480p_holds_these_gigabytes():
    sizes = [decode_bytes(VAEConfig(), 480, 832, dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16)]
    held = 96 * 480 * 832 / 1e9 * HELD_BY_CALLS.get(1, 0)
    assert sizes == pytest.approx([4.7 + 4 * held, 2.35 + 2 * held], abs=0.03)
