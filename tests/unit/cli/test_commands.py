"""The command line as a whole: exit codes, one-line errors, plain text in a pipe, and what each command imports."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.commands import fails, succeeds
from tests.support.fixtures import Command
from tests.support.host import PYTHON, REPOSITORY, Done, Host, label, set_label

pytestmark = pytest.mark.root
MONGO = ("-o", "uid=184", "-o", "gid=998")


class TestExit:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--colour"],
            ["ls", "--colour"],
            ["colour"],
            ["create"],
            ["status"],
            ["rm"],
            ["apply"],
            ["restore"],
            ["prepare"],
            ["repair"],
            ["repair", "a", "b"],
            ["repair", "a", "-o", "uid=1"],
            ["probe"],
            ["probe", "a", "b"],
            ["probe", "--pull", "--archive", "x.tar"],
            ["doctor", "--fix"],
            ["doctor", "--user", "184:998"],
            ["doctor", "a", "b"],
            ["create", "a", "b"],
            ["restore", "a", "--id"],
            ["create", "a", "-o"],
            ["serve", "x"],
            [],
        ],
        ids=" ".join,
    )
    def test_a_wrong_flag_or_a_missing_argument(self, hostprep: Command, host: Host, arguments: list[str]) -> None:
        """A wrong flag, an unknown command and a missing argument exit 2, and nothing is done."""
        done = hostprep(*arguments)
        assert (done.code, done.out) == (2, "")
        assert done.err
        assert "Traceback" not in done.err
        assert not host.root.exists()

    @pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["create", "--help"], ["prepare", "-h"]], ids=" ".join)
    def test_help(self, hostprep: Command, arguments: list[str]) -> None:
        """Help exits 0."""
        assert "Usage: hostprep" in succeeds(hostprep(*arguments))

    def test_the_order_of_help(self, hostprep: Command) -> None:
        """Help shows each command in one line, in the order in which somebody new needs them."""
        found = succeeds(hostprep("--help")).partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
        names = "create ls status apply repair rm restore purge probe doctor prepare import serve"
        assert [line.split()[0] for line in found] == names.split()
        assert all(line.endswith(".") and not line.endswith("...") for line in found)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["create", "mongo", "-o", "uid"], ["KEY=VALUE"]),
            (["create", "mongo", "-o", "uid=x"], ["option uid", "names are refused"]),
            (["create", "mongo", "-o", "uid=1", "-o", "uid=2"], ["twice"]),
            (["create", "mongo", "-o", "uidd=1"], ["did you mean uid?"]),
            (["create", "a b"], ["is not valid"]),
            (["create", "a\nb\x1b"], ["is not valid", "\\n"]),
            (["status", "other"], ["no volume other"]),
            (["rm", "other"], ["no volume other"]),
            (["rm", "--retained", "other"], ["other"]),
            (["apply", "other", "-o", "uid=1"], ["no volume other"]),
            (["apply", "here", "-o", "uid=x"], ["option uid"]),
            (["apply", "here", "--unset", "colour"], ["colour"]),
            (["apply", "here", "-o", "uid=1", "--unset", "uid"], ["uid"]),
            (["apply", "here", "-o", "path=/srv/x"], ["path"]),
            (["repair", "other"], ["no volume other"]),
            (["repair", "here"], ["declares no owner and no label"]),
            (["repair", "a b"], ["is not valid"]),
            (["restore", "other"], ["other", "ls --trash"]),
            (["restore", "here"], ["here", "--as"]),
            (["purge", "x"], ["trash id"]),
            (["purge", "--all", "x"], ["not both"]),
            (["prepare", "/etc", "-o", "uid=1"], ["/etc"]),
            (["prepare", "/tmp/x", "-o", "path=/tmp/y"], ["path"]),
            (["create", "mongo", "-o", "image=x"], ["HOSTPREP_DOCKER_HOST"]),
            (["apply", "here", "-o", "image=x"], ["HOSTPREP_DOCKER_HOST"]),
            (["apply", "here", "-o", "at=/x"], ["image"]),
            (["--docker-host", "unix:///none", "create", "mongo", "-o", "image=x"], ["/none", "No such file"]),
            (["--docker-host", "tcp://127.0.0.1:1", "probe", "x"], ["HOSTPREP_DOCKER_HOST", "network"]),
            (["--docker-host", "unix:///none", "probe", "x"], ["/none", "No such file"]),
            (["probe", "X"], ["lower case"]),
            (["probe", "x", "--path", "data"], ["option at", "absolute"]),
            (["probe", "--archive", "/none.tar"], ["/none.tar", "No such file"]),
            (["create", "mongo", "-o", "path=/opt/x"], ["HOSTPREP_ALLOW"]),
            (["--docker-host", "unix:///none", "doctor", "here", "--container", "x"], ["/none", "No such file"]),
            (["--docker-host", "unix:///none", "doctor", "a b"], ["is not valid"]),
        ],
        ids=lambda value: " ".join(value).replace("\n", "").replace("\x1b", "") if isinstance(value, list) else None,
    )
    @pytest.mark.usefixtures("read_only_machine")
    def test_one_line(self, hostprep: Command, arguments: list[str], words: list[str]) -> None:
        """Whatever is wrong is one line that says what and what to do, and exit 1."""
        succeeds(hostprep("create", "here"))
        fails(hostprep(*arguments), *words)

    @pytest.mark.parametrize(
        ("variable", "flag"),
        [("HOSTPREP_PATIENCE", "--patience"), ("HOSTPREP_SELINUX", "--selinux"), ("HOSTPREP_ROOT", "--root")],
    )
    def test_wrong_settings(self, hostprep: Command, variable: str, flag: str) -> None:
        """A wrong setting is one line that names it, as a variable and as a flag."""
        fails(hostprep("ls", **{variable: "x"}), variable)
        fails(hostprep(flag, "x", "ls"), variable)

    def test_a_broken_root(self, hostprep: Command, host: Host) -> None:
        """An unusable root is one line."""
        host.root.write_text("")
        fails(hostprep("ls"), str(host.root))

    def test_an_error_of_the_system(self, hostprep: Command, host: Host) -> None:
        """An error of the system is one line with the file it is about."""
        succeeds(hostprep("create", "mongo", *MONGO))
        os.chown(host.data("mongo"), 0, 0)
        subprocess.run(["chattr", "+i", host.data("mongo")], check=True)
        done = hostprep("apply", "mongo", "-o", "uid=185")
        subprocess.run(["chattr", "-i", host.data("mongo")], check=True)
        assert done.code == 1
        assert done.err.splitlines()[-1].startswith("hostprep: ")
        assert "not permitted" in done.err


class TestPipes:
    @pytest.mark.parametrize(("volumes", "length"), [(1, 1), (12, 200)])
    def test_a_reader_that_goes_away(self, host: Host, hostprep: Command, volumes: int, length: int) -> None:
        """`hostprep ls | head -0` says nothing on stderr, be the output short or long."""
        for number in range(volumes):
            succeeds(hostprep("create", f"{'v' * length}{number}"))
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [PYTHON, "-m", "hostprep", "ls"],
            cwd=REPOSITORY,
            env=host.process_environ(),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(writer)
        assert done.stderr == ""
        assert done.returncode == 1

    def test_plain_text(self, hostprep: Command) -> None:
        """In a pipe every list is plain, printable lines with tabs."""
        succeeds(hostprep("create", "mongo", *MONGO))
        succeeds(hostprep("create", "redis", "-o", "on_remove=retain"))
        succeeds(hostprep("create", "old"))
        succeeds(hostprep("rm", "redis"))
        succeeds(hostprep("rm", "old"))
        for arguments in (["ls"], ["ls", "--trash"], ["ls", "--retained"], ["status", "mongo"]):
            lines = succeeds(hostprep(*arguments)).splitlines()
            assert len(lines) > 1
            assert all(line.replace("\t", "").isprintable() for line in lines)

    def test_control_characters(self, hostprep: Command, host: Host) -> None:
        """What somebody wrote on disk reaches a terminal escaped only."""
        succeeds(hostprep("create", "mongo"))
        set_label(host.data("mongo"), "a:b:c\x1b[31m\n:s0")
        for arguments in (["ls"], ["status", "mongo"]):
            out = succeeds(hostprep(*arguments))
            assert "\x1b" not in out
            assert "\\x1b[31m\\n" in out


class TestReading:
    @pytest.mark.parametrize(
        "arguments",
        [["ls"], ["ls", "--json"], ["ls", "--trash"], ["status", "x"], ["purge"], ["repair", "x"]],
        ids=" ".join,
    )
    def test_nothing_is_made(self, hostprep: Command, host: Host, arguments: list[str]) -> None:
        """No reading command creates the root."""
        fails(hostprep(*arguments), "does not exist")
        assert not host.root.exists()

    def test_nothing_is_changed(self, hostprep: Command, host: Host) -> None:
        """Reading commands change no file."""
        succeeds(hostprep("create", "mongo", *MONGO))
        os.chown(host.data("mongo"), 0, 0)
        before = {path: os.lstat(path).st_ctime_ns for path in host.root.rglob("*")}
        for arguments in (["ls"], ["ls", "--json"], ["ls", "--trash"], ["ls", "--retained"], ["status", "mongo"]):
            succeeds(hostprep(*arguments))
        assert {path: os.lstat(path).st_ctime_ns for path in host.root.rglob("*")} == before


def test_settings_by_flag(hostprep: Command, host: Host) -> None:
    """A flag before the command overrides the variable."""
    other = host.root.with_name("other")
    succeeds(hostprep("--root", str(other), "--selinux", "force", "create", "mongo", "-o", "label=container_file_t"))
    assert label(other / "volumes/mongo/_data") is not None
    assert not host.root.exists()


def test_as_a_module(host: Host) -> None:
    """`python -m hostprep` is the same command."""
    said = f"there is no engine at {host.environ['DOCKER_HOST'].removeprefix('unix://')}"
    command = "docker volume create -d hostprep mongo"
    told = f"hostprep: the options of mongo are in no engine's record: {said} ({command})\n"
    assert host.run("create", "mongo") == Done(0, "mongo\n", told)
    assert host.run("ls").out.splitlines()[1].startswith("mongo\t0:0\t0755\t-\tready\t")
    assert host.run("nonsense").code == 2
    assert host.run("status", "x").code == 1


@pytest.mark.parametrize("arguments", [["--version"], ["ls"], ["create", "mongo"]], ids=" ".join)
def test_a_cheap_start(host: Host, arguments: list[str]) -> None:
    """A command imports nothing that only others need: no Docker SDK, web server or doctor; in a pipe no rich."""
    assert host.run("create", "redis").code == 0
    code = (
        "import sys; from hostprep.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as exc: assert not exc.code\n"
        "known = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(known & {'docker', 'requests', 'rich', 'gunicorn', 'flask'}), file=sys.stderr)\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('hostprep.doctor.', 'hostprep.engine.'))),"
        " file=sys.stderr)"
    )
    command = [PYTHON, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=host.process_environ(), capture_output=True, text=True, check=True
    )
    assert done.stdout
    assert [line for line in done.stderr.splitlines() if "no engine" not in line] == ["", ""]


def test_serve_without_click(host: Host) -> None:
    """Without flags serve does not wait for click: an engine may be waiting for the first answer."""
    code = (
        "import sys; from hostprep.serve import server; from hostprep.__main__ import main\n"
        "server.serve = lambda settings: print(settings.root, 'click' in sys.modules)\n"
        "main()"
    )
    command = [PYTHON, "-c", code, "serve"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=host.process_environ(), capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{host.root} False\n"
