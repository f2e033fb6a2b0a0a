"""`oat-edge calibrate`: choose an operating point; `calibrate bn`: widths that were not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from oat_edge.calib.goal import Goal, Percentile, Preference
from oat_edge.calib.operating_point_file import is_operating_point
from oat_edge.calib.reports import REPORT, measured_points, of_device, read_reports
from oat_edge.cli.calibrate_bn import bn
from oat_edge.cli.calibrate_run import bundle_of, conclude, searched
from oat_edge.cli.console import output_console
from oat_edge.cli.options import JsonFile
from oat_edge.errors import InputError
from oat_edge.files import check_replaceable
from oat_edge.operating_point import parse_list

OPERATING_POINT = "operating_point.json"
CHOOSE = "choose"


class _ChoosesByDefault(TyperGroup):
    """What is no subcommand are the reports and options of `choose`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = bool(args) and args[0] in self.commands
        rest: list[str] = super().parse_args(ctx, args if known else [CHOOSE, *args])
        return rest


class _Unnamed(TyperCommand):
    """What the group runs by default goes by the group's name: no user types its own."""

    def make_context(
        self, info_name: Any, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        return super().make_context(parent.info_name, args, parent=parent.parent, **extra)


calibrate = typer.Typer(cls=_ChoosesByDefault, help="Choose an operating point from bench reports.")
calibrate.command("bn")(bn)


@calibrate.command(CHOOSE, cls=_Unnamed, hidden=True)
def choose(
    reports: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[REPORT]...",
            help="Reports of `bench`, or bundles that hold one; of one network.",
            show_default="that of the bundle",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Where λ between the knots is measured.",
            show_default="the report's, or bundles/latest",
        ),
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Of one request.")] = None,
    min_robust: Annotated[
        float | None, typer.Option(help="Worst-case robust accuracy, such as 0.40.")
    ] = None,
    min_standard: Annotated[float | None, typer.Option(help="Accuracy on clean images.")] = None,
    max_energy_mj: Annotated[float | None, typer.Option(help="Per image.")] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="Of the process, and of the GPU if there is one.")
    ] = None,
    percentile: Annotated[
        str, typer.Option(help="The latency that is meant: p50, p95 or p99.")
    ] = "p50",
    confident: Annotated[
        bool,
        typer.Option("--confident", help="Accuracies must hold with their 95 % intervals."),
    ] = False,
    prefer: Annotated[
        str, typer.Option(help="robust, standard or latency; then the other two decide ties.")
    ] = "robust",
    device: Annotated[
        str | None, typer.Option(help="Of several devices in the reports, which.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images per request.", show_default="smallest that was measured"),
    ] = None,
    width: Annotated[str, typer.Option(metavar="LIST", help="Only these widths.")] = "all",
    precision: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Only these, e.g. fp32,int8.", show_default="all"),
    ] = None,
    pinned: Annotated[
        bool, typer.Option("--pinned", help="Also files with λ folded in: faster, λ is fixed.")
    ] = False,
    search: Annotated[
        bool, typer.Option(help="Measure λ between the knots, where it could be better.")
    ] = True,
    max_lambdas: Annotated[
        int, typer.Option(min=1, help="How many λ between the knots, at most.")
    ] = 12,
    queries: Annotated[
        int, typer.Option(min=0, help="Attack each λ that is measured with Square, too.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=f"{OPERATING_POINT} beside the report"),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Choose width, λ and precision from what was measured, and say why.

    Constraints must all hold; among the points that keep them the preferred figure decides, then
    the other two. λ between the knots is measured on the bundle's files, as far as it could give
    something better. Exit code 7 and the nearest miss if nothing meets the goal.
    The choice is written for open_runner(bundle, operating_point=FILE).

    `oat-edge calibrate bn` adds widths that were not trained.
    """
    goal = Goal(
        max_latency_ms=max_latency_ms,
        percentile=cast(Percentile, percentile),
        min_robust=min_robust,
        min_standard=min_standard,
        max_energy_mj=max_energy_mj,
        max_memory_mb=max_memory_mb,
        confident=confident,
        prefer=cast(Preference, prefer),
    )
    console = output_console(json)
    paths = reports or [(bundle or Path("bundles/latest")) / REPORT]
    target = out or (paths[0] if paths[0].is_dir() else paths[0].parent) / OPERATING_POINT
    _check_writable(target, None if json in (None, "-") else Path(str(json)), paths)
    measured = measured_points(
        of_device(read_reports(paths), device),
        percentile=goal.percentile,
        batch=batch,
        precisions=None if precision is None else precision.split(","),
        widths=None if width.strip() == "all" else parse_list(width, "width"),
        pinned=pinned,
    )
    found = bundle_of(measured, bundle)
    pool = searched(
        measured,
        goal,
        found,
        console,
        max_lambdas=max_lambdas if search else None,
        queries=queries,
    )
    conclude(pool, goal, target, json, console)


def _check_writable(target: Path, json: Path | None, reports: list[Path]) -> None:
    """Raise `InputError` where a file would take the place of what was read or written here."""
    taken = [path / REPORT if path.is_dir() else path for path in reports]
    for file, option in ((target, "--out"), (json, "--json")):
        if file is None:
            continue
        check_replaceable(file)
        if file.resolve() in (path.resolve() for path in taken):
            raise InputError(
                f"{file} is a report that is read here, or written already: name another {option}"
            )
        taken.append(file)
    if target.exists() and not is_operating_point(target):
        raise InputError(
            f"{target} is there and is no operating point, which would take its place: delete it, "
            "or name another --out"
        )
