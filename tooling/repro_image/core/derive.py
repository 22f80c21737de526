"""Named children of one root seed: the only source of randomness.

The derivation is the one that AIPerf uses. A changed formula is a declared reseed of every suite.
"""

import hashlib
import random

_MASK_63 = 2**63 - 1
# Synthetic prompts draw from here: above every vocabulary's special and byte tokens, below the end of every
# vocabulary of at least 40,000 tokens.
_SYNTHETIC_IDS = range(1000, 40_000)


def derive(root: int, identifier: str) -> int:
    """Return the child of ``root`` that ``identifier`` names, 64 bits.

    The first 8 bytes, big-endian, of sha256(f"{root}:{identifier}").
    """
    return int.from_bytes(hashlib.sha256(f"{root}:{identifier}".encode()).digest()[:8], "big")


def derive63(root: int, identifier: str) -> int:
    """Return ``derive`` without its highest bit: vLLM and torch take seeds as signed 64 bits."""
    return derive(root, identifier) & _MASK_63


def synthetic_ids(seed: int, length: int) -> tuple[int, ...]:
    """Return ``length`` token ids drawn by ``seed``.

    Only ``random()`` is used: of all methods it alone is promised to stay the same between Pythons.
    """
    rng = random.Random(seed)  # noqa: S311  has to repeat, not to be secret
    low, span = _SYNTHETIC_IDS.start, len(_SYNTHETIC_IDS)
    return tuple(low + int(rng.random() * span) for _ in range(length))
