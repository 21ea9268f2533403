"""Plans for other tools: what is expressed, what is not and why, and that these tools compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.exported import results
from tests.support.models import tiny
from tests.support.processes import launch
from tpfx.capture.capture import capture
from tpfx.errors import InputError
from tpfx.export.exporter import Exported, export
from tpfx.export.styles import matches, pattern_of
from tpfx.ir.parallel_graph import ParallelGraph
from tpfx.plan.offline import plan_graphs

ROOT = Path(__file__).parents[2]


@cache
def planned(name: str, devices: int = 2) -> tuple[Any, list[ParallelGraph]]:
    """A tiny model and its plan, which exporting leaves as they are."""
    model = tiny(name)
    return model, plan_graphs(capture(model), devices)


@cache
def exported(name: str, devices: int = 2, to: str = "hf-tp-plan") -> Exported:
    return export(*planned(name, devices), to)


def of_module(model: nn.Module, *shape: int, symbolic: bool = True, devices: int = 2) -> Exported:
    given = (torch.zeros(shape),)
    parallels = plan_graphs(capture(model, given, symbolic=symbolic), devices)
    return export(model, parallels, "parallelize-module", given)


def reasons(plan: Exported) -> dict[str, str]:
    """What is said of each module, its name cut to the last two steps."""
    return {".".join(one.module.split(".")[-2:]): f"{one.instead}: {one.reason}" for one in plan.unexpressed}


# In other tools.


MORE = [(2, ["llama"]), (3, ["llama", "phi3"])]


@pytest.mark.parametrize(
    ("devices", "names"),
    [(2, ["qwen3"]), *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)],
)
def test_transformers_and_torch_compute_the_same(devices: int, names: list[str], tmp_path: Path) -> None:
    """Logits and gradients, those of norms of heads too; with uneven shards, and modules whole in between."""
    for name in names:
        tiny(name).save_pretrained(tmp_path / name)
        (tmp_path / name / "hf-tp-plan.json").write_text(exported(name, devices).json)
        source = exported(name, devices, "parallelize-module").source
        (tmp_path / name / "parallelize-module.py").write_text(source)
    launch(devices, "-m", "tests.support.exported", str(tmp_path))
    for name in names:
        expected = results(tiny(name))
        for rank in range(devices):
            for found in torch.load(tmp_path / f"{name}.{rank}").values():
                for what in ("logits", "gradients"):
                    torch.testing.assert_close(found[what], expected[what], atol=1e-5, rtol=1e-4)
                assert found["held"] < 1.03 / devices * expected["held"]


# What is expressed.


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_it_is_the_plan_that_people_wrote(name: str) -> None:
    plan = exported(name)
    written = planned(name)[0].tp_plan
    embedding = {"model.embed_tokens": "embedding_rowwise"}  # which transformers 5.20 leaves whole
    assert plan.plan == {**embedding, **written} and not plan.unexpressed


def test_source_and_json() -> None:
    plan = exported("qwen3", to="parallelize-module")
    defined: dict[str, Any] = {}
    exec(plan.source, defined)
    assert list(defined["plan"]) == list(plan.plan) and callable(defined["parallelize"])
    assert type(defined["plan"]["model.layers.*.mlp.down_proj"]).__name__ == "RowwiseParallel"
    assert plan.plan["model.layers.*.self_attn.q_norm"] == "SumGradients()"
    assert plan.plan["lm_head"] == "ColwiseParallel(output_layouts=Replicate())"
    assert json.loads(plan.json)["plan"] == plan.plan and str(plan) == plan.source
    assert any("keys and values" in note for note in plan.notes)


def test_the_model_is_left_as_it_was() -> None:
    model, parallels = planned("llama")
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    export(model, parallels, "hf-tp-plan")
    after = model.state_dict(keep_vars=True)
    assert all(
        id(after[name]) == at and torch.equal(after[name], value) for name, (at, value) in before.items()
    )


@pytest.mark.slow
def test_without_weights() -> None:
    with torch.device("meta"):
        model = type(planned("llama")[0])(planned("llama")[0].config)
    assert export(model, plan_graphs(capture(model), 2), "hf-tp-plan").plan == exported("llama").plan


@pytest.mark.slow
def test_tied_weights_are_tied_again() -> None:
    plan = exported("bloom", to="parallelize-module")
    assert plan.tied == [["transformer.word_embeddings.weight", "lm_head.weight"]]
    assert 'model.get_submodule("lm_head").weight = model.get_submodule("transformer.word_embe' in plan.source


# What is not.


def test_gpt2_has_layers_of_its_own() -> None:
    plan = exported("gpt2")
    assert plan.plan == {
        "transformer.wte": "embedding_rowwise",
        "transformer.wpe": "embedding_rowwise",
        "lm_head": "colwise_gather_output",
    }
    said = "whole: Conv1D is neither Linear nor Embedding"
    assert reasons(plan) == dict.fromkeys(["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"], said)
    assert plan.notes == ["one all-reduce in tpfx, here one for each of transformer.wpe, transformer.wte"]


@pytest.mark.slow
def test_packed_weights_are_whole_in_between() -> None:
    plan = exported("phi3")
    said = reasons(plan)
    assert said["self_attn.qkv_proj"] == (
        "alone: model.layers.*.self_attn.qkv_proj.weight is packed: each device has 3 pieces of it"
    )
    assert "gate_up_proj.weight is packed: each device has 2 pieces" in said["mlp.down_proj"]
    assert plan.plan["model.layers.*.mlp.gate_up_proj"] == "colwise_gather_output"
    assert plan.plan["model.layers.*.mlp.down_proj"] == "rowwise_split_input"


@pytest.mark.slow
def test_code_with_sizes_of_its_own() -> None:
    """BLOOM's q, k and v are divided by heads, but its code counts the heads itself."""
    plan = exported("bloom")
    said = reasons(plan)
    assert set(said) == {"self_attention.query_key_value", "self_attention.dense"}
    assert all("modeling_bloom.py" in reason and "self.num_heads" in reason for reason in said.values())
    assert plan.plan["transformer.h.*.self_attention.query_key_value"] == "colwise_gather_output"
    assert plan.plan["transformer.h.*.mlp.dense_h_to_4h"] == "colwise"


