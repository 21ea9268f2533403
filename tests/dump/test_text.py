"""The text of parallel graphs: small ones inline, whole models in tests/goldens.

The goldens in tests/goldens are dumps of one-layer models: TPFX_UPDATE_GOLDENS=1 rewrites them.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.models import inputs, tiny
from tpfx.dump.text import dump_text
from tpfx.plan.offline import plan_offline

GOLDENS = Path(__file__).parents[1] / "goldens"


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


EXAMPLE = (torch.zeros(8, 64),)

MLP = """\
# forward on 2 devices: 1 all_reduce (2 KiB); proven cheapest

# inputs
up.weight    f32[256/2, 64]  # a:256, b:64
up.bias      f32[256/2]      # a:256
x            f32[8, 64]
down.weight  f32[64, 256/2]  # c:64, a:256
down.bias    f32[64]         # c:64

up.linear        f32[8, 256/2]  = linear(x, up.weight)       # column, split n
up.add           f32[8, 256/2]  = add(up.linear, up.bias)    # split a
relu             f32[8, 256/2]  = relu(up.add)               # split a
down.linear      f32[8, 64]+    = linear(relu, down.weight)  # row, split k
down.linear.sum  f32[8, 64]     = all_reduce(down.linear)    # 2 KiB
down.add         f32[8, 64]     = add(down.linear.sum, down.bias)

# results
down.add  f32[8, 64]"""


def lines(text, name):
    """The lines of a dump that define a name."""
    return [line for line in text.splitlines() if line.startswith(f"{name} ")]


def test_a_graph_is_one_line_an_op():
    assert dump_text(plan_offline(Mlp(), 2, EXAMPLE, symbolic=False)) == MLP


def test_uneven_divisions_and_symbolic_sizes_are_named():
    text = dump_text(plan_offline(Mlp(), 3, EXAMPLE))
    assert "# sizes: s0 = 8" in text
    assert lines(text, "up.weight") == ["up.weight    f32[256/3, 64]  # a:256, b:64, 86+85+85"]
    assert re.search(r"^up\.linear +f32\[s0, 256/3\] .*# column, split n, 86\+85\+85$", text, re.MULTILINE)


def test_ops_without_a_rule_are_called_out():
    class Lower(nn.Linear):
        def forward(self, x):
            return super().forward(torch.tril_indices(8, 8).sum() + torch.pdist(x).sum() * x)

    text = dump_text(plan_offline(Lower(64, 64), 2, EXAMPLE, symbolic=False))
    assert "# whole: no rule for aten._pdist_forward.default, 1 times" in text
    assert re.search(r"= pdist_forward\(x\) +# whole: no rule$", text, re.MULTILINE)


def test_a_dimension_of_which_only_parts_are_divided_is_shown_by_its_parts():
    model = tiny(
        "falcon", num_hidden_layers=1
    )  # multi-query: each rank has 2 of 4 query heads, and the one k and v
    text = dump_text(plan_offline(model, 2, inputs(model), symbolic=False))
    name = "h.0.self_attention.query_key_value.weight"
    assert lines(text, name)[0].split(None, 1)[1].startswith("f32[([4/2|1|1] 16), 64]")


def golden_text(name, devices):
    model = tiny(name, num_hidden_layers=1)
    return dump_text(plan_offline(model, devices, inputs(model))) + "\n"


copies = pytest.mark.skipif(torch.__version__ >= "2.14", reason="a dropout in eval copies nothing there")


@pytest.mark.recent_models
@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("llama", 2),
        ("llama", 3),
        pytest.param("gpt2", 2, marks=copies),
        pytest.param("bloom", 2, marks=copies),
        ("mixtral", 2),
    ],
)
def test_golden(name, devices):
    path = GOLDENS / f"{name}-{devices}.txt"
    text = golden_text(name, devices)
    if os.environ.get("TPFX_UPDATE_GOLDENS"):
        path.write_text(text)
    assert text == path.read_text(), "the plan changed; TPFX_UPDATE_GOLDENS=1 accepts it"


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_operand_is_defined_above_its_use(path):
    defined = {"True", "False", "end"}
    for line in path.read_text().partition("\n# results")[0].splitlines():
        row = re.match(r"(?P<name>\S+)  +\S.*?(?:  = (?P<call>.*))?$", line)
        if row is None or line.startswith("#"):
            continue
        call = (row["call"] or "").partition("  # ")[0]
        operands = re.findall(r"(?<![\w.=])[a-z_][\w.]*(?:\[\d+\])?(?![\w.]*[(=])", call.replace("-inf", ""))
        sizes = {name for name in operands if re.fullmatch(r"s\d+|f32|i32|i64|bool", name)}
        assert set(operands) <= defined | sizes | {row["name"]}, line
        assert row["name"] not in defined, f"{row['name']} is defined twice"
        defined.add(row["name"])
    assert len(defined) > 50, "the lines are read"
