"""Update rules, one for each optim.kind: pure of engines and plans."""

from __future__ import annotations

from collections.abc import Mapping

from rayline.spec import (
    AdadeltaSpec,
    AdafactorSpec,
    AdagradSpec,
    Adam8bitSpec,
    AdamWSpec,
    LambSpec,
    LionSpec,
    MuonSpec,
    OptimSpec,
    RmspropSpec,
    SgdSpec,
)
from rayline.train.rules.adam8bit import Adam8bitRule
from rayline.train.rules.elementwise import (
    LionRule,
    adadelta_rule,
    adagrad_rule,
    adamw_rule,
    rmsprop_rule,
    sgd_rule,
)
from rayline.train.rules.factored import AdafactorRule, LambRule
from rayline.train.rules.member import Member, Rule, State
from rayline.train.rules.muon import MuonRule
from rayline.train.shards import Shards

__all__ = ["Member", "Rule", "State", "make_rule"]


def make_rule(spec: OptimSpec, members: Mapping[str, Member], shards: Shards) -> Rule:
    """The rule of the spec's kind for these parameters."""
    match spec:
        case AdamWSpec():
            return adamw_rule(members, spec.betas, spec.eps)
        case Adam8bitSpec():
            return Adam8bitRule(spec, shards)
        case AdafactorSpec():
            return AdafactorRule(spec, shards)
        case LionSpec():
            return LionRule(members, spec)
        case LambSpec():
            return LambRule(spec, shards)
        case MuonSpec():
            return MuonRule(members, spec, shards)
        case SgdSpec():
            return sgd_rule(members, spec)
        case RmspropSpec():
            return rmsprop_rule(members, spec)
        case AdagradSpec():
            return adagrad_rule(members, spec)
        case AdadeltaSpec():
            return adadelta_rule(members, spec)
    raise TypeError(f"no rule for {type(spec).__name__}")
