"""Named children of one root seed: the only source of randomness.

The derivation is the one that AIPerf uses. A changed formula is a declared reseed of every suite.
"""

import hashlib

_MASK_63 = 2**63 - 1


def derive(root: int, identifier: str) -> int:
    """Return the child of ``root`` that ``identifier`` names, 64 bits.

    The first 8 bytes, big-endian, of sha256(f"{root}:{identifier}").
    """
    return int.from_bytes(hashlib.sha256(f"{root}:{identifier}".encode()).digest()[:8], "big")


def derive63(root: int, identifier: str) -> int:
    """Return ``derive`` without its highest bit: vLLM and torch take seeds as signed 64 bits."""
    return derive(root, identifier) & _MASK_63
