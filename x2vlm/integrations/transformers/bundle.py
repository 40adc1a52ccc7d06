"""Combines a module, and everything that it uses from this project, into one self-contained file.

The file contains all definitions that the module uses directly or indirectly, and the imports from other packages. A class keeps
only the methods whose names occur somewhere in the file. Sources are copied unchanged, with their comments. If two modules define
the same name, one of the definitions is renamed.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tasks import ROOT

PLAIN = {"property", "cached_property", "staticmethod", "classmethod", "abstractmethod", "no_grad", "contextmanager"}
"""Decorators of methods that are called by name. A method with a different decorator, such as a validator, is always kept."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Import = ast.Import | ast.ImportFrom


class Target(NamedTuple):
    """The meaning of a name. It is a definition in a module of this project, such a module itself (then ``name`` is empty), or an
    import from another package (then ``module`` is the import statement)."""

    module: str
    name: str
    is_import: bool = False


class Use(NamedTuple):
    """A global name in a source, and the attribute that is read from it, if any."""

    name: ast.Name
    attribute: ast.Attribute | None


class Edit(NamedTuple):
    """The bytes of a source that are replaced by ``text``."""

    start: int
    end: int
    text: str


class Source:
    """A module of this project.

    Attributes:
        name: name of the module.
        text: source of the module.
        location: path of its file, relative to this project.
        definitions: for each top-level name, its statements: the definition, and the string that documents it.
        imported: the meanings of imported names.
    """

    def __init__(self, name: str):
        path = _path_of(name)
        assert path is not None, name
        self.name, self.text, self.location = name, path.read_bytes(), path.relative_to(_folder()).as_posix()
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imported: dict[str, Target] = {}
        self._starts = [0]
        for line in self.text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        documented: list[ast.stmt] = []
        for statement in ast.parse(self.text).body:
            if _is_text(statement):
                documented.append(statement)
            elif isinstance(statement, Import):
                self._import(statement)
            elif not (isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"):
                documented = [statement]
                for name in _defined_names(statement):
                    self.definitions[name] = documented
                for node in ast.walk(statement):
                    if isinstance(node, ast.ImportFrom) and _is_ours(node.module):
                        self._import(node)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Returns the bytes of a statement or expression, with its decorators."""
        first = min([node, *getattr(node, "decorator_list", [])], key=lambda each: each.lineno)
        start = self._starts[first.lineno - 1] + first.col_offset - (first is not node)  # the @ of a decorator
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def lines(self, node: ast.AST) -> tuple[int, int]:
        """Returns the bytes of the lines of a statement."""
        start, end = self.span(node)
        return self.text.rfind(b"\n", 0, start) + 1, self.text.find(b"\n", end) + 1

    def _import(self, statement: Import) -> None:
        for alias in statement.names:
            renamed = f" as {alias.asname}" if alias.asname else ""
            name = alias.asname or alias.name.partition(".")[0]
            if isinstance(statement, ast.Import):
                self.imported[name] = Target(f"import {alias.name}{renamed}", name, is_import=True)
            elif not _is_ours(statement.module):
                target = Target(f"from {statement.module} import {alias.name}{renamed}", name, is_import=True)
                self.imported[name] = target
            elif _path_of(f"{statement.module}.{alias.name}"):
                self.imported[name] = Target(f"{statement.module}.{alias.name}", "")
            else:
                self.imported[name] = Target(str(statement.module), alias.name)


class Bundle:
    """The definitions that a module uses, directly or indirectly.

    Args:
        root: name of the module, all of whose definitions and methods are kept.
        stand_ins: replacements for definitions; they are defined in a module without imports.
    """

    def __init__(self, root: str, stand_ins: Mapping[Target, Target]):
        self.stand_ins = stand_ins
        self.sources: dict[str, Source] = {}
        own = self.source(root).definitions
        self.kept: dict[Target, None] = {Target(root, name): None for name in own}
        methods = (
            each for statements in own.values() for each in ast.walk(statements[0]) if isinstance(each, Function)
        )
        self.mentioned = {"forward", *(method.name for method in methods)}
        found = -1
        while found != (found := len(self.kept) + len(self.mentioned)):  # a new name may add a method
            for target in [each for each in self.kept if not each.is_import]:
                self._follow(target)
        for target in [each for each in self.kept if not each.is_import]:
            self._keep_imports(target)
        self.names = self._unique_names()

    def source(self, name: str) -> Source:
        """Returns a module of this project."""
        if name not in self.sources:
            self.sources[name] = Source(name)
        return self.sources[name]

    def text(self, heading: str) -> str:
        """Returns the file, which begins with ``heading``."""
        imports = _grouped({each.module for each in self.kept if each.is_import})
        parts = [heading, "from __future__ import annotations", "\n".join(imports)]
        for name in self._modules():
            source = self.source(name)
            kept = {
                id(each): each
                for target in self.kept
                if target.module == name
                for each in source.definitions[target.name]
            }
            parts.append(f"# {source.location}")
            follows = False
            for statement in sorted(kept.values(), key=lambda each: each.lineno):
                text, is_short = self._rewritten(source, statement), not isinstance(statement, ast.ClassDef | Function)
                if _is_text(statement) or (follows and is_short):
                    parts[-1] += f"\n{text}"
                else:
                    parts.append(text)
                follows = is_short
        return "\n\n\n".join(parts) + "\n"

    def _follow(self, target: Target) -> None:
        """Keeps everything that a definition uses, and records the names that occur in it."""
        for statement in self.source(target.module).definitions[target.name]:
            if _is_text(statement):
                continue
            for use in uses(statement, self._is_left_out):
                if (found := self._meaning_of(target.module, use)) is not None:
                    self.kept.setdefault(found)
            self.mentioned |= mentioned(statement, self._is_left_out)

    def _keep_imports(self, target: Target) -> None:
        """Keeps the imports that a definition uses only in annotations."""
        for statement in self.source(target.module).definitions[target.name]:
            for use in uses(statement, self._is_left_out, in_annotations=True):
                found = self._meaning_of(target.module, use)
                if found is not None and found.is_import:
                    self.kept.setdefault(found)

    def _meaning_of(self, module: str, use: Use) -> Target | None:
        """Returns the meaning of a name that is used, or None if none of our modules defines or imports the name."""
        found = self._resolved(module, use.name.id)
        if found is None or found.name:
            return found
        assert use.attribute is not None, f"{module}: {use.name.id} is a module and no attribute of it is read"
        return self._resolved(found.module, use.attribute.attr)

    def _resolved(self, module: str, name: str) -> Target | None:
        source = self.source(module)
        if name in source.definitions:
            return self.stand_ins.get(Target(module, name), Target(module, name))
        found = source.imported.get(name)
        return found if found is None or found.is_import or not found.name else self._resolved(*found[:2])

    def _is_known(self, module: str, use: Use) -> bool:
        """Returns True if the file contains the definition that an annotation uses."""
        found = self._meaning_of(module, use)
        return hasattr(builtins, use.name.id) if found is None else found in self.kept

    def _is_left_out(self, method: Function) -> bool:
        decorators = {ast.unparse(each).partition("(")[0].rpartition(".")[2] for each in method.decorator_list}
        return decorators <= PLAIN and not method.name.startswith("__") and method.name not in self.mentioned

    def _modules(self) -> list[str]:
        """Returns the modules with kept definitions. Each module comes after the modules that it imports."""
        used = {target.module for target in self.kept if not target.is_import}
        ordered: dict[str, None] = {}
        seen: set[str] = set()

        def visit(name: str) -> None:
            if name not in seen:
                seen.add(name)
                for target in self.source(name).imported.values():
                    if not target.is_import:
                        visit(target.module)
                ordered[name] = None

        for name in [*(target.module for target in self.stand_ins.values()), *self.sources]:
            visit(name)
        return [name for name in ordered if name in used]

    def _unique_names(self) -> dict[Target, str]:
        """Returns the names of the definitions in the file. If two definitions have the same name, one of them gets the name of
        its module as a prefix."""
        names: dict[Target, str] = {}
        for target in sorted(self.kept, key=lambda each: not each.is_import):
            name = target.name
            if name in names.values():
                assert not target.is_import, f"two packages are imported as {name}"
                name = f"_{target.module.rpartition('.')[2]}_{name.lstrip('_')}"
            names[target] = name
        return names

    def _rewritten(self, source: Source, statement: ast.stmt) -> str:
        """Returns the source of a statement, with the names used in the file and without the methods that are left out."""
        cut = [Edit(*source.lines(each), "") for each in left_out(statement, self._is_left_out)]
        for colon, annotation in annotations_of(statement):
            if not all(self._is_known(source.name, use) for use in uses(annotation, self._is_left_out)):
                start, end = source.span(annotation)
                cut.append(Edit(source.text.rindex(colon, 0, start), end, ""))
        changed = []
        for use in uses(statement, self._is_left_out, in_annotations=True):
            meant = self._meaning_of(source.name, use)
            is_module = self._resolved(source.name, use.name.id) != meant
            node = use.attribute if is_module else use.name
            if meant in self.names and (is_module or self.names[meant] != use.name.id):
                assert node is not None
                changed.append(Edit(*source.span(node), self.names[meant]))
        for name, start in _defined_names_at(source, statement):
            new = self.names.get(Target(source.name, name), name)
            if new != name:
                changed.append(Edit(start, start + len(name.encode()), new))
        outside = [each for each in changed if not any(gap.start <= each.start < gap.end for gap in cut)]
        start, end = source.span(statement)
        text, done = b"", start
        for edit in sorted([*outside, *cut]):
            if edit.start >= done:
                text += source.text[done : edit.start] + edit.text.encode()
                done = edit.end
        text += source.text[done:end]
        return re.sub(r"\n{3,}", "\n\n", text.decode()).rstrip()


def _grouped(imports: set[str]) -> list[str]:
    """Returns sorted import statements, with one statement for all names of a package."""
    modules = sorted(each for each in imports if each.startswith("import "))
    names: dict[str, list[str]] = {}
    for each in sorted(imports - set(modules), key=str.lower):
        package, _, name = each.partition(" import ")
        names.setdefault(package, []).append(name)
    return [*modules, *(f"{package} import {', '.join(each)}" for package, each in sorted(names.items()))]


class _Uses(ast.NodeVisitor):
    """Collects the global names that are read."""

    def __init__(self, skip: Callable[[Function], bool], in_annotations: bool):
        self.found: list[Use] = []
        self._skip, self._in_annotations = skip, in_annotations
        self._locals: list[set[str]] = []

    def visit_Name(self, node: ast.Name) -> None:
        self._use(node, None)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name):
            self._use(node.value, node)
        else:
            self.visit(node.value)

    def visit_FunctionDef(self, node: Function) -> None:
        if self._skip(node) and self._in_class:
            return
        for each in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(each)
        for annotation in [each for _, each in annotations_of(node, nested=False)] if self._in_annotations else []:
            self.visit(annotation)
        self._inside(node.body, _names_of(node))

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for each in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(each)
        self._inside([node.body], {each.arg for each in _arguments(node.args)})

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for each in [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]:
            self.visit(each)
        for statement in node.body:
            self._in_class = True
            self.visit(statement)
            self._in_class = False

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if self._in_annotations or not self._locals:  # in functions, Python does not evaluate annotations
            self.visit(node.annotation)
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        own = {each.id for part in node.generators for each in ast.walk(part.target) if isinstance(each, ast.Name)}
        self._inside(list(ast.iter_child_nodes(node)), own)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp  # noqa: N815

    _in_class = False

    def _inside(self, nodes: Sequence[ast.AST], names: set[str]) -> None:
        in_class, self._in_class = self._in_class, False
        self._locals.append(names)
        for node in nodes:
            self.visit(node)
        self._locals.pop()
        self._in_class = in_class

    def _use(self, name: ast.Name, attribute: ast.Attribute | None) -> None:
        if isinstance(name.ctx, ast.Load) and not any(name.id in names for names in self._locals):
            self.found.append(Use(name, attribute))


def uses(node: ast.AST, skip: Callable[[Function], bool], *, in_annotations: bool = False) -> list[Use]:
    """Returns the global names that a statement reads, except in methods to ``skip``. Names in annotations of functions are only
    included with ``in_annotations``."""
    visitor = _Uses(skip, in_annotations)
    visitor.visit(node)
    return visitor.found


def mentioned(statement: ast.stmt, skip: Callable[[Function], bool]) -> set[str]:
    """Returns all names in a statement by which a method could be called, including names in strings."""
    found: set[str] = set()
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ClassDef):
            skipped = set(map(id, _methods(node, skip)))
            todo += [each for each in ast.iter_child_nodes(node) if id(each) not in skipped]
            continue
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name):
                found.add(name)
            case ast.Constant(value=str(name)) if name.isidentifier():
                found.add(name)
        todo += ast.iter_child_nodes(node)
    return found


def left_out(statement: ast.stmt, skip: Callable[[Function], bool]) -> Iterator[ast.stmt]:
    """Yields the methods to ``skip``, and the imports of this project inside functions."""
    for node in ast.walk(statement):
        if isinstance(node, ast.ClassDef):
            yield from _methods(node, skip)
        elif isinstance(node, ast.ImportFrom) and _is_ours(node.module):
            yield node


def annotations_of(statement: ast.AST, *, nested: bool = True) -> Iterator[tuple[bytes, ast.expr]]:
    """Yields the annotations of functions and of variables in functions, with the token that precedes each annotation."""
    for node in ast.walk(statement) if nested else [statement]:
        if isinstance(node, Function):
            if nested:
                assigned = (
                    each for each in ast.walk(node) if isinstance(each, ast.AnnAssign) and each.value is not None
                )
                yield from ((b":", each.annotation) for each in assigned)
            yield from ((b":", each.annotation) for each in _arguments(node.args) if each.annotation is not None)
            if node.returns is not None:
                yield b" ->", node.returns


def _methods(node: ast.ClassDef, skip: Callable[[Function], bool]) -> list[ast.stmt]:
    return [each for each in node.body if isinstance(each, Function) and skip(each)]


def _arguments(given: ast.arguments) -> list[ast.arg]:
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [*named, *(each for each in (given.vararg, given.kwarg) if each is not None)]


def _names_of(function: Function) -> set[str]:
    """Returns the local names of a function."""
    found = {each.arg for each in _arguments(function.args)}
    shared: set[str] = set()
    for node in (each for statement in function.body for each in ast.walk(statement)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                found.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases) if not _is_ours(
                getattr(node, "module", None)
            ):
                found |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.Global(names=names):
                shared |= set(names)
    return found - shared


def _defined_names(statement: ast.stmt) -> list[str]:
    """Returns the names that a top-level statement defines."""
    if isinstance(statement, ast.ClassDef | Function):
        return [statement.name]
    return [each.id for each in ast.walk(statement) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]


def _defined_names_at(source: Source, statement: ast.stmt) -> Iterator[tuple[str, int]]:
    """Yields the names that a top-level statement defines, and their positions in bytes."""
    if isinstance(statement, ast.ClassDef | Function):
        word = b"class " if isinstance(statement, ast.ClassDef) else b"def "
        yield statement.name, source.text.index(word, source.span(statement)[0]) + len(word)
    else:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id, source.span(node)[0]


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_ours(module: str | None) -> bool:
    return module is not None and _path_of(module) is not None


def _folder() -> Path:
    """Returns the folder with the top-level packages; in an installation, the folder that contains x2vlm."""
    return ROOT if (ROOT / "x2vlm").is_dir() else ROOT.parent


def _path_of(module: str) -> Path | None:
    """Returns the file of a module of this project, or None for other modules. In an installation, all packages of this project
    are inside x2vlm."""
    if _folder() != ROOT and module.partition(".")[0] != "x2vlm":
        return None
    path = _folder().joinpath(*module.split("."))
    if path.is_dir():
        return path / "__init__.py" if (path / "__init__.py").is_file() else None
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None
