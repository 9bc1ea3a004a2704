"""Random splits by hash."""

import numpy as np
import pandas as pd

from data.encoding.splits import draw_mappings


def test_fractions_that_round_to_one():
    keys = np.arange(1000)
    mappings = draw_mappings(keys, seed=1, test_fraction=0.3, validation_fraction=np.nextafter(0.7, 0))
    assert set(mappings) == {"test", "valid"}
    counts = pd.Series(draw_mappings(keys, seed=1, test_fraction=0.3, validation_fraction=0.2)).value_counts()
    assert 250 < counts["test"] < 350 and 150 < counts["valid"] < 250 and counts["train"] > 400
