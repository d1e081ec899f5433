"""The programs beside the three files, each against a slow computation; one thread, offline."""

import argparse
import contextlib
import csv
import json
import math
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import data
import train
from delays import DelayedLinear, DelaySNN, class_scores, lif
from experiments import export, ideas, regenerate
from test_delays import assert_same, close, plain_kernel, plain_spike, random

torch.set_num_threads(1)  # several threads fight over the cores of a busy machine

FOLDER = os.path.dirname(os.path.abspath(__file__))

# ------------------------------------------------------------------------------------------ ideas


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [dict(), dict(count=2), dict(connections=2)])
@pytest.mark.parametrize("kind", [ideas.Axonal, ideas.Dendritic])
def test_shared_delays_are_those_of_every_synapse_repeated(kind, options, training):
    torch.manual_seed(0)
    net = kind(4, [6, 5], 3, taps=5, dropout=0.0, **options).double()
    base = DelaySNN(4, [6, 5], 3, taps=5, dropout=0.0, **options).double()
    for layer, shared in zip(base.layers, net.layers, strict=True):
        side = layer.weight.shape[-1 if kind is ideas.Axonal else -2]
        assert shared.delay.numel() == side * options.get("count", 1)
        layer.weight.data.copy_(shared.weight)
        layer.delay.data.copy_(shared.delay.expand_as(layer.delay))
        layer.mask = shared.mask
        layer.sigma = shared.sigma = 0.5
    x = (random(3, 9, 4) > 0.3).double()
    weights = [layer.weight for layer in (*net.layers, *base.layers)]
    got, want = net.train(training)(x), base.train(training)(x)
    close(got, want, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(got.sum() + want.sum(), weights)
    for one, other in zip(gradients[:3], gradients[3:], strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)


def slow_recurrent(current, weight, delay, sigma, taps, tau):
    """Compute the equations of Recurrent, synapse by synapse; a delay of d takes d + 1 steps."""
    _, steps, neurons = current.shape
    share = plain_kernel(torch.ones_like(delay), delay, taps, sigma)  # [N, taps]
    v = [0.0] * neurons
    spikes = []  # of each step and neuron, [B]
    for t in range(steps):
        fired = []
        for o in range(neurons):
            h = (1 - 1 / tau) * v[o] + current[:, t, o]
            for n, d in np.ndindex(neurons, taps):
                if t - (d + 1) >= 0:
                    h = h + weight[o, n] * share[n, d] * spikes[t - (d + 1)][n]
            s = plain_spike(h - 1)
            v[o] = h * (1 - s.detach())
            fired.append(s)
        spikes.append(fired)
    return torch.stack([torch.stack(fired, 1) for fired in spikes], 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("taps, connections", [(3, 0), (3, 2), (1, 0)])
def test_recurrent_neurons_are_the_loop_and_so_are_their_gradients(taps, connections, training):
    torch.manual_seed(0)
    net = ideas.Recurrent(3, [4], 2, tau=2.0, taps=taps, connections=connections).double()
    echo = net.train(training).echoes[0]
    echo.sigma = 0.8
    current = (random(2, 11, 4) + 0.2).requires_grad_()
    weight = echo.weight * echo.mask
    want = slow_recurrent(current, weight, echo.delay[0], 0.8 if training else None, taps, tau=2.0)
    got = net.neurons(0, current)
    assert not torch.equal(got, lif(current, 2.0))  # what came back did something
    moving = training and taps > 1
    assert_same(got, want, [current, echo.weight, echo.delay] if moving else [current, echo.weight])


def test_adaptive_neurons_are_the_loop_and_so_are_their_gradients():
    torch.manual_seed(0)
    neurons = ideas.AdaptiveNeurons(5).double()
    constants = [neurons.m, neurons.k, neurons.a, neurons.b]
    current = (random(3, 20, 5) + 0.5).requires_grad_()
    m, k, a, b = (1 / (1 + torch.exp(-x)) for x in constants)
    v, w, spikes = 0.0, 0.0, []
    for t in range(20):
        h = m * v + current[:, t] - w
        s = plain_spike(h - 1)
        v = h * (1 - s.detach())
        w = k * w + a * v + b * s
        spikes.append(s)
    assert_same(neurons(current), torch.stack(spikes, 1), [current, *constants])


def test_a_shift_moves_all_of_a_sample_by_one_number_of_inputs():
    counts = torch.from_numpy(np.random.default_rng(0).integers(1, 9, (400, 5, 12), np.uint8))
    torch.manual_seed(0)
    shifted = ideas.shift(counts, None)
    moves = []
    for sample, moved in zip(counts, shifted, strict=True):
        wide = F.pad(sample, (8, 8))  # zeros on either side
        moves += [m for m in range(-8, 9) if torch.equal(moved, wide[:, 8 - m : 20 - m])]
    assert shifted.dtype == torch.uint8 and len(moves) == 400
    close([moves.count(m) / 400 for m in range(-8, 9)], [1 / 17] * 17, rtol=0, atol=0.04)


def test_whole_steps_freeze_rounded_delays_in_the_last_fifth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kernels, delays = [], []
    freeze_late = ideas.freeze_late

    def watched(epochs):
        on_epoch = freeze_late(epochs)

        def watch(net, row):
            delays.append(net.layers[0].delay.detach().clone())
            on_epoch(net, row)
            kernels.append((net.train().layers[0].kernel() != 0).sum(2).max().item())

        return watch

    monkeypatch.setattr(ideas, "freeze_late", watched)
    words = "--dataset toy --hidden 5 --taps 5 --batch-size 500 --epochs 5 --device cpu"
    ideas.main(["whole-steps", *words.split()])
    assert kernels == [5, 5, 5, 1, 1]  # taps of a synapse, after each epoch
    moved = [not torch.equal(one, other) for one, other in zip(delays, delays[1:], strict=False)]
    assert moved == [True, True, True, False]


def test_steps_that_open_at_spikes_drop_the_silence_between():
    times = np.float16([0.5, 0, 0.004, 0.25, 0.0035, 0.2578, 0.2617])
    counts = ideas.open_steps(times, np.uint16([0, 5, 0, 5, 699, 5, 0]))
    assert [sorted(row[row > 0]) for row in counts] == [[1, 1, 1], [2], [1], [1]]
    assert counts[1, 1] == 2 and counts[0, 139] == 1
    assert ideas.open_steps(np.float16([]), np.uint16([])).shape == (1, 140)


@pytest.mark.parametrize("idea", ideas.IDEAS)
def test_an_idea_has_the_command_line_of_train(idea, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--dataset toy --hidden 5 --taps 5 --batch-size 500 --epochs 1 --device cpu"
    ideas.main([idea, *words.split()])
    run = f"runs/toy-{idea}-learned-0"
    result = json.loads((tmp_path / run / "result.json").read_text())
    capsys.readouterr()
    ideas.main([idea, "--eval", run])
    assert f"test accuracy {result['test_accuracy']:.2%}" in capsys.readouterr().out
    ideas.main([idea, "--resume", run])
    for words in (["other"], [idea, "--resume", "none"]):
        with pytest.raises(SystemExit, match="expected one of base, ax|ideas.py: .*No such file"):
            ideas.main(words)


# ------------------------------------------------------------------------------------------ export


def simulated(arrays, x):
    """Return the spikes of the hidden layers and the class scores of one sample x, [T, inputs]."""
    steps, hidden = len(x) + arrays["tail_steps"], []
    layers = export.layers_of(arrays)
    for i in layers:
        synapses = [arrays[f"{name}_{i}"] for name in ("pre", "post", "weight", "delay")]
        current = np.tile(arrays[f"current_{i}"].astype(float), (steps, 1))
        for pre, post, weight, delay in zip(*synapses, strict=True):
            for t in range(delay, min(len(x) + delay, steps)):
                current[t, post] += weight * x[t - delay, pre]
        readout = i == layers[-1]
        tau = arrays["tau_readout_steps" if readout else "tau_steps"]
        h, s = np.zeros_like(current), np.zeros_like(current)
        v = np.zeros(current.shape[1])
        for t in range(steps):
            h[t] = (1 - 1 / tau) * v + current[t]
            s[t] = 0 if readout else h[t] >= arrays["threshold"]
            v = h[t] * (1 - s[t])
        hidden.append(s)
        x = s
    e = np.exp(h - h.max(1, keepdims=True))
    return hidden[:-1], (e / e.sum(1, keepdims=True)).sum(0)


TOY = argparse.Namespace(dataset="toy")


def small_net():
    """Return a sparse network of two synapses a pair and two taus, whose norms have seen data."""
    torch.manual_seed(0)
    net = DelaySNN(8, [6, 5], 10, taps=9, tau=2.5, tau_readout=6.0, count=2, connections=4)
    net.layers[0] = DelayedLinear(8, 6, taps=4, count=2, connections=3)
    net.layers[0].delay.data[:, :, ::3] = 2.5  # half steps go to the even step
    for layer in net.layers:
        layer.sigma = 0.5
    for norm in net.norms:
        norm.weight.data.uniform_(-2, 2)
        norm.bias.data.uniform_(-0.5, 1.5)
        norm.eps = 0.01
    for _ in range(20):
        net(torch.poisson(torch.full((10, 20, 8), 0.5)))
    return net.eval()


@pytest.fixture(scope="module")
def samples():
    """Return eight samples of different lengths, with up to four spikes in a step and input."""
    rng = np.random.default_rng(0)
    counts = [rng.poisson(0.5, (steps, 8)).astype(np.uint8) for steps in range(5, 45, 5)]
    return data.join(counts, np.arange(8))


def each(samples):
    return np.split(samples.counts.numpy(), samples.steps.cumsum(0)[:-1])


def test_numpy_gets_the_scores_of_the_network_from_its_arrays_and_so_does_torch(samples):
    net = small_net()
    arrays = export.arrays_of(net, TOY)
    assert arrays["tail_steps"] == 2 + 4 + 4 and len(arrays["delay_0"]) == 6 * 3 * 2
    want = train.predict(net, samples)
    got = np.stack([simulated(arrays, x)[1] for x in each(samples)])
    close(got, want, rtol=0, atol=1e-4)
    labelled = samples._replace(labels=want.argmax(1))
    assert export.accuracy_of(arrays, labelled, batch_size=3) == 1
    for s in simulated(arrays, np.zeros((30, 8)))[0]:  # the ends matter: silence has spikes
        assert s[-6:].any()


def test_the_program_writes_arrays_that_have_the_accuracy_of_the_run(tmp_path, capsys):
    run, path = str(tmp_path / "run"), str(tmp_path / "net.npz")
    words = ["--dataset", "toy", "--epochs", "1", "--lr", "2e-2", "--tau-readout", "30"]
    result = train.train(train.parse([*words, "--device", "cpu", "--out", run]))
    capsys.readouterr()
    export.main([run, "--out", path])
    ours, of_run = re.findall(r"(\S+)%", capsys.readouterr().out)
    assert float(of_run) == pytest.approx(result["test_accuracy"] * 100)
    assert float(ours) == pytest.approx(float(of_run), abs=0.11)  # rounding may move a spike
    arrays = np.load(path, allow_pickle=False)
    numbers = ["tau_steps", "tau_readout_steps", "threshold", "step_ms", "taps", "inputs"]
    assert [float(arrays[name]) for name in numbers] == pytest.approx([1.005, 3, 1, 10, 33, 8])
    with pytest.raises(SystemExit, match="export.py: .*No such file.*config.json"):
        export.main([str(tmp_path), "--out", path])


def test_what_the_arrays_cannot_hold_is_refused():
    for name in ("neurons", "forward"):
        kind = type("Mine", (DelaySNN,), {name: lambda *args: None})
        with pytest.raises(data.UserError, match="Mine has neurons or a forward of its own"):
            export.arrays_of(kind(8, [5], 10), TOY)
    for name in ("kernel", "forward"):
        net = small_net()
        kind = type("Mine", (DelayedLinear,), {name: lambda *args: None})
        net.layers[2] = kind(5, 10, taps=9)
        with pytest.raises(data.UserError, match="Mine has a kernel or a forward of its own"):
            export.arrays_of(net, TOY)


def test_brian2_has_the_spikes_of_the_network(samples, capsys):
    pytest.importorskip("brian2", exc_type=(ImportError, AttributeError))
    net = small_net()
    arrays = export.arrays_of(net, TOY)
    total = sum(int(s.sum()) for x in each(samples)[:4] for s in simulated(arrays, x)[0])
    export.compare_brian2(net, arrays, samples, 4)
    words = f"4 samples, {total} hidden spikes in torch, 0 that only one of the two has\n"
    assert capsys.readouterr().out == words
    export.compare_brian2(net, arrays | {"current_1": arrays["current_1"] + 0.5}, samples, 1)
    assert "step 0, hidden layer 2, neuron" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ results


@pytest.fixture
def results():
    pytest.importorskip("pandas")
    pytest.importorskip("scipy")
    from experiments import results

    return results


@pytest.fixture
def folder(results, tmp_path, monkeypatch):
    """A folder with a runs.csv that has no rows."""
    with open(os.path.join(results.FOLDER, "runs.csv")) as file:
        (tmp_path / "runs.csv").write_text(file.readline())
    monkeypatch.setattr(results, "FOLDER", str(tmp_path))
    return tmp_path


def runs(percents, **columns):
    """Rows of runs of seeds 0, 1, ... with these accuracies."""
    rows = pytest.importorskip("pandas").DataFrame({"accuracy": percents}) / 100
    usual = dict(data="SHD (regenerated)", epochs="150", variant="learned", options="")
    usual |= dict(seed=rows.index.astype(str), processor="A", machine="A")
    return rows.assign(**usual | columns)


# Five seeds each of runs.csv, of 2,264 samples, and the intervals of their difference.
ONE = [samples / 22.64 for samples in (2099, 2119, 2114, 2114, 2138)]
OTHER = [samples / 22.64 for samples in (2091, 2106, 2108, 2090, 2120)]
INTERVALS = {"paired": "+0.61 [+0.21, +1.01]", "Welch": "+0.61 [-0.25, +1.47]"}


# 95 % of Student's distribution of 2, 2.243, 4 and 8 degrees of freedom lie within 4.303, 3.885,
# 2.776 and 2.306 standard errors.
@pytest.mark.parametrize(
    "paired, one, other, points, half",
    [
        (True, [91, 92, 93, 94, 95, 10], [90] * 5, 3, 2.776 * math.sqrt(10 / 4 / 5)),
        (True, [1, 3, 8], [0, 1, 2, 50], 3, 4.303 * math.sqrt(7 / 3)),
        (False, [1, 2, 3, 4, 5], [4, 5, 6, 7, 8], -3, 2.306),
        (False, [1, 2, 3, 4, 5], [1, 6, 11], -3, 3.885 * math.sqrt(10 / 4 / 5 + 25 / 3)),
    ],
)
def test_intervals_and_p_are_those_of_t_tests(results, paired, one, other, points, half):
    stats = pytest.importorskip("scipy.stats")
    text, p, counts = results.t_test(runs(one), runs(other), paired)
    assert text == f"{points:+.2f} [{points - half:+.2f}, {points + half:+.2f}]"
    if paired:
        shared = min(len(one), len(other))
        one, other = one[:shared], other[:shared]
    test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    assert p == pytest.approx(test.pvalue)
    assert counts == f"{len(one)} and {len(other)}"
    few = 2 if paired else 1  # shared seeds, or runs on a side
    assert math.isnan(results.t_test(runs(one[:few]), runs(other), paired)[1])
    assert results.t_test(runs(one), runs(other[: few + 1]), paired)[1] < 1


def test_holms_correction_counts_claims_that_were_not_run(results):
    values = [0.03, math.nan, 0.0098, 0.001, 0.04, 0.0124]  # bounds: 0.0083, 0.01, 0.0125, 0.0167
    verdicts = ["not shown", "not run", "holds", "holds", "not shown", "holds"]
    assert results.holm(values) == verdicts
    assert results.holm([0.04, 0.026]) == ["not shown"] * 2  # 0.026 is above 0.05 / 2


def test_networks_of_the_same_shape_on_the_same_processor_are_pairs(results):
    def pairs(one, options, processor="A", own_options=""):
        rows = runs(ONE, variant=one, options=options, processor=processor)
        return results.are_pairs(rows, runs(OTHER[:4], options=own_options))

    ten = "--connections 10"
    assert pairs("fixed", "") and pairs("constant-sigma", ten, own_options=ten)
    assert pairs("none", "--tau 100.0 --tau-readout 10.05")
    assert not pairs("fixed", "", processor=["A", "A", "A", "B", "A"])
    assert not pairs("fixed-wide", "") and not pairs("authors", "")
    assert not pairs("fixed", ten) and not pairs("fixed", "", own_options="--hidden 165")


@pytest.mark.parametrize("sparse", [[], ["--connections", "5"]])
def test_pairs_begin_with_the_same_weights(sparse):
    def layers(delays):
        return train.build(train.parse(["--dataset", "toy", "--delays", delays, *sparse])).layers

    for delays in ("fixed", "none"):
        for one, other in zip(layers("learned"), layers(delays), strict=True):
            assert one.weight.equal(other.weight) and one.mask.equal(other.mask)
            assert one.delay.round().equal(other.delay) == (delays == "fixed")


@pytest.mark.parametrize("there, test, other", [("A", "paired", "Welch"), ("B", "Welch", "paired")])
def test_a_claim_names_its_test_and_the_other_if_that_disagrees(results, there, test, other):
    toy = dict(data="toy", epochs="20")
    rows = [runs(ONE), runs(OTHER, variant="fixed", processor=there, machine=there)]
    rows += [runs(ONE, **toy), runs([1, 2, 4], variant="none", options="--tau 100.0", **toy)]
    found = results.claims_table(pytest.importorskip("pandas").concat(rows))
    machines = "; ".join(sorted({"A", there}))
    line = [INTERVALS[test], {"A": "0.014", "B": "0.14"}[there], "5 and 5", test, machines]
    line += [f"{other} {INTERVALS[other]}", "not shown"]
    assert found.iloc[0].tolist()[2:] == line
    assert found["verdict"].tolist() == ["not shown", *["not run"] * 7, "holds", "not run"]
    assert found["n"][8] == "3 and 3"


def test_add_keeps_a_run_and_refuses_one_that_is_there(results, folder):
    run = folder / "mine"
    words = ["--dataset", "toy", "--epochs", "1", "--hidden", "3", "--batch-size", "500"]
    result = train.train(train.parse([*words, "--device", "cpu", "--out", str(run)]))
    os.utime(run / "result.json", (86460, 86460))
    results.main(["add", str(run)])
    config = json.loads((run / "config.json").read_text())
    config["options"]["device"], config["device"] = "cuda", "NVIDIA H100"
    (run / "config.json").write_text(json.dumps(config))
    results.main(["add", str(run), "--variant", "other"])
    before = (folder / "runs.csv").read_bytes()
    run = run.rename(folder / "again")
    with pytest.raises(SystemExit, match="already, as mine: delete that row"):
        results.main(["add", str(run)])
    assert (folder / "runs.csv").read_bytes() == before

    row, other = results.all_rows()[0]
    columns = ["run", "data", "variant", "options", "padding", "ended", "result_test"]
    wanted = ["mine", "toy", "learned", "--hidden 3 --batch-size 500", "yes", "1970-01-02 00:01"]
    assert [row[column] for column in columns] == [*wanted, str(result["test_accuracy"])]
    assert f",{row['train_accuracy']}," in (run / "log.csv").read_text()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            assert row["processor"] in file.read().replace("(R)", "")
    assert [other["variant"], other["processor"]] == ["other", "NVIDIA H100"]


def test_each_table_has_its_own_rows(results, folder):
    pandas = pytest.importorskip("pandas")
    tau = "--tau 100.0 --tau-readout 10.05"
    usual = dict(data="SHD (regenerated)", epochs=30, padding="yes", variant="learned", threads=1)
    one = dict(variant="none", options=f"--valid-speakers 1,8 --no-test {tau}", valid_samples=300)
    other = dict(
        variant="none", options=f"--valid-speakers 2,10 --no-test {tau}", valid_samples=100
    )
    rows = [
        dict(result_test=0.91),
        dict(result_test=0.92, threads=2),
        dict(result_test=0.1, change="some"),
        dict(result_test=0.2, variant="axonal"),
        dict(result_test=0.3, variant="authors"),
        dict(result_test=0.4, padding="no"),
        dict(result_test=0.5, options="--connections 10"),
        dict(result_test=0.6, data="toy"),
        one | dict(valid_accuracy=0.1, padding="no"),
        one | dict(valid_accuracy=0.5),
        other | dict(valid_accuracy=0.9),
    ]
    columns = pandas.read_csv(folder / "runs.csv").columns
    frame = pandas.DataFrame([usual | dict(processor="A") | row for row in rows], columns=columns)
    frame.to_csv(folder / "runs.csv", index=False)
    shown = {name: table.splitlines()[2:] for name, table in results.all_tables().items()}
    assert shown.pop("claims")
    assert shown == {
        "SHD (regenerated)": ["| learned | - | 30 | 91.00, 92.00 | - | - | 2 | A; A, 2 threads |"],
        "sparse": ["| yes | learned, --connections 10 | - | 30 | 50.00 | - | - | 1 | A |"],
        "toy": ["| learned | - | 60.00 | - | 1 | A |"],
        "validation": [f"| none, {tau} | yes | 50.00 | 90.00 | - | - | - | 60.00 | 2 | A |"],
        "unpadded": ["| learned | - | 30 | 40.00 | - | - | 1 | A |"],
        "authors": ["| authors | - | 30 | 30.00 | - | - | 1 | A |"],
    }
    assert results.spread(runs([91, 92, 93, 94, 95]), "accuracy") == "93.00 ± 1.58"


@pytest.mark.parametrize("dataset", ["shd", "ssc", "toy"])
def test_wide_layers_have_the_parameters_nearest_to_learned_delays(results, dataset):
    def parameters(*words):
        return train.count_parameters(train.build(train.parse(["--dataset", dataset, *words])))

    def distance(size):
        return abs(parameters("--delays", "fixed", "--hidden", str(size)) - parameters())

    wide = results.WIDE[dataset]
    assert min((wide - 1, wide, wide + 1), key=distance) == wide


def test_a_run_is_named_by_its_width_and_options_that_are_not_the_defaults(results):
    options = train.parse(["--dataset", "toy", "--delays", "none", "--hidden", "76"])
    assert results.variant_and_words(options) == ("none-wide", "")
    options.hidden, options.no_test = 77, True
    assert results.variant_and_words(options) == ("none", "--no-test --hidden 77")


FOREIGN = ("| network |",)  # how tables of other people's numbers begin


def test_accuracies_in_results_and_readme_are_those_of_runs_csv(results):
    printed = results.all_tables().values()
    with open(os.path.join(results.FOLDER, "RESULTS.md")) as file:
        tables = re.findall(r"(?:^\|.*\n)+", file.read(), re.MULTILINE)
    ours = [table for table in tables if not table.startswith(FOREIGN)]
    assert len(ours) >= 6
    for table in ours:
        assert table.strip() in printed, table[:200]
    with open(os.path.join(results.FOLDER, "..", "README.md")) as file:
        cells = re.findall(r"\| ([\d., ±]+) \(n = (\d+)\)", file.read())
    lines = "\n".join(printed).splitlines()
    assert len(cells) >= 5
    for accuracy, n in cells:
        assert any(f"| {accuracy} |" in line and f"| {n} |" in line for line in lines), accuracy


# --------------------------------------------------------------------------------------- regenerate


TRIALS = {  # of each speaker in the Heidelberg Digits; a trial has the ten digits
    "german": [47, 51, 52, 46, 48, 49, 19, 36, 42, 39, 39, 65],
    "english": [49, 44, 53, 30, 42, 45, 28, 45, 41, 48, 44, 40],
}
SPOKEN = {  # label and speaker, by name
    f"lang-{language}_speaker-{speaker:02}_trial-{trial}_digit-{label % 10}.flac": (label, speaker)
    for language, labels in (("german", range(10, 20)), ("english", range(10)))
    for speaker, trials in enumerate(TRIALS[language])
    for trial in range(trials)
    for label in labels
}


def test_plan_is_a_slow_one_and_that_of_the_known_files():
    names = sorted(SPOKEN)
    rng = np.random.default_rng(0)
    test = []
    for language, speaker in [(word, n) for word in ("english", "german") for n in range(12)]:
        own = [name for name in names if f"{language}_speaker-{speaker:02}" in name]
        if speaker not in (4, 5):
            own = [own[i] for i in rng.permutation(len(own))[: len(own) // 20]]
        test += own
    got = regenerate.plan(list(SPOKEN))
    seeds = {name: 7000 + i for i, name in enumerate(names)}
    for split, members in (("train", sorted(set(names) - set(test))), ("test", sorted(test))):
        want = [(name, seeds[name], *SPOKEN[name]) for name in members]
        assert got[split] == [want[i] for i in np.random.default_rng(1).permutation(len(want))]
    known = {("train", 1823): 7456, ("train", 327): 15605, ("test", 1): 14056, ("test", 883): 17101}
    assert {(split, place): got[split][place].seed for split, place in known} == known


def test_channel_spikes_are_those_of_the_program_that_made_the_known_files():
    t = np.arange(480)
    random = np.random.RandomState(7).random_sample(480)
    spikes = regenerate.channel_spikes(200 * np.sin(t / 4) * np.sin(t / 300), random)
    assert np.flatnonzero(spikes).tolist() == [111, 161, 216, 266, 318, 391, 469]


def test_wrong_recordings_and_missing_packages_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(regenerate, "find_spec", lambda name: None)
    monkeypatch.setattr(regenerate, "RECORDINGS", 1)
    for name, message in (
        ("notes.txt", "has 0 FLAC files, expected 1: unpack hd_audio again"),
        (min(SPOKEN), "python -m pip install soundfile numba lauscher"),
        (max(SPOKEN), "has 2 FLAC files, expected 1"),
        ("digit.flac", "digit.flac is not named like lang-"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(SystemExit, match=message):
            regenerate.main([str(tmp_path), str(tmp_path)])


def test_a_stopped_run_continues_and_writes_the_published_layout(tmp_path, monkeypatch):
    names = list(SPOKEN)[::101]
    seeds = []

    def encode(path, seed):
        seeds.append(seed)
        if len(seeds) == 60:
            raise OSError("stopped")
        return np.float16([seed / 8000]), np.uint16([seed])

    for name in names:
        (tmp_path / name).touch()
    lengths = SimpleNamespace(info=lambda path: SimpleNamespace(frames=path.name[-6]))
    monkeypatch.setitem(sys.modules, "soundfile", lengths)
    monkeypatch.setattr(regenerate, "find_spec", str)
    monkeypatch.setattr(regenerate, "RECORDINGS", len(names))
    monkeypatch.setattr(regenerate, "ProcessPoolExecutor", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(regenerate, "encode", encode)
    with pytest.raises(OSError, match="stopped"):
        regenerate.main([str(tmp_path), str(tmp_path)])
    kept = seeds[:59]
    (tmp_path / "clips" / "part.npz").write_bytes(b"half a file")
    regenerate.main([str(tmp_path), str(tmp_path)])
    assert [seeds.count(seed) for seed in kept] == [1] * 59

    for split, samples in regenerate.plan(names).items():
        with h5py.File(tmp_path / f"shd_{split}.h5") as file:
            columns = "spikes/times", "spikes/units", "labels", "extra/speaker"
            rows = list(zip(*(file[name] for name in columns), strict=True))
            assert file["extra/keys"][16] == b"sechs"
        assert [x.dtype for x in rows[0]] == [np.float16, np.uint16, np.uint16, np.uint16]
        want = [(np.float16(s.seed / 8000), s.seed, s.label, s.speaker) for s in samples]
        assert [(times[0], units[0], *rest) for times, units, *rest in rows] == want


# ------------------------------------------------------------------------------------------- tour


def tour():
    """Return the sources of the tour's cells, by their ids."""
    with open(os.path.join(FOLDER, "tour.ipynb")) as file:
        return {cell["id"]: "".join(cell["source"]) for cell in json.load(file)["cells"]}


def run(*cells):
    """Return the variables of these cells after they have run."""
    space = {}
    for cell in cells:
        exec(tour()[cell], space)
    return space


@pytest.fixture(scope="module")
def first_cells():
    return run("c01", "c03", "c07", "c11", "c14")


def test_the_first_cells_of_the_tour_line_up_what_it_says(first_cells):
    arrived = first_cells["arrived"][0, :, 0].tolist()
    assert arrived == pytest.approx([0] * 7 + [2] + [0] * 4, abs=1e-6)
    assert all(len(set(row)) == 1 for row in first_cells["after"].tolist())


def test_twelve_seeds_of_the_tour_need_a_sigma_that_shrinks():
    space = run("c01", "c21")
    shrinking, constant = space["right"].view(2, 12).tolist()
    assert shrinking.count(4) >= 11 and constant.count(4) == 0
    assert constant[9] == 0  # as in learning.gif
    # The arrivals, from the delays one by one.
    lined_up = []
    for net, times in enumerate(space["times"]):
        delay = space["delay"][4 * net : 4 * net + 4]
        sums = [{int(times[c, i]) + round(delay[c, i].item()) for i in range(6)} for c in range(4)]
        lined_up.append([len(steps) for steps in sums].count(1))
    assert lined_up == space["lined_up"].tolist()
    assert sum(lined_up[:12]) == 29 and sum(lined_up[12:]) == 0
    assert [seed for seed in range(12) if lined_up[seed] == 4] == [9]  # whose picture is why.png
    for words in ("47 of the 48", "only seed 10", "29 of the 48", "seed 9", "9 of the 48"):
        assert words in tour()["c22"]


def test_accuracies_in_the_tour_are_those_of_runs_csv(results):
    rows = results.all_rows()[0]
    rows = [row for row in rows if (row["data"], row["padding"]) == ("toy", "yes")]
    kinds = {"learned": ("learned", ""), "fixed": ("fixed", "")}
    kinds |= {"none with 100 ms": ("none", "--tau 100.0"), "they reach": ("fixed-wide", "")}
    told = re.findall(r"(none with 100 ms|they reach|[a-z]+) ([\d.]+) %", tour()["c19"])
    assert [name for name, _ in told] == [*kinds]
    for name, percent in told:
        own = [row for row in rows if (row["variant"], row["options"]) == kinds[name]]
        mean = np.mean([100 * float(row["accuracy"]) for row in own])
        assert f"{mean:.2f}" == percent, name
    means = [float(percent) for _, percent in told]
    assert means[0] > means[3] > means[1] > means[2]


# ------------------------------------------------------------------------------------------ figures


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """figures.py, and a run of five epochs of a twentieth of the toy task with two layers.

    The run is drawn after its first epoch too.
    """
    pytest.importorskip("matplotlib")
    from experiments import figures

    little = data.toy("train").select(np.arange(2000) < 100)
    folder = str(tmp_path_factory.mktemp("figures") / "run")

    def draw(net, row):
        if row["epoch"] == 1:
            heading = figures.run_figure(folder).subfigs[0].get_suptitle()
            assert heading == "toy, learned delays, seed 0: epoch 1 of 5"

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "toy", data.DATASETS["toy"]._replace(read=lambda *of: little))
        patch.setitem(train.DEFAULTS, "toy", train.DEFAULTS["toy"] | {"epochs": 5, "layers": 2})
        words = ["--dataset", "toy", "--device", "cpu", "--out", folder]
        train.train(train.parse(words), on_epoch=draw)
        yield figures, folder


def test_kernels_in_the_picture_are_gaussians_around_a_delay(drawn):
    figures, folder = drawn
    net, _ = train.load_run(folder)
    axis = figures.kernel_figure().axes[0]  # its run has the seed of the other one
    delays = [line.get_segments()[0][0][0] for line in axis.collections]
    bars = np.reshape([bar.get_height() for bar in axis.patches], (5, 33)) / 0.85
    for row, (delay, sigma) in enumerate(zip(delays[:4], [16.27, 0.5, 0.5, 0.5], strict=True)):
        g = np.exp(-(((np.arange(33) - delay) / sigma) ** 2) / 2)
        np.testing.assert_allclose(bars[row], g / max(g), atol=1e-4)
    assert (net.layers[0].delay == delays[3]).any()  # of the last epoch
    assert delays[4] == round(delays[3])
    np.testing.assert_allclose(bars[4], np.arange(33) == delays[4], atol=1e-6)


def test_the_moving_picture_shows_arrivals_and_ends_with_a_count(drawn, monkeypatch):
    figures, _ = drawn
    times = torch.randint(15, (4, 6), generator=torch.Generator().manual_seed(0))
    delays = torch.rand(201, 4, 6, generator=torch.Generator().manual_seed(0)) * 13
    sigmas, frames = [], []

    def by_hand(of):
        sigmas.append(of)
        return times, delays, None, 3

    class Writer:
        def __init__(self, fps):
            pass

        @contextlib.contextmanager
        def saving(self, figure, path, dpi):
            self.axes = figure.axes
            yield

        def grab_frame(self):
            texts = [[text.get_text() for text in axis.texts] for axis in self.axes]
            dots = [axis.lines[0].get_xdata() for axis in self.axes]
            image = self.axes[0].images[0].get_array() if self.axes[0].images else None
            frames.append((texts, dots, image))

    monkeypatch.setattr(figures, "by_hand", by_hand)
    monkeypatch.setattr(figures, "PillowWriter", Writer)
    figures.learning_gif("learning.gif")
    assert sigmas == [figures.shrinking(), [0.5] * 200]
    assert [round(sigmas[0][step], 2) for step in (0, 25, 50, 199)] == [7.27, 1.54, 0.5, 0.5]
    texts, dots, image = frames[0]
    assert texts == [[], []]
    np.testing.assert_array_equal(dots, [(times + delays[0]).flatten()] * 2)
    step = float(times[2, 4] + delays[0, 2, 4])
    g = np.exp(-(((np.arange(0, 28.05, 0.1) - step) / sigmas[0][0]) ** 2) / 2)
    np.testing.assert_allclose(1 - image[8 * 2 + 1 + 4, :, 0], 0.45 * g, atol=0.45 / 12 + 1e-6)
    texts, dots, image = frames[-1]
    assert texts == [["3 of 4 patterns right"]] * 2 and image is None
    np.testing.assert_array_equal(dots, [(times + delays[200].round()).flatten()] * 2)


def test_the_moving_picture_in_the_repository_is_small():
    pillow = pytest.importorskip("PIL.Image")
    path = os.path.join(FOLDER, "figures", "learning.gif")
    assert os.path.getsize(path) < 400_000
    with pillow.open(path) as picture:
        assert picture.width == 720
        assert 50 <= picture.n_frames <= 70


def test_spikes_in_the_pictures_arrive_after_their_delays(drawn, first_cells, monkeypatch):
    figures, _ = drawn
    times, delays, current, right = trained = figures.by_hand(figures.shrinking())
    monkeypatch.setattr(figures, "by_hand", lambda sigmas: trained)
    assert (times + delays[-1].round()).equal(first_cells["after"])  # the training of the tour
    assert right == 4
    axes = figures.why_figure().axes
    for column, pattern in ((0, 0), (1, 2)):
        sent, arrived, summed = axes[column::2]
        want = times[pattern] + delays[-1, 0].round()
        steps = [int(line.get_positions()[0]) for line in arrived.collections]
        assert steps == want.tolist() != [line.get_positions()[0] for line in sent.collections]
        heights = [bar.get_height() for bar in summed.patches if bar.get_width() == 0.8]
        counts = torch.bincount(want.long(), minlength=len(heights))
        np.testing.assert_allclose(heights, 0.3 * counts, atol=1e-6)
        assert len(set(steps)) == (1 if column == 0 else 6)
        spans = [bar.get_x() + 0.5 for bar in summed.patches if bar.get_width() == 1]
        assert spans == pytest.approx(steps[:1] if column == 0 else [])


def test_shapes_in_the_picture_are_those_of_the_network_for_shd(drawn):
    figures, _ = drawn
    net = train.build(train.parse(["--dataset", "shd", "--device", "cpu"])).eval()
    counts = torch.zeros(2, 5, 140)
    shapes = [list(counts.shape)]
    for layer in net.layers:
        layer.register_forward_hook(lambda _, of, arrived: shapes.append(list(arrived.shape)))
    shapes.append(list(class_scores(net(counts)).shape))
    texts = [text.get_text() for text in figures.network_figure().axes[0].texts]
    told = [text for text in texts if text.startswith("[B")]
    assert [eval(text, {"B": 2, "T": 5}) for text in told] == shapes


def test_variants_shows_each_seed_of_runs_csv(drawn):
    figures, _ = drawn
    left, right = figures.variants_figure().axes
    names = [label.get_text() for label in left.get_yticklabels()]
    with open(os.path.join(FOLDER, "runs.csv"), newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == "SHD (regenerated)"]
    columns = ("variant", "epochs", "options", "padding", "change")
    for name, wanted in {
        "learned delays": ("learned", "30", "", "yes", ""),
        "fixed random delays": ("fixed", "30", "", "yes", ""),
        "learned, the authors' libraries": ("authors", "30", "", "yes", ""),
    }.items():
        own = [row for row in rows if tuple(row[column] for column in columns) == wanted]
        dots = right.lines[2 * names.index(f"{name} (n = {len(own)})")].get_xdata()
        want = sorted(100 * float(row["result_test"]) for row in own)
        np.testing.assert_allclose(sorted(dots), want)


def test_run_shows_a_sample_that_passes_through_the_network_to_its_scores(drawn):
    figures, folder = drawn
    net, _ = train.load_run(folder)
    reached = []  # what comes into each layer, of the first sample
    for layer in net.layers:
        layer.register_forward_pre_hook(lambda layer, inputs: reached.append(inputs[0][0]))
    toy = data.load("toy", "test", "")
    scores = train.predict(net, toy.select(np.arange(100) == 7))[0]
    *_, given, first, second, sums = figures.run_figure(folder, index=7).axes
    for axis, spikes in zip((given, first, second), reached, strict=True):
        want = spikes.nonzero() * torch.tensor([10, 1])  # in ms, and by neuron
        np.testing.assert_array_equal(axis.collections[0].get_offsets(), want)
    ends = [line.get_ydata()[-1] for line in sums.lines[:10]]
    np.testing.assert_allclose(ends, scores.detach(), rtol=1e-5)


def test_run_writes_a_picture_and_says_what_it_leaves_out(drawn, capsys):
    figures, folder = drawn
    figures.main(["--run", folder])
    assert capsys.readouterr() == (os.path.join(folder, "run.png\n"), "")
    axes = figures.run_figure(folder).axes
    assert len(axes) == 4 + 3 + 4  # the log, the delays of three layers, a sample
    # The means of 320, 1,600 and 400 delays, and the mean of all in the log.
    ways = [float(re.search(r"moved by (\S+) ms", axis.get_title("left"))[1]) for axis in axes[4:7]]
    moved_ms = axes[2].lines[1].get_ydata()
    assert np.average(ways, weights=[320, 1600, 400]) == pytest.approx(moved_ms[-1], abs=0.05)
    net_pt = os.path.join(folder, "net.pt")
    os.rename(net_pt, net_pt + ".away")
    assert len(figures.run_figure(folder).axes) == 4
    assert "a part is left out: " in capsys.readouterr().err
    os.rename(net_pt + ".away", net_pt)
    with pytest.raises(SystemExit, match="figures.py: .*No such file.*config.json"):
        figures.main(["--run", os.path.join(folder, "other")])
