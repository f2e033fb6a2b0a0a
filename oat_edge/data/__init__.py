"""Data sets as uint8 arrays in memory, validated, split and recorded."""

from oat_edge.data.dataset import Dataset, Split
from oat_edge.data.registry import DATASETS, load

__all__ = ["DATASETS", "Dataset", "Split", "load"]
