"""All cases by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from . import cost, decode, right

ARCHS = ("llama", "gpt2", "t5", "mixtral")
KERNELS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")


class Case(NamedTuple):
    """What is asked: how many seconds it may take, and what finds out; see `decode` for what is timed."""

    seconds: int
    run: Callable[..., dict[str, Any] | decode.Timed]


def _right() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for arch in ARCHS:
        found[f"recorded.{arch}"] = Case(90, partial(right.recorded, arch=arch))
    for name in KERNELS:
        for dropout in (0.0, 0.3):
            kernel = name.removesuffix("_ATTENTION").lower()
            run = partial(right.attention, name=name, dropout=dropout)
            found[f"attention.{kernel}{'.dropout' * bool(dropout)}"] = Case(60, run)
    bias = partial(right.attention, name="EFFICIENT_ATTENTION", bias=True)
    found["attention.efficient.bias"] = Case(60, bias)
    found["attention.efficient.bias.dropout"] = Case(60, partial(bias, dropout=0.3))
    for dtype in ("float32", "bfloat16"):
        for arch in ARCHS:
            found[f"forward.{arch}.{dtype}"] = Case(60, partial(right.forward, arch=arch, dtype=dtype))
            found[f"train.{arch}.{dtype}"] = Case(90, partial(right.train, arch=arch, dtype=dtype))
    train = partial(right.train, arch="llama", dtype="float32")
    found["train.llama.autocast"] = Case(90, partial(train, autocast="bfloat16"))
    found["train.llama.fused"] = Case(90, partial(train, fused=True))
    for arch in ARCHS:
        found[f"generate.{arch}"] = Case(90, partial(right.generate, arch=arch))
    for arch in ("llama", "gpt2"):
        found[f"dropout.{arch}"] = Case(60, partial(right.dropout, arch=arch))
    for what in ("batch_norm", "lstm", "weight_norm", "rand"):
        found[f"module.{what}"] = Case(60, partial(right.module, what=what))
    found["ids_on_the_host"] = Case(60, right.ids_on_the_host)
    inductor = partial(right.recorded, arch="llama", device_compiler="inductor")
    found["recorded.llama.inductor"] = Case(180, inductor)
    return {f"right.{name}": case for name, case in found.items()}


def _timed() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for shape, layers in (("1B", None), ("1B", 4), ("8B", 4)):
        name = shape if layers is None else f"{shape}.{layers}_layers"
        whole = partial(decode.unsharded, shape=shape, layers=layers)
        split = partial(decode.split, shape=shape, layers=layers)
        found |= {
            f"decode.{name}.unsharded": Case(60, whole),
            f"decode.{name}.1_rank": Case(90, split),
            f"decode.{name}.2_ranks": Case(90, partial(split, ranks=2)),
            f"decode.{name}.unsharded_compiled": Case(120, partial(whole, compiled=True)),
            f"decode.{name}.1_rank_inductor": Case(120, partial(split, device_compiler="inductor")),
            f"decode.{name}.1_rank_not_recorded": Case(90, partial(split, mode="default")),
            f"decode.{name}.2_ranks_not_recorded": Case(90, partial(split, ranks=2, mode="default")),
        }
    return found


def _costs() -> dict[str, Case]:
    found = {"cost.machine": Case(30, cost.machine)}
    for threads in (1, 2, 4):
        found[f"cost.ops_in_{threads}_threads"] = Case(30, partial(cost.ops, threads=threads))
    found["cost.empty_run"] = Case(30, cost.empty_run)
    found["cost.small_all_reduce"] = Case(30, cost.small_all_reduce)
    found["cost.attention_at_new_lengths"] = Case(30, cost.new_lengths)
    return found


RIGHT, TIMED, COSTS = _right(), _timed(), _costs()
CASES = {**RIGHT, **TIMED, **COSTS}
