# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Metrics of answers: tables by hand, processes, and lmms-eval's own code."""

import copy
import json
import os
import random

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as mp
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample

from transmamba_mm.evaluation.answer_text import evalai_text, vqa_text
from transmamba_mm.registry import METRICS


def measure(kind, samples, **options):
    metric = METRICS.build(dict(type=f'transmamba.{kind}', **options))
    metric.process(None, [dict(question_id=1, **x) for x in samples])
    return metric.evaluate(len(samples))


def accuracy(kind, answer, right, **options):
    sample = dict(pred_answer=answer, gt_answer=right)
    found = measure(kind, [sample], prefix='x', **options)
    assert found.pop('x/num_questions') == 1
    return found['x/accuracy']


@pytest.mark.parametrize(
    ('text', 'evalai', 'vqa'),
    [
        ('The  Dog.', 'dog', 'dog'),
        ('an apple, a pear', 'apple pear', 'apple pear'),
        ('red/blue', 'red blue', 'red blue'),
        ('red /blue', 'red blue', 'red blue'),
        ('2,000', '2000', '2000'),
        ('3.50', '3.50', '3.50'),
        ('$3. 50', '$3 50', '$3 50'),
        ('none', '0', '0'),
        ('Ten cats', '10 cats', '10 cats'),
        ('dont', "don't", "don't"),
        ("dog's bed", "dog 's bed", "dog's bed"),
        ('a-b', 'b', 'b'),
        ('yes,no', 'yesno', 'yes no'),
        ('what?', 'what', 'what'),
        ('one\ntwo\t(3)', '1 2 3', '1 2 3'),
        ('T-shirt', 't shirt', 't shirt'),
        ('  ', '', ''),
    ],
)
def test_what_of_a_text_counts(text, evalai, vqa):
    assert (evalai_text(text), vqa_text(text)) == (evalai, vqa)


@pytest.mark.parametrize(
    ('answer', 'right', 'wanted'),
    [
        ('yes', 'yes', 100),
        ('Yes.', 'yes', 100),
        (' yes\n', 'Yes', 100),
        ('yes', 'no', 0),
        ('a dog', 'dog', 0),
        ('t-shirt', 'tshirt', 100),
        ('two', '2', 0),
        ('yes !', 'yes', 0),
        ('', 'no', 0),
        ('on the left', 'On the left!', 100),
    ],
)
def test_exact_match(answer, right, wanted):
    assert accuracy('ExactMatch', answer, right) == wanted


@pytest.mark.parametrize(
    ('answer', 'agree', 'wanted'),
    [
        ('two', 0, 0),
        ('two', 1, 30),
        ('two', 2, 60),
        ('two', 3, 90),
        ('two', 4, 100),
        ('Two.', 10, 100),
        ('2', 3, 90),
        ('the two', 2, 60),
        ('twos', 10, 0),
        ('', 3, 0),
    ],
)
def test_accuracy_of_nine_of_ten(answer, agree, wanted):
    right = ['two'] * agree + ['other'] * (10 - agree)
    for rule in ('evalai', 'vqa'):
        found = accuracy('VQAAccuracy', answer, right, normalise=rule)
        assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(
    ('answer', 'wanted'),
    [
        ('B', 100),
        ('b', 100),
        (' B\n', 100),
        ('B.', 100),
        ('B. that', 100),
        ('b. that', 0),
        ('A', 0),
        ('A. B', 0),
        ('The answer is B.', 0),
        ('(B)', 0),
        ('that', 0),
        ('', 0),
    ],
)
def test_choices(answer, wanted):
    assert accuracy('ChoiceAccuracy', answer, 'B') == wanted


YES_NO = [
    ('Yes', 'yes'),
    ('Yes.', 'yes'),
    ('yes, it is', 'yes'),
    ('No', 'no'),
    ('no way', 'no'),
    ('not', 'no'),
    ('n', 'no'),
    ('Y', 'yes'),
    ('oh yes', 'other'),
    ('eyes', 'yes'),
    ('maybe', 'other'),
    ('', 'other'),
    ('x', 'other'),
]


