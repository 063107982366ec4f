import logging

from vissl.engines import extract_features, train
from vissl.utils import env

from pirl_plugin.host.environment_log import log_environment


def test_only_values_that_explain_how_a_run_computed_are_logged(caplog):
    secrets = {
        "WANDB_API_KEY": "s3cret-1", "HF_TOKEN": "s3cret-2", "AWS_SECRET_ACCESS_KEY": "s3cret-3",
        "PGPASSWORD": "s3cret-4", "SLURM_JWT": "s3cret-5",
        "TORCH_HUB_TOKEN": "s3cret-6", "MY_OWN_SETTING": "s3cret-7", "http_proxy": "s3cret-8",
        "NCCL_AUTH": "s3cret-9", "DATABASE_URL": "s3cret-10",
    }  # fmt: skip
    harmless = {"CUDA_VISIBLE_DEVICES": "0,1", "RANK": "3", "SLURM_JOB_ID": "77", "OMP_NUM_THREADS": "4"}
    with caplog.at_level(logging.INFO):
        log_environment({**secrets, **harmless})
    assert "s3cret" not in caplog.text
    assert all(name in caplog.text for name in secrets)  # that they were set may matter
    assert all(f"{name}:\t{value}" in caplog.text for name, value in harmless.items())


def test_vissls_engines_log_the_environment_by_it():
    for module in (env, train, extract_features):
        assert module.print_system_env_info is log_environment
