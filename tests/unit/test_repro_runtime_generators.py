"""repro_runtime.init, derive and reset: the values are those of AIPerf 0.13.0, recorded from it."""

import json
import math
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import repro_runtime
from repro_image.core.derive import derive, derive63
from repro_runtime import InvalidStateError, RandomGenerator
from tests.unit.fresh_python import python

NAME = "dataset.prompt.length"
RECORDED: dict[str, tuple[Callable[[RandomGenerator], Any], Any]] = {
    "random": (lambda rng: [rng.random(), rng.random()], [0.02451368295679235, 0.402649463158102]),
    "choice": (lambda rng: [rng.choice("abcdefgh") for _ in range(6)], list("agcedb")),
    "randrange": (lambda rng: [rng.randrange(1000), rng.randrange(5, 50, 5)], [25, 35]),
    "randint": (lambda rng: [rng.randint(1, 1000) for _ in range(3)], [26, 852, 413]),
    "uniform": (
        lambda rng: [rng.uniform(-1.0, 1.0), rng.uniform(-1.0, 1.0)],
        [-0.9509726340864153, -0.19470107368379597],
    ),
    "choices": (lambda rng: rng.choices(range(100), k=4), [2, 40, 25, 76]),
    "sample": (lambda rng: rng.sample(range(100), 4), [3, 51, 16, 32]),
    "expovariate": (lambda rng: rng.expovariate(2.0), 0.012409572813025292),
    "gammavariate": (lambda rng: rng.gammavariate(2.0, 3.0), 0.7153177556574826),
    "sample_normal": (
        lambda rng: [rng.sample_normal(0.0, 1.0, lower=0.5, upper=1.5) for _ in range(3)],
        [1.0031191573774527, 0.7863179450846244, 0.5470646049901419],
    ),
    "out of reach": (lambda rng: rng.sample_normal(0.0, 1.0, lower=50.0, upper=51.0), 50.0),
    "sample_positive_normal": (
        lambda rng: [rng.sample_positive_normal(100.0, 80.0) for _ in range(3)],
        [180.24953259019622, 112.45903473099693, 95.13006955970488],
    ),
    "sample_positive_normal_integer": (
        lambda rng: [rng.sample_positive_normal_integer(100, 10) for _ in range(4)],
        [111, 102, 100, 118],
    ),
    "no deviation": (lambda rng: rng.sample_positive_normal_integer(0.2, 0), 1),
    "integers": (lambda rng: rng.integers(0, 1000, size=5).tolist(), [437, 172, 612, 240, 883]),
    "one integer": (lambda rng: int(rng.integers(1000)), 437),
    "numpy_choice": (
        lambda rng: rng.numpy_choice(50, size=5, replace=False).tolist(),
        [29, 44, 20, 8, 11],
    ),
    "weighted": (
        lambda rng: rng.numpy_choice([10, 20, 30], size=5, p=[0.1, 0.2, 0.7]).tolist(),
        [20, 20, 30, 20, 30],
    ),
    "normal": (
        lambda rng: rng.normal(5.0, 2.0, size=3).tolist(),
        [6.527805249787111, 6.995755862925017, 2.7982922766576928],
    ),
    "random_batch": (
        lambda rng: rng.random_batch(3).tolist(),
        [0.1725716848012847, 0.2403760788990258, 0.7146260777682318],
    ),
    "shuffle": (lambda rng: shuffled(rng, list(range(8))), [1, 2, 3, 4, 0, 5, 7, 6]),
}


def shuffled(rng: RandomGenerator, values: list[int]) -> list[int]:
    rng.shuffle(values)
    return values


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    repro_runtime.reset()
    repro_runtime.init(42)
    yield
    repro_runtime.reset()


def test_children_of_root_42_are_the_published_ones() -> None:
    assert repro_runtime.derive(NAME).seed == 7521479737366565015
    assert repro_runtime.derive("models.sequence.distribution").seed == 18078751361696701669


