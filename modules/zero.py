"""DeepSpeed ZeRO under Lightning, with float32 parameters and the same checkpoint format as all other strategies.

Lightning's own DeepSpeed strategy casts parameters to the compute type, scales losses twice under accumulation, and
writes folders that only the same ZeRO level on the same number of GPUs can read. Here the model computes in bf16 by
autocast, and a checkpoint holds whole tensors by name. Any strategy on any number of ranks can read it
(docs/decisions/0007-one-checkpoint-format.md).
"""

import atexit
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.nn import functional as F

from modules.omnimamba.model import OmniMamba

Level = Literal[1, 2, 3]
BUCKET = 500_000_000
"""How many gradient elements are sent to other ranks together; DeepSpeed's own default."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class _Float32(DeepSpeedPrecision):
    """Casts nothing."""

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def backward(  # type: ignore[override]
        self, tensor: Tensor, model: pl.LightningModule, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        # Lightning has already divided the loss by the number of micro-steps
        super().backward(tensor, model, optimizer, *args, scale_wrt_gas=False, **kwargs)


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO of level 1, 2 or 3 (DeepSpeed calls it stage). It also runs on a CPU (gloo), slowly, for tests."""

    def __init__(self, level: Level, *, timeout: timedelta = timedelta(minutes=60)) -> None:
        config = {
            "zero_optimization": {
                "stage": level,
                "overlap_comm": True,
                "contiguous_gradients": True,
                "reduce_bucket_size": BUCKET,
            },
            "zero_allow_untested_optimizer": True,
            # any value works; without one, Lightning would build a loader to find it
            "train_micro_batch_size_per_gpu": 1,
        }
        super().__init__(config=config, precision_plugin=_Float32(), timeout=timeout)
        self.level = level
        self._groups: list[list[nn.Parameter]] = []

    @property
    def root_device(self) -> torch.device:
        """This process's device. DeepSpeed needs an index, even for a CPU."""
        device = super().root_device
        return device if device.type == "cuda" else torch.device("cpu", 0)

    def setup_environment(self) -> None:
        """Set up devices and process group, unlike Lightning's method also on a CPU."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Set up DeepSpeed's own process group."""
        if self.root_device.type == "cuda":
            super().setup_distributed()
        else:
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        # as Lightning does for DDP over NCCL; DeepSpeed leaves it to its caller
        atexit.register(_leave_process_group)

    def init_deepspeed(self) -> None:
        """Start DeepSpeed's engine, and give its own process group the same timeout as ours."""
        super().init_deepspeed()
        from deepspeed.utils import groups

        assert self._timeout is not None
        _set_pg_timeout(self._timeout, groups._get_data_parallel_group())

    def gradient_norm(self) -> float:
        """Norm of the whole gradient of the last step, before clipping."""
        norm = self.deepspeed_engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def gathered(self, model: OmniMamba) -> OmniMamba:
        """The model to evaluate: ``model`` itself, or under ZeRO 3 a full copy on every rank (a collective call).

        ZeRO 3 gathers each part when it is used, so ranks that generate different numbers of tokens would hang.
        """
        if self.level < 3:
            return model
        copy = OmniMamba(model.config)
        copy.compute, copy.vision = model.compute, model.vision
        with self._gathered(list(model.parameters()), modify=False):
            copy.load_state_dict(model.state_dict())
        return copy.to(self.root_device).train(model.training)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights as full tensors. ZeRO 3 gathers them on rank 0's CPU only (a collective call)."""
        assert self.lightning_module is not None
        if self.level < 3:
            return self.lightning_module.state_dict()
        with self._gathered(list(self.lightning_module.parameters()), modify=False):
            weights = self.lightning_module.state_dict() if self.is_global_zero else {}
            return {name: value.to("cpu", copy=True) for name, value in weights.items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state as plain AdamW would have it, with full moments, on rank 0's CPU only. A collective call."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if self.level < 3:
            self._link_moments()
        inner = self._inner_optimizer()
        step = next(iter(inner.state.values()))["step"]
        state: dict[int, dict[str, Tensor]] = {}
        for number, parameter in enumerate(self._trained()):
            whole = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if self.is_global_zero:  # a node has memory for one copy, not for one per rank
                moments = {key: value.cpu() for key, value in whole.items()}
                # a separate tensor for each: plain AdamW increments them in place
                state[number] = {"step": torch.tensor(float(step)), **moments}
        return {"state": state, "param_groups": self._plain_groups()}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write one file from rank 0, like every other strategy."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what `save_checkpoint` of any strategy wrote."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning passes us the optimizer's state."""
        return True

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights into the modules, and into the optimizer's own float32 copies."""
        from deepspeed.utils import safe_set_full_fp32_param

        assert self.lightning_module is not None
        weights = checkpoint["state_dict"]
        with self._gathered(list(self.lightning_module.parameters()), modify=True):
            self.lightning_module.load_state_dict(weights, strict=strict)
        names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        for parameter in self._trained():
            value = weights[names[id(parameter)]].to(self.root_device)
            if self.level < 3:
                safe_set_full_fp32_param(parameter, value)
            else:
                self._set_partition(parameter, value, None)

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's part of the full state."""
        from deepspeed.utils import safe_set_full_optimizer_state

        whole = checkpoint["optimizer_states"][0]
        states = [whole["state"][number] for number in range(len(whole["state"]))]
        self._make_moments(states[0]["step"])
        for parameter, state in zip(self._trained(), states, strict=True):
            for key in MOMENTS:
                value = state[key].to(self.root_device)
                if self.level < 3:
                    safe_set_full_optimizer_state(parameter, value, key)
                else:
                    self._set_partition(parameter, value, key)
        for mine, theirs in zip(self._inner_optimizer().param_groups, whole["param_groups"], strict=True):
            mine.update({key: value for key, value in theirs.items() if key != "params"})

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.optimizers[0].optimizer  # type: ignore[attr-defined]
        return optimizer

    def _init_optimizers(self) -> tuple[Any, Any]:
        """Note the groups before DeepSpeed puts flat tensors into them."""
        optimizer, schedule = super()._init_optimizers()
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer, schedule

    def _trained(self) -> list[nn.Parameter]:
        """The optimizer's parameters, in the order in which plain AdamW would number them."""
        return [parameter for group in self._groups for parameter in group]

    def _plain_groups(self) -> list[dict[str, Any]]:
        first, groups = 0, []
        for group, whole in zip(self._inner_optimizer().param_groups, self._groups, strict=True):
            groups.append({**group, "params": list(range(first, first + len(whole)))})
            first += len(whole)
        return groups

    def _make_moments(self, step: Tensor) -> None:
        """Create the inner optimizer's state, which it would otherwise create in its first step."""
        optimizer: Any = self.optimizers[0]
        flats = optimizer.single_partition_of_fp32_groups if self.level < 3 else optimizer.fp32_partitioned_groups_flat
        for flat in flats:
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            self._inner_optimizer().state[flat] = {"step": step.to(flat.device, torch.float32).clone(), **moments}
        if self.level < 3:
            self._link_moments()

    def _link_moments(self) -> None:
        """Link parameters to their moments. DeepSpeed does this only once, when only the first group has any."""
        optimizer: Any = self.optimizers[0]
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()

    def _set_partition(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Set this rank's part of a ZeRO 3 parameter's state. DeepSpeed's own setter fails on uneven partitions."""
        optimizer: Any = self.optimizers[0]
        part, _ = optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        start = part.numel() * optimizer._get_param_partition_rank(parameter)
        padded = F.pad(value.flatten(), (0, part.numel() * self.world_size - value.numel()))
        part.copy_(padded[start : start + part.numel()])

    @contextmanager
    def _gathered(self, parameters: list[nn.Parameter], *, modify: bool) -> Iterator[None]:
        if self.level < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if modify else None):
            yield


def _leave_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
