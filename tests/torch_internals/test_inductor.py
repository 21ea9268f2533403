"""TorchInductor on one graph; what torch's allocator and generators are after a capture that failed."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from tpfx.errors import RecordingError
from tpfx.execution.cuda_graphs import CudaGraphs
from tpfx.torch_internals import fake, inductor


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("cpp_wrapper", [False, True])
def test_inductor_compiles_a_graph_whose_sizes_vary(cpp_wrapper: bool) -> None:
    """Python functions as targets are traced through; the code runs for other sizes too."""
    shapes = ShapeEnv()
    mode = fake.FakeTensorMode(shape_env=shapes)
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    like = mode.from_tensor(torch.zeros(3, 4), symbolic_context=context)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(lambda value: value.sin() + 1, (x,)),))
    run = inductor.compile_by_inductor(torch.fx.GraphModule({}, graph), [like], mode, cpp_wrapper)
    for rows in (3, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(run(x)[0], x.sin() + 1)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_inductor_calls_the_linear_of_onednn() -> None:
    """From C++, with a weight that is an input; the op itself computes the same."""
    from torch._inductor.utils import run_and_get_code

    linear = inductor.linear_for_inductor()
    mode = fake.FakeTensorMode(shape_env=ShapeEnv())
    graph = torch.fx.Graph()
    product = graph.call_function(linear, (graph.placeholder("x"), graph.placeholder("weight")))
    graph.output((graph.call_function(torch.ops.aten.relu.default, (product,)),))
    x, weight = torch.randn(2, 3, 8), torch.randn(6, 8)
    fakes = [mode.from_tensor(x), mode.from_tensor(weight)]
    module = torch.fx.GraphModule({}, graph)
    with torch._inductor.config.patch(fx_graph_cache=False):  # what is found there has no code to look at
        run, code = run_and_get_code(inductor.compile_by_inductor, module, fakes, mode, True)
    expected = torch.nn.functional.linear(x, weight)
    torch.testing.assert_close(run(x, weight)[0], expected.relu())
    torch.testing.assert_close(linear(x, weight), expected)
    assert any("aoti_torch_cpu__linear_pointwise(" in text for text in code)


def test_a_device_whose_allocator_records_nothing_is_left_alone() -> None:
    """Of builds without CUDA only the name can be seen."""
    assert callable(torch.cuda.memory._cuda_endAllocateToPool)
    assert callable(inductor.end_failed_capture)


def test_workspaces_are_cleared_around_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Inductor does; of builds without CUDA only that can be seen."""
    from torch._inductor import cudagraph_trees

    cleared = list[str]()
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: cleared.append("yes"), raising=False)
    for around in (cudagraph_trees.clear_cublas_manager, inductor.own_cublas_workspaces):
        before = len(cleared)
        with pytest.raises(ValueError, match="inside"), around():
            assert len(cleared) == before + 1
            raise ValueError("inside")
        assert len(cleared) == before + 2


@pytest.mark.cuda
def test_after_a_failed_capture_all_is_as_before() -> None:
    graphs, x = CudaGraphs(torch.device("cuda:0")), torch.ones(1000, 1000, device="cuda:0")
    for _ in range(2):
        with pytest.raises(RecordingError, match="captur"):
            graphs.record(lambda: [[(x + 1).sum().item()]])
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(torch.nn.functional.dropout(x, 0.5))
    assert torch.equal(*found)
    before = torch.cuda.memory_allocated()
    for _ in range(20):  # given back, though another stream has used it
        other = torch.cuda.Stream()
        y = torch.ones(1 << 22, device="cuda:0")
        y.record_stream(other)
        del y
        torch.cuda.synchronize()
    torch.ones(1, device="cuda:0")
    assert torch.cuda.memory_allocated() < before + (1 << 26)
    recording = graphs.record(lambda: [[x * 2]])
    recording.replay()
    assert torch.equal(recording.results[0][0], x * 2)
