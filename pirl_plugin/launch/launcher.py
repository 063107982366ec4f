"""`run_distributed_engines.py config=...`: VISSL's launcher with the plugin registered in every process.

Also works as a script of torchrun. Takes everything that VISSL's takes: overrides, +config/... ,
engine_name=extract_features, SLURM; and sweeps (key=a,b,c). The top-level import registers the plugin in spawned
ranks and workers.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.multiprocessing import ProcessExitedException
from vissl.config import AttrDict
from vissl.utils import checkpoint, distributed_launcher
from vissl.utils.checkpoint import get_checkpoint_folder
from vissl.utils.slurm import is_submitit_available

from pirl_plugin import early_stop, out_of_memory
from pirl_plugin.evaluation import extracted_features
from pirl_plugin.host import mends
from pirl_plugin.host.loss_settings import sharded_bank_settings
from pirl_plugin.launch import (
    composition,
    earlier_run,
    registration,
    run_lock,
    run_result,
    run_summary,
    slurm,
)
from pirl_plugin.launch.machine_check import check_machine
from pirl_plugin.training import checkpoint_folder, liveness, preemption, process_group
from pirl_plugin.training.hooks import hook_generator
from pirl_plugin.training.process_group import TORCHRUN
from pirl_plugin.training.settings import StepSettings
from pirl_plugin.validation import ConfigError, one_sentence_errors

REQUEUE = signal.SIGUSR2  # SLURM's signal to submitit that a job's time is up
_vissl_worker = distributed_launcher._distributed_worker


def compose(overrides: list[str], check: bool = True) -> AttrDict:
    """The `config` of a run, checked, with VISSL's inferences (LR scaling ...) applied; writes nothing."""
    return composition.compose(overrides, check=check).config


def distributed_worker(
    local_rank: int, cfg: AttrDict, node_id: int, dist_run_id: str, *args: Any, **kwargs: Any
) -> None:
    """Run one rank. A spawned process must import this function, which registers the plugin in it."""
    launcher = multiprocessing.parent_process()
    spawned = launcher is not None
    if spawned or TORCHRUN in os.environ:  # a launcher that is killed must not leave ranks that train on
        early_stop.end_with_parent(os.getppid() if launcher is None else launcher.pid)
    if not spawned:  # else a signal ends it at once, also while it waits for others, where no Python handler runs
        early_stop.end_when_asked()
    elif "SUBMITIT_EXECUTOR" in os.environ:
        signal.signal(REQUEUE, signal.SIG_IGN)  # SLURM may send it to all; the launcher forwards it
    # Loader workers then start from a process that has imported the plugin: it is registered whatever __main__
    # is, and they start in a fraction of the time.
    preloaded = ["__main__", "pirl_plugin.launch.registration", "pirl_plugin.training.loader_server"]
    multiprocessing.set_forkserver_preload(preloaded)
    mends.register_data_paths(cfg)
    checkpoint.load_and_broadcast_checkpoint = checkpoint_folder.load_on_every_rank
    try:
        with _among_the_ranks(cfg, node_id, local_rank, dist_run_id):
            _vissl_worker(local_rank, cfg, node_id, dist_run_id, *args, **kwargs)
    except SystemExit as end:  # asked to stop, like all other ranks
        if end.code == preemption.EXIT_CODE:
            traceback.clear_frames(end.__traceback__)  # they hold trainer and network, and these the group
            process_group.leave()
        raise
    process_group.leave()


def _among_the_ranks(
    config: AttrDict, node_id: int, local_rank: int, run_id: str
) -> contextlib.AbstractContextManager[Any]:
    """If a run has several ranks: join them and, on several nodes, watch that they are alive."""
    processes = config.DISTRIBUTED.NUM_PROC_PER_NODE
    world_size, rank = config.DISTRIBUTED.NUM_NODES * processes, processes * node_id + local_rank
    if world_size == 1 and TORCHRUN not in os.environ:
        return contextlib.nullcontext()
    met_at = process_group.join(config, run_id, rank, local_rank)
    silence = StepSettings.of_run(config).silence_seconds
    if config.DISTRIBUTED.NUM_NODES == 1 or not silence:
        return contextlib.nullcontext()
    return liveness.watched(met_at, run_id.rsplit(":", 1)[0], rank, world_size, processes, silence)


