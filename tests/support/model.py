"""What a root of hostprep's is, as little as can be said of it: the model that test_histories.py holds it to.

A state is what there is; `outcomes` is what an operation may answer there, and what there is afterwards. Where several
operations ran at the same time, `explained` looks for an order in which the model gives the same answers: each has to
look as if it had happened at one moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

Given = tuple[tuple[str, str], ...]
"""Options as they were given, sorted."""
INVALID = {"uid": "-1"}, {"mode": "750"}, {"colour": "red"}
OK, MALFORMED, UNKNOWN, CONFLICT, FAILED = 200, 400, 404, 409, 500
REFUSED = 0
"""Some refusal: of a command only its exit status is looked at."""


@dataclass(frozen=True)
class Volume:
    """A volume, live, retained or removed."""

    given: Given
    token: int | None = None
    """Which data it has, as the test has marked it; None for none yet, and where it is a path's."""
    taken_up: bool = field(default=False, compare=False)
    """Whether it was ever retained, and taken up again."""

    @property
    def options(self) -> dict[str, str]:
        return dict(self.given)


@dataclass(frozen=True)
class Operation:
    """Something that a client asks for. A name is asked for as *name*; *into* is the new one of a restore."""

    client: str
    verb: str
    name: str = ""
    given: Given = ()
    unset: tuple[str, ...] = ()
    into: str = ""


