"""CLIP and DINO from a folder, with tiny random weights in the files of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.evaluation.models import Models, find_models

transformers = pytest.importorskip("transformers")
pre_tokenizers = pytest.importorskip("tokenizers.pre_tokenizers")

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PROMPT = "a red circle bounces on a dark background"


def image_processor(side: int) -> dict:
    """What preprocessor_config.json of CLIP says, for pictures of another size."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }


def write_tiny_clip(folder: Path) -> None:
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": 514, "max_position_embeddings": 77, "bos_token_id": 512, "eos_token_id": 513}
    vision = {**TINY, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}), "utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor(32)), "utf-8")


def write_tiny_dino(folder: Path) -> None:
    torch.manual_seed(1)
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    transformers.Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor(28)), "utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_tiny_clip(folder / "tiny-clip")
    write_tiny_dino(folder / "tiny-dino")
    return folder


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (64, 128, 3), np.uint8) for _ in range(count)]


def test_the_clip_score_is_that_of_clip_itself(folder: Path):
    shown = pictures(25)
    scores = Models.load(folder).score(shown, [float(second) for second in range(25)], PROMPT)
    clip = transformers.CLIPModel.from_pretrained(folder / "tiny-clip").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "tiny-clip")
    words = transformers.AutoTokenizer.from_pretrained(folder / "tiny-clip")([PROMPT], return_tensors="pt")
    pixels = processor(images=[Image.fromarray(picture) for picture in shown], return_tensors="pt").pixel_values
    with torch.inference_mode():
        # The model's own forward, whose logits are scaled by its learnt temperature.
        logits = clip(input_ids=words.input_ids, pixel_values=pixels).logits_per_image[:, 0]
        expected = (100 * logits / clip.logit_scale.exp()).numpy()
    expected = [expected[:10].mean(), expected[10:20].mean(), expected[20:].mean()]
    print("windows", scores.clip_windows, "differ by", np.abs(np.array(scores.clip_windows) - expected).max())
    assert np.allclose(scores.clip_windows, expected, atol=1e-4)
    assert scores.clip_score == pytest.approx(np.mean(scores.clip_windows))


def test_consistency_is_one_of_a_still_and_less_of_noise(folder: Path):
    models = Models.load(folder)
    still = models.score([pictures(1)[0]] * 4, [0.0, 0.5, 1.0, 1.5], None)
    noise = models.score(pictures(4), [0.0, 0.5, 1.0, 1.5], None)
    print(still, noise)
    assert still.clip_consistency == pytest.approx(1.0, abs=1e-5)
    assert still.dino_consistency == pytest.approx(1.0, abs=1e-5)
    assert noise.clip_consistency < 0.9999
    assert noise.dino_consistency < 0.9999
    assert still.clip_windows == ()
    assert still.clip_score is None


def test_consistency_is_to_the_first_and_to_the_previous(folder: Path):
    shown = pictures(2)
    models = Models.load(folder)
    pair = models.score(shown, [0.0, 1.0], None).dino_consistency
    back = models.score([shown[0], shown[1], shown[0]], [0.0, 1.0, 2.0], None).dino_consistency
    # To the first: pair, 1. To the previous: pair, pair.
    assert back == pytest.approx((3 * pair + 1) / 4, abs=1e-6)


def test_a_folder_of_one_model_measures_what_it_can(folder: Path):
    scores = Models.load(folder / "tiny-dino").score(pictures(2), [0.0, 1.0], PROMPT)
    assert scores.clip_windows == ()
    assert scores.clip_consistency is None
    assert scores.dino_consistency is not None


def test_a_long_prompt_is_cut_to_what_clip_reads(folder: Path):
    assert Models.load(folder).score(pictures(1), [0.0], "circle " * 200).clip_score is not None


def test_folders_without_models_are_refused(tmp_path: Path):
    with pytest.raises(PackForcingError, match="does not exist"):
        find_models(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PackForcingError, match="holds no model that is known"):
        find_models(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(PackForcingError, match="cannot be loaded"):
        Models.load(tmp_path)
