"""Arithmetic only: a model's shape, its parameters and operations, the memory of a worker, the
pipeline's bubble, what devices can do. No torch, no Ray."""

from rayline.planner.advice import MemorySaving, memory_advice, memory_savings
from rayline.planner.elastic import narrower_plans, widest_that_fits
from rayline.planner.flops import (
    forward_flops_per_token,
    matrix_parameters_per_token,
    model_flops_per_token,
)
from rayline.planner.hardware import PEAK_SPEEDS, PeakSpeed, device_peak_flops_per_s
from rayline.planner.job import JobPlan, plan_job
from rayline.planner.memory import MemoryEstimate, estimate_memory
from rayline.planner.parameters import ParameterCounts, count_by_component, count_parameters
from rayline.planner.pipeline import PipelineEstimate, estimate_pipeline
from rayline.planner.shape import read_model_config, read_model_shape

__all__ = [
    "PEAK_SPEEDS",
    "JobPlan",
    "MemoryEstimate",
    "MemorySaving",
    "ParameterCounts",
    "PeakSpeed",
    "PipelineEstimate",
    "count_by_component",
    "count_parameters",
    "device_peak_flops_per_s",
    "estimate_memory",
    "estimate_pipeline",
    "forward_flops_per_token",
    "matrix_parameters_per_token",
    "memory_advice",
    "memory_savings",
    "model_flops_per_token",
    "narrower_plans",
    "plan_job",
    "read_model_config",
    "read_model_shape",
    "widest_that_fits",
]
