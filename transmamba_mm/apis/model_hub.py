# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Our configs in mmpretrain's model hub.

Importing ``transmamba_mm`` is enough::

    import transmamba_mm
    from mmpretrain import get_model, list_models

    list_models('*pmamba*')
    model = get_model('pmamba-tiny_8xb64-300e_cifar100')

A name gives the classifier that the config trains; of a distillation, that is
the student alone. No config has pretrained weights; load your own with
``get_model(name, pretrained='path/to/student.pth')``, which
``tools/export_student.py`` takes out of a distillation's checkpoint. The path
of a config gives all that it states, of a distillation teacher and distiller
as well, and takes the checkpoints of its runs as they are.
"""

from functools import cache
from pathlib import Path
from typing import Optional

from mmengine.config import Config
from mmpretrain.apis import ModelHub
from modelindex.models.Model import Model

_PACKAGE = Path(__file__).resolve().parents[1]


def find_model_index() -> Optional[Path]:
    """Finds ``model-index.yml``, whose folder also holds ``configs``.

    Returns:
        Path | None: The file of the installed package, else that of the
        repository around it, else None.
    """
    for folder in (_PACKAGE / '.mim', _PACKAGE.parent):
        index = folder / 'model-index.yml'
        if index.is_file() and (folder / 'configs').is_dir():
            return index
    return None


def register_models() -> None:
    """Makes our configs known to mmpretrain by name.

    They are read when mmpretrain reads its own, at the first ``list_models``
    or ``get_model``, so that importing costs nothing. Further calls change
    nothing.
    """
    register_mmpretrain = ModelHub._register_mmpretrain_models
    if hasattr(register_mmpretrain, 'with_transmamba'):
        return

    def register_all() -> None:
        register_mmpretrain()
        _read_model_index()

    register_all.with_transmamba = True
    ModelHub._register_mmpretrain_models = staticmethod(register_all)
    get_metainfo = ModelHub.get

    def get(model_name: str) -> Model:
        metainfo = get_metainfo(model_name)
        _keep_student(metainfo.config)
        return metainfo

    ModelHub.get = staticmethod(get)


def _keep_student(config: Config) -> None:
    """Makes the model of a distillation its student, in place."""
    whole = config.model
    if 'architecture' in whole:
        config.model = whole.architecture
        if 'data_preprocessor' in whole:
            config.model.setdefault(
                'data_preprocessor', whole.data_preprocessor
            )


@cache
def _read_model_index() -> None:
    index = find_model_index()
    if index is None:
        return
    configs = (index.parent / 'configs').resolve()
    known = (model.filepath for model in ModelHub._models_dict.values())
    if any(configs in Path(path).resolve().parents for path in known):
        return  # somebody has registered the file by hand
    ModelHub.register_model_index(index, config_prefix=index.parent)


register_models()
