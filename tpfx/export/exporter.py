"""A plan for other tools: transformers' `tp_plan`, or a mapping for torch's `parallelize_module`.

    parallels = plan_graphs(capture(model), 2)
    exported = export(model, parallels, "hf-tp-plan")
    exported.plan                   {"model.layers.*.self_attn.q_proj": "colwise", …}
    print(exported.source)          a Python file, which also says what could not be expressed

These tools split whole modules and run the code between them as it is. Where that code would not compute the
right thing with shards, a module is exported with its input and output whole, or not at all; each is in
`unexpressed`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch

from ..capture.inputs import Inputs
from ..errors import InputError
from ..ir.annotations import choice_of, is_weight, layout_of, source_of
from ..ir.layout import Partial
from ..ir.parallel_graph import ParallelGraph
from ..ir.provenance import module_path
from ..ir.resharding import all_reduce
from .layer_consistency import Agreement
from .sharded_regions import must_be_whole
from .styles import STYLES, matches, pattern_of, python_of_torch, python_of_transformers


@dataclass(frozen=True)
class Unexpressed:
    """A module that cannot be split as planned.

    Attributes:
        module: its name, with `*` for the number of the layer.
        reason: why not.
        instead: "whole" where it is left out of the plan; "alone" where it is split, but its input and output
            are whole, which costs one more collective.
    """

    module: str
    reason: str
    instead: str

    def __str__(self) -> str:
        instead = "left out" if self.instead == "whole" else "split, but whole in and out"
        return f"{self.module or 'the model'}: {instead}: {self.reason}"


@dataclass(frozen=True)
class Exported:
    """A plan for another tool. `str(exported)` is its `source`.

    Attributes:
        to: "hf-tp-plan" or "parallelize-module".
        devices: how many devices it is for.
        plan: names of modules, `*` standing for the number of a layer, and their styles: names that
            transformers knows, or constructor calls of `torch.distributed.tensor.parallel`.
        unexpressed: what could not be split as planned, one entry for each name.
        notes: what is otherwise not as tpfx would have it, a sentence each.
        tied: weights that are one, and that `parallelize_module` makes several; `parallelize`, in the source,
            ties them again.
    """

    to: str
    devices: int
    plan: dict[str, str]
    unexpressed: list[Unexpressed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tied: list[list[str]] = field(default_factory=list)

    @property
    def source(self) -> str:
        """The plan as a Python file: `plan`, and for torch `parallelize(model, device_mesh)`."""
        remarks = [*map(str, self.unexpressed), *self.notes]
        if self.to == "hf-tp-plan":
            return python_of_transformers(self.devices, self.plan, remarks)
        return python_of_torch(self.devices, self.plan, remarks, self.tied)

    @property
    def json(self) -> str:
        """Everything as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        return self.source


def export(
    model: torch.nn.Module,
    parallels: Sequence[ParallelGraph] | ParallelGraph,
    to: str,
    inputs: Inputs | None = None,
) -> Exported:
    """Write the plan of a model's forward pass for another tool.

    Args:
        model: the model, on any device, "meta" included; it is left as it was.
        parallels: all of its planned graphs, from `plan_graphs(capture(model, inputs), devices)`.
        to: "hf-tp-plan" (transformers) or "parallelize-module" (torch).
        inputs: what was given to `capture`.

    Returns:
        The plan. It computes the same numbers as the model does, whatever of the plan could not be expressed.

    Raises:
        InputError: an unknown `to`, no graphs, graphs of training, or of 1 device.

    >>> with torch.device("meta"):
    ...     model = AutoModelForCausalLM.from_config(config)
    >>> export(model, plan_graphs(capture(model), 2), "hf-tp-plan").plan["model.layers.*.mlp.down_proj"]
    'rowwise'
    """
    plans = [parallels] if isinstance(parallels, ParallelGraph) else list(parallels)
    if to not in STYLES:
        raise InputError(f"cannot export to {to}; name one of {', '.join(STYLES)}")
    if not plans or any(parallel.backward for parallel in plans):
        raise InputError("a plan of the forward pass is exported; pass what plan_graphs returns")
    if plans[0].ranks < 2:
        raise InputError("a plan for 1 device splits nothing; plan for at least 2")
    agreed = Agreement(model, plans, to)
    agreed.decide(inputs)
    return _Writer(model, agreed, to).exported()


