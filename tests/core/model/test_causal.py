"""The causal forward of one block against a pass written as plainly as possible, and its two seams."""

from __future__ import annotations

import math

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.cache.cache import KVCache
from packforcing_core.cache.config import Full, SinkWindow
from packforcing_core.cache.layer_kv import KVShape
from packforcing_core.model.causal import CausalWan, add_gated, modulate, sinusoidal_embedding
from packforcing_core.model.config import WanConfig
from packforcing_core.model.ops import TorchOps
from packforcing_core.rope import GridRope
from packforcing_core.sampler.denoising import BlockDone
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import rollout
from tests.exactness import DEEP, SHALLOW, steps_off
from tests.reference.wan import forward, grid_positions
from tests.small import CONFIG, DENOISING, block_shape, small_context, small_model, small_net

HEADS = [
    WanConfig(dim=128, ffn_dim=192, num_layers=2, num_heads=2, text_dim=32, freq_dim=32),
    WanConfig(dim=256, ffn_dim=192, num_layers=2, num_heads=2, text_dim=32, freq_dim=32),
]
GRIDS = [(2, 3), (3, 5), (1, 1), (5, 1)]


def first_block(config: WanConfig, grid: tuple[int, int], frames: int, batch: int = 1, dtype=torch.float32):
    """The view of a block without a past."""
    shape = KVShape(config.num_layers, config.num_heads, config.head_dim, grid[0] * grid[1], dtype, batch)
    partitions = Full().partitions(frames).limited_to(frames)
    return KVCache(partitions, shape, GridRope(config.head_dim, grid), sdpa).begin_block()


def noisy(grid: tuple[int, int], frames: int, batch: int = 1, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 16, frames, 2 * grid[0], 2 * grid[1], generator=generator)


def plain_flow(model: CausalWan, latents, timesteps, context) -> torch.Tensor:
    grid = latents.shape[3] // 2, latents.shape[4] // 2
    tokens = latents.shape[2] * grid[0] * grid[1]
    everything = torch.ones(tokens, tokens, dtype=torch.bool)
    positions = grid_positions(list(range(latents.shape[2])), grid)
    return forward(model.net, model.config, latents, timesteps, context, positions, everything)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("config", HEADS, ids=lambda config: f"heads of {config.head_dim}")
def test_flow_equals_the_plain_pass_at_any_timestep_per_frame(config, grid):
    model, context, latents = small_model(config), small_context(config), noisy(grid, 3)
    timesteps = torch.tensor([[0.0, 433.3, 1000.0]])
    ours = model.flow(latents, timesteps, model.encode_text(context), first_block(config, grid, 3))
    expected = plain_flow(model, latents, timesteps, context)
    off = steps_off(ours, expected)
    print(f"{off:.1f} rounding steps from float64, of a flow with deviation {expected.std():.2f}")
    assert ours.shape == latents.shape
    assert ours.dtype == torch.float32
    assert off < DEEP


def test_a_frames_timestep_is_its_own():
    """With self-attention muted nothing passes between frames: only the frame whose timestep moved moves."""
    model, latents = small_model(), noisy((2, 3), 3)
    for layer in model.net.blocks:
        layer.self_attn.o.weight.zero_()
    text = model.encode_text(small_context())

    def flow(*timesteps: float) -> torch.Tensor:
        return model.flow(latents, torch.tensor([timesteps]), text, first_block(CONFIG, (2, 3), 3))

    moved = (flow(1000.0, 500.0, 0.0) - flow(1000.0, 900.0, 0.0)).abs().amax(dim=(0, 1, 3, 4))
    print("moved per frame " + ", ".join(f"{m:.1e}" for m in moved))
    assert moved[0] == moved[2] == 0
    assert moved[1] > 1e-2


def test_text_becomes_each_layers_keys_and_values():
    model, context = small_model(), small_context()
    hidden = model.net.text_embedding(context)
    for layer, text in zip(model.net.blocks, model.encode_text(context), strict=True):
        k = layer.cross_attn.k(hidden).double()
        k = k / (k.square().mean(-1, keepdim=True) + CONFIG.eps).sqrt() * layer.cross_attn.norm_k.weight
        off = steps_off(text.k.flatten(2), k)
        print(f"{off:.1f} rounding steps from float64")
        assert off < SHALLOW
        assert torch.equal(text.v.flatten(2), layer.cross_attn.v(hidden))
        assert text.k.shape == (1, context.shape[1], CONFIG.num_heads, CONFIG.head_dim)


def test_another_text_and_its_padding_change_the_flow():
    model, latents = small_model(), noisy((2, 3), 3)
    timesteps = torch.full((1, 3), 800.0)
    context = small_context()
    padded = torch.nn.functional.pad(context, (0, 0, 0, 8))
    flows = [
        model.flow(latents, timesteps, model.encode_text(c), first_block(CONFIG, (2, 3), 3))
        for c in (context, small_context(seed=2), padded)
    ]
    assert (flows[0] - flows[1]).abs().max() > 1e-2
    assert (flows[0] - flows[2]).abs().max() > 1e-3  # Wan attends to the zeros behind a prompt, too.


