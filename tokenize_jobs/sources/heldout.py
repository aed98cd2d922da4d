"""Which samples of a source are held back from training, where no others are given: a share, by a hash of their names.

Decided when reading: the latents hold all, and the same sample is on the same side for every reader.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Heldout:
    """Holds back about `share` of the samples, in [0, 1), whatever their order, number or shards' sizes."""

    share: float = 0.0

    @property
    def identity(self) -> dict[str, str]:
        """Return what a step that reads one side records of it: nothing where nothing is held back."""
        return {"heldout_share": f"{self.share:g}"} if self.share else {}

    def holds(self, shard: str, key: str) -> bool:
        """Tell whether the sample `key` of `shard` is held back from training."""
        if not self.share:
            return False
        digest = hashlib.blake2b(f"{shard}/{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < self.share * 2**64


NONE_HELD = Heldout()
