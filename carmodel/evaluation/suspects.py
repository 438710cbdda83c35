"""Photos that are in the data twice. If their labels differ, one of them is wrong."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from carmodel.data.near_duplicates import near_pairs, perceptual_hash
from carmodel.data.store import Store

BATCH = 256
"""Photos in memory at a time."""


def near_identical(stores: Mapping[str, Store]) -> pd.DataFrame:
    """Return the pairs of photos that show the same picture, as preprocess finds them.

    Args:
        stores: the stores by split, such as {"train": …, "test": …}, with the same classes. A photo that is in its store
            twice, cropped and whole, counts once.

    Returns:
        split_a, row_a, source_a, label_a, the same with _b, and same_label; pairs with different labels first.
    """
    photos = pd.concat(
        [
            pd.DataFrame(
                {
                    "split": split,
                    "row": np.arange(len(store)),
                    "source": store.source,
                    "label": np.array(store.class_names)[store.labels],
                }
            )
            for split, store in stores.items()
        ],
        ignore_index=True,
    )
    hashes = [
        perceptual_hash(image)
        for store in stores.values()
        for start in range(0, len(store), BATCH)
        for image in store.take(np.arange(start, min(start + BATCH, len(store))))
    ]
    a, b = (photos.iloc[rows].reset_index(drop=True) for rows in near_pairs(hashes))
    pairs = a.add_suffix("_a").join(b.add_suffix("_b"))
    pairs = pairs[(a["split"] != b["split"]) | (a["source"] != b["source"])]
    names = [pairs[f"split_{side}"] + "/" + pairs[f"source_{side}"] for side in "ab"]
    pairs = pairs[~pd.DataFrame(np.sort(np.stack(names, axis=1), axis=1), pairs.index).duplicated()]
    pairs = pairs.assign(same_label=pairs["label_a"] == pairs["label_b"])
    return pairs.sort_values("same_label", kind="stable", ignore_index=True)
