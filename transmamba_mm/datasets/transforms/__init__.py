# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
from .images import EachImage, PackConversation, PadToSquare
from .questions import AskQuestion, DropQuestions
from .text import TokenizeText
from .video_decoding import UnreadableVideoError
from .video_frames import EachFrame, LoadVideo, PackVideoText

__all__ = [
    'AskQuestion',
    'DropQuestions',
    'EachFrame',
    'EachImage',
    'LoadVideo',
    'PackConversation',
    'PackVideoText',
    'PadToSquare',
    'TokenizeText',
    'UnreadableVideoError',
]
