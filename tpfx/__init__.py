"""tpfx splits any PyTorch model over several devices in one line.

>>> model = tpfx.compile(model, ["cuda:0", "cuda:1"])
"""

from .api import compile, full_state_dict, load, report
from .custom import register_rule
from .errors import (
    AlreadyCompiledError,
    CollectiveError,
    CollectiveTimeout,
    DeviceCompilerError,
    DeviceError,
    InputError,
    ModelError,
    PlanError,
    RuleError,
    ShardingError,
    TpfxError,
)
from .pipeline import Collective
from .plan import Plan, plan
from .report import Report
from .tensor import ShardedTensor
from .topology import Topology
from .truth import UntrueRuleError, check_rule

__version__ = "0.1.0.dev0"

__all__ = [
    "AlreadyCompiledError",
    "Collective",
    "CollectiveError",
    "CollectiveTimeout",
    "DeviceCompilerError",
    "DeviceError",
    "InputError",
    "ModelError",
    "Plan",
    "PlanError",
    "Report",
    "RuleError",
    "ShardedTensor",
    "ShardingError",
    "Topology",
    "TpfxError",
    "UntrueRuleError",
    "check_rule",
    "compile",
    "full_state_dict",
    "load",
    "plan",
    "register_rule",
    "report",
]