def launch(config: AttrDict, node_id: int, engine_name: str) -> None:
    """Run an engine of VISSL on this node with the plugin's hooks.

    Raises:
        ConfigError: if this machine or the named files do not fit the config.
    """
    check_machine(config)
    early_stop.shield_resource_tracker()
    mends.register_data_paths(config)
    bank = sharded_bank_settings(config)
    if bank is not None:
        bank.setdefault("folder", get_checkpoint_folder(config))
    distributed_launcher._distributed_worker = distributed_worker
    distributed_launcher.get_resume_checkpoint = checkpoint_folder.newest
    distributed_launcher.is_training_finished = run_result.is_finished
    distributed_launcher.get_node_id = lambda given: given  # VISSL's replaces it by SLURM's
    if TORCHRUN in os.environ:
        _one_rank(config, engine_name)
        return
    several = config.DISTRIBUTED.NUM_NODES * config.DISTRIBUTED.NUM_PROC_PER_NODE > 1  # else the rank is this process
    try:
        forwarded = preemption.forwarded_signals() if several else contextlib.nullcontext()
        with early_stop.ended_by_ctrl_c(_stopped(engine_name)), forwarded:
            distributed_launcher.launch_distributed(
                cfg=config, node_id=node_id, engine_name=engine_name, hook_generator=hook_generator
            )
    except ProcessExitedException as error:
        # A rank that is asked to stop before it trains has no handler and dies of the signal; sent to all processes of
        # a job, the signal may reach the rank first.
        asked = error.signal_name in {name.name for name in early_stop.SIGNALS} and preemption.forwarded.wait(2)
        if asked or error.exit_code == preemption.EXIT_CODE:
            raise SystemExit(preemption.EXIT_CODE) from error
        killed = error.signal_name == "SIGKILL"
        how = f"was killed (SIGKILL) {out_of_memory.cause_of_a_kill()}" if killed else f"ended with {error}"
        raise ConfigError(
            f"Rank {error.error_index} of this node {how}; the others were ended as well. The same command resumes a "
            f"training from its last checkpoint."
        ) from error


def _stopped(engine_name: str) -> str:
    goes_on = "the same command resumes from its last checkpoint" if engine_name == "train" else "it has no result"
    return f"Error: The run was stopped before its end; {goes_on}."


