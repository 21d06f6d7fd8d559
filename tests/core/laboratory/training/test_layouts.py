"""Short clips laid out as a long video's memory is."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from packforcing_core.cache.config import Full, PackForcing
from packforcing_core.compressor.high_res import build_high_res
from packforcing_core.errors import PackForcingError
from packforcing_core.geometry import compressed_grid
from packforcing_core.laboratory.evaluation.little_world.truth import truth_at
from packforcing_core.laboratory.training import layouts
from packforcing_core.laboratory.training.clips import (
    OUT_OF_SIGHT,
    Worlds,
    areas_in_sight,
    draw_clips,
    returning_block,
)
from packforcing_core.laboratory.training.compressor import TwinsStage, compressed_views
from packforcing_core.laboratory.training.data import (
    ENCODED_TOGETHER,
    ClipShape,
    Facts,
    LatentFolder,
    clip_encoder,
    encode_little_world,
    encoded_with_twins,
)
from packforcing_core.laboratory.training.layouts import (
    Film,
    HiddenClips,
    JointLayoutStage,
    Kind,
    Layout,
    Layouts,
    LayoutStage,
    blank_films,
    selection_loss,
)
from packforcing_core.laboratory.training.randomness import step_generator
from packforcing_core.laboratory.training.vae import initialise
from packforcing_core.miniature.world import BACKGROUNDS
from packforcing_core.rope import GridRope
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.wan_vae import WanVAE
from tests.small import CONFIG, GRID
from tests.small_compressor import trained_high_res
from tests.small_training import FAST, FRAMES_PER_BLOCK, gradient_norm, held_out_loss, learn, trainable_model

MEMORIES = tuple(PackForcing(sink_frames=sink, recent_frames=2, top_k_blocks=2, mid_span=1.0) for sink in (4, 2, 0))
TIMES, ROWS, COLUMNS = compressed_grid(FRAMES_PER_BLOCK, 2 * GRID[0], 2 * GRID[1])
RETURNS = 3


def film(seed: int, blocks: int = 5) -> Film:
    """Each block another number, so that it can be told where it went."""
    values = torch.randn(blocks, generator=torch.Generator().manual_seed(seed))
    frames = values.repeat_interleave(FRAMES_PER_BLOCK)[None, :, None, None].expand(16, -1, 2 * GRID[0], 2 * GRID[1])
    low = values.repeat_interleave(TIMES)[None, :, None, None].expand(16, -1, 2 * ROWS, 2 * COLUMNS)
    return Film(frames.contiguous(), low.contiguous())


class SmallFolder:
    """Six clips; of all but the last something comes back in block 3."""

    batch = 2
    facts = (*[Facts("dark", (200.0, 150.0, 0.0, 180.0, 200.0))] * 5, None)

    def clip(self, row):
        own = film(row)
        return {"latents": own.latents, "low_res": own.low_res}

    def contexts(self, rows):
        generators = (torch.Generator().manual_seed(row) for row in rows)
        return torch.stack([torch.randn(8, CONFIG.text_dim, generator=generator) for generator in generators])

    def __call__(self, step):
        rows = [0, 5]
        films = [film(row) for row in rows]
        return SimpleNamespace(
            latents=torch.stack([own.latents for own in films]),
            low_res=torch.stack([own.low_res for own in films]),
            context=self.contexts(rows),
            indices=range(2),
        )


def layout_stage(high_res=None, **settings) -> LayoutStage:
    hidden = HiddenClips(SmallFolder(), {"dark": film(99, 3)}, FRAMES_PER_BLOCK)
    memories = {"memories": (MEMORIES[-1],), "layouts": Layouts(MEMORIES), **settings}
    return LayoutStage(
        trainable_model(),
        high_res or build_high_res(CONFIG.dim),
        SmallFolder(),
        GridRope(CONFIG.head_dim, GRID),
        FAST,
        FRAMES_PER_BLOCK,
        precision=torch.float32,
        hidden=hidden,
        **memories,
    )


def test_blocks_are_laid_out_with_blank_ones_between():
    stage = layout_stage()
    layout = Layout(MEMORIES[0], front=3, sighting=range(1, 2), behind=2, newest=2)
    clip, blank = film(0), film(99, 3)
    assert layout.blocks() == [None, None, None, 1, None, None, 2]
    laid = stage.hidden.laid_out(clip, blank, layout.blocks())
    own, empty = (part.blocks(FRAMES_PER_BLOCK)[0] for part in (clip, blank))
    expected = [empty[0], empty[1], empty[2], own[1], empty[2], empty[2], own[2]]
    assert torch.equal(laid.latents, torch.cat(expected, dim=1))
    own, empty = (part.blocks(FRAMES_PER_BLOCK)[1] for part in (clip, blank))
    expected = [empty[0], empty[1], empty[2], own[1], empty[2], empty[2], own[2]]
    assert torch.equal(laid.low_res, torch.cat(expected, dim=1))


def test_layouts_have_blank_sinks_and_all_numbers_of_blank_blocks():
    stage = layout_stage()
    given = RETURNS, FRAMES_PER_BLOCK
    kinds: tuple[Kind, ...] = ("departure", "gap")
    drawn = [stage.layouts.draw(kind, *given, step_generator(0, i)) for i in range(400) for kind in kinds]
    sinks = Counter(layout.memory.sink_frames for layout in drawn)
    print(f"sinks {dict(sinks)}; behind {sorted({layout.behind for layout in drawn})}")
    assert set(sinks) == {0, 2, 4}
    assert {layout.behind for layout in drawn} == set(range(stage.layouts.most_behind + 1))
    for layout in drawn:
        blocks, sink = layout.blocks(), layout.memory.sink_frames // FRAMES_PER_BLOCK
        assert blocks[:sink] == [None] * sink
        assert blocks[-1] in (RETURNS - 1, RETURNS - 2)
        assert any(block is not None and block < blocks[-1] for block in blocks)
    departures = [layout for layout in drawn if layout.newest == RETURNS - 2]
    assert len(departures) == 400
    assert all(layout.behind == 0 for layout in departures)


def test_the_kinds_of_steps_come_as_often_as_the_layouts_say(monkeypatch):
    stage, found = layout_stage(), Counter()
    monkeypatch.setattr(stage, "ordinary", lambda *_: found.update(["ordinary"]))
    monkeypatch.setattr(stage, "edited", lambda *args: found.update([args[-1]]))
    for number in range(400):
        stage.step(number)
    print(dict(found))
    assert all(abs(found[kind] / 400 - share) < 0.08 for kind, share in (("ordinary", 0.25), ("departure", 0.25)))


def test_a_clip_in_its_own_order_under_the_full_history_leaves_nothing_to_learn():
    """Whatever the layout adds would show: a block too much, another order, a place beside the true one."""
    stage = layout_stage(trained_high_res())
    plain = Layout(Full(), front=0, sighting=range(2), behind=0, newest=2)
    assert stage.edited(0, plain, [0, 1], kind="gap").loss.item() == 0
    for other in (
        Layout(Full(), front=1, sighting=range(2), behind=0, newest=2),
        Layout(Full(), front=0, sighting=range(1), behind=1, newest=2),
        Layout(MEMORIES[-1], front=0, sighting=range(2), behind=0, newest=2),
    ):
        assert stage.edited(0, other, [0, 1], kind="gap").loss.item() > 1e-7


def test_what_nothing_returns_in_is_learnt_from_too(monkeypatch):
    stage, seen = layout_stage(), []
    error = stage.error
    monkeypatch.setattr(stage, "error", lambda x0, *others: seen.append(x0) or error(x0, *others))
    gap = Layout(MEMORIES[0], front=2, sighting=range(2), behind=1, newest=2)
    stage.edited(0, gap, [0, 1], kind="gap")
    stage.edited(1, Layout(MEMORIES[0], front=2, sighting=range(1), behind=0, newest=1), [0, 1], kind="departure")
    came, blank = film(0).blocks(FRAMES_PER_BLOCK)[0], film(99, 3).blocks(FRAMES_PER_BLOCK)[0]
    assert torch.equal(seen[0][0], torch.cat([came[3], came[3], blank[2]], dim=1))
    assert torch.equal(seen[1][0], torch.cat([came[2], came[2]], dim=1))


def test_the_compressor_comes_nearer_to_the_full_history_in_the_layouts():
    stage = layout_stage()
    steps = range(40)
    numbers = [n for n in steps if float(torch.rand((), generator=step_generator(0, "layout", n))) > 0.5][:3]
    first = held_out_loss(stage, tuple(numbers))
    step = stage.step
    stage.step = lambda number: step(numbers[number % 3])
    learn(stage, 18)
    stage.step = step
    last = held_out_loss(stage, tuple(numbers))
    print(f"gaps {numbers}: loss {first:.3e} before, {last:.3e} after 18 steps")
    assert last < 0.85 * first
    assert gradient_norm(stage.high_res) > 0
    assert all(p.grad is None for p in stage.model.net.parameters())


def test_a_step_depends_on_its_number_and_the_weights_alone():
    one, other = layout_stage(), layout_stage()
    other.step(3)
    assert [one.step(n).loss.item() for n in range(4)] == [other.step(n).loss.item() for n in range(4)]


def joint_stage(**settings) -> JointLayoutStage:
    hidden = HiddenClips(SmallFolder(), {"dark": film(99, 3)}, FRAMES_PER_BLOCK)
    memories = tuple(replace(memory, selector="cosine+newest") for memory in MEMORIES)
    return JointLayoutStage(
        model=trainable_model(),
        batches=SmallFolder(),
        rope=GridRope(CONFIG.head_dim, GRID),
        optimisation_of_model=FAST,
        frames_per_block=FRAMES_PER_BLOCK,
        precision=torch.float32,
        high_res=trained_high_res(CONFIG.dim),
        optimisation_of_compressor=FAST,
        memories=(Full(), MEMORIES[-1]),
        hidden=hidden,
        layouts=Layouts(memories),
        **settings,
    )


def test_model_and_compressor_learn_together_in_the_layouts():
    stage = joint_stage()
    gap = Layout(stage.layouts.memories[0], front=2, sighting=range(2), behind=1, newest=2)
    stage.edited = lambda number, *_: JointLayoutStage.edited(stage, 0, gap, [0, 1], "gap")
    stage.layouts = replace(stage.layouts, ordinary=0.0)
    first = held_out_loss(stage, (0,))
    learn(stage, 12)
    last = held_out_loss(stage, (0,))
    norms = gradient_norm(stage.model.net), gradient_norm(stage.high_res)
    print(f"loss {first:.3e} before, {last:.3e} after 12 steps; gradients {norms[0]:.1e}, {norms[1]:.1e}")
    assert last < 0.9 * first
    assert min(norms) > 0


def test_the_joint_target_is_the_clips_own_next_block(monkeypatch):
    """A model that predicts the true flow has loss 0; a departure's block shows the clip without the object."""
    stage, seen = joint_stage(history_noise=0.0), []
    monkeypatch.setattr(layouts, "flow_loss", lambda flow, x0, noise: seen.append(x0) or (flow - noise + x0).mean())
    stage.edited(0, Layout(MEMORIES[0], front=2, sighting=range(2), behind=1, newest=2), [0, 1], "gap")
    stage.edited(1, Layout(MEMORIES[0], front=2, sighting=range(1), behind=0, newest=1), [0, 1], "departure")
    came = film(0).blocks(FRAMES_PER_BLOCK)[0]
    assert torch.equal(seen[0][0], torch.cat([came[3], came[3]], dim=1))
    assert torch.equal(seen[1][0], torch.cat([came[2], came[2]], dim=1))


