"""Optuna's search after a killed driver: what was measured is told to it, what was begun comes first, draws go on."""

from types import SimpleNamespace

from evaluate.config import Sampling
from infra.fingerprint import canonical, fingerprint
from infra.storage import location
from tune.config import SamplingSweep
from tune.search import Optuna, _Asked

TRIALS = 13
SWEEP = SamplingSweep(
    temperature=tuple(of / 10 for of in range(1, 16)), cfg_scale=tuple(map(float, range(1, 16))), ar_steps=()
)


def distance(sampling):
    return {"fd": (sampling.temperature - 0.9) ** 2 * 30 + (sampling.cfg_scale - 5) ** 2, "seconds_per_image": 1.0}


class Driver:
    """Does what Tune does, one trial after the other, and may be killed."""

    def __init__(self, folder, measured):
        self.measured, self.began = measured, list[Sampling]()
        self.search = Optuna(SWEEP.axes(), Sampling(), TRIALS, 0, location(folder / "asked.json")).going_on(
            lambda sampling: measured.get(fingerprint(canonical(sampling)))
        )

    def run(self, killed_after=TRIALS):
        """Returns the settings that the search holds for finished in the end."""
        options, callbacks = self.search.options(), self.search.callbacks()
        for count in range(options["num_samples"]):
            config = options["search_alg"].suggest(str(count))
            for failures in (0, 1):  # the second try is no trial of its own
                callbacks[0].on_trial_start(0, [], SimpleNamespace(config=config, num_failures=failures))
            sampling = self.search.at(config)
            self.began.append(sampling)
            if count == killed_after:
                break
            self.measured[fingerprint(canonical(sampling))] = distance(sampling)
            options["search_alg"].on_trial_complete(str(count), distance(sampling))
        return options["search_alg"]


def finished(search):
    return [trial for trial in search._ot_study.trials if trial.state.name == "COMPLETE"]


def test_rerun_asks_only_for_what_is_left_tells_what_was_measured_and_begins_with_what_was_begun(tmp_path):
    measured = {}
    killed = Driver(tmp_path, measured)
    killed.run(killed_after=7)
    again = Driver(tmp_path, measured)
    search = again.run(killed_after=2)
    assert again.began[0] == killed.began[7]
    assert not set(again.began[1:3]) & set(killed.began)  # while it still draws at random, new points
    assert len(finished(search)) == 7 + 2
    last = Driver(tmp_path, measured)
    search = last.run()
    assert len(finished(search)) == TRIALS == len(killed.began) - 1 + len(again.began) - 1 + len(last.began)
    told = [trial.values for trial in finished(search)]
    assert told == [list(distance(of).values()) for of in [*killed.began[:7], *again.began[:2], *last.began]]
    done = Driver(tmp_path, measured)
    assert len(done.search) == 0
    assert len(done.search.told) == TRIALS


def test_second_try_of_a_trial_is_written_down_once(tmp_path):
    asked = _Asked(location(tmp_path / "asked.json"), [])
    for failures in (0, 1):
        asked.on_trial_start(0, [], SimpleNamespace(config={"temperature": 1}, num_failures=failures))
    assert asked.asked == [{"temperature": 1}]
