"""export.py against a simulation in plain NumPy, written here from its docstring.

python -m pytest -q experiments/test_export.py
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import export  # from this folder; it also makes data, delays and train known
import h5py
import numpy as np
import pytest
import torch

import data
import train
from delays import DelayedLinear, DelaySNN

torch.set_num_threads(1)  # several threads fight over the cores of a busy machine

HERE = os.path.dirname(os.path.abspath(__file__))


# ----------------------------------------------------------------------- the simulation in NumPy


def arriving(net, i, x):
    """Sum over synapses of weight * x[t - delay, pre]; x is [samples, T, neurons before]."""
    samples, steps, before = x.shape
    total = np.zeros((samples, steps, len(net[f"current_{i}"])))
    for d in range(net["taps"]):
        here = net[f"delay_{i}"] == d
        matrix = np.zeros((before, total.shape[2]))
        where = net[f"pre_{i}"][here], net[f"post_{i}"][here]
        np.add.at(matrix, where, net[f"weight_{i}"][here])
        total[:, d:] += x[:, : steps - d] @ matrix
    return total


def simulate(net, x):
    """Spikes of the hidden layers and potentials of the readout, each [samples, T, neurons]."""
    layers = len([name for name in net if name.startswith("weight_")])
    decay = 1 - 1 / net["tau_steps"]
    hidden = []
    for i in range(layers):
        current = net[f"current_{i}"] + arriving(net, i, x)
        v = np.zeros_like(current[:, 0])
        h = np.zeros_like(current)
        for t in range(x.shape[1]):
            h[:, t] = decay * v + current[:, t]
            v = h[:, t]
            if i < layers - 1:
                v = np.where(h[:, t] >= net["threshold"], 0, h[:, t])
        if i < layers - 1:
            x = (h >= net["threshold"]).astype(float)
            hidden.append(x)
    return hidden, h


def scores(net, x, steps):
    """Softmax at each step, summed over a sample's own steps and the tail, [samples, classes]."""
    _, potential = simulate(net, x)
    e = np.exp(potential - potential.max(2, keepdims=True))
    share = e / e.sum(2, keepdims=True)
    own = np.arange(x.shape[1]) < (steps + net["tail_steps"])[:, None]
    return (share * own[:, :, None]).sum(1)


def counts_of(net, samples):
    """The counts of all samples, followed by silence, and their own steps, in NumPy."""
    everyone = torch.arange(len(samples.labels))
    longest = int(samples.steps.max()) + int(net["tail_steps"])
    return data.padded(samples, everyone, longest).numpy().astype(float), samples.steps.numpy()


def numpy_accuracy(path, data_dir, batch_size=256):
    """Test accuracy of a file of export.py, for data sets of any size."""
    net = dict(np.load(path))
    samples = data.load(str(net["dataset"]), "test", data_dir)
    hits = 0
    for indices, _ in data.batches(samples, batch_size, shuffle=False):
        part = samples.select(np.isin(np.arange(len(samples.labels)), indices))
        hits += (scores(net, *counts_of(net, part)).argmax(1) == part.labels.numpy()).sum()
    return hits / len(samples.labels)


# -------------------------------------------------------------------------------------- the runs

