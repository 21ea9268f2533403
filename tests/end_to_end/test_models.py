"""Whole models, end to end: split over 2, 3 and 4 devices they say what they said unsharded, with
the fewest collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
import transformers

import tpfx
from tests.support import architectures
from tests.support.models import MODELS, inputs, tiny
from tests.support.sharded import CPUS
from tpfx.sharded_tensor.tensor import ShardedTensor

# Attention and MLP read the same input: their partial sums join one all-reduce.
PARALLEL_RESIDUAL = {"gptj", "gpt_neox", "falcon", "falcon_new"}
# One KV head, or more ranks than KV heads: those heads are held by several ranks.
SHARED_KV_HEADS = {("falcon", n) for n in (2, 3, 4)} | {
    (name, 4) for name in ("falcon_new", "llama", "phi3", "qwen3", "mixtral")
}


@dataclass
class Unsharded:
    """What a model says before it is split."""

    logits: torch.Tensor
    greedy: torch.Tensor
    beams: torch.Tensor


@pytest.fixture(scope="module")
def unsharded() -> dict[tuple[str, int], Unsharded]:
    return {}


def one_layer(name: str, **overrides: Any) -> torch.nn.Module:
    return tiny(name, num_hidden_layers=1, **overrides)


def generate(model: torch.nn.Module, **options: int) -> torch.Tensor:
    return model.generate(inputs(model)["input_ids"], max_new_tokens=8, do_sample=False, **options)


def reference(name: str, layers: int, known: dict[tuple[str, int], Unsharded]) -> Unsharded:
    if (name, layers) not in known:
        model = tiny(name, num_hidden_layers=layers)
        with torch.no_grad():
            logits = model(**inputs(model)).logits
        known[name, layers] = Unsharded(logits, generate(model), generate(model, num_beams=3))
    return known[name, layers]


# One of each kind: fewer KV heads than devices, packed ones, experts, ALiBi, one KV head for all.
# On 2 devices layers follow each other; on more, one layer has all there is to see.
SAMPLE = [
    ("llama", 2, 2),
    ("llama", 4, 1),
    ("gpt2", 2, 2),
    ("gpt2", 3, 1),
    ("mixtral", 3, 1),
    ("bloom", 2, 1),
    ("falcon", 2, 1),
]


def cases() -> Iterator[Any]:
    for one in product(MODELS, (2, 3, 4), (1, 2)):
        yield pytest.param(*one, marks=[] if one in SAMPLE else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "devices", "layers"), list(cases()))
def test_says_the_same(
    name: str, devices: int, layers: int, unsharded: dict[tuple[str, int], Unsharded]
) -> None:
    expected = reference(name, layers, unsharded)
    model = tpfx.compile(tiny(name, num_hidden_layers=layers), ["cpu"] * devices)
    with torch.no_grad():
        logits = model(**inputs(model)).logits
    assert type(logits) is torch.Tensor
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    _check_collectives(name, layers, tpfx.report(model))
    _check_bytes(name, devices, tpfx.report(model))

    assert torch.equal(generate(model), expected.greedy)
    assert torch.equal(generate(model, num_beams=3), expected.beams)
    report = tpfx.report(model)
    _check_collectives(name, layers, report)
    assert report.graphs <= 1 + 3
    assert not report.whole_ops
    assert report.optimal


def _check_collectives(name: str, layers: int, report: tpfx.Report) -> None:
    """One all-reduce for the embedding, and one or two a layer; the logits are gathered, nothing else is."""
    a_layer = 1 if name in PARALLEL_RESIDUAL else 2
    counts = Counter(collective.kind for collective in report.collectives)
    assert counts == {"all_reduce": a_layer * layers + 1, "gather": 1}


def _check_bytes(name: str, devices: int, report: tpfx.Report) -> None:
    assert len(report.bytes_per_device) == devices
    assert sum(report.bytes_per_device) >= report.total_bytes
    if 4 % devices == 0 and (name, devices) not in SHARED_KV_HEADS:
        assert max(report.bytes_per_device) <= 1.05 / devices * report.total_bytes


# Positions from tables and rotary ones, expert layers, ALiBi, one key and value for all packed heads: what
# asks for a size of 1 in its own way.
ASKING = ("llama", "gpt2", "bloom", "mixtral", "falcon")


@pytest.mark.recent_models
@pytest.mark.parametrize(
    ("name", "batches"),
    [
        pytest.param(
            name,
            batches,
            marks=[] if (name, batches[0]) in (("llama", 4), ("gpt2", 1)) else [pytest.mark.slow],
        )
        for name in ASKING
        for batches in ((1, 3, 4), (4, 1, 3))
    ],
    ids=str,
)
def test_few_graphs_serve_every_batch_and_length(name: str, batches: tuple[int, ...]) -> None:
    model, plain = tpfx.compile(one_layer(name), CPUS), one_layer(name)
    graphs = []
    for batch, length in zip(batches, (8, 5, 11), strict=True):
        ids = torch.randint(3, 250, (batch, length))
        assert torch.equal(
            model.generate(ids, max_new_tokens=64, do_sample=False),
            plain.generate(ids, max_new_tokens=64, do_sample=False),
        )
        graphs.append(tpfx.report(model).graphs)
    assert graphs[0] <= 3
    assert graphs[1] <= graphs[0] + 1
    assert graphs[2] == graphs[1]


@pytest.mark.recent_models
def test_few_graphs_serve_an_encoder_and_a_decoder() -> None:
    """What the encoder said comes in a container of its own, and its batch is as open as the decoder's."""
    (model, _), (plain, _) = (architectures.tiny("bart", "seq2seq") for _ in range(2))
    model = tpfx.compile(model, CPUS)
    graphs = []
    for batch, length in ((1, 8), (4, 5), (3, 11)):
        ids = torch.randint(3, 250, (batch, length))
        assert torch.equal(
            generate_from(model, ids).sequences,
            generate_from(plain, ids).sequences,
        )
        graphs.append(tpfx.report(model).graphs)
    assert graphs[0] <= 4 and graphs[-1] <= graphs[0] + 1  # one of them of the encoder alone


