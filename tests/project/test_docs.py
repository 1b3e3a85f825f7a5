"""README and the pages under docs/: what a user reads there, pastes or follows is true."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hostprep.cli.commands import group
from hostprep.options import KNOWN, Options
from hostprep.settings import Settings
from tests.support.host import REPOSITORY
from tests.support.pages import README, code, section

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
PAGE = (REPOSITORY / "docs" / "compose.md").read_text()
_CONTEXT = click.Context(group)
COMMANDS = {name: command for name in group.list_commands(_CONTEXT) if (command := group.get_command(_CONTEXT, name))}
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


def first_column(heading: str) -> list[str]:
    """The first cells of the first table below a heading, but for its head."""
    rows = re.search(r"(?:^\|.*\n)+", section(heading), re.MULTILINE)
    assert rows
    return [re.split(r"(?<!\\)\|", row)[1].strip() for row in rows[0].splitlines()[2:]]


def anchors(page: str) -> set[str]:
    """What a link to a heading of a page can name, as GitHub makes it of the heading."""
    headings = re.findall(r"^#+ (.+)$", (REPOSITORY / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_options_table() -> None:
    """README's table of options has each option that is accepted, and no other."""
    assert sorted(word for cell in first_column("Options") for word in re.findall(r"`(\w+)`", cell)) == sorted(KNOWN)


def test_settings_table() -> None:
    """README's table of settings has each setting with its default, and no other."""
    rows = re.findall(r"^\| `HOSTPREP_(\w+)` \| (\S+) \|", section("Settings"), re.MULTILINE)
    assert [f"`HOSTPREP_{name}`" for name, _ in rows] == first_column("Settings")
    assert {name.lower() for name, _ in rows} == Settings.__dataclass_fields__.keys() - {"managed"}
    shown = {f"HOSTPREP_{name}": value.strip("`") for name, value in rows if value != "empty"}
    assert Settings.read(shown) == Settings()


def test_commands_table() -> None:
    """README's table of commands has each command and each of its flags, and no other."""
    lines = re.findall(r"`hostprep ([^`]+)`", " ".join(first_column("Commands")))
    named = {line.split()[0] for line in lines}
    assert named == COMMANDS.keys()
    flags = {
        name: {each for line in lines if line.split()[0] == name for each in re.findall(r"--[\w-]+", line)}
        for name in named
    }
    for name, command in COMMANDS.items():
        assert flags[name] == own_flags(command) - {"--opt", "--json"}, name
    with_json = re.search(r"((?:`\w+`,? (?:and )?)+)have `--json`", re.sub(r"\s+", " ", section("Commands")))
    assert with_json
    assert set(re.findall(r"\w+(?=`)", with_json[1])) == {
        n for n, each in COMMANDS.items() if "--json" in own_flags(each)
    }


def own_flags(command: click.Command) -> set[str]:
    return {flag for each in command.params for flag in each.opts if flag.startswith("--")}


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_shown(page: str) -> None:
    """Each command of hostprep's that a page tells to run is there, and has the flags that are given to it."""
    text = (REPOSITORY / page).read_text()
    for line in [*code(text), *re.findall(r"`([^`\n]+)`", text)]:
        if shown := re.match(r"hostprep ([a-z]+)([^#&;]*)", line):
            flags = set(re.findall(r"--[\w-]+", shown[2]))
            assert flags <= own_flags(COMMANDS[shown[1]]), line


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    """Each link of a page leads to a file, and to a heading, that is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (REPOSITORY / page).read_text()):
        file, _, heading = target.partition("#")
        path = (REPOSITORY / page).parent / file if file else REPOSITORY / page
        assert path.exists(), target
        if heading:
            assert heading in anchors(str(path.resolve().relative_to(REPOSITORY))), target


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/compose.md"])  # it names those of images
def test_files_that_are_named(page: str) -> None:
    """Each file of the repository that a page names is there."""
    named = re.findall(
        r"`((?:plugin|tests|docs|systemd|managed|testbed|bench|demo|\.ci)/[\w/.-]*)`", (REPOSITORY / page).read_text()
    )
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    assert page != "README.md" or len(named) > 10


def test_first_volume() -> None:
    """README's first Compose file and first volume have options that are accepted, the same in all places."""
    (compose,) = re.findall(r"^```yaml\n(.*?)^```$", section("Your first volume"), re.MULTILINE | re.DOTALL)
    ((name, options),) = volumes(compose)
    shown = "\n".join(code(section("Your first volume")))
    (create,) = re.findall(r"^docker volume create -d hostprep (.*) (\w+)$", shown, re.MULTILINE)
    assert create[1] == name
    assert Options.parse(dict(re.findall(r"-o (\w+)=(\S+)", create[0]))) == options
    assert f"{create[0]} {create[1]}" in README[: README.index("## Install")]
    assert f"| mongo | {options.uid}:{options.gid} |" in PAGE


def test_glossary() -> None:
    """The glossary has the words that hostprep uses in its own way."""
    words = {word for cell in first_column("Glossary") for word in cell.split(", ")}
    assert words >= {"root", "start", "pass", "mark", "adopted", "retained", "drift", "ready", "trash", "purge", "pin"}
