# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A vision tower, a projector and a language model answer questions.

LLaVA (arXiv 2304.08485) with the settings of LLaVA-1.5 (arXiv 2310.03744);
in TransMamba (arXiv 2502.15130) both the teacher, whose language model is a
LLaMA, and the student, whose is a Mamba.
"""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from transmamba_mm.checkpoints import Source, read_state_dict, strip_prefix
from transmamba_mm.checkpoints.load import check_match, refuse_foreign
from transmamba_mm.checks import check_int
from transmamba_mm.contract import AnswerReader, Answers
from transmamba_mm.contract.start_values import StrictPretrained
from transmamba_mm.ops.chunks import summed_in_chunks
from transmamba_mm.registry import MODELS, TOKENIZER

from .merging import MergedSequences, merge
from .prompts import PromptTemplate, Turn, turns_of

_PARTS = ('vision_encoder', 'projector', 'lang_encoder')


@MODELS.register_module()
class TransLlava(StrictPretrained, BaseModel):
    """Answers questions about images.

    A sample has ``turns``, pairs of a question and its answer, or a
    ``question`` and maybe ``gt_answer``. ``<image>`` in a question is the
    place of an image; without any, the images stand before the first
    question.

    Args:
        vision_encoder (dict): A backbone whose (last) output is tokens
            (B, N, C) or a feature map (B, C, H, W): mmpretrain's
            ``VisionTransformer`` with ``out_type='raw', out_indices=-2,
            final_norm=False``, or a ``CLIPVisionTower`` with ``out_layer=-2``.
        projector (dict): An :class:`MLPProjector`; its ``out_channels`` are
            filled in.
        lang_encoder (dict): A :class:`~transmamba_mm.models.TransMambaLM` or
            a :class:`TransformersCausalLM`.
        tokenizer (dict): A :class:`CausalTokenizer` or a
            :class:`ByteTokenizer`.
        prompt_tmpl (str): A turn, see :class:`PromptTemplate`. Defaults to
            LLaVA-1.5's.
        system (str): Text before the first turn. Defaults to ``''``.
        num_extra_tokens (int): Tokens of the vision encoder, such as the
            class token, that precede the patches and are cut; feature maps
            have none. Defaults to 1.
        frozen (Sequence[str]): Parts that stay as they are, in eval mode:
            ``'vision_encoder'``, ``'projector'``, ``'lang_encoder'``.
            Defaults to the first; LLaVA's first stage freezes the last too.
        max_length (int, optional): Tokens, those of images among them, after
            which a conversation is cut in training. Defaults to 2048.
        generation_cfg (dict, optional): Options of ``generate``. Defaults to
            ``dict(max_new_tokens=128)``, greedy.
        data_preprocessor (dict, optional): Defaults to an
            :class:`ImageSetDataPreprocessor`, whose settings it may hold
            without a ``type``.
        init_cfg (dict | list[dict], optional): mmengine initialisation; a
            ``Pretrained`` checkpoint is loaded strictly.

    Raises:
        ValueError: If a setting is not supported, or the tokenizer has more
            tokens than the language model.
    """

    def __init__(
        self,
        vision_encoder: dict,
        projector: dict,
        lang_encoder: dict,
        tokenizer: dict,
        prompt_tmpl: str = 'USER: {question} ASSISTANT: {answer}',
        system: str = '',
        num_extra_tokens: int = 1,
        frozen: Sequence[str] = ('vision_encoder',),
        max_length: Optional[int] = 2048,
        generation_cfg: Optional[dict] = None,
        data_preprocessor: Union[dict, nn.Module, None] = None,
        init_cfg: Any = None,
    ) -> None:
        if not isinstance(data_preprocessor, nn.Module):
            kind = dict(type='transmamba.ImageSetDataPreprocessor')
            data_preprocessor = dict(kind, **(data_preprocessor or {}))
        super().__init__(data_preprocessor, init_cfg)
        if isinstance(frozen, str) or not set(frozen) <= set(_PARTS):
            raise ValueError(
                f'frozen must be a tuple of some of {", ".join(_PARTS)}, got '
                f'{frozen!r}'
            )
        self.tokenizer = TOKENIZER.build(tokenizer)
        self.template = PromptTemplate(self.tokenizer, prompt_tmpl, system)
        with torch.device('cpu'):  # wherever the model is built
            spelt = self.template(AnswerReader.CONVERSATION).ids
        self.answers = AnswerReader(tuple(spelt.tolist()))
        self.num_extra_tokens = check_int(
            'num_extra_tokens', num_extra_tokens, 0
        )
        self.max_length = max_length
        if max_length is not None:
            check_int('max_length', max_length)
        self.generation_cfg = dict(max_new_tokens=128, do_sample=False)
        self.generation_cfg.update(generation_cfg or {})
        self.vision_encoder = MODELS.build(vision_encoder)
        self.lang_encoder = MODELS.build(lang_encoder)
        vocab = self.lang_encoder.vocab_size
        if len(self.tokenizer) > vocab:
            raise ValueError(
                f'the tokenizer has {len(self.tokenizer)} tokens, the '
                f'language model only {vocab}'
            )
        width = self.lang_encoder.embed_tokens.embedding_dim
        self.projector = MODELS.build(dict(projector, out_channels=width))
        self.frozen = tuple(frozen)
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)
        self._register_load_state_dict_pre_hook(self._refuse_foreign)

    def _refuse_foreign(self, state_dict: dict, prefix: str, *_: Any) -> None:
        # Loaders that are not strict would leave this model as it is.
        if not prefix:
            refuse_foreign(self, state_dict, Source())

    def load_pretrained(self, path: str, prefix: Optional[str]) -> None:
        """See :meth:`StrictPretrained.load_pretrained`."""
        state = read_state_dict(path)
        if prefix:
            state = strip_prefix(state, f'{prefix.rstrip(".")}.')
        check_match(self, state, Source(path=path))
        self.load_state_dict(state)

    def train(self, mode: bool = True) -> 'TransLlava':
        """Sets the mode; what is frozen stays in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    # ----------------------------------------------------------- sequences

    def encode_images(self, images: Tensor) -> Tensor:
        """Tokens of images, as the language model reads them.

        Args:
            images (Tensor): (M, 3, H, W), preprocessed.

        Returns:
            Tensor: (M, N, C).
        """
        seen = 'vision_encoder' not in self.frozen
        with torch.set_grad_enabled(torch.is_grad_enabled() and seen):
            features = self.vision_encoder(images)
        if isinstance(features, (tuple, list)):
            features = features[-1]
        if features.dim() == 4:
            features = features.flatten(2).mT
        else:
            features = features[:, self.num_extra_tokens :]
        return self.projector(features)

    def merge(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[BaseDataElement],
        to_answer: bool = False,
        cut: bool = True,
    ) -> MergedSequences:
        """Text and images of samples as one batch of sequences.

        Args:
            inputs (Sequence[Tensor]): Images (n, 3, H, W) of each sample,
                preprocessed.
            data_samples (Sequence[BaseDataElement]): See the class.
            to_answer (bool): Whether to end each before its last answer, not
                to cut it and to pad on the left, to generate. Defaults to
                False.
            cut (bool): Whether to cut after ``max_length`` tokens, unless
                ``to_answer``. Defaults to True.

        Returns:
            MergedSequences: The batch.

        Raises:
            ValueError: If images differ in size, or a sample does not fit
                its images.
        """
        turns = [
            turns_of(sample, len(images))
            for images, sample in zip(inputs, data_samples)
        ]
        if to_answer:
            turns = [_without_last_answer(each) for each in turns]
        return merge(
            [self.template(each) for each in turns],
            self._tokens_of(inputs),
            self.lang_encoder.embed_tokens,
            max_length=self.max_length if cut and not to_answer else None,
            pad_left=to_answer,
        )

    def _tokens_of(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Tokens (n, N, C) of the images of each sample."""
        counts = [len(images) for images in inputs]
        shown = [images for images in inputs if len(images)]
        if len({images.shape[1:] for images in shown}) > 1:
            raise ValueError(
                f'images of a batch differ in size: '
                f'{sorted({tuple(images.shape[2:]) for images in shown})}; '
                f'pad and resize them, e.g. by transmamba.PadToSquare and '
                f'Resize'
            )
        if shown:
            tokens = self.encode_images(torch.cat(shown))
        else:
            # So that the projector has gradients, of 0, in each step.
            weight = next(self.projector.parameters())
            tokens = self.projector(
                weight.new_zeros(0, 1, self.projector.in_channels)
            )
        return list(tokens.split(counts))

    # ----------------------------------------------------------- the modes

    def forward(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[BaseDataElement],
        mode: str = 'tensor',
    ) -> Any:
        """Runs the model.

        Args:
            inputs (Sequence[Tensor]): Images (n, 3, H, W) of each sample,
                preprocessed.
            data_samples (Sequence[BaseDataElement]): See the class.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'``. Defaults
                to ``'tensor'``.

        Returns:
            dict | Sequence[BaseDataElement] | Answers: Of ``'loss'`` the
            loss; of ``'predict'`` the data samples with ``pred_answer``; of
            ``'tensor'`` what the answers are predicted from; their logits
            (M, V) are computed when they are asked for.

        Raises:
            RuntimeError: If there is no such mode.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode != 'tensor':
            raise RuntimeError(f'Invalid mode "{mode}".')
        merged = self.merge(inputs, data_samples)
        language = self.lang_encoder
        tokens = language.features(**merged.inputs)
        return self.answers(tokens, merged.labels, language.head)

    def loss(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[BaseDataElement],
    ) -> dict[str, Tensor]:
        """Cross-entropy, the mean over all tokens of answers in the batch.

        Logits are of tokens of answers alone, and never of all of them at a
        time.

        Raises:
            ValueError: If a sample has no answer, or a choice of them.
        """
        for images, sample in zip(inputs, data_samples):
            question, answer = turns_of(sample, len(images))[-1]
            if answer is None:
                raise ValueError(
                    f'to train, {question!r} needs one answer (gt_answer)'
                )
        answers: Answers = self(inputs, data_samples)
        total = summed_in_chunks(
            lambda tokens, labels: F.cross_entropy(
                answers.score(tokens), labels, reduction='sum'
            ),
            answers.tokens,
            answers.labels,
            width=self.lang_encoder.vocab_size,
        )
        # 0 where all answers were cut.
        return dict(loss=total / max(len(answers.labels), 1))

    @torch.no_grad()
    def predict(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[BaseDataElement],
        **generation_cfg: Any,
    ) -> Sequence[BaseDataElement]:
        """Sets ``pred_answer`` of each data sample, to its last question.

        Args:
            inputs (Sequence[Tensor]): See :meth:`forward`.
            data_samples (Sequence[BaseDataElement]): See :meth:`forward`.
            **generation_cfg: Options that come before those of the model.

        Returns:
            Sequence[BaseDataElement]: The data samples.
        """
        merged = self.merge(inputs, data_samples, to_answer=True)
        stop = self.tokenizer.eos_token_id
        tokens = self.lang_encoder.generate(
            **merged.inputs,
            eos_token_id=stop,
            pad_token_id=stop,
            **{**self.generation_cfg, **generation_cfg},
        )
        for sample, row in zip(data_samples, tokens.tolist()):
            end = row.index(stop) if stop in row else len(row)
            sample.pred_answer = self.tokenizer.decode(row[:end]).strip()
        return data_samples


def _without_last_answer(turns: Sequence[Turn]) -> list[Turn]:
    return [*turns[:-1], (turns[-1][0], None)]
