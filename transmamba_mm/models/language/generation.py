# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Generation with a state of constant size: greedy, top-p and beam search."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional, Protocol, Union

import torch
from torch import Tensor

from transmamba_mm.checks import check_int, check_number, check_positive

from ..layers import MixerState

Ids = Union[int, Sequence[int], None]

#: Arguments of a model's forward pass that make a prompt.
PROMPT = (
    'input_ids',
    'attention_mask',
    'inputs_embeds',
    'image_mask',
    'question_mask',
)


class Decoder(Protocol):
    """What generation needs of a model; see ``TransMambaLM``."""

    def __call__(self, **prompt: Any) -> Tensor:
        """Logits (B, 1, V) with ``states`` and ``last_only=True``."""

    def new_states(self, batch: int) -> list[MixerState]:
        """The states before the first token."""

    def step(self, tokens: Tensor, states: Sequence[MixerState]) -> Tensor:
        """Logits (B, V) behind one more token of each sequence (B,)."""


def _start(
    model: Decoder, prompt: dict[str, Any]
) -> tuple[Tensor, list[MixerState]]:
    """Reads the prompts; log-probabilities (B, V) of what follows."""
    for name in prompt.keys() - set(PROMPT):
        raise ValueError(
            f'generation has no option {name!r}: it knows max_new_tokens, '
            f'num_beams, length_penalty, do_sample, temperature, top_p, '
            f'generator, eos_token_id and pad_token_id'
        )
    mask = prompt.get('attention_mask')
    if mask is not None and not mask[:, -1].all():
        raise ValueError(
            'prompts of several lengths must be padded on the left to '
            'generate: the last column of attention_mask is not all 1'
        )
    first = prompt.get('input_ids')
    first = prompt.get('inputs_embeds') if first is None else first
    states = model.new_states(0 if first is None else len(first))
    logits = model(**prompt, states=states, last_only=True)
    return _log_probs(logits[:, 0]), states


