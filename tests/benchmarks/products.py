"""The least that a network's pass can take with PyTorch's own products: those alone, one after another.

What is recorded are the matrix products, convolutions and attentions of a call, with their inputs; replayed
they are the same calls without all that stands between them. A network that leaves its products to PyTorch is
never faster than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PRODUCTS = {
    F.linear,
    F.conv1d,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    Tensor.matmul,
    Tensor.__matmul__,
}

Call = tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            self.calls.append((func, args, dict(kwargs)))
        return func(*args, **kwargs)


def products_of(run: Callable[[], Any], *, backward: bool = False) -> Callable[[], None]:
    """The products of a call alone, as a call; with `backward` also those of their gradients.

    Gradients are taken of all inputs that had some, and added to none.
    """
    with _Recorder() as recorder, torch.set_grad_enabled(backward):
        run()
    calls = [_detached(call) for call in recorder.calls]
    if not backward:

        @torch.no_grad()
        def replay() -> None:
            for func, args, kwargs in calls:
                func(*args, **kwargs)

        return replay

    # What flows back into each product: ones would do, but for products that notice an expanded number.
    upstream = [torch.randn_like(func(*args, **kwargs)) for func, args, kwargs in calls]

    def replay_with_gradients() -> None:
        for (func, args, kwargs), gradient in zip(calls, upstream, strict=True):
            sources = [one for one in args if isinstance(one, Tensor) and one.requires_grad]
            torch.autograd.grad(func(*args, **kwargs), sources, gradient)

    return replay_with_gradients


def _detached(call: Call) -> Call:
    func, args, kwargs = call
    return (
        func,
        tuple(_leaf(one) for one in args),
        {name: _leaf(one) for name, one in kwargs.items()},
    )


def _leaf(one: Any) -> Any:
    return one.detach().requires_grad_(one.requires_grad) if isinstance(one, Tensor) else one
