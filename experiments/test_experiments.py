"""The programs beside the three files, each against a slow computation; one thread, offline."""

import argparse
import json
import math
import os
import re

import numpy as np
import pytest
import torch

import data
import train
from delays import DelayedLinear, DelaySNN, class_scores, lif
from experiments import benchmark, export, ideas, results

torch.set_num_threads(1)  # several threads fight over the cores of a busy machine


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def close(got, want, *, rtol, atol):
    got, want = (torch.as_tensor(values).detach().numpy() for values in (got, want))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------------ ideas


class Step(torch.autograd.Function):
    """1 where x >= 0, with the slope of the paper: 2.5 / (1 + (pi/2 5 x)^2)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2.5 / (1 + (math.pi / 2 * 5 * ctx.saved_tensors[0]) ** 2)


def slow_shares(delay, sigma, taps):
    """The share of a spike at each delay, from one delay; sigma None: all at the rounded one."""
    if sigma is None:
        return [float(d == round(delay.item())) for d in range(taps)]
    g = [torch.exp(-(((d - delay) / sigma) ** 2) / 2) for d in range(taps)]
    return [share / (sum(g) + 1e-7) for share in g]


def assert_same(got, want, tensors, seed=5):
    """The same values, and the same gradients of a random sum."""
    close(got, want, rtol=0, atol=1e-12)
    assert 0.2 < got.mean() < 0.8
    weight = random(*got.shape, seed=seed)
    one = torch.autograd.grad((got * weight).sum(), tensors)
    other = torch.autograd.grad((want * weight).sum(), tensors)
    for a, b in zip(one, other, strict=True):
        close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [dict(), dict(count=2), dict(connections=2)])
@pytest.mark.parametrize("kind", [ideas.Axonal, ideas.Dendritic])
def test_shared_delays_are_those_of_every_synapse_repeated(kind, options, training):
    torch.manual_seed(0)
    net = kind(4, [6, 5], 3, taps=5, dropout=0.0, **options).double()
    base = DelaySNN(4, [6, 5], 3, taps=5, dropout=0.0, **options).double()
    for layer, own in zip(base.layers, net.layers, strict=True):
        side = layer.weight.shape[-1 if kind is ideas.Axonal else -2]
        assert own.delay.numel() == side * options.get("count", 1)
        layer.weight.data.copy_(own.weight)
        layer.delay.data.copy_(own.delay.expand_as(layer.delay))
        layer.mask = own.mask
    x = (random(3, 9, 4) > 0.3).double()
    for layer in (*net.layers, *base.layers):
        layer.sigma = 0.5
    got, want = net.train(training)(x), base.train(training)(x)
    close(got, want, rtol=0, atol=1e-12)
    got.sum().backward()
    want.sum().backward()
    for layer, own in zip(base.layers, net.layers, strict=True):
        close(own.weight.grad, layer.weight.grad, rtol=1e-9, atol=1e-12)
        if training:
            total = layer.delay.grad.sum_to_size(own.delay.shape)
            close(own.delay.grad, total, rtol=1e-9, atol=1e-12)


def slow_recurrent(current, weight, delay, sigma, taps, tau):
    """The equations of Recurrent, synapse by synapse; a delay of d takes d + 1 steps."""
    _, steps, neurons = current.shape
    shares = [slow_shares(delay[n], sigma, taps) for n in range(neurons)]
    v = [0.0] * neurons
    spikes = []  # of each step and neuron, [B]
    for t in range(steps):
        now = []
        for o in range(neurons):
            h = (1 - 1 / tau) * v[o] + current[:, t, o]
            for n, d in np.ndindex(neurons, taps):
                if t - (d + 1) >= 0:
                    h = h + weight[o, n] * shares[n][d] * spikes[t - (d + 1)][n]
            s = Step.apply(h - 1)
            v[o] = h * (1 - s.detach())
            now.append(s)
        spikes.append(now)
    return torch.stack([torch.stack(now, 1) for now in spikes], 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("taps, connections", [(3, 0), (3, 2), (1, 0)])
def test_recurrent_neurons_are_the_loop_and_so_are_their_gradients(taps, connections, training):
    torch.manual_seed(0)
    net = ideas.Recurrent(3, [4], 2, tau=2.0, taps=taps, connections=connections).double()
    echo = net.train(training).echoes[0]
    echo.sigma = 0.8
    current = (random(2, 11, 4) + 0.2).requires_grad_()
    sigma = 0.8 if training else None
    weight = echo.weight * echo.mask
    want = slow_recurrent(current, weight, echo.delay[0], sigma, taps, tau=2.0)
    got = net.neurons(0, current)
    assert not torch.equal(got, lif(current, 2.0))  # what came back did something
    learned = [current, echo.weight, echo.delay] if training else [current, echo.weight]
    assert_same(got, want, learned)


def slow_adaptive(current, constants):
    """The equations of AdaptiveNeurons, one neuron at a time."""
    spikes = []
    for n in range(current.shape[2]):
        m, k, a, b = (1 / (1 + torch.exp(-x[n])) for x in constants)
        v, w = 0.0, 0.0
        own = []
        for t in range(current.shape[1]):
            h = m * v + current[:, t, n] - w
            s = Step.apply(h - 1)
            v = h * (1 - s.detach())
            w = k * w + a * v + b * s
            own.append(s)
        spikes.append(torch.stack(own, 1))
    return torch.stack(spikes, 2)


def test_a_shift_moves_all_of_a_sample_by_one_number_of_inputs():
    counts = torch.from_numpy(np.random.default_rng(0).integers(1, 9, (400, 5, 12), np.uint8))
    torch.manual_seed(0)
    shifted = ideas.shift(counts, None)
    assert shifted.dtype == torch.uint8
    seen = []
    for own, moved in zip(counts.numpy(), shifted.numpy(), strict=True):
        for move in range(-8, 9):
            want = np.zeros_like(own)
            for i in range(12):
                if 0 <= i + move < 12:
                    want[:, i + move] = own[:, i]
            if (moved == want).all():
                seen.append(move)
    assert len(seen) == 400
    close([seen.count(move) / 400 for move in range(-8, 9)], [1 / 17] * 17, rtol=0, atol=0.04)


def test_adaptive_neurons_are_the_loop_and_so_are_their_gradients():
    torch.manual_seed(0)
    neurons = ideas.AdaptiveNeurons(5).double()
    constants = [neurons.m, neurons.k, neurons.a, neurons.b]
    current = (random(3, 20, 5) + 0.5).requires_grad_()
    assert_same(neurons(current), slow_adaptive(current, constants), [current, *constants])


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
    with pytest.raises(SystemExit, match="expected one of base, axonal, dendritic, recurrent, ad"):
        ideas.main(["other"])


# -------------------------------------------------------------------------------------- benchmark


def test_the_authors_libraries_compute_the_same_network():
    pytest.importorskip("DCLS")
    pytest.importorskip("spikingjelly")
    for name, difference in benchmark.compare(16).items():
        assert difference < 1e-12, name


# ------------------------------------------------------------------------------------------ results


def runs(percents, variant="learned"):
    return [dict(seed=s, accuracy=p / 100, variant=variant) for s, p in enumerate(percents)]


@pytest.mark.parametrize("degrees, t", [(1, 12.706), (2, 4.303), (2.5, 3.575), (4, 2.776)])
def test_t_quantile_is_students(degrees, t):
    assert results.t_quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_a_paired_difference_is_over_shared_seeds_with_students_interval():
    base, rows = runs([90] * 5), runs([91, 92, 93, 94, 95, 10])
    half = 2.776 * math.sqrt(10 / 4 / 5)  # of 1, 2, 3, 4 and 5 points
    text = f"+3.00 [{3 - half:+.2f}, {3 + half:+.2f}] (5/5)"
    assert results.difference(rows, base) == text
    assert results.difference(rows[:2], base) == "+1.00, +2.00"
    assert results.spread(rows[:5], "accuracy") == "93.00 ± 1.58"


# Squared errors of 10 / 4 / 5 and 0, or 25 / 3, have 4 or 2.243 degrees of freedom.
@pytest.mark.parametrize("ours, t, other", [([6, 6, 6], 2.776, 0), ([1, 6, 11], 3.885, 25 / 3)])
def test_the_authors_network_is_compared_by_means_with_welchs_interval(ours, t, other):
    half = t * math.sqrt(10 / 4 / 5 + other)
    text = f"-3.00 [{-3 - half:+.2f}, {-3 + half:+.2f}]"
    assert results.difference(runs([1, 2, 3, 4, 5], "authors"), runs(ours)) == text


def test_add_keeps_a_run_and_a_text_and_refuses_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", str(tmp_path))
    run, text = tmp_path / "toy-1-learned-0", tmp_path / "shd-2-authors-4.txt"
    words = ["--dataset", "toy", "--epochs", "1", "--hidden", "3", "--batch-size", "500"]
    result = train.train(train.parse([*words, "--out", str(run)]))
    os.utime(run / "result.json", (86460, 86460))
    for split in ("train", "test"):
        (tmp_path / f"shd_{split}.h5").write_text(split)
    line = "epoch {}/2 loss 1.025 train {}% test 85.07% 298.3 s\n"
    end = json.dumps({"last": 0.850706, "best_test": 0.86, "seconds": 597.0, "rss_gib": 1.5})
    text.write_text(line.format(1, "50.00") + line.format(2, "66.87") + end + "\n")
    named = ["--seed", "4", "--threads", "1", "--data-dir", str(tmp_path)]
    results.main(["add", str(run), str(text), "--epochs", *named])

    ours, authors = results.read(tmp_path, "runs.csv")
    epochs, log = results.read(tmp_path, "epochs.csv"), results.read(run, "log.csv")
    assert [ours["data"], ours["options"]] == ["toy", "--hidden 3 --batch-size 500"]
    assert float(ours["result_test"]) == result["test_accuracy"]
    assert ours["ended"] == "1970-01-02 00:01"
    assert ours["train_accuracy"] == epochs[0]["train_accuracy"] == log[0]["train_accuracy"]
    columns = ("run", "variant", "padding", "epochs", "train_accuracy", "result_test", "seed")
    wanted = ["shd-2-authors-4", "authors", "yes", "2", "0.6687", "0.850706", "4"]
    assert [authors[column] for column in columns] == wanted
    assert ours["padding"] == "yes"
    before = (tmp_path / "runs.csv").read_bytes()
    with pytest.raises(SystemExit, match="already"):
        results.main(["add", str(run)])
    assert (tmp_path / "runs.csv").read_bytes() == before


def test_a_pooled_accuracy_is_over_samples():
    rows = [dict(accuracy="0.5", valid_samples="300"), dict(accuracy="0.9", valid_samples="100")]
    assert results.pooled(rows) == "60.00"


@pytest.mark.parametrize("words, wide", [("shd", 388), ("toy", 76), ("toy --hidden 17", 32)])
def test_a_wide_variant_has_the_parameters_nearest_to_learned_ones(words, wide):
    def parameters(*more):
        return train.count_parameters(train.build(train.parse([*words, *more])))

    words = ["--dataset", *words.split()]
    sizes = range(wide - 4, wide + 5)
    near = {n: parameters("--delays", "fixed", "--hidden", str(n)) for n in sizes}
    assert min(near, key=lambda n: (abs(near[n] - parameters()), -n)) == wide
    assert results.widened(train.parse([*words, "--delays", "fixed"])) == wide


def test_a_run_of_that_width_is_called_wide():
    options = train.parse(["--dataset", "toy", "--delays", "none", "--hidden", "76"])
    assert results.variant_and_words(options) == ("none-wide", "")
    options.hidden = 77
    assert results.variant_and_words(options) == ("none", "--hidden 77")


def test_accuracies_in_results_and_readme_are_those_of_runs_csv():
    printed = results.all_tables().values()
    with open(os.path.join(results.FOLDER, "RESULTS.md")) as file:
        tables = re.findall(r"(?:^\|.*\n)+", file.read(), re.MULTILINE)
    ours = [table for table in tables if not table.startswith("| published network")]
    assert len(tables) == len(ours) + 1 >= 7  # the numbers of one are other people's
    for table in ours:
        assert table.strip() in printed, table[:200]
    with open(os.path.join(results.FOLDER, "..", "README.md")) as file:
        cells = re.findall(r"\| ([\d., ±]+) \(n = (\d+)\)", file.read())
    lines = "\n".join(printed).splitlines()
    assert len(cells) >= 10
    for accuracy, n in cells:
        assert any(f"| {accuracy} |" in line and f"| {n} |" in line for line in lines), accuracy


# ------------------------------------------------------------------------------------------- tour


def test_the_cells_of_the_tour_run_and_its_accuracies_are_those_of_runs_csv(monkeypatch):
    monkeypatch.chdir(os.path.dirname(results.FOLDER))
    with open(os.path.join(results.FOLDER, "tour.ipynb")) as file:
        cells = json.load(file)["cells"]
    space = {}
    for cell in cells:
        if cell["cell_type"] == "code" and not cell["metadata"].get("tags"):  # training, plot
            exec("".join(cell["source"]), space)
    assert space["arrived"][0, :, 0].tolist() == pytest.approx([0] * 7 + [2] + [0] * 4, abs=1e-6)
    assert all(len(set(row)) == 1 for row in space["after"].tolist())
    rows = [row for row in results.all_rows()[0] if row["data"] == "toy"]
    kinds = {"learned": ("learned", ""), "fixed": ("fixed", ""), "none": ("none", "")}
    kinds |= {"none with 100 ms": ("none", "--tau 100.0"), "they reach": ("fixed-wide", "")}
    told = re.findall(r"(none with 100 ms|they reach|[a-z]+) ([\d.]+) %", str(cells))
    assert [name for name, _ in told] == [*kinds]
    for name, percent in told:
        own = [row for row in rows if (row["variant"], row["options"]) == kinds[name]]
        assert results.spread(own, "accuracy").split()[0] == percent, name
    means = [float(percent) for _, percent in told]
    assert means[0] > means[1] > means[3] > means[2]


# ------------------------------------------------------------------------------------------- export


TOY = argparse.Namespace(dataset="toy")


def simulated(arrays, x):
    """Spikes of the hidden layers and class scores of one sample; x is [own steps, inputs]."""
    steps, hidden = len(x) + arrays["tail_steps"], []
    layers = sum(name.startswith("pre") for name in arrays)
    for i in range(layers):
        synapses = [arrays[f"{name}_{i}"] for name in ("pre", "post", "weight", "delay")]
        current = np.tile(arrays[f"current_{i}"].astype(float), (steps, 1))
        for pre, post, weight, delay in zip(*synapses, strict=True):
            for t in range(delay, min(len(x) + delay, steps)):
                current[t, post] += weight * x[t - delay, pre]
        readout = i == layers - 1
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


def small_net():
    """Sparse, of two synapses a pair and two taus, with batch norms that have seen data."""
    torch.manual_seed(0)
    net = DelaySNN(8, [6, 5], 10, taps=9, tau=2.5, tau_readout=6.0, count=2, connections=4)
    net.layers[0] = DelayedLinear(8, 6, taps=4, count=2, connections=3)
    net.layers[0].delay.data[:, :, ::3] = 2.5  # half steps go to the even step
    for norm in net.norms:
        norm.weight.data.uniform_(-2, 2)
        norm.bias.data.uniform_(-0.5, 1.5)
        norm.eps = 0.01
    for layer in net.layers:
        layer.sigma = 0.5
    for _ in range(20):
        net(torch.poisson(torch.full((10, 20, 8), 0.5)))
    return net.eval()


@pytest.fixture(scope="module")
def samples():
    """Eight samples of different lengths, with up to four spikes in a step and input."""
    rng = np.random.default_rng(0)
    counts = [rng.poisson(0.5, (steps, 8)).astype(np.uint8) for steps in range(5, 45, 5)]
    return data.join(counts, np.arange(8))


def each(samples):
    """The counts of each sample, [own steps, inputs]."""
    return np.split(samples.counts.numpy(), samples.steps.cumsum(0)[:-1])


@torch.no_grad()
def test_numpy_gets_the_scores_of_the_network_from_its_arrays_and_so_does_torch(samples):
    net = small_net()
    arrays = export.arrays_of(net, TOY)
    assert arrays["tail_steps"] == 2 + 4 + 4
    assert len(arrays["delay_0"]) == 6 * 3 * 2
    got = [simulated(arrays, x)[1] for x in each(samples)]
    want = train.predict(net, samples)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)

    membrane = export.simulate(arrays, data.padded(samples, torch.arange(8), 40))
    want = class_scores(membrane, samples.steps + 10)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
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
        kind = type("Mine", (DelayedLinear,), {name: lambda *args: None})
        net = small_net()
        net.layers[2] = kind(5, 10, taps=9)
        with pytest.raises(data.UserError, match="Mine has a kernel or a forward of its own"):
            export.arrays_of(net, TOY)


@torch.no_grad()
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


# ------------------------------------------------------------------------------------------ figures


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """figures.py and the folder of its --record: five epochs of a twentieth of the toy task."""
    pytest.importorskip("matplotlib")
    from experiments import figures

    little = data.toy("train").select(np.arange(2000) < 100)
    folder = str(tmp_path_factory.mktemp("figures") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "toy", data.DATASETS["toy"]._replace(read=lambda *of: little))
        patch.setitem(train.DEFAULTS, "toy", train.DEFAULTS["toy"] | {"epochs": 5, "layers": 2})
        figures.main(["--record", "--recorded", folder, "--out", folder])
        yield figures, folder


def test_kernels_in_the_picture_are_gaussians_around_a_recorded_delay(drawn):
    figures, folder = drawn
    net, options = train.load_run(folder)
    history = torch.load(os.path.join(folder, "history.pt"))
    assert history[5].equal(net.layers[0].delay)
    assert history[0].equal(train.build(options).layers[0].delay)
    axis = figures.kernel_figure(folder).axes[0]
    track = axis.lines[0].get_ydata()
    assert (history.numpy() == track[:, None, None]).all(0).any()  # of one synapse
    for epoch, sigma in enumerate([16.27, 0.5, 0.5, 0.5, 0.5]):
        g = np.exp(-(((np.arange(33) - track[epoch]) / sigma) ** 2) / 2)
        shades = axis.collections[0].get_array()[:, epoch]
        np.testing.assert_allclose(shades, g / max(g), atol=1e-4)


def test_spikes_in_the_pictures_arrive_after_their_delays(drawn):
    figures, _ = drawn
    times, layer, _ = figures.lined_up()
    axes = figures.why_figure().axes
    for column, pattern in ((0, 0), (1, 2)):
        sent, arrived, potential = axes[column::2]
        want = times[pattern] + layer.delay[0].round()
        steps = [int(line.get_positions()[0]) for line in arrived.collections]
        assert steps == want.tolist() != [line.get_positions()[0] for line in sent.collections]
        heights = [bar.get_height() for bar in potential.patches if bar.get_width() == 0.8]
        counts = torch.bincount(want.long(), minlength=len(heights))
        np.testing.assert_allclose(heights, 0.3 * counts, atol=0.01)
        assert len(set(steps)) == (1 if column == 0 else 6)
    summed = figures.network_figure().axes[4].patches
    got = {step: bar.get_height() for step, bar in enumerate(summed) if bar.get_height()}
    assert got == pytest.approx({11: 1.7, 16: 1.0, 20: 0.7})


def test_variants_shows_each_seed_of_runs_csv(drawn):
    figures, _ = drawn
    left, right = figures.variants_figure().axes
    names = [label.get_text() for label in left.get_yticklabels()]
    dots = right.lines[2 * names.index("fixed random delays, padded (n = 3)")]
    np.testing.assert_allclose(sorted(dots.get_xdata()), [89.05, 89.71, 90.41], atol=0.02)


def test_run_shows_a_sample_that_passes_through_the_network_to_its_scores(drawn):
    figures, folder = drawn
    net, _ = train.load_run(folder)
    reached = []  # what comes into each layer, of the first sample
    for layer in net.layers:
        layer.register_forward_pre_hook(lambda layer, inputs: reached.append(inputs[0][0]))
    toy = data.load("toy", "test", "")
    scores = train.predict(net, toy.select(np.arange(100) == 7))[0]
    *_, given, first, second, _, sums = figures.run_figure(folder, index=7).axes
    for axis, spikes in zip((given, first, second), reached, strict=True):
        want = spikes.nonzero() * torch.tensor([10, 1])  # in ms, and by neuron
        np.testing.assert_array_equal(axis.collections[0].get_offsets(), want)
    ends = [line.get_ydata()[-1] for line in sums.lines[:10]]
    np.testing.assert_allclose(ends, scores.detach(), rtol=1e-5)


def test_run_writes_a_picture_and_says_what_it_leaves_out(drawn, capsys):
    figures, folder = drawn
    figures.main(["--run", folder])
    assert capsys.readouterr() == (os.path.join(folder, "run.png\n"), "")
    axes = figures.run_figure(folder, index=100).axes
    assert "--sample 100 is not in the test set: expected 0..99" in capsys.readouterr().err
    assert len(axes) == 4 + 2 * 3  # the log, and the delays of three layers
    ways = [axis.lines[0].get_xdata()[0] for axis in axes[7:]]  # means of 320, 1,600 and 400 delays
    moved_ms = axes[2].lines[1].get_ydata()  # of the log
    assert np.average(ways, weights=[320, 1600, 400]) == pytest.approx(moved_ms[-1], rel=1e-5)
