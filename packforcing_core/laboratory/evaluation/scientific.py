"""Imports the libraries that only the evaluation needs on first use, so that rendering does not require them."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from ...errors import PackForcingError


def library(module: str, package: str, use: str) -> ModuleType:
    """Imports a module of the `evaluation` extra. If it is missing, raises PackForcingError, which says what needs it
    and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PackForcingError(
            f"{use} needs {package}, which is not installed here ({error}); install it with: "
            f"pip install {package}, or all of the evaluation, in a git checkout, with: pip install '.[evaluation]'"
        ) from error


def ndimage() -> ModuleType:
    return library("scipy.ndimage", "scipy", "The checker of the toy world")


def opencv() -> ModuleType:
    return library("cv2", "opencv-python-headless", "Measuring a video (colours, optical flow)")


def assign(costs: np.ndarray) -> list[tuple[int, int]]:
    """Returns the min(N, M) pairs (row, column) of the assignment with minimum total cost, for costs [N, M]."""
    rows, columns = library("scipy.optimize", "scipy", "The checker of the toy world").linear_sum_assignment(costs)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
