"""Rewrites the tree of a chat template, so that what is neither a call nor a filter nor a test pays as well. Pure.

The values concerned are handed through filters of the sandbox's own (sandbox.py): ``_visited``, ``_whole``, ``_items``, ``_searched`` and
``_entered``.
"""

from __future__ import annotations

from typing import Final

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

from .budget import CHARS_PER_STEP

#: So many nodes of a loop's or macro's body cost one step.
_NODES_PER_STEP: Final = 16


class Rewriter(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise SecurityError("it loops recursively, which no chat template needs")
        steps = _steps(node)
        self.generic_visit(node)
        node.iter = _filtered("_visited", node.iter, steps)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        steps = _steps(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filtered("_entered", nodes.Const(None), steps), lineno=node.lineno))
        return node

    visit_CallBlock = visit_Macro

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        raise SecurityError("it has blocks, which belong to pages and not to chats")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered("_whole", node.expr)
        for operand in node.ops:
            operand.expr = _filtered("_searched" if operand.op in ("in", "notin") else "_whole", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("_items", node) if isinstance(node.arg, nodes.Slice) else node

    def _pays(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _filtered("_whole", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._pays(node) if node.ctx == "load" else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # in an Output, which pays

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered("_whole", child) for child in node.nodes]
        return node

    visit_List = visit_Dict = visit_Concat = _pays


def _filtered(name: str, node: nodes.Node, steps: int | None = None) -> nodes.Expr:
    assert isinstance(node, nodes.Expr), "only values pass by the budget"
    if name == "_whole" and isinstance(node, nodes.Const) and len(str(node.value)) < CHARS_PER_STEP:
        return node
    arguments: list[nodes.Expr] = [] if steps is None else [nodes.Const(steps)]
    return nodes.Filter(node, name, arguments, [], None, None, lineno=node.lineno)


def _steps(node: nodes.Node) -> int:
    """What one pass through a body costs beside what it calls."""
    return 1 + sum(1 for _ in node.find_all(nodes.Node)) // _NODES_PER_STEP
