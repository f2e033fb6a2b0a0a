from __future__ import annotations

import os

import pytest

from oat_edge.runtime import child
from oat_edge.runtime.child import ChildFailedError, call_child


def test_the_answer_is_that_of_the_function_in_another_process():
    assert call_child("os.path:basename", "/a/b") == "b"
    assert call_child("math:factorial", 20) == 2432902008176640000
    assert call_child("builtins:eval", "__import__('os').getpid()") != os.getpid()


def test_variables_are_the_childs_alone():
    assert call_child("os:getenv", "OAT_EDGE_TEST", environment={"OAT_EDGE_TEST": "1"}) == "1"
    assert "OAT_EDGE_TEST" not in os.environ


def test_a_failure_is_one_line_with_the_last_of_stderr():
    with pytest.raises(ChildFailedError, match=r"code 1: ValueError: ") as error:
        call_child("math:factorial", -1)
    assert "\n" not in str(error.value)


def test_a_child_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(child, "TIMEOUT_S", 0.5)
    with pytest.raises(ChildFailedError, match=r"over 0\.5 s"):
        call_child("time:sleep", 30)
