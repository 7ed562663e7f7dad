# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Ask a question about a picture; the answer appears while it is generated.

python demo/vqa_demo.py fox.jpg 'What is it?' --config A --checkpoint B
"""

import argparse
from pathlib import Path

from transmamba_mm.apis import VisualChatInferencer
from transmamba_mm.utils import cli, mistakes


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('image', help='path of the picture')
    parser.add_argument('question')
    parser.add_argument('--config', required=True, help='of a TransLlava')
    parser.add_argument('--checkpoint', required=True, help='its weights')
    parser.add_argument('--device', help='default: the CPU')
    parser.add_argument('--max-new-tokens', type=int, help="default: config's")
    parser.add_argument(
        '--temperature', type=float, help='draw tokens; default: the likeliest'
    )
    parser.add_argument(
        '--top-p', type=float, default=1.0, help='of the draw; default: 1'
    )
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    if not Path(args.image).is_file():
        parser.error(f"there is no picture '{args.image}'")
    return args


def main() -> None:
    """Run the demo."""
    args = parse_args()
    cfg = cli.load_config(args)
    cli.check_local_file(args.checkpoint, 'checkpoint')
    options = {}
    if args.max_new_tokens is not None:
        options['max_new_tokens'] = args.max_new_tokens
    if args.temperature is not None:
        options.update(
            do_sample=True, temperature=args.temperature, top_p=args.top_p
        )
    with mistakes.explained(cfg):
        chat = VisualChatInferencer(cfg, args.checkpoint, args.device)
        text = shown = ''
        for text in chat.stream([args.image], args.question, **options):
            # A letter of several tokens is no letter before its last one.
            new = text[len(shown) :].rstrip('\ufffd')
            print(new, end='', flush=True)
            shown += new
    print(text[len(shown) :])


if __name__ == '__main__':
    cli.run_main(main)
