# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Checkpoints that a tool is given."""

import torch
from mmengine.runner import Runner

from transmamba_mm.checkpoints import CheckpointError
from transmamba_mm.checkpoints.files import lookup
from transmamba_mm.datasets.inspect import check_trained_classes

from .mistakes import UsageError


def check_loading(runner: Runner, strict: bool) -> None:
    """Makes the runner refuse a checkpoint that it cannot use, in one line.

    Args:
        runner (Runner): The runner, modified in place.
        strict (bool): Whether all of the model has to be in the file, and
            all of the file in the model. MMEngine only prints what is not.
            Something has to be at any rate.
    """
    load, resume = runner.load_checkpoint, runner.resume

    def versions() -> list[int]:
        # Counts what has been written to a tensor in place.
        return [tensor._version for tensor in runner.model.parameters()]

    def checked(filename: str, *args, **kwargs) -> dict:
        before = versions()
        try:
            content = load(filename, *args, **{'strict': strict, **kwargs})
            if before and versions() == before:
                raise ValueError(
                    f"checkpoint '{filename}' holds nothing of this model"
                )
            if strict:  # for testing
                meta = lookup(content, 'meta') or {}
                trained = lookup(meta, 'dataset_meta') or {}
                check_trained_classes(
                    trained.get('classes') or (),
                    runner.test_dataloader.dataset,
                )
            return content
        except CheckpointError:
            raise
        except ValueError as error:  # of a model that says what does not fit
            raise UsageError(str(error)) from error
        except RuntimeError as error:
            if not str(error).startswith('The model and loaded state dict'):
                raise
            raise UsageError(
                f"'{filename}' is of another model. {error}"
            ) from error

    def resumed(filename: str, *args, **kwargs) -> None:
        loaded = None

        def noted(*args, **kwargs) -> dict:
            nonlocal loaded
            loaded = checked(*args, **kwargs)
            # MMEngine would count on with whatever it finds.
            meta = loaded['meta']
            meta['epoch'], meta['iter'] = int(meta['epoch']), int(meta['iter'])
            return loaded

        runner.load_checkpoint = noted
        try:
            resume(filename, *args, **kwargs)
        except (UsageError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            if loaded is None:
                raise
            # Whatever a state that is not complete makes MMEngine raise.
            raise UsageError(
                f"'{filename}' holds no training state of this config "
                f'({type(error).__name__}: {error}): to start from its '
                f'weights, use load_from=FILE instead of --resume'
            ) from error
        finally:
            runner.load_checkpoint = checked

    runner.load_checkpoint, runner.resume = checked, resumed
