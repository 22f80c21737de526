"""Named random generators, children of one root seed: which of them are used, and when, moves no other.

Surface and values are those of AIPerf's generators.

Threads: a generator is not for two threads at once, because who draws first would decide; derive one each.
Processes: a forked process goes on with copies, so it repeats what its parent draws; derive one for each. A
spawned process starts without a root and calls ``init`` itself.
"""

import hashlib
import math
import operator
import random
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike

T = TypeVar("T")

_MASK_63 = 2**63 - 1
_MAX_TRIES = 10_000


class InvalidStateError(RuntimeError):
    """``derive`` before ``init``, or ``init`` twice."""


@dataclass(frozen=True, slots=True, eq=False)
class _Root:
    seed: int | None


# One key: setting it is a single step in every thread, and there is no lock that a fork could leave closed.
_STATE: dict[str, _Root] = {}


def init(seed: int | None) -> None:
    """Set the root seed, once a process. The libraries' own generators are for ``set_seed``.

    seed: 0 to 2**64 - 1; None for generators that do not repeat.
    Raises: InvalidStateError when there is a root already.
    """
    root = _Root(None if seed is None else checked_seed(seed))
    if _STATE.setdefault("root", root) is not root:
        raise InvalidStateError("init was called before; call reset first where another root is meant")


def derive(identifier: str) -> "RandomGenerator":
    """Return a new generator, the child of the root that ``identifier`` names, at its first value.

    Its seed is the first 8 bytes, big-endian, of sha256(f"{root}:{identifier}").

    identifier: dotted, one for each use, such as ``dataset.prompt.length``; the same name again starts over.
    Raises: InvalidStateError before ``init``.
    """
    root = _STATE.get("root")
    if root is None:
        raise InvalidStateError("there is no root seed yet; call init(seed) once, when the program starts")
    if root.seed is None:
        return RandomGenerator(None)
    digest = hashlib.sha256(f"{root.seed}:{identifier}".encode()).digest()
    return RandomGenerator(int.from_bytes(digest[:8], "big"))


def reset() -> None:
    """Forget the root seed; generators that were derived from it go on as they are."""
    _STATE.clear()


def checked_seed(seed: int) -> int:
    """Return ``seed`` as an int, NumPy's integers included. Raises: TypeError, ValueError."""
    number = operator.index(seed)
    if not 0 <= number < 2**64:
        raise ValueError(f"a seed is 0 to 2**64 - 1, not {number}")
    return number


class RandomGenerator:
    """Python's generator for single values and NumPy's for arrays, of one seed; neither moves the other.

    ``shuffle``, ``integers``, ``numpy_choice``, ``normal`` and ``random_batch`` draw from NumPy's, which is
    made when first needed, the others from Python's. NumPy's values may change with a release of it.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._python = random.Random(seed)  # noqa: S311  has to repeat, not to be secret
        self._numpy: np.random.Generator | None = None

    def __repr__(self) -> str:
        return f"RandomGenerator(seed={self._seed})"

    @property
    def seed(self) -> int | None:
        """The seed, 64 bits; None where the root is None."""
        return self._seed

    @property
    def seed63(self) -> int | None:
        """``seed`` without its highest bit: vLLM and torch take seeds as signed 64 bits."""
        return None if self._seed is None else self._seed & _MASK_63

    @property
    def numpy(self) -> "np.random.Generator":
        """NumPy's generator of this seed, for everything that has no method here."""
        if self._numpy is None:
            import numpy as np

            self._numpy = np.random.default_rng(self._seed)
        return self._numpy

    def random(self) -> float:
        return self._python.random()

    def uniform(self, a: float, b: float) -> float:
        return self._python.uniform(a, b)

    def randint(self, a: int, b: int) -> int:
        return self._python.randint(a, b)

    def randrange(self, *args: int) -> int:
        return self._python.randrange(*args)

    def choice(self, seq: Sequence[T]) -> T:
        return self._python.choice(seq)

    def choices(self, population: Sequence[T], k: int) -> list[T]:
        return self._python.choices(population, k=k)

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        return self._python.sample(population, k)

    def expovariate(self, lambd: float) -> float:
        return self._python.expovariate(lambd)

    def gammavariate(self, alpha: float, beta: float) -> float:
        return self._python.gammavariate(alpha, beta)

    def sample_normal(
        self, mean: float, stddev: float, lower: float = -math.inf, upper: float = math.inf
    ) -> float:
        """Return a normal value within the bounds; where 10,000 draws hit none, the mean moved into them."""
        if lower > upper:
            raise ValueError(f"lower = {lower} is above upper = {upper}")
        draws = (self._python.gauss(mean, stddev) for _ in range(_MAX_TRIES))
        return next((value for value in draws if lower <= value <= upper), max(lower, min(upper, mean)))

    def sample_positive_normal(self, mean: float, stddev: float) -> float:
        if mean < 0:
            raise ValueError(f"mean = {mean} is below 0")
        return self.sample_normal(mean, stddev, lower=0)

    def sample_positive_normal_integer(self, mean: float, stddev: float) -> int:
        """Return a normal value rounded up, 1 at least; the rounded mean where there is no deviation."""
        if stddev <= 0:
            return max(1, round(mean))
        return max(1, math.ceil(self.sample_positive_normal(mean, stddev)))

    def shuffle(self, x: MutableSequence[Any]) -> None:
        self.numpy.shuffle(x)

    def integers(
        self,
        low: int,
        high: int | None = None,
        size: int | tuple[int, ...] | None = None,
        dtype: "DTypeLike" = "int64",
    ) -> Any:
        return self.numpy.integers(low, high, size=size, dtype=dtype)

    def numpy_choice(
        self,
        a: "ArrayLike",
        size: int | tuple[int, ...] | None = None,
        p: Sequence[float] | None = None,
        replace: bool = True,
    ) -> Any:
        generator: Any = self.numpy  # none of its overloads takes both a size and none
        return generator.choice(a, size=size, p=p, replace=replace)

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: int | tuple[int, ...] | None = None) -> Any:
        return self.numpy.normal(loc, scale, size)

    def random_batch(self, size: int) -> Any:
        return self.numpy.random(size)
