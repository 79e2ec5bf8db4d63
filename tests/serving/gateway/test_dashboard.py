"""The Grafana dashboard asks for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rayline.serving.gateway.answered import Answered
from rayline.serving.gateway.metrics import Meters

DASHBOARD = Path(__file__).parents[3] / "cluster" / "grafana" / "serving.json"


def one(**changes: object) -> Answered:
    fields = {
        "request_id": "r",
        "at_s": 0.0,
        "route": "chat",
        "model": "bot",
        "version": "1",
        "key": "mine",
        "address": "127.0.0.1",
        "status": 200,
        "outcome": "complete",
        "prompt_tokens": 3,
        "cached_tokens": 1,
        "completion_tokens": 5,
        "seconds": 1.0,
        "first_s": 0.2,
        "last_s": 0.6,
        "engine_s": 0.7,
        "losses": 1,
    }
    return Answered(**{**fields, **changes})


def test_every_panel_asks_for_a_metric_with_labels_that_it_has():
    meters = Meters()
    meters.open_requests.labels("bot").inc()
    meters.count(one())
    page = meters.text().decode()
    samples = set(re.findall(r"^(rayline_\w+)\{([^}]*)\}", page, re.MULTILINE))
    labels = {name: set(re.findall(r"(\w+)=", inside)) for name, inside in samples}
    asked = 0
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"rayline_\w+", target["expr"])
            assert names
            for name in names:
                asked += 1
                used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                assert used <= labels[name], (panel["title"], name)
    assert asked >= 12


def test_the_engines_time_and_the_frameworks_are_the_whole():
    meters = Meters()
    meters.count(one(seconds=1.0, engine_s=0.7))
    page = meters.text().decode()
    assert 'rayline_engine_seconds_sum{model="bot",version="1"} 0.7' in page
    assert re.search(r"rayline_framework_seconds_sum\{[^}]*\} 0\.3", page)
    assert one(first_s=0.25, last_s=0.75, completion_tokens=5).between_s == 0.125
    assert one(completion_tokens=1).between_s is None
