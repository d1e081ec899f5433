"""The programs beside the three files, each against a slow computation; one thread, offline."""

import json
import math
import os

import numpy as np
import pytest
import torch

import data
import train
from delays import DelayedLinear, DelaySNN, lif, lif_loop
from experiments import benchmark, ideas

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
    steps = torch.tensor([9, 4, 6])
    got, want = net.train(training)(x, steps), base.train(training)(x, steps)
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
