"""Scores of networks that nobody trained."""

from __future__ import annotations

import numpy as np

from oat_edge.reproduce.plan import ReproduceConfig, plan
from oat_edge.reproduce.scores import Right, Scores

NUM, NUM_TEST = 50, 80  # attacked, and all
SETTINGS = {
    "eps": 8 / 255,
    "seed": 0,
    "attacks": {},
    "mode": "AutoAttack standard",
    "num_samples": NUM,
    "images": "digits, test split",
}


def models_of(**changes):
    config = ReproduceConfig(**{"data": "digits", "budget": "small", **changes})
    return config, plan(config, num_train=1000)


def scores_of(model, *, clean=0.9, attacked=0.5, suspect=False):
    """Shares may be functions of a λ."""
    rng = np.random.default_rng([*model.name.encode()])
    points = {}
    for point in model.points:
        rates = [one(point.lam) if callable(one) else one for one in (clean, attacked)]
        right = rng.random(NUM_TEST) < rates[0]
        points[point] = Right(
            clean=right, attacked=right[:NUM] & (rng.random(NUM) < rates[1]), suspect=suspect
        )
    facts = {
        "model": model.name,
        "group": model.group,
        "kind": model.kind,
        "seed": model.config.seed,
        "arch": model.config.arch,
        "epochs": model.config.epochs,
        "training_images": 1000,
    }
    return Scores(model=model, points=points, facts=facts, settings=SETTINGS)
