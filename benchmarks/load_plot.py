"""The plot of the load test: responses over time, and what was right in time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oat_edge.bench.style import COLOURS, INK, PALE_INK, STYLE, save_figure
from oat_edge.require import require

if TYPE_CHECKING:
    from benchmarks.load_traffic import Phase, Served

DASHES = ((0, ()), (0, (1, 1.2)), (0, (4, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (7, 2)))
# Shares are of so many bins a phase.
BINS = 5


def plot_load(
    served: dict[str, list[Served]], phases: Sequence[Phase], deadline_ms: float, path: Path
) -> None:
    """Top: responses of the first candidate (the policy) and of the last (the widest), by width.

    Below: the share of requests that were answered right and in time, of each candidate.
    """
    matplotlib = require("matplotlib", purpose="drawing plots")
    figures = require("matplotlib.figure", purpose="drawing plots")
    names = list(served)
    end_s = max(one.at_s for requests in served.values() for one in requests)
    phase_s = end_s / len(phases)
    widths = sorted({one.point.width for requests in served.values() for one in requests})
    colours = dict(zip(widths, COLOURS, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(7.2, 5.6), layout="constrained")
        axes = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1, 0.9])
        axes[0].sharey(axes[1])
        for place, name in zip(axes, (names[0], names[-1]), strict=False):
            _draw_responses(place, served[name], colours, deadline_ms)
            title = "Policy" if name == names[0] else f"Always {name}"
            place.set_title(f"{title}: response of each request", loc="left")
        _draw_shares(axes[2], served, phase_s / BINS, colours)
        for place in axes:
            _shade(place, phases, phase_s)
        for i, phase in enumerate(phases):
            where = (phase_s * (i + 0.5), 1.02)
            axes[2].text(
                *where, phase.name.replace(", ", ",\n"), ha="center", va="bottom", fontsize=7.5,
                color=PALE_INK, transform=axes[2].get_xaxis_transform(),
            )  # fmt: skip
        axes[2].set_xlim(0, end_s)
        axes[2].set_xlabel("Time of each candidate (s)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=len(labels), handletextpad=0.4
        )
        save_figure(figure, path)


def _draw_responses(
    axes: Any, requests: Sequence[Served], colours: dict[float, str], deadline_ms: float
) -> None:
    for width, colour in colours.items():
        chosen = [one for one in requests if one.point.width == width]
        times, responses = [one.at_s for one in chosen], [one.response_ms for one in chosen]
        # Thousands of dots as paths would be megabytes.
        axes.scatter(times, responses, s=5, color=colour, alpha=0.45, linewidths=0, rasterized=True)
        axes.scatter([], [], s=16, color=colour, linewidths=0, label=f"width {width:g}")
    axes.axhline(deadline_ms, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), label="deadline")
    axes.set_yscale("log")
    ticker = require("matplotlib.ticker", purpose="drawing plots")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set_ylabel("Response (ms)")


def _draw_shares(
    axes: Any, served: dict[str, list[Served]], bin_s: float, colours: dict[float, str]
) -> None:
    for (name, requests), dash in zip(served.items(), DASHES, strict=False):
        places = np.array([int(one.at_s / bin_s) for one in requests])
        right = np.array([one.right * one.met for one in requests])
        filled = np.unique(places)
        shares = [100 * right[places == one].mean() for one in filled]
        fixed = name != next(iter(served))
        colour = colours[requests[0].point.width] if fixed else INK
        axes.plot(
            (filled + 0.5) * bin_s, shares, color=colour, linewidth=1.0 if fixed else 1.8,
            linestyle=dash, label=name if fixed else "policy",
        )  # fmt: skip
    axes.set(ylim=(0, 100), ylabel="Right, in time (%)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=len(served), handlelength=2.8)


def _shade(axes: Any, phases: Sequence[Phase], phase_s: float) -> None:
    """Grey where other processes compete, a border where a phase ends."""
    for i, phase in enumerate(phases):
        if phase.busy:
            axes.axvspan(i * phase_s, (i + 1) * phase_s, color="#eeeeee", linewidth=0, zorder=0)
        if i:
            axes.axvline(i * phase_s, color="#bbbbbb", linewidth=0.6, zorder=0.5)
    axes.grid(axis="x", visible=False)
