# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Train a model: a teacher, a student, or a student with its teacher."""

import argparse

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.checkpoints import find_latest_checkpoint
from transmamba_mm.utils import cli, loading, mistakes


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    cli.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint; without a value, from the latest '
        'one in the work directory, if any',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not validate'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size, from '
        'auto_scale_lr.base_batch_size of the config',
    )
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='let the workers of the data loaders end with each epoch',
    )
    return parser.parse_args(argv)


def merge_args(cfg, args) -> None:
    """Merge the arguments into the config, in place."""
    cli.set_work_dir(cfg, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        cli.enable_amp(cfg)
    if args.resume == 'auto':
        # Without anything to resume yet, a config's load_from still counts.
        cfg.resume = find_latest_checkpoint(cfg.work_dir) is not None
        if cfg.resume:
            cfg.load_from = None
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    cli.check_local_file(cfg.get('load_from'), 'checkpoint')
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise cli.UsageError(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size in the '
                'config'
            )
        cfg.auto_scale_lr.enable = True
    cli.set_dataloader_defaults(
        cfg,
        ('train_dataloader', 'val_dataloader', 'test_dataloader'),
        args,
        persistent_workers=True,
    )


def main() -> None:
    """Train."""
    args = parse_args()
    cfg = cli.load_config(args)
    cli.set_launcher(cfg, args)
    merge_args(cfg, args)
    with cli.locked(cfg):
        runner = cli.build_runner(cfg)
        loading.check_loading(runner, strict=False)
        mistakes.train(runner)


if __name__ == '__main__':
    cli.run_main(main)
