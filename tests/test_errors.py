from __future__ import annotations

import oat_edge.errors
from oat_edge.errors import InputError, OatEdgeError


def test_exit_codes_are_those_of_the_design():
    kinds = {
        kind.__name__: kind.exit_code
        for kind in vars(oat_edge.errors).values()
        if isinstance(kind, type) and issubclass(kind, OatEdgeError) and kind is not OatEdgeError
    }
    assert kinds == {
        "InputError": 2,
        "DependencyError": 3,
        "BuildError": 4,
        "GateError": 5,
        "FallbackError": 6,
        "GoalError": 7,
        "UnstableError": 8,
    }


def test_a_bad_argument_is_a_value_error_to_python():
    assert issubclass(InputError, ValueError)