def test_experts_are_left_out_also_of_the_models_own_plan() -> None:
    plan = exported("mixtral")
    said = "whole: MixtralExperts is neither Linear nor Embedding"
    assert reasons(plan) == {"mlp.experts": said}
    assert plan.plan["model.layers.*.mlp.experts"] == "replicate"
    assert plan.plan["model.layers.*.self_attn.q_proj"] == "colwise"


def test_uneven_heads_on_3_devices() -> None:
    plan = exported("llama", 3)
    assert set(reasons(plan)) == {f"self_attn.{name}_proj" for name in "qkvo"}
    assert "64, and not 22+22+20" in reasons(plan)["self_attn.q_proj"]
    assert plan.plan["model.layers.*.self_attn.o_proj"] == "rowwise_split_input"
    assert plan.plan["model.layers.*.mlp.up_proj"] == "colwise"  # 43+43+42, as transformers divides it


@pytest.mark.slow
def test_uneven_parts_in_torch() -> None:
    plan = exported("llama", 3, "parallelize-module")
    assert "of one size" in reasons(plan)["mlp.up_proj"]
    assert plan.plan["model.layers.*.mlp.up_proj"] == "ColwiseParallel(output_layouts=Replicate())"


@pytest.mark.slow
def test_kv_heads_that_several_devices_have() -> None:
    said = reasons(exported("llama", 4))
    assert said["self_attn.q_proj"].endswith("k_proj.weight has 2 units for 4 devices: some have the same")


# Modules made for one case each.


class Mlp(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(64, 256), middle, nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.middle(self.up(x)))


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() * x.shape[-1] ** -0.5


