"""The best token of each class, compared with the whole logits."""

import numpy as np
import pytest
import torch

from engine.sizing.chunks import VOCAB_CHUNK
from engine.tail import class_best as module
from engine.tail.class_best import TokenClasses, class_best, grouped_class_best
from engine.tail.vocab_tail import Bias

ROWS, VOCAB, CLASSES, SOFTCAP = 5, VOCAB_CHUNK + 300, 12, 30.0


@pytest.fixture
def case():
    torch.manual_seed(0)
    hidden, embedding = torch.randn(ROWS, 16), torch.randn(VOCAB, 16)
    token_class = np.random.default_rng(0).integers(0, CLASSES - 1, VOCAB).astype(np.int32)
    return hidden, embedding, token_class  # the last class has no token


def with_groups(token_class, monkeypatch):
    """Returns the classes with the groups that a GPU has, in several chunks."""
    monkeypatch.setattr(module, "_GPU_CHUNK", 1000)
    classes = TokenClasses(token_class, CLASSES, torch.device("cpu"))
    classes.groups = [*module._groups(token_class, torch.device("cpu"))]
    return classes


def plain(hidden, embedding, token_class, biases=()):
    logits = SOFTCAP * torch.tanh(hidden @ embedding.T / SOFTCAP)
    for bias in biases:
        logits[bias.rows] += bias.values
    regrets = np.full((ROWS, CLASSES), np.inf)
    tokens = np.zeros((ROWS, CLASSES), np.int64)
    for kind in range(1, CLASSES):
        ids = np.flatnonzero(token_class == kind)
        if len(ids):
            best = logits[:, ids].max(-1)
            regrets[:, kind] = (logits.amax(-1) - best.values).numpy()
            tokens[:, kind] = ids[best.indices.numpy()]
    return regrets, tokens


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_class_has_its_best_token_and_its_regret(case, monkeypatch, biased, grouped):
    hidden, embedding, token_class = case
    biases = [Bias(slice(1, 3), 4 * torch.randn(VOCAB))] if biased else []
    regrets, tokens = plain(hidden, embedding, token_class, biases)
    classes = TokenClasses(token_class, CLASSES, torch.device("cpu"))
    if grouped:
        classes = with_groups(token_class, monkeypatch)
    best = class_best(hidden, embedding, classes, softcap=SOFTCAP, biases=biases)
    np.testing.assert_allclose(best.regrets, regrets, atol=1e-4)
    finite = np.isfinite(regrets)
    assert (best.tokens[finite] == tokens[finite]).all()


def test_both_forms_take_the_first_of_equally_good_tokens(case, monkeypatch):
    hidden, embedding, token_class = case
    embedding[:] = embedding[7]
    for form in (class_best, grouped_class_best):
        best = form(hidden, embedding, with_groups(token_class, monkeypatch), softcap=SOFTCAP)
        for kind in range(1, CLASSES - 1):
            assert set(best.tokens[:, kind]) == {np.flatnonzero(token_class == kind)[0]}
        assert (best.regrets[:, 1 : CLASSES - 1] == 0).all()


def test_a_banned_token_is_taken_if_its_class_has_no_other(case):
    hidden, embedding, token_class = case
    token_class[token_class == 3] = 4
    token_class[100] = 3
    values = torch.zeros(VOCAB)
    values[100] = -1e9
    classes = TokenClasses(token_class, CLASSES, torch.device("cpu"))
    biases = [Bias(slice(0, ROWS), values)]
    best = class_best(hidden, embedding, classes, softcap=SOFTCAP, biases=biases)
    assert (best.tokens[:, 3] == 100).all()
    assert (best.regrets[:, 3] > 9e8).all()