@pytest.mark.parametrize(('answer', 'read'), YES_NO)
def test_yes_and_no_of_mme(answer, read):
    pair = [
        dict(pred_answer=answer, gt_answer=right, category='count')
        for right in ('Yes', 'No')
    ]
    # One of the two is right, unless the answer is neither.
    found = measure('MMEScore', pair)
    assert found['mme/count'] == (0 if read == 'other' else 50)
    pair[1].update(pred_answer='No')
    both = 200 if read == 'yes' else 50
    assert measure('MMEScore', pair)['mme/count'] == both


def mme_samples(answers):
    """A question_id is one of images; two questions about each."""
    return [
        dict(
            pred_answer='yes' if right else 'no',
            gt_answer='Yes',
            category=category,
            question_id=f'{category}/{place // 2}.png',
        )
        for category, rights in answers.items()
        for place, right in enumerate(rights)
    ]


@pytest.mark.parametrize(
    ('answers', 'wanted'),
    [
        (dict(OCR=[1, 1]), dict(perception=200, cognition=0, OCR=200)),
        (dict(OCR=[1, 0]), {'OCR/acc': 50, 'OCR/acc+': 0, 'OCR': 50}),
        (dict(OCR=[0, 0]), {'OCR/acc': 0, 'OCR/acc+': 0, 'OCR': 0}),
        (dict(OCR=[1, 1, 0, 1]), {'OCR/acc': 75, 'OCR/acc+': 50, 'OCR': 125}),
        (dict(OCR=[1, 0, 0, 1]), {'OCR/acc': 50, 'OCR/acc+': 0, 'OCR': 50}),
        (
            dict(OCR=[1, 1], count=[1, 0], code_reasoning=[1, 1, 0, 0]),
            dict(perception=250, cognition=100),
        ),
        (
            dict(text_translation=[1, 1], code_reasoning=[0, 1]),
            dict(perception=0, cognition=250),
        ),
        (
            dict(color=[1, 1, 1, 1, 1, 0]),
            {'color/acc': 500 / 6, 'color/acc+': 200 / 3},
        ),
    ],
)
def test_scores_of_mme(answers, wanted):
    metric = METRICS.build(dict(type='transmamba.MMEScore'))
    samples = mme_samples(answers)
    random.Random(0).shuffle(samples)
    metric.process(None, samples)
    found = metric.evaluate(len(samples))
    for name, value in wanted.items():
        assert found[f'mme/{name}'] == pytest.approx(value, abs=1e-9), name


def test_what_mme_refuses():
    metric = METRICS.build(dict(type='transmamba.MMEScore'))
    metric.process(None, mme_samples(dict(OCR=[1, 1, 1])))
    with pytest.raises(ValueError, match=r"'OCR/1.png' has 1 answers"):
        metric.evaluate(3)
    with pytest.raises(ValueError, match='no category'):
        sample = dict(pred_answer='', gt_answer='yes', category='taste')
        measure('MMEScore', [sample] * 2)


@pytest.mark.parametrize(
    ('pairs', 'wanted'),
    [
        # answer and right answer; accuracy, precision, recall, F1, yes ratio
        ('yy nn', (100, 100, 100, 100, 50)),
        ('yn nn', (50, 0, 0, 0, 50)),
        ('yy yn', (50, 50, 100, 200 / 3, 100)),
        ('ny nn', (50, 0, 0, 0, 0)),
        ('yy yy yn ny nn', (60, 200 / 3, 200 / 3, 200 / 3, 60)),
        ('my yy', (50, 100, 100, 100, 50)),
        ('mn nn', (50, 0, 0, 0, 0)),
        ('yy ny ny nn', (50, 100, 100 / 3, 50, 25)),
        ('yn yn yn yn', (0, 0, 0, 0, 100)),
    ],
)
def test_pope(pairs, wanted):
    words = dict(y='Yes', n='no ', m='maybe')
    samples = [
        dict(pred_answer=words[a], gt_answer=words[b].strip())
        for a, b in pairs.split()
    ]
    found = measure('POPEScore', samples)
    names = ('accuracy', 'precision', 'recall', 'f1', 'yes_ratio')
    for name, value in zip(names, wanted):
        assert found[f'pope/{name}'] == pytest.approx(value, abs=1e-9), name
    neither = 100 * pairs.count('m') / len(samples)
    assert found['pope/answered'] == pytest.approx(100 - neither)


