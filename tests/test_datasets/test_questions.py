# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Benchmarks of visual questions: files, samples, prompts, broken rows."""

import json

import pytest
import torch
from mmengine.registry import DefaultScope
from vqa_cases import MME, STAGED, TEN, TREES, read_tiny, said, write

from transmamba_mm.datasets.llava_cot import stages_of
from transmamba_mm.registry import DATASETS, TRANSFORMS


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    for make in TREES.values():
        make(root)
    return root


def dataset(name, root, **settings):
    cfg = read_tiny(name, root)
    loader = cfg.get('test_dataloader') or cfg.train_dataloader
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build(dict(loader.dataset, **settings))


SHORT = 'Answer the question using a single word or phrase.'
ASKED = dict(
    gqa=(f'What is 1?\n{SHORT}', 'Dog', '1'),
    textvqa=(f'What does it say, 1?\n{SHORT}', TEN, 1),
    vizwiz=(
        'What is this\nWhen the provided information is insufficient, '
        f"respond with 'Unanswerable'.\n{SHORT}",
        ['unanswerable'] * 10,
        'VizWiz_val_1.jpg',
    ),
    scienceqa=(
        'Context: It is {red}.\nWhich one?\nA. this\nB. that\nAnswer with '
        "the option's letter from the given choices directly.",
        'B',
        '1',
    ),
    mme=(f'Is it blue?\n{SHORT}', 'no', 'artwork/1.png'),
    vqav2=(f'How many?\n{SHORT}', None, 71),
    pope=(f'Is there a dog, 1?\n{SHORT}', 'no', 'adversarial/1'),
)
SIZES = dict.fromkeys(ASKED, 2) | dict(mme=4, pope=6)


@pytest.mark.parametrize('name', ASKED)
def test_samples_and_prompts(name, root):
    found = dataset(name, root)
    assert len(found) == SIZES[name]
    sample = found[1]
    assert sample['inputs'].shape == (3, 16, 16)
    assert sample['inputs'].dtype == torch.uint8
    packed = sample['data_samples']
    answer = packed.get('gt_answer')
    assert (packed.question, answer, packed.question_id) == ASKED[name]


def test_categories(root):
    names = ['adversarial'] * 2 + ['popular'] * 2 + ['random'] * 2
    for name, wanted in (('pope', names), ('mme', ['artwork'] * 2)):
        found = dataset(name, root)
        got = [x['data_samples'].category for x in found]
        assert got[: len(wanted)] == wanted


def test_other_files_of_gqa_and_vqav2(root):
    rows = [
        dict(image='n1.jpg', question='Q?', answer='no', question_id=5),
    ]
    write(root / 'gqa/lavis.json', rows)
    info = dataset('gqa', root, ann_file='lavis.json').get_data_info(0)
    assert info['question_id'] == 5 and info['gt_answer'] == 'no'
    # In another order than the questions.
    both = dataset('vqav2', root, answer_file='answers.json')
    assert both.get_data_info(0)['gt_answer'] == TEN
    assert both.get_data_info(0)['img_path'].endswith('_000000000007.jpg')


def test_answers_are_not_needed_for_a_server(root):
    rows = [dict(question='Q?', question_id=1, image_id='a1')]
    write(root / 'textvqa/test.json', dict(data=rows))
    settings = dict(ann_file='test.json')
    with pytest.raises(ValueError, match='it has no answers'):
        dataset('textvqa', root, **settings)
    info = dataset('textvqa', root, answers=False, **settings)[0]
    assert 'gt_answer' not in info['data_samples']


def test_llavas_file_of_mme_chooses_questions(root):
    rows = [
        dict(question_id='OCR/1.png', text=f'Is it blue?\n{SHORT}'),
        dict(question_id='artwork/1.png', text='Is it red?', image='x'),
        dict(question_id='OCR/1.png', text='Is it green?'),
    ]
    write(root / 'llava_mme.jsonl', rows, lines=True)
    settings = dict(ann_file=str(root / 'llava_mme.jsonl'))
    with pytest.raises(ValueError, match=r"row 3 \(question_id 'OCR/1.png'\)"):
        dataset('mme', root, **settings)
    found = dataset('mme', root, on_error='skip', **settings)
    got = [found.get_data_info(i) for i in range(len(found))]
    assert [x['gt_answer'] for x in got] == ['no', 'yes']
    assert [x['category'] for x in got] == ['OCR', 'artwork']


def changed(root, path, change):
    """Rewrites a JSON file."""
    file = root / path
    content = json.loads(file.read_text())
    change(content)
    write(file, content)


BROKEN = dict(
    gqa=(
        'gqa/testdev_balanced_questions.json',
        lambda x: x['1'].update(imageId='gone'),
        ["question_id '1'", "gone.jpg' is missing"],
    ),
    textvqa=(
        'textvqa/TextVQA_0.5.1_val.json',
        lambda x: x['data'][1].update(answers=[]),
        ['question_id 1', 'there is no answer'],
    ),
    vizwiz=(
        'vizwiz/val.json',
        lambda x: x[1]['answers'][3].pop('answer'),
        ["image 'VizWiz_val_1.jpg'", 'it has no answer'],
    ),
    scienceqa=(
        'scienceqa/problems.json',
        lambda x: x['1'].update(answer=2),
        ["question_id '1'", "answer 2 is none of ['this', 'that']"],
    ),
    vqav2=(
        'vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json',
        lambda x: x['questions'][1].update(image_id=9),
        ['question_id 71', "...9.jpg' is missing"],
    ),
)


