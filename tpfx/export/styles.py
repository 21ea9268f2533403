"""What other tools call the ways in which a module is split, and plans written for them.

    STYLES["hf-tp-plan"]["column"]               "colwise"
    STYLES["parallelize-module"]["column"]       "ColwiseParallel()"

A style that ends in " alone" is that of a module whose input and output are whole. Styles of transformers are
in `transformers.distributed.tensor_parallel`, those of torch in `torch.distributed.tensor.parallel`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

_WHOLE_IN, _WHOLE_OUT = "(input_layouts=Replicate())", "(output_layouts=Replicate())"

STYLES: dict[str, dict[str, str]] = {
    "hf-tp-plan": {
        "column": "colwise",
        "column alone": "colwise_gather_output",
        "row": "rowwise",
        "row alone": "rowwise_split_input",
        "vocabulary alone": "embedding_rowwise",
        "width alone": "embedding_colwise",
        "summed": "replicated_with_grad_allreduce",
        "whole": "replicate",
    },
    "parallelize-module": {
        "column": "ColwiseParallel()",
        "column alone": f"ColwiseParallel{_WHOLE_OUT}",
        "row": "RowwiseParallel()",
        "row alone": f"RowwiseParallel{_WHOLE_IN}",
        "vocabulary alone": f"RowwiseParallel{_WHOLE_IN}",
        "width alone": f"ColwiseParallel{_WHOLE_OUT}",
        "summed": "SumGradients()",
    },
}

_SUM_GRADIENTS = '''
class SumGradients(ParallelStyle):
    """A weight that every rank applies to its own shard: its gradient is the sum of theirs."""

    def _apply(self, module, device_mesh):
        def summed(gradient):
            total = gradient.clone()
            distributed.all_reduce(total, group=device_mesh.get_group())
            return total

        for weight in module.parameters(recurse=False):
            weight.register_hook(summed)
        return module

'''


def pattern_of(name: str) -> str:
    """A name with `*` for the numbers of layers, as transformers replaces them.

    >>> pattern_of("model.layers.3.mlp.up_proj")
    'model.layers.*.mlp.up_proj'
    """
    return re.sub(r"\.\d+(\.|$)", r".*\1", name)


def matches(name: str, pattern: str) -> bool:
    """Whether `parallelize_module` takes a module to be meant by a pattern."""
    steps, wanted = name.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(map(fnmatchcase, steps, wanted))


def python_of_transformers(devices: int, plan: Mapping[str, str], remarks: Sequence[str]) -> str:
    """A plan for transformers as a Python source file: how to use it, `plan`, and remarks as comments."""
    lines = [
        f'"""Tensor parallelism in transformers, on {devices} devices: torchrun --nproc-per-node {devices}',
        "",
        f"distributed_config = DistributedConfig(tp_size={devices}, tp_plan=plan)",
        "model = AutoModelForCausalLM.from_pretrained(path, distributed_config=distributed_config)",
        '"""',
        "",
        *_plan({name: json.dumps(style) for name, style in plan.items()}, remarks),
    ]
    return "\n".join(lines) + "\n"


def python_of_torch(
    devices: int, plan: Mapping[str, str], remarks: Sequence[str], tied: Sequence[Sequence[str]]
) -> str:
    """A plan for torch as a Python source file, which also defines `parallelize(model, device_mesh)`."""
    lines = [
        f'"""Tensor parallelism in PyTorch, on {devices} devices: torchrun --nproc-per-node {devices}',
        "",
        f'model = parallelize(model, init_device_mesh("cuda", ({devices},)))',
        '"""',
        "",
        *_imports(plan.values()),
        "",
        *([_SUM_GRADIENTS] if "SumGradients()" in plan.values() else []),
        *_plan(plan, remarks),
        "",
        "",
        "def parallelize(model, device_mesh):",
        '    """Split a model in place."""',
        "    parallelize_module(model, device_mesh, plan)",
        *(f"    {_assigned(others, first)}  # tied" for first, *others in tied),
        "    return model",
    ]
    return "\n".join(lines) + "\n"


def _plan(plan: Mapping[str, str], remarks: Sequence[str]) -> Iterator[str]:
    yield "plan = {"
    yield from (f"    {json.dumps(name)}: {style}," for name, style in plan.items())
    yield "}"
    yield from (f"# {remark}" for remark in remarks)


def _imports(styles: Collection[str]) -> Iterator[str]:
    names = {style.partition("(")[0] for style in styles} | {"parallelize_module"}
    if "SumGradients" in names:
        names = names - {"SumGradients"} | {"ParallelStyle"}
        yield "from torch import distributed"
    if any("Replicate()" in style for style in styles):
        yield "from torch.distributed.tensor import Replicate"
    yield f"from torch.distributed.tensor.parallel import {', '.join(sorted(names))}"


def _assigned(others: Sequence[str], first: str) -> str:
    return " = ".join(
        f'model.get_submodule("{path}").{name}' for path, _, name in map(_parts, [*others, first])
    )


def _parts(name: str) -> tuple[str, str, str]:
    return name.rpartition(".")
