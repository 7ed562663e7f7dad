# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Text encoders of Hugging Face's transformers (the extra ``[vqa]``)."""

from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor

from transmamba_mm.checks import check_bool
from transmamba_mm.registry import MODELS, TOKENIZER

_POOLINGS = ('mean', 'cls')


@TOKENIZER.register_module()
class TransformersTokenizer:
    """Makes tokens of a text by a tokenizer of transformers.

    Args:
        path (str): Folder of the tokenizer, or its name on the hub.

    Raises:
        ValueError: If it pads with another token than 0, by which models of
            this package know padding.
    """

    def __init__(self, path: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(path)
        pad = self._tokenizer.pad_token_id
        # Those that were not found come as empty ones, without a word.
        if pad != 0 or len(self._tokenizer) < 3:
            raise ValueError(
                f'the tokenizer {path!r} has {len(self._tokenizer)} tokens '
                f'and pads with {pad}: one of BERT is wanted, that pads '
                f'with 0'
            )

    def __call__(self, text: str, max_words: int) -> list[int]:
        """Tokens of a text, start and end among them, not padded.

        Args:
            text (str): The text.
            max_words (int): The most tokens; of a longer text the first,
                and the end.

        Returns:
            list[int]: The tokens.
        """
        found = self._tokenizer(text, truncation=True, max_length=max_words)
        return found['input_ids']


@MODELS.register_module()
class TransformersTextEncoder(BaseModule):
    """A text encoder of transformers, such as BERT or MiniLM.

    Args:
        path (str): Folder of the model, or its name on the hub. Weights are
            read from safetensors alone.
        pooling (str): ``'mean'`` of all tokens, or ``'cls'``, the first.
            Defaults to ``'mean'``.
        frozen (bool): Whether it stays as it is, in eval mode. Defaults to
            True.
        pretrained (bool): Whether to load the weights. A distillation that
            loads a whole checkpoint needs the config alone. Defaults to
            True.
        init_cfg (dict, optional): mmengine initialisation.

    Raises:
        ValueError: If the pooling is unknown.
    """

    def __init__(
        self,
        path: str,
        pooling: str = 'mean',
        frozen: bool = True,
        pretrained: bool = True,
        init_cfg: Any = None,
    ) -> None:
        from transformers import AutoConfig, AutoModel

        if pooling not in _POOLINGS:
            raise ValueError(
                f'pooling must be one of {_POOLINGS}, got {pooling!r}'
            )
        super().__init__(init_cfg)
        self.pooling = pooling
        self.frozen = check_bool('frozen', frozen)
        if pretrained:
            self.model = AutoModel.from_pretrained(path, use_safetensors=True)
        else:
            self.model = AutoModel.from_config(
                AutoConfig.from_pretrained(path)
            )
        if frozen:
            self.model.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> 'TransformersTextEncoder':
        """Sets the mode; what is frozen stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Encodes texts.

        Args:
            tokens (Tensor): LongTensor (N, L), 0 being padding.

        Returns:
            Tensor: (N, C).
        """
        mask = tokens.ne(0)
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not self.frozen
        ):
            out = self.model(input_ids=tokens, attention_mask=mask.long())
        states = out.last_hidden_state
        if self.pooling == 'cls':
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
