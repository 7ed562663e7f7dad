_base_ = [
    '../_base_/models/videomamba_toy.py',
    '../_base_/datasets/toy_videos.py',
    '../_base_/schedules/toy_adamw_cosine.py',
    '../_base_/default_runtime.py',
]
