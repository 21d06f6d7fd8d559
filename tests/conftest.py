from __future__ import annotations

import torch
from hypothesis import settings

# The tests' tensors are tiny: a second thread only waits for the first, for seconds where other work runs beside.
torch.set_num_threads(1)

# No deadline: a busy machine is not a bug. The same examples in every run: a failure can be had again.
settings.register_profile("packforcing", deadline=None, derandomize=True, database=None)
settings.load_profile("packforcing")
