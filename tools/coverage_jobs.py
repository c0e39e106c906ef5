"""Rows of a sweep from several processes: of this machine, or jobs of a Slurm array."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coverage_row import failure

_STARTING = 2  # minutes that a job of a cluster gets beside the time of its model


@dataclass(frozen=True)
class Worker:
    """How one model is examined.

    Attributes:
        script: Examines the model that it is given with ``--worker``, and prints its row last.
        options: Of the script.
        seconds: Most of one model.
        gigabytes: Most address space of one model, in GiB.
    """

    script: Path
    options: tuple[str, ...]
    seconds: float
    gigabytes: float


@dataclass(frozen=True)
class Cluster:
    """Where jobs are submitted.

    Attributes:
        kind: Of submitit: ``"slurm"``, or ``"local"`` for processes of this machine, which run all at once.
        folder: For scripts and logs of the jobs; every machine has to reach it.
        partition: Of Slurm; None for its default.
    """

    kind: str
    folder: Path
    partition: str | None = None


def row_of(source: str, worker: Worker) -> dict[str, Any]:
    """Return the row of one model from a fresh process, under limits of time and memory."""

    def limit() -> None:
        size = int(worker.gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    command = [sys.executable, str(worker.script), source, "--worker", *worker.options, "--time", str(worker.seconds)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=worker.seconds, preexec_fn=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        last = (error.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]
        reason = f"over {worker.seconds:g} s" + (f", at the {last}" if last.startswith("step: ") else "")
        return {"model": source, "status": "timeout", "reason": reason, "seconds": worker.seconds}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        row: dict[str, Any] = json.loads(lines[-1])
        return row
    reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:300]
    # The system ends a process that asks for too much without a word.
    return {"model": source, **failure("memory" if done.returncode < 0 else "error", reason)}


def rows(
    sources: Sequence[str], worker: Worker, *, jobs: int = 1, cluster: Cluster | None = None
) -> Iterator[dict[str, Any]]:
    """Examine models, and give their rows as they come.

    Args:
        sources: The models.
        worker: How each is examined.
        jobs: How many at once.
        cluster: Where jobs are submitted, by submitit; None for processes of this machine.
    """
    if cluster is not None:
        yield from _submitted(sources, worker, jobs, cluster)
        return
    pool = ThreadPoolExecutor(jobs)
    try:
        for done in as_completed([pool.submit(row_of, source, worker) for source in sources]):
            yield done.result()
    finally:  # an interrupt does not begin those that wait
        pool.shutdown(cancel_futures=True)


def _submitted(sources: Sequence[str], worker: Worker, jobs: int, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Run one job of an array per model; a job that was lost has a row that says so."""
    import submitit

    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    executor = submitit.AutoExecutor(folder=cluster.folder, cluster=cluster.kind)
    settings = {
        "timeout_min": math.ceil(worker.seconds / 60) + _STARTING,
        "mem_gb": math.ceil(worker.gigabytes),
        "cpus_per_task": 1,
        "slurm_array_parallelism": jobs,
    }
    if cluster.partition is not None:
        settings["slurm_partition"] = cluster.partition
    executor.update_parameters(**settings)
    submitted = executor.map_array(row_of, sources, [worker] * len(sources))
    models = dict(zip(submitted, sources, strict=True))
    for job in submitit.helpers.as_completed(submitted):
        error = job.exception()
        yield job.result() if error is None else {"model": models[job], **failure("error", str(error)[-300:])}
