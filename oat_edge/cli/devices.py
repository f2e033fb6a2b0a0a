"""`oat-edge devices`: names for machines that are reached over SSH."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from oat_edge.cli.console import make_console, output_console, plain_table
from oat_edge.cli.options import JsonFile
from oat_edge.files import write_json
from oat_edge.remote.devices import (
    Device,
    add_device,
    devices_file,
    known,
    load_devices,
    remove_device,
)
from oat_edge.remote.ssh import check_host

devices = typer.Typer(
    invoke_without_command=True,
    help="Name machines once, then bench --device NAME.",
)


@devices.callback()
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show()


@devices.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    host: Annotated[str, typer.Argument(help="user@host, as for ssh; or ssh://user@host:port.")],
    device: Annotated[
        str, typer.Option(help="What is measured there: jetson, cuda or cpu.")
    ] = "jetson",
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Its Python.", show_default="the python3 there"),
    ] = None,
) -> None:
    """Name a machine, or change what its name means. Nothing is sent to it."""
    added = Device(name=name, host=check_host(host), device=device, python=python)
    replaced = add_device(added)
    verb = "changed" if replaced else "added"
    make_console(stderr=False).print(
        f"{verb} {name}: {added.host}, {device} (in {devices_file()}); "
        f"next: oat-edge bench --device {name}"
    )


@devices.command("list")
def show(json: JsonFile = None) -> None:
    """Show all machines that have a name."""
    found = load_devices()
    value = {"devices": [one.to_json() for one in found.values()]}
    console = output_console(json)
    if json == "-":
        json_module.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif json is not None:
        write_json(Path(json), value)
    if not found:
        console.print(known(()))
        return
    table = plain_table(None, ["name", "host", "device", "python"], left=4)
    for one in found.values():
        table.add_row(one.name, str(one.host), one.device, one.python or "python3")
    console.print(table)


@devices.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Forget a machine. Nothing is changed on it."""
    remove_device(name)
    make_console(stderr=False).print(f"removed {name}")
