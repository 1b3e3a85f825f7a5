"""hostprep serve."""

from __future__ import annotations

import click

from ..settings import Settings


@click.command()
@click.pass_obj
def serve(settings: Settings) -> None:
    """Serve the volume driver protocol until SIGTERM."""
    from ..serve import server  # help needs none of its libraries

    server.serve(settings)
