"""The manual pages: they are right roff, and have all that --help and README say."""

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
from hostprep.options import KNOWN
from hostprep.settings import Settings
from manual import roff
from manual.pages import EXITS, pages
from tests.support.host import PYTHON, REPOSITORY
from tests.support.pages import code, section

PAGES = pages()
CONTEXT = click.Context(group, info_name="hostprep", **group.context_settings)
COMMANDS = {name: each for name in group.list_commands(CONTEXT) if (each := group.get_command(CONTEXT, name))}


def shown(name: str) -> str:
    """What a reader sees of a page, as one line."""
    text = re.sub(r"\\%|\\&|\\f[BIP]", "", PAGES[name])
    text = re.sub(r"^\.(?:PP|TP|br|RS 4|RE|EX|EE|IP.*)\n", "", text, flags=re.MULTILINE)
    for sign, escaped in roff.ESCAPES.items():
        text = text.replace(escaped, sign)
    return words(text)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def part(name: str, heading: str) -> str:
    found = re.search(rf"\.SH {heading} (.*?)(?= \.SH |$)", shown(name))
    assert found, f"{name} has no {heading}"
    return found[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as files."""
    directory = tmp_path_factory.mktemp("man")
    write(directory)
    return directory


def write(directory: Path, **environ: str) -> None:
    subprocess.run(
        [PYTHON, "-m", "manual", str(directory)], cwd=REPOSITORY, env={**os.environ, **environ}, check=True, timeout=60
    )


def test_a_page_for_each() -> None:
    """hostprep(8), a page for each command, and hostprep.env(5)."""
    assert PAGES.keys() == {"hostprep.8", "hostprep.env.5", *(f"hostprep-{name}.8" for name in COMMANDS)}


def test_a_new_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is added to hostprep has a page, with its arguments and flags, and the other pages name it."""

    @click.command()
    @click.argument("name")
    @click.option("--deep", metavar="LEVELS", help="Follow no more than LEVELS levels.")
    def mend(name: str, deep: str) -> None:
        """Mend a volume.

        All of it.
        """

    names, get = [*COMMANDS, "mend"], group.get_command
    monkeypatch.setattr(group, "list_commands", lambda context: names)
    monkeypatch.setattr(group, "get_command", lambda context, name: mend if name == "mend" else get(context, name))
    made = pages()
    monkeypatch.setitem(PAGES, "hostprep-mend.8", made["hostprep-mend.8"])
    assert part("hostprep-mend.8", "NAME") == "hostprep-mend - mend a volume"
    assert part("hostprep-mend.8", "SYNOPSIS") == "hostprep mend [--deep LEVELS] NAME"
    assert part("hostprep-mend.8", "DESCRIPTION") == "Mend a volume. All of it."
    assert "--deep LEVELS Follow no more than LEVELS levels." in part("hostprep-mend.8", "OPTIONS")
    assert all("hostprep\\-mend" in text for name, text in made.items() if name != "hostprep.env.5")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_man(written: Path, name: str, width: str) -> None:
    """man shows the page without a warning."""
    if shutil.which("man") is None:
        pytest.skip("man-db is not installed")
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": width, "HOME": "/"}
    argv = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(next(written.rglob(name)))]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("name", PAGES)
