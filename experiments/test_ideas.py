"""Each idea against a slow loop: `python -m pytest -q experiments/test_ideas.py`, one thread."""

import csv
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import ideas

import data
import train
from delays import DelayedLinear, DelaySNN, lif

torch.set_num_threads(1)  # several threads fight over the cores of a busy machine


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def close(got, want, *, rtol, atol):
    got, want = (torch.as_tensor(values).detach().numpy() for values in (got, want))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


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


def gradients(output, tensors, seed=5):
    """Of a random sum of the output."""
    return torch.autograd.grad((output * random(*output.shape, seed=seed)).sum(), tensors)


def set_mode(layer, mode):
    """Puts a layer into a mode; returns its sigma there, None for whole steps."""
    layer.train(mode == "training")
    layer.whole_steps = mode != "unrounded"
    layer.sigma = 0.8
    return None if mode == "whole steps" else 0.8


MODES = ["training", "unrounded", "whole steps"]

# ---------------------------------------------------------------------- axonal and dendritic delays


def slow_delayed_sum(x, weight, delay, sigma, taps):
    """[B, T + taps // 2, out], synapse by synapse; weight and delay are [count, out, in]."""
    count, outputs, inputs = weight.shape
    steps = x.shape[1] + taps // 2
    sums = [[torch.zeros(len(x)).double() for _ in range(outputs)] for _ in range(steps)]
    for c, o, i in np.ndindex(count, outputs, inputs):
        shares = slow_shares(delay[c, o, i], sigma, taps)
        for t in range(steps):
            for d in range(taps):
                if 0 <= t - d < x.shape[1]:
                    sums[t][o] = sums[t][o] + weight[c, o, i] * shares[d] * x[:, t - d, i]
    return torch.stack([torch.stack(row, 1) for row in sums], 1)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [ideas.AxonalLayer, ideas.DendriticLayer])
def test_shared_delays_are_the_loop_and_so_are_their_gradients(kind, mode, count):
    torch.manual_seed(0)
    layer = kind(3, 2, 5, count).double()
    sigma = set_mode(layer, mode)
    x = random(2, 6, 3).requires_grad_()
    shared = {ideas.AxonalLayer: (count, 1, 3), ideas.DendriticLayer: (count, 2, 1)}[kind]
    assert layer.delay.numel() == math.prod(shared)  # one an axon, or one a neuron
    weight = layer.weight.view(count, 2, 3)
    delay = layer.delay.view(shared).expand(count, 2, 3)
    want = slow_delayed_sum(x, weight, delay, sigma, 5)
    got = layer(x)
    close(got, want, rtol=0, atol=1e-12)

    learned = [x, layer.weight]
    if sigma is not None:  # whole steps have no gradient
        learned.append(layer.delay)
    for one, other in zip(gradients(got, learned), gradients(want, learned), strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [dict(), dict(count=2), dict(connections=2)])
@pytest.mark.parametrize("kind", [ideas.Axonal, ideas.Dendritic])
def test_shared_delays_are_those_of_every_synapse_repeated(kind, options, training):
    torch.manual_seed(0)
    net = kind(4, [6, 5], 3, taps=5, dropout=0.0, **options).double()
    base = DelaySNN(4, [6, 5], 3, taps=5, dropout=0.0, **options).double()
    for layer, own in zip(base.layers, net.layers, strict=True):
        layer.weight.data.copy_(own.weight)
        layer.delay.data.copy_(own.delay.expand_as(layer.delay))
        layer.mask = own.mask
    base.norms.load_state_dict(net.norms.state_dict())
    x = (random(3, 9, 4) > 0.3).double()
    got, want = net.train(training)(x), base.train(training)(x)
    assert training is False or min(rate.item() for rate in net.rates) > 0.05
    close(got, want, rtol=0, atol=1e-12)

    got.sum().backward()
    want.sum().backward()
    for layer, own in zip(base.layers, net.layers, strict=True):
        close(own.weight.grad, layer.weight.grad, rtol=1e-9, atol=1e-12)
        if training:
            total = layer.delay.grad.sum_to_size(own.delay.shape)
            close(own.delay.grad, total, rtol=1e-9, atol=1e-12)


# -------------------------------------------------------------------------------- recurrent delays


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


