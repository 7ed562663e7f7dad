# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What transfer and distillation may know of a pair of models.

Students state themselves in :mod:`.student`, teachers are described by a row
in :mod:`.families`; :mod:`.roles` is the vocabulary of their parameters,
:mod:`.sites` that of what can be read while they run.
"""

from .answers import AnswerReader, Answers
from .embedding_head import EmbeddingHead
from .epochs import EpochDependent
from .families import FAMILIES, TeacherError, TeacherFamily, register
from .frames import PerFrame
from .inputs import ResizingDataPreprocessor, TeacherInput
from .kept_channels import KeptChannels
from .live_student import Student, find_student
from .pair import Pair, PairAware, sides_of
from .records import Embeddings, TapRecord, TokenRecord
from .scan_orders import scan_order
from .student import GridStudent, MambaStudent, MixerBlock
from .taps import DirectionTap, DirectionTaps
from .teacher import Teacher
from .teachers import Teachers, teacher_at, teachers_of
from .weights import TeacherWeights, read_teacher

__all__ = [
    'FAMILIES',
    'AnswerReader',
    'Answers',
    'DirectionTap',
    'DirectionTaps',
    'EmbeddingHead',
    'Embeddings',
    'EpochDependent',
    'GridStudent',
    'KeptChannels',
    'MambaStudent',
    'MixerBlock',
    'Pair',
    'PairAware',
    'PerFrame',
    'ResizingDataPreprocessor',
    'Student',
    'TapRecord',
    'Teacher',
    'TeacherError',
    'TeacherFamily',
    'TeacherInput',
    'TeacherWeights',
    'Teachers',
    'TokenRecord',
    'find_student',
    'read_teacher',
    'register',
    'scan_order',
    'sides_of',
    'teacher_at',
    'teachers_of',
]
