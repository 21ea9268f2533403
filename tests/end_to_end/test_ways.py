"""Ways in which people use models, each from a report on a public tracker: `ways.md` lists them.

A way is a function of a model; what it returns of the split model is what it returns of the unsharded one.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import tpfx
from tests.support.autograd import split
from tests.support.compare import largest_error
from tests.support.nets import Net
from tests.support.sharded import CPUS, whole

Way = Callable[[Any], Any]

LIBRARIES = Path(__file__).with_name("test_ways_of_libraries.py")


def batch(seed: int = 5, rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, *seeds: int) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        model(batch(seed)).pow(2).mean().backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def now(values: Any) -> Any:
    """What tensors are now, plain and of their own memory."""
    if isinstance(values, torch.Tensor):
        return whole(values).detach().clone()
    if isinstance(values, dict):
        return {name: now(value) for name, value in values.items()}
    return [now(value) for value in values] if isinstance(values, (list, tuple)) else values


def weights(model: nn.Module) -> Any:
    return now(dict(model.state_dict()))


def gradients(model: nn.Module) -> Any:
    return now([weight.grad for weight in model.parameters()])


def plain_parts(values: Any) -> Any:
    """What is no tensor."""
    if isinstance(values, dict):
        return {name: plain_parts(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [plain_parts(value) for value in values]
    return None if isinstance(values, torch.Tensor) else values


def moving_average(model: Any) -> Any:
    """diffusers' EMA: copied in for an evaluation, and out again, one by one and as lists."""
    weighted = list(model.parameters())
    shadow = [weight.detach().clone() for weight in weighted]
    steps(model, sgd(model), 1)
    for one, weight in zip(shadow, weighted, strict=True):
        one.sub_(0.1 * (one - weight.detach()))
    stored = [weight.detach().cpu().clone() for weight in weighted]
    for one, weight in zip(shadow, weighted, strict=True):
        weight.data.copy_(one.data)
    seen = now(model(batch()))
    torch._foreach_copy_([weight.data for weight in weighted], [one.to(CPUS[0]).data for one in stored])
    return seen, weights(model), now(shadow)


def averaged_model(model: Any) -> Any:
    average = torch.optim.swa_utils.AveragedModel(model)
    for seed in range(2):
        steps(model, sgd(model), seed)
        average.update_parameters(model)
    return average(batch()), weights(average.module)


def learning_rates_tried(model: Any) -> Any:
    """A finder of learning rates: from one snapshot, again and again."""
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    snapshot, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    found = []
    for rate in (1e-3, 1e-1):
        model.load_state_dict(snapshot)
        optimizer.load_state_dict(state)
        optimizer.param_groups[0]["lr"] = rate
        steps(model, optimizer, 1, 2)
        found.append(now(model(batch())))
    return found


def line_search(model: Any) -> Any:
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = (model(batch()) - 1).pow(2).mean()
        loss.backward()
        return loss

    return optimizer.step(closure), weights(model)


def two_backwards_a_step(model: Any) -> Any:
    """Sharpness-aware: up the gradient, a second gradient there, back."""
    optimizer = sgd(model)
    model(batch(1)).pow(2).mean().backward()
    norm = torch.stack([weight.grad.norm() for weight in model.parameters()]).norm()
    before = {weight: weight.data.clone() for weight in model.parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(weight.grad * (0.05 / norm))
    optimizer.zero_grad()
    model(batch(1)).pow(2).mean().backward()
    for weight in model.parameters():
        weight.data = before[weight]
    optimizer.step()
    return norm, weights(model)


def decay_by_name(model: Any) -> Any:
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for name, weight in model.named_parameters() if "bias" in name or "norm" in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    for seed in range(2):
        steps(model, optimizer, seed)
        rates.step()
    return weights(model), rates.get_last_lr()


def frozen_in_turns(model: Any) -> Any:
    """Lightning's toggle_optimizer: what was wanted is noted by parameter, and given back."""
    wanted = {weight: weight.requires_grad for weight in model.parameters()}
    optimizer = sgd(model)
    model.up.requires_grad_(False)
    steps(model, optimizer, 1)
    for weight in model.parameters():
        weight.requires_grad = wanted[weight]
    steps(model, optimizer, 2)
    return weights(model)


def unfrozen_into_a_group(model: Any) -> Any:
    model.up.requires_grad_(False)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], 0.01)
    steps(model, optimizer, 1)
    model.up.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.up.parameters()), "lr": 0.001})
    steps(model, optimizer, 2, 3)
    return weights(model)