def test_categories_of_pope():
    samples = [
        dict(pred_answer='yes', gt_answer=right, category=name)
        for name, right in (('popular', 'yes'), ('random', 'no'))
    ]
    found = measure('POPEScore', samples)
    keys = ('pope/popular/accuracy', 'pope/random/accuracy', 'pope/accuracy')
    assert [found[key] for key in keys] == [100, 0, 50]


def test_answers_go_to_a_file(tmp_path):
    path = tmp_path / 'new' / 'answers.json'
    options = dict(out_file=str(path), id_name='image')
    samples = [dict(pred_answer='The Two.\n'), dict(pred_answer="it's ä")]
    found = measure('AnswersFile', samples, **options)
    assert found == {'answers/num_answers': 2}
    assert json.loads(path.read_text()) == [
        dict(image=1, answer='2'),
        dict(image=1, answer="it 's ä"),
    ]


def test_the_answer_may_be_a_stage_of_a_text():
    told = '<REASONING> no, no </REASONING>\n<CONCLUSION> Yes. </CONCLUSION>'
    for answer, wanted in ((told, 100), (told[:-14], 100), ('yes', 100)):
        found = accuracy('ExactMatch', answer, 'yes', stage='CONCLUSION')
        assert found == wanted
    assert accuracy('ExactMatch', told, 'yes') == 0


@pytest.mark.parametrize(
    ('kind', 'sample', 'text'),
    [
        ('ExactMatch', dict(gt_answer='a'), 'question 1 has no pred_answer'),
        ('ExactMatch', dict(pred_answer='a'), 'question 1 has no gt_answer'),
        (
            'ExactMatch',
            dict(pred_answer='a', gt_answer=['a', 'b']),
            'transmamba.VQAAccuracy judges',
        ),
        (
            'VQAAccuracy',
            dict(pred_answer='a', gt_answer='a'),
            'wants a list with the answer of each person',
        ),
        (
            'MMEScore',
            dict(pred_answer='a', gt_answer='yes'),
            'question 1 has no category',
        ),
    ],
)
def test_samples_that_lack_something(kind, sample, text):
    with pytest.raises(ValueError, match=text):
        measure(kind, [sample])


def test_options():
    with pytest.raises(ValueError, match='normalise must be one of'):
        METRICS.build(dict(type='transmamba.VQAAccuracy', normalise='x'))
    with pytest.raises(ValueError, match='stage must be one of'):
        METRICS.build(dict(type='transmamba.ExactMatch', stage='END'))


KINDS = ('ExactMatch', 'MMEScore', 'POPEScore')


def samples_of_all():
    """Seven images with two questions each."""
    rng = random.Random(0)
    samples = []
    for i in range(14):
        sample = DataSample(
            metainfo=dict(question_id=f'OCR/{i // 2}.png', category='OCR')
        )
        sample.pred_answer = rng.choice(['yes', 'no', 'maybe'])
        sample.gt_answer = rng.choice(['yes', 'no'])
        samples.append(sample)
    return samples


def evaluate(samples, device='cpu', size=14):
    kinds = [
        dict(type=f'transmamba.{kind}', collect_device=device)
        for kind in KINDS
    ]
    evaluator = Evaluator([METRICS.build(kind) for kind in kinds])
    for sample in samples:
        evaluator.process([sample])
    return evaluator.evaluate(size)


def evaluate_a_shard(rank, folder):
    os.chdir(folder)  # MMEngine collects results in a folder there
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=3
    )
    samples = samples_of_all()
    # As samplers share them: none repeated, and the first one repeated.
    found = [
        evaluate(samples[rank::3]),
        evaluate([*samples, samples[0]][rank::3]),
        evaluate(samples[rank::3], device='gpu'),
    ]
    torch.save(found, f'{folder}/{rank}.pt')
    distributed.destroy_process_group()


def test_three_processes_equal_one(tmp_path):
    mp.start_processes(
        evaluate_a_shard,
        (str(tmp_path),),
        nprocs=3,
        start_method='forkserver',
    )
    wanted = evaluate(samples_of_all())
    assert 0 < wanted['exact_match/accuracy'] < 100
    for rank in range(3):
        assert torch.load(tmp_path / f'{rank}.pt') == [wanted] * 3


