# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""The retriever and its heads, by hand; padding; two processes."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from retrieval_models import (
    FRAMES,
    WIDTH,
    build_random,
    clip4clip_cfg,
    mamba_cfg,
    text_cfg,
    video_batch,
)
from torch.nn.parallel import DistributedDataParallel

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.models import SequenceTransformer
from transmamba_mm.models.retrieval.heads import MAX_LOGIT_SCALE
from transmamba_mm.registry import MODELS

SAME = dict(rtol=1e-5, atol=1e-5)
HEADS = ('MeanPooling', 'SequenceTransformer')


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def by_hand(model, videos, samples):
    """Embeddings of texts (B, D) and videos (B, D), one video at a time."""
    head, texts, pooled = model.head, [], []
    for video, sample in zip(videos, samples):
        n = sample.num_frames
        frames = model.backbone(video[None])
        frames = (
            frames[0] if isinstance(frames, torch.Tensor) else frames[-1][0]
        )
        frames = head.video_proj(frames)[:n]
        if isinstance(head, SequenceTransformer):
            x = frames + head.frame_position_embeddings.weight[:n]
            frames = frames + head.transformer(x[None])[0]
        pooled.append(unit(unit(frames).mean(0)))
        length = int(sample.tokens[0].ne(0).sum())
        texts.append(unit(model.text_encoder(sample.tokens[:1, :length])[0]))
    return torch.stack(texts), torch.stack(pooled)


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('make', [clip4clip_cfg, mamba_cfg])
def test_loss_and_predictions_by_hand(make, head):
    model = build_random(make(head=head))
    videos, samples = video_batch()
    texts, pooled = by_hand(model, videos, samples)
    model(videos, samples, mode='predict')
    for i, sample in enumerate(samples):
        torch.testing.assert_close(sample.video_embedding, pooled[i], **SAME)
        found = sample.text_embeddings
        torch.testing.assert_close(found, texts[i : i + 1], **SAME)
        assert sample.frame_embeddings.shape == (FRAMES, WIDTH)
    logits = model.head.logit_scale.exp() * texts @ pooled.T
    both = [-x.log_softmax(1).diagonal().mean() for x in (logits, logits.T)]
    found = model(videos, samples, mode='loss')
    torch.testing.assert_close(found['loss'], sum(both) / 2, **SAME)
    # Without data samples all frames count.
    embedded, _ = model(videos)
    torch.testing.assert_close(embedded[::2], pooled[::2], **SAME)
    found['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize('head', HEADS)
def test_what_is_in_the_padding_makes_no_difference(head):
    model = build_random(clip4clip_cfg(head)).eval()
    videos, samples = video_batch(texts=2)
    samples[1].num_frames = 2
    model(videos, samples, mode='predict')
    before = [(x.video_embedding, x.text_embeddings) for x in samples]
    for video, sample in zip(videos, samples):
        video[:, sample.num_frames :] = 100.0
        sample.tokens = F.pad(sample.tokens, (0, 9))
    model(videos, samples, mode='predict')
    for (video, texts), sample in zip(before, samples):
        torch.testing.assert_close(sample.video_embedding, video, **SAME)
        torch.testing.assert_close(sample.text_embeddings, texts, **SAME)


@pytest.mark.parametrize('head', HEADS)
def test_half_precision_is_for_the_towers(head):
    """What is compared is float32, so close scores keep their order."""
    model, (videos, samples) = build_random(clip4clip_cfg(head)), video_batch()
    expected = model(videos, samples, mode='loss')['loss']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = model(videos, samples)
        loss = model(videos, samples, mode='loss')['loss']
    dtypes = {x.dtype for x in (found.texts, found.videos, found.logits)}
    assert dtypes == {torch.float32}
    torch.testing.assert_close(loss, expected, rtol=0.03, atol=0)
    loss.backward()
    assert model.text_encoder.text_projection.grad.isfinite().all()


def test_a_video_encoder_without_frames():
    config = mamba_cfg(keep_temporal=False)
    model, (videos, samples) = build_random(config), video_batch()
    found = model(videos, samples)
    assert found.frames is None
    assert found.videos.shape == (4, WIDTH)
    model(videos, samples, mode='predict')
    assert 'frame_embeddings' not in samples[0]
    torch.testing.assert_close(samples[0].video_embedding, found.videos[0])


def test_several_texts_and_none():
    model, (videos, samples) = build_random(mamba_cfg()), video_batch(texts=3)
    samples[1].tokens = samples[1].tokens[:1]
    model(videos, samples, mode='predict')
    assert [len(x.text_embeddings) for x in samples] == [3, 1, 3, 3]
    alone = model.encode_texts(samples[2].tokens)
    torch.testing.assert_close(samples[2].text_embeddings, alone, **SAME)
    with pytest.raises(ValueError, match='comes with one text'):
        model(videos, samples, mode='loss')
    videos, samples = video_batch()
    for sample in samples:
        del sample.tokens
    model(videos, samples, mode='predict')
    assert 'text_embeddings' not in samples[0]


def test_mistakes():
    model, (videos, samples) = build_random(clip4clip_cfg()), video_batch()
    samples[2].num_frames = 0
    with pytest.raises(ValueError, match=r'num_frames=\[4, 3, 0, 3\]'):
        model(videos, samples)
    with pytest.raises(RuntimeError, match='Invalid mode "train"'):
        model(videos, samples, mode='train')
    features = torch.zeros(1, 3, WIDTH)
    with pytest.raises(ValueError, match='gives 3 features of videos of 4'):
        model.head.embed_videos(features, torch.ones(1, 4).bool())
    model = build_random(clip4clip_cfg('SequenceTransformer'))
    with pytest.raises(ValueError, match='max_frames=6'):
        model(videos.repeat(1, 1, 2, 1, 1))
    whole = mamba_cfg(head='SequenceTransformer', keep_temporal=False)
    with pytest.raises(ValueError, match='set keep_temporal=True'):
        build_random(whole)(videos)


def test_the_default_preprocessor_is_that_of_videos():
    constants = dict(mean=[100.0] * 3, std=[50.0] * 3)
    config = dict(clip4clip_cfg(), data_preprocessor=constants)
    model = MODELS.build(config)
    videos = [torch.full((3, 4, 16, 16), 200, dtype=torch.uint8)] * 2
    batch = dict(inputs=videos, data_samples=video_batch(2)[1])
    found = model.data_preprocessor(batch, training=True)['inputs']
    assert torch.stack(list(found)).unique().tolist() == [2.0]


def test_a_list_of_videos_becomes_a_batch():
    """MMEngine's loaders give one unless told otherwise."""
    model = build_random(mamba_cfg())
    videos, samples = video_batch()
    both = [
        model.data_preprocessor(dict(inputs=inputs, data_samples=samples))
        for inputs in (videos, list(videos))
    ]
    torch.testing.assert_close(both[0]['inputs'], both[1]['inputs'])


def test_the_scale_is_held_at_100():
    model = build_random(clip4clip_cfg()).train()
    model.head.logit_scale.data.fill_(9.0)
    batch = video_batch()
    found = model(*batch)
    assert found.scale.item() == pytest.approx(100)
    # It is not only hidden: a step from there has an effect.
    assert model.head.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
    model(*batch, mode='loss')['loss'].backward()
    assert model.head.logit_scale.grad.abs() > 0
    start = MODELS.build(clip4clip_cfg()).head.logit_scale.item()
    assert start == pytest.approx(math.log(1 / 0.07))


@pytest.mark.parametrize('constructor', ['Default', 'MergedGroups'])
def test_learning_rates_by_group(constructor):
    """CLIP4Clip's ``coef_lr``: a thousandth for all that comes from CLIP."""
    model = build_random(clip4clip_cfg('SequenceTransformer'))
    scope = 'transmamba.' if constructor == 'MergedGroups' else ''
    slow = dict(lr_mult=1e-3)
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor=f'{scope}{constructor}OptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.2),
            paramwise_cfg=dict(
                custom_keys={
                    'backbone.': slow,
                    'text_encoder.': slow,
                    'head.logit_scale': slow,
                }
            ),
        ),
    )
    rates = {
        parameter: group['lr']
        for group in wrapper.param_groups
        for parameter in group['params']
    }
    for name, parameter in model.named_parameters():
        new = name.startswith(('head.frame', 'head.transformer'))
        expected = 1e-4 if new else 1e-7
        assert rates[parameter] == pytest.approx(expected), name


