"""python -m manual DIR"""

from __future__ import annotations

import sys
from pathlib import Path

from .pages import pages


def main(directory: str) -> None:
    for name, text in pages().items():
        path = Path(directory, f"man{name[-1]}", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])
