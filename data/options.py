"""Build what a name and its options describe; a wrong option is the user's mistake, in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dnassm.errors import ConfigError
from dnassm.registry import did_you_mean

T = TypeVar("T")


def built(
    what: str, make: Callable[..., T], options: Mapping[str, Any], *args: Any, **given: Any
) -> T:
    """Return ``make(*args, **given, **options)``.

    Args:
        what: what is built, as an error names it: "sampler tiled".
        make: has a keyword-only argument for every option.
        options: what the user set; plain JSON values.
        args: what `make` needs whatever the user set.
        given: settings that are not the user's to make here.

    Raises:
        ConfigError: an option does not exist, or is of a kind that `make` cannot use.
    """
    known = [
        name
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in given
    ]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{what}: no option {name!r}; have {', '.join(known) or 'none'}."
                f"{did_you_mean(name, known)}"
            )
    try:
        return make(*args, **given, **options)
    except TypeError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{what}: it cannot use its options {dict(options)}: {said}") from error
