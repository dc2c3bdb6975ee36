"""Logits that scoring keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nas_dynamic.evaluation import KeptLogits, score_subnets
from tests.search.test_supernet import Plain


@pytest.mark.parametrize("options", [{}, {"devices": ["cpu"] * 2}])
@pytest.mark.parametrize("batch_norm", ["batch", "recalibrate"])
def test_kept_logits_are_those_of_the_scores(batch_norm, options, tmp_path):
    torch.manual_seed(0)
    supernet, kept = Plain(), KeptLogits(tmp_path / "new/logits")
    batches = [(torch.rand(n, 3, 8, 8), torch.randint(10, (n,))) for n in (8, 8, 5)]
    labels = torch.cat([y for _, y in batches])
    given = {"batch_norm": batch_norm, "calibration": batches, **options}
    architectures = list(supernet.space)
    without = score_subnets(supernet, Plain.activate, architectures, batches, **given)
    plain = {tuple(s.architecture.values()): (s.accuracy, s.loss) for s in without}
    for score in score_subnets(
        supernet, Plain.activate, architectures, batches, logits=kept, **given
    ):
        assert (score.accuracy, score.loss) == plain[tuple(score.architecture.values())]
        logits = kept[score.architecture]
        assert isinstance(logits, np.memmap)
        assert logits.shape == (21, 10)
        assert float((logits.argmax(1) == labels.numpy()).mean()) == pytest.approx(score.accuracy)
        loss = F.cross_entropy(torch.tensor(np.array(logits)), labels)
        assert float(loss) == pytest.approx(score.loss, rel=1e-5)
    assert all(architecture in kept for architecture in architectures)
    reordered = dict(reversed(architectures[0].items()))
    assert np.array_equal(KeptLogits(kept.folder)[reordered], kept[architectures[0]])
    assert len(list(kept.folder.iterdir())) == 9


def test_logits_that_are_not_there_are_told(tmp_path):
    kept = KeptLogits(tmp_path)
    assert {"width": 3} not in kept
    with pytest.raises(KeyError, match=r"has no logits of \{'width': 3\}; score it with"):
        kept[{"width": 3}]