@dataclass(frozen=True)
class State:
    """All there is. Removed volumes stand in the order in which they were removed."""

    live: Mapping[str, Volume] = field(default_factory=dict)
    retained: Mapping[str, Volume] = field(default_factory=dict)
    trash: tuple[tuple[str, Volume], ...] = ()
    removed: frozenset[str] = frozenset()
    """Names that a volume was ever removed by."""
    paths: frozenset[str] = frozenset()
    """Directories for `path` that are there."""
    long_ago: bool = False
    """Whether what was removed may have been so for the minute in which a repeated Remove succeeds."""

    def outcomes(self, operation: Operation) -> Iterator[tuple[int, State]]:
        """Each answer that *operation* may get here, with what there is afterwards."""
        name, volume = operation.name, self.live.get(operation.name)
        match operation.verb:
            case "create":
                yield self._create(name, dict(operation.given))
            case "remove":
                if volume is not None:
                    yield OK, self._remove(name, volume)
                    return
                # Repeated within a minute it succeeds. Where neither trash nor retained data tells that it was there,
                # it depends on who is asked.
                lately = name in self.retained or any(name == each for each, _ in self.trash)
                if lately or name in self.removed:
                    yield OK, self
                if not lately or self.long_ago:
                    yield UNKNOWN, self
            case "mount" | "get" | "path":
                yield (UNKNOWN if volume is None else OK), self
            case "unmount":
                yield OK, self
            case "apply":
                yield self._apply(name, dict(operation.given), operation.unset)
            case "restore":
                yield self._restore(name, operation.into or name)
            case "purge":
                yield OK, replace(self, trash=())
            case "discard":
                if name not in self.retained:
                    yield UNKNOWN, self
                    return
                kept = {each: volume for each, volume in self.retained.items() if each != name}
                yield OK, replace(self, retained=kept, trash=(*self.trash, (name, self.retained[name])))
            case verb:
                raise AssertionError(verb)

    def _create(self, name: str, given: dict[str, str]) -> tuple[int, State]:
        if _wrong(given):
            return MALFORMED, self
        if name in self.live:
            own = self.live[name].options
            # The options with which a volume was taken up went over its own: sent again they count as equal.
            asked = own | given if self.live[name].taken_up else given
            return (CONFLICT if given and asked != own else OK), self
        token = None
        if name in self.retained:
            kept = self.retained[name]
            merged = kept.options | given
            if _wrong(merged):
                return MALFORMED, self
            if merged.get("path") != kept.options.get("path"):
                return CONFLICT, self
            given, token = merged, kept.token
        if self._claimed(given.get("path"), name):
            return CONFLICT, self
        paths = self.paths
        if (path := given.get("path")) is not None:
            if path.rpartition("/")[0] not in paths:
                return FAILED, self  # the directory above is missing
            paths |= {path}
        retained = {each: volume for each, volume in self.retained.items() if each != name}
        live = {**self.live, name: Volume(tuple(sorted(given.items())), token, name in self.retained)}
        return OK, replace(self, live=live, retained=retained, paths=paths)

    def _remove(self, name: str, volume: Volume) -> State:
        live = {each: other for each, other in self.live.items() if each != name}
        gone = replace(self, live=live, removed=self.removed | {name})
        if volume.options.get("on_remove") == "retain":
            return replace(gone, retained={**self.retained, name: volume})
        return replace(gone, trash=(*self.trash, (name, volume)))

    def _apply(self, name: str, given: dict[str, str], unset: tuple[str, ...]) -> tuple[int, State]:
        if _wrong(given):
            return MALFORMED, self
        if name not in self.live:
            return UNKNOWN, self
        old = self.live[name]
        merged = {key: value for key, value in (old.options | given).items() if key not in unset}
        if _wrong(merged):
            return MALFORMED, self
        if merged.get("path") != old.options.get("path"):
            return CONFLICT, self
        changed = replace(old, given=tuple(sorted(merged.items())))
        return OK, replace(self, live={**self.live, name: changed})

    def _restore(self, name: str, into: str) -> tuple[int, State]:
        if into in self.live or into in self.retained:
            return CONFLICT, self
        found = [number for number, (each, _) in enumerate(self.trash) if each == name]
        if not found:
            return UNKNOWN, self
        volume = self.trash[found[-1]][1]
        if self._claimed(volume.options.get("path"), into):
            return CONFLICT, self
        trash = tuple(each for number, each in enumerate(self.trash) if number != found[-1])
        return OK, replace(self, live={**self.live, into: volume}, trash=trash)

    def _claimed(self, path: str | None, name: str) -> bool:
        others = [each.options["path"] for other, each in self.live.items() if other != name and "path" in each.options]
        return path is not None and any(_overlap(path, other) for other in others)

    def marked(self, tokens: Mapping[str, int]) -> State:
        """This state, with the live volumes' data marked by the test since."""
        live = {n: replace(v, token=tokens[n]) if n in tokens else v for n, v in self.live.items()}
        return replace(self, live=live)

    def shown(self) -> dict[str, object]:
        """What can be seen of it from outside."""
        trash: dict[str, list[Volume]] = {}
        for name, volume in self.trash:
            trash.setdefault(name, []).append(volume)
        return {"live": dict(self.live), "retained": dict(self.retained), "trash": trash}


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _wrong(given: dict[str, str]) -> bool:
    bad = any(given.items() >= invalid.items() for invalid in INVALID)
    return bad or ("path" in given and given.get("on_remove") == "delete")


@dataclass(frozen=True)
class Answered:
    """An operation, what it was answered, and how often it had been sent before without an answer."""

    operation: Operation
    answer: int
    unanswered: int = 0


def explained(state: State, history: Sequence[Answered]) -> Iterator[State]:
    """Every state that an order of *history*, which all happened at the same time, leads to with these answers.

    What was sent without an answer has happened, before the same client sent it again, or has not.
    """
    if not history:
        yield state
        return
    for number, done in enumerate(history):
        rest = [each for other, each in enumerate(history) if other != number]
        if done.unanswered:
            again = replace(done, unanswered=done.unanswered - 1)
            for _, then in state.outcomes(done.operation):
                if then is not state:
                    yield from explained(then, [*rest, again])
        for answer, then in state.outcomes(done.operation):
            if answer == done.answer or (done.answer == REFUSED and answer != OK):
                yield from explained(then, rest)
