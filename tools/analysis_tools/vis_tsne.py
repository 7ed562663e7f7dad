# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Draw features of a classifier by t-SNE, with mmpretrain's ``vis_tsne.py``.

All options are mmpretrain's. The config may be a distillation's: its
student's features are drawn. mmpretrain's own tool names an argument as
scikit-learn did before version 1.5; this is the only difference.

Example::

    python tools/analysis_tools/vis_tsne.py CONFIG --checkpoint CHECKPOINT \
        --work-dir work_dirs/RUN --vis-stage backbone
"""

from sklearn.manifold import TSNE

import transmamba_mm  # noqa: F401  (first: it makes mmrazor importable)
from transmamba_mm.apis.visualization import mmpretrain_tool
from transmamba_mm.utils import cli


def make_tsne(n_iter: int, **kwargs) -> TSNE:
    """Build scikit-learn's t-SNE by the names of today."""
    steps = 'max_iter' if 'max_iter' in TSNE().get_params() else 'n_iter'
    return TSNE(**{steps: n_iter}, **kwargs)


def main() -> None:
    """Run mmpretrain's tool."""
    tool = mmpretrain_tool('vis_tsne')
    tool.TSNE = make_tsne
    tool.main()


if __name__ == '__main__':
    cli.run_main(main)
