"""The KubeRay manifests against the operator's own schemas, and against our specs."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import rayline
from rayline.launch.clusters import tree_of
from rayline.launch.clusters.check import check_file
from rayline.spec import ClusterSpec, GatewaySpec, JobSpec, ServeSpec

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
SCHEMAS = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayService": "ray.io_rayservices.yaml",
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def strict(schema: Any) -> Any:
    """The schema as the API server's strict field validation reads it: a key that is not listed is
    an error, and a quantity may be a number or text."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
    if isinstance(made.get("properties"), dict) and "type" in made:
        made.setdefault("additionalProperties", False)
    return made


def manifest(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return tree


def cluster_spec(tree: dict[str, Any]) -> dict[str, Any]:
    """The part that describes the Ray cluster, which each kind keeps elsewhere."""
    spec: dict[str, Any] = tree["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.fixture(scope="module")
def validators(shared_data: Path) -> dict[str, jsonschema.Draft202012Validator]:
    made = {}
    for kind, file in SCHEMAS.items():
        # The C parser reads these megabytes in a second, the Python one in fifteen.
        crd = yaml.load((shared_data / "kuberay-crds" / file).read_text(), yaml.CSafeLoader)
        stored = next(version for version in crd["spec"]["versions"] if version["storage"])
        schema = strict(stored["schema"]["openAPIV3Schema"])
        # `metadata` is an empty object here; the API server checks it by itself.
        schema["properties"]["metadata"] = {"type": "object"}
        made[kind] = jsonschema.Draft202012Validator(schema)
    return made


def test_every_kind_is_tested() -> None:
    assert {manifest(name)["kind"] for name in NAMES} == set(SCHEMAS)


@pytest.mark.parametrize("name", NAMES)
class TestManifest:
    def test_the_operator_accepts_it(self, name: str, validators: dict[str, Any]) -> None:
        tree = manifest(name)
        errors = [
            f"{error.json_path}: {error.message}"
            for error in validators[tree["kind"]].iter_errors(tree)
        ]
        assert errors == []

    def test_a_misspelt_key_would_be_found(self, name: str, validators: dict[str, Any]) -> None:
        tree = copy.deepcopy(manifest(name))
        cluster_spec(tree)["workerGroupSpecs"][0]["minReplica"] = 1
        assert not validators[tree["kind"]].is_valid(tree)

    def test_it_runs_the_locked_ray(
        self, name: str, locked: dict[str, dict[str, str]], validators: dict[str, Any]
    ) -> None:
        spec = cluster_spec(manifest(name))
        ray = locked["gpu"]["ray"]
        assert spec["rayVersion"] == ray
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        images = {
            container["image"]
            for group in groups
            for container in group["template"]["spec"]["containers"]
        }
        assert len(images) == 1, "head and workers must run one image"
        # The image that the Dockerfile builds from that lock: what trains and what serves is alike.
        lock = "gpu" if "gpu" in str(spec["workerGroupSpecs"]) else "cpu"
        assert images == {f"rayline:{rayline.__version__}-ray{ray}-{lock}"}
        assert locked[lock]["ray"] == ray

    def test_every_group_says_how_many(self, name: str) -> None:
        for group in cluster_spec(manifest(name))["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert group["maxReplicas"] > 0

    def test_it_asks_for_tokens(self, name: str) -> None:
        assert cluster_spec(manifest(name))["authOptions"]["mode"] == "token"

    def test_the_check_finds_nothing(self, name: str) -> None:
        assert check_file(FOLDER / f"{name}.yaml", ROOT) == []

    def test_gpus_and_memory_are_guaranteed(self, name: str) -> None:
        spec = cluster_spec(manifest(name))
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            for container in group["template"]["spec"]["containers"]:
                requests = container["resources"]["requests"]
                limits = container["resources"]["limits"]
                for resource in ("memory", "nvidia.com/gpu"):
                    assert requests.get(resource) == limits.get(resource)

    def test_the_first_lines_say_how_and_on_what(self, name: str) -> None:
        command, hardware = (FOLDER / f"{name}.yaml").read_text().splitlines()[:2]
        assert command.startswith(f"# kubectl apply -f cluster/kuberay/{name}.yaml")
        assert hardware.startswith("# ")
        assert "CPU" in hardware


GPUS = {"name": "g", "gpu": "H100", "gpus_per_node": 8, "max_nodes": 4}
FIXED = {**GPUS, "min_nodes": 4}
SERVED = {"name": "m", "model": {"hub": "a/b"}, "device": "gpu", "gateway": {"port": 8000}}


@pytest.mark.parametrize(
    "changes",
    [
        {
            "kubernetes": {"flavor": "eks", "namespace": "n"},
            "groups": [{**GPUS, "spot_share": 0.5}],
        },
        {
            "kubernetes": {"flavor": "aks"},
            "groups": [
                {**GPUS, "machine": "Standard_ND96isr_H100_v5", "fast_network": True},
                {"name": "spot", "cpus_per_node": 4, "max_nodes": 2, "spot_share": 1.0},
            ],
        },
        {"kubernetes": {"flavor": "gke"}, "groups": [{**GPUS, "labels": {"team": "a"}}]},
        {"kubernetes": {"queue": "q", "run": {"entrypoint": "true"}}, "groups": [FIXED]},
        {"kubernetes": {"gang_scheduler": "volcano", "run": {"entrypoint": "true"}}},
        {"kubernetes": {"serve": SERVED, "auth_secret": "s"}},
        {"head_recovery": {"store": "redis", "redis_address": "r:6379", "redis_secret": "s"}},
        {"head_recovery": {"store": "rocksdb"}, "storage": [{"path": "/mnt/a", "claim": "c"}]},
        {"storage": [{"path": "/mnt/a", "nfs": "server:/export"}], "autoscaler": "v1"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_whatever_a_spec_asks_for_the_operator_accepts(
    changes: dict[str, Any], validators: dict[str, Any]
) -> None:
    base = {"name": "a", "provider": "kuberay", "kubernetes": {}, "groups": [GPUS]}
    tree = tree_of(ClusterSpec.parse({**base, **changes}))
    errors = [
        f"{error.json_path}: {error.message}"
        for error in validators[tree["kind"]].iter_errors(tree)
    ]
    assert errors == []


def test_the_job_runs_a_spec_that_exists() -> None:
    python, script, option, spec = manifest("rayjob")["spec"]["entrypoint"].split()
    assert (python, option) == ("python", "--spec")
    assert (ROOT / script).is_file()
    JobSpec.load(ROOT / spec)


def test_the_service_serves_a_valid_spec() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    front, application = config["applications"]
    spec = ServeSpec.parse(application["args"])
    # The gateway answers HTTP itself, where KubeRay looks for Serve's proxy.
    assert config["proxy_location"] == "Disabled"
    assert front["import_path"] == "rayline.serving.app:build_front"
    assert GatewaySpec.parse(front["args"]) == spec.gateway
    assert application["name"] == spec.name
    assert application["import_path"] == "rayline.serving.app:build"


def test_the_service_has_a_gpu_for_every_replica() -> None:
    tree = manifest("rayservice")
    config = yaml.safe_load(tree["spec"]["serveConfigV2"])
    spec = ServeSpec.parse(config["applications"][1]["args"])
    gpus = sum(
        group["maxReplicas"]
        * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in cluster_spec(tree)["workerGroupSpecs"]
    )
    assert gpus >= spec.scale.max_replicas * spec.engine.tensor_parallel_size
