"""Several processes on machines without an accelerator, started by torchrun or Slurm.

mmengine's launchers ask CUDA for a device before anything else, and its Runner gives DDP the number of one: both end
the run where there is none. The Runner leaves alone a process group that exists already, and a wrapper that the config
describes. So this makes the group, over gloo, and adds the two entries to the config.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device

from norton_plugin.errors import RecipeError

_PORT = "29500"  # torch.distributed's default, and mmengine's
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def join_(config: Config) -> None:
    """Join the other processes of a run, where its launcher is set and there is no accelerator; nothing elsewhere.

    Buffers of BatchNorm are averaged over the processes after each epoch, so that all of them hold the same model.

    Args:
        config: Of the run, with ``launcher``; changed in place.

    Raises:
        RecipeError: A launcher that needs an accelerator, or one that did not start this process.
    """
    launcher = config.get("launcher", "none")
    if launcher == "none" or get_device() != "cpu":
        return
    if launcher not in ("pytorch", "slurm"):
        raise RecipeError(f"without an accelerator the launcher is 'pytorch' or 'slurm', not {launcher!r}")
    if launcher == "slurm":
        _name_as_torch_does()
    absent = [name for name in _NEEDED if name not in os.environ]
    if absent:
        raise RecipeError(
            f"the launcher is {launcher!r}, but {absent[0]} is not set: start the processes by torchrun, or by "
            "srun with --launcher slurm"
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    wrapper: dict[str, Any] = {
        "type": "MMDistributedDataParallel",
        "device_ids": None,
        "broadcast_buffers": False,
        "find_unused_parameters": config.get("find_unused_parameters", False),
    }
    config.model_wrapper_cfg = wrapper | dict(config.get("model_wrapper_cfg") or {}) | {"device_ids": None}
    hooks = list(config.get("custom_hooks") or [])
    if not any(hook.get("type") == "SyncBuffersHook" for hook in hooks if isinstance(hook, dict)):
        config.custom_hooks = [{"type": "SyncBuffersHook"}, *hooks]


def _name_as_torch_does() -> None:
    """Give what Slurm says of this process the names that torch.distributed reads; those that are set stay.

    Raises:
        RecipeError: It was not started by srun.
    """
    try:
        names = {name: os.environ[f"SLURM_{slurm}"] for name, slurm in (("RANK", "PROCID"), ("WORLD_SIZE", "NTASKS"))}
    except KeyError as error:
        raise RecipeError(f"the launcher is 'slurm', but {error.args[0]} is not set: start it by srun") from error
    os.environ.update(names, LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"))
    os.environ.setdefault("MASTER_PORT", _PORT)
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", os.environ.get("SLURM_NODELIST", "")]
        try:
            hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise RecipeError(
                f"the first machine of the job is not known ({error}); set MASTER_ADDR to its name"
            ) from error
        os.environ["MASTER_ADDR"] = hosts[0]
