"""Work that is queued on CUDA devices without the host waiting: copies of small tensors, side streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

Moment = tuple[torch.cuda.Event, ...]
"""The completion of all work queued so far on the streams of a `SideStream`."""


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on `device`. From CPU to CUDA it is copied through pinned memory, so that the copy is queued like
    other work.
    """
    device = torch.device(device)
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


class SideStream:
    """A separate stream on each CUDA device among `devices`; on other devices work runs directly."""

    def __init__(self, *devices: torch.device):
        self._streams = [torch.cuda.Stream(d) for d in dict.fromkeys(devices) if d.type == "cuda"]

    @contextmanager
    def beside(self, *tensors: Tensor) -> Iterator[None]:
        """Work that waits for everything queued before it on these devices, and that later work does not wait for.
        `tensors` are inputs that other streams made.
        """
        if not self._streams:
            yield
            return
        others = [torch.cuda.current_stream(stream.device) for stream in self._streams]
        with ExitStack() as entered:
            for stream in self._streams:
                for other in others:
                    stream.wait_stream(other)
            self.lend(*tensors)
            for stream in reversed(self._streams):  # Inside, the first device is the current one.
                entered.enter_context(torch.cuda.stream(stream))
            yield

    def lend(self, *tensors: Tensor) -> None:
        """Allows all work queued here from now on to read `tensors`, which other streams made: if they are freed, their
        memory is kept until that work is done.
        """
        for tensor in tensors:
            for stream in self._streams if tensor.is_cuda else ():
                tensor.record_stream(stream)

    def mark(self) -> Moment:
        """The completion of all work queued so far."""
        return tuple(stream.record_event() for stream in self._streams)

    def wait(self, moment: Moment) -> None:
        """Makes work queued after this call, on any of the devices, wait for `moment`."""
        for stream in self._streams:
            for event in moment:
                torch.cuda.current_stream(stream.device).wait_event(event)

    def hand_over(self, tensor: Tensor) -> Tensor:
        """Passes `tensor`, made on the side stream, to the current stream: its memory is kept while work queued there
        needs it.
        """
        if self._streams and tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return tensor
