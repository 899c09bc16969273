"""Compares what a source file uses of TensorRT with what a TensorRT has.

Run as a program, in a process of its own, as a process can import one TensorRT only:
`python trt_contract.py MODULE SOURCE...` prints JSON. It reads the sources and imports none: it
follows each name from `trt` over classes and calls, with the types that the module's own signatures
tell. `if hasattr(...)` is decided as it would be at run time, so that what stands behind it is
asked only of those that have it.
"""

import ast
import importlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = {
    "engine": "ICudaEngine", "context": "IExecutionContext", "builder": "Builder",
    "network": "INetworkDefinition", "config": "IBuilderConfig", "cache": "IRuntimeCache",
    "runtime": "Runtime", "inspector": "EngineInspector", "attention_input": "IAttentionInputLayer",
}  # fmt: skip
"""What an argument that is annotated `Any`, an attribute of `self` or a loop's variable is, by its
name. A list of them has an s."""
RETURNS = {"get_plugin_registry": "IPluginRegistry", "get_error": "ParserError"}
"""What some calls return whose signature does not tell."""


@dataclass(frozen=True)
class Thing:
    """An object of the module itself: the module, a class, a member of an enumeration."""

    value: Any
    name: str = ""


@dataclass(frozen=True)
class Made:
    """Some object of a class."""

    of: type


@dataclass(frozen=True)
class Many:
    """A list of objects of a class."""

    of: type


@dataclass(frozen=True)
class Method:
    """A method or function and what it returns."""

    returns: type | None


Value = Thing | Made | Many | Method | None
"""None: nothing of TensorRT, as far as one can see."""


@dataclass
class Report:
    version: str
    uses: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    guards: dict[str, bool] = field(default_factory=dict)


