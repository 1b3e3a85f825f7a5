"""What bash, zsh and fish complete, with the files that `make install` gives them and a real root."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hostprep.cli.commands import group
from hostprep.errors import BadSetting
from hostprep.options import KNOWN, Options
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
from tests.support.hanging import hanging
from tests.support.host import PYTHON, REPOSITORY, Host, soon

from .test_install import COMPLETIONS, LIB, SHARE, make

pytestmark = pytest.mark.root
COMMAND = "/usr/local/bin/hostprep"
SHOW, ALL, DISCARD = "\x0f", "\x14", "\x15"
"""Ctrl-O, Ctrl-T, Ctrl-U: print the line that is being edited, insert every candidate, begin a new line."""
BEGIN = {
    "bash": r"""
        source /usr/share/bash-completion/bash_completion
        bind -x '"\C-o": printf "<%s>\n" "$READLINE_LINE"'
        bind '"\C-t": insert-completions'
        PS1='ready> '
        """,
    "zsh": r"""
        fpath=($XDG_DATA_DIRS/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -d $HOME/dump
        zstyle ':completion:all-matches::::' completer _all_matches _complete
        zstyle ':completion:all-matches:*' insert true
        zle -C all-matches complete-word _generic; bindkey '^T' all-matches
        show() { print -r -- "<$BUFFER>" }; zle -N show; bindkey '^O' show
        PS1='ready> '
        """,
}


class Shell:
    """A shell with somebody at it, who types a line and asks what can follow."""

    def __init__(self, name: str, share: Path, home: Path, environ: dict[str, str]) -> None:
        self.name = name
        self.environ = {**environ, "HOME": str(home), "XDG_DATA_DIRS": str(share), "TERM": "dumb", "LC_ALL": "C"}
        if name == "fish":
            return
        for file in (".bashrc", ".zshrc"):
            (home / file).write_text(BEGIN[name])
        argv = {"bash": ["bash", "--rcfile", str(home / ".bashrc"), "-i"], "zsh": ["zsh", "-d", "-i"]}[name]
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            argv, env=self.environ, cwd="/", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self._until("ready> ")

    def end(self) -> None:
        if self.name != "fish":
            self._process.kill()
            self._process.wait()
            os.close(self._terminal)

    def __call__(self, line: str) -> list[str]:
        """What the last word of *line* can be, sorted."""
        if self.name == "fish":
            found = subprocess.run(
                ["fish", "-c", "complete -C $argv[1]", line],
                env=self.environ, cwd="/", capture_output=True, text=True, check=True, timeout=60,
            )  # fmt: skip
            assert found.stderr == ""
            return sorted(each.partition("\t")[0] for each in found.stdout.splitlines())
        shown = self.typed(line, ALL)
        if shown == line:
            return []
        word = line.rpartition(" ")[2]
        same = word[: 1 + max(word.rfind("="), word.rfind(":"))] if self.name == "bash" else ""  # what readline keeps
        after = shown[len(line) - len(word) + len(same) :].split()
        return sorted(f"{same}{each}" for each in after)

    def typed(self, line: str, key: str) -> str:
        """The line after *line* and *key* were typed. The line is discarded."""
        os.write(self._terminal, f"{line}{key}{SHOW}{DISCARD}".encode())
        return self._until(r"<(hostprep [^\r\n]*)>\r?\n")[1]

    def _until(self, pattern: str) -> re.Match[str]:
        """Wait until the shell has shown it."""
        shown = ""
        end = time.monotonic() + 60
        while not (found := re.search(pattern, shown)):
            assert time.monotonic() < end, shown
            if select.select([self._terminal], [], [], 1)[0]:
                shown += os.read(self._terminal, 65536).decode(errors="replace")
        return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation below a directory of its own, whose completions ask the command that is there."""
    destdir = tmp_path_factory.mktemp("destdir")
    done = make("install", destdir)
    assert done.returncode == 0, done.stderr
    for file in COMPLETIONS.values():
        path = destdir / file
        assert COMMAND in path.read_text()
        path.write_text(path.read_text().replace(COMMAND, str(destdir / LIB / "current/bin/hostprep")))
    return destdir


@pytest.fixture(params=COMPLETIONS)
def shell(request: pytest.FixtureRequest, installed: Path, host: Host, tmp_path: Path) -> Iterator[Shell]:
    """Each shell, at which root sits."""
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    if name == "bash" and not Path("/usr/share/bash-completion/bash_completion").exists():
        pytest.skip("bash-completion is not installed")
    home = tmp_path / "home"
    home.mkdir()
    path = f"{installed / LIB}/current/bin:{os.environ['PATH']}"  # fish completes no command that is not there
    opened = Shell(name, installed / SHARE, home, host.process_environ({"PATH": path}))
    yield opened
    opened.end()


@pytest.fixture
def stored(host: Host, driver: Driver) -> Host:
    """A host with two volumes, two that were removed, and one that is retained."""
    for name in ("mongo", "mongo-2", "old", "older", "kept"):
        driver.create(name, {"on_remove": "retain"} if name == "kept" else {}, soon())
    for name in ("old", "older", "kept"):
        driver.remove(name, soon())
    return host


def answer(host: Host, *words: str, script: str = "", **changed: str) -> subprocess.CompletedProcess[str]:
    """What hostprep answers to a shell."""
    environ = host.process_environ(
        {"_HOSTPREP_COMPLETE": "words_complete", "COMP_WORDS": "\n".join(["hostprep", *words]), **changed}
    )
    script = f"{script or 'from hostprep.__main__ import main'}\nmain()"
    return subprocess.run(
        [PYTHON, "-c", script], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def candidates(host: Host, *words: str, **changed: str) -> list[str]:
    return [line.split("\t")[1] for line in answer(host, *words, **changed).stdout.split("\n") if line]


class TestInTheShells:
    def test_commands_and_flags(self, shell: Shell) -> None:
        """Commands, their flags, those before the command, and the words that these can be."""
        assert shell("hostprep ") == sorted(group.list_commands(click.Context(group)))
        assert shell("hostprep re") == ["repair", "restore"]
        assert shell("hostprep apply mongo --no") == ["--no-wait"]
        assert shell("hostprep --sel") == ["--selinux"]
        assert shell("hostprep --selinux ") == ["auto", "force", "off", "required"]
        assert shell("hostprep --selinux=") == [f"--selinux={word}" for word in ("auto", "force", "off", "required")]
        assert shell("hostprep --selinux=auto --log-level w") == ["warning"]

    def test_options(self, shell: Shell) -> None:
        """The keys of -o, but for those that are given already, and the words that their values can be."""
        assert shell("hostprep create mongo -o ") == sorted(f"{key}=" for key in KNOWN)
        assert shell("hostprep create mongo -o uid=1 --opt gid=2 -o ") == sorted(
            f"{key}=" for key in KNOWN if key not in ("uid", "gid")
        )
        assert shell("hostprep apply mongo -o recurse=") == ["recurse=always", "recurse=mismatch", "recurse=never"]
        assert shell("hostprep import x --opt=on_remove=r") == ["--opt=on_remove=retain"]
        assert shell("hostprep create mongo -o label=") == ["label=container_file_t", "label=none"]
        assert shell("hostprep create mongo -o uid=") == []
        assert shell("hostprep apply mongo --unset on") == ["on_remove"]
        assert shell("hostprep prepare /srv -o ") == ["gid=", "label=", "mode=", "recurse=", "uid="]

    def test_names(self, shell: Shell, stored: Host) -> None:
        """Of volumes, of removed ones and their IDs, and of retained data: each where it is wanted."""
        ids = stored.trash()
        assert shell("hostprep rm ") == ["mongo", "mongo-2"]
        assert shell("hostprep rm --force mongo-") == ["mongo-2"]
        assert shell("hostprep rm --retained ") == ["kept"]
        assert shell("hostprep create ") == ["kept"]
        assert shell("hostprep restore ") == ["old", "older"]
        assert shell("hostprep restore old --id ") == ids
        assert shell(f"hostprep purge {ids[0]} {ids[1][:-1]}") == ids[1:]
        assert shell("hostprep import --from /srv ") == []
        assert shell(f"hostprep --root={stored.srv} rm ") == []

    def test_directories(self, shell: Shell, host: Host) -> None:
        """Directories, where a directory is wanted: alone, and behind an option's key or a flag."""
        for name in ("data", "data2"):
            (host.srv / name).mkdir()
        (host.srv / "data-file").touch()
        for before in ("prepare ", "create x -o path=", "--root ", "--root=", "import --from "):
            word = before.rpartition(" ")[2]
            found = shell(f"hostprep {before}{host.srv}/da")
            assert [each.rstrip("/") for each in found] == [f"{word}{host.srv}/{each}" for each in ("data", "data2")]
        assert f"{host.srv}/data-file" in shell(f"hostprep probe --archive {host.srv}/da")

    @pytest.mark.parametrize("name", ["a b", "a$(touch x)", "a'b", "a;b"])
    def test_a_name_that_needs_quotes(self, shell: Shell, host: Host, name: str) -> None:
        """A directory of any name is completed so that it is one word, and means nothing else to the shell."""
        (host.srv / name / "below").mkdir(parents=True)
        line = f"hostprep create x -o path={host.srv}/a"
        if shell.name == "fish":
            assert shell(line) == [f"path={host.srv}/{name}/"]  # fish adds the quotes when it inserts it
        else:
            typed = shell.typed(line, "\t")
            assert shlex.split(typed) == [*shlex.split(line)[:-1], f"path={host.srv}/{name}/"]
            if "'" not in name or shell.name == "zsh":  # bash's file takes a quote that has a backslash for an open one
                typed = shell.typed(f"{typed}b", "\t")
                assert shlex.split(typed) == [*shlex.split(line)[:-1], f"path={host.srv}/{name}/below/"]

    @pytest.mark.parametrize("quote", ["'", '"'])
    def test_an_open_quote(self, shell: Shell, stored: Host, quote: str) -> None:
        """A word that begins with a quote is completed, too."""
        if shell.name == "fish":
            assert shell(f"hostprep status {quote}mongo-") == ["mongo-2"]
        else:
            assert (
                shell.typed(f"hostprep status {quote}mongo-", "\t").rstrip() == f"hostprep status {quote}mongo-2{quote}"
            )

    def test_nothing_is_run(self, shell: Shell, installed: Path, tmp_path: Path) -> None:
        """The words are no arguments of the command that is asked: one that cannot answer does nothing."""
        file, said, asked = installed / COMPLETIONS[shell.name], tmp_path / "said", tmp_path / "hostprep"
        asked.write_text(f'#!/bin/sh\necho "$#" >>{said}\n')
        asked.chmod(0o755)
        before = file.read_text()
        file.write_text(before.replace(str(installed / LIB / "current/bin/hostprep"), str(asked)))
        try:
            assert shell("hostprep rm --force mongo") == []
        finally:
            file.write_text(before)
        assert set(said.read_text().split()) == {"0"}


class TestAnswers:
    def test_whoever_is_not_root(self, stored: Host) -> None:
        """Another user gets commands and flags, no names, and no error."""
        became = (  # with all that it imports: this Python may be where only root can read it
            "import os, click, multiprocessing.connection; from hostprep.__main__ import main\n"
            "from hostprep.cli.commands import group; context = click.Context(group)\n"
            "for name in group.list_commands(context): group.get_command(context, name)\n"
            "os.setgroups([]); os.setgid(1000); os.setuid(1000)"
        )
        done = answer(stored, "rm", "", script=became)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
        assert "plain\trm\t" in answer(stored, "", script=became).stdout

    @pytest.mark.parametrize(
        "changed",
        [{"HOSTPREP_ROOT": "/no/such/root"}, {"HOSTPREP_PATIENCE": "soon"}, {"HOSTPREP_ROOT": "/etc"}],
        ids=str,
    )
    @pytest.mark.parametrize("words", [("rm", ""), ("restore", ""), ("purge", ""), ("create", "")], ids=" ".join)
    def test_an_error_says_nothing(self, host: Host, words: tuple[str, ...], changed: dict[str, str]) -> None:
        """Where the root cannot be read, or a setting is wrong, there are no names, and there is no message."""
        done = answer(host, *words, **changed)
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")

    def test_a_hanging_disk(self, host: Host, tmp_path: Path) -> None:
        """Where the disk of the root hangs, there are no names, after a while: the shell does not wait for the disk."""
        with hanging(tmp_path / "disk") as disk:
            disk.hang()
            done = answer(host, "rm", "", HOSTPREP_ROOT=str(disk.place / "root"))
            assert disk.asked
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")

    def test_a_damaged_record(self, stored: Host) -> None:
        """A volume whose record is damaged, and a removed one, keep no other from being completed; nothing is said."""
        stored.record("mongo").write_text("{")
        (stored.root / "trash" / stored.trash()[0] / "volume.json").write_text("{")
        done = answer(stored, "status", "")
        assert (done.stdout, done.stderr) == ("plain\tmongo\t\nplain\tmongo-2\t\n", "")
        assert candidates(stored, "restore", "") == ["older"]

    def test_nothing_is_written(self, stored: Host) -> None:
        """Neither in the root nor instead of one that is missing."""

        def state() -> list[tuple[str, int, int]]:
            found = [stored.root, *sorted(stored.root.rglob("*"))]
            return [(str(path), path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in found]

        before = state()
        for words in (("rm", ""), ("restore", ""), ("purge", ""), ("create", "")):
            assert candidates(stored, *words)
        assert state() == before
        missing = stored.srv / "missing"
        assert candidates(stored, "rm", "", HOSTPREP_ROOT=str(missing)) == []
        assert not missing.exists()

    @pytest.mark.parametrize("words", [("",), ("rm", ""), ("create", "x", "-o", "")], ids=" ".join)
    def test_a_cheap_answer(self, stored: Host, words: tuple[str, ...]) -> None:
        """No answer needs the Docker SDK, the web server or rich."""
        script = (
            "import atexit, sys; from hostprep.__main__ import main\n"
            "heavy = {'docker', 'requests', 'rich', 'gunicorn', 'flask'}\n"
            "atexit.register(lambda: print(*sorted(heavy & sys.modules.keys()), file=sys.stderr))"
        )
        done = answer(stored, *words, script=script)
        assert done.stdout
        assert done.stderr == "\n"


def test_words_of_flags() -> None:
    """The words that a flag's metavar names are those that the setting accepts."""
    named = {each.name or "": each.metavar.split("|") for each in group.params if each.metavar and "|" in each.metavar}
    assert named.keys() == {"scope", "selinux", "log_level", "purge_for_space", "require_marker"}
    for name, words in named.items():
        with pytest.raises(BadSetting) as refused:
            Settings.read({f"HOSTPREP_{name.upper()}": "nonsense"})
        assert refused.value.message.endswith(f" is not {' or '.join(words)}")


@pytest.mark.parametrize("key", [key for key in KNOWN if key not in ("uid", "gid", "mode", "path", "mountpoint")])
def test_words_of_options(host: Host, key: str) -> None:
    """Each word that is completed as an option's value is accepted."""
    found = candidates(host, "create", "x", "-o", f"{key}=")
    assert bool(found) is (key in ("label", "recurse", "on_remove"))
    for pair in found:
        Options.parse(dict([pair.split("=", 1)]))
