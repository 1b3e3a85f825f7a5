"""Settings: what each accepts, and that a wrong value stops the start with a clear message."""

from __future__ import annotations

import ctypes
import glob
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostprep.errors import BadSetting, printable
from hostprep.host.labels import SELinux
from hostprep.settings import Scope, Settings, _assignments, duration, read_settings_file
from tests.support.trees import make_tree


def refused(**environ: str) -> str:
    with pytest.raises(BadSetting) as caught:
        Settings.read(environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults() -> None:
    """Without a variable each setting has the default that the documentation gives."""
    assert Settings.read({}) == Settings(
        root="/var/lib/hostprep",
        socket="/run/docker/plugins/hostprep.sock",
        allow=(),
        scope=Scope.LOCAL,
        selinux=SELinux.AUTO,
        patience=100,
        trash_keep=86400,
        require_marker=False,
        log_level="info",
        docker_host="",
    )


def test_every_setting_is_read(tmp_path: Path) -> None:
    """Each variable sets the setting named alike."""
    found = Settings.read(
        {
            "HOSTPREP_ROOT": str(tmp_path / "root"),
            "HOSTPREP_SOCKET": "/run/x.sock",
            "HOSTPREP_ALLOW": f"{tmp_path}/a:{tmp_path}/b",
            "HOSTPREP_SCOPE": "global",
            "HOSTPREP_SELINUX": "force",
            "HOSTPREP_PATIENCE": "25s",
            "HOSTPREP_TRASH_KEEP": "7d",
            "HOSTPREP_REQUIRE_MARKER": "1",
            "HOSTPREP_KNOWN_ROOTS": "/var//known",
            "HOSTPREP_LOG_LEVEL": "debug",
            "HOSTPREP_DOCKER_HOST": "unix:///run//docker.sock",
        }
    )
    assert found == Settings(
        root=str(tmp_path / "root"),
        socket="/run/x.sock",
        allow=(f"{tmp_path}/a", f"{tmp_path}/b"),
        scope=Scope.GLOBAL,
        selinux=SELinux.FORCE,
        patience=25,
        trash_keep=7 * 86400,
        require_marker=True,
        known_roots="/var/known",
        log_level="debug",
        docker_host="unix:///run/docker.sock",
    )


def test_other_variables_are_not_read() -> None:
    """Variables that only resemble a setting are left alone."""
    assert Settings.read({"PATH": "x", "hostprep_root": "x", "HOSTPREP_root": "x", "ROOT": "x"}) == Settings.read({})


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("0s", 0), ("90s", 90), ("2m", 120), ("24h", 86400), ("36500d", 36500 * 86400)]
)
def test_durations(text: str, seconds: int) -> None:
    """A duration is 0, or a number with s, m, h or d."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "1.5h", "-1s", "+1s", "1 s", " 1s", "1s ", "1S", "1w", "s", "1h30m", "٣s"])
@pytest.mark.parametrize("variable", ["HOSTPREP_PATIENCE", "HOSTPREP_TRASH_KEEP"])
def test_wrong_durations(variable: str, text: str) -> None:
    """Any other duration is refused, with the variable, the value and what is accepted."""
    message = refused(**{variable: text})
    assert f'{variable}="{text}" is not 0 or a number with s, m, h or d' in message


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("HOSTPREP_ROOT", "", "an absolute path"),
        ("HOSTPREP_ROOT", "var/lib", "an absolute path"),
        ("HOSTPREP_ROOT", "/", "system directory"),
        ("HOSTPREP_ROOT", "/var", "system directory"),
        ("HOSTPREP_ROOT", "/var/lib", "system directory"),
        ("HOSTPREP_ROOT", "/etc/hostprep", "system directory"),
        ("HOSTPREP_ROOT", "/var/log/x", "system directory"),
        ("HOSTPREP_ROOT", "/home", "system directory"),
        ("HOSTPREP_ROOT", "/data/../x", "without .."),
        ("HOSTPREP_SOCKET", "/run/x/../y.sock", "without .."),
        ("HOSTPREP_ALLOW", "/srv:/data/..", "without .."),
        ("HOSTPREP_DOCKER_HOST", "unix:///run/../docker.sock", "without .."),
        ("HOSTPREP_SOCKET", "hostprep.sock", "an absolute path"),
        ("HOSTPREP_SOCKET", "", "an absolute path"),
        ("HOSTPREP_ALLOW", "srv", "an absolute path"),
        ("HOSTPREP_ALLOW", "/srv:data", "an absolute path"),
        ("HOSTPREP_ROOT", "/srv" + "/x" * 1900, "at most 3800 bytes"),
        ("HOSTPREP_ROOT", f"/srv/{'x' * 256}", "255 between two slashes"),
        ("HOSTPREP_ROOT", "/srv/\udcff", "in UTF-8"),
        ("HOSTPREP_SOCKET", f"/run/{'x' * 103}", "at most 107 bytes"),
        ("HOSTPREP_SOCKET", f"/run/{'é' * 52}", "at most 107 bytes"),
        ("HOSTPREP_ALLOW", f"/srv/{'x' * 256}", "255 between two slashes"),
        ("HOSTPREP_ALLOW", "/srv/\udcff", "in UTF-8"),
        ("HOSTPREP_PATIENCE", "99999999d", "at most 24h"),
        ("HOSTPREP_PATIENCE", "86401s", "at most 24h"),
        ("HOSTPREP_PATIENCE", "999999999999999d", "at most 24h"),
        ("HOSTPREP_TRASH_KEEP", "36501d", "at most 36500d"),
        ("HOSTPREP_TRASH_KEEP", "999999999999999d", "at most 36500d"),
        ("HOSTPREP_SCOPE", "Local", "local or global"),
        ("HOSTPREP_SCOPE", "", "local or global"),
        ("HOSTPREP_SELINUX", "on", "auto or required or force or off"),
        ("HOSTPREP_SELINUX", "enforcing", "auto or required or force or off"),
        ("HOSTPREP_REQUIRE_MARKER", "yes", "0 or 1"),
        ("HOSTPREP_REQUIRE_MARKER", "", "0 or 1"),
        ("HOSTPREP_LOG_LEVEL", "verbose", "debug or info or warning or error"),
        ("HOSTPREP_LOG_LEVEL", "INFO", "debug or info or warning or error"),
        ("HOSTPREP_DOCKER_HOST", "/run/docker.sock", "unix:///run/docker.sock"),
        ("HOSTPREP_DOCKER_HOST", "unix://run/docker.sock", "unix:///run/docker.sock"),
        ("HOSTPREP_DOCKER_HOST", f"unix:///run/{'x' * 103}", "at most 107 bytes"),
        ("HOSTPREP_DOCKER_HOST", "tcp://127.0.0.1:2375", "no engine over a network"),
        ("HOSTPREP_DOCKER_HOST", "ssh://root@host", "no engine over a network"),
    ],
)
def test_wrong_values(variable: str, value: str, accepted: str) -> None:
    """A wrong value is refused, with the variable, the value and what is accepted."""
    message = refused(**{variable: value})
    assert f'{variable}="{printable(value[:200])}" is not ' in message
    assert accepted in message


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOSTPREP_ROOT", "/srv" + "/x" * 1898),
        ("HOSTPREP_SOCKET", f"/run/{'x' * 102}"),
        ("HOSTPREP_ALLOW", f"/srv/{'x' * 255}"),
        ("HOSTPREP_PATIENCE", "24h"),
        ("HOSTPREP_TRASH_KEEP", "36500d"),
        ("HOSTPREP_DOCKER_HOST", f"unix:///run/{'x' * 102}"),
    ],
)
def test_the_end_of_each_range(variable: str, value: str) -> None:
    """The longest path and the longest time that can be used are accepted."""
    Settings.read({variable: value})


def test_a_wrong_value_with_control_characters() -> None:
    """The value is shown with its control characters escaped."""
    assert "\\x1b" in refused(HOSTPREP_SCOPE="\x1b[31m")


class TestPrefixes:
    SYSTEM = [
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/lib",
        "/lib64",
        "/libx32",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/sys",
        "/usr",
        "/var",
        "/var/lib",
        "/var/lib/docker",
        "/var/lib/containers",
        "/var/lib/containerd",
    ]

    @pytest.mark.parametrize("prefix", SYSTEM)
    def test_system_directories(self, prefix: str) -> None:
        """A system directory or an engine's data can be no prefix."""
        message = refused(HOSTPREP_ALLOW=prefix)
        assert message.startswith(f"HOSTPREP_ALLOW: {prefix} ")
        assert refused(HOSTPREP_ALLOW=f"/srv:{prefix}/") == message

    @pytest.mark.parametrize(
        "prefix",
        [
            "/etc/x",
            "/usr/local/data",
            "/run/x",
            "/lib/x",
            "/var/lib/docker/volumes",
            "/dev/shm/x",
            "/var/lib/containers/x",
        ],
    )
    def test_inside_of_them(self, prefix: str) -> None:
        """Nothing that lies in one can be a prefix."""
        assert refused(HOSTPREP_ALLOW=prefix).startswith(f"HOSTPREP_ALLOW: {prefix} ")

    @pytest.mark.parametrize("prefix", ["/srv", "/home/anna", "/var/lib/docker2", "/data", "/usrdata"])
    def test_directories_for_data(self, prefix: str) -> None:
        """Directories that only resemble or neighbour one can, missing ones too."""
        assert Settings.read({"HOSTPREP_ALLOW": prefix}).allow == (os.path.realpath(prefix),)

    @pytest.mark.parametrize("prefix", ["a/root", "a/root/volumes", "a"], ids=["itself", "below", "above"])
    def test_hostpreps_own_root(self, tmp_path: Path, prefix: str) -> None:
        """hostprep's root, and what contains or lies in it, can be no prefix."""
        root = tmp_path / "a" / "root"
        root.mkdir(parents=True)
        message = refused(HOSTPREP_ROOT=str(root), HOSTPREP_ALLOW=f"{tmp_path}/{prefix}")
        assert message.startswith(f"HOSTPREP_ALLOW: {tmp_path}/{prefix} is")

    def test_a_link_into_a_system_directory(self, tmp_path: Path) -> None:
        """A prefix that resolves into a system directory is refused."""
        (tmp_path / "data").symlink_to("/etc")
        assert "/etc" in refused(HOSTPREP_ALLOW=str(tmp_path / "data"))
        assert "/etc" in refused(HOSTPREP_ALLOW=str(tmp_path / "data" / "x"))

    def test_a_link_to_hostpreps_root(self, tmp_path: Path) -> None:
        """A prefix that resolves to hostprep's root is refused."""
        (tmp_path / "root").mkdir()
        (tmp_path / "data").symlink_to("root")
        assert "HOSTPREP_ALLOW" in refused(HOSTPREP_ROOT=str(tmp_path / "root"), HOSTPREP_ALLOW=str(tmp_path / "data"))

    @pytest.mark.root
    @pytest.mark.parametrize(
        "target", ["nobodys-friend", "/etc", "."], ids=["into-anothers", "into-the-system", "loop"]
    )
    @pytest.mark.parametrize(("owner", "bits"), [(1000, 0o755), (0, 0o777)], ids=["anothers", "writable-by-all"])
    def test_a_link_that_others_can_change(self, tmp_path: Path, target: str, owner: int, bits: int) -> None:
        """Over a link that a user can change no prefix is resolved; nor does that user keep hostprep from starting."""
        make_tree(tmp_path, "dir home", f"symlink home/data {target}")
        os.chown(tmp_path / "home", owner, owner)
        os.chmod(tmp_path / "home", bits)
        for prefix in (f"{tmp_path}/home/data", f"{tmp_path}/home/data/mongo"):
            assert Settings.read({"HOSTPREP_ALLOW": prefix}).allow == (prefix,)

    @pytest.mark.root
    def test_a_root_behind_a_link_that_others_can_change(self, tmp_path: Path) -> None:
        """hostprep's root is not looked for behind such a link: that stops the start."""
        make_tree(tmp_path, "dir disk", "dir home 1000:1000", f"symlink home/data {tmp_path}/disk")
        assert "somebody other than root could change where it leads" in refused(HOSTPREP_ROOT=f"{tmp_path}/home/data")

    @pytest.mark.root
    @pytest.mark.parametrize(("owner", "stops"), [(0, True), (1000, False)], ids=["roots", "anothers"])
    def test_an_engines_data(self, tmp_path: Path, owner: int, stops: bool) -> None:  # noqa: FBT001
        """What root's engine has made shows that a prefix is its data; what a user made keeps nobody from starting."""
        make_tree(tmp_path, "dir data/volumes", "file data/volumes/metadata.db")
        os.chown(tmp_path / "data", owner, owner)
        for prefix in (f"{tmp_path}/data", f"{tmp_path}/data/volumes"):
            if stops:
                assert f"{tmp_path}/data, where an engine keeps its data" in refused(HOSTPREP_ALLOW=prefix)
            else:
                assert Settings.read({"HOSTPREP_ALLOW": prefix}).allow == (prefix,)

    def test_a_link_elsewhere_is_resolved_once(self, tmp_path: Path) -> None:
        """A prefix that is a link stands for where it leads to at the start."""
        (tmp_path / "disk").mkdir()
        (tmp_path / "data").symlink_to("disk")
        settings = Settings.read({"HOSTPREP_ALLOW": str(tmp_path / "data")})
        assert settings.allow == (str(tmp_path / "disk"),)

    def test_a_link_to_itself(self, tmp_path: Path) -> None:
        """A prefix that leads nowhere at all is refused."""
        (tmp_path / "loop").symlink_to("loop")
        assert "HOSTPREP_ALLOW" in refused(HOSTPREP_ALLOW=str(tmp_path / "loop"))

    def test_empty_entries(self, tmp_path: Path) -> None:
        """Empty entries between colons stand for nothing."""
        assert Settings.read({"HOSTPREP_ALLOW": f":{tmp_path}::"}).allow == (str(tmp_path),)
        assert Settings.read({"HOSTPREP_ALLOW": ""}).allow == ()