@pytest.mark.parametrize('name', BROKEN)
def test_broken_rows_are_named_or_skipped(name, tmp_path):
    path, change, texts = BROKEN[name]
    TREES[name](tmp_path)
    changed(tmp_path, path, change)
    with pytest.raises(ValueError, match='1 of 2 rows') as caught:
        dataset(name, tmp_path)
    for text in ['row 2', *texts]:
        assert text in str(caught.value)
    assert len(dataset(name, tmp_path, on_error='skip')) == 1


def test_broken_lines_of_mme_and_pope(tmp_path):
    for name in ('mme', 'pope'):
        TREES[name](tmp_path)
    text = tmp_path / MME / 'OCR/1.txt'
    text.write_text('Is it red?\tYes\nIs it blue? No')
    with pytest.raises(ValueError, match='no question, tab and yes or no'):
        dataset('mme', tmp_path)
    # A question alone is none.
    assert len(dataset('mme', tmp_path, on_error='skip')) == 2
    text.write_text('Is it red?\tYes')
    with pytest.raises(ValueError, match='has 1 questions, not 2'):
        dataset('mme', tmp_path)
    text.unlink()
    (tmp_path / MME / 'count').rmdir()
    with pytest.raises(ValueError, match=r"'count'\): .* no such question"):
        dataset('mme', tmp_path)
    path = tmp_path / 'pope/coco_pope_random.json'
    path.write_text(f'{path.read_text()}\n{{"question\n')
    with pytest.raises(ValueError, match='row 7: it is no JSON object'):
        dataset('pope', tmp_path)
    assert len(dataset('pope', tmp_path, on_error='skip')) == 6


def test_files_that_are_no_annotations(tmp_path):
    for name, file in (
        ('textvqa', 'textvqa/TextVQA_0.5.1_val.json'),
        ('vqav2', 'vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json'),
        ('scienceqa', 'scienceqa/pid_splits.json'),
    ):
        TREES[name](tmp_path)
        write(tmp_path / file, [])
        with pytest.raises(ValueError, match='has no list of'):
            dataset(name, tmp_path)


def test_a_picture_that_cannot_be_decoded(tmp_path):
    TREES['gqa'](tmp_path)
    (tmp_path / 'gqa/images/n1.jpg').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r"n1\.jpg' cannot be read"):
        dataset('gqa', tmp_path)[1]
    assert len(dataset('gqa', tmp_path, on_error='skip')) == 1


def test_captions_of_llavas_first_stage(root):
    found = dataset('llava_pretrain', root)
    turns = [x['data_samples'].turns for x in found]
    assert turns == [[('<image>', 'a dog on a bed')]] * 2
    assert found[0]['inputs'].shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ('stages', 'wanted'),
    [
        (('SUMMARY', 'CAPTION', 'REASONING', 'CONCLUSION'), STAGED),
        (('CONCLUSION',), '2'),
        (
            ('CONCLUSION', 'REASONING'),
            '<REASONING> One, two. </REASONING>\n\n'
            '<CONCLUSION> 2 </CONCLUSION>',
        ),
    ],
)
def test_stages_of_llava_cot(stages, wanted, root):
    found = dataset('llava_cot', root, stages=stages)
    assert found[0]['data_samples'].turns == [('How many?', wanted)]


def test_broken_stages(root):
    rows = [
        dict(id='1', conversations=said('Q?', STAGED)),
        dict(id='2', conversations=said('Q?', STAGED[:-40])),
        dict(id='3', conversations=said('Q?', 'plain')),
    ]
    write(root / 'llava_cot/broken.jsonl', rows, lines=True)
    settings = dict(ann_file='broken.jsonl')
    with pytest.raises(ValueError, match='2 of 3 rows') as caught:
        dataset('llava_cot', root, **settings)
    assert "row 2 (id '2'): an answer has no CONCLUSION" in str(caught.value)
    assert len(dataset('llava_cot', root, on_error='skip', **settings)) == 1
    for stages in ((), ('END',), ('CAPTION', 'CAPTION')):
        with pytest.raises(ValueError, match='stages must be some of'):
            dataset('llava_cot', root, stages=stages)


def test_a_stage_that_was_cut_goes_to_the_end():
    assert stages_of('<CAPTION> a </CAPTION> <CONCLUSION> b c') == dict(
        CAPTION='a', CONCLUSION='b c'
    )


@pytest.mark.parametrize(
    'prompt', ['why?', '{answer} {question}', '{', '{{question}}']
)
def test_prompts_without_a_question(prompt):
    with pytest.raises(ValueError, match='prompt'):
        TRANSFORMS.build(dict(type='transmamba.AskQuestion', prompt=prompt))
