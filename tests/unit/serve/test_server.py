"""The whole server: how it starts and ends, what a kill leaves, several at once, what it purges and what it logs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hostprep.errors import NoEngine
from hostprep.serve.server import Purges, _note_what_is_recorded
from hostprep.volumes.driver import Driver
from tests.support.fixtures import OpenDriver
from tests.support.host import (
    Answer,
    Host,
    Server,
    catch_pass,
    eventually,
    mounted,
    owner,
    passes_of,
    soon,
)
from tests.support.serving import serve_after
from tests.support.trees import make_tree, many, owners
from tests.support.unixhttp import Connection

pytestmark = pytest.mark.root
OK = Answer(200, {"Err": ""})
MONGO = {"uid": "184", "gid": "998"}


@pytest.fixture
def server(host: Host) -> Server:
    """A server that answers."""
    return host.serve()


class TestStart:
    def test_the_first_answer_of_every_verb(self, host: Host) -> None:
        """Whichever request is the first, it is answered."""
        for number, (path, body) in enumerate(
            [("/VolumeDriver.List", b""), ("/VolumeDriver.Create", b'{"Name": "mongo"}'), ("/nowhere", b"")]
        ):
            process = host.begin("serve")
            eventually(lambda: listens(host.socket), "it listens")
            with contextlib.closing(Connection(host.socket)) as connection:
                assert connection.ask(path, body).status == (404 if number == 2 else 200)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("HOSTPREP_SCOPE", "planet"),
            ("HOSTPREP_PATIENCE", "100"),
            ("HOSTPREP_ALLOW", "/etc"),
            ("HOSTPREP_SELINUX", "required"),
            ("HOSTPREP_REQUIRE_MARKER", "1"),
            ("HOSTPREP_ROOT", "relative"),
        ],
    )
    def test_a_wrong_setting(self, host: Host, variable: str, value: str) -> None:
        """A wrong setting stops the start with one line, and nothing is made."""
        done = host.run("serve", **{variable: value})
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("hostprep: ")
        assert len(done.err.splitlines()) == 1
        assert variable in done.err
        assert not host.root.exists()
        assert not host.socket.exists()

    def test_a_damaged_root(self, host: Host) -> None:
        """Where the root cannot be trusted no server starts: no answer is better than a wrong one."""
        host.run("create", "mongo")
        (host.root / "hostprep.json").unlink()
        done = host.run("serve")
        assert done.code == 1
        assert not host.socket.exists()

    def test_flags(self, host: Host) -> None:
        """Flags before the command override the variables."""
        other = host.socket.with_name("other.sock")
        process = host.begin("--socket", str(other), "--scope", "global", "serve", HOSTPREP_SCOPE="local")
        server = Server(process, other)
        server.wait()
        assert server("Capabilities").body == {"Capabilities": {"Scope": "global"}}
        assert not host.socket.exists()

    def test_it_sweeps(self, host: Host) -> None:
        """What interrupted steps left goes at the start."""
        host.run("create", "mongo")
        make_tree(host.root / "volumes", "dir .new-1/_data", "file .new-2")
        host.serve()
        assert host.left_in_volumes() == ["mongo"]


class TestEnd:
    def test_who_waits_for_a_pass_is_woken(self, host: Host, server: Server) -> None:
        """A Mount that waits for a pass is answered 503 at SIGTERM, and the next server completes the pass."""
        assert server("Create", Name="mongo", Opts=MONGO) == OK
        make_tree(host.data("mongo"), "file a 55:66")
        os.chown(host.data("mongo"), 55, 66)
        answers: list[Answer] = []
        waiting = threading.Thread(target=lambda: answers.append(server("Mount", Name="mongo")))
        waiting.start()
        catch_pass(server.process.pid)
        assert server.terminate() == 0
        waiting.join()
        assert [answer.status for answer in answers] == [503]
        assert host.serve()("Mount", Name="mongo").status == 200
        assert owner(host.data("mongo")) == owner(host.data("mongo") / "a") == (184, 998)

    def test_killed(self, host: Host, server: Server) -> None:
        """After SIGKILL the next server starts on the same socket, and everything promised is there."""
        for number in range(5):
            assert server("Create", Name=f"v{number}", Opts=MONGO) == OK
        server.process.kill()
        server.ended()
        assert host.socket.exists()
        again = host.serve()
        assert len(again("List").body["Volumes"]) == 5
        assert again("Create", Name="v0", Opts=MONGO) == OK

    def test_killed_again_and_again(self, host: Host) -> None:
        """Killed at any moment under load, it leaves whole volumes only, and every answer that was given holds."""
        promised: set[str] = set()
        for round_ in range(4):
            server = host.serve()

            def ask(number: int, server: Server = server, round_: int = round_) -> None:
                with contextlib.suppress(Exception), contextlib.closing(server.connect()) as connection:
                    for each in range(1000):
                        name = f"v{round_}-{number}-{each}"
                        body = json.dumps({"Name": name, "Opts": MONGO}).encode()
                        if connection.ask("/VolumeDriver.Create", body).status == 200:
                            promised.add(name)

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
            enough = len(promised) + 15 * round_
            for thread in threads:
                thread.start()
            grow(promised, enough)
            server.process.kill()
            server.ended()
            for thread in threads:
                thread.join()
        server = host.serve()
        names = {volume["Name"] for volume in server("List").body["Volumes"]}
        assert promised <= names
        assert all("Mountpoint" in volume for volume in server("List").body["Volumes"])
        assert {name for name in host.left_in_volumes() if name.startswith(".")} == set()

    def test_killed_during_a_pass(self, host: Host, server: Server) -> None:
        """A pass whose server is killed ends or goes on by itself; the next Mount finds the mark and completes it."""
        assert server("Create", Name="mongo", Opts=MONGO) == OK
        many(host.data("mongo"), 2000)
        os.chown(host.data("mongo"), 55, 66)
        waiting = threading.Thread(target=_ask_to_mount, args=(server,))
        waiting.start()
        pid = catch_pass(server.process.pid)
        server.process.kill()
        server.ended()
        waiting.join()
        assert (host.volume("mongo") / "pass.json").exists()
        assert owner(host.data("mongo")) == (55, 66)
        again = host.serve(HOSTPREP_PATIENCE="1s")
        assert again("Mount", Name="mongo").status == 503, "the orphan has the pass"
        assert passes_of(again.process.pid) == []
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: again("Mount", Name="mongo").status == 200, "the pass is completed")
        assert set(owners(host.data("mongo")).values()) == {(184, 998)}
        assert owner(host.data("mongo")) == (184, 998)
        assert not (host.volume("mongo") / "pass.json").exists()

    def test_a_pass_killed_in_the_middle(self, host: Host, server: Server) -> None:
        """A pass that is killed half-way leaves the root as it was and the mark; the next Mount completes the rest."""
        assert server("Create", Name="mongo", Opts=MONGO) == OK
        many(host.data("mongo"), 20_000)
        os.chown(host.data("mongo"), 55, 66)
        answers: list[Answer] = []
        waiting = threading.Thread(target=lambda: answers.append(server("Mount", Name="mongo")))
        waiting.start()
        pid = catch_pass(server.process.pid)
        os.kill(pid, signal.SIGCONT)
        some = [next(directory.iterdir()) for directory in host.data("mongo").iterdir()]
        eventually(lambda: any(owner(each)[0] == 184 for each in some), "the first entries are changed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        waiting.join()
        found = set(owners(host.data("mongo")).values())
        assert answers[0].status == 500
        assert found == {(0, 0), (184, 998)}, "it was killed in the middle"
        assert owner(host.data("mongo")) == (55, 66)
        assert (host.volume("mongo") / "pass.json").exists()
        assert server("Mount", Name="mongo").status == 200
        assert set(owners(host.data("mongo")).values()) == {(184, 998)}
        assert owner(host.data("mongo")) == (184, 998)


def grow(names: set[str], enough: int) -> None:
    eventually(lambda: len(names) > enough, "more volumes are made")


def listens(path: Path) -> bool:
    """Whether somebody accepts connections there: a socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _ask_to_mount(server: Server) -> None:
    with contextlib.suppress(Exception):
        server("Mount", Name="mongo")