class _Writer:
    """Writes down what has been agreed on."""

    def __init__(self, model: torch.nn.Module, agreed: Agreement, to: str) -> None:
        self.model, self.agreed, self.to = model, agreed, to

    def exported(self) -> Exported:
        """The plan, and what is to be said of it."""
        plan: dict[str, str] = {}
        unexpressed = []
        for pattern in self.agreed.alike:
            style = self.agreed.style(pattern)
            if style is not None:
                plan |= dict.fromkeys(self._written(pattern), STYLES[self.to][style])
            if reason := self.agreed.reason(pattern):
                unexpressed.append(Unexpressed(pattern, pattern_of(reason), "alone" if style else "whole"))
        notes = [*self._unshared(), *self._returned_split()]
        tied = self._untied() if self.to == "parallelize-module" else []
        ranks = self.agreed.plans[0].ranks
        return Exported(self.to, ranks, plan | self._not_split(plan), unexpressed, notes, tied)

    def _written(self, pattern: str) -> list[str]:
        """The names that stand for the modules of a pattern, and for no others."""
        meant = self.agreed.alike[pattern]
        others = any(matches(name, pattern) for name in self.agreed.owners.modules if name not in meant)
        return meant if others and self.to == "parallelize-module" else [pattern]

    def _not_split(self, plan: dict[str, str]) -> dict[str, str]:
        """What a model's own plan splits and this one does not: transformers adds the one to the other."""
        own = getattr(self.model, "tp_plan", None) if self.to == "hf-tp-plan" else None
        return dict.fromkeys((name for name in own or {} if name not in plan), STYLES["hf-tp-plan"]["whole"])

    def _unshared(self) -> list[str]:
        """Sums that tpfx makes with one collective, and other tools with one for each module."""
        notes: dict[str, None] = {}
        for parallel in self.agreed.plans:
            for node in parallel.graph.find_nodes(op="call_function", target=all_reduce):
                patterns = {pattern_of(name) for name in _summands(node.all_input_nodes[0])}
                split = sorted(pattern for pattern in patterns if self.agreed.style(pattern))
                if len(split) > 1:
                    notes[f"one all-reduce in tpfx, here one for each of {', '.join(split)}"] = None
        return list(notes)

    def _returned_split(self) -> list[str]:
        """Results such as keys and values, of which each process gets its own shard."""
        names: dict[str, None] = {}
        for region in self.agreed.working():
            for node in region.parallel.outputs():
                if layout_of(node) == region.split and region.active(node) and not must_be_whole(node):
                    names[pattern_of(module_path(node))] = None
        return [f"{name}: results of the model from here, as keys and values, are split" for name in names]

    def _untied(self) -> list[list[str]]:
        """The names of weights that `parallelize_module` unties, as it replaces each of them."""
        owners, tied = self.agreed.owners, {}
        for parallel in self.agreed.plans:
            for node in parallel.graph.find_nodes(op="placeholder"):
                if is_weight(node):
                    holders = [f"{path}.{name}" for path, name in owners.holding(source_of(node).name)]
                    replaced = all(self.agreed.style(pattern_of(one.rpartition(".")[0])) for one in holders)
                    tied[tuple(holders)] = replaced and len(holders) > 1
        return [list(holders) for holders, untied in tied.items() if untied]


def _summands(value: torch.fx.Node) -> set[str]:
    """The modules whose partial sums are in a partial sum."""
    choice = choice_of(value)
    if choice is None or not isinstance(layout_of(value), Partial):
        return set()
    if choice.kind != "pending":
        return {module_path(value)}
    return {name for operand in value.all_input_nodes for name in _summands(operand)}
