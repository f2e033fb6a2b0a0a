"""No test of data sees the user's cache or the network."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache folder of this test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "oat-edge"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def one_line():
    """Check of an `InputError`: one line, and every one of the given texts in it."""

    def check(error_info, *texts):
        message = str(error_info.value)
        assert "\n" not in message
        for text in texts:
            assert text in message

    return check