def test_mandoc(written: Path, name: str) -> None:
    """mandoc finds nothing to complain about, style included."""
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    argv = ["mandoc", "-T", "lint", "-W", "style", str(next(written.rglob(name)))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", PAGES)
def test_no_markdown(name: str) -> None:
    """Nothing of README's markup is left in a page, but in lines of code."""
    text = re.sub(r"^\.EX\n.*?^\.EE\n", "", PAGES[name], flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\\\(ga|`|\*\*|\]\(|\|\s", text) == []


@pytest.mark.parametrize("name", PAGES)
def test_no_break_in_what_is_typed(name: str) -> None:
    """roff takes its sign for an unbroken word as one only at the beginning: elsewhere it allows a break."""
    assert re.findall(r"\S+\\%\S*", PAGES[name]) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_command(name: str) -> None:
    """A command's page has the words of its --help, each flag with its help, and each section in its place."""
    page, command = f"hostprep-{name}.8", COMMANDS[name]
    context = click.Context(command, CONTEXT, info_name=name)
    headings = re.findall(r"^\.SH (.*)$", PAGES[page], re.MULTILINE)
    driver_options = ["DRIVER OPTIONS"] if any("-o" in each.opts for each in command.params) else []
    assert headings == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"),
        *driver_options,
        *("EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"),
    ]
    help_ = words(command.get_help(context))
    assert command.help
    assert part(page, "DESCRIPTION").startswith(words(command.help))
    assert words(command.help) in help_
    for each in command.get_params(context):
        if isinstance(each, click.Option):
            flags, text = each.get_help_record(context) or ("", "")
            assert f"{flags} {words(text)}" in part(page, "OPTIONS")
            assert flags in help_
    for flag in re.findall(r"--[\w-]+", part(page, "SYNOPSIS")):
        assert flag in help_


def test_overview() -> None:
    """hostprep(8) has each command, each flag, and each option of a volume with the words of README."""
    for name, command in COMMANDS.items():
        assert f"hostprep-{name}(8) {words(command.help or '').partition('. ')[0]}" in part("hostprep.8", "COMMANDS")
    for each in group.get_params(CONTEXT):
        assert " ".join(each.get_help_record(CONTEXT) or ()) in part("hostprep.8", "OPTIONS")
    options = part("hostprep.8", "DRIVER OPTIONS")
    assert [key for key in KNOWN if not re.search(rf"\b{key}\b", options)] == []
    for cell in cells("Options", (2, 3)):
        assert cell in options.replace("When absent: ", "")


def test_settings() -> None:
    """hostprep.env(5) has each setting with its default, in the words of README."""
    text = part("hostprep.env.5", "DESCRIPTION")
    for field in Settings.__dataclass_fields__.keys() - {"managed"}:
        assert f"HOSTPREP_{field.upper()} " in text
    for cell in cells("Settings", (2,)):
        assert f"Default: {cell}." in text
    for cell in cells("Settings", (3,)):
        assert cell in f"{text} {text.lower()}" or cell[1:] in text


def cells(heading: str, columns: tuple[int, ...]) -> Iterator[str]:
    """Cells of the first table of a section of README, without markup."""
    rows = re.findall(r"^\|(?!-).*$", section(heading), re.MULTILINE)[1:]
    assert len(rows) > 8
    for row in rows:
        for column in columns:
            cell = re.split(r"(?<!\\)\|", row)[column].strip().replace(r"\|", "|")
            cell = re.sub(
                r"\[([^]]+)\]\(([^)#]+)(?:#[^)]*)?\)", lambda m: m[1] if m[1] == m[2] else f"{m[1]} ({m[2]})", cell
            )
            if cell:
                found = words(re.sub(r"[`*]", "", cell)).replace("…", "...")
                yield found[1:] if column > 1 and heading == "Options" else found


def test_exit_status(tmp_path: Path) -> None:
    """What the pages say of the exit status is so."""
    ended = {
        "0": ["--version"],
        "1": ["--root", str(tmp_path / "none"), "status", "mongo"],
        "2": ["status", "--colour", "mongo"],
    }
    for code_, argv in ended.items():
        done = subprocess.run(
            [PYTHON, "-m", "hostprep", *argv], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
        )
        assert str(done.returncode) == code_
        assert bool(done.stderr) is (code_ != "0")
    assert EXITS.keys() == {*ended, "130"}
    interrupted = (
        "import sys; from hostprep.cli import volumes; from hostprep.__main__ import main\n"
        "def interrupt(*args, **options): raise KeyboardInterrupt\n"
        "volumes.Driver.open = interrupt\n"
        "sys.argv[1:] = ['ls']; main()"
    )
    assert subprocess.run([PYTHON, "-c", interrupted], cwd=REPOSITORY, check=False, timeout=60).returncode == 130


def test_examples() -> None:
    """Each example is one of README's or of a page's, as it stands there."""
    known = {
        words(line)
        for page in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md")]
        for line in code(page.read_text())
    }
    for name in COMMANDS:
        (lines,) = re.findall(
            r"^\.SH EXAMPLES\n\.RS 4\n\.EX\n(.*?)^\.EE$", PAGES[f"hostprep-{name}.8"], re.MULTILINE | re.DOTALL
        )
        for line in lines.splitlines():
            for sign, escaped in roff.ESCAPES.items():
                line = line.replace(escaped, sign)
            assert words(line) in known
            assert line.startswith(f"hostprep {name}")


def test_reproducible(tmp_path: Path) -> None:
    """Two builds are the same, and have the day that SOURCE_DATE_EPOCH says; without it, that of the last commit."""
    made = []
    for zone in ("UTC", "Pacific/Kiritimati"):
        write(tmp_path / zone, SOURCE_DATE_EPOCH="86399", TZ=zone)
        made.append({path.name: path.read_bytes() for path in (tmp_path / zone).rglob("*.[58]")})
    assert made[0] == made[1]
    assert b" 1970-01-01 " in made[0]["hostprep.8"]
    write(tmp_path / "now", SOURCE_DATE_EPOCH="")
    last = subprocess.run(
        ["git", "log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%d"],
        cwd=REPOSITORY, env={**os.environ, "TZ": "UTC"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f" {last.stdout.strip()} " in (tmp_path / "now/man8/hostprep.8").read_text()


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (".profile is no macro", r"\&.profile is no macro"),
        ("'quoted' at the beginning", r"\(aqquoted\(aq at the beginning"),
        (r"C:\data and `a\b`", r"C:\edata and \fB\%a\eb\fP"),
        ("`rm -rf -- *`", r"\fB\%rm \%\-rf \%\-\- \%*\fP"),
        ("well-known, **very `much` so**, *yes*", r"well-known, \fB\%very \%much \%so\fP, \fI\%yes\fP"),
        ("µs … ~/x", r"\[u00B5]s ... \(ti/x"),
        ("[there](docs/x.md#y), [docs/x.md](docs/x.md), [here](#y)", "there (docs/x.md), docs/x.md, here"),
    ],
)
def test_roff(text: str, made: str) -> None:
    """Text with a meaning for roff is shown as it is; README's markup becomes roff's."""
    assert roff.line(roff.markdown(text)) == made
