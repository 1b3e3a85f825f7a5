"""Whether SELinux lets containers use a volume, by what its policy allows and by what it has denied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..errors import printable
from ..options import Recurse
from . import denials
from .finding import Finding, Remedy, Verdict
from .inspection import InspectedVolume
from .permissions import Who

_MAX_DENIALS: Final = 5  # that are shown


def check_labels(volume: InspectedVolume) -> Iterator[Finding]:
    """Whether the policy allows the volume's containers to use its label, for each of their contexts; and denials."""
    if not volume.labels.can_tell:
        why = "this host has no SELinux policy to ask" if volume.labels.applied else "SELinux is off on this host"
        yield Finding("label", Verdict.OK, f"{why}, so no label denies access")
        return
    if volume.label is None:
        yield Finding("label", Verdict.NOTE, "the directory has no label: its file system stores none")
    else:
        for process in dict.fromkeys(subject.label for subject in volume.subjects) or {None: None}:
            yield from _label_for(volume, process)
    yield from _denials(volume)


def _label_for(volume: InspectedVolume, process: str | None) -> Iterator[Finding]:
    label = volume.label or ""
    if process == "":
        yield Finding("label", Verdict.OK, "the container is not confined by SELinux")
        return
    context = volume.labels.process(label) if process is None else process
    if missing := volume.labels.missing(label, context):
        who, may_not = _domain(context), " or ".join(missing)
        # With the same level nothing is missing: only the categories are in the way.
        if not volume.labels.missing(label, volume.labels.at_level_of(label, context)):
            what = f"{printable(label)}: the container runs with {_categories(context)}, not with {_categories(label)}"
            level = f"--security-opt label=level:{denials.fields(label)[3]}"
            wanted = f"a label for all containers; or a container made with {level}"
            for_all = volume.own_remedy("categories", _label_options(volume, shared=True))
            yield Finding("categories", Verdict.BAD, what, wanted, _where_kept(volume, for_all))
            return
        what = f"{printable(label)}: SELinux forbids {who} to {may_not} it"
        remedy = _where_kept(volume, volume.own_remedy("label", _label_options(volume)))
        verdict = volume.severity(remedy, volume.subjects)
        yield Finding("label", verdict, what, volume.labels.usable(label), remedy)
        return
    yield Finding("label", Verdict.OK, f"{printable(label)}: the policy lets {_domain(context)} read and write it")
    yield from _labels_inside(volume, context)


def _where_kept(volume: InspectedVolume, remedy: Remedy) -> Remedy | None:
    """*remedy*; or where the file system stores no labels, what gives the directory one."""
    if volume.file_system.keeps_labels:
        return remedy
    who = volume.subjects[0].who if volume.subjects else Who(volume.found.st_uid, volume.found.st_gid)
    return volume.given_at_mount(who).remedy


def _label_options(volume: InspectedVolume, *, shared: bool = False) -> dict[str, str]:
    """The options that declare a label that this container can use, or with *shared* every container.

    As far as they are not declared yet. Of a sub-directory nothing is declared.
    """
    default, declared = volume.labels.default or "", volume.record.options.label
    if volume.subpath:
        return {"label": _type_and_level(default)}
    if declared is None and not volume.record.adopted and not shared:
        return {}  # hostprep keeps the default label
    if declared is not None and declared.type and not shared:
        # The declared label may be right, and only the directory's label differs from it.
        if not volume.labels.missing(str(declared), volume.labels.process(str(declared))):
            return {}
        default = volume.labels.usable(str(declared))
    options = {"label": _type_and_level(default)}
    if volume.record.options.recurses is Recurse.NEVER and any(volume.entries()):
        options["recurse"] = Recurse.MISMATCH.value
    return options


def _labels_inside(volume: InspectedVolume, context: str) -> Iterator[Finding]:
    """A finding if the labels of some of the first entries keep *context* out."""
    wrong = looked = 0
    example, refused = "", dict[str, bool]()
    for name, _, file in volume.entries():
        looked += 1
        label = denials.label_of(file)
        if label is None:
            continue
        if label not in refused:
            refused[label] = bool(volume.labels.missing(label, context))
        wrong += refused[label]
        example = example or (f"{printable(name)} is {printable(label)}" if refused[label] else "")
    if wrong:
        what = f"SELinux forbids {_domain(context)} to use {wrong} of the first {looked} entries: {example}"
        wanted = f"all contents labelled {printable(volume.label or '')}"
        yield Finding(
            "contents", Verdict.BAD, what, wanted, volume.own_remedy("labels", _relabel(volume), contents=True)
        )


# -- what was denied -----------------------------------------------------------------------------------------


def _denials(volume: InspectedVolume) -> Iterator[Finding]:
    where, recorded = denials.recorded()
    if not where:
        yield Finding("denials", Verdict.NOTE, "neither the audit log nor the journal can be read")
        return
    found = denials.concerning(volume.data, volume.file_system.mount, recorded)
    for denial in found[-_MAX_DENIALS:]:
        yield _denial(volume, denial)
    if not found:
        yield Finding("denials", Verdict.OK, f"none for this volume's files in {where}")


def _denial(volume: InspectedVolume, denial: denials.Denial) -> Finding:
    what = printable(denials.sentence(denial))
    needed = [(denial.kind, permission) for permission in denial.permissions]
    if denial.label is not None and volume.labels.allows(denial.source, denial.label, needed):
        now = f"its label is now {printable(denial.label)}, which allows it"
        return Finding("denials", Verdict.NOTE, f"{what}; {now}")
    alike = volume.labels.at_level_of(denial.target, denial.source)
    only_categories = volume.labels.allows(alike, denial.target, needed)
    what += ", whose categories it does not have" if only_categories else ", which the policy does not allow"
    # The root and its entries have findings of their own. Only a denial shows what is deeper down.
    wrong_root = volume.labels.missing(volume.label or "", denial.source)
    if "/" not in denial.path or wrong_root or not volume.file_system.keeps_labels:
        return Finding("denials", Verdict.NOTE, what)
    wanted = f"{printable(volume.label or '')}, the volume's own label"
    return Finding("denials", Verdict.BAD, what, wanted, volume.own_remedy("denied", _relabel(volume), contents=True))


def _relabel(volume: InspectedVolume) -> dict[str, str]:
    """The options with which a pass gives the contents the label of the directory."""
    declared = volume.record.options.label is not None and not volume.subpath
    return {} if declared else {"label": _type_and_level(volume.label or "")}


def _domain(context: str) -> str:
    """The type of a process's context, `container_t`."""
    return printable(denials.fields(context)[2] or context)


def _categories(context: str) -> str:
    level = denials.fields(context)[3].partition("-")[0]
    return printable(level.partition(":")[2]) or "no categories"


def _type_and_level(label: str) -> str:
    _, _, kind, level = denials.fields(label)
    return f"{kind}:{level}" if level and level != "s0" else kind
