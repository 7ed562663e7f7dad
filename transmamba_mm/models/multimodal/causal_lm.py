# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Causal language models of transformers (the extra ``[vqa]``)."""

from collections.abc import Mapping
from typing import Any, Optional, Union

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from transmamba_mm.checks import check_bool
from transmamba_mm.registry import MODELS


@MODELS.register_module()
class TransformersCausalLM(BaseModule):
    """A language model of transformers, with the interface of ours.

    Args:
        name_or_path (str | dict): Folder of the model, or its name on the
            hub; or its config, with ``model_type``, for a model without
            weights. Weights are read from safetensors alone.
        load_pretrained (bool): Whether to load the weights; else they are
            drawn, to be loaded later or trained. Defaults to True.
        dtype (str): Of the parameters, e.g. ``'bfloat16'``. Defaults to
            ``'float32'``.
        with_cp (bool): Whether to keep only the inputs of the layers for the
            backward pass and compute the rest again there. Defaults to
            False.

    Raises:
        ValueError: If the file lacks weights of the model, there is no file
            to load, no such ``dtype``, or the logits are not what its head
            gives.
    """

    def __init__(
        self,
        name_or_path: Union[str, Mapping],
        load_pretrained: bool = True,
        dtype: str = 'float32',
        with_cp: bool = False,
    ) -> None:
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            GenerationConfig,
        )

        super().__init__()
        kind = getattr(torch, str(dtype), None)
        if not isinstance(kind, torch.dtype):
            raise ValueError(
                f"dtype must be a name such as 'bfloat16', got {dtype!r}"
            )
        if load_pretrained:
            if not isinstance(name_or_path, str):
                raise ValueError(
                    'a config has no weights to load: give the folder of a '
                    'model as name_or_path, or set load_pretrained=False'
                )
            self.model, found = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                torch_dtype=kind,
                use_safetensors=True,
                output_loading_info=True,
            )
            lacking = sorted(map(str, found['missing_keys']))
            if lacking:
                raise ValueError(
                    f'{name_or_path!r} has no weights for '
                    f'{", ".join(lacking[:3])} ({len(lacking)} tensors)'
                )
            # The folder's may have a penalty: greedy is greedy, however the
            # weights came in.
            self.model.generation_config = GenerationConfig.from_model_config(
                self.model.config
            )
        else:
            if isinstance(name_or_path, str):
                config = AutoConfig.from_pretrained(name_or_path)
            else:
                config = AutoConfig.for_model(**name_or_path)
            self.model = AutoModelForCausalLM.from_config(config).to(kind)
        self._check_head()
        if check_bool('with_cp', with_cp):
            self.model.gradient_checkpointing_enable(dict(use_reentrant=False))

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuses a model that scales or caps what its head gives."""
        tokens = torch.arange(2).unsqueeze(0)  # one may be padding, and 0
        if self.embed_tokens.weight.is_meta:
            return
        training = self.model.training
        self.model.eval()
        logits = self.model(input_ids=tokens, use_cache=False).logits
        if not logits.equal(self(tokens)):
            raise ValueError(
                f'{type(self.model).__name__} changes the logits that its '
                f'head gives (a scale or a cap): such models are not '
                f'supported'
            )
        self.model.train(training)

    @property
    def head(self) -> nn.Module:
        """nn.Module: Gives the logits (..., V) of what it reads."""
        return self.model.get_output_embeddings()

    def init_weights(self) -> None:
        """Does nothing: transformers draws or loads what it builds."""

    @property
    def embed_tokens(self) -> nn.Embedding:
        """nn.Embedding: The embedding of its tokens."""
        return self.model.get_input_embeddings()

    @property
    def vocab_size(self) -> int:
        """int: Size of the vocabulary V."""
        return self.embed_tokens.num_embeddings

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        image_mask: Optional[Tensor] = None,
        question_mask: Optional[Tensor] = None,
    ) -> Tensor:
        """Scores the next token at each place.

        Args:
            input_ids (Tensor, optional): Token ids (B, L); these or
                ``inputs_embeds``.
            attention_mask (Tensor, optional): (B, L), 0 on padding. Defaults
                to None: there is none.
            inputs_embeds (Tensor, optional): Embedded tokens (B, L, C).
            image_mask (Tensor, optional): Read by Cross-Mamba, not here.
            question_mask (Tensor, optional): Read by Cross-Mamba, not here.

        Returns:
            Tensor: Logits (B, L, V).
        """
        return self.head(
            self.features(input_ids, attention_mask, inputs_embeds)
        )

    def features(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        image_mask: Optional[Tensor] = None,
        question_mask: Optional[Tensor] = None,
    ) -> Tensor:
        """What the head reads, (B, L, C); see :meth:`forward`."""
        if attention_mask is not None:
            attention_mask = attention_mask.long()
        return self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
        ).last_hidden_state

    def generate(
        self,
        *,
        attention_mask: Optional[Tensor] = None,
        image_mask: Optional[Tensor] = None,
        question_mask: Optional[Tensor] = None,
        **options: Any,
    ) -> Tensor:
        """Generates the continuation of prompts.

        Args:
            attention_mask (Tensor, optional): (B, L), 0 on padding, which
                must be on the left.
            image_mask (Tensor, optional): See :meth:`forward`.
            question_mask (Tensor, optional): See :meth:`forward`.
            **options: The prompt as ``inputs_embeds`` and options of
                transformers' ``generate``.

        Returns:
            Tensor: New tokens (B, T), without the prompt.
        """
        if attention_mask is not None:
            attention_mask = attention_mask.long()
        return self.model.generate(attention_mask=attention_mask, **options)
