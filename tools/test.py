# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Test a model, and save its metrics, predictions or pictures of them."""

import argparse
from copy import deepcopy

import mmengine
from mmengine.config import ConfigDict
from mmengine.evaluator import DumpResults

import transmamba_mm  # noqa: F401  (makes mmrazor importable)
from transmamba_mm.apis import with_pipeline
from transmamba_mm.utils import cli, loading, mistakes


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    cli.add_common_arguments(parser)
    parser.add_argument('--out', metavar='FILE', help='save results here')
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what to save in --out (default: pred)',
    )
    parser.add_argument('--show-dir', help='save pictures of results here')
    parser.add_argument(
        '--show', action='store_true', help='show results in a window'
    )
    parser.add_argument(
        '--interval', type=int, default=1, help='show every n-th sample'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds per window'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: tta_model and tta_pipeline of the '
        'config, or else the average over the image and its mirror image',
    )
    args = parser.parse_args(argv)
    if args.out_item is not None and args.out is None:
        parser.error('--out-item needs --out')
    if args.tta and (args.show or args.show_dir is not None):
        parser.error('with --tta there is no single picture to show')
    return args


def merge_args(cfg, args) -> None:
    """Merge the arguments into the config, in place."""
    cli.check_local_file(args.checkpoint, 'checkpoint')
    missing = [
        key
        for key in ('test_dataloader', 'test_cfg', 'test_evaluator')
        if cfg.get(key) is None
    ]
    if missing:
        raise cli.UsageError(f'the config has no {", ".join(missing)}')
    cli.set_work_dir(cfg, args)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        enable_visualization(cfg, args)
    if args.tta:
        enable_tta(cfg)
    cli.set_dataloader_defaults(cfg, ('test_dataloader',), args)


def enable_visualization(cfg, args) -> None:
    """Let the visualization hook of the config show or save results."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise cli.UsageError(
            '--show and --show-dir need default_hooks.visualization=dict('
            "type='VisualizationHook') in the config"
        )
    hook.update(
        enable=True,
        show=args.show,
        wait_time=args.wait_time,
        out_dir=args.show_dir,
        interval=args.interval,
    )


def enable_tta(cfg) -> None:
    """Wrap the model and the pipeline for test-time augmentation."""
    dataset = with_pipeline(cfg.test_dataloader.dataset)
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
    if 'tta_pipeline' not in cfg:
        *steps, pack = deepcopy(dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)]
        both = dict(type='TestTimeAug', transforms=[flips, [pack]])
        cfg.tta_pipeline = [*steps, both]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    """Test."""
    args = parse_args()
    cfg = cli.load_config(args)
    cli.set_launcher(cfg, args)
    merge_args(cfg, args)
    runner = cli.build_runner(cfg)
    # Of random weights no score should be told.
    loading.check_loading(runner, strict=True)
    if args.out is not None and args.out_item != 'metrics':
        dump = DumpResults(out_file_path=args.out)
        runner.test_evaluator.metrics.append(dump)
    with mistakes.explained(cfg):
        metrics = runner.test()
    if args.out is not None and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    cli.run_main(main)
