"""What doctor reports: what it found, what would be right, and the command that repairs it."""

from __future__ import annotations

import enum
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import Conflict


class Verdict(enum.Enum):
    """How bad a finding is; the worst comes last."""

    OK = "ok"
    NOTE = "note"  # worth knowing, not a fault
    WARNING = "warning"  # usable, but not as it should be
    BAD = "bad"  # not usable


@dataclass(frozen=True, slots=True)
class Command:
    """A remedy for the administrator: a command line for a shell."""

    code: str
    """Its name. Each place in the source that makes a remedy has one of its own."""
    line: str

    def command(self, name: str) -> str:
        """The command line for a shell."""
        return self.line


@dataclass(frozen=True, slots=True)
class Apply:
    """A remedy that hostprep can carry out itself: `hostprep apply` with these options, then `hostprep repair`."""

    code: str
    options: Mapping[str, str] = field(default_factory=dict)
    contents: bool = False
    """Whether a pass over the contents is needed although the volume's root is right: `hostprep repair`."""

    @property
    def applies(self) -> bool:
        return bool(self.options) or not self.contents

    @property
    def restores(self) -> bool:
        """Whether it only restores the declared state, as the next start of a container does."""
        return not self.options and not self.contents

    def command(self, name: str) -> str:
        """The command line for a shell."""
        commands = [["hostprep", "apply", name, *_words(self.options)]] if self.applies else []
        commands += [["hostprep", "repair", name]] if self.contents else []
        return " && ".join(map(shlex.join, commands))


@dataclass(frozen=True, slots=True)
class Prepare:
    """A remedy that hostprep can carry out itself: `hostprep prepare` of a sub-directory of the volume, and no more."""

    code: str
    path: str
    options: Mapping[str, str]

    def command(self, name: str) -> str:
        """The command line for a shell."""
        return shlex.join(["hostprep", "prepare", self.path, *_words(self.options)])


Remedy = Command | Apply | Prepare


def _words(options: Mapping[str, str]) -> list[str]:
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """The name of the check, which docs/doctor.md explains."""
    verdict: Verdict
    what: str
    """What was found, as a sentence."""
    wanted: str = ""
    """What would be right."""
    remedy: Remedy | None = None
    """None where no single command repairs it."""
    contested: bool = False
    """Whether what mends it takes the directory from another user, so that somebody has to say whom it is for."""

    def fix(self, name: str) -> str:
        """The command line that repairs it, for the volume *name*; empty where there is none."""
        return self.remedy.command(name) if self.remedy else ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings about a volume, in the order in which access fails; or about hostprep itself."""

    name: str
    """The volume; empty for hostprep itself."""
    whom: tuple[str, ...]
    """The users whom it concerns, a phrase each."""
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        return all(finding.verdict is not Verdict.BAD for finding in self.findings)

    @property
    def worst(self) -> Verdict:
        return max((finding.verdict for finding in self.findings), key=list(Verdict).index, default=Verdict.OK)


def own_remedies(findings: Sequence[Finding]) -> list[Apply | Prepare]:
    """hostprep's own remedies for *findings*: one for the volume, and one for each sub-directory that is used alone.

    From warnings it takes only what restores the declared state: the rest may be intended.

    Raises:
        Conflict: it is for a person to say which of several users the volume is for.
    """
    applied: list[Apply] = []
    options: dict[str, dict[str, str]] = {}
    for finding in findings:
        remedy = finding.remedy
        if finding.contested:
            raise Conflict(finding.what, hint="choose with --container or --user whom it is for")
        if isinstance(remedy, Apply) and (finding.verdict is Verdict.BAD or remedy.restores):
            applied.append(remedy)
        elif not isinstance(remedy, Prepare) or finding.verdict is not Verdict.BAD:
            continue
        where = options.setdefault(remedy.path if isinstance(remedy, Prepare) else "", {})
        for key, value in remedy.options.items():
            if where.setdefault(key, value) != value:
                hint = "choose with --container or --user whom the volume is for"
                raise Conflict(f"{key} would have to be both {where[key]} and {value}", hint=hint)
    apply = Apply("", options.pop("", {}), any(remedy.contents for remedy in applied))
    return [*([apply] if applied else []), *(Prepare("", path, given) for path, given in options.items())]
