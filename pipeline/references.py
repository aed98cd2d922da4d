"""What `--reference PATH` names: images, a latent store for the images that it was made of, or ADM's .npz."""

from dataclasses import replace

from evaluate.config import Reference
from infra.console import stage
from infra.storage import location
from pipeline.steps import NO_IMAGES, Source
from tokenize_jobs.sources import npz
from tokenize_jobs.sources.labels import NONE
from tokenize_jobs.sources.listing import ImageFiles, scan_images
from tokenize_jobs.store.audit import images_of
from tokenize_jobs.store.shards import MANIFEST

_STATISTICS = {"mu", "sigma"}


def named_reference(config: Reference) -> tuple[Reference, Source]:
    """Return the images that `config.path` names, if any, and the config with the statistics that lie beside them.

    Raises InputError for what is none of these.
    """
    path = location(config.path)
    if path.suffix == ".npz" and path.is_file():
        held = npz.arrays(path)
        if held >= _STATISTICS and not config.statistics:
            config = replace(config, statistics=str(path))
        if config.statistics and npz.IMAGES not in held:
            stage("reference", f"{config.statistics}: mean and covariance alone")
            return config, NO_IMAGES
    if (path / MANIFEST).exists():
        found = images_of(path)
    else:
        found = scan_images(ImageFiles(path=config.path, label=NONE, heldout_share=0))
    stage("reference", found.told)
    return config, Source.of(found)