@pytest.mark.parametrize("name", RECORDED)
def test_a_child_gives_the_values_that_aiperf_gives(name: str) -> None:
    draw, expected = RECORDED[name]
    assert draw(repro_runtime.derive(NAME)) == expected


@given(root=st.integers(0, 2**64 - 1), identifier=st.text(max_size=40))
def test_it_is_the_derivation_of_the_suites(root: int, identifier: str) -> None:
    repro_runtime.reset()
    repro_runtime.init(root)
    child = repro_runtime.derive(identifier)
    assert (child.seed, child.seed63) == (derive(root, identifier), derive63(root, identifier))


def test_a_name_derived_again_starts_over() -> None:
    first = repro_runtime.derive(NAME)
    drawn = [first.random() for _ in range(3)]
    again = repro_runtime.derive(NAME)
    assert [again.random() for _ in range(3)] == drawn
    assert first.random() not in drawn


@given(order=st.lists(st.sampled_from(["a", "b", "c"]), max_size=30))
def test_the_order_of_use_of_one_child_moves_no_other(order: list[str]) -> None:
    children = {name: repro_runtime.derive(name) for name in "abc"}
    drawn: dict[str, list[float]] = {name: [] for name in "abc"}
    for name in order:
        drawn[name] += [children[name].random(), float(children[name].random_batch(1)[0])]
    for name, values in drawn.items():
        alone = repro_runtime.derive(name)
        assert values == [
            value for _ in values[::2] for value in (alone.random(), float(alone.random_batch(1)[0]))
        ]


def test_arrays_and_single_values_do_not_move_each_other() -> None:
    alone, mixed = repro_runtime.derive(NAME), repro_runtime.derive(NAME)
    mixed.random_batch(100)
    assert mixed.random() == alone.random()
    assert alone.random_batch(100).tolist() == repro_runtime.derive(NAME).random_batch(100).tolist()


def test_the_global_generators_are_left_alone_and_move_no_child() -> None:
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    repro_runtime.reset()
    repro_runtime.init(42)
    child = repro_runtime.derive(NAME)
    child.random_batch(3)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (state, numpy_state)  # type: ignore[index]
    random.seed(7)
    assert child.random() == 0.02451368295679235


def test_without_a_root_nothing_is_derived() -> None:
    repro_runtime.reset()
    with pytest.raises(InvalidStateError, match=r"call init\(seed\) once"):
        repro_runtime.derive(NAME)


def test_a_second_root_is_refused_until_reset() -> None:
    with pytest.raises(InvalidStateError, match="call reset first"):
        repro_runtime.init(42)
    assert repro_runtime.derive(NAME).seed == 7521479737366565015
    repro_runtime.reset()
    repro_runtime.init(43)
    assert repro_runtime.derive(NAME).seed == derive(43, NAME)


def test_a_reset_leaves_the_children_as_they_are() -> None:
    child = repro_runtime.derive(NAME)
    child.random()
    repro_runtime.reset()
    assert child.random() == 0.402649463158102


def test_children_of_the_root_none_do_not_repeat() -> None:
    repro_runtime.reset()
    repro_runtime.init(None)
    one, other = repro_runtime.derive(NAME), repro_runtime.derive(NAME)
    assert (one.seed, one.seed63) == (None, None)
    assert one.random() != other.random()
    assert one.random_batch(2).tolist() != other.random_batch(2).tolist()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_root_outside_of_64_bits_is_refused(seed: int) -> None:
    repro_runtime.reset()
    with pytest.raises(ValueError, match=str(seed)):
        repro_runtime.init(seed)
    repro_runtime.init(0)


@pytest.mark.parametrize("seed", ["42", 42.0])
def test_a_root_that_is_no_integer_is_refused(seed: Any) -> None:
    repro_runtime.reset()
    with pytest.raises(TypeError):
        repro_runtime.init(seed)


def test_an_integer_of_numpy_is_a_root_like_any_other() -> None:
    repro_runtime.reset()
    repro_runtime.init(np.int64(42))  # type: ignore[arg-type]
    assert repro_runtime.derive(NAME).seed == 7521479737366565015


