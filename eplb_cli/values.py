"""Frozen dataclasses whose methods nobody compiles.

The standard `dataclass(frozen=True)` writes up to seven functions for each class and compiles them: 1 to
2 ms a class before Python 3.13, of which `eplb plan` uses thirty and `eplb reshard` seventy. Here all classes
share the same functions, which look the fields up; `fields`, `replace` and `asdict` go on as ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Literal, NoReturn, TypeVar, dataclass_transform

_Class = TypeVar("_Class", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def dataclass(*, frozen: Literal[True], eq: bool = True) -> Callable[[_Class], _Class]:
    """Make a class one of frozen fields, as `dataclasses.dataclass` with the same arguments would.

    Fields are given by place or by name, and have defaults of every kind; `__post_init__` is called.
    """
    del frozen

    def made(cls: _Class) -> _Class:
        dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
        own: dict[str, Any] = {
            "__init__": _init(dataclasses.fields(cls), hasattr(cls, "__post_init__")),
            "__repr__": _repr,
            "__setattr__": _refuse,
            "__delattr__": _refuse,
            "__signature__": _Signature(),
        }
        if eq:
            own |= _equality([field.name for field in dataclasses.fields(cls) if field.compare])
        for name, what in own.items():
            if name not in vars(cls):
                setattr(cls, name, what)
        return cls

    return made


def _init(fields: tuple[dataclasses.Field[Any], ...], has_post_init: bool) -> Callable[..., None]:  # noqa: FBT001 - private
    known = frozenset(field.name for field in fields)
    places = [field.name for field in fields if not field.kw_only]
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    makers = {
        field.name: field.default_factory
        for field in fields
        if field.default_factory is not dataclasses.MISSING
    }
    required = known - defaults.keys() - makers.keys()

    def init(self: Any, /, *args: Any, **by_name: Any) -> None:  # noqa: ANN401 - of any class
        given = dict(zip(places, args, strict=False), **by_name)
        if len(given) < len(args) + len(by_name) or not required <= given.keys() <= known:
            self.__signature__.bind(*args, **by_name)  # raises what says which of them is wrong
        values = self.__dict__
        values.update(defaults)
        for name in makers.keys() - given.keys():
            values[name] = makers[name]()
        values.update(given)
        if has_post_init:
            self.__post_init__()

    return init


def _repr(self: Any) -> str:  # noqa: ANN401 - of any class
    shown = [field.name for field in dataclasses.fields(self) if field.repr]
    return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


def _refuse(self: object, name: str, *_: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"{name!r} of a {type(self).__qualname__} is frozen")


def _equality(names: list[str]) -> dict[str, Callable[..., Any]]:
    """`__eq__` and `__hash__` by some fields."""
    values = attrgetter(*names) if names else lambda _: ()

    def is_equal(self: object, other: object) -> bool:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    def hashed(self: object) -> int:
        return hash((type(self), values(self)))

    return {"__eq__": is_equal, "__hash__": hashed}


class _Signature:
    """The signature of a class of fields, made when somebody asks for it, as `help` does."""

    def __get__(self, instance: object, cls: Any) -> Any:  # noqa: ANN401 - whatever inspect says
        from inspect import Parameter, Signature

        absent = dataclasses.MISSING
        parameters = []
        for field in dataclasses.fields(cls):
            default = field.default if field.default_factory is absent else field.default_factory
            parameters.append(
                Parameter(
                    field.name,
                    Parameter.KEYWORD_ONLY if field.kw_only else Parameter.POSITIONAL_OR_KEYWORD,
                    default=Parameter.empty if default is absent else default,
                    annotation=field.type,
                )
            )
        return Signature(sorted(parameters, key=attrgetter("kind")))
