"""Within the managed plugin: what it is given, what it refuses, and how it asks the kernel about labels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostprep.errors import BadSetting, NotAllowed
from hostprep.host import labels as module
from hostprep.host.labels import Labels, SELinux
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
from tests.support.host import LABEL, REPOSITORY, Host, mounted, owner, soon

CONFIG: dict[str, Any] = json.loads((REPOSITORY / "config.json").read_text())
NOT_SET = {"root", "socket", "allow", "docker_host", "known_roots", "managed"}


class TestConfig:
    def test_data(self) -> None:
        """The host's directory is mounted where mounts are propagated from, and that is hostprep's root.

        Which one cannot be set: an upgrade would take the default again, where hostprep then finds no volumes.
        """
        (mount,) = CONFIG["mounts"]
        assert mount["source"] == mount["destination"] == CONFIG["propagatedMount"] == Settings().root
        assert (mount["type"], mount["options"], "settable" in mount) == ("bind", ["rbind"], False)

    def test_nothing_more(self) -> None:
        """It has no network, no capability that an engine does not give to every container, no device, no namespace
        of the host's."""
        assert CONFIG["network"] == {"type": "none"}
        assert CONFIG["linux"] == {"capabilities": []}
        assert not {"pidHost", "ipcHost"} & CONFIG.keys()

    def test_socket(self) -> None:
        """hostprep listens where the engine looks for the plugin's socket."""
        assert f"/run/docker/plugins/{CONFIG['interface']['socket']}" == Settings().socket
        assert CONFIG["interface"]["types"] == ["docker.volumedriver/1.0"]

    def test_settings(self) -> None:
        """Every setting can be set but those that are refused; none has a value there, since an upgrade adds none."""
        assert {each["name"] for each in CONFIG["env"]} == {
            f"HOSTPREP_{field.name.upper()}" for field in dataclasses.fields(Settings) if field.name not in NOT_SET
        }
        assert all(each["settable"] == ["value"] and "value" not in each for each in CONFIG["env"])


class TestSettings:
    def test_patience(self) -> None:
        """An engine waits 30 seconds for a managed plugin, which answers after 25 unless it is told otherwise."""
        assert Settings.read({"HOSTPREP_MANAGED": "1"}).patience == 25
        assert Settings.read({"HOSTPREP_MANAGED": "1", "HOSTPREP_PATIENCE": "9s"}).patience == 9

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ROOT", "/srv/elsewhere"),
            ("SOCKET", "/run/elsewhere.sock"),
            ("ALLOW", "/srv"),
            ("DOCKER_HOST", "unix:///run/docker.sock"),
            ("KNOWN_ROOTS", "/srv/known"),
            ("SELINUX", "force"),
        ],
    )
    def test_refused(self, name: str, value: str) -> None:
        """What it cannot have stops the start, in words; the default does not."""
        with pytest.raises(BadSetting, match=rf"HOSTPREP_{name}\b.* is not for the managed plugin"):
            Settings.read({"HOSTPREP_MANAGED": "1", f"HOSTPREP_{name}": value})
        Settings.read({f"HOSTPREP_{name}": value})

    def test_defaults(self) -> None:
        """What is set to its default is not refused."""
        environ = {"HOSTPREP_ROOT": "/var/lib/hostprep", "HOSTPREP_ALLOW": "", "HOSTPREP_SELINUX": "auto"}
        assert Settings.read({"HOSTPREP_MANAGED": "1", **environ}).managed


def open_managed(host: Host) -> Driver:
    """As it is within the managed plugin, on the host's root."""
    known = host.environ["HOSTPREP_KNOWN_ROOTS"]
    return Driver.open(Settings(root=str(host.root), known_roots=known, managed=True), create=True)


@pytest.fixture
def managed(host: Host) -> Iterator[Driver]:
    """The driver as it is within the managed plugin, on the host's root."""
    driver = open_managed(host)
    yield driver
    driver.passes.stop()


