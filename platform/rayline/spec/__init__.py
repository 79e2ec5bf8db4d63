"""Frozen values that every room speaks of: specs, plans, references, reports. No torch, no Ray."""

from rayline.spec.access import KeySpec, Limits, UsageQuery
from rayline.spec.adapter import AdapterSource, AdapterSpec
from rayline.spec.cluster import (
    CLOUDS,
    CloudSpec,
    ClusterSpec,
    HeadRecoverySpec,
    HeadSpec,
    MountSpec,
    NodeGroup,
    OnPremisesSpec,
    Provider,
)
from rayline.spec.compilation import CompileSpec
from rayline.spec.data import DataSpec, MixturePart
from rayline.spec.document import Document
from rayline.spec.evaluation import EvaluationSpec
from rayline.spec.fault import Fault, FaultKind, FaultPhase
from rayline.spec.gateway import GatewaySpec
from rayline.spec.job import (
    CheckpointSpec,
    ExportSpec,
    JobSpec,
    ResourceSpec,
    TrackingSpec,
)
from rayline.spec.job_file import CheckpointSource
from rayline.spec.kubernetes import KubernetesSpec, RunSpec
from rayline.spec.manifest import FORMAT_VERSION, CheckpointManifest, ShardFile, TensorPiece
from rayline.spec.model import ModelRef, ModelShape
from rayline.spec.offload import OffloadSpec
from rayline.spec.optim import (
    AdadeltaSpec,
    AdafactorSpec,
    AdagradSpec,
    Adam8bitSpec,
    AdamWSpec,
    AnyOptimSpec,
    GroupSpec,
    LambSpec,
    LionSpec,
    MuonSpec,
    OptimSpec,
    RmspropSpec,
    SgdSpec,
)
from rayline.spec.plan import AXES, Axis, ContextMethod, Coordinate, ParallelPlan
from rayline.spec.profile import ProfileSpec, profile_overrides
from rayline.spec.recovery import RecoverySpec
from rayline.spec.rehearsal import RehearsalSpec
from rayline.spec.requests import RequestLimits
from rayline.spec.rollout import GatesSpec, LatencyGate, RolloutSpec
from rayline.spec.scale import ScaleSpec
from rayline.spec.schedule import PlateauSchedule, ScheduleSpec
from rayline.spec.serve import ServeSpec
from rayline.spec.serve_engine import Device, EngineSpec, Role, SplitSpec
from rayline.spec.speculation import SpeculationSpec
from rayline.spec.stages import SCHEDULES, ForwardCost, Schedule, forward_cost
from rayline.spec.step import (
    NO_TARGET,
    AverageSpec,
    BatchSpec,
    GuardSpec,
    ObjectiveSpec,
    RampSpec,
)
from rayline.spec.tune import Range, TuneSpec
from rayline.spec.tune_rules import (
    AshaSpec,
    BudgetSpec,
    GoalSpec,
    HyperbandSpec,
    MedianSpec,
    PopulationSpec,
    PruneSpec,
)
from rayline.spec.worker import (
    EvalReport,
    ExportReport,
    RoutingReport,
    SnapshotMark,
    StepParts,
    StepReport,
    TrainResult,
    WorkerContext,
    Yardstick,
)

__all__ = [
    "AXES",
    "CLOUDS",
    "FORMAT_VERSION",
    "NO_TARGET",
    "SCHEDULES",
    "AdadeltaSpec",
    "AdafactorSpec",
    "AdagradSpec",
    "Adam8bitSpec",
    "AdamWSpec",
    "AdapterSource",
    "AdapterSpec",
    "AnyOptimSpec",
    "AshaSpec",
    "AverageSpec",
    "Axis",
    "BatchSpec",
    "BudgetSpec",
    "CheckpointManifest",
    "CheckpointSource",
    "CheckpointSpec",
    "CloudSpec",
    "ClusterSpec",
    "CompileSpec",
    "ContextMethod",
    "Coordinate",
    "DataSpec",
    "Device",
    "Document",
    "EngineSpec",
    "EvalReport",
    "EvaluationSpec",
    "ExportReport",
    "ExportSpec",
    "Fault",
    "FaultKind",
    "FaultPhase",
    "ForwardCost",
    "GatesSpec",
    "GatewaySpec",
    "GoalSpec",
    "GroupSpec",
    "GuardSpec",
    "HeadRecoverySpec",
    "HeadSpec",
    "HyperbandSpec",
    "JobSpec",
    "KeySpec",
    "KubernetesSpec",
    "LambSpec",
    "LatencyGate",
    "Limits",
    "LionSpec",
    "MedianSpec",
    "MixturePart",
    "ModelRef",
    "ModelShape",
    "MountSpec",
    "MuonSpec",
    "NodeGroup",
    "ObjectiveSpec",
    "OffloadSpec",
    "OnPremisesSpec",
    "OptimSpec",
    "ParallelPlan",
    "PlateauSchedule",
    "PopulationSpec",
    "ProfileSpec",
    "Provider",
    "PruneSpec",
    "RampSpec",
    "Range",
    "RecoverySpec",
    "RehearsalSpec",
    "RequestLimits",
    "ResourceSpec",
    "RmspropSpec",
    "Role",
    "RolloutSpec",
    "RoutingReport",
    "RunSpec",
    "ScaleSpec",
    "Schedule",
    "ScheduleSpec",
    "ServeSpec",
    "SgdSpec",
    "ShardFile",
    "SnapshotMark",
    "SpeculationSpec",
    "SplitSpec",
    "StepParts",
    "StepReport",
    "TensorPiece",
    "TrackingSpec",
    "TrainResult",
    "TuneSpec",
    "UsageQuery",
    "WorkerContext",
    "Yardstick",
    "forward_cost",
    "profile_overrides",
]
