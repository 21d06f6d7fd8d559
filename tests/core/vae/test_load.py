import pytest
import torch
from safetensors.torch import save_file

from packforcing_core.errors import PackForcingError
from packforcing_core.vae.config import VAEConfig
from packforcing_core.vae.load import load_vae
from packforcing_core.vae.streaming import decode
from packforcing_core.vae.wan_vae import WanVAE
from tests.vaes import SMALL, random_latents, random_vae

CONFIGS = [
    SMALL,
    VAEConfig(),
    VAEConfig(encoder_dim=24, decoder_dim=24),
    VAEConfig(encoder_dim=96, decoder_dim=24),
    VAEConfig(encoder_dim=4, decoder_dim=8, num_res_blocks=3),
    VAEConfig(encoder_dim=4, decoder_dim=4, dim_mult=(1, 2, 2, 4)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_sizes_are_read_off_the_tensors(config):
    with torch.device("meta"):
        assert VAEConfig.from_state_dict(WanVAE(config).state_dict()) == config


def test_the_standard_network_has_the_official_tensors():
    """Count and number of parameters of the file wan_2.1_vae.safetensors, 126.9 M, and some of its names."""
    with torch.device("meta"):
        tensors = WanVAE(VAEConfig()).state_dict()
    assert len(tensors) == 194
    assert sum(tensor.numel() for tensor in tensors.values()) == 126_892_531
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert shapes["decoder.upsamples.4.shortcut.weight"] == [384, 192, 1, 1, 1]
    assert shapes["decoder.upsamples.0.residual.6.bias"] == [384]
    assert shapes["decoder.middle.1.norm.gamma"] == [384, 1, 1]
    assert shapes["decoder.middle.1.to_qkv.weight"] == [1152, 384, 1, 1]
    assert shapes["decoder.upsamples.3.time_conv.weight"] == [768, 384, 3, 1, 1]
    assert shapes["encoder.downsamples.5.time_conv.weight"] == [192, 192, 3, 1, 1]
    assert shapes["encoder.downsamples.0.residual.0.gamma"] == [96, 1, 1, 1]
    assert shapes["encoder.head.2.weight"] == [32, 384, 3, 3, 3]


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "legacy.pth"])
def test_files_give_the_same_network(tmp_path, suffix):
    vae, path = random_vae(), tmp_path / f"vae.{suffix}"
    if suffix == "safetensors":
        save_file(vae.state_dict(), path)
    else:
        torch.save(vae.state_dict(), path, _use_new_zipfile_serialization=suffix != "legacy.pth")
    latents = random_latents(2)
    assert torch.equal(decode(load_vae(path), latents), decode(vae, latents))


def test_weights_stay_shared_with_their_owner_unless_they_must_change():
    owner = random_vae()
    shared, cast = load_vae(owner.state_dict()), load_vae(owner.state_dict(), dtype=torch.bfloat16)
    pairs = list(zip(owner.parameters(), shared.parameters(), strict=True))
    assert all(ours.data_ptr() == theirs.data_ptr() and not ours.requires_grad for theirs, ours in pairs)
    assert {parameter.dtype for parameter in cast.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in owner.parameters()} == {torch.float32}


def changed(**changes):
    tensors = random_vae().state_dict()
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    "tensors, message",
    [
        (changed(**{"decoder.middle.0.residual.3.gamma": None}), "missing decoder.middle.0.residual.3.gamma"),
        (changed(**{"decoder.extra": torch.zeros(1)}), "unexpected decoder.extra"),
        (changed(**{"decoder.head.2.bias": torch.zeros(4)}), r"decoder.head.2.bias is \[4\] instead of \[3\]"),
        (changed(**{"encoder.downsamples.1.resample.1.weight": None}), "halves its size 2 times"),
        (changed(**{"conv2.weight": torch.zeros(48, 48, 1, 1, 1)}), "48 latent channels"),
        (changed(**{"encoder.conv1.weight": torch.zeros(8, 4, 3, 3, 3)}), "4 image channels"),
        (changed(**{"decoder.head.0.gamma": None}), "Not a Wan VAE: no decoder.head.0.gamma"),
        ({"decoder.upsamples.0.upsamples.0.residual.2.weight": torch.zeros(1)}, r"Wan2\.2 VAE"),
        ({"decoder.22.bias": torch.zeros(3), "decoder.1.weight": torch.zeros(64, 16, 3, 3)}, "TAEHV"),
        ({"decoder.mid.block_1.conv1.weight": torch.zeros(1)}, "Stable Diffusion"),
        ({"decoder.mid_block.resnets.0.norm1.gamma": torch.zeros(1)}, "diffusers"),
        ({"patch_embedding.weight": torch.zeros(1)}, "a Wan transformer"),
        ({"a.b": torch.zeros(1)}, "the file has a.b"),
        ({}, "the file has nothing"),
    ],
)
def test_what_is_not_a_wan_vae_is_refused_by_name(tensors, message):
    with pytest.raises(PackForcingError, match=message) as refusal:
        load_vae(tensors)
    assert "expected a Wan2.1 VAE" in str(refusal.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PackForcingError, match=r"absent\.safetensors"):
        load_vae(tmp_path / "absent.safetensors")
