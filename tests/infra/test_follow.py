"""A log that is appended to, read whole, and followed while it grows."""

import threading

import numpy as np
import pytest

from infra.follow import append, following, logged


def write_steps(path, steps):
    for step in steps:
        append(path, {"step": step})


def test_log_of_runs_killed_anywhere_holds_each_step_once_as_it_was_made_last(tmp_path):
    random = np.random.default_rng(3)
    for round_ in range(30):
        path, resume, made = tmp_path / f"{round_}.jsonl", 0, {}
        for run in range(random.integers(1, 5)):
            stop = resume + random.integers(1, 9)
            for step in range(resume + 1, stop + 1):
                append(path, {"step": step, "run": run})
                made = {s: r for s, r in made.items() if s < step} | {step: run}
            if random.random() < 0.5:  # killed in the middle of a write
                with path.open("ab") as file:
                    file.write(b'{"step": 99, "ru')
            resume = random.integers(0, stop + 1)
        assert [(line["step"], line["run"]) for line in logged(path)] == sorted(made.items())


def test_damaged_lines_of_a_log_are_passed_over(tmp_path):
    random, path, lines = (
        np.random.default_rng(5),
        tmp_path / "log",
        [{"step": step, "loss": 1.5} for step in range(1, 21)],
    )
    for line in lines:
        append(path, line)
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            content[random.integers(len(content))] = random.integers(256)
        path.write_bytes(content)
        assert len([line for line in logged(path) if line in lines]) >= 20 - 2 * 3, "a line's end belongs to two"
    path.write_text('3\n[]\n{"stfp": 1}\n{"step": "1"}\n{"step": 2}\n')
    assert logged(path) == [{"step": 2}]


def test_follower_is_told_the_lines_added_meanwhile_and_no_others(tmp_path):
    path, told = tmp_path / "log.jsonl", []
    write_steps(path, [980, 1000, 1020])
    with path.open("ab") as file:
        file.write(b'{"step": 10')
    with following(path, lambda line: told.append(line["step"])):
        worker = threading.Thread(target=write_steps, args=(path, [1000, 1020, *range(1021, 1400)]))
        worker.start()
        worker.join()
    assert told == [1000, 1020, *range(1021, 1400)]
    with following(path, lambda line: told.append(line["step"])):
        pass
    assert told[-1] == 1399


def test_log_that_does_not_exist_yet_is_followed_from_its_first_line(tmp_path):
    told = []
    with following(tmp_path / "log.jsonl", lambda line: told.append(line["step"])):
        write_steps(tmp_path / "log.jsonl", [1, 2])
    assert told == [1, 2]
    assert logged(tmp_path / "none.jsonl") == []


def test_what_the_listener_raises_ends_the_block_that_works(tmp_path):
    path, never = tmp_path / "log.jsonl", threading.Event()

    def refuse(line):
        raise BrokenPipeError(line["step"])

    def work():
        with following(path, refuse):
            write_steps(path, [7])
            never.wait(60)
            pytest.fail("went on for a minute with nobody listening")

    with pytest.raises(BrokenPipeError, match="7"):
        work()


def test_what_the_listener_raises_of_the_last_lines_is_raised_too(tmp_path):
    def refuse(line):
        raise BrokenPipeError(line["step"])

    path = tmp_path / "log.jsonl"
    with pytest.raises(BrokenPipeError, match="7"), following(path, refuse):
        write_steps(path, [7])
