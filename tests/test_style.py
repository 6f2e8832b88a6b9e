"""The rules of the house that ruff has no check for, in everything that is shipped."""

import ast

import pytest
from conftest import ROOT

FILES = ["train_gpt.py", "decode_artifact.py", "verify.py", "their_network.py"]
FILES += sorted(f"records/{path.name}" for path in (ROOT / "records").glob("*.py"))


def nested_conditions(node: ast.AST) -> bool:
    """a if b else c if d else e"""
    inner = [child for child in ast.walk(node) if isinstance(child, ast.IfExp)]
    return isinstance(node, ast.IfExp) and len(inner) > 1


def walrus_in_a_call(node: ast.AST) -> bool:
    """f(x := 1)"""
    if not isinstance(node, ast.Call):
        return False
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    return any(isinstance(argument, ast.NamedExpr) for argument in arguments)


def several_assignments(node: ast.AST) -> bool:
    """a, b = c, d; what exchanges two values is one."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    targets = [target for target in node.targets if isinstance(target, ast.Tuple)]
    names = [{ast.unparse(item) for item in side.elts} for side in (*targets, node.value)]
    return bool(targets) and names[0] != names[-1]


def text_times_condition(node: ast.AST) -> bool:
    """ "text" * bool(x), [item] * (x > 1)"""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return False
    factors = (node.left, node.right)
    repeated = [f for f in factors if isinstance(f, ast.List | ast.JoinedStr)]
    repeated += [f for f in factors if isinstance(f, ast.Constant) and isinstance(f.value, str)]
    conditions = [f for f in factors if isinstance(f, ast.Compare | ast.BoolOp)]
    calls = [f for f in factors if isinstance(f, ast.Call)]
    conditions += [call for call in calls if ast.unparse(call.func) == "bool"]
    return bool(repeated and conditions)


def nameless_fields(node: ast.AST) -> bool:
    """def f() -> tuple[int, int, int]: a tuple of more than two fields has names."""
    if not isinstance(node, ast.FunctionDef) or not isinstance(node.returns, ast.Subscript):
        return False
    kind = ast.unparse(node.returns.value)
    return kind == "tuple" and len(getattr(node.returns.slice, "elts", [])) > 2


RULES = [
    nested_conditions,
    walrus_in_a_call,
    several_assignments,
    text_times_condition,
    nameless_fields,
]
BREACHES = [
    (nested_conditions, "x = 1 if a else 2 if b else 3"),
    (walrus_in_a_call, "print(x := 1)"),
    (several_assignments, "a, b = c, d"),
    (text_times_condition, 'x = "text" * bool(y)'),
    (text_times_condition, "x = [1] * (y > 2)"),
    (nameless_fields, "def f() -> tuple[int, int, int]: pass"),
]
ALLOWED = ["a, b = b, a", "a, b = f()", 'x = "=" * 80', "x = 1 if a else 2", "x = [0] * n"]


@pytest.mark.parametrize(("rule", "line"), BREACHES)
def test_a_breach_is_seen(rule, line):
    assert any(rule(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize("line", ALLOWED)
def test_good_lines_pass(line):
    assert not any(rule(node) for rule in RULES for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_shipped_code_keeps_the_rules(name, rule):
    tree = ast.parse((ROOT / name).read_text())
    lines = [node.lineno for node in ast.walk(tree) if rule(node)]
    assert not lines, f"{name}: {rule.__doc__} in lines {lines}"
