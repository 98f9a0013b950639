"""Each rule against a plain one, which looks at the whole history of random logits."""

import pytest
import torch

from engine.denoise.canvas import Canvas
from engine.denoise.noise import block_noise
from engine.denoise.sampler import SamplerConfig
from engine.denoise.stopping import (
    AllOf,
    AnyOf,
    Certain,
    Confident,
    Stable,
    StepFigures,
    stopping_rule,
)
from engine.messages import Sampling

STEPS, CANVAS, VOCAB, END = 14, 12, 20, 7


def new_canvas(sampler=SamplerConfig(), width=CANVAS):  # noqa: B008  # it is frozen
    noise = block_noise(
        0, 0, steps=1, canvas_length=width, vocab_size=VOCAB, device=torch.device("cpu")
    )
    return Canvas(
        Sampling(0),
        sampler,
        noise,
        biases=[],
        prefix=None,
        suffix=None,
        constraint=None,
        tokens=noise.canvases[0],
    )


def step(canvas, draft, entropies):
    """Returns the figures of a canvas' step, and advances the canvas."""
    canvas.figures = canvas.next_figures(draft, entropies)
    canvas.step_index += 1
    return canvas.figures


def history(seed):
    """Returns the argmax canvases [STEPS, CANVAS] and entropies of logits that become certain."""
    generator = torch.Generator().manual_seed(seed)
    goal = torch.randn(CANVAS, VOCAB, generator=generator, dtype=torch.float64)
    goal[CANVAS // 2, END] += 2.0
    noise = torch.randn(STEPS, CANVAS, VOCAB, generator=generator, dtype=torch.float64)
    sharpness = torch.linspace(1, 14, STEPS)[:, None, None]
    share = torch.linspace(0.8, 0, STEPS)[:, None, None] * (
        torch.rand(1, generator=generator) + 0.2
    )
    logits = sharpness * (goal + share * noise)
    return logits.argmax(-1), torch.special.entr(logits.softmax(-1)).sum(-1)


def plain_stable(steps, argmax, entropy, now):
    return now >= steps and all(argmax[now].equal(argmax[now - each]) for each in range(steps + 1))


def plain_confident(nats, least, argmax, entropy, now):
    return now + 1 >= least and bool(entropy[now].mean() < nats)


def plain_certain(nats, argmax, entropy, now):
    is_behind = (argmax[now] == END).cumsum(0) - (argmax[now] == END).long() > 0
    return not ((entropy[now] >= nats) & ~is_behind).any()


def both(argmax, entropy, now):
    return plain_stable(1, argmax, entropy, now) and plain_confident(0.5, 0, argmax, entropy, now)


def either(argmax, entropy, now):
    return both(argmax, entropy, now) or plain_stable(3, argmax, entropy, now)


RULES = {
    "stable for no step": (Stable(0), lambda *h: plain_stable(0, *h)),
    "stable for a step": (Stable(1), lambda *h: plain_stable(1, *h)),
    "stable for three steps": (Stable(3), lambda *h: plain_stable(3, *h)),
    "confident": (Confident(0.6), lambda *h: plain_confident(0.6, 0, *h)),
    "confident after ten steps": (Confident(0.6, 10), lambda *h: plain_confident(0.6, 10, *h)),
    "never confident": (Confident(0.0), lambda *_: False),
    "certain": (Certain(0.8), lambda *h: plain_certain(0.8, *h)),
    "all of": (AllOf((Stable(1), Confident(0.5))), both),
    "any of": (AnyOf((AllOf((Stable(1), Confident(0.5))), Stable(3))), either),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_stops_where_a_plain_one_does(name):
    rule, plain = RULES[name]
    stops = []
    for seed in range(40):
        argmax, entropy = history(seed)
        canvas = new_canvas(SamplerConfig(end_tokens=frozenset({END})))
        for now in range(STEPS):
            figures = step(canvas, argmax[now].tolist(), entropy[now].tolist())
            assert (rule.reason(figures) is not None) == plain(argmax, entropy, now), (seed, now)
            if rule.reason(figures) is not None:
                stops.append(now)
                break
    if "never" in name:
        assert stops == []
    elif "no step" not in name:
        assert len(set(stops)) > 1, "the rule decides differently"


def figures(*, draft=(1, 2), steps=9, stable_steps=0, entropies=(0.0, 0.0)):
    return StepFigures(draft, steps, stable_steps, entropies, frozenset({END}))


def test_a_reason_is_that_of_the_rule_that_held():
    sure, unsure = figures(stable_steps=1), figures(stable_steps=3, entropies=(0.0, 9.0))
    rule = AnyOf((AllOf((Stable(1), Confident(0.1))), Stable(3)))
    assert rule.reason(sure) == "confident"
    assert rule.reason(unsure) == "stable"
    assert rule.reason(figures(stable_steps=0)) is None
    assert AllOf((Stable(1), Certain(0.1))).reason(sure) == "certain"
    assert AllOf(()).reason(sure) is None


def test_the_bound_itself_is_neither_confident_nor_certain():
    at_bound = figures(entropies=(0.5, 0.5))
    assert Confident(0.5).reason(at_bound) is Certain(0.5).reason(at_bound) is None


def test_a_position_behind_the_end_need_not_be_certain_but_counts_for_confidence():
    behind = figures(draft=(END, 2), entropies=(0.0, 9.0))
    assert Certain(0.1).reason(behind) == "certain"
    assert Confident(0.1).reason(behind) is None


@pytest.mark.parametrize(
    ("rule", "near", "far"),
    [
        (Stable(3), figures(stable_steps=2), figures(stable_steps=1)),
        (Stable(0), figures(), None),
        (Confident(0.1), figures(entropies=(0.4, 0.4)), figures(entropies=(0.5, 0.5))),
        (Confident(9.0, least_steps=4), figures(steps=3), figures(steps=2)),
        (Certain(0.1), figures(entropies=(0.4, 0.0)), figures(entropies=(0.5, 0.0))),
        (AllOf((Stable(1), Certain(1.0))), figures(), figures(entropies=(9.0, 9.0))),
        (AnyOf((Stable(5), Certain(1.0))), figures(), figures(entropies=(9.0, 9.0))),
    ],
)
def test_a_rule_says_whether_the_next_step_may_finish_the_block(rule, near, far):
    assert rule.nearly(near)
    assert far is None or not rule.nearly(far)


def test_each_quality_stops_no_later_than_the_one_before_it():
    numbers = {"stability_steps": 1, "confidence_nats": 0.005}
    exact = stopping_rule("exact", **numbers)
    assert exact == AllOf((Stable(1), Confident(0.005)))
    rules = [exact, stopping_rule("balanced", **numbers), stopping_rule("fast", **numbers)]
    earlier = [0, 0]
    for seed in range(60):
        argmax, entropy = history(seed)
        canvas = new_canvas(SamplerConfig(end_tokens=frozenset({END})))
        several = [step(canvas, argmax[t].tolist(), entropy[t].tolist()) for t in range(STEPS)]
        stops = [
            next((n for n, each in enumerate(several) if rule.reason(each) is not None), STEPS)
            for rule in rules
        ]
        assert stops[0] >= stops[1] >= stops[2], seed
        earlier[0] += stops[1] < stops[0]
        earlier[1] += stops[2] < stops[1]
    assert min(earlier) > 5


def test_a_request_chooses_its_quality_and_its_confidence_threshold_wins():
    config = SamplerConfig(quality="fast")
    numbers = {"stability_steps": 1, "confidence_nats": 0.005}

    def rule(**sampling):
        return config.for_request(Sampling(0, **sampling)).stopping_rule

    assert rule() == stopping_rule("fast", **numbers)
    assert rule(quality="exact") == stopping_rule("exact", **numbers)
    assert rule(quality="balanced", entropy_bound=1.0) == stopping_rule("balanced", **numbers)
    for quality in (None, "fast"):
        own = rule(quality=quality, confidence_threshold=0.1)
        assert own == AllOf((Stable(1), Confident(0.1)))


def test_stable_steps_count_equal_drafts_and_restart_at_a_change():
    canvas, a, b = new_canvas(width=2), [1, 2], [1, 3]
    counts = [step(canvas, draft, [0.0, 0.0]).stable_steps for draft in (a, a, a, b, b, a)]
    assert counts == [0, 1, 2, 0, 1, 0]


def test_with_early_end_positions_behind_an_end_token_may_change_and_are_certain():
    early = SamplerConfig(early_end=True, end_tokens=frozenset({8, 9}))
    exact = AllOf((Stable(1), Confident(0.1)))

    def reason(config, before, draft, entropies):
        canvas = new_canvas(config, width=4)
        step(canvas, before, entropies)
        return exact.reason(step(canvas, draft, entropies))

    behind = [1, 9, 5, 5], [1, 9, 3, 9], [0.0, 0.0, 5.0, 5.0]
    assert reason(early, *behind) == "confident"
    assert reason(SamplerConfig(end_tokens=frozenset({8, 9})), *behind) is None
    ignoring = early.for_request(Sampling(0, ignore_eos=True))
    assert reason(ignoring, *behind) is None
    own = early.for_request(Sampling(0, ignore_eos=True, stop_token_ids=[9]))
    assert reason(own, *behind) == "confident"
    assert reason(early, [1, 2, 3, 5], [1, 2, 3, 4], [0.0] * 4) is None
    assert reason(early, [8, 5, 5, 5], [8, 1, 2, 3], [5.0, 0.0, 0.0, 0.0]) is None
