"""`hostprep prepare`: the engine alone, for any directory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hostprep.errors import Invalid, NotAllowed, NotReady
from hostprep.host.labels import Labels, SELinux
from hostprep.tree.directory import Prepared, prepare
from tests.support.host import LABEL, label, mode, mounted, owner
from tests.support.trees import make_tree, owners

pytestmark = pytest.mark.root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where hostprep's own root would be."""
    return tmp_path / "root"


def prepared(where: Path | str, root: Path, *, dry_run: bool = False, **given: str) -> Prepared:
    return prepare(str(where), given, Labels.open(SELinux.FORCE), root=str(root), dry_run=dry_run)


@pytest.mark.usefixtures("read_only_machine")
def test_a_directory_and_its_contents(tmp_path: Path, root: Path) -> None:
    """A directory gets owner, mode and label, and its contents owner and label."""
    make_tree(tmp_path, "dir db 5:5 711", "dir db/a 5:5 700", "file db/a/b 5:5 640", "symlink db/l /etc 5:5")
    done = prepared(tmp_path / "db", root, uid="184", gid="998", mode="02770", label="container_file_t")
    assert (owner(tmp_path / "db"), mode(tmp_path / "db"), label(tmp_path / "db")) == ((184, 998), "2770", LABEL)
    assert set(owners(tmp_path / "db").values()) == {(184, 998)}
    assert (mode(tmp_path / "db/a"), mode(tmp_path / "db/a/b")) == ("0700", "0640")
    assert label(tmp_path / "db/a/b") == label(tmp_path / "db/l") == LABEL
    assert owner(Path("/etc")) == (0, 0)
    assert done.tree is not None
    assert (done.made, done.tree.changed) == (False, 3)


def test_a_missing_directory(tmp_path: Path, root: Path) -> None:
    """A missing last component is made, as declared, and otherwise root's and 0755."""
    assert prepared(tmp_path / "new", root, uid="184").made
    assert (owner(tmp_path / "new"), mode(tmp_path / "new")) == ((184, 0), "0755")


def test_a_missing_parent(tmp_path: Path, root: Path) -> None:
    """Only the last component is made."""
    with pytest.raises(NotReady, match=f"{tmp_path}/a does not exist"):
        prepared(tmp_path / "a/b", root, uid="184")
    assert not (tmp_path / "a").exists()


def test_a_directory_that_is_right(tmp_path: Path, root: Path) -> None:
    """Where nothing differs nothing is looked at below, and nothing is changed."""
    make_tree(tmp_path, "dir db 184:998 700", "file db/a 5:5")
    done = prepared(tmp_path / "db", root, uid="184", mode="0700")
    assert (done.changes, done.tree, owner(tmp_path / "db/a")) == ([], None, (5, 5))


@pytest.mark.parametrize(("recurse", "expected"), [("never", (5, 5)), ("mismatch", (5, 5)), ("always", (184, 5))])
def test_recurse(tmp_path: Path, root: Path, recurse: str, expected: tuple[int, int]) -> None:
    """Of a directory that is right, the contents are gone over with recurse=always only."""
    make_tree(tmp_path, "dir db 184:998", "file db/a 5:5")
    prepared(tmp_path / "db", root, uid="184", recurse=recurse)
    assert owner(tmp_path / "db/a") == expected


def test_recurse_never(tmp_path: Path, root: Path) -> None:
    """recurse=never changes the directory only."""
    make_tree(tmp_path, "dir db 5:5", "file db/a 5:5")
    prepared(tmp_path / "db", root, uid="184", recurse="never")
    assert (owner(tmp_path / "db"), owner(tmp_path / "db/a")) == ((184, 5), (5, 5))


def test_what_is_left_alone(tmp_path: Path, root: Path) -> None:
    """Hard links, device nodes and mounts inside are left alone and reported."""
    make_tree(
        tmp_path,
        "dir db",
        "file db/a 0:0 644",
        "link db/b db/a",
        "device db/c",
        "dir db/d",
        "dir other",
        "file other/x",
    )
    with mounted("--bind", f"{tmp_path}/other", f"{tmp_path}/db/d"):
        done = prepared(tmp_path / "db", root, uid="184")
    assert done.tree is not None
    assert sorted(done.tree.sentences()) == [
        "a: has 2 hard links",
        "b: has 2 hard links",
        "c: is a device node",
        "d: is a mount point",
    ]
    assert owner(tmp_path / "other/x") == (0, 0)


