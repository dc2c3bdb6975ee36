"""Ensembles of scored subnets, against all of them written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nas_dynamic.search import search_ensembles

SUBNETS = [{"width": width} for width in range(9)]


def made(seed=0, images=40, classes=4):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=images)
    logits = generator.normal(size=(9, images, classes)).astype(np.float32)
    logits[:, np.arange(images), labels] += 1
    return logits, labels


def brute_force(logits, labels, at_most, sizes):
    found = {}
    for size in sizes:
        for of in itertools.combinations(range(9), size):
            if sum(of) + size <= at_most:
                mean = torch.tensor(logits[list(of)]).softmax(-1).mean(0)
                loss = float(F.nll_loss(mean.log(), torch.tensor(labels)))
                accuracy = float((mean.argmax(1).numpy() == labels).mean())
                pairs = itertools.combinations(logits[list(of)].argmax(-1), 2)
                differ = [float((a != b).mean()) for a, b in pairs]
                found[of] = loss, accuracy, np.mean(differ) if differ else 0.0
    return found


def search(logits, labels, **options):
    return search_ensembles(
        SUBNETS, lambda a: logits[a["width"]], labels, lambda a: a["width"] + 1, **options
    )


@pytest.mark.parametrize("sizes", [(1, 2, 3), (2,), (3, 4)])
def test_all_ensembles_within_the_cost(sizes):
    logits, labels = made()
    found = search(logits, labels, at_most=13, sizes=sizes, extended=None)
    expected = brute_force(logits, labels, 13, sizes)
    by_members = {tuple(a["width"] for a in e.architectures): e for e in found.ensembles}
    assert by_members.keys() == expected.keys()
    for of, ensemble in by_members.items():
        values = ensemble.loss, ensemble.accuracy, ensemble.diversity
        assert values == pytest.approx(expected[of], rel=1e-5)
        assert ensemble.cost == sum(of) + len(of)
    best = min(expected, key=lambda of: expected[of][0])
    assert tuple(a["width"] for a in found.best.architectures) == best
    if 1 in sizes:
        single = min((of for of in expected if len(of) == 1), key=lambda of: expected[of][0])
        assert tuple(a["width"] for a in found.best_single.architectures) == single
    else:
        assert found.best_single is None
    values = np.array([[v[0], -v[2]] for v in expected.values()])
    beaten = [((values <= row).all(1) & (values < row).any(1)).any() for row in values]
    front = {of for of, is_beaten in zip(expected, beaten, strict=True) if not is_beaten}
    assert {tuple(a["width"] for a in e.architectures) for e in found.front} == front


def test_triples_extend_the_best_pairs():
    logits, labels = made(seed=1)
    found = search(logits, labels, at_most=30, sizes=(3,), extended=4)
    pairs = brute_force(logits, labels, 30, (2,))
    kept = sorted(pairs, key=lambda of: pairs[of][0])[:4]
    expected = {tuple(sorted({*of, n})) for of in kept for n in range(9) if n not in of}
    expected = {of for of in expected if sum(of) + 3 <= 30}
    assert {tuple(a["width"] for a in e.architectures) for e in found.ensembles} == expected


def test_what_fits_no_limit_or_no_labels_is_told():
    logits, labels = made()
    with pytest.raises(ValueError, match=r"costs 0.5 at most: the cheapest of 9 subnets costs 1"):
        search(logits, labels, at_most=0.5)
    with pytest.raises(ValueError, match=r"no ensemble of sizes \[0\]"):
        search(logits, labels, at_most=5, sizes=(0,))
    with pytest.raises(ValueError, match=r"of shape \(39, classes\) .* got \(40, 4\)"):
        search(logits, labels[1:], at_most=5)
