"""Plain text in a pipe; tables, bars and colours on a terminal; nothing reaches the terminal raw."""

from __future__ import annotations

import pytest

from hostprep.cli import output
from hostprep.tree.process import Progress
from tests.support.commands import on_a_terminal

IMPORT = "from hostprep.cli import output\n"


class TestTable:
    def test_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a pipe cells are parted by tabs, a row a line, without colour."""
        output.table(["NAME", "MODE"], [["mongo", "0750"], ["redis", "-"]])
        assert capsys.readouterr().out == "NAME\tMODE\nmongo\t0750\nredis\t-\n"

    def test_control_characters_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A cell can neither end its line nor its column."""
        output.table(["NAME"], [["a\nb\tc\x1b[31m"]])
        assert capsys.readouterr().out == "NAME\na\\nb\\tc\\x1b[31m\n"

    def test_on_a_terminal(self) -> None:
        """On a terminal it is a table; what looks like markup or a sequence is shown as it is written."""
        text = on_a_terminal(
            IMPORT + "output.table(['NAME', 'PATH'], [['mongo', '/srv/[red]x\\x1b[31m'], ['redis', '/srv/[/]']])"
        )
        assert "/srv/[red]x\\x1b[31m" in text
        assert "/srv/[/]" in text
        assert "\t" not in text


class TestStyled:
    CODE = IMPORT + "output.styled(('mongo[b]: ', ''), ('not usable' + 100 * '.', 'bold red'))"

    def test_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a pipe there are no colours."""
        output.styled(("mongo: ", ""), ("not usable", "bold red"))
        assert capsys.readouterr().out == "mongo: not usable\n"

    def test_on_a_terminal(self) -> None:
        """On a terminal each text has its colour, and a long line is not wrapped."""
        assert on_a_terminal(self.CODE, COLUMNS="40") == f"mongo[b]: \x1b[1;31mnot usable{100 * '.'}\x1b[0m\r\n"

    def test_no_colour(self) -> None:
        """With NO_COLOR (no-color.org) there are none on a terminal either."""
        assert "31m" not in on_a_terminal(self.CODE, NO_COLOR="1")


class TestBar:
    def test_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a pipe there is no bar."""
        with output.pass_bar("preparing mongo") as update:
            update(Progress.now(100, None, 1.0))
        assert capsys.readouterr() == ("", "")

    def test_on_a_terminal(self) -> None:
        """On a terminal it shows what is prepared and how many entries were looked at."""
        text = on_a_terminal(
            IMPORT + "from hostprep.tree.process import Progress\n"
            "with output.pass_bar('preparing [b]mongo\\x1b') as update:\n"
            "    update(Progress.now(412_000, 980_000, 10.0))"
        )
        assert "preparing [b]mongo\\x1b" in text
        assert "412,000 of about 980,000 entries, 41,200/s, about 14 s left" in text


class TestPull:
    def test_in_a_pipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        """In a pipe a pull has no bar."""
        with output.pull_bar("mongo:7") as update:
            update(100, 200)
        assert capsys.readouterr() == ("", "")

    def test_on_a_terminal(self) -> None:
        """On a terminal it shows what is pulled and how much of it is there."""
        text = on_a_terminal(
            IMPORT + "with output.pull_bar('host:5000/[b]mongo') as update: update(0, 0); update(5, 10)"
        )
        assert "pulling host:5000/[b]mongo" in text
        assert "5/10 bytes" in text
