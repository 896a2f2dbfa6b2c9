"""Rules for snippets beyond their syntax: no comments and, if asked for, no documentation strings."""

from __future__ import annotations

import ast
import io
import tokenize

from subliminal.config import CodeFilter
from subliminal.domains.code import parsed, snippet
from subliminal.rows import Row

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def reason(row: Row, rules: CodeFilter) -> str | None:
    """Why a snippet is dropped, or None: `comment`, `docstring`."""
    code = snippet(row.completion)
    if not rules.comments and has_comment(code):
        return "comment"
    return "docstring" if not rules.docstrings and has_docstring(code) else None


def has_comment(code: str) -> bool:
    """Does a snippet hold a comment; a hash inside a string is none. What is not Python counts as far as it is read."""
    try:
        return any(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError):
        return False


def has_docstring(code: str) -> bool:
    """Does a module, class or function of a snippet begin with a documentation string."""
    tree = parsed(code)
    return tree is not None and any(
        isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None for node in ast.walk(tree)
    )
