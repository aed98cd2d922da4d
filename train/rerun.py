"""What an interrupted training left below its folder, put in order before Ray Train goes on from it."""

import shutil
from pathlib import Path

from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState
from upath import UPath

from infra.console import stage
from infra.follow import append, logged
from infra.storage import read_json
from train.best import LOSS, best, keep_if_best
from train.progress import fault, folders, newest_whole, step_of
from train.results import EVALUATIONS, LOG
from train.validation import DRAINED

LIST = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints that it keeps and removes."""


def put_in_order(root: Path) -> Path | None:
    """Return the newest progress below `root` that is whole, or None; what nobody goes on from any more is removed."""
    listed = _listed(root)
    (root / DRAINED).unlink(missing_ok=True)
    newest = newest_whole(root, say_passed_over)
    if newest is not None:
        _remove_forgotten(root, listed, newest)
    return newest


def begin_like(longest: UPath | None, root: Path, log: Path, name: str, under: str | None = None) -> str:
    """Return the progress of a shorter training to begin with; its log and its best are then this training's too.

    So is what was measured of it under the conditions that this one measures `under`; where it measures nothing, None,
    all is, but for a best by a distance, which it could never beat. Nothing where there is progress below `root`
    already, or none in the shorter one, whose Ray Train run is `name`.
    """
    if longest is None or newest_whole(root) is not None:
        return ""
    shorter = Path(str(longest))
    folder = newest_whole(shorter / name, say_passed_over)
    if folder is None:
        return ""
    stage("checkpoint", f"the same training as {longest.name} but longer: going on from its step {step_of(folder)}")
    for line in logged(shorter / LOG):
        append(log, line)
    for line in logged(shorter / EVALUATIONS):
        if under in (None, line.get("under")):
            append(log.with_name(EVALUATIONS), line)
    kept = best(shorter / name)
    if kept is not None and not fault(kept.folder) and (kept.by == LOSS or kept.under == under):
        root.mkdir(parents=True, exist_ok=True)
        keep_if_best(root, kept.folder, kept.by, kept.value, kept.under)
    return str(folder)


def say_passed_over(found: str) -> None:
    """Tell of a progress that is not whole."""
    stage("checkpoint", f"damaged checkpoint: {found}")


def _listed(root: Path) -> set[str]:
    """Return the folders in Ray's list, which is removed where Ray could not read it or one of them is gone.

    Ray would not start with such a list.
    """
    try:
        state = _CheckpointManagerState.model_validate(read_json(root / LIST))
        latest = [state.latest_checkpoint_result] if state.latest_checkpoint_result else []
        results = (*state.checkpoint_results, *state.pending_training_results, *latest)
        names = [result.checkpoint_dir_name for result in results]
        is_whole = (
            all((root / name).is_dir() for name in names)
            and len(state.checkpoint_results) == len(state.checkpoint_report_indices)
            and len(state.pending_training_results) == len(state.pending_validation_specs)
        )
    except FileNotFoundError:
        return set()
    except Exception:  # noqa: BLE001  its parser raises anything on damaged bytes
        is_whole, names = False, []
    if not is_whole:
        (root / LIST).unlink()
    return set(names) if is_whole else set()


def _remove_forgotten(root: Path, listed: set[str], newest: Path) -> None:
    """Remove what Ray does not know and therefore never would: a kill while writing leaves as much as a checkpoint."""
    old = [
        folder
        for folder in folders(root)
        if folder.name not in listed and step_of(folder) < step_of(newest) and not (folder / "progress.pt").exists()
    ]
    for folder in old:
        shutil.rmtree(folder, ignore_errors=True)
    if old:
        stage("checkpoint", f"removed {len(old)} older checkpoints that were left behind: {old[0].name}, ...")
