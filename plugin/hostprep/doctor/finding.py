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
class Apply:
    """A remedy that hostprep can carry out itself: `hostprep apply` with these options, then `hostprep repair`."""

    options: Mapping[str, str] = field(default_factory=dict)
    contents: bool = False
    """Whether a pass over the contents is needed although the volume's root is right: `hostprep repair`."""

    @property
    def applies(self) -> bool:
        return bool(self.options) or not self.contents

    def command(self, name: str) -> str:
        """The command line for a shell."""
        options = [word for key, value in self.options.items() for word in ("-o", f"{key}={value}")]
        commands = [["hostprep", "apply", name, *options]] if self.applies else []
        commands += [["hostprep", "repair", name]] if self.contents else []
        return " && ".join(map(shlex.join, commands))


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
    remedy: Apply | str = ""
    """hostprep's own remedy, or a command line for the administrator; empty where no single command repairs it."""

    def fix(self, name: str) -> str:
        """The command line that repairs it, for the volume *name*; empty where there is none."""
        return self.remedy if isinstance(self.remedy, str) else self.remedy.command(name)


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


def combined_remedy(findings: Sequence[Finding]) -> Apply | None:
    """hostprep's own remedies for *findings*, combined into one; None where there are none.

    From warnings it takes only what restores the declared state: the rest may be intended.

    Raises:
        Conflict: two remedies set an option to different values, as for containers of different users.
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
                hint = "choose with --container or --user whom the volume is for"
                raise Conflict(f"{key} would have to be both {options[key]} and {value}", hint=hint)
    return Apply(options, any(remedy.contents for remedy in remedies))
