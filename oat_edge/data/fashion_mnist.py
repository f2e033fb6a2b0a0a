"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 28x28 grey, 10 kinds of clothing."""

from __future__ import annotations

from pathlib import Path

from oat_edge.data.dataset import RawData, RawSplit
from oat_edge.data.fetch import RemoteFile, Source, describe_files, find_files
from oat_edge.data.idx import read_idx

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# The address that the data set's own README gives; the hash is what vouches for the content.
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
SOURCE = Source(
    name="fashion-mnist",
    remote=(
        RemoteFile(
            url=_URL + "train-images-idx3-ubyte.gz",
            sha256="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        RemoteFile(
            url=_URL + "train-labels-idx1-ubyte.gz",
            sha256="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        RemoteFile(
            url=_URL + "t10k-images-idx3-ubyte.gz",
            sha256="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        RemoteFile(
            url=_URL + "t10k-labels-idx1-ubyte.gz",
            sha256="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    system_dir=Path("/usr/share/datasets/fashion-mnist"),
    system_package="dataset-fashion-mnist",
    # Debian's files: the same streams, the name and time in the gzip header taken away.
    known_sha256=frozenset(
        {
            "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
            "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
            "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
            "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        }
    ),
)


def load_raw(*, data_dir: Path | None = None, download: bool = False) -> RawData:
    """60,000 and 10,000 images (N, 1, 28, 28)."""
    paths = find_files(SOURCE, data_dir=data_dir, download=download)
    train_images, train_labels, test_images, test_labels = (
        read_idx(path, ndim=ndim) for path, ndim in zip(paths, (3, 1, 3, 1), strict=True)
    )
    return RawData(
        name=SOURCE.name,
        train=RawSplit(images=train_images[:, None], labels=train_labels),
        test=RawSplit(images=test_images[:, None], labels=test_labels),
        class_names=CLASS_NAMES,
        source=describe_files(SOURCE, paths),
    )
