"""scikit-learn's 8x8 digits: 1797 real scans, embedded in the package (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oat_edge.data.dataset import RawData, RawSplit
from oat_edge.require import require


def load_raw(*, data_dir: Path | None = None, download: bool = False) -> RawData:
    """Images (1797, 1, 8, 8).  No test split is published; both arguments have no effect."""
    del data_dir, download
    datasets = require("sklearn.datasets", purpose="the digits data set")
    bunch = datasets.load_digits()
    # The scans have 17 grey levels, 0 … 16.
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return RawData(
        name="digits",
        train=RawSplit(images=images[:, None], labels=bunch.target),
        test=None,
        class_names=tuple("0123456789"),
        source={"package": f"scikit-learn {require('sklearn', purpose='digits').__version__}"},
    )
