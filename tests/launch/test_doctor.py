"""What the doctor makes of facts, of this machine's and of others'."""

import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rayline.launch import Finding, doctor
from rayline.launch.doctor import (
    address_findings,
    collectives_finding,
    compiler_finding,
    cpu_finding,
    gpu_finding,
    python_finding,
    space_finding,
    store_finding,
    token_finding,
    tracking_finding,
)


def named(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_this_machine_is_looked_at_whole_and_nothing_raises(tmp_path: Path) -> None:
    findings = doctor(folder=tmp_path)
    names = {finding.name for finding in findings}
    assert {"python", "ray", "torch", "vllm", "gpu", "cpu", "token", "disk", "tracking"} <= names
    assert named(findings, "ray").level == "ok"
    assert all(finding.fix for finding in findings if finding.level != "ok")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("", 8000))
            holder.listen()
        except OSError:
            pass  # Somebody else holds it: as good.
        finding = named(doctor(folder=tmp_path), "port 8000")
    assert finding.level == "warning"
    assert "Ray Serve" in finding.text


def test_a_cluster_that_does_not_answer_is_told(tmp_path: Path) -> None:
    finding = named(doctor(address="http://127.0.0.1:1", folder=tmp_path), "cluster")
    assert finding.level == "error"
    assert "does not answer" in finding.text


@pytest.mark.parametrize(
    ("found", "level"), [("3.11.7", "ok"), ("3.12.1", "ok"), ("3.10.2", "error")]
)
def test_python(found: str, level: str) -> None:
    assert python_finding(found).level == level


@pytest.mark.parametrize(
    ("listing", "level"),
    [
        (None, "ok"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the driver.", "error"),
        ("", "error"),
    ],
)
def test_gpu(listing: str | None, level: str) -> None:
    assert gpu_finding(listing).level == level


def test_a_compiler_is_wanted_by_jobs_that_compile_alone() -> None:
    assert compiler_finding("/usr/bin/g++") == Finding("compiler", "ok", "/usr/bin/g++")
    missing = compiler_finding(None)
    assert (missing.level, "`compile`" in missing.text, "CXX" in missing.fix) == ("ok", True, True)


def test_a_gpu_is_counted() -> None:
    line = "NVIDIA H200, 143771 MiB, 580.95.05"
    assert f"2 x {line}" in gpu_finding(f"{line}\n{line}\n").text


@pytest.mark.parametrize(
    ("flags", "words", "level"),
    [
        ({"avx2", "avx512f", "avx512_bf16", "amx_bf16"}, "AMX", "ok"),
        ({"avx2", "avx512f", "avx512_bf16"}, "AVX-512 and bf16", "ok"),
        ({"avx2"}, "no bf16", "ok"),
        ({"sse2"}, "without AVX2", "warning"),
    ],
)
def test_cpu(flags: set[str], words: str, level: str) -> None:
    finding = cpu_finding(frozenset(flags))
    assert words in finding.text
    assert finding.level == level


def test_an_address_that_the_environment_overrides_is_an_error() -> None:
    other = {"RAY_ADDRESS": "http://10.0.0.2:8265"}
    (finding,) = address_findings("http://10.0.0.1:8265", other)
    assert (finding.level, finding.fix) == ("error", "unset RAY_ADDRESS")
    (finding,) = address_findings("10.0.0.2:8265", other)
    assert finding.level == "ok"
    assert list(address_findings(None, {})) == []
    (finding,) = address_findings(None, {"RAY_AUTH_MODE": "disabled"})
    assert finding.level == "warning"
    (finding,) = address_findings(None, {"RAY_AUTH_MODE": "token"})
    assert finding.level == "ok"
    (finding,) = address_findings(None, {"RAY_AUTH_MODE": "tokens"})
    assert finding.level == "error"


def test_a_token_that_others_can_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "auth_token"
    assert token_finding(file).level == "ok"
    file.write_text("secret")
    file.chmod(0o644)
    assert token_finding(file).fix == f"chmod 600 {file}"
    assert "secret" not in token_finding(file).text
    file.chmod(0o600)
    assert token_finding(file).level == "ok"


def test_space() -> None:
    assert space_finding("disk", 20 * 2**30, 10 * 2**30).level == "ok"
    finding = space_finding("/dev/shm", 64 * 2**20, 2**30)
    assert finding.level == "warning"
    assert "shm-size" in finding.fix


def test_a_store_that_is_no_database_is_told(tmp_path: Path) -> None:
    assert store_finding("sqlite:///mlflow.db", tmp_path).level == "ok"
    (tmp_path / "mlflow.db").write_text("this is not a database, whatever its name says" * 20)
    assert store_finding("sqlite:///mlflow.db", tmp_path).level == "error"
    (tmp_path / "mlflow.db").unlink()
    sqlite3.connect(tmp_path / "mlflow.db").execute("CREATE TABLE runs (id)")
    assert store_finding("sqlite:///mlflow.db", tmp_path).level == "ok"


@contextmanager
def answering(status: int, text: str) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "text", "level", "words"),
    [
        (200, "OK", "ok", "answers"),
        (401, "", "warning", "asks who you are"),
        (200, "<html>", "error", "not as MLflow does"),
        (502, "", "error", "answers 502"),
    ],
)
def test_an_mlflow_server_is_asked(
    status: int, text: str, level: str, words: str, tmp_path: Path
) -> None:
    with answering(status, text) as uri:
        finding = tracking_finding(uri, tmp_path)
    assert (finding.level, words in finding.text) == (level, True)
    assert bool(finding.fix) == (level != "ok")


def test_an_mlflow_server_that_is_not_there(tmp_path: Path) -> None:
    assert tracking_finding("http://127.0.0.1:9", tmp_path).level == "error"
    assert tracking_finding("databricks", tmp_path).level == "ok"


def test_what_ranks_meet_over() -> None:
    assert "gloo" in collectives_finding(False, None).text
    assert collectives_finding(True, "2.30.1").text == "NCCL 2.30.1"
    assert collectives_finding(True, None).level == "error"
