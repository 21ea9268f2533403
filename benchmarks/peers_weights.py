"""How people train a model and change its weights: each behaviour is a function of a trial."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers_calls import ALL, TEXTS, labelled
from benchmarks.peers_models import VOCABULARY, Trial, of


def gradients(model: Any) -> dict[str, Any]:
    """Of every parameter, None where there is none."""
    return {name: weight.grad for name, weight in model.named_parameters()}


@of(*ALL)
def halves(trial: Trial) -> Any:
    said = []
    for dtype in (torch.bfloat16, torch.float16):
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in trial.inputs().items()}
        said.append(trial.ready(trial.plain().to(dtype))(**given, return_dict=False)[0])
    model = trial.fresh()
    model(**trial.inputs())
    return said, model.bfloat16()(**given_in(trial, torch.bfloat16), return_dict=False)[0]


def given_in(trial: Trial, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs, those of floating point in a dtype."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in trial.inputs().items()}


@of(*ALL)
def train_and_eval_in_turns(trial: Trial) -> Any:
    model, said = trial.fresh(), []
    for training in (False, True, False, True):
        torch.manual_seed(3)
        said.append(model.train(training)(**trial.inputs(), return_dict=False)[0])
    return said


def trained(trial: Trial, model: Any, sizes: Any = ((2, 7), (3, 5))) -> Any:
    """Losses and gradients of two batches, added up."""
    losses = []
    with torch.enable_grad():
        for at, size in enumerate(sizes):
            torch.manual_seed(at)
            loss = model(**labelled(trial, *size, seed=at)).loss
            loss.backward()
            losses.append(loss)
    return losses, gradients(model)


@of(*ALL)
def gradients_of_every_parameter(trial: Trial) -> Any:
    return trained(trial, trial.fresh().train())


@of(*ALL)
def gradients_of_a_base(trial: Trial) -> Any:
    model = trial.fresh(trial.of.base)
    with torch.enable_grad():
        model(**trial.inputs())[0].sin().mean().backward()  # a norm's squares always have the same sum
    return gradients(model)


@of(*ALL)
def frozen_weights(trial: Trial) -> Any:
    model = trial.plain()
    for at, weight in enumerate(model.parameters()):
        weight.requires_grad_(at % 3 == 0)
    return trained(trial, trial.ready(model))


@of(*ALL)
def checkpoints_reentrant(trial: Trial) -> Any:
    return _checkpointed(trial, True)


@of(*ALL)
def checkpoints_not_reentrant(trial: Trial) -> Any:
    return _checkpointed(trial, False)


def _checkpointed(trial: Trial, reentrant: bool) -> Any:
    model = trial.fresh().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    first = trained(trial, model)
    model.gradient_checkpointing_disable()
    return model.is_gradient_checkpointing, first, trained(trial, model)


@of(*ALL)
def inputs_that_require_gradients(trial: Trial) -> Any:
    model = trial.fresh().train()
    for weight in model.parameters():
        weight.requires_grad_(False)
    model.enable_input_require_grads()
    seen: list[Any] = []
    table = model.get_input_embeddings()
    handle = table.register_forward_hook(lambda _, __, result: (result.retain_grad(), seen.append(result))[1])
    with torch.enable_grad():
        model(**labelled(trial)).loss.backward()
    handle.remove()
    model.disable_input_require_grads()
    return [one.grad for one in seen]


@of(*ALL)
def gradients_kept_of_states(trial: Trial) -> Any:
    model = trial.fresh(attention="eager")
    with torch.enable_grad():
        result = model(**trial.inputs(), output_hidden_states=True, output_attentions=True)
        names = [name for name in result if "hidden_states" in name or "attentions" in name]
        kept = [one for name in names for one in result[name] if isinstance(one, torch.Tensor)]
        for one in kept:
            one.retain_grad()
        result[0].flatten()[3].backward()
    return [one.grad for one in kept]


def _state(model: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _tied(model: Any) -> Any:
    """Which parameters are one, by name."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


