"""Name -> object, found by importing every file of a folder.

Adding a mixer, a tokenizer, a sampler or a task is adding one file: nothing else names it.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from dnassm.errors import UnknownNameError

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


class Registry(Generic[T]):
    """Names of one kind of thing; the folder that holds them is imported at the first look."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._items: dict[str, T] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator that files the class under `name`."""

        def add(item: T) -> T:
            if name in self._items and self._items[name] is not item:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return add

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._scan()
        return sorted(self._items)

    def __getitem__(self, name: str) -> T:
        """Return the item called `name`; raises UnknownNameError with a near-miss hint."""
        self._scan()
        if name not in self._items:
            raise UnknownNameError(
                f"no {self.kind} named {name!r}; have {', '.join(self.names())}."
                f"{did_you_mean(name, self._items)}"
            )
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        self._scan()
        return name in self._items

    def _scan(self) -> None:
        if self._scanned:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._scanned = True
