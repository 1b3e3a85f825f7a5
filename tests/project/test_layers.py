"""What a package may import, and which package alone knows which library."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import REPOSITORY

PACKAGE = REPOSITORY / "plugin" / "hostprep"

MAY_IMPORT = {
    "errors": (),
    "options": ("errors",),
    "host": ("errors", "options"),
    "settings": ("errors", "host"),
    "tree": ("errors", "options", "host"),
    "engine": ("errors", "options", "host"),
    "volumes": ("errors", "options", "host", "settings", "tree"),
    "doctor": ("errors", "options", "host", "settings", "engine", "volumes"),
    "serve": ("errors", "options", "host", "settings", "engine", "volumes"),
    "cli": ("errors", "options", "host", "settings", "tree", "engine", "volumes", "doctor", "serve"),
    "__main__": ("errors", "host", "settings", "serve", "cli"),
}
"""The packages, and the modules beside them, from the lowest to the highest."""

VOLUMES = (
    *(
        "known",
        "root",
        "declaration",
        "record",
        "pins",
        "volume",
        "copying",
        "foreign",
        "claims",
        "store",
        "listing",
        "trash",
        "passes",
    ),
    "readiness",
    *("create", "status", "driver", "importing"),
)
"""The modules of volumes: each may import those before it."""

ALONE = {
    "flask": "serve/wire",
    "werkzeug": "serve/wire",
    "gunicorn": "serve/worker",
    "click": "cli",
    "rich": "cli/output",
    "docker": "engine/connection",
    "ctypes": "host/linux",
    "selinux": "host/policy",
}
"""Who alone may import a library: a module, or a package."""


def modules() -> list[str]:
    """Every module, as a path from the package: `tree/walk`."""
    return sorted(str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py"))


def imports(module: str) -> Iterator[str]:
    """What a module imports: `/tree/walk` of the package's own, `flask` of another."""
    above = Path("/", module).parent
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = above if node.level == 1 else above.parents[node.level - 2]
            found = [base.joinpath(*(node.module or "").split("."))]
            if not (PACKAGE / f".{found[0]}.py").exists():  # a package: of it modules are imported
                found = [found[0] / name.name for name in node.names]
            yield from map(str, found)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)


def of(module: str) -> str:
    """The package, or the module beside them, that a module belongs to."""
    return module.strip("/").split("/")[0]


def test_every_package_has_its_place() -> None:
    """The contract names every package, and nothing else; and each may import only those before it."""
    assert {of(module) for module in modules()} - {"__init__"} == set(MAY_IMPORT)
    places = list(MAY_IMPORT)
    assert [name for name, below in MAY_IMPORT.items() if not {*below} <= {*places[: places.index(name)]}] == []


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module: str) -> None:
    """A module imports of its own package, and of those that the contract names for it, by relative imports."""
    found = set(imports(module))
    assert "hostprep" not in found
    own = {of(each) for each in found if each.startswith("/")} - {of(module)}
    assert own <= set(MAY_IMPORT.get(of(module), ()))


def test_volumes_are_stacked() -> None:
    """Within volumes a module imports only those before it: there are no circles."""
    assert {module.removeprefix("volumes/") for module in modules() if of(module) == "volumes"} == {
        "__init__",
        *VOLUMES,
    }
    for number, module in enumerate(VOLUMES):
        own = {each.removeprefix("/volumes/") for each in imports(f"volumes/{module}") if of(each) == "volumes"}
        assert own <= set(VOLUMES[:number]), module


@pytest.mark.parametrize("module", [each for each in modules() if each.endswith("__init__")])
def test_a_package_is_a_docstring(module: str) -> None:
    """A package's own module says what it is for, and what it may import, and runs nothing: a pass imports them all."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    assert [type(node) for node in tree.body] == [ast.Expr]
    if "/" in module:
        listed = re.search(r"^May import: ([a-z, ]+)\.", ast.get_docstring(tree) or "", re.MULTILINE)
        assert listed is not None
        assert tuple(listed[1].split(", ")) == MAY_IMPORT[of(module)]


@pytest.mark.parametrize(("library", "owner"), ALONE.items(), ids=list(ALONE))
def test_a_library_has_one_owner(library: str, owner: str) -> None:
    """Flask is known to the wire alone, gunicorn to serve, click to cli, the Docker SDK to the engine's client."""
    known = {module for module in modules() if library in imports(module)}
    assert known == {module for module in known if module == owner or module.startswith(f"{owner}/")}


@pytest.mark.parametrize("folder", ["testbed", "demo", "bench", "tests"])
def test_who_shares_the_testbed(folder: str) -> None:
    """The demo, the benchmarks and the tests import from the testbed, and never from each other; it imports of none."""
    others = {"testbed", "demo", "bench", "tests"} - {folder, *(() if folder == "testbed" else ("testbed",))}
    found: list[str] = []
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in others]
    assert found == []
