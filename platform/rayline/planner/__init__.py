"""Arithmetic only: a model's shape, its parameters, the memory of a worker. No torch, no Ray."""

from rayline.planner.memory import MemoryEstimate, estimate_memory
from rayline.planner.parameters import ParameterCounts, count_by_component, count_parameters
from rayline.planner.shape import read_model_config, read_model_shape

__all__ = [
    "MemoryEstimate",
    "ParameterCounts",
    "count_by_component",
    "count_parameters",
    "estimate_memory",
    "read_model_config",
    "read_model_shape",
]
