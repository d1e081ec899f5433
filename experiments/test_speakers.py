"""Accuracy by speaker against one sample at a time: `python -m pytest -q experiments`, offline."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import speakers

import data
import train
from delays import class_scores

torch.set_num_threads(1)


def samples(names, seed):
    """A random sample for each name, of two classes, over eight inputs and up to twelve steps."""
    draw = np.random.default_rng(seed)
    sample, step, channel = draw.integers(0, [len(names), 12, 8], (90, 3)).T
    labels = draw.integers(0, 2, len(names))
    return data.from_events(sample, step, channel, labels, inputs=8, speakers=np.array(names))


@pytest.fixture
def sets(monkeypatch):
    """A data set of four speakers, two of whom are only in test."""
    made = {"train": samples(list("abab") * 3, 0), "test": samples(list("abcd") * 6, 1)}
    row = data.Dataset(lambda split, folder: made[split], ("train", "test"), 8, 2, step_ms=10)
    monkeypatch.setitem(data.DATASETS, "tiny", row)
    monkeypatch.setitem(train.DEFAULTS, "tiny", dict(hidden=6, layers=1, batch_size=5, taps=9))
    return made


def run(folder, *words):
    options = train.parse(["--dataset", "tiny", "--epochs", "2", "--out", str(folder), *words])
    train.train(options)
    return train.load_run(str(folder / "last.pt"))[0]


def slow_scores(net, spikes, i, move):
    """Of sample i alone, moved cell by cell."""
    start = int(spikes.steps[:i].sum())
    steps, inputs = int(spikes.steps[i]), spikes.counts.shape[1]
    tails = sum(layer.taps // 2 for layer in net.layers)
    counts = torch.zeros(1, steps + tails, inputs)
    for t in range(steps):
        for channel in range(inputs):
            if 0 <= channel + move < inputs:
                counts[0, t, channel + move] = spikes.counts[start + t, channel]
    with torch.no_grad():
        return class_scores(net(counts)[:, : steps + tails])[0]


def test_rows_are_those_of_one_sample_at_a_time(tmp_path, sets):
    net, test = run(tmp_path), sets["test"]
    moves = [-3, 1]
    rows = speakers.judge(net, test, sets["train"].speakers, moves, size=7)
    plain, shifted = [], []
    for i, label in enumerate(test.labels):
        plain.append((slow_scores(net, test, i, 0).argmax() == label).item())
        both = sum(slow_scores(net, test, i, move) for move in moves)
        shifted.append((both.argmax() == label).item())
    assert 0 < sum(plain) < 24 and plain != shifted, "the samples would not tell a mistake"

    members = {
        "all": "abcd",
        "speakers in training": "ab",
        "other speakers": "cd",
        "speaker c": "c",
        "speaker d": "d",
    }
    assert list(rows) == list(members)
    for name, who in members.items():
        which = np.isin(test.speakers, list(who))
        assert rows[name]["samples"] == which.sum(), name
        assert rows[name]["accuracy"] == pytest.approx(np.array(plain)[which].mean()), name
        assert rows[name]["shifted"] == pytest.approx(np.array(shifted)[which].mean()), name


def test_the_file_has_what_is_printed_and_the_runs_accuracy(tmp_path, sets, monkeypatch, capsys):
    run(tmp_path)
    monkeypatch.setattr(sys, "argv", ["speakers.py", str(tmp_path), "--moves=0"])
    speakers.main()
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "speakers.json").read_text())
    assert written["moves"] == [0]
    assert written["checkpoint"] == "last.pt" and written["epoch"] == 2
    assert written["rows"]["all"]["accuracy"] == written["rows"]["all"]["shifted"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert written["rows"]["all"]["accuracy"] == pytest.approx(result["test_accuracy"])
    for name, row in written["rows"].items():
        assert f"{name:24}{row['samples']:8}{row['accuracy']:10.2%}" in printed


def test_a_run_without_test_is_judged_on_its_held_out_speakers(tmp_path, sets, monkeypatch):
    run(tmp_path, "--valid-speakers", "b", "--no-test")
    monkeypatch.setattr(sys, "argv", ["speakers.py", str(tmp_path)])
    speakers.main()
    rows = json.loads((tmp_path / "speakers.json").read_text())["rows"]
    assert list(rows) == ["all", "other speakers", "speaker b"]
    result = json.loads((tmp_path / "result.json").read_text())
    last = train.read_checkpoint(str(tmp_path / "last.pt"))["rows"][-1]
    assert rows["all"]["accuracy"] == pytest.approx(last["valid_accuracy"])
    assert result["test_accuracy"] is None


def test_a_data_set_without_test_is_judged_on_validation(tmp_path, sets, monkeypatch):
    sets["valid"] = sets.pop("test")
    row = data.DATASETS["tiny"]._replace(splits=("train", "valid"))
    monkeypatch.setitem(data.DATASETS, "tiny", row)
    run(tmp_path)
    monkeypatch.setattr(sys, "argv", ["speakers.py", str(tmp_path)])
    speakers.main()
    rows = json.loads((tmp_path / "speakers.json").read_text())["rows"]
    last = train.read_checkpoint(str(tmp_path / "last.pt"))["rows"][-1]
    assert rows["all"]["accuracy"] == pytest.approx(last["valid_accuracy"])


def test_a_move_that_torch_cannot_take_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speakers.py", "run", f"--moves=0,{2**63}"])
    with pytest.raises(SystemExit):
        speakers.parse()
    assert f"argument --moves: {2**63}: expected at least" in capsys.readouterr().err


def test_a_folder_without_a_run_ends_with_a_sentence(tmp_path):
    command = [sys.executable, speakers.__file__, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("speakers.py: ") and "is not there" in ended.stderr
