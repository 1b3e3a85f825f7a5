"""Which directories of the host are no container's: by the FHS, by packages, and as an engine's data."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.host import system
from hostprep.host.system import engine_data, engines, is_engine_volume, system_directory
from tests.support.host import PYTHON, mounted
from tests.support.trees import make_tree

ROOT = "/var/lib/hostprep"

# What is said of a directory that is given, and of a prefix; None: it is accepted.
RULE = {
    "/": ("/", "/"),
    "/etc": ("/etc", "/etc"),
    "/etc/x/y": ("/etc", "/etc"),
    "/lib": ("/lib", "/lib"),
    "/lib64": ("/lib64", "/lib64"),
    "/usr/local/data": ("/usr", "/usr"),
    "/root/x": ("/root", "/root"),
    "/run/x": ("/run", "/run"),
    "/dev/shm/x": ("/dev", "/dev"),
    "/home": ("/home", "/home"),
    "/var": ("/var", "/var"),
    "/var/lib": ("/var/lib", "/var/lib"),
    "/var/log": ("/var/log", "/var/log"),
    "/var/log/x": ("/var/log", "/var/log"),
    "/var/spool/cron": ("/var/spool", "/var/spool"),
    "/var/cache/x": ("/var/cache", "/var/cache"),
    "/var/mail": ("/var/mail", "/var/mail"),
    "/var/run/x": ("/var/run", "/var/run"),
    "/var/backups": ("what the package base-files owns", "what the package base-files owns"),
    "/var/lib/dpkg": ("what the package dpkg owns", "what the package dpkg owns"),
    "/var/lib/dpkg/info": ("what the package dpkg owns", "what the package dpkg owns"),
    "/var/lib/systemd": ("what the package libc6 owns", "what the package libc6 owns"),
    "/opt/vendor/data": ("what the package vendor owns", "what the package vendor owns"),
    "/opt": ("/opt", "what the package vendor owns"),
    "/var/opt": ("/var/opt", None),
    "/srv": ("/srv", None),
    "/mnt": ("/mnt", None),
    "/tmp": ("/tmp", None),
    "/tmp/x": (None, None),
    "/var/lib/docker": ("/var/lib/docker", "/var/lib/docker"),
    "/var/lib/containers/x": ("/var/lib/containers", "/var/lib/containers"),
    ROOT: (ROOT, ROOT),
    f"{ROOT}/volumes": (ROOT, ROOT),
    "/srv/x": (None, None),
    "/srv/tftp": (None, None),
    "/home/anna": (None, None),
    "/home/anna/mongodb": (None, None),
    "/data": (None, None),
    "/data/x": (None, None),
    "/mnt/disk/x": (None, None),
    "/media/x": (None, None),
    "/opt/vendor2": (None, None),
    "/opt/mine/data": (None, None),
    "/var/lib/mongodb": (None, None),
    "/var/lib/dpkg2": (None, None),
    "/var/lib/docker2": (None, None),
    "/var/local/x": (None, None),
    "/var/logs": (None, None),
    "/var/data": (None, None),
    "/usrdata": (None, None),
    "/etcetera": (None, None),
}

DPKG = {
    "base-files": ["/.", "/home", "/opt", "/srv", "/var", "/var/backups", "/var/lib", "/var/opt"],
    "dpkg": ["/.", "/var", "/var/lib", "/var/lib/dpkg", "/var/lib/dpkg/info"],
    "libc6:amd64": ["/.", "/var/lib/systemd"],
    "vendor": ["/opt", "/opt/vendor", "/opt/vendor/bin/it"],
    "tftpd": ["/srv", "/srv/tftp"],
}


@pytest.fixture
def dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages as dpkg lists them."""
    monkeypatch.setattr(system, "_DPKG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, paths in DPKG.items():
        (tmp_path / f"{name}.list").write_text("".join(f"{path}\n" for path in paths))
        (tmp_path / f"{name}.md5sums").write_text("/data\n/home/anna\n")


@pytest.mark.usefixtures("dpkg")
@pytest.mark.parametrize("path", RULE)
def test_the_rule(path: str) -> None:
    """What is the system's, a package's, an engine's or hostprep's is refused, and no other directory."""
    given, prefix = RULE[path]
    assert (system_directory(path, ROOT), system_directory(path, ROOT, prefix=True)) == (given, prefix)


class TestPackages:
    def test_of_this_machine(self) -> None:
        """dpkg's own directory is refused by what dpkg itself says."""
        if not Path("/var/lib/dpkg/info/dpkg.list").exists():
            pytest.skip("this machine does not have dpkg")
        assert system_directory("/var/lib/dpkg", ROOT) == "what the package dpkg owns"

    @pytest.fixture
    def rpm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A command that answers as `rpm -qf` does where rpm's database has one directory and one file."""
        script = tmp_path / "rpm"
        script.write_text(
            "#!/bin/sh\n"
            '[ "$1 $2" = "-qf --queryformat" ] || exit 2\nshift 4\nfor file; do\ncase $file in\n'
            "/var/lib/pgsql|/opt/vendor/bin) echo 'owned by vendor';;\n"
            '/var/lib/none) echo "error: file $file: No such file or directory" >&2;;\n'
            '*) echo "file $file is not owned by any package";;\nesac; done\nexit 1\n'
        )
        script.chmod(0o755)
        monkeypatch.setattr(system, "_DPKG", f"{tmp_path}/none")
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return script

    @pytest.mark.parametrize(
        ("path", "owned"),
        [
            ("/var/lib/pgsql", True),
            ("/var/lib/pgsql/15/data", True),
            ("/var/lib/none", False),
            ("/var/lib/mongodb", False),
            ("/opt/mine", False),
        ],
    )
    @pytest.mark.usefixtures("rpm")
    def test_rpm(self, path: str, owned: bool) -> None:  # noqa: FBT001
        """Where there is rpm, it is asked about the directory and those above it."""
        assert system_directory(path, ROOT) == ("what the package vendor owns" if owned else None)

    def test_what_is_in_a_directory(self, rpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """rpm is asked about the entries of a directory, too."""
        make_tree(tmp_path, "dir opt/bin")
        rpm.write_text(rpm.read_text().replace("/opt/vendor/bin", f"{tmp_path}/opt/bin"))
        assert system._in_rpm(f"{tmp_path}/opt", []) == "vendor"

    def test_a_broken_rpm(self, rpm: Path) -> None:
        """An rpm that fails owns nothing."""
        rpm.write_text("#!/bin/sh\nexit 1\n")
        assert system_directory("/var/lib/pgsql", ROOT) is None


class TestEngines:
    @pytest.mark.parametrize(
        ("file", "keys", "text"),
        [
            ("daemon.json", ("data-root",), json.dumps({"data-root": "/data//docker/"})),
            ("daemon.json", ("graph",), json.dumps({"graph": "/data/docker"})),
            ("config.toml", ("root",), 'version = 2\nroot = "/data/docker"\n[plugins]\n'),
            ("storage.conf", ("storage", "graphroot"), '[storage]\ndriver = "overlay"\ngraphroot = "/data/docker"\n'),
        ],
    )
    def test_as_configured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, keys: tuple[str, ...], text: str
    ) -> None:
        """The data root that an engine's configuration names is refused as the default one is."""
        (tmp_path / file).write_text(text)
        assert (file, keys) in [(name.rpartition("/")[2], keys) for name, keys in system._CONFIGURED]
        monkeypatch.setattr(system, "_CONFIGURED", ((f"{tmp_path}/{file}", keys),))
        for path in ("/data", "/data/docker", "/data/docker/volumes"):
            assert system_directory(path, ROOT) == "/data/docker"
        assert is_engine_volume("/data/docker/volumes/db/_data")

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"data-root": 5}', '{"data-root": "x"}', '{"data-root": "/"}', "\xff"]
    )
    def test_a_configuration_that_says_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        """A damaged configuration, or one that names no directory for data, stops nobody."""
        (tmp_path / "daemon.json").write_bytes(text.encode("latin-1"))
        monkeypatch.setattr(system, "_CONFIGURED", ((f"{tmp_path}/daemon.json", ("data-root",)),))
        assert system_directory("/srv/x", ROOT) is None
        assert "/" not in engines()

    @pytest.mark.parametrize(
        "inside",
        [
            "volumes/metadata.db",
            "overlay2/l",
            "overlay-containers/containers.lock",
            "io.containerd.metadata.v1.bolt/meta.db",
        ],
    )
    def test_by_what_is_inside(self, tmp_path: Path, inside: str) -> None:
        """An engine's data is known by what the engine made in it; what only contains or neighbours it is not."""
        make_tree(tmp_path, f"dir engine/{Path(inside).parent}", f"file engine/{inside}", "dir other")
        for below in ("", "/volumes/db/_data", "/missing/x"):
            assert (
                engine_data(f"{tmp_path}/engine{below}", ROOT) == f"{tmp_path}/engine, where an engine keeps its data"
            )
        for other in ("", "/other", "/missing"):
            assert engine_data(f"{tmp_path}{other}", ROOT) is None

    @pytest.mark.root
    def test_volumes_of_one_that_is_not_configured(self, tmp_path: Path) -> None:
        """Its volumes are known to `import` by what is inside, where only root could have put that there."""
        make_tree(tmp_path, "dir engine/volumes/db/_data", "file engine/volumes/metadata.db")
        assert is_engine_volume(f"{tmp_path}/engine/volumes/db/_data")
        for other in ("volumes/db", "volumes/db/data", "volumes/_data", "volumes/a/b/_data", "overlay2/db/_data"):
            assert not is_engine_volume(f"{tmp_path}/engine/{other}")
        make_tree(tmp_path, "dir home 1000:1000", "dir home/engine/volumes", "file home/engine/volumes/metadata.db")
        assert not is_engine_volume(f"{tmp_path}/home/engine/volumes/db/_data")

    @pytest.fixture
    def bound(self, tmp_path: Path) -> Iterator[Path]:
        """Two directories that are another one, and something in it, by a mount."""
        make_tree(tmp_path, "dir root/volumes", "dir name", "dir part")
        with (
            mounted("--bind", f"{tmp_path}/root", f"{tmp_path}/name"),
            mounted("--bind", f"{tmp_path}/root/volumes", f"{tmp_path}/part"),
        ):
            yield tmp_path

    @pytest.mark.root
    def test_by_another_name(self, bound: Path) -> None:
        """A bind mount of hostprep's root or an engine's data, or of something in it, is that."""
        for name in ("root", "name", "name/volumes", "part", "part/x"):
            assert engine_data(f"{bound}/{name}", f"{bound}/root") == f"{bound}/root"
        assert engine_data(f"{bound}/other", f"{bound}/root") is None


@pytest.mark.root
@pytest.mark.parametrize("flag", ["--data-root={}", "--data-root {}", "-g {}"])
@pytest.mark.parametrize(("under", "counts"), [((), True), (("unshare", "-m"), False)], ids=["here", "container"])
def test_one_that_runs(tmp_path: Path, flag: str, under: tuple[str, ...], counts: bool) -> None:  # noqa: FBT001
    """Where an engine that runs keeps its data is known; what a process in a container says is not believed."""
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'dockerd'); print('up', flush=True); sys.stdin.read()"
    command = [*under, PYTHON, "-c", code, *flag.format(tmp_path / "data" / "docker").split()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        found = system_directory(str(tmp_path / "data"), ROOT)
        engine.kill()
    assert found == (str(tmp_path / "data" / "docker") if counts else None)
