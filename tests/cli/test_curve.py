"""The loss curve: the terminal's blocks and the PNG."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rayline.cli.curve import draw_loss, overlay, sparkline
from rayline.spec import EvalReport, StepReport

BLOCKS = "▁▂▃▄▅▆▇█"


def report(step: int, loss: float) -> StepReport:
    return StepReport(
        step=step,
        loss=loss,
        grad_norm=1.0,
        lr=1e-3,
        tokens=64,
        processed_tokens=128,
        seconds=0.5,
        memory_bytes=1,
    )


def test_a_falling_loss_falls() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == BLOCKS[::-1]


def test_no_losses_draw_nothing() -> None:
    assert sparkline([]) == ""


def test_a_flat_loss_is_flat() -> None:
    assert sparkline([2.5] * 5) == BLOCKS[0] * 5


@given(
    st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=300),
    st.integers(min_value=1, max_value=80),
)
def test_the_line_fits_its_width_and_shows_the_extremes(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    assert set(line) <= set(BLOCKS)
    if len(set(line)) > 1:
        assert BLOCKS[0] in line
        assert BLOCKS[-1] in line


def test_the_png_is_written_below_a_folder_that_did_not_exist(tmp_path: Path) -> None:
    file = draw_loss(
        [report(step, 3.0 / step) for step in range(1, 9)], "demo", tmp_path / "run" / "loss.png"
    )
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 5_000


def test_evaluations_are_drawn_beside_the_training(tmp_path: Path) -> None:
    reports = [report(step, 3.0 / step) for step in range(1, 9)]
    plain = draw_loss(reports, "demo", tmp_path / "plain.png").read_bytes()
    held_out = EvalReport(step=4, loss=1.2, tokens=64, sequences=2, seconds=0.1)
    reports[3] = replace(reports[3], evaluations=(held_out,))
    watched = draw_loss(reports, "demo", tmp_path / "watched.png").read_bytes()
    assert watched.startswith(b"\x89PNG")
    assert watched != plain
    assert draw_loss(reports, "demo", tmp_path / "again.png").read_bytes() == watched


def test_two_curves_share_their_steps_and_their_scale() -> None:
    a, b = overlay([8, 8, 8, 8], [1, 1])
    assert (a, b) == (BLOCKS[-1] * 4, BLOCKS[0] * 2)
    assert overlay([3, 3], [3, 3]) == (BLOCKS[0] * 2, BLOCKS[0] * 2)
    assert overlay([1, float("nan"), 2], [1, 1, 2])[0] == f"{BLOCKS[0]} {BLOCKS[-1]}"


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300),
    st.integers(1, 80),
)
def test_two_curves_fit_the_width(a: list[float], b: list[float], width: int) -> None:
    for line in overlay(a, b, width):
        assert 1 <= len(line) <= width