class TestParallel:
    def test_other_volumes_during_a_pass(self, host: Host) -> None:
        """While a pass runs and thirty Mounts wait for it, other volumes are served on other connections."""
        server = host.serve()
        for name in ("mongo", "redis"):
            assert server("Create", Name=name, Opts=MONGO) == OK
        make_tree(host.data("mongo"), "file a 55:66")
        os.chown(host.data("mongo"), 55, 66)
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server("Mount", Name="mongo").status)) for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        pid = catch_pass(server.process.pid)
        for _ in range(5):  # the pass is stopped: whoever waited for it would for a hundred seconds
            assert server("Mount", Name="redis").status == 200
            assert server("Get", Name="mongo").body["Volume"]["Status"]["ready"] is False
            assert server("List").status == 200
        os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert set(answers) <= {200, 503}
        assert 200 in answers

    def test_a_second_server(self, host: Host, server: Server) -> None:
        """A second server on the same root, with a socket of its own, sees and changes the same volumes."""
        other = host.serve(HOSTPREP_SOCKET=str(host.socket.with_name("other.sock")))
        assert server("Create", Name="mongo", Opts=MONGO) == OK
        assert other("Get", Name="mongo").status == 200
        assert other("Remove", Name="mongo") == OK
        assert server("Get", Name="mongo").status == 404
        assert server("List").body["Volumes"] == []
        assert server("Remove", Name="mongo") == OK
        assert server.terminate() == 0
        assert other.answers()

    def test_commands_beside_the_server(self, host: Host, server: Server) -> None:
        """What the command line does is in the server's very next answer."""
        assert host.run("create", "mongo", "-o", "uid=184").code == 0
        assert [volume["Name"] for volume in server("List").body["Volumes"]] == ["mongo"]
        assert host.run("apply", "mongo", "-o", "uid=185").code == 0
        assert server("Get", Name="mongo").body["Volume"]["Status"]["uid"] == 185
        assert host.run("rm", "mongo").code == 0
        assert server("List").body["Volumes"] == []
        assert host.run("restore", "mongo").code == 0
        assert server("Get", Name="mongo").body["Volume"]["Status"]["options"] == {"uid": "185"}

    def test_create_by_many_processes_at_once(self, host: Host, server: Server) -> None:
        """Command lines and server that create one volume at once all succeed, and make one."""
        processes = [host.begin("create", "mongo", "-o", "uid=184") for _ in range(5)]
        answers = [server("Create", Name="mongo", Opts={"uid": "184"}) for _ in range(20)]
        assert [process.wait(30) for process in processes] == [0] * 5
        assert set(map(repr, answers)) == {repr(OK)}
        assert host.left_in_volumes() == ["mongo"]


