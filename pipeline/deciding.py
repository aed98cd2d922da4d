"""Which code decides the numbers of each step: what a record keeps the digests of."""

_STORE = ("tokenize_jobs/store", "tokenize_jobs/tokens", "tokenize_jobs/sources/heldout.py", "infra/seeding.py")
_SAMPLES = tuple(
    f"tokenize_jobs/sources/{name}.py"
    for name in (
        "arrow", "columns", "crop", "digest", "flat", "folder", "heldout", "imagenet", "labels", "layouts", "listing",
        "npz", "parquet", "patterns", "samples", "shard", "splits", "tar", "webdataset",
    )
)  # fmt: skip
_MODELS = ("train/models", "train/card.py", "train/checkpoint.py")
_TOKENIZERS = ("tokenize_jobs/tokenizers", "tokenize_jobs/tokens", "tokenize_jobs/quantization")
_SAMPLING = (*_MODELS, "evaluate/sampling", "evaluate/config.py", *_TOKENIZERS, "infra/seeding.py")
_FEATURES = (
    *_SAMPLES, "evaluate/features.py", "evaluate/extractors.py", "evaluate/arrays.py", "evaluate/drawn.py",
    "evaluate/metrics", "evaluate/intervals.py", "evaluate/conditions.py", "evaluate/reference.py",
    "evaluate/real_images.py", "evaluate/decoding.py", "infra/seeding.py",
)  # fmt: skip
_MEASURING = (*_SAMPLING, *_FEATURES, "evaluate/measure.py", "evaluate/finish.py")
CODE: dict[str, tuple[str, ...]] = {
    "pictures": ("tokenize_jobs/sources/emoji.py", "infra/seeding.py"),
    "tokenizer": (*_SAMPLES, *_TOKENIZERS, "tokenize_jobs/job/fit_job.py", "infra/seeding.py"),
    "latents": (
        *_SAMPLES,
        *_TOKENIZERS,
        "tokenize_jobs/job",
        "tokenize_jobs/store/shards.py",
        "infra/seeding.py",
    ),
    "checkpoint": (
        *_MODELS,
        *_STORE,
        *_TOKENIZERS,
        "train/batches.py",
        "train/config.py",
        "train/ema.py",
        "train/heldout_loss.py",
        "train/loop.py",
        "train/optimizer.py",
        "train/progress.py",
        "train/rerun.py",
        "train/start.py",
        "train/step.py",
        "train/trainer.py",
        "train/watch.py",
        "train/workers.py",
    ),
    "reference": _FEATURES,
    "evaluation": (
        *_MEASURING,
        "evaluate/evaluate.py",
        "evaluate/given_images.py",
        "evaluate/likelihood.py",
        "tokenize_jobs/job",
    ),
    "reconstruction": (*_MEASURING, "evaluate/reconstruct.py"),
    "sweep": (
        *_MEASURING,
        "evaluate/evaluate.py",
        "tune/config.py",
        "tune/sampling_sweep.py",
        "tune/search.py",
        "tune/training_sweep.py",
        "tune/halving.py",
        "tune/trial.py",
        "tune/front.py",
        "tune/ends.py",
    ),
    "registration": (),
}
"""Files and folders whose code decides the numbers of each step; a test compares them with what it imports."""
DECIDES_NOTHING = (
    "infra/abandoned.py",
    "infra/actors.py", "infra/ahead.py", "infra/cluster.py", "infra/code.py", "infra/console.py", "infra/errors.py",
    "infra/fingerprint.py", "infra/follow.py", "infra/from_json.py", "infra/hold.py",
    "infra/artifact.py", "infra/processor.py", "infra/result.py", "infra/stages.py", "infra/storage.py",
    "tokenize_jobs/results.py", "tokenize_jobs/sources/survey.py",
    "train/results.py", "train/best.py", "train/log.py", "train/memory.py", "train/rate.py",
    "train/saving.py", "train/sharding.py", "train/validation.py", "evaluate/meanwhile.py",
    "evaluate/results.py", "tune/results.py", "tune/training_results.py", "tune/figures.py",
    "tune/training_figures.py", "tune/page.py", "evaluate/grid.py",
    "evaluate/report", "evaluate/networks.py", "evaluate/subject.py", "tokenize_jobs/config.py",
)  # fmt: skip
"""Files that steps import and that decide no number: what a config says is part of the identity itself."""
