"""Splits for corpora that have none of their own, or not all three: stable, and by group where wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from ...core.sections import Split

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
"""What datasets call their splits, in lower case, and what we call them."""


def stable_unit(text: str) -> float:
    """A number in [0, 1) that is the same for the same text everywhere (SHA-256, first eight bytes)."""
    eight = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return (eight >> 11) / 2**53  # a float holds 53 bits; all 64 could round up to 1


def split_by_hash(ids: Sequence[str], valid_fraction: float, test_fraction: float) -> dict[str, Split]:
    """A split for each id by its own hash, so that a file added later moves no other file.

    The interval [0, 1) is cut into test, valid and train, in this order. In a small folder a split may
    come out empty. So that every wanted split has a file, from three files on, an empty one takes from
    the fullest the file whose hash lies nearest; one or two files all go to train.
    """
    shares: dict[Split, float] = {
        "test": test_fraction,
        "valid": valid_fraction,
        "train": max(0.0, 1.0 - test_fraction - valid_fraction),
    }
    wanted = [split for split, share in shares.items() if share > 1e-9]
    if len(ids) < 3 and "train" in wanted:
        return dict.fromkeys(ids, "train")
    hashes = {name: stable_unit(name) for name in ids}
    splits: dict[str, Split] = {}
    for name, unit in hashes.items():
        in_valid = unit < test_fraction + valid_fraction
        splits[name] = "test" if unit < test_fraction else "valid" if in_valid else "train"
    for split in wanted:
        if split in splits.values() or len(ids) < 3:
            continue
        fullest = max(shares, key=list(splits.values()).count)
        members = sorted((unit, name) for name, unit in hashes.items() if splits[name] == fullest)
        comes_later = list(shares).index(split) > list(shares).index(fullest)
        splits[members[-1 if comes_later else 0][1]] = split
    return splits


def complete_splits(
    given: Mapping[str, Split | None],
    groups: Mapping[str, str],
    valid_fraction: float,
    test_fraction: float,
) -> dict[str, Split]:
    """A split for each id: the one that is given, but a split that nothing is given takes its share by hash.

    The shares of `valid` and `test`, where one is missing, come out of what is given as train or not at
    all; the hash is that of the id's group, so that what is hashed of one group falls into one split.

    Args:
        given: for each id the split that the corpus itself names, or None.
        groups: for each id its group, such as the album of a song; the id itself if it has none.
        valid_fraction: share of the groups for `valid`, where no id is given to it.
        test_fraction: share of the groups for `test`, likewise.
    """
    named = set(given.values())
    hashed = split_by_hash(
        sorted({groups[name] for name, split in given.items() if split in (None, "train")}),
        0.0 if "valid" in named else valid_fraction,
        0.0 if "test" in named else test_fraction,
    )
    return {
        name: hashed[groups[name]] if split in (None, "train") else split for name, split in given.items()
    }
