"""The `attention` interface: the callable that all attention of the transformer goes through, and its backends.

`supported` says by capability which backends a device may have, in the order of preference until `packforcing bench`
has measured another; `attention_named` gives one of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .errors import PackForcingError


class Attention(Protocol):
    """`attention(q, k, v)`: q [B, Lq, heads, head_dim], k and v [B, Lk, heads, head_dim] -> [B, Lq, heads, head_dim].

    Softmax of q.k / sqrt(head_dim) over all Lk keys, no mask: what may not be seen is not handed over.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own scaled dot product attention, by the kernel that PyTorch chooses."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


class Capability(NamedTuple):
    """What decides which backends can run: `architecture` is a GPU's (major, minor), (0, 0) elsewhere; `packages` are
    those of the backends' packages that are installed.
    """

    device_type: str
    architecture: tuple[int, int]
    dtype: torch.dtype
    head_dim: int
    packages: frozenset[str]

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, head_dim: int) -> Capability:
        """The capability of a device of this machine."""
        architecture = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        wanted = {backend.package for backend in BACKENDS.values() if backend.package}
        installed = frozenset(name for name in wanted if importlib.util.find_spec(name))
        return cls(device.type, architecture, dtype, head_dim, installed)


@dataclass(frozen=True)
class Backend:
    """An attention kernel. `exact` ones compute in the dtype that they are given, others in fewer bits.

    `architectures` is the half-open range of GPU architectures it runs on, None for every device.
    """

    build: Callable[[], Attention]
    package: str | None = None
    architectures: tuple[tuple[int, int], tuple[int, int]] | None = None
    exact: bool = True

    def runs_on(self, capability: Capability) -> bool:
        if self.package is not None and self.package not in capability.packages:
            return False
        if self.architectures is None:
            return True
        half = capability.dtype in (torch.bfloat16, torch.float16)
        lowest, above = self.architectures
        fits = capability.head_dim % 8 == 0 and capability.head_dim <= 128
        return capability.device_type == "cuda" and half and fits and lowest <= capability.architecture < above


_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def _ranked() -> bool:
    """Whether this PyTorch takes backends as a ranking; before 2.6 they are a set, and its own ranking holds."""
    return "set_priority" in inspect.signature(sdpa_kernel).parameters


def cudnn_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention with cuDNN's kernel ranked first: what that refuses, the next takes, instead of failing."""
    backends = {"set_priority": True} if _ranked() else {}
    with sdpa_kernel(_CUDNN_FIRST, **backends):
        return sdpa(q, k, v)


def _flash(package: str) -> Attention:
    function = importlib.import_module(package).flash_attn_func

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # Some releases give the log-sum-exp too.

    return flash


def _sage() -> Attention:
    function = importlib.import_module("sageattention").sageattn

    def sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return function(q, k, v, tensor_layout="NHD")

    return sage


AMPERE, HOPPER, BLACKWELL, ANY = (8, 0), (9, 0), (10, 0), (99, 0)

# In order of preference, exact ones.
BACKENDS = {
    "cudnn": Backend(lambda: cudnn_first, architectures=(AMPERE, ANY)),
    "flash3": Backend(lambda: _flash("flash_attn_interface"), "flash_attn_interface", (HOPPER, BLACKWELL)),
    "flash2": Backend(lambda: _flash("flash_attn"), "flash_attn", (AMPERE, ANY)),
    "sage": Backend(_sage, "sageattention", (AMPERE, ANY), exact=False),
    "sdpa": Backend(lambda: sdpa),
}


def prefers_cudnn(capability: Capability) -> bool:
    """Whether PyTorch's own ranking, which has FlashAttention 2 before cuDNN, leaves much on the table: Hopper and data
    centre Blackwell.
    """
    hopper = HOPPER <= capability.architecture < (11, 0)
    return hopper and capability.device_type == "cuda" and BACKENDS["cudnn"].runs_on(capability)


def supported(capability: Capability, exact: bool = True) -> tuple[str, ...]:
    """The backends that can run there, preferred first; with `exact`, without those that compute in fewer bits."""
    return tuple(name for name, b in BACKENDS.items() if b.runs_on(capability) and (b.exact or not exact))


def attention_named(name: str, capability: Capability) -> Attention:
    """The backend called `name`; "auto" is cuDNN where `prefers_cudnn`, else the first other that `supported` names.

    PackForcingError where it cannot run.
    """
    able = supported(capability, exact=False)
    if name == "auto":
        others = (other for other in supported(capability) if other != "cudnn")
        name = "cudnn" if prefers_cudnn(capability) else next(others)
    if name not in able:
        raise PackForcingError(
            f"Attention {name!r} cannot run here ({capability.device_type}, {capability.dtype}, packages "
            f"{', '.join(sorted(capability.packages)) or 'none'}); expected one of {', '.join(able)} or auto."
        )
    return BACKENDS[name].build()


def measured_order(names: tuple[str, ...], seconds: Callable[[str], float]) -> tuple[str, ...]:
    """`names` by what `seconds` measures for each, fastest first; a name that fails (RuntimeError) is left out."""
    times = {}
    for name in names:
        try:
            times[name] = seconds(name)
        except RuntimeError:
            continue
    return tuple(sorted(times, key=times.__getitem__))
