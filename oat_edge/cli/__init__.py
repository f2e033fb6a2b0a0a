"""The command line. Only here anything is printed."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer

from oat_edge import __version__
from oat_edge.cli.bench import bench
from oat_edge.cli.calibrate import calibrate
from oat_edge.cli.compare import compare
from oat_edge.cli.console import say_error
from oat_edge.cli.demo import demo
from oat_edge.cli.devices import devices
from oat_edge.cli.doctor import doctor
from oat_edge.cli.eval import evaluate
from oat_edge.cli.export import export
from oat_edge.cli.inspect import inspect
from oat_edge.cli.recipes import recipes
from oat_edge.cli.reproduce import reproduce
from oat_edge.cli.train import train
from oat_edge.errors import OatEdgeError

app = typer.Typer(
    name="oat-edge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Frames and colours are for people; a pipe or a log gets plain text.
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    help="Train, export and bench networks with two run-time knobs: λ (robustness) and width.",
    epilog="Start with: oat-edge train · oat-edge export · oat-edge bench",
)
# Base of the parser's errors (a bad option, a missing value), wherever this typer has it from.
UsageError: Any = typer.BadParameter.__base__
INTERRUPTED, TERMINATED = 130, 143

for command in (train, export, bench, compare, inspect, doctor, demo, recipes, reproduce):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(calibrate, name="calibrate")
app.add_typer(devices, name="devices")


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
    # Asked to end (`kill`, a shutdown), it cleans up as after an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a λ must not end a program in a Latin-1 terminal
    code: int | None
    try:
        arguments = sys.argv[1:] or ["--help"]
        code = app(args=arguments, prog_name="oat-edge", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except OatEdgeError as error:
        say_error(str(error))
        code = error.exit_code
    except UsageError as error:
        help_command = f"{error.ctx.command_path} --help" if error.ctx else "oat-edge --help"
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of torchrun's processes one says it
            say_error(f"{error.format_message().rstrip('.')} (see {help_command})")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        say_error("interrupted", prefix="")
        code = INTERRUPTED
    sys.exit(code)
