# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Makes a folder of transformers, in float32, of a GGUF file.

``TransformersCausalLM`` and ``CausalTokenizer`` read the folder; a GGUF file
they do not. Needs ``gguf`` and ``accelerate``.

Example::

    python tools/model_converters/gguf_to_transformers.py \
        SmolLM2-135M-Instruct.Q4_1.gguf data/weights/SmolLM2-135M-Instruct
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from transmamba_mm.utils import cli


def convert(path: Path, out: Path) -> None:
    """Reads a GGUF file and writes a folder.

    Args:
        path (Path): The file.
        out (Path): The folder, which gets the model and its tokenizer.

    Raises:
        ImportError: If ``gguf`` or ``accelerate`` is not installed.
        ValueError: If transformers cannot read the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}'")
    source = dict(
        pretrained_model_name_or_path=str(path.parent), gguf_file=path.name
    )
    model = AutoModelForCausalLM.from_pretrained(**source)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # It still says that it is quantised, and will not be saved; a model of
    # the same config is not.
    del model.config.quantization_config
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('file', type=Path, help='GGUF file')
    parser.add_argument('out', type=Path, help='folder to write')
    args = parser.parse_args()
    try:
        convert(args.file, args.out)
    except (ImportError, OSError, ValueError) as error:
        raise cli.UsageError(str(error)) from error
    print(f'written to {args.out}')


if __name__ == '__main__':
    cli.run_main(main)
