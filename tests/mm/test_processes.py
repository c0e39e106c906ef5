"""Two processes without an accelerator, started as torchrun and Slurm start them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from norton_plugin.errors import RecipeError

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).parent))
from toy import NORTON, toy_config

from norton_plugin.mm.runner import processes

TESTS = Path(__file__).parent
LAUNCH = ["-m", "norton_plugin.mm.runner.launch"]


@pytest.fixture
def config(tmp_path):
    """The file of a run of two epochs with NortonHook; each process writes what it has in the end."""
    made = toy_config(tmp_path / "work", norton=NORTON)
    made.custom_imports = {"imports": ["toy"], "allow_failed_imports": False}
    made.custom_hooks = [*made.custom_hooks, {"type": "RankHook"}]
    made.dump(tmp_path / "toy_run.py")
    return tmp_path / "toy_run.py"


def environment(**more):
    path = os.pathsep.join([str(TESTS), *sys.path])
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **more}


def require_equal_ranks(work):
    """Both processes hold the same compressed model, BatchNorm's statistics included."""
    first, second = (torch.load(work / f"rank{rank}.pth") for rank in (0, 1))
    assert any(name.endswith(".head") for name in first)
    assert any(name.endswith("running_mean") and value.abs().max() > 0 for name, value in first.items())
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the launchers of mmengine take the GPU")
def test_torchrun(config, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, *LAUNCH, str(config), "--launcher", "pytorch"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    require_equal_ranks(tmp_path / "work")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the launchers of mmengine take the GPU")
def test_slurm(config, tmp_path):
    """``srun`` starts each process with these variables set; ``scontrol`` names the first machine."""
    tools = tmp_path / "bin"
    tools.mkdir()
    answer = '[ "$1 $2 $3" = "show hostnames here[1-2]" ] && echo localhost other'
    (tools / "scontrol").write_text(f"#!/bin/sh\n{answer}\n")
    (tools / "scontrol").chmod(0o755)
    port = str(20000 + os.getpid() % 20000)
    command = [sys.executable, *LAUNCH, str(config), "--launcher", "slurm"]
    both = [
        subprocess.Popen(
            command,
            env=environment(
                SLURM_PROCID=str(rank),
                SLURM_LOCALID=str(rank),
                SLURM_NTASKS="2",
                SLURM_NODELIST="here[1-2]",
                MASTER_PORT=port,
                PATH=f"{tools}{os.pathsep}{os.environ['PATH']}",
            ),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    require_equal_ranks(tmp_path / "work")


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("pytorch", "launcher is 'pytorch', but RANK is not set: start the processes by torchrun"),
        ("slurm", "launcher is 'slurm', but SLURM_PROCID is not set: start it by srun"),
        ("mpi", "without an accelerator the launcher is 'pytorch' or 'slurm', not 'mpi'"),
    ],
)
def test_a_process_that_nobody_started_is_told_so(launcher, message, monkeypatch):
    monkeypatch.setattr(processes, "get_device", lambda: "cpu")
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE")]:
        monkeypatch.delenv(name)
    with pytest.raises(RecipeError, match=message):
        processes.join_(Config({"launcher": launcher}))


def test_a_run_of_one_process_or_with_a_gpu_is_left_alone(monkeypatch):
    for device, launcher in (("cpu", "none"), ("cuda", "pytorch")):
        monkeypatch.setattr(processes, "get_device", lambda device=device: device)
        config = Config({"launcher": launcher})
        processes.join_(config)
        assert config.to_dict() == {"launcher": launcher}
