# SPDX-License-Identifier: Apache-2.0
"""JSON and YAML read into frozen dataclasses; what does not fit is one line with the file, the field and what it must
be.

Every function takes the error to raise and the `advice` that ends its line: the reader knows whose file it is. An int
stands for a float where a float is asked for, nothing else is converted.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vla_edge.errors import ConfigError, VlaEdgeError

T = TypeVar("T")

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class _Misfit(ValueError):
    """A field that does not fit; its text names the field."""


def parse_json(data: str | bytes, where: object, error: type[VlaEdgeError], advice: str) -> Any:
    """The JSON value in `data`; `where` (a file, or a file and a line) stands first in the message."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not valid JSON ({problem}); {advice}") from None


def read_object(file: Path, error: type[VlaEdgeError], advice: str, missing: str = "") -> dict[str, Any]:
    """The object in a JSON file, or the mapping in a file that ends in .yaml or .yml.

    missing: fact and next step when there is no such file, where that is more than "missing" and `advice`.
    """
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{file}: {missing or f'missing; {advice}'}") from None
    except OSError as problem:
        raise error(f"{file}: {problem.strerror}; {advice}") from None
    if file.suffix in (".yaml", ".yml"):
        content = parse_yaml(data, file, error, advice)
    else:
        content = parse_json(data, file, error, advice)
    if not isinstance(content, dict):
        raise error(f"{file}: holds {_kind_of(content)}, must be an object; {advice}")
    return content


def build(kind: type[T], content: object, where: object, error: type[VlaEdgeError], advice: str = "") -> T:
    """The dataclass `kind` of `content`: nested dataclasses, tuples of lists, mappings; every field checked.

    Raises `error` for a field that is unknown, missing or of another type, and for a ValueError of the class itself.
    """
    try:
        return _dataclass(kind, content, "")  # type: ignore[no-any-return]
    except _Misfit as problem:
        raise error(f"{where}: {problem}" + (f"; {advice}" if advice else "")) from None


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as JSON values; `build` makes an equal one of them."""
    return json.loads(json.dumps(asdict(value)))  # type: ignore[no-any-return]


def take(content: Mapping[str, Any], name: str, default: T, where: object) -> T:
    """Field `name` of an object with more fields than we read, of the type `default` has; `default` where it is missing
    or null. ConfigError otherwise."""
    value = content.get(name)
    if value is None:
        return default
    try:
        return _value(dict if isinstance(default, dict) else type(default), value, name)  # type: ignore[no-any-return]
    except _Misfit as problem:
        raise ConfigError(f"{where}: {problem}") from None


def take_field(kind: type, content: Mapping[str, Any], name: str, where: object) -> Any:
    """Field `name` of an object with more fields than we read, of the type that it has in the dataclass `kind`.
    ConfigError otherwise."""
    try:
        return _value(_hints(kind)[name], content[name], name)
    except _Misfit as problem:
        raise ConfigError(f"{where}: {problem}") from None


def take_positive(content: Mapping[str, Any], name: str, default: int, where: object) -> int:
    """A whole number of at least 1."""
    value = take(content, name, default, where)
    if value < 1:
        raise ConfigError(f"{where}: {name} is {value}, must be at least 1")
    return value


def parse_yaml(data: str | bytes, where: object, error: type[VlaEdgeError], advice: str) -> Any:
    """The YAML value in `data`; `where` stands first in the message."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe YAML 1.1, 1e-4 is a number as in YAML 1.2, and of two equal keys none is taken in silence."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for place, name in enumerate(names):
                if name in names[:place]:
                    raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {name} stands twice")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    try:
        return yaml.load(data, Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        raise error(f"{where}: not valid YAML ({problem}); {advice}") from None


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with the values of `changes`; objects in both are merged, everything else is replaced."""
    both = {**content, **changes}
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(content.get(name), Mapping):
            both[name] = merged(content[name], value)
    return both


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _dataclass(kind: Any, content: object, where: str) -> Any:
    if not isinstance(content, Mapping):
        raise _Misfit(f"{where or 'the content'} is {_shown(content)}, must be an object")
    known = {item.name: item for item in fields(kind)}
    inside = f"{where}." if where else ""
    for name in content:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise _Misfit(f"unknown field {inside}{name!s:.60}; {hint}")
    for name, item in known.items():
        if name not in content and item.default is MISSING and item.default_factory is MISSING:
            raise _Misfit(f"field {inside}{name} is missing")
    values = {name: _value(_hints(kind)[name], value, inside + name) for name, value in content.items()}
    try:
        return kind(**values)
    except ValueError as problem:
        raise _Misfit(f"{where}: {problem}" if where else str(problem)) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _value(next(i for i in inner if i is not type(None)), value, where)
    if is_dataclass(origin):
        return _dataclass(origin, value, where)
    if origin in (tuple, list):
        return origin(_items(inner, value, where))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _Misfit(f"{where} is {_shown(value)}, must be an object")
        for key in value if inner and inner[0] in _WORDS else ():
            if type(key) is not inner[0]:
                raise _Misfit(f"{where} has the key {_shown(key)}, must be {_WORDS[inner[0]]}")
        return {key: _value(inner[1], item, f"{where}.{key}") if inner else item for key, item in value.items()}
    if origin is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 1023:
        return float(value)
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        raise _Misfit(f"{where} is {_shown(value)}, must be {_WORDS[origin]}")
    return value


def _items(inner: tuple[Any, ...], value: object, where: str) -> list[Any]:
    """The items of a list: of one kind (`tuple[int, ...]`), or one kind each (`tuple[float, float]`)."""
    if not isinstance(value, (list, tuple)):
        raise _Misfit(f"{where} is {_shown(value)}, must be a list")
    kinds = inner if inner and inner[-1] is not Ellipsis else (inner or (Any,))[:1] * len(value)
    if len(kinds) != len(value):
        raise _Misfit(f"{where} has {len(value)} items, must have {len(kinds)}")
    return [_value(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value))]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind_of(content: object) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(content), f"a {type(content).__name__}")