@pytest.mark.parametrize("mode", [*MODES, "fixed"])
@pytest.mark.parametrize("taps, connections", [(3, 0), (3, 2), (1, 0)])
def test_recurrent_neurons_are_the_loop_and_so_are_their_gradients(taps, connections, mode):
    torch.manual_seed(0)
    named = dict(taps=taps, connections=connections, learn_delays=mode != "fixed")
    net = ideas.Recurrent(3, [4], 2, tau=2.0, **named).double()
    echo = net.echoes[0]
    assert echo.mask is None if connections == 0 else echo.mask.sum(1).tolist() == [2] * 4
    # Fixed delays are whole steps in training too.
    sigma = set_mode(echo, mode) if mode != "fixed" else set_mode(echo, "training") and None
    current = (random(2, 11, 4) + 0.2).requires_grad_()
    got = net.neurons(0, current)
    want = slow_recurrent(current, echo.weight, echo.delay[0], sigma, taps, tau=2.0)
    assert torch.equal(got, want)
    assert 0.2 < got.mean() < 0.8
    assert not torch.equal(got, lif(current, 2.0))  # what came back did something

    learned = [current, echo.weight]
    if sigma is not None:
        learned.append(echo.delay)
    slopes = gradients(want, learned)
    if echo.mask is not None:
        slopes = (slopes[0], slopes[1] * echo.mask, *slopes[2:])
    for one, other in zip(gradients(got, learned), slopes, strict=True):
        close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("learn_delays", [True, False])
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_spike_comes_back_after_its_delay_and_one_step(delay, learn_delays):
    net = ideas.Recurrent(1, [1], 1, taps=4, tau=1.0, learn_delays=learn_delays).eval()
    assert isinstance(net.echoes[0].delay, torch.nn.Parameter) is learn_delays
    net.echoes[0].weight.data.fill_(1.0)
    net.echoes[0].delay.data.fill_(delay + 0.3)  # is rounded
    current = torch.zeros(1, 13, 1)
    current[0, 0] = 1.0
    spikes = net.neurons(0, current).flatten()
    assert spikes.nonzero().flatten().tolist() == list(range(0, 13, delay + 1))


def grown(kind, seed=0, **options):
    """A network of the same first weights for all kinds that draw what they add at last."""
    torch.manual_seed(seed)
    return kind(4, iter([6, 5]), 3, taps=5, tau=2.0, dropout=0.0, **options).double()


