# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""A page in the browser that answers questions about pictures.

pip install '.[demo]'
python demo/vqa_page.py CONFIG CHECKPOINT
"""

import argparse
from collections.abc import Iterator
from typing import Any, Optional

from transmamba_mm.apis import VisualChatInferencer
from transmamba_mm.utils import cli, mistakes


def make_page(chat: VisualChatInferencer) -> Any:
    """The page, not started.

    Args:
        chat (VisualChatInferencer): What answers.

    Returns:
        gradio.Interface: The page.

    Raises:
        UsageError: If gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise cli.UsageError(
            f'the page needs gradio ({error}): pip install "gradio>=5"'
        ) from error

    def answer(
        picture: Optional[Any], question: str, length: float
    ) -> Iterator[str]:
        if not question.strip():
            raise gradio.Error('Please ask a question.', print_exception=False)
        pictures = [] if picture is None else [picture]
        yield from chat.stream(pictures, question, max_new_tokens=int(length))

    longest = chat.llava.generation_cfg['max_new_tokens']
    return gradio.Interface(
        answer,
        [
            gradio.Image(type='pil', label='Picture'),
            gradio.Textbox(label='Question', placeholder='What is it?'),
            gradio.Slider(1, 1024, longest, step=1, label='Longest answer'),
        ],
        gradio.Textbox(label='Answer', lines=4),
        title='Ask a picture',
        flagging_mode='never',
    )


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of a TransLlava')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--device', help='default: the CPU')
    parser.add_argument(
        '--host', default='127.0.0.1', help='default: %(default)s'
    )
    parser.add_argument('--port', type=int, default=7860)
    cli.add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    """Run the page."""
    args = parse_args()
    cfg = cli.load_config(args)
    cli.check_local_file(args.checkpoint, 'checkpoint')
    with mistakes.explained(cfg):
        chat = VisualChatInferencer(cfg, args.checkpoint, args.device)
    make_page(chat).launch(server_name=args.host, server_port=args.port)


if __name__ == '__main__':
    cli.run_main(main)
