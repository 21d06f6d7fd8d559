from __future__ import annotations

import pytest

from packforcing_core.checkpoint.keys import expected_shapes
from packforcing_core.errors import PackForcingError
from packforcing_core.model.config import WAN_SIZES, WanConfig
from tests.checkpoints import SMALL, wan_state_dict


@pytest.mark.parametrize("config", [*WAN_SIZES.values(), SMALL])
def test_sizes_are_read_off_the_shapes(config):
    assert WanConfig.from_state_dict(expected_shapes(config)) == config


def test_sizes_are_read_off_tensors():
    assert WanConfig.from_state_dict(wan_state_dict()) == SMALL


def test_the_presets_have_the_papers_parameter_counts():
    def parameters(config):
        total = 0
        for shape in expected_shapes(config).values():
            size = 1
            for side in shape:
                size *= side
            total += size
        return total

    counts = {name: parameters(config) / 1e9 for name, config in WAN_SIZES.items()}
    print(counts)
    assert counts["1.3B"] == pytest.approx(1.419, abs=1e-3)
    assert counts["14B"] == pytest.approx(14.288, abs=1e-3)
    assert {config.head_dim for config in WAN_SIZES.values()} == {128}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_emb.proj.0.bias": (1280,)}, "image-to-video.*T2V"),
        ({"vace_patch_embedding.weight": (128, 96, 1, 2, 2)}, "VACE.*T2V"),
        ({"patch_embedding.weight": (128, 36, 1, 2, 2)}, "36 input channels.*image-to-video.*T2V"),
        ({"patch_embedding.weight": (192, 16, 1, 2, 2)}, "192.*multiple of 128"),
        ({"patch_embedding.weight": (128, 16, 1, 4, 4)}, "patches"),
        ({"patch_embedding.weight": (128, 64)}, r"\[128, 64\]"),
    ],
)
def test_relatives_of_the_t2v_model_are_refused_by_name(change, message):
    with pytest.raises(PackForcingError, match=message):
        WanConfig.from_state_dict({**expected_shapes(SMALL), **change})


def test_another_model_is_refused_with_what_was_expected():
    with pytest.raises(PackForcingError, match=r"Not a Wan transformer: no patch_embedding.*double_blocks.*T2V"):
        WanConfig.from_state_dict({"double_blocks.0.img_mod.lin.weight": (3, 3)})


def tensors_of(layers):
    return {**expected_shapes(SMALL), **{f"blocks.{layer}.modulation": (1, 6, 128) for layer in layers}}


@pytest.mark.parametrize("layer", ["3", "300000", "9" * 4400, "02", "\u0662", "\u00b2", "x", "", "-1"])
def test_layers_are_numbered_from_0_without_a_hole(layer):
    with pytest.raises(
        PackForcingError, match=r"Got blocks\..* among 3 layers; expected .*damaged or of another model"
    ) as refusal:
        WanConfig.from_state_dict(tensors_of([layer]))
    assert len(str(refusal.value)) < 250


def test_the_number_of_layers_has_a_bound():
    assert WanConfig.from_state_dict(tensors_of(range(60))).num_layers == 60
    with pytest.raises(PackForcingError, match=r"Got 513 layers; .* with at most 512 layers"):
        WanConfig.from_state_dict(tensors_of(range(513)))


def test_heads_must_divide_the_width():
    with pytest.raises(PackForcingError, match="3 heads for a width of 128"):
        WanConfig(dim=128, ffn_dim=256, num_layers=1, num_heads=3)
