"""Options of `generate`: each behaviour is a function of a trial, which returns what it saw."""

from __future__ import annotations

import queue
from typing import Any

import torch
import transformers as tf

from benchmarks.peers_models import VOCABULARY, Trial, of

PATIENCE = 30.0  # seconds for the next word of a stream
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def write(
    trial: Trial, model: Any = None, rows: int = 2, length: int = 7, seed: int = 0, **options: Any
) -> Any:
    """What `generate` returns: greedily 6 tokens, or as told."""
    torch.manual_seed(11)
    model = trial.shared() if model is None else model
    return model.generate(**trial.prompt(rows, length, seed), **(GREEDY | options))


@of("generates")
def greedy(trial: Trial) -> Any:
    return write(trial)


@of("generates")
def lengths_and_batches_in_turns(trial: Trial) -> Any:
    return [write(trial, rows=rows, length=length, seed=length) for rows, length in ((2, 5), (1, 9), (3, 4))]


@of("generates")
def sampled(trial: Trial) -> Any:
    more = ({}, {"top_k": 10, "top_p": 0.8, "temperature": 0.7}, {"min_p": 0.01}, {"typical_p": 0.8})
    return [write(trial, do_sample=True, **one) for one in more]


@of("generates")
def beams(trial: Trial) -> Any:
    return [
        write(trial, num_beams=3),
        write(trial, num_beams=4, num_return_sequences=2, length_penalty=2.0, early_stopping=True),
    ]


@of("generates")
def beams_sampled(trial: Trial) -> Any:
    return write(trial, num_beams=3, do_sample=True, top_k=20)


@of("generates")
def several_sequences(trial: Trial) -> Any:
    return write(trial, do_sample=True, num_return_sequences=3)


@of("generates")
def everything_returned(trial: Trial) -> Any:
    result = write(
        trial,
        trial.shared(attention="eager"),
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    return dict(result)


@of("generates")
def everything_returned_of_beams(trial: Trial) -> Any:
    model = trial.shared(attention="eager")
    more = {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True}
    result = write(trial, model, num_beams=3, output_hidden_states=True, **more)
    scores = model.compute_transition_scores(result.sequences, result.scores, result.beam_indices)
    return dict(result), scores


@of("decoder")
def prompts_padded_left(trial: Trial) -> Any:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    given = {"input_ids": trial.ids(2, 9), "attention_mask": mask}
    return [trial.shared().generate(**given, **GREEDY, num_beams=count) for count in (1, 2)]


@of("decoder")
def from_embeddings(trial: Trial) -> Any:
    model = trial.shared()
    given = model.get_input_embeddings()(trial.ids())
    return [
        model.generate(inputs_embeds=given, **GREEDY),
        model.generate(input_ids=trial.ids(), inputs_embeds=given, **GREEDY),
    ]


class _Odd(tf.LogitsProcessor):
    """Lets only odd tokens pass."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, ::2] = -torch.inf
        return scores + 0.01 * (input_ids[:, -1:] % 3)


@of("generates")
def own_processor(trial: Trial) -> Any:
    return write(trial, logits_processor=tf.LogitsProcessorList([_Odd()]))


@of("generates")
def own_criterion(trial: Trial) -> Any:
    class Enough(tf.StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return (input_ids[:, -1] % 2 == 0) | torch.full((len(input_ids),), input_ids.shape[1] > 30)

    given = tf.StoppingCriteriaList([Enough()])
    return write(trial, stopping_criteria=given, return_dict_in_generate=True, output_scores=True).sequences


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"abcdef": 0} | {
        f"w{at}": at for at in range(1, VOCABULARY)
    }  # the first is what transformers tries
    tokenizer = Tokenizer(models.WordLevel(words, "w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w1", unk_token="w1")


@of("generates")
def stop_strings(trial: Trial) -> Any:
    free = write(trial, rows=1, max_new_tokens=10)
    word = f"w{int(free[0, -4])}"
    return free, write(trial, rows=1, max_new_tokens=10, stop_strings=[word], tokenizer=_tokenizer())


class _Heard(tf.generation.streamers.BaseStreamer):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.clone())

    def end(self) -> None:
        self.heard.append("end")


@of("generates")
def streamed(trial: Trial) -> Any:
    heard = _Heard()
    return write(trial, rows=1, streamer=heard), heard.heard


@of("generates")
def streamed_as_text(trial: Trial) -> Any:
    streamer = tf.TextIteratorStreamer(_tokenizer(), timeout=PATIENCE)
    write(trial, rows=1, streamer=streamer)
    try:
        return list(streamer)
    except queue.Empty:
        return "nothing more was heard"


@of("generates")
def lengths_bounded(trial: Trial) -> Any:
    first = write(trial)
    stop = int(first[0, -4])
    return [
        write(trial, eos_token_id=stop),
        write(trial, eos_token_id=stop, min_new_tokens=5),
        write(trial, eos_token_id=[stop, int(first[1, -2])], min_length=4, pad_token_id=2),
        write(trial, max_new_tokens=None, max_length=12),
        write(trial, eos_token_id=stop, exponential_decay_length_penalty=(2, 1.5)),
    ]


@of("generates")
def penalties_and_words(trial: Trial) -> Any:
    first = write(trial)
    said = [int(one) for one in first[0, -3:]]
    return [
        write(trial, repetition_penalty=1.4, no_repeat_ngram_size=2),
        write(trial, bad_words_ids=[[said[0]], said[1:]]),
        write(trial, suppress_tokens=said, begin_suppress_tokens=[9]),
        write(trial, forced_eos_token_id=4, eos_token_id=4),
        write(trial, forced_bos_token_id=8),
        write(trial, sequence_bias=[[[said[0]], -5.0], [[7], 3.0]]),
        write(trial, remove_invalid_values=True, renormalize_logits=True),
        write(trial, num_beams=3, repetition_penalty=1.2, no_repeat_ngram_size=2, bad_words_ids=[[1, 5]]),
    ]


@of("pair", "speech")
def penalties_of_the_encoders_tokens(trial: Trial) -> Any:
    return write(trial, encoder_repetition_penalty=1.3, encoder_no_repeat_ngram_size=2)


@of("generates")
def tokens_allowed_by_a_function(trial: Trial) -> Any:
    return write(trial, num_beams=2, prefix_allowed_tokens_fn=lambda row, ids: list(range(10 + row, 60)))


@of("decoder")
def guided(trial: Trial) -> Any:
    said = [write(trial, guidance_scale=1.8)]
    negative = trial.ids(2, 4, 9)
    return [*said, write(trial, guidance_scale=1.8, negative_prompt_ids=negative)]


@of("generates")
def watermarked(trial: Trial) -> Any:
    config = tf.WatermarkingConfig(bias=2.5, seeding_scheme="selfhash")
    said = [write(trial, watermarking_config=config)]
    keys = tf.SynthIDTextWatermarkingConfig(ngram_len=3, keys=[3, 5, 7])
    return [*said, write(trial, watermarking_config=keys, do_sample=True, length=8)]