@pytest.mark.root
class TestOptions:
    @pytest.mark.parametrize("key", ["path", "mountpoint"])
    def test_path(self, managed: Driver, key: str) -> None:
        """path, by either name, is refused before anything is touched."""
        with pytest.raises(NotAllowed, match=f"option {key}: the managed plugin reaches no directory"):
            managed.create("mongo", {key: "/srv/mongo"}, soon())
        assert managed.volumes() == ()

    def test_image(self, managed: Driver) -> None:
        """So is image: there is no engine that it could ask."""
        with pytest.raises(NotAllowed, match="option image: the managed plugin cannot reach an engine"):
            managed.create("mongo", {"image": "mongo"}, soon())
        assert managed.volumes() == ()

    def test_the_rest(self, managed: Driver) -> None:
        """All else is as everywhere."""
        managed.create("mongo", {"uid": "184", "gid": "998", "mode": "0750", "recurse": "always"}, soon())
        assert owner(Path(managed.mount("mongo", soon()))) == (184, 998)

    def test_a_path_from_before(self, host: Host, driver: Driver, managed: Driver) -> None:
        """A volume by path, of the host's own hostprep before, is refused in words, and is listed all the same."""
        driver.create("mongo", {"path": str(host.srv / "mongo")}, soon())
        with pytest.raises(NotAllowed, match="is out of the managed plugin's reach"):
            managed.mount("mongo", soon())
        (warning,) = managed.get("mongo")["Status"]["warnings"]
        assert "is out of the managed plugin's reach" in warning


@pytest.mark.root
class TestMounts:
    def test_below_the_root(self, host: Host, managed: Driver) -> None:
        """A volume with something mounted in it, on it or above it is refused: dockerd would unmount that one day."""
        managed.create("mongo", {}, soon())
        managed.create("redis", {}, soon())
        (host.data("mongo") / "disk").mkdir()
        for place in (host.data("mongo"), host.data("mongo") / "disk"):
            with mounted("-t", "tmpfs", "tmpfs", str(place)):
                with pytest.raises(NotAllowed, match=f"{place} is a mount: the engine could unmount it, on the host"):
                    managed.mount("mongo", soon())
                managed.mount("redis", soon())
        with mounted("--bind", str(host.root / "volumes"), str(host.root / "volumes")):
            with pytest.raises(NotAllowed, match="volumes is a mount"):
                managed.mount("redis", soon())

    def test_the_root_itself(self, host: Host) -> None:
        """The disk of the root itself is as it should be."""
        host.root.mkdir()
        with mounted("-t", "tmpfs", "tmpfs", str(host.root)):
            driver = open_managed(host)
            driver.create("mongo", {}, soon())
            assert driver.mount("mongo", soon()) == str(host.data("mongo"))
            driver.passes.stop()


class TestLabels:
    """How the kernel is asked, as far as a file can stand for it; tests/enforcing asks one."""

    @pytest.fixture
    def kernel(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A kernel that takes any label, and gives it back as it was written."""
        (tmp_path / "fscreate").touch()
        monkeypatch.setattr(module, "kernel_has_selinux", lambda: True)
        monkeypatch.setattr(module.Kernel, "_FSCREATE", str(tmp_path / "fscreate"))
        return tmp_path / "fscreate"

    @pytest.mark.usefixtures("kernel")
    def test_default(self) -> None:
        """No library is asked, and volumes get the label that all policies have for containers."""
        labels = Labels.open(SELinux.AUTO, managed=True)
        assert (labels.applied, labels.default) == (True, LABEL)

    def test_a_kernel_that_does_not_answer(self, kernel: Path) -> None:
        """Where the kernel does not take that label, hostprep does not start."""
        kernel.unlink()
        with pytest.raises(BadSetting, match=f"SELinux is on in this kernel, and {LABEL} cannot be used: No such file"):
            Labels.open(SELinux.AUTO, managed=True)

    @pytest.mark.usefixtures("kernel")
    def test_usable(self) -> None:
        """Of a label of another type it is said, with the usable one, that it cannot be told whether it is one."""
        labels = Labels.open(SELinux.AUTO, managed=True)
        assert labels.refusal(LABEL + ":c1,c2") == ""
        said = labels.refusal(LABEL.replace("container_file_t", "etc_t"))
        assert said.endswith(f"etc_t:s0 cannot be told within the managed plugin: usable is {LABEL}")

    def test_off(self) -> None:
        """Where SELinux is off in the kernel, or set off, none is applied."""
        assert not Labels.open(SELinux.OFF, managed=True).applied
