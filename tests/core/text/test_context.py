from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from packforcing_core.errors import PackForcingError
from packforcing_core.text.context import load_context, pad_context
from tests.checkpoints import truncate, write_context


def write(path, tensors):
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batched", [True, False])
def test_a_saved_context_comes_back_padded_with_zeros(tmp_path, batched, dtype):
    saved = torch.randn(1, 7, 64).to(dtype)
    loaded = load_context(write(tmp_path / "c.safetensors", {"context": saved if batched else saved[0]}), 64)
    assert loaded.shape == (1, 512, 64)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded[:, :7], saved.float())
    assert not loaded[:, 7:].any()


def test_the_width_of_umt5_xxl_is_expected_unless_told_otherwise(tmp_path):
    assert load_context(write_context(tmp_path / "c.safetensors")).shape == (1, 512, 4096)
    with pytest.raises(PackForcingError, match=r"width 64 from c.safetensors; the transformer needs 4096"):
        load_context(write_context(tmp_path / "c.safetensors", text_dim=64))


def test_padding_leaves_a_full_context_alone_and_refuses_a_longer_one():
    full = torch.randn(1, 512, 8)
    assert torch.equal(pad_context(full), full)
    with pytest.raises(PackForcingError, match="513 tokens; expected at most 512"):
        pad_context(torch.zeros(1, 513, 8))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"prompt": torch.ones(1, 2, 64)}, r"no tensor called context \(it has prompt\)"),
        ({"context": torch.ones(2, 2, 64)}, r"\[2, 2, 64\].*one prompt"),
        ({"context": torch.ones(64)}, r"\[64\].*one prompt"),
        ({"context": torch.ones(1, 2, 64, dtype=torch.int64)}, "int64.*of floats"),
        ({"context": torch.full((1, 2, 64), torch.nan)}, "infinite or NaN"),
        ({"context": torch.ones(1, 600, 64)}, "600 tokens"),
    ],
)
def test_what_is_no_context_is_refused(tmp_path, tensors, message):
    with pytest.raises(PackForcingError, match=message):
        load_context(write(tmp_path / "c.safetensors", tensors), 64)


def test_a_truncated_context_is_refused(tmp_path):
    with pytest.raises(PackForcingError, match="truncated"):
        load_context(truncate(write_context(tmp_path / "c.safetensors")))
