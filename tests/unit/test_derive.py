import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro_image.core import derive as derive_module
from repro_image.core.derive import derive, derive63, synthetic_ids

ROOTS = st.integers(min_value=0, max_value=2**63 - 1)


def other_pythons() -> list[str]:
    """Return this Python and each other one from 3.9 on that this machine has, on the path or from pyenv."""
    names = [f"python3.{minor}" for minor in range(9, 16)]
    found = [shutil.which(name) for name in names]
    versions = Path.home().glob(".pyenv/versions/3.*/bin/python3.[0-9]*")
    more = [str(path) for path in versions if path.name in names]
    # A version manager puts names on the path that start nothing.
    return sorted({sys.executable, *filter(starts, filter(None, found)), *more})


def starts(python: str) -> bool:
    return subprocess.run([python, "-V"], capture_output=True, check=False).returncode == 0


def test_children_of_root_42_are_the_published_ones() -> None:
    assert derive(42, "dataset.prompt.length") == 7521479737366565015
    assert derive(42, "models.sequence.distribution") == 18078751361696701669


def test_a_generator_seeded_with_a_child_gives_the_published_values() -> None:
    rng = random.Random(derive(42, "dataset.prompt.length"))  # noqa: S311  a test vector
    assert [rng.random(), rng.random()] == [0.02451368295679235, 0.402649463158102]


def test_a_child_of_63_bits_loses_only_its_highest_bit() -> None:
    child = derive(42, "models.sequence.distribution")
    assert child >= 2**63
    assert derive63(42, "models.sequence.distribution") == child - 2**63
    assert derive63(42, "dataset.prompt.length") == derive(42, "dataset.prompt.length")


@given(root=ROOTS, identifier=st.text(max_size=40))
def test_children_stay_within_their_bits(root: int, identifier: str) -> None:
    assert 0 <= derive(root, identifier) < 2**64
    assert 0 <= derive63(root, identifier) < 2**63


@given(root=ROOTS, first=st.text(max_size=20), second=st.text(max_size=20))
def test_other_names_and_other_roots_give_other_children(root: int, first: str, second: str) -> None:
    assert (derive(root, first) == derive(root, second)) == (first == second)
    assert derive(root, first) != derive(root + 1, first)


def test_synthetic_ids_are_pinned_and_of_the_length_asked() -> None:
    assert synthetic_ids(7521479737366565015, 3) == (1956, 16703, 10970)
    assert synthetic_ids(1, 0) == ()


@pytest.mark.parametrize("python", other_pythons())
def test_every_python_derives_the_same_integers(python: str) -> None:
    code = (
        f"import runpy; derive = runpy.run_path({derive_module.__file__!r})\n"
        "print(derive['derive'](42, 'dataset.prompt.length'), derive['derive63'](42, 'ä.\\U0001f600'))\n"
        "print(*derive['synthetic_ids'](7521479737366565015, 3))"
    )
    run = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}
    )
    assert run.stdout.split() == [
        "7521479737366565015",
        str(derive63(42, "ä.\U0001f600")),
        *("1956", "16703", "10970"),
    ]
