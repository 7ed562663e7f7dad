# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Draw class activation maps of a Mamba, by mmpretrain's ``vis_cam.py``.

All options are mmpretrain's. Class tokens and grid are those that the
backbone tells of, so ``--vit-like`` and ``--num-extra-tokens`` are not needed.
The config may be a distillation's: its student is drawn. Needs
``pip install grad-cam``.

Example::

    python tools/analysis_tools/vis_cam.py IMAGE CONFIG CHECKPOINT \
        --method GradCAM --save-path cam.png
"""

from torch import nn

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis.visualization import (
    PatchMaps,
    cam_layer,
    mmpretrain_tool,
)
from transmamba_mm.contract import GridStudent, find_student
from transmamba_mm.utils import cli


def student_of(model: nn.Module) -> GridStudent:
    """Return the Mamba inside of a classifier."""
    try:
        return find_student(model.backbone)
    except TypeError as error:
        raise cli.UsageError(
            f"{error}; for other models use mmpretrain's own vis_cam.py"
        ) from error


def main() -> None:
    """Run mmpretrain's tool with our target layer and maps."""
    try:
        tool = mmpretrain_tool('vis_cam')
    except ImportError as error:
        raise cli.UsageError(str(error)) from error

    def make_cam(method, model, target_layers, *args, **kwargs):
        # Newer versions of grad-cam know no use_cuda.
        return tool.METHOD_MAP[method.lower()](
            model=model,
            target_layers=target_layers,
            reshape_transform=PatchMaps(student_of(model)),
        )

    def default_layers(model, args):
        return [cam_layer(student_of(model))]

    tool.init_cam = make_cam
    tool.get_default_target_layers = default_layers
    tool.main()


if __name__ == '__main__':
    cli.run_main(main)
