"""one_file.py has train.py's losses, accuracies, parameters and scores, in float64."""

import numpy as np
import pytest
import torch

import data
import train
from experiments import one_file
from experiments import test_program as program
from test_delays import close, options_of

pytestmark = pytest.mark.paper


@pytest.fixture(autouse=True)
def double():
    """Rounding can move a spike: in float32, two programs drift apart."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(train_set, test_set, settings, options):
    """Train with both programs.  Spikes hide small changes of a parameter, so compare those too."""
    rows = []
    net = train.build(options)
    train.train(options, net, after_epoch=lambda net, row: rows.append(row))
    lesson, history = one_file.train(train_set, test_set, **settings, seed=options.seed)
    columns = ("loss", "train_accuracy", "test_accuracy")
    close(history, [[row[column] for column in columns] for row in rows], rtol=0, atol=1e-9)

    ours = [*lesson.weights, *lesson.delays, *lesson.norms.parameters()]
    groups = train.make_optimizer(net, options).param_groups
    theirs = [parameter for group in groups for parameter in group["params"]]
    for one, other in zip(ours, theirs, strict=True):
        close(one, other, rtol=0, atol=1e-9)
    test = data.load(options.dataset, "test", options.data_dir)
    scores = one_file.predict(lesson, test_set[0], batch_size=5)
    close(scores, train.predict(net, test), rtol=0, atol=1e-9)


def test_the_toy_task_has_the_numbers_of_train(tmp_path, monkeypatch):
    def first(split, data_dir):
        spikes = data.toy(split)
        return spikes.select(np.arange(len(spikes.labels)) < 200)

    monkeypatch.setitem(data.DATASETS, "toy", data.DATASETS["toy"]._replace(read=first))
    words = ["--dataset=toy", "--hidden=20", "--batch-size=100", "--epochs=8"]
    sets = [one_file.toy(2000, seed=1), one_file.toy(1000, seed=2)]
    sets = [(counts[:200], labels[:200]) for counts, labels in sets]
    settings = one_file.TOY | dict(hidden=[20], batch_size=100, epochs=8)
    assert_same(*sets, settings, options_of(tmp_path / "run", *words))


def test_shd_has_the_numbers_of_train_from_a_packed_file_and_an_open_one(tmp_path):
    program.write_shd(tmp_path)
    program.pack(tmp_path / "shd_test.h5", ".gz")
    words = ["--hidden=30", "--batch-size=10", "--epochs=8", "--seed=3", "--data-dir", tmp_path]
    sets = [one_file.read_shd(tmp_path, split) for split in ("train", "test")]
    settings = one_file.SHD | dict(hidden=[30, 30], batch_size=10, epochs=8)
    assert_same(*sets, settings, options_of(tmp_path / "run", *words))


def test_settings_are_the_defaults_and_a_folder_without_files_gets_a_line(tmp_path):
    for dataset, settings in (("toy", one_file.TOY), ("shd", one_file.SHD)):
        want = dict(train.DEFAULTS[dataset], tau=pytest.approx(1.005))
        want["hidden"] = [want["hidden"]] * want.pop("layers")
        assert settings == want
    with pytest.raises(SystemExit, match="has no shd_test.h5 or shd_test.h5.gz: expected SHD's"):
        one_file.read_shd(tmp_path, "test")