def drawn_text(rng):
    words = ['the', 'a', 'two', 'none', 'dont', "dog's", '2,000', '3.5', 'No.']
    signs = 'aT 1.,;/[]"(=+\\_-<@`?!\'\n\té'
    if rng.random() < 0.5:
        return ''.join(rng.choice(signs) for _ in range(rng.randrange(40)))
    return rng.choice(' ,/-').join(rng.sample(words, rng.randrange(4)))


def test_texts_and_accuracy_equal_lmms_eval():
    pytest.importorskip('lmms_eval')
    from lmms_eval.api.metrics import exact_match_hf_evaluate
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results

    rng = random.Random(0)
    for _ in range(3000):
        text = drawn_text(rng).strip()
        other = rng.choice([text, text.upper(), drawn_text(rng)])
        right = [rng.choice([text, other]) for _ in range(10)]
        docs = dict(question_id=1, answers=copy.copy(right))
        theirs = textvqa_process_results(docs, [text])
        assert evalai_text(text) == theirs['submission']['answer']
        ours = accuracy('VQAAccuracy', text, right)
        assert ours == pytest.approx(100 * theirs['exact_match'], abs=1e-9)
        said = [dict(answer=x, answer_id=i) for i, x in enumerate(right)]
        docs = dict(question_id=1, answers=said)
        theirs = vqav2_process_results(docs, [text])
        assert vqa_text(text) == theirs['submission']['answer']
        ours = accuracy('VQAAccuracy', text, right, normalise='vqa')
        assert ours == pytest.approx(100 * theirs['exact_match'], abs=1e-9)
        exact = exact_match_hf_evaluate(
            predictions=[text],
            references=[other],
            ignore_case=True,
            ignore_punctuation=True,
        )['exact_match']
        assert accuracy('ExactMatch', text, other) == 100 * exact


def test_yes_no_and_choices_equal_lmms_eval():
    pytest.importorskip('lmms_eval')
    from lmms_eval.tasks.mme.utils import (
        mme_aggregate_results,
        mme_process_results,
    )
    from lmms_eval.tasks.pope import utils as pope
    from lmms_eval.tasks.scienceqa.utils import sqa_process_results

    for text in ('B', 'b', 'B.', 'B. x', 'b. x', 'A', '(B)', 'It is B.', ''):
        docs = dict(choices=['x', 'y'], answer=1)
        theirs = sqa_process_results(docs, [text])['exact_match']
        assert accuracy('ChoiceAccuracy', text, 'B') == 100 * theirs
    rng = random.Random(0)
    for _ in range(100):
        samples, theirs, polled = [], [], []
        for i in range(rng.randrange(1, 9)):
            for right in ('yes', 'no'):
                answer = rng.choice(YES_NO)[0]
                samples.append(
                    dict(
                        pred_answer=answer,
                        gt_answer=right,
                        category='OCR',
                        question_id=i,
                    )
                )
                docs = dict(answer=right, category='OCR', question_id=i)
                found = mme_process_results(docs, [answer])
                theirs.append(found['mme_perception_score'])
                found = pope.pope_process_results(docs, [answer])
                polled.append(found['pope_accuracy'])
        metrics = [
            METRICS.build(dict(type=f'transmamba.{kind}'))
            for kind in ('MMEScore', 'POPEScore')
        ]
        for metric in metrics:
            metric.process(None, samples)
        ours = [metric.evaluate(len(samples)) for metric in metrics]
        wanted = mme_aggregate_results(theirs)
        assert ours[0]['mme/perception'] == pytest.approx(wanted, abs=1e-9)
        for name, rate in (
            ('accuracy', pope.pope_aggregate_accuracy),
            ('precision', pope.pope_aggregate_precision),
            ('recall', pope.pope_aggregate_recall),
            ('f1', pope.pope_aggregate_f1_score),
        ):
            wanted = 100 * rate(polled)
            assert ours[1][f'pope/{name}'] == pytest.approx(wanted, abs=1e-9)