class Block(nn.Module):
    def __init__(self, middles: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mlp(middle) for middle in middles)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Heads(nn.Module):
    """Attention with 4 heads of 16; `view` makes `[batch, length, width]` that."""

    def __init__(self, view: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))
        self.view = view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.view(layer(x)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


@pytest.mark.slow
def test_views_that_follow() -> None:
    plan = of_module(Heads(lambda x: x.view(x.shape[0], x.shape[1], -1, 16)), 2, 8, 64)
    assert set(plan.plan.values()) == {"ColwiseParallel()", "RowwiseParallel()"}


def test_views_that_do_not_follow_and_do_not_fail() -> None:
    """With half of the width, 4 heads of 16 would be half of the length: wrong numbers of the right shape."""
    plan = of_module(Heads(lambda x: x.view(x.shape[0], -1, 4, 16)), 2, 8, 64, symbolic=False)
    assert "[2, 4, 4, 16] with shards, and [2, 8, 2, 16] is planned" in reasons(plan)["q"]
    assert plan.plan["q"] == "ColwiseParallel(output_layouts=Replicate())"
    assert plan.plan["o"] == "RowwiseParallel(input_layouts=Replicate())"


@pytest.mark.slow
def test_scales_that_depend_on_the_width() -> None:
    assert "other arguments with shards" in reasons(of_module(Mlp(Scaled()), 4, 64))["up"]


@pytest.mark.slow
def test_sums_outside_of_a_linear() -> None:
    plan = of_module(Mlp(nn.RMSNorm(256, elementwise_affine=False)), 4, 64)
    assert "sums over what is split" in reasons(plan)["up"]
    assert plan.plan["up"] == "ColwiseParallel(output_layouts=Replicate())"


@pytest.mark.slow
def test_weights_that_are_used_past_their_module() -> None:
    """As `MultiheadAttention` uses its `out_proj`, without calling it."""

    class Past(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.middle(self.up(x)), self.down.weight, self.down.bias)

    plan = of_module(Past(nn.GELU()), 4, 64)
    assert reasons(plan)["down"] == "whole: its weight is used outside of it"
    assert plan.plan == {"up": "ColwiseParallel(output_layouts=Replicate())"}


@pytest.mark.slow
def test_what_is_tied_to_something_left_out() -> None:
    """As in BERT: the head's weight is that of the embedding, and its bias is held by another module too."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(512, 64), nn.Linear(64, 512)
            self.head.weight, self.bias = self.table.weight, self.head.bias

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids))

    model, given = Tied(), (torch.zeros(2, 8, dtype=torch.int64),)
    plan = export(model, plan_graphs(capture(model, given), 2), "parallelize-module", given)
    assert plan.plan == {}
    assert reasons(plan) == {
        "table": "whole: tied to head: its bias is also one of Tied",
        "head": "whole: its bias is also one of Tied",
    }


@pytest.mark.slow
def test_layers_that_are_not_alike() -> None:
    """One `*` stands for both layers, so that neither works on shards."""
    plan = of_module(Block([nn.GELU(), Scaled()]), 4, 64)
    assert set(reasons(plan)) == {"*.up", "*.down"}
    assert "RowwiseParallel()" not in plan.plan.values()


@pytest.mark.slow
def test_graph_breaks() -> None:
    class Broken(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layers[0](x)
            torch._dynamo.graph_break()
            return self.layers[1](x)

    plan = of_module(Broken([nn.GELU(), nn.GELU()]), 4, 64)
    assert plan.plan == {"layers.*.up": "ColwiseParallel()", "layers.*.down": "RowwiseParallel()"}


@pytest.mark.slow
def test_a_module_that_two_graphs_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Mlp(nn.GELU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.mlp(x)
            torch._dynamo.graph_break()
            return self.mlp(x)

    model = Twice()
    assert of_module(model, 4, 64).plan == {"mlp.up": "ColwiseParallel()", "mlp.down": "RowwiseParallel()"}
    assert model.mlp.up.weight.shape == (256, 64)


@pytest.mark.slow
def test_names_that_a_pattern_would_match_too() -> None:
    """`layers.*.up` is also `layers.extra.up` to `parallelize_module`."""

    class Extra(Block):
        def __init__(self) -> None:
            super().__init__([nn.GELU()])
            self.layers.extra = Mlp(nn.RMSNorm(256, elementwise_affine=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers.extra(self.layers[0](x))

    plan = of_module(Extra(), 4, 64).plan
    assert plan["layers.0.up"] == "ColwiseParallel()"
    assert plan["layers.extra.up"] == "ColwiseParallel(output_layouts=Replicate())"


def test_names() -> None:
    assert pattern_of("model.layers.3.mlp.w1") == "model.layers.*.mlp.w1"
    assert matches("layers.extra.up", "layers.*.up") and not matches("layers.0.mlp.up", "layers.*.up")


def test_what_cannot_be_exported() -> None:
    model, parallels = planned("llama")
    with pytest.raises(
        InputError, match="cannot export to megatron; name one of hf-tp-plan, parallelize-module"
    ):
        export(model, parallels, "megatron")
    with pytest.raises(InputError, match="plan_graphs"):
        export(model, [], "hf-tp-plan")
    with pytest.raises(InputError, match="at least 2"):
        of_module(Mlp(nn.GELU()), 4, 64, devices=1)
