"""A job on a Ray cluster: placement, one worker per rank, failures, and the driver of it all.

train(job) ── Placement ── Gang ── Worker ── rayline.train.loop.run_rank
                 │           │
                 └─ Controller ─┘   (decisions: bundles, seating, failure: plain functions)
"""

from rayline.actors.bundles import trial_bundles
from rayline.actors.cluster import cluster_autoscales, ensure_ray, join_ray, nodes
from rayline.actors.driver import JobOutcome, job_of_run, train
from rayline.actors.placement import refuse_impossible, why_waiting
from rayline.launch.capacity import Node, shortage

__all__ = [
    "JobOutcome",
    "Node",
    "cluster_autoscales",
    "ensure_ray",
    "job_of_run",
    "join_ray",
    "nodes",
    "refuse_impossible",
    "shortage",
    "train",
    "trial_bundles",
    "why_waiting",
]
