"""Files that torch.save wrote: what is read, and what is refused before it could run."""

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from rayline.checkpoint.torch_file import read_torch_file
from rayline.errors import CheckpointError


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


class OwnState:
    """Harmless, and still a class that reading would have to make."""


def saved(path: Path, value: object, **how: Any) -> Path:
    torch.save(value, path, **how)
    return path


def test_tensors_and_plain_containers_are_read(tmp_path: Path) -> None:
    value = {
        "param": torch.arange(6.0).reshape(2, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0]}],
        "shapes": [OrderedDict(a=torch.Size([2, 3]))],
        "names": {"a"},
        "step": 7,
        "nothing": None,
    }
    found = read_torch_file(saved(tmp_path / "x.pt", value))
    assert isinstance(found, dict)
    assert torch.equal(found.pop("param"), value.pop("param"))
    assert torch.equal(found.pop("half"), value.pop("half"))
    assert found == value


def test_a_bare_number_and_a_parameter_are_read(tmp_path: Path) -> None:
    assert read_torch_file(saved(tmp_path / "step.pt", 3)) == 3
    found = read_torch_file(saved(tmp_path / "p.pt", torch.nn.Parameter(torch.ones(2))))
    assert isinstance(found, torch.Tensor)


def test_code_is_named_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    file = saved(tmp_path / "x.pt", {"param": torch.ones(2), "extra": Hostile(mark)})
    with pytest.raises(CheckpointError, match=r"x\.pt: names posix\.system") as caught:
        read_torch_file(file)
    assert not mark.exists()
    assert caught.value.exit_code == 5


def test_what_the_process_has_allowed_elsewhere_is_refused_here(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.pt", [OwnState()])
    with (
        torch.serialization.safe_globals([OwnState]),
        pytest.raises(CheckpointError, match="OwnState"),
    ):
        read_torch_file(file)


def test_names_told_by_a_stack_are_refused(tmp_path: Path) -> None:
    """Protocol 4 names functions by what lies on the stack, where no list of names shows them."""
    mark = tmp_path / "ran"
    file = saved(tmp_path / "x.pt", Hostile(mark), pickle_protocol=4)
    with pytest.raises(CheckpointError, match="STACK_GLOBAL"):
        read_torch_file(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing", "No such file"),
        ("pickle", "not a file that torch.save wrote"),
        ("torn", "not a file that torch.save wrote"),
        ("torn pickle", "not a file that torch.save wrote"),
        ("link", "not a regular file"),
        ("legacy", "not a file that torch.save wrote"),
        ("packed", "compressed"),
        ("two pickles", "other pickles"),
    ],
)
def test_what_torch_save_did_not_write_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    good, file = saved(tmp_path / "good.pt", {"param": torch.ones(500)}), tmp_path / "x.pt"
    if name == "pickle":
        file.write_bytes(pickle.dumps({"param": 1}))
    elif name == "torn":
        file.write_bytes(good.read_bytes()[:900])
    elif name == "link":
        file.symlink_to(good)
    elif name == "legacy":
        saved(file, {"param": torch.ones(2)}, _use_new_zipfile_serialization=False)
    elif name != "missing":
        packing = zipfile.ZIP_DEFLATED if name == "packed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(file, "w", packing) as new:
            for record in old.namelist():
                content = old.read(record)
                torn = name == "torn pickle" and record.endswith(".pkl")
                new.writestr(record, content[:20] if torn else content)
            if name == "two pickles":
                new.writestr("other/data.pkl", pickle.dumps(1))
    with pytest.raises(CheckpointError, match=problem):
        read_torch_file(file)
