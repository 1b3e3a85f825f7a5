"""What keeps the tests honest: nothing is skipped without a word, and no test changes the machine that it runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import pytest_runtest_setup
from tests.support import namespaces
from tests.support.host import PYTHON, REPOSITORY


class Item:
    """A test with the marks given."""

    def __init__(self, *marks: str) -> None:
        self.marks = marks

    def get_closest_marker(self, name: str) -> Any:
        return name if name in self.marks else None


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Not root, on somebody's own machine."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("CI", raising=False)
    return monkeypatch


def setup(*marks: str) -> None:
    pytest_runtest_setup(Item(*marks))  # type: ignore[arg-type]  # as much of an item as it looks at


@pytest.mark.usefixtures("nobody")
def test_without_root() -> None:
    """A test that needs root is skipped without it, and says why; another is run."""
    with pytest.raises(pytest.skip.Exception, match="needs root"):
        setup("root")
    setup()


@pytest.mark.parametrize("ci", ["", "true"])
@pytest.mark.parametrize(
    "how", ["@pytest.mark.skipif(True, reason='why')\ndef test(): pass", "def test(): pytest.skip('why')"]
)
def test_where_all_must_run(tmp_path: Path, how: str, ci: str) -> None:
    """With CI=true whatever is skipped has failed, and the reason is told in either case."""
    shutil.copy(REPOSITORY / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(f"import pytest\n{how}\n")
    argv = [PYTHON, "-m", "pytest", "-ra", "-p", "no:cacheprovider", str(tmp_path)]
    environ = {**os.environ, "CI": ci}
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (1 if ci else 0), done.stdout
    assert ("1 skipped" in done.stdout) is not bool(ci)
    assert "why" in done.stdout


def test_with_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root everything is run."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    setup("root")


@pytest.mark.root
def test_nothing_of_the_machine_is_changed() -> None:
    """Where a test asked for it, nothing but what is temporary can be changed; afterwards all is as before."""
    with tempfile.TemporaryDirectory(dir="/var/lib") as bait, tempfile.TemporaryDirectory() as temporary:
        with namespaces.read_only_machine(Path(temporary)):
            with pytest.raises(OSError, match="Read-only file system"):
                os.chown(bait, 184, 998)
            with pytest.raises(OSError, match="Read-only file system"):
                os.rename(bait, f"{bait}-moved")
            (Path(temporary) / "file").touch()
        os.chown(bait, 184, 998)
        assert os.listdir(temporary) == ["file"]
