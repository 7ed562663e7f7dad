# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Benchmarks of visual questions as their files lie on a disk, but tiny.

Each has two good questions about two pictures, and MME four.
"""

import copy
import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from transmamba_mm.datasets.mme import COGNITION, PERCEPTION

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT / 'configs/_base_/datasets'

#: A model for their pictures, of 16 pixels.
TINY = dict(
    type='transmamba.TransLlava',
    vision_encoder=dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(
            embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16
        ),
        img_size=16,
        patch_size=8,
        out_type='raw',
        out_indices=-2,
        final_norm=False,
    ),
    projector=dict(type='transmamba.MLPProjector', in_channels=8),
    lang_encoder=dict(
        type='transmamba.TransMambaLM',
        arch=dict(embed_dims=16, num_layers=1, vocab_size=258),
    ),
    tokenizer=dict(type='transmamba.ByteTokenizer'),
    prompt_tmpl='{question}{answer}',
    generation_cfg=dict(max_new_tokens=2),
)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(0).randint(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write(path: Path, content, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = content if lines else [content]
    text = [x if isinstance(x, str) else json.dumps(x) for x in parts]
    path.write_text('\n'.join(text), encoding='utf-8')


TEN = ['two'] * 3 + ['2'] * 2 + ['three'] * 5


def gqa(root: Path) -> None:
    rows = {
        str(i): dict(imageId=f'n{i}', question=f'What is {i}?', answer='Dog')
        for i in range(2)
    }
    write(root / 'gqa/testdev_balanced_questions.json', rows)
    for i in range(2):
        picture(root / f'gqa/images/n{i}.jpg')


def textvqa(root: Path) -> None:
    rows = [
        dict(
            question=f'what DOES it say, {i}?',
            question_id=i,
            image_id=f'a{i}',
            answers=TEN,
        )
        for i in range(2)
    ]
    write(root / 'textvqa/TextVQA_0.5.1_val.json', dict(data=rows))
    for i in range(2):
        picture(root / f'textvqa/train_images/a{i}.jpg')


def vizwiz(root: Path) -> None:
    rows = [
        dict(
            image=f'VizWiz_val_{i}.jpg',
            question='what is this',
            answers=[dict(answer=x, answer_confidence='no') for x in answers],
            answerable=int(answers is TEN),
        )
        for i, answers in enumerate((TEN, ['unanswerable'] * 10))
    ]
    write(root / 'vizwiz/val.json', rows)
    for i in range(2):
        picture(root / f'vizwiz/val/VizWiz_val_{i}.jpg')


def scienceqa(root: Path) -> None:
    rows = {
        str(i): dict(
            question='Which one?',
            choices=['this', 'that'],
            answer=i % 2,
            hint='It is {red}.' if i else '',
            image='image.png' if i < 2 else None,
        )
        for i in range(4)
    }
    write(root / 'scienceqa/problems.json', rows)
    splits = dict(test=['0', '1', '2'], train=['3'])
    write(root / 'scienceqa/pid_splits.json', splits)
    for i in range(2):
        picture(root / f'scienceqa/images/test/{i}/image.png')


MME = 'mme/MME_Benchmark_release_version'


def mme(root: Path) -> None:
    lines = [
        'Is it red? Please answer yes or no.\tYes',
        'Is it blue? Please answer yes or no.\tNo',
    ]
    for name in (*PERCEPTION, *COGNITION):
        (root / MME / name).mkdir(parents=True)
    for texts, images in (
        ('OCR', 'OCR'),
        ('artwork/questions_answers_YN', 'artwork/images'),
    ):
        write(root / MME / texts / '1.txt', lines, lines=True)
        picture(root / MME / images / '1.png')


def vqav2(root: Path) -> None:
    rows = [
        dict(image_id=7 + i, question_id=70 + i, question='How many?')
        for i in range(2)
    ]
    name = 'v2_OpenEnded_mscoco_test-dev2015_questions.json'
    write(root / 'vqav2' / name, dict(questions=rows))
    said = [
        dict(question_id=71 - i, answers=[dict(answer=x) for x in TEN])
        for i in range(2)
    ]
    write(root / 'vqav2/answers.json', dict(annotations=said))
    for i in range(2):
        picture(root / f'vqav2/test2015/COCO_test2015_{7 + i:012d}.jpg')


def pope(root: Path) -> None:
    for category in ('adversarial', 'popular', 'random'):
        rows = [
            dict(
                question_id=i,
                image=f'COCO_{i}.jpg',
                text=f'Is there a dog, {i}?',
                label=('yes', 'no')[i],
            )
            for i in range(2)
        ]
        path = root / f'pope/coco_pope_{category}.json'
        write(path, rows, lines=True)
    for i in range(2):
        picture(root / f'pope/val2014/COCO_{i}.jpg')


def said(*texts: str) -> list[dict]:
    """Turns as LLaVA's files have them, who asks first."""
    return [
        {'from': ('human', 'gpt')[i % 2], 'value': text}
        for i, text in enumerate(texts)
    ]


