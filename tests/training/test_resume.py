"""A run that was interrupted ends as the run it would have been: sampler, samples, checkpoint files, signals, kills."""

import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pirl_plugin.data.sampler import ShuffledSampler
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.training import preemption
from pirl_plugin.training.checkpoint_folder import (
    AtomicCheckpointWriter,
    delete_old,
    load_on_every_rank,
    newest,
    write_atomically,
)
from pirl_plugin.validation import ConfigError
from runs import free_port, left_after, same

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# The sampler ---------------------------------------------------------------------------------------------------------


def batches(size: int, batch: int, ranks: int, epoch: int = 0, start: int = 0, drop_last: bool = True, seed: int = 0):
    """Global batches, as lists of each rank's part."""
    parts = []
    for number in range(ranks):
        sampler = ShuffledSampler(range(size), batch, seed, drop_last, ranks, number)
        sampler.set_epoch(epoch)
        sampler.set_start_iter(start)
        indices = list(sampler)
        parts.append([indices[n : n + batch] for n in range(0, len(indices), batch)])
    return [[part[step] for part in parts] for step in range(len(parts[0]))]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_epoch_sees_every_image_once_and_a_global_batch_is_the_same_for_any_number_of_ranks(ranks):
    whole = batches(50, 8, 1)
    shared = batches(50, 8 // ranks, ranks)
    assert [[index for part in step for index in part] for step in shared] == [step[0] for step in whole]
    seen = [index for step in whole for index in step[0]]
    assert len(seen) == 48 == len(set(seen)) and len(whole) == 6


def test_an_epoch_goes_on_with_the_steps_that_are_left():
    assert batches(50, 4, 2, epoch=3, start=2) == batches(50, 4, 2, epoch=3)[2:]
    sampler = ShuffledSampler(range(50), 4, num_replicas=2, rank_=0)
    sampler.set_start_iter(2)
    assert len(sampler) == 24  # of a whole epoch: what schedules are made of


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(step[0][0] for step in batches(50, 5, 1, epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4


@pytest.mark.parametrize(("size", "batch", "ranks"), [(10, 4, 2), (3, 2, 4), (7, 7, 1)])
def test_without_drop_last_the_first_images_fill_up_and_ranks_have_as_many(size, batch, ranks):
    parts = [list(ShuffledSampler(range(size), batch, 0, False, ranks, number)) for number in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert {index for part in parts for index in part} == set(range(size))
    assert sum(map(len, parts)) - size < ranks


# Samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRETEXT_TRANSFORMS))
def test_a_sample_depends_on_seed_epoch_and_index_alone(name, make_photo):
    def sample(seed: int, epoch: int, index: int) -> torch.Tensor:
        torch.manual_seed(torch.randint(10**6, ()).item())  # whatever the worker did before
        task = PRETEXT_TRANSFORMS[name](seed=seed)
        task.epoch = epoch
        made = task({"data": [make_photo(1, 300, 260)], "data_idx": [index], "data_valid": [1]})
        return torch.cat([made["images"].flatten(), *([made["pretext"].flatten()] if "pretext" in made else [])])

    first = sample(3, 4, 5)
    assert torch.equal(first, sample(3, 4, 5))
    for other in (sample(2, 4, 5), sample(3, 5, 5), sample(3, 4, 6)):
        assert not torch.equal(first, other)


# Checkpoint files ----------------------------------------------------------------------------------------------------


def save(folder: Path, name: str, iteration: int) -> Path:
    write_atomically({"iteration": iteration, "weights": torch.zeros(1000)}, folder / name)
    return folder / name


def config_for(folder: Path, *overrides: str):
    return compose(["config=pretrain/pirl/jigsaw_8node", f"config.CHECKPOINT.DIR={folder}", *overrides], check=False)


def test_the_newest_whole_checkpoint_is_taken_whether_of_an_iteration_or_an_epoch(tmp_path):
    config = config_for(tmp_path)
    assert newest(config, str(tmp_path / "none")) is None and newest(config, str(tmp_path)) is None
    save(tmp_path, "model_iteration90.torch", 90)
    assert newest(config, str(tmp_path)).endswith("iteration90.torch")
    save(tmp_path, "model_phase1.torch", 100)
    assert newest(config, str(tmp_path)).endswith("phase1.torch")
    save(tmp_path, "model_iteration100.torch", 100)  # the same moment: the end of an epoch is simpler
    assert newest(config, str(tmp_path)).endswith("phase1.torch")
    late = save(tmp_path, "model_iteration110.torch", 110)
    assert newest(config, str(tmp_path)) == str(late)
    late.write_bytes(late.read_bytes()[:-40])  # torn, as a copy that was cut off
    assert newest(config, str(tmp_path)).endswith("phase1.torch")
    (tmp_path / "model_iteration120.torch.unfinished").write_bytes(b"half")
    assert newest(config, str(tmp_path)).endswith("phase1.torch")
    back = config_for(tmp_path, "config.CHECKPOINT.LATEST_CHECKPOINT_RESUME_FILE_NUM=3")
    assert newest(back, str(tmp_path)).endswith("iteration90.torch")
    for number in (0, -3, 40):
        back = config_for(tmp_path, f"config.CHECKPOINT.LATEST_CHECKPOINT_RESUME_FILE_NUM={number}")
        with pytest.raises(ConfigError, match=rf"RESUME_FILE_NUM, for .*, is {number}; it must be .* between 1 and \d"):
            newest(back, str(tmp_path))
    assert newest(config_for(tmp_path, "config.CHECKPOINT.AUTO_RESUME=False"), str(tmp_path)) is None


def test_a_folder_with_torn_checkpoints_only_is_refused_instead_of_started_anew(tmp_path):
    (tmp_path / "model_phase0.torch").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="has checkpoints, but none is complete; delete them to start again"):
        newest(config_for(tmp_path), str(tmp_path))


def test_a_checkpoint_that_would_run_code_is_not_resumed_from(tmp_path):
    torch.save({"iteration": 5, "evil": subprocess.Popen}, tmp_path / "model_phase0.torch")
    with pytest.raises(ConfigError, match="none is complete"):
        newest(config_for(tmp_path), str(tmp_path))


def test_a_checkpoint_is_read_by_every_rank_itself_or_where_that_cannot_be_by_the_first(tmp_path):
    content = {"iteration": 3, "weights": torch.arange(1000.0)}
    for new_format in (True, False):  # the old one cannot be mapped
        path = tmp_path / f"{new_format}.torch"
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        read = load_on_every_rank(str(path))
        assert read["iteration"] == 3 and torch.equal(read["weights"], content["weights"])
    evil = tmp_path / "evil.torch"
    torch.save({"iteration": 3, "run": subprocess.Popen}, evil)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_on_every_rank(str(evil))


def test_ranks_that_do_not_see_the_file_get_it_from_the_first(tmp_path):
    torch.save({"iteration": 3, "weights": torch.arange(1000.0)}, tmp_path / "model.torch")
    code = f"""
import sys, torch, torch.distributed as dist
from pirl_plugin.launch import registration
from pirl_plugin.training.checkpoint_folder import load_on_every_rank
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
read = load_on_every_rank("{tmp_path}/model.torch" if rank == 0 else "/nowhere/model.torch")
assert read["iteration"] == 3 and torch.equal(read["weights"], torch.arange(1000.0))
assert load_on_every_rank("{tmp_path}/model.torch")["iteration"] == 3
dist.destroy_process_group()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors


def test_old_checkpoints_are_deleted_and_the_final_one_kept(tmp_path):
    names = ["model_phase0", "model_iteration50", "model_final_checkpoint_phase9", "model_iteration60", "model_phase1"]
    for number, name in enumerate(names):
        path = save(tmp_path, f"{name}.torch", number)
        os.utime(path, ns=(number * 10**9, number * 10**9))
    delete_old(tmp_path, None)
    assert len(list(tmp_path.iterdir())) == 5
    delete_old(tmp_path, 2)
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {"model_final_checkpoint_phase9", "model_iteration60", "model_phase1"}


def test_a_full_disk_costs_a_checkpoint_and_leaves_the_one_before_whole(tmp_path, caplog):
    """A limit on the size of files stands for the full disk: the writes really fail."""
    before = save(tmp_path, "model_phase0.torch", 10)
    writer = AtomicCheckpointWriter(str(tmp_path), False, "phase", 1, "disk")
    final = AtomicCheckpointWriter(str(tmp_path), True, "phase", 1, "disk")
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    content = {"iteration": 20, "weights": torch.zeros(100_000)}
    try:
        writer.save_consolidated_checkpoint(content)
        with pytest.raises(
            RuntimeError, match=r"could not be written \(\[Errno 27\] File too large.*the last; make room"
        ):
            final.save_consolidated_checkpoint(content)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.save_consolidated_checkpoint({"iteration": 15, "weights": torch.zeros(10)})  # the series is broken
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        for _ in range(2):
            writer.save_consolidated_checkpoint(content)
        with pytest.raises(RuntimeError, match=r"could not be written .*, failure 3 in a row; make room"):
            writer.save_consolidated_checkpoint(content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old_handler)
        AtomicCheckpointWriter.failures = 0
    assert "(failure 2 in a row; 3 end the run)" in caplog.text and "the run continues and tries again" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {
        "model_phase0.torch",
        "model_phase1.torch",
        "checkpoint.torch",
    }
    assert load_checkpoint_iteration(before) == 10


def load_checkpoint_iteration(path: Path) -> int:
    return torch.load(path, weights_only=True)["iteration"]


# Whole runs ----------------------------------------------------------------------------------------------------------

RUN = [
    "config=pretrain/pirl/jigsaw_small_images_cpu",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.LOSS.pirl_loss.negatives=per_image",
    "config.LOSS.pirl_loss.num_negatives=16",
    "config.LOSS.pirl_loss.memory_bank.fill_first=False",
    "config.OPTIMIZER.num_epochs=3",
    "config.OPTIMIZER.param_schedulers.lr.update_interval=epoch",  # with which the rate is constant in an epoch
    "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
]


def start(folder: Path, photos: Path, *overrides: str, command: tuple[str, ...] = ("-m",)) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command, "pirl_plugin.launch.launcher", *RUN, f"config.DATA.TRAIN.DATA_PATHS=[{photos}]",
         f"config.CHECKPOINT.DIR={folder}", *overrides],
        stdout=folder.with_suffix(".log").open("a"), stderr=subprocess.STDOUT, cwd=folder.parent,
        start_new_session=True, env=ENVIRONMENT,
    )  # fmt: skip


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def log_of(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


def last_error(output: str) -> str:
    """The run's last sentence; Python's resource tracker, which ends after it, may count semaphores below it."""
    return [line for line in output.splitlines() if "Error: " in line and not line.startswith("OSError")][-1]


def final(folder: Path) -> dict:
    return load_checkpoint(folder / "model_final_checkpoint_phase2.torch")


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory, photo_folder) -> dict:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert start(folder, photo_folder).wait(200) == 0, log_of(folder)[-3000:]
    return final(folder)


@pytest.mark.slow
def test_a_signal_writes_a_checkpoint_and_the_same_command_ends_bit_by_bit_the_same(left_alone, photo_folder, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, photo_folder, "config.DATA.NUM_DATALOADER_WORKERS=1")
    wait_for(lambda: "epoch 2 of 3" in log_of(folder), process)
    for _ in range(5):  # as from SLURM, to the whole group, which the launcher hands on once more
        os.killpg(process.pid, signal.SIGUSR1)
        time.sleep(0.02)
    assert process.wait(60) == preemption.EXIT_CODE, log_of(folder)[-3000:]
    printed = log_of(folder)
    assert "KeyError" not in printed and "resource_tracker" not in printed  # which the signal reaches, too
    (written,) = folder.glob("model_iteration*.torch")
    iteration = int(re.search(r"\d+", written.stem).group())
    assert 6 < iteration < 18 and log_of(folder).count(f"Stopped after iteration {iteration}") == 2
    assert start(folder, photo_folder).wait(200) == 0, log_of(folder)[-3000:]
    assert f"Resume from file: {written}" in log_of(folder)
    assert same(left_alone, final(folder))


@pytest.mark.usefixtures("as_in_a_terminal")
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_with_one_sentence(processes, photo_folder, tmp_path):
    folder = tmp_path / "run"
    own = ["config.OPTIMIZER.num_epochs=500", f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}"]
    process = start(folder, photo_folder, *own)
    wait_for(lambda: "epoch 2 of" in log_of(folder), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 1
    printed = log_of(folder)
    assert last_error(printed) == (
        "Error: The run was stopped before its end; the same command resumes from its last checkpoint."
    )
    assert "Traceback" not in printed and "All Done" not in printed, printed[-3000:]


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_within_a_minute_and_it_goes_on(left_alone, photo_folder, tmp_path):
    folder, often = tmp_path / "run", "config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=2"
    process = start(folder, photo_folder, often)
    wait_for(lambda: (folder / "model_iteration8.torch").exists(), process)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
    assert process.wait(60) == 1
    last = last_error(log_of(folder))
    assert re.search(r"Error: Rank \d of this node was killed \(SIGKILL\) .*resumes a training from its last", last), (
        last
    )
    assert start(folder, photo_folder, often).wait(200) == 0, log_of(folder)[-3000:]
    assert same(left_alone, final(folder))


@pytest.mark.slow
def test_ranks_end_with_a_killed_launcher_though_they_ignore_sigint(photo_folder, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in what a shell runs in the background
    try:
        process = start(tmp_path / "run", photo_folder, "config.OPTIMIZER.num_epochs=500")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: "epoch 2 of" in log_of(tmp_path / "run"), process)
    process.kill()
    process.wait()
    assert not left_after(process.pid, 10)


@pytest.mark.slow
def test_two_launchers_as_two_nodes_train_as_one_node_with_two_processes(left_alone, photo_folder, tmp_path):
    cluster = [
        "config.DISTRIBUTED.NUM_NODES=2",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
        f"config.DISTRIBUTED.RUN_ID=localhost:{free_port()}",
    ]
    nodes = [start(tmp_path / "run", photo_folder, *cluster, f"node_id={number}") for number in (0, 1)]
    assert [node.wait(200) for node in nodes] == [0, 0], log_of(tmp_path / "run")[-3000:]
    assert same(left_alone, final(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_restarts_a_killed_rank_and_the_end_is_the_same(left_alone, photo_folder, tmp_path, nodes):
    folder, often = tmp_path / "run", "config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=2"
    place = () if nodes == 1 else ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}")
    torchrun = ("-m", "torch.distributed.run", *place, f"--nproc-per-node={2 // nodes}", "--max-restarts=1", "-m")
    agents = [start(folder, photo_folder, often, command=torchrun) for _ in range(nodes)]
    wait_for(lambda: (folder / "model_iteration8.torch").exists(), agents[-1])
    ranks = subprocess.run(["pgrep", "-P", str(agents[-1].pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    assert [agent.wait(200) for agent in agents] == [0] * nodes, log_of(folder)[-3000:]
    assert "Resume from file" in log_of(folder)
    assert same(left_alone, final(folder))


@pytest.mark.slow
def test_the_middle_of_an_epoch_goes_on_with_one_process_but_not_with_another_batch(left_alone, photo_folder, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, photo_folder)
    wait_for(lambda: "epoch 2 of 3" in log_of(folder), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == preemption.EXIT_CODE, log_of(folder)[-3000:]
    assert start(folder, photo_folder, "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8").wait(200) == 1
    assert "Error: The checkpoint is from mid-epoch of a run whose global batch was 8; here it is 16" in log_of(folder)
    one = ["config.DISTRIBUTED.NUM_PROC_PER_NODE=1", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8"]
    assert start(folder, photo_folder, *one).wait(200) == 0, log_of(folder)[-3000:]
    ended, expected = final(folder), left_alone  # BatchNorm sees 8 images instead of 4: not the same, but as far
    assert (
        ended["iteration"] == expected["iteration"]
        and ended["loss"]["_extra_state"] == expected["loss"]["_extra_state"]
    )


@pytest.mark.slow
def test_the_end_of_an_epoch_goes_on_with_any_batch_and_is_not_done_again(photo_folder, tmp_path):
    folder, alone = tmp_path / "run", ["config.DISTRIBUTED.NUM_PROC_PER_NODE=1"]
    process = start(folder, photo_folder, *alone, "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8")
    wait_for(lambda: (folder / "model_phase0.torch").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for path in [*folder.glob("model_phase[12].torch"), *folder.glob("model_final*")]:
        path.unlink()
    other = ["config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16", "config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=1"]
    other += ["config.CHECKPOINT.KEEP_LAST=null"]
    assert start(folder, photo_folder, *alone, *other).wait(200) == 0, log_of(folder)[-3000:]
    assert final(folder)["iteration"] == 6 + 2 * 3
    # The iteration checkpoint of an epoch's last step: its epoch is done.
    for path in [*folder.glob("model_phase*"), *folder.glob("model_final*"), folder / "model_iteration10.torch"]:
        path.unlink()
    for number in (11, 12):
        (folder / f"model_iteration{number}.torch").unlink()
    assert newest(config_for(folder), str(folder)).endswith("iteration9.torch")
    assert start(folder, photo_folder, *alone, *other).wait(200) == 0, log_of(folder)[-3000:]
    assert final(folder)["iteration"] == 12


@pytest.mark.slow
@pytest.mark.parametrize(("bank", "kills"), [("memory_bank", 2), ("sharded_memory_bank", 1)])
def test_random_kills_end_bit_equal(bank, kills, tmp_path):
    script, seed = ROOT / "benchmarks" / "kill_and_resume.py", str(int(time.time()) % 1000)
    options = ["--bank", bank, "--kills", str(kills), "--seed", seed, "--output", tmp_path / "kills.json"]
    done = subprocess.run(
        [sys.executable, script, *options],
        capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def peak_memory(folder: Path, photos: Path, *overrides: str) -> int:
    """Bytes that a run of one process had in memory at most."""
    command = [
        sys.executable, "-m", "pirl_plugin.launch.launcher", "config=pretrain/npid/npid_plus_plus_small_images_cpu",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125", f"config.DATA.TRAIN.DATA_PATHS=[{photos}]",
        "config.LOSS.pirl_loss.negatives=shared", "config.LOSS.pirl_loss.num_negatives=16",
        f"config.CHECKPOINT.DIR={folder}", *overrides,
    ]  # fmt: skip
    log = folder.with_suffix(".log")
    process = subprocess.Popen(command, stdout=log.open("a"), stderr=subprocess.STDOUT, env=ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, log.read_text()[-3000:]
    return usage.ru_maxrss * 1024


@pytest.mark.slow
def test_going_on_needs_no_more_memory_than_one_copy_of_the_checkpoint(photo_folder, tmp_path):
    paths = [str(path) for path in sorted(photo_folder.rglob("*.jpg"))]
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(paths * 84))  # 4,032 rows of 16,384 numbers: a bank of 252 MiB
    wide = (
        "config.LOSS.pirl_loss.embedding_dim=16384",
        "config.MODEL.HEAD.PARAMS=[[pirl_heads,{branch:image,embedding_dim:16384}]]",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256",
        "config.OPTIMIZER.num_epochs=2",
        "config.CHECKPOINT.KEEP_LAST=1",
    )
    fresh = peak_memory(tmp_path / "run", listed, *wide)
    (final_checkpoint,) = (tmp_path / "run").glob("model_final*.torch")
    size = final_checkpoint.stat().st_size
    assert size > 250 * 2**20
    final_checkpoint.unlink()
    (tmp_path / "run" / "checkpoint.torch").unlink()
    resumed = peak_memory(tmp_path / "run", listed, *wide)
    assert "Resume from file" in (tmp_path / "run.log").read_text()
    assert resumed < fresh + 1.1 * size


class NotToBeSaved:
    def __reduce__(self):
        raise RuntimeError("this cannot be pickled")


def test_a_file_that_cannot_be_written_leaves_what_was_there_and_nothing_else(tmp_path):
    save(tmp_path, "model_phase0.torch", 4)
    before = (tmp_path / "model_phase0.torch").read_bytes()
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        write_atomically({"weights": torch.ones(5000), "other": NotToBeSaved()}, tmp_path / "model_phase0.torch")
    assert (tmp_path / "model_phase0.torch").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model_phase0.torch"]


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    """What another process sees while the file is written is the old one."""
    save(tmp_path, "model_phase0.torch", 4)
    seen = []

    def save_slowly(content, file):
        file.write(b"half")
        file.flush()
        seen.append(torch.load(tmp_path / "model_phase0.torch", weights_only=True)["iteration"])
        raise OSError("killed")

    monkeypatch.setattr(torch, "save", save_slowly)
    with pytest.raises(OSError, match="killed"):
        write_atomically({"iteration": 9}, tmp_path / "model_phase0.torch")
    assert seen == [4]


@pytest.mark.slow
def test_a_really_full_disk_ends_a_run_that_cannot_save_with_the_systems_reason(photo_folder, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    mount = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=8m none {folder} && "$@"; code=$?; '
             f"cp {folder}/*.torch {folder}/log.txt {tmp_path}; exit $code", "sh")  # fmt: skip
    probe = subprocess.run([*mount[:4], f"mount -t tmpfs none {folder}"], capture_output=True)
    if probe.returncode:
        pytest.skip("this machine lets no test mount a file system of its own")
    code = f"""
import sys
from pathlib import Path
from pirl_plugin.launch import launcher
from pirl_plugin.training import checkpoint_folder
write = checkpoint_folder.write_atomically
def then_fill(content, path):  # after the first checkpoint, something else fills the disk
    write(content, path)
    with open("{folder}/other", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
checkpoint_folder.write_atomically = then_fill
launcher.main(sys.argv[1:])
"""
    done = subprocess.run(
        [*mount, sys.executable, "-c", code, *RUN, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
         f"config.CHECKPOINT.DIR={folder}", "config.CHECKPOINT.KEEP_LAST=null", "config.OPTIMIZER.num_epochs=9",
         "config.DISTRIBUTED.NUM_PROC_PER_NODE=1"],
        capture_output=True, text=True, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    last = last_error(done.stderr)  # Python may yet say at its end that log.txt could not be closed
    assert "[Errno 28] No space left on device" in last and "failure 3 in a row; make room" in last, done.stderr[-6000:]
    assert load_checkpoint_iteration(tmp_path / "model_phase0.torch") > 0
    assert not (tmp_path / "model_phase1.torch").exists()
