"""The pages under docs/: their Compose files are what a user pastes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostprep.options import Options
from tests.support.host import REPOSITORY

PAGE = (REPOSITORY / "docs" / "compose.md").read_text()
_OPTIONS = re.compile(r"    driver_opts: \{ (.*) \}")
_PAIR = re.compile(r'([a-z_]+): "([^"]*)"')
_USED = re.compile(r"      - ([a-z-]+):/\S+")


def examples() -> dict[str, str]:
    """The Compose file of each section, by its heading."""
    found = re.findall(r"^## (.+?)$.*?^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == PAGE.count("```yaml")
    return dict(found)


EXAMPLES = examples()


def volumes(text: str) -> Iterator[tuple[str, Options]]:
    """The volumes that a file declares, strictly as this page writes them: name, driver, options on one line."""
    lines = iter(text[text.index("\nvolumes:\n") + len("\nvolumes:\n") :].splitlines())
    for line in lines:
        name = re.fullmatch(r"  ([a-z-]+):", line)
        assert name, line
        assert next(lines) == "    driver: hostprep"
        declared = _OPTIONS.fullmatch(next(lines))
        assert declared, "driver_opts on one line"
        pairs = declared[1].split(", ")
        read = [_PAIR.fullmatch(pair) for pair in pairs]
        assert all(read), f"every value in quotes: {pairs}"
        yield name[1], Options.parse({pair[1]: pair[2] for pair in read if pair})


def test_all_that_are_promised() -> None:
    """There is a complete example of each image that the table names."""
    assert list(EXAMPLES) == [
        "PostgreSQL",
        "MongoDB",
        "Redis",
        "MariaDB",
        "Elasticsearch",
        "Grafana",
        "Nextcloud",
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_options(name: str) -> None:
    """Each volume's driver_opts are accepted; what is used is declared, and what is declared used."""
    text = EXAMPLES[name]
    declared = dict(volumes(text))
    assert all(options.uid is not None and options.gid is not None for options in declared.values())
    assert sorted(declared) == sorted(_USED.findall(text))


@pytest.mark.parametrize("name", EXAMPLES)
def test_numbers(name: str) -> None:
    """The numbers of an example are those of the table, where they are those of its image."""
    table = dict(re.findall(r"^\| (\S+) \| (\d+:\d+) \|", PAGE, re.MULTILINE))
    image = re.findall(r"    image: (?:\S+/)?([a-z]+):", EXAMPLES[name])[-1]
    wanted = next(numbers for each, numbers in table.items() if each.split("/")[-1] == image)
    options = list(dict(volumes(EXAMPLES[name])).values())[-1]
    assert f"{options.uid}:{options.gid}" == wanted


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("name", EXAMPLES)
def test_compose_reads_it(name: str, tmp_path: Path) -> None:
    """Compose accepts each file, and finds hostprep in it."""
    (tmp_path / "compose.yaml").write_text(EXAMPLES[name])
    passwords = {f"{each}_PASSWORD": "x" for each in ("POSTGRES", "MONGO", "MARIADB", "ELASTIC", "DB")}
    done = subprocess.run(
        ["docker-compose", "-f", "compose.yaml", "config"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **passwords},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "driver: hostprep" in done.stdout


def test_findings() -> None:
    """docs/doctor.md has every name that a finding of doctor's can have."""
    page = (REPOSITORY / "docs" / "doctor.md").read_text()
    sources = [
        (REPOSITORY / "plugin/hostprep/doctor" / f"{name}.py").read_text()
        for name in ("diagnose", "filesystem", "ownership", "confinement")
    ]
    names = set(re.findall(r'Finding\(\s*"([a-z_ -]+)"', "".join(sources))) | {"acl", "mode", "no owners", "no labels"}
    assert len(names) > 15
    assert [name for name in sorted(names - {"filesystem"}) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", ["README.md", "docs/doctor.md"])
def test_pictures(page: str) -> None:
    """The pictures of a page are there, and nothing is fetched from elsewhere to look at them."""
    path = REPOSITORY / page
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", path.read_text())
    assert pictures
    for picture in pictures:
        text = (path.parent / picture).read_text()
        assert set(re.findall(r'(?:href|src|url)\s*[=(]\s*"?([^#"\s)][^"\s)]*)', text)) == set()
        assert "hostprep&#160;" in text
