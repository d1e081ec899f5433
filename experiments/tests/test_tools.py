"""The tools for runs and recordings of one's own, each against a slow computation."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import test_delays as oracle
import train
from delays import DelayedLinear, DelaySNN
from experiments.forks import ideas
from experiments.tools import encode, export

FAST = ["--dataset=toy", "--hidden=5", "--taps=5", "--batch-size=500", "--epochs=1", "--device=cpu"]
little = oracle.little  # a fixture

# ------------------------------------------------------------------------------------------ compare


def write_run(folder, speakers="", parts=None, **others):
    """Write what compare reads of a finished run."""
    run = dict(dataset="toy", seed=0, rule="last epoch", test_accuracy=None, valid_accuracy=None)
    run |= dict(network="DelaySNN", loss="cross_entropy", augment=None, before_epoch=None) | others
    run["options"] = dict(dataset=run["dataset"], valid_speakers=speakers, data_dir=str(folder))
    run["options"] |= parts or {}
    Path(folder).mkdir()
    for name in ("config.json", "result.json"):  # which have a part of it each
        Path(folder, name).write_text(json.dumps(run))


@pytest.fixture
def compare():
    return pytest.importorskip("experiments.tools.compare")  # it needs pandas and scipy


def test_two_sides_of_runs_are_compared(compare, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sides = {"one": [90, 95, 91, 96, 90, 96], "other": [85, 91, 94, 95, 89, 85]}
    for side, accuracies in sides.items():
        for k, x in enumerate(accuracies):  # two seeds hold out each pair of speakers
            changes = dict(network=side.title(), seed=k % 2, valid_accuracy=x / 100)
            write_run(f"{side}-{k}", f"{k // 2},{k // 2 + 5}", **changes)
    one, other = [[f"{side}-{k}" for k in range(6)] for side in sides]
    compare.main([*one, "--", *reversed(other)])
    *_, last = capsys.readouterr().out.splitlines()
    assert last[14:] == "+3.17 [-3.80, 10.13] points, 99 % interval (Welch, n = 6 and 6)"
    compare.main([*one, "--", *reversed(other), "--paired"])
    assert capsys.readouterr().out.splitlines() == [
        "toy, valid accuracy in %, last epoch",
        "first         93.00 ± 2.97 (n = 6)",
        "              network One",
        "others        89.83 ± 4.31 (n = 6)",
        "              network Other",
        "speakers 0,5  +4.50",  # the mean over two seeds
        "speakers 1,6  -1.00",
        "speakers 2,7  +6.00",
        "first wins    2 of 3",
        "difference    +3.17 [-17.95, 24.29] points, 99 % interval (paired, n = 3 pairs)",
    ]
    write_run("usual", valid_accuracy=0.9, parts=dict(lr=0.1))
    write_run("fork", valid_accuracy=0.9, parts=dict(lr=0.1, depth=3), augment="shift")
    compare.main(["fork", "--", "usual"])
    _, _, fork, _, usual, last = capsys.readouterr().out.splitlines()
    assert fork.split() == ["augment", "shift,", "depth", "3"]
    assert usual.split() == ["no", "augment,", "no", "depth"]
    assert last == "difference    +0.00 points, no interval below three (Welch, n = 1 and 1)"


def test_runs_that_cannot_be_compared_are_refused(compare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        write_run(f"one-{k}", seed=k, valid_accuracy=0.9)
    write_run("other", valid_accuracy=0.9)
    write_run("best", valid_accuracy=0.9, rule="best on validation, epoch 3")  # as of SSC
    write_run("published", dataset="shd", test_accuracy=0.9)
    write_run("ours", dataset="shd-regenerated", test_accuracy=0.9)
    for words, sentence in (
        ("one-0", "expected runs before and after a --"),
        ("one-0 -- begun", "begun is not the folder of a finished run: .*No such file"),
        ("best -- one-0", "best has toy, valid accuracy in %, best on validation; one-0 has toy"),
        ("ours -- published", "ours has shd-regenerated, test .*: both sides need the same"),
        ("one-0 -- ./one-0", "one-0, ./one-0 are one run, or one seed"),
        ("one-0 other -- one-1", "one-0, other are one run, or one seed of a side"),
        ("--paired one-0 -- one-1", "other side has no run of the seed of one-0, one-1"),
    ):
        with pytest.raises(SystemExit, match=f"^compare.py: .*{sentence}"):
            compare.main(words.split())


# --------------------------------------------------------------------------------------------- look


@pytest.mark.parametrize(
    "words", ["little --valid-share 0.2", "shd --valid-speakers 1,2 --no-test"]
)
def test_a_run_is_drawn_and_its_errors_and_spikes_are_printed(
    words, little, tmp_path, monkeypatch, capsys
):
    look = pytest.importorskip("experiments.tools.look")  # it needs matplotlib
    monkeypatch.setitem(data.DATASETS, "shd", data.DATASETS["little"])
    monkeypatch.setitem(train.DEFAULTS, "shd", oracle.LITTLE)
    run = tmp_path / "run"
    options = oracle.options_of(run, "--epochs=2", "--lr=0.02", "--dataset", *words.split())
    train.train(options)
    config = run / "config.json"  # as if it had run on a GPU
    config.write_text(config.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    net = train.build(options).double()
    capsys.readouterr()
    figure = look.draw(str(run), net)

    names, samples = ["class 0", "class 1", "class 2"], oracle.little_samples("test")
    if "--no-test" in words:
        names = ["zero", "one", "two"]
        samples = [sample for sample in oracle.little_samples("train") if sample[2] in (1, 2)]
    errors, spikes, right = Counter(), np.zeros(2), {}
    for counts, label, speaker in samples:
        x = torch.from_numpy(counts).double()
        scores, hidden = oracle.plain_network(oracle.state_of(net), x, *oracle.plain_sizes(options))
        guess = int(scores.argmax())
        right.setdefault(speaker, []).append(guess == label)
        if guess != label:
            errors[f"{names[label]}, heard as {names[guess]}"] += 1
        # A layer lasts for the sample's own steps and the tails so far, of 3 steps each.
        spikes += [x[: len(counts) + 3 * i].sum().item() for i, x in enumerate(hidden, 1)]
    assert capsys.readouterr().out.splitlines() == [
        f"{errors.total()} of {len(samples)} samples are errors, most frequently:",
        *(f"{count:>5} x {error}" for error, count in errors.most_common(5)),
        *(f"speaker {s}: {np.mean(right[s]):.2%} of {len(right[s])} right" for s in sorted(right)),
        *(
            f"hidden layer {i + 1}: {spikes[i] / len(samples):,.1f} spikes per sample"
            for i in (0, 1)
        ),
        f"{run}/run.png",
    ]

    top, bottom = [panel.axes for panel in figure.subfigs]
    lines = {line.get_label(): list(line.get_ydata()) for axis in top for line in axis.lines}
    for name, factor in dict(loss=1, train_accuracy=100, rate_2=1000 / 4, moved_ms=1).items():
        assert lines[name] == [factor * float(row[name]) for row in oracle.log_of(run)]
    counts = samples[0][0]
    x = torch.from_numpy(counts).double()
    scores, _ = oracle.plain_network(oracle.state_of(net), x, *oracle.plain_sizes(options))
    oracle.close([line.get_ydata()[-1] for line in bottom[3].lines[:3]], scores, rtol=0, atol=1e-9)
    raster = bottom[0].images[0].get_array()
    assert (raster[:, : len(counts)] == (counts.T > 0)).all()
    assert [axis.lines[-1].get_xdata()[0] for axis in bottom] == [4 * len(counts)] * 4
    look.main([str(run), "--out", str(tmp_path / "drawn.png")])
    assert (tmp_path / "drawn.png").exists()


# -------------------------------------------------------------------------------- export and encode


@pytest.mark.parametrize("kind", [DelaySNN, ideas.Axonal, ideas.Dendritic, ideas.Sparse])
def test_arrays_have_the_scores_of_their_network(kind, monkeypatch):
    monkeypatch.setattr(ideas.SparseLayer, "fan_in", 3)
    net = oracle.small(kind, tau=2.5, tau_readout=6.0)
    net.layers[0].delay.data[:, ::3] = 2.5  # half steps go to the even step
    net.layers[1] = DelayedLinear(8, 7, taps=3).double()
    for norm in net.norms:
        norm.weight.data.uniform_(-2, 2)
        norm.bias.data.uniform_(-0.5, 1.5)  # neurons spike in silence: it matters when layers end
        norm.eps = 0.01
    arrays = export.arrays_of(net.eval(), 4.0)
    named = ("step_ms", "tau_steps", "tau_readout_steps", "tail_steps", "layers")
    assert [arrays[name] for name in named] == [4, 2.5, 6, 2 + 1 + 2, 3]
    samples = oracle.from_lengths(range(5, 45, 5))
    for counts, scores in zip(samples.counts, train.predict(net, samples), strict=True):
        oracle.close(export.simulate(arrays, counts.numpy()), scores, rtol=0, atol=1e-9)
    with pytest.raises(data.UserError, match="more than one synapse"):
        export.arrays_of(net.train(), 4.0)  # with the training kernels


def test_the_program_exports_a_run_or_says_why_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for idea in ("sparse", "recurrent", "adaptive", "two-delays"):
        ideas.main([idea, *FAST, "--out", idea])
    capsys.readouterr()
    export.main(["sparse", "net.npz"])
    answers, scores = capsys.readouterr().out.splitlines()
    assert answers == "20 of 20 test samples get the network's answer from net.npz"
    assert 0 < float(scores.split()[-1]) < 1e-3
    arrays = dict(np.load("net.npz", allow_pickle=False))
    assert arrays["weight_0"].shape == arrays["delay_0"].shape == (5, 8)
    config = Path("sparse/config.json")
    config.write_text(config.read_text().replace("Sparse", "Mine"))
    for run, sentence in (
        ("recurrent", "Recurrent has neurons that the arrays' equations leave out"),
        ("adaptive", "Adaptive has neurons"),
        ("two-delays", "TwoDelays has more than one synapse for a pair of neurons"),
        ("sparse", "network is Mine, not DelaySNN"),
        ("absent", ".*No such file"),
    ):
        with pytest.raises(SystemExit, match=f"^export.py: {sentence}"):
            export.main([run, "none.npz"])
    assert not Path("none.npz").exists()


def test_channel_spikes_are_those_of_the_program_that_made_the_known_files():
    t = np.arange(480)
    random = np.random.RandomState(7).random_sample(480)
    spikes = encode.channel_spikes(200 * np.sin(t / 4) * np.sin(t / 300), random)
    assert np.flatnonzero(spikes).tolist() == [111, 161, 216, 266, 318, 391, 469]
