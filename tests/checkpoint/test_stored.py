"""What a shard's header says is believed only where it goes together; parts are the library's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rayline.checkpoint.stored import NotSafetensors, stored_tensors


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 5), max_size=3))
def test_any_part_of_what_the_library_wrote(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, shape: list[int]
) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool]))
    whole = torch.randint(0, 100, shape).to(dtype)
    file = tmp_path_factory.mktemp("shard") / "rank-00000.safetensors"
    file.write_bytes(save({"other": torch.ones(3), "w": whole}))
    spans = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in shape]
    places = tuple(slice(first, max(last, first)) for first, last in spans)
    stored = stored_tensors(file)
    assert stored.keys() == {"other", "w"}
    assert stored["w"].shape == tuple(shape)
    if all(place.start < place.stop for place in places):
        assert torch.equal(stored["w"].part(places), whole[places])


def shard(tmp_path: Path, header: bytes, length: int | None = None) -> Path:
    file = tmp_path / "rank-00000.safetensors"
    told = len(header) if length is None else length
    file.write_bytes(told.to_bytes(8, "little") + header + bytes(16))
    return file


FITS = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "F64"},
        {"dtype": "PICKLE"},
        {"dtype": ["F32"]},
        {"shape": [2, 3]},
        {"shape": [-2, -2]},
        {"shape": [2.0, 2.0]},
        {"shape": [True, 4]},
        {"shape": 4},
        {"shape": [1 << 62, 4]},
        {"data_offsets": [0, 12]},
        {"data_offsets": [4, 20]},
        {"data_offsets": [-8, 8]},
        {"data_offsets": [0]},
        {"data_offsets": None},
    ],
)
def test_an_entry_whose_parts_do_not_go_together_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    stored = stored_tensors(shard(tmp_path, json.dumps({"w": FITS}).encode()))
    assert stored["w"].part((slice(0, 2), slice(0, 2))).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(NotSafetensors):
        stored_tensors(shard(tmp_path, json.dumps({"w": FITS | changes}).encode()))


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"", 1 << 62),
        (b"", 1 << 20),
        (b"{", None),
        (b"[]", None),
        (b'{"w": null}', None),
        (b'{"w": {}}', None),
        (b"\xff\xfe", None),
        (b"[" * 200_000, None),
    ],
)
def test_what_is_no_header_is_refused(tmp_path: Path, header: bytes, length: int | None) -> None:
    with pytest.raises(NotSafetensors):
        stored_tensors(shard(tmp_path, header, length))


def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rank-00000.safetensors"
    file.write_bytes(b"1234")
    with pytest.raises(NotSafetensors, match="too short"):
        stored_tensors(file)
