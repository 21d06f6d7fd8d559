"""The rollout of training against the sampler's, and where its gradient goes."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from packforcing_core.cache.config import Full, PackForcing, Window
from packforcing_core.compressor.compressor import Compressor
from packforcing_core.laboratory.training.self_forcing import SelfForcing
from packforcing_core.laboratory.training.wan import TrainedWan
from packforcing_core.model.causal import CausalWan
from packforcing_core.rope import GridRope
from packforcing_core.sampler.denoising import BlockDone, Denoising
from packforcing_core.sampler.noise import seeded_noise
from packforcing_core.sampler.rollout import Compression, rollout
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.streaming import StreamingDecoder, encode
from packforcing_core.vae.wan_vae import WanVAE
from tests.exactness import DEEP, steps_off
from tests.small import CONFIG, GRID, block_shape, small_cache, small_context, small_net
from tests.small_compressor import trained_high_res
from tests.small_training import FRAMES_PER_BLOCK, difference, gradient_norm

SHORT = PackForcing(sink_frames=2, recent_frames=2, mid_span=0)
SCHEDULE = Schedule.warped((1000.0, 750.0, 500.0), shift=5.0)
LAST = len(SCHEDULE) - 1
BLOCKS = 4


class WatchedWan(CausalWan):
    """Notes of each denoising call at which timestep it was and whether its result has a graph."""

    def flow(self, latents, timesteps, text, history):
        flow = super().flow(latents, timesteps, text, history)
        self.calls = [*getattr(self, "calls", []), (round(float(timesteps[0, 0]), 2), flow.requires_grad)]
        return flow


def small_vae() -> WanVAE:
    torch.manual_seed(3)
    return WanVAE(VAEConfig(encoder_dim=4, decoder_dim=4, num_res_blocks=1)).requires_grad_(False)


def generator(memory=SHORT, high_res=None, vae=None) -> SelfForcing:
    model = WatchedWan(small_net().requires_grad_(True), CONFIG)
    rope = GridRope(CONFIG.head_dim, GRID)
    return SelfForcing(model, rope, high_res, vae, (memory,), SCHEDULE, FRAMES_PER_BLOCK)


def draws(seed: int = 0):
    """A source of noise that says other numbers at every call."""
    random = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(block_shape(FRAMES_PER_BLOCK), generator=random)


SELECTING = PackForcing(sink_frames=0, recent_frames=2, top_k_blocks=1, mid_span=1.0, selector="cosine+newest")
NINE_STEPS = Schedule.warped(tuple(1000.0 - 100 * step for step in range(9)), shift=5.0)


@torch.no_grad()
@pytest.mark.parametrize("first_block", [None, NINE_STEPS], ids=["all blocks alike", "first block of nine steps"])
@pytest.mark.parametrize("memory", [SHORT, SELECTING, Full()], ids=["short", "selecting", "full"])
def test_with_the_last_step_as_exit_it_is_the_samplers_rollout(memory, first_block):
    high_res, vae = trained_high_res(), small_vae()
    own = generator(memory, high_res, vae)
    own.first_block = first_block
    noise = seeded_noise(5, block_shape(FRAMES_PER_BLOCK))
    steps = [len(SCHEDULE if block or not first_block else first_block) for block in range(BLOCKS)]
    order = iter([noise(block, step) for block in range(BLOCKS) for step in range(steps[block])])
    clip = own.rollout(small_context(), lambda: next(order), [LAST] * BLOCKS, gradient=False)
    compressor = Compressor(own.model, "both", high_res=high_res, encode=partial(encode, vae))
    cache = small_cache(memory, FRAMES_PER_BLOCK, BLOCKS * FRAMES_PER_BLOCK)
    compression = Compression(compressor, StreamingDecoder(vae))
    denoising = Denoising(SCHEDULE, first_block)
    events = rollout(own.model, small_context(), cache, noise, denoising, BLOCKS, compression=compression)
    expected = torch.cat([event.latents for event in events if isinstance(event, BlockDone)], dim=2)
    print(f"{memory.name}: {steps_off(clip, expected):.1f} rounding steps apart")
    assert steps_off(clip, expected) < DEEP


@pytest.mark.parametrize("step", range(len(SCHEDULE)))
def test_one_step_of_each_block_has_a_gradient_and_it_is_the_last_to_run(step: int):
    own = generator(Full())
    clip = own.rollout(small_context(), draws(), [step] * BLOCKS, gradient=True)
    expected = [(round(SCHEDULE.timesteps[i], 2), i == step) for i in range(step + 1)] * BLOCKS
    assert own.model.calls == expected
    assert clip.requires_grad


@pytest.mark.parametrize(("step", "last"), [(0, 2), (1, 5), (2, 8)])
def test_the_exit_of_the_first_block_is_in_proportion_to_its_steps(step: int, last: int):
    own = generator(Full())
    own.first_block = NINE_STEPS
    own.rollout(small_context(), draws(), [step], gradient=True)
    assert own.model.calls == [(round(NINE_STEPS.timesteps[i], 2), i == last) for i in range(last + 1)]


@torch.no_grad()
def test_policies_take_turns():
    own, memories = generator(), (Window(window_frames=4), Full())
    alone = [generator(memory).rollout(small_context(), draws(), [1] * BLOCKS, gradient=False) for memory in memories]
    own.memories = memories
    for turn in range(4):
        clip = own.rollout(small_context(), draws(), [1] * BLOCKS, gradient=False, turn=turn)
        assert torch.equal(clip, alone[turn % 2])
    assert not torch.equal(*alone)


def test_without_a_gradient_nothing_has_a_graph():
    own = generator(SHORT, trained_high_res())
    assert not own.rollout(small_context(), draws(), [1] * BLOCKS, gradient=False).requires_grad
    assert not any(graph for _, graph in own.model.calls)


def test_the_gradient_reaches_the_compressor_through_the_block_that_sees_a_twin_and_no_other():
    own = generator(SHORT, trained_high_res(), small_vae())
    clip = own.rollout(small_context(), draws(), [1] * BLOCKS, gradient=True)
    norms = []
    for block in clip.split(FRAMES_PER_BLOCK, dim=2):
        own.high_res.zero_grad(set_to_none=True)
        block.square().mean().backward(retain_graph=True)
        norms.append(gradient_norm(own.high_res))
    print("gradient at the high-resolution branch, by block of the loss:", [f"{norm:.2e}" for norm in norms])
    assert norms[:3] == [0, 0, 0]
    assert norms[3] > 0


def test_a_block_has_no_gradient_through_the_full_rows_of_blocks_before_it():
    """Their x0 has a graph, and the loss is of a later block that sees them at full resolution."""
    own = generator(Full())
    made = []
    denoised = own._denoised

    def kept(*arguments):
        made.append(denoised(*arguments))
        made[-1].retain_grad()
        return made[-1]

    own._denoised = kept
    clip = own.rollout(small_context(), draws(), [0] * BLOCKS, gradient=True)
    clip[:, :, -FRAMES_PER_BLOCK:].square().mean().backward()
    assert [float(x0.grad.abs().max()) > 0 for x0 in made] == [False, False, False, True]


def test_an_untrained_branch_rolls_out_as_the_low_resolution_branch_alone():
    vae, branch = small_vae(), trained_high_res()
    trained = generator(SHORT, branch, vae).rollout(small_context(), draws(), [1] * BLOCKS, gradient=False)
    with torch.no_grad():
        for parameter in branch.layers[-1].parameters():
            parameter.zero_()
    untrained = generator(SHORT, branch, vae).rollout(small_context(), draws(), [1] * BLOCKS, gradient=False)
    zero_shot = generator(SHORT, None, vae).rollout(small_context(), draws(), [1] * BLOCKS, gradient=False)
    assert torch.equal(untrained, zero_shot)
    assert difference(trained, zero_shot) > 1e-4


def test_recomputing_layers_gives_the_same_gradient():
    gradients = []
    for recompute in (False, True):
        own = generator(SHORT, trained_high_res())
        own.model = TrainedWan(own.model.net, CONFIG, recompute=recompute)
        own.rollout(small_context(), draws(), [1] * BLOCKS, gradient=True).square().mean().backward()
        networks = own.model.net, own.high_res
        gradients.append([p.grad for network in networks for p in network.parameters() if p.grad is not None])
    most = max(steps_off(*pair) for pair in zip(*gradients, strict=True))
    print(f"{len(gradients[0])} gradients, {most:.1f} rounding steps apart")
    assert most < DEEP
