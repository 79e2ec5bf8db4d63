"""What the doctor makes of figures from nodes that are not at hand."""

from typing import Any

import pytest

from rayline.errors import RaylineError
from rayline.launch import Finding
from rayline.launch.node_health import node_findings
from rayline.launch.probes import MARK, measure_here
from rayline.launch.probing import document_in

H100 = "NVIDIA H100 80GB HBM3"
HERE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "rayline": "0.1.0"}


def node(letter: str, **more: Any) -> dict[str, Any]:
    return {
        "node_id": letter * 16,
        "address": f"10.0.0.{ord(letter) - 96}",
        "ray_gpus": 2.0,
        "host": letter,
        "python": "3.11.7",
        "versions": {"ray": "2.60.0", "torch": "2.13.0", "rayline": "0.1.0", "transformers": None},
        "cpus": 16,
        "gpus": [f"{H100}, 81559 MiB, 580.95.05"] * 2,
        "nccl": "2.28.9",
        "disk_free_bytes": 2**40,
        "shm_free_bytes": 2**35,
        "load": 0.5,
        "clock_ahead_s": 0.001,
        "clock_error_s": 0.002,
        "matmul": [gpu(0, 700), gpu(1, 690)],
        **more,
    }


def gpu(number: int, tflops: float) -> dict[str, Any]:
    return {
        "device": f"cuda:{number}",
        "name": H100,
        "precision": "bf16",
        "flops_per_s": tflops * 1e12,
    }


def found(*nodes: dict[str, Any], group: dict[str, Any] | None = None) -> list[Finding]:
    return list(node_findings({"nodes": nodes, "group": group}, HERE))


def wrong(findings: list[Finding]) -> list[tuple[str, str]]:
    assert all(each.fix for each in findings if each.level != "ok")
    return [(each.name, each.level) for each in findings if each.level != "ok"]


def test_nodes_that_are_well_are_told_in_a_few_lines() -> None:
    findings = found(node("a"), node("b"))
    assert wrong(findings) == []
    told = {each.name: each.text for each in findings}
    assert told["matmul"] == f"4 x {H100}: 695 TFLOP/s in bf16, 70% of its peak"
    assert told["clock"] == "2 nodes within 0.001 s"
    assert told["ray on the nodes"] == "2.60.0, as here"


def test_a_slow_node_is_named_by_comparison() -> None:
    findings = found(node("a"), node("b"), node("c", matmul=[gpu(0, 500), gpu(1, 700)]))
    assert wrong(findings) == [("slow node", "warning")]
    (slow,) = [each for each in findings if each.name == "slow node"]
    assert slow.text.startswith("node cccccccc (10.0.0.3) cuda:0: 500 TFLOP/s in bf16, 72%")
    assert "nvidia-smi" in slow.fix
    busy = node("c", matmul=[gpu(0, 500), gpu(1, 700)], load=30.0)
    (slow,) = [each for each in found(node("a"), node("b"), busy) if each.name == "slow node"]
    assert "load 30 on 16 cores" in slow.fix


def test_gpus_that_are_all_weak_are_measured_against_the_catalogue() -> None:
    weak = node("a", matmul=[gpu(0, 300), gpu(1, 310)])
    assert wrong(found(weak)) == [("slow gpu", "warning")] * 2
    assert "30% of the 990 TFLOP/s" in next(e.text for e in found(weak) if e.name == "slow gpu")
    held = node("a", matmul=[{**gpu(0, 1), "device": "cpu", "name": "x", "precision": "fp32"}])
    assert ("matmul", "warning") in wrong(found(held))