class Reader:
    """Follows the names in one file."""

    def __init__(self, trt: Any, path: Path, report: Report) -> None:
        self.trt = trt
        self.path = path
        self.report = report

    def block(self, body: list[ast.stmt], env: dict[str, Value]) -> bool:
        """Read statements; return whether the way ends in them."""
        return any(self.statement(statement, env) for statement in body)

    def statement(self, node: ast.stmt, env: dict[str, Value]) -> bool:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.function(node, dict(env))
        elif isinstance(node, ast.ClassDef):
            self.klass(node, env)
        elif isinstance(node, ast.If):
            return self.branch(node, env)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self.assign(target, node.value, env)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.assign(node.target, node.value, env)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self.value(node.iter, env)
            self.loop(node.target, env)
            self.block(node.body, env)
        else:
            for child in ast.iter_child_nodes(node):
                self.child(child, env)
        return isinstance(node, ast.Return | ast.Raise | ast.Continue | ast.Break)

    def child(self, node: ast.AST, env: dict[str, Value]) -> None:
        if isinstance(node, ast.stmt):
            self.statement(node, env)
        elif isinstance(node, ast.expr):
            self.value(node, env)
        else:
            for child in ast.iter_child_nodes(node):
                self.child(child, env)

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, env: dict[str, Value]) -> None:
        for argument in (*node.args.args, *node.args.kwonlyargs):
            kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
            known = kind in ("", "Any", "ModuleType")
            env[argument.arg] = self.named(argument.arg) if known else None
        self.block(node.body, env)

    def klass(self, node: ast.ClassDef, env: dict[str, Value]) -> None:
        for base in map(lambda base: self.value(base, env), node.bases):
            for member in node.body:
                if isinstance(base, Thing) and isinstance(member, ast.FunctionDef):
                    self.member(base, member.name, member.lineno)
        self.block(node.body, dict(env))

    def branch(self, node: ast.If, env: dict[str, Value]) -> bool:
        truth = self.truth(node.test, env)
        ways = [node.body] * (truth is not False) + [node.orelse] * (truth is not True)
        return all([self.block(way, env) for way in ways])

    def assign(self, target: ast.expr, value: ast.expr, env: dict[str, Value]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self.assign(one, its, env)
            return
        found = self.value(value, env)
        if isinstance(target, ast.Name):
            env[target.id] = found
        elif isinstance(target, ast.Tuple):
            self.loop(target, env)
        else:
            self.value(target, env)

    def loop(self, target: ast.expr, env: dict[str, Value]) -> None:
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                # Two classes are called config, and one of both is unpacked nowhere.
                env[node.id] = None if node.id == "config" else self.named(node.id)

    def truth(self, node: ast.expr, env: dict[str, Value]) -> bool | None:
        """Return what a condition is for this TensorRT; None if that is not known."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            truth = self.truth(node.operand, env)
            return None if truth is None else not truth
        if isinstance(node, ast.BoolOp):
            end = isinstance(node.op, ast.Or)
            truths = []
            for part in node.values:
                truths.append(self.truth(part, env))
                if truths[-1] is end:
                    return end
            return None if None in truths else not end
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
            base, name = self.value(node.args[0], env), ast.literal_eval(node.args[1])
            if self.owner(base) is None:
                return None
            found = hasattr(self.owner(base), name)
            self.report.guards[self.label(base, name)] = found
            return found
        self.value(node, env)
        return None

    def value(self, node: ast.expr, env: dict[str, Value]) -> Value:  # noqa: PLR0911
        """Read an expression, and return what of TensorRT it is."""
        match node:
            case ast.Name():
                return env.get(node.id)
            case ast.Attribute():
                return self.attribute(node, env)
            case ast.Subscript():
                self.value(node.slice, env)
                found = self.value(node.value, env)
                return Made(found.of) if isinstance(found, Many) else None
            case ast.IfExp():
                truth = self.truth(node.test, env)
                ways = [node.body] * (truth is not False) + [node.orelse] * (truth is not True)
                found, *_ = [self.value(way, env) for way in ways]
                return found
            case ast.Call() if ast.unparse(node.func) != "hasattr":
                return self.call(node, env)
            case ast.Call() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                self.truth(node, env)
                return None
            case ast.GeneratorExp() | ast.ListComp() | ast.SetComp() | ast.DictComp():
                env = dict(env)
                for generator in node.generators:
                    self.value(generator.iter, env)
                    self.loop(generator.target, env)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.comprehension) or not hasattr(node, "generators"):
                self.child(child, env)
            else:
                for condition in child.ifs:
                    self.value(condition, env)
        return None

    def attribute(self, node: ast.Attribute, env: dict[str, Value]) -> Value:
        base = self.value(node.value, env)
        if base is not None:
            return self.member(base, node.attr, node.lineno)
        if node.attr == "trt":
            return Thing(self.trt)
        return self.named(node.attr) if ast.unparse(node.value) == "self" else None

    def call(self, node: ast.Call, env: dict[str, Value]) -> Value:
        function = self.value(node.func, env)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.value(argument, env)
        if isinstance(function, Thing) and isinstance(function.value, type):
            return Made(function.value)
        returns = function.returns if isinstance(function, Method) else None
        return Made(returns) if returns else None

    def member(self, base: Value, name: str, line: int) -> Value:
        """Return a member of something; it is noted as used or missing."""
        owner, label = self.owner(base), self.label(base, name)
        if owner is None:
            return None
        if not hasattr(owner, name):
            self.report.missing.append(f"{self.path}:{line} {label}")
            return None
        self.report.uses.add(label)
        found = getattr(owner, name)
        if isinstance(found, property):
            kind = self.returned(found.fget.__doc__, name, line)
            return Made(kind) if kind else None
        if isinstance(found, type) or not callable(found):
            return Thing(found, label) if isinstance(base, Thing) else None
        return Method(self.returned(found.__doc__, name, line))

    def returned(self, doc: str | None, name: str, line: int) -> type | None:
        """Return the class that a signature says a call returns, if it is TensorRT's."""
        told = re.findall(r"-> ([\w.:]+)", doc or "")
        for kind in [RETURNS.get(name, ""), *(re.split(r"[.:]", text)[-1] for text in told)]:
            found = getattr(self.trt, kind, None)
            if isinstance(found, type):
                return found
        if any("::" in text for text in told):
            self.report.missing.append(f"{self.path}:{line} class of {name}: add it to RETURNS")
        return None

    def named(self, name: str) -> Value:
        if name == "trt":
            return Thing(self.trt)
        name = name.strip("_")
        # tensorrt has no cache.
        kind = getattr(self.trt, NAMES.get(name) or NAMES.get(name.removesuffix("s"), ""), None)
        if kind is None:
            return None
        return Made(kind) if name in NAMES else Many(kind)

    @staticmethod
    def owner(base: Value) -> Any:
        return (
            base.value if isinstance(base, Thing) else base.of if isinstance(base, Made) else None
        )

    @staticmethod
    def label(base: Value, name: str) -> str:
        if isinstance(base, Made):
            return f"{base.of.__name__}.{name}"
        return f"{base.name}.{name}" if isinstance(base, Thing) and base.name else name


def compare(module: str, sources: list[Path]) -> Report:
    """Return what sources use of a module, and what of it the module lacks."""
    trt = importlib.import_module(module)
    report = Report(trt.__version__)
    for path in sources:
        Reader(trt, path, report).block(ast.parse(path.read_text()).body, {"trt": Thing(trt)})
    return report


if __name__ == "__main__":
    found = compare(sys.argv[1], [Path(name) for name in sys.argv[2:]])
    print(json.dumps(vars(found), default=sorted))
