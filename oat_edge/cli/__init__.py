"""The command line. Only here anything is printed."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from oat_edge import __version__
from oat_edge.cli.bench import bench
from oat_edge.cli.console import error_console
from oat_edge.cli.demo import demo
from oat_edge.cli.doctor import doctor
from oat_edge.cli.export import export
from oat_edge.cli.inspect import inspect
from oat_edge.cli.train import train
from oat_edge.errors import OatEdgeError

app = typer.Typer(
    name="oat-edge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, export and bench networks with two run-time knobs: λ (robustness) and width.",
    epilog="Start with: oat-edge train · oat-edge export · oat-edge bench",
)
for command in (train, export, bench, inspect, doctor, demo):
    app.command()(command)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"oat-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; expected errors are one line and an exit code (DESIGN, section 5)."""
    # A closed pipe (`oat-edge inspect | head`) ends the program quietly, as it does other tools.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        app()
    except OatEdgeError as error:
        error_console.print(f"error: {' '.join(str(error).split())}", style="red", markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        error_console.print("interrupted", style="red")
        sys.exit(130)
