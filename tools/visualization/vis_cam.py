# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Draw class activation maps of a Mamba, with mmpretrain's vis_cam.py.

Its arguments are those of mmpretrain's tool; ``--vit-like`` and
``--num-extra-tokens`` are not needed, as the backbone says where its class
tokens stand. By default the norm in front of the last mixer is looked at.

Example::

    pip install grad-cam
    python tools/visualization/vis_cam.py IMAGE CONFIG CHECKPOINT \
        --method GradCAM --save-path cam.jpg
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import mmpretrain
from torch import nn

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis import cam_reshape, cam_target_layers


def load_tool() -> ModuleType:
    """Load mmpretrain's tool as a module."""
    root = Path(mmpretrain.__file__).parent
    path = root / '.mim/tools/visualization/vis_cam.py'
    spec = importlib.util.spec_from_file_location('mmpretrain_vis_cam', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run the tool."""
    tool = load_tool()

    # Not mmpretrain's own, which does not know of grad-cam >= 1.5 either.
    def init_cam(
        method: str, model: nn.Module, target_layers: list, *_: Any
    ) -> Any:
        return tool.METHOD_MAP[method.lower()](
            model=model,
            target_layers=target_layers,
            reshape_transform=cam_reshape(model),
        )

    tool.init_cam = init_cam
    tool.get_default_target_layers = lambda model, _: cam_target_layers(model)
    tool.main()


if __name__ == '__main__':
    main()
