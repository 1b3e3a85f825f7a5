"""`make install` and `make uninstall`, staged below DESTDIR; tests/enforcing has them on a machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.settings import Settings
from manual.pages import pages

TOP = Path(__file__).resolve().parents[2]
LIB = "usr/local/lib/hostprep"
UNITS = "usr/local/lib/systemd/system"
SHARE = "usr/local/share"
COMPLETIONS = {
    "bash": f"{SHARE}/bash-completion/completions/hostprep",
    "zsh": f"{SHARE}/zsh/site-functions/_hostprep",
    "fish": f"{SHARE}/fish/vendor_completions.d/hostprep.fish",
}
PAGES = {f"{SHARE}/man/man{name[-1]}/{name}" for name in pages()}
VERSION = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]


def make(
    target: str, destdir: Path, *, checkout: str = str(TOP), within: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run make with the packages of this very Python: no network, no index. *within*: a command that runs it."""
    chosen = {"SYSTEM_PACKAGES": "1", "SYSTEM_PYTHON": sys.executable, **variables, "DESTDIR": str(destdir)}
    arguments = [f"{key}={value}" for key, value in chosen.items()]
    return subprocess.run(
        [*within, "make", "--silent", "-C", checkout, target, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installation, made by a user with a strict umask."""
    destdir, before = tmp_path_factory.mktemp("destdir"), os.umask(0o077)
    try:
        done = make("install", destdir)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    yield destdir


def copy(staged: Path, to: Path) -> Path:
    shutil.copytree(staged, to, symlinks=True)
    return to


def run(destdir: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the staged command."""
    command = str(destdir / LIB / "current/bin/hostprep")
    return subprocess.run([command, *args], env=environ, capture_output=True, text=True, check=False, cwd="/")


def test_files(staged: Path) -> None:
    """The packages, the command, the units, the settings, the manual and the completions are in their places.

    Nothing else is there.
    """
    found = {str(path.relative_to(staged)) for path in staged.rglob("*") if f"{LIB}/" not in str(path)}

    assert {path for path in found if not (staged / path).is_dir() or (staged / path).is_symlink()} == {
        "usr/local/bin/hostprep",
        f"{UNITS}/hostprep.service",
        f"{UNITS}/hostprep.socket",
        "etc/hostprep/hostprep.env",
        *PAGES,
        *COMPLETIONS.values(),
    }
    assert os.readlink(staged / "usr/local/bin/hostprep") == f"/{LIB}/current/bin/hostprep"
    assert sorted(path.name for path in (staged / LIB).iterdir()) == sorted(
        ["current", os.readlink(staged / LIB / "current")]
    )


def test_modes(staged: Path) -> None:
    """Everybody may read what root runs, whatever the umask was, and only its owner may change it."""
    for path in staged.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        executable = path.is_dir() or path.parent.name == "bin"
        assert path.is_symlink() or mode == (0o755 if executable else 0o644), f"{path}: {mode:o}"


def test_command(staged: Path) -> None:
    """The staged command runs, and knows its version."""
    done = run(staged, "--version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, VERSION, "")


def test_command_has_the_settings(staged: Path, tmp_path: Path) -> None:
    """The command reads the settings file as systemd does for the service: the last of two counts, unlike a first one.

    What is in the environment goes before.
    """
    destdir, settings = copy(staged, tmp_path / "copy"), tmp_path / "hostprep.env"
    command = destdir / LIB / "current/bin/hostprep"
    command.write_text(command.read_text().replace("/etc/hostprep/hostprep.env", str(settings)))
    settings.write_text("HOSTPREP_ROOT=/srv/first\nHOSTPREP_ROOT=\\\n/srv/no-such-root\n")

    assert run(destdir, "ls").stderr.startswith("hostprep: /srv/no-such-root does not exist")
    assert run(destdir, "ls", HOSTPREP_ROOT="/srv/none").stderr.startswith("hostprep: /srv/none does not exist")
    settings.write_text("HOSTPREP_PATIENCE=soon\n")
    assert run(destdir, "ls").stderr.startswith('hostprep: HOSTPREP_PATIENCE="soon" is not ')
    settings.write_bytes(b"\xff")
    assert (
        run(destdir, "ls").stderr
        == f"hostprep: {settings} is not in UTF-8 (systemd ignores a file with such a value)\n"
    )


def test_where_the_volumes_are(staged: Path, tmp_path: Path) -> None:
    """Uninstalling names the root that the settings file names, as everybody else reads it."""
    destdir, settings = copy(staged, tmp_path / "copy"), tmp_path / "hostprep.env"
    setup = tmp_path / "systemd/setup"
    shutil.copytree(TOP / "systemd", setup.parent)
    (tmp_path / "plugin").symlink_to(TOP / "plugin")
    setup.write_text(setup.read_text().replace("/etc/hostprep/hostprep.env", str(settings)))
    settings.write_text('HOSTPREP_ROOT=/srv/first\n#HOSTPREP_ROOT=/srv/none\n HOSTPREP_ROOT="/srv/no such"  \n')

    environ = {**os.environ, "DESTDIR": str(destdir), "SYSTEM_PYTHON": sys.executable}
    done = subprocess.run([setup, "uninstall"], env=environ, capture_output=True, text=True, check=False)

    assert "all data in /srv/no such\n" in done.stdout, done.stderr


def test_command_elsewhere(staged: Path, tmp_path: Path) -> None:
    """Neither PYTHONPATH nor the working directory brings other code into root's command."""
    (tmp_path / "hostprep").mkdir()
    (tmp_path / "hostprep/__init__.py").write_text("raise SystemExit('taken over')\n")

    assert run(staged, "--version", PYTHONPATH=str(tmp_path)).stdout.strip() == VERSION


def test_compiled(staged: Path) -> None:
    """Every module is compiled, and names the place where it will be, not DESTDIR."""
    lib = staged / LIB / os.readlink(staged / LIB / "current") / "lib/hostprep"
    modules = {path.relative_to(lib).with_suffix("") for path in lib.rglob("*.py")}

    compiled = {path.relative_to(lib) for path in lib.rglob("__pycache__/*.pyc")}
    assert {path.parent.parent / path.name.partition(".")[0] for path in compiled} == modules
    assert str(staged).encode() not in next(lib.glob("serve/__pycache__/server.*")).read_bytes()


def test_unit_as_installed(staged: Path) -> None:
    """The service runs the chosen Python on the installed command; nothing else differs from what is shipped."""
    shipped = (TOP / "systemd/hostprep.service").read_text()

    installed = (staged / UNITS / "hostprep.service").read_text()

    assert installed == shipped.replace("ExecStart=/usr/bin/python3 ", f"ExecStart={sys.executable} ")
    assert f" -I /{LIB}/current/bin/hostprep serve\n" in installed


def test_other_prefix(tmp_path: Path) -> None:
    """PREFIX and UNITDIR move everything, the paths in the unit too."""
    assert make("install", tmp_path, PREFIX="/usr", UNITDIR="/lib/systemd/system").returncode == 0

    assert " /usr/lib/hostprep/current/bin/hostprep " in (tmp_path / "lib/systemd/system/hostprep.service").read_text()
    assert os.readlink(tmp_path / "usr/bin/hostprep") == "/usr/lib/hostprep/current/bin/hostprep"
    assert not (tmp_path / "usr/local").exists()
    for file in COMPLETIONS.values():
        text = (tmp_path / file.replace("usr/local", "usr")).read_text()
        assert "/usr/bin/hostprep" in text
        assert "/usr/local" not in text
    assert {
        str(path.relative_to(tmp_path)).replace("usr/", "usr/local/", 1) for path in tmp_path.rglob("man/man?/*")
    } == PAGES


def test_verify(staged: Path, tmp_path: Path) -> None:
    """systemd has nothing to object to in the units."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here; the guest has it")
    for unit in (staged / UNITS).iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(f"/{LIB}", str(staged / LIB)))
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "hostprep" in line]) == (0, [])


def test_security() -> None:
    """systemd rates the sandbox as docs/install.md says, and the page names every option that it finds missing."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here; the guest has it")
    page = (TOP / "docs/install.md").read_text()
    rated = {version: score for score, version in re.findall(r"\b(\d\.\d) in systemd (\d+)", page)}
    assert rated

    version = ask("systemd-analyze", "--version").split()[1]
    security = ("systemd-analyze", "security", "--offline=true", "--no-pager", str(TOP / "systemd/hostprep.service"))
    verdict = re.search(r"Overall exposure level for hostprep.service: (\d+\.\d) OK", ask(*security))
    points = [each for each in json.loads(ask(*security, "--json=short")) if each["exposure"] and not each["set"]]

    assert verdict
    if version in rated:
        assert verdict[1] == rated[version]
        assert [each["name"] for each in points if f"`{each['name'].partition('=')[0]}`" not in page] == []


def ask(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def test_settings_file(staged: Path) -> None:
    """The settings file has every setting, commented out, with its default."""
    lines = (staged / "etc/hostprep/hostprep.env").read_text().splitlines()
    commented = dict(line.removeprefix("#").split("=", 1) for line in lines if line.startswith("#HOSTPREP_"))

    assert all(line.startswith("#") for line in lines if line)
    assert Settings.read(commented) == Settings()
    missing = {f"HOSTPREP_{key.upper()}" for key in Settings.__dataclass_fields__} - commented.keys()
    # systemd's socket takes its place; and this is not the managed plugin.
    assert missing == {"HOSTPREP_SOCKET", "HOSTPREP_MANAGED"}


def test_again(staged: Path, tmp_path: Path) -> None:
    """Installing anew switches to a new environment, keeps the one before it, and the settings."""
    destdir = copy(staged, tmp_path / "copy")
    settings = destdir / "etc/hostprep/hostprep.env"
    settings.write_text("HOSTPREP_TRASH_KEEP=1h\n")
    (destdir / LIB / "0.0.9.killed").mkdir()
    (destdir / SHARE / "man/man8/hostprep-gone.8").touch()  # of a command that the new version does not have
    before = os.readlink(destdir / LIB / "current")

    assert make("install", destdir).returncode == 0

    after = os.readlink(destdir / LIB / "current")
    assert after != before
    assert {path.name for path in (destdir / LIB).iterdir()} == {"current", before, after}
    assert settings.read_text() == "HOSTPREP_TRASH_KEEP=1h\n"
    assert run(destdir, "--version").returncode == 0
    assert {str(path.relative_to(destdir)) for path in (destdir / SHARE).rglob("*.[58]")} == PAGES


def test_broken(staged: Path, tmp_path: Path) -> None:
    """A version that does not load takes no other's place, and leaves nothing behind."""
    destdir = copy(staged, tmp_path / "copy")
    before = sorted(path.name for path in (destdir / LIB).iterdir())
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)  # no Flask there

    done = make("install", destdir, SYSTEM_PYTHON=str(bare / "bin/python"))

    assert done.returncode != 0
    assert "does not load, nothing was changed" in done.stderr
    assert sorted(path.name for path in (destdir / LIB).iterdir()) == before
    assert sys.executable in (destdir / UNITS / "hostprep.service").read_text()


def test_checkout_in_use(tmp_path: Path) -> None:
    """What runs from the checkout meanwhile, and has Python write what it compiled, does not fail an installation."""
    checkout, ended = tmp_path / "checkout", threading.Event()
    shutil.copytree(TOP, checkout, ignore=shutil.ignore_patterns(".*", "tests", "__pycache__"))
    compiled = checkout / "plugin/hostprep/__pycache__"
    compiled.mkdir()

    def write() -> None:
        while not ended.is_set():
            for number in range(1000):
                (compiled / f"{number}.pyc.new").touch()
            for number in range(1000):
                (compiled / f"{number}.pyc.new").replace(compiled / f"{number}.pyc")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = make("install", tmp_path / "destdir", checkout=str(checkout))
    finally:
        ended.set()
        writer.join()
    assert done.returncode == 0, done.stderr
    assert run(tmp_path / "destdir", "--version").stdout.strip() == VERSION


def test_old_python(tmp_path: Path) -> None:
    """A Python that is too old is refused before anything is made."""
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)

    done = make("install", tmp_path / "destdir", SYSTEM_PYTHON=str(old))

    assert "is not Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "destdir").exists()


def test_uninstall(staged: Path, tmp_path: Path) -> None:
    """Uninstalling removes what was installed, keeps the settings, and says what it keeps."""
    destdir = copy(staged, tmp_path / "copy")
    (destdir / "var/lib/hostprep/volumes/mongo").mkdir(parents=True)
    others = destdir / SHARE / "man/man8/other.8"
    others.touch()

    done = make("uninstall", destdir)

    assert done.returncode == 0
    assert "Kept: the settings in /etc/hostprep/hostprep.env, and all data in " in done.stdout
    others.unlink()  # it is there
    left = {str(path.relative_to(destdir)) for path in destdir.rglob("*") if not any(path.glob("*"))}
    empty = {os.path.dirname(path) for path in (*PAGES, *COMPLETIONS.values())} | {UNITS, "usr/local/bin"}
    assert left == {"etc/hostprep/hostprep.env", "var/lib/hostprep/volumes/mongo", *empty}


USER = {"HOME": "/home/anna", "XDG_RUNTIME_DIR": "/run/user/1000", "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": ""}
SPEC = "home/anna/.local/lib/docker/plugins/hostprep.spec"
PODMAN = "home/anna/.config/containers/containers.conf.d/hostprep.conf"


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installation of a user with a rootless engine."""
    destdir = tmp_path_factory.mktemp("user")
    done = make("install-user", destdir, within=(), **USER)
    assert done.returncode == 0, done.stderr
    return destdir


def test_users_files(users: Path) -> None:
    """`make install-user` writes into the home alone, and tells both engines where the units listen."""
    share = {each.replace("usr/local", "home/anna/.local") for each in (*PAGES, *COMPLETIONS.values())}
    lib = "home/anna/.local/lib/hostprep"
    found = {str(path.relative_to(users)) for path in users.rglob("*") if f"{lib}/" not in str(path)}
    units = {f"home/anna/.config/systemd/user/hostprep.{kind}" for kind in ("service", "socket")}
    assert {path for path in found if not (users / path).is_dir() or (users / path).is_symlink()} == {
        *units, *share, SPEC, PODMAN, "home/anna/.local/bin/hostprep", "home/anna/.config/hostprep/hostprep.env",
    }  # fmt: skip

    socket = "/run/user/1000/hostprep.sock"
    assert (users / SPEC).read_text() == f"unix://{socket}\n"
    host = tomllib.loads((TOP / "docs/podman.conf").read_text())
    host["engine"]["volume_plugins"]["hostprep"] = socket
    assert tomllib.loads((users / PODMAN).read_text()) == host
    assert "ListenStream=%t/hostprep.sock\n" in (users / "home/anna/.config/systemd/user/hostprep.socket").read_text()
    unit = (users / "home/anna/.config/systemd/user/hostprep.service").read_text()
    assert f"ExecStart={sys.executable} -I /{lib}/current/bin/hostprep serve\n" in unit


def test_users_verify(users: Path, tmp_path: Path) -> None:
    """systemd has nothing to object to in the user's units."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here; the guest has it")
    for unit in (users / "home/anna/.config/systemd/user").iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace("/home/anna", str(users / "home/anna")))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *map(str, tmp_path.iterdir())],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, [line for line in done.stderr.splitlines() if "hostprep" in line]) == (0, [])


