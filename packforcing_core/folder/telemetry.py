"""One JSON line per event of a render, appended as it happens: time, memory, selection, drift."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .files import FolderError

NAME = "telemetry.jsonl"
LONGEST_LINE = 1_000_000


class Telemetry:
    """Appends to a file and reads it back; an incomplete last line after a crash is skipped."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._reference: tuple[float, ...] | None = None

    def append(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, **values})
        try:
            with open(self.path, "a+b") as file:
                file.seek(0, 2)
                torn = file.tell() > 0 and not _ends_line(file)
                file.write((b"\n" if torn else b"") + line.encode("utf-8") + b"\n")
        except OSError as error:
            raise FolderError(f"{self.path} cannot be written: {error}. Run the same again to resume.") from error

    def film(self, block: int, take: int, frames: np.ndarray) -> None:
        """Records colour (mean RGB) and contrast (standard deviation of brightness) of a block's frames uint8 [T, H, W,
        3], and their drift from block 0, all in 0..255.
        """
        pixels = frames.astype(np.float32)
        measured = (*pixels.mean(axis=(0, 1, 2)).tolist(), float(pixels.mean(axis=-1).std()))
        if block == 0:
            self._reference = measured
        reference = self._reference or self._first_block() or measured
        drift = [round(abs(now - then), 3) for now, then in zip(measured, reference, strict=True)]
        *colour, contrast = (round(value, 3) for value in measured)
        self.append("film", block=block, take=take, colour=colour, contrast=contrast, drift=drift)

    def lines(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            while raw := file.readline(LONGEST_LINE):
                try:
                    line = json.loads(raw)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict):
                    yield line

    def _first_block(self) -> tuple[float, ...] | None:
        for line in self.lines():
            if line.get("event") == "film" and line.get("block") == 0:
                match line:
                    case {"colour": [float(r), float(g), float(b)], "contrast": float(contrast)}:
                        self._reference = r, g, b, contrast
                        return self._reference
        return None


def _ends_line(file) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"
