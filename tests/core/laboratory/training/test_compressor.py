"""The compressor learns with the causal model, or alone."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from packforcing_core.attention import sdpa
from packforcing_core.cache.config import Full, PackForcing
from packforcing_core.compressor.compressor import fuse
from packforcing_core.compressor.high_res import FUSIONS, build_high_res
from packforcing_core.compressor.low_res import low_res_latents
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training.compressor import (
    CompressorStage,
    TwinsStage,
    block_of,
    relative_error,
    small_latents,
)
from packforcing_core.laboratory.training.data import LatentBatch
from packforcing_core.laboratory.training.functional_cache import FunctionalCache
from packforcing_core.rope import GridRope
from packforcing_core.sampler.rollout import commit_block
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.streaming import decode, encode
from packforcing_core.vae.wan_vae import WanVAE
from tests.exactness import DEEP, steps_off
from tests.small import CONFIG, GRID
from tests.small_compressor import random_latents, trained_high_res
from tests.small_training import (
    FAST,
    FRAMES_PER_BLOCK,
    SmallClips,
    difference,
    gradient_norm,
    held_out_loss,
    learn,
    trainable_model,
)

ROPE = GridRope(CONFIG.head_dim, GRID)
SHORT = PackForcing(sink_frames=2, recent_frames=2, mid_span=0)
MEMORIES = {
    "short": (SHORT, 5),
    "no sink": (PackForcing(sink_frames=0, recent_frames=2, mid_span=1.5), 5),
    "two recent blocks": (PackForcing(sink_frames=2, recent_frames=4, mid_span=0), 7),
}


def twins_stage(high_res=None, memories=(SHORT,), batches=None, **settings) -> TwinsStage:
    return TwinsStage(
        trainable_model(),
        batches or SmallClips(),
        ROPE,
        FAST,
        frames_per_block=FRAMES_PER_BLOCK,
        high_res=high_res or build_high_res(CONFIG.dim),
        optimisation_of_compressor=FAST,
        memories=memories,
        **settings,
    )


def block_by_block(stage: TwinsStage, policy, history, x, sigma, batch: LatentBatch) -> torch.Tensor:
    """What one pass of teacher forcing computes, by the cache: each block against the clean ones before it."""
    model, text = stage.model, stage.model.encode_text(batch.context)
    cache = FunctionalCache(policy.partitions(FRAMES_PER_BLOCK), CONFIG.num_layers, ROPE, sdpa)
    small = small_latents(batch, range(x.shape[2] // FRAMES_PER_BLOCK), FRAMES_PER_BLOCK, None)
    flows = []
    for block in range(x.shape[2] // FRAMES_PER_BLOCK):
        view = cache.begin_block()
        timesteps = 1000 * sigma[:, block * FRAMES_PER_BLOCK : (block + 1) * FRAMES_PER_BLOCK]
        flows.append(model.flow(block_of(x, block, FRAMES_PER_BLOCK), timesteps, text, view))
        # The commit sees what the clean block saw: its own choice, which without a limit is everything.
        commit_block(model, text, cache, view, block_of(history, block, FRAMES_PER_BLOCK), 0.0)
        if cache.due_block is not None:
            due = block_of(history, cache.due_block, FRAMES_PER_BLOCK)
            tokens = fuse(model, stage.high_res, due, small[cache.due_block])
            with cache.commit_compressed() as writer:
                model.commit_tokens(tokens, torch.zeros(len(tokens), 1), text, writer)
    return torch.cat(flows, dim=2)


@torch.no_grad()
@pytest.mark.parametrize("name", MEMORIES)
def test_the_pass_with_twins_equals_the_cache_block_by_block(name: str):
    policy, blocks = MEMORIES[name]
    stage = twins_stage(trained_high_res(), batches=SmallClips(blocks))
    batch, x = stage.batches(0), random_latents(blocks * FRAMES_PER_BLOCK, 2 * GRID[0], 2 * GRID[1], batch=2)
    history = batch.latents + 0.3 * random_latents(x.shape[2], *x.shape[3:], batch=2, seed=11)
    sigma = torch.rand(2, blocks, generator=torch.Generator().manual_seed(2)).repeat_interleave(FRAMES_PER_BLOCK, 1)
    plan, _ = stage.plan(policy, blocks)
    flow = stage.flow(history, x, sigma, batch, policy)
    off = steps_off(flow, block_by_block(stage, policy, history, x, sigma, batch))
    print(f"{name}: twins of blocks {plan.twins}, padding {plan.padding_tokens}, {off:.1f} rounding steps apart")
    assert len(plan.twins) == {"short": 2, "no sink": 3, "two recent blocks": 3}[name]
    assert off < DEEP
    without = stage.flow(history, x, sigma, batch, Full())
    assert difference(flow, without) > 0.01


def test_gradients_reach_the_branch_where_a_twin_is_seen_and_nowhere_else():
    stage = twins_stage(trained_high_res(), memories=(SHORT, Full()))
    stage.step(0).loss.backward()
    seen = gradient_norm(stage.high_res)
    print(f"gradient at the high-resolution branch with twins in view: {seen:.3e}")
    assert seen > 0
    assert gradient_norm(stage.model.net) > 0
    stage.high_res.zero_grad(set_to_none=True)
    stage.step(1).loss.backward()
    assert all(p.grad is None for p in stage.high_res.parameters())


def test_model_and_compressor_lower_their_loss_together():
    stage = twins_stage()
    before = {name: [p.detach().clone() for p in net.parameters()] for name, net in stage.networks.items()}
    first = held_out_loss(stage)
    learn(stage, 12)
    last = held_out_loss(stage)
    print(f"teacher forcing with twins: loss {first:.3f} before, {last:.3f} after 12 steps")
    assert last < 0.9 * first
    for name, net in stage.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True))


def test_a_step_depends_on_its_number_and_the_weights_alone():
    one, other = twins_stage(seed=3), twins_stage(seed=3)
    other.step(0)
    assert one.step(4).loss.item() == other.step(4).loss.item()
    assert one.step(4).loss.item() != one.step(5).loss.item()
    assert one.step(4).loss.item() != twins_stage(seed=4).step(4).loss.item()


@torch.no_grad()
def test_an_untrained_branch_changes_nothing():
    stage = twins_stage()
    batch = stage.batches(0)
    sigma = torch.full((2, batch.latents.shape[2]), 0.7)
    flow = stage.flow(batch.latents, batch.latents, sigma, batch, SHORT)
    stage.high_res = None
    assert torch.equal(stage.flow(batch.latents, batch.latents, sigma, batch, SHORT), flow)
    stage.high_res = trained_high_res()
    assert difference(stage.flow(batch.latents, batch.latents, sigma, batch, SHORT), flow) > 1e-4


@torch.no_grad()
def test_small_latents_are_made_of_the_decoded_clip_where_the_data_has_none():
    torch.manual_seed(3)
    vae = WanVAE(VAEConfig(encoder_dim=4, decoder_dim=4, num_res_blocks=1)).requires_grad_(False)
    latents = random_latents(6, 4, 4)
    video = decode(vae, latents)
    made = small_latents(LatentBatch(latents, None, range(1)), (0, 2), 2, vae)
    for block, frames in ((0, video[:, :, :5]), (2, video[:, :, 13:21])):
        expected = low_res_latents(partial(encode, vae), frames, (1, 16, 2, 4, 4), block == 0)
        assert steps_off(made[block], expected) < DEEP
    given = torch.stack([torch.full((16, 2, 2), float(i)) for i in range(3)], dim=1)[None]
    assert small_latents(LatentBatch(latents, None, range(1), given), (2,), 2, None)[2].unique().tolist() == [2.0]
    with pytest.raises(PackForcingError, match="VAE"):
        small_latents(LatentBatch(latents, None, range(1)), (0,), 2, None)


def test_the_default_memories_fit_every_block_length():
    for frames in (1, 3, 4):
        stage = twins_stage()
        stage.frames_per_block, stage.memories = frames, ()
        stage.__post_init__()
        seen = [len(stage.plan(policy, 21 // frames)[0].twins) for policy in stage.memories]
        print(f"blocks of {frames}: twins {seen}")
        assert seen[0] == 0
        assert all(count > 0 for count in itertools.islice(seen, 1, None))


def compressor_stage(high_res=None, **settings) -> CompressorStage:
    return CompressorStage(
        trainable_model(),
        high_res or build_high_res(CONFIG.dim),
        SmallClips(),
        ROPE,
        FAST,
        FRAMES_PER_BLOCK,
        memories=(SHORT,),
        **settings,
    )


def test_alone_the_compressor_comes_nearer_to_the_full_history():
    stage = compressor_stage(layer_weight=0.1)
    stage.batches = lambda number: SmallClips()(0)
    first = held_out_loss(stage)
    learn(stage, 12)
    last = held_out_loss(stage)
    print(f"compressor alone, on two clips: loss {first:.3e} before, {last:.3e} after 12 steps")
    assert last < 0.8 * first
    assert set(stage.networks) == {"compressor"}
    assert all(p.grad is None and not p.requires_grad for p in stage.model.net.parameters())


def test_alone_it_begins_at_the_low_resolution_branch():
    untrained, zero_shot = compressor_stage(), compressor_stage()
    zero_shot.high_res = None
    assert untrained.step(0).loss.item() == zero_shot.step(0).loss.item()
    assert compressor_stage(trained_high_res()).step(0).loss.item() != zero_shot.step(0).loss.item()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_alone_the_first_step_of_a_concatenation_reaches_every_weight(fusion):
    """Through the frozen model. With the sum only the last layer is reached, as its zeros hide the others."""
    branch = build_high_res(CONFIG.dim, fusion=fusion)
    compressor_stage(branch, precision=torch.float32).step(0).loss.backward()
    norms = {name: float(p.grad.norm()) for name, p in branch.named_parameters()}
    print(", ".join(f"{name} {norm:.1e}" for name, norm in norms.items()))
    reached = {name for name, norm in norms.items() if norm}
    assert reached == (set(norms) if fusion == "concat" else {"layers.4.weight", "layers.4.bias"})
    if fusion == "concat":
        low, high = branch.join.weight.grad.split(CONFIG.dim, dim=1)
        assert low.any()
        assert high.any()


def test_alone_with_the_full_history_as_its_memory_nothing_is_left_to_learn():
    """A memory that keeps all and shows twins besides would be wrong: the same memory twice gives no error."""
    stage = compressor_stage(target=SHORT)
    batch = stage.batches(0)
    with torch.no_grad():
        text = stage.model.encode_text(batch.context)
        views = [stage.views(SHORT, text, batch) for _ in range(2)]
        x, sigma = batch.latents[:, :, -FRAMES_PER_BLOCK:], torch.full((2, FRAMES_PER_BLOCK), 0.5)
        (one, layers), (other, other_layers) = (stage._flow(x, sigma, text, [view[-1]]) for view in views)
    assert torch.equal(one, other)
    assert len(layers) == CONFIG.num_layers
    assert relative_error(layers, other_layers) == 0


def test_alone_a_clip_without_twins_is_refused():
    stage = compressor_stage()
    stage.batches = SmallClips(blocks=2)
    with pytest.raises(PackForcingError, match="longer clips"):
        stage.step(0)
