"""The `attention` interface: the function that computes all attention of the transformer, and its backends.

`supported` lists the backends that a device can run, in the order of preference; `packforcing bench` can measure
another order. `attention_named` returns one of them.
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

    Softmax of q.k / sqrt(head_dim) over all Lk keys, without a mask: keys that must not be seen are not passed.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's scaled dot product attention, with the kernel that PyTorch chooses."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


class Capability(NamedTuple):
    """What decides which backends can run. `architecture` is a GPU's (major, minor), (0, 0) elsewhere; `packages` are
    the installed packages of the backends.
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
    """An attention kernel. `exact` ones compute in the given dtype, others in fewer bits.

    `architectures` is the half-open range of GPU architectures that it supports, None for every device.
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
    """Whether this PyTorch accepts a ranking of backends; before 2.6 it takes a set and uses its own ranking."""
    return "set_priority" in inspect.signature(sdpa_kernel).parameters


def cudnn_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention with cuDNN's kernel first; if it does not support the inputs, the next backend is used."""
    backends = {"set_priority": True} if _ranked() else {}
    with sdpa_kernel(_CUDNN_FIRST, **backends):
        return sdpa(q, k, v)


def _flash(package: str) -> Attention:
    function = importlib.import_module(package).flash_attn_func

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # Some releases also return the log-sum-exp.

    return flash


def _sage() -> Attention:
    function = importlib.import_module("sageattention").sageattn

    def sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return function(q, k, v, tensor_layout="NHD")

    return sage


AMPERE, HOPPER, BLACKWELL, ANY = (8, 0), (9, 0), (10, 0), (99, 0)

# In order of preference, exact ones first.
BACKENDS = {
    "cudnn": Backend(lambda: cudnn_first, architectures=(AMPERE, ANY)),
    "flash3": Backend(lambda: _flash("flash_attn_interface"), "flash_attn_interface", (HOPPER, BLACKWELL)),
    "flash2": Backend(lambda: _flash("flash_attn"), "flash_attn", (AMPERE, ANY)),
    "sage": Backend(_sage, "sageattention", (AMPERE, ANY), exact=False),
    "sdpa": Backend(lambda: sdpa),
}


def prefers_cudnn(capability: Capability) -> bool:
    """Whether cuDNN is much faster than PyTorch's first choice, FlashAttention 2: on Hopper and data centre
    Blackwell.
    """
    hopper = HOPPER <= capability.architecture < (11, 0)
    return hopper and capability.device_type == "cuda" and BACKENDS["cudnn"].runs_on(capability)


def supported(capability: Capability, exact: bool = True) -> tuple[str, ...]:
    """The backends that can run on this device, preferred first; with `exact`, without those that compute in fewer
    bits.
    """
    return tuple(name for name, b in BACKENDS.items() if b.runs_on(capability) and (b.exact or not exact))


def attention_named(name: str, capability: Capability) -> Attention:
    """The backend called `name`. "auto" is cuDNN if `prefers_cudnn`, else the first other one in `supported`.

    Raises PackForcingError if it cannot run here.
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
    """`names` sorted by the time that `seconds` measures, fastest first; a name that raises RuntimeError is
    left out.
    """
    times = {}
    for name in names:
        try:
            times[name] = seconds(name)
        except RuntimeError:
            continue
    return tuple(sorted(times, key=times.__getitem__))