def _log_probs(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _stops(eos_token_id: Ids, device: torch.device) -> Tensor:
    ids = [] if eos_token_id is None else eos_token_id
    ids = [ids] if isinstance(ids, int) else list(ids)
    return torch.tensor(ids, dtype=torch.long, device=device)


def _sampler(
    temperature: float, top_p: float, generator: Optional[torch.Generator]
) -> Callable[[Tensor], Tensor]:
    """Draws tokens (B,) from the likeliest ones of log-probabilities (B, V).

    The likeliest that have the probability ``top_p`` together, at least one.
    """
    check_positive('temperature', temperature)
    check_positive('top_p', check_number('top_p', top_p, 0, 1))

    def pick(scores: Tensor) -> Tensor:
        probs = (scores / temperature).softmax(-1)
        ranked, ids = probs.sort(-1, descending=True)
        before = ranked.cumsum(-1) - ranked
        ranked = ranked.masked_fill(before >= top_p, 0)
        drawn = torch.multinomial(ranked, 1, generator=generator)
        return ids.gather(1, drawn)[:, 0]

    return pick


@torch.no_grad()
def stream(
    model: Decoder,
    *,
    max_new_tokens: int,
    eos_token_id: Ids = None,
    pad_token_id: int = 0,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: Optional[torch.Generator] = None,
    **prompt: Any,
) -> Iterator[Tensor]:
    """Generates token after token.

    Args:
        model (TransMambaLM): The model.
        max_new_tokens (int): The most that are generated.
        eos_token_id (int | Sequence[int], optional): What ends a sequence.
            Defaults to None, nothing.
        pad_token_id (int): What follows in a sequence that has ended.
            Defaults to 0.
        do_sample (bool): Whether to draw tokens; else the likeliest is
            taken. Defaults to False.
        temperature (float): Divides the scores. Defaults to 1.
        top_p (float): Draw from the likeliest tokens that have this
            probability together. Defaults to 1, all.
        generator (torch.Generator, optional): Of the draws.
        **prompt: Arguments of :meth:`TransMambaLM.forward`, padded on the
            left.

    Yields:
        Tensor: The next token of each sequence (B,).

    Raises:
        ValueError: If an option is not supported, or prompts are padded on
            the right.
    """
    check_int('max_new_tokens', max_new_tokens)
    pick = _sampler(temperature, top_p, generator)
    if not do_sample:
        pick = _likeliest
    scores, states = _start(model, prompt)
    stops = _stops(eos_token_id, scores.device)
    ended = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    for count in range(1, max_new_tokens + 1):
        tokens = pick(scores).masked_fill(ended, pad_token_id)
        yield tokens
        ended = ended | torch.isin(tokens, stops)
        if ended.all() or count == max_new_tokens:
            return
        scores = _log_probs(model.step(tokens, states))


_DRAWS = ('temperature', 'top_p', 'generator')


def _likeliest(scores: Tensor) -> Tensor:
    return scores.argmax(-1)


def generate(
    model: Decoder,
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    eos_token_id: Ids = None,
    pad_token_id: int = 0,
    do_sample: bool = False,
    **options: Any,
) -> Tensor:
    """Generates the continuation of prompts.

    Args:
        model (TransMambaLM): The model.
        max_new_tokens (int): See :func:`stream`.
        num_beams (int): Sequences kept by beam search; 1 for none. Defaults
            to 1.
        length_penalty (float): Beam search divides the log-probability of a
            sequence by its length to this power. Defaults to 1.
        eos_token_id (int | Sequence[int], optional): See :func:`stream`.
        pad_token_id (int): See :func:`stream`.
        do_sample (bool): See :func:`stream`.
        **options: The prompt and further options of :func:`stream`, which
            have no meaning where nothing is drawn.

    Returns:
        Tensor: New tokens (B, T), without the prompt, with what ends them,
        then padding; T at most ``max_new_tokens``.

    Raises:
        ValueError: See :func:`stream`; or if beam search shall draw.
    """
    limits = dict(
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    if check_int('num_beams', num_beams) == 1:
        tokens = stream(model, **limits, do_sample=do_sample, **options)
        return torch.stack(list(tokens), dim=1)
    if do_sample:
        raise ValueError('beam search does not draw: set do_sample=False')
    # What else there is says how to draw.
    prompt = {x: options[x] for x in options if x not in _DRAWS}
    return _beam_search(model, num_beams, length_penalty, **limits, **prompt)


@torch.no_grad()
def _beam_search(
    model: Decoder,
    beams: int,
    length_penalty: float,
    max_new_tokens: int,
    eos_token_id: Ids,
    pad_token_id: int,
    **prompt: Any,
) -> Tensor:
    check_int('max_new_tokens', max_new_tokens)
    scores, states = _start(model, prompt)
    batch, vocab = scores.shape
    stops = _stops(eos_token_id, scores.device)
    offset = torch.arange(batch, device=scores.device).unsqueeze(1)
    # One beam of each sequence to begin with.
    total = scores.new_zeros(batch, 1)
    tokens = scores.new_empty(batch, 1, 0, dtype=torch.long)
    best = [(-float('inf'), tokens[0, 0])] * batch
    for length in range(1, max_new_tokens + 1):
        kept = tokens.shape[1]
        grown = total.unsqueeze(2) + scores.view(batch, kept, vocab)
        # Of as many as this, no more than `beams` per stop can have ended.
        wide = min(beams * (1 + len(stops)), kept * vocab)
        grown, place = grown.flatten(1).topk(wide)
        source, new = place // vocab, place % vocab
        tokens = torch.cat(
            [tokens.take_along_dim(source.unsqueeze(2), 1), new.unsqueeze(2)],
            dim=2,
        )
        ended = torch.isin(new, stops) | (length == max_new_tokens)
        final = (grown / length**length_penalty).masked_fill(
            ~ended, -torch.inf
        )
        for i, (value, j) in enumerate(zip(*final.max(1))):
            if value > best[i][0]:
                best[i] = (value.item(), tokens[i, j])
        grown = grown.masked_fill(ended, -torch.inf)
        total, alive = grown.topk(min(beams, wide))
        # What is added lowers the total, but its mean may rise.
        longest = max_new_tokens if length_penalty > 0 else length + 1
        bound = total[:, 0] / longest**length_penalty
        if all(bound[i] <= best[i][0] for i in range(batch)):
            break
        tokens = tokens.take_along_dim(alive.unsqueeze(2), 1)
        source = source.take_along_dim(alive, 1)
        rows = (offset * kept + source).flatten()
        for state in states:
            state.select(rows)
        scores = _log_probs(model.step(tokens[..., -1].flatten(), states))
    longest = max(len(row) for _, row in best)
    out = tokens.new_full((batch, longest), pad_token_id)
    for i, (_, row) in enumerate(best):
        out[i, : len(row)] = row
    return out
