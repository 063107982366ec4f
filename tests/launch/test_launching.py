"""The launcher's own decisions, in one process; whole runs: test_launcher.py."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from torch.multiprocessing import ProcessExitedException
from vissl.utils import distributed_launcher

from pirl_plugin import early_stop
from pirl_plugin.launch import composition, earlier_run, launcher
from pirl_plugin.launch.run_lock import NAME
from pirl_plugin.training import preemption
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SMALL, EVALUATION = "pretrain/pirl/jigsaw_small_images_cpu", "benchmark/linear/small_images_cpu"


def config_of(folder: Path, name: str = SMALL, *overrides: str):
    paths = [f"config.CHECKPOINT.DIR={folder}", "config.DATA.TRAIN.DATA_PATHS=[photos]"]
    return composition.compose([f"config={name}", *paths, *overrides], check=False).config


def test_under_torchrun_nodes_processes_and_the_meeting_place_are_torchruns(monkeypatch):
    monkeypatch.delenv(launcher.TORCHRUN, raising=False)
    assert launcher.torchrun_overrides() == []
    given = {launcher.TORCHRUN: "a", "GROUP_WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node7",
             "MASTER_PORT": "29501"}  # fmt: skip
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    distributed = composition.compose([f"config={SMALL}", *launcher.torchrun_overrides()], check=False)
    distributed = distributed.config.DISTRIBUTED
    assert (distributed.NUM_NODES, distributed.NUM_PROC_PER_NODE) == (3, 4)
    assert (distributed.INIT_METHOD, distributed.RUN_ID) == ("tcp", "node7:29501")


@pytest.mark.parametrize("rank", [0, 6])
def test_under_torchrun_this_process_is_a_rank_of_its_own(monkeypatch, tmp_path, rank):
    given = {launcher.TORCHRUN: "a", "GROUP_RANK": str(rank // 4), "LOCAL_RANK": str(rank % 4), "RANK": str(rank)}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    for patched in ("_distributed_worker", "get_resume_checkpoint", "get_node_id", "setup_logging"):
        monkeypatch.setattr(distributed_launcher, patched, getattr(distributed_launcher, patched))
    monkeypatch.setattr(distributed_launcher, "setup_logging", lambda name: None)
    monkeypatch.setattr(distributed_launcher, "launch_distributed", lambda **_: pytest.fail("VISSL would start ranks"))
    monkeypatch.setattr(launcher.checkpoint_folder, "newest", lambda config, folder: f"{folder}/newest.torch")
    started = []
    monkeypatch.setattr(launcher, "distributed_worker", lambda *given: started.append(given))
    config = config_of(tmp_path / "run", SMALL, "config.DISTRIBUTED.RUN_ID='first:2950'")
    launcher.launch(config, 0, "train")
    newest = f"{tmp_path}/run/newest.torch" if rank == 0 else None  # the first one's goes to all
    hooks = launcher.hook_generator
    assert started == [(rank % 4, config, rank // 4, "first:2950", "train", newest, str(tmp_path / "run"), hooks)]
    (tmp_path / "run" / "model_final_checkpoint_phase11.torch").touch()
    launcher.launch(config, 0, "train")
    assert len(started) == 1  # it was finished before


def test_only_the_first_process_of_a_training_holds_its_folder(tmp_path):
    config = config_of(tmp_path / "run")
    for engine, primary, held in (("train", True, True), ("train", False, False), ("extract_features", True, False)):
        with launcher._held(config, engine, primary):
            assert (tmp_path / "run" / NAME).exists() == held, (engine, primary)
        assert not (tmp_path / "run" / NAME).exists()


def evaluated(folder: Path, *overrides: str) -> None:
    composition.write(config_of(folder, EVALUATION, *overrides))
    (folder / "model_phase0.torch").touch()


def test_a_folder_with_an_evaluation_of_other_weights_or_images_is_refused(tmp_path):
    weights, images = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE", "config.DATA.TEST.DATA_PATHS"
    asked = (f"{weights}=a.torch", f"{images}=[test]")
    config = config_of(tmp_path / "run", EVALUATION, *asked)
    earlier_run.check_same_files(config)  # there is none yet
    evaluated(tmp_path / "run", *asked)
    earlier_run.check_same_files(config)
    for other, told in (
        ((f"{weights}=b.torch", asked[1]), r"MODEL.WEIGHTS_INIT.PARAMS_FILE is a.torch; the run had b.torch"),
        (asked[1:], r"MODEL.WEIGHTS_INIT.PARAMS_FILE is a.torch; the run had none"),
        ((asked[0], f"{images}=[other]"), r"DATA.TEST.DATA_PATHS is \['test'\]; the run had \['other'\]"),
    ):
        evaluated(tmp_path / "run", *other)
        with pytest.raises(ConfigError, match=f"which has a run of other files: {told}; give it another folder"):
            earlier_run.check_same_files(config)
        earlier_run.check_same_files(config_of(tmp_path / "run"))  # a pre-training, which resumes
    (tmp_path / "run" / "model_phase0.torch").unlink()
    earlier_run.check_same_files(config)


ENDS = {
    "SIGKILL": r"Rank 1 of this node was killed \(SIGKILL\) .*; the others were ended as well. The same command",
    "SIGSEGV": r"Rank 1 of this node ended with .*SIGSEGV.*; the others were ended as well. The same command",
}


@pytest.mark.parametrize(
    ("name", "code", "asked", "ends"),
    [
        ("SIGKILL", -9, False, ENDS["SIGKILL"]),
        ("SIGSEGV", -11, True, ENDS["SIGSEGV"]),
        (None, preemption.EXIT_CODE, False, preemption.EXIT_CODE),
        ("SIGTERM", -15, True, preemption.EXIT_CODE),
        ("SIGTERM", -15, False, r"Rank 1 of this node ended with .*SIGTERM"),
    ],
)
def test_a_rank_that_ends_is_explained_and_one_that_was_asked_to_is_no_failure(
    monkeypatch, tmp_path, photo_folder, name, code, asked, ends
):
    def dies(**arguments):
        raise ProcessExitedException(f"process 1 terminated with signal {name}", 1, 77, code, name)

    monkeypatch.setattr(distributed_launcher, "launch_distributed", dies)
    monkeypatch.setattr(preemption.forwarded, "wait", lambda seconds: asked)
    for patched in ("_distributed_worker", "get_resume_checkpoint", "get_node_id"):  # launch() replaces them
        monkeypatch.setattr(distributed_launcher, patched, getattr(distributed_launcher, patched))
    config = config_of(tmp_path / "run", SMALL, "config.DISTRIBUTED.NUM_PROC_PER_NODE=2")
    before = {number: signal.getsignal(number) for number in (*preemption.SIGNALS, signal.SIGALRM)}
    try:
        if ends == preemption.EXIT_CODE:
            with pytest.raises(SystemExit) as end:
                launcher.launch(config, 0, "train")
            assert end.value.code == ends
        else:
            with pytest.raises(ConfigError, match=ends):
                launcher.launch(config, 0, "train")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_submitit_requeues_at_once_unless_something_trains_which_then_writes_its_checkpoint():
    asked: list[str] = []
    requeue = lambda *_: asked.append("requeue")  # noqa: E731
    before = signal.getsignal(signal.SIGUSR1)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN, launcher.early_stop._end):
            signal.signal(signal.SIGUSR1, handler)
            launcher._checkpoint_before(requeue, signal.SIGUSR2, None)
        assert asked == ["requeue"] * 3
        signal.signal(signal.SIGUSR1, lambda *_: asked.append("checkpoint"))
        launcher._checkpoint_before(requeue, signal.SIGUSR2, None)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert asked[3:] == ["checkpoint"]


def test_a_job_of_several_nodes_meets_at_its_first_and_is_requeued_where_its_run_was_asked_to_stop(
    monkeypatch, tmp_path
):
    helpers = SimpleNamespace(DelayedSubmission=lambda job: job)
    environment = SimpleNamespace(hostnames=["first", "second"], global_rank=1)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(JobEnvironment=lambda: environment, helpers=helpers))
    monkeypatch.setattr(launcher.registration, "import_in_children", lambda: None)
    monkeypatch.setattr(launcher.time, "sleep", lambda seconds: None)
    called, requeued, codes = [], [], [1, 75]

    def launch(config, node, engine):
        called.append((config.DISTRIBUTED.INIT_METHOD, config.DISTRIBUTED.RUN_ID, node, engine))
        handler = signal.getsignal(launcher.REQUEUE)
        assert handler.func is launcher._checkpoint_before and handler.args == (requeue,)
        raise SystemExit(codes.pop())

    def requeue(number, frame):
        requeued.append(number)

    monkeypatch.setattr(launcher, "launch", launch)
    config = config_of(tmp_path, SMALL, "config.DISTRIBUTED.NUM_NODES=2", "config.SLURM.PORT_ID=4321")
    before = signal.getsignal(launcher.REQUEUE)
    try:
        for expected in ([launcher.REQUEUE], []):
            signal.signal(launcher.REQUEUE, requeue)
            requeued.clear()
            job = launcher.SlurmJob("train", config).checkpoint()  # what submitit puts back into the queue
            if expected:
                job()
            else:
                with pytest.raises(SystemExit):
                    job()
            assert requeued == expected
    finally:
        signal.signal(launcher.REQUEUE, before)
    assert called == [("tcp", "first:4321", 1, "train")] * 2


def test_several_ranks_meet_and_only_those_of_several_nodes_watch_each_other(monkeypatch, tmp_path):
    joined, watched = [], []
    monkeypatch.setattr(launcher.process_group, "join", lambda config, *given: joined.append(given) or "store")
    monkeypatch.setattr(launcher.liveness, "watched", lambda *given: watched.append(given) or contextlib.nullcontext())
    monkeypatch.delenv(launcher.TORCHRUN, raising=False)

    def among(*overrides: str, node: int = 1, local: int = 2) -> None:
        launcher._among_the_ranks(config_of(tmp_path, SMALL, *overrides), node, local, "first:2950")

    among(node=0, local=0)
    assert joined == watched == []
    among("config.DISTRIBUTED.NUM_PROC_PER_NODE=4", node=0)
    assert joined.pop() == ("first:2950", 2, 2) and watched == []
    nodes = ("config.DISTRIBUTED.NUM_PROC_PER_NODE=4", "config.DISTRIBUTED.NUM_NODES=3")
    silence = "config.TRAINER.PIRL_TRAIN_STEP.silence_seconds"
    among(*nodes, f"{silence}=70")
    assert joined.pop() == ("first:2950", 6, 2) and watched.pop() == ("store", "first", 6, 12, 4, 70)
    among(*nodes, f"{silence}=0")
    assert joined and watched == []
    monkeypatch.setenv(launcher.TORCHRUN, "a")
    among(node=0, local=0)  # one rank, which torchrun may have started beside others
    assert joined.pop() == ("first:2950", 0, 0)


def test_a_sweep_runs_one_after_the_other_and_ends_with_the_first_that_fails(monkeypatch, tmp_path, capfd):
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint('ran', *sys.argv[3:], flush=True)\n"
                       "sys.exit(3 if 'b=2' in sys.argv else 0)\n")  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    with pytest.raises(SystemExit) as end:
        launcher._sweep([["a", "b=1"], ["a", "b=2"], ["a", "b=3"]])
    assert end.value.code == 3 and {number: signal.getsignal(number) for number in before} == before
    printed = capfd.readouterr().out.splitlines()
    assert printed == ["Sweep: run 1 of 3: a b=1", "ran a b=1", "Sweep: run 2 of 3: a b=2", "ran a b=2"]


def test_a_signal_to_a_sweep_reaches_the_run():
    code = """
