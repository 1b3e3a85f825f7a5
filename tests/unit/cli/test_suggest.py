"""What is ready to paste: names, quoting, and nothing that a shell, YAML or Compose would read otherwise."""

from __future__ import annotations

import json
import shlex

import pytest

from hostprep.cli.suggest import suggest
from hostprep.engine.image import Config, Directory, ProbeResult, User


def findings(*paths: str, image: str = "mongo:7") -> ProbeResult:
    found = tuple(Directory(path, path, (), None, 184, 998, switches_user=False, why=("",)) for path in paths)
    return ProbeResult(image, Config("sha256:1", "", paths, has_program=True), User("", 0, 0, (), ""), found)


def test_one_volume() -> None:
    """One directory is one volume, called as the image is."""
    made = suggest(findings("/data"), None)
    assert made is not None
    assert made.create == ("docker volume create -d hostprep -o uid=184 -o gid=998 mongo",)
    assert made.run == "docker run -d -v mongo:/data mongo:7"
    assert made.compose.splitlines() == [
        "services:",
        "  mongo:",
        "    image: mongo:7",
        "    volumes:",
        "      - mongo:/data",
        "volumes:",
        "  mongo:",
        "    driver: hostprep",
        '    driver_opts: { uid: "184", gid: "998" }',
    ]


def test_several_volumes() -> None:
    """Several are called after their directories, each by a name of its own."""
    made = suggest(findings("/data", "/srv/data", "/a/..b.."), None)
    assert made is not None
    assert [command.split()[-1] for command in made.create] == ["mongo-data", "mongo-data-2", "mongo-b"]


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("mongo", "mongo"),
        ("host:5000/team/mongo.db@sha256:" + "0" * 64, "mongo-db"),
        ("a", "a-data"),
        ("sha256:" + "0" * 64, "data"),
        ("0123456789ab", "data"),
        ("7", "7-data"),
    ],
)
def test_the_name(image: str, name: str) -> None:
    """A volume is called by the last word of the image's name; never by one letter, which clients take for a drive."""
    made = suggest(findings("/data", image=image), None)
    assert made is not None
    assert made.create[0].split()[-1] == name


def test_a_user() -> None:
    """A user that was asked for is in the command and in the file."""
    made = suggest(findings("/data"), "5:6")
    assert made is not None
    assert made.run.split()[3:5] == ["-u", "5:6"]
    assert '    user: "5:6"' in made.compose.splitlines()


@pytest.mark.parametrize("path", ["/a b", "/a'b", "/$HOME", '/a"b', "/a;reboot", "/a:b", "/a:b,c", "/ä", "/- x: {y}"])
def test_paths_of_all_kinds(path: str) -> None:
    """Whatever is in a path, the shell, the client's CSV and YAML read it as it is."""
    made = suggest(findings(path), None)
    assert made is not None
    words = shlex.split(made.run)
    assert words[-1] == "mongo:7"
    (line,) = [line.strip() for line in made.compose.splitlines() if line.startswith("      - ")]
    if ":" in path:
        assert words[3] == "--mount"
        assert words[4].startswith("type=volume,source=mongo,")
        assert f"target={path}" in words[4]
        text = line.partition("target: ")[2].removesuffix(" }")
    else:
        assert words[3:5] == ["-v", f"mongo:{path}"]
        text = line.removeprefix("- ")
    text = json.loads(text) if text.startswith('"') else text
    assert text.replace("$$", "$").removeprefix("mongo:") == path


@pytest.mark.parametrize("path", ["/a\nreboot", "/a\x1b[31m"])
def test_control_characters(path: str) -> None:
    """For a path with control characters nothing is shown to paste, and the others are."""
    assert suggest(findings(path), None) is None
    made = suggest(findings(path, "/data"), None)
    assert made is not None
    assert len(made.create) == 1
    assert suggest(findings("/data"), "a\nb") is None


def test_nothing() -> None:
    """Without a directory there is nothing to paste."""
    assert suggest(findings(), None) is None
