"""Every error that tpfx raises on purpose; `except tpfx.TpfxError` catches them all.

Each message says what is wrong, where, the numbers, and what to do about it.
"""

__all__ = [
    "AlreadyCompiledError",
    "CollectiveError",
    "CollectiveTimeout",
    "DeviceCompilerError",
    "DeviceError",
    "FileError",
    "InputError",
    "ModelError",
    "PlanError",
    "RankAborted",
    "RecordingError",
    "RuleError",
    "ShardingError",
    "TpfxError",
    "WorkerError",
]


class TpfxError(Exception):
    """The base of every error that tpfx raises on purpose."""


class DeviceError(TpfxError, ValueError):
    """The list of devices cannot make a mesh: empty, unknown, absent or of mixed kinds."""


class AlreadyCompiledError(TpfxError):
    """The model has been sharded by tpfx before."""


class ModelError(TpfxError):
    """The module cannot be compiled, for instance because it has no parameters."""


class InputError(TpfxError, ValueError, RuntimeError):
    """The inputs of a call do not fit the compiled model; what torch raises for such is a RuntimeError."""


class FileError(TpfxError, OSError):
    """A file cannot be written."""


class PlanError(InputError):
    """A plan cannot be read, or is for another model, number of devices or version of tpfx."""


class ShardingError(TpfxError):
    """A tensor or an axis cannot be split as asked."""


class RuleError(TpfxError, ValueError):
    """A rule for an op cannot be read, does not fit the op, or is not true of it."""


class CollectiveError(TpfxError):
    """The ranks disagree about a collective: its kind, its reduction, a shape or a dtype."""


class CollectiveTimeout(TpfxError, TimeoutError):
    """Some ranks never arrived in a collective in which the others wait."""


class DeviceCompilerError(TpfxError):
    """The device compiler cannot compile the graph of a rank."""


class RankAborted(TpfxError):
    """Raised inside a rank that is released because another rank failed; callers do not see it."""


class WorkerError(TpfxError):
    """The process of a rank has ended, or cannot be started."""


class RecordingError(TpfxError):
    """A run of the ranks cannot be recorded, to be replayed; it has not run."""
