"""Whether SELinux lets containers use a volume: the policy is asked, and what was denied is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..errors import printable
from ..options import Recurse
from . import denials
from .case import Case
from .finding import Apply, Finding, Verdict
from .permissions import Who

_SHOWN: Final = 5  # denials
_NOT_LET: Final = "a label with which the policy does not let it do that"


def look(case: Case) -> Iterator[Finding]:
    """The label against the policy for each context that the volume's containers run in; and what was denied."""
    if not case.labels.can_tell:
        why = "SELinux is off on this host" if not case.labels.applied else "no policy can be asked on this host"
        yield Finding("label", Verdict.OK, f"{why}: no label keeps anybody out")
        return
    if case.label is None:
        remedy = Apply(_label_options(case))
        yield Finding("label", case.bad(remedy, case.patients), "the directory has no label", "one", remedy)
    else:
        for process in dict.fromkeys(patient.label for patient in case.patients) or {None: None}:
            yield from _label_for(case, process)
    yield from _denials(case)


def _label_for(case: Case, process: str | None) -> Iterator[Finding]:
    label = case.label or ""
    if process == "":
        yield Finding("label", Verdict.OK, "the container is not confined by SELinux")
        return
    context = case.labels.process(label) if process is None else process
    if missing := case.labels.missing(label, context):
        who, may_not = _domain(context), " or ".join(missing)
        level = [*label.split(":", 3), "", "", ""][3]
        # Alike but for the level: the categories keep it out.
        if not case.labels.missing(label, case.labels.at_level_of(label, context)):
            what = f"{printable(label)}: the container runs with {_categories(context)}, not with {_categories(label)}"
            wanted = f"a label for all containers; or this one made with --security-opt label=level:{level}"
            yield Finding("categories", Verdict.BAD, what, wanted, _label_remedy(case, shared=True))
            return
        what = f"{printable(label)}: the policy lets {who} not {may_not} it"
        remedy = _label_remedy(case, shared=False)
        yield Finding("label", case.bad(remedy, case.patients), what, case.labels.usable(label), remedy)
        return
    yield Finding("label", Verdict.OK, f"{printable(label)}: the policy lets {_domain(context)} read and write it")
    yield from _labels_inside(case, context)


def _label_remedy(case: Case, *, shared: bool) -> Apply | str:
    """What gives the directory a label that containers can use; *shared*: one that all can."""
    if not case.where.keeps_labels:
        who = case.patients[0].who if case.patients else Who(case.found.st_uid, case.found.st_gid)
        return case.given_at_mount(who).fix(case.record.name)
    return Apply(_label_options(case, shared=shared))


def _label_options(case: Case, *, shared: bool = False) -> dict[str, str]:
    """What makes the label one that containers can use, besides what is declared."""
    default, declared = case.labels.default or "", case.record.options.label
    if declared is None and not case.record.adopted and not shared:
        return {}  # it is the default that is kept
    if declared is not None and declared.type and not shared:
        # As declared it may be right, and only is not so now.
        if not case.labels.missing(str(declared), case.labels.process(str(declared))):
            return {}
        default = case.labels.usable(str(declared))
    _, _, kind, level = default.split(":", 3)
    options = {"label": kind if level == "s0" else f"{kind}:{level}"}
    if case.record.options.recurses is Recurse.NEVER and any(case.entries()):
        options["recurse"] = Recurse.MISMATCH.value
    return options


def _labels_inside(case: Case, context: str) -> Iterator[Finding]:
    """A finding where among the first entries are some with labels that keep *context* out."""
    wrong = looked = 0
    example, refused = "", dict[str, bool]()
    for name, _, file in case.entries():
        looked += 1
        label = denials.label_of(file)
        if label is None:
            continue
        if label not in refused:
            refused[label] = bool(case.labels.missing(label, context))
        wrong += refused[label]
        example = example or (f"{printable(name)} is {printable(label)}" if refused[label] else "")
    if wrong:
        what = f"{wrong} of the first {looked} entries the policy lets {_domain(context)} not use: {example}"
        yield Finding("contents", Verdict.BAD, what, f"all of it {printable(case.label or '')}", _relabelling(case))


# -- what was denied -----------------------------------------------------------------------------------------


def _denials(case: Case) -> Iterator[Finding]:
    if not case.labels.can_tell:
        return
    where, recorded = denials.recorded()
    if not where:
        yield Finding("denials", Verdict.NOTE, "neither audit log nor journal can be read")
        return
    found = denials.concerning(case.data, case.where.mount, recorded)
    for denial in found[-_SHOWN:]:
        yield _denial(case, denial)
    if not found:
        yield Finding("denials", Verdict.OK, f"none of this volume's files in {where}")


def _denial(case: Case, denial: denials.Denial) -> Finding:
    what = printable(denials.sentence(denial))
    needed = [(denial.kind, permission) for permission in denial.permissions]
    if denial.label is not None and case.labels.allows(denial.source, denial.label, needed):
        now = f"by now its label is {printable(denial.label)}, which allows it"
        return Finding("denials", Verdict.NOTE, f"{what}; {now}")
    alike = case.labels.at_level_of(denial.target, denial.source)
    why = "whose categories it does not have" if case.labels.allows(alike, denial.target, needed) else _NOT_LET
    what += f", {why}"
    # What lies in the directory itself has been looked at; deeper down, where that is right, only this tells.
    root = case.labels.missing(case.label or "", denial.source)
    if "/" not in denial.path or root or not case.where.keeps_labels:
        return Finding("denials", Verdict.NOTE, what)
    return Finding("denials", Verdict.BAD, what, f"{printable(case.label or '')}, the volume's own", _relabelling(case))


def _relabelling(case: Case) -> Apply:
    """What gives all that is in the volume the label that its directory has."""
    options = {} if case.record.options.label else {"label": _type_and_level(case.label or "")}
    return Apply(options, contents=True, recurse=case.record.given.get("recurse"))


def _domain(context: str) -> str:
    return printable([*context.split(":", 3), "", ""][2] or context)


def _categories(context: str) -> str:
    level = [*context.split(":", 3), "", "", ""][3].partition("-")[0]
    return printable(level.partition(":")[2]) or "no categories"


def _type_and_level(label: str) -> str:
    _, _, kind, level = [*label.split(":", 3), "", "", ""][:4]
    return f"{kind}:{level}" if level and level != "s0" else kind
