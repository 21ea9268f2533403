"""What a tensor subclass without memory of its own relies on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.variables import higher_order_ops
from torch._ops import HigherOrderOperator
from torch.utils._pytree import tree_map_only

from tpfx.torch_internals import wrapper_subclass
from tpfx.torch_internals.fake import FakeTensorMode
from tpfx.torch_internals.module_changes import CHANGES


class Plain(Tensor):
    """The least that a wrapper needs."""

    __torch_function__ = wrapper_subclass.without_torch_function
    seen: list[str]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(str(func))
        return torch.zeros(3)


def wrapper(**given: Any) -> Any:
    Plain.seen = []
    return wrapper_subclass.make_wrapper_subclass(Plain, (2, 3), **given)


def test_a_wrapper_has_a_shape_and_a_stride_but_no_memory() -> None:
    made = wrapper(strides=(1, 2), dtype=torch.float64, device=torch.device("meta"), requires_grad=True)
    assert (made.shape, made.stride(), made.dtype) == (torch.Size([2, 3]), (1, 2), torch.float64)
    assert made.requires_grad and made.device.type == "meta"


def test_without_torch_function_ops_go_straight_to_dispatch() -> None:
    made = wrapper(dtype=torch.float32)
    torch.add(made, 1)
    assert Plain.seen == ["aten.add.Tensor"]


def test_data_goes_through_detach() -> None:
    made = wrapper(dtype=torch.float32)
    assert made.data is not made
    assert Plain.seen == ["aten.detach.default"]


def test_a_tensor_of_its_own_is_no_view_for_who_asks_in_python() -> None:
    """Autograd does not ask there, and follows the view."""

    class Own(wrapper_subclass.OfItsOwn):
        pass

    base = torch.ones(3, 4, requires_grad=True)
    for kind, is_view in ((Tensor, True), (Own, False)):
        view = (base * 1).as_subclass(kind)[1:]
        assert (view._is_view(), view._base is not None) == (is_view, is_view)
    view.mul_(2).sum().backward()
    assert base.grad.sum() == 16


def test_is_param_makes_a_parameter() -> None:
    made = wrapper(dtype=torch.float32)
    assert not isinstance(made, nn.Parameter)
    made._is_param = True
    assert isinstance(made, nn.Parameter)


def test_set_data_takes_over_the_dtype() -> None:
    one, other = wrapper(dtype=torch.float32), wrapper(dtype=torch.float64)
    wrapper_subclass.set_data(one, other)
    assert one.dtype == torch.float64


def test_conversions_of_a_module_go_through_apply() -> None:
    module, seen = nn.Linear(2, 2), []
    # type: ignore[method-assign]
    module._apply = lambda fn, recurse=True: seen.append(fn(module.weight).dtype)
    module.half()
    module.to(torch.float64)
    assert seen == [torch.float16, torch.float64]


def test_views_and_in_place_ops_are_told_by_their_schemas() -> None:
    aten = torch.ops.aten
    assert aten.slice.Tensor.is_view and aten.detach.default.is_view and not aten.clone.default.is_view
    assert (
        torch.Tag.inplace_view in aten.t_.default.tags and torch.Tag.inplace_view in aten.resize_.default.tags
    )
    assert aten.copy_.default._schema.arguments[0].alias_info.is_write
    assert torch.Tag.nondeterministic_seeded in aten.bernoulli.default.tags


def test_foreach_is_allowed_for_a_kind_of_tensor() -> None:
    """Without it, clipping and optimizers fall back to a loop, in silence; on CPU, clipping shows it."""
    from torch.optim.optimizer import _foreach_supported_types as first
    from torch.utils._foreach_utils import _foreach_supported_types as second
    from torch.utils._foreach_utils import _has_foreach_support

    cpu = torch.device("cpu")
    assert not _has_foreach_support([torch.nn.Parameter(torch.ones(1))], cpu)
    tensor = wrapper(dtype=torch.float32, device=cpu)
    assert not _has_foreach_support([tensor], cpu)
    undo, again = (wrapper_subclass.allow_foreach(type(tensor)).install() for _ in range(2))
    assert _has_foreach_support([tensor], cpu)
    assert all(kinds.count(type(tensor)) == 1 for kinds in (first, second))
    assert again() and _has_foreach_support([tensor], cpu)  # it had changed nothing
    assert undo() and not any(type(tensor) in kinds for kinds in (first, second))


def test_requires_grad_of_a_weight_is_noted() -> None:
    watched = torch.ones(2).as_subclass(wrapper_subclass.Watched)
    for name, noted in ((None, 0), ("weight", 1)):
        watched.qualified_name = name
        before = CHANGES.number()
        watched.requires_grad = True
        assert watched.requires_grad and CHANGES.number() == before + noted
        assert not watched.requires_grad_(False).requires_grad and CHANGES.number() == before + 2 * noted


def test_parametrizations_set_tensors_of_a_kind() -> None:
    class Halved(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w / 2

        def right_inverse(self, w: Tensor) -> Tensor:
            return w * 2

    seen: list[Tensor] = []

    class Kind(Tensor):
        @property
        def data(self) -> Tensor:
            return self

        @data.setter
        def data(self, value: Tensor) -> None:
            seen.append(value)

    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Kind))
    undo = wrapper_subclass.set_in_place(Kind).install()
    nn.utils.parametrize.register_parametrization(layer, "weight", Halved())
    assert undo() and len(seen) == 1


def test_branches_see_what_is_inside_of_a_kind_of_tensor() -> None:
    class Kind(Tensor):
        inner: Tensor

        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return ["inner"], None

    kind = torch.ones(2).as_subclass(Kind)
    graph = torch.fx.Graph()
    with FakeTensorMode():
        kind.inner, plain = torch.ones(3), torch.ones(4)
    nodes = [graph.placeholder(name) for name in "ab"]
    nodes[0].meta["example_value"], nodes[1].meta["example_value"] = kind, plain
    undo = wrapper_subclass.captured_by_branches(Kind).install()
    try:
        found = torch._higher_order_ops.utils._collect_fake_inputs([*nodes, 7])
    finally:
        undo()
    assert found[0] is kind.inner and found[1] is plain and found[2] == 7
    assert (torch.__version__ < "2.13") == wrapper_subclass.BRANCHES_REFUSE


def test_hooks_of_a_tensor_are_shared_with_another() -> None:
    one, other = (torch.ones(1, requires_grad=True) for _ in range(2))
    handle = one.register_hook(lambda gradient: gradient * 3)
    seen: list[Tensor] = []
    one.register_post_accumulate_grad_hook(seen.append)
    wrapper_subclass.share_hooks(other, one)
    (other * 2).backward()
    assert other.grad.tolist() == [6] and seen == [other]
    handle.remove()
    (other * 2).backward()
    assert other.grad.tolist() == [8]


def test_a_kind_of_tensor_is_assigned_as_data_in_another_way() -> None:
    """Dynamo, and whoever reads `data`, notices nothing."""
    undo = wrapper_subclass.as_data(Plain, lambda value: torch.full(value.shape, 7.0)).install()
    try:
        plain = nn.Parameter(torch.zeros(2, 3))
        plain.data = wrapper(dtype=torch.float32)
        assert plain.data.tolist() == [[7] * 3] * 2
        plain.data = torch.ones(2, 3)
        compiled = torch.compile(lambda x: x.data + 1, backend="eager", fullgraph=True)
        assert compiled(plain).tolist() == [[2] * 3] * 2
    finally:
        assert undo()
    assert "data" not in vars(Tensor)


def test_views_are_told_in_cpp() -> None:
    whole = torch.ones(3, requires_grad=True) * 1
    assert wrapper_subclass.is_view(whole[1:]) and not wrapper_subclass.is_view(whole)


def test_memory_that_is_not_there_is_not_written_to() -> None:
    made = wrapper(dtype=torch.float32)
    wrapper_subclass.unreadable(made)
    with pytest.raises(RuntimeError, match="Cannot access data pointer"):
        Tensor.data_ptr(made)


def test_what_aotautograd_traces_is_functional() -> None:
    from functorch.compile import aot_function, nop

    seen: list[bool] = []
    aot_function(lambda x: seen.append(wrapper_subclass.is_functional(x)) or x * 2, nop)(torch.ones(2))
    assert seen[-1] and not wrapper_subclass.is_functional(torch.ones(2))


class Doubled(HigherOrderOperator):
    def __init__(self) -> None:
        super().__init__("tpfx_doubled")
        self.py_impl(torch._C.DispatchKey.CompositeExplicitAutograd)(lambda given: given[0] * 2)
        self.fallthrough(torch._C.DispatchKey.AutogradCPU)

    def __call__(self, given: Any) -> Any:
        return super().__call__(given)


def test_ops_that_call_graphs_are_given_plain_tensors() -> None:
    """Without it such an op refuses a subclass of which it does not know, and so does a loop in Dynamo."""
    tensor, doubled = wrapper(dtype=torch.float32), Doubled()
    storages = vars(higher_order_ops)["get_tensor_storages"]

    def plain(arguments: Any) -> Any:
        return tree_map_only(type(tensor), lambda _: torch.ones(2, 3), arguments)

    with pytest.raises(NotImplementedError, match="no rule registered"):
        doubled((tensor,))
    undo = [effect.install() for effect in wrapper_subclass.given_to_graphs(type(tensor), plain)]
    assert torch.equal(doubled((tensor,)), torch.full((2, 3), 2.0))
    assert vars(higher_order_ops)["get_tensor_storages"](torch.ones(1)) and storages(torch.ones(1))
    assert all(one() for one in undo)
    assert vars(higher_order_ops)["get_tensor_storages"] is storages
    with pytest.raises(NotImplementedError, match="no rule registered"):
        doubled((tensor,))
