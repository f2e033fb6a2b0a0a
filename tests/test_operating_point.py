from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.operating_point import OperatingPoint, grid, parse_list, parse_number, select

thousandths = st.integers(0, 1000).map(lambda n: n / 1000)


@given(thousandths.filter(bool), thousandths)
def test_a_point_reads_what_it_prints(width, lam):
    point = OperatingPoint(width, lam)
    assert OperatingPoint.parse(str(point)) == point
    assert OperatingPoint.parse(f" {width} @ {lam} ") == point


@given(st.floats(), st.floats())
def test_a_point_lies_in_its_range_or_is_refused(width, lam):
    if 0 < width <= 1 and 0 <= lam <= 1:
        assert OperatingPoint(width, lam).lam == lam
    else:
        with pytest.raises(InputError, match="expected a number in"):
            OperatingPoint(width, lam)


@pytest.mark.parametrize("text", ["", "0.5", "@", "0.5@", "@0.5", "0.5@0.3@0.1", "0.5@x", "0@0.5"])
def test_what_is_not_a_point_is_refused(text):
    with pytest.raises(InputError):
        OperatingPoint.parse(text)


@given(st.integers(-999, 999), st.integers(1, 999))
def test_a_fraction_is_its_quotient(numerator, denominator):
    assert parse_number(f"{numerator}/{denominator}", "eps") == float(
        Fraction(numerator, denominator)
    )


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_exactly(value):
    assert parse_number(repr(value), "eps") == value


@given(st.text(alphabet="0123456789./e-+_ naif,@", max_size=12))
@example("8/0")
@example("8/0.0")
@example("nan")
@example("inf/inf")
@example("1e308/1e-308")
@example("1/2/3")
@example("")
def test_any_text_is_a_finite_number_or_one_clear_error(text):
    try:
        value = parse_number(text, "eps")
    except InputError as error:
        assert str(error).startswith("eps is '") and "\n" not in str(error).replace(text, "")
    else:
        assert math.isfinite(value)


@pytest.mark.parametrize("text", ["8/0", "nan", "inf", "-inf", "1e999", "eight", "", " ", "1/2/3"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="eps is"):
        parse_number(text, "eps")


@given(st.lists(thousandths, min_size=1, max_size=8))
def test_a_list_is_sorted_and_has_no_repeats(values):
    assert parse_list(",".join(map(str, values)), "lambda") == tuple(sorted(set(values)))


@given(st.lists(thousandths, min_size=1, max_size=6, unique=True), st.data())
def test_select_gives_what_was_asked_for_or_names_what_there_is(values, data):
    available = tuple(sorted(values))
    assert select(" all ", available, "width", every="all") == available
    chosen = data.draw(st.lists(st.sampled_from(available), min_size=1))
    text = ",".join(map(str, chosen))
    assert select(text, available, "width", every="all") == tuple(sorted(set(chosen)))
    with pytest.raises(InputError, match=r"width 2 is not there: have .*'all'"):
        select(f"{text},2", available, "width", every="all")


def test_grid_is_every_pair_in_order():
    assert [str(point) for point in grid((0.5, 1.0), (0.0, 0.3))] == [
        "0.5@0", "0.5@0.3", "1@0", "1@0.3",
    ]  # fmt: skip
