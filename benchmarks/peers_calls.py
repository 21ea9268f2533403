"""How people call a model: each behaviour is a function of a trial, which returns what it saw."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.peers_models import VOCABULARY, Trial, of

TEXTS = ("decoder", "encoder", "pair")
ALL = (*TEXTS, "speech", "image")


def attended(trial: Trial, left: bool) -> dict[str, Any]:
    """Inputs with a mask that leaves out two tokens of the first row and none of the second."""
    given = trial.inputs(2, 9)
    if "mixed" in trial.of.kinds:
        del given["pixel_values"]
        given["input_ids"] = trial.ids(2, 9)
    mask = torch.ones_like(given["input_ids"])
    mask[0, slice(0, 2) if left else slice(-2, None)] = 0
    return {**given, "attention_mask": mask}


def labelled(trial: Trial, rows: int = 2, length: int = 7, seed: int = 0) -> dict[str, Any]:
    """Inputs with labels, some left out."""
    given = trial.inputs(rows, length, seed)
    if "image" in trial.of.kinds:
        return {**given, "labels": torch.arange(rows) % 2}
    labels = given["decoder_input_ids" if "decoder_input_ids" in given else "input_ids"].clone()
    labels[:, :2] = -100
    labels[labels == VOCABULARY - 1] = -100
    given.pop("decoder_input_ids", None)
    return {**given, "labels": labels}


@of(*ALL)
def tuples(trial: Trial) -> Any:
    return trial.shared()(**trial.inputs(), return_dict=False)


@of(*ALL)
def hidden_states(trial: Trial) -> Any:
    return trial.shared()(**trial.inputs(), output_hidden_states=True)


@of(*ALL)
def attentions(trial: Trial) -> Any:
    model = trial.shared(attention="eager")
    return model(**trial.inputs(), output_attentions=True, output_hidden_states=True)


@of(*TEXTS)
def masks_padded_left(trial: Trial) -> Any:
    return trial.shared()(**attended(trial, left=True))


@of(*TEXTS)
def masks_padded_right(trial: Trial) -> Any:
    return trial.shared()(**attended(trial, left=False))


@of(*TEXTS)
def masks_of_4_dimensions(trial: Trial) -> Any:
    given = trial.inputs(2, 6)
    ids = trial.ids(2, 6)
    mask = torch.zeros(2, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(2).bool(), torch.finfo(torch.float).min)
    return trial.shared()(**{**given, "input_ids": ids, "attention_mask": mask} | _without_images(trial))


def _without_images(trial: Trial) -> dict[str, Any]:
    return {"pixel_values": None} if "mixed" in trial.of.kinds else {}


@of(*TEXTS, "speech")
def embeddings_for_ids(trial: Trial) -> Any:
    model, given = trial.shared(), trial.inputs() | _without_images(trial)
    ids = trial.ids()
    names = ("decoder_input_ids", "decoder_inputs_embeds")
    if "speech" not in trial.of.kinds:
        names = ("input_ids", "inputs_embeds")
    del given[names[0]]
    table = model.get_input_embeddings() if names[0] == "input_ids" else model.get_decoder().embed_tokens
    return model(**given, **{names[1]: table(ids)})


@of(*ALL)
def loss(trial: Trial) -> Any:
    return trial.shared()(**labelled(trial))


@of(*ALL)
def sizes_in_a_row(trial: Trial) -> Any:
    sizes = [(1, 5), (3, 9), (2, 4), (4, 12), (1, 1), (5, 3)]
    return [trial.shared()(**trial.inputs(*size, seed=at)) for at, size in enumerate(sizes)]


@of("decoder")
def cache_by_hand(trial: Trial) -> Any:
    model, said, cache = trial.shared(), [], None
    name = "cache_params" if trial.arch == "mamba" else "past_key_values"
    for at, length in enumerate((6, 1, 1, 3, 1)):
        given = {"input_ids": trial.ids(2, length, at), name: cache, "use_cache": True}
        if trial.arch == "mamba" and at and length > 1:
            continue
        result = model(**given)
        cache = result[name]
        said.append(result.logits)
    return said, cache


@of("pair", "speech")
def cache_of_a_decoder_by_hand(trial: Trial) -> Any:
    model, said, cache = trial.shared(), [], None
    given = trial.inputs()
    del given["decoder_input_ids"]
    encoded = model.get_encoder()(**given)
    for at, length in enumerate((4, 1, 2, 1)):
        ids = trial.ids(2, length, at)
        result = model(decoder_input_ids=ids, encoder_outputs=encoded, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        said.append(result.logits)
    return encoded, said, cache


@of("decoder", "pair", "speech")
def without_a_cache(trial: Trial) -> Any:
    return trial.shared()(**trial.inputs(), use_cache=False)


@of("positions", "encoder")
def positions_given(trial: Trial) -> Any:
    positions = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [0, 0, 1, 2, 3, 4, 5]])
    return trial.shared()(**trial.inputs(), position_ids=positions)


@of("decoder")
def logits_to_keep(trial: Trial) -> Any:
    return [trial.shared()(**trial.inputs(), logits_to_keep=count) for count in (1, 3)]


@of(*ALL)
def the_same_twice(trial: Trial) -> Any:
    first, second = (trial.shared()(**trial.inputs(), return_dict=False)[0] for _ in range(2))
    return torch.equal(first, second)


@of(*ALL)
def base_model(trial: Trial) -> Any:
    return trial.shared(trial.of.base)(**trial.inputs())


@of(*ALL)
def parts_called(trial: Trial) -> Any:
    """Of one model: its base, its encoder, its images' features."""
    model, given = trial.shared(), trial.inputs()
    said = [model.base_model(**given)]
    if {"pair", "speech"} & trial.of.kinds:
        del given["decoder_input_ids"]
        said.append(model.get_encoder()(**given))
    if "mixed" in trial.of.kinds:
        said.append(model.get_image_features(given["pixel_values"]))
        said.append(model.get_input_embeddings()(trial.ids()))
    return said


