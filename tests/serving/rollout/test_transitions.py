"""What may happen to a served model, and that nothing that happens leaves it without an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import ServingError
from rayline.serving.rollout import transitions
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.transitions import Change, Start, Stop, TellRegistry
from rayline.serving.rollout.version import Asked, Registered

KEEP = 10


def asked(number: int, alias: str | None = None) -> Asked:
    registered = None if alias is None else Registered("bot", number, alias)
    return Asked(f"print-{number}", f"directory:models/{number}", registered)


def begin(release: Release, number: int, **more: str) -> Change:
    return transitions.begin(release, asked(number, **more), 0.0, keep=KEEP)


def serving(stable: int = 1, **more: str) -> Release:
    """A model whose versions 1 to `stable` were deployed one after another."""
    release = Release("chat")
    for number in range(1, stable + 1):
        release = begin(release, number, **more).release
        release = transitions.ready(release, number, 1.0).release
        if release.canary is not None:
            release = transitions.finish(release, 2.0).release
            release = transitions.drained(release, number - 1).release
    return release


def with_canary(percent: float = 0.0) -> Release:
    release = transitions.ready(begin(serving(), 2).release, 2, 1.0).release
    return transitions.share(release, percent, 1.0).release if percent else release


def states(release: Release) -> dict[int, str]:
    return {version.number: version.state for version in release.versions}


def test_the_first_version_serves_once_it_is_up() -> None:
    begun = begin(Release("chat"), 1, alias="champion")
    assert begun.effects == (Start(1),)
    assert (begun.release.stable, begun.release.canary) == (None, 1)
    assert begun.release.version(1).app == "chat--v1"
    up = transitions.ready(begun.release, 1, 1.0)
    assert (up.release.stable, up.release.canary) == (1, None)
    assert up.effects == (TellRegistry(1, stable=True),)
    assert states(up.release) == {1: "serving"}


def test_a_version_that_fails_to_start_leaves_the_old_one_serving_and_says_so() -> None:
    begun = begin(serving(), 2).release
    change = transitions.failed(begun, 2, "no kernel image", 3.0)
    assert (change.release.stable, change.release.canary) == (1, None)
    assert change.effects == (Stop(2),)
    assert states(change.release) == {1: "serving", 2: "failed"}
    assert change.release.version(2).reason == "no kernel image"
    assert change.said == "version 2 failed: no kernel image; version 1 goes on serving"
    # The next one is a version of its own.
    assert begin(change.release, 3).effects == (Start(3),)


def test_the_old_version_drains_only_once_the_new_one_has_everything() -> None:
    begun = begin(serving(), 2).release
    assert states(begun) == {1: "serving", 2: "starting"}
    up = transitions.ready(begun, 2, 1.0).release
    assert states(up) == {1: "serving", 2: "ready"}
    shared = transitions.share(up, 10, 2.0).release
    assert states(shared) == {1: "serving", 2: "serving"}
    done = transitions.finish(shared, 3.0).release
    assert states(done) == {1: "draining", 2: "serving"}
    assert (done.stable, done.percent, done.earlier) == (2, 0, (1,))
    gone = transitions.drained(done, 1)
    assert (states(gone.release), gone.effects) == ({1: "stopped", 2: "serving"}, (Stop(1),))


def test_deploying_an_equal_one_again_changes_nothing() -> None:
    release = serving()
    assert begin(release, 1) == Change(release)
    begun = begin(release, 2).release
    assert begin(begun, 2) == Change(begun)


def test_one_version_at_a_time_takes_over() -> None:
    with pytest.raises(ServingError, match="version 2 is taking over"):
        begin(with_canary(), 3)


def test_a_rollback_of_a_canary_gives_everything_back_at_once() -> None:
    change = transitions.roll_back(with_canary(50), 3.0, reason="ttft p95 is 900 ms")
    assert (change.release.canary, change.release.percent) == (None, 0)
    assert states(change.release) == {1: "serving", 2: "draining"}
    assert change.effects == ()
    stopped = transitions.drained(change.release, 2).release
    assert stopped.version(2).reason == "rolled back: ttft p95 is 900 ms"


def test_a_rollback_of_one_that_starts_stops_it() -> None:
    change = transitions.roll_back(begin(serving(), 2).release, 3.0)
    assert change.effects == (Stop(2),)
    assert states(change.release) == {1: "serving", 2: "stopped"}


def test_a_version_that_still_drains_takes_over_again_at_once() -> None:
    done = transitions.finish(with_canary(10), 3.0).release
    back = transitions.roll_back(done, 4.0)
    assert (back.release.stable, back.effects) == (1, ())
    assert states(back.release) == {1: "serving", 2: "draining"}
    forth = transitions.roll_back(back.release, 5.0, to=2)
    assert states(forth.release) == {1: "draining", 2: "serving"}
    assert forth.release.earlier == (1,)


def test_a_rollback_to_any_earlier_version_starts_it_first() -> None:
    release = serving(stable=4)
    assert release.earlier == (1, 2, 3)
    change = transitions.roll_back(release, 9.0, to=2)
    assert change.effects == (Start(2),)
    assert (change.release.stable, change.release.canary) == (4, 2)
    assert states(change.release)[4] == "serving"
    up = transitions.ready(change.release, 2, 10.0).release
    assert (up.at_once, up.goal) == (True, 100)
    done = transitions.finish(up, 11.0).release
    assert (done.stable, done.earlier) == (2, (1,))
    # Without a number: the one before.
    assert transitions.roll_back(done, 12.0).effects == (Start(1),)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: transitions.roll_back(serving(), 0), "no earlier version"),
        (lambda: transitions.roll_back(serving(2), 0, to=2), "the stable one already"),
        (lambda: transitions.roll_back(serving(), 0, to=7), "no such version"),
        (lambda: transitions.aim(serving(), 10, 0), "no version is taking over"),
        (lambda: transitions.promote(serving()), "no version is taking over"),
    ],
)
def test_what_cannot_be_is_refused(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        attempt()


def test_a_person_sets_a_share() -> None:
    release = with_canary(10)
    raised = transitions.aim(release, 40, 5.0).release
    assert (raised.goal, raised.percent) == (40, 10)
    lowered = transitions.aim(release, 5, 5.0).release
    assert (lowered.goal, lowered.percent) == (5, 5)
    none = transitions.aim(release, 0, 5.0).release
    assert states(none) == {1: "serving", 2: "ready"}


def test_the_alias_follows_the_stable_version() -> None:
    release = begin(serving(1, alias="champion"), 2, alias="champion").release
    up = transitions.ready(release, 2, 1.0)
    assert up.effects == (TellRegistry(2, stable=False),)
    done = transitions.finish(up.release, 2.0)
    assert done.effects == (TellRegistry(2, stable=True),)
    assert transitions.roll_back(done.release, 3.0).effects == (TellRegistry(1, stable=True),)


def test_what_is_taken_away_drains() -> None:
    change = transitions.stop(with_canary(10), 5.0)
    assert change.release.stable is None
    assert states(change.release) == {1: "draining", 2: "draining"}
    starting = transitions.stop(begin(serving(), 2).release, 5.0)
    assert starting.effects == (Stop(2),)
    # Its versions stay known, and it can be brought back.
    gone = transitions.drained(starting.release, 1).release
    back = transitions.roll_back(gone, 6.0, to=1).release
    assert transitions.ready(back, 1, 7.0).release.stable == 1


def test_old_versions_are_forgotten() -> None:
    release = serving(stable=5)
    begun = transitions.begin(release, asked(6), 0.0, keep=2).release
    assert sorted(states(begun)) == [3, 4, 5, 6]
    assert begun.earlier == (3, 4)


moves = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 6), st.floats(0, 100)), max_size=40)


@given(moves)
def test_whatever_happens_a_model_that_serves_goes_on_serving(
    steps: list[tuple[int, int, float]],
) -> None:
    release = serving()
    deployed = 1
    for now_s, (move, number, percent) in enumerate(steps):
        before = release
        deployed += move == 0
        act: dict[int, Callable[[], Change]] = {
            0: lambda: begin(before, deployed),  # noqa: B023
            1: lambda: transitions.ready(before, number, now_s),  # noqa: B023
            2: lambda: transitions.failed(before, number, "x", now_s),  # noqa: B023
            3: lambda: transitions.aim(before, percent, now_s),  # noqa: B023
            4: lambda: transitions.promote(before),  # noqa: B023
            5: lambda: transitions.roll_back(before, now_s),  # noqa: B023
            6: lambda: transitions.roll_back(before, now_s, to=number),  # noqa: B023
            7: lambda: transitions.drained(before, number),  # noqa: B023
            8: lambda: _completed(before, now_s),  # noqa: B023
        }
        try:
            change = act[move]()
        except ServingError:
            continue
        release = change.release
        assert release.version(release.stable).state == "serving"
        if release.canary is not None:
            assert release.version(release.canary).state in ("starting", "ready", "serving")
            assert release.canary != release.stable
        else:
            assert (release.percent, release.goal, release.at_once) == (0, None, False)
        serve = [one.number for one in release.versions if one.state == "serving"]
        assert set(serve) <= {release.stable, release.canary}
        for effect in change.effects:
            state = release.version(effect.number).state
            assert state == {Start: "starting", TellRegistry: "serving"}.get(type(effect), state)
            if isinstance(effect, Stop):
                assert not release.version(effect.number).holds_replicas


def _completed(release: Release, now_s: float) -> Change:
    """What the director does only with a canary that is up."""
    if release.canary is None or not release.version(release.canary).is_up:
        return Change(release)
    return transitions.finish(replace(release, percent=100.0), now_s)
