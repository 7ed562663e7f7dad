# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""mmrazor's distillation classes, safe to import from a lazy config.

In a pure-Python config, MMEngine resolves an imported class when it is first
used, in an order that the config does not control. A class imported from
``mmrazor`` itself may therefore be resolved before ``transmamba_mm``, which
makes mmrazor importable on PyTorch 2. Import from here instead::

    from transmamba_mm.razor import ConfigurableDistiller, KLDivergence

Recorders and deliveries may be named by their classes here, or by strings
without 'Recorder' or 'Delivery', e.g. 'mmrazor.ModuleOutputs'.

Nothing more is needed here: importing this module runs ``transmamba_mm``'s
``__init__`` first, and with it :func:`transmamba_mm.compat.apply`.
"""

from mmrazor.engine import StopDistillHook
from mmrazor.models.algorithms import (
    DAFLDataFreeDistillation,
    DataFreeDistillation,
    FpnTeacherDistill,
    OverhaulFeatureDistillation,
    SelfDistill,
    SingleTeacherDistill,
)
from mmrazor.models.architectures.connectors import (
    BYOTConnector,
    ConvModuleConnector,
    CRDConnector,
    FBKDStudentConnector,
    FBKDTeacherConnector,
    MGDConnector,
    NormConnector,
    OFDTeacherConnector,
    Paraphraser,
    TorchFunctionalConnector,
    TorchNNConnector,
    Translator,
)
from mmrazor.models.architectures.connectors.base_connector import (
    BaseConnector,
)
from mmrazor.models.distillers import (
    BaseDistiller,
    BYOTDistiller,
    ConfigurableDistiller,
    OFDDistiller,
)
from mmrazor.models.losses import (
    WSLD,
    ABLoss,
    ActivationLoss,
    AngleWiseRKD,
    ATLoss,
    ChannelWiseDivergence,
    CRDLoss,
    CrossEntropyLoss,
    DistanceWiseRKD,
    DISTLoss,
    DKDLoss,
    FBKDLoss,
    FTLoss,
    InformationEntropyLoss,
    KDSoftCELoss,
    KLDivergence,
    L1Loss,
    L2Loss,
    MGDLoss,
    OFDLoss,
    OnehotLikeLoss,
    PKDLoss,
)
from mmrazor.models.task_modules.delivery import (
    DistillDeliveryManager,
    FunctionOutputsDelivery,
    MethodOutputsDelivery,
)
from mmrazor.models.task_modules.recorder import (
    FunctionInputsRecorder,
    FunctionOutputsRecorder,
    MethodInputsRecorder,
    MethodOutputsRecorder,
    ModuleInputsRecorder,
    ModuleOutputsRecorder,
    ParameterRecorder,
    RecorderManager,
)
from mmrazor.models.task_modules.recorder.base_recorder import (
    BaseRecorder,
)

__all__ = [
    'WSLD',
    'ABLoss',
    'ATLoss',
    'ActivationLoss',
    'AngleWiseRKD',
    'BYOTConnector',
    'BYOTDistiller',
    'BaseConnector',
    'BaseDistiller',
    'BaseRecorder',
    'CRDConnector',
    'CRDLoss',
    'ChannelWiseDivergence',
    'ConfigurableDistiller',
    'ConvModuleConnector',
    'CrossEntropyLoss',
    'DAFLDataFreeDistillation',
    'DISTLoss',
    'DKDLoss',
    'DataFreeDistillation',
    'DistanceWiseRKD',
    'DistillDeliveryManager',
    'FBKDLoss',
    'FBKDStudentConnector',
    'FBKDTeacherConnector',
    'FTLoss',
    'FpnTeacherDistill',
    'FunctionInputsRecorder',
    'FunctionOutputsDelivery',
    'FunctionOutputsRecorder',
    'InformationEntropyLoss',
    'KDSoftCELoss',
    'KLDivergence',
    'L1Loss',
    'L2Loss',
    'MGDConnector',
    'MGDLoss',
    'MethodInputsRecorder',
    'MethodOutputsDelivery',
    'MethodOutputsRecorder',
    'ModuleInputsRecorder',
    'ModuleOutputsRecorder',
    'NormConnector',
    'OFDDistiller',
    'OFDLoss',
    'OFDTeacherConnector',
    'OnehotLikeLoss',
    'OverhaulFeatureDistillation',
    'PKDLoss',
    'ParameterRecorder',
    'Paraphraser',
    'RecorderManager',
    'SelfDistill',
    'SingleTeacherDistill',
    'StopDistillHook',
    'TorchFunctionalConnector',
    'TorchNNConnector',
    'Translator',
]
