from __future__ import annotations

import pytest
import torch

from packforcing_core.cache.config import DeepForcing, Full, PackForcing, SinkWindow
from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import VideoGeometry
from packforcing_core.recipe.recipe import Recipe
from packforcing_core.render.parts import latent_events
from packforcing_core.sampler.denoising import BlockDone, Denoising, StepDone
from packforcing_core.sampler.rollout import Compression, commit_block
from packforcing_core.sampler.schedule import Schedule
from packforcing_core.sampler.start import Start
from tests.small import SmallCompressor, SmallDecoder, block_shape, small_cache, small_context, small_model

FOUR = Denoising(Schedule.warped((1000.0, 750.0, 500.0, 250.0), 5.0))
POLICIES = [Full(), SinkWindow(9, 3), DeepForcing(2, 3, 6, 9), PackForcing(3, 3, 2, 4)]


def latents(blocks: int, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(block_shape(3), generator=generator) for _ in range(blocks)], dim=2)


def recipe(start: Start, blocks: int, policy=None) -> Recipe:
    plain = Recipe(VideoGeometry(48, 32, 16.0, 3, blocks), policy or SinkWindow(9, 3), FOUR, 7)
    return plain.begun(start, plain.geometry.seconds)


def events(wanted: Recipe, known=()) -> list:
    compression = Compression(SmallCompressor(3), SmallDecoder())
    return list(latent_events(small_model(), small_context(), wanted, known, compression))


def made(wanted: Recipe, known=()) -> list[BlockDone]:
    return [event for event in events(wanted, known) if isinstance(event, BlockDone)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_given_blocks_are_committed_first_and_the_rest_goes_on_from_them(policy):
    given = latents(2)
    done = made(recipe(Start(given), 8, policy))
    assert torch.equal(torch.cat([block.latents for block in done[:2]], dim=2), given)
    assert [block.reused for block in done] == [True] * 2 + [False] * 6
    plain, other = made(recipe(Start(), 8, policy)), made(recipe(Start(latents(2, seed=6)), 8, policy))
    for rest in (plain, other):
        difference = (rest[2].latents - done[2].latents).abs().max().item()
        print(f"another beginning moves the block behind it by {difference:.2f}")
        assert difference > 1e-2


def test_it_is_clean_commits_by_hand():
    model, cache, given = small_model(), small_cache(SinkWindow(9, 3), 3, 15), latents(2)
    text = model.encode_text(small_context())
    for block in given.split(3, dim=2):
        commit_block(model, text, cache, cache.begin_block(), block, 0.0)
    wanted, x = recipe(Start(given), 5), None
    view, schedule = cache.begin_block(), FOUR.schedule
    for step, (timestep, sigma) in enumerate(zip(schedule.timesteps, schedule.sigmas, strict=True)):
        eps = wanted.noise()(2, step)
        x = eps if x is None else (1 - sigma) * x + sigma * eps
        x = (x.double() - sigma * model.flow(x, torch.full((1, 3), timestep), text, view).double()).float()
    assert torch.equal(made(wanted)[2].latents, x)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("start", [Start(latents(2)), Start(repainted=latents(4), denoise=0.5)], ids=["given", "paint"])
def test_shorter_and_resumed_renders_are_the_same(policy, start):
    whole = made(recipe(start, 8, policy))
    short = made(recipe(start, 5, policy))
    resumed = made(recipe(start, 8, policy), known=whole[:4])
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(short, whole, strict=False))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(resumed, whole, strict=True))


@pytest.mark.parametrize(("denoise", "steps"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_strength_is_the_share_of_the_steps(denoise, steps):
    source = latents(2)
    wanted = recipe(Start(repainted=source, denoise=denoise), 4)
    counted = [event.block for event in events(wanted) if isinstance(event, StepDone)]
    assert [counted.count(block) for block in range(4)] == [steps, steps, 4, 4]
    sigma = wanted.denoising.of_block(0).sigmas[0]
    assert sigma == FOUR.schedule.sigmas[-steps]
    eps = recipe(Start(), 4).noise()
    assert torch.equal(wanted.noise()(1, 0), (1 - sigma) * source[:, :, 3:] + sigma * eps(1, 0))
    assert torch.equal(wanted.noise()(2, 0), eps(2, 0))
    assert torch.equal(wanted.noise()(1, 1), eps(1, 1))


def test_a_weaker_repaint_stays_nearer_to_the_film():
    """On a random model, of which the correlation with the source still tells how much noise was on it."""
    source, likeness = latents(3), []
    for denoise in (0.25, 0.5, 0.75, 1.0):
        done = torch.cat([block.latents for block in made(recipe(Start(repainted=source, denoise=denoise), 3))], dim=2)
        likeness.append(torch.corrcoef(torch.stack([done.flatten(), source.flatten()]))[0, 1].item())
    print("correlation with the source:", " ".join(f"{value:.2f}" for value in likeness))
    assert likeness[0] > 0.3 > likeness[1]
    assert abs(likeness[-1]) < 0.1


def test_what_is_left_out_is_made_besides():
    wanted = recipe(Start(latents(2), left_out=True), 6)
    assert (wanted.geometry.blocks, wanted.left_out_blocks, wanted.video_frames) == (8, 2, 72)
    assert [wanted.frames_before(block) for block in (0, 2, 3, 8)] == [0, 0, 12, 72]
    assert [wanted.block_at(seconds) for seconds in (0.0, 0.74, 0.76)] == [2, 2, 3]
    print(wanted.describe_length(4.5))
    kept = recipe(Start(latents(2)), 6)
    assert (kept.geometry.blocks, kept.left_out_blocks, kept.video_frames) == (6, 0, 69)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: recipe(Start(latents(4)), 4), "gives 4 blocks and the render has 4"),
        (lambda: recipe(Start(latents(2)[:, :, :4]), 4), "4 latent frames does not divide into blocks of 3"),
        (lambda: Start(latents(1), repainted=latents(1)), "Got both"),
        (lambda: Start(repainted=latents(1), denoise=0.0), "denoise is 0"),
        (lambda: Start(repainted=latents(1), denoise=1.5), "denoise is 1.5"),
    ],
)
def test_a_start_that_cannot_be_is_refused(broken, message):
    with pytest.raises(PackForcingError, match=message):
        broken()
