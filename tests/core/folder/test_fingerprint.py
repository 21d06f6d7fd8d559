"""Fingerprints of functions and objects, as other packs' nodes put them on a MODEL."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch

from packforcing_core.folder.fingerprint import fingerprint


class Attention(torch.nn.Module):
    def __init__(self, strength: float):
        super().__init__()
        self.strength, self.inner = strength, torch.nn.Linear(2, 2)

    def forward(self, q):
        return q * self.strength


@dataclass(slots=True)
class Slotted:
    strength: float


@dataclass
class Called:
    strength: float

    def __call__(self, q):
        return q * self.strength


def weighted(strength: float, *, negated: bool = False) -> Callable:
    """One of two functions of one name over a value."""
    if negated:

        def attention(q):
            return -q * strength
    else:

        def attention(q):
            return q * strength

    return attention


def over(value) -> Callable:
    return lambda q: (q, value)


def with_unset_cell(strength: float) -> Callable:
    def attention(q):
        return never(q) if q is None else q * strength

    if strength > 100:

        def never(q):
            return q

    return attention


MADE = {
    "a function": weighted,
    "not compiled": lambda value: torch.compiler.disable()(weighted(value)),
    "a partial": lambda value: partial(weighted(1.0), value),
    "bound to a layer": lambda value: MethodType(weighted(value), torch.nn.Linear(1, 1)),
    "a module's method": lambda value: Attention(value).forward,
    "an object": Called,
    "an object's method": lambda value: Called(value).__call__,
    "slots": lambda value: over(Slotted(value)),
    "an array": lambda value: over(np.full(3, value)),
    "a number of NumPy": lambda value: over(np.float32(value)),
    "a complex number": lambda value: over(complex(value)),
    "a dtype": lambda value: over(torch.float16 if value > 0.5 else torch.float32),
    "a nested list": lambda value: over([{"a": [value]}]),
    "a wrapped function": lambda value: torch.no_grad()(weighted(value)),
    "an unset cell": with_unset_cell,
}


@pytest.mark.parametrize("kind", MADE)
def test_what_another_value_gives_is_another_and_the_same_is_the_same(kind: str):
    one, same, other = (fingerprint({"attention": MADE[kind](value)}) for value in (1.0, 1.0, 0.5))
    assert one == same
    assert one != other


def test_functions_of_one_name_count_by_their_code():
    assert fingerprint(weighted(1.0)) != fingerprint(weighted(1.0, negated=True))
    assert fingerprint(over(torch.add)) != fingerprint(over(torch.mul))


def test_weights_of_a_module_and_what_is_opaque_do_not_count():
    assert fingerprint(Attention(1.0).forward) == fingerprint(Attention(1.0).eval().forward)
    one, other = Called(1.0), Called(2.0)
    assert fingerprint(over(one), opaque=lambda x: x is one) == fingerprint(over(other), opaque=lambda x: x is other)


def test_a_function_that_is_not_compiled_has_the_same_after_its_use():
    used = torch.compiler.disable()(weighted(2.0))
    before = fingerprint(used)
    used(torch.ones(1))
    assert fingerprint(used) == before


def test_what_contains_itself_and_what_leads_everywhere_comes_to_an_end():
    ring: list = [1]
    ring.append(ring)
    twins = Called(1.0)
    twins.other = twins
    started = time.process_time()
    names = [fingerprint(over(content)) for content in (ring, twins, torch, logging.getLogger(), sys.modules, pytest)]
    took = time.process_time() - started
    print(f"{took:.2f} s")
    assert len(set(names)) == len(names)


PROGRAM = """
from tests.core.folder.test_fingerprint import MADE
from packforcing_core.folder.fingerprint import fingerprint
print(fingerprint([MADE[kind](1.0) for kind in MADE] + [{"a", "b"}, {object(): 1}, {len, print}]))
"""


def test_every_process_gives_the_same():
    root = Path(__file__).parents[3]
    told = {
        subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(told) == 1
