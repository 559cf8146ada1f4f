"""How a function becomes an operator of torch: its schema, its shapes without data, its gradients.

An operator is one node for torch.compile, checkpointing and DDP. Its gradients hang on an autograd
kernel of our own: torch.library.register_autograd does the same and walks the schema in every call
that needs a gradient, 60 us more for the selective scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Above = Callable[..., Any]
"""What stands above autograd: takes the arguments of the operator, calls it below."""

_LIBRARY = torch.library.Library("dnassm", "FRAGMENT")


def define(schema: str) -> Any:
    """Declare ``name(arguments) -> results`` in the namespace dnassm, and return the operator."""
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    return getattr(torch.ops.dnassm, schema.partition("(")[0]).default


def implement(
    operator: Any, function: Callable[..., Any], fake: Callable[..., Any], above: Above
) -> None:
    """Say how `operator` computes, what it returns for tensors without data, and its gradients."""
    name = operator._schema.name.partition("::")[2]
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dnassm::{name}", fake, lib=_LIBRARY)
    _LIBRARY.impl(name, above, "Autograd")


def differentiated(operator: Any, function: type[torch.autograd.Function]) -> Above:
    """Go through `function` where a gradient will be asked for, past autograd elsewhere."""

    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(_requires_grad(argument) for argument in arguments):
            return function.apply(*arguments)
        return below_autograd(operator, arguments)

    return call


def differentiated_by(
    operator: Any, setup: Callable[..., None], differentiate: Callable[..., tuple[Any, ...]]
) -> Above:
    """The same, of what register_autograd takes.

    Args:
        operator: what is called.
        setup: (ctx, arguments, results): saves what the backward needs.
        differentiate: (ctx, *gradients of the results): one gradient per argument.
    """

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            results = below_autograd(operator, arguments)
            setup(ctx, arguments, results)
            return results

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> Any:
            return differentiate(ctx, *gradients)

    return differentiated(operator, Differentiable)


def once_differentiable(operator: Any, instead: str = "") -> Above:
    """Of a backward: a second derivative is refused, with what to do `instead`."""
    name = operator._schema.name.partition("::")[2].removesuffix("_backward")

    def refuse(ctx: Any, *_: Any) -> tuple[Any, ...]:
        raise RuntimeError(
            f"{name}: a second derivative was asked for, and it has only the first; "
            f"call backward without create_graph{instead}"
        )

    return differentiated_by(operator, lambda ctx, arguments, results: None, refuse)


def below_autograd(operator: Any, arguments: tuple[Any, ...]) -> Any:
    """Call `operator` as if autograd were not there."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _requires_grad(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.requires_grad
