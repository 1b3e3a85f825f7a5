"""Entries of others than the declared owner: which count, and when they are looked at."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hostprep.volumes import foreign as looking
from hostprep.volumes.driver import Driver
from tests.support.fixtures import OpenDriver
from tests.support.host import Host, mounted, soon
from tests.support.trees import make_tree

pytestmark = pytest.mark.root
MONGO = {"uid": "184", "gid": "998"}
MEANT = "if that is not meant: hostprep repair mongo"


def warnings(driver: Driver) -> list[str]:
    status = driver.get("mongo")["Status"]
    assert (status["ready"], status["drift"]) == (True, [])
    found = status["warnings"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("recurse", ["never", "mismatch", "always"])
@pytest.mark.parametrize("path", [False, True])
def test_below_a_right_root(driver: Driver, host: Host, recurse: str, path: bool) -> None:  # noqa: FBT001
    """Files of others below a right root are a warning and no drift, in a volume of its own and in a path."""
    driver.create("mongo", {**MONGO, "recurse": recurse, **({"path": f"{host.srv}/db"} if path else {})}, soon())
    driver.mount("mongo", soon())
    make_tree(host.srv / "db" if path else host.data("mongo"), "file a 184:998", "file b 0:0", "dir c 184:0")
    assert warnings(driver) == [f"2 of the first 3 entries belong to others than 184:998; {MEANT}"]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"uid": "184"}, "2 of the first 3 entries belong to others than user 184"),
        ({"gid": "998"}, "1 of the first 3 entries belong to others than group 998"),
        ({"mode": "0750"}, ""),
    ],
)
def test_what_is_declared_counts(driver: Driver, host: Host, declared: dict[str, str], said: str) -> None:
    """An id that is not declared may be any; where none is, nobody is another."""
    driver.create("mongo", declared, soon())
    make_tree(host.data("mongo"), "file a 184:998", "symlink b nowhere 55:998", "dir c 55:66")
    assert warnings(driver) == ([f"{said}; {MEANT}"] if said else [])


def test_at_most_a_hundred(driver: Driver, host: Host) -> None:
    """A hundred entries are looked at."""
    driver.create("mongo", MONGO, soon())
    make_tree(host.data("mongo"), *(f"file {number} 55:66" for number in range(120)))
    assert warnings(driver) == [f"100 of the first 100 entries belong to others than 184:998; {MEANT}"]


def test_what_a_pass_leaves_alone(driver: Driver, host: Host, tmp_path: Path) -> None:
    """lost+found, mount points and, under path, hard links and device nodes do not count."""
    make_tree(host.srv, "dir db/lost+found", "dir db/disk", "file db/a", "link db/b db/a", "device db/c")
    subprocess.run(["mount", "-t", "tmpfs", "none", host.srv / "db/disk"], check=True)
    try:
        driver.create("mongo", {**MONGO, "path": f"{host.srv}/db"}, soon())
        assert warnings(driver) == []
    finally:
        subprocess.run(["umount", host.srv / "db/disk"], check=True)


def test_what_a_pass_could_not_change(driver: Driver, host: Host) -> None:
    """Entries that the last pass has reported are not told twice; where nothing can be written none is."""
    driver.create("mongo", {**MONGO, "path": f"{host.srv}/db"}, soon())
    make_tree(host.srv, "file db/fixed", "file db/other")
    subprocess.run(["chattr", "+i", host.srv / "db/fixed"], check=True)
    try:
        driver.repair("mongo")
        assert warnings(driver) == ["fixed: Operation not permitted"]
    finally:
        subprocess.run(["chattr", "-i", host.srv / "db/fixed"], check=True)
    os.chown(host.srv / "db" / "other", 55, 66)
    with mounted("--bind", str(host.srv / "db"), str(host.srv / "db")):
        subprocess.run(["mount", "-o", "remount,bind,ro", host.srv / "db"], check=True)
        told = driver.get("mongo")["Status"]["warnings"]
    assert ["belong to others" in each for each in told] == [False, False]


def test_what_the_next_start_mends(driver: Driver, host: Host) -> None:
    """Nothing is said where a pass over the contents comes anyway."""
    driver.create("mongo", MONGO, soon())
    make_tree(host.data("mongo"), "file a 55:66")
    (host.volume("mongo") / "pass.json").write_text("{}")
    assert driver.get("mongo")["Status"]["warnings"] == []
    driver.mount("mongo", soon())
    os.chown(host.data("mongo"), 55, 66)
    os.chown(host.data("mongo") / "a", 55, 66)
    assert driver.get("mongo")["Status"]["warnings"] == []


class TestKept:
    """A look is kept while a cheap one finds nothing changed."""

    @pytest.fixture
    def looks(self, driver: Driver, host: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What each look has found, of a volume that nobody has changed for a while."""
        driver.create("mongo", MONGO, soon())
        make_tree(host.data("mongo"), "file a 184:998")
        found: list[str] = []
        look = looking.foreign

        def noted(*arguments: object) -> str:
            found.append(look(*arguments))  # type: ignore[arg-type]
            return found[-1]

        monkeypatch.setattr(looking, "foreign", noted)
        monkeypatch.setattr(looking, "settled", lambda changed: True)
        monkeypatch.setattr(looking, "_KEPT_SECONDS", 3600.0)
        assert warnings(driver) == warnings(driver) == []
        assert found == [""]
        return found

    def test_a_new_entry(self, driver: Driver, host: Host, looks: list[str]) -> None:
        """What comes into the directory is seen at once."""
        make_tree(host.data("mongo"), "file b 0:0")
        assert len(warnings(driver)) == len(warnings(driver)) == 1
        assert len(looks) == 2

    def test_mended_by_another_process(
        self, driver: Driver, host: Host, looks: list[str], open_driver: OpenDriver
    ) -> None:
        """A repair is seen at once, whoever does it."""
        make_tree(host.data("mongo"), "file b 0:0")
        assert len(warnings(driver)) == 1
        open_driver().repair("mongo")
        assert warnings(driver) == []

    def test_other_options(self, driver: Driver, host: Host, looks: list[str]) -> None:
        """Another owner that is declared is compared at once."""
        driver.apply("mongo", {"uid": "55", "recurse": "never"}, (), soon())
        driver.mount("mongo", soon())
        assert warnings(driver) == [f"1 of the first 1 entries belong to others than 55:998; {MEANT}"]

    def test_another_owner(self, driver: Driver, host: Host, looks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """What changes its owner only, which no directory tells, is seen when the look is some seconds old."""
        os.chown(host.data("mongo") / "a", 0, 0)
        monkeypatch.setattr(looking, "_KEPT_SECONDS", 0.0)
        assert len(warnings(driver)) == 1

    def test_changed_just_now(
        self, driver: Driver, host: Host, looks: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a directory that has just changed nothing is kept: a further change may leave the same time."""
        monkeypatch.setattr(looking, "settled", lambda changed: False)
        make_tree(host.data("mongo"), "file b 184:998")
        warnings(driver)
        warnings(driver)
        assert len(looks) == 3

    def test_many_volumes(self, driver: Driver, looks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """What is kept is bounded."""
        monkeypatch.setattr(looking, "_KEPT", 3)
        for number in range(8):
            driver.create(f"v{number}", MONGO, soon())
            driver.get(f"v{number}")
        assert len(driver._foreign._seen) <= 3
