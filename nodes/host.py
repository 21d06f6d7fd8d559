"""The interface to ComfyUI's models: a MODEL or VAE as the core's model or decoder. Apart from it, only the
loader, LoRA layouts (`loras.py`) and the demo's CLIP (`words_clip.py`) call ComfyUI's model code.

The diffusion model inside a MODEL has the official attribute names, so the core runs it directly. Its modules cast,
offload, dequantise and patch as ComfyUI set them up (LoRA, fp8, GGUF).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import comfy.ldm.wan.ar_model
import comfy.ldm.wan.model
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.taesd.taehv
import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from torch import Tensor

from ..packforcing_core.attention import Attention, Capability, cudnn_first, prefers_cudnn
from ..packforcing_core.checkpoint.families import FAMILIES, Family
from ..packforcing_core.compressor.high_res import HighRes
from ..packforcing_core.compressor.weights import CompressorInfo, LoadedCompressor
from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.folder.fingerprint import fingerprint
from ..packforcing_core.geometry import VideoGeometry
from ..packforcing_core.model.causal import CausalWan
from ..packforcing_core.model.config import WanConfig
from ..packforcing_core.model.ops import Ops
from ..packforcing_core.text.context import check_width, pad_context
from ..packforcing_core.vae.decoders import decoder_bytes as working_bytes
from ..packforcing_core.vae.load import load_vae
from ..packforcing_core.vae.tiny import TinyVAE, load_tiny
from ..packforcing_core.vae.wan_vae import WanVAE
from .held import attention_options, chosen_dtypes, held_weights, replaced_parts

ORIGIN = "packforcing_origin"
COMPRESSOR = "packforcing_compressor"

# Entries of a prompt's dictionary that are supported or change nothing; only native samplers apply the others.
_OF_A_PROMPT = {"pooled_output", "attention_mask", "num_tokens"}
_WITHOUT_EFFECT = {
    "start_percent": 0.0,
    "end_percent": 1.0,
    "clip_start_percent": 0.0,
    "clip_end_percent": 1.0,
    "strength": 1.0,
}
OWN_DEVICE = "default"
"""The device that ComfyUI has chosen for a VAE."""
OWN_KEYS = "packforcing_"
_seen: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_COMPILED = "_orig_mod."
"""What torch.compile puts into the names of a module's weights."""


@dataclass(frozen=True)
class Origin:
    """What our loader detected about a checkpoint's training; `family` is None if nothing says."""

    family: Family | None


def wan_config(model) -> WanConfig:
    """Sizes of the transformer inside a MODEL. Raises PackForcingError if it is not a Wan2.1 T2V model."""
    net = model.model.diffusion_model
    plain = type(net) in (comfy.ldm.wan.model.WanModel, comfy.ldm.wan.ar_model.CausalWanModel)
    if not plain or net.model_type != "t2v" or net.in_dim != 16:
        raise PackForcingError(
            f"Got a MODEL of type {type(net).__name__}; expected a Wan2.1 text-to-video model (16 input channels). "
            "Load a Self-Forcing-style Wan2.1 T2V checkpoint."
        )
    return WanConfig(
        dim=net.dim,
        ffn_dim=net.ffn_dim,
        num_layers=net.num_layers,
        num_heads=net.num_heads,
        text_dim=net.text_dim,
        freq_dim=net.freq_dim,
        text_len=net.text_len,
        eps=net.eps,
    )


def trained_family(model) -> Family | None:
    """How the MODEL's checkpoint was trained: noted by our loader, or marked by ComfyUI; None if unknown."""
    noted: Origin | None = model.get_attachment(ORIGIN)
    if noted is not None:
        return noted.family
    if isinstance(model.model.diffusion_model, comfy.ldm.wan.ar_model.CausalWanModel):
        return FAMILIES["comfyui-causal"]
    return None


def note_family(model, family: Family | None) -> None:
    """Notes on a MODEL how its checkpoint was trained (None: unknown). Clones keep the note."""
    model.set_attachments(ORIGIN, Origin(family))


def patched_shift(model) -> float | None:
    """The time shift that a native node (ModelSamplingSD3) set on the MODEL; None if no node did."""
    if "model_sampling" not in model.object_patches:
        return None
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
        raise PackForcingError(
            f"The MODEL has another sampling type ({type(sampling).__name__}); Wan samples by flow matching. "
            "Remove the node that set it; ModelSamplingSD3 is fine, it sets the shift."
        )
    usual = vars(comfy.model_sampling.ModelSamplingDiscreteFlow(model.model.model_config))
    changed = [
        f"{name} {value:g}"
        for name, value in vars(sampling).items()
        if isinstance(value, int | float) and name not in ("shift", "training") and value != usual.get(name)
    ]
    if changed:
        raise PackForcingError(
            f"A node set {' and '.join(changed)} for the MODEL's sampling, which block-by-block sampling does not "
            "support. Remove it (ModelNoiseScale and ModelSamplingAuraFlow do this); ModelSamplingSD3 sets the shift."
        )
    return float(sampling.shift)


