"""Films of one's own become latents with prompts."""

from __future__ import annotations

import pytest
import torch

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training.data import ClipShape, LatentFolder, encode_videos
from packforcing_core.laboratory.training.vae import initialise
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.wan_vae import WanVAE
from packforcing_core.video import SegmentedWriter, VideoFormat
from tests.films import write_segments

SHAPE = ClipShape(latent_frames=2, frames_per_block=2, width=48, height=32)  # 5 pixel frames


@pytest.fixture
def vae() -> WanVAE:
    network = WanVAE(VAEConfig(8, 8, num_res_blocks=1))
    initialise(network, seed=0)
    return network.requires_grad_(False)


def contexts(prompts):
    """A text encoder's place: one number that tells prompts apart."""
    return [torch.full((1, 3, 4), float(len(prompt))) for prompt in prompts]


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for name, segments, fps in (("slow", 2, 16.0), ("fast", 4, 32.0)):
        with SegmentedWriter(folder / f"{name}.mp4", 64, 48, VideoFormat(fps=fps)) as writer:
            write_segments(writer, range(segments))
            writer.finish()
        (folder / f"{name}.txt").write_text(f"a {name} film\n")
    return folder


def test_each_film_becomes_a_shard_with_its_prompt(vae, films, tmp_path):
    written = list(encode_videos(vae, films, tmp_path / "latents", SHAPE, contexts))
    assert [path.name for path in written] == ["fast.safetensors", "slow.safetensors"]
    clips = LatentFolder(tmp_path / "latents", None, batch=4, seed=0)
    assert len(clips) == 2
    batch = clips(0)
    assert batch.latents.shape == (4, 16, 2, 4, 6)
    assert batch.low_res.shape == (4, 16, 1, 2, 2)
    assert {value.item() for value in batch.context[:, 0, 0]} <= {float(len(f"a {n} film")) for n in ("slow", "fast")}
    assert list(encode_videos(vae, films, tmp_path / "latents", SHAPE, contexts)) == []


def test_a_film_without_a_prompt_is_named(vae, films, tmp_path):
    (films / "slow.txt").unlink()
    with pytest.raises(PackForcingError, match=r"slow\.mp4 has no prompt"):
        list(encode_videos(vae, films, tmp_path / "latents", SHAPE, contexts))


def test_a_film_that_is_too_short_at_the_rate_is_named(vae, films, tmp_path):
    longer = ClipShape(latent_frames=4, frames_per_block=2, width=48, height=32)  # 13 frames
    with pytest.raises(PackForcingError, match=r"fast\.mp4 has 8 frames at 16"):
        list(encode_videos(vae, films, tmp_path / "latents", longer, contexts))


def test_a_folder_without_films_is_named(vae, tmp_path):
    with pytest.raises(PackForcingError, match="has no videos"):
        list(encode_videos(vae, tmp_path, tmp_path / "latents", SHAPE, contexts))
