from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from packforcing_core import devices
from packforcing_core.cache.bank import CompressedRows, CompressedShape
from packforcing_core.devices import has_complex, is_out_of_memory, usable_device, widest_float
from packforcing_core.rope import GridRope, rotate, rotate_into
from packforcing_core.sampler.denoising import denoise_block, without_noise
from packforcing_core.sampler.schedule import Schedule
from tests.core.cache.test_replay import POLICIES
from tests.exactness import DEEP, SHALLOW, steps_off
from tests.small import render_latents

REFUSAL = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."


class WithoutFloat64(TorchDispatchMode):
    """`meta` stands in for a device such as Apple's: nothing there can be float64, and saying so is a TypeError."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_meta and result.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return result


@pytest.fixture
def without_float64():
    devices._widest_float.cache_clear()
    with WithoutFloat64():
        yield torch.device("meta")
    devices._widest_float.cache_clear()


def test_a_step_is_computed_in_float32_where_there_is_no_float64(without_float64):
    x = torch.ones(1, 16, 3, 4, 4, device=without_float64)
    with pytest.raises(TypeError, match="float64"):
        x.double()
    assert widest_float(without_float64) == torch.float32
    assert without_noise(x, x.bfloat16(), 0.5).dtype == torch.float32


class WithoutComplex(TorchDispatchMode):
    """No complex number is computed with: tables may be made of them, on the host, and taken apart there."""

    TABLES = ("polar", "_to_copy", "unsqueeze", "view_as_real", "detach", "view")

    def __init__(self, device=None):
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_complex():
            made = function._schema.name.removeprefix("aten::")
            if made not in self.TABLES or (self._device and result.device.type == self._device):
                raise TypeError(f"Trying to convert ComplexFloat to this backend, which does not have it ({made}).")
        return result


@pytest.fixture
def without_complex(request):
    devices._has_complex.cache_clear()
    with WithoutComplex("meta"):
        yield torch.device("meta")
    devices._has_complex.cache_clear()


def test_keys_are_rotated_where_there_are_neither_complex_numbers_nor_float64(without_complex, without_float64):
    assert not has_complex(without_complex)
    rope = GridRope(64, (2, 3), without_complex)
    turned = rope.frames([0, 1, 5.5])
    assert turned.shape == (18, 1, 32, 2)
    x = torch.ones(1, 18, 2, 64, device=without_complex, dtype=torch.bfloat16)
    assert rotate(x, turned).shape == x.shape
    rotate_into(torch.empty_like(x), x, rope.frame_times([3, 4, 5]))
    with pytest.raises(TypeError, match="ComplexFloat"):
        torch.view_as_complex(torch.zeros(1, 2, device=without_complex))


def test_without_complex_numbers_a_rotation_is_the_same(monkeypatch):
    x = torch.randn(1, 18, 2, 64, generator=torch.Generator().manual_seed(0))
    with_them = rotate(x, GridRope(64, (2, 3)).frames([0, 7, 100_000.25]))
    monkeypatch.setattr(devices, "_has_complex", lambda device: False)
    off = steps_off(rotate(x, GridRope(64, (2, 3)).frames([0, 7, 100_000.25])), with_them)
    print(f"{off:.1f} rounding steps")
    assert off < SHALLOW


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_every_policy_renders_without_complex_numbers(monkeypatch, policy):
    ordinary = torch.cat(render_latents(policy, 6))
    monkeypatch.setattr(devices, "_has_complex", lambda device: False)
    with WithoutComplex():
        made = torch.cat(render_latents(policy, 6))
    off = steps_off(made, ordinary)
    print(f"{off:.1f} rounding steps")
    assert off < 8 * DEEP


def test_a_device_is_the_one_that_its_tensors_name(monkeypatch):
    class OnTheFirst:
        device = torch.device("cuda", 0)

        def item(self) -> float:
            return 0.0

    assert usable_device("cpu") == torch.zeros(1).device
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: OnTheFirst())
    assert usable_device("cuda") == torch.device("cuda:0")


def test_elsewhere_a_step_is_computed_in_float64():
    assert widest_float("cpu") == torch.float64
    x, flow = torch.randn(2, 1, 16, 3, 4, 4)
    exact = x.double() - 0.9375 * flow.double()
    assert torch.equal(without_noise(x, flow, 0.9375), exact.float())
    print(f"{(without_noise(x, flow, 0.9375) - (x - 0.9375 * flow)).abs().max():.1e} from float32")


def test_a_tensor_that_cannot_double_is_denoised():
    class OnMps(torch.Tensor):
        def double(self):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )

    class Model:
        device = "cpu"

        def flow(self, x, *_):
            return torch.zeros_like(x)

    x = torch.randn(1, 16, 3, 4, 4)
    steps = denoise_block(Model(), [], None, lambda block, step: x.as_subclass(OnMps), Schedule((1000.0,), (1.0,)), 0)
    assert len(list(steps)) == 1


@pytest.mark.parametrize("device", ["mps", "xpu", "privateuseone"])
def test_a_bank_in_host_memory_needs_no_cudart(monkeypatch, device):
    def missing():
        raise RuntimeError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "cudart", missing)
    rows = CompressedRows(CompressedShape(1, 2, 1, 4, torch.float32), 3, "ram", torch.device(device))
    assert rows.nbytes == 3 * 8 * 4


def test_a_pin_that_fails_leaves_no_error_for_the_next_kernel(monkeypatch):
    pending, ran = [], []
    zeros = torch.zeros

    class Cudart:
        def cudaHostRegister(self, *_):  # noqa: N802, CUDA's name
            pending.append(2)
            return 2

    def kernel(*sizes, device="cpu", **options):
        ran.append(device)
        if str(device).startswith("cuda") and pending:
            pending.clear()  # CUDA tells a kept error once
            raise RuntimeError("CUDA error: out of memory")
        return zeros(*sizes, **options)

    monkeypatch.setattr(torch.cuda, "cudart", Cudart)
    monkeypatch.setattr(torch, "zeros", kernel)
    CompressedRows(CompressedShape(1, 2, 1, 4, torch.float32), 3, "ram", torch.device("cuda"))
    assert ran == [torch.device("cuda")]
    assert torch.zeros(1, device="cuda").sum() == 0


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "HIP out of memory. Tried to allocate 512.00 MiB",
        "HIP error: out of memory",
        "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate`",
        "MPS backend out of memory (MPS allocated: 17.5 GB, other allocations: 1.2 GB, max allowed: 18.1 GB)",
        "XPU out of memory. Tried to allocate 1.00 GiB",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "Could not allocate tensor with 4194304 bytes. There is not enough GPU video memory available!",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes.",
        "std::bad_alloc",
    ],
)
def test_full_memory_is_known_in_every_wording(words):
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(ValueError(words))


def test_other_errors_are_not_taken_for_full_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    for words in ("CUDA error: an illegal memory access was encountered", "shape mismatch", "device-side assert"):
        assert not is_out_of_memory(RuntimeError(words))