def rows_kept(model: Any) -> Any:
    """Textual inversion: of a table some rows learn, the others are written back after each step."""
    before, learns = model.up.weight.data.clone(), torch.arange(24) >= 20
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    model.up.weight.register_hook(lambda gradient: gradient * learns[:, None])
    for seed in range(2):
        steps(model, optimizer, seed)
        with torch.no_grad():
            model.up.weight[~learns] = before[~learns]
    return weights(model), torch.equal(now(model.up.weight)[:20], now(before)[:20])


def stepped_in_backward(model: Any) -> Any:
    optimizers = {weight: torch.optim.SGD([weight], 0.1) for weight in model.parameters()}

    def step(weight: torch.Tensor) -> None:
        optimizers[weight].step()
        optimizers[weight].zero_grad()

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(step)
    for seed in range(2):
        model(batch(seed)).pow(2).mean().backward()
    return weights(model), [weight.grad is None for weight in model.parameters()]


def accumulated(model: Any) -> Any:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    data = DataLoader(TensorDataset(batch(1, 8)), batch_size=2)
    ready, optimizer, data, rates = accelerator.prepare(model, optimizer, data, rates)
    for (x,) in data:
        with accelerator.accumulate(ready):
            accelerator.backward(ready(x).pow(2).mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(ready.parameters(), 0.1)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
    same = accelerator.unwrap_model(ready) is model
    return now(dict(accelerator.get_state_dict(ready))), same, rates.get_last_lr()


def resumed(model: Any, folder: Path) -> Any:
    accelerator = Accelerator(cpu=True)
    ready, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 0.01))
    steps(ready, optimizer, 1)
    accelerator.save_state(str(folder))
    steps(ready, optimizer, 2, 3)
    accelerator.load_state(str(folder))
    steps(ready, optimizer, 4)
    return weights(model)


def gradients_surgery(model: Any) -> Any:
    flat = []
    for seed in range(2):
        model.zero_grad()
        model(batch(seed)).pow(2).mean().backward()
        flat.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    joint, at = flat[0] - flat[0] @ flat[1] / flat[1].norm() ** 2 * flat[1], 0
    for weight in model.parameters():
        weight.grad = joint[at : at + weight.numel()].view_as(weight).clone()
        at += weight.numel()
    torch.optim.Adam(model.parameters(), 0.01).step()
    return joint, weights(model)


def penalty_of_weights(model: Any) -> Any:
    model(batch())
    gram = model.up.weight.T @ model.up.weight
    loss = model(batch()).pow(2).mean() + 0.1 * sum(weight.pow(2).sum() for weight in model.parameters())
    (loss + (gram - torch.eye(8)).norm()).backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.5)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=float("inf"))
    return norm, gradients(model)


def weights_begun_anew(model: Any) -> Any:
    """The random numbers of every initializer are those that the unsharded model gets."""
    model(batch())
    nn.init.orthogonal_(model.up.weight)
    model.down.reset_parameters()
    model.norm.reset_parameters()
    nn.init.trunc_normal_(model.down.bias, std=0.02)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return weights(model), model(batch()), torch.rand(2)


def pruned(model: Any) -> Any:
    model(batch())
    layers = [(model.up, "weight"), (model.down, "weight")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.3)
    seen = now(model(batch()))
    for layer, name in layers:
        prune.remove(layer, name)
    return seen, model(batch()), weights(model)


def merged(model: Any) -> Any:
    """Two models' average, a soft update of a plain target, and as one vector."""
    model(batch())
    other = Net(3)
    mean = {name: (value + other.state_dict()[name]) / 2 for name, value in model.state_dict().items()}
    model.load_state_dict(mean)
    for target, weight in zip(other.parameters(), model.parameters(), strict=True):
        target.data.mul_(0.9).add_(weight.data, alpha=0.1)
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 0.5, model.parameters())
    return vector, other(batch()), model(batch())