def test_the_root_is_resolved(tmp_path: Path) -> None:
    """A root that is a link stands for where it leads to at the start."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").symlink_to("disk")
    assert Settings.read({"HOSTPREP_ROOT": str(tmp_path / "root")}).root == str(tmp_path / "disk")


# -- the settings file ---------------------------------------------------------------------------------------------

TRICKY = {
    "A=1\nA=2\n": {"A": "2"},
    "A=1": {"A": "1"},
    "A = 1 2 \t\n": {"A": "1 2"},
    " A=1\r\nB=2": {"A": "1", "B": "2"},
    "A=\n": {"A": ""},
    "A\nB=2": {"B": "2"},
    "export A=1": {"export A": "1"},
    "#A=1\n;A=2\nA=3 # 4": {"A": "3 # 4"},
    "# A \\ comment\nA=1": {"A": "1"},
    "A=$B ${B} `B`": {"A": "$B ${B} `B`"},
    """A='1  "$B" \\'  "2"  3'4' \n""": {"A": """1  "$B" \\23'4'"""},
    'A="1 \\" \\\\ \\$ \\` \\n"\n': {"A": '1 " \\ $ ` \\n'},
    'A="1\n2"\nB=3': {"A": "1\n2", "B": "3"},
    'A="1\\\n2"': {"A": "12"},
    "A=1 \\\n2\\ \n": {"A": "1 2 "},
    "A=\\\n'1'": {"A": "'1'"},
    "A='1": {"A": "1"},
    'A="1\\': {"A": "1"},
    "A=1\\": {"A": "1"},
    "A==1=": {"A": "=1="},
}
"""What systemd makes of a file (systemd.exec(5), EnvironmentFile=)."""


@pytest.mark.parametrize(("text", "found"), TRICKY.items())
def test_assignments(text: str, found: dict[str, str]) -> None:
    """Quotes, comments and continued lines count as for systemd; nothing is expanded; the last of two counts."""
    assert _assignments(text) == found


class Systemd:
    """systemd's own reader of such files, from its shared library."""

    def __init__(self) -> None:
        places = (f"/usr/{lib}/systemd/libsystemd-shared-*.so" for lib in ("lib", "lib64", "lib/*"))
        try:
            self._library = ctypes.CDLL(next(found for place in places for found in glob.glob(place)))
            self._library.load_env_file  # noqa: B018  # it is not exported everywhere
        except (StopIteration, OSError, AttributeError):
            pytest.skip("libsystemd-shared is not here; tests/enforcing asks systemd itself")

    def read(self, path: Path) -> dict[str, str] | None:
        """What it finds, by valid names; None where it takes nothing of the file."""
        lines = ctypes.POINTER(ctypes.c_char_p)()
        if self._library.load_env_file(None, bytes(path), ctypes.byref(lines)) < 0:
            return None
        found = {}
        for at in itertools.count():
            if not lines or (line := lines[at]) is None:  # type: ignore[truthy-bool]  # a null pointer is false
                break
            name, _, value = line.decode().partition("=")
            found[name] = value
        return found