def torchrun_overrides() -> list[str]:
    """Torchrun's numbers of nodes and processes and its rendezvous address, as overrides; none without torchrun."""
    if TORCHRUN not in os.environ:
        return []
    nodes, processes = os.environ["GROUP_WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
    sizes = [f"config.DISTRIBUTED.NUM_NODES={nodes}", f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}"]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return [*sizes, "config.DISTRIBUTED.INIT_METHOD=tcp", f"config.DISTRIBUTED.RUN_ID='{place}'"]


def _one_rank(config: AttrDict, engine_name: str) -> None:
    """This process is a rank that torchrun started: VISSL's launcher would start its own."""
    distributed_launcher.setup_logging(__name__)
    folder = get_checkpoint_folder(config)
    if run_result.is_finished(config, folder):
        return
    local_rank, node = int(os.environ["LOCAL_RANK"]), int(os.environ["GROUP_RANK"])
    # The task takes the first rank's.
    newest = checkpoint_folder.newest(config, folder) if os.environ["RANK"] == "0" else None
    place = config.DISTRIBUTED.RUN_ID
    distributed_worker(local_rank, config, node, place, engine_name, newest, folder, hook_generator)


def _checkpoint_before(requeue: Callable[..., Any], number: int, frame: Any) -> None:
    """When submitit is about to requeue: let a training write its checkpoint first, as for SIGUSR1."""
    handler = signal.getsignal(signal.SIGUSR1)
    if handler in (signal.SIG_DFL, signal.SIG_IGN) or early_stop.is_early(handler):  # nothing is being trained
        requeue(number, frame)
    else:
        os.kill(os.getpid(), signal.SIGUSR1)


class SlurmJob:
    """What submitit runs on each node: VISSL's job, with the plugin's launcher instead of VISSL's.

    submitit unpickles it by importing this module, which registers the plugin; the config is pickled as a
    plain dict, so that VISSL is not needed before that.
    """

    def __init__(self, engine_name: str, config: Any) -> None:
        self.engine_name = engine_name
        self.config = config.to_dict() if isinstance(config, AttrDict) else config

    def __call__(self) -> None:
        import submitit

        registration.import_in_children()  # __main__ here is submitit's
        config = AttrDict(self.config)
        environment = submitit.JobEnvironment()
        if config.DISTRIBUTED.NUM_NODES > 1 or config.DISTRIBUTED.INIT_METHOD == "tcp":
            config.DISTRIBUTED.INIT_METHOD = "tcp"
            config.DISTRIBUTED.RUN_ID = f"{environment.hostnames[0]}:{config.SLURM.PORT_ID}"
        requeue = signal.getsignal(REQUEUE)  # submitit's: puts the job back into the queue and ends this process
        if callable(requeue):
            signal.signal(REQUEUE, functools.partial(_checkpoint_before, requeue))
        try:
            first = environment.global_rank == 0
            with _held(config, self.engine_name, first):
                if first:  # only once this run holds the folder
                    composition.write(config)
                launch(config, environment.global_rank, self.engine_name)
        except SystemExit as end:
            if end.code != preemption.EXIT_CODE or not callable(requeue):
                raise
            requeue(REQUEUE, None)
            time.sleep(600)  # on all nodes but the first `requeue` returns: requeuing ends them

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(SlurmJob(self.engine_name, self.config))


def launch_on_slurm(config: AttrDict, engine_name: str):
    """Submit a run as VISSL does (SLURM.* of the config); returns submitit's job.

    Raises:
        ConfigError: if submitit is missing or no partition is named.
    """
    if not is_submitit_available():
        raise ConfigError("SLURM.USE_SLURM is true, which needs submitit; install it with: pip install submitit")
    if not config.SLURM.PARTITION:
        raise ConfigError("SLURM.PARTITION is empty; name the partition to submit to.")
    distributed_launcher._ResumableSlurmJob = SlurmJob
    with slurm.executor_of_a_long_run(config):
        return distributed_launcher.launch_distributed_on_slurm(cfg=config, engine_name=engine_name)


def _held(config: AttrDict, engine_name: str, primary: bool) -> contextlib.AbstractContextManager[None]:
    """The lock on the run's checkpoint folder, held by the first rank's process of a training."""
    folder = get_checkpoint_folder(config)
    alone = primary and engine_name == "train" and "://" not in folder
    return run_lock.only_run_in(folder) if alone else contextlib.nullcontext()


def _sweep(runs: list[list[str]]) -> None:
    """Run a sweep, each run in its own process, to which signals are forwarded."""
    for number, one in enumerate(runs, start=1):
        print(f"Sweep: run {number} of {len(runs)}: {' '.join(one)}", flush=True)
        command = [sys.executable, "-m", "pirl_plugin.launch.launcher", *one]
        process = subprocess.Popen(command, env=early_stop.environment_of_child())

        def forward(number: int, frame: Any, process: subprocess.Popen = process) -> None:
            process.send_signal(number)

        before = {name: signal.signal(name, forward) for name in early_stop.SIGNALS}
        try:
            code = process.wait()
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
        if code:
            raise SystemExit(code)


def _show_finished(config: AttrDict, engine: str) -> None:
    """Print the result of a run that is finished in the folder.

    Raises:
        ConfigError: if it is of other settings or files.
    """
    earlier_run.check_same_files(config)
    earlier_run.check_same_settings(config)
    print("\n".join(["Finished before; nothing was run.", *run_result.closing(config, engine, None)]), flush=True)


def _run_here(whole: AttrDict) -> None:
    """Run an engine in this process and those that it starts; the first prints a summary and the result."""
    config, engine = whole.config, whole.engine_name
    primary = os.environ.get("RANK", "0") == "0" and whole.node_id == 0  # RANK: torchrun's
    composition.make_folder(config)
    folder = get_checkpoint_folder(config)
    if engine == "train" and run_result.is_finished(config, folder):
        if primary:
            _show_finished(config, engine)
        return
    started = time.monotonic()
    with _held(config, engine, primary):
        if primary:  # only once this run holds the folder
            earlier_run.check_same_files(config)
            if engine == "extract_features":
                extracted_features.delete(config.EXTRACT_FEATURES.OUTPUT_DIR or folder)
            composition.write(config)
            if engine == "train":
                newest = checkpoint_folder.newest(config, folder)
                print("\n".join(run_summary.summarise(config, newest)), flush=True)
        launch(config, whole.node_id, engine)
    if primary:
        if engine == "train" and run_result.final_checkpoint(Path(folder)) is None:
            sys.exit(_stopped(engine))
        minutes = (time.monotonic() - started) / 60
        print("\n" + "\n".join(run_result.closing(config, engine, minutes)), flush=True)


def run(overrides: list[str]) -> None:
    """Run what the overrides say: one run, a job on SLURM, or the runs of a sweep one after the other.

    Raises:
        ConfigError: for errors that the user can fix.
        SystemExit: if a run of a sweep fails.
    """
    runs = composition.expand_sweep(overrides)
    if len(runs) > 1:
        _sweep(runs)
        return
    whole = composition.compose([*runs[0], *torchrun_overrides()])
    whole.node_id = slurm.node_id(whole.node_id, runs[0])
    if not whole.config.SLURM.USE_SLURM:
        _run_here(whole)
    elif whole.engine_name == "train" and run_result.is_finished(whole.config, get_checkpoint_folder(whole.config)):
        _show_finished(whole.config, whole.engine_name)
    else:
        earlier_run.check_same_files(whole.config)
        composition.make_folder(whole.config)
        launch_on_slurm(whole.config, whole.engine_name)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `run_distributed_engines.py`."""
    early_stop.end_with_starter()
    early_stop.end_when_asked()
    with one_sentence_errors():
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    from pirl_plugin.launch import launcher

    launcher.main()  # by its module name: what is pickled here must be importable in ranks and jobs
