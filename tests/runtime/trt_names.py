"""Which TensorRT names the code uses, and which the bindings of a version offer."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import oat_edge

ROOT = Path(oat_edge.__file__).parent
SOURCES = [
    path
    for folder in ("runtime", "exporters")
    for path in sorted((ROOT / folder).glob("*.py"))
    if any(
        name in path.stem + path.read_text(encoding="utf-8") for name in ("trt_api", "trt_network")
    )
]


# What a module of bindings offers: class -> attribute -> class of what it returns, if any.
DESCRIBE = """
import importlib, inspect, json, re, sys
api = importlib.import_module(sys.argv[1])
def returned(value):
    found = re.search(r"-> (?:list|List)?\\[?([\\w.]+)", getattr(value, "__doc__", None) or "")
    return found[1].rpartition(".")[2] if found else None
classes = {name: value for name, value in vars(api).items() if inspect.isclass(value)}
names = {name: {a: returned(getattr(c, a, None)) for a in dir(c)} for name, c in classes.items()}
print(json.dumps({"version": api.__version__, "top": dir(api), "classes": names}))
"""


def describe(module, **environment):
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, module],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class Names(ast.NodeVisitor):
    """The names of TensorRT that a module uses, with the classes they belong to.

    What a variable stands for is read off its assignments in the same function, with the return
    types that the bindings themselves tell. A parameter or an attribute, with or without an
    underscore, stands for what any variable of that name in the module does. What lies behind
    `if library.format == "trt-rtx"` counts only with `rtx`.
    used: (classes, attribute); the attribute must be in one of them; "" is the library's module.
    """

    def __init__(self, tree, described, *, rtx):
        self.described, self.rtx = described, rtx
        self.env = {}
        self.scope = ""
        known = None
        while known != repr(sorted(self.env.items(), key=repr)):
            known = repr(sorted(self.env.items(), key=repr))
            self.used = set()
            self.visit(tree)

    def name_of(self, node):
        return (node.id if isinstance(node, ast.Name) else node.attr).lstrip("_")

    def of(self, node):
        """What an expression may be: "api", ("type", C) or ("a", C); of a list, its elements."""
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = self.name_of(node)
            if name == "api":
                return {"api"}
            if isinstance(node, ast.Attribute) and "api" in self.of(node.value):
                return {("type", node.attr)}
            if isinstance(node, ast.Name) and (self.scope, name) in self.env:
                return self.env[self.scope, name]
            return set().union(*(found for (_, one), found in self.env.items() if one == name))
        if isinstance(node, ast.Call):
            mapped = isinstance(node.func, ast.Name) and node.func.id == "map"
            return self.result(node.args[0] if mapped else node.func)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            for loop in node.generators:
                self.bind(loop.target, loop.iter)
            return self.of(node.elt)
        if isinstance(node, (ast.Tuple, ast.List)):
            return set().union(*map(self.of, node.elts))
        if isinstance(node, (ast.Starred, ast.Subscript)):
            return self.of(node.value)
        if isinstance(node, ast.IfExp):
            return self.of(node.body) | self.of(node.orelse)
        return set()

    def result(self, function):
        """What calling an expression gives."""
        classes = self.described["classes"]
        found = {kind[1] for kind in self.of(function) if kind[0] == "type"}
        if isinstance(function, ast.Attribute):
            owners = [kind[1] for kind in self.of(function.value) if kind[0] == "a"]
            found |= {classes.get(owner, {}).get(function.attr) for owner in owners}
        return {("a", name) for name in found if name in classes}

    def bind(self, target, value):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self.bind(one, its)
        elif isinstance(target, (ast.Name, ast.Attribute)):
            scope = self.scope if isinstance(target, ast.Name) else ""
            known = self.env.setdefault((scope, self.name_of(target)), set())
            known |= {kind for kind in self.of(value) if kind != "api"}

    def visit_FunctionDef(self, node):
        outer, self.scope = self.scope, f"{self.scope}.{node.name}:{node.lineno}"
        self.generic_visit(node)
        self.scope = outer

    def visit_Assign(self, node):
        for target in node.targets:
            self.bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.bind(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node):
        self.bind(node.target, node.value)
        self.generic_visit(node)

    def visit_ExceptHandler(self, node):
        self.env.setdefault((self.scope, node.name), set())  # an exception, none of TensorRT's
        self.generic_visit(node)

    def visit_For(self, node):
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node):
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_If(self, node):
        self.visit(node.test)
        only_rtx = ast.unparse(node.test).endswith("format == 'trt-rtx'")
        for statement in [*(node.body if self.rtx or not only_rtx else []), *node.orelse]:
            self.visit(statement)

    def visit_ClassDef(self, node):
        for kind in set().union(*map(self.of, node.bases)):
            if kind[0] == "type":  # its methods are called by the library
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        self.used.add((frozenset({kind[1]}), method.name))
        self.generic_visit(node)

    def visit_Attribute(self, node):
        owners = {"" if kind == "api" else kind[1] for kind in self.of(node.value)}
        if owners:
            self.used.add((frozenset(owners), node.attr))
        self.generic_visit(node)


def used_names(described, *, rtx=False, sources=None):
    """The names that all `SOURCES` use."""
    texts = [path.read_text(encoding="utf-8") for path in SOURCES] if sources is None else sources
    # As one: what one module makes, another takes as a parameter of the same name.
    return Names(ast.parse("\n".join(texts)), described, rtx=rtx).used


def missing_names(described, used):
    classes, top = described["classes"], described["top"]
    return sorted(
        f"{'|'.join(sorted(owners))}.{name}"
        for owners, name in used
        if not any(name in (classes.get(owner, {}) if owner else top) for owner in owners)
    )
