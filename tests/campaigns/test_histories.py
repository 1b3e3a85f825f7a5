"""Any history of requests, commands, restarts and kills leaves what the model (model.py) says, and was answered so.

Clients: the served socket, a second driver of this process's with caches of its own, the command line in this process
and as one of its own. What they do at the same time has to be explained by some order; what a kill left unanswered has
happened wholly or not at all, and is sent again, as engines do.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from hostprep.cli.commands import group
from hostprep.errors import BadSetting, Busy, Conflict, HostprepError, Invalid, NoSuchVolume, NotAllowed
from hostprep.host import linux
from hostprep.host.mountinfo import mount_table
from hostprep.serve.wire import create_app
from hostprep.settings import Settings
from hostprep.volumes.driver import Driver
from tests.support.host import Docker, Host, mode, owner
from tests.support.model import (
    CONFLICT,
    FAILED,
    INVALID,
    MALFORMED,
    OK,
    REFUSED,
    UNKNOWN,
    Answered,
    Given,
    Operation,
    State,
    Volume,
    explained,
)

pytestmark = pytest.mark.root
log = logging.getLogger("hostprep")

NAMES: Final = ("alpha", "beta")
PATHS: Final = ("srv/one", "srv/one/sub", "home/two")
"""Below the example's directory; `home` is a user's, so that what is answered there is a mount."""
BUSY: Final = 503
_STATUS: Final = ((NoSuchVolume, UNKNOWN), (Conflict, CONFLICT), (Invalid, MALFORMED), (NotAllowed, 403), (Busy, BUSY))


def _given(**options: str) -> Given:
    return tuple(sorted(options.items()))


OPTIONS = st.sampled_from(
    [
        (),
        _given(uid="184"),
        _given(uid="184", gid="998"),
        _given(mode="0750"),
        _given(uid="7", recurse="always"),
        _given(gid="5", recurse="never"),
        _given(uid="9", recurse="mismatch"),
        _given(label="container_file_t:s0:c1,c2"),
        _given(on_remove="retain"),
        _given(on_remove="retain", uid="12"),
        _given(on_remove="delete"),
        *(_given(**invalid) for invalid in INVALID),
    ]
)
PATH_OPTIONS = st.builds(
    lambda path, more: tuple(sorted({"path": path, **dict(more)}.items())), st.sampled_from(PATHS), OPTIONS
)
CREATED = st.one_of(OPTIONS, OPTIONS, PATH_OPTIONS)


def operations(*clients: str) -> st.SearchStrategy[Operation]:
    """What one of *clients* can ask for."""
    names, anybody = st.sampled_from(NAMES), st.sampled_from(clients)
    command = st.sampled_from([client for client in clients if client in ("command", "process")] or ["command"])
    engines = st.sampled_from([client for client in clients if client in ("server", "other")] or ["server"])
    create = st.builds(lambda c, n, g: Operation(c, "create", n, g), anybody, names, CREATED)
    return st.one_of(
        create,
        create,
        st.builds(lambda c, n: Operation(c, "remove", n), anybody, names),
        st.builds(
            lambda c, v, n: Operation(c, v, n), engines, st.sampled_from(["mount", "unmount", "get", "path"]), names
        ),
        st.builds(lambda c, n: Operation(c, "mount", n), engines, names),
        st.builds(
            lambda c, n, g, u: Operation(c, "apply", n, g, tuple(key for key in u if key not in dict(g))),
            command,
            names,
            CREATED,
            st.sampled_from([(), (), ("uid",), ("on_remove",), ("recurse", "mode"), ("path",)]),
        ),
        st.builds(lambda c, n, i: Operation(c, "restore", n, into=i), command, names, st.sampled_from(["", *NAMES])),
        st.builds(lambda c: Operation(c, "purge"), command),
        st.builds(lambda c, n: Operation(c, "discard", n), command, names),
    )


LIFE: Final = ("create", "create", "remove", "remove", "restore", "mount", "discard")
SOONER: Final = ("server", "other", "command")


class Histories(RuleBasedStateMachine):
    """A root, its clients and the model beside it."""

    def __init__(self) -> None:
        super().__init__()
        with contextlib.ExitStack() as undo:
            undo.callback(_restore_logging())
            self.top = Path(tempfile.mkdtemp(prefix="hostprep-history-", dir="/var/lib"))
            undo.callback(shutil.rmtree, self.top)
            run = Path(tempfile.mkdtemp(prefix="hp-"))
            undo.callback(shutil.rmtree, run)
            self.host = Host(self.top, run)
            home = self.top / "home"
            home.mkdir()
            os.chown(home, 1000, 1000)
            undo.callback(self._unmount)
            undo.callback(self.host.stop)
            self.host.environ |= {
                "HOSTPREP_ALLOW": f"{self.host.srv}:{home}",
                "HOSTPREP_SELINUX": "force",
                "HOSTPREP_LOG_LEVEL": "error",
            }
            self.server = self.host.serve()
            self.driver = Driver.open(Settings.read(self.host.environ), create=False)
            undo.callback(self.driver.passes.stop)
            self._undo = undo.pop_all()
        self.other = Docker(create_app(self.driver).test_client())
        self.states = [State(paths=frozenset({"srv", "home"}))]
        """What there may be, by all that was answered; empty once nothing explains that."""
        self.untidy: set[str] = set()
        """Volumes whose contents may differ from the root: something was changed while recurse was never."""
        self.tokens = itertools.count()
        self.crashed = False
        self.said: list[str] = []
        self._begun = time.monotonic()

    # -- clients ---------------------------------------------------------------------------------------------------

    def _real(self, given: Given) -> dict[str, str]:
        return {key: f"{self.top}/{value}" if key == "path" else value for key, value in given}

    def ask(self, operation: Operation) -> int:
        """Have it done, and answer the status; OSError where the server gives no answer."""
        if operation.client == "command":
            return self._command(self._arguments(operation))
        if operation.client == "process":
            done = self.host.run(*self._arguments(operation))
            assert done.code in (0, 1), done
            assert done.code == 0 or len(done.err.splitlines()) == 1, done.err
            return OK if done.code == 0 else REFUSED
        body: dict[str, Any] = {"Name": operation.name}
        if operation.verb == "create":
            body["Opts"] = self._real(operation.given) or None
        if operation.verb in ("mount", "unmount"):
            body["ID"] = "c" * 64
        verb = operation.verb.capitalize()
        answer = self.server(verb, **body) if operation.client == "server" else self.other(verb, **body)
        assert (answer.status == OK) == (answer.error == ""), answer
        self.said.append(f"{operation.client} {operation.verb} {operation.name}: {answer.status} {answer.error}")
        return answer.status

    def _arguments(self, operation: Operation) -> list[str]:
        options = [part for key, value in self._real(operation.given).items() for part in ("-o", f"{key}={value}")]
        match operation.verb:
            case "create":
                return ["create", operation.name, *options]
            case "remove":
                return ["rm", operation.name]
            case "apply":
                unset = [part for key in operation.unset for part in ("--unset", key)]
                return ["apply", operation.name, *options, *unset, "--no-wait"]
            case "restore":
                return ["restore", operation.name, *(["--as", operation.into] if operation.into else [])]
            case "purge":
                return ["purge", "--all"]
            case "discard":
                return ["rm", "--retained", operation.name]
        raise AssertionError(operation)

    def _command(self, arguments: list[str]) -> int:
        flags = [
            part
            for variable, value in self.host.environ.items()
            for part in (f"--{variable.removeprefix('HOSTPREP_').lower().replace('_', '-')}", value)
        ]
        try:
            group.main([*flags, *arguments], prog_name="hostprep", standalone_mode=False)
        except (HostprepError, OSError) as exc:
            assert not isinstance(exc, BadSetting), exc
            self.said.append(f"{arguments}: {exc!r}")
            return next((status for kind, status in _STATUS if isinstance(exc, kind)), FAILED)
        return OK

    def _listed(self, flag: str) -> list[dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert self._command(["ls", flag, "--json"]) == OK
        found = json.loads(printed.getvalue())
        assert isinstance(found, list)
        return found

    # -- what there is -----------------------------------------------------------------------------------------------

    def _volume(self, options: dict[str, str], data: Path) -> Volume:
        shown = {k: v.removeprefix(f"{self.top}/") if k == "path" else v for k, v in options.items()}
        token = data / "token"
        known = "path" not in shown and token.exists()
        return Volume(tuple(sorted(shown.items())), int(token.read_text()) if known else None)

    def seen(self) -> dict[str, object]:
        """What there is, as the server and the command line have it."""
        live = {}
        listed = self.server("List").body["Volumes"]
        for volume in listed:
            found = self.server("Get", Name=volume["Name"])
            assert found.status == OK, found
            assert found.body["Volume"]["Mountpoint"] == volume["Mountpoint"]
            live[volume["Name"]] = self._volume(
                found.body["Volume"]["Status"]["options"], self.host.data(volume["Name"])
            )
        retained = {
            e["name"]: self._volume(e["options"], self.host.data(e["name"])) for e in self._listed("--retained")
        }
        trash: dict[str, list[Volume]] = {}
        for entry in reversed(self._listed("--trash")):
            data = self.host.root / "trash" / entry["id"] / "_data"
            trash.setdefault(entry["name"], []).append(self._volume(entry["options"], data))
        assert self.other.listed() == listed
        for name in NAMES:
            assert (self.server("Get", Name=name).status == OK) is self.other.knows(name) is (name in live)
        return {"live": live, "retained": retained, "trash": trash}

    def happen(self, history: list[Answered]) -> None:
        """Find what *history* has led to, and hold it against what there is."""
        seen = self.seen()
        long_ago = time.monotonic() - self._begun > 50
        self.states = [replace(state, long_ago=long_ago) for state in self.states]
        found: dict[str, State] = {}
        for state in self.states:
            for then in explained(state, history):
                if then.shown() == seen:
                    found[repr(then)] = then
        before = [state.shown() for state in self.states]
        self.states = list(found.values())
        assert found, "\n".join([f"from {before} nothing explains {history}", *self.said, f"and {seen}"])
        self.said.clear()
        for done in history:
            if ("recurse", "never") in done.operation.given:
                self.untidy |= {done.operation.name}
            if done.operation.verb == "restore" and done.operation.name in self.untidy:
                self.untidy |= {done.operation.into or done.operation.name}
        tokens = {}
        for name, volume in next(iter(found.values())).live.items():
            if volume.token is None and "path" not in volume.options:
                tokens[name] = next(self.tokens)
                data = self.host.data(name)
                (data / "token").write_text(str(tokens[name]))
                os.chown(data / "token", *owner(data))
        self.states = [state.marked(tokens) for state in self.states]

    def live(self) -> dict[str, Volume]:
        return dict(self.states[0].live)

    def place(self, name: str) -> Path:
        path = self.live()[name].options.get("path")
        return self.host.data(name) if path is None else self.top / path

    # -- what happens ------------------------------------------------------------------------------------------------

    @rule(operation=operations("process"))
    def by_a_command(self, operation: Operation) -> None:
        self.one(operation)

    @rule(several=st.lists(operations(*SOONER), min_size=2, max_size=8))
    def in_turn(self, several: list[Operation]) -> None:
        for operation in several:
            self.one(operation)

    @rule(
        name=st.sampled_from(NAMES),
        verbs=st.lists(st.sampled_from(LIFE), min_size=5, max_size=12),
        retained=st.booleans(),
    )
    def lives(self, name: str, verbs: list[str], retained: bool) -> None:  # noqa: FBT001
        """One name, again and again."""
        given = _given(on_remove="retain") if retained else ()
        for verb in verbs:
            client = "other" if verb == "mount" else "command"
            self.one(Operation(client, verb, name, given if verb == "create" else ()))

    def one(self, operation: Operation) -> None:
        """Have one thing done, and see what there is then."""
        answer = self.ask(operation)
        self.happen([Answered(operation, answer)])
        if operation.verb == "mount" and answer == OK:
            self._as_declared(operation.name)

    @rule(operation=operations("server"))
    def sent_twice(self, operation: Operation) -> None:
        """The engine has missed the answer, and sends it again."""
        self.ask(operation)
        self.happen([Answered(operation, self.ask(operation), unanswered=1)])

    @rule(several=st.lists(operations(*SOONER), min_size=2, max_size=4))
    def at_once(self, several: list[Operation]) -> None:
        self.happen(self._at_once(several, lambda: None))

    @rule(name=st.sampled_from(NAMES), several=st.lists(operations(*SOONER), min_size=2, max_size=4))
    def at_once_on_one(self, name: str, several: list[Operation]) -> None:
        self.happen(self._at_once([replace(each, name=name) for each in several], lambda: None))

    @rule(
        several=st.lists(operations(*SOONER), min_size=1, max_size=3),
        milliseconds=st.integers(0, 12),
        number=st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]),
    )
    def ended(self, several: list[Operation], milliseconds: int, number: signal.Signals) -> None:
        """The server is killed, or stopped, meanwhile; what it has not answered is sent to the next one."""

        def end() -> None:
            time.sleep(milliseconds / 1000)
            self._restart(number)

        self.happen(self._at_once(several, end))

    def _restart(self, number: signal.Signals) -> None:
        self.server.process.send_signal(number)
        code = self.server.ended()
        assert number == signal.SIGKILL or code == 0, self.server.log
        self.crashed = self.crashed or number == signal.SIGKILL
        self.server = self.host.serve()

    def _at_once(self, several: list[Operation], meanwhile: Callable[[], None]) -> list[Answered]:
        history: list[Answered | BaseException] = []
        ready = threading.Barrier(len(several) + 1)

        def run(operation: Operation) -> None:
            ready.wait(60)
            unanswered = 0
            try:
                while True:
                    try:
                        if (answer := self.ask(operation)) != BUSY:
                            break
                        unanswered += 1  # a server that stops has every request that waits come again
                    except (OSError, http.client.HTTPException, ValueError) as exc:  # no answer, or half of one
                        if unanswered > 200 or operation.client != "server":
                            raise
                        self.said.append(f"{operation.client} {operation.verb} {operation.name}: {exc!r}")
                        if not isinstance(exc, FileNotFoundError | ConnectionRefusedError):
                            unanswered += 1
                        time.sleep(0.01)
                history.append(Answered(operation, answer, unanswered))
            except BaseException as exc:  # it fails the test, below
                history.append(exc)

        threads = [threading.Thread(target=run, args=(operation,)) for operation in several]
        for thread in threads:
            thread.start()
        ready.wait(60)
        meanwhile()
        for thread in threads:
            thread.join()
        for each in history:
            if isinstance(each, BaseException):
                raise each
        return [each for each in history if isinstance(each, Answered)]

    @rule(name=st.sampled_from(NAMES))
    def copied_up(self, name: str) -> None:
        """What Docker's copy-up does: another owner and mode, on the root and on what is in it."""
        if name not in self.live():
            return
        place = self.place(name)
        for each in [place, *place.iterdir()]:
            os.chown(each, 55, 66)
        place.chmod(0o700)

    @rule(name=st.sampled_from(NAMES))
    def data_missing(self, name: str) -> None:
        """While a volume's directory is away it is known, not mounted and not made anew; then all is as before."""
        if name not in self.live():
            return
        place, away = self.place(name), self.top / "away"
        place.rename(away)
        assert self.ask(Operation("server", "mount", name)) == FAILED
        assert self.server("Get", Name=name).body["Volume"]["Status"]["ready"] is False
        assert not place.exists()
        away.rename(place)

    def _as_declared(self, name: str) -> None:
        """After a Mount, owner and mode are as declared; what is in the directory, too, where it follows."""
        options, place = self.live()[name].options, self.place(name)
        status = self.server("Get", Name=name).body["Volume"]["Status"]
        assert (status["ready"], status["drift"]) == (True, []), status
        entries = [place]
        if name not in self.untidy and "path" not in options:
            entries += list(place.iterdir())
        for each in entries:
            for number, key in enumerate(("uid", "gid")):
                assert options.get(key, str(owner(each)[number])) == str(owner(each)[number]), each
        assert options.get("mode", mode(place)) == mode(place)

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_of_others(self) -> None:
        """There is nothing among the volumes but volumes, and no mount but of one that is there."""
        known = {*self.live(), *self.states[0].retained}
        found = {name for name in self.host.left_in_volumes() if not (self.crashed and name.startswith(".new-"))}
        assert found == known
        assert {Path(mount).name for mount in self._mounts()} <= self.live().keys()
        for path in self.states[0].paths:
            assert (self.top / path).is_dir()

    def _mounts(self) -> list[str]:
        return [each.point for each in mount_table() if each.point.startswith(f"{self.host.root}/mounts/")]

    def _unmount(self) -> None:
        for point in self._mounts():
            fd = os.open(point, os.O_PATH)
            linux.umount2(fd, linux.MNT_DETACH)
            os.close(fd)
        for left in (self.host.root / "mounts").glob("*"):
            fd = os.open(left, os.O_RDONLY)
            with contextlib.suppress(OSError):
                linux.set_immutable(fd, False)
            os.close(fd)

    def teardown(self) -> None:
        """At the end every file, lock and mount of an interrupted step goes with the next start."""
        with self._undo:
            if not self.states:
                return
            self._restart(signal.SIGTERM)
            for part, kept in (("locks", ["held"]), ("volumes", sorted({*self.live(), *self.states[0].retained}))):
                assert sorted(os.listdir(self.host.root / part)) == kept
            self.happen([])


def _restore_logging() -> Callable[[], None]:
    """What takes back what the command line does to this process's log."""
    logger, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), log.level

    def restore() -> None:
        logger.handlers[:] = handlers
        log.setLevel(level)

    return restore


def run_histories(seconds: float, number: int) -> int:
    """Try histories for so long, chosen by *number* and those after it; the last one tried.

    The shortest history that fails is what is shown, with its number. What happened at once need not happen again: then
    hypothesis says that the failure is flaky, and shows it all the same.
    """
    end = time.monotonic() + seconds
    chosen = settings(
        max_examples=3,
        stateful_step_count=20,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    while True:
        print("histories, number", number)
        run_state_machine_as_test(seed(number)(type("Histories", (Histories,), {})), settings=chosen)
        if time.monotonic() > end:
            return number
        number += 1


def test_histories() -> None:
    """Whatever clients ask for, in any order or at once, with kills between, is as the model has it."""
    run_histories(float(os.environ.get("HISTORIES_SECONDS", "12")), int(os.environ.get("HISTORIES", "20261124")))