def test_users_own_files(users: Path, tmp_path: Path) -> None:
    """What a user wrote where the engines look stays, at an installation and at its end; so do the settings."""
    destdir = copy(users, tmp_path / "copy")
    (destdir / SPEC).write_text("unix:///run/user/1000/mine.sock\n")
    settings = destdir / "home/anna/.config/hostprep/hostprep.env"
    settings.write_text("HOSTPREP_TRASH_KEEP=1h\n")

    done = make("install-user", destdir, within=(), **USER)

    assert done.returncode == 0, done.stderr
    assert "hostprep.spec is there already, and stays as it is; hostprep listens at /run/user/1000/" in done.stdout
    assert "hostprep.conf is there already" not in done.stdout
    assert (destdir / SPEC).read_text() == "unix:///run/user/1000/mine.sock\n"
    (destdir / "home/anna/.local/share/hostprep/volumes/mongo").mkdir(parents=True)

    done = make("uninstall-user", destdir, within=(), **USER)

    assert done.returncode == 0, done.stderr
    assert "/home/anna/.local/share/hostprep" in done.stdout
    left = {str(path.relative_to(destdir)) for path in destdir.rglob("*") if not path.is_dir()}
    assert left == {SPEC, "home/anna/.config/hostprep/hostprep.env"}
    assert settings.read_text() == "HOSTPREP_TRASH_KEEP=1h\n"


