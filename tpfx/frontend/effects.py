"""All that tpfx changes in torch for the whole process, and while what: as long as a session lives."""

from __future__ import annotations

from ..sharded_tensor.optimizers import OPTIMIZER_EFFECTS
from ..torch_internals.batch_guards import BATCH_EFFECTS
from ..torch_internals.dynamo import skip_frames
from ..torch_internals.effects import Effects

EFFECTS = Effects(skip_frames(__name__.partition(".")[0]), *BATCH_EFFECTS, *OPTIMIZER_EFFECTS)
