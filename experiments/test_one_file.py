"""one_file.py has the numbers of train.py: each loss, accuracy and score, in float64."""

import numpy as np
import pytest
import torch

import data
import train
from experiments import one_file
from experiments import test_program as program
from test_delays import options_of


@pytest.fixture(autouse=True)
def double():
    """Float32 would let the two drift apart: a rounding error can move a spike."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(train_set, test_set, settings, options):
    """Train with both programs, and compare each epoch, and the scores of the trained networks."""
    rows = []
    net = train.build(options)
    train.train(options, net, after_epoch=lambda net, row: rows.append(row))
    columns = ("loss", "train_accuracy", "test_accuracy")
    want = [[row[column] for column in columns] for row in rows]
    lesson, history = one_file.train(train_set, test_set, **settings, seed=options.seed)
    np.testing.assert_allclose(history, want, rtol=0, atol=1e-9)

    scores = one_file.predict(lesson, test_set[0], batch_size=5)
    test = data.load(options.dataset, "test", options.data_dir)
    np.testing.assert_allclose(scores, train.predict(net, test), rtol=0, atol=1e-9)


def test_the_toy_task_has_the_losses_of_train(tmp_path, monkeypatch):
    sizes = {"train": 200, "test": 50}

    def first(split, data_dir):
        spikes = data.toy(split)
        return spikes.select(np.arange(len(spikes.labels)) < sizes[split])

    monkeypatch.setitem(data.DATASETS, "toy", data.DATASETS["toy"]._replace(read=first))
    words = ["--dataset=toy", "--hidden=20", "--batch-size=100", "--epochs=8"]
    counts, labels = one_file.toy(2000, seed=1)
    test_counts, test_labels = one_file.toy(1000, seed=2)
    settings = one_file.TOY | dict(hidden=[20], batch_size=100, epochs=8)
    sets = [(counts[:200], labels[:200]), (test_counts[:50], test_labels[:50])]
    assert_same(*sets, settings, options_of(tmp_path / "run", *words))


def test_shd_has_the_losses_of_train_from_packed_files(tmp_path):
    program.write_shd(tmp_path)
    program.pack(tmp_path / "shd_train.h5", ".zip")
    program.pack(tmp_path / "shd_test.h5", ".gz")
    words = ["--hidden=30", "--batch-size=10", "--epochs=8", "--seed=3"]
    options = options_of(tmp_path / "run", "--data-dir", tmp_path, *words)
    sets = [one_file.read_shd(tmp_path, split) for split in ("train", "test")]
    settings = one_file.SHD | dict(hidden=[30, 30], batch_size=10, epochs=8)
    assert_same(*sets, settings, options)


def test_settings_are_the_defaults_of_train_and_a_folder_without_files_gets_a_line(tmp_path):
    for dataset, settings in (("toy", one_file.TOY), ("shd", one_file.SHD)):
        want = dict(train.DEFAULTS[dataset], tau=pytest.approx(1.005))
        want["hidden"] = [want["hidden"]] * want.pop("layers")
        assert settings == want
    with pytest.raises(SystemExit, match="has no shd_test.h5, .h5.gz or .h5.zip: expected SHD's"):
        one_file.read_shd(tmp_path, "test")
