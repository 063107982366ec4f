"""Evaluate a checkpoint with the paper's benchmarks and compare the results with the paper's.

    pirl benchmark CHECKPOINT --run linear_imagenet svm_voc07 detection_voc07 --output benchmarks

`pirl benchmark --list` lists all benchmarks. Benchmarks already done in --output are skipped, and interrupted ones are
resumed. --slurm PARTITION submits a job for each; the same command with --gather then makes the table. --settings FILE
gives overrides, one list per benchmark, e.g.

    vissl: [config.DATA.NUM_DATALOADER_WORKERS=10]
    linear_imagenet: ["config.DATA.TRAIN.DATA_PATHS=[/data/train]", "config.DATA.TEST.DATA_PATHS=[/data/val]"]
    detection: [SOLVER.IMS_PER_BATCH, 16]
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from pirl_plugin.validation import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", help="from this plugin or VISSL, a state dict, or .safetensors")
    parser.add_argument("--run", nargs="+", metavar="NAME", default=[], help="the benchmarks to run, in this order")
    parser.add_argument("--list", action="store_true", help="list all benchmarks")
    parser.add_argument("--output", type=Path, help="a folder for all runs and the table")
    parser.add_argument("--settings", help="a YAML file of overrides")
    parser.add_argument("--gather", action="store_true", help="run nothing, only make the table of existing results")
    parser.add_argument("--slurm", metavar="PARTITION", help="submit each benchmark as a job to this partition")
    parser.add_argument("--hours", type=int, default=72, help="time limit of a SLURM job before it is requeued")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs of a SLURM job")
    parser.add_argument("--cpus", type=int, default=80, help="CPUs of a SLURM job")


def run(options: argparse.Namespace) -> int:
    from pirl_plugin.launch import registration

    registration.import_in_children()
    from pirl_plugin.experiments.benchmarking import freeze_weights, gather, plan, read_settings, submit
    from pirl_plugin.experiments.benchmarks import BENCHMARKS

    if options.list:
        print("\n".join(f"{name:26}{benchmark.title}" for name, benchmark in BENCHMARKS.items()))
        return 0
    if options.output is None or (options.checkpoint is None and not options.gather):
        raise ConfigError("Give a checkpoint and --output, a folder for all runs and the table.")
    if not options.run and not options.gather:
        raise ConfigError(f"Give --gather, or --run with one or more of {', '.join(BENCHMARKS)}.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated; the same command resumes."))
    if options.gather:
        print(gather(options.output)[0])
        return 0
    runs = plan(options.run, options.output.resolve(), read_settings(options.settings))
    freeze_weights(options.checkpoint, options.output.resolve())
    if options.slurm:
        jobs = submit(
            runs,
            "slurm",
            slurm_partition=options.slurm,
            timeout_min=60 * options.hours,
            gpus_per_node=options.gpus,
            cpus_per_task=options.cpus,
        )
        for run, job in zip(runs, jobs, strict=True):
            print(f"{run.name}: job {job.job_id}, log in {run.folder}/log.txt")
        return 0
    results = [run.run(f"[{number}/{len(runs)}] ") for number, run in enumerate(runs, start=1)]
    print(f"\n{gather(options.output)[0]}\nWritten: {options.output}/results.md and results.json")
    return int(any("failed" in result for result in results))