@of(*TEXTS, "speech")
def embeddings_resized_before(trial: Trial) -> Any:
    model = trial.plain()
    model.resize_token_embeddings(VOCABULARY + 6, mean_resizing=False)
    model = trial.ready(model)
    return model(**trial.inputs()), model.config.vocab_size if hasattr(model.config, "vocab_size") else 0


@of(*TEXTS, "speech")
def embeddings_resized_after(trial: Trial) -> Any:
    model, said = trial.fresh(), []
    for size in (VOCABULARY + 10, VOCABULARY, VOCABULARY + 1):
        said.append(model(**trial.inputs(seed=1)))
        torch.manual_seed(5)
        model.resize_token_embeddings(size, mean_resizing=False)
        said += [model(**trial.inputs()), model.get_input_embeddings().weight.shape, _tied(model)]
    return said, _state(model)


@of(*TEXTS, "speech")
def embeddings_resized_to_the_mean(trial: Trial) -> Any:
    model = trial.fresh()
    model(**trial.inputs())
    torch.manual_seed(5)
    table = model.resize_token_embeddings(VOCABULARY + 3, pad_to_multiple_of=8)
    return tuple(table.weight.shape), model(**trial.inputs())


@of(*TEXTS, "speech")
def embeddings_set(trial: Trial) -> Any:
    model = trial.fresh()
    before = model(**trial.inputs())
    torch.manual_seed(7)
    new = nn.Embedding(VOCABULARY, 64)
    model.set_input_embeddings(new)
    same = model.get_input_embeddings() is new
    return before, same, model(**trial.inputs()), model.get_output_embeddings() is None


@of(*TEXTS, "speech")
def weights_tied(trial: Trial) -> Any:
    said = []
    for tied in (True, False):
        model = trial.fresh(tie_word_embeddings=tied)
        said += [_tied(model), model(**trial.inputs()), _tied(model)]
        model.tie_weights()
        with torch.no_grad():
            model.get_input_embeddings().weight[:40] += 0.5
        said += [_tied(model), model(**trial.inputs()), trained(trial, model)]
    return said


@of("encoder")
def chunks_of_the_feed_forward(trial: Trial) -> Any:
    return [trial.fresh(chunk_size_feed_forward=size)(**trial.inputs(2, 6)) for size in (1, 3)]


@of(*ALL)
def problem_types(trial: Trial) -> Any:
    if not trial.of.classifier:
        raise NotImplementedError("no classifier of sequences")
    said, rows = [], 3
    wants = {
        "regression": (1, torch.rand(rows)),
        "single_label_classification": (3, torch.arange(rows) % 3),
        "multi_label_classification": (3, torch.eye(3)),
    }
    for kind, (labels, wanted) in wants.items():
        model = trial.fresh(trial.of.classifier, num_labels=labels, problem_type=kind)
        given = trial.inputs(rows) | ({"decoder_input_ids": None} if "pair" in trial.of.kinds else {})
        if "pair" in trial.of.kinds:
            given = {"input_ids": torch.cat([trial.ids(rows), torch.ones(rows, 1, dtype=torch.long)], 1)}
        with torch.enable_grad():
            result = model(**given, labels=wanted)
            result.loss.backward()
        said += [result, gradients(model)]
    return said


@of(*ALL)
def saved_and_read(trial: Trial) -> Any:
    model = trial.fresh()
    said = [model(**trial.inputs())]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        names = sorted(path.name for path in Path(folder).iterdir())
        again = type(model).from_pretrained(folder).eval()
    split = trial.ready(again)
    return names, said, _state(again), split(**trial.inputs()), _tied(split)


@of(*ALL)
def states_loaded(trial: Trial) -> Any:
    model, other = trial.fresh(), trial.plain()
    before = model(**trial.inputs())
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    missing = model.load_state_dict(other.state_dict())
    return before, list(missing), model(**trial.inputs()), _state(model)
