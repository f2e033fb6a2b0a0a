"""The images and λ that the ranges of one width are read from: the calibration set.

    N samples (an image at one λ, clean or attacked), C channels, H/W pixels, L lambdas

An activation's range depends on λ (two batch norms, FiLM) and on the attack, so the set holds
every λ, half of it clean and half adversarial. Each image is used at one λ, clean and attacked:
at the same cost, test images leave fewer ranges (26 to 33 % of them on Fashion-MNIST) than with a
sixth of the images at all six λ (60 to 64 %). λ between knots add nothing: scales and shifts
there are convex combinations, so the first affine cannot leave the range of its knots, and deeper
ones left it no further than at the knots. Adversarial images lie on the 8-bit grid, as those of a
camera and of an attack pack.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oat_edge.conditioning import Float32
from oat_edge.data.dataset import Int64, Split, UInt8
from oat_edge.data.splits import permutation
from oat_edge.errors import InputError
from oat_edge.evaluation.pack import levels

if TYPE_CHECKING:
    from oat_edge.attacks.craft import Attackable

Bool = npt.NDArray[np.bool_]

# TensorRT's guide asks for 500 images or more.
NUM_IMAGES = 512
BATCH_SIZE = 64
KINDS = ("clean", "adversarial")
# Apart from the other choices that are made with the same seed.
STREAM = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBatch:
    """What one forward pass takes."""

    image: Float32
    """(n, C, H, W) in [0, 1]."""
    lam: Float32
    """(n,)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CalibrationSet:
    """Samples in the order in which they are fed, and what they are made of."""

    images: UInt8
    """(N, C, H, W)."""
    lam: Float32
    """(N,) in [0, 1]."""
    adversarial: Bool
    """(N,)."""
    labels: Int64
    """(N,)."""
    indices: Int64
    """(N,) places in the training split."""
    settings: dict[str, Any]
    """JSON values: split and its hash, attack and seed."""
    batch_size: int = BATCH_SIZE
    """Samples per forward pass; says nothing of the content."""

    def __post_init__(self) -> None:
        shapes = {len(a) for a in (self.lam, self.adversarial, self.labels, self.indices)}
        if self.images.ndim != 4 or shapes != {len(self.images)}:
            raise InputError(
                f"calibration set: images {self.images.shape} with {sorted(shapes)} other values"
            )
        if not len(self.images):
            raise InputError("the calibration set is empty: expected one image or more")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def lambdas(self) -> tuple[float, ...]:
        """Every λ, growing."""
        return tuple(sorted({round(float(lam), 6) for lam in self.lam}))

    @property
    def num_images(self) -> int:
        """How many different images of the split."""
        return len(np.unique(self.indices))

    @property
    def num_batches(self) -> int:
        """How many batches `batches` gives."""
        return -(-len(self) // self.batch_size)

    def batches(self) -> Iterator[CalibrationBatch]:
        """All samples, in order."""
        for start in range(0, len(self), self.batch_size):
            part = slice(start, start + self.batch_size)
            image = self.images[part].astype(np.float32) / np.float32(255)
            yield CalibrationBatch(image=image, lam=self.lam[part])

    def take(self, where: Bool) -> CalibrationSet:
        """The samples where the mask (N,) is true, in the same order."""
        return CalibrationSet(
            images=self.images[where],
            lam=self.lam[where],
            adversarial=self.adversarial[where],
            labels=self.labels[where],
            indices=self.indices[where],
            settings=self.settings,
            batch_size=self.batch_size,
        )

    def sha256(self) -> str:
        """Fingerprint of images, λ, kinds, labels, places and settings; not of the batch size."""
        head = [self.images.shape, self.settings]
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.lam, dtype="<f4").data)
        digest.update(np.ascontiguousarray(self.adversarial, dtype=np.uint8).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        digest.update(np.ascontiguousarray(self.indices, dtype="<i8").data)
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        num_adversarial = int(self.adversarial.sum())
        return {
            **self.settings,
            "lambdas": list(self.lambdas),
            "num_images": self.num_images,
            "num_samples": len(self),
            "num_clean": len(self) - num_adversarial,
            "num_adversarial": num_adversarial,
            "sha256": self.sha256(),
        }


def make_batches(
    network: Attackable,
    split: Split,
    *,
    lambdas: Sequence[float],
    eps: float,
    attack_steps: int = 7,
    attack_alpha: float | None = None,
    num_images: int = NUM_IMAGES,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[float], None] = lambda share: None,
) -> CalibrationSet:
    """Choose images of the training split, deal them out over `lambdas`, attack each at its λ.

    split: the *training* split. lambdas: the knots; (0,) calibrates the clean branch alone. eps in
    [0, 1] pixel scale; attack_steps, attack_alpha: PGD's, as trained (None: its default step).
    num_images: all if the split has fewer. kinds: of `KINDS`. progress is told the share done.
    With one seed (and as many threads) the set is the same. Gradients are up to 1.5x faster where
    `network` is in torch's channels_last layout.
    Raises `InputError`. Damaged weights are found by `collect_ranges`, not here.
    """
    lams = _checked(lambdas, kinds, num_images=min(num_images, len(split)), batch_size=batch_size)
    chosen = permutation(len(split), (seed, STREAM))[:num_images]
    clean = split.take(chosen)
    lam = np.resize(np.asarray(lams, dtype=np.float32), len(chosen))
    attack = None
    if "adversarial" in kinds:
        attack = _Attack.of(network, eps=eps, steps=attack_steps, alpha=attack_alpha, seed=seed)
    images, rows, kind = [], [], []
    # Half a batch of images, so that a batch holds both versions of each.
    for start in range(0, len(chosen), per := max(1, batch_size // len(kinds))):
        part = np.arange(start, min(start + per, len(chosen)))
        for name in kinds:
            one = clean.images[part]
            if name == "adversarial":
                assert attack is not None
                one = attack(one, clean.labels[part], lam[part])
            images.append(one)
            rows.append(part)
            kind.append(np.full(len(part), name == "adversarial"))
        progress((part[-1] + 1) / len(chosen))
    row = np.concatenate(rows)
    return CalibrationSet(
        images=np.concatenate(images),
        lam=lam[row],
        adversarial=np.concatenate(kind),
        labels=clean.labels[row],
        indices=chosen[row],
        settings={
            "split": "train",
            "split_sha256": split.sha256(),
            "seed": seed,
            "attack": None if attack is None else attack.to_json(),
        },
        batch_size=batch_size,
    )


@dataclass(frozen=True, slots=True)
class _Attack:
    """PGD as in training, then rounded to the 8-bit grid inside the ball."""

    network: Attackable
    eps: float
    steps: int
    alpha: float
    generator: Any

    @classmethod
    def of(
        cls, network: Attackable, *, eps: float, steps: int, alpha: float | None, seed: int
    ) -> _Attack:
        import torch

        from oat_edge.attacks.pgd import training_step_size

        alpha = training_step_size(eps, steps) if alpha is None else alpha
        return cls(network, eps, steps, alpha, torch.Generator().manual_seed(seed))

    def __call__(self, images: UInt8, labels: Int64, lam: Float32) -> UInt8:
        """images: (n, C, H, W); labels: (n,); lam: (n,)."""
        import torch

        from oat_edge.attacks.pgd import pgd, uniform_noise

        device = next(self.network.buffers()).device
        x = torch.from_numpy(images).to(device).float() / 255
        x_adv = pgd(
            self.network.at(torch.from_numpy(lam).to(device)),
            x,
            torch.from_numpy(labels).to(device),
            eps=self.eps,
            steps=self.steps,
            alpha=self.alpha,
            noise=uniform_noise(x, self.eps, self.generator),
        )
        step = levels(self.eps)
        signed = images.astype(np.int16)
        rounded = (x_adv * 255).round().cpu().numpy().astype(np.int16)
        near = np.clip(rounded, signed - step, signed + step)
        return np.clip(near, 0, 255).astype(np.uint8)

    def to_json(self) -> dict[str, Any]:
        return {"name": "pgd", "eps": self.eps, "steps": self.steps, "alpha": self.alpha}


def _checked(
    lambdas: Sequence[float], kinds: Sequence[str], *, num_images: int, batch_size: int
) -> tuple[float, ...]:
    """The λ, growing; `InputError` if there is no sound set of them."""
    lams = tuple(sorted({float(lam) for lam in lambdas}))
    if not lams or not all(0.0 <= lam <= 1.0 for lam in lams):
        raise InputError(f"calibration lambdas are {lams}: expected one or more, all in [0, 1]")
    if not kinds or set(kinds) - set(KINDS) or len(set(kinds)) < len(kinds):
        raise InputError(f"calibration kinds are {tuple(kinds)}: expected one or both of {KINDS}")
    if num_images < len(lams):
        raise InputError(
            f"{num_images} calibration images: expected {len(lams)} or more, one for every λ"
        )
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: expected 1 or more")
    return lams
