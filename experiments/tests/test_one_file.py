"""one_file.py has train.py's losses, accuracies, parameters and scores, in float64."""

import numpy as np
import pytest
import torch

import data
import train
from experiments.lesson import one_file
from test_delays import close, options_of

pytestmark = pytest.mark.paper


@pytest.fixture(autouse=True)
def double_on_a_cpu(monkeypatch):
    """Rounding can move a spike: in float32 or on a GPU, two programs drift apart."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
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


CASES = [  # how many of the first samples; with these, both sets of SHD have the last class
    ("toy", 200, one_file.TOY, dict(hidden=20, batch_size=100, epochs=8)),
    ("shd-regenerated", 70, one_file.SHD, dict(hidden=20, batch_size=20, epochs=4)),
]


@pytest.mark.parametrize("dataset, samples, usual, own", CASES)
def test_the_first_samples_have_the_numbers_of_train(
    dataset, samples, usual, own, tmp_path, monkeypatch
):
    def first(split, data_dir):
        spikes = row.read(split, data_dir)
        return spikes.select(np.arange(len(spikes.labels)) < samples)

    row = data.DATASETS[dataset]
    monkeypatch.setitem(data.DATASETS, dataset, row._replace(read=first))
    if dataset == "toy":
        sets = [one_file.toy(2000, seed=1), one_file.toy(1000, seed=2)]
    else:
        sets = [one_file.read_shd("train"), one_file.read_shd("test")]
    sets = [(counts[:samples], labels[:samples]) for counts, labels in sets]
    words = [f"--{name.replace('_', '-')}={value}" for name, value in own.items()]
    words += [f"--dataset={dataset}", "--seed=3"]
    settings = usual | own | dict(hidden=[own["hidden"]] * len(usual["hidden"]))
    assert_same(*sets, settings, options_of(tmp_path / "run", *words))


def test_settings_are_the_defaults():
    for dataset, settings in (("toy", one_file.TOY), ("shd", one_file.SHD)):
        usual = train.defaults(dataset)
        want = {name: usual[name] for name in settings}
        want["hidden"] = [usual["hidden"]] * usual["layers"]
        want["tau"] = pytest.approx(usual["tau"] / data.DATASETS[dataset].step_ms)
        assert settings == want
    assert train.defaults("shd-regenerated") == train.defaults("shd")
