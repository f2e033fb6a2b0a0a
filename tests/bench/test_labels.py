from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.bench.labels import place_labels

BOUNDS = (0.0, 0.0, 200.0, 150.0)
coordinates = st.tuples(st.floats(10, 190), st.floats(10, 140))


@settings(max_examples=60, deadline=None)
@given(st.lists(coordinates, min_size=1, max_size=15), st.floats(4, 30))
def test_labels_touch_no_point_no_other_label_and_no_border(places, width):
    points = np.array(places)
    size = np.array([width, 6.0])
    centres = place_labels(points, np.tile(size, (len(points), 1)), [points], bounds=BOUNDS)
    assert len(centres) == len(points)
    boxes = [np.array([*(c - size / 2), *(c + size / 2)]) for c in centres if c is not None]
    for index, a in enumerate(boxes):
        assert (a[:2] >= 0).all() and a[2] <= 200 and a[3] <= 150
        for x, y in points:
            assert not (a[0] < x < a[2] and a[1] < y < a[3])
        for b in boxes[:index]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart


def test_a_lone_label_stays_near_and_off_its_line():
    point = np.array([[100.0, 75.0]])
    line = np.array([[100.0, 75.0], [190.0, 75.0]])  # leaves to the right
    (centre,) = place_labels(point, np.array([[12.0, 6.0]]), [line], bounds=BOUNDS)
    assert centre[0] < 100 and centre[1] == 75
    assert np.hypot(centre[0] - 100, centre[1] - 75) < 20


def test_where_nothing_is_free_there_is_no_label():
    crowd = np.array([[x, y] for x in range(80, 121, 4) for y in range(60, 91, 4)], dtype=float)
    sizes = np.full((len(crowd), 2), 6.0)
    inside = (80.0, 60.0, 120.0, 88.0)
    assert set(place_labels(crowd, sizes, [], bounds=inside)) == {None}
