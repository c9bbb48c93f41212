"""The handwritten digits inside scikit-learn: the data that is always there."""

from __future__ import annotations

import numpy as np

from .images import ArrayImages, Dataset

TEST_FRACTION = 0.2


def open_digits() -> Dataset:
    """1 797 digits at their own 8×8, one channel; a fixed stratified fifth of them is the test split.

    Source: E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # stored as counts 0 … 16
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    everything = ArrayImages(pixels, digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(pixels)), test_size=TEST_FRACTION, random_state=0, stratify=everything.targets)
    return Dataset(
        train=everything.take(train),
        val=None,
        test=everything.take(test),
        classes=tuple(str(digit) for digit in digits.target_names),
        flips=False,
        content=everything.digest(),
    )