def compute_dtype(model) -> torch.dtype:
    """The dtype that the MODEL computes in: its own, or the one that a node (ModelComputeDtype) chose."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def text_context(conditioning, config: WanConfig) -> Tensor:
    """The text embeddings [1, >= 512, text_dim] of a CONDITIONING. Raises PackForcingError for more than one prompt."""
    if len(conditioning) != 1:
        raise PackForcingError(
            f"Got a CONDITIONING of {len(conditioning)} combined prompts; expected one. Encode the prompt in one node."
        )
    context, extras = conditioning[0]
    ignored = sorted(key for key, value in extras.items() if not _is_plain(key, value))
    if ignored:
        raise PackForcingError(
            f"The CONDITIONING carries {', '.join(ignored)}, which block-by-block sampling does not support. "
            "Connect the output of the text encode node directly."
        )
    if context.ndim != 3 or context.shape[0] != 1:
        raise PackForcingError(f"Got text embeddings of shape {list(context.shape)}; expected [1, tokens, width].")
    check_width(context.shape[2], config.text_dim, "the CONDITIONING")
    return context if context.shape[1] >= config.text_len else pad_context(context, config.text_len)


def _is_plain(key: str, value) -> bool:
    nothing = value is None or value is False or (key in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[key])
    return nothing or key in _OF_A_PROMPT or key.startswith(OWN_KEYS)


class HostOps(comfy.ops.manual_cast):
    """The core's `ops` interface: ComfyUI's layer classes, which cast and offload weights."""

    @staticmethod
    def cast(parameter: Tensor, like: Tensor) -> Tensor:
        """Moves and casts a bare parameter to the activations' device and dtype, as ComfyUI does."""
        return comfy.model_management.cast_to(parameter, dtype=like.dtype, device=like.device)


HOST_OPS = cast("Ops", HostOps)  # ComfyUI is not typed where the type checker runs.


def attention_of(model) -> Attention:
    """The core's `attention` interface: ComfyUI's chosen backend, with overrides that other nodes put on the MODEL.

    If the user chose no backend, this is PyTorch's attention, which prefers FlashAttention 2 to cuDNN. On Hopper GPUs
    cuDNN is much faster, so it is tried first there.
    """
    transformer_options = model.model_options.get("transformer_options", {})
    config, dtype = wan_config(model), compute_dtype(model)
    chosen = bool(attention_options(model)) or optimized_attention is not attention_pytorch
    if not chosen and prefers_cudnn(Capability.of(model.load_device, dtype, config.head_dim)):
        logging.info("PackForcing: attention: cuDNN first, then PyTorch's other backends.")
        return cudnn_first
    logging.info("PackForcing: attention: ComfyUI's backend (%s).", optimized_attention.__name__)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = (x.flatten(2) for x in (q, k, v))
        out = optimized_attention(*flat, heads=q.shape[2], transformer_options=transformer_options)
        return out.unflatten(-1, q.shape[2:])

    return attention


def inference_dtype(parameters: int, weights: torch.dtype | None) -> torch.dtype:
    """The dtype in which ComfyUI would run a Wan2.1 T2V with this number of parameters. `weights` is the requested
    weight dtype, or None.
    """
    supported = comfy.supported_models.WAN21_T2V.supported_inference_dtypes
    weights = weights or comfy.model_management.unet_dtype(model_params=parameters, supported_dtypes=supported)
    device = comfy.model_management.get_torch_device()
    return comfy.model_management.unet_manual_cast(weights, device, supported) or weights


@contextmanager
def loaded(model, working_bytes: int) -> Iterator[CausalWan]:
    """Loads the MODEL to its device, keeps `working_bytes` free there, and yields it as the core's causal Wan."""
    comfy.model_management.load_models_gpu(
        [model, *model.get_nested_additional_models()], memory_required=working_bytes
    )
    model.pre_run()
    try:
        yield CausalWan(
            model.model.diffusion_model,
            wan_config(model),
            dtype=compute_dtype(model),
            device=model.load_device,
            cast=HostOps.cast,
            attention=attention_of(model),
        )
    finally:
        model.cleanup()


def attach_compressor(model, loaded: LoadedCompressor) -> None:
    """Attaches a trained compressor to a MODEL: it is loaded and freed with the MODEL, and clones keep it."""
    patcher = comfy.model_patcher.CoreModelPatcher(
        loaded.high_res, load_device=model.load_device, offload_device=model.offload_device
    )
    model.set_additional_models(COMPRESSOR, [patcher])
    model.set_attachments(COMPRESSOR, loaded.info)


def compressor_network(model) -> HighRes | None:
    """The high-resolution branch that `attach_compressor` attached, on the MODEL's current device; None without one."""
    attached = model.get_additional_models_with_key(COMPRESSOR)
    return attached[0].model if attached else None


def compressor_info(model) -> CompressorInfo | None:
    """What the attached compressor was trained for; None without one."""
    return model.get_attachment(COMPRESSOR)


