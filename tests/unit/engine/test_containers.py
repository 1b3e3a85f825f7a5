"""Containers as engines describe them. Real ones: tests/engine."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hostprep.engine.containers import Container, remap_of, seen_from_here
from hostprep.errors import NoContainer

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


def test_described() -> None:
    """What counts of a container: who, where, with which power."""
    found = Container.parse(INSPECTED)
    assert (found.name, found.pid, found.user, found.groups, found.overrides) == ("web", 42, "app", ("44",), False)
    mounted = found.has("mongo")
    assert mounted is not None
    assert (mounted.at, mounted.writable) == ("/data", False)
    assert found.has("other") is None


def test_twice() -> None:
    """A volume that it has twice counts as it may be written; a part of one is known to be a part."""
    first = INSPECTED["Mounts"][0]
    host = {"Mounts": [{"Target": "/all", "VolumeOptions": {"Subpath": "a/b"}}, {"Target": "/data"}]}
    mounts = [first, {**first, "Destination": "/all", "RW": True}]
    mounted = Container.parse(changed(Mounts=mounts, HostConfig=host)).has("mongo")
    assert mounted is not None
    assert (mounted.at, mounted.subpath) == ("/all", "a/b")


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
def test_power(host: dict[str, Any], overrides: bool) -> None:  # noqa: FBT001
    """Whether root in it has power over files."""
    assert Container.parse(changed(HostConfig=host)).overrides is overrides


def test_stopped() -> None:
    """One that does not run has no process, whatever number is left."""
    assert Container.parse(changed(State={"Running": False, "Pid": 42})).pid == 0


@pytest.mark.parametrize(
    "answer",
    [None, [], "x", {}, changed(Config=None), changed(State=[]), changed(Mounts=[{}]), changed(HostConfig=7)],
    ids=lambda answer: str(answer)[:20],
)
def test_another_shape(answer: Any) -> None:
    """Whatever else an engine answers is an error in words."""
    with pytest.raises(NoContainer):
        Container.parse(answer)


@pytest.mark.parametrize(
    ("info", "uid"),
    [
        ({"SecurityOptions": ["name=seccomp"], "DockerRootDir": "/var/lib/docker/1.2"}, None),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker/100000.200000"}, 100184),
        ({"SecurityOptions": ["name=userns"], "DockerRootDir": "/var/lib/docker"}, None),
        ({"SecurityOptions": None}, None),
    ],
)
def test_remapping_engine(info: dict[str, Any], uid: int | None) -> None:
    """What an engine with userns-remap gives is in the name of its data directory."""
    remap = remap_of(info)
    assert (remap and remap.uid(184)) == uid


def test_somebody_elses_number() -> None:
    """A process that is not of the container, as in another pid namespace, is not taken for it."""
    assert not seen_from_here(Container.parse(changed(State={"Running": True, "Pid": os.getpid()}, Id="f" * 64)))
    assert not seen_from_here(Container.parse(changed(State={"Running": True, "Pid": 2**22 + 1})))
    assert not seen_from_here(Container.parse(changed(State={})))