@pytest.mark.parametrize("there", [True, False])
def test_a_dry_run(tmp_path: Path, root: Path, there: bool) -> None:  # noqa: FBT001
    """A dry run plans the same, names what it is about, and changes nothing."""
    if there:
        make_tree(tmp_path, "dir db 5:5 711", "file db/a 5:5")
    plan = prepared(tmp_path / "db", root, dry_run=True, uid="184", mode="0750")
    assert (tmp_path / "db").exists() is there
    if there:
        assert (owner(tmp_path / "db"), mode(tmp_path / "db"), owner(tmp_path / "db/a")) == ((5, 5), "0711", (5, 5))
    done = prepared(tmp_path / "db", root, uid="184", mode="0750")
    assert (plan.made, list(map(str, plan.changes))) == (done.made, list(map(str, done.changes)))
    assert plan.tree == (done.tree and replace(done.tree, planned=["a: owner 5:5"]))


@pytest.mark.parametrize("where", ["link", "link/db"])
def test_symlinks(tmp_path: Path, root: Path, where: str) -> None:
    """A symlink, at the end or on the way, is refused."""
    make_tree(tmp_path, "dir real/db", "symlink link real")
    with pytest.raises(NotAllowed, match="is a symlink"):
        prepared(tmp_path / where, root, uid="184")
    assert set(owners(tmp_path).values()) == {(0, 0)}


def test_a_dangling_symlink(tmp_path: Path, root: Path) -> None:
    """A dangling symlink is not taken for a missing directory."""
    make_tree(tmp_path, "symlink link nowhere")
    with pytest.raises(NotAllowed):
        prepared(tmp_path / "link", root, uid="184")
    assert not (tmp_path / "nowhere").exists()


def test_a_file(tmp_path: Path, root: Path) -> None:
    """A file is refused."""
    make_tree(tmp_path, "file db")
    with pytest.raises(NotAllowed, match="is a file"):
        prepared(tmp_path / "db", root, uid="184")


@pytest.mark.usefixtures("read_only_machine")
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/etc", "/etc/x", "/usr/local/x", "/var", "/var/lib", "/var/lib/docker/x", "/root", "/lib64", "/home"),
        *("/srv", "/var/log", "/var/spool/cron", "/var/cache", "/var/mail"),
    ],
)
def test_system_directories(root: Path, path: str) -> None:
    """System directories and engines' data are refused, dry or not."""
    for dry_run in (True, False):
        with pytest.raises((NotAllowed, Invalid)):
            prepared(path, root, dry_run=dry_run, uid="184")


@pytest.mark.usefixtures("read_only_machine")
def test_directly_below_the_root_directory(root: Path) -> None:
    """A directory directly in `/` that is no system directory is for data."""
    assert prepared("/hostprep-tests-have-none", root, dry_run=True, uid="184").made


@pytest.mark.parametrize("below", ["", "/volumes/x/_data", "/.."])
def test_hostpreps_root(root: Path, below: str) -> None:
    """hostprep's own root, what lies in it and what contains it are refused."""
    (root / "volumes/x/_data").mkdir(parents=True)
    with pytest.raises(NotAllowed):
        prepared(os.path.normpath(f"{root}{below}"), root, uid="184")


def test_anybodys_directory(tmp_path: Path, root: Path) -> None:
    """It is not bound by HOSTPREP_ALLOW, nor by who owns the directories above."""
    make_tree(tmp_path, "dir home 1000:1000", "dir home/db 1000:1000")
    prepared(tmp_path / "home/db", root, uid="184")
    assert owner(tmp_path / "home/db") == (184, 1000)


@pytest.mark.parametrize(
    "given", [{"path": "/srv/x"}, {"on_remove": "delete"}, {"colour": "red"}, {"uid": "x"}, {"mode": "750"}]
)
def test_options(tmp_path: Path, root: Path, given: dict[str, str]) -> None:
    """Options without a meaning here, and bad ones, are refused before anything is touched."""
    with pytest.raises(Invalid, match=next(iter(given))):
        prepare(str(tmp_path / "db"), given, Labels.open(SELinux.FORCE), root=str(root), dry_run=False)
    assert not (tmp_path / "db").exists()


def test_contents_first(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root comes last: interrupted, the next prepare begins again."""
    make_tree(tmp_path, "dir db 5:5", "file db/a 5:5")
    from hostprep.tree import directory

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(directory.Progress, "now", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path / "db", root, uid="184", mode="0777")
    assert (owner(tmp_path / "db"), mode(tmp_path / "db")) == ((5, 5), "0755")
    prepared(tmp_path / "db", root, uid="184", mode="0777")
    assert owner(tmp_path / "db/a") == (184, 5)
