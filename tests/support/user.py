"""What a user writes who calls everything that tpfx has: mypy reads it, strictly, and nobody runs it.

`make lint` has it read beside the package, `make package` beside the installed wheel, whose types are seen by
`py.typed`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import tpfx


def split(model: nn.Linear, devices: list[str]) -> nn.Linear:
    """The type of the model is kept."""
    made: nn.Linear = tpfx.compile(model, devices, example_inputs=(torch.randn(2, 4),), timeout=30.0)
    loaded: nn.Linear = tpfx.load(model, Path("checkpoint"), 2, progress=False)
    plain: nn.Linear = tpfx.unshard(loaded, "cpu")
    return made if plain is model else loaded


def planned(model: nn.Module) -> tuple[int, float]:
    """What a plan says, in numbers."""
    cluster = tpfx.Topology(bandwidth=50e9)
    plan: tpfx.Plan = tpfx.plan(model, 8, (torch.randn(2, 4),), phase="train", topology=cluster)
    plan.save("plan.json")
    again = tpfx.Plan.load(Path("plan.json"))
    return max(again.bytes_per_device), sum(graph.estimate.seconds for graph in plan.graphs)


def reported(model: nn.Module) -> list[str]:
    """What a report says, in words."""
    report: tpfx.Report = tpfx.report(model)
    first: tpfx.Collective = report.collectives[0]
    held: list[int] = report.bytes_per_device
    return [f"{first.kind} of {first.bytes} bytes", *report.whole_ops, str(sum(held)), report.dump()]


def profiled(model: nn.Module) -> list[float]:
    """Where the time went."""
    one: tpfx.Profile = tpfx.profile(model, torch.randn(2, 4))
    with tpfx.profile(model) as profile:
        model(torch.randn(2, 4)).sum().backward()
    profile.export_chrome_trace(Path("trace.json"))
    profile.save("profile.json")
    waiting = {layer.module: max(layer.waiting) for layer in profile.layers}
    return [one.seconds, profile.compiling, *(rank.outside for rank in one.ranks), *waiting.values()]


def asked(model: nn.Module) -> int:
    """What one weight reaches."""
    graph = tpfx.graph(model, 2, (torch.randn(2, 4),), phase="prefill", topology=tpfx.Topology())
    return len(list(graph.successors("weight")))


def gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights, whole."""
    weight = model.get_parameter("weight")
    if isinstance(weight, tpfx.ShardedTensor):
        whole: torch.Tensor = weight.full()
        assert whole.shape == weight.shape
    return dict(tpfx.full_state_dict(model))


def ruled(op: object) -> int:
    """A rule for an op, and how many splits of it were tried."""
    tpfx.register_rule(op, "... d, d -> ... d", linear=((0,), (1,)))
    try:
        return tpfx.check_rule(op, torch.randn(4, 6), torch.randn(6))
    except tpfx.UntrueRuleError:
        return 0
    except tpfx.RuleError as error:
        raise SystemExit(str(error)) from error


def tried(model: nn.Module) -> str | None:
    """Which error a call ends with: the narrow ones first."""
    try:
        tpfx.compile(model)(torch.randn(2, 4))
    except (tpfx.AlreadyCompiledError, tpfx.ModelError, tpfx.InputError) as error:
        return f"the model: {error}"
    except (tpfx.DeviceError, tpfx.DeviceCompilerError) as error:
        return f"the devices: {error}"
    except (tpfx.CollectiveTimeout, tpfx.CollectiveError, tpfx.WorkerError) as error:
        return f"the others: {error}"
    except (tpfx.PlanError, tpfx.FileError, tpfx.ShardingError) as error:
        return f"the split: {error}"
    except tpfx.TpfxError as error:
        return f"something else: {error}"
    return None
