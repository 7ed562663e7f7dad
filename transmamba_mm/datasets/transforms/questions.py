# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What is asked of a model."""

from mmcv.transforms import BaseTransform

from transmamba_mm.models.multimodal.prompts import IMAGE
from transmamba_mm.registry import TRANSFORMS

_FIELDS = ('question', 'context', 'choices')


@TRANSFORMS.register_module()
class AskQuestion(BaseTransform):
    """Makes the prompt of a benchmark's question.

    Reads and sets ``question``; reads ``hint`` and ``choices`` where there
    are any.

    Args:
        prompt (str): With ``{question}`` and maybe ``{context}``, a line
            ``Context: <hint>`` where there is a hint, and ``{choices}``, a
            line ``A. <choice>`` for each. Defaults to ``'{question}'``.
        capitalize (bool): Whether to write the question as ``str.capitalize``
            does: its first letter large, all others small. Defaults to
            False.
        remove (str): A text to remove from the question. Defaults to
            ``''``, none.

    Raises:
        ValueError: If the prompt has no question, or an unknown field.
    """

    def __init__(
        self,
        prompt: str = '{question}',
        capitalize: bool = False,
        remove: str = '',
    ) -> None:
        try:
            asked = prompt.format(**dict.fromkeys(_FIELDS, '\0'))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f'prompt may have the fields {", ".join(_FIELDS)}, got '
                f'{prompt!r}'
            ) from error
        if '{question}' not in prompt or '\0' not in asked:
            raise ValueError(f'prompt has no {{question}}: {prompt!r}')
        self.prompt, self.capitalize, self.remove = prompt, capitalize, remove

    def transform(self, results: dict) -> dict:
        """Sets the question."""
        question = results['question']
        if self.remove:
            question = question.replace(self.remove, '')
        if self.capitalize:
            question = question.capitalize()
        hint, choices = results.get('hint'), results.get('choices', ())
        results['question'] = self.prompt.format(
            question=question,
            context=f'Context: {hint}\n' if hint else '',
            choices='\n'.join(
                f'{chr(ord("A") + i)}. {choice}'
                for i, choice in enumerate(choices)
            ),
        )
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(prompt={self.prompt!r}, capitalize='
            f'{self.capitalize}, remove={self.remove!r})'
        )


@TRANSFORMS.register_module()
class DropQuestions(BaseTransform):
    """Leaves of the questions of a conversation only the places of images.

    In LLaVA's first stage a model sees an image and learns its caption; the
    instructions of the file are not used.
    """

    def transform(self, results: dict) -> dict:
        """Changes ``turns``."""
        results['turns'] = [
            (IMAGE * question.count(IMAGE), answer)
            for question, answer in results['turns']
        ]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