import os, signal, sys, threading, time
from pirl_plugin.launch import launcher
run = "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); print(1, flush=True); "
run += "time.sleep(9)"
popen = launcher.subprocess.Popen
def start(command, **given):
    process = popen([sys.executable, "-c", run], stdout=-1, **given)
    process.stdout.readline()
    os.kill(os.getpid(), signal.SIGUSR1)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    return process
launcher.subprocess = __import__("types").SimpleNamespace(Popen=start)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
launcher._sweep([["a"]])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 75, done.stderr[-2000:]


def test_runs_that_need_what_is_not_there_are_refused_before_anything_starts(monkeypatch, tmp_path):
    config = config_of(tmp_path, SMALL, "config.SLURM.USE_SLURM=True")
    with pytest.raises(ConfigError, match=r"SLURM.PARTITION is empty; name the partition"):
        launcher.launch_on_slurm(config, "train")
    monkeypatch.setattr(launcher, "is_submitit_available", lambda: False)
    with pytest.raises(ConfigError, match="which needs submitit"):
        launcher.launch_on_slurm(config, "train")


def test_a_run_that_was_stopped_before_its_end_is_no_success(monkeypatch, tmp_path, photo_folder, capsys):
    monkeypatch.setattr(launcher, "launch", lambda *given: None)
    monkeypatch.delenv("RANK", raising=False)
    overrides = [
        f"config={SMALL}",
        f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        f"config.CHECKPOINT.DIR={tmp_path}",
    ]
    with pytest.raises(SystemExit, match="Error: The run was stopped before its end; the same command resumes"):
        launcher.run(overrides)
    printed = capsys.readouterr().out
    assert "schedule" in printed and not (tmp_path / NAME).exists()
    assert yaml.safe_load((tmp_path / "train_config.yaml").read_text())["CHECKPOINT"]["DIR"] == str(tmp_path)
    whole = SimpleNamespace(config=config_of(tmp_path), engine_name="train", node_id=1)
    launcher._run_here(whole)  # another node says nothing
    assert capsys.readouterr().out == ""
    assert os.environ.get("RANK") is None


