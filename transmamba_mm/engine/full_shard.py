# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""PyTorch's fully sharded data parallelism as a strategy of MMEngine."""

from typing import Any, Optional

import torch
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from transmamba_mm.contract import MixerBlock
from transmamba_mm.registry import STRATEGIES


def sharded_units(model: nn.Module) -> list[nn.Module]:
    """Modules whose weights are gathered together, and not all the time.

    The entries of the outermost lists of modules, such as layers are, and
    blocks of students wherever they are, since they may run alone.

    Args:
        model (nn.Module): The model.

    Returns:
        list[nn.Module]: Those with parameters; what is inside of another one
        comes before it.
    """
    if isinstance(model, nn.ModuleList):
        found = []
        for entry in model:
            inside = (x for x in entry.modules() if x is not entry)
            found += [x for x in inside if isinstance(x, MixerBlock)]
            if next(entry.parameters(), None) is not None:
                found.append(entry)
        return found
    return [x for child in model.children() for x in sharded_units(child)]


@STRATEGIES.register_module()
class FullyShardStrategy(DDPStrategy):
    """Shares weights, gradients and optimizer among GPUs (FSDP).

    PyTorch's ``fully_shard`` (FSDP2). Unlike ``FullyShardedDataParallel``,
    that of MMEngine's ``FSDPStrategy``, it wraps no module: names stay, by
    which roles, sites and parameter groups are found. Each layer is gathered
    when it runs; what is in no layer (embeddings, heads) stays gathered
    during a step. A frozen teacher is shared as the student is.

    Checkpoints are those of the default runner, whole and in one file, so
    that a run may be resumed without this strategy.

    Args:
        mixed_precision (dict, optional): Names of dtypes, see
            ``torch.distributed.fsdp.MixedPrecisionPolicy``, e.g.
            ``dict(param_dtype='bfloat16', reduce_dtype='float32')``. Weights
            and optimizer stay as they are. Defaults to None.
        reshard_after_forward (bool): Whether to forget the weights of a
            layer until the backward pass. Defaults to True.
        cpu_offload (bool): Whether weights, gradients and optimizer are kept
            on the CPU. Defaults to False.
        **kwargs: Of MMEngine's ``DDPStrategy``.

    Raises:
        RuntimeError: If PyTorch is older than 2.6.
    """

    def __init__(
        self,
        mixed_precision: Optional[dict[str, str]] = None,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        try:
            from torch.distributed.fsdp import (
                CPUOffloadPolicy,
                MixedPrecisionPolicy,
            )
        except ImportError as error:
            raise RuntimeError(
                'FullyShardStrategy needs PyTorch 2.6 or newer'
            ) from error
        dtypes = {
            name: getattr(torch, dtype)
            for name, dtype in (mixed_precision or {}).items()
        }
        self._options: dict[str, Any] = dict(
            mp_policy=MixedPrecisionPolicy(**dtypes),
            reshard_after_forward=reshard_after_forward,
        )
        if cpu_offload:
            self._options['offload_policy'] = CPUOffloadPolicy()

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        model = self.convert_model(model)
        if not is_distributed():
            return model.to(get_device())
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            fully_shard,
            register_fsdp_forward_method,
        )

        device = get_device()
        for module in model.modules():
            if isinstance(module, BaseDataPreprocessor):
                module.to(device)
        mesh = init_device_mesh(device, (self.world_size,))
        for unit in sharded_units(model):
            fully_shard(unit, mesh=mesh, **self._options)
            # What runs beside its forward pass gathers its weights as well.
            for name in unit.PASSES if isinstance(unit, MixerBlock) else ():
                register_fsdp_forward_method(unit, name)
        fully_shard(model, mesh=mesh, **self._options)
        model._register_load_state_dict_pre_hook(self._share)
        return model

    # ---------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str, **kwargs: Any) -> None:
        """See ``DDPStrategy``; all processes gather, the first one writes."""
        self._whole = [
            _whole(self.model.state_dict()),
            _whole(self.optim_wrapper.state_dict()),
        ]
        super().save_checkpoint(filename, **kwargs)
        del self._whole

    def model_state_dict(self) -> dict:
        """The whole weights, while a checkpoint is saved."""
        return self._whole[0]

    def optim_state_dict(self) -> dict:
        """The whole state of the optimizer, likewise."""
        return self._whole[1]

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Takes its share of a whole state.

        Args:
            state_dict (dict): Of an optimizer, not of several.
        """
        groups = self.optim_wrapper.param_groups
        parameters = [x for group in groups for x in group['params']]
        for place, state in state_dict['state'].items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.dim():
                    state[name] = _shared(value, parameters[place])
        super().load_optim_state_dict(state_dict)

    def _share(self, state_dict: dict, prefix: str, *_: Any) -> None:
        """Replaces weights by this process's share of them, in place."""
        # In one order everywhere: each piece is sent by the first process.
        for name, own in self.model.state_dict().items():
            if name in state_dict and state_dict[name].shape == own.shape:
                state_dict[name] = _shared(state_dict[name], own)


def _whole(state: Any) -> Any:
    """A state whose tensors are whole, and on the CPU."""
    from torch.distributed.tensor import DTensor

    def whole(x: Any) -> Any:
        if isinstance(x, DTensor):
            x = x.full_tensor()
        return x.cpu() if isinstance(x, Tensor) else x

    return tree_map(whole, state)


def _shared(value: Tensor, like: Tensor) -> Tensor:
    """The share of a whole tensor that another one, a DTensor, has of it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements)
