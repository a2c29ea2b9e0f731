"""YAML to checked, typed records; every mistake of all files in one go, with file, line, key and the nearest valid word."""

from virb.config.check import Strict
from virb.config.experiments import (
    encoder_config_from_mapping,
    encoder_configs_from_mapping,
    encoder_from_arguments,
    load_experiment_list,
)
from virb.config.files import Loaded, only
from virb.config.names import NAME, UniqueNames, path_collisions
from virb.config.records import EncoderConfig, InputOverride, TaskConfig
from virb.config.tasks import load_task_configs, task_config_from_mapping
from virb.config.training import GradientConfig, MlpConfig, OptimizerConfig, SchedulerConfig
from virb.config.tree import Where
from virb.config.vocabulary import Vocabulary

__all__ = [
    "NAME",
    "EncoderConfig",
    "GradientConfig",
    "InputOverride",
    "Loaded",
    "MlpConfig",
    "OptimizerConfig",
    "SchedulerConfig",
    "Strict",
    "TaskConfig",
    "UniqueNames",
    "Vocabulary",
    "Where",
    "encoder_config_from_mapping",
    "encoder_configs_from_mapping",
    "encoder_from_arguments",
    "load_experiment_list",
    "load_task_configs",
    "only",
    "path_collisions",
    "task_config_from_mapping",
]