@given(st.lists(st.sampled_from([*"AB==\n\n\\'\" \t\r#;$`é", "A=", "A='", 'B="', "\\\n"]), max_size=16).map("".join))
def test_any_file_is_read_as_systemd_reads_it(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever a file holds, the command line takes the values from it that the service gets."""
    path = tmp_path_factory.getbasetemp() / "hostprep.env"
    path.write_text(text, newline="")
    try:
        found = _assignments(text)
    except BadSetting:
        return
    theirs = Systemd().read(path)
    assert theirs is not None
    assert {name: theirs.get(name) for name in ("A", "B")} == {name: found.get(name) for name in ("A", "B")}


@pytest.mark.parametrize(("text", "found"), TRICKY.items())
def test_systemd_itself(tmp_path: Path, text: str, found: dict[str, str]) -> None:
    """The table is what systemd does."""
    (tmp_path / "env").write_text(text, newline="")
    assert Systemd().read(tmp_path / "env") == found


def test_settings_of_a_file(tmp_path: Path) -> None:
    """Of a file only settings are taken; without a file there are none."""
    path = tmp_path / "hostprep.env"
    assert read_settings_file(str(path)) == {}
    path.write_text("PATH=/x\nHOSTPREP_ROOT=/a\nHOSTPREP_ROOT='/b c'\n")
    assert read_settings_file(str(path)) == {"HOSTPREP_ROOT": "/b c"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HOSTPREP_ROOT=/\xff\n", "not in UTF-8"),
        (b"# \xff\n", "not in UTF-8"),
        (b"HOSTPREP_ROOT=/x\x1b[31m\n", "HOSTPREP_ROOT has a control character"),
        (b"HOSTPREP_ROOT=/x\0\n", "HOSTPREP_ROOT has a control character"),
        (b"# /srv \\\nHOSTPREP_ROOT=/x\n", "ends with a backslash"),
    ],
)
def test_a_file_of_which_systemd_leaves_something_out(tmp_path: Path, data: bytes, why: str) -> None:
    """What systemd, or one of its releases, would leave out of a file is refused, in a printable line."""
    path = tmp_path / "hostprep.env"
    path.write_bytes(data)
    with pytest.raises(BadSetting, match=why) as caught:
        read_settings_file(str(path))
    assert str(caught.value).isprintable()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A directory in its place is refused; it is not as if there were no file."""
    with pytest.raises(BadSetting, match="Is a directory"):
        read_settings_file(str(tmp_path))
