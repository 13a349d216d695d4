"""Python source as a syntax tree: what it says without its wording, which names it sets and reads."""

import ast


def parse(text: str, name: str) -> ast.Module:
    """Syntax tree of a source; ValueError names the source and the line where it is not plain Python."""
    try:
        return ast.parse(text)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ValueError(f"{name} is not plain Python at `{line}`: {error.msg}; IPython magics do not run.") from error


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove the docstrings of a tree, in place."""
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


def assigned(tree: ast.Module) -> set[str]:
    """Names that a cell sets: by assignment (of an item or attribute too), definition or import."""
    names = set()
    targets = [node.target for node in ast.walk(tree) if isinstance(node, ast.comprehension)]
    inner = {id(name) for target in targets for name in ast.walk(target)}
    for node in ast.walk(tree):
        if id(node) in inner:  # a comprehension's variable ends with it
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(getattr(node, "ctx", None), ast.Store):
            while isinstance(node, ast.Attribute | ast.Subscript):
                node = node.value
            names.add(getattr(node, "id", ""))
    return names


def read(tree: ast.Module) -> set[str]:
    """Names that a cell reads."""
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    return {node.id for node in names}