class TestPurge:
    def test_keeping_nothing(self, host: Host) -> None:
        """With HOSTPREP_TRASH_KEEP=0 removed data is purged at once, in the background, and that is logged."""
        server = host.serve(HOSTPREP_TRASH_KEEP="0")
        server("Create", Name="mongo")
        many(host.data("mongo"), 100)
        assert server("Remove", Name="mongo") == OK
        eventually(lambda: host.trash() == [], "the trash is empty")
        eventually(lambda: "purged mongo" in server.log, "it is logged")
        assert server("Remove", Name="mongo") == OK

    def test_it_imports_nothing_of_a_users(self, open_driver: OpenDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A purge does not run what HOME has for Python, which may be a user's: sudo can keep it."""
        started: list[list[str]] = []

        class Ended(BaseException):
            pass

        def run(command: list[str], **named: object) -> None:
            started.append(command)
            raise Ended

        driver = open_driver(HOSTPREP_TRASH_KEEP="0")
        driver.create("mongo", {}, soon())
        driver.remove("mongo", soon())
        with monkeypatch.context() as patch, pytest.raises(Ended):
            patch.setattr(subprocess, "run", run)
            Purges(driver).start()

        (command,) = started
        python = os.path.realpath(sys.executable)  # a virtual environment has no directory of the user's
        flags = command[1 : command.index("-m")]
        argv = [python, *flags, "-c", "import site, sys; print(site.ENABLE_USER_SITE, '' in sys.path)"]
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "False False\n"

    def test_what_has_expired(self, host: Host) -> None:
        """What is older than HOSTPREP_TRASH_KEEP goes at the start, and the rest stays."""
        for name in ("one", "two"):
            host.run("create", name)
            host.run("rm", name)
        old, young = host.trash()
        (host.root / "trash" / old).rename(host.root / "trash" / ("20200101T000000Z" + old[16:]))
        host.serve()
        eventually(lambda: host.trash() == [young], "the old one is gone")

    @pytest.mark.parametrize("user", ["0", "184"])
    def test_what_a_container_has_mounted(self, host: Host, user: str) -> None:
        """With the rights of the systemd service what a container has mounted stays, and what nobody has goes."""
        server = host.serve(HOSTPREP_TRASH_KEEP="0")
        for name in ("mongo", "other"):
            server("Create", Name=name)
        (host.srv / "here").mkdir()
        script = f"mount --bind {host.data('mongo')} {host.srv}/here; exec setpriv --reuid={user} sh -c 'echo; cat'"
        with subprocess.Popen(
            ["unshare", "-m", "sh", "-euc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as container:
            assert container.stdout is not None
            container.stdout.readline()
            server("Remove", Name="mongo")
            eventually(lambda: "is not purged: process" in server.log, "it is said")
            server("Remove", Name="other")
            eventually(lambda: "purged other" in server.log, "what nobody uses is gone")
            assert host.run("restore", "mongo").code == 0
            container.kill()
        server("Remove", Name="mongo")
        eventually(lambda: host.trash() == [], "it is gone, too")

    def test_what_is_in_the_way(
        self, open_driver: OpenDriver, host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is in use, or cannot be deleted, starts no purge again within the hour, and is logged once."""
        driver = open_driver(HOSTPREP_TRASH_KEEP="0")
        started: list[object] = []
        run = subprocess.run

        def counted(*args: Any, **rest: Any) -> object:
            started.append(args)
            return run(*args, **rest)

        purges = Purges(driver)
        driver.create("mongo", {}, soon())
        (host.srv / "here").mkdir()
        with mounted("--bind", str(host.data("mongo")), f"{host.srv}/here"), monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", counted)
            driver.remove("mongo", soon())
            for _ in range(3):
                purges.start()
            assert (started, caplog.text.count("is not purged: it is mounted")) == ([], 1)
        (entry,) = host.trash()
        subprocess.run(["chattr", "+i", host.root / "trash" / entry / "_data"], check=True)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", counted)
            for _ in range(5):
                purges.start()
        assert len(started) == 2  # it began, and was tried again once since it was not finished
        subprocess.run(["chattr", "-i", host.root / "trash" / f".purge-{entry}" / "_data"], check=True)

    def test_on_a_disk_that_takes_no_writes(
        self, open_driver: OpenDriver, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where not one entry can be purged, no other purge is started within the hour, but for what comes then."""
        started: list[object] = []
        host.root.mkdir(mode=0o700)
        with mounted("-t", "tmpfs", "-o", "mode=700", "none", str(host.root)):
            driver = open_driver(HOSTPREP_TRASH_KEEP="0")
            purges, run = Purges(driver), subprocess.run
            with monkeypatch.context() as patch:
                for name in ("one", "two"):
                    driver.create(name, {}, soon())
                    driver.remove(name, soon())
                    run(["mount", "-o", "remount,ro", host.root], check=True)
                    patch.setattr(subprocess, "run", lambda *args, **rest: started.append(run(*args, **rest)))
                    for _ in range(3):
                        purges.start()
                    run(["mount", "-o", "remount,rw", host.root], check=True)
            assert len(started) == 2
            assert len(host.trash()) == 2

    @pytest.mark.parametrize(
        ("flags", "changed"),
        [
            ((), {"HOSTPREP_TRASH_KEEP": "36500d"}),
            (("--patience", "5s"), {"HOSTPREP_PATIENCE": "wrong"}),
            (("--trash-keep", "1h"), {"HOSTPREP_TRASH_KEEP": "wrong"}),
            (("--root", "{root}"), {"HOSTPREP_ROOT": "wrong"}),
        ],
        ids=["very-long", "a-flag-for-a-wrong-variable", "its-own-flag", "root-flag"],
    )
    def test_whatever_the_settings(self, host: Host, flags: tuple[str, ...], changed: dict[str, str]) -> None:
        """With any settings with which the server starts, an interrupted purge is ended."""
        host.run("create", "mongo")
        host.run("rm", "mongo")
        (entry,) = host.trash()
        (host.root / "trash" / entry).rename(host.root / "trash" / f".purge-{entry}")
        server = host.serve(*(flag.format(root=host.root) for flag in flags), **changed)
        eventually(lambda: host.trash() == [], f"it is gone; {server.log}")

    def test_after_an_error_that_nobody_expected(self, host: Host) -> None:
        """Whatever goes wrong in a purge is logged on one line, and the next one is made all the same."""
        code = """
from hostprep.volumes import trash
due = trash.due
def due_once_wrong(*arguments):
    trash.due = due
    raise ZeroDivisionError("bait")
trash.due = due_once_wrong
"""
        server = serve_after(host, code, HOSTPREP_TRASH_KEEP="0")
        eventually(lambda: "ZeroDivisionError: bait" in server.log, "the error is logged")
        assert len([line for line in server.log.splitlines() if "bait" in line]) == 1
        server("Create", Name="mongo")
        server("Remove", Name="mongo")
        eventually(lambda: host.trash() == [], f"the trash is empty; {server.log}")


class TestLog:
    def test_one_line_an_event(self, host: Host, server: Server) -> None:
        """Every change is one line with verb, volume and duration."""
        server("Create", Name="mongo", Opts=MONGO)
        server("Mount", Name="mongo")
        server("Unmount", Name="mongo")
        server("Remove", Name="mongo")
        server("Create", Name="redis", Opts={"uid": "x"})
        server.terminate()
        for verb, volume in [
            ("Create", "mongo"),
            ("Mount", "mongo"),
            ("Unmount", "mongo"),
            ("Remove", "mongo"),
            ("Create", "redis"),
        ]:
            assert any(verb in line and volume in line and " ms" in line for line in server.log.splitlines()), (
                server.log
            )
        assert all(line.startswith("hostprep: ") for line in server.log.splitlines())

    def test_control_characters(self, server: Server) -> None:
        """Names and options cannot forge lines or reach a terminal."""
        server("Create", Name="a\nhostprep: INFO forged\x1b[31m")
        server("Create", Name="mongo", Opts={"uid\nforged": "1"})
        server("Create", Name="mongo", Opts={"uid": "1\nforged\x1b]0;x\x07"})
        server.ask("/%0aforged%1b", b"")
        server.terminate()
        assert all(line.isprintable() and line.startswith("hostprep: ") for line in server.log.splitlines()), server.log

    @pytest.mark.parametrize(
        ("level", "shown"), [("debug", True), ("info", True), ("warning", False), ("error", False)]
    )
    def test_levels(self, host: Host, level: str, shown: bool) -> None:  # noqa: FBT001
        """HOSTPREP_LOG_LEVEL says which lines are written."""
        server = host.serve(HOSTPREP_LOG_LEVEL=level)
        server("Create", Name="mongo")
        server("Get", Name="mongo")
        server.terminate()
        assert any("Create mongo" in line for line in server.log.splitlines()) is shown
        assert any("Get mongo" in line for line in server.log.splitlines()) is (level == "debug")


def test_labels_of_what_is_made_at_the_last_moment(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is asked once more after a Create at the end of the pause: it may record that volume later."""

    class Ended(BaseException):
        pass

    class Engine:
        asked = 0

        def connect(self, *, seconds: float) -> NoReturn:
            self.asked += 1
            if self.asked == 2 or not driver.created.is_set():
                raise Ended
            raise NoEngine("it does not answer")

    engine, pauses = Engine(), iter([driver.created.set])
    monkeypatch.setattr(time, "sleep", lambda seconds: next(pauses, lambda: None)())
    driver.created.set()
    with pytest.raises(Ended):
        _note_what_is_recorded(driver, engine)  # type: ignore[arg-type]
    assert engine.asked == 2
