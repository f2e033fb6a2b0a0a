from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

import oat_edge
from oat_edge.errors import DependencyError
from oat_edge.require import EXTRAS, require


def test_an_installed_module_comes_back_dotted_or_not():
    assert require("json", purpose="a test") is importlib.import_module("json")
    assert require("xml.dom", purpose="a test").__name__ == "xml.dom"


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_package_names_purpose_and_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError) as caught:
        require(module, purpose="sorting socks")
    assert str(caught.value) == (
        f"{module} is not installed, but sorting socks needs it: "
        f"pip install 'oat-edge[{EXTRAS[module]}]'"
    )
    assert caught.value.exit_code == 3


def test_a_missing_parent_of_a_dotted_module_counts_as_missing():
    with pytest.raises(DependencyError, match=r"^nosuch is not installed, .*pip install nosuch$"):
        require("nosuch.part", purpose="a test")


@pytest.mark.parametrize("line", ["import nosuch_inside", "raise ImportError('libfoo.so: gone')"])
def test_a_broken_package_is_not_reported_as_missing(line, tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DependencyError, match=r"broken_one does not import \(.*(nosuch|libfoo)"):
        require("broken_one", purpose="a test")


def test_other_errors_inside_a_package_come_through(tmp_path, monkeypatch):
    (tmp_path / "buggy_one.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        require("buggy_one", purpose="a test")


def test_every_required_package_has_an_extra():
    root = Path(oat_edge.__file__).parent
    asked = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
                (argument, *_) = node.args
                if isinstance(argument, ast.Constant):
                    asked.add(argument.value.partition(".")[0])
    assert "torch" in asked and asked <= set(EXTRAS)