def test_ordinary_steps_of_joint_training_are_those_of_teacher_forcing():
    stage = joint_stage()
    stage.layouts = replace(stage.layouts, ordinary=1.0)
    twins = TwinsStage(
        **{f.name: getattr(stage, f.name) for f in fields(TwinsStage) if f.init},
    )
    assert [stage.step(n).loss.item() for n in range(3)] == [twins.step(n).loss.item() for n in range(3)]


def test_mean_keys_of_equal_length_are_what_cosine_selects_by():
    """The affinities of the selection loss rank the blocks as the selector does, for one clip."""
    stage = joint_stage()
    layout = Layout(stage.layouts.memories[-1], 1, range(0, 1), 5, RETURNS - 1)
    arranged = stage.hidden.arranged(layout, [0])
    text = stage.model.encode_text(arranged.long.context)
    given = stage.model, stage.high_res, stage.rope, FRAMES_PER_BLOCK, None, layout.memory, text, arranged.long
    view = compressed_views(*given)[-1]
    with torch.no_grad():
        stage.model.flow(arranged.came, torch.full((1, FRAMES_PER_BLOCK), 500.0), text, view)
    blocks, places = list(view.twins), len(view.window.mid_positions)
    newest = blocks[len(blocks) - places // 2 :]
    for layer, chosen in enumerate(view.selection()):
        means = torch.stack([rows[layer].k.double().mean(dim=1) for rows in view.twins.values()])
        cosine = torch.einsum("bhd,mbhd->bm", view.mean_queries[layer].double(), means) / means.flatten(2).norm(dim=2).T
        torch.testing.assert_close(view.affinities(layer, equal_lengths=True).double(), cosine, rtol=1e-4, atol=1e-6)
        phi = dict(zip(blocks, view.affinities(layer, equal_lengths=True)[0].tolist(), strict=True))
        asked = [phi[block] for block in chosen if block not in newest]
        others = [phi[block] for block in blocks if block not in chosen]
        print(f"layer {layer}: selected {chosen}; least {min(asked):.6f}, most of the others {max(others):.6f}")
        # Blank blocks are alike, so their keys tie up to rounding in the first layer.
        assert min(asked) > max(others) - 1e-6
    assert len(blocks) > places


def test_a_folder_without_hidden_clips_says_how_to_make_some():
    folder = SmallFolder()
    folder.facts = (None, Facts("dark", (200.0,) * 5))
    with pytest.raises(PackForcingError, match="packforcing train latents --worlds"):
        HiddenClips(folder, {}, FRAMES_PER_BLOCK)


def test_in_the_hidden_world_a_block_lies_between_that_shows_nothing():
    scenes = [Worlds.parse("hidden=1").sample(np.random.default_rng((5, i))) for i in range(8)]
    for scene in scenes:
        areas = areas_in_sight(scene, 4, 5)
        block = returning_block(areas)
        assert not scene.things[0].named
        assert block in (3, 4)
        first = 1 + 4 * (4 * (block - 1) - 1)
        assert all(truth_at(scene, frame)[0].area < OUT_OF_SIGHT for frame in range(first, first + 16))
    assert returning_block([200.0, 0.0, 0.0, 150.0]) == 3
    assert returning_block([200.0, 0.0, 50.0, 150.0]) is None
    assert returning_block([0.0, 0.0, 150.0]) is None
    assert returning_block([]) is None


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    network = WanVAE(VAEConfig(8, 8, num_res_blocks=1))
    initialise(network, seed=0)
    return network.requires_grad_(False)


SHAPE = ClipShape(latent_frames=4, frames_per_block=2, width=128, height=64)


def test_clips_encoded_together_are_those_encoded_alone_and_bring_their_facts(vae, tmp_path):
    count, worlds = ENCODED_TOGETHER + 2, Worlds.parse("unnamed=1,pan=1")
    list(encode_little_world(vae, tmp_path, count, SHAPE, seed=4, worlds=worlds))
    folder, worst = LatentFolder(tmp_path, None, 1, 0), 0.0
    for row in (0, ENCODED_TOGETHER - 1, count - 1):
        drawn = draw_clips(4, 0, [row], SHAPE.pixel_frames, worlds)
        alone = encoded_with_twins(drawn.video, SHAPE, clip_encoder(vae))
        clip = folder.clip(row)
        for own, other in zip(alone, (clip["latents"], clip["low_res"]), strict=True):
            worst = max(worst, float((own[0].float() - other).norm() / other.norm()))
        [scene] = drawn.scenes
        assert folder.facts[row].background == scene.background
        assert folder.facts[row].areas == pytest.approx(areas_in_sight(scene, 2, 2), abs=0.06)
    print(f"encoded together and alone: {worst:.1e} apart, relative")
    assert worst < 2e-3


def test_a_blank_film_is_there_for_every_background(vae):
    films = blank_films(vae, SHAPE)
    assert set(films) == set(BACKGROUNDS)
    assert all(own.latents.shape == (16, 6, 8, 16) for own in films.values())
    assert not torch.equal(films["dark"].latents, films["teal"].latents)


def test_what_is_selected_is_learnt():
    """Steps on the selection alone: the sighting's affinity rises above those of blank blocks, clip by clip."""
    stage = layout_stage(trained_high_res(CONFIG.dim))
    layout, rows = Layout(MEMORIES[-1], 1, range(0, 1), 5, RETURNS - 1), [0, 1]

    def asked() -> tuple[torch.Tensor, float]:
        stage.layouts = Layouts(MEMORIES, selection_weight=0.0)
        plain = stage.edited(0, layout, rows, kind="gap")
        stage.layouts = Layouts(MEMORIES, selection_weight=1.0)
        both = stage.edited(0, layout, rows, kind="gap")
        return both.loss - plain.loss, both.figures["missed"]

    optimiser = torch.optim.Adam(stage.high_res.parameters(), 3e-3)
    first, _ = asked()
    for _ in range(12):
        optimiser.zero_grad()
        loss, missed = asked()
        loss.backward()
        optimiser.step()
    print(f"cross-entropy {first.item():.3f}, then {loss.item():.3f}; missed {missed:.2f}")
    assert loss.item() < 0.9 * first.item()


def test_the_selection_is_asked_of_every_clip_by_itself():
    affinities = torch.tensor([[0.0, 5.0, 1.0], [4.0, 3.0, 2.0]], requires_grad=True)
    view = SimpleNamespace(twins={2: None, 3: None, 4: None}, window=SimpleNamespace(mid_positions=(0.0,)))
    view.cache = SimpleNamespace(compressed=(SimpleNamespace(selector="mean"), None))
    view.mean_queries, view.affinities = {0: None}, lambda layer, equal_lengths: [affinities][layer]
    loss, missed = selection_loss(view, range(3, 4))
    assert missed.item() == 0.5
    loss.backward()
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for row, own in enumerate(affinities.detach().double()):
        expected[row] = (own / own.std(correction=0)).softmax(0)
        expected[row, 1] -= 1
        expected[row] /= 2 * own.std(correction=0)
    print(f"gradient differs by {(affinities.grad - expected).abs().max():.1e}")
    torch.testing.assert_close(affinities.grad.double(), expected, rtol=1e-5, atol=1e-7)