def assert_same_network(net, base):
    """The same output and the same gradients of all that the base has, training and evaluated."""
    x = (random(3, 9, 4) > 0.3).double()
    for training in (True, False):
        got, want = net.train(training)(x), base.train(training)(x)
        assert training is False or min(rate.item() for rate in base.rates) > 0.05
        close(got, want, rtol=0, atol=1e-10)
        net.zero_grad()
        base.zero_grad()
        (got * random(*got.shape)).sum().backward()
        (want * random(*got.shape)).sum().backward()
        own = dict(net.named_parameters())
        for name, parameter in base.named_parameters():
            if parameter.grad is not None:  # whole steps have no gradient
                close(own[name].grad, parameter.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("options", [dict(), dict(count=2), dict(connections=2)])
def test_recurrent_without_weights_is_the_base(options):
    net, base = grown(ideas.Recurrent, **options), grown(DelaySNN, **options)
    for echo in net.echoes:
        echo.weight.data.zero_()
    assert_same_network(net, base)


# -------------------------------------------------------------------------------- adaptive neurons


def slow_adaptive(current, neurons):
    """The equations of AdaptiveNeurons, one neuron at a time."""
    spikes = []
    for n in range(current.shape[2]):
        m, k, a, b = (1 / (1 + torch.exp(-x[n])) for x in constants_of(neurons))
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


def constants_of(neurons):
    return [neurons.m, neurons.k, neurons.a, neurons.b]


def test_adaptive_neurons_are_the_loop_and_so_are_their_gradients():
    torch.manual_seed(0)
    neurons = ideas.AdaptiveNeurons(5).double()
    current = (random(3, 20, 5) + 0.5).requires_grad_()
    got, want = neurons(current), slow_adaptive(current, neurons)
    assert torch.equal(got, want)
    assert 0.2 < got.mean() < 0.8
    learned = [current, *constants_of(neurons)]
    for one, other in zip(gradients(got, learned), gradients(want, learned), strict=True):
        assert other.abs().min() > 1e-6
        close(one, other, rtol=1e-9, atol=1e-12)


def test_adaptive_neurons_begin_with_a_short_memory_and_a_longer_adaptation():
    torch.manual_seed(0)
    neurons = ideas.AdaptiveNeurons(1000)
    ranges = [(0.01, 0.5), (0.5, 0.99), (0.01, 0.1), (0.01, 0.2)]  # of m, k, a, b
    for x, (low, high) in zip(constants_of(neurons), ranges, strict=True):
        drawn = torch.sigmoid(x.detach())
        near = 0.01 * (high - low)  # a thousand draws come so close to both ends
        assert low - 1e-6 <= drawn.min() < low + near
        assert high - near < drawn.max() <= high + 1e-6


def test_adaptive_neurons_by_hand():
    neurons = ideas.AdaptiveNeurons(1).double()
    for x, value in zip(constants_of(neurons), (0.5, 0.5, 0.25, 0.5), strict=True):
        x.data.fill_(math.log(value / (1 - value)))
    # h is 1.125, a spike: w = 0.5.  0.625: w = 0.25 + 0.15625.  0.3125 + 1.125 - 0.40625 = 1.03125,
    # a spike: w = 0.203125 + 0.5.  1.125 - 0.703125 = 0.421875.
    spikes = neurons(torch.full((1, 4, 1), 1.125).double())
    assert spikes.flatten().tolist() == [1, 0, 1, 0]


def test_adaptive_without_adaptation_is_the_base():
    net, base = grown(ideas.Adaptive), grown(DelaySNN)
    for neurons in net.adaptive:
        neurons.m.data.fill_(0.0)  # half of the potential is left after a step, as with tau 2
        neurons.a.data.fill_(-1e4)
        neurons.b.data.fill_(-1e4)
    assert_same_network(net, base)


def test_adaptive_neurons_fall_silent_whatever_their_constants():
    neurons = ideas.AdaptiveNeurons(200).double()
    for seed, x in enumerate(constants_of(neurons)):
        x.data.copy_(3 * random(200, seed=seed))
    current = torch.zeros(1, 1500, 200).double()
    current[:, :50] = 3 * random(1, 50, 200)
    assert not neurons(current)[:, -500:].any()


# --------------------------------------------------------------------------------- whole networks

SHORT = "--dataset toy --hidden 5 --taps 5 --batch-size 250 --epochs 2 --delay-lr 2"
PARAMETERS = {
    # An idea: its parameters, with 8 inputs, 5 hidden neurons and 10 classes.
    "axonal": 8 * 5 + 5 * 10 + 8 + 5 + 10,
    "dendritic": 8 * 5 + 5 * 10 + 5 + 10 + 10,
    "recurrent": 2 * (8 * 5 + 5 * 10) + 10 + 5 * 5 + 5,
    "adaptive": 2 * (8 * 5 + 5 * 10) + 10 + 4 * 5,
}


def test_every_idea_is_trained_below():
    assert PARAMETERS.keys() | {"base"} == ideas.IDEAS.keys()


def read(folder):
    with open(folder / "result.json") as file:
        result = json.load(file)
    with open(folder / "log.csv") as file:
        rows = list(csv.DictReader(file))
    return result, [{key: row[key] for key in row if key != "seconds"} for row in rows]


class Killed(Exception):
    pass


def stop(folder, rows):
    raise Killed


@pytest.mark.parametrize("idea", PARAMETERS)
def test_an_idea_trains_goes_on_and_is_loaded(idea, tmp_path, monkeypatch):
    ideas.main([idea, *SHORT.split(), "--out", str(tmp_path / "whole")])
    result, rows = read(tmp_path / "whole")

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_log", stop)  # which comes after the first epoch was saved
        with pytest.raises(Killed):
            ideas.main([idea, *SHORT.split(), "--out", str(tmp_path / "cut")])
    ideas.main([idea, "--resume", "--out", str(tmp_path / "cut")])
    resumed, resumed_rows = read(tmp_path / "cut")
    assert resumed_rows == rows
    assert resumed | {"seconds": 0} == result | {"seconds": 0}

    for key in ("test_accuracy", "best_on_test", "unrounded_accuracy", "seconds"):
        assert result[key] > 0
    assert result["parameters"] == PARAMETERS[idea]
    assert float(rows[-1]["moved_ms"]) > 1
    options = train.parse([*SHORT.split(), "--out", str(tmp_path / "whole")])
    fresh = train.build(options, ideas.IDEAS[idea])
    first = {name: value.clone() for name, value in fresh.named_parameters()}
    net, _ = train.load_run(tmp_path / "whole", net=fresh)
    for name, value in net.named_parameters():
        assert not torch.equal(value, first[name]), name  # every one was trained
    for layer in train.delayed_layers(net):
        assert layer.delay.min() >= 0
        assert layer.delay.max() <= 4
    test = data.load("toy", "test", "")
    assert train.evaluate(net, test, 250) == result["test_accuracy"]
    assert train.evaluate_unrounded(net, test, 250) == result["unrounded_accuracy"]


def test_recurrent_parameters_have_the_rates_of_their_kind():
    options = train.parse(["--dataset", "toy"])
    net = train.build(options, ideas.Recurrent)
    weights, delays, others = train.make_optimizer(net, options).param_groups
    assert any(parameter is net.echoes[0].weight for parameter in weights["params"])
    assert any(parameter is net.echoes[0].delay for parameter in delays["params"])
    assert len(others["params"]) == 2  # of the norm
    train.set_sigma(net, 0, options)
    assert net.echoes[0].sigma == net.layers[0].sigma == pytest.approx(12.27, rel=1e-9, abs=0)
    net.echoes[0].delay.data.fill_(99.0)
    net.echoes[0].clamp_delays()
    assert net.echoes[0].delay.max() == 24
    assert isinstance(net.echoes[0], DelayedLinear)


@pytest.mark.parametrize("idea", ideas.IDEAS)
def test_a_seed_gives_the_same_network_and_much_of_it_is_the_base(idea):
    options = train.parse(["--dataset", "toy", "--layers", "2"])
    base = train.build(options).state_dict()
    state = train.build(options, ideas.IDEAS[idea]).state_dict()
    again = train.build(options, ideas.IDEAS[idea]).state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    shared = ["layers.0.weight"]
    if idea in ("base", "recurrent", "adaptive"):
        shared = [name for name in base if name in state]
        assert len(shared) == len(base)
    for name in shared:
        assert torch.equal(state[name], base[name]), name


@pytest.mark.parametrize("idea", ["recurrent", "adaptive"])
def test_a_sample_is_judged_alone(idea):
    spikes = data.from_events(
        sample=[0, 0, 0, 1], step=[0, 3, 4, 39], channel=[1, 2, 3, 2], labels=[0, 1], inputs=8
    )
    net = train.build(train.parse(["--dataset", "toy"]), ideas.IDEAS[idea]).eval()
    net.norms[0].running_var.fill_(0.01)  # else nothing spikes
    both = train.predict(net, spikes, torch.tensor([0, 1]), 40)
    alone = train.predict(net, spikes, torch.tensor([0]), 5)
    assert all(rate > 0.01 for rate in net.rates)
    close(alone[0], both[0], rtol=1e-5, atol=1e-5)


def test_the_folder_is_named_after_the_idea(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "toy", "--seed", "3"]
    assert ideas.parse("adaptive", words).out == "runs/toy-adaptive-learned-3"
    assert ideas.parse("adaptive", [*words, "--out=mine"]).out == "mine"
    with pytest.raises(ValueError, match="runs/toy-adaptive-learned-3/last.pt"):
        ideas.parse("adaptive", [*words, "--resume"])


def test_the_command_line_evaluates_and_refuses_in_a_sentence(tmp_path, capsys):
    out = str(tmp_path / "run")
    ideas.main(["recurrent", *SHORT.split(), "--delays", "fixed", "--out", out])
    last = capsys.readouterr().out.splitlines()[-1]
    ideas.main(["recurrent", "--eval", f"{out}/last.pt"])
    assert capsys.readouterr().out.split()[2] == last.split()[2]  # both "test accuracy 12.30%"

    with pytest.raises(ValueError, match="is of class Recurrent, and not Adaptive: use the"):
        ideas.main(["adaptive", "--eval", f"{out}/last.pt"])
    with pytest.raises(ValueError, match="no idea is named: expected one of base, axonal, "):
        ideas.main([])
    command = [sys.executable, ideas.__file__, "axonic", "--dataset", "toy"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    said = "ideas.py: the first word is 'axonic': expected one of base, axonal, dendritic, "
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == done.returncode == 1
