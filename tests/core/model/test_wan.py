from __future__ import annotations

import pytest

from packforcing_core.checkpoint.keys import expected_shapes
from packforcing_core.model.config import WAN_SIZES
from packforcing_core.model.ops import TorchOps, build_on_meta
from packforcing_core.model.wan import Wan
from tests.checkpoints import SMALL, wan_state_dict


@pytest.mark.parametrize("config", [*WAN_SIZES.values(), SMALL], ids=lambda config: f"width {config.dim}")
def test_names_and_shapes_are_those_of_the_official_files(config):
    net = build_on_meta(lambda: Wan(config, TorchOps))
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == dict(expected_shapes(config))


def test_some_names_as_the_official_file_spells_them():
    net = build_on_meta(lambda: Wan(WAN_SIZES["1.3B"], TorchOps))
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert len(shapes) == 825
    assert shapes["patch_embedding.weight"] == (1536, 16, 1, 2, 2)
    assert shapes["text_embedding.2.bias"] == (1536,)
    assert shapes["time_projection.1.weight"] == (9216, 1536)
    assert shapes["blocks.29.self_attn.norm_k.weight"] == (1536,)
    assert shapes["blocks.0.cross_attn.o.weight"] == (1536, 1536)
    assert shapes["blocks.0.norm3.bias"] == (1536,)
    assert shapes["blocks.0.modulation"] == (1, 6, 1536)
    assert shapes["blocks.0.ffn.2.weight"] == (1536, 8960)
    assert shapes["head.head.weight"] == (64, 1536)
    assert shapes["head.modulation"] == (1, 2, 1536)


def test_a_state_dict_loads_exactly():
    weights = wan_state_dict()
    net = Wan(SMALL, TorchOps)
    net.load_state_dict(weights)
    assert all((net.state_dict()[name] == tensor).all() for name, tensor in weights.items())
