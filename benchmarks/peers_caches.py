"""Caches of `generate` and where it begins: each behaviour is a function of a trial."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as tf

from benchmarks.peers_generate import GREEDY, write
from benchmarks.peers_models import Trial, of


def repeating(trial: Trial) -> dict[str, Any]:
    """A prompt of one row that says the same three times."""
    if "speech" in trial.of.kinds:
        return trial.prompt(1)
    return {"input_ids": trial.ids(1, 5).repeat(1, 3)}


@of("cache")
def continued_from_a_cache(trial: Trial) -> Any:
    if "decoder" not in trial.of.kinds:
        raise NotImplementedError("a decoder goes on from its own tokens")
    model = trial.shared()
    first = write(trial, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, trial.ids(2, 3, 5)], 1)
    cache = copy.deepcopy(first.past_key_values)
    said = [model.generate(longer, past_key_values=one, **GREEDY) for one in (first.past_key_values, cache)]
    return first.sequences, said


@of("generates")
def looked_up_in_the_prompt(trial: Trial) -> Any:
    return trial.shared().generate(**repeating(trial), **GREEDY, prompt_lookup_num_tokens=3)


def _assistant(trial: Trial, split: bool) -> Any:
    settings = {"t5": "num_layers", "gpt2": "n_layer", "bart": "decoder_layers", "whisper": "decoder_layers"}
    name = settings.get(trial.arch, "num_hidden_layers")
    if "mixed" in trial.of.kinds:
        raise NotImplementedError("an assistant sees no images")
    return (trial.fresh if split else trial.plain)(**{name: 1})


@of("generates")
def assisted_by_an_undivided_model(trial: Trial) -> Any:
    draft = _assistant(trial, False)
    return [
        trial.shared().generate(**repeating(trial), **(GREEDY | more), assistant_model=draft)
        for more in ({}, {"max_new_tokens": 9})
    ]


@of("generates")
def assisted_by_a_divided_model(trial: Trial) -> Any:
    return trial.shared().generate(**repeating(trial), **GREEDY, assistant_model=_assistant(trial, True))


@of("generates")
def assisted_while_sampling(trial: Trial) -> Any:
    torch.manual_seed(4)
    options = {"do_sample": True, "max_new_tokens": 6, "assistant_model": _assistant(trial, False)}
    return trial.shared().generate(**repeating(trial), **options)


@of("llama", "phi3", "mixtral")
def assisted_by_its_own_first_layer(trial: Trial) -> Any:
    return trial.shared().generate(**repeating(trial), **GREEDY, assistant_early_exit=1)


def _cached(trial: Trial, name: str, **more: Any) -> Any:
    sizes = ((2, 7), (1, 10), (2, 7))
    return [write(trial, rows=rows, length=size, cache_implementation=name, **more) for rows, size in sizes]


@of("generates")
def cache_dynamic(trial: Trial) -> Any:
    return _cached(trial, "dynamic")


@of("generates")
def cache_static(trial: Trial) -> Any:
    return _cached(trial, "static")


@of("generates")
def cache_static_of_beams(trial: Trial) -> Any:
    return write(trial, cache_implementation="static", num_beams=2)


@of("generates")
def cache_offloaded(trial: Trial) -> Any:
    return _cached(trial, "offloaded")


@of("generates")
def cache_offloaded_static(trial: Trial) -> Any:
    return _cached(trial, "offloaded_static")


@of("generates")
def cache_quantized(trial: Trial) -> Any:
    settings = {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 4}
    return _cached(trial, "quantized", cache_config=settings)


@of("decoder")
def cache_given(trial: Trial) -> Any:
    model, said = trial.shared(), []
    config = model.config.get_text_config()
    for cache in (tf.DynamicCache(config=config), tf.StaticCache(config=config, max_cache_len=30)):
        said += [model.generate(trial.ids(), past_key_values=cache, **GREEDY), cache.get_seq_length()]
    return said


@of("mixtral", "phi3")
def cache_that_slides(trial: Trial) -> Any:
    model = trial.fresh(sliding_window=5)
    return [write(trial, model, length=9), write(trial, model, length=3, cache_implementation="static")]


@of("generates")
def no_cache(trial: Trial) -> Any:
    return write(trial, use_cache=False)


@of("decoder")
def prompts_in_chunks(trial: Trial) -> Any:
    return trial.shared().generate(trial.ids(2, 11), prefill_chunk_size=4, **GREEDY)


@of("generates")
def compiled_by_transformers(trial: Trial) -> Any:
    config = tf.CompileConfig(backend="aot_eager", mode=None, fullgraph=False)
    config._compile_all_devices = True
    return _cached(trial, "static", compile_config=config)


@of("llama", "phi3", "mixtral", "gpt2")
def batches_that_continue(trial: Trial) -> Any:
    model = trial.shared(attention="paged|sdpa")
    config = tf.GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=-1, pad_token_id=0)
    prompts = [trial.ids(1, length, length)[0].tolist() for length in (4, 9, 6)]
    sizes = tf.ContinuousBatchingConfig(page_size=16, num_blocks=16, max_batch_tokens=32)
    said = model.generate_batch(
        prompts, generation_config=config, continuous_batching_config=sizes, progress_bar=False
    )
    return [one.generated_tokens for one in said.values()]


@of("pair")
def from_decoder_tokens(trial: Trial) -> Any:
    start = torch.cat([torch.full((2, 1), 2), trial.ids(2, 3, 4)], 1)
    return [
        write(trial, decoder_input_ids=start, **more) for more in ({}, {"do_sample": True}, {"num_beams": 2})
    ]


@of("pair", "speech")
def from_encoder_outputs(trial: Trial) -> Any:
    model = trial.shared()
    encoded = model.get_encoder()(**trial.prompt())
    said = model.generate(encoder_outputs=encoded, **GREEDY)
    return encoded, said, model.generate(encoder_outputs=encoded, num_beams=2, **GREEDY)


@of("pair")
def encoders_masks(trial: Trial) -> Any:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    return [write(trial, attention_mask=mask, num_beams=count) for count in (1, 2)]


@of("mixed")
def without_images(trial: Trial) -> Any:
    model = trial.shared()
    return model.generate(trial.ids(), **GREEDY), write(trial), model.generate(trial.ids(1, 4), **GREEDY)


@of("speech")
def speech_of_its_own(trial: Trial) -> Any:
    """Whisper's own options: tokens to begin with, returned segments, timestamps of words, fallbacks."""
    model = trial.fresh()
    settings = model.generation_config
    settings.no_timestamps_token_id, settings.begin_suppress_tokens = 70, [9]
    settings.is_multilingual, settings.max_initial_timestamp_index = False, 4
    given = trial.prompt()["input_features"]
    prompt = trial.ids(1, 3, 2)[0]
    return [
        model.generate(given, max_new_tokens=6),
        model.generate(given, max_new_tokens=6, return_timestamps=True),
        model.generate(given, max_new_tokens=6, prompt_ids=prompt),
        model.generate(given, max_new_tokens=6, num_beams=2, return_segments=True, return_timestamps=True),
        model.generate(
            given.repeat(1, 1, 2),
            attention_mask=torch.ones(2, 120, dtype=torch.long),
            max_new_tokens=6,
            return_timestamps=True,
        ),
        model.generate(given, max_new_tokens=6, temperature=(0.0, 0.4), logprob_threshold=-1.0),
    ]


@of("generates")
def in_training_mode_and_with_gradients(trial: Trial) -> Any:
    model = trial.fresh()
    with torch.enable_grad():
        said = write(trial, model)
        torch.manual_seed(0)
        loss = model(
            **{**trial.inputs(), "labels": trial.inputs().get("decoder_input_ids", trial.ids())[:, :]}
        ).loss
        loss.backward()
    return said, loss, write(trial, model)


@of("generates")
def in_half_precision(trial: Trial) -> Any:
    model = trial.fresh().bfloat16()
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in trial.prompt().items()}
    said = model.generate(**given, **GREEDY, return_dict_in_generate=True, output_logits=True)
    return said.logits[0].bfloat16()  # which generate has made float32 of
