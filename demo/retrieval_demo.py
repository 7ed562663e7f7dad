# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Search a folder of videos by text, and look at what was found.

    python demo/retrieval_demo.py CONFIG CHECKPOINT --videos clips/ \
        --query 'a dog catches a ball' --query 'a man cooks' --out found.html

The page needs no other file and no network: the best clips of each query are
moving pictures inside of it. ``--save-index`` keeps the embeddings of the
videos for the next time, ``--index`` takes them from there.
"""

import argparse
import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from transmamba_mm.apis import VideoTextRetrievalInferencer
from transmamba_mm.datasets.transforms.video_decoding import (
    check_decoder,
    open_video,
    reading,
)
from transmamba_mm.datasets.transforms.video_frames import choose_frames
from transmamba_mm.utils import cli, mistakes

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Videos found</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em; }}
ol {{ display: flex; flex-wrap: wrap; gap: 1em; padding: 0; }}
li {{ list-style: none; width: 240px; overflow-wrap: anywhere; }}
img {{ width: 100%; border-radius: 4px; background: #8882; }}
small {{ opacity: .7; }}
</style></head><body>
<h1>Videos found</h1>
{sections}
</body></html>
"""


def moving_picture(path: str, frames: int = 12, side: int = 240) -> str:
    """A video as a data URI of an animated WebP.

    Args:
        path (str): The video, or a folder of frames.
        frames (int): How many of its frames. Defaults to 12.
        side (int): The longer side in pixels. Defaults to 240.
    """
    with reading(path):
        video = open_video(path, check_decoder('auto'))
        chosen = choose_frames(video.times, video.duration, frames, fps=None)
        pictures = [Image.fromarray(np.asarray(x)) for x in video.read(chosen)]
    for picture in pictures:
        picture.thumbnail((side, side))
    file = io.BytesIO()
    pictures[0].save(
        file,
        format='WEBP',
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 * min(max(video.duration, 1), 6) / len(pictures)),
        loop=0,
        quality=70,
    )
    data = base64.b64encode(file.getvalue()).decode()
    return f'data:image/webp;base64,{data}'


def as_page(results: list) -> str:
    """A page of what the inferencer found."""
    seen, sections = {}, []
    for result in results:
        cards = []
        for rank, found in enumerate(result['predictions'], 1):
            path = found['video']
            if path not in seen:
                seen[path] = moving_picture(path)
            name = html.escape(Path(path).name)
            cards.append(
                f'<li><img alt="{name}" src="{seen[path]}">{rank}. {name} '
                f'<small>{found["score"]:.3f}</small></li>'
            )
        title = html.escape(result['text'])
        sections.append(f'<h2>{title}</h2><ol>{"".join(cards)}</ol>')
    return _PAGE.format(sections='\n'.join(sections))


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of a retriever')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--videos', help='folder of videos to search')
    parser.add_argument('--index', help='file of --save-index, in its place')
    parser.add_argument('--save-index', help='where to keep the embeddings')
    parser.add_argument(
        '--query', action='append', default=[], help='a text; may be repeated'
    )
    parser.add_argument('--topk', type=int, default=5, help='default: 5')
    parser.add_argument('--out', help='HTML page to write')
    parser.add_argument('--device', help='default: the CPU')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--num-workers', type=int, default=0)
    parser.add_argument(
        '--skip',
        action='store_true',
        help='leave out videos that cannot be decoded',
    )
    cli.add_cfg_options(parser)
    args = parser.parse_args()
    if (args.videos is None) == (args.index is None):
        parser.error('give --videos or --index')
    if args.videos and not Path(args.videos).is_dir():
        parser.error(f"there is no folder '{args.videos}' of videos")
    return args


def main() -> None:
    """Run the demo."""
    args = parse_args()
    cfg = cli.load_config(args)
    cli.check_local_file(args.checkpoint, 'checkpoint')
    with mistakes.explained(cfg):
        search = VideoTextRetrievalInferencer(
            cfg,
            videos=args.videos,
            index=args.index,
            pretrained=args.checkpoint,
            device=args.device,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            on_error='skip' if args.skip else 'error',
        )
        if args.save_index:
            search.save_index(args.save_index)
        results = search(args.query, topk=args.topk) if args.query else []
    for result in results:
        print(result['text'])
        for found in result['predictions']:
            print(f'  {found["score"]:.3f}  {found["video"]}')
    if args.out:
        Path(args.out).write_text(as_page(results), encoding='utf-8')


if __name__ == '__main__':
    cli.run_main(main)
