from __future__ import annotations

from pathlib import Path

import pytest

from oat_edge.bench.style import check_suffix, format_eps
from oat_edge.errors import InputError


@pytest.mark.parametrize(("eps", "text"), [(8 / 255, "8/255"), (0.3, "0.3"), (0.5, "0.5")])
def test_format_eps(eps, text):
    assert format_eps(eps) == text


@pytest.mark.parametrize("name", ["plot.pdf", "plot", "plot.jpeg", ".png"])
def test_other_suffixes_are_refused(name):
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        check_suffix(Path(name))


@pytest.mark.parametrize("name", ["plot.png", "a.b.SVG"])
def test_both_formats_are_taken(name):
    check_suffix(Path(name))