@pytest.mark.parametrize(
    ("change", "name", "level", "words"),
    [
        ({"python": "3.12.1"}, "python on the nodes", "error", "3.12.1 on node bbbbbbbb"),
        ({"versions": {"ray": "2.59.0"}}, "ray on the nodes", "error", "2.59.0 on node bbbbbbbb"),
        ({"clock_ahead_s": -2.0}, "clock", "warning", "is 2.0 s behind the head"),
        ({"clock_ahead_s": 60.0}, "clock", "error", "is 60.0 s ahead of the head"),
        ({"disk_free_bytes": 2**30}, "disk", "warning", "has 1.0 GiB free, 10 GiB wanted"),
        ({"shm_free_bytes": 2**26}, "shm", "warning", "0.1 GiB free, 1 GiB wanted"),
        ({"ray_gpus": 1.0}, "gpu", "warning", "has 2 GPUs and Ray knows 1"),
        ({"nccl": "2.27.0"}, "nccl", "error", "NCCL 2.27.0, 2.28.9"),
        ({"nccl": None}, "nccl", "error", "no NCCL"),
        ({"gpus": [f"{H100}, 81559 MiB, 570.1"] * 2}, "driver", "warning", "570.1, 580.95.05"),
    ],
)
def test_what_differs_on_one_node(
    change: dict[str, Any], name: str, level: str, words: str
) -> None:
    findings = found(node("a"), node("b", **change))
    assert (name, level) in wrong(findings)
    assert any(words in each.text for each in findings if each.name == name)


def test_a_cluster_of_other_versions_than_here_is_told() -> None:
    findings = list(node_findings({"nodes": [node("a")]}, {**HERE, "python": "3.12.4"}))
    assert wrong(findings) == [("python on the nodes", "warning")]
    # A clock that cannot be told more exactly than it is off is none.
    assert wrong(found(node("a", clock_ahead_s=0.7, clock_error_s=0.5))) == []


def test_a_node_that_does_not_answer_is_told_and_the_others_are_judged() -> None:
    silent = {"node_id": "b" * 16, "address": "10.0.0.2", "problem": "does not answer within 60 s"}
    findings = found(node("a"), silent)
    assert wrong(findings) == [("node", "error")]
    assert findings[0].text == "node bbbbbbbb (10.0.0.2): does not answer within 60 s"


def ring(*gb_per_s: float) -> dict[str, Any]:
    letters = "abcdefgh"[: len(gb_per_s)]
    return {
        "backend": "nccl",
        "bytes_per_s": 20e9,
        "links": [
            {
                "from": letter * 16,
                "to": letters[(n + 1) % len(letters)] * 16,
                "bytes_per_s": gb_per_s[n] * 1e9,
            }
            for n, letter in enumerate(letters)
        ],
    }


C, D = "node cccccccc (10.0.0.3)", "node dddddddd (10.0.0.4)"


@pytest.mark.parametrize(
    ("speeds", "named"),
    [
        ((20, 20), []),
        ((20, 19, 21), []),
        ((2, 20, 2.2), ["slow node: node aaaaaaaa (10.0.0.1): 2 GB/s both ways, 20 GB/s usual"]),
        (
            (20, 4, 4, 20),
            [f"slow node: {C}: 4 GB/s both ways, 20 GB/s usual"],
        ),
        ((20, 20, 4, 20), [f"slow link: {C} to {D}: 4 GB/s, 20 GB/s usual"]),
    ],
)
def test_a_slow_link_and_a_node_with_two_of_them(
    speeds: tuple[float, ...], named: list[str]
) -> None:
    nodes = [node(letter) for letter in "abcdefgh"[: len(speeds)]]
    findings = found(*nodes, group=ring(*speeds))
    told = [f"{each.name}: {each.text}" for each in findings if each.level != "ok"]
    assert told == named


def test_nodes_that_cannot_meet() -> None:
    findings = found(node("a"), node("b"), group={"backend": "gloo", "problem": "timed out"})
    assert wrong(findings) == [("all-reduce", "error")]
    assert "GLOO_SOCKET_IFNAME" in next(e.fix for e in findings if e.name == "all-reduce")


def test_the_document_is_found_in_a_log() -> None:
    log = f'Running entrypoint\nnoise\n{MARK}{{"nodes": [], "group": null}}\nmore noise\n'
    assert document_in(log) == {"nodes": [], "group": None}
    with pytest.raises(RaylineError, match="one / two"):
        document_in("one\ntwo\n")


def test_this_machine_is_measured() -> None:
    (facts,) = measure_here()["nodes"]
    assert facts["versions"]["ray"]
    assert all(each["flops_per_s"] > 1e8 for each in facts["matmul"])
    (matmul,) = {each.name for each in found(facts)} & {"matmul"}
    assert matmul == "matmul"