@pytest.mark.recent_models
def test_keys_and_values_of_a_sliding_window_stay_split() -> None:
    """Such a cache holds views of what the layers have used."""
    config = transformers.MistralConfig(
        **{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128},
        **{"num_hidden_layers": 1, "sliding_window": 6, "vocab_size": 256, "eos_token_id": None},
    )
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config).eval()
    ids = torch.randint(3, 250, (2, 5))
    expected = generate_from(model, ids)
    model = tpfx.compile(model, CPUS)
    for new_tokens in (1, 8):
        kept = generate_from(model, ids, max_new_tokens=new_tokens).past_key_values
        for layer in kept.layers:
            for one in (layer.keys, layer.values):
                assert isinstance(one, ShardedTensor) and dict(one.placement.dims).keys() == {1}
        assert [c.kind for c in tpfx.report(model).collectives].count("gather") == 1  # the logits
    assert torch.equal(generate_from(model, ids).sequences, expected.sequences)


def generate_from(model: torch.nn.Module, ids: torch.Tensor, max_new_tokens: int = 8) -> Any:
    return model.generate(
        ids, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True, use_cache=True
    )


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "gpt2"))]
)
def test_sampling_left_padding_and_a_static_cache(name: str) -> None:
    model, plain = tpfx.compile(one_layer(name), CPUS), one_layer(name)
    ids = inputs(plain)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    ways: dict[str, dict[str, Any]] = {
        "sampled": {"do_sample": True, "top_k": 20},
        "padded": {"do_sample": False, "attention_mask": mask},
        "static": {"do_sample": False, "cache_implementation": "static"},
    }
    for way, options in ways.items():
        texts = []
        for each in (plain, model):
            torch.manual_seed(7)
            texts.append(each.generate(ids, max_new_tokens=8, **options))
        assert torch.equal(*texts), way
    assert not [c for c in tpfx.report(model).collectives if c.kind == "all_gather"]  # of the static cache


def test_keys_and_values_stay_split() -> None:
    model = tpfx.compile(tiny("llama"), CPUS)
    with torch.no_grad():
        cache = model(**inputs(model)).past_key_values
    keys = cache.layers[0].keys
    assert isinstance(keys, tpfx.ShardedTensor)
    assert [tuple(shard.shape) for shard in keys.shards] == [(2, 1, 12, 16)] * 2


def test_uneven_kv_heads_balance_over_layers() -> None:
    config = {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 144,
        "head_dim": 16,
        "num_hidden_layers": 2,
    }
    model, plain = tpfx.compile(tiny("llama", **config), CPUS), tiny("llama", **config)
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs(plain)).logits, plain(**inputs(plain)).logits, atol=1e-4, rtol=0
        )
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.05 / 2 * report.total_bytes
    weights = [layer.self_attn.k_proj.weight for layer in model.model.layers]
    assert {tuple(shard.shape[0] for shard in weight.shards) for weight in weights} == {(32, 16), (16, 32)}


def test_vocabulary_that_devices_do_not_divide() -> None:
    plain = one_layer("gpt2", vocab_size=257)
    model = tpfx.compile(one_layer("gpt2", vocab_size=257), ["cpu"] * 3)
    ids = inputs(plain)["input_ids"]
    ids[0, 0] = 256
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-4, rtol=0)
    assert sorted(shard.shape[0] for shard in model.transformer.wte.weight.shards) == [85, 86, 86]
    assert not [c for c in tpfx.report(model).collectives if c.kind == "all_gather"]


@pytest.mark.parametrize("devices", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_more_devices_than_heads(devices: int) -> None:
    model, plain = tpfx.compile(one_layer("llama"), ["cpu"] * devices), one_layer("llama")
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs(plain)).logits, plain(**inputs(plain)).logits, atol=1e-4, rtol=0
        )
    assert torch.equal(generate(model), generate(plain))
    assert not [c for c in tpfx.report(model).collectives if c.kind == "all_gather"]


def test_one_device_is_the_whole_model() -> None:
    model, plain = tpfx.compile(one_layer("gpt2"), ["cpu"]), one_layer("gpt2")
    assert torch.equal(generate(model), generate(plain))
    assert tpfx.report(model).bytes_per_device == [tpfx.report(model).total_bytes]
