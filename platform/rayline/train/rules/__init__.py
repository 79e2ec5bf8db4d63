"""Update rules, one for each optim.kind: pure of engines and plans."""

from __future__ import annotations

from collections.abc import Mapping

from rayline.spec import (
    AdafactorSpec,
    Adam8bitSpec,
    LambSpec,
    MuonSpec,
    OptimSpec,
)
from rayline.train.rules.adam8bit import Adam8bitRule
from rayline.train.rules.elementwise import TorchRule
from rayline.train.rules.factored import AdafactorRule, LambRule
from rayline.train.rules.member import Member, Rule, State
from rayline.train.rules.muon import MuonRule
from rayline.train.shards import Shards

__all__ = ["Member", "Rule", "State", "make_rule"]


def make_rule(spec: OptimSpec, members: Mapping[str, Member], shards: Shards) -> Rule:
    """The rule of the spec's kind for these parameters."""
    match spec:
        case Adam8bitSpec():
            return Adam8bitRule(spec, shards)
        case AdafactorSpec():
            return AdafactorRule(spec, shards)
        case LambSpec():
            return LambRule(spec, shards)
        case MuonSpec():
            return MuonRule(members, spec, shards)
    return TorchRule(members, spec)
