"""The configuration keys, read from the source of the dataclasses, so that torch need not be loaded to know them."""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REQUIRED = "required"
"""The default of a key that has none."""
_ROOT_CLASS = ("pipelines.run.config", "RunConfig")


@dataclass(frozen=True, kw_only=True)
class Key:
    """One configuration key, or a section of keys."""

    name: str
    """With dots, as on the command line."""
    kind: str
    """Its type, as written; in a section, the name of its class."""
    default: str
    """As YAML writes it, or `REQUIRED`; empty for a section that is always there."""
    meaning: str
    """The text below the field, else of the section's class; may be empty."""
    is_section: bool


@cache
def configuration_keys() -> dict[str, Key]:
    """All keys of a run's configuration by name; a section comes before its keys."""
    place = _Place.of(*_ROOT_CLASS)
    return {key.name: key for key in _keys_of(place, "", {})}


@dataclass(frozen=True)
class _Source:
    """What a file of this project defines at its top level."""

    module: str
    classes: Mapping[str, ast.ClassDef]
    imports: Mapping[str, tuple[str, str]]
    constants: Mapping[str, ast.expr]

    @staticmethod
    @cache
    def of(module: str) -> "_Source":
        """Read the file of ``module``, without running it."""
        tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        imports = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module is not None
            for alias in node.names
        }
        constants: dict[str, ast.expr] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                constants[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                constants[node.target.id] = node.value
        return _Source(module, classes, imports, constants)


@dataclass(frozen=True)
class _Place:
    """A class and the file it is in."""

    source: _Source
    node: ast.ClassDef

    @staticmethod
    def of(module: str, name: str) -> "_Place":
        """The class ``name`` of ``module``."""
        source = _Source.of(module)
        return _Place(source, source.classes[name])


def _find(source: _Source, name: str) -> _Place | ast.expr | None:
    """What ``name`` stands for in a file: a class or a constant of this project; None for anything else."""
    while name not in source.classes and name in source.imports:
        module, name = source.imports[name]
        if not ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file():
            return None
        source = _Source.of(module)
    if name in source.classes:
        return _Place(source, source.classes[name])
    return source.constants.get(name)


@dataclass(frozen=True)
class _Field:
    """A field of a dataclass, and the file in which it is declared."""

    source: _Source
    name: str
    annotation: ast.expr
    value: ast.expr | None
    text: str


def _fields(place: _Place) -> dict[str, _Field]:
    """The fields of a dataclass by name, in the order of `dataclasses.fields`."""
    found: dict[str, _Field] = {}
    for base in reversed(place.node.bases):
        parent = _find(place.source, base.id) if isinstance(base, ast.Name) else None
        if isinstance(parent, _Place):
            found |= _fields(parent)
    body = place.node.body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            name = node.target.id
            found[name] = _Field(place.source, name, node.annotation, node.value, " ".join(str(text).split()))
    return found | {field.name: field for field in _measure_fields(place)}


def _measure_fields(place: _Place) -> Iterator[_Field]:
    """The sections that a decorator of callbacks/measures/registry.py adds: one for each measure of its list."""
    if not any(isinstance(node, ast.Name) and node.id == "_with_sections" for node in place.node.decorator_list):
        return
    listed = place.source.constants["MEASURES"]
    assert isinstance(listed, ast.Tuple)
    for name in listed.elts:
        assert isinstance(name, ast.Name)
        measure = _find(place.source, name.id)
        assert isinstance(measure, _Place)
        values = {
            ast.unparse(target): node.value
            for node in measure.node.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        }
        key, config_type = values["key"], values["config_type"]
        assert isinstance(key, ast.Constant)
        assert config_type is not None
        annotation = ast.BinOp(config_type, ast.BitOr(), ast.Constant(None))
        yield _Field(measure.source, str(key.value), annotation, ast.Constant(None), "")


def _keys_of(place: _Place, prefix: str, given: Mapping[str, ast.expr]) -> Iterator[Key]:
    """The keys of a section; ``given`` are defaults that replace those of its class."""
    for name, field in _fields(place).items():
        value = given.get(name, field.value)
        section, optional = _section(field)
        key = f"{prefix}{name}"
        if section is None:
            yield Key(
                name=key,
                kind=_kind(field),
                default=_default(field.source, value),
                meaning=field.text,
                is_section=False,
            )
            continue
        whole = " ".join((ast.get_docstring(section.node) or "").split())
        yield Key(
            name=key,
            kind=f"{section.node.name}{' or null' if optional else ''}",
            default="null" if isinstance(value, ast.Constant) else "",
            meaning=field.text or whole,
            is_section=True,
        )
        yield from _keys_of(section, f"{key}.", _made(value))


def _section(field: _Field) -> tuple[_Place | None, bool]:
    """The class of a field that is a section, and whether it may be null."""
    annotation, optional = field.annotation, False
    if isinstance(annotation, ast.BinOp) and ast.unparse(annotation.right) == "None":
        annotation, optional = annotation.left, True
    found = _find(field.source, annotation.id) if isinstance(annotation, ast.Name) else None
    return (found, optional) if isinstance(found, _Place) else (None, optional)


def _made(value: ast.expr | None) -> dict[str, ast.expr]:
    """Defaults of a section in ``field(default_factory=lambda: Section(name=value))``."""
    for node in ast.walk(value) if value is not None else ():
        if isinstance(node, ast.Lambda) and isinstance(node.body, ast.Call):
            return {word.arg: word.value for word in node.body.keywords if word.arg is not None}
    return {}


def _kind(field: _Field) -> str:
    """The type in words, with the choices of a Literal."""
    annotation: ast.expr = field.annotation
    if isinstance(annotation, ast.Name) and isinstance(alias := _find(field.source, annotation.id), ast.expr):
        annotation = alias
    text = ast.unparse(annotation).replace(" | None", " or null")
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        choices = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return " or ".join(str(ast.literal_eval(choice)) for choice in choices)
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    if text.startswith("tuple["):
        items = [item for item in text.removeprefix("tuple[").removesuffix("]").split(", ") if item != "..."]
        many = "" if "..." in text else f"{len(items)} "
        return f"list of {many}{words.get(items[0], items[0])}s"
    whole, _, rest = text.partition(" or ")
    return words.get(whole, whole) + (f" or {rest}" if rest else "")


def _default(source: _Source, value: ast.expr | None) -> str:
    if value is None:
        return REQUIRED
    try:
        return as_yaml(_value(source, value))
    except (ValueError, KeyError):  # a form that `_value` does not know
        return ast.unparse(value)


def _value(source: _Source, node: ast.expr) -> Any:
    """What an expression stands for: literals, and the few forms in which defaults of this project are written.

    Raises:
        ValueError: it is written in another form.
    """
    match node:
        case ast.Name(id=name):
            while name in source.imports:
                module, name = source.imports[name]
                source = _Source.of(module)
            return _value(source, source.constants[name])
        case ast.Tuple(elts=items):
            parts = [_value(source, item.value) if isinstance(item, ast.Starred) else [_value(source, item)]
                     for item in items]  # fmt: skip
            return tuple(each for part in parts for each in part)
        case ast.Call(func=ast.Name(id="len"), args=[counted]):
            return len(_value(source, counted))
        case ast.Call(func=ast.Name(id="get_args"), args=[alias]):
            return _value(source, alias)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return _value(source, choices)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(source, left) - _value(source, right)
    return ast.literal_eval(node)


def as_yaml(value: Any) -> str:
    """A default as one would write it in YAML, on one line."""
    if isinstance(value, str) and value.isprintable() and value:
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(as_yaml, value))}]"
    return json.dumps(value, ensure_ascii=False)