def test_frozen_parts_have_no_gradient():
    config = mamba_cfg()
    config['text_encoder'] = text_cfg(frozen_stages=2)
    model = build_random(config).train()
    model(*video_batch(), mode='loss')['loss'].backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith('text_encoder.')
        assert (parameter.grad is None) == frozen, name


# -------------------------------------------------------------- two processes


def half(rank, folder):
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    model = build_random(mamba_cfg()).train()
    videos, samples = video_batch(4)
    part = slice(2 * rank, 2 * rank + 2)
    parallel = DistributedDataParallel(model)
    loss = parallel(videos[part], samples[part], mode='loss')['loss']
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    torch.save(dict(loss=loss.detach(), grads=grads), f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    args = (str(tmp_path),)
    mp.start_processes(half, args, nprocs=2, start_method='forkserver')
    model = build_random(mamba_cfg()).train()
    loss = model(*video_batch(4), mode='loss')['loss']
    loss.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth')
        torch.testing.assert_close(found['loss'], loss.detach(), **SAME)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                found['grads'][name],
                parameter.grad,
                msg=lambda text, name=name: f'{name}: {text}',
                **SAME,
            )


def test_a_checkpoint_of_a_distillation_is_refused(tmp_path):
    """Loaders that are not strict would leave random weights."""
    model = build_random(mamba_cfg())
    state = {f'architecture.{k}': v for k, v in model.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'epoch_1.pth')
    with pytest.raises(CheckpointError, match=r'export_student\.py'):
        load_checkpoint(model, str(tmp_path / 'epoch_1.pth'))
    torch.save(dict(backbone_weight=torch.ones(2)), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='holds nothing for VideoText'):
        load_checkpoint(model, str(tmp_path / 'other.pth'))
