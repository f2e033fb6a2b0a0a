"""Where output goes: colour and live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

# Where there is no terminal, nothing is cut off.
PLAIN_WIDTH = 10_000
PADDING = re.compile(r" +$", re.MULTILINE)


class _Unpadded:
    """Standard output or error without the blanks that tables end their lines with."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(sys, self._name), attribute)

    def write(self, text: str) -> int:
        written: int = getattr(sys, self._name).write(PADDING.sub("", text))
        return written


def make_console(*, stderr: bool) -> Console:
    """A console that prints text as it is: what looks like markup or an emoji may be a path."""
    name: Literal["stdout", "stderr"] = "stderr" if stderr else "stdout"
    terminal = getattr(sys, name).isatty()
    return Console(
        stderr=stderr,
        file=None if terminal else cast(Any, _Unpadded(name)),
        width=None if terminal else PLAIN_WIDTH,
        soft_wrap=not terminal,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )


error_console = make_console(stderr=True)


def say_error(text: str, *, prefix: str = "error: ") -> None:
    """One red line on standard error."""
    error_console.print(" ".join((prefix + text).split()), style="red", markup=False)


def output_console(json: str | None) -> Console:
    """Standard output, unless `--json -` has claimed it."""
    return make_console(stderr=json == "-")


def plain_table(title: str | None, columns: list[str], *, left: int = 1) -> Table:
    """A table with light rules; the first `left` columns are aligned left, figures right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    return table


def bar(console: Console, *columns: str, count: bool = False) -> Progress:
    """A progress bar with time left; extra `columns` are rich templates over task fields."""
    middle: Any = MofNCompleteColumn() if count else TaskProgressColumn()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        middle,
        *[TextColumn(column) for column in columns],
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def time_left(seconds: float) -> str:
    """ "12 min left"; of less than a minute the seconds."""
    return f"{seconds:.0f} s left" if seconds < 60 else f"{seconds / 60:.0f} min left"


def say_left_out(console: Console, widths: tuple[float, ...], device: str) -> None:
    """Widths of a bundle that "all" leaves out, if there are any."""
    if widths:
        names = ", ".join(f"{width:g}" for width in widths)
        why = " (fp16 and engines are for GPUs)" if device == "cpu" else ""
        text = f"left out: width {names}, of which the bundle has nothing for {device}{why}"
        console.print(text, style="yellow")


@contextmanager
def steps(console: Console) -> Iterator[Any]:
    """Yield `say(text, share)`: a bar on a terminal; elsewhere a line as each step begins."""
    if not console.is_terminal:
        yield lambda text, share=0.0: None if share else console.print(text)
        return
    with bar(console) as progress:
        task = progress.add_task("", total=1.0)

        def say(text: str, share: float = 0.0) -> None:
            if not share:
                progress.reset(task)  # each step has its own time left
            progress.update(task, description=text, completed=share)

        yield say
