"""Arithmetic only: a model's shape, its parameters and operations, the memory of a worker, the
pipeline's bubble, what devices can do, what a served model takes. No torch, no Ray."""

from rayline.planner.advice import MemorySaving, memory_advice, memory_savings
from rayline.planner.deployment import DeploymentPlan, plan_deployment
from rayline.planner.elastic import narrower_plans, widest_that_fits
from rayline.planner.fitting import Fit, fitting_advice, what_fits
from rayline.planner.flops import (
    forward_flops_per_token,
    matrix_parameters_per_token,
    model_flops_per_token,
)
from rayline.planner.hardware import (
    GPU_MEMORY_GIB,
    KIND_RESOURCE,
    PEAK_SPEEDS,
    PeakSpeed,
    device_peak_flops_per_s,
    gpu_memory_bytes,
)
from rayline.planner.job import JobPlan, plan_job
from rayline.planner.kv_cache import CacheLayout, CacheShape
from rayline.planner.memory import MemoryEstimate, estimate_memory
from rayline.planner.parameters import ParameterCounts, count_by_component, count_parameters
from rayline.planner.pipeline import PipelineEstimate, estimate_pipeline
from rayline.planner.quantization import Quantization, check_quantization, read_quantization
from rayline.planner.served_model import ServedModel, read_served_model
from rayline.planner.serving import ServingPlan, plan_serving
from rayline.planner.shape import read_model_config, read_model_shape

__all__ = [
    "GPU_MEMORY_GIB",
    "KIND_RESOURCE",
    "PEAK_SPEEDS",
    "CacheLayout",
    "CacheShape",
    "DeploymentPlan",
    "Fit",
    "JobPlan",
    "MemoryEstimate",
    "MemorySaving",
    "ParameterCounts",
    "PeakSpeed",
    "PipelineEstimate",
    "Quantization",
    "ServedModel",
    "ServingPlan",
    "check_quantization",
    "count_by_component",
    "count_parameters",
    "device_peak_flops_per_s",
    "estimate_memory",
    "estimate_pipeline",
    "fitting_advice",
    "forward_flops_per_token",
    "gpu_memory_bytes",
    "matrix_parameters_per_token",
    "memory_advice",
    "memory_savings",
    "model_flops_per_token",
    "narrower_plans",
    "plan_deployment",
    "plan_job",
    "plan_serving",
    "read_model_config",
    "read_model_shape",
    "read_quantization",
    "read_served_model",
    "what_fits",
    "widest_that_fits",
]
