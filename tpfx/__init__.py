"""tpfx splits any PyTorch model over several devices in one line.

>>> model = tpfx.compile(model, ["cuda:0", "cuda:1"])
"""

from .console import interrupts as _interrupts  # noqa: F401  (before torch, which takes seconds)

# isort: split
from .api import compile, load, report, unshard
from .errors import (
    AlreadyCompiledError,
    CollectiveError,
    CollectiveTimeout,
    DeviceCompilerError,
    DeviceError,
    FileError,
    InputError,
    ModelError,
    PlanError,
    RuleError,
    ShardingError,
    TpfxError,
    WorkerError,
)
from .export.named_graph import graph
from .export.profile import Profile, profile
from .frontend.report import Report
from .ir.parallel_graph import Collective
from .plan.make import plan
from .plan.plan import Plan
from .planning import Topology
from .rules.register import register_rule
from .sharded_tensor import ShardedTensor
from .sharded_tensor.model_weights import full_state_dict
from .verify.rule_check import UntrueRuleError, check_rule
from .version import __version__ as __version__

__all__ = [
    "AlreadyCompiledError",
    "Collective",
    "CollectiveError",
    "CollectiveTimeout",
    "DeviceCompilerError",
    "DeviceError",
    "FileError",
    "InputError",
    "ModelError",
    "Plan",
    "PlanError",
    "Profile",
    "Report",
    "RuleError",
    "ShardedTensor",
    "ShardingError",
    "Topology",
    "TpfxError",
    "UntrueRuleError",
    "WorkerError",
    "check_rule",
    "compile",
    "full_state_dict",
    "graph",
    "load",
    "plan",
    "profile",
    "register_rule",
    "report",
    "unshard",
]
