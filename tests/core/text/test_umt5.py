from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, UMT5EncoderModel

from packforcing_core.errors import PackForcingError
from packforcing_core.text.umt5 import clean_prompt, encode_prompt
from tests.checkpoints import truncate, write_umt5
from tests.exactness import DEEP, steps_off

ROOT = Path(__file__).resolve().parents[3]
PROMPT = "A red circle &amp; a blue  square,\n moves"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_umt5(tmp_path_factory.mktemp("umt5"))


def encode(prompt, folder, **options):
    return encode_prompt(prompt, folder, dtype=torch.float32, text_dim=64, **options)


def padded_reference(prompt, folder):
    """As upstream does it: 512 tokens with padding through the encoder, then the padding's embeddings set to zero."""
    batch = AutoTokenizer.from_pretrained(folder)(
        prompt, padding="max_length", max_length=512, truncation=True, return_tensors="pt"
    )
    encoder = UMT5EncoderModel.from_pretrained(folder, torch_dtype=torch.float64).eval()
    with torch.no_grad():
        hidden = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    return hidden * batch.attention_mask[..., None], int(batch.attention_mask.sum())


def test_the_context_is_that_of_the_padded_encoder_with_zeros_behind_the_prompt(folder):
    context = encode(PROMPT, folder)
    reference, tokens = padded_reference("A red circle & a blue square, moves", folder)
    off = steps_off(context, reference)
    print(f"{tokens} tokens, {off:.0f} rounding steps from float64, largest value {reference.abs().max():.1f}")
    assert context.shape == (1, 512, 64)
    assert off < DEEP
    assert not context[:, tokens:].any()
    assert context[:, :tokens].any(dim=-1).all()
    assert not context.is_inference()


def test_another_prompt_gives_another_context_and_an_empty_one_its_end_token(folder):
    assert not torch.equal(encode("a red circle", folder), encode("a blue circle", folder))
    empty = encode("", folder)
    assert empty[0].any(dim=-1).tolist() == [True] + [False] * 511


def test_a_prompt_beyond_512_tokens_is_cut(folder):
    context = encode("circle " * 600, folder)
    assert context.shape == (1, 512, 64)
    assert context.any(dim=-1).all()
    assert not context.is_inference()


def test_the_dtype_is_the_one_asked_for(folder):
    assert encode_prompt("a red circle", folder, text_dim=64).dtype == torch.bfloat16


def test_a_diffusers_folder_gives_the_same(folder, tmp_path):
    assert torch.equal(encode(PROMPT, write_umt5(tmp_path, subfolders=True)), encode(PROMPT, folder))


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  two\t words \n", "two words"),
        ("cat &amp;amp; dog", "cat & dog"),
        ("&lt;b&gt; \u3000x", "<b> x"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned_as_wan_does(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


def test_a_missing_or_foreign_folder_says_what_was_expected(tmp_path, folder):
    with pytest.raises(PackForcingError, match=r"is not a folder; expected a local transformers folder"):
        encode("x", tmp_path / "none")
    with pytest.raises(PackForcingError, match="has no tokenizer"):
        encode("x", tmp_path)
    with pytest.raises(PackForcingError, match=r"width 64 .* the transformer needs 4096"):
        encode_prompt("x", folder)


def break_config(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}), encoding="utf-8")


def drop_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.final_layer_norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_config, "a model of type 'bert'"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"), "does not describe a umT5"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{", encoding="utf-8"),
            "tokenizer in .* cannot be read",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "encoder in .* cannot be read"),
        (lambda folder: truncate(folder / "model.safetensors"), "encoder in .* cannot be read"),
        (drop_a_weight, "is missing encoder.final_layer_norm.weight"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(tmp_path, damage, message):
    damage(write_umt5(tmp_path))
    with pytest.raises(PackForcingError, match=message):
        encode("a red circle", tmp_path)


def test_transformers_is_imported_only_to_encode_and_its_absence_is_explained(folder):
    script = (
        "import sys\n"
        "import packforcing_core.text.umt5 as umt5, packforcing_core.text.context\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['transformers'] = None\n"  # what Python itself does to block an import
        f"umt5.encode_prompt('x', {str(folder)!r}, text_dim=64)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert "PackForcingError: Encoding prompts outside ComfyUI needs transformers: pip install" in run.stderr
