"""What tpfx expects of AOTAutograd."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch._library import simple_registry
from torch.fx import node as fx_node

from tpfx.torch_internals import aot
from tpfx.torch_internals.fake import FakeTensorMode


def test_aot_module_simplified_hands_over_an_aten_graph() -> None:
    seen: list[str] = []

    def compiler(module: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")

        return aot_compiled(module)

    def backend(module: Any, inputs: Any) -> Any:
        return aot.aot_module_simplified(
            module,
            inputs,
            fw_compiler=compiler,
            bw_compiler=compiler,
            inference_compiler=compiler,
            keep_inference_input_mutations=True,
        )

    with torch.no_grad():
        result = torch.compile(lambda x: torch.relu(x + 1), backend=backend)(torch.ones(3))
    assert seen == ["aten.add.Tensor", "aten.relu.default"]
    assert torch.equal(result, torch.full((3,), 2.0))


def test_decompositions_and_prims_as_ops_of_aten() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    prims, aten = torch.ops.prims, torch.ops.aten
    assert torch.equal(aot.DECOMPOSITIONS[aten.mse_loss.default](x, x + 2), torch.tensor(4.0))
    assert torch.equal(aot.DECOMPOSITIONS[prims.where.default](x > 1, x, -x), torch.tensor([-1.0, 2.0, 4.0]))
    assert torch.equal(aot.DECOMPOSITIONS[prims.rev.default](x, [0]), x.flip(0))


def test_composite_ops_consist_of_others() -> None:
    aten = torch.ops.aten
    assert aot.is_composite(aten.where.ScalarOther) and aot.is_composite(aten.matmul.default)
    assert not any(
        map(aot.is_composite, (aten.where.self, aten.rot90.default, torch.ops.prims.where.default))
    )


def test_checks_of_matrices_are_ops_without_tokens() -> None:
    seen: list[str] = []

    def compiler(module: Any, inputs: Any) -> Any:
        seen.extend(f"{node.op} {node.target}" for node in module.graph.nodes)
        return aot_compiled(module)

    def backend(module: Any, inputs: Any) -> Any:
        return aot.aot_module_simplified(module, inputs, fw_compiler=compiler, inference_compiler=compiler)

    def impure() -> tuple[bool, Any]:
        check = torch.ops.aten._linalg_check_errors.default
        effect = simple_registry.singleton.find(check._name).effect.effect
        return check in fx_node._side_effectful_functions, effect

    before = impure()
    with torch.no_grad():
        torch.compile(lambda x: torch.linalg.inv(x), backend=backend)(torch.eye(2))
    assert sum(one.startswith("placeholder") for one in seen) == 1
    assert "call_function aten._linalg_check_errors.default" in seen
    assert impure() == before


def aot_compiled(module: Any) -> Any:
    def run(args: list[Any]) -> Any:
        result = module.forward(*args)
        args.clear()
        return result

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def test_a_joint_graph_is_parted_and_its_nodes_keep_their_names_and_notes() -> None:
    seen: list[set[str]] = []

    def partition(joint: Any, inputs: Any, *, num_fwd_outputs: int, **options: Any) -> Any:
        placeholders = [node.target for node in joint.graph.find_nodes(op="placeholder")]
        assert placeholders == ["primals_1", "primals_2", "tangents_1"]
        assert len(joint.graph.output_node().args[0]) == num_fwd_outputs + 2  # a gradient for each input
        for node in joint.graph.nodes:
            node.meta["note"] = node.name
        parts = aot.min_cut_rematerialization_partition(
            joint, inputs, num_fwd_outputs=num_fwd_outputs, **options
        )
        for part in parts:
            inner = [node for node in part.graph.nodes if node.op == "call_function"]
            assert inner and all(node.meta["note"] == node.name for node in inner)
            seen.append({node.name for node in inner})
        return parts

    def compiler(module: Any, inputs: Any) -> Any:
        def run(args: list[Any]) -> Any:
            return module.forward(*args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(module: Any, inputs: Any) -> Any:
        return aot.aot_module_simplified(
            module, inputs, fw_compiler=compiler, bw_compiler=compiler, partition_fn=partition
        )

    x, y = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
    torch.compile(lambda x, y: (x * y).exp(), backend=backend)(x, y).sum().backward()
    assert len(seen) == 2
    torch.testing.assert_close(x.grad, 2 * torch.full((3,), 2.0).exp())


def test_results_that_stand_for_views_are_known() -> None:
    from torch._functorch import aot_autograd

    found = []

    def compiler(module: torch.fx.GraphModule, _: Any) -> Any:
        found.append(aot.aliased_outputs())
        return aot_autograd.make_boxed_func(module.forward)

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        return aot.aot_module_simplified(module, inputs, compiler, inference_compiler=compiler)

    def function(x: torch.Tensor) -> Any:
        return x + 1, x[:, 1:], x

    torch.compile(function, backend=backend)(torch.ones(2, 3))
    assert found == [frozenset({1})]
    assert aot.aliased_outputs() == frozenset()


def test_what_draws_stays_while_graphs_are_made() -> None:
    seen: list[str] = []

    def compiler(module: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return aot_eager(module)

    def aot_eager(module: Any) -> Any:
        def run(args: list[Any]) -> Any:
            return module.forward(*args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(module: Any, inputs: Any) -> Any:
        with aot.drawing_as_eager({torch.ops.aten.sin.default}):
            assert torch._inductor.config.fallback_random
            given = {"fw_compiler": compiler, "bw_compiler": compiler, "inference_compiler": compiler}
            return aot.aot_module_simplified(module, inputs, **given)

    def forward(x: torch.Tensor) -> torch.Tensor:
        torch.rand(3), x.sin(), x.cos()
        return x + 1

    with torch.no_grad():
        torch.compile(forward, backend=backend)(torch.ones(3))
    assert seen == ["aten.rand.default", "aten.sin.default", "aten.add.Tensor"]
    assert not torch._inductor.config.fallback_random
    assert torch.ops.aten.sin.default not in torch.fx.node._side_effectful_functions


def test_torch_leaves_out_dropout_between_recurrent_layers() -> None:
    net, x = torch.nn.RNN(4, 4, 3, dropout=0.5), torch.randn(5, 2, 4)
    given = x, torch.zeros(3, 2, 4), list(net.parameters()), True, 3, 0.5, True, False, False
    traced = torch._decomp.decomposition_table[torch.ops.aten.rnn_tanh.input]
    found = []
    for context in (aot.drawing_as_eager(()), nullcontext()):
        with context, torch.no_grad():
            torch.manual_seed(3)
            found.append(traced(*given)[0])
    torch.manual_seed(3)
    torch.testing.assert_close(found[0], net(x)[0])
    assert not torch.allclose(found[1], net(x)[0])


def _differentiable(function: Any, *args: Any) -> tuple[Any, Any]:
    """What a function returns that AOTAutograd has compiled, and its notes on it."""
    from torch._functorch import aot_autograd

    found: list[Any] = []

    def compiler(module: torch.fx.GraphModule, _: Any) -> Any:
        found.append(aot.notes_now())
        return aot_autograd.make_boxed_func(module.forward)

    def backend(module: Any, inputs: Any) -> Any:
        return aot.aot_module_simplified(module, inputs, fw_compiler=compiler, bw_compiler=compiler)

    results = torch.compile(function, backend=backend)(*args)
    return results, found[0]


def _several(x: torch.Tensor, y: torch.Tensor, count: torch.Tensor) -> Any:
    count.add_(1)
    z, total = x * y, x + y
    return z.exp(), x.view(-1), total[:1], z.detach(), total[1:]


def test_the_node_and_the_gradients_of_a_graph_are_known() -> None:
    x, y = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    results, notes = _differentiable(_several, x, y, torch.zeros(()))
    node = aot.node_of_graph(results, notes)
    assert node is not None and node is results[0].grad_fn
    assert aot.node_of_graph(results[1:2], notes) is None  # a view of an input
    assert aot.node_of_graph(results[2:3], notes) is node  # a view of what the graph has made
    assert aot.written_inputs(notes) == {0}  # the first that is used
    seen: list[Any] = []
    node.register_hook(lambda _, given: seen.append([value is not None for value in given]))
    aot.keep_saved(notes)
    for at in (0, 2, 4):
        results[at].sum().backward(retain_graph=True)
    tangents = aot.tangents_of(notes)
    assert [(one.result, one.of_base) for one in tangents] == [(0, False), (4, True)]
    found = [[given[one.position] for one in tangents] for given in seen]
    assert found == [[True, False], [False, True], [False, True]]


def test_a_graph_that_is_lowered_alone_has_notes_too() -> None:
    mode = FakeTensorMode()
    with mode:
        x = torch.ones(3, requires_grad=True)
    found: list[Any] = []

    def compiler(module: torch.fx.GraphModule, _: Any) -> Any:
        found.append(aot.notes_now())
        return module.forward

    class Pair(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x.tanh(),)

    with aot.tracing_alone(mode):
        aot.aot_module_simplified(Pair(), [x], fw_compiler=compiler, bw_compiler=compiler)
    assert [len(notes.output_info) for notes in found] == [1]
    assert aot.notes_now() is None and aot.Notes is not None and aot.Tangent(0, None).result is None


def test_the_partitioner_merges_equal_calls_unless_told_not_to() -> None:
    config = torch._functorch.config
    assert config.cse is True
    with aot.keeping_repetitions():
        assert config.cse is False
    assert config.cse is True


def test_gradients_in_batches_are_known() -> None:
    x, seen = torch.ones(2, requires_grad=True), []
    y = x.exp()
    y.register_hook(lambda gradient: seen.append(aot.in_batches()))
    torch.autograd.grad(y, x, torch.ones(3, 2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y.sum(), x)
    assert seen == [True, False]


def test_what_torch_func_transforms_is_known_inside_of_it() -> None:
    seen = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(aot.in_transform())
        return x.sum()

    note(torch.ones(2))
    torch.func.grad(note)(torch.ones(2))
    with torch.autograd.forward_ad.dual_level():
        note(torch.ones(2))
    note(torch.ones(2))
    assert seen == [False, True, True, False]
