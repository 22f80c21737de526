import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from repro_image.cli import group
from repro_image.errors import (
    BasePythonError,
    EditedLockError,
    InvalidFileError,
    MissingLockError,
    NotLockedError,
    NoWheelError,
    ResolveError,
    StaleLockError,
)
from repro_image.steps.fresh import check_locks, require_fresh_locks
from tests.unit.supply_samples import IMAGE, Supply


@pytest.fixture
def supply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supply:
    return Supply(tmp_path, monkeypatch)


def faults(supply: Supply) -> list[tuple[type[Exception], str]]:
    return [(type(fault), Path(fault.where).name) for fault in check_locks(supply.project, IMAGE)]


def test_from_nothing_all_three_locks_are_written_and_fresh(supply: Supply) -> None:
    assert supply.lock() == ("debian.json", "requirements.txt", "model.json")
    assert supply.asked == ["resolve_debs", "make_root", "resolve", "convert"]
    assert check_locks(supply.project, IMAGE) == ()
    locks = supply.project.locks(IMAGE)
    assert [(w.name, w.version, w.source) for w in locks.requirements.wheels] == [
        ("thing", "1.0", "index"),
        ("torch", "2.0+cpu", "cpu"),
    ]
    assert locks.requirements.installer.name == "uv"
    assert locks.requirements.root == locks.base.root
    assert [file.path for file in locks.model.files] == ["config.json", "model.safetensors"]
    assert locks.base.source_date_epoch == supply.date


def test_with_nothing_to_change_nothing_is_run_or_written(supply: Supply) -> None:
    supply.lock()
    before = supply.lock_files()
    assert supply.lock() == ()
    assert supply.asked == []
    assert supply.lock_files() == before


def test_locking_twice_from_nothing_gives_the_same_bytes(supply: Supply) -> None:
    supply.lock()
    before = supply.lock_files()
    for name in before:
        (supply.folder / "project" / "locks" / IMAGE / name).unlink()
    supply.lock()
    assert supply.lock_files() == before


def test_another_requirement_resolves_python_only_and_keeps_old_pins(supply: Supply) -> None:
    supply.lock()
    supply.write(f"requirements/{IMAGE}.in", "thing>=1\ntorch==2.0+cpu\ntiny-model\n")
    supply.pins |= {"tiny-model": "1.0"}
    assert supply.lock() == ("requirements.txt",)
    assert supply.asked == ["resolve"]
    assert supply.resolver_files["requirements.txt"] == "thing==1.0\ntorch==2.0+cpu\n"


def test_a_reworded_comment_makes_nothing_stale(supply: Supply) -> None:
    supply.lock()
    supply.write(f"requirements/{IMAGE}.in", "# why\nthing>=1  # because\n\ntorch==2.0+cpu\n")
    assert check_locks(supply.project, IMAGE) == ()


def test_an_upgrade_gives_no_pins_to_the_resolver(supply: Supply) -> None:
    supply.lock()
    supply.pins["thing"] = "1.1"
    assert supply.lock(upgrade=True) == ("requirements.txt",)
    assert "requirements.txt" not in supply.resolver_files
    assert supply.asked == ["resolve_debs", "make_root", "resolve"]  # a root is made anew, to be compared


def test_an_upgrade_with_nothing_newer_changes_nothing(supply: Supply) -> None:
    supply.lock()
    supply.date += 3600  # the archive was signed again, with the same packages
    assert supply.lock(upgrade=True) == ()


def test_a_newer_debian_package_makes_a_new_root_and_a_new_resolve(supply: Supply) -> None:
    supply.lock()
    supply.debs["libc6"] = b"newer"
    assert supply.lock(upgrade=True) == ("debian.json", "requirements.txt")
    locks = supply.project.locks(IMAGE)
    assert locks.requirements.root == locks.base.root


def test_one_package_moves_and_the_others_are_held(supply: Supply) -> None:
    supply.lock()
    supply.pins["thing"] = "1.1"
    assert supply.lock(upgrade_packages=["thing"]) == ("requirements.txt",)
    assert supply.resolver_files["requirements.txt"] == "thing==1.0\ntorch==2.0+cpu\n"


def test_a_package_that_is_not_locked_cannot_be_moved(supply: Supply) -> None:
    supply.lock()
    with pytest.raises(NotLockedError, match="no package 'thng' is locked for small") as caught:
        supply.lock(upgrade_packages=["thng"])
    assert caught.value.exit_code == 2


def test_the_other_resolver_makes_the_lock_again_and_is_kept(supply: Supply) -> None:
    supply.lock()
    assert supply.lock(resolver="uv") == ("requirements.txt",)
    assert supply.project.requirements_lock(IMAGE).resolver.startswith("uv ")
    assert check_locks(supply.project, IMAGE) == ()
    assert supply.lock() == ()


def test_a_mapped_project_in_find_links_needs_no_other_index(supply: Supply) -> None:
    supply.lock()
    assert "links.html" not in supply.resolver_files


def test_a_failing_resolver_leaves_the_old_locks_as_they_were(supply: Supply) -> None:
    supply.lock()
    before = supply.lock_files()
    supply.debs["libc6"] = b"newer"
    supply.pins.clear()
    with pytest.raises(ResolveError, match="nothing fits"):
        supply.lock(upgrade=True)
    assert supply.lock_files() == before


