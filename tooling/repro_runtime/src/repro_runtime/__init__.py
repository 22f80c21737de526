"""Helpers for code that has to repeat: seeds, named generators, no autotuning, and what the process runs on.

Needs the standard library only; NumPy, torch and vLLM are looked after where they are installed.
"""

from repro_runtime.generators import InvalidStateError, RandomGenerator, derive, init, reset
from repro_runtime.notices import EngineProcessWarning, TooLateWarning
from repro_runtime.process import Fingerprint, fingerprint
from repro_runtime.seeding import set_seed
from repro_runtime.switches import Change, Switched, disable_auto_optimization

__all__ = [
    "Change",
    "EngineProcessWarning",
    "Fingerprint",
    "InvalidStateError",
    "RandomGenerator",
    "Switched",
    "TooLateWarning",
    "derive",
    "disable_auto_optimization",
    "fingerprint",
    "init",
    "reset",
    "set_seed",
]
