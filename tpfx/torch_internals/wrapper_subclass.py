"""What a tensor subclass without memory of its own needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch._dynamo.variables import higher_order_ops as _captured
from torch._higher_order_ops import utils as _branches
from torch._ops import HigherOrderOperator
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.utils import parametrize
from torch.optim import optimizer as _optimizer
from torch.utils import _foreach_utils

from .effects import Effect, Undo, replace_in, replace_method
from .module_changes import CHANGES

# A tensor of a subclass, without memory: `(cls, shape, strides=, dtype=, device=, requires_grad=)`.
make_wrapper_subclass: Any = torch.Tensor._make_wrapper_subclass

# As a class's `__torch_function__`: its ops go straight to `__torch_dispatch__`.
without_torch_function: Any = torch._C._disabled_torch_function_impl

# `tensor.data = other`, which a subclass may have overridden: `other`'s sizes, dtype and memory.
set_data: Any = vars(torch._C.TensorBase)["data"].__set__


class OfItsOwn(torch.Tensor):
    """A tensor that Dynamo takes for one of its own, not for a view, whatever it was made of.

    It derives the sizes of a view from those of its base, and fails where these vary: it replays, with sizes
    of which it has no symbols, the ops that made the view.
    """

    _base = None
    counts_as_one = True  # for `tensors_inside`, whatever it is made of
    # The class of what one has taken the place of, where that is not torch's own.
    plain_kind: type[torch.Tensor] | None = None
    # What one has in its `__dict__` itself, beside what others note there.
    own_attributes = frozenset(
        {"mesh", "qualified_name", "weight_kind", "whole_because", "probe", "last_held", "plain_kind"}
        | {"_is_param", "averaging"}
    )

    def _is_view(self) -> bool:
        return False


# C++ that would write to the memory of such a tensor raises a RuntimeError, instead of ending the process.
unreadable: Callable[[torch.Tensor], None] = torch._C._set_throw_on_mutable_data_ptr

_DATA: Any = vars(torch._C.TensorBase)["data"]
_BASE: Any = vars(torch._C.TensorBase)["_base"]


def is_functional(tensor: torch.Tensor) -> bool:
    """Whether AOTAutograd follows a tensor through a graph that it traces."""
    return isinstance(tensor, FunctionalTensor)


def is_view(tensor: torch.Tensor) -> bool:
    """Whether autograd follows a tensor as a view of another."""
    return _BASE.__get__(tensor) is not None


def as_data(kind: type[torch.Tensor], whole: Callable[[Any], torch.Tensor]) -> Effect:
    """`plain.data = tensor`, of a kind, takes `whole(tensor)`: torch would leave `plain` without memory."""

    def assign(plain: torch.Tensor, value: Any) -> None:
        _DATA.__set__(plain, whole(value) if isinstance(value, kind) else value)

    def install() -> Undo:
        made = property(_DATA.__get__, assign)
        torch.Tensor.data = made  # type: ignore[assignment]

        def undo() -> bool:
            if vars(torch.Tensor).get("data") is made:
                del torch.Tensor.data
            return True

        return undo

    return Effect(f"{kind.__name__} as data", install)


_REQUIRES_GRAD: Any = vars(torch._C.TensorBase)["requires_grad"]


class Watched(torch.Tensor):
    """A tensor of which it is noted when `requires_grad` is set, if it is a weight: if it has a name."""

    qualified_name: str | None

    @property
    def requires_grad(self) -> bool:
        """Whether autograd shall find a gradient."""
        return _REQUIRES_GRAD.__get__(self)  # type: ignore[no-any-return]

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        _REQUIRES_GRAD.__set__(self, wanted)
        if self.qualified_name is not None:
            CHANGES.note()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """The same tensor, with `requires_grad` as told."""
        self.requires_grad = requires_grad
        return self


def share_hooks(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """Have a tensor's gradient go through the hooks of another's: those tables, so that handles work on."""
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        table = getattr(other, name, None)
        if table:
            setattr(tensor, name, table)


def set_in_place(kind: type[torch.Tensor]) -> Effect:
    """A parametrization that is registered puts its own value into such a tensor.

    Of subclasses torch swaps the objects instead, which it refuses where something refers to one weakly.
    """

    def change(maybe_set: Callable[..., Any]) -> Callable[..., Any]:
        def set_or_put(dest: torch.Tensor, src: torch.Tensor) -> None:
            if isinstance(dest, kind):
                dest.data = src
            else:
                maybe_set(dest, src)

        return set_or_put

    return Effect("parametrizations set tensors", lambda: replace_in(vars(parametrize), "_maybe_set", change))


# Whether this torch refuses subclasses that branches and loops take from around them: before 2.13.
BRANCHES_REFUSE = "is_traceable_wrapper_subclass" not in _branches._collect_fake_inputs.__code__.co_names


def captured_by_branches(kind: type[torch.Tensor]) -> Effect:
    """Branches and loops may use such tensors from around them, where they refuse subclasses."""

    def change(fakes_of: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def with_inner_ones(inputs: Sequence[Any]) -> list[Any]:
            found: list[Any] = []
            for given in inputs:
                value = getattr(getattr(given, "node", given), "meta", {}).get("example_value")
                inner = value.__tensor_flatten__()[0] if isinstance(value, kind) else None  # type: ignore[attr-defined]
                found += fakes_of([given]) if inner is None else [getattr(value, name) for name in inner]
            return found

        return with_inner_ones

    return Effect(
        f"{kind.__name__} in branches", lambda: replace_in(vars(_branches), "_collect_fake_inputs", change)
    )


def given_to_graphs(kind: type[torch.Tensor], plain: Callable[[Any], Any]) -> tuple[Effect, ...]:
    """Ops that call graphs take `plain(arguments)`: few of them know of subclasses, and loops refuse them."""

    def take(call: Callable[..., Any]) -> Callable[..., Any]:
        def with_plain(op: Any, /, *args: Any, **kwargs: Any) -> Any:
            return call(op, *plain(args), **plain(kwargs))

        return with_plain

    def look_inside(storages_of: Callable[[Any], set[Any]]) -> Callable[[Any], set[Any]]:
        def storages(tensor: Any) -> set[Any]:
            inner = tensor.__tensor_flatten__()[0] if isinstance(tensor, kind) else ()  # type: ignore[attr-defined]
            found = [storages_of(getattr(tensor, name)) for name in inner]
            return set().union(*found) if inner else storages_of(tensor)

        return storages

    return (
        Effect(f"{kind.__name__} for graphs", lambda: replace_method(HigherOrderOperator, "__call__", take)),
        Effect(
            f"memory of {kind.__name__}",
            lambda: replace_in(vars(_captured), "get_tensor_storages", look_inside),
        ),
    )


def allow_foreach(kind: type[torch.Tensor]) -> Effect:
    """Optimizers and clipping work on lists of such tensors where they do so with plain ones."""

    def install() -> Undo:
        lists = [
            kinds
            for kinds in (_optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types)
            if kind not in kinds
        ]
        for kinds in lists:
            kinds.append(kind)

        def undo() -> bool:
            for kinds in lists:
                if kind in kinds:
                    kinds.remove(kind)
            return True

        return undo

    return Effect(f"lists of {kind.__name__}", install)
