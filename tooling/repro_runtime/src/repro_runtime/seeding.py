"""Seeds of the generators that libraries share within a process."""

import random

from repro_runtime.generators import checked_seed
from repro_runtime.notices import is_installed, warn_if_engine_is_another_process


def set_seed(seed: int) -> dict[str, int]:
    """Seed the global generators of Python, NumPy and torch, and return the seed that each of them got.

    NumPy and torch are imported where they are installed: a seed that a library misses because it is imported
    one line further down would be a trap. torch seeds all devices, CUDA as soon as it starts.

    Threads share these generators, so who draws first decides what it gets. A forked process repeats what its
    parent draws from NumPy and torch, but Python seeds its own generator anew there, at random: call it again
    in the fork, or use ``derive``. Not reached are generators that code makes for itself, such as
    ``numpy.random.default_rng()``, and the order of sets: PYTHONHASHSEED, before Python starts.

    seed: 0 to 2**64 - 1. NumPy takes 32 bits: a larger seed is folded, low half xor high half.
    Warns: EngineProcessWarning.
    """
    number = checked_seed(seed)
    random.seed(number)
    seeded = {"python": number}
    if is_installed("numpy"):
        import numpy as np

        seeded["numpy"] = (number ^ (number >> 32)) & (2**32 - 1)
        np.random.seed(seeded["numpy"])
    if is_installed("torch"):
        import torch

        seeded["torch"] = number
        torch.manual_seed(number)
    warn_if_engine_is_another_process("the seeded generators")
    return seeded
