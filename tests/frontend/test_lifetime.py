"""A model that is deleted takes everything with it: threads, groups, graphs, weights, memory."""

from __future__ import annotations

import ast

import pytest

from tests.support.fresh_python import run

CYCLES = '''
import gc, threading, weakref
import torch
import tpfx
from tpfx.runtime import process_groups
from tpfx.frontend.effects import EFFECTS

groups = set()
register, unregister = (getattr(process_groups.distributed, name) for name in
                        ("register_group", "unregister_group"))

def registering(name, group):
    groups.add(name)
    register(name, group)

def unregistering(name):
    groups.discard(name)
    unregister(name)

process_groups.distributed.register_group = registering
process_groups.distributed.unregister_group = unregistering

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(256, 1024), torch.nn.Linear(1024, 256)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))

X = torch.randn(4, 256)

def compiled(model, door):
    if door == "compile":
        return tpfx.compile(model, ["cpu", "cpu"])
    return torch.compile(model, backend="tpfx", options={"devices": ["cpu", "cpu"]})

def cycle(door):
    model = Net()
    weight = weakref.ref(model.up.weight)
    call = compiled(model, door)
    optimizer = torch.optim.AdamW(model.parameters())
    call(X).sum().backward()
    optimizer.step()
    with torch.no_grad():
        call(X)
    assert groups and EFFECTS.in_place
    return weight, weakref.ref(model), weakref.ref(model.up.weight)

def threads():
    return sum(one.name.startswith("tpfx") for one in threading.enumerate())

def settled():
    """Threads that were told to end have a moment for it."""
    gc.collect(), gc.collect()
    for one in threading.enumerate():
        if one.name.startswith("tpfx"):
            one.join(0.5)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
'''

# Of each cycle Dynamo keeps notes: what was captured when, and why again, over 100 objects. What belongs to a
# model is more: its guards and sizes are 2,000 objects, its graphs as many, its weights, and their gradients
# and what the optimizer remembers of each, 2 MiB each.
OBJECTS, BYTES = 400, 1 << 20


@pytest.mark.parametrize(
    "doors",
    [
        ("compile", "backend"),
        pytest.param(("compile",), marks=pytest.mark.slow),
        pytest.param(("backend",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_twenty_models_compiled_and_deleted_leave_nothing(doors: tuple[str, ...]) -> None:
    """In turns through each door. Through torch's own Dynamo keeps its code with the class's, up to a number
    of models: it must be reset for more. Nothing of tpfx waits for that."""
    code = f"""
counts, doors = [], {doors!r}
for turn in range(20):
    left = cycle(doors[turn % len(doors)])
    settled()
    counts.append((threads(), len(groups), EFFECTS.in_place, sum(one() is not None for one in left),
                   len(gc.get_objects()), resident()))
    if "backend" in doors and turn % (3 * len(doors)) == 2:
        torch._dynamo.reset()
print(counts)
"""
    counts = ast.literal_eval(run(CYCLES + code))
    assert {one[:4] for one in counts} == {(0, 0, False, 0)}, counts
    assert len(counts) == 20
    warm, last = counts[7], counts[-1]
    assert last[4] - warm[4] < 12 * OBJECTS, [one[4] for one in counts]
    assert last[5] - warm[5] < 12 * BYTES, [one[5] for one in counts]


def test_a_session_of_torchs_own_door_lasts_as_long_as_any_of_its_models() -> None:
    """Also over a reset of Dynamo, and for a copy that nobody has compiled."""
    code = """
import copy
first, second = Net(), Net()
calls = [compiled(one, "backend") for one in (first, second)]
with torch.no_grad():
    [call(X) for call in calls]
del first, calls
torch._dynamo.reset()
settled()
print(threads(), len(groups), EFFECTS.in_place, tpfx.report(second).graphs)
other = copy.deepcopy(second)
expected = compiled(second, "backend")(X)
del second
settled()
print(threads(), torch.equal(compiled(other, "backend")(X), expected), tpfx.report(other).graphs)
del other, expected
settled()
print(threads(), len(groups), EFFECTS.in_place)
"""
    kept, copied, gone = run(CYCLES + code).splitlines()
    assert kept == "2 2 True 2"
    assert copied == "2 True 4"
    assert gone == "0 0 False"


def test_only_the_first_graph_of_a_model_looks_through_the_process() -> None:
    code = """
from tpfx.frontend.weight_holders import HOLDERS

class Broken(Net):
    def forward(self, x):
        hidden = torch.relu(self.up(x))
        torch._dynamo.graph_break()
        return self.down(hidden)

first, second = Broken(), Broken()
optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
second.down = first.down
with torch.no_grad():
    expected = first(X)
    for rows in (4, 2, 3):
        result = compiled(first, "backend")(X[:rows])
        print(HOLDERS.searches, torch.allclose(result, expected[:rows], atol=1e-5))
print(tpfx.report(first).graphs > 2, second.down.weight is first.down.weight)
print(all(isinstance(one, tpfx.ShardedTensor) for one in optimizer.param_groups[0]["params"]))
"""
    assert run(CYCLES + code).splitlines() == ["1 True"] * 3 + ["True True", "True"]
