"""Work that is queued on CUDA devices without the host waiting for it: small tensors on their way, side streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

Moment = tuple[torch.cuda.Event, ...]
"""When all that was queued on the streams of a `SideStream` is done."""


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on `device`. From the host to a CUDA device through pinned memory: the copy is queued like any other work."""
    device = torch.device(device)
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


class SideStream:
    """A stream of its own on each CUDA device among `devices`; elsewhere work just runs."""

    def __init__(self, *devices: torch.device):
        self._streams = [torch.cuda.Stream(d) for d in dict.fromkeys(devices) if d.type == "cuda"]

    @contextmanager
    def beside(self, *tensors: Tensor) -> Iterator[None]:
        """Work that waits for what was queued before it on these devices, and that nothing after it waits for;
        `tensors` are what it reads of what others made.
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
            for stream in reversed(self._streams):  # The first device is the current one inside.
                entered.enter_context(torch.cuda.stream(stream))
            yield

    def lend(self, *tensors: Tensor) -> None:
        """`tensors`, made by others, for all that is queued here from now on: freed, their memory stays until it is
        done.
        """
        for tensor in tensors:
            for stream in self._streams if tensor.is_cuda else ():
                tensor.record_stream(stream)

    def mark(self) -> Moment:
        """The moment at which all work until now is done."""
        return tuple(stream.record_event() for stream in self._streams)

    def wait(self, moment: Moment) -> None:
        """Work queued from here on, on any of the devices, waits for `moment`."""
        for stream in self._streams:
            for event in moment:
                torch.cuda.current_stream(stream.device).wait_event(event)

    def hand_over(self, tensor: Tensor) -> Tensor:
        """`tensor`, made beside, for the current stream: its memory stays as long as work queued there needs it."""
        if self._streams and tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return tensor
