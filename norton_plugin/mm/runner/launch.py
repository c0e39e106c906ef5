"""What ``tools/train.py`` and ``tools/test.py`` do, with the flags of mmdet's scripts."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from norton_plugin.errors import RecipeError
from norton_plugin.mm.runner.processes import join_

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both scripts take, named as in mmdet."""
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/CONFIG)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="settings that override the config: key=value, key=a,b, key='[a,b]', nested.key=value",
    )
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="how processes were started")
    # torch.distributed.launch passes it in either spelling.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def read_config(arguments: argparse.Namespace) -> Config:
    """Return the config with the command line's overrides.

    Raises:
        RecipeError: The file is absent or cannot be read.
    """
    os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    try:
        config = Config.fromfile(arguments.config)
    except (OSError, SyntaxError, ValueError, AttributeError) as error:
        raise RecipeError(f"config {arguments.config!r} cannot be read: {error}") from error
    config.launcher = arguments.launcher
    if arguments.cfg_options is not None:
        config.merge_from_dict(arguments.cfg_options)
    if arguments.work_dir is not None:
        config.work_dir = arguments.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(arguments.config).stem)
    return config


def build_runner(config: Config) -> Runner:
    """Return the runner that a config asks for, among the processes that its launcher started.

    Raises:
        RecipeError: The processes cannot be joined.
    """
    join_(config)
    return RUNNERS.build(config) if "runner_type" in config else Runner.from_cfg(config)


def train(argv: Sequence[str] | None = None) -> None:
    """Train as a config says.

    Args:
        argv: Arguments of the command line; those of the process by default.

    Raises:
        RecipeError: The config cannot be read, or lacks what ``--auto-scale-lr`` needs.
    """
    parser = argparse.ArgumentParser(description="Train as a config says")
    add_shared_options(parser)
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate by the batch size")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="go on from this checkpoint; without a value from the latest one in the work dir",
    )
    arguments = parser.parse_args(argv)
    config = read_config(arguments)
    if arguments.amp:
        config.optim_wrapper.type = "AmpOptimWrapper"
        config.optim_wrapper.loss_scale = "dynamic"
    if arguments.auto_scale_lr:
        if not {"enable", "base_batch_size"} <= set(config.get("auto_scale_lr", {})):
            raise RecipeError("--auto-scale-lr needs auto_scale_lr=dict(enable=..., base_batch_size=...) in the config")
        config.auto_scale_lr.enable = True
    if arguments.resume is not None:
        config.resume = True
        config.load_from = None if arguments.resume == "auto" else arguments.resume
    build_runner(config).train()


def evaluate(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Test a checkpoint as a config says.

    Args:
        argv: Arguments of the command line; those of the process by default.

    Returns:
        The metrics.

    Raises:
        RecipeError: The config cannot be read.
    """
    parser = argparse.ArgumentParser(description="Test a checkpoint as a config says")
    add_shared_options(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    arguments = parser.parse_args(argv)
    config = read_config(arguments)
    config.load_from = arguments.checkpoint
    return build_runner(config).test()


if __name__ == "__main__":  # torchrun -m norton_plugin.mm.runner.launch CONFIG --launcher pytorch
    train()