def llava_instruct(root: Path) -> None:
    rows = [
        dict(id='1', image='a.jpg', conversations=said('<image>\nQ?', 'A.')),
        dict(id='2', conversations=said('Q?', 'A.', 'R?', 'B.')),
    ]
    write(root / 'llava/llava_v1_5_mix665k.json', rows)
    picture(root / 'llava/images/a.jpg')


def llava_pretrain(root: Path) -> None:
    rows = [
        dict(
            id='004539375',
            image='00453/004539375.jpg',
            conversations=said(question, 'a dog on a bed'),
        )
        for question in ('Tell what you see.\n<image>', '<image>\nDescribe.')
    ]
    write(root / 'llava_pretrain/blip_laion_cc_sbu_558k.json', rows)
    picture(root / 'llava_pretrain/images/00453/004539375.jpg')


STAGED = (
    '<SUMMARY> I count. </SUMMARY>\n\n<CAPTION> Two\ndogs. </CAPTION>\n\n'
    '<REASONING> One, two. </REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>'
)


def llava_cot(root: Path) -> None:
    rows = [
        dict(id='1', image='a.jpg', conversations=said('How many?', STAGED)),
        dict(id='2', image='a.jpg', conversations=said('Who?', STAGED)),
    ]
    write(root / 'llava_cot/train.jsonl', rows, lines=True)
    picture(root / 'llava_cot/images/a.jpg')


TRAINED = dict(
    llava_instruct=llava_instruct,
    llava_pretrain=llava_pretrain,
    llava_cot=llava_cot,
)
TESTED = dict(
    gqa=gqa,
    textvqa=textvqa,
    vizwiz=vizwiz,
    scienceqa=scienceqa,
    mme=mme,
    vqav2=vqav2,
    pope=pope,
)
TREES = {**TRAINED, **TESTED}


def read_tiny(name: str, root: Path, size: int = 16) -> Config:
    """A config of ``configs/_base_/datasets`` on a tree below ``root``.

    Pictures are of ``size`` pixels; everything runs in this process.
    """
    cfg = Config.fromfile(str(DATASETS / f'{name}.py'))
    kind = 'train' if name in TRAINED else 'test'
    loader = cfg[f'{kind}_dataloader']
    loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    dataset = loader.dataset
    steps = list(dataset.pipeline)
    dataset.pipeline = [shrunk(step, size) for step in steps]
    for key in ('data_root', 'data_prefix'):
        dataset[key] = moved(dataset.get(key, ''), root)
    return cfg


def moved(value, root: Path):
    if isinstance(value, dict):
        return {key: moved(each, root) for key, each in value.items()}
    return value.replace('data/', f'{root}/', 1) if value else value


def shrunk(step, size: int):
    step = copy.deepcopy(step)
    if 'transforms' in step:
        step['transforms'] = [shrunk(x, size) for x in step['transforms']]
    for key, value in step.items():
        if value == 336:
            step[key] = size
        elif value == (336, 336):
            step[key] = (size, size)
    return step