def looked_at(model: Any) -> Any:
    model(batch()).sum().backward()
    table = model.up.weight
    of_each = {name: weight.grad.norm().item() for name, weight in model.named_parameters()}
    sizes = [(weight.shape, weight.stride(), weight.nbytes, weight.is_leaf) for weight in model.parameters()]
    numbers = torch.tensor([of_each[name] for name in of_each])
    values = table.detach().flatten().quantile(0.3), torch.linalg.svdvals(table), table.abs().topk(3).values
    return numbers, values, torch.from_numpy(table.detach().cpu().numpy()), table.tolist()[3][:0], sizes


def an_optimizers_file(model: Any) -> Any:
    """An optimizer's state is read back, and by the optimizer of a plain model."""
    optimizer, file = torch.optim.AdamW(model.parameters(), 0.01), io.BytesIO()
    steps(model, optimizer, 1)
    torch.save(optimizer.state_dict(), file)
    for other in (model, Net(7)):
        file.seek(0)
        again = torch.optim.AdamW(other.parameters(), 0.5)
        again.load_state_dict(torch.load(file))
        steps(other, again, 2)
    return weights(model), weights(other)


def part_of_another(model: Any) -> Any:
    torch.manual_seed(3)
    larger = nn.Sequential(nn.Linear(8, 8), model, nn.ReLU(), nn.Linear(8, 2))
    steps(larger, torch.optim.Adam(larger.parameters(), 0.01), 1, 2)
    return weights(larger)


def many_threads(model: Any) -> Any:
    async def serve() -> list[torch.Tensor]:
        return list(await asyncio.gather(*(asyncio.to_thread(model, batch(seed)) for seed in range(4))))

    return asyncio.run(serve())


def called_otherwise(model: Any) -> Any:
    outputs = [functools.partial(model.forward, x=batch())(), *map(model, [batch(1), batch(2)])]
    errors = []
    for call in (lambda: model(), lambda: model(batch(), extra=1), lambda: model(y=batch())):
        with pytest.raises(TypeError) as raised:
            call()
        errors.append(type(raised.value).__name__)
    kept = now(outputs[0])
    outputs[0].detach().div_(2)
    return outputs, kept, model(batch(0, 0)), model(batch()[::2]), model(batch()[0]), errors


def every_mode(model: Any) -> Any:
    """A weight is looked at, changed and saved amid inference mode, and trains afterwards."""
    with torch.inference_mode():
        seen = [
            now(model(batch())),
            weights(model),
            now(model.up.weight[1:].T),
            now(model.up.weight.chunk(2)),
        ]
        model.down.weight.data.mul_(0.5)
    with torch.compiler.set_stance("default"), torch.autograd.set_detect_anomaly(False):
        steps(model, sgd(model), 1)
    with torch.autograd.graph.save_on_cpu():
        model(batch()).sum().backward()
    torch.compiler.reset()
    return seen, weights(model), gradients(model), model(batch())


def a_class_with_another_forward(model: Any) -> Any:
    """Kernels and patches that replace `forward` on the class are followed, there and back."""
    seen, before = [now(model(batch()))], Net.forward
    Net.forward = lambda self, x: before(self, x) + 1  # type: ignore[method-assign]
    try:
        seen.append(now(model(batch())))
    finally:
        Net.forward = before  # type: ignore[method-assign]
    return [*seen, model(batch())]


WAYS: list[Way] = [
    moving_average,
    averaged_model,
    learning_rates_tried,
    line_search,
    two_backwards_a_step,
    decay_by_name,
    frozen_in_turns,
    unfrozen_into_a_group,
    rows_kept,
    stepped_in_backward,
    accumulated,
    gradients_surgery,
    penalty_of_weights,
    weights_begun_anew,
    pruned,
    merged,
    looked_at,
    an_optimizers_file,
    part_of_another,
    many_threads,
    called_otherwise,
    every_mode,
    a_class_with_another_forward,
]


