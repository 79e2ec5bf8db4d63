"""The versions and images that every rendered cluster runs; tests compare them with the lock."""

from __future__ import annotations

from rayline import __version__
from rayline.spec import ClusterSpec

RAY_VERSION = "2.60.0"
PYTHON_ON_NODES = "python3.12"

AWS_IMAGE = (
    "resolve:ssm:/aws/service/deeplearning/ami/x86_64/"
    "base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
)
"""AWS's own base image: Ubuntu 24.04 (Python 3.12), the NVIDIA driver, EFA's driver and libraries.
AWS resolves the name in each region; an ami-... id holds one build of it."""
GCP_IMAGE = (
    "projects/ubuntu-os-accelerator-images/global/images/family/"
    "ubuntu-accelerator-2404-amd64-with-nvidia-580"
)
"""Canonical's image: Ubuntu 24.04 (Python 3.12) with NVIDIA driver 580. The family is renewed; an
image's full name holds one build of it."""
AZURE_IMAGE = "microsoft-dsvm:ubuntu-hpc:2404:24.04.2026072901"
"""Microsoft's image for GPU machines: Ubuntu 24.04 (Python 3.12) with NVIDIA driver 580."""
_MACHINE_IMAGES = {"aws": AWS_IMAGE, "gcp": GCP_IMAGE, "azure": AZURE_IMAGE}


def lock_of(spec: ClusterSpec) -> str:
    """Which of the two locks the nodes install: gpu as soon as one group has GPUs."""
    return "gpu" if any(group.gpu is not None for group in spec.groups) else "cpu"


def container_image(lock: str) -> str:
    """The image that cluster/Dockerfile builds from that lock."""
    return f"rayline:{__version__}-ray{RAY_VERSION}-{lock}"


def image_of(spec: ClusterSpec) -> str:
    """The image of every node: the spec's own, else the pinned one; empty where there is none."""
    if spec.image is not None:
        return spec.image
    if spec.provider == "kuberay":
        return container_image(lock_of(spec))
    return _MACHINE_IMAGES.get(spec.provider, "")