def interrupted(engine: str) -> None:
    with early_stop.ended_by_ctrl_c(launcher._stopped(engine)), contextlib.suppress(KeyboardInterrupt):  # as VISSL
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize(("engine", "told"), [("train", "resumes from"), ("extract_features", "has no result")])
def test_ctrl_c_ends_a_run_though_vissl_goes_on_after_a_keyboard_interrupt(engine, told):
    with pytest.raises(SystemExit, match=f"Error: The run was stopped before its end; .*{told}"):
        interrupted(engine)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


RANK = """
import sys
import torch.distributed as dist
from pirl_plugin.launch import composition, launcher

def trains(*_, **__):
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
    if sys.argv[2] == "fails":
        raise RuntimeError("no")
    if sys.argv[2] == "stops":
        sys.exit(75)

launcher._vissl_worker = trains
overrides = ["config=pretrain/pirl/jigsaw_small_images_cpu", "config.DATA.TRAIN.DATA_PATHS=[/]"]
config = composition.compose(overrides, check=False).config
try:
    launcher.distributed_worker(0, config, 0, "localhost:1")
finally:
    print(dist.is_initialized())
"""


@pytest.mark.parametrize(("how", "code", "left"), [("ends", 0, "False"), ("stops", 75, "False"), ("fails", 1, "True")])
def test_a_rank_that_ended_well_or_was_stopped_leaves_the_process_group_and_one_that_failed_waits_for_nobody(
    tmp_path, how, code, left
):
    """Else a thread of gloo may abort the process at its end, see process_group.leave."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RANK, str(tmp_path / "meet"), how], env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert (done.returncode, done.stdout.split()[-1]) == (code, left), done.stderr[-2000:]
