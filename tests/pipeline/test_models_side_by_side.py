"""Several models in one picture: what it says beside seconds an image, and where it is found."""

from dataclasses import replace

from evaluate.config import Sampling
from infra.cluster import Compute
from infra.storage import location
from infra.tracking import Tracker
from pipeline.models_side_by_side import write_models
from tests.tune.test_results import bowl, found
from tune.results import Timed


def test_page_states_how_many_images_were_drawn_at_once_and_the_link_is_that_of_its_run(tmp_path, capsys):
    quick = Timed(label="quick", sampling=Sampling(), fd=7.5, seconds_per_image=0.0625, error=0.1)
    result = replace(found(bowl(1.0, 3.0)), front=(quick,), timed_batch=48)
    swept = {"./mar-b": result, "./mar-l": replace(result, front=(replace(quick, seconds_per_image=0.125),))}
    for _ in range(2):  # the second finds what the first recorded
        out = write_models(Compute(out=str(tmp_path)), swept)
        text = (out / "report.html").read_text()
        assert text.count("seconds an image, 48 at once") == 2
        tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", location(tmp_path))
        run = tracker.newest()
        assert f"/runs/{run}" in capsys.readouterr().out
        assert tracker.client.get_run(run).info.run_name == "mar-b and mar-l"
        pictures = [file.path for file in tracker.client.list_artifacts(run, "images") if file.path.endswith(".png")]
        assert len(pictures) == 1
