"""Clips that a model makes of itself: any block length, one by one, the same whenever they are made."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from packforcing_core.compressor.low_res import low_res_latents
from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training.selfmade import clip_prompts
from packforcing_core.laboratory.training.selfmade.clips import Clips, clip_bytes, rolled_out
from packforcing_core.laboratory.training.selfmade.texts import Texts, encoded_texts
from packforcing_core.miniature.load import load_text
from packforcing_core.vae.streaming import decode, encode
from tests.core.laboratory.training.selfmade.parts import PROMPTS, small_base, small_clips, small_texts
from tests.small import small_model
from tests.vaes import TINY, random_vae


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_a_clip_is_what_the_sampler_makes_and_its_small_latents_what_its_frames_give(frames, tmp_path):
    base = small_base(frames)
    clips = small_clips(tmp_path, base, 1)
    clip = clips.read(0)
    latents = rolled_out(small_model(), small_texts([clip.prompt]), base, clips.noise_seed(0))
    assert torch.equal(clip.latents, latents[0].half().float())
    vae = random_vae(TINY)
    video, last = decode(vae, latents), base.clip.blocks - 1
    shape = torch.Size(base.clip.block_shape)
    own = low_res_latents(partial(encode, vae), video[:, :, -4 * frames :], shape, False)
    times = base.clip.compressed_grid[0]
    error = (clip.low_res[:, last * times :] - own[0]).abs().max().item()
    print(f"blocks of {frames}: small latents differ by {error:.1e}, of {own.abs().max():.2f}")
    assert error < 2e-3 * own.abs().max()
    assert abs(clips.path(0).stat().st_size / clip_bytes(base) - 1) < 0.5


def test_clips_go_on_after_a_kill_with_those_that_are_missing(tmp_path, monkeypatch):
    base = small_base(3)
    whole = small_clips(tmp_path / "whole", base, 4)
    made = Clips(tmp_path / "killed", base, PROMPTS, 0)
    parts = small_model(), random_vae(TINY), small_texts
    made.make(2, *parts)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("packforcing_core.laboratory.training.selfmade.clips.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            made.make(0, *parts)
    assert made.missing(4) == [0, 1, 3]
    assert list(made.made(4, *parts)) == [0, 1, 3]
    for index in range(4):
        assert torch.equal(made.read(index).latents, whole.read(index).latents)
    assert not torch.equal(whole.read(0).latents, whole.read(1).latents)
    assert not torch.equal(whole.read(0).latents, small_clips(tmp_path / "other", base, 1, seed=1).read(0).latents)


def test_two_clips_in_a_row_share_a_prompt_and_every_prompt_comes(tmp_path):
    clips = Clips(tmp_path, small_base(3), PROMPTS, 5)
    asked = [clips.prompt(index) for index in range(4 * len(PROMPTS))]
    assert asked[::2] == asked[1::2]
    assert set(asked[: 2 * len(PROMPTS)]) == set(asked[2 * len(PROMPTS) :]) == set(PROMPTS)


def test_a_damaged_clip_is_named(tmp_path):
    clips = small_clips(tmp_path, small_base(3), 1)
    clips.path(0).write_bytes(clips.path(0).read_bytes()[:100])
    with pytest.raises(PackForcingError, match="generated again"):
        clips.read(0)


def test_contexts_are_made_once_and_read_as_the_encoder_gave_them(tmp_path):
    words, asked = load_text(), []

    def encode(prompts):
        asked.extend(prompts)
        return words(prompts).split(1)

    wanted = ["a red circle bounces", "the view pans over bars"]
    for _ in range(2):
        texts = encoded_texts(tmp_path / "texts.safetensors", wanted, encode)
    assert asked == wanted
    assert torch.equal(texts(wanted[::-1]), words(wanted[::-1]))
    with pytest.raises(PackForcingError, match="other prompts"):
        encoded_texts(tmp_path / "texts.safetensors", ["a blue square"], encode)
    assert Texts(tmp_path / "texts.safetensors").text_len == 24


def test_the_prompts_that_ship_are_many_and_the_miniatures_are_its_own_words():
    shipped = clip_prompts.shipped_prompts()
    assert len(shipped) == len(set(shipped)) == 200
    words = load_text()
    assert not {word for prompt in clip_prompts.miniature_prompts() for word in words.unknown(prompt)}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.txt", "\n \n", "0 prompts"),
        ("a.json", "[1]", "not a list"),
        ("a.json", "[", "not JSON"),
        ("a.txt", "x\nx", "1 pr"),
    ],
)
def test_prompts_that_say_nothing_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(PackForcingError, match=message):
        clip_prompts.read_prompts(tmp_path / name)
