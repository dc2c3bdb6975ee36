"""The sweep over optimizers of other makers has no silent difference."""

from __future__ import annotations

import pytest

from tests.attach.optimizers_of_others import LIBRARIES, cases, row

SAMPLE = [
    *("pytorch_optimizer.Kron", "pytorch_optimizer.SaRA", "pytorch_optimizer.Prodigy"),
    *("pytorch_optimizer.StableAdamW", "schedulefree.SGDScheduleFree"),
    *("bitsandbytes.AdamW8bit", "bitsandbytes.SGD8bit"),
]
"""They draw of numpy, read their states at loading, keep weights, or quantise states."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_is_identical_or_refused(name: str):
    library = name.partition(".")[0]
    pytest.importorskip(library)
    (case,) = (case for case in cases([library]) if case.name == name)
    cells, different = row(case)
    assert not different, cells
    assert not any(cell.startswith("error") for cell in cells), cells
    assert not case.unbuildable


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", LIBRARIES)
def test_none_differs_silently(library: str):
    pytest.importorskip(library)
    rows = [row(case) for case in cases([library])]
    assert not [cells for cells, different in rows if different]
