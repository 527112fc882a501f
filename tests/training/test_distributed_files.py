"""The files of scripts/distributed are what the programs that they are for read."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.constants import (
    DEEPSPEED_MULTINODE_LAUNCHERS,
    FSDP_AUTO_WRAP_POLICY,
    FSDP_STATE_DICT_TYPE,
)
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.run import get_args_parser
from transformers import TrainingArguments
from transformers.integrations import deepspeed

from hf_vlm import LlavaVisionLanguageConfig

ROOT = Path(__file__).parents[2]
DISTRIBUTED = ROOT / "scripts" / "distributed"
ENGINES = sorted(file.stem for file in DISTRIBUTED.glob("*.yaml"))
TRAIN = ["-m", "hf_vlm.cli", "train", "llava-chat", "training.bf16=true"]


def launched(*arguments: str):
    """What accelerate's launcher makes of its command line."""
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return arguments


def test_every_file_is_tested():
    assert ENGINES == ["ddp", "deepspeed-zero2", "deepspeed-zero3", "fsdp2"]
    scripts = {"slurm-accelerate.sh", "slurm-torchrun.sh", "deepspeed-zero2.json", "deepspeed-zero3.json"}
    assert {file.name for file in DISTRIBUTED.iterdir()} == scripts | {f"{name}.yaml" for name in ENGINES}


@pytest.mark.parametrize("name", [*(f"{name}.yaml" for name in ENGINES), "slurm-torchrun.sh", "slurm-accelerate.sh"])
def test_file_opens_with_its_command_and_what_it_was_run_on(name):
    header = "".join(line for line in (DISTRIBUTED / name).read_text().splitlines(True) if line.startswith("#"))
    assert f"scripts/distributed/{name}" in header
    assert "Executed" in header and "not run" in header.lower()


@pytest.mark.parametrize("engine", ENGINES)
def test_accelerate_knows_every_key_and_starts_eight_processes(engine):
    file = str(DISTRIBUTED / f"{engine}.yaml")
    config = load_config_from_file(file)  # refuses keys that it doesn't know
    assert config.num_processes == 8 and config.num_machines == 1
    assert config.mixed_precision is None  # the recipe's `training.bf16` says it, once for every launcher
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(known) and set(config.deepspeed_config) <= set(known)
    arguments = launched("--config_file", file, *TRAIN)
    assert (arguments.num_processes, arguments.module) == (8, True)
    assert (arguments.training_script, arguments.training_script_args) == ("hf_vlm.cli", TRAIN[2:])
    fewer = launched("--config_file", file, "--num_processes", "2", *TRAIN)
    assert fewer.num_processes == 2


def test_ddp_file_takes_a_free_port():
    arguments = launched("--config_file", str(DISTRIBUTED / "ddp.yaml"), *TRAIN)
    assert arguments.multi_gpu and arguments.main_process_port == 0
    environment = prepare_multi_gpu_env(arguments)
    assert arguments.nproc_per_node == "8" and int(arguments.master_port) > 1024
    assert "ACCELERATE_USE_FSDP" not in environment and "ACCELERATE_USE_DEEPSPEED" not in environment


