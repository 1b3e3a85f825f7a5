"""hostprep restore, purge: what becomes of removed volumes."""

from __future__ import annotations

import click

from ..errors import Invalid
from ..settings import Settings
from ..volumes.driver import Driver
from .shared import deadline


@click.command()
@click.argument("name")
@click.option("--id", "entry", metavar="ID", help="Its ID, as ls --trash lists it. Without: the newest of that name.")
@click.option("--as", "new_name", metavar="NEW", help="Restore it under this name.")
@click.pass_obj
def restore(settings: Settings, name: str, entry: str | None, new_name: str | None) -> None:
    """Bring a removed volume back, with its data."""
    driver = Driver.open(settings, create=False)
    print(driver.restore(name, entry=entry, new_name=new_name, deadline=deadline(settings)).name)


@click.command()
@click.option("--all", "everything", is_flag=True, help="Delete all removed volumes now.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.pass_obj
def purge(settings: Settings, *, everything: bool, ids: tuple[str, ...]) -> None:
    """Delete removed volumes for good.

    ls --trash lists the IDs. Without an ID, purge deletes what was removed longer than --trash-keep ago. It deletes no
    volume that is still mounted.
    """
    if everything and ids:
        raise Invalid("purge takes --all or ids, not both")
    driver = Driver.open(settings, create=False)
    print(f"{driver.purge(None if everything else list(ids))} purged")
