# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""TransLlava as a model of lmms-eval, the extra ``[lmms-eval]``.

lmms-eval finds it by the entry point ``lmms_eval.models``; nothing of the
package imports this module, which needs lmms-eval.

    python -m lmms_eval --model trans_llava \
        --model_args config=CONFIG,checkpoint=CHECKPOINT \
        --tasks gqa,mme --batch_size 16
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Optional, Union

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from mmengine.device import get_device
from PIL import Image

from transmamba_mm.models.multimodal.prompts import IGNORED

from .visual_chat import Asked, VisualChatInferencer

MANIFEST = ModelManifest(
    model_id='trans_llava',
    simple_class_path=f'{__name__}.TransLlavaModel',
    aliases=('transmamba',),
)


class TransLlavaModel(lmms):
    """A TransLlava for lmms-eval's tasks of images and texts.

    Prompts are lmms-eval's. Images are treated as in the test set of the
    config, whatever the task.

    Args:
        config (str): Path of the config.
        checkpoint (str): Path of the checkpoint.
        batch_size (int | str): Questions in a batch. Defaults to 1.
        device (str, optional): Defaults to None, the GPU of this process, or
            the CPU.
        **kwargs: lmms-eval's other settings of models, which have no meaning
            here.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        batch_size: Union[int, str] = 1,
        device: Optional[str] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if device is None:
            device = get_device()
            if device == 'cuda':
                device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
        # What lmms-eval gathers results on.
        self.device = torch.device(device)
        self.batch_size = int(batch_size)
        self.chat = VisualChatInferencer(config, checkpoint, device)

    def _asked(self, question: str, show: Any, place: tuple) -> Asked:
        """A question with the images of its document."""
        number, task, split = place
        images = show(self.task_dict[task][split][number]) or []
        images = images if isinstance(images, list) else [images]
        for image in images:
            if not isinstance(image, Image.Image):
                raise TypeError(
                    f'TransLlava sees images, but {task} shows '
                    f'{type(image).__name__}'
                )
        return images, question

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers questions.

        Args:
            requests (list[Instance]): With question, options of the
                generation, what gives the images of a document, and the
                document's number, task and split.

        Returns:
            list[str]: The answers, each up to the first text of ``until``.
        """
        answers = [''] * len(requests)
        for options, group in _grouped(requests):
            asked = [
                self._asked(question, show, place)
                for question, _, show, *place in (
                    requests[i].args for i in group
                )
            ]
            found = self.chat(asked, self.batch_size, **_generation(options))
            for i, answer in zip(group, found):
                for end in _ends(options):
                    answer = answer.partition(end)[0]
                answers[i] = answer.strip()
        for request, answer in zip(requests, answers):
            self.cache_hook.add_partial(
                'generate_until', request.args[:2], answer
            )
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple]:
        """How likely answers are.

        Args:
            requests (list[Instance]): With question, answer or what gives
                that of a document, and as in :meth:`generate_until`.

        Returns:
            list[tuple[float, bool]]: Of each the loss, a mean over tokens,
            as lmms-eval wants it (it takes the smallest), and whether the
            answer is what would be generated.
        """
        found = []
        llava = self.chat.llava
        for question, answer, show, *place in (x.args for x in requests):
            number, task, split = place
            if callable(answer):
                answer = answer(self.task_dict[task][split][number])
            images, _ = self._asked(question, show, place)
            data = self.chat.prepare([(images, [(question, str(answer))])])
            with torch.no_grad():
                merged = llava.merge(**data, cut=False)
                logits = llava.lang_encoder(**merged.inputs)[:, :-1].float()
            labels = merged.labels[:, 1:]
            read = labels != IGNORED
            loss = torch.nn.functional.cross_entropy(
                logits[read], labels[read]
            )
            likeliest = logits[read].argmax(-1)
            found.append(
                (loss.item(), bool((likeliest == labels[read]).all()))
            )
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list:
        """Refused: tasks of several rounds show other images in each."""
        raise NotImplementedError(
            'trans_llava answers tasks of one round only (generate_until)'
        )


def _grouped(requests: list[Instance]) -> Iterator[tuple[dict, list[int]]]:
    """Numbers of requests by their options, the longest questions first."""
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(repr(request.args[1]), []).append(i)
    for group in groups.values():
        group.sort(key=lambda i: -len(requests[i].args[0]))
        yield requests[group[0]].args[1], group


def _ends(options: dict) -> Iterable[str]:
    until = options.get('until', [])
    return [until] if isinstance(until, str) else until


def _generation(options: dict) -> dict:
    """Options as the model takes them; a temperature of 0 is no sampling."""
    names = ('max_new_tokens', 'num_beams')
    found = {
        name: options[name] for name in names if options.get(name) is not None
    }
    temperature = options.get('temperature') or 0
    found['do_sample'] = temperature > 0 and options.get('do_sample', True)
    if found['do_sample']:
        found.update(temperature=temperature, top_p=options.get('top_p') or 1)
    return found