def same(way: Way, model: nn.Module, devices: int = 2) -> None:
    """A way gives the same of a model and of it split."""
    results = []
    for one in (copy.deepcopy(model), tpfx.compile(model, ["cpu"] * devices)):
        torch.manual_seed(11)
        results.append(way(one))
    expected, got = results
    assert largest_error(now(expected), now(got)) < 1e-4
    assert plain_parts(got) == plain_parts(expected)


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_way(way: Way, devices: int) -> None:
    same(way, Net().train(), devices)


def test_a_state_that_accelerate_saved_is_resumed(tmp_path: Path) -> None:
    same(lambda model: resumed(model, tmp_path), Net().train())


@pytest.mark.filterwarnings("ignore:Net ran whole:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # jvp's
def test_derivatives_of_torch_func_by_the_input() -> None:
    """Before any other call; the weights are as they were afterwards."""

    def derive(model: Any) -> Any:
        return torch.func.jacrev(model)(batch(1, 1)), *torch.func.jvp(model, (batch(),), (batch(2),))

    same(lambda model: [now(derive(model)), model(batch()), weights(model)], Net())


@pytest.mark.filterwarnings("ignore:Net ran whole:UserWarning")
def test_derivatives_of_torch_func_by_the_weights_are_refused() -> None:
    model = tpfx.compile(Net(), CPUS)
    expected = now(model(batch()))
    given = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(values: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, values, (x[None],)).sum()

    with pytest.raises(tpfx.ModelError, match=r"unshard\(copy.deepcopy\(model\)\)"):
        torch.vmap(torch.func.grad(loss), (None, 0))(given, batch())
    torch.testing.assert_close(now(model(batch())), expected)
    plain = tpfx.unshard(copy.deepcopy(model))
    given = {name: weight.detach() for name, weight in plain.named_parameters()}
    torch.func.grad(lambda values: torch.func.functional_call(plain, values, (batch(),)).sum())(given)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("door", ["compile", pytest.param("backend", marks=pytest.mark.slow)])
def test_derivatives_in_forward_mode_and_in_batches_are_refused(door: str) -> None:
    call = split(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), 2, door)
    forward = torch.autograd.forward_ad
    expected = now(call(batch()))
    with (
        pytest.raises(tpfx.ModelError, match=r"forward mode.*unshard\(copy.deepcopy\(model\)\)"),
        forward.dual_level(),
    ):
        call(forward.make_dual(batch(), batch(1)))
    with pytest.raises(tpfx.ModelError, match=r"gradients in batches.*one after the other"):
        torch.autograd.functional.jacobian(call, batch(), vectorize=True)
    if door == "compile":
        with pytest.raises(tpfx.ModelError, match=r"Sequential is split over 2 devices.*unshard"):
            torch.func.linearize(call, batch())
    torch.testing.assert_close(now(call(batch())), expected)


class Called(torch.utils.data.Dataset[torch.Tensor]):
    """Calls a model in the loader's worker."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 2

    def __getitem__(self, at: int) -> torch.Tensor:
        return self.model(batch(at)).detach()


@pytest.mark.skipif("fork" not in torch.multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_worker_is_told_that_the_threads_are_elsewhere() -> None:
    model = tpfx.compile(Net(), CPUS)
    model(batch())
    loader = DataLoader(Called(model), num_workers=1, timeout=60, multiprocessing_context="fork")
    with pytest.raises(tpfx.TpfxError, match="num_workers=0"):
        list(loader)
    assert len(list(DataLoader(Called(model)))) == 2


def test_the_table_has_every_way_and_no_other() -> None:
    text = Path(__file__).with_name("ways.md").read_text()
    named = set(re.findall(r"`(?:test_a_way\[)?(\w+)\]?` \|$", text, re.MULTILINE))
    here = {way.__name__ for way in WAYS} | {name for name in globals() if name.startswith("test_")}
    others = set(re.findall(r"^def (test_\w+)", LIBRARIES.read_text(), re.MULTILINE))
    missing = {"test_a_way", "test_the_table_has_every_way_and_no_other"}
    assert named == here - missing | others