def model_identity(model, vae) -> dict[str, str | None]:
    """Fingerprints of everything that decides the MODEL's output (its file's path is unknown here), and its dtype.

    Weights that ComfyUI patched in place count as they were before. `vae` is None if sampling needs no VAE.
    """
    compressor, replaced, attention = compressor_network(model), replaced_parts(model), attention_options(model)
    own = {id(part) for part in (model, model.model, *model.model.modules())}  # Its weights count already.
    if optimized_attention is not attention_pytorch:
        attention["ComfyUI's"] = optimized_attention.__name__
    return {
        "model": fingerprint(held_weights(model.model, model.backup)),
        "LoRAs": fingerprint(model.patches) if model.patches else None,
        "replaced parts": _first_fingerprint(replaced, own),
        "attention": _first_fingerprint(attention, own),
        "dtype": " ".join([str(compute_dtype(model)), *chosen_dtypes(model.model)]),
        "VAE": vae_identity(vae) if vae is not None else None,
        "compressor": fingerprint(compressor.state_dict()) if compressor is not None else None,
    }


def _first_fingerprint(parts: dict[str, Any], own: set[int]) -> str | None:
    """A fingerprint of what other nodes put on a MODEL, as it was when it was first seen: some of it counts its calls.
    `own`: ids of the MODEL's modules. None if there is nothing.
    """

    def opaque(content: Any) -> bool:
        return id(content) in own or isinstance(content, comfy.model_patcher.ModelPatcher)

    for key, part in parts.items():
        with suppress(TypeError):  # A value without weak references is a plain one.
            parts = {**parts, key: _seen.setdefault(part, fingerprint(part, opaque=opaque))}
    return fingerprint(parts, opaque=opaque) if parts else None


def vae_identity(vae) -> str:
    """A fingerprint of a VAE's weights and dtype."""
    return fingerprint([str(vae.vae_dtype), _weights(vae)])


def make_room() -> None:
    """Frees the GPU after it ran out of memory: unloads all models."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def make_room_for(vae, geometry: VideoGeometry) -> None:
    """Moves other models off the VAE's device until decoding fits there. Encoding needs about as much as decoding."""
    comfy.model_management.free_memory(decoder_bytes(vae, geometry), vae.device)


def native_vae(state_dict: dict[str, Tensor]):
    """A native VAE with these weights, which have the official names."""
    vae = comfy.sd.VAE(sd=state_dict)
    vae.throw_exception_if_invalid()
    return vae


def check_vae(vae) -> None:
    """Raises PackForcingError for a VAE of another family; nothing is moved or copied."""
    _require_network(vae)
    load_vae(_weights(vae))


def _weights(vae) -> dict[str, Tensor]:
    """The weights of a VAE under its own names, also where parts of it are compiled."""
    state_dict = vae.first_stage_model.state_dict()
    return {name.replace(_COMPILED, ""): weight for name, weight in state_dict.items()}


def vae_notes(vae) -> tuple[str, ...]:
    """What streaming decode does not use of a VAE."""
    if any(_COMPILED in name for name in vae.first_stage_model.state_dict()):
        return ("Note: the VAE was compiled by another node; streaming decode runs its own decoder, without that.",)
    return ()


def _require_network(vae) -> None:
    if vae.first_stage_model is None:
        raise PackForcingError("The VAE holds no model; load the Wan2.1 VAE with the native Load VAE node.")


def decoder_bytes(vae, geometry: VideoGeometry) -> int:
    """Peak memory of decoding with a native VAE in bytes, including a private copy of its weights."""
    weights = sum(weight.numel() for weight in _weights(vae).values()) * vae.vae_dtype.itemsize
    network = decoding_network(vae, "meta")
    return weights + working_bytes(network, geometry.height, geometry.width, vae.vae_dtype, vae.device)


def decoding_network(vae, device=None) -> WanVAE | TinyVAE:
    """The core's decoder with the weights of a native VAE: the Wan VAE, or a tiny one.

    ComfyUI loads a 16-channel tiny VAE in float16 as Hunyuan's; here it is Wan's taew2_1, which decodes latents in
    model space. In any other dtype it is lighttaew2_1, which decodes latents in the VAE's own scale.
    """
    network = vae.first_stage_model
    if isinstance(network, comfy.taesd.taehv.TAEHV):
        raw = network.latent_format is None
        return load_tiny(_weights(vae), raw, device=device or vae.device, dtype=vae.vae_dtype)
    return vae_network(vae, device)


def vae_network(vae, device=None) -> WanVAE:
    """A Wan VAE with the weights of a native VAE, in its dtype, on its device or on `device`.

    Weights that are on that device already are shared; others are copied (73 M parameters). It must not be moved while
    another thread decodes with it. Raises PackForcingError for a VAE of another family.
    """
    _require_network(vae)
    return load_vae(_weights(vae), device=device or vae.device, dtype=vae.vae_dtype)


def decode_devices() -> list[str]:
    """The choices of decode_device: ComfyUI's own, the CPU, or a GPU by number."""
    return [OWN_DEVICE, "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def chosen_device(name: str) -> torch.device | None:
    """The device of this name; None for ComfyUI's own choice."""
    return None if name == OWN_DEVICE else torch.device(name)
