"""MSR-VTT, 7k split, tested on 1k-A."""

_base_ = './msrvtt_224.py'

train_dataloader = dict(dataset=dict(ann_file='train_7k.json'))