def test_a_pin_without_a_wheel_leaves_the_old_locks_as_they_were(supply: Supply) -> None:
    supply.lock()
    before = supply.lock_files()
    supply.pins["thing"] = "7.0"
    with pytest.raises(NoWheelError, match=r"thing 7\.0"):
        supply.lock(upgrade=True)
    assert supply.lock_files() == before


def test_another_python_in_the_base_is_refused(supply: Supply) -> None:
    supply.python = "3.13.5"
    with pytest.raises(BasePythonError) as caught:
        supply.lock()
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "the base has Python 3.13.5, image.toml says 3.11\n"
        "  where: images/small/image.toml: python.version\n"
        '  fix:   write `version = "3.13"`, or choose another suite for the base'
    )
    assert supply.lock_files() == {}


def test_options_in_requirements_are_refused_before_anything_runs(supply: Supply) -> None:
    supply.write(f"requirements/{IMAGE}.in", "--extra-index-url https://x.example\nthing\n")
    with pytest.raises(InvalidFileError, match="line 1: the option '--extra-index-url' is refused"):
        supply.lock()
    assert supply.asked == []


def test_a_model_member_that_the_package_lacks_is_named(supply: Supply) -> None:
    supply.edit(f"images/{IMAGE}/image.toml", "tiny_model/model.gguf", "tiny_model/other.gguf")
    with pytest.raises(InvalidFileError, match=r"the model's package has no file 'tiny_model/other\.gguf'"):
        supply.lock()


def test_no_address_and_no_path_is_in_a_lock(supply: Supply) -> None:
    supply.lock()
    text = b"".join(supply.lock_files().values()).decode()
    assert not re.search(r"://|file:|" + re.escape(str(supply.folder)), text)


def test_a_missing_root_is_made_again_for_a_resolve(supply: Supply) -> None:
    supply.lock()
    root = supply.project.base_lock(IMAGE).root
    supply.store.path(root).unlink()
    supply.lock(upgrade_packages=["thing"])
    assert supply.asked == ["make_root", "resolve"]
    supply.store.verify(root)


def test_missing_locks_are_told_each(supply: Supply) -> None:
    assert faults(supply) == [
        (MissingLockError, "debian.json"),
        (MissingLockError, "requirements.txt"),
        (MissingLockError, "model.json"),
    ]


@pytest.mark.parametrize(
    ("path", "old", "new", "stale"),
    [
        (
            f"images/{IMAGE}/image.toml",
            'python3 = "runs it"',
            'python3 = "x"\nlibnuma1 = "y"',
            ["debian.json"],
        ),
        (f"images/{IMAGE}/image.toml", 'heavy = "not needed"', 'other = "not needed"', ["requirements.txt"]),
        (f"images/{IMAGE}/image.toml", 'member = "tiny_model', 'member = "other', ["model.json"]),
        (f"requirements/{IMAGE}.in", "thing>=1", "thing>=1.1", ["requirements.txt"]),
        (f"images/{IMAGE}/image.toml", 'heavy = "not needed"', 'heavy = "another reason"', []),
    ],
)
def test_each_lock_knows_what_it_was_made_from(
    supply: Supply, path: str, old: str, new: str, stale: list[str]
) -> None:
    supply.lock()
    supply.edit(path, old, new)
    assert faults(supply) == [(StaleLockError, name) for name in stale]


def test_a_lock_edited_by_hand_is_told_apart_from_a_stale_one(supply: Supply) -> None:
    supply.lock()
    supply.edit(f"locks/{IMAGE}/requirements.txt", "thing==1.0", "thing==1.1")
    assert faults(supply) == [(EditedLockError, "requirements.txt")]
    with pytest.raises(EditedLockError):
        require_fresh_locks(supply.project, IMAGE)


def test_an_option_in_a_lock_is_refused_with_its_line(supply: Supply) -> None:
    supply.lock()
    supply.edit(f"locks/{IMAGE}/requirements.txt", "thing==1.0", "--index-url https://x.example\nthing==1.0")
    assert faults(supply) == [(InvalidFileError, "requirements.txt")]


def test_check_exits_with_3_and_says_what_is_stale(supply: Supply) -> None:
    supply.lock()
    supply.edit(f"requirements/{IMAGE}.in", "thing>=1", "thing>=1.1")
    project = ["--project", str(supply.folder / "project")]
    ran = CliRunner().invoke(group, [*project, "lock", "--check"])
    assert isinstance(ran.exception, StaleLockError)
    assert ran.exception.exit_code == 3
    assert ran.exception.fix == "run `repro-image lock small`"
    assert ran.stdout == (
        "locks/small/requirements.txt  the lock is stale: requirements, python or base changed since\n"
    )
    ran = CliRunner().invoke(group, [*project, "lock", "--check", "--json"])
    assert json.loads(ran.stdout)[0]["fresh"] is False


def test_check_of_fresh_locks_exits_with_0(supply: Supply) -> None:
    supply.lock()
    ran = CliRunner().invoke(group, ["--project", str(supply.folder / "project"), "lock", "--check"])
    assert (ran.exit_code, ran.stdout) == (0, "locks/small  up to date\n")
