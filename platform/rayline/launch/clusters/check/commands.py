"""What is wrong in the commands of a `ray up` file, and in what travels to the nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from rayline.launch.clusters.check.flaw import Flaw, Tree, mapping, sequence
from rayline.launch.clusters.pins import RAY_VERSION

_NIGHTLY = re.compile(r"ray-wheels|3\.0\.0\.dev0|ray-nightly")
_RAY_INSTALL = re.compile(
    r"pip3? install[^;&|]*?[\s'\"](?:-U\s+)?ray(?:\[[\w,]*\])?(?P<pin>==[\w.]+)?(?=[\s'\";]|$)"
)
_STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
_TOKEN = "RAY_AUTH_MODE=token"  # noqa: S105  a setting's name
_TOKEN_FILE = "auth_token"  # noqa: S105  a file's name


def image_flaws(tree: Tree) -> Iterator[Flaw]:
    """A container image that is another one tomorrow."""
    docker = mapping(tree.get("docker"))
    for key in ("image", "head_image", "worker_image"):
        image = docker.get(key)
        if isinstance(image, str) and not pinned(image):
            yield Flaw(
                "image-not-pinned",
                f"docker.{key}",
                "without a tag of one build, nodes made later run other software",
                f"name a tag, such as {image.partition(':')[0]}:{RAY_VERSION}",
                value=image,
            )


def pinned(image: str) -> bool:
    """Whether an image's name means one build: a digest, or a tag that is not known to move."""
    if "@sha256:" in image:
        return True
    tag = image.rpartition("/")[2].partition(":")[2]
    return tag not in ("", "latest", "nightly") and not tag.startswith(("latest-", "nightly-"))


def setup_flaws(tree: Tree) -> Iterator[Flaw]:
    """What the nodes would install."""
    kind = mapping(tree.get("provider")).get("type")
    setup = _commands(tree, "setup_commands")
    everything = [
        *((f"setup_commands[{index}]", each) for index, each in enumerate(setup)),
        *(
            (f"{key}[{index}]", each)
            for key in ("head_setup_commands", "worker_setup_commands")
            for index, each in enumerate(_commands(tree, key))
        ),
    ]
    if "setup_commands" not in tree and kind in ("aws", "gcp", "azure"):
        yield Flaw(
            "nightly-by-default",
            "setup_commands",
            "not given: Ray's defaults install a nightly build of Ray (3.0.0.dev0)",
            "write them, as cluster/aws.yaml does; [] installs nothing",
        )
    for field, command in everything:
        if _NIGHTLY.search(command):
            yield Flaw(
                "nightly",
                field,
                "installs a nightly build of Ray",
                f"install ray=={RAY_VERSION}, the locked version",
                value=command,
            )
            continue
        found = _RAY_INSTALL.search(command)
        if found is not None and found["pin"] is None:
            yield Flaw(
                "ray-not-pinned",
                field,
                "installs the newest Ray: nodes made later would refuse to join",
                f"install ray=={RAY_VERSION}",
                value=command,
            )
        elif found is not None and found["pin"] != f"=={RAY_VERSION}":
            yield Flaw(
                "another-ray",
                field,
                "another Ray than the one here: Ray refuses clients of another version",
                f"install ray=={RAY_VERSION}",
                value=found["pin"].lstrip("="),
                allowed=RAY_VERSION,
            )


def start_flaws(tree: Tree) -> Iterator[Flaw]:
    """How Ray is started on the nodes."""
    if mapping(tree.get("provider")).get("type") not in ("aws", "gcp", "azure", "local"):
        return
    tokens = {}
    for key in _STARTS:
        if key not in tree:
            yield Flaw(
                "no-token",
                key,
                "not given: Ray's default starts without token authentication",
                "write it, as cluster/aws.yaml does",
            )
            continue
        starts = [each for each in _commands(tree, key) if "ray start" in each]
        if not starts:
            yield Flaw("no-start", key, "starts no Ray", "add a `ray start` command")
            continue
        tokens[key] = any(_TOKEN in each for each in starts)
        if not tokens[key]:
            yield Flaw(
                "no-token",
                key,
                "starts Ray without token authentication: whoever reaches its ports runs code",
                "begin the command with `export RAY_AUTH_MODE=token;`",
                value=starts[0],
            )
        yield from _one_start(key, " ".join(starts))
    mounts = mapping(tree.get("file_mounts"))
    if any(tokens.values()) and not any(_TOKEN_FILE in str(each) for each in mounts):
        yield Flaw(
            "token-stays-here",
            "file_mounts",
            "nodes are started with a token, and none travels to them: each would make its own",
            "~/.ray/auth_token: ~/.ray/auth_token",
        )


def _one_start(key: str, command: str) -> Iterator[Flaw]:
    if key == "head_start_ray_commands":
        if "--head" not in command:
            yield Flaw("head-not-head", key, "the head is not started as one", "add --head")
        if "--autoscaling-config" not in command:
            yield Flaw(
                "no-autoscaling-config",
                key,
                "without it the head scales nothing: no worker would ever start",
                "add --autoscaling-config=~/ray_bootstrap_config.yaml",
            )
        if re.search(r"--dashboard-host[= ]0\.0\.0\.0", command):
            yield Flaw(
                "dashboard-open",
                key,
                "the dashboard and the job server listen on every network",
                "--dashboard-host=127.0.0.1; `ray dashboard` tunnels to it",
                value="0.0.0.0",  # noqa: S104  what was found
                allowed="127.0.0.1",
            )
    elif "RAY_HEAD_IP" not in command:
        yield Flaw(
            "worker-without-head",
            key,
            "workers are not told where the head is",
            "ray start --address=$RAY_HEAD_IP:6379",
        )


def mount_flaws(tree: Tree, exists: Callable[[str], bool]) -> Iterator[Flaw]:
    """What is copied to the nodes; `exists` says whether a local path is there."""
    for remote, local in mapping(tree.get("file_mounts")).items():
        field = f"file_mounts.{remote}"
        if str(local).rstrip("/") in (".", "./", "$PWD"):
            yield Flaw(
                "mounts-everything",
                field,
                "the whole folder travels, with .venv, runs and .git, and is hashed at every `up`",
                "mount what the nodes need, as cluster/aws.yaml does",
                value=str(local),
            )
        elif _TOKEN_FILE not in str(local) and not exists(str(local)):
            yield Flaw(
                "nothing-to-mount",
                field,
                "no such file or folder here",
                "mend the path",
                value=str(local),
            )


def _commands(tree: Tree, key: str) -> list[str]:
    return [str(each) for each in sequence(tree.get(key))]
