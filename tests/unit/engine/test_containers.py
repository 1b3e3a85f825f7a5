"""Containers and engines as engines describe them. Real ones: tests/engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hostprep.engine.containers import Container, EngineInfo
from hostprep.errors import NoContainer, NoEngine
from hostprep.host import userns

INSPECTED: dict[str, Any] = {
    "Id": "ab12",
    "Name": "/web",
    "Image": "sha256:1",
    "State": {"Running": True, "Pid": 42},
    "Config": {"User": "app"},
    "HostConfig": {"GroupAdd": ["44"], "CapAdd": None, "CapDrop": ["CAP_DAC_OVERRIDE"], "UsernsMode": ""},
    "ProcessLabel": "",
    "Mounts": [{"Type": "volume", "Name": "mongo", "Driver": "hostprep", "Destination": "/data", "RW": False}],
}


def changed(**values: Any) -> dict[str, Any]:
    return {**INSPECTED, **values}


def test_inspected_container() -> None:
    """An inspect tells name, process, user, groups, capabilities and mounts."""
    found = Container.parse(INSPECTED)
    assert (found.name, found.pid, found.user, found.groups, found.overrides) == ("web", 42, "app", ("44",), False)
    assert [(each.at, each.writable) for each in found.mounts_of("mongo")] == [("/data", False)]
    assert found.mounts_of("other") == []


def test_volume_mounted_twice() -> None:
    """Of two mounts of a volume the writable one comes first; its subpath is known."""
    first = INSPECTED["Mounts"][0]
    host = {"Mounts": [{"Target": "/all", "VolumeOptions": {"Subpath": "a/b"}}, {"Target": "/data"}]}
    mounts = [first, {**first, "Destination": "/all", "RW": True}]
    found = Container.parse(changed(Mounts=mounts, HostConfig=host)).mounts_of("mongo")
    assert [(each.at, each.subpath) for each in found] == [("/all", "a/b"), ("/data", "")]


@pytest.mark.parametrize(
    ("given", "subpath"), [("a/b/", "a/b"), ("/a", "a"), ("a/../b", "b"), ("./a", "a"), ("/", ""), ("../a", "a")]
)
def test_subpath(given: str, subpath: str) -> None:
    """A subpath is what engines make of it, and never leads out; Podman tells it with the mount."""
    mounts = [{**INSPECTED["Mounts"][0], "SubPath": given}]
    (found,) = Container.parse(changed(Mounts=mounts)).mounts_of("mongo")
    assert found.subpath == subpath


@pytest.mark.parametrize(
    ("host", "overrides"),
    [
        ({}, True),
        ({"CapDrop": ["ALL"]}, False),
        ({"CapDrop": ["all"], "CapAdd": ["DAC_OVERRIDE"]}, True),
        ({"CapDrop": ["ALL"], "Privileged": True}, True),
        ({"CapDrop": ["CHOWN"]}, True),
    ],
    ids=str,
)
def test_dac_override(host: dict[str, Any], overrides: bool) -> None:  # noqa: FBT001
    """Root in a container keeps CAP_DAC_OVERRIDE unless it is dropped, and in a privileged one always."""
    assert Container.parse(changed(HostConfig=host)).overrides is overrides


def test_stopped_container() -> None:
    """A container that does not run has no process, whatever number is left."""
    assert Container.parse(changed(State={"Running": False, "Pid": 42})).pid == 0


@pytest.mark.parametrize(
    "answer",
    [None, [], "x", {}, changed(Config=None), changed(State=[]), changed(Mounts=[{}]), changed(HostConfig=7)],
    ids=lambda answer: str(answer)[:20],
)
def test_malformed_inspect(answer: Any) -> None:
    """An inspect of another shape is an error in words."""
    with pytest.raises(NoContainer):
        Container.parse(answer)


@pytest.mark.parametrize(
    ("info", "uid"),
    [
        ({"SecurityOptions": ["name=seccomp"], "DockerRootDir": "/var/lib/docker/1.2"}, None),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/100000.200000"}, 400000),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/300000.300000"}, None),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/500000.500000"}, None),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker"}, None),
        ({"SecurityOptions": None}, None),
    ],
)
def test_userns_remap(info: dict[str, Any], uid: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ids of an engine with userns-remap are in the name of its data directory, the rest in /etc/subuid.

    Where nobody's ranges begin with them, or those of two who have others, it cannot be told.
    """
    two = "one:500000:10\none:700000:10\ntwo:500000:20\n"
    (tmp_path / "subuid").write_text(f"lab:100000:1000\nlab:400000:1000\n{two}")
    (tmp_path / "subgid").write_text(f"lab:200000:65536\n{two}")
    for which in ("subuid", "subgid"):
        monkeypatch.setattr(userns, which.upper(), str(tmp_path / which))
    remap = EngineInfo.parse(info).remap
    assert (remap and remap.uid(1000)) == uid


@pytest.mark.parametrize("answer", [None, [], "x"], ids=str)
def test_malformed_info(answer: Any) -> None:
    """An info of another shape is an error in words."""
    with pytest.raises(NoEngine):
        EngineInfo.parse(answer)


def test_process_of_another() -> None:
    """A process that is not the container's, as in another pid namespace, is not taken for it."""
    assert not Container.parse(changed(State={"Running": True, "Pid": os.getpid()}, Id="f" * 64)).seen_from_here()
    assert not Container.parse(changed(State={"Running": True, "Pid": 2**22 + 1})).seen_from_here()
    assert not Container.parse(changed(State={})).seen_from_here()
