"""What a doctor finds: what is, what was wanted, and the command that mends it."""

from __future__ import annotations

import enum
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import Conflict


class Verdict(enum.Enum):
    """How bad it is, the gravest last."""

    OK = "ok"
    NOTE = "note"  # to be known, no fault
    WARNING = "warning"  # usable, but not as it should be
    BAD = "bad"  # not usable


@dataclass(frozen=True, slots=True)
class Apply:
    """A remedy that is hostprep's own: `hostprep apply` with these options."""

    options: Mapping[str, str] = field(default_factory=dict)
    contents: bool = False
    """Whether all that is in the volume has to be gone over, although the volume's root is right."""
    recurse: str | None = None
    """`recurse` as it was given, to come back after that."""

    def steps(self) -> list[tuple[dict[str, str], tuple[str, ...]]]:
        """The options to give and to unset, one `apply` after the other."""
        if not self.contents:
            return [(dict(self.options), ())]
        back: tuple[dict[str, str], tuple[str, ...]] = ({}, ("recurse",))
        if self.recurse is not None:
            back = ({"recurse": self.recurse}, ())
        return [({**self.options, "recurse": "always"}, ()), back]

    def command(self, name: str) -> str:
        """As a shell reads it."""
        commands = []
        for given, unset in self.steps():
            options = [word for key, value in given.items() for word in ("-o", f"{key}={value}")]
            options += [word for key in unset for word in ("--unset", key)]
            commands.append(shlex.join(["hostprep", "apply", name, *options]))
        return " && ".join(commands)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    verdict: Verdict
    what: str
    """What is, as a sentence."""
    wanted: str = ""
    remedy: Apply | str = ""
    """What mends it: hostprep's own, or a command line for the administrator; empty where no one command does."""

    def fix(self, name: str) -> str:
        """The command that mends it, for the volume *name*; empty where no one command does."""
        return self.remedy if isinstance(self.remedy, str) else self.remedy.command(name)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found of a volume, in the order in which access fails; or of hostprep itself."""

    name: str
    """Empty for hostprep itself."""
    whom: tuple[str, ...]
    """For whom it was looked at, a phrase each."""
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        return all(finding.verdict is not Verdict.BAD for finding in self.findings)

    @property
    def gravest(self) -> Verdict:
        return max((finding.verdict for finding in self.findings), key=list(Verdict).index, default=Verdict.OK)


def together(findings: Sequence[Finding]) -> Apply | None:
    """Those remedies of *findings* that are hostprep's as one; None where there are none.

    Of what is only a warning that alone which makes things as declared: the rest may be meant as it is.

    Raises:
        Conflict: two want an option to have different values, as for containers of different users.
    """
    remedies = [
        finding.remedy
        for finding in findings
        if isinstance(finding.remedy, Apply) and (finding.verdict is Verdict.BAD or finding.remedy == Apply())
    ]
    if not remedies:
        return None
    options: dict[str, str] = {}
    for remedy in remedies:
        for key, value in remedy.options.items():
            if options.setdefault(key, value) != value:
                raise Conflict(
                    f"{key} would have to be {options[key]} and {value}",
                    hint="say with --container or --user for whom the volume is",
                )
    whole = [remedy for remedy in remedies if remedy.contents]
    return Apply(options, bool(whole), whole[0].recurse if whole else None)