def test_fsdp2_file_turns_on_version_2_with_whole_checkpoints():
    config = load_config_from_file(str(DISTRIBUTED / "fsdp2.yaml"))
    assert config.distributed_type == DistributedType.FSDP
    assert config.fsdp_config["fsdp_state_dict_type"] in FSDP_STATE_DICT_TYPE
    assert config.fsdp_config["fsdp_auto_wrap_policy"] in FSDP_AUTO_WRAP_POLICY
    environment = prepare_multi_gpu_env(launched("--config_file", str(DISTRIBUTED / "fsdp2.yaml"), *TRAIN))
    wanted = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    assert {name: environment.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_file_names_its_json_and_starts_processes_itself(stage, monkeypatch):
    monkeypatch.chdir(ROOT)  # as the header says
    arguments = launched("--config_file", str(DISTRIBUTED / f"deepspeed-zero{stage}.yaml"), *TRAIN)
    assert arguments.use_deepspeed and arguments.deepspeed_multinode_launcher == DEEPSPEED_MULTINODE_LAUNCHERS[1]
    arguments.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    settings = json.loads(Path(environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text())
    assert settings["zero_optimization"]["stage"] == stage
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"  # models are built whole, then divided


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_json_is_what_transformers_fills_in(stage, tmp_path, monkeypatch):
    settings = json.loads((DISTRIBUTED / f"deepspeed-zero{stage}.json").read_text())
    monkeypatch.setattr(deepspeed, "dep_version_check", lambda name: None)
    monkeypatch.setattr(deepspeed, "set_hf_deepspeed_config", lambda config: None)  # this process goes on without

    class Settings(deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
        """As it is where DeepSpeed is installed."""

    config = Settings(settings)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True, per_device_train_batch_size=3)
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, SimpleNamespace(config=LlavaVisionLanguageConfig()), 10)
    assert config.mismatches == [] and config.config["zero_optimization"]["stage"] == stage
    assert config.config["train_micro_batch_size_per_gpu"] == 3 and config.config["bf16"]["enabled"] is True
    assert "auto" not in json.dumps(config.config)


# SLURM


@pytest.fixture
def submitted(tmp_path):
    """`submitted("slurm-torchrun.sh")`: the words of the command that a node of two, of eight GPUs each, is given."""

    def submit(script: str, **variables: str) -> list[list[str]]:
        for name, text in {
            "scontrol": '[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"',
            # as SLURM does: the whole command on each node, where SLURM_NODEID is the node's
            "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
            "torchrun": "printf '%s\\n' \"$@\" ---",
            "accelerate": "printf '%s\\n' \"$@\" ---",
        }.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        of_slurm = {"SLURM_JOB_NODELIST": "node[07-08]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123456"}
        of_slurm |= {"SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"} | variables
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMP"))}
        environment |= of_slurm | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        command = ["bash", str(DISTRIBUTED / script), "llava-chat", "data.train.0.where={kind: [a b]}"]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return [node.splitlines() for node in printed.split("---\n") if node]

    return submit


@pytest.mark.parametrize("script", ["slurm-torchrun.sh", "slurm-accelerate.sh"])
def test_slurm_script_is_bash_and_asks_for_a_task_a_node(script):
    subprocess.run(["bash", "-n", DISTRIBUTED / script], check=True)
    lines = (DISTRIBUTED / script).read_text().splitlines()
    assert lines[0] == "#!/bin/bash" and os.access(DISTRIBUTED / script, os.X_OK)
    options = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert {"nodes=2", "ntasks-per-node=1", "gpus-per-node=8"} <= set(options)
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])  # SLURM would not read them


def test_slurm_script_gives_torchrun_what_every_node_needs(submitted):
    nodes = submitted("slurm-torchrun.sh")
    assert len(nodes) == 2 and nodes[0] == nodes[1]
    options = get_args_parser().parse_args(nodes[0])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_backend) == ("2", "8", "c10d")
    assert (options.rdzv_endpoint, options.rdzv_id) == ("node07:23456", "123456")
    assert options.module and options.training_script == "hf_vlm.cli" and options.shutdown_timeout == 240
    assert options.training_script_args == ["train", "llava-chat", "data.train.0.where={kind: [a b]}"]
    assert get_args_parser().parse_args(submitted("slurm-torchrun.sh", PORT="29501")[0]).rdzv_endpoint == "node07:29501"


@pytest.mark.parametrize("engine", ENGINES)
def test_slurm_script_gives_accelerate_the_number_of_each_node(submitted, engine, monkeypatch):
    monkeypatch.chdir(ROOT)
    nodes = [launched(*words[1:]) for words in submitted("slurm-accelerate.sh", ENGINE=engine)]
    assert [node.machine_rank for node in nodes] == [0, 1]
    for node in nodes:
        assert node.config_file == f"scripts/distributed/{engine}.yaml"
        assert (node.num_machines, node.num_processes) == (2, 16)
        assert (node.main_process_ip, node.main_process_port) == ("node07", 23456)
        assert node.training_script_args == ["train", "llava-chat", "data.train.0.where={kind: [a b]}"]
