"""Run the notebooks and store what their cells show: `python -m tools.docs.notebooks notebooks/*.ipynb`.

A notebook is its cells in one namespace, as Jupyter would run them; Jupyter itself is not needed. Tests use `run` too.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def main(files: list[str]) -> None:
    """Run each notebook and write it back with its outputs."""
    for name in files:
        file = Path(name)
        notebook = json.loads(file.read_text(encoding="utf-8"))
        run(notebook)
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run(notebook: dict[str, Any]) -> None:
    """Run the code cells of a notebook in order, and replace their outputs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _execute("".join(cell["source"]), f"<cell {number}>", namespace)
        cell["execution_count"] = number
        cell["outputs"] = _outputs(printed.getvalue(), value, number)


def _execute(source: str, name: str, namespace: dict[str, Any]) -> object:
    """Run a cell; return the value of its last line if that is an expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)  # noqa: S102 that is what a notebook is
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace)  # noqa: S307 the same


def _outputs(printed: str, value: object, number: int) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append({"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)})
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value)[:500].splitlines(keepends=True)}
        shown = getattr(value, "_repr_html_", None)
        if shown is not None:
            data["text/html"] = shown().splitlines(keepends=True)
        result = {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        outputs.append(result)
    return outputs


if __name__ == "__main__":
    main(sys.argv[1:])
