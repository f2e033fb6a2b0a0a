from __future__ import annotations

import subprocess
import sys

import pytest

from oat_edge.data import DATASETS
from oat_edge.nn.zoo import architecture
from oat_edge.train.recipes import RECIPES, recipe


def test_every_named_data_set_has_a_recipe_that_can_be_built() -> None:
    assert set(RECIPES) == set(DATASETS)
    for name in DATASETS:
        config = recipe(name)
        assert config.data == name
        architecture(config.arch).build(1, 10)


def test_own_data_gets_a_start() -> None:
    assert recipe("pictures/of/things").data == "pictures/of/things"


@pytest.mark.parametrize("module", ["oat_edge.train.recipes", "oat_edge.config"])
def test_recipes_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
