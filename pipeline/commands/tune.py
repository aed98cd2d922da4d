"""RECIPE|MODEL ... [flags]: a sweep: sampling settings of a model, or trainings side by side

--sweep sampling    temperature, guidance, steps, schedules, order, solver: nothing is trained
--sweep head        widths of the head's MLP, each a training; weak ones are stopped early
--sweep optimizer   learning rates, schedules, warm-ups and mask ratios, each a training

Without it, the recipe's own sweep. Several models that are measured alike are drawn into one picture:

    mar tune ./mar-b ./mar-l --sweep sampling --tokenizer kl16:/weights/kl16.ckpt --images.path /data/train
"""

import itertools
from dataclasses import replace

from infra.errors import InputError
from pipeline.given import model_at
from pipeline.make import chosen_run, make
from pipeline.recipe import Recipe
from pipeline.sweeps import swept


def main(words: list[str]) -> None:
    """Make the sweeps of recipes, or of model directories, and one picture of several."""
    targets = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    if twice := [target for target in targets if targets.count(target) > 1]:
        raise InputError(f"{twice[0]} is named twice: each model is swept once")
    name, flags = _named_sweep(words[len(targets) :])

    def change(recipe: Recipe) -> Recipe:
        return replace(recipe, tune=swept(recipe, name)) if name else recipe

    runs = {target: chosen_run("tune", [target, *flags], model_at, change) for target in targets}
    if len(runs) == 1:
        make(runs[targets[0]], "sweep")
        return
    from pipeline.models_side_by_side import check_alike, write_models

    check_alike(runs)
    done = {target: make(run, "sweep") for target, run in runs.items()}
    if all(done.values()):
        write_models(runs[targets[0]].compute, {target: of["sweep"].artifact.result for target, of in done.items()})


def _named_sweep(words: list[str]) -> tuple[str, list[str]]:
    """Return the name that follows --sweep, or '', and the other words. Raises InputError for --sweep without one."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--sweep":
            rest = words[place + 1 :]
            if not equals and not rest:
                raise InputError("--sweep: which? `mar tune --help` names them")
            return (value, [*words[:place], *rest]) if equals else (rest[0], [*words[:place], *rest[1:]])
    return "", words
