"""What a page shows of a number of devices."""

from tests.support.drawn import CASES
from tpfx.draw.sheet import judged, sheet_of
from tpfx.plan.verdict import Call
from tpfx.planning import hardware_of

LLAMA = "llama, 2 devices, decode"


def test_each_number_of_devices_is_judged_beside_the_fewest_that_hold_it(sheets, captures):
    alone = sheet_of(*captures(LLAMA), 1)
    one, two = judged([sheets(LLAMA), alone], hardware_of("rtx-3090", None), Call(2, 12))
    assert (one.plan.devices, two.plan.devices) == (1, 2)
    assert one.verdict.fewer is None
    assert two.verdict.fewer is one.plan
    assert "as fast as 1 device" in str(two.verdict) or "it does not pay" in str(two.verdict)
    assert alone.prices == [{}, {}]


def test_the_rank_that_is_shown_needs_most(sheets):
    for name in CASES:
        sheet = sheets(name)
        for at, graph in enumerate(sheet.plan.graphs):
            run, rank = graph.estimate, sheet.fullest(at)
            needs = zip(sheet.plan.bytes_per_device, run.kept, run.activations, strict=True)
            assert [sum(each) for each in needs][rank] == max(
                sheet.plan.bytes_per_device[each] + run.kept[each] + run.activations[each]
                for each in range(sheet.plan.devices)
            )
