"""Evaluates a video: its properties, measures, scores of pretrained models, and the checker's report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...miniature.world import HEIGHT, WIDTH
from ...video.reader import VideoInfo, probe, read_frames
from .imagenet import ImageNet, ImageNetScores, Watcher
from .little_world.checker import check_video
from .little_world.promise import belongs
from .little_world.report import WorldReport
from .measures import Measures, measure
from .models import Models, ModelScores
from .observe import Observations, observe
from .vbench_scores import vbench_scores

PICTURES_PER_SECOND = 2.0  # sampled for CLIP, DINO and ImageNet features
SHEET_PICTURES = 8


@dataclass(frozen=True)
class FilmEvaluation:
    """The evaluation of one video. `world` is None if the prompt is not one of the toy world. `pictures` are (frame
    number, uint8 [H, W, 3]), evenly spaced from the first frame to the last. `notes` say what could not be measured.
    """

    name: str
    prompt: str | None
    info: VideoInfo
    measures: Measures
    seen: Observations
    pictures: tuple[tuple[int, np.ndarray], ...]
    world: WorldReport | None = None
    models: ModelScores | None = None
    imagenet: ImageNetScores | None = None
    vbench: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict:
        return {
            "file": self.name,
            "prompt": self.prompt,
            "width": self.info.width,
            "height": self.info.height,
            "fps": float(self.info.fps),
            **self.measures.as_dict(),
            "little_world": self.world.as_dict() if self.world else None,
            "models": self.models.as_dict() if self.models else None,
            "imagenet": self.imagenet.as_dict() if self.imagenet else None,
            "vbench": self.vbench or None,
            "notes": list(self.notes),
        }


def evaluate_film(
    path: Path | str,
    prompt: str | None = None,
    models: Models | None = None,
    vbench_dimensions: tuple[str, ...] | list[str] = (),
    imagenet: ImageNet | None = None,
) -> FilmEvaluation:
    """Evaluates a video file. Reads it once, or twice if the checker applies. Raises VideoError if it
    cannot be read.
    """
    path = Path(path)
    info = probe(path)
    fps = float(info.fps)
    on_sheet = set(np.linspace(0, info.frames - 1, min(SHEET_PICTURES, info.frames)).round().astype(int).tolist())
    interval = max(1, round(fps / PICTURES_PER_SECOND))
    sheet: list[tuple[int, np.ndarray]] = []
    looked_at: list[tuple[int, np.ndarray]] = []
    watcher = Watcher(imagenet) if imagenet else None

    def watched() -> Iterator[np.ndarray]:
        for number, frame in enumerate(read_frames(path)):
            if number in on_sheet:
                sheet.append((number, frame))
            if models and number % interval == 0:
                looked_at.append((number, frame))
            if watcher and number % interval == 0:
                watcher.look(number / fps, frame)
            yield frame

    seen = observe(watched(), fps)
    world, notes = _world(path, info, prompt)
    scores = None
    if models:
        seconds = [number / fps for number, _ in looked_at]
        scores = models.score([picture for _, picture in looked_at], seconds, prompt)
    vbench, unmeasured = vbench_scores(path, vbench_dimensions)
    notes = (*notes, *unmeasured)
    features = watcher.scores(len(seen.lab) / fps) if watcher else None
    return FilmEvaluation(
        path.name, prompt, info, measure(seen), seen, tuple(sheet), world, scores, features, vbench, notes
    )


def _world(path: Path, info: VideoInfo, prompt: str | None) -> tuple[WorldReport | None, tuple[str, ...]]:
    if prompt is None or not belongs(prompt):
        return None, ()
    zoom = info.width // WIDTH
    if (info.width, info.height) != (zoom * WIDTH, zoom * HEIGHT) or zoom < 1:
        size = f"{info.width} x {info.height}"
        told = f"{path.name}: the checker needs {WIDTH} x {HEIGHT} pixels or a whole multiple; this video has {size}."
        return None, (told,)
    return check_video((unzoomed(frame, zoom) for frame in read_frames(path)), prompt), ()


def unzoomed(frame: np.ndarray, zoom: int) -> np.ndarray:
    """Downscales a frame uint8 [zoom x H, zoom x W, 3], whose pixels were repeated `zoom` times, to [H, W, 3] by
    averaging.
    """
    if zoom == 1:
        return frame
    height, width = (size // zoom for size in frame.shape[:2])
    squares = frame.reshape(height, zoom, width, zoom, 3).mean(axis=(1, 3))
    return np.rint(squares).astype(np.uint8)
