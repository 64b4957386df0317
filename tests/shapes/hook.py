"""Checks shapes in tests: wraps every function and data class of the package whose annotations are jaxtyping's.

The package imports most types under `TYPE_CHECKING`, so its annotations cannot be resolved while it is imported. An
import hook therefore decorates what has a shape, and the first call resolves the annotations, in a copy of the module's
namespace: the module itself never has a name that it would not have outside of tests.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.machinery
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, ForwardRef

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType, ModuleType

PACKAGE = "steerserve."
CHECKED = "__checked__"
CHECKED_FIELDS = "__checked_fields__"

# `float` takes an `int`, as everywhere in Python's typing.
_check = functools.partial(jaxtyped, typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))


def install_shape_checks() -> None:
    """Check shapes in every module of the package that is imported from now on."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PACKAGE):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None and b"jaxtyping" in Path(spec.origin).read_bytes():
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile anew each time: bytecode caches hold the module without checks."""
        del fullname
        tree = ast.parse(self.get_data(self.path))
        _Decorator(_types_only(tree)).visit(tree)
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, CHECKED, checked)
        setattr(module, CHECKED_FIELDS, checked_fields)
        super().exec_module(module)


def _types_only(tree: ast.Module) -> list[ast.stmt]:
    """Return the statements under `if TYPE_CHECKING`."""
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return [inner for block in blocks for inner in block.body]


class _Decorator(ast.NodeTransformer):
    """Decorates functions of modules and classes, and data classes; functions in functions are left alone."""

    def __init__(self, types_only: Sequence[ast.stmt]) -> None:
        self._shapes: set[str] = set()
        for node in types_only:
            if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping":
                self._shapes |= {name.asname or name.name for name in node.names}
        for node in types_only:
            # Aliases of shapes.
            if isinstance(node, ast.Assign) and self._has_shape(node.value):
                self._shapes |= {target.id for target in node.targets if isinstance(target, ast.Name)}

    def _has_shape(self, node: ast.AST | None) -> bool:
        return node is not None and any(
            isinstance(inner, ast.Name) and inner.id in self._shapes for inner in ast.walk(node)
        )

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        arguments = [inner for inner in ast.walk(node.args) if isinstance(inner, ast.arg)]
        if self._has_shape(node.returns) or any(self._has_shape(argument.annotation) for argument in arguments):
            # Innermost: a property or a context manager is made of the checked function.
            node.decorator_list.append(ast.Name(CHECKED, ast.Load()))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and self._has_shape(item.annotation)]
        if fields:
            names = ast.Tuple([ast.Constant(ast.unparse(item.target)) for item in fields], ast.Load())
            # Outermost: `__init__` is what `dataclass` has made.
            node.decorator_list.insert(0, ast.Call(ast.Name(CHECKED_FIELDS, ast.Load()), [names], []))
        return node


@functools.cache
def names_for_types(module_name: str) -> dict[str, Any]:
    """Return a module's names and those that it has for types alone, which may be other modules' names for types."""
    module = importlib.import_module(module_name)
    names = dict(vars(module))
    for node in _types_only(ast.parse(Path(str(module.__file__)).read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(PACKAGE):
            others = names_for_types(node.module)
            names |= {name.asname or name.name: others[name.name] for name in node.names}
        else:
            exec(compile(ast.Module([node], []), module_name, "exec", dont_inherit=True), names)  # noqa: S102
    # Whether an object has a protocol's methods is mypy's matter; shapes are ours.
    return {name: Any if is_protocol(value) else value for name, value in names.items()}


def is_protocol(value: object) -> bool:
    return isinstance(value, type) and getattr(value, "_is_protocol", False)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its arguments and its result checked."""

    @functools.cache
    def resolved() -> Callable[..., Any]:
        function.__annotations__ = _resolve(function.__annotations__, function.__module__)
        return _check(function)

    @functools.wraps(function)
    def call(*arguments: object, **named: object) -> object:
        return resolved()(*arguments, **named)

    return call


def checked_fields(fields: Sequence[str]) -> Callable[[type], type]:
    """Return a decorator for a data class or a named tuple, which checks the shapes of `fields` when one is made."""

    def decorate(cls: type) -> type:
        @functools.cache
        def resolved() -> Callable[..., None]:
            annotations = {name: cls.__annotations__[name] for name in fields}
            return _field_check(cls, _resolve(annotations, cls.__module__))

        maker = "__new__" if issubclass(cls, tuple) else "__init__"
        make = getattr(cls, maker)

        @functools.wraps(make)
        def call(self: object, *arguments: object, **named: object) -> object:
            result = make(self, *arguments, **named)
            instance = self if result is None else result
            resolved()(**{name: getattr(instance, name) for name in fields})
            return result

        setattr(cls, maker, call)
        return cls

    return decorate


def _field_check(cls: type, annotations: dict[str, Any]) -> Callable[..., None]:
    """Return a function that takes the fields by name, and is checked."""
    made: dict[str, Any] = {"__name__": cls.__module__}
    exec(f"def fields(*, {', '.join(annotations)}): pass", made)  # noqa: S102 (names of fields)
    made["fields"].__annotations__ = annotations
    made["fields"].__qualname__ = cls.__qualname__
    return _check(made["fields"])


def _resolve(annotations: Mapping[str, Any], module_name: str) -> dict[str, Any]:
    names = names_for_types(module_name)
    resolved = {}
    for name, annotation in annotations.items():
        # Named tuples make forward references of texts.
        text = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
        resolved[name] = eval(text, names) if isinstance(text, str) else text  # noqa: S307 (our own source)
    return resolved
