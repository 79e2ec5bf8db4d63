"""`ray up` end to end for machines of one's own, from a spec to its end: every machine is this one,
and ssh and rsync are programs that do here what they would do there."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayline.launch.clusters.made_up_cluster import MARK, free_ports, marked

pytestmark = [pytest.mark.ray, pytest.mark.engines]

ROOT = Path(__file__).resolve().parents[3]
SPEC = """
name: {name}
provider: on-premises
autoscaler: v1
machines:
  head: 127.0.0.1
  workers: [127.0.0.2]
  ssh_private_key: {home}/key
  python: python3
"""
NODES = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps(sum(node["Alive"] for node in ray.nodes())))
"""
PROGRAMS = {
    # What stands behind the address is joined and read by the other machine's shell.
    "ssh": """
        while [ $# -gt 0 ]; do
          word="$1"; shift
          case "$word" in *@127.0.0.*) export OWN_NODE="${word#*@}"; exec bash -c "$*";; esac
        done
        """,
    "rsync": """
        from="${@: -2:1}"; to="${@: -1}"; to="${to#*@127.0.0.?:}"
        from="${from/#\\~/$HOME}"; to="${to/#\\~/$HOME}"
        [ "$from" -ef "$to" ] && exit 0
        mkdir -p "$(dirname "$to")"; case "$from" in */) mkdir -p "$to"; from="$from.";; esac
        exec cp -r "$from" "$to"
        """,
    # The packages are here; a test has no minutes to install them once more.
    "dpkg": "exit 0",
    "make": 'echo "make $*" >> "$HOME/made"',
    # `ray stop` ends every Ray of a machine: here, of that machine only. The ports that the files
    # name may be taken here by somebody else's Ray.
    "ray": """
        if [ "$1" = stop ]; then exec {python} {home}/stop.py; fi
        words=("${@//6379/{store}}")
        if [ "$1" = start ]; then words+=(--dashboard-agent-listen-port=0); fi
        case " $* " in *" --head "*) words+=(--temp-dir={session} --dashboard-port={dashboard}
        --ray-client-server-port={client});; esac
        if [ "$1" = status ]; then export RAY_ADDRESS=127.0.0.1:{store}; fi
        exec {python} -c 'from ray.scripts.scripts import main; main()' "${words[@]}"
        """,
    "rayline": """
        exec {python} -c 'from rayline.cli import main; main()' "${@//8265/{dashboard}}"
        """,
}
STOP = f"""
import os, psutil
mine = [os.getpid(), *(each.pid for each in psutil.Process().parents())]
theirs = []
for process in psutil.process_iter():
    try:
        told = process.environ()
    except psutil.Error:
        continue
    here = all(told.get(name) == os.environ.get(name) for name in ({MARK!r}, "OWN_NODE"))
    if here and process.pid not in mine:
        theirs.append(process)
for process in theirs:
    process.terminate()
for process in psutil.wait_procs(theirs, timeout=10)[1]:
    process.kill()
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    mark = str(uuid.uuid4())
    # Ray remembers a cluster of such machines by its name, beside its sessions.
    name = f"own-{mark[:8]}"
    programs = tmp_path / "programs"
    programs.mkdir()
    # Sockets lie below it, and their paths may have 107 characters.
    session = tempfile.mkdtemp(prefix="ray-")
    store, dashboard, client = free_ports(3)
    places = {
        "{python}": sys.executable,
        "{home}": str(tmp_path),
        "{session}": session,
        "{store}": str(store),
        "{dashboard}": str(dashboard),
        "{client}": str(client),
    }
    for name, text in PROGRAMS.items():
        body = textwrap.dedent(text).strip()
        for place, value in places.items():
            body = body.replace(place, value)
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "stop.py").write_text(STOP)
    (tmp_path / "key").write_text("no key: nobody asks for one")
    path = f"{programs}:{os.environ['PATH']}"
    (tmp_path / ".bashrc").write_text(f'export PATH="{path}"\n')
    (tmp_path / "spec.yaml").write_text(SPEC.format(home=tmp_path, name=name))
    yield {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "HOME": str(tmp_path),
        "PATH": path,
        "PYTHONPATH": str(ROOT / "platform"),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        MARK: mark,
        "STORE": f"127.0.0.1:{store}",
    }
    for kept in Path(tempfile.gettempdir(), "ray").glob(f"cluster-{name}.*"):
        kept.unlink()
    left = marked(mark)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    shutil.rmtree(session, ignore_errors=True)


def say(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from rayline.cli import main; main()", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_up_two_machines_status_and_down(environment: dict[str, str], tmp_path: Path) -> None:
    spec = str(tmp_path / "spec.yaml")
    up = say(environment, "cluster", "up", spec, "--yes")
    assert up.returncode == 0, up.stdout + up.stderr
    # The token that was made for the cluster is its owner's alone, and opened it.
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
    made = (tmp_path / "made").read_text().splitlines()
    assert made[0] == "make setup PYTHON=python3"
    assert (tmp_path / "rayline" / "platform" / "rayline" / "errors.py").is_file()
    # What the head's own doctor said came back over ssh.
    assert "port 6379" in up.stdout
    nodes, deadline_s = 0, time.monotonic() + 60
    while nodes < 2:
        assert time.monotonic() < deadline_s, f"{nodes} of 2 machines joined"
        told = subprocess.run(
            [sys.executable, "-c", NODES, environment["STORE"]],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        nodes = json.loads(told.stdout.splitlines()[-1]) if told.returncode == 0 else 0
        time.sleep(0.5)
    status = say(environment, "cluster", "status", spec)
    assert status.returncode == 0, status.stdout + status.stderr
    assert "Autoscaler status" in status.stdout
    down = say(environment, "cluster", "down", spec, "--yes")
    assert down.returncode == 0, down.stdout + down.stderr
    # `ray down` ends the head alone; the other machine's Ray ends once it misses the head.
    left = psutil.wait_procs(marked(environment[MARK]), timeout=90)[1]
    # Ray's log monitor there goes on for minutes: it waits for a head that comes back.
    assert all("log_monitor.py" in " ".join(process.cmdline()) for process in left)
    assert not list((tmp_path / ".rayline" / "clusters").glob("*/*.yaml"))
