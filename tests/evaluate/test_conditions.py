"""Numbers are ranked only under the same conditions."""

from dataclasses import fields, replace

import pytest

from evaluate.conditions import Conditions, comparable

CONDITIONS = Conditions(
    extractor="inception-v3-compat", layer="2048", dimension=2048, extractor_weights="a", image_size=256, images=50_000,
    reference="b", reference_images=1_281_167, precision="bf16",
)  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Conditions)])
def test_a_difference_in_any_condition_forbids_ranking(name):
    value = getattr(CONDITIONS, name)
    assert comparable(CONDITIONS, replace(CONDITIONS))
    assert not comparable(
        CONDITIONS, replace(CONDITIONS, **{name: value + 1 if isinstance(value, int) else f"{value}x"})
    )


@pytest.mark.parametrize(
    ("images", "reference_images", "deficient"),
    [
        (50_000, 1_281_167, False),
        (2048, 50_000, True),
        (2049, 50_000, False),
        (50_000, 100, True),
        (50_000, 0, False),
        (100, 0, True),
    ],
)
def test_fewer_images_than_features_are_flagged_and_unknown_counts_are_not(images, reference_images, deficient):
    conditions = replace(CONDITIONS, images=images, reference_images=reference_images)
    assert conditions.is_rank_deficient == deficient