@pytest.mark.root
@pytest.mark.parametrize("what", ["install", "uninstall"])
def test_users_not_by_root(what: str, tmp_path: Path) -> None:
    """Root is told to run it as the user, and nothing is made or removed."""
    environ = {**os.environ, **USER, "HOME": str(tmp_path), "DESTDIR": ""}
    setup = [str(TOP / "systemd/setup"), what, "--user"]
    done = subprocess.run(setup, env=environ, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, "hostprep: run this as the user whose engine is rootless\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.environ.get("CI") != "true", reason="downloads packages: only where CI=true")
def test_own_packages(tmp_path: Path) -> None:
    """Without SYSTEM_PACKAGES what hostprep needs is installed beside it, for it alone, also where /tmp is noexec."""
    base = os.path.realpath(sys.executable)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    noexec = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o noexec tmpfs "$0" && exec "$@"', str(temporary))

    done = make("install", tmp_path, within=noexec, TMPDIR=str(temporary), SYSTEM_PACKAGES="", SYSTEM_PYTHON=base)

    assert done.returncode == 0, done.stderr
    lib = tmp_path / LIB / "current/lib"
    assert {"click", "flask", "gunicorn", "rich", "hostprep"} < {path.name for path in lib.iterdir()}
    assert not (lib / "bin").exists()
    assert run(tmp_path, "--version").stdout.strip() == VERSION