def test_bounds_that_no_value_can_meet_are_refused() -> None:
    child = repro_runtime.derive(NAME)
    with pytest.raises(ValueError, match=r"lower = 2 .* upper = 1"):
        child.sample_normal(0.0, 1.0, lower=2, upper=1)
    with pytest.raises(ValueError, match=r"mean = -0\.5"):
        child.sample_positive_normal(-0.5, 1.0)
    assert child.sample_normal(-math.inf, 0.0, lower=3.0) == 3.0


def test_a_pickled_child_goes_on_where_it_was() -> None:
    child = repro_runtime.derive(NAME)
    child.random()
    child.random_batch(2)
    copy = pickle.loads(pickle.dumps(child))  # noqa: S301  its own bytes
    assert copy.random() == child.random()
    assert copy.random_batch(2).tolist() == child.random_batch(2).tolist()


def test_threads_that_derive_their_own_child_repeat_in_any_order() -> None:
    def draw_all(names: list[str]) -> dict[str, list[float]]:
        drawn: dict[str, list[float]] = {}
        barrier = threading.Barrier(len(names))

        def work(name: str) -> None:
            barrier.wait()
            rng = repro_runtime.derive(name)
            drawn[name] = [rng.random() for _ in range(1000)]

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return drawn

    names = [f"worker.{number}" for number in range(8)]
    assert draw_all(names) == draw_all(names[::-1])


def test_of_threads_that_init_at_once_exactly_one_sets_the_root() -> None:
    for _ in range(50):
        repro_runtime.reset()
        barrier = threading.Barrier(4)
        winners: list[int] = []

        def work(seed: int, barrier: threading.Barrier = barrier, winners: list[int] = winners) -> None:
            barrier.wait()
            try:
                repro_runtime.init(seed)
            except InvalidStateError:
                return
            winners.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert repro_runtime.derive(NAME).seed == derive(winners[0], NAME)


FORK = """
import json, os, repro_runtime
repro_runtime.init(42)
before = repro_runtime.derive("shared")
before.random()
read, write = os.pipe()
if os.fork() == 0:
    own = repro_runtime.derive("worker.1")
    os.write(write, json.dumps([before.random(), own.random()]).encode())
    os._exit(0)
os.wait()
forked = json.loads(os.read(read, 1000))
print(json.dumps({"forked": forked, "here": [before.random(), repro_runtime.derive("worker.1").random()]}))
"""


def test_a_forked_process_has_the_root_and_repeats_what_its_parent_draws() -> None:
    drawn = json.loads(python(FORK))
    assert drawn["forked"] == drawn["here"]


SPAWN = """
import json, multiprocessing, repro_runtime

def work():
    try:
        repro_runtime.derive("x")
    except repro_runtime.InvalidStateError:
        repro_runtime.init(42)
        return repro_runtime.derive("x").random()

if __name__ == "__main__":
    repro_runtime.init(42)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(json.dumps([pool.apply(work), repro_runtime.derive("x").random()]))
"""


def test_a_spawned_process_starts_without_a_root(tmp_path: Any) -> None:
    script = tmp_path / "main.py"
    script.write_text(SPAWN)
    spawned, here = json.loads(python(str(script), is_file=True))
    assert spawned == here


def test_other_processes_give_the_same_values_whatever_their_hash_seed() -> None:
    code = "import repro_runtime as r; r.init(42); c = r.derive('a.b'); print(c.random(), c.choice('abcdef'))"
    assert python(code, PYTHONHASHSEED="1") == python(code, PYTHONHASHSEED="2")


def test_values_of_python_need_no_numpy() -> None:
    code = (
        "import repro_runtime as r; r.init(42); c = r.derive('dataset.prompt.length'); print(c.random())\n"
        "try:\n    c.random_batch(1)\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    )
    assert python(code, flags=("-S",)).split() == ["0.02451368295679235", "numpy"]
