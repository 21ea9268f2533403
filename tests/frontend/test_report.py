"""What a report says: before the first call, of models that take no tokens, and in a notebook."""

from __future__ import annotations

import copy
import re

import torch
from torch import nn

import tpfx
from tests.support.sharded import CPUS

IMAGES = torch.zeros(2, 3, 8, 8)


class Images(nn.Module):
    """Classes of images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.classes = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        classes: torch.Tensor = self.classes(self.convolution(x).relu().mean((2, 3)))
        return classes


def test_before_the_first_call_it_says_what_is_known_and_what_will_be() -> None:
    model = tpfx.compile(Images().eval(), CPUS)
    text = " ".join(str(tpfx.report(model)).split())
    assert "no call yet: the first captures the model, decides how it is divided over 2 devices" in text
    total = sum(weight.nbytes for weight in Images().parameters())
    assert f"about {total // 2} B of weights on each" in text and "collectives" not in text
    with torch.no_grad():
        model(IMAGES)
    assert "collectives of the newest of 1 graph (proven" in str(tpfx.report(model))
    assert "no call yet" not in str(tpfx.report(model))


def test_what_is_planned_by_an_example_is_said_too() -> None:
    text = str(tpfx.report(tpfx.compile(Images().eval(), CPUS, example_inputs=(IMAGES,))))
    assert "no call yet: how the model is divided over 2 devices is decided" in text
    assert "collectives of what is planned (proven" in text


def test_who_takes_no_tokens_is_not_told_of_them() -> None:
    model = Images().eval()
    plan = str(tpfx.plan(model, 2, (IMAGES,)))
    report = str(tpfx.report(tpfx.compile(model, CPUS, example_inputs=(IMAGES,))))
    for text in (plan, report):
        assert not re.search("token|prefill|decode|kept", text)
    assert "images" in plan and "an image" in plan and "call" in plan


def test_a_notebook_has_tables() -> None:
    model = tpfx.compile(Images().eval(), CPUS)
    with torch.no_grad():
        model(IMAGES)
    report = tpfx.report(model)
    html = report._repr_html_()
    assert html.count("<table>") == html.count("</table>") == str(report).count("┏━") >= 2
    assert f'<td style="text-align: right">{report.bytes_per_device[0]} B</td>' in html
    report.whole_ops["<a & b>"] = 1
    assert "runs whole: &lt;a &amp; b&gt;" in report._repr_html_()
    assert "<table>" in tpfx.plan(Images(), 2, (IMAGES,))._repr_html_()


def test_a_split_model_says_so() -> None:
    model = Images().eval()
    plain, attributes = repr(model), set(vars(model))
    tpfx.compile(model, CPUS)
    line, rest = "split by tpfx over 2 devices: cpu, cpu", plain.partition("\n")[2]
    later = "; its weights are divided at the first call"
    assert repr(model) == f"Images(\n  {line}{later}\n{rest}"
    with torch.no_grad():
        model(IMAGES)
    assert repr(model) == repr(copy.deepcopy(model)) == f"Images(\n  {line}\n{rest}"
    tpfx.unshard(model)
    assert repr(model) == plain and set(vars(model)) == attributes
    alone = tpfx.compile(nn.Linear(8, 4), CPUS, example_inputs=(torch.zeros(2, 8),))
    assert repr(alone) == f"Linear(\n  {line}\n  in_features=8, out_features=4, bias=True\n)"
