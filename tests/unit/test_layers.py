"""The one-way import order, and which module alone may know which package."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from .host import REPOSITORY

ORDER = [
    "errors",
    "linux",
    "access",
    "options",
    "settings",
    "fds",
    "labels",
    "prepare",
    "record",
    "mounts",
    "walk",
    "crew",
    "tree",
    "root",
    "store",
    "trash",
    "passes",
    "readiness",
    "driver",
    "migration",
    "directory",
    "tar",
    "image",
    "container",
    "engine",
    "denials",
    "finding",
    "filesystem",
    "patient",
    "case",
    "ownership",
    "confinement",
    "doctor",
    "installation",
    "wire",
    "server",
    "archive",
    "recipe",
    "show",
    "cli",
]
ALONE = {
    "flask": "wire",
    "werkzeug": "wire",
    "gunicorn": "server",
    "click": "cli",
    "rich": "show",
    "docker": "engine",
    "ctypes": "linux",
    "selinux": "labels",
}


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Each imported module, and whether it is one of the package's own."""
    for node in ast.walk(ast.parse((REPOSITORY / "plugin" / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{module}: relative imports are of one level"
            yield from ((node.module, True),) if node.module else ((name.name, True) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], False
        elif isinstance(node, ast.Import):
            yield from ((name.name.split(".")[0], False) for name in node.names)


def test_every_module_has_its_place() -> None:
    """The order names every module of the package, and nothing else."""
    found = {path.stem for path in (REPOSITORY / "plugin").glob("*.py")} - {"__init__", "__main__"}
    assert found == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_one_way(module: str) -> None:
    """A module imports only those before it in the order, relatively."""
    found = list(imports(module))
    assert [name for name, own in found if own and name not in ORDER[: ORDER.index(module)]] == []
    assert [name for name, own in found if not own and name == "plugin"] == []


@pytest.mark.parametrize(("package", "module"), ALONE.items(), ids=list(ALONE))
def test_a_package_is_known_to_one_module(package: str, module: str) -> None:
    """Flask only in wire, gunicorn only in server, click only in cli, rich only in show, and so on."""
    assert {each for each in ORDER for name, own in imports(each) if name == package and not own} <= {module}


def test_the_core_knows_no_front_end() -> None:
    """The core knows neither Flask nor click nor the Docker SDK."""
    core = ORDER[: ORDER.index("driver") + 1]
    assert {name for each in core for name, own in imports(each) if not own} & {*ALONE, "docker"} <= {
        "ctypes",
        "selinux",
    }
