"""What a container may do with each label, as the policy has it: one start with a volume of each."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from .guest import OWNED, Audit, Docker, Hostprep, label, set_label

ALL = "write read list"


class Row(NamedTuple):
    """A label option, the same on disk, and what a container as 184:998 may do with a 0750 of 184:998."""

    option: str
    on_disk: str
    may: str


ROWS = [
    Row("container_file_t", "system_u:object_r:container_file_t:s0", ALL),
    Row("svirt_sandbox_file_t", "system_u:object_r:container_file_t:s0", ALL),
    Row("container_var_lib_t", "system_u:object_r:container_var_lib_t:s0", ALL),
    Row("docker_var_lib_t", "system_u:object_r:container_var_lib_t:s0", ALL),
    Row("container_ro_file_t", "system_u:object_r:container_ro_file_t:s0", "read list"),
    Row("system_u:object_r:etc_t:s0", "system_u:object_r:etc_t:s0", "read list"),
    Row("usr_t:s0", "system_u:object_r:usr_t:s0", "read list"),
    Row("user_home_t", "system_u:object_r:user_home_t:s0", ""),
    Row("default_t", "system_u:object_r:default_t:s0", ""),
    Row("mnt_t", "system_u:object_r:mnt_t:s0", ""),
    Row("tmp_t", "system_u:object_r:tmp_t:s0", ""),
    Row("var_lib_t", "system_u:object_r:var_lib_t:s0", "names"),
    Row("none", "system_u:object_r:var_lib_t:s0", "names"),
    Row("var_t", "system_u:object_r:var_t:s0", "names"),
    Row("container_file_t:s0:c2,c1", "system_u:object_r:container_file_t:s0:c1,c2", ""),
]
TRY = """
    for volume in /volumes/*; do
        echo ${volume#/volumes/}
        { echo written > $volume/new; } 2> /dev/null && echo write
        cat $volume/file > /dev/null 2>&1 && echo read
        set -- $volume/*
        if ls $volume > /dev/null 2>&1; then echo list; elif [ "$1" != "$volume/*" ]; then echo names; fi
        echo
    done
"""
PRIVATE = "system_u:object_r:container_file_t:s0:c1,c2"


class Seen(NamedTuple):
    """What became of a row."""

    on_disk: str
    may: str
    warnings: list[str]


@pytest.fixture(scope="module")
def seen(server: Hostprep) -> dict[Row, Seen]:
    """For each row the label on disk, what the container could do, and what Status warns of."""
    docker, names, on_disk, warnings = Docker(), {}, {}, {}
    audit = Audit()
    for number, row in enumerate(ROWS):
        name = names[row] = f"vol{number:02}"
        directory = server.create(name, **OWNED, mode="0750", label=row.option)
        on_disk[row] = label(directory)
        warnings[row] = server.status(name)["warnings"]
        (directory / "file").touch()
        set_label(directory / "file", on_disk[row])  # in a tmp_t a new file is of another type
    mounts = [f"--mount=type=volume,volume-driver=hostprep,src={n},dst=/volumes/{n}" for n in names.values()]
    printed = docker("run", "--rm", "-u", "184:998", *mounts, "busybox", "sh", "-uc", TRY)
    docker.remove_everything()
    may = {name: " ".join(could) for name, *could in (block.split() for block in printed.split("\n\n"))}
    denied = {denial.target for denial in audit.denials()}
    # Whatever failed, failed for the label. About categories Debian's policy keeps quiet.
    assert denied == {row.on_disk for row in ROWS if row.may != ALL} - {PRIVATE}
    return {row: Seen(on_disk[row], may[name], warnings[row]) for row, name in names.items()}


@pytest.mark.parametrize("row", ROWS, ids=[row.option for row in ROWS])
def test_label(seen: dict[Row, Seen], row: Row) -> None:
    """A label is on disk under its canonical name, and containers may do with it what the table says."""
    assert (seen[row].on_disk, seen[row].may) == (row.on_disk, row.may)


@pytest.mark.parametrize("row", ROWS, ids=[row.option for row in ROWS])
def test_warning(seen: dict[Row, Seen], row: Row) -> None:
    """Status warns of what the container then was denied; categories are for those who have them."""
    if row.may == ALL or row.on_disk == PRIVATE:
        assert seen[row].warnings == []
        return
    (warning,) = seen[row].warnings
    assert warning.endswith("usable is system_u:object_r:container_file_t:s0")
    for access in ("read", "write"):
        assert (access in warning.split()) == (access not in row.may.split())


def test_categories(docker: Docker, audit: Audit) -> None:
    """A volume with categories is for containers that have them all; what these create has them too."""
    private = docker.create("private", label="container_file_t:s0:c1,c2")
    docker.create("shared", label="container_file_t:s0")
    shared = "echo $HOSTNAME >> /shared/file; cat /shared/file"
    script = f"echo $HOSTNAME >> /data/file; cat /data/file; {shared}"

    def run(hostname: str, level: str, script: str) -> str:
        flags = ("-v", "shared:/shared", "-h", hostname, f"--security-opt=label=level:{level}")
        return docker.run("private:/data", script, *flags)

    assert run("same", "s0:c1,c2", script) == "same\nsame"
    assert run("more", "s0:c1,c2,c7", script) == "same\nmore\nsame\nmore"
    assert label(private / "file") == label(private) == PRIVATE
    assert audit.denials() == []

    assert "Permission denied" in run("other", "s0:c3,c4", script)
    assert run("other", "s0:c3,c4", shared) == "same\nmore\nother"