TOY = ["--dataset", "toy", "--epochs", "1", "--batch-size", "100", "--device", "cpu"]
TOY += ["--hidden", "12", "--lr", "2e-2"]
RUNS = {
    "learned": TOY,
    "two layers": [*TOY, "--layers", "2", "--tau", "20", "--taps", "13"],
    "sparse": [*TOY, "--connections", "3", "--layers", "2", "--taps", "9", "--tau", "30"],
    "count 2": [*TOY, "--kernel-count", "2", "--tau", "20"],
    "sparse, count 2": [*TOY, "--kernel-count", "2", "--connections", "5", "--taps", "4"],
    "fixed": [*TOY, "--delays", "fixed", "--taps", "12"],
    "none": [*TOY, "--delays", "none", "--tau", "40"],
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A folder with small files in the layout of SHD: random spikes, samples of all lengths."""
    folder = tmp_path_factory.mktemp("spoken")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        with h5py.File(folder / f"shd_{split}.h5", "w") as file:
            times = file.create_dataset("spikes/times", 30, h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", 30, h5py.vlen_dtype(np.uint16))
            for b in range(30):
                size = rng.integers(200, 600)
                times[b] = np.sort(rng.uniform(0.01, 0.1 + 0.02 * b, size)).astype(np.float16)
                units[b] = rng.integers(0, 60, size)
            file["labels"] = np.arange(30) % 20
            file["extra/speaker"] = np.arange(30) % 3
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, spoken):
    """A function that trains each run once; returns its folder, what it said, and its arrays."""
    runs = RUNS | {
        "spoken": ["--dataset", "shd", "--data-dir", spoken, "--device", "cpu", "--epochs", "2"]
        + ["--hidden", "9", "--batch-size", "10", "--tau", "20", "--lr", "2e-2", "--taps", "9"]
    }
    made = {}

    def run(name):
        if name not in made:
            folder = str(tmp_path_factory.mktemp("run"))
            result = train.train(train.parse([*runs[name], "--out", folder]))
            export.main([f"{folder}/last.pt", "--out", f"{folder}/net.npz"])
            made[name] = folder, result, dict(np.load(f"{folder}/net.npz"))
        return made[name]

    return run


def torch_scores(folder, samples):
    """Scores of all test samples as train.py computes them."""
    net, _ = train.load_run(folder)
    everyone = torch.arange(len(samples.labels))
    with torch.no_grad():
        return train.predict(net, samples, everyone, int(samples.steps.max())).numpy()


@pytest.mark.parametrize("name", [*RUNS, "spoken"])
def test_numpy_gets_the_accuracy_and_the_scores_of_the_run(trained, spoken, name):
    folder, result, net = trained(name)
    samples = data.load(str(net["dataset"]), "test", spoken)
    got = scores(net, *counts_of(net, samples))

    number = len(samples.labels)
    hits = (got.argmax(1) == samples.labels.numpy()).sum()
    assert abs(hits - result["test_accuracy"] * number) <= 1.001
    # Rounding may move a spike, and with it the scores of a sample; but seldom.
    close = np.isclose(got, torch_scores(folder, samples), rtol=0, atol=1e-3).all(1)
    assert close.mean() >= 0.99
    # The hidden layers say something: else their arrays might be anything.
    for spikes in simulate(net, counts_of(net, samples)[0])[0]:
        assert 0.005 < spikes.mean() < 0.5


def test_accuracy_in_batches_is_that_of_the_run(trained, spoken):
    folder, result, _ = trained("spoken")
    got = numpy_accuracy(f"{folder}/net.npz", spoken, batch_size=7)
    assert abs(got - result["test_accuracy"]) * 30 <= 1.001


# --------------------------------------------------------------------------------- what is written


def options_of(dataset="toy"):
    return argparse.Namespace(dataset=dataset)


def small_net(**changes):
    """A network for 8 inputs and 10 classes, as the toy task has, with a batch norm in full use."""
    torch.manual_seed(0)
    net = DelaySNN(8, [5, 4], 10, **dict(taps=7, tau=2.5) | changes).eval()
    for norm in net.norms:
        with torch.no_grad():
            norm.weight.uniform_(-2, 2)
            norm.bias.uniform_(-1, 1)
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.copy_(10.0 ** -torch.arange(len(norm.bias)))  # as small as eps
    return net


def test_numbers_of_the_file(trained):
    for name in RUNS:
        folder, _, net = trained(name)
        options = train.load_run(folder)[1]
        taps = 1 if options.delays == "none" else options.taps
        assert net["dataset"] == "toy"
        assert (net["inputs"], net["channels_per_input"]) == (8, 1)
        assert (net["step_ms"], net["threshold"], net["taps"]) == (10, 1, taps)
        assert net["tau_steps"] == options.tau / 10
        assert net["tail_steps"] == (options.layers + 1) * (taps // 2)


def test_a_sample_is_binned_as_the_docstring_says(trained, spoken):
    net = trained("spoken")[2]
    assert (net["inputs"], net["channels_per_input"], net["step_ms"]) == (140, 5, 10)
    samples = data.load("shd", "test", spoken)
    got, steps = counts_of(net, samples)
    with h5py.File(f"{spoken}/shd_test.h5") as file:
        for b in range(30):
            ms = file["spikes/times"][b].astype(np.float32) * 1000
            step = np.floor((ms - ms.min()) / net["step_ms"]).astype(int)
            channel = file["spikes/units"][b] // net["channels_per_input"]
            want = np.zeros(got[b].shape)
            np.add.at(want, (step, channel), 1)
            assert np.array_equal(got[b], want)
            assert steps[b] == step.max() + 1
    assert got.max() > 1


def test_each_synapse_is_there_once_and_masked_ones_are_not(trained):
    for name, count, inputs in [("learned", 1, 0), ("count 2", 2, 0), ("sparse, count 2", 2, 5)]:
        folder, _, net = trained(name)
        layers = train.load_run(folder)[0].layers
        for i, layer in enumerate(layers):
            post, pre = net[f"post_{i}"], net[f"pre_{i}"]
            assert pre.dtype == post.dtype == net[f"delay_{i}"].dtype == np.int32
            assert net[f"weight_{i}"].dtype == net[f"current_{i}"].dtype == np.float32
            pairs = np.zeros(layer.weight.shape[-2:], int)
            np.add.at(pairs, (post, pre), 1)
            there = np.ones_like(pairs) if layer.mask is None else layer.mask.numpy()
            assert np.array_equal(pairs, count * there)
            assert not inputs or (pairs.sum(1) == count * min(inputs, pairs.shape[1])).all()


def test_delays_are_whole_steps_and_half_steps_go_to_the_even_one():
    net = small_net()
    delays = torch.tensor([0, 0.5, 1.5, 2.5, 3.49, 3.51, 5.5, 6])
    net.layers[0].delay.data.copy_(delays.expand(5, 8))
    got = export.arrays(net, options_of())
    for i, want in enumerate([0, 0, 2, 2, 3, 4, 6, 6]):
        assert (got["delay_0"][got["pre_0"] == i] == want).all()


def test_batch_norm_is_folded_into_weights_and_currents():
    for count in (1, 2):
        net = small_net(count=count)
        got = export.arrays(net, options_of())
        x = torch.rand(3, 20, 8)
        for i, norm in enumerate(net.norms):
            with torch.no_grad():
                current = net.layers[i](x)[:, : x.shape[1]]  # [3, 20, N]
                want = norm(current.flatten(0, 1)).view_as(current).numpy()
            mine = got[f"current_{i}"] + arriving(got, i, x.numpy())
            # 1e-4: with a variance of 1e-4 torch's rounding is multiplied by 100.
            np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-4)
            x = (current > 0).float()
        assert not got["current_2"].any()
        readout = net.layers[2].weight.detach()
        want = readout.view(-1, *readout.shape[-2:]).numpy()
        for c, o, i in np.ndindex(want.shape):
            at = (got["post_2"] == o) & (got["pre_2"] == i)
            assert want[c, o, i] in got["weight_2"][at]


def test_a_file_is_whole_or_not_there(trained, tmp_path, monkeypatch):
    folder, _, net = trained("learned")
    path = tmp_path / "net.npz"
    export.main([folder, "--out", str(path)])  # a folder means its checkpoint
    again = dict(np.load(path))
    assert again.keys() == net.keys()
    assert all(np.array_equal(again[name], net[name]) for name in net)
    before = path.read_bytes()

    def full(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "No space left" in refused([folder, "--out", str(path)])
    assert "No space left" in refused([folder, "--out", str(tmp_path / "other.npz")])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.npz"]


# ------------------------------------------------------------------------------------- refusals


def refused(argv):
    """The one sentence with which the program ends."""
    with pytest.raises(SystemExit) as caught:
        export.main([str(word) for word in argv])
    words = caught.value.code
    assert isinstance(words, str) and words.startswith("export.py: ")
    assert "\n" not in words
    return words


class Adaptive(DelaySNN):
    def neurons(self, i, current):
        return (current > 1).float()


class Recurrent(DelaySNN):
    def forward(self, x):
        return super().forward(super().forward(x))


class Triangle(DelayedLinear):
    def kernel(self):
        return super().kernel() / 2


class OfTriangles(DelaySNN):
    layer_class = Triangle


class Axonal(DelayedLinear):
    def __init__(self, before, after, *rest, **more):
        super().__init__(before, after, *rest, delay_shape=(1, before), **more)


class OfAxons(DelaySNN):
    layer_class = Axonal


@pytest.mark.parametrize("kind", [Adaptive, Recurrent, OfTriangles])
def test_networks_of_another_kind_are_refused(kind):
    with pytest.raises(ValueError, match="of its own"):
        export.arrays(kind(8, [5], 10, taps=7), options_of())


def test_what_the_arrays_cannot_say_is_refused():
    net = small_net()
    net.layers[1].whole_steps = False
    with pytest.raises(ValueError, match="whole_steps is False"):
        export.arrays(net, options_of())
    net = small_net(learn_delays=False)
    net.layers[1].whole_steps = False  # fixed delays are whole steps anyway
    export.arrays(net, options_of())

    net = small_net()
    net.norms[0] = torch.nn.BatchNorm1d(5, track_running_stats=False)
    with pytest.raises(ValueError, match="cannot be folded"):
        export.arrays(net, options_of())
    net = small_net()
    net.layers[2] = DelayedLinear(4, 10, taps=8)
    with pytest.raises(ValueError, match="different taps"):
        export.arrays(net, options_of())
    net = small_net()
    net.layers[0].delay.data[0, 0] = 9
    with pytest.raises(ValueError, match=r"delay_0 goes beyond 0\.\.6"):
        export.arrays(net, options_of())
    net = small_net()
    net.norms[0].bias.data[1] = np.nan
    with pytest.raises(ValueError, match="current_0 is not finite"):
        export.arrays(net, options_of())
    with pytest.raises(ValueError, match="a Linear cannot be exported"):
        export.arrays(torch.nn.Linear(2, 2), options_of())


def test_the_run_of_another_class_is_exported_when_it_is_handed_over(tmp_path):
    options = train.parse(["--dataset", "toy", "--epochs", "1", "--out", str(tmp_path / "run")])
    train.train(options, train.build(options, OfAxons))
    with pytest.raises(ValueError, match="is of class OfAxons, and not DelaySNN"):
        export.export(tmp_path / "run", tmp_path / "net.npz")
    export.export(tmp_path / "run", tmp_path / "net.npz", train.build(options, OfAxons))
    net, _ = train.load_run(tmp_path / "run", train.build(options, OfAxons))
    got = export.read(tmp_path / "net.npz")
    delay = net.layers[0].delay.detach().round()[0]
    np.testing.assert_array_equal(got["delay_0"], delay[got["pre_0"]])


def test_a_delay_for_each_axon_is_exported():
    torch.manual_seed(1)
    net = OfAxons(8, [30], 10, taps=7, tau=2.5).eval()
    got = export.arrays(net, options_of())
    x = torch.randint(0, 3, (4, 20, 8)).float()
    x = torch.cat([x, torch.zeros(4, 3, 8)], 1)  # what the first layer adds
    with torch.no_grad():
        want = net(x)[:, :23].numpy()
    hidden, potential = simulate(got, x.numpy())
    assert 0.05 < hidden[0].mean() < 0.95
    np.testing.assert_allclose(potential, want, rtol=0, atol=1e-5)


def test_bad_checkpoints_are_refused_and_leave_no_file(trained, tmp_path):
    folder = trained("learned")[0]
    out = tmp_path / "net.npz"
    broken = tmp_path / "broken.pt"
    broken.write_bytes(Path(folder, "last.pt").read_bytes()[:-500])
    assert "no sound checkpoint" in refused([broken, "--out", out])
    assert "is not there" in refused([tmp_path / "none.pt", "--out", out])
    state = torch.load(f"{folder}/last.pt", weights_only=True)
    changes = [
        ({"network": "Adaptive"}, "is of class Adaptive, and not DelaySNN"),
        ({"options": state["options"] | {"dataset": "mine"}}, "of the data set mine: use it from"),
        ({"options": {"data_dir": "data"}}, "no sound checkpoint"),
        ({"options": state["options"] | {"hidden": 13}}, "of another network"),
    ]
    for change, words in changes:
        torch.save(state | change, broken)
        assert words in refused([broken, "--out", out])
    assert "File exists" in refused([folder, "--out", broken / "net.npz"])
    assert os.listdir(tmp_path) == ["broken.pt"]
    export.main([folder, "--out", str(tmp_path / "new" / "net.npz")])
    assert os.listdir(tmp_path / "new") == ["net.npz"]


def test_bad_files_are_refused(trained, spoken, tmp_path):
    folder, _, net = trained("learned")
    path = tmp_path / "net.npz"
    assert "No such file" in refused(["--hardware", path])
    whole = Path(folder, "net.npz").read_bytes()
    for content in (b"", b"no arrays", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "was not written by --out" in refused(["--hardware", path])
    np.save(tmp_path / "one.npy", np.ones(3))
    assert "was not written by --out" in refused(["--brian2", tmp_path / "one.npy"])

    for name in net:
        np.savez(path, **{key: value for key, value in net.items() if key != name})
        assert "was not written by --out" in refused(["--hardware", path])
    wrong = [
        {"pre_0": net["pre_0"] + 1},
        {"post_0": net["post_0"] - 1},
        {"delay_1": net["delay_1"] + 20},
        {"delay_1": net["delay_1"].astype(float)},
        {"weight_0": net["weight_0"][:-1]},
        {"weight_1": net["weight_1"] * np.nan},
        {"tau_steps": np.array([2.0, 3.0])},
        {"tau_steps": 0.5},
        {"step_ms": np.nan},
        {"tail_steps": -1},
    ]
    for change in wrong:
        np.savez(path, **net | change)
        assert "was not written by --out" in refused(["--hardware", path])
    np.savez(path, **net | {"dataset": "mine"})
    assert "which data.py does not have" in refused(["--hardware", path])
    np.savez(path, **net | {"dataset": "shd"})
    assert "shd_test.h5.gz is not in" in refused(["--hardware", path, "--data-dir", tmp_path])
    assert "140 inputs here, and the network 8" in refused(
        ["--hardware", path, "--data-dir", spoken]
    )


def test_the_command_line(trained, tmp_path):
    folder = trained("learned")[0]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, os.path.join(HERE, "export.py")]

    def run(*words):
        done = subprocess.run([*program, *words], env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    out = str(tmp_path / "net.npz")
    code, said, wrong = run(f"{folder}/last.pt", "--out", out)
    assert (code, wrong) == (0, "")
    assert said == f"{out}: layers of [8, 12, 10] neurons, 216 synapses\n"
    code, said, wrong = run("nowhere.pt", "--out", out)
    assert (code, said) == (1, "")
    assert wrong.startswith("export.py: 'nowhere.pt' is not there")


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "one of the arguments --out --hardware --brian2 is required"),
        (["--out", "net.npz"], "--out needs a run or a checkpoint"),
        (["run/last.pt", "--out", "run/last.pt"], "expected a name that ends in .npz"),
        (["run/last.pt", "--out", ""], "--out '': expected a name that ends in .npz"),
        (["run", "--hardware", "net.npz"], "takes the arrays alone"),
        (["--hardware", "net.npz", "--brian2", "net.npz"], "not allowed with"),
        (["--brian2", "net.npz", "--samples", "0"], "expected at least 1"),
    ],
)
def test_wrong_options_are_refused(argv, words, capsys):
    with pytest.raises(SystemExit) as caught:
        export.main(argv)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


# ------------------------------------------------------------------------- figures for hardware


def test_figures_are_counted_spike_by_spike(trained, spoken, capsys):
    for name in ("spoken", "sparse, count 2"):
        folder, _, net = trained(name)
        samples = data.load(str(net["dataset"]), "test", spoken)
        x, steps = counts_of(net, samples)
        own = np.arange(x.shape[1]) < (steps + net["tail_steps"])[:, None]
        hidden = simulate(net, x)[0]
        seconds = own.sum() * 0.01
        events = 0.0
        for i, spikes in enumerate([x, *hidden]):
            emitted = (spikes * own[:, :, None]).sum((0, 1))
            events += sum(emitted[pre] for pre in net[f"pre_{i}"])

        capsys.readouterr()  # what the training said
        export.main(["--hardware", f"{folder}/net.npz", "--data-dir", spoken])
        said = capsys.readouterr().out
        words = said.replace(",", "").split()
        assert int(words[0]) == sum(len(net[f"weight_{i}"]) for i in range(len(hidden) + 1))
        assert float(words[2]) == pytest.approx(events / len(steps), rel=1e-3, abs=0.5)
        for i, spikes in enumerate(hidden):
            line = said.splitlines()[3 + i].split()
            rate = (spikes * own[:, :, None]).sum() / spikes.shape[2] / seconds
            assert float(line[-1]) == pytest.approx(rate, rel=1e-3, abs=0.006)
        rate = x.sum() / x.shape[2] / (steps.sum() * 0.01)
        assert f"an input has {rate:.2f} spikes/s" in said


def test_distribution_of_delays_and_the_limit_of_netx(capsys):
    net = export.arrays(small_net(), options_of())
    net["delay_0"] = np.arange(40, dtype=np.int32) * 2  # 0..78: those from 64 on are 8
    net["delay_1"][:] = 5
    net["delay_2"][:] = [0] * 30 + [70] * 10
    export.print_delays(net, ["1", "2", "readout"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["1", "0", "6", "18", "38", "58", "70", "78"]
    assert lines[3].split() == ["2"] + ["5"] * 7
    assert lines[4].split() == ["readout", "0", "0", "0", "0", "0", "70", "70"]
    assert lines[5] == "largest delay: 78 steps of 10 ms"
    assert lines[6] == "Loihi's NetX clips delays above 62 steps: here 18 of 100"


@pytest.mark.parametrize("bits, most", [(8, 127), (4, 7)])
def test_rounded_weights_are_whole_numbers_of_one_scale_a_layer(bits, most):
    net = export.arrays(small_net(), options_of())
    got = export.rounded(net, bits)
    for i in range(3):
        weight = net[f"weight_{i}"].astype(float)
        scale = max(abs(weight)) / most
        want = [scale * round(w / scale) for w in weight]
        np.testing.assert_allclose(got[f"weight_{i}"], want, rtol=1e-6, atol=1e-9)
        assert got[f"weight_{i}"].dtype == np.float32
    others = [name for name in net if not name.startswith("weight_")]
    assert all(got[name] is net[name] for name in others)


def test_accuracies_of_the_figures_are_those_of_numpy(trained, spoken, capsys):
    folder, _, net = trained("two layers")
    samples = data.load("toy", "test", spoken)
    export.main(["--hardware", f"{folder}/net.npz", "--data-dir", spoken])
    lines = capsys.readouterr().out.splitlines()[-3:]
    counts = counts_of(net, samples)
    right = samples.labels.numpy()
    for line, bits in zip(lines, (None, 8, 4), strict=True):
        changed = net if bits is None else export.rounded(net, bits)
        accuracy = (scores(changed, *counts).argmax(1) == right).mean()
        assert abs(float(line.split()[2].rstrip("%,")) / 100 - accuracy) <= 0.0011
        assert line.endswith("float32 weights" if bits is None else f"{bits} bits")


# --------------------------------------------------------------------------------------- Brian2


@pytest.mark.parametrize("name", ["two layers", "sparse", "count 2", "none", "spoken"])
def test_both_sides_in_torch_spike_as_numpy_does(trained, spoken, name):
    folder, _, net = trained(name)
    samples = data.load(str(net["dataset"]), "test", spoken)
    x, steps = counts_of(net, samples)
    x = x[:30]
    want = simulate(net, x)[0]
    counts = torch.from_numpy(x).to(torch.uint8)
    with torch.no_grad():
        from_arrays, _ = export.run(net, counts)
        from_network = export.hidden_spikes(train.load_run(folder)[0], counts)
    for a, b, c in zip(from_arrays, from_network, want, strict=True):
        assert a.shape == b.shape == c.shape
        assert (a.numpy() != c).mean() < 1e-4
        assert (b.numpy() != c).mean() < 1e-4


def test_first_differences_and_what_follows_from_them():
    # Two layers of three neurons; synapses 0 -> 0 with delay 2 and 1 -> 1 with delay 0.
    net = {
        "pre_1": np.array([0, 1], np.int32),
        "post_1": np.array([0, 1], np.int32),
        "delay_1": np.array([2, 0], np.int32),
    }
    theirs = [np.zeros((10, 3), bool), np.zeros((10, 3), bool)]
    ours = [layer.copy() for layer in theirs]
    h = [np.arange(30.0).reshape(10, 3), np.arange(100.0, 130.0).reshape(10, 3)]
    ours[0][3:6, 0] = True  # reaches neuron 0 at step 5
    assert export.differences(net, ours, theirs, h) == ([(0, 0, 3, 9.0)], 0)
    ours[1][5, 0] = True
    assert export.differences(net, ours, theirs, h) == ([(0, 0, 3, 9.0)], 1)
    ours[1][4, 0] = True  # before it arrives: by itself
    both = [(0, 0, 3, 9.0), (1, 0, 4, 112.0)]
    assert export.differences(net, ours, theirs, h) == (both, 0)
    ours[1][7, 2] = True  # nothing leads there
    assert export.differences(net, ours, theirs, h) == ([*both, (1, 2, 7, 123.0)], 0)


def pretend_brian2(monkeypatch, change):
    """Torch's own spikes in place of Brian2's, with one spike changed; h says how far off it is."""

    def simulation(net, counts):
        spikes = export.run(net, torch.from_numpy(counts)[None])[0]
        spikes = [layer[0].bool().numpy() for layer in spikes]
        potentials = [np.ones(layer.shape) for layer in spikes]
        if change:
            spikes[0][5, 0] ^= True
            potentials[0][5, 0] += change
        return spikes, potentials

    monkeypatch.setattr(export, "simulate_brian2", simulation)


def test_the_comparison_counts_and_judges(trained, monkeypatch, capsys):
    folder, _, net = trained("learned")
    path = f"{folder}/net.npz"
    samples = data.load("toy", "test", "")
    spikes = simulate(net, counts_of(net, samples)[0][:4])[0][0].sum()
    pretend_brian2(monkeypatch, change=0)
    for argv in (["--brian2", path], [folder, "--brian2", path]):
        export.main([*argv, "--samples", "4"])
        said = capsys.readouterr().out
        assert said.startswith(f"4 samples, {int(spikes):,} hidden spikes in torch, 0 that only")

    pretend_brian2(monkeypatch, change=9e-6)
    export.main(["--brian2", path, "--samples", "3"])
    said = capsys.readouterr().out
    assert "sample 2, hidden layer 1, neuron 0, step 5: h = 1.000009000" in said
    assert "3 neurons differ by themselves, 0 because of these" in said
    pretend_brian2(monkeypatch, change=-2e-5)
    assert "3 neurons differ by more" in refused(["--brian2", path, "--samples", "3"])


def test_the_checkpoint_of_another_network_is_refused(trained):
    path = f"{trained('learned')[0]}/net.npz"
    for other in ("two layers", "none"):
        assert "is not what the arrays were made of" in refused(
            [trained(other)[0], "--brian2", path]
        )


def test_without_brian2_one_sentence_says_so(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "brian2", None)
    words = refused(["--brian2", f"{trained('learned')[0]}/net.npz"])
    assert "Brian2 cannot be imported" in words
    assert "pip install brian2" in words


def test_brian2_spikes_as_torch_does_where_it_is_installed(trained, spoken, capsys):
    pytest.importorskip("brian2", exc_type=(ImportError, AttributeError))
    for name in ("two layers", "sparse, count 2", "none", "spoken"):
        path = f"{trained(name)[0]}/net.npz"
        export.main(["--brian2", path, "--data-dir", spoken, "--samples", "2"])
        assert " 0 that only one" in capsys.readouterr().out
