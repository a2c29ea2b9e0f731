"""A training as a Slurm job (submitit): a task per device, on several nodes; preempted or out of time, it is requeued and goes on."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virb.errors import UserError, ViRBError
from virb.io import can_write, make_folder
from virb.pretraining.options import EngineOptions

_SIGNAL_BEFORE = 120  # seconds before the end of the time that Slurm gives notice
_SLAVES_WAIT = 120.0  # seconds that the other tasks stay while the first requeues the job; Slurm ends them

Entry = Callable[[str, Mapping[str, Any], str, bool], int]  # method, options, recipe, whether SIGTERM only saves -> exit code


@dataclass
class Task:
    """What each task of the job does: finds its place, and trains. Pickled by submitit, and again when the job is requeued."""

    entry: Entry
    method: str
    options: dict[str, Any]
    recipe: str

    def __call__(self) -> int:
        import submitit

        place = submitit.JobEnvironment()
        os.environ.update(rendezvous(place))
        folder = self.options["output_dir"].replace("%j", place.job_id)
        code = self.entry(self.method, {**self.options, "launcher": "none", "output_dir": folder}, self.recipe, True)
        if code >= 128:
            _hand_on(code - 128, place)
        if code:
            raise ViRBError(f"the training ended with exit code {code}")
        return code

    def checkpoint(self) -> Any:
        """submitit asks for what to run after a requeue: the same, which goes on from its own checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def rendezvous(place: Any) -> dict[str, str]:
    """torchrun's variables for a task of a submitit job; the port is a function of the job's number."""
    first = place.hostnames[0] if place.num_nodes > 1 else "127.0.0.1"
    number = int.from_bytes(hashlib.blake2b(str(place.job_id).encode(), digest_size=4).digest(), "little")
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
        "MASTER_ADDR": str(first),
        "MASTER_PORT": str(20_000 + number % 20_000),
    }


def _hand_on(signum: int, place: Any) -> None:
    """The training has saved; now submitit's own handler of the signal may requeue the job. It does so in the first task."""
    handler = signal.getsignal(signum)
    if callable(handler) and signum != signal.SIGINT:
        handler(signum, None)
    if place.global_rank and place.cluster == "slurm":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit passes it over, and Slurm would wait for its SIGKILL
        time.sleep(_SLAVES_WAIT)  # a task that ends could take the first one with it
    sys.exit(0 if place.global_rank else 128 + signum)


def check_before(options: EngineOptions, method: str) -> list[str]:
    """What would end the job right after hours in the queue is a UserError now. Returns notes: data at an absolute path may be where only
    the job's machines see them."""
    import torch

    from virb.pretraining.catalogue import BUILTIN, load_method
    from virb.pretraining.data import open_images
    from virb.pretraining.distributed import Ranks
    from virb.pretraining.engine import plan_batches
    from virb.pretraining.monitor import labelled

    folder = _logs(Path(options.output_dir).expanduser().absolute())
    if not can_write(make_folder(folder)):
        raise UserError(f"output_dir: {folder} cannot be written to; choose another folder")
    if options.init_from and not Path(options.init_from).expanduser().exists():
        raise UserError(f"init_from: {options.init_from} does not exist")
    if not options.data_path:
        raise UserError("data_path is not given; expected a folder with images, or built-in data: digits, shapes")
    notes = []
    for name, place in (("data_path", options.data_path), ("knn_data", options.knn_data if options.knn_every else "")):
        path = Path(place).expanduser()
        if path.is_absolute() and not path.exists():
            notes.append(f"{name} {place} is not on this machine; the job ends at once unless its machines have it")
        elif name == "data_path":
            plan_batches(options, len(open_images(place)), Ranks(0, options.nodes * options.ngpus, torch.device("cpu")))
        elif place:
            labelled(place)
    if method in [own.name for own in BUILTIN]:
        with torch.device("meta"):  # without memory for the weights
            load_method(method)(options).build()
    return notes


def _logs(folder: Path) -> Path:
    """The folder, or the one above it whose name does not wait for the job's number."""
    return next(place for place in (folder, *folder.parents) if "%j" not in str(place))


def submit(options: EngineOptions, task: Task, cluster: str = "slurm") -> tuple[str, Path]:
    """The job's number and the folder with its output. ``cluster`` "local" runs the tasks on this machine (for tests)."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launcher slurm needs submitit: pip install 'virb[slurm]'") from error

    folder = Path(options.output_dir).expanduser().absolute()
    task.options = {**task.options, "output_dir": str(folder)}
    try:
        logs = _logs(folder) / "slurm"
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=options.max_requeues)
        executor.update_parameters(**parameters(options, f"virb-{task.method}", cluster))
        job = executor.submit(task)
    except (RuntimeError, ValueError, OSError) as error:
        raise ViRBError(f"the job cannot be submitted: {(str(error).strip().splitlines() or ['?'])[0]}") from error
    except submitit.core.utils.FailedJobError as error:
        raise ViRBError(f"Slurm refuses the job: {(str(error).strip().splitlines() or ['?'])[-1]}") from error
    return str(job.job_id), logs


def parameters(options: EngineOptions, name: str, cluster: str = "slurm") -> dict[str, Any]:
    """What submitit is told, under its names."""
    found: dict[str, Any] = {
        "name": name,
        "nodes": options.nodes,
        "tasks_per_node": options.ngpus,
        "cpus_per_task": options.cpus_per_task,
        "timeout_min": options.timeout,
    }
    if options.device != "cpu":
        found["gpus_per_node"] = options.ngpus
    if options.mem_per_gpu:
        found["mem_gb"] = options.mem_per_gpu * options.ngpus
    if cluster == "slurm":
        found["slurm_signal_delay_s"] = _SIGNAL_BEFORE
        found["slurm_additional_parameters"] = {"requeue": True}  # also on clusters that do not put jobs back unless asked
        extra = {"partition": options.partition, "comment": options.comment, "constraint": "volta32gb" if options.use_volta32 else None}
        found |= {f"slurm_{key}": value for key, value in extra.items() if value}
    return found
