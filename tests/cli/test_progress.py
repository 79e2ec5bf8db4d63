"""Progress in a pipe: plain lines, few of them, with what a person wants to know."""

from dataclasses import replace

import pytest

from rayline.cli.progress import LINE_INTERVAL_S, TrainProgress, eta_s, line_due, step_line
from rayline.cli.screen import Screen
from rayline.spec import EvalReport, RoutingReport, StepReport


def report(step: int, seconds: float = 0.5) -> StepReport:
    return StepReport(
        step=step,
        loss=2.0,
        grad_norm=1.25,
        lr=3e-4,
        tokens=64,
        processed_tokens=1024,
        seconds=seconds,
        memory_bytes=1,
    )


@pytest.mark.parametrize(
    ("step", "line_at_s", "now_s", "due"),
    [
        (1, None, 100.0, True),
        (2, 100.0, 100.0 + LINE_INTERVAL_S / 2, False),
        (3, 100.0, 100.0 + LINE_INTERVAL_S, True),
        (10, 100.0, 100.1, True),
    ],
)
def test_first_last_and_one_line_an_interval(
    step: int, line_at_s: float | None, now_s: float, due: bool
) -> None:
    assert line_due(step, 10, line_at_s, now_s) is due


def test_the_slow_first_step_does_not_spoil_the_estimate() -> None:
    assert eta_s([report(1, 60.0)], 11) == 600
    assert eta_s([report(1, 60.0), report(2, 1.0), report(3, 3.0)], 11) == pytest.approx(16)


def test_nothing_is_left_after_the_last_step() -> None:
    assert eta_s([report(1), report(2)], 2) == 0


def test_a_line_tells_step_loss_speed_and_time_left() -> None:
    assert step_line(report(12), 60, 75.2) == (
        "step 12/60  loss 2.0000  grad_norm 1.250  lr 3.00e-04  2,048 tokens/s  ETA 1:15"
    )


def test_a_line_tells_how_busy_the_devices_are_where_that_is_known() -> None:
    busy = replace(report(12), mfu=0.4123)
    assert "2,048 tokens/s  MFU 41.2%  ETA" in step_line(busy, 60, 75.2)


def test_a_line_tells_the_largest_load_of_a_mixture_of_experts() -> None:
    routed = replace(report(12), routing=RoutingReport(max_load=1.3333))
    assert "max_load 1.33  2,048 tokens/s" in step_line(routed, 60, 75.2)
    dropping = RoutingReport(max_load=1.3333, choices=800, dropped=25)
    assert "max_load 1.33  dropped 3.1%  2,048" in step_line(
        replace(routed, routing=dropping), 60, 75.2
    )
    assert "max_load" not in step_line(report(12), 60, 75.2)


def test_every_evaluation_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def evaluated(step: int) -> EvalReport:
        return EvalReport(step=step, loss=1.5, tokens=2048, sequences=8, seconds=0.1)

    with TrainProgress(Screen(json_wanted=False), 9, "train demo") as progress:
        progress(replace(report(1), evaluations=(evaluated(0), evaluated(1))))
        progress(replace(report(2), evaluations=(evaluated(2),)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "val_loss" in line]
    assert lines[0] == "step 0/9  val_loss 1.5000  val_perplexity 4.48  over 2,048 tokens"
    assert [line.split()[1] for line in lines] == ["0/9", "1/9", "2/9"]


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainProgress(Screen(json_wanted=False), 3, "train demo") as progress:
        for step in (1, 2, 3):
            progress(report(step))
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "train demo: starting workers"
    assert "step 1/3" in shown
    assert "step 3/3" in shown
    assert "\x1b" not in shown
    assert [kept.step for kept in progress.reports] == [1, 2, 3]


def test_with_json_stdout_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainProgress(Screen(json_wanted=True), 1, "train demo") as progress:
        progress(report(1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 1/1" in captured.err