@of(*ALL)
def what_it_says_of_itself(trial: Trial) -> Any:
    model = trial.shared()
    model(**trial.inputs())
    state = model.state_dict()
    counts = model.num_parameters(), model.num_parameters(only_trainable=True, exclude_embeddings=True)
    shapes = {name: (tuple(value.shape), str(value.dtype)) for name, value in state.items()}
    return str(model.dtype), str(model.device), counts, model.get_memory_footprint(), shapes, state


@of("mixtral")
def router_logits(trial: Trial) -> Any:
    return trial.shared()(**labelled(trial), output_router_logits=True)


@of(*ALL)
def attention_switched(trial: Trial) -> Any:
    model, said = trial.fresh(), []
    for name in ("sdpa", "eager", "sdpa"):
        model.set_attn_implementation(name)
        said.append(model(**trial.inputs()))
    return said


@of(*ALL)
def attention_flexible(trial: Trial) -> Any:
    return trial.fresh(attention="flex_attention")(**trial.inputs())


class _First(nn.Module):
    """What tracers can take: a tensor for a tensor."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, value: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        given = dict(zip((self.name, "decoder_input_ids"), (value, *more), strict=False))
        return self.model(**given, return_dict=True)[0]


def _traceable(trial: Trial) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    given = trial.inputs()
    if "mixed" in trial.of.kinds:
        given = {"input_ids": trial.ids()}
    name = next(iter(given))
    return _First(trial.fresh(use_cache=False), name), tuple(given.values())


@of(*ALL)
def exported(trial: Trial) -> Any:
    model, given = _traceable(trial)
    return torch.export.export(model, given).module()(*given)


@of(*ALL)
def traced(trial: Trial) -> Any:
    model, given = _traceable(trial)
    return torch.jit.trace(model, given, check_trace=False)(*given)
