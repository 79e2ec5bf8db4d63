"""A served model second by second: what is heard goes in, shares and replicas come out.

The cluster in here is scripted: it brings replicas up and says so. That Ray Serve does the same is
the matter of the tests marked serve.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from rayline.errors import ServingError
from rayline.serving.director.blueprint import Blueprint
from rayline.serving.director.fleet import ReplicaAddress, ReplicaReport, Served
from rayline.serving.director.served_model import AppState, Heard, ServedModel
from rayline.serving.director.status import model_status, share_of
from rayline.serving.rollout import transitions
from rayline.serving.rollout.choosing import Draws, choose
from rayline.serving.rollout.measured import Measured
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.sketch import Sketch
from rayline.serving.rollout.transitions import Start, Stop
from rayline.serving.rollout.version import Asked
from rayline.serving.scaling.deciding import Room
from rayline.serving.wire import Load
from rayline.spec import RequestLimits, ServeSpec

START_S = 5


@dataclass
class Cluster:
    """Starts what it is told to, START_S later; `asked` requests are under way at a time."""

    model: ServedModel
    room: int | None = None
    """Replicas that it holds altogether."""
    second: int = 0
    asked: int = 1
    lingering: int = 0
    slower: float = 1.0
    """How many times as slow as the others the newest version is."""
    broken: set[int] = field(default_factory=set)
    """Versions that do not start."""
    born_s: dict[int, list[int]] = field(default_factory=dict)
    """By version: when each of its replicas was started."""
    said: list[str] = field(default_factory=list)
    refused: int = 0
    answered: dict[int, int] = field(default_factory=dict)

    def deploy(self, fingerprint: str, **fields: object) -> None:
        tree = {"name": "chat", "model": {"directory": "models/a"}, **fields}
        blueprint = Blueprint(ServeSpec.parse(tree), "cpu", fingerprint)
        change, _ = self.model.begin(Asked(fingerprint, "directory:models/a"), blueprint, self.now)
        self.carry_out([change])

    @property
    def now(self) -> float:
        return 1000.0 + self.second

    def carry_out(self, changes: Sequence[transitions.Change]) -> None:
        for change in changes:
            self.said += [f"{self.second}: {change.said}"]
            for effect in change.effects:
                if isinstance(effect, Start):
                    stable_up = len(self.loads().get(self.model.release.stable or 0, ()))
                    count = self.model.first_replicas(effect.number, stable_up)
                    self.born_s[effect.number] = [self.second] * count
                elif isinstance(effect, Stop):
                    self.born_s.pop(effect.number, None)

    def loads(self) -> dict[int, list[Load]]:
        """Of replicas that are up; of a version that drains, `lingering` requests each."""
        loads = {}
        for number, born in self.born_s.items():
            up = (
                sum(self.second - one >= START_S for one in born)
                if number not in self.broken
                else 0
            )
            running = self.lingering
            if self.states[number] != "draining":
                share = share_of(self.model.release, number) / 100
                running = math.ceil(self.asked * share / max(1, up))
            loads[number] = [Load(0, running, 0.1)] * up
        return loads

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.second += 1
            loads = self.loads()
            self.ask(loads)
            changes, replicas = self.model.tick(
                Heard(
                    unix_s=self.now,
                    clock_s=float(self.second),
                    loads=loads,
                    held=0 if any(loads.values()) else self.asked,
                    apps={
                        f"chat--v{number}": AppState(
                            "failed" if number in self.broken else "up", "no kernel", len(born)
                        )
                        for number, born in self.born_s.items()
                    },
                ),
                lambda _, starting: self.free(starting),
            )
            self.carry_out(changes)
            for number, count in replicas.items():
                born = self.born_s[number]
                self.born_s[number] = sorted(born)[:count] + [self.second] * (count - len(born))

    def free(self, _: int) -> Room | None:
        if self.room is None:
            return None
        taken = sum(len(born) for born in self.born_s.values())
        return Room(max(0, self.room - taken), "no node has 4 CPU free")

    def ask(self, loads: dict[int, list[Load]], requests: int = 20) -> None:
        """Put requests to versions as a gateway does, and report what they took."""
        draws = Draws(random.Random(self.second).random())
        times: dict[int, list[float]] = {}
        for number in range(requests if self.asked else 0):
            version = choose(self.model.weights, None, next(draws))
            if version is None or not loads.get(version):
                self.refused += 1
                continue
            newest = version == max(self.born_s)
            spread = random.Random(number * 9973 + self.second).lognormvariate(4, 0.4)
            times.setdefault(version, []).append(spread * (self.slower if newest else 1))
        for version, values in times.items():
            self.answered[version] = self.answered.get(version, 0) + len(values)
            measured = Measured(len(values), 0, Sketch(values), Sketch(values))
            self.model.watch(version).hear("gateway", measured, (), float(self.second))

    @property
    def states(self) -> dict[int, str]:
        return {one.number: one.state for one in self.model.release.versions}


def cluster(**fields: object) -> Cluster:
    """One whose first version serves."""
    begun = Cluster(ServedModel(Release("chat"), {}))
    begun.deploy("1", **fields)
    begun.run(START_S)
    assert begun.states == {1: "serving"}
    begun.refused = 0
    return begun


HEARD = ReplicaReport(
    Served("chat", 1, 64, "r", RequestLimits(), 0),
    ReplicaAddress("one", "127.0.0.1", 1, "", 8),
    Load(),
)
CANARY = {"rollout": {"steps": [10, 50, 100], "window_s": 20, "min_requests": 30}}


def test_a_plain_deployment_replaces_the_old_version_and_refuses_nobody() -> None:
    served = cluster()
    served.deploy("2")
    served.run(20)
    assert served.states == {1: "stopped", 2: "serving"}
    assert served.refused == 0
    assert list(served.born_s) == [2]


def test_a_version_that_does_not_start_leaves_the_old_one_serving() -> None:
    served = cluster()
    served.broken = {2}
    served.deploy("2")
    served.run(3)
    assert served.states == {1: "serving", 2: "failed"}
    assert served.model.release.version(2).reason == "no kernel"
    assert "version 1 goes on serving" in served.said[-1]
    assert list(served.born_s) == [1]
    assert served.refused == 0


def test_one_that_never_gets_ready_is_given_up() -> None:
    served = cluster()
    served.deploy("2", ready_timeout_s=60)
    served.born_s[2] = [10_000]
    served.run(61)
    assert served.states[2] == "failed"
    assert "ready_timeout_s 60" in served.model.release.version(2).reason


def test_a_good_canary_goes_up_step_by_step() -> None:
    served = cluster()
    served.deploy("2", **CANARY)
    served.run(90)
    shares = [line for line in served.said if "gets" in line]
    assert [line.partition(": ")[2] for line in shares] == [
        f"version 2 gets {share} % of the requests" for share in (10, 50, 100)
    ]
    assert served.states == {1: "stopped", 2: "serving"}
    assert served.refused == 0


def test_a_canary_three_times_slower_is_rolled_back_by_itself() -> None:
    served = cluster()
    served.slower = 3.0
    served.deploy("2", **CANARY)
    served.run(60)
    assert served.states == {1: "serving", 2: "stopped"}
    assert "rolled back: ttft p50 is" in served.model.release.version(2).reason
    assert served.answered[2] < 80
    assert served.refused == 0


def test_what_it_is_compared_with_at_the_last_step_was_measured_before() -> None:
    served = cluster()
    served.run(10)
    served.slower = 3.0
    served.deploy("2", rollout={"bake_s": 60})
    served.run(20)
    assert served.states[1] == "serving"
    assert served.states[2] in ("draining", "stopped")


def test_several_replicas_are_replaced_with_room_for_one_more() -> None:
    served = cluster(scale={"min_replicas": 3, "max_replicas": 3})
    served.room = 4
    served.deploy("2", scale={"min_replicas": 3, "max_replicas": 3})
    # Serve itself has started as many as it was told to; only one of them finds room.
    served.born_s[2] = [served.second]
    served.model.targets[2] = 1
    served.run(60)
    assert served.states == {1: "stopped", 2: "serving"}
    assert len(served.born_s[2]) == 3
    assert served.refused == 0
    assert [line for line in served.said if "33.3333 %" in line]


def test_a_drained_version_takes_over_again_at_once() -> None:
    served = cluster()
    served.deploy("2")
    served.run(START_S + 2)
    assert served.states == {1: "draining", 2: "serving"}
    served.carry_out([_applied(served, transitions.roll_back(served.model.release, served.now))])
    assert choose(served.model.weights, None, 0.5) == 1
    served.run(10)
    assert served.states == {1: "serving", 2: "stopped"}


def _applied(served: Cluster, change: transitions.Change) -> transitions.Change:
    served.model.apply(change)
    return change


def test_long_answers_are_waited_for_up_to_drain_s() -> None:
    served = cluster(drain_s=30)
    served.lingering = 1
    served.deploy("2")
    served.run(START_S + 25)
    assert served.states[1] == "draining"
    served.run(20)
    assert served.states[1] == "stopped"


def test_load_brings_replicas_and_its_end_takes_them() -> None:
    scale = {
        "max_replicas": 4,
        "target_ongoing_requests": 4,
        "downscale_delay_s": 30,
        "upscale_delay_s": 5,
    }
    served = cluster(scale=scale)
    served.asked = 12
    served.run(7)
    assert served.model.targets[1] == 3
    decision = served.model.decisions[1]
    served.run(30)
    assert served.model.targets[1] == 3
    served.asked = 1
    served.run(40)
    assert served.model.targets[1] == 1
    assert decision.signal == "requests per replica"


def test_to_zero_and_back() -> None:
    scale = {"min_replicas": 0, "max_replicas": 2, "idle_s": 20}
    served = cluster(scale=scale)
    served.asked = 0
    served.run(25)
    assert served.model.targets[1] == 0
    assert served.states == {1: "serving"}
    served.asked = 1
    served.run(2)
    assert served.model.targets[1] == 1


def test_an_application_that_is_gone_is_noticed() -> None:
    served = cluster()
    served.born_s.clear()
    served.run(2)
    assert served.model.release.stable is None
    assert served.states == {1: "stopped"}
    served.deploy("1")
    served.run(START_S + 1)
    assert served.states == {1: "stopped", 2: "serving"}


def test_a_new_director_goes_on_where_the_last_one_was() -> None:
    served = cluster(scale={"min_replicas": 2, "max_replicas": 2})
    served.deploy("2", **CANARY)
    served.run(10)
    known = served.model
    served.model = ServedModel(known.release, known.blueprints)
    served.run(1)
    assert served.model.targets == {1: 2, 2: 1}
    served.run(90)
    assert served.states == {1: "stopped", 2: "serving"}
    assert served.refused == 0


def test_an_equal_deployment_changes_how_it_is_scaled_and_nothing_else() -> None:
    served = cluster()
    served.deploy("1", scale={"max_replicas": 3, "target_ongoing_requests": 1})
    assert served.states == {1: "serving"}
    served.asked = 9
    served.run(20)
    assert served.model.targets[1] == 3


def test_two_rollouts_at_once_are_refused() -> None:
    served = cluster()
    served.deploy("2")
    with pytest.raises(ServingError, match="version 2 is taking over"):
        served.deploy("3")


def test_status_says_what_decided() -> None:
    served = cluster(scale={"max_replicas": 3, "target_ongoing_requests": 2})
    served.room = 1
    served.asked = 6
    served.run(10)
    status = model_status(served.model, {1: [HEARD]}, {}, held=0, events=())
    (version,) = status.versions
    assert (version.state, version.percent, version.up, version.wanted) == ("serving", 100, 1, 1)
    assert version.decision is not None
    assert version.decision.why_not == "3 asked for; no node has 4 CPU free"
    assert version.felt is not None
    assert version.felt.requests > 100
    served.room = None
    served.deploy("2", **CANARY)
    served.run(10)
    reports = {1: [HEARD], 2: [HEARD]}
    status = model_status(served.model, reports, {}, held=0, events=())
    assert [(one.number, one.percent) for one in status.versions] == [(2, 10), (1, 90)]
    assert status.verdict is not None
    assert status.verdict.action == "wait"
