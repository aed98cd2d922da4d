"""Tables that are damaged at random: a row group costs itself, the footer costs the file, and no loss is without record.

A byte changed inside an image or a label that still read as one is seen by no reader.
"""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.tokenize_jobs.test_sources import encoded
from tests.tokenize_jobs.test_tar import random_damage
from tokenize_jobs.sources.listing import scan
from tokenize_jobs.sources.samples import read_shard

ROWS, GROUP = 40, 8
IMAGES = [
    encoded(Image.fromarray(np.random.default_rng(row).integers(0, 256, (16, 16, 3), dtype=np.uint8)))
    for row in range(ROWS)
]


def written(compression):
    """Return the file, and the bytes [start, stop) of each of its row groups."""
    buffer = io.BytesIO()
    table = pa.table({"image": [{"bytes": image, "path": "x"} for image in IMAGES], "label": list(range(ROWS))})
    pq.write_table(table, buffer, row_group_size=GROUP, compression=compression)
    metadata, spans = pq.ParquetFile(buffer).metadata, []
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        columns = [group.column(number) for number in range(group.num_columns)]
        starts = [c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset for c in columns]
        spans.append((min(starts), max(s + c.total_compressed_size for s, c in zip(starts, columns, strict=True))))
    return buffer.getvalue(), spans


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("rounds", [40, pytest.param(1000, marks=pytest.mark.chaos)])
def test_table_damaged_anywhere_loses_only_row_groups_that_were_hit_and_records_it(rounds, compression, tmp_path):
    whole, spans = written(compression)
    for seed in range(rounds):
        random = np.random.default_rng(seed)
        damage = random_damage(whole, random)
        (tmp_path / "a.parquet").write_bytes(damage.apply(whole, random))
        listing = scan(str(tmp_path), ROWS)
        samples = list(read_shard(listing, listing.shards[0]))
        good = {sample.key: sample for sample in samples if not sample.fault}
        assert len(good) == ROWS or any(sample.fault for sample in samples), damage
        if damage.at + damage.length > spans[-1][1]:
            continue  # the footer is hit
        for group, span in enumerate(spans):
            is_moved = damage.kind != "flip" and span[1] > damage.at  # the footer's offsets are those of before
            if not is_moved and not damage.touches(*span):
                for row in range(group * GROUP, (group + 1) * GROUP):
                    assert good[f"{row:06d}"].content == IMAGES[row], damage
                    assert good[f"{row:06d}"].label == row, damage
