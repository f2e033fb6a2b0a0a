"""How a width that was not trained does against the line between its trained neighbours.

What to expect of a width in between is the line through its neighbours' accuracies, in width. All
three see the same images of the validation split and the same attack (training's, as the figures
that `train` prints), and the difference is taken image by image: its standard error is that of a
paired comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oat_edge.calib.bn_statistics import step_size
from oat_edge.data.splits import permutation

if TYPE_CHECKING:
    from oat_edge.config import TrainConfig
    from oat_edge.data import Split
    from oat_edge.nn.fold import FoldedNetwork
    from oat_edge.nn.network import OATSNetwork

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Offset:
    """One accuracy at one λ of a new width and its neighbours, as shares in [0, 1]."""

    accuracy: float
    below: float
    """Of the next narrower trained width."""
    above: float
    """Of the next wider one."""
    line: float
    """What lies between them at the new width."""
    offset: float
    """accuracy - line: negative is worse than expected."""
    standard_error: float
    """Of the offset, over images."""
    before: float | None = None
    """With its neighbours' statistics, blended; null where that was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointError:
    """One knot."""

    lam: float
    standard: Offset
    robust: Offset

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "lambda": self.lam, "standard": asdict(self.standard), "robust": asdict(self.robust)
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthError:
    """One new width at every knot."""

    width: float
    neighbours: tuple[float, float]
    points: tuple[PointError, ...]
    num_samples: int
    """Images behind the standard accuracies."""
    num_attacked: int
    """Images behind the robust ones."""

    def worst(self) -> tuple[str, PointError]:
        """The accuracy ("standard" or "robust") and knot with the lowest offset."""
        pairs = [(kind, point) for point in self.points for kind in ("standard", "robust")]
        return min(pairs, key=lambda pair: float(getattr(pair[1], pair[0]).offset))

    @property
    def shortfall(self) -> float:
        """How far the width is below its line at worst, in [0, 1]; 0 if nowhere."""
        kind, point = self.worst()
        return max(0.0, -float(getattr(point, kind).offset))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "width": self.width,
            "neighbours": list(self.neighbours),
            "shortfall": self.shortfall,
            "num_samples": self.num_samples,
            "num_attacked": self.num_attacked,
            "points": [point.to_json() for point in self.points],
        }


class Judge:
    """Measures widths on the validation split; a neighbour of two new widths only once.

    Takes the images to the device of the network that it is given.
    """

    def __init__(self, val: Split, train: TrainConfig, *, num_attacked: int, seed: int) -> None:
        # A split may be sorted by class: the part that is attacked must not be.
        self.val = val.take(permutation(len(val), (seed,)))
        self.train = train
        self.num_attacked = min(num_attacked, len(val))
        self.seed = seed
        self._known: dict[tuple[float, float], tuple[Right, Right]] = {}

    def standard(self, network: OATSNetwork, width: float) -> dict[float, float]:
        """Standard accuracy at every knot."""
        from oat_edge.nn.fold import fold

        folded = fold(network, width)
        return {lam: float(self._right(folded, lam).mean()) for lam in network.knots}

    def judge(
        self,
        network: OATSNetwork,
        width: float,
        neighbours: tuple[float, float],
        *,
        before: dict[float, float],
        say: Callable[[float], object] = lambda share: None,
    ) -> WidthError:
        """Compare `width` with `neighbours`.  before: λ -> earlier standard accuracy."""
        from oat_edge.nn.fold import fold

        widths = (width, *neighbours)
        folded = {one: fold(network, one) for one in widths}
        share = (width - neighbours[0]) / (neighbours[1] - neighbours[0])
        points, done, total = [], 0, len(widths) * len(network.knots)
        for lam in network.knots:
            standard: list[Right] = []
            robust: list[Right] = []
            for one in widths:
                if (result := self._known.get((one, lam))) is None:
                    result = self._right(folded[one], lam), self._robust(folded[one], lam)
                if one != width:
                    self._known[one, lam] = result
                standard.append(result[0])
                robust.append(result[1])
                done += 1
                say(done / total)
            points.append(
                PointError(
                    lam=lam,
                    standard=_offset(standard, share, before.get(lam)),
                    robust=_offset(robust, share, None),
                )
            )
        return WidthError(
            width=width,
            neighbours=neighbours,
            points=tuple(points),
            num_samples=len(self.val),
            num_attacked=self.num_attacked,
        )

    def _right(self, folded: FoldedNetwork, lam: float) -> Right:
        return self._run(folded, lam, len(self.val), attacked=False)

    def _robust(self, folded: FoldedNetwork, lam: float) -> Right:
        return self._run(folded, lam, self.num_attacked, attacked=True)

    def _run(self, folded: FoldedNetwork, lam: float, number: int, *, attacked: bool) -> Right:
        import torch

        from oat_edge.attacks.pgd import pgd, uniform_noise

        train, device = self.train, folded.table.device
        generator = torch.Generator().manual_seed(self.seed)
        right = []
        for start in range(0, number, 500):
            part = slice(start, min(start + 500, number))
            x = torch.from_numpy(self.val.images[part]).to(device).float() / 255
            y = torch.from_numpy(self.val.labels[part]).to(device)
            logits = folded.at(torch.full((len(x),), lam, device=device))
            if attacked:
                x = pgd(
                    logits, x, y,
                    eps=train.eps, steps=train.attack_steps, alpha=step_size(train),
                    noise=uniform_noise(x, train.eps, generator),
                )  # fmt: skip
            with torch.no_grad():
                right.append((logits(x).argmax(dim=1) == y).cpu().numpy())
        return np.concatenate(right)


def _offset(right: list[Right], share: float, before: float | None) -> Offset:
    """right: of the new width and its neighbours. share: its place between these, 0 to 1."""
    new, below, above = (one.astype(np.float64) for one in right)
    line = (1 - share) * below + share * above
    difference = new - line
    return Offset(
        accuracy=float(new.mean()),
        below=float(below.mean()),
        above=float(above.mean()),
        line=float(line.mean()),
        offset=float(difference.mean()),
        standard_error=float(difference.std(ddof=1) / np.sqrt(len(new))),
        before=before,
    )
