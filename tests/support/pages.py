"""What README and the pages under docs/ show."""

from __future__ import annotations

import re

from .host import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def section(heading: str) -> str:
    """The text of README below a heading, to the next one of its level."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def code(text: str) -> list[str]:
    """The lines that a page shows as code, indented or between fences. One that ends in a backslash goes on."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    shown = "\n".join([*fenced, *re.findall(r"^ {4}(.*)$", rest, re.MULTILINE)])
    return re.sub(r"\\\n\s*", "", shown).splitlines()
