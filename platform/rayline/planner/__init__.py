"""Arithmetic only: a model's shape, its parameters, a worker's memory, the pipeline's bubble. No
torch, no Ray."""

from rayline.planner.memory import MemoryEstimate, estimate_memory
from rayline.planner.parameters import ParameterCounts, count_by_component, count_parameters
from rayline.planner.pipeline import PipelineEstimate, estimate_pipeline
from rayline.planner.shape import read_model_shape

__all__ = [
    "MemoryEstimate",
    "ParameterCounts",
    "PipelineEstimate",
    "count_by_component",
    "count_parameters",
    "estimate_memory",
    "estimate_pipeline",
    "read_model_shape",
]