def test_a_batch_is_its_members():
    model, grid = small_model(), (2, 3)
    latents, timesteps = noisy(grid, 3, batch=2), torch.tensor([[900.0] * 3, [200.0] * 3])
    context = torch.cat((small_context(), small_context(seed=2)))
    together = model.flow(latents, timesteps, model.encode_text(context), first_block(CONFIG, grid, 3, batch=2))
    alone = [
        model.flow(
            latents[i : i + 1],
            timesteps[i : i + 1],
            model.encode_text(context[i : i + 1]),
            first_block(CONFIG, grid, 3),
        )
        for i in range(2)
    ]
    off = steps_off(together, torch.cat(alone))
    print(f"{off:.1f} rounding steps apart")
    assert off < DEEP


def test_bfloat16_stays_finite_and_near_float32():
    net = small_net()
    text, noise = small_context(), seeded_noise(7, block_shape(3))

    def render(dtype: torch.dtype) -> torch.Tensor:
        model = CausalWan(net, CONFIG, dtype=dtype)
        shape = KVShape(CONFIG.num_layers, CONFIG.num_heads, CONFIG.head_dim, 6, dtype)
        cache = KVCache(SinkWindow(9, 3).partitions(3), shape, GridRope(CONFIG.head_dim, (2, 3)), sdpa)
        events = rollout(model, text, cache, noise, DENOISING, 6)
        return torch.cat([event.latents for event in events if isinstance(event, BlockDone)], dim=2)

    exact = render(torch.float32)
    net.bfloat16().patch_embedding.float()
    rounded = render(torch.bfloat16)
    difference = ((rounded - exact).std() / exact.std()).item()
    print(f"bfloat16 departs by {difference:.1%} of the deviation over 6 blocks")
    assert rounded.dtype == torch.float32
    assert rounded.isfinite().all()
    assert 0 < difference < 0.2


def test_every_attention_goes_through_the_seam_and_every_bare_parameter_through_the_cast():
    asked, cast = [], []

    def attention(q, k, v):
        asked.append((q.shape[1], k.shape[1]))
        return sdpa(q, k, v)

    def casting(parameter, like):
        cast.append(parameter)
        return TorchOps.cast(parameter, like)

    net = small_net()
    model = CausalWan(net, CONFIG, cast=casting, attention=attention)
    shape = KVShape(CONFIG.num_layers, CONFIG.num_heads, CONFIG.head_dim, 6, torch.float32)
    cache = KVCache(Full().partitions(3).limited_to(3), shape, GridRope(CONFIG.head_dim, (2, 3)), attention)
    model.flow(noisy((2, 3), 3), torch.zeros(1, 3), model.encode_text(small_context()), cache.begin_block())
    assert asked == [(18, 18), (18, 8)] * CONFIG.num_layers
    assert [id(p) for p in cast] == [id(m) for m in (*(layer.modulation for layer in net.blocks), net.head.modulation)]


def test_a_commit_leaves_what_the_next_block_needs_and_gives_nothing_back():
    model, grid = small_model(), (2, 3)
    text, view = model.encode_text(small_context()), first_block(CONFIG, grid, 3)
    with view.cache.commit(view) as writer:
        assert model.commit(noisy(grid, 3), torch.zeros(1, 3), text, writer) is None
    assert view.cache.committed_frames == 3


def test_timesteps_are_embedded_as_cosines_and_sines():
    timesteps = [0.0, 1.0, 625.0, 937.5, 1000.0]
    ours = sinusoidal_embedding(torch.tensor(timesteps), 256)
    for row, t in zip(ours, timesteps, strict=True):
        angles = [t / 10000 ** (j / 128) for j in range(128)]
        off = steps_off(row, [*map(math.cos, angles), *map(math.sin, angles)])
        print(f"timestep {t}: {off:.1f} rounding steps from float64")
        assert off < 2 * (1 + t)  # An angle is rounded before its cosine is taken: the steps are those of the angle.


def test_modulation_touches_each_frames_own_tokens():
    tokens = torch.randn(1, 6, 4)
    scale, shift = torch.randn(2, 1, 3, 1, 4)
    for frame in range(3):
        rows = slice(2 * frame, 2 * frame + 2)
        assert torch.allclose(
            modulate(tokens, scale, shift)[:, rows], tokens[:, rows] * (1 + scale[:, frame]) + shift[:, frame]
        )
        assert torch.allclose(
            add_gated(tokens, tokens, scale)[:, rows], tokens[:, rows] + tokens[:, rows] * scale[:, frame]
        )
