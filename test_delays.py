"""Every claim against an independent, slow oracle: `python -m pytest -q`, offline, one thread."""

import csv
import gzip
import hashlib
import http.server
import io
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import delays
import train
from delays import (
    DelayedLinear,
    DelaySNN,
    class_scores,
    delay_conv,
    gaussian_kernel,
    integer_kernel,
    leaky_integrator,
    lif,
    shrinking_sigma,
    spike,
    surrogate_slope,
)

torch.set_num_threads(1)  # several threads fight over the cores of a busy machine

HERE = os.path.dirname(os.path.abspath(__file__))
ENV = os.environ | {"OMP_NUM_THREADS": "1"}  # of the programs that tests start


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, high, seed=0):
    return high * torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double()


def close(got, want, *, rtol, atol):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=rtol, atol=atol)


def program(*words, code=None):
    """Runs train.py, or a piece of code beside it."""
    script = ["train.py"] if code is None else ["-c", code]
    command = [sys.executable, *script, *map(str, words)]
    return subprocess.run(command, cwd=HERE, env=ENV, capture_output=True, text=True)


def parsed(*argv):
    """The options of a command line."""
    return train.parse([str(word) for word in argv])


def finite_differences(function, x, eps=1e-6):
    """The gradient of a function from a tensor to a number, one coordinate after the other."""
    slopes = np.zeros(x.shape)
    for index in np.ndindex(*x.shape):
        above, below = x.clone(), x.clone()
        above[index] += eps
        below[index] -= eps
        slopes[index] = (function(above) - function(below)).item() / (2 * eps)
    return slopes


# -------------------------------------------------------------------------------------- the kernels


def slow_gaussian_kernel(weight, delay, sigma, taps):
    """The formula, synapse by synapse; weight, delay and sigma are [count, out, in]."""
    kernel = np.zeros((*weight.shape[1:], taps))
    for c, o, i in np.ndindex(weight.shape):
        g = np.zeros(taps)
        for d in range(taps):
            g[d] = math.exp(-(((d - delay[c, o, i]) / sigma[c, o, i]) ** 2) / 2)
        kernel[o, i] += weight[c, o, i] * g / (g.sum() + 1e-7)
    return kernel


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("sigma", [0.5, 3.0, 12.27])
def test_gaussian_kernel_is_the_formula(count, sigma):
    weight = random(count, 3, 4)
    delay = uniform(count, 3, 4, high=8)
    want = slow_gaussian_kernel(weight.numpy(), delay.numpy(), np.full(weight.shape, sigma), 9)
    close(gaussian_kernel(weight, delay, sigma, 9), want, rtol=1e-12, atol=1e-15)
    if count == 1:
        close(gaussian_kernel(weight[0], delay[0], sigma, 9), want, rtol=1e-12, atol=1e-15)


def test_gaussian_far_from_every_tap_is_divided_by_its_sum_and_1e_7():
    # sigma 0.1 and delay 0.5: both taps are 5 sigma away, where g is 3.7e-6.
    g = math.exp(-(5**2) / 2)
    got = gaussian_kernel(torch.ones(1, 1).double(), torch.full((1, 1), 0.5).double(), 0.1, 2)
    close(got[0, 0], [g / (2 * g + 1e-7)] * 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (1, 1), (2, 1, 4), (2, 3, 1)])
def test_delays_of_fewer_dimensions_are_shared(shape):
    weight = random(2, 3, 4)
    delay = uniform(*shape, high=6)
    every = delay.expand(2, 3, 4)
    want = slow_gaussian_kernel(weight.numpy(), every.numpy(), np.full((2, 3, 4), 1.5), 7)
    close(gaussian_kernel(weight, delay, 1.5, 7), want, rtol=1e-12, atol=1e-15)
    assert torch.equal(integer_kernel(weight, delay, 7), integer_kernel(weight, every, 7))


def test_sigma_of_more_synapses_than_there_are_is_refused():
    weight, delay, sigma = torch.ones(3, 4), torch.ones(3, 4), torch.ones(2, 3, 4)
    with pytest.raises(RuntimeError, match="expanded size"):
        gaussian_kernel(weight, delay, sigma, 7)


@pytest.mark.parametrize("shape", [(), (3, 1), (1, 4), (2, 3, 4)])
def test_sigma_may_be_a_tensor_with_a_gradient(shape):
    weight = random(2, 3, 4)
    delay = uniform(2, 3, 4, high=6)
    sigma = uniform(*shape, high=2, seed=1) + 0.5
    every = sigma.expand(2, 3, 4).numpy()
    want = slow_gaussian_kernel(weight.numpy(), delay.numpy(), every, 7)
    close(gaussian_kernel(weight, delay, sigma, 7), want, rtol=1e-12, atol=1e-15)

    g = random(3, 4, 7, seed=2)
    slopes = finite_differences(lambda s: (gaussian_kernel(weight, delay, s, 7) * g).sum(), sigma)
    sigma.requires_grad_()
    (gaussian_kernel(weight, delay, sigma, 7) * g).sum().backward()
    close(sigma.grad, slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [1, 3])
def test_integer_kernel_has_each_weight_at_its_rounded_delay(count):
    weight = random(count, 3, 4)
    delay = uniform(count, 3, 4, high=6)
    kernel = integer_kernel(weight, delay, 7)
    for o, i, d in np.ndindex(3, 4, 7):
        here = [c for c in range(count) if round(delay[c, o, i].item()) == d]
        want = sum(weight[c, o, i].item() for c in here)
        assert kernel[o, i, d].item() == pytest.approx(want, rel=0, abs=1e-14)


def test_half_steps_are_rounded_to_the_even_step():
    delay = torch.tensor([[0.5, 1.5, 2.5, 3.5, 3.4999, 3.5001]])
    kernel = integer_kernel(torch.ones(1, 6), delay, 6)
    assert kernel[0].argmax(1).tolist() == [0, 2, 2, 4, 3, 4]
    assert kernel.sum() == 6


def test_gaussian_kernel_tends_to_the_integer_kernel():
    weight = random(2, 3, 4)
    delay = torch.arange(24).view(2, 3, 4) % 7 + uniform(2, 3, 4, high=0.2)
    delay = delay.clamp(max=6)
    narrow = gaussian_kernel(weight, delay, 0.1, 7)
    # Up to the 1e-7 in the formula: 0.2 steps off the tap, g is 0.14.
    close(narrow, integer_kernel(weight, delay, 7), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------- the delayed sum

METHODS = ["auto", "direct", "fourier"]
SIZES = [(1, 4, 2), (7, 3, 0), (8, 3, 1), (5, 9, 4), (3, 2, 6), (6, 1, 3), (6, 4, 3), (6, 4, 2)]


def slow_conv(x, k, tail):
    """The delayed sum as its docstring has it, one product at a time."""
    batch, steps, inputs = x.shape
    y = np.zeros((batch, steps + tail, len(k)))
    for b, t, o, i, d in np.ndindex(*y.shape, inputs, k.shape[2]):
        if 0 <= t - d < steps:
            y[b, t, o] += k[o, i, d] * x[b, t - d, i]
    return y


@pytest.mark.parametrize("steps, taps, tail", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_delayed_sum_is_the_loop_and_so_are_its_gradients(method, steps, taps, tail):
    x = random(2, steps, 3).requires_grad_()
    k = random(4, 3, taps, seed=1).requires_grad_()
    y = delay_conv(x, k, tail, method)
    close(y.detach(), slow_conv(x.detach().numpy(), k.detach().numpy(), tail), rtol=0, atol=1e-12)

    g = random(*y.shape, seed=2)
    dx, dk = torch.autograd.grad(y, (x, k), g)
    want_x = np.zeros(x.shape)
    want_k = np.zeros(k.shape)
    for b, t, o, i, d in np.ndindex(*y.shape, 3, taps):
        if 0 <= t - d < steps:
            want_x[b, t - d, i] += (g[b, t, o] * k[o, i, d]).item()
            want_k[o, i, d] += (g[b, t, o] * x[b, t - d, i]).item()
    close(dx, want_x, rtol=0, atol=1e-12)
    close(dk, want_k, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps, tail", [(3, 0), (4, 2)])
@pytest.mark.parametrize("method", ["direct", "fourier"])
def test_delayed_sum_can_be_differentiated_twice(method, steps, tail):
    x = random(2, steps, 2).requires_grad_()
    k = random(2, 2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, k: delay_conv(x, k, tail, method), (x, k))


@pytest.mark.parametrize("steps", [110, 111])
def test_methods_agree_in_single_and_double_precision_at_working_size(steps):
    x = random(16, steps, 140).clamp(0, 1)
    k = random(64, 140, 25)
    direct = delay_conv(x, k, 12, "direct")
    close(delay_conv(x, k, 12, "fourier"), direct, rtol=0, atol=1e-11)
    for method in METHODS:
        single = delay_conv(x.float(), k.float(), 12, method)
        assert single.dtype == torch.float32
        assert (single - direct).norm() / direct.norm() < 2e-6
    fourier = delay_conv(x.float(), k.float(), 12, "fourier")
    assert torch.equal(delay_conv(x.float(), k.float(), 12, "auto"), fourier)
    assert not torch.equal(delay_conv(x.float(), k.float(), 12, "direct"), fourier)


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_whole_numbers_of_spikes_are_converted(method, taps):
    counts = torch.arange(24, dtype=torch.uint8).view(2, 4, 3) * 10  # up to 230
    k = random(2, 3, taps, dtype=torch.float32)
    got = delay_conv(counts, k, 1, method)
    assert got.dtype == torch.float32
    assert torch.equal(got, delay_conv(counts.float(), k, 1, method))


def test_one_tap_is_a_linear_layer():
    x = random(2, 5, 3)
    k = random(4, 3, 1, seed=1)
    y = delay_conv(x, k, 2)
    close(y[:, :5], np.einsum("bti,oi->bto", x, k[:, :, 0]), rtol=0, atol=1e-14)
    assert y.shape == (2, 7, 4)
    assert not y[:, 5:].any()


@pytest.mark.parametrize("method", METHODS)
def test_whole_step_delays_are_shifts(method):
    x = random(2, 10, 3)
    kernel = integer_kernel(torch.ones(1, 3).double(), torch.tensor([[0.0, 2.0, 4.0]]), 5)
    y = delay_conv(x, kernel, 4, method)
    want = np.zeros((2, 14))
    for i, d in enumerate((0, 2, 4)):
        want[:, d : d + 10] += x[:, :, i].numpy()
    close(y[:, :, 0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("delay_shape", [(2, 2, 3), (1, 3), (2, 1)])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_gradients_of_weight_and_delay_are_finite_differences(sigma, delay_shape):
    x = random(2, 6, 3)
    weight = random(2, 2, 3, seed=1)
    delay = uniform(*delay_shape, high=4)
    g = random(2, 8, 2, seed=2)

    def loss(weight, delay):
        return (delay_conv(x, gaussian_kernel(weight, delay, sigma, 5), 2) * g).sum()

    want_weight = finite_differences(lambda w: loss(w, delay), weight)
    want_delay = finite_differences(lambda d: loss(weight, d), delay)
    loss(weight.requires_grad_(), delay.requires_grad_()).backward()
    close(weight.grad, want_weight, rtol=1e-6, atol=1e-8)
    close(delay.grad, want_delay, rtol=1e-6, atol=1e-8)


# -------------------------------------------------------------------------------------- the neurons


def slow_lif(current, decay, threshold):
    """One neuron, one step at a time, in Python floats: its spikes s and potentials h."""
    v = 0.0
    spikes, potentials = [], []
    for i in current:
        h = decay * v + i
        s = 1.0 if h >= threshold else 0.0
        v = h * (1 - s)
        spikes.append(s)
        potentials.append(h)
    return spikes, potentials


def slope(x, alpha=5.0):
    return alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2)


def test_lif_by_hand():
    # tau 2 steps: v halves.  0.6; 0.3 + 0.8 = 1.1, a spike; from 0: 0.6; 0.3 + 0.7 = 1.0, a spike.
    current = torch.tensor([0.6, 0.8, 0.6, 0.7, 0.9]).double().view(1, 5, 1)
    assert lif(current, 2.0).flatten().tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("tau, threshold", [(1.0, 1.0), (1.005, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize("alpha", [5.0, 2.0])
def test_lif_is_the_scalar_loop_and_so_is_its_gradient(tau, threshold, alpha):
    current = random(2, 12, 3).requires_grad_()
    spikes = lif(current, tau, threshold, alpha)
    g = random(2, 12, 3, seed=1)
    (grad,) = torch.autograd.grad(spikes, current, g)
    decay = 1 - 1 / tau
    for b, n in np.ndindex(2, 3):
        s, h = slow_lif(current[b, :, n].tolist(), decay, threshold)
        assert spikes[b, :, n].tolist() == s
        for start in range(12):  # dL/dI[start]: its effect on every later h, the reset constant
            want = 0.0
            effect = 1.0
            for t in range(start, 12):
                want += g[b, t, n].item() * slope(h[t] - threshold, alpha) * effect
                effect *= decay * (1 - s[t])  # v[t] = h[t] (1 - s[t])
            assert grad[b, start, n].item() == pytest.approx(want, rel=1e-10, abs=1e-14)


def test_potential_at_exactly_the_threshold_is_a_spike_forward_and_backward():
    current = torch.tensor([1.0, 0.5, 0.75, 1.0]).double().view(1, 4, 1).requires_grad_()
    spikes = lif(current, 2.0)  # h is 1, 0.5, 1, 1: all whole in binary
    assert spikes.flatten().tolist() == [1, 0, 1, 1]
    spikes.sum().backward()
    # A spike cuts the path back in time: h[0] moves s[0] alone, h[1] moves s[1] and half of h[2].
    want = [slope(0), slope(-0.5) + 0.5 * slope(0), slope(0), slope(0)]
    close(current.grad.flatten(), want, rtol=1e-14, atol=0)


def test_lif_refuses_a_second_derivative():
    current = random(1, 4, 2).requires_grad_()
    (grad,) = torch.autograd.grad(lif(current, 2.0).square().sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(lif(current, 2.0).sum(), current, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()


def test_autocast_trains_in_its_dtype():
    net = DelaySNN(4, [5], 3, taps=7, dropout=0.0)
    x = uniform(2, 9, 4, high=2).float()
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        membrane = net(x)
    assert membrane.dtype == torch.bfloat16
    assert not torch.equal(membrane.float(), exact)
    membrane.float().square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_surrogate_is_the_derivative_of_the_arctan():
    x = np.linspace(-2, 2, 41)
    for alpha in (5.0, 2.0):
        above = np.arctan(np.pi / 2 * alpha * (x + 1e-6)) / np.pi
        below = np.arctan(np.pi / 2 * alpha * (x - 1e-6)) / np.pi
        close(
            surrogate_slope(torch.from_numpy(x), alpha), (above - below) / 2e-6, rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spike_is_a_step_with_the_surrogate_slope(dtype):
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e6, -1e6], dtype=dtype)
    x = torch.cat([special, random(100_000, dtype=dtype), 1e-6 * random(100_000, dtype=dtype)])
    for alpha in (5.0, 2.0):
        x = x.detach().requires_grad_()
        s = spike(x, alpha)
        assert torch.equal(s, torch.where(x >= 0, 1.0, 0.0).to(dtype))
        assert s[:6].tolist() == [1, 1, 1, 0, 1, 0]
        assert torch.equal(s.detach(), lif(x.detach().view(1, 1, -1), 1.0, threshold=0.0).flatten())
        s.sum().backward()
        rtol = 1e-12 if dtype == torch.float64 else 1e-5
        close(x.grad, surrogate_slope(x.detach(), alpha), rtol=rtol, atol=0)


def test_neurons_built_from_spike_are_lif():
    current = random(3, 15, 4).requires_grad_()
    g = random(3, 15, 4, seed=1)
    v = torch.zeros(3, 4).double()
    steps = []
    for t in range(15):
        h = (1 - 1 / 3.0) * v + current[:, t]
        s = spike(h - 0.7, 4.0)
        v = h * (1 - s.detach())
        steps.append(s)
    want = torch.stack(steps, 1)
    got = lif(current, 3.0, 0.7, 4.0)
    assert torch.equal(got, want)
    assert 0 < got.mean() < 1
    (want_grad,) = torch.autograd.grad(want, current, g)
    (grad,) = torch.autograd.grad(got, current, g)
    close(grad, want_grad, rtol=1e-11, atol=1e-14)


def test_leaky_integrator_is_the_recursion():
    current = random(2, 9, 3).requires_grad_()
    v = torch.zeros(2, 3).double()
    steps = []
    for t in range(9):
        v = (1 - 1 / 3.0) * v + current[:, t]
        steps.append(v)
    want = torch.stack(steps, 1)
    got = leaky_integrator(current, 3.0)
    close(got.detach(), want.detach(), rtol=1e-12, atol=1e-12)
    g = random(2, 9, 3, seed=1)
    (want_grad,) = torch.autograd.grad(want, current, g)
    (grad,) = torch.autograd.grad(got, current, g)
    close(grad, want_grad, rtol=1e-12, atol=1e-12)


def test_class_scores_are_sums_of_softmax_over_own_steps():
    membrane = random(2, 5, 3)
    e = np.exp(membrane.numpy())
    share = e / e.sum(2, keepdims=True)
    close(class_scores(membrane), share.sum(1), rtol=1e-12, atol=0)
    want = np.stack([share[0, :2].sum(0), share[1, :4].sum(0)])
    close(class_scores(membrane, torch.tensor([2, 4])), want, rtol=1e-12, atol=0)


# --------------------------------------------------------------------------- the layer, the network


def some_counts(steps=12, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.poisson(0.4, (batch, steps, 6)).astype(np.float64))


def small(**options):
    """A network of 6 inputs, 8 and 7 hidden neurons and 4 classes, whose norms have seen data."""
    torch.manual_seed(0)
    net = DelaySNN(6, (8, 7), 4, **{"taps": 5, **options}).double()
    for seed in range(20):  # without statistics of the currents the neurons would be silent
        net(some_counts(seed=seed))
    return net


class Linear(DelaySNN):
    """The network with neurons that pass their current on."""

    def neurons(self, i, current):
        return current


class Recorder(DelaySNN):
    """The network, which keeps the currents of its hidden neurons."""

    def neurons(self, i, current):
        self.currents.append(current.detach())
        return super().neurons(i, current)


class Always(DelaySNN):
    """The network with neurons that always spike."""

    def neurons(self, i, current):
        return torch.ones_like(current)


def inputs_of(module, seen):
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))


def outputs_of(module, seen):
    module.register_forward_hook(lambda module, args, output: seen.append(output.detach()))


def recorded(net):
    """The same network as a Recorder."""
    net.__class__ = Recorder
    net.currents = []
    return net


@pytest.mark.parametrize(
    "inputs, hidden, classes, options, weights, parameters",
    [
        (140, (256, 256), 20, {}, 106_496, 214_016),
        (140, (512, 512, 512), 35, dict(taps=31, count=2), 1_227_776, 2_458_624),
    ],
)
def test_networks_have_the_published_number_of_parameters(
    inputs, hidden, classes, options, weights, parameters
):
    net = DelaySNN(inputs, hidden, classes, **options)
    assert sum(layer.weight.numel() for layer in net.layers) == weights
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert train.count_parameters(net) == parameters


def test_evaluation_uses_whole_steps_and_changes_no_bit():
    net = small().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    membrane = net(some_counts())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        for layer in net.layers:
            layer.delay.round_()
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(some_counts()), membrane)


def test_a_layer_trains_with_gaussians_and_evaluates_with_one_tap():
    layer = DelayedLinear(3, 4, 5).double()
    layer.sigma = 1.5
    gaussians = gaussian_kernel(layer.weight, layer.delay, 1.5, 5)
    one_tap = integer_kernel(layer.weight, layer.delay, 5)
    assert torch.equal(layer.kernel(), gaussians)
    assert torch.equal(layer.eval().kernel(), one_tap)
    layer.whole_steps = False
    assert torch.equal(layer.kernel(), gaussians)
    assert torch.equal(layer.train().kernel(), gaussians)


def test_a_layer_with_fixed_delays_always_has_one_tap():
    torch.manual_seed(0)
    layer = DelayedLinear(60, 50, 9, learn_delays=False)
    steps, shares = np.unique(layer.delay.numpy(), return_counts=True)
    assert steps.tolist() == list(range(9))
    assert (shares > 100).all()
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert "delay" in layer.state_dict()
    one_tap = integer_kernel(layer.weight, layer.delay, 9)
    assert torch.equal(layer.kernel(), one_tap)
    layer.whole_steps = False
    assert torch.equal(layer.eval().kernel(), one_tap)


@pytest.mark.parametrize("shape", [(1, 6), (5, 1), ()])
def test_a_layer_may_have_a_delay_for_each_axon_or_dendrite(shape):
    layer = DelayedLinear(6, 5, 9, delay_shape=shape).double()
    assert layer.delay.shape == shape
    x = some_counts()
    for mode in (True, False):
        layer.train(mode)
        shared = layer(x)
        full = DelayedLinear(6, 5, 9).double().train(mode)
        full.load_state_dict({"weight": layer.weight, "delay": layer.delay.expand(5, 6)})
        close(shared.detach(), full(x).detach(), rtol=0, atol=1e-12)
    assert train.count_parameters(layer) == 30 + layer.delay.numel()


def test_a_printed_network_shows_its_layers():
    words = repr(DelaySNN(5, [3], 2, taps=4, count=2, learn_delays=False))
    for sizes in ("weight [2, 3, 5], delay [2, 3, 5]", "weight [2, 2, 3], delay [2, 2, 3]"):
        assert f"DelayedLinear({sizes}, taps=4, learn_delays=False)" in words
    shared = DelayedLinear(5, 3, taps=4, delay_shape=(1, 5))
    assert repr(shared) == "DelayedLinear(weight [3, 5], delay [1, 5], taps=4, learn_delays=True)"


def test_a_layer_goes_on_for_half_its_taps():
    for taps in (1, 4, 5):
        y = DelayedLinear(6, 5, taps).double()(some_counts(steps=12))
        assert y.shape == (3, 12 + taps // 2, 5)
    assert small()(some_counts(steps=12)).shape == (3, 12 + 3 * 2, 4)


@pytest.mark.parametrize("method", ["direct", "fourier"])
def test_the_network_computes_with_the_method_it_is_told(method, monkeypatch):
    asked = []

    def recording(spikes, kernel, tail, method):
        asked.append(method)
        return delay_conv(spikes, kernel, tail, method)

    monkeypatch.setattr(delays, "delay_conv", recording)
    small(conv=method).eval()(some_counts())
    assert set(asked) == {method}


METHODS_AGREE = {
    "learned": {},
    "fixed": dict(learn_delays=False),
    "two-kernels": dict(count=2),
    "one-tap": dict(taps=1, learn_delays=False),
    "sparse-learned": dict(connections=3, count=2),
    "sparse-fixed": dict(connections=3, count=2, learn_delays=False),
}


@pytest.mark.parametrize("steps", [12, 13])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("options", METHODS_AGREE.values(), ids=METHODS_AGREE)
def test_methods_agree_through_the_whole_network(options, training, steps):
    """In float64.  Scores go up to 7, gradients to 80; they differ by 2e-15 and 1e-13 at most."""
    net = small(dropout=0.0, **options).train(training)
    counts = some_counts(steps, seed=99)
    results = {}
    for method in ("direct", "fourier"):
        for layer in net.layers:
            layer.conv = method
            layer.sigma = 1.5
        net.zero_grad()
        scores = class_scores(net(counts))
        scores.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
        results[method] = {"scores": scores.detach()} | gradients
    for name, direct in results["direct"].items():
        fourier = results["fourier"][name]
        # Evaluation's kernels have no gradient with respect to their delays.
        whole_steps = name.endswith(".delay") and not training
        assert (direct is None) == (fourier is None) == whole_steps, name
        if not whole_steps:
            assert direct.any(), name
            torch.testing.assert_close(fourier, direct, rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_card_gives_the_same_numbers():
    train.set_backend()
    results = []
    for device in ("cpu", "cuda"):
        net = small(dropout=0.0).to(device)
        scores = class_scores(net(some_counts().to(device)))
        scores.square().sum().backward()
        gradients = [parameter.grad.cpu() for parameter in net.parameters()]
        results.append([scores.detach().cpu(), *gradients])
    for cpu, card in zip(*results, strict=True):
        close(card, cpu, rtol=1e-8, atol=1e-8)


def test_the_network_takes_uint8_and_sizes_from_a_generator():
    torch.manual_seed(0)
    net = DelaySNN(6, (size for size in (8, 7)), 4, taps=5)
    assert [layer.weight.shape for layer in net.layers] == [(8, 6), (7, 8), (4, 7)]
    counts = some_counts()
    layer = net.layers[0]
    assert torch.equal(layer(counts.to(torch.uint8)), layer(counts.float()))
    net.eval()
    assert torch.equal(net(counts.to(torch.uint8)), net(counts.float()))


def test_evaluation_is_causal():
    net = small().eval()
    counts = some_counts(steps=20)
    before = net(counts)
    t = 11
    counts[:, t + 1 :] = some_counts(steps=8, seed=5)
    after = net(counts)
    close(after[:, : t + 1].detach(), before[:, : t + 1].detach(), rtol=0, atol=1e-12)
    assert (after - before)[:, t + 1 :].abs().max() > 1e-3


def ragged(steps=(12, 7, 3, 9)):
    """Four samples of different lengths, as Spikes and as float64 counts with zeros behind them."""
    steps = torch.tensor(steps)
    own = torch.arange(12) < steps[:, None]
    counts = some_counts(12, 4) * own[:, :, None]
    return data.Spikes(counts[own].to(torch.uint8), steps, torch.arange(4), np.arange(4)), counts


@pytest.mark.parametrize("taps", [1, 4, 5])
def test_samples_do_not_see_their_batch_mates_nor_their_padding(taps):
    net = small(taps=taps).eval()
    spikes, counts = ragged()
    together = train.predict(net, spikes, torch.arange(4), 12)
    for b, steps in enumerate(spikes.steps.tolist()):
        alone = train.predict(net, spikes, torch.tensor([b]), steps)
        close(together[b].detach(), alone[0].detach(), rtol=0, atol=1e-11)
        # The oracle: an endless silence after the sample, scores over its steps and three tails.
        silence = torch.zeros(1, 50, 6).double()
        membrane = net(torch.cat([counts[b : b + 1, :steps], silence], 1))
        want = class_scores(membrane[:, : steps + 3 * (taps // 2)])
        close(alone.detach(), want.detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("taps", [(3, 5, 9), (9, 5, 3)])
def test_layers_may_have_different_taps(taps):
    net = small()
    for i, (before, after) in enumerate([(6, 8), (8, 7), (7, 4)]):
        net.layers[i] = DelayedLinear(before, after, taps[i]).double()
    for seed in range(20):
        net(some_counts(seed=seed))
    for norm in net.norms:
        norm.bias.data[::2] += 1  # these spike in silence
    net.eval()
    spikes, counts = ragged()
    together = train.predict(net, spikes, torch.arange(4), 12)
    for b, steps in enumerate(spikes.steps.tolist()):
        silence = torch.zeros(1, 50, 6).double()
        membrane = net(torch.cat([counts[b : b + 1, :steps], silence], 1))
        want = class_scores(membrane[:, : steps + sum(n // 2 for n in taps)])
        close(together[b].detach(), want[0].detach(), rtol=0, atol=1e-11)


def toy_of_two_lengths(samples):
    """Some toy samples, every second one cut after 30 of its 60 steps."""
    toy = data.toy("test").select(np.arange(1000) < samples)
    steps = torch.where(torch.arange(samples) % 2 == 0, 60, 30)
    counts = data.padded(toy, torch.arange(samples), 60)
    kept = torch.arange(60) < steps[:, None]
    return toy._replace(counts=counts[kept], steps=steps)


def test_accuracy_is_correct_over_total_for_every_batch_size():
    torch.manual_seed(0)
    spikes = toy_of_two_lengths(70)
    net = DelaySNN(8, (9,), 10)
    for _ in range(20):
        net(data.padded(spikes, torch.arange(70), 60))
    net.eval()
    hits = 0
    for s in range(70):
        scores = train.predict(net, spikes, torch.tensor([s]), spikes.steps[s].item())
        hits += int(scores.argmax() == spikes.labels[s])
    assert 0 < hits < 70
    for size in (1, 7, 32, 70, 100):
        assert train.evaluate(net, spikes, size) == hits / 70


@pytest.mark.parametrize("mode", [True, False])
def test_measuring_accuracy_leaves_the_network_as_it_was(mode):
    net = DelaySNN(8, (5,), 10).train(mode)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    spikes = toy_of_two_lengths(20)
    train.evaluate(net, spikes, 8)
    train.evaluate_unrounded(net, spikes, 8)
    assert all(module.training == mode for module in net.modules())
    assert all(layer.whole_steps for layer in net.layers)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("count", [1, 2])
def test_sparse_synapses_that_are_not_there_stay_zero(count):
    net = small(connections=2, count=count)
    optimizer = torch.optim.Adam(net.parameters(), 0.01, weight_decay=0.1)
    start = [layer.weight.detach().clone() for layer in net.layers]
    for _ in range(3):
        optimizer.zero_grad()
        net(some_counts()).square().mean().backward()
        optimizer.step()
    for layer, before in zip(net.layers, start, strict=True):
        assert (layer.mask.sum(1) == 2).all()
        assert len(layer.mask.unique(dim=0)) > 1  # drawn for each neuron
        absent = ~layer.mask.expand_as(layer.weight)
        assert not layer.weight[absent].any()
        assert not layer.kernel()[~layer.mask].any()
        assert (layer.weight != before)[~absent].any()
    assert "layers.0.mask" in net.state_dict()
    assert DelayedLinear(6, 5, 3, connections=9).mask.all()


def test_dropout_silences_its_share_of_neurons_for_the_whole_time():
    torch.manual_seed(0)
    net = Always(6, (400,), 4, taps=1, learn_delays=False, dropout=0.25)
    seen = []
    inputs_of(net.layers[1], seen)
    net(some_counts(steps=5, batch=50))
    mask = seen[0]  # what is left of the ones, [50, 5, 400]
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert 0.235 < (mask[:, 0] == 0).double().mean() < 0.265  # 20,000 draws: +- 5 sigma
    assert len(mask[:, 0].unique(dim=0)) == 50
    assert len(mask[:, 0].unique(dim=1)[0]) == 400
    assert net.rates == [1.0]  # before dropout

    net(some_counts(steps=5, batch=50))
    assert not torch.equal(seen[1], mask)  # drawn anew
    net.eval()(some_counts(steps=5, batch=50))
    assert (seen[2] == 1).all()


@pytest.mark.parametrize("batch, steps", [(3, 12), (1, 9), (8, 1), (32, 30)])
@pytest.mark.parametrize("taps", [1, 5])
@pytest.mark.parametrize("method", ["direct", "fourier"])
def test_batch_norm_is_its_formula_in_value_and_gradient(batch, steps, taps, method):
    # Through the network: torch's norm has given wrong gradients for some layouts of its input.
    torch.manual_seed(0)
    net = Linear(6, (8,), 4, taps=taps, tau=3.0, dropout=0.0, conv=method).double()
    norm = net.norms[0]
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    counts = some_counts(steps, batch)

    def by_formula():
        current = delay_conv(counts, net.layers[0].kernel(), taps // 2)
        mean = current.sum((0, 1)) / current[..., 0].numel()
        variance = (current - mean).square().sum((0, 1)) / current[..., 0].numel()
        hidden = (current - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
        readout = delay_conv(hidden, net.layers[1].kernel(), taps // 2)
        return leaky_integrator(readout, 3.0), mean.detach(), variance.detach()

    want, mean, variance = by_formula()
    got = net(counts)
    close(got.detach(), want.detach(), rtol=0, atol=1e-10)
    g = random(*got.shape, seed=1)
    parameters = list(net.parameters())
    want_gradients = torch.autograd.grad(want, parameters, g)
    gradients = torch.autograd.grad(got, parameters, g)
    for gradient, want_gradient in zip(gradients, want_gradients, strict=True):
        close(gradient, want_gradient, rtol=1e-9, atol=1e-9)

    values = batch * (steps + taps // 2)
    close(norm.running_mean, 0.1 * mean, rtol=0, atol=1e-12)
    close(norm.running_var, 0.9 + 0.1 * variance * values / (values - 1), rtol=0, atol=1e-12)


def test_batch_norm_in_evaluation_uses_what_training_saw():
    net = recorded(small().eval())
    sums = []
    outputs_of(net.layers[0], sums)
    net(some_counts(seed=30))
    norm = net.norms[0]
    want = (sums[0] - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    close(net.currents[0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tau", [1.005, 3.0])
def test_all_neurons_of_the_network_have_its_tau(tau):
    net = recorded(small(tau=tau, dropout=0.0))
    spikes, readout = [], []
    for layer in net.layers[1:]:
        inputs_of(layer, spikes)
    outputs_of(net.layers[-1], readout)
    membrane = net(some_counts())

    for current, got, rate in zip(net.currents, spikes, net.rates, strict=True):
        for b, n in np.ndindex(len(got), got.shape[2]):
            want, _ = slow_lif(current[b, :, n].tolist(), 1 - 1 / tau, 1.0)
            assert got[b, :, n].tolist() == want
        assert 0 < rate.item() == pytest.approx(got.mean().item(), rel=1e-12, abs=0)
    v = torch.zeros(3, 4).double()
    for t in range(membrane.shape[1]):
        v = (1 - 1 / tau) * v + readout[0][:, t]
        close(membrane[:, t].detach(), v, rtol=0, atol=1e-11)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("connections, fan_in", [(0, 100), (20, 20), (500, 100)])
def test_weights_start_uniform_within_kaimings_bound_and_delays_over_all_taps(
    count, connections, fan_in
):
    torch.manual_seed(0)
    layer = DelayedLinear(100, 400, 9, count=count, connections=connections)
    weight = layer.weight[layer.weight != 0].detach() / math.sqrt(6 / (count * fan_in))
    assert weight.numel() == 400 * fan_in * count
    for values, least, most in [(weight, -1, 1), (layer.delay.detach(), 0, 8)]:
        assert least <= values.min() and values.max() <= most
        for quarter in np.linspace(least, most, 5)[1:4]:  # as many on each side as there should be
            share = (values < quarter).double().mean().item()
            assert share == pytest.approx((quarter - least) / (most - least), rel=0, abs=0.02)
    assert layer.weight.shape == ((400, 100) if count == 1 else (count, 400, 100))


def test_clamping_moves_delays_to_the_ends_of_their_range_and_no_others():
    layer = DelayedLinear(4, 1, 9)
    with torch.no_grad():
        layer.delay.copy_(torch.tensor([[-0.7, 0.3, 7.9, 8.2]]))
    layer.clamp_delays()
    assert torch.equal(layer.delay.detach(), torch.tensor([[0.0, 0.3, 7.9, 8.0]]))


def test_a_subclass_has_neurons_of_its_own():
    class Graded(DelaySNN):
        def neurons(self, i, current):
            spikes = (i + 1) * current.tanh()
            own.append((i, spikes.detach()))
            return spikes

    own, passed_on = [], []
    net = Graded(6, (8, 7), 4, taps=5, dropout=0.0).double()
    for layer in net.layers[1:]:
        inputs_of(layer, passed_on)
    net(some_counts())
    assert [(i, list(spikes.shape)) for i, spikes in own] == [(0, [3, 14, 8]), (1, [3, 16, 7])]
    for (_, spikes), got in zip(own, passed_on, strict=True):
        assert torch.equal(spikes, got)


def test_sigma_is_not_in_the_state():
    assert not any("sigma" in name for name in small().state_dict())


@pytest.mark.parametrize(
    "options", [{}, {"count": 2}, {"taps": 1}, {"learn_delays": False}, {"connections": 1}]
)
def test_a_batch_of_one_sample_of_very_few_steps(options):
    net = small(**options)
    net(some_counts(2, 1)).sum().backward()
    for layer in net.layers:
        assert layer.weight.grad.isfinite().all()
    tails = 3 * (net.layers[0].taps // 2)
    assert net.eval()(some_counts(1, 1)).shape == (1, 1 + tails, 4)


# ------------------------------------------------------------------------------------ the schedules


def test_sigma_at_named_epochs():
    assert shrinking_sigma(0, 150, 25) == pytest.approx(12.27, rel=1e-12, abs=0)
    assert shrinking_sigma(37, 150, 25) == 0.5
    assert shrinking_sigma(149, 150, 25) == 0.5
    assert shrinking_sigma(0, 60, 31) == pytest.approx(15.27, rel=1e-12, abs=0)
    assert shrinking_sigma(0, 3, 25) == 0.5  # under four epochs it never is wide
    assert shrinking_sigma(0, 150, 1) == 0.5  # nor with one tap
    product = 12.0  # the original's running product
    for epoch in range(37):
        want = pytest.approx(0.27 + product, rel=1e-10, abs=0)
        assert shrinking_sigma(epoch, 150, 25) == want
        product *= (0.23 / 12) ** (1 / 37)


@pytest.mark.parametrize("epochs", [7, 10, 25, 30, 150])
def test_learning_rate_and_beta1_are_those_of_torchs_one_cycle(epochs):
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, total_steps=epochs)
    for epoch in range(epochs):
        lr, beta1 = train.one_cycle(epoch, epochs, 5e-3)
        group = adam.param_groups[0]
        assert lr == pytest.approx(group["lr"], rel=1e-9, abs=0)
        assert beta1 == pytest.approx(group["betas"][0], rel=1e-9, abs=0)
        adam.step()
        if epoch < epochs - 1:
            cycle.step()


# ----------------------------------------------------------------------------------- binning, files


def write_h5(path, times, units, labels, speakers=None, unit_type=np.uint16):
    """A file in the layout of SHD and SSC; speakers are numbers or names."""
    if speakers is None:
        speakers = np.arange(len(labels)) % 3
    with h5py.File(path, "w") as file:
        for name, ragged, kind in (("times", times, np.float16), ("units", units, unit_type)):
            column = file.create_dataset(f"spikes/{name}", (len(ragged),), h5py.vlen_dtype(kind))
            for i, values in enumerate(ragged):
                column[i] = np.asarray(values, kind)
        file["labels"] = labels
        if len(speakers) and isinstance(speakers[0], str):
            file.create_dataset("extra/speaker", data=speakers, dtype=h5py.string_dtype())
        else:
            file["extra/speaker"] = np.asarray(speakers, np.uint16)


def write_words(folder, dataset, sizes, classes, speakers):
    """Files in the layout of SHD and SSC.  A class is a band of channels, so it can be learned.

    sizes: how many samples each split has.  speakers: they take turns.
    """
    rng = np.random.default_rng(0)
    band = 700 // classes
    for split, size in sizes.items():
        labels = np.arange(size) % classes
        times, units = [], []
        for label in labels:
            spikes = rng.integers(60, 120)
            times.append(np.sort(rng.uniform(0.01, rng.uniform(0.1, 0.3), spikes)))
            units.append(band * label + rng.integers(0, band, spikes))
        names = [speakers[n % len(speakers)] for n in range(size)]
        write_h5(os.path.join(folder, f"{dataset}_{split}.h5"), times, units, labels, names)


def write_shd(folder, speakers=(0, 1, 2)):
    """Each of the three speakers has 8 of the 24 training samples."""
    write_words(folder, "shd", {"train": 24, "test": 9}, 20, speakers)


def write_ssc(folder):
    """As published: speakers are strings, and files are zipped."""
    sizes = {"train": 70, "valid": 21, "test": 35}
    write_words(folder, "ssc", sizes, 35, ["c50f55b8", "1e9b215e", "0ff728b5"])
    for split in sizes:
        pack(folder / f"ssc_{split}.h5", ".zip")


def pack(path, packing):
    """Replaces an .h5 file by its packed form."""
    content = path.read_bytes()
    if packing == ".gz":
        (path.parent / (path.name + ".gz")).write_bytes(gzip.compress(content))
    if packing == ".zip":
        with zipfile.ZipFile(path.parent / (path.name + ".zip"), "w") as archive:
            archive.writestr(path.name, content)
    if packing:
        path.unlink()


def same(one, other):
    """Whether two Spikes are equal in all fields."""
    tensors = all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    return tensors and one.speakers.tolist() == other.speakers.tolist()


def test_binning_by_hand():
    counts = data.bin_sample(np.float16([0.5, 0.505, 0.5156, 0.5557]), [0, 4, 5, 699])
    assert counts.shape == (6, 140) and counts.dtype == np.uint8 and counts.sum() == 4
    assert counts[0, 0] == 2 and counts[1, 1] == 1 and counts[5, 139] == 1
    silent = data.bin_sample(np.float16([]), [])
    assert silent.shape == (1, 140) and not silent.any()


def test_float16_times_are_not_rounded_further():
    late = np.float16([0.0, 1.37, 1.371, 1.379, 1.3804])  # it has 1.37012, .., 1.38086 around here
    counts = data.bin_sample(late, [0] * 5)
    assert len(counts) == 139
    assert counts[137, 0] == 3 and counts[138, 0] == 1 and counts[0, 0] == 1


def test_the_first_spike_in_time_is_at_step_0_wherever_it_stands():
    counts = data.bin_sample(np.float16([0.5, 0.25]), [0, 5])
    assert counts[0, 1] == 1 and counts[25, 0] == 1 and counts.sum() == 2


def test_reading_is_the_loop_over_spikes_and_keeps_every_spike(tmp_path):
    rng = np.random.default_rng(0)
    times = [np.sort(rng.uniform(0, 1.4, n)).astype(np.float16) for n in rng.integers(1, 400, 300)]
    units = [rng.integers(0, 700, len(sample)) for sample in times]
    labels = rng.integers(0, 20, 300)
    write_h5(tmp_path / "shd_test.h5", times, units, labels)
    got = data.load("shd", "test", tmp_path)
    assert got.counts.sum() == sum(len(sample) for sample in times)
    assert got.counts.dtype == torch.uint8
    assert got.labels.tolist() == labels.tolist()
    assert got.speakers.tolist() == (np.arange(300) % 3).tolist()
    counts = data.padded(got, torch.arange(300), 150)
    for s in range(300):
        want = np.zeros((150, 140))
        steps = 0
        for t, u in zip(times[s], units[s], strict=True):
            step = math.floor((float(t) - float(times[s][0])) * 1000 / 10)
            want[step, u // 5] += 1
            steps = max(steps, step + 1)
        assert got.steps[s] == steps
        assert (counts[s].numpy() == want).all()


def test_speakers_may_be_names(tmp_path):
    names = ["0a7c2a8d", "b5552931", "0a7c2a8d", "çelik"]
    write_shd(tmp_path, names)
    train_set = data.load("shd", "train", tmp_path)
    assert train_set.speakers.tolist() == names * 6
    sets = train.load_sets(
        parsed("--data-dir", tmp_path, "--valid-speakers", "0a7c2a8d,çelik", "--device", "cpu")
    )
    assert set(sets["train"].speakers.tolist()) == {"b5552931"}
    assert sets["valid"].speakers.tolist() == ["0a7c2a8d", "0a7c2a8d", "çelik"] * 6


@pytest.mark.parametrize("longest", [2, 4, 6])
def test_padded_samples_are_their_rows_and_then_zeros(longest):
    steps = [3, 1, 4]
    rows = torch.arange(1, 17).view(8, 2).to(torch.uint8)
    spikes = data.Spikes(rows, torch.tensor(steps), None, None)
    got = data.padded(spikes, torch.tensor([2, 0, 1]), longest)
    assert got.shape == (3, longest, 2) and got.dtype == torch.uint8
    for own, sample in zip(got, (2, 0, 1), strict=True):
        for t in range(longest):
            row = sum(steps[:sample]) + t
            want = rows[row].tolist() if t < steps[sample] else [0, 0]
            assert own[t].tolist() == want


def test_selected_samples_are_whole_and_in_order():
    spikes, counts = ragged()
    some = spikes.select(np.array([True, False, False, True]))
    assert some.steps.tolist() == [12, 9]
    assert some.labels.tolist() == [0, 3]
    assert some.speakers.tolist() == [0, 3]
    got = data.padded(some, torch.arange(2), 12)
    assert torch.equal(got.double(), counts[[0, 3]])


def test_held_out_speakers_are_disjoint_from_training(tmp_path):
    write_shd(tmp_path)
    sets = train.load_sets(
        parsed("--data-dir", tmp_path, "--valid-speakers", "0, 2", "--device", "cpu")
    )
    every = data.load("shd", "train", tmp_path)
    assert same(sets["train"], every.select(every.speakers == 1))
    assert same(sets["valid"], every.select(every.speakers != 1))
    assert len(sets["train"].labels) == 8 and len(sets["valid"].labels) == 16
    assert same(sets["test"], data.load("shd", "test", tmp_path))


@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
@pytest.mark.parametrize("writable", [True, False])
def test_files_are_read_where_they_lie_and_nothing_is_left(
    tmp_path, packing, writable, monkeypatch
):
    folder, scratch = tmp_path / "data", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    write_shd(folder)
    want = data.load("shd", "test", folder)
    pack(folder / "shd_test.h5", packing)
    before = sorted(os.listdir(folder))
    used, seen = [], []
    temporary = data.tempfile.TemporaryFile

    def recording(dir):
        used.append(str(dir))
        return temporary(dir=dir)

    monkeypatch.setattr(data.tempfile, "TemporaryFile", recording)
    monkeypatch.setattr(data.tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(data, "progress", lambda text: seen.append(os.listdir(folder)))
    if not writable:
        os.chmod(folder, 0o555)
        if os.access(folder, os.W_OK):  # root may write everywhere: a stand-in for others
            monkeypatch.setattr(os, "access", lambda path, mode: False)
    got = data.load("shd", "test", folder)
    os.chmod(folder, 0o755)
    assert same(got, want)
    assert used == ([str(folder if writable else scratch)] if packing else [])
    assert sorted(os.listdir(folder)) == before
    assert os.listdir(scratch) == []
    assert seen and all(sorted(names) == before for names in seen)  # not even while it unpacks


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_not_called_a_broken_file(tmp_path, monkeypatch):
    write_shd(tmp_path)
    pack(tmp_path / "shd_test.h5", ".gz")
    monkeypatch.setattr(data.tempfile, "TemporaryFile", lambda dir: io.FileIO("/dev/full", "r+"))
    with pytest.raises(
        OSError, match="No space left .*while unpacking .*shd_test.h5.gz into"
    ) as caught:
        data.load("shd", "test", tmp_path)
    assert "not a sound" not in str(caught.value)


@pytest.mark.parametrize("problem", [MemoryError(), PermissionError(13, "Permission denied")])
def test_troubles_of_the_computer_are_not_called_a_broken_file(tmp_path, monkeypatch, problem):
    def troubled(*args):
        raise problem

    write_shd(tmp_path)
    monkeypatch.setattr(data, "bin_sample", troubled)
    with pytest.raises(type(problem)) as caught:
        data.load("shd", "test", tmp_path)
    assert caught.value is problem


# ------------------------------------------------------------------------------- files of one's own

TIMES = [[0.1, 0.2, 0.3]] * 140
UNITS = [[3, 4, 5]] * 140


def with_sample_130(column, values):
    """The column with other values in one sample, which is in the second chunk of a file."""
    return column[:130] + [values] + column[131:]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            dict(times=with_sample_130(TIMES, [0.1, np.nan, 0.3])),
            "sample 130: time 1 is not finite",
        ),
        (
            dict(times=with_sample_130(TIMES, [0.1, 0.2, np.inf])),
            "sample 130: time 2 is not finite",
        ),
        (dict(times=with_sample_130(TIMES, [-np.inf, 0, 0])), "sample 130: time 0 is not finite"),
        (
            dict(times=with_sample_130(TIMES, [100, 200, 500])),
            "sample 130: it lasts 400 s, .*expected times in seconds; are these milliseconds",
        ),
        (dict(times=with_sample_130(TIMES, [0.1])), "sample 130: 1 times and 3 units"),
        (
            dict(units=with_sample_130(UNITS, [3, -4, 5]), unit_type=np.int16),
            r"sample 130: unit 1 is -4: expected a whole number, 0\.\.699",
        ),
        (
            dict(units=with_sample_130(UNITS, [3, 4, 700])),
            r"sample 130: unit 2 is 700: expected a whole number, 0\.\.699",
        ),
        (
            dict(
                times=with_sample_130(TIMES, [0.1] * 256), units=with_sample_130(UNITS, [9] * 256)
            ),
            "sample 130: 256 spikes in one step and input: expected at most 255",
        ),
        (dict(labels=[0, 1.5] * 70), r"label 1 is 1\.5: expected a whole number, 0\.\.19"),
        (dict(labels=[0, 1, -1, 2] * 35), r"label 2 is -1: expected a whole number, 0\.\.19"),
        (dict(labels=[0, 1, 20, 2] * 35), r"label 2 is 20: expected a whole number, 0\.\.19"),
        (dict(labels=[0, np.nan] * 70), "label 1 is nan: expected a whole number"),
        (dict(labels=np.eye(140)), r"label has .*shape \[140, 140\]: expected a list of whole"),
        (dict(labels=["yes", "no"] * 70), "label has type .*: expected a list of whole numbers"),
        (dict(speakers=[0] * 139), r"\[140, 139, 140, 140\] labels, speakers, times, units"),
        (dict(units=UNITS[1:]), r"\[140, 140, 140, 139\] labels, speakers, times, units"),
        (
            dict(times=[], units=[], labels=[], speakers=[]),
            r"\[0, 0, 0, 0\] labels, .*: expected as many of each, and at least one",
        ),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(tmp_path, change, sentence):
    good = dict(times=TIMES, units=UNITS, labels=[0, 1] * 70, speakers=[0] * 140)
    write_h5(tmp_path / "shd_test.h5", **{**good, **change})
    with pytest.raises(
        ValueError, match=f"shd_test.h5 is not a sound spike file .*{sentence}"
    ) as caught:
        data.load("shd", "test", tmp_path)
    assert "replace it, or delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_largest_values_that_a_file_may_have_are_read(tmp_path):
    times = [[0.0, 119.0], [0.1] * 255]
    units = [[0, 699], [9] * 255]
    write_h5(tmp_path / "shd_test.h5", times, units, [19, 0])
    got = data.load("shd", "test", tmp_path)
    assert got.steps.tolist() == [11901, 1]
    assert got.counts[11900, 139] == 1 and got.counts[11901, 1] == 255


EVENTS = dict(
    sample=[0, 2, 0, 2, 2, 0], step=[3, 0, 3, 5, 5, 1], channel=[1, 0, 1, 2, 2, 0], labels=[1, 0, 4]
)


def test_events_are_counted_one_by_one():
    rng = np.random.default_rng(0)
    sample, step, channel = rng.integers(0, [[20], [15], [4]], (3, 500))
    keep = (sample != 7) & (sample != 19)  # two samples without a spike, one of them the last
    sample, step, channel = sample[keep], step[keep], channel[keep]
    labels = rng.integers(0, 3, 20)
    speakers = [f"speaker {i % 5}" for i in range(20)]
    got = data.from_events(sample, step, channel, labels, 4, speakers)
    want = np.zeros((20, 15, 4))
    steps = np.ones(20)
    for s, t, c in zip(sample, step, channel, strict=True):
        want[s, t, c] += 1
        steps[s] = max(steps[s], t + 1)
    assert want.max() > 1
    assert got.counts.dtype == torch.uint8
    assert got.steps.tolist() == steps.tolist()
    assert (data.padded(got, torch.arange(20), 15).numpy() == want).all()
    assert got.labels.tolist() == labels.tolist() and got.labels.dtype == torch.int64
    assert got.speakers.tolist() == speakers


def test_events_by_hand_from_lists_tensors_and_floats():
    for kind in (list, torch.tensor, np.float32):
        events = {name: kind(values) for name, values in EVENTS.items()}
        got = data.from_events(**events, inputs=3)
        assert got.steps.tolist() == [4, 1, 6]
        assert got.labels.tolist() == [1, 0, 4]
        assert got.counts.sum() == 6
        assert got.counts[1, 0] == 1 and got.counts[3, 1] == 2  # sample 0
        assert got.counts[5, 0] == 1 and got.counts[10, 2] == 2  # sample 2
        assert len(got.speakers) == 3


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(sample=[0, 2, 0, 2, 2, 3]), r"sample of spike 5 is 3: .*whole number, 0\.\.2"),
        (dict(sample=[0, -1, 0, 2, 2, 0]), r"sample of spike 1 is -1: .*whole number, 0\.\.2"),
        (dict(step=[3, 0, 3, -5, 5, 1]), "step of spike 3 is -5: .*whole number, at least 0"),
        (dict(step=[3, 0, 3, 5, 1e300, 1]), r"step of spike 4 is 1e\+300: .*below 2\*\*31"),
        (dict(step=np.array([3, 0, 2**63], np.uint64)), "step of spike 2 is 9223372036854775808"),
        (dict(sample=[], step=[], channel=[], labels=[]), "there are no samples"),
        (dict(step=[3, 0, 3, 5, 0.5, 1]), r"step of spike 4 is 0\.5: expected a whole number"),
        (dict(step=[3, 0, np.nan, 5, 5, 1]), "step of spike 2 is nan: expected a whole number"),
        (dict(step=[3, 0, np.inf, 5, 5, 1]), "step of spike 2 is inf: expected a whole number"),
        (dict(channel=[1, 0, 1, 2, 3, 0]), r"channel of spike 4 is 3: .*whole number, 0\.\.2"),
        (dict(channel=[1, 0, -1, 2, 2, 0]), r"channel of spike 2 is -1: .*whole number, 0\.\.2"),
        (dict(labels=[1, 0.25, 4]), r"label 1 is 0\.25: .*whole number, at least 0"),
        (dict(labels=[1, 0, -4]), "label 2 is -4: .*whole number, at least 0"),
        (dict(labels=np.eye(3)), r"label has .*shape \[3, 3\]: expected a list of whole numbers"),
        (dict(labels=["a", "b", "c"]), "label has type .*: expected a list of whole numbers"),
        (dict(step=[3, 0, 3, 5, 5]), r"sample, step and channel have \[6, 5, 6\] entries"),
        (dict(channel=[0]), r"sample, step and channel have \[6, 6, 1\] entries"),
        (
            dict(sample=[0] * 256, step=[2] * 256, channel=[1] * 256),
            "256 spikes in one step and input: expected at most 255",
        ),
        (dict(speakers=[1, 2]), "speakers"),
    ],
)
def test_events_with_a_mistake_are_refused_with_its_place(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.from_events(**{**EVENTS, **change}, inputs=3)


# -------------------------------------------------------------------------------------- the batches


def of_lengths(steps):
    """Spikes of samples of these lengths."""
    steps = torch.as_tensor(steps)
    counts = torch.ones(int(steps.sum()), 1, dtype=torch.uint8)
    return data.Spikes(counts, steps, steps % 3, np.zeros(len(steps)))


@pytest.mark.parametrize("similar", [False, True])
@pytest.mark.parametrize("samples, size", [(1000, 64), (1000, 2000), (5, 2), (1, 1)])
def test_shuffled_batches_hold_every_sample_once(similar, samples, size):
    spikes = of_lengths(torch.arange(samples) * 7 % 50 + 1)
    got = data.batches(spikes, size, similar=similar)
    order = torch.cat([indices for indices, _ in got]).tolist()
    assert sorted(order) == list(range(samples))
    sizes = sorted(len(indices) for indices, _ in got)
    full, rest = divmod(samples, size)
    assert sizes == ([rest] if rest else []) + [size] * full
    assert all(longest == spikes.steps[indices].max() for indices, longest in got)


@pytest.mark.parametrize("similar", [False, True])
def test_the_seed_alone_decides_the_shuffle(similar):
    spikes = of_lengths(torch.arange(1000) * 7 % 50 + 1)

    def order(seed):
        torch.manual_seed(seed)
        batches = data.batches(spikes, 64, similar=similar)
        return torch.cat([indices for indices, _ in batches]).tolist()

    assert order(1) == order(1)
    same_place = sum(a == b for a, b in zip(order(1), order(2), strict=True))
    assert same_place < 20
    in_order = sum(a < b for a, b in itertools.pairwise(order(1)))
    assert in_order < 900  # not the order of the file


def test_blocks_of_similar_batches_are_a_quarter_of_a_small_set():
    torch.manual_seed(0)
    spikes = of_lengths(range(1, 241))
    batches = data.batches(spikes, 20, similar=True)  # 12 of them, so blocks of 3
    # The shortest 20 of a block's 60 samples end near 80, those of 160 would end near 30.
    assert min(longest for _, longest in batches) > 50


def test_similar_batches_hold_similar_lengths_in_random_order():
    torch.manual_seed(0)
    spikes = of_lengths(torch.randint(1, 201, (2000,)))
    plain = data.batches(spikes, 20)
    similar = data.batches(spikes, 20, similar=True)

    def padding(batches):
        total = sum(len(indices) * longest for indices, longest in batches)
        return total / spikes.steps.sum().item() - 1

    assert padding(plain) > 0.8  # the longest of 20 is nearly 200, the mean 100
    assert padding(similar) < 0.15
    lengths = [longest for _, longest in similar]
    rises = sum(a < b for a, b in itertools.pairwise(lengths))
    assert 30 < rises < 70  # of 99; 99 or 0 if sorted, 87 if only the blocks are in random order
    mates = {tuple(sorted(indices.tolist())) for indices, _ in similar}
    again = {
        tuple(sorted(indices.tolist())) for indices, _ in data.batches(spikes, 20, similar=True)
    }
    assert not mates & again  # the mates are drawn anew each time


def test_without_shuffle_samples_come_in_order_of_length():
    spikes = of_lengths([5, 3, 9, 3, 1])
    got = [
        (indices.tolist(), longest) for indices, longest in data.batches(spikes, 2, shuffle=False)
    ]
    assert got == [([4, 1], 3), ([3, 0], 5), ([2], 9)]


# --------------------------------------------------------------------------------- the augmentation

RANDOM = np.random.default_rng(0)
# No count is 0, so that silence tells what was masked.
COUNTS = torch.from_numpy(RANDOM.integers(1, 9, (400, 30, 12), dtype=np.uint8))
OWN = torch.from_numpy(RANDOM.integers(10, 31, 400))


def blocks(silent):
    """First place and length of the one run of True in each row of a bool array; None if none."""
    found = []
    for row in np.asarray(silent):
        places = np.flatnonzero(row)
        assert len(places) == 0 or len(places) == places[-1] - places[0] + 1  # one run
        found.append((places[0], len(places)) if len(places) else None)
    return found


def test_without_augmentation_nothing_changes_and_nothing_is_drawn():
    before = torch.get_rng_state()
    assert data.augment(COUNTS, OWN) is COUNTS
    assert torch.equal(torch.get_rng_state(), before)


def made_by(changed, kinds, source):
    """The kind of change that made each sample, where input j comes from source(j, kind)."""
    seen = []
    for before, after in zip(COUNTS.numpy(), changed.numpy(), strict=True):
        for kind in kinds:
            want = np.zeros_like(before)
            for j in range(12):
                if 0 <= source(j, kind) < 12:
                    want[:, j] = before[:, source(j, kind)]
            if (after == want).all():
                seen.append(kind)
    assert len(seen) == 400
    return seen


def test_a_shift_moves_all_of_a_sample_by_one_number_of_inputs():
    torch.manual_seed(0)
    shifted = data.augment(COUNTS, OWN, shift=3)
    assert shifted.dtype == torch.uint8
    seen = made_by(shifted, range(-3, 4), lambda j, move: j - move)
    shares = [seen.count(move) / 400 for move in range(-3, 4)]
    close(shares, [1 / 7] * 7, rtol=0, atol=0.06)


def test_a_shift_wider_than_the_inputs_is_taken():
    assert (data.augment(COUNTS, OWN, shift=40) == 0).all(2).all(1).any()


def warps(share):
    """A factor of each kind from 1 - share to 1 + share: those between two edges round alike."""
    edges = [j / (k + 0.5) for j in range(1, 12) for k in range(12)]
    inside = [edge for edge in edges if 1 - share < edge < 1 + share]
    edges = sorted({1 - share, *inside, 1 + share})
    return [(low + high) / 2 for low, high in itertools.pairwise(edges)]


def test_a_warp_stretches_the_inputs_of_a_sample_by_one_factor():
    torch.manual_seed(0)
    warped = data.augment(COUNTS, OWN, warp=0.3)
    assert warped.dtype == torch.uint8
    seen = made_by(warped, warps(0.3), lambda j, factor: round(j / factor))
    assert min(seen) < 0.73 and max(seen) > 1.27
    thirds = [sum(low < factor < low + 0.2 for factor in seen) / 400 for low in (0.7, 0.9, 1.1)]
    close(thirds, [1 / 3] * 3, rtol=0, atol=0.08)


def test_a_shift_comes_after_a_warp():
    # A warp leaves input 0 where it is, so it lies where the shift alone has moved it to.
    torch.manual_seed(0)
    places = []
    for before, after in zip(COUNTS, data.augment(COUNTS, OWN, shift=4, warp=0.5), strict=True):
        places += [j for j in range(12) if torch.equal(after[:, j], before[:, 0])]
    assert set(places) == {0, 1, 2, 3, 4}
    close([places.count(j) / 400 for j in range(5)], [1 / 9] * 5, rtol=0, atol=0.05)


def test_masked_inputs_are_a_block_in_half_of_the_samples():
    torch.manual_seed(0)
    masked = data.augment(COUNTS, OWN, mask_inputs=4)
    silent = masked == 0
    assert torch.equal(silent.all(1), silent.any(1))  # an input is silent at all steps or at none
    assert torch.equal(masked[~silent], COUNTS[~silent])
    found = blocks(silent.all(1))
    there = [block for block in found if block]
    assert len(there) / 400 == pytest.approx(0.5, rel=0, abs=0.07)
    lengths = [length for _, length in there]
    shares = [lengths.count(length) / len(there) for length in (1, 2, 3, 4)]
    close(shares, [1 / 4] * 4, rtol=0, atol=0.09)
    assert {start + length for start, length in there} >= {1, 2, 11, 12}
    assert {start for start, _ in there} >= {0, 1, 8, 11}
    places = [start / (12 - length) for start, length in there]  # 0 to 1, all as likely
    thirds = [sum(low <= place < low + 1 / 3 for place in places) for low in (0, 1 / 3)]
    close(np.array(thirds) / len(there), [1 / 3] * 2, rtol=0, atol=0.12)


def test_masked_steps_are_a_share_of_the_samples_own():
    torch.manual_seed(0)
    masked = data.augment(COUNTS, OWN, mask_steps=0.25)
    silent = masked == 0
    assert torch.equal(silent.all(2), silent.any(2))
    assert torch.equal(masked[~silent], COUNTS[~silent])
    ends = []
    found = blocks(silent.all(2))
    for block, own in zip(found, OWN.tolist(), strict=True):
        if block:
            start, length = block
            assert length == own // 4
            assert start + length <= own
            ends.append((start == 0, start + length == own))
    assert len(ends) / 400 == pytest.approx(0.5, rel=0, abs=0.07)
    assert sum(first for first, _ in ends) > 2 and sum(last for _, last in ends) > 2


def test_samples_and_kinds_of_augmentation_draw_apart():
    torch.manual_seed(0)
    silent = data.augment(COUNTS, OWN, mask_inputs=4, mask_steps=0.25) == 0
    inputs, steps = silent.all(1).any(1).double(), silent.all(2).any(1).double()
    assert (inputs * steps).mean().item() == pytest.approx(0.25, rel=0, abs=0.07)


def test_the_recipe_sets_what_is_not_given():
    def settings(*words):
        chosen = parsed("--dataset", "shd", *words, "--device", "cpu")
        return [chosen.shift, chosen.warp, chosen.mask_inputs, chosen.mask_steps]

    assert settings() == settings("--recipe", "paper") == [0, 0.0, 0, 0.0]
    assert settings("--recipe", "augmented") == [8, 0.0, 20, 0.2]
    assert settings("--recipe", "augmented", "--shift", "2") == [2, 0.0, 20, 0.2]
    assert settings("--recipe", "augmented", "--warp", "0.15") == [8, 0.15, 20, 0.2]


def test_the_row_of_a_data_set_may_name_a_recipe(little, monkeypatch):
    monkeypatch.setitem(train.DEFAULTS, "little", LITTLE | {"recipe": "augmented"})
    chosen = parsed("--dataset", "little", "--device", "cpu")
    assert (chosen.recipe, chosen.shift, chosen.mask_steps) == ("augmented", 8, 0.2)
    chosen = parsed("--dataset", "little", "--device", "cpu", "--recipe", "paper")
    assert (chosen.recipe, chosen.shift, chosen.mask_steps) == ("paper", 0, 0.0)


def test_a_row_goes_before_its_own_recipe_and_the_command_line_before_both(little, monkeypatch):
    def settings(*words):
        chosen = parsed("--dataset", "little", "--device", "cpu", *words)
        return [chosen.shift, chosen.mask_inputs]

    monkeypatch.setitem(train.DEFAULTS, "little", LITTLE | {"recipe": "augmented", "shift": 2})
    assert settings() == [2, 20]
    assert settings("--recipe", "augmented") == [8, 20]
    assert settings("--recipe", "paper") == [2, 0]
    assert settings("--recipe", "augmented", "--shift", "1") == [1, 20]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"hiden": 14}, "unrecognized arguments: --hiden=14"),
        ({"recipe": "agumented"}, "argument --recipe: invalid choice: 'agumented'"),
        ({"delays": "lerned"}, "argument --delays: invalid choice: 'lerned'"),
        ({"hidden": -3}, "argument --hidden: -3: expected at least 1, below 2**31"),
        ({"hidden": 2.5}, "argument --hidden: invalid int value: '2.5'"),
    ],
)
def test_the_row_of_a_data_set_is_checked_as_options_are(wrong, said, little, monkeypatch, capsys):
    monkeypatch.setitem(train.DEFAULTS, "little", LITTLE | wrong)
    with pytest.raises(SystemExit):
        parsed("--dataset", "little")
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith(f"train.DEFAULTS['little']: error: {said}")


def test_training_alone_is_augmented_and_the_seed_decides_how(tmp_path, monkeypatch):
    write_shd(tmp_path)
    augment, seen = data.augment, []

    def recorded(counts, steps, *settings):
        assert settings == (8, 0.1, 20, 0.2)
        changed = augment(counts, steps, *settings)
        seen.append((steps, counts, changed))
        return changed

    monkeypatch.setattr(data, "augment", recorded)
    recipe = ("--recipe", "augmented", "--warp", 0.1)
    words = ("--data-dir", tmp_path, "--epochs", 2, *recipe, *SMALL)
    options = parsed(*words, "--out", tmp_path / "r")
    net = train.build(options)
    given = []
    net.register_forward_pre_hook(lambda net, x: given.append(x[0]) if net.training else None)
    train.train(options, net)
    for (steps, counts, changed), x in zip(seen, given, strict=True):
        assert x is changed
        for own, sample in zip(steps.tolist(), counts, strict=True):  # it ends with a spike
            assert sample[own - 1].any() and not sample[own:].any()
    samples = len(data.load("shd", "train", tmp_path).labels)
    assert sum(len(steps) for steps, _, _ in seen) == 2 * samples  # none of the test set
    assert not any(torch.equal(before, after) for _, before, after in seen)
    train.train(parsed(*words, "--out", tmp_path / "again"))
    half = len(seen) // 2
    for (_, _, one), (_, _, other) in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(one, other)  # the seed decides


# ------------------------------------------------------------------------------------- the toy task


def dense_toy(split, **options):
    """The counts [samples, 60, 8] and the labels of the toy task."""
    toy = data.toy(split, **options)
    samples = len(toy.labels)
    assert toy.steps.tolist() == [60] * samples
    return data.padded(toy, torch.arange(samples), 60).long().numpy(), toy.labels.numpy()


def toy_starts(counts):
    """The step at which each input begins to spike, [samples, 8]."""
    return (counts > 0).argmax(1)


@pytest.mark.parametrize("split, samples", [("train", 2000), ("test", 1000)])
def test_toy_classes_are_ten_orders_of_the_inputs_and_nothing_else(split, samples):
    counts, labels = dense_toy(split, noise=0)
    assert len(labels) == samples
    assert (np.bincount(labels) == samples // 10).all()
    assert (counts.sum(2) <= 1).all()  # never two inputs in one step
    start = toy_starts(counts)
    want = np.zeros_like(counts)
    for s, i in np.ndindex(*start.shape):
        want[s, start[s, i] : start[s, i] + 3, i] = 1
    assert (counts == want).all()  # each input has one burst of three steps
    orders = {
        label: {tuple(order) for order in start[labels == label].argsort(1)} for label in range(10)
    }
    assert all(len(found) == 1 for found in orders.values())
    assert len(set.union(*orders.values())) == 10


def test_toy_splits_have_the_same_classes_and_share_no_sample():
    train_counts, train_labels = dense_toy("train", noise=0)
    test_counts, test_labels = dense_toy("test", noise=0)
    for label in range(10):
        one = toy_starts(train_counts)[train_labels == label][0].argsort()
        other = toy_starts(test_counts)[test_labels == label][0].argsort()
        assert one.tolist() == other.tolist()
    train_counts, _ = dense_toy("train")
    test_counts, _ = dense_toy("test")
    train_samples = {sample.tobytes() for sample in train_counts}
    test_samples = {sample.tobytes() for sample in test_counts}
    assert len(train_samples) == 2000 and len(test_samples) == 1000
    assert not train_samples & test_samples


def test_toy_splits_are_drawn_independently():
    train_counts, _ = dense_toy("train", noise=0, jitter=0)
    test_counts, _ = dense_toy("test", noise=0, jitter=0)
    onset = toy_starts(train_counts).min(1)[:1000]
    same_onset = (onset == toy_starts(test_counts).min(1)).mean()
    assert 0.02 < same_onset < 0.08  # 1/21 by chance


def test_toy_noise_is_eight_spikes_anywhere():
    clean, _ = dense_toy("train", noise=0)
    noisy, _ = dense_toy("train")
    noise = noisy - clean
    assert (noise >= 0).all() and (noise.sum((1, 2)) == 8).all()
    by_step = noise.sum((0, 2)) / noise.sum()
    by_input = noise.sum((0, 1)) / noise.sum()
    close(by_step, np.full(60, 1 / 60), rtol=0, atol=0.005)
    close(by_input, np.full(8, 1 / 8), rtol=0, atol=0.01)


def test_toy_jitter_moves_a_burst_by_a_step_with_probability_a_quarter_each_way():
    counts, labels = dense_toy("train", noise=0, jitter=0)
    start = np.sort(toy_starts(counts), 1)
    assert (np.diff(start, axis=1) == 5).all()  # a slot each
    onset = start[:, 0] - 1  # a burst begins on the second step of its slot
    assert np.unique(onset).tolist() == list(range(21))
    close(np.bincount(onset) / 2000, np.full(21, 1 / 21), rtol=0, atol=0.02)

    counts, labels = dense_toy("train", noise=0)
    gap = np.diff(np.sort(toy_starts(counts), 1), axis=1)
    # Bursts are moved by -1, 0, 1 with probability 1/4, 1/2, 1/4; a gap changes by the difference.
    shares = np.bincount(gap.flatten() - 3, minlength=5) / gap.size
    close(shares, [1 / 16, 1 / 4, 3 / 8, 1 / 4, 1 / 16], rtol=0, atol=0.015)


def test_toy_is_the_same_every_time():
    assert same(data.toy("train"), data.toy("train"))


# ------------------------------------------------------------------------------------- the download

NAME = "shd_test.h5.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as a test has it: server.answers has a function of (handler, first byte) by path."""

    def do_GET(self):
        first = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.asked.append((self.path, first))
        answer = self.server.answers.get(self.path)
        if answer is None:
            self.send_error(404)
        else:
            answer(self, first)

    def head(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server on this machine, which stands for the two published ones as /a and /b."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = {}, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(data, "SERVERS", [f"{root}/a", f"{root}/b"])
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The content of shd_test.h5.gz, whose md5 is the expected one; tmp_path / "d" is empty."""
    write_shd(tmp_path)
    (tmp_path / "d").mkdir()
    body = gzip.compress((tmp_path / "shd_test.h5").read_bytes())
    monkeypatch.setitem(data.MD5, NAME, hashlib.md5(body).hexdigest())
    return body


def sends(body, until=None):
    """A sound server; or one whose first connection breaks off at a byte."""
    cuts = [until] if until else []

    def answer(handler, first):
        if first >= len(body):
            return handler.send_error(416)
        handler.head(206 if first else 200, Content_Length=len(body) - first)
        end = cuts.pop() if cuts else len(body)
        handler.wfile.write(body[first:end])

    return answer


def without_ranges(body, **headers):
    """A server that always sends all of the body, with these headers alone."""

    def answer(handler, first):
        handler.head(200, **headers)
        handler.wfile.write(body)

    return answer


def sends_no_http(handler, first):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")


def breaks_off_in_a_chunk(body):
    """http.client answers this with IncompleteRead, which is no OSError."""

    def answer(handler, first):
        handler.protocol_version = "HTTP/1.1"
        handler.head(200, Content_Length=len(body), Transfer_Encoding="chunked", Connection="close")
        handler.wfile.write(b"%x\r\n" % len(body) + body[:100])

    return answer


def fetched(tmp_path):
    """Fetches the file, and returns its bytes and what else the folder holds."""
    path = data.fetch(NAME, str(tmp_path / "d"))
    assert path == str(tmp_path / "d" / NAME)
    return (tmp_path / "d" / NAME).read_bytes(), sorted(set(os.listdir(tmp_path / "d")) - {NAME})


def test_download_of_a_sound_file(server, published, tmp_path, capfd):
    server.answers[f"/a/{NAME}"] = sends(published)
    got = data.load("shd", "test", str(tmp_path / "d"))
    assert same(got, data.load("shd", "test", str(tmp_path)))
    assert os.listdir(tmp_path / "d") == [NAME]
    assert server.asked == [(f"/a/{NAME}", 0)]
    size = f"{len(published) / 1e6:.1f} MB"
    assert f"fetching {data.SERVERS[0]}/{NAME}, {size}" in capfd.readouterr().err

    data.load("shd", "test", str(tmp_path / "d"))
    assert len(server.asked) == 1  # nothing is fetched that is already there


def test_download_says_its_size_before_it_starts(server, published, tmp_path, capfd):
    def answer(handler, first):
        handler.head(200, Content_Length=123_400_000)  # and not a byte of them

    server.answers[f"/a/{NAME}"] = answer
    with pytest.raises(OSError, match="the connection ended after 0 of 123400000 bytes"):
        data.fetch(NAME, str(tmp_path / "d"))
    assert "123.4 MB" in capfd.readouterr().err


def test_download_that_is_cut_off_is_resumed_elsewhere(server, published, tmp_path):
    server.answers[f"/a/{NAME}"] = sends(published, until=1000)
    server.answers[f"/b/{NAME}"] = sends(published)
    assert fetched(tmp_path) == (published, [])
    assert server.asked == [(f"/a/{NAME}", 0), (f"/b/{NAME}", 1000)]


def test_download_resumes_what_an_earlier_process_left(server, published, tmp_path):
    (tmp_path / "d" / f"{NAME}.part").write_bytes(published[:500])
    server.answers[f"/a/{NAME}"] = sends(published)
    assert fetched(tmp_path) == (published, [])
    assert server.asked == [(f"/a/{NAME}", 500)]


def test_download_from_a_server_without_ranges_begins_anew(server, published, tmp_path):
    (tmp_path / "d" / f"{NAME}.part").write_bytes(b"x" * 500)
    server.answers[f"/a/{NAME}"] = without_ranges(published, Content_Length=len(published))
    assert fetched(tmp_path) == (published, [])
    assert server.asked == [(f"/a/{NAME}", 500)]


def test_download_takes_a_complete_part_without_fetching(server, published, tmp_path):
    (tmp_path / "d" / f"{NAME}.part").write_bytes(published)
    assert fetched(tmp_path) == (published, [])
    assert server.asked == []


@pytest.mark.parametrize("excess", [b"", b"x"])
def test_download_with_a_wrong_part_of_full_length_begins_anew(server, published, tmp_path, excess):
    (tmp_path / "d" / f"{NAME}.part").write_bytes(b"?" + published[1:] + excess)
    for path in (f"/a/{NAME}", f"/b/{NAME}"):
        server.answers[path] = sends(published)
    assert fetched(tmp_path) == (published, [])


BAD_SERVERS = {
    "404": None,
    "no length": without_ranges(b"<html>gone</html>"),
    "nonsense length": without_ranges(b"<html>gone</html>", Content_Length="many"),
    "no http": sends_no_http,
    "incomplete read": breaks_off_in_a_chunk(b"x" * 1000),
    "a page": without_ranges(b"<html>gone</html>", Content_Length=17),
    "nothing": lambda handler, first: None,
}


@pytest.mark.parametrize("kind", BAD_SERVERS)
def test_download_goes_on_to_the_next_server(server, published, tmp_path, kind):
    if BAD_SERVERS[kind] is not None:
        server.answers[f"/a/{NAME}"] = BAD_SERVERS[kind]
    server.answers[f"/b/{NAME}"] = sends(published)
    assert fetched(tmp_path) == (published, [])
    assert [path for path, _ in server.asked] == [f"/a/{NAME}", f"/b/{NAME}"]


@pytest.mark.parametrize("kind", BAD_SERVERS)
def test_download_that_fails_everywhere_says_what_each_server_did(
    server, published, tmp_path, kind
):
    if BAD_SERVERS[kind] is not None:
        server.answers |= dict.fromkeys([f"/a/{NAME}", f"/b/{NAME}"], BAD_SERVERS[kind])
    with pytest.raises(OSError, match="--dataset toy, which needs no files") as caught:
        data.fetch(NAME, str(tmp_path / "d"))
    sentence = str(caught.value)
    assert "\n" not in sentence
    for root in data.SERVERS:
        assert sentence.count(f"{root}: ") == 2
    assert len(server.asked) == 4  # each server twice
    assert not os.path.exists(tmp_path / "d" / NAME)
    assert not os.path.exists(tmp_path / "d" / f"{NAME}.claim")


def test_download_with_a_wrong_md5_leaves_no_file(server, published, tmp_path):
    for path in (f"/a/{NAME}", f"/b/{NAME}"):
        server.answers[path] = sends(published[:-1] + b"?")
    wrong = hashlib.md5(published[:-1] + b"?").hexdigest()
    with pytest.raises(OSError, match=f"md5 {wrong}, expected {data.MD5[NAME]}"):
        data.fetch(NAME, str(tmp_path / "d"))
    assert os.listdir(tmp_path / "d") == []


def test_a_page_in_place_of_the_file_does_not_destroy_half_a_download(server, published, tmp_path):
    part = tmp_path / "d" / f"{NAME}.part"
    part.write_bytes(published[:500])
    for path in (f"/a/{NAME}", f"/b/{NAME}"):
        server.answers[path] = BAD_SERVERS["a page"]
    with pytest.raises(OSError, match="17 bytes.* fewer than the 500"):
        data.fetch(NAME, str(tmp_path / "d"))
    assert part.read_bytes() == published[:500]


def test_a_folder_that_was_named_must_be_there(server, published, tmp_path):
    with pytest.raises(ValueError, match="--data-dir .*mistyped' is no folder"):
        data.fetch(NAME, str(tmp_path / "mistyped"))
    assert not (tmp_path / "mistyped").exists()
    assert server.asked == []


@pytest.mark.parametrize("name", [data.DATA_DIR, f"./{data.DATA_DIR}/"])
def test_the_default_folder_is_made(name, server, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.answers[f"/a/{NAME}"] = sends(published)
    data.load("shd", "test", name)
    assert os.listdir(tmp_path / "data") == [NAME]


def test_two_downloads_at_once_do_not_share_a_part(server, published, tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def answer(handler, first):
        handler.head(200, Content_Length=len(published))
        handler.wfile.write(published[:500])
        begun.set()
        go_on.wait(20)
        handler.wfile.write(published[500:])

    server.answers[f"/a/{NAME}"] = answer
    other = threading.Thread(target=data.fetch, args=(NAME, str(tmp_path / "d")))
    other.start()
    assert begun.wait(20)
    claim = tmp_path / "d" / f"{NAME}.claim"
    with pytest.raises(OSError, match=f"another process downloads {NAME}.* delete {claim}"):
        data.fetch(NAME, str(tmp_path / "d"))
    go_on.set()
    other.join(20)
    assert (tmp_path / "d" / NAME).read_bytes() == published
    assert os.listdir(tmp_path / "d") == [NAME]
    assert len(server.asked) == 1


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot ask whether a process runs")
def test_the_claim_of_a_dead_process_is_void(server, published, tmp_path):
    claim = tmp_path / "d" / f"{NAME}.claim"
    claim.write_text(f"{socket.gethostname()} {dead_process()}")
    server.answers[f"/a/{NAME}"] = sends(published)
    assert fetched(tmp_path) == (published, [])


@pytest.mark.parametrize(
    "content",
    [
        f"{socket.gethostname()} {os.getpid()}",  # of a process that runs
        f"{socket.gethostname()} 1",  # of one that is another user's, as a rule
        "another-host 1",
        f"another-host {2**22 + 1}",  # a number that no process has here
        "",  # of one that is about to write its number
    ],
)
def test_the_claim_of_another_process_is_respected(server, published, tmp_path, content):
    claim = tmp_path / "d" / f"{NAME}.claim"
    claim.write_text(content)
    server.answers[f"/a/{NAME}"] = sends(published)
    with pytest.raises(OSError, match=f"another process downloads {NAME}.* delete {claim}"):
        data.fetch(NAME, str(tmp_path / "d"))
    assert claim.read_text() == content
    assert server.asked == []


def test_a_claim_made_since_an_abandoned_one_was_seen_is_respected(tmp_path, monkeypatch):
    claim = tmp_path / "claim"
    claim.write_text(f"{socket.gethostname()} {os.getpid()}")
    looks = iter([True, False])  # the dead process's claim was removed, and this one made, between
    monkeypatch.setattr(data, "abandoned", lambda path: path == str(claim) and next(looks))
    with pytest.raises(OSError, match="another process waits"), data.claimed(str(claim), "waits"):
        pass
    assert claim.exists()
    assert os.listdir(tmp_path) == ["claim"]


# --------------------------------------------------------------------------------- runs and results

SMALL = ("--hidden", 12, "--batch-size", 8, "--device", "cpu")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    train.write(str(tmp_path), "x", "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        train.write(str(tmp_path), "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_ctrl_c_while_a_file_is_written_leaves_the_old_one_alone(tmp_path, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.write(str(tmp_path), "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_keeps_no_half_written_file(tmp_path):
    (tmp_path / "x.part").symlink_to("/dev/full")
    path = re.escape(str(tmp_path / "x"))
    sentence = rf"{path} could not be written \(No space left on device\): mend that and repeat"
    with pytest.raises(OSError, match=sentence):
        train.write(str(tmp_path), "x", "new")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------- error sentences

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (
            lambda: gaussian_kernel(ONES, torch.ones(3, 2), 1.0, 5),
            r"weight \[2, 3\], delay \[3, 2\]",
        ),
        (lambda: gaussian_kernel(ONES, torch.ones(2, 2, 3), 1.0, 5), r"delay \[2, 2, 3\]"),
        (lambda: gaussian_kernel(ONES, ONES, 0.0, 5), "sigma is 0.0"),
        (lambda: gaussian_kernel(ONES, ONES, math.nan, 5), "sigma is nan"),
        (lambda: gaussian_kernel(torch.ones(3), torch.ones(3), 1.0, 5), r"weight \[3\]"),
        (lambda: integer_kernel(ONES, 5 * ONES, 5), r"outside 0\.\.4 steps"),
        (lambda: integer_kernel(ONES, -ONES, 5), r"outside 0\.\.4 steps"),
        (lambda: integer_kernel(ONES, ONES, 0), "at least one tap"),
        (
            lambda: delay_conv(torch.ones(5, 2, 3), torch.ones(4, 2, 7)),
            r"spikes \[5, 2, 3\], kernel \[4, 2, 7\]",
        ),
        (lambda: delay_conv(torch.ones(2, 3), torch.ones(4, 3, 7)), r"spikes \[2, 3\]"),
        (lambda: delay_conv(torch.ones(5, 2, 3), torch.ones(4, 3, 7), -1), "tail -1"),
        (lambda: delay_conv(torch.ones(5, 0, 3), torch.ones(4, 3, 7)), "no size of 0"),
        (lambda: delay_conv(torch.ones(5, 2, 3), torch.ones(4, 3, 7), 0, "fft"), "method is 'fft'"),
        (lambda: lif(torch.ones(5, 2, 3), 0.5), "tau 0.5"),
        (lambda: lif(torch.ones(5, 2, 3), torch.ones(3)), "tau a number of at least 1"),
        (lambda: lif(torch.ones(5, 2), 2.0), r"current \[5, 2\]"),
        (lambda: leaky_integrator(torch.ones(5, 2), 2.0), r"current \[5, 2\]"),
        (lambda: leaky_integrator(torch.ones(5, 2, 3), 0.9), "tau 0.9"),
        (lambda: class_scores(torch.ones(5, 2)), r"membrane \[5, 2\]"),
        (lambda: class_scores(torch.ones(5, 2, 3), torch.tensor([2])), r"steps \[1\]: .* \[5\]"),
        (lambda: DelayedLinear(3, 0, 5), "out_features=0"),
        (lambda: DelayedLinear(3, 2, 0), "taps=0"),
        (lambda: DelayedLinear(3, 2, 5, connections=-1), "connections=-1"),
        (lambda: DelayedLinear(3, 2, 5, delay_shape=(3, 2)), r"weight \[2, 3\], delay \[3, 2\]"),
        (lambda: DelaySNN(3, (4,), 2, dropout=1.0), "dropout is 1.0"),
        (lambda: DelaySNN(3, (4,), 2, dropout=-0.1), "dropout is -0.1"),
        (lambda: DelaySNN(3, (4,), 2, tau=0.9), "tau is 0.9"),
    ],
)
def test_bad_arguments_get_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def refused(capsys, *argv):
    """What train.py says as it ends with an error: one sentence, or argparse's usage and error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in argv])
    said = stop.value.code
    if isinstance(said, str):
        assert said.count("\n") == 0
        assert said.startswith("train.py: ")
    else:
        assert said == 2
        said = capsys.readouterr().err
        assert said.startswith("usage: ")
        said = said.splitlines()[-1]
    return said


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("--epochs -1", "argument --epochs: -1: expected at least 1, below 2**31"),
        ("--epochs 0", "argument --epochs: 0: expected at least 1, below 2**31"),
        ("--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
        ("--hidden 0", "argument --hidden: 0: expected at least 1, below 2**31"),
        ("--layers 0", "argument --layers: 0: expected at least 1, below 2**31"),
        ("--taps 0", "argument --taps: 0: expected at least 1, below 2**31"),
        ("--kernel-count 0", "argument --kernel-count: 0: expected at least 1, below 2**31"),
        ("--batch-size 0", "argument --batch-size: 0: expected at least 1, below 2**31"),
        ("--connections -2", "argument --connections: -2: expected at least 0, below 2**31"),
        ("--mask-steps 1", "argument --mask-steps: 1: expected at least 0, below 1"),
        ("--seed -1", "argument --seed: -1: expected at least 0, below 2**31"),
        (f"--seed {2**63}", f"argument --seed: {2**63}: expected at least 0, below 2**31"),
        ("--tau 9.9", "--tau 9.9: expected at least 10 ms, a step"),
        ("--tau long", "argument --tau: invalid float value: 'long'"),
        ("--lr nan", "argument --lr: nan: expected at least 0, below 2**31"),
        ("--lr inf", "argument --lr: inf: expected at least 0, below 2**31"),
        ("--delay-lr -1", "argument --delay-lr: -1: expected at least 0, below 2**31"),
        ("--weight-decay -1", "argument --weight-decay: -1: expected at least 0, below 2**31"),
        ("--dropout -0.1", "argument --dropout: -0.1: expected at least 0, below 1"),
        ("--dropout 1", "argument --dropout: 1: expected at least 0, below 1"),
        ("--dataset mnist", "argument --dataset: invalid choice: 'mnist'"),
        ("--delays some", "argument --delays: invalid choice: 'some'"),
        ("--device tpu", "argument --device: invalid choice: 'tpu'"),
        ("--conv fft", "argument --conv: invalid choice: 'fft'"),
        ("--frobnicate 1", "unrecognized arguments: --frobnicate 1"),
        ("--epoch 1", "unrecognized arguments: --epoch 1"),
        ("--epochs", "argument --epochs: expected one argument"),
        (
            "--dataset toy --valid-speakers 1",
            "--valid-speakers 1: expected some, not all, of its 1",
        ),
        ("--dataset toy --no-test", "no test and no validation set: hold out some"),
        ("--dataset toy --shift 8", "--shift 8 (recipe paper): expected less than the 8 inputs"),
        (
            "--dataset toy --mask-inputs 8",
            "--mask-inputs 8 (recipe paper): expected less than the 8",
        ),
        (
            "--dataset toy --recipe augmented",
            "--shift 8 (recipe augmented): expected less than the 8 inputs",
        ),
    ],
)
def test_bad_options_get_a_sentence(tmp_path, capsys, argv, sentence):
    assert sentence in refused(capsys, "--out", tmp_path / "o", *argv.split())
    assert not (tmp_path / "o/last.pt").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_a_card_that_is_not_there_gets_a_sentence(tmp_path, capsys):
    said = refused(capsys, "--device", "cuda", "--out", tmp_path / "o")
    assert "--device cuda: torch finds no GPU here" in said


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("--data-dir broken", "broken/shd_train.h5.gz is not a sound spike file"),
        ("--data-dir flipped", "flipped/shd_train.h5.zip is not a sound spike file"),
        ("--data-dir otherzip", "otherzip/shd_train.h5.zip is not a sound spike file"),
        ("--data-dir text", "text/shd_train.h5 is not a sound spike file"),
        ("--data-dir group", "group/shd_train.h5 is not a sound spike file"),
        ("--data-dir labels", "label 0 is 20: expected a whole number, 0..19"),
        ("--data-dir nan", "sample 1: time 2 is not finite: expected seconds"),
        ("--data-dir ms", "sample 1: it lasts 250 s, longer than 120 s: expected times in seconds"),
        ("--data-dir none", "--data-dir 'none' is no folder: make it, or mend its name"),
        ("--data-dir file", "--data-dir 'file' is no folder"),
        ("--data-dir empty", "shd_train.h5.gz is not in empty and could not be fetched"),
        ("--data-dir traintest", "shd_test.h5.gz is not in traintest and could not be fetched"),
        (
            "--data-dir good --valid-speakers 9",
            "--valid-speakers 9: expected some, not all, of its 3",
        ),
        ("--data-dir good --valid-speakers 0,1,2", "expected some, not all, of its 3 speakers"),
        ("--data-dir good --valid-speakers 0,x", "speakers, as ['0', '1', '2']"),
        ("--data-dir good --no-test", "no test and no validation set: hold out some"),
        ("--data-dir good --out run", "run holds a run (toy, fixed delays, seed 5, 1 epochs)"),
        ("--data-dir good --out broken-run", "'broken-run/last.pt' is no sound checkpoint"),
        ("--data-dir good --out claimed", "another process trains in this folder"),
        ("--resume --out claimed-run", "delete claimed-run/claim if it no longer runs"),
        (
            "--data-dir good --out file",
            "--out file cannot be made a folder (File exists): name another",
        ),
        ("--resume --out broken-run", "'broken-run/last.pt' is no sound checkpoint of train.py"),
        ("--resume --out new", "'new/last.pt' is not there: mend the name, or put it back"),
        ("--resume --out run --seed 6", "the saved run has --seed 5"),
        ("--resume --out run --delays learned", "the saved run has --delays fixed"),
        ("--resume --out run --epochs 2", "the saved run has --epochs 1"),
        ("--resume --out run --lr 0.1", "the saved run has --lr 0.005"),
        ("--eval none.pt", "'none.pt' is not there: mend the name, or put it back; a"),
        ("--eval run --seed 6", "the saved run has --seed 5: leave the option out"),
        ("--eval good/shd_train.h5", "'good/shd_train.h5' is no sound checkpoint of train.py"),
        ("--eval ''", "'' is not there"),
        ("--eval good", "'good/last.pt' is not there"),
        ("--eval run/last.pt --tau 20", "the saved run has --tau 10.05"),
        ("--eval other.pt", "of another network"),
        ("--eval nan.pt", "has weights or delays that are not finite"),
        ("--eval contents.pt", "'contents.pt' is no sound checkpoint of train.py"),
        ("--eval options.pt", "'options.pt' is no sound checkpoint of train.py"),
        ("--eval weights.pt", "of another network"),
        ("--eval rows.pt", "'rows.pt' is no sound checkpoint of train.py"),
        ("--eval gap.pt", "'gap.pt' is no sound checkpoint of train.py"),
        ("--eval first.pt", "another network: its first delays are of other shapes"),
        ("--resume --out moments", "another network: Adam's moments are of other shapes"),
        ("--resume --out no-moments", "another network: 'exp_avg'"),
    ],
)
def test_bad_files_and_folders_get_a_sentence(workplace, capsys, argv, sentence):
    before = sorted(os.listdir(workplace))
    said = refused(capsys, *(word.strip("'") for word in argv.split()))
    assert sentence in said
    assert set(os.listdir(workplace)) - set(before) <= {"runs", "new"}
    assert not any(name.endswith(".part") for _, _, names in os.walk(workplace) for name in names)


@pytest.fixture(scope="module")
def workplace_once(tmp_path_factory):
    """A folder with all that can be wrong with files, and a good and a finished run."""
    place = tmp_path_factory.mktemp("workplace")
    folders = (
        "good broken flipped otherzip text group labels nan ms empty traintest broken-run claimed"
    )
    for name in folders.split():
        (place / name).mkdir()
    write_shd(place / "good")
    (place / "file").write_text("")
    (place / "broken/shd_train.h5.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    with zipfile.ZipFile(place / "flipped/shd_train.h5.zip", "w") as archive:
        archive.writestr("shd_train.h5", b"spikes" * 100)
    body = bytearray((place / "flipped/shd_train.h5.zip").read_bytes())
    body[100] ^= 1
    (place / "flipped/shd_train.h5.zip").write_bytes(body)
    with zipfile.ZipFile(place / "otherzip/shd_train.h5.zip", "w") as archive:
        archive.writestr("readme.txt", b"spikes")
    (place / "text/shd_train.h5").write_text("<html>gone</html>")
    with h5py.File(place / "group/shd_train.h5", "w") as file:
        file.create_group("labels")
    write_h5(place / "labels/shd_train.h5", [[0.1]], [[3]], [20])
    write_h5(place / "nan/shd_train.h5", [[0.1], [0.1, 0.2, np.nan]], [[3], [1, 2, 3]], [1, 2])
    write_h5(place / "ms/shd_train.h5", [[0.1], [250, 300, 500]], [[3], [1, 2, 3]], [1, 2])
    (place / "traintest/shd_train.h5").write_bytes((place / "good/shd_train.h5").read_bytes())
    (place / "broken-run/last.pt").write_bytes(b"not a checkpoint")
    (place / "claimed/claim").write_text("another-host 1")

    words = "--dataset toy --delays fixed --epochs 1 --seed 5 --hidden 3 --batch-size 500 --out"
    train.train(parsed(*words.split(), place / "run"))
    (place / "claimed-run").mkdir()
    saved = torch.load(place / "run/last.pt", weights_only=True)
    torch.save(saved, place / "claimed-run/last.pt")
    (place / "claimed-run/claim").write_text("another-host 1")
    torch.save(saved | {"options": saved["options"] | {"hidden": 4}}, place / "other.pt")
    torch.save(dict.fromkeys(saved, 7), place / "contents.pt")
    torch.save(saved | {"options": {}}, place / "options.pt")
    torch.save(saved | {"net": dict.fromkeys(saved["net"], 7)}, place / "weights.pt")
    torch.save(saved | {"rows": ["epoch"]}, place / "rows.pt")
    torch.save(saved | {"rows": [saved["rows"][0] | {"epoch": 2}]}, place / "gap.pt")
    torch.save(saved | {"first_delays": saved["first_delays"][:1]}, place / "first.pt")
    for name in ("moments", "no-moments"):
        moments = saved["adam"]["state"][0]
        full = moments.pop("exp_avg")
        if name == "moments":
            moments["exp_avg"] = full[:1]
        (place / name).mkdir()
        torch.save(saved, place / name / "last.pt")
    saved["net"]["layers.1.weight"][0, 0] = math.nan
    torch.save(saved, place / "nan.pt")
    return place


@pytest.fixture
def workplace(workplace_once, server, monkeypatch):
    """The folder with all that can be wrong as the current one; no server has any file."""
    monkeypatch.chdir(workplace_once)
    return workplace_once


def test_a_missing_test_file_is_found_out_before_training(workplace, capsys):
    for held_out in ([], ["--valid-speakers", "1"]):
        said = refused(capsys, "--data-dir", "traintest", "--out", "runs/x", *held_out)
        assert "shd_test.h5.gz is not in traintest" in said
        assert not os.path.exists("runs/x/log.csv")


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    write_shd(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r/best.pt.part").write_bytes(b"half")  # which this run does not write
    (tmp_path / "r/claim").write_text(f"{socket.gethostname()} {dead_process()}")
    train.train(parsed("--data-dir", tmp_path, "--epochs", 1, "--out", tmp_path / "r", *SMALL))
    found = sorted(os.listdir(tmp_path / "r"))
    assert found == ["config.json", "last.pt", "log.csv", "result.json"]


def test_an_error_ends_the_program_with_a_status_and_a_line():
    done = program("--epochs", -1)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "usage: python train.py [option ...]; -h lists the options",
        "train.py: error: argument --epochs: -1: expected at least 1, below 2**31",
    ]
    done = program("--eval", "none.pt")
    assert done.returncode == 1
    assert done.stdout == ""
    sentence = "'none.pt' is not there: mend the name, or put it back; a run saves its first one"
    assert done.stderr == f"train.py: {sentence} after an epoch\n"


def test_help_shows_the_defaults_of_the_chosen_data_set(capsys):
    for dataset, taps in (("shd", 25), ("ssc", 31)):
        with pytest.raises(SystemExit) as stop:
            train.main(["--dataset", dataset, "-h"])
        assert stop.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"--taps TAPS delays are 0 to TAPS - 1 steps (default: {taps})" in shown


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"),
    ],
)
def test_out_of_memory_says_what_helps(tmp_path, monkeypatch, capsys, problem):
    def exhausted(*args):
        raise problem

    monkeypatch.setattr(train, "train", exhausted)
    said = refused(capsys, "--dataset", "toy", "--out", tmp_path / "r")
    assert "out of memory: a smaller --batch-size or a smaller network may fit" in said


def test_a_mistake_in_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    def mistaken(*args):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(train, "train", mistaken)
    with pytest.raises(RuntimeError, match="a mistake"):
        train.main(["--dataset", "toy", "--out", str(tmp_path / "r")])


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    write_shd(tmp_path)
    chosen = parsed("--data-dir", tmp_path, "--epochs", 3, "--out", tmp_path / "r", *SMALL)
    net = train.build(chosen)
    with torch.no_grad():
        net.layers[2].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="the loss of epoch 1 is nan: try a lower --lr"):
        train.train(chosen, net)
    assert not (tmp_path / "r/last.pt").exists()


class Steep(DelaySNN):
    """Silent neurons make the gradient not finite, and leave the loss as it is."""

    def neurons(self, i, current):
        spikes = super().neurons(i, current)
        return spikes + 0 * (spikes.mean((0, 1)) - spikes.mean((0, 1)).detach()).sqrt()


def test_a_network_that_is_not_finite_ends_the_run_before_it_is_saved(little, tmp_path):
    options = options_of(tmp_path / "run", "--dataset", "little", "--delays", "fixed")
    with pytest.raises(ValueError, match="layers.0.weight is not finite after epoch 1: try a lowe"):
        train.train(options, train.build(options, Steep))
    assert not (tmp_path / "run/last.pt").exists()


class Flat(DelaySNN):
    def neurons(self, i, current):
        return (current >= 1).float()


def test_a_parameter_that_the_loss_does_not_reach_is_refused(little, tmp_path):
    options = options_of(tmp_path / "run", "--dataset", "little", "--epochs", 1)
    net = train.build(options, Flat)
    with pytest.raises(ValueError, match="layers.0.weight gets no gradient from the loss: build"):
        train.train(options, net)
    hidden = [*net.layers[:-1].parameters(), *net.norms.parameters()]
    for parameter in hidden:
        parameter.requires_grad = False
    before = [parameter.clone() for parameter in hidden]
    train.train(options, net)
    assert all(torch.equal(one, other) for one, other in zip(before, hidden, strict=True))


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent so on Windows")
def test_ctrl_c_says_how_to_resume(tmp_path):
    # A script in the background ignores Ctrl-C, and hands that on to the programs that it starts.
    code = "import signal, train; signal.signal(2, signal.default_int_handler); train.main()"
    script = tmp_path / "my script.py"  # which may add a data set: it has to be named again
    script.write_text(code)
    out = tmp_path / "a run"
    process = subprocess.Popen(
        [sys.executable, str(script), "--dataset", "toy", "--device", "cpu", "--out", str(out)],
        env=ENV | {"PYTHONPATH": str(HERE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.strip() == f"stopped; to continue: python '{script}' --out '{out}' --resume"
    assert not (out / "claim").exists()


def test_ctrl_c_before_anything_is_saved_promises_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    with pytest.raises(SystemExit, match="stopped; no epoch was saved"):
        train.main(["--dataset", "toy", "--out", str(tmp_path / "r")])


# ------------------------------------------------------------------------- a data set of the tests

# Small, with samples of 8 to 14 steps of 4 ms.  No number is a default of another data set.
LITTLE_INPUTS, LITTLE_CLASSES, LITTLE_STEP_MS = 5, 3, 4.0
LITTLE_SIZES = {"train": 44, "valid": 27, "test": 61}
LITTLE = dict(hidden=7, layers=2, taps=6, tau=12.0, dropout=0.2, batch_size=8, epochs=9)


def little_samples(split):
    """[(counts [steps, inputs], label, speaker)].  A class is the input that spikes most."""
    rng = np.random.default_rng(LITTLE_SIZES[split])
    samples = []
    for number in range(LITTLE_SIZES[split]):
        label, speaker = number % LITTLE_CLASSES, number % 4
        rate = np.full(LITTLE_INPUTS, 0.1)
        rate[label] = 0.4
        counts = rng.poisson(rate, (rng.integers(8, 15), LITTLE_INPUTS))
        samples.append((counts, label, speaker))
    return samples


def read_little(split, data_dir):
    counts, labels, speakers = zip(*little_samples(split), strict=True)
    rows = torch.from_numpy(np.concatenate(counts).astype(np.uint8))
    steps = torch.tensor([len(sample) for sample in counts])
    return data.Spikes(rows, steps, torch.tensor(labels), np.array(speakers))


@pytest.fixture
def little(monkeypatch):
    """Two data sets of one's own, each by one row in data.py's table and one in train.py's."""
    for name, splits in (("little", ("train", "test")), ("validated", ("train", "valid", "test"))):
        row = data.Dataset(read_little, splits, LITTLE_INPUTS, LITTLE_CLASSES, LITTLE_STEP_MS)
        monkeypatch.setitem(data.DATASETS, name, row)
        monkeypatch.setitem(train.DEFAULTS, name, LITTLE)


def options_of(out, *words):
    return train.parse(["--device", "cpu", "--out", str(out), *map(str, words)])


def state_of(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def log_of(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def record_batches(monkeypatch):
    """The shuffled batches of all epochs to come, [[[index, ..], ..], ..]."""
    epochs = []
    draw = data.batches

    def batches(spikes, size, shuffle=True, **more):
        drawn = draw(spikes, size, shuffle, **more)
        if shuffle:
            epochs.append([indices.tolist() for indices, _ in drawn])
        return drawn

    monkeypatch.setattr(data, "batches", batches)
    return epochs


def record_dropout(monkeypatch):
    """The dropout masks of all batches and layers to come."""
    masks = []
    draw = torch.nn.functional.dropout

    def dropout(*args, **kwargs):
        mask = draw(*args, **kwargs)
        masks.append(mask.detach().clone())
        return mask

    monkeypatch.setattr(delays.F, "dropout", dropout)
    return masks


# ------------------------------------------------------------------- the whole training, done twice

# A slow trainer that uses nothing of the project.  A network is a dictionary of tensors, under the
# names that they have in the program; it has two hidden layers.


def plain_kernel(weight, delay, taps, sigma):
    """[out, in, taps]: Gaussians, or one tap at the rounded delay where sigma is None."""
    bells = []
    for d in range(taps):
        if sigma is None:
            bells.append((delay.round() == d).double())
        else:
            bells.append(torch.exp(-(((d - delay) / sigma) ** 2) / 2))
    bells = torch.stack(bells, -1)
    if sigma is not None:
        bells = bells / (bells.sum(-1, keepdim=True) + 1e-7)
    kernel = weight[..., None] * bells  # [out, in, taps] or [count, out, in, taps]
    return kernel.sum(0) if kernel.dim() == 4 else kernel


def plain_delayed_sum(x, kernel, tail):
    """[B, T + tail, out]: for every delay the input is shifted by it, and weighed."""
    x = torch.cat([x, torch.zeros(len(x), tail, x.shape[2]).double()], 1)
    steps = x.shape[1]
    y = 0
    for d in range(kernel.shape[2]):
        late = torch.cat([torch.zeros(len(x), d, x.shape[2]).double(), x], 1)[:, :steps]
        y = y + late @ kernel[:, :, d].T
    return y


def plain_norm(net, i, current, training):
    """Batch norm over batch and time; in training it moves the running statistics."""
    mean, variance = net[f"norms.{i}.running_mean"], net[f"norms.{i}.running_var"]
    if training:
        n = current.shape[0] * current.shape[1]
        own_mean = current.mean((0, 1))
        own_variance = ((current - own_mean) ** 2).mean((0, 1))
        mean.copy_(0.9 * mean + 0.1 * own_mean.detach())
        variance.copy_(0.9 * variance + 0.1 * own_variance.detach() * n / (n - 1))
        mean, variance = own_mean, own_variance
    current = (current - mean) / torch.sqrt(variance + 1e-5)
    return current * net[f"norms.{i}.weight"] + net[f"norms.{i}.bias"]


def plain_lif(current, tau):
    v = torch.zeros_like(current[:, 0])
    spikes = []
    for t in range(current.shape[1]):
        h = (1 - 1 / tau) * v + current[:, t]
        s = (h >= 1).double()
        smooth = torch.atan(math.pi / 2 * 5 * (h - 1)) / math.pi
        spikes.append(s + (smooth - smooth.detach()))
        v = h * (1 - s)  # s has no gradient
    return torch.stack(spikes, 1)


def plain_readout(current, tau):
    v = torch.zeros_like(current[:, 0])
    membrane = []
    for t in range(current.shape[1]):
        v = (1 - 1 / tau) * v + current[:, t]
        membrane.append(v)
    return torch.stack(membrane, 1)


def plain_forward(net, x, options, sigma, tail, masks=None):
    """Class scores [B, classes], and the rates of the hidden layers [2, B].

    masks: of dropout, if this is training.
    """
    taps = 1 if options.delays == "none" else options.taps
    tau = options.tau / LITTLE_STEP_MS
    rates = []
    for i in (0, 1, 2):
        weight = net[f"layers.{i}.weight"]
        if f"layers.{i}.mask" in net:
            weight = weight * net[f"layers.{i}.mask"]
        kernel = plain_kernel(weight, net[f"layers.{i}.delay"], taps, sigma)
        current = plain_delayed_sum(x, kernel, tail)
        if i < 2:
            spikes = plain_lif(plain_norm(net, i, current, masks is not None), tau)
            rates.append(spikes.detach().mean((1, 2)))
            x = spikes if masks is None else spikes * masks[i]
    share = torch.exp(plain_readout(current, tau))
    share = share / share.sum(2, keepdim=True)
    return share.sum(1), torch.stack(rates)


def plain_accuracy(net, samples, options, sigma=None):
    """Each sample alone, over its own steps and all tails, which is enough silence for each layer.

    Delays are whole steps; with a sigma, the Gaussians of training.  Where the best scores are
    equal, as of a silent readout, rounding decides: such a sample may count or not.
    """
    tail = 0 if options.delays == "none" else options.taps // 2
    hits = ties = 0
    for counts, label, _ in samples:
        silence = np.zeros((3 * tail, LITTLE_INPUTS))
        x = torch.from_numpy(np.concatenate([counts, silence])[None])
        scores, _ = plain_forward(net, x, options, sigma, tail=0)
        own = scores[0, label].item()
        best_other = max(score for c, score in enumerate(scores[0].tolist()) if c != label)
        hits += own - best_other > 1e-9
        ties += abs(own - best_other) <= 1e-9
    middle, slack = (hits + ties / 2) / len(samples), ties / 2 / len(samples)
    return pytest.approx(middle, rel=0, abs=slack + 1e-9)


def plain_sigma(epoch, options):
    """Of the kernels of training; None: they have one tap."""
    if options.delays in ("fixed", "none"):
        return None
    quarter = options.epochs // 4
    if options.delays == "constant-sigma" or epoch >= quarter:
        return 0.5
    widest = options.taps // 2
    return 0.27 + widest * (0.23 / widest) ** (epoch / quarter)


def plain_batch(samples, indices):
    """Counts, padded with zeros to the longest, [B, T, inputs], and labels."""
    longest = max(len(samples[index][0]) for index in indices)
    x = torch.zeros(len(indices), longest, LITTLE_INPUTS).double()
    for b, index in enumerate(indices):
        counts = samples[index][0]
        x[b, : len(counts)] = torch.from_numpy(counts)
    return x, torch.tensor([samples[index][1] for index in indices])


def plain_epoch(net, optimizers, samples, batches, masks, options, sigma):
    """A pass over the training samples; returns loss, accuracy and the two rates."""
    taps = 1 if options.delays == "none" else options.taps
    losses, hits, rates = [], [], []
    for indices in batches:
        x, labels = plain_batch(samples, indices)
        own_masks = [next(masks), next(masks)]
        scores, own_rates = plain_forward(net, x, options, sigma, taps // 2, own_masks)
        right = scores[torch.arange(len(labels)), labels]
        loss = scores.exp().sum(1).log() - right  # cross-entropy of each sample
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        for i in (0, 1, 2):
            net[f"layers.{i}.delay"].data.clamp_(0, taps - 1)
        losses += loss.tolist()
        hits += (scores.argmax(1) == labels).tolist()
        rates += own_rates.T.tolist()
    return np.mean(losses), np.mean(hits), *np.mean(rates, 0)


def plain_moved_ms(net, start):
    ways = []
    for i in (0, 1, 2):
        way = (net[f"layers.{i}.delay"].detach() - start[f"layers.{i}.delay"]).abs()
        there = start.get(f"layers.{i}.mask", torch.ones(way.shape[-2:], dtype=torch.bool))
        ways += (LITTLE_STEP_MS * way)[there.expand_as(way)].tolist()
    return np.mean(ways)


def plain_training(start, options, epochs, masks, sets):
    """Yields the network and the row of the log after each epoch."""
    net = {name: value.clone() for name, value in start.items()}
    weights = [net[f"layers.{i}.weight"].requires_grad_() for i in (0, 1, 2)]
    norms = [
        net[f"norms.{i}.{name}"].requires_grad_() for i in (0, 1) for name in ("weight", "bias")
    ]
    decayed = {"params": weights, "weight_decay": options.weight_decay}
    adam = torch.optim.Adam([decayed, {"params": norms}])
    optimizers = [adam]
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, options.lr, total_steps=options.epochs)
    cosine = None
    if options.delays in ("learned", "constant-sigma"):
        moving = [net[f"layers.{i}.delay"].requires_grad_() for i in (0, 1, 2)]
        optimizers.append(torch.optim.Adam(moving, lr=options.delay_lr))
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[1], options.epochs)

    watched = "valid" if "valid" in sets else "test"
    masks = iter(masks)
    for epoch, batches in enumerate(epochs):
        sigma = plain_sigma(epoch, options)
        row = {"epoch": epoch + 1, "sigma": sigma, "lr": adam.param_groups[0]["lr"]}
        means = plain_epoch(net, optimizers, sets["train"], batches, masks, options, sigma)
        row["loss"], row["train_accuracy"], row["rate_1"], row["rate_2"] = means
        row["valid_accuracy"] = row["test_accuracy"] = None
        with torch.no_grad():
            row[f"{watched}_accuracy"] = plain_accuracy(net, sets[watched], options)
        row["moved_ms"] = plain_moved_ms(net, start)
        yield {name: value.detach().clone() for name, value in net.items()}, row
        if epoch + 1 < options.epochs:
            cycle.step()
            if cosine is not None:
                cosine.step()


RECIPES = [
    "learned",
    "learned --kernel-count 2 --connections 3 --valid-speakers 1,2",
    "constant-sigma --kernel-count 2",
    "constant-sigma --connections 3 --conv direct",
    "fixed --kernel-count 2 --connections 3",
    "fixed --valid-speakers 0",
    "none --kernel-count 2",
    "none --connections 3",
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_whole_training_is_that_of_a_slow_trainer(recipe, little, tmp_path, monkeypatch):
    rates = "--lr 0.03 --delay-lr 0.3 --weight-decay 0.005"
    words = f"--dataset little {rates} --delays {recipe}".split()
    options = options_of(tmp_path / "run", *words)
    epochs, masks = record_batches(monkeypatch), record_dropout(monkeypatch)
    net = train.build(options).double().eval()  # training turns this off
    start = state_of(net)
    seen = []
    result = train.train(options, net, lambda net, row: seen.append((state_of(net), row)))

    sets = {split: little_samples(split) for split in ("train", "test")}
    if options.valid_speakers:
        held_out = [int(speaker) for speaker in options.valid_speakers.split(",")]
        sets["valid"] = [sample for sample in sets["train"] if sample[2] in held_out]
        sets["train"] = [sample for sample in sets["train"] if sample[2] not in held_out]
    samples = len(sets["train"])
    for batches in epochs:  # each has every sample once, and the ragged rest is one of its batches
        assert sorted(sum(batches, [])) == list(range(samples))
        assert sorted(map(len, batches)) == [samples % 8] + [8] * (samples // 8)
    for mask, batch in zip(masks[::2], sum(epochs, []), strict=True):
        assert mask.shape == (len(batch), 1, 7)
    drawn = torch.cat([mask.flatten() for mask in masks])
    assert set(drawn.tolist()) == {0.0, 1 / 0.8}
    assert (drawn == 0).double().mean().item() == pytest.approx(0.2, rel=0, abs=0.03)

    want = []
    twice = zip(seen, plain_training(start, options, epochs, masks, sets), strict=True)
    for (net_there, row_there), (net_here, row_here) in twice:
        want.append((net_here, row_here))
        for key, value in row_here.items():
            there = row_there[key]
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-9, abs=1e-9)
            assert there == value, (row_here["epoch"], key)
        for name, value in net_here.items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(net_there[name], value, rtol=1e-9, atol=1e-9)
    assert len(want) == 9
    for line, (_, row) in zip(log_of(tmp_path / "run"), seen, strict=True):
        for key, value in row.items():
            assert line[key] == ("" if value is None else str(value)), key

    at = 8
    if options.valid_speakers:
        accuracies = [row["valid_accuracy"] for _, row in seen]
        at = accuracies.index(max(accuracies))
    chosen, _ = want[at]
    sigma = plain_sigma(at, options)
    assert result["test_accuracy"] == plain_accuracy(chosen, sets["test"], options)
    assert 0.4 < result["test_accuracy"] < 0.9  # or little could be seen
    unrounded = None if sigma is None else plain_accuracy(chosen, sets["test"], options, sigma)
    assert result["unrounded_accuracy"] == unrounded
    assert result["valid_accuracy"] == seen[at][1]["valid_accuracy"]
    if not options.valid_speakers:
        assert result["best_on_test"] == max(row["test_accuracy"] for _, row in seen)
    if sigma is not None:  # the delays came to both ends of their range
        ends = torch.cat([want[-1][0][f"layers.{i}.delay"].flatten() for i in (0, 1, 2)])
        assert (ends == 0).any() and (ends == 5).any()


# ------------------------------------------------------------------- the rule behind each headline


# Splits are told apart by their sizes.
SPLIT_OF_SIZE = {61: "test", 27: "valid", 22: "valid"}  # little; half of its training samples
SPLIT_OF_SIZE |= {9: "test", 8: "valid", 35: "test", 21: "valid", 24: "valid"}  # files


def make_up_accuracies(monkeypatch, table):
    """Puts made-up accuracies in place of train.evaluate: table[split] has one an epoch.

    An accuracy belongs to weights, so it is looked up by them: new weights are those of the next
    epoch.  Returns the list of (what was evaluated, of which epoch), which grows during the run.
    """
    asked, weights = [], []

    def evaluate(net, spikes, batch_size):
        now = net.layers[0].weight.detach().clone()
        if not any(torch.equal(now, there) for there in weights):
            weights.append(now)
        epoch = [torch.equal(now, there) for there in weights].index(True) + 1
        split = SPLIT_OF_SIZE[len(spikes.labels)]
        if not net.layers[0].whole_steps:
            split = f"{split}, unrounded"
        asked.append((split, epoch))
        return table[split][epoch - 1]

    monkeypatch.setattr(train, "evaluate", evaluate)
    return asked


MADE_UP = {
    "valid": [0.2, 0.6, 0.5, 0.6, 0.3],
    "test": [0.1, 0.45, 0.9, 0.75, 0.4],
    "test, unrounded": [0.15, 0.55, 0.95, 0.8, 0.5],
    "valid, unrounded": [0.25, 0.65, 0.35, 0.7, 0.05],
}


def test_without_validation_the_headline_is_the_last_epoch(little, tmp_path, monkeypatch, capsys):
    make_up_accuracies(monkeypatch, MADE_UP)
    words = f"--dataset little --device cpu --epochs 5 --out {tmp_path / 'run'}"
    train.main(words.split())
    result = result_of(tmp_path / "run")
    assert result["test_accuracy"] == 0.4
    assert result["rule"] == "last epoch"
    assert result["best_on_test"] == 0.9
    assert result["unrounded_accuracy"] == 0.5
    assert result["valid_accuracy"] is None
    assert [float(row["test_accuracy"]) for row in log_of(tmp_path / "run")] == MADE_UP["test"]
    assert all(row["valid_accuracy"] == "" for row in log_of(tmp_path / "run"))
    assert not (tmp_path / "run/best.pt").exists()
    printed = capsys.readouterr().out
    assert "test accuracy 40.00%" in printed and "best on test 90.00%" in printed
    assert "unrounded accuracy 50.00%" in printed


VALIDATED = {  # and the number of validation samples
    "--dataset little --valid-speakers 1,3": 22,
    "--dataset validated": 27,
    "--dataset shd --valid-speakers 2 --data-dir DATA": 8,
    "--dataset ssc --data-dir DATA": 21,
    "--dataset ssc --data-dir DATA --valid-speakers c50f55b8": 24,
}


def validated_options(tmp_path, words):
    write_shd(tmp_path)
    write_ssc(tmp_path)
    sizes = "--hidden 6 --layers 1 --taps 5 --epochs 5"
    words = f"{words} {sizes}".replace("DATA", str(tmp_path)).split()
    return options_of(tmp_path / "run", *words)


@pytest.mark.parametrize("words", VALIDATED)
def test_validation_chooses_the_epoch_and_test_is_read_once(words, little, tmp_path, monkeypatch):
    asked = make_up_accuracies(monkeypatch, MADE_UP)
    result = train.train(validated_options(tmp_path, words))
    assert asked[:5] == [("valid", epoch) for epoch in (1, 2, 3, 4, 5)]
    assert sorted(asked[5:]) == [("test", 2), ("test, unrounded", 2)]
    assert result["test_accuracy"] == 0.45
    assert result["valid_accuracy"] == 0.6
    assert result["unrounded_accuracy"] == 0.55
    assert result["rule"] == "best on validation, epoch 2"
    assert result["best_on_test"] is None
    rows = log_of(tmp_path / "run")
    assert [float(row["valid_accuracy"]) for row in rows] == MADE_UP["valid"]
    assert [row["test_accuracy"] for row in rows] == [""] * 5
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["samples"]["valid"] == VALIDATED[words]


@pytest.mark.parametrize("words", list(VALIDATED)[2:])
def test_no_test_never_opens_the_test_file(words, little, tmp_path, monkeypatch):
    asked = make_up_accuracies(monkeypatch, MADE_UP)
    options = validated_options(tmp_path, f"{words} --no-test")
    for name in ("shd_test.h5", "ssc_test.h5.zip"):
        (tmp_path / name).unlink()
    monkeypatch.setattr(data, "fetch", lambda name, folder: pytest.fail(f"{name} was fetched"))
    result = train.train(options)
    assert {split for split, _ in asked} == {"valid", "valid, unrounded"}
    assert result["test_accuracy"] is None
    assert result["unrounded_accuracy"] == 0.65  # on validation, of the epoch that it chose
    assert result["best_on_test"] is None
    assert result["valid_accuracy"] == 0.6
    assert result["rule"] == "best on validation, epoch 2"
    assert json.loads((tmp_path / "run/config.json").read_text())["samples"].keys() == {
        "train",
        "valid",
    }


@pytest.mark.parametrize("words", list(VALIDATED)[2:])
def test_eval_of_a_run_that_left_test_alone_leaves_it_alone(words, little, tmp_path, capsys):
    options = validated_options(tmp_path, f"{words} --no-test")
    for name in ("shd_test.h5", "ssc_test.h5.zip"):
        (tmp_path / name).unlink()
    result = train.train(options)
    capsys.readouterr()
    train.main(["--eval", str(tmp_path / "run"), "--device", "cpu"])
    expected = f"valid accuracy {result['valid_accuracy']:.2%} ({tmp_path / 'run'}, epoch "
    assert capsys.readouterr().out.startswith(expected)


def test_a_data_set_without_test_is_judged_by_validation(little, tmp_path, monkeypatch, capsys):
    row = data.DATASETS["validated"]._replace(splits=("train", "valid"))
    monkeypatch.setitem(data.DATASETS, "validated", row)
    result = train.train(options_of(tmp_path / "run", "--dataset", "validated", "--epochs", 2))
    assert result["test_accuracy"] is None
    capsys.readouterr()
    train.main(["--eval", str(tmp_path / "run"), "--device", "cpu"])
    expected = f"valid accuracy {result['valid_accuracy']:.2%} ({tmp_path / 'run'}, epoch "
    assert capsys.readouterr().out.startswith(expected)


def test_no_test_needs_a_validation_set(tmp_path):
    write_shd(tmp_path)
    options = options_of(tmp_path / "run", "--data-dir", tmp_path, "--no-test")
    with pytest.raises(ValueError, match="no test and no validation set.* --valid-speakers"):
        train.train(options)
    assert not (tmp_path / "run/log.csv").exists()


def test_speech_commands_from_files_to_the_last_line(tmp_path):
    write_ssc(tmp_path)
    sizes = "--dataset ssc --hidden 24 --layers 1 --taps 5 --dropout 0 --epochs 6 --batch-size 10"
    words = [*sizes.split(), "--lr", 0.05, "--device", "cpu", "--data-dir", tmp_path]
    done = program(*words, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    result, rows = result_of(tmp_path / "run"), log_of(tmp_path / "run")
    accuracies = [float(row["valid_accuracy"]) for row in rows]
    best = accuracies.index(max(accuracies))
    assert len(rows) == 6 and max(accuracies) > 0.3  # chance is 0.03
    assert result["rule"] == f"best on validation, epoch {best + 1}"
    assert result["valid_accuracy"] == max(accuracies)
    assert [row["test_accuracy"] for row in rows] == [""] * 6
    assert result["dataset"] == "ssc" and result["epochs"] == 6
    assert result["parameters"] == 2 * (140 * 24 + 24 * 35) + 2 * 24
    assert f"test accuracy {result['test_accuracy']:.2%}" in done.stdout
    assert result["rule"] in done.stdout

    net, options = train.load_run(tmp_path / "run")
    test = data.load("ssc", "test", tmp_path)
    assert sorted(set(test.speakers)) == ["0ff728b5", "1e9b215e", "c50f55b8"]
    assert train.evaluate(net, test, 7) == result["test_accuracy"] > 0.3
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["samples"] == {"train": 70, "valid": 21, "test": 35}
    names = [f"ssc_{split}.h5.zip" for split in ("train", "valid", "test")]
    assert config["md5"] == {name: data.md5(tmp_path / name) for name in names}


# ------------------------------------------------------------------------------- the paper's table

PAPER = {
    "shd": dict(epochs=150, batch_size=256, hidden=256, layers=2, taps=25, tau=10.05, dropout=0.4),
    "ssc": dict(epochs=60, batch_size=128, hidden=512, layers=3, taps=31, tau=15, dropout=0.25),
}
OF_BOTH = dict(lr=5e-3, delay_lr=0.1, weight_decay=1e-5, delays="learned", connections=0, seed=0)


@pytest.mark.parametrize("dataset", ["shd", "ssc"])
def test_defaults_are_the_papers(dataset):
    options = vars(train.parse(["--dataset", dataset]))
    want = PAPER[dataset] | OF_BOTH | {"kernel_count": 1, "valid_speakers": "", "no_test": False}
    assert {key: options[key] for key in want} == want
    assert options["out"] == f"runs/{dataset}-learned-0"


def test_defaults_of_the_toy_task():
    options = vars(train.parse(["--dataset", "toy"]))
    want = OF_BOTH | dict(epochs=20, batch_size=50, layers=1, taps=25, tau=10.05, dropout=0)
    assert {key: options[key] for key in want} == want


def test_published_files_and_their_servers():
    assert data.SERVERS == ["https://zenkelab.org/datasets", "https://compneuro.net/datasets"]
    want = {
        "shd_train.h5.gz": "d47c9825dee33347913e8ce0f2be08b0",
        "shd_test.h5.gz": "3062a80ec0c5719404d5b02e166543b1",
        "ssc_train.h5.zip": "d102be95e7144fcc0553d1f45ba94170",
        "ssc_valid.h5.zip": "b4eee3516a4a90dd0c71a6ac23a8ae43",
        "ssc_test.h5.zip": "a35ff1e9cffdd02a20eb850c17c37748",
    }
    assert {name: data.MD5[name] for name in want} == want


@pytest.mark.parametrize(
    "words, layers, parameters",
    [
        ("--dataset shd", [(140, 256), (256, 256), (256, 20)], 214_016),
        ("--dataset shd --delays fixed", [(140, 256), (256, 256), (256, 20)], 107_520),
        (
            "--dataset ssc --kernel-count 2",
            [(140, 512), (512, 512), (512, 512), (512, 35)],
            2_458_624,
        ),
        ("--dataset toy --hidden 16", [(8, 16), (16, 10)], 2 * (8 * 16 + 16 * 10) + 32),
        (
            "--dataset shd --connections 10 --kernel-count 2",
            [(140, 256), (256, 256), (256, 20)],
            2 * 2 * 10 * (256 + 256 + 20) + 1024,
        ),
    ],
)
def test_the_networks_of_the_options(words, layers, parameters):
    options = train.parse([*words.split(), "--device", "cpu"])
    net = train.build(options)
    assert train.count_parameters(net) == parameters
    assert net.tau == pytest.approx(options.tau / 10, rel=1e-12)
    assert net.dropout == options.dropout
    assert len(net.layers) == len(layers)
    for layer, (inputs, outputs) in zip(net.layers, layers, strict=True):
        assert layer.weight.shape[-2:] == (outputs, inputs)
        own = options.connections or inputs
        bound = math.sqrt(6 / (own * options.kernel_count))  # Kaiming's, uniform, for relu
        assert 0.9 * bound < layer.weight.max() <= bound
        assert -0.9 * bound > layer.weight.min() >= -bound
        assert 0 <= layer.delay.min() < 1
        assert options.taps - 2 < layer.delay.max() <= options.taps - 1


# ---------------------------------------------------------------------------------- continued runs

SHORT = "--hidden 6 --layers 1 --taps 5 --epochs 6 --batch-size 10 --lr 0.02 --device cpu"

KILLED = """
import os, signal, sys, train

def kill(net, row):
    if row["epoch"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

train.train(train.parse(sys.argv[1:]), on_epoch=kill)
"""


def assert_same_run(one, other):
    """Two folders hold the same run, bit for bit, all but its seconds."""
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))
    for name in ("last.pt", "best.pt"):
        if (one / name).exists():
            first, second = (torch.load(run / name, weights_only=True) for run in (one, other))
            assert same_bits(first["net"], second["net"])
    logs, results = [log_of(one), log_of(other)], [result_of(one), result_of(other)]
    for rows, result in zip(logs, results, strict=True):
        assert result.pop("seconds") > 0
        assert [int(row["epoch"]) for row in rows] == list(range(1, result["epochs"] + 1))
        for row in rows:
            assert float(row.pop("seconds")) > 0
    assert logs[0] == logs[1]
    assert results[0] == results[1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("more", ["", "--recipe augmented --warp 0.15 --batches similar"])
def test_resumed_equals_uninterrupted_after_sigkill(more, tmp_path):
    write_shd(tmp_path)
    words = [*SHORT.split(), *more.split(), "--data-dir", tmp_path]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train.train(options_of(whole, *words))
    killed = program(*words, "--out", cut, code=KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(log_of(cut)) == 3
    (cut / "log.csv").unlink()  # it is written anew from the checkpoint
    options = options_of(cut, "--resume")
    net = train.build(options)
    for layer in net.layers:
        layer.delay.data.zero_()  # all that counts is in the checkpoint
    train.train(options, net)
    assert_same_run(cut, whole)
    train.train(options_of(cut, "--resume"))  # nothing is left to do
    assert_same_run(cut, whole)


class Killed(BaseException):
    """Ends a run as a kill does: no handler of errors sees it."""


def test_a_run_may_end_before_any_of_its_files_has_its_name(little, tmp_path, monkeypatch):
    words = ["--dataset", "validated", "--epochs", 4, "--hidden", 4, "--batch-size", 22]
    rename, names = os.replace, []

    def evaluate(net, spikes, batch_size):
        epoch = net.norms[0].num_batches_tracked.item() // 2  # 44 samples are 2 batches
        return [0.2, 0.6, 0.4, 0.5][epoch - 1]

    def rename_some(source, target):
        names.append(os.path.basename(target))
        if len(names) > allowed:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(os, "replace", rename_some)
    allowed = math.inf
    whole = tmp_path / "whole"
    train.train(options_of(whole, *words))
    assert names.count("last.pt") == names.count("log.csv") == 4
    assert names.count("best.pt") == 2
    for end in range(len(names)):
        names, allowed, cut = [], end, tmp_path / f"cut{end}"
        with pytest.raises(Killed):
            train.train(options_of(cut, *words))
        allowed = math.inf
        again = ["--resume"] if (cut / "last.pt").exists() else words
        train.train(options_of(cut, *again))
        assert_same_run(cut, whole)


@pytest.fixture
def short_run(little, tmp_path):
    words = "--dataset little --epochs 2 --kernel-count 2 --valid-speakers 1,2"
    options = options_of(tmp_path / "run", *words.split())
    return options, train.train(options)


def content_of(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def test_resume_refuses_other_options(short_run, tmp_path):
    before = content_of(tmp_path / "run")
    for words in [
        "--epochs 3",
        "--seed 1",
        "--lr 0.001",
        "--delay-lr 0.2",
        "--weight-decay 0",
        "--batch-size 9",
        "--hidden 8",
        "--layers 1",
        "--taps 7",
        "--tau 16",
        "--dropout 0.5",
        "--delays fixed",
        "--kernel-count 1",
        "--connections 2",
        "--valid-speakers 1",
        "--no-test",
        "--conv direct",
        "--dataset toy",
    ]:
        option = words.split()[0]
        with pytest.raises(ValueError, match="the saved run has") as refusal:
            options_of(tmp_path / "run", "--resume", *words.split())
        assert option in str(refusal.value)
    assert options_of(tmp_path / "run", "--resume", "--epochs", 2).epochs == 2
    assert content_of(tmp_path / "run") == before


def test_resume_refuses_options_that_were_changed_after_they_were_parsed(short_run, tmp_path):
    options = options_of(tmp_path / "run", "--resume")
    options.lr = 0.001
    with pytest.raises(ValueError, match="the saved run has --lr 0.005"):
        train.train(options)


def test_a_second_run_into_a_folder_is_refused_and_changes_nothing(short_run, tmp_path):
    options, _ = short_run
    before = content_of(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run .*--resume continues it"):
        train.train(options)
    words = "--dataset little --device cpu --epochs 1 --seed 7 --out"
    with pytest.raises(SystemExit, match="holds a run .*--resume continues it"):
        train.main([*words.split(), str(tmp_path / "run")])
    assert content_of(tmp_path / "run") == before


def test_resume_refuses_other_data(tmp_path):
    write_shd(tmp_path)
    train.train(options_of(tmp_path / "run", *SHORT.split(), "--data-dir", tmp_path))
    before = content_of(tmp_path / "run")
    (tmp_path / "other").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"shd_{split}.h5").rename(tmp_path / "other" / f"shd_{split}.h5")
    moved = ["--resume", "--data-dir", tmp_path / "other"]
    train.train(options_of(tmp_path / "run", *moved))  # the same files elsewhere
    with h5py.File(tmp_path / "other/shd_test.h5", "a") as file:
        file["labels"][0] = (file["labels"][0] + 1) % 20
    with pytest.raises(ValueError, match="shd_test.h5 is not the file that the run began with"):
        train.train(options_of(tmp_path / "run", *moved))
    assert content_of(tmp_path / "run")["last.pt"] == before["last.pt"]


def test_a_run_names_the_files_that_it_reads_alone(tmp_path):
    words = "--dataset ssc --data-dir DATA --valid-speakers c50f55b8"
    train.train(validated_options(tmp_path, words))
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert sorted(config["md5"]) == ["ssc_test.h5.zip", "ssc_train.h5.zip"]
    (tmp_path / "ssc_valid.h5.zip").write_bytes(b"not read")
    train.train(options_of(tmp_path / "run", "--resume"))
    del config["md5"]  # as in a run of an earlier version
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    train.train(options_of(tmp_path / "run", "--resume"))


def test_resume_refuses_other_numbers_of_samples(little, tmp_path, monkeypatch):
    train.train(options_of(tmp_path / "run", "--dataset", "little", "--epochs", 1))
    before = content_of(tmp_path / "run")
    row = data.DATASETS["little"]

    def read_fewer(split, data_dir):
        spikes = read_little(split, data_dir)
        return spikes.select(np.arange(len(spikes.labels)) < 40)

    monkeypatch.setitem(data.DATASETS, "little", row._replace(read=read_fewer))
    with pytest.raises(ValueError, match="samples {'train': 40, .*before {'train': 44, "):
        train.train(options_of(tmp_path / "run", "--resume"))
    assert content_of(tmp_path / "run") == before


def test_a_run_with_options_that_are_unknown_here_is_refused(little, tmp_path):
    train.train(options_of(tmp_path / "run", "--dataset", "little", "--epochs", 1))
    saved = torch.load(tmp_path / "run/last.pt", weights_only=True)
    saved["options"] |= {"rate_penalty": 5.0, "beta": 0.9}
    torch.save(saved, tmp_path / "run/last.pt")
    for words in (["--resume", "--out", tmp_path / "run"], ["--eval", tmp_path / "run"]):
        with pytest.raises(ValueError, match="options unknown here, beta, rate_penalty: use the"):
            train.parse([str(word) for word in words])


def test_resume_of_a_broken_config_says_which_file_it_is(little, tmp_path):
    train.train(options_of(tmp_path / "run", "--dataset", "little", "--epochs", 1))
    for broken in ('{"torch', "[]", "null"):
        (tmp_path / "run/config.json").write_text(broken)
        with pytest.raises(ValueError, match="config.json is broken: remove that file to go on"):
            train.train(options_of(tmp_path / "run", "--resume"))
    (tmp_path / "run/config.json").unlink()
    train.train(options_of(tmp_path / "run", "--resume"))


def test_a_checkpoint_that_may_not_be_read_is_not_called_unsound(short_run, tmp_path, monkeypatch):
    def forbidden(path, **named):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(torch, "load", forbidden)
    with pytest.raises(PermissionError, match="Permission denied: .*last.pt"):
        train.read_checkpoint(str(tmp_path / "run/last.pt"))


def test_a_claim_that_cannot_be_removed_does_not_hide_what_went_wrong(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "remove", forbidden)
    claim = data.claimed(str(tmp_path / "claim"), "tests")
    with pytest.raises(ValueError, match="what went wrong"), claim:
        raise ValueError("what went wrong")


def test_resume_says_what_the_bits_depend_on(little, tmp_path, capsys):
    train.train(options_of(tmp_path / "run", "--dataset", "little", "--epochs", 2))
    train.train(options_of(tmp_path / "run", "--resume"))
    assert "the run was made with" not in capsys.readouterr().out
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    assert "earlier" not in config
    path.write_text(json.dumps(config | {"threads": 7, "torch": "2.5.0"}))
    rule = "expect other roundings than in a run that was never stopped"
    for _ in range(2):  # what a run was on before is not forgotten
        train.train(options_of(tmp_path / "run", "--resume"))
        now = config["threads"]
        said = capsys.readouterr().out.splitlines()
        assert f"the run was made with torch 2.5.0 before, now {torch.__version__}: {rule}" in said
        assert f"the run was made with threads 7 before, now {now}: {rule}" in said
        earlier = [{"torch": "2.5.0", "threads": 7}]
        assert json.loads(path.read_text()) == config | {"earlier": earlier, "resume": True}

    path.write_text(json.dumps(config | {"earlier": earlier, "threads": 5}))
    train.train(options_of(tmp_path / "run", "--resume"))
    assert json.loads(path.read_text())["earlier"] == [*earlier, {"threads": 5}]


def test_a_run_older_than_an_option_has_its_default(tmp_path):
    words = ["--dataset", "toy", "--epochs", 1, "--batch-size", 500]
    train.train(options_of(tmp_path / "run", *words))
    saved = torch.load(tmp_path / "run/last.pt", weights_only=True)
    for name in ("shift", "mask_steps", "recipe", "hidden"):
        del saved["options"][name]
    torch.save(saved, tmp_path / "run/last.pt")
    with pytest.raises(ValueError, match="the saved run has --(recipe paper|shift 0|mask-)"):
        options_of(tmp_path / "run", "--resume", "--recipe", "augmented")
    options = options_of(tmp_path / "run", "--resume")
    assert (options.hidden, options.shift, options.recipe) == (15, 0, "paper")
    assert train.load_run(tmp_path / "run")[1].hidden == 15


def test_every_start_names_the_columns_and_says_how_long_the_rest_takes(little, tmp_path, capsys):
    def stop(net, row):
        raise Killed

    words = ["--dataset", "little", "--epochs", 3]
    with pytest.raises(Killed):
        train.train(options_of(tmp_path / "run", *words), on_epoch=stop)
    said = capsys.readouterr().out
    assert said.count("train_acc") == 1 and "the other 2 epochs will take about" in said
    train.train(options_of(tmp_path / "run", "--resume"))
    said = capsys.readouterr().out
    assert said.count("train_acc") == 1 and "the other 1 epochs will take about" in said


def test_eval_prints_the_headline(short_run, tmp_path, capsys):
    _, result = short_run
    capsys.readouterr()
    epoch = result["rule"].removeprefix("best on validation, epoch ")
    train.main(["--eval", str(tmp_path / "run/best.pt"), "--device", "cpu"])
    said = capsys.readouterr().out
    assert f"test accuracy {result['test_accuracy']:.2%}" in said
    assert said.endswith(f"run/best.pt, epoch {epoch} of 2)\n")
    # For a machine with less memory.
    train.main(["--eval", str(tmp_path / "run/best.pt"), "--device", "cpu", "--batch-size", "3"])
    assert f"test accuracy {result['test_accuracy']:.2%}" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["little", "validated"])
def test_load_run_gives_the_network_of_the_headline(dataset, little, tmp_path, monkeypatch):
    evaluate = train.evaluate

    def second_is_best(net, spikes, batch_size):
        """Validation, whose 27 samples tell it, is best after the second epoch."""
        if len(spikes.labels) == 27:
            return 1 / (1 + abs(net.norms[0].num_batches_tracked.item() / 6 - 2))
        return evaluate(net, spikes, batch_size)

    monkeypatch.setattr(train, "evaluate", second_is_best)
    words = f"--dataset {dataset} --epochs 16 --lr 0.1 --delay-lr 0.3".split()
    result = train.train(options_of(tmp_path / "run", *words))
    validated = dataset == "validated"
    assert result["rule"] == ("best on validation, epoch 2" if validated else "last epoch")

    net, options = train.load_run(tmp_path / "run")
    assert not net.training and options.dataset == dataset
    test = data.load(dataset, "test", "")
    assert train.evaluate(net, test, 13) == result["test_accuracy"]
    sigma = 0.27 + 3 * (0.23 / 3) ** (1 / 4) if validated else 0.5
    for layer in net.layers:
        assert layer.sigma == pytest.approx(sigma, rel=1e-12)
        layer.whole_steps = False
    assert train.evaluate(net, test, 13) == result["unrounded_accuracy"]
    assert result["unrounded_accuracy"] != result["test_accuracy"]
    for layer in net.layers:
        layer.sigma = 3.27
    assert train.evaluate(net, test, 13) != result["unrounded_accuracy"]

    last, _ = train.load_run(tmp_path / "run/last.pt")
    assert same_bits(state_of(last), state_of(net)) != validated


# ------------------------------------------------------------------------- a network of one's own


class Own(delays.DelaySNN):
    """Neurons of one's own: they have a threshold to learn, and hear their echo one axon late."""

    def __init__(self, **kwargs):
        super().__init__(LITTLE_INPUTS, [7, 7], LITTLE_CLASSES, taps=6, tau=3, **kwargs)
        self.threshold = torch.nn.Parameter(torch.full((7,), 0.8))
        self.mix = torch.nn.Linear(7, 7)
        self.echo = delays.DelayedLinear(7, 7, 6, delay_shape=(1, 7))

    def neurons(self, i, current):
        early = delays.spike(current - self.threshold)
        late = self.echo(early)[:, : current.shape[1]]
        return delays.lif(self.mix(early) + late - 0.1 * self.threshold, self.tau)


def test_every_parameter_of_a_network_is_trained(little, tmp_path):
    words = "--dataset little --lr 0.03 --delay-lr 0.4 --weight-decay 0.05"
    options = options_of(tmp_path / "run", *words.split())
    torch.manual_seed(0)
    net = Own().double()
    start = state_of(net)
    gradients = {name: [] for name, _ in net.named_parameters()}
    for name, parameter in net.named_parameters():
        parameter.register_hook(
            lambda gradient, name=name: gradients[name].append(gradient.clone())
        )
    sigmas = []
    result = train.train(
        options, net, lambda net, row: sigmas.append((net.echo.sigma, row["sigma"]))
    )

    assert all(own == logged for own, logged in sigmas) and len(set(sigmas)) == 3
    assert all(layer.whole_steps for layer in (*net.layers, net.echo))
    layers = ["layers.0", "layers.1", "layers.2", "echo"]
    for name, parameter in net.named_parameters():
        # The same Adam again, from the gradients that the run had.
        assert len(gradients[name]) == 9 * 6, name
        want = start[name].clone().requires_grad_()
        is_delay = name in [f"{layer}.delay" for layer in layers]
        is_weight = name in [f"{layer}.weight" for layer in layers]
        adam = torch.optim.Adam([want], lr=0.4, weight_decay=0.05 if is_weight else 0)
        if is_delay:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 9)
        else:
            schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 0.03, total_steps=9)
        for step, gradient in enumerate(gradients[name], 1):
            want.grad = gradient
            adam.step()
            if is_delay:
                want.data.clamp_(0, 5)
            if step % 6 == 0 and step < 54:
                schedule.step()
        assert not torch.equal(parameter, start[name]), name
        torch.testing.assert_close(parameter, want, rtol=1e-9, atol=1e-9, msg=name)

    weights = 5 * 7 + 7 * 7 + 7 * 3 + 7 * 7
    stored_delays = 5 * 7 + 7 * 7 + 7 * 3 + 7  # the echo's are one an axon
    assert result["parameters"] == weights + stored_delays + 2 * (7 + 7) + 7 + (7 * 7 + 7)
    way = 0
    for layer in layers:
        way += (net.state_dict()[f"{layer}.delay"] - start[f"{layer}.delay"]).abs().sum().item()
    moved_ms = float(log_of(tmp_path / "run")[-1]["moved_ms"])
    assert moved_ms == pytest.approx(4.0 * way / stored_delays, rel=1e-9, abs=0)

    loaded, _ = train.load_run(tmp_path / "run", Own().double())
    assert same_bits(state_of(loaded), state_of(net))
    for layer in (*loaded.layers, loaded.echo):
        layer.whole_steps = False
    test = data.load("little", "test", "")
    assert train.evaluate(loaded, test, 8) == result["unrounded_accuracy"]
    loaded.echo.whole_steps = True
    assert train.evaluate(loaded, test, 8) != result["unrounded_accuracy"]
    with pytest.raises(ValueError, match="is of class Own, and not DelaySNN"):
        train.load_run(tmp_path / "run")


class Doubled(delays.DelaySNN):
    """Other neurons, but the parameters of the paper's network."""

    def neurons(self, i, current):
        return delays.lif(2 * current, self.tau)


def test_a_run_with_other_neurons_is_not_taken_for_the_papers(little, tmp_path):
    options = options_of(tmp_path / "run", "--dataset", "little", "--epochs", 2)
    net = Doubled(LITTLE_INPUTS, [7, 7], LITTLE_CLASSES, taps=6, tau=3)
    result = train.train(options, net)
    with pytest.raises(ValueError, match="Doubled"):
        train.load_run(tmp_path / "run")
    with pytest.raises(ValueError, match="Doubled"):
        train.train(options_of(tmp_path / "run", "--resume"))
    with pytest.raises(SystemExit, match="Doubled"):
        train.main(["--eval", str(tmp_path / "run/last.pt"), "--device", "cpu"])
    blank = Doubled(LITTLE_INPUTS, [7, 7], LITTLE_CLASSES, taps=6, tau=3)
    loaded, _ = train.load_run(tmp_path / "run", blank)
    test = data.load("little", "test", "")
    assert train.evaluate(loaded, test, 8) == result["test_accuracy"]


def test_what_is_not_trained_is_not_counted():
    net = delays.DelaySNN(5, [7], 3, taps=6, connections=2)
    assert train.count_parameters(net) == 2 * (2 * 7 + 2 * 3) + 2 * 7
    net.constant = torch.nn.Parameter(torch.zeros(9), requires_grad=False)
    net.layers[0].weight.requires_grad_(False)
    assert train.count_parameters(net) == 2 * 7 + 2 * (2 * 3) + 2 * 7


@pytest.mark.parametrize("count, connections", [(1, 0), (1, 2), (2, 2)])
def test_movement_and_parameters_are_of_the_synapses_there_are(
    count, connections, little, tmp_path
):
    sizes = f"--kernel-count {count} --connections {connections}"
    words = f"--dataset little --epochs 2 --delay-lr 0.5 {sizes}".split()
    options = options_of(tmp_path / "run", *words)
    net = train.build(options)
    start = state_of(net)
    result = train.train(options, net)
    synapses = count * ((connections or 5) * 7 + (connections or 7) * (7 + 3))
    assert result["parameters"] == 2 * synapses + 2 * (7 + 7)
    way = 0
    for i in (0, 1, 2):
        moved = (net.layers[i].delay - start[f"layers.{i}.delay"]).abs()
        way += moved.sum().item()  # those that a sparse layer lacks do not move
    moved_ms = float(log_of(tmp_path / "run")[-1]["moved_ms"])
    assert moved_ms == pytest.approx(4.0 * way / synapses, rel=1e-5, abs=0)


# ------------------------------------------------------------------------------ seeds and settings


def batches_and_state(out, seed, monkeypatch):
    """The batches of a run of three epochs, and its network at the end."""
    options = options_of(out, "--dataset", "little", "--epochs", 3, "--seed", seed)
    with monkeypatch.context() as patch:
        epochs = record_batches(patch)
        net = train.build(options)
        torch.rand(seed + len(out.name))  # what others draw does not matter
        train.train(options, net)
    return epochs, state_of(net)


def test_the_seed_decides_everything(little, tmp_path, monkeypatch):
    epochs, state = batches_and_state(tmp_path / "a", 3, monkeypatch)
    same_epochs, same_state = batches_and_state(tmp_path / "again", 3, monkeypatch)
    other_epochs, _ = batches_and_state(tmp_path / "other", 4, monkeypatch)
    assert same_bits(state, same_state)
    assert epochs == same_epochs
    assert not any(batches in other_epochs for batches in epochs)
    first, second, third = epochs
    assert first != second != third != first
    assert all(sum(batches, []) != list(range(44)) for batches in epochs)

    options = [options_of(tmp_path / name, "--seed", seed) for name, seed in (("b", 3), ("c", 4))]
    same, again, other = (train.build(options[n]).state_dict() for n in (0, 0, 1))
    assert same_bits(same, again)
    for name in ("layers.0.weight", "layers.1.weight", "layers.0.delay"):
        assert not torch.equal(same[name], other[name])


def test_on_epoch_is_given_the_network_and_the_row_of_each_epoch(little, tmp_path):
    options = options_of(tmp_path / "run", "--dataset", "little", "--epochs", 3)
    net = train.build(options)
    seen = []
    train.train(options, net, lambda *given: seen.append((*given, log_of(tmp_path / "run"))))
    for n, (own, row, log) in enumerate(seen, 1):
        assert own is net
        assert len(log) == row["epoch"] == n  # files are written before
        for key, value in row.items():
            assert log[-1][key] == ("" if value is None else str(value))
    assert len(seen) == 3


def test_config_says_what_was_run_on_what(tmp_path):
    write_shd(tmp_path)
    words = [*SHORT.split(), "--data-dir", tmp_path, "--valid-speakers", 2, "--epochs", 1]
    options = options_of(tmp_path / "run", *words)
    train.train(options)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert vars(options).items() <= config.items()
    assert config["samples"] == {"train": 16, "valid": 8, "test": 9}
    names = ("shd_train.h5", "shd_test.h5")
    assert config["md5"] == {name: data.md5(tmp_path / name) for name in names}
    assert config["torch"] == torch.__version__
    assert config["threads"] == torch.get_num_threads()
    assert config["parameters"] == 2 * (140 * 6 + 6 * 20) + 12


def test_training_sets_the_backend_itself(tmp_path):
    code = """
import sys, torch, train
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
tiny = torch.full((10**6,), -95.0)
print("before", tiny.exp().max().item() > 0)
{call}
print("tf32", torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
print("denormal", tiny.exp().max().item())
"""
    out = tmp_path / "run"
    small = f"--dataset toy --epochs 1 --hidden 2 --taps 2 --batch-size 1000 --out {out}"
    done = program(code=code.format(call=f"train.train(train.parse({small.split()}))"))
    want = ["before True", "tf32 False False", "denormal 0.0"]
    printed = done.stdout.splitlines()
    assert [printed[0], *printed[-2:]] == want, done.stderr
    evaluated = program(code=code.format(call=f"train.main(['--eval', '{out}/last.pt'])"))
    printed = evaluated.stdout.splitlines()
    assert [printed[0], *printed[-2:]] == want, evaluated.stderr


def test_with_short_membranes_learned_beats_fixed_beats_none_on_the_toy_task(tmp_path):
    accuracy = {}
    for variant in ("learned", "fixed", "none"):
        words = f"--dataset toy --delays {variant} --epochs 7".split()
        accuracy[variant] = train.train(options_of(tmp_path / variant, *words))["test_accuracy"]
    assert accuracy["none"] < 0.15, accuracy
    assert 0.2 < accuracy["fixed"] < accuracy["learned"] - 0.1, accuracy


# --------------------------------------------------------- more that a small slip could change


@pytest.mark.parametrize("half, step", [(0.5, 0), (1.5, 2), (2.5, 2)])
def test_fixed_delays_are_rounded_as_kernels_round(half, step, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.fill_(half))
    layer = DelayedLinear(3, 2, 9, learn_delays=False)
    assert (layer.delay == step).all()


def test_a_resumed_run_measures_from_the_first_delays_of_a_network_of_ones_own(little, tmp_path):
    """The network handed over to go on may have started elsewhere."""

    def stop(net, row):
        if row["epoch"] == 2:
            raise Killed

    def network(seed):
        torch.manual_seed(seed)
        return Own().double()

    words = ["--dataset", "little", "--epochs", 4]
    train.train(options_of(tmp_path / "whole", *words), network(0))
    with pytest.raises(Killed):
        train.train(options_of(tmp_path / "cut", *words), network(0), stop)
    train.train(options_of(tmp_path / "cut", "--resume"), network(1))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("shape", [(1, 6), (4, 1)])
def test_a_sparse_layer_may_share_delays(shape):
    torch.manual_seed(0)
    layer = DelayedLinear(6, 4, 9, connections=2, delay_shape=shape)
    assert train.count_parameters(layer) == 4 * 2 + max(shape)
    first = layer.delay.detach().clone()
    layer.delay.data[0, 0] += 3.0
    moved = train.moved_ms(layer, [first], parsed("--dataset", "toy"))
    assert moved == pytest.approx(10 * 3.0 / max(shape), rel=1e-5, abs=0)


@pytest.mark.parametrize("method", ["auto", "direct", "fourier"])
def test_the_network_of_the_options_computes_with_their_method(method):
    net = train.build(parsed("--dataset", "toy", "--conv", method))
    assert [layer.conv for layer in net.layers] == [method] * 2


def test_a_network_of_another_class_with_the_same_weights_is_refused(little, tmp_path):
    class Same(DelaySNN):
        pass

    options = options_of(tmp_path / "run", "--dataset", "little", "--epochs", 1)
    train.train(options, train.build(options, Same))
    with pytest.raises(
        ValueError, match="is of class Same, and not DelaySNN: .*, or hand over such a"
    ):
        train.load_run(tmp_path / "run")
    net, _ = train.load_run(tmp_path / "run", train.build(options, Same))
    assert type(net) is Same


@pytest.mark.parametrize("training", [True, False])
def test_rates_are_of_the_last_forward_pass(training):
    net = DelaySNN(3, [4, 5], 2, taps=3, dropout=0.0).train(training)
    seen = []
    neurons = net.neurons
    net.neurons = lambda i, current: seen.append(neurons(i, current)) or seen[-1]
    for _ in range(2):
        seen.clear()
        net(torch.ones(2, 6, 3))
        assert [rate.item() for rate in net.rates] == [spikes.mean().item() for spikes in seen]


def test_rates_have_gradients_for_a_penalty():
    torch.manual_seed(0)
    net = DelaySNN(3, [4, 5], 2, taps=3, dropout=0.5)
    seen = []
    neurons = net.neurons
    net.neurons = lambda i, current: seen.append(neurons(i, current)) or seen[-1]
    net(3 * torch.ones(2, 6, 3))
    weights = [layer.weight for layer in net.layers[:2]]
    got = torch.autograd.grad(2 * net.rates[0] + 3 * net.rates[1], weights, retain_graph=True)
    total = 2 * seen[0].sum() / (2 * 7 * 4) + 3 * seen[1].sum() / (2 * 8 * 5)
    want = torch.autograd.grad(total, weights)
    for one, other in zip(got, want, strict=True):
        assert other.abs().max() > 1e-3
        close(one, other, rtol=1e-5, atol=1e-7)


def test_a_layer_with_training_kernels_keeps_them(little):
    net = train.build(parsed("--dataset", "little"))
    test = data.load("little", "test", "")
    net.layers[0].whole_steps = False
    assert train.evaluate_unrounded(net, test, 8) is not None
    assert [layer.whole_steps for layer in net.layers] == [False, True, True]
    for layer in net.layers:
        layer.whole_steps = False
    assert train.evaluate_unrounded(net, test, 8) is None  # it would be the same number
    assert not any(layer.whole_steps for layer in net.layers)


def test_a_network_may_name_the_class_of_its_layers():
    """One delay an axon, in all layers and with all other options of a layer."""

    class Axonal(DelayedLinear):
        def __init__(self, in_features, *others, **named):
            super().__init__(in_features, *others, delay_shape=(1, in_features), **named)

    class Network(DelaySNN):
        layer_class = Axonal

    net = Network(6, [5], 3, taps=4, connections=2)
    assert [tuple(layer.delay.shape) for layer in net.layers] == [(1, 6), (1, 5)]
    assert all(layer.mask.sum(1).eq(2).all() for layer in net.layers)
    assert [type(layer) for layer in DelaySNN(6, [5], 3).layers] == [DelayedLinear] * 2


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(classes=2), "train has 5 inputs and 3 classes: expected 5 inputs and 2 classes"),
        (dict(inputs=4), "train has 5 inputs and 3 classes: expected 4 inputs and 3 classes"),
        (dict(splits=("train",)), "no test and no validation set: hold out some"),
        (dict(splits=("train", "val", "test")), "little has the splits .*: expected train, and"),
        (dict(splits=("valid", "test")), "little has the splits .*: expected train, and with it"),
    ],
)
def test_a_data_set_that_is_not_as_its_row_says_is_refused(
    change, sentence, little, tmp_path, monkeypatch
):
    row = data.DATASETS["little"]._replace(**change)
    monkeypatch.setitem(data.DATASETS, "little", row)
    with pytest.raises(ValueError, match=sentence):
        train.train(options_of(tmp_path / "run", "--dataset", "little"))


def test_a_saved_run_of_an_unknown_data_set_gets_a_sentence(little, tmp_path, monkeypatch):
    train.train(options_of(tmp_path / "run", "--dataset", "little", "--epochs", 1))
    monkeypatch.delitem(data.DATASETS, "little")
    for words in (["--resume", "--out", tmp_path / "run"], ["--eval", tmp_path / "run/last.pt"]):
        with pytest.raises(ValueError, match="of the data set little: use it from the script that"):
            train.parse([str(word) for word in words])


# ------------------------------------------------------------------------ a card that is not there

CARD = torch.device("meta")
CONVOLUTION = "aten.convolution.default"


class Card(TorchDispatchMode):
    """A card that is not there: tensors of torch's meta device have a shape and no numbers.

    An operation on tensors of two devices raises, as on a card.  What makes a card wait is listed,
    by the function of the project that does it: in .reads each look at a number, be it by item,
    tolist, cpu or `if`, and in .uploads each tensor that goes to the card.  (numpy and a choice of
    elements by a mask need no list: meta tensors refuse them.)  A read of what was uploaded, as it
    is, gives the numbers that it had; any other gives zeros.

    .operations: how often each of torch's operations has run.
    """

    def __init__(self):
        super().__init__()
        self.reads = []
        self.uploads = []
        self.operations = Counter()
        self.uploaded = []  # pairs of the tensor on the card and that on the CPU

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.operations[str(operation)] += 1
        if operation is torch.ops.aten._local_scalar_dense.default and on_card(args[0]):
            self.reads.append(place())
            return 0
        if operation is torch.ops.aten._to_copy.default:
            return self.copy(*args, **kwargs)

        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        if any(map(on_card, tensors)) and not all(map(on_card, tensors)):
            if operation is not torch.ops.aten.copy_.default or not on_card(args[0]):
                raise AssertionError(f"{place()}: {operation} mixes devices")
            self.uploads.append(place())
        return operation(*args, **kwargs)

    def copy(self, source, **kwargs):
        """What .to and .cpu do."""
        target = kwargs.get("device") or source.device
        if on_card(source) and target != CARD:
            self.reads.append(place())
            numbers = torch.zeros(source.shape, dtype=source.dtype)
            for there, here in self.uploaded:
                if there is source:
                    numbers = here
            return torch.ops.aten._to_copy(numbers, **kwargs)
        result = torch.ops.aten._to_copy(source, **kwargs)
        if on_card(result) and not on_card(source):
            self.uploads.append(place())
            self.uploaded.append((result, source))
        return result


def on_card(tensor):
    return tensor.device == CARD


def place():
    """The function of the project that is at work."""
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals["__name__"]
        if module in ("delays", "data", "train"):
            function = frame.f_code.co_qualname.split(".<locals>")[0]
            return f"{module}.{function}"
        frame = frame.f_back
    return "elsewhere"


@pytest.fixture
def card(monkeypatch):
    """A Card, which torch and the program take for one of CUDA."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(on_card))
    # The fused Adam can compute on meta, but refuses to: this is its check of the device.
    adam = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda parameter: None)
    with Card() as card:
        yield card


def samples_of(dataset):
    """Three samples with the sizes of a data set, on the card."""
    row = data.DATASETS[dataset]
    rng = np.random.default_rng(0)
    counts = [rng.poisson(0.1, (steps, row.inputs)).astype(np.uint8) for steps in (12, 7, 15)]
    return data.join(counts, np.arange(3)).to(CARD)


ON_CARD = {
    "learned": "--dataset shd",
    "fixed": "--dataset shd --delays fixed",
    "none": "--dataset shd --delays none",
    "constant-sigma": "--dataset shd --delays constant-sigma --batches similar",
    "sparse-two-kernels": "--dataset shd --connections 30 --kernel-count 2",
    "sparse-fixed": "--dataset shd --connections 30 --kernel-count 2 --delays fixed",
    "fourier": "--dataset shd --conv fourier",
    "toy": "--dataset toy",
    "ssc": "--dataset ssc --kernel-count 2",
}
on_any_card = pytest.mark.parametrize("words", ON_CARD.values(), ids=ON_CARD)


@on_any_card
def test_an_epoch_on_a_card_mixes_no_devices_and_reads_lengths_and_sums_alone(words, card):
    options = parsed(*words.split(), "--batch-size", 2)
    spikes = samples_of(options.dataset)
    net = train.build(options).to(CARD)
    optimizer = train.make_optimizer(net, options)
    train.set_schedules(optimizer, net, 0, options)
    card.reads.clear()
    card.uploads.clear()

    means = train.train_epoch(net, optimizer, spikes, options)
    assert means == [0.0] * (2 + options.layers)  # what this card reads
    assert card.reads == ["data.batches", "train.train_epoch"]  # once an epoch
    assert card.uploads == ["data.batches"] * 2  # the indices of a batch
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter].values()  # its step and its two moments
        assert [on_card(tensor) for tensor in (parameter.grad, *state)] == [True] * 4, name


@on_any_card
def test_evaluation_on_a_card_mixes_no_devices_and_reads_lengths_and_hits_alone(words, card):
    options = parsed(*words.split(), "--batch-size", 2)
    spikes = samples_of(options.dataset)
    net = train.build(options).to(CARD)
    evaluations = [train.evaluate]
    if net.layers[0].learn_delays:
        evaluations.append(train.evaluate_unrounded)
    for evaluate in evaluations:
        card.reads.clear()
        card.uploads.clear()
        assert evaluate(net, spikes, options.batch_size) == 0.0
        assert card.reads == ["data.batches", "train.evaluate"]
        assert card.uploads == ["data.batches"] * 2


@pytest.mark.parametrize("method, expected", [("auto", 3), ("direct", 3), ("fourier", 0)])
def test_auto_is_direct_on_a_card(method, expected, card):
    options = parsed("--dataset", "shd", "--conv", method)
    net = train.build(options).to(CARD)
    train.predict(net, samples_of("shd"), torch.arange(2, device=CARD), 15)
    assert card.operations[CONVOLUTION] == expected


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_a_run_begun_on_a_cpu_goes_on_on_a_card(little, tmp_path, card, monkeypatch, capsys):
    def stop(net, row):
        raise Killed

    words = ["--dataset", "little", "--epochs", 3, "--valid-speakers", 1]
    with pytest.raises(Killed):
        train.train(options_of(tmp_path / "run", *words), on_epoch=stop)
    assert not card.operations[CONVOLUTION]
    options = options_of(tmp_path / "run", "--resume")
    options.device = "meta"
    train.train(options)
    assert card.operations[CONVOLUTION]
    epochs = {"train.train_epoch": 2, "train.evaluate": 2, "data.batches": 4, "train.moved_ms": 2}
    epochs["train.check_finite"] = 2
    end = {"train.evaluate": 2, "data.batches": 2}  # on test, as rounded and as unrounded
    assert Counter(card.reads) == Counter(epochs) + Counter(end)

    card.reads.clear()
    options.eval = str(tmp_path / "run/best.pt")
    monkeypatch.setattr(train, "parse", lambda argv: options)
    train.main()
    assert card.reads == ["data.batches", "train.evaluate"]
    assert "test accuracy 0.00%" in capsys.readouterr().out


def test_the_card_that_is_not_there_notices_what_a_card_would(card):
    here, there = torch.ones(3), torch.ones(3, device=CARD)
    assert there.is_cuda
    assert not here.is_cuda
    for mix in (
        lambda: here + there,
        lambda: there[torch.tensor([0])],
        lambda: torch.stack([here, there]),
        lambda: torch.add(there, there, out=here),
        lambda: here.copy_(there),
    ):
        with pytest.raises(AssertionError, match="elsewhere: aten.* mixes devices"):
            mix()
    for refused in (lambda: there.numpy(), lambda: there[there > 0]):
        with pytest.raises((TypeError, NotImplementedError)):
            refused()
    assert card.reads == card.uploads == []

    for n, read in enumerate(
        (
            lambda: there[0].item(),
            lambda: float(there[0]),
            lambda: bool(there[0] > 0),
            lambda: there.tolist(),
            lambda: there.cpu(),
            lambda: there.to("cpu", torch.float64),
        )
    ):
        assert len(card.reads) == n
        read()
    there.copy_(here)
    assert here.to(CARD).tolist() == [1, 1, 1]
    assert card.reads == ["elsewhere"] * 7
    assert card.uploads == ["elsewhere"] * 2


# ------------------------------------------------------------------- files that are not of this run


@pytest.mark.parametrize("name", ["best.pt", "log.csv", "result.json"])
def test_files_of_another_run_are_neither_overwritten_nor_removed(name, little, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("precious")
    (tmp_path / "run/notes.part").write_text("precious")
    with pytest.raises(ValueError, match=f"{name} is there without a last.pt: .* another --out"):
        train.train(options_of(tmp_path / "run", "--dataset", "little"))
    assert sorted(os.listdir(tmp_path / "run")) == sorted([name, "notes.part"])
    assert (tmp_path / "run" / name).read_text() == "precious"


def test_a_best_epoch_that_was_not_written_is_made_good_on_resume(little, tmp_path):
    words = ["--dataset", "little", "--valid-speakers", "1", "--epochs", 3]
    options = options_of(tmp_path / "run", *words)

    def stop(net, row):
        raise Killed

    with pytest.raises(Killed):
        train.train(options, on_epoch=stop)
    (tmp_path / "run/best.pt").unlink()  # the first epoch is the best one so far
    train.train(options_of(tmp_path / "run", "--resume"))
    assert (tmp_path / "run/best.pt").exists()


def test_the_lack_of_the_best_epoch_is_said_before_it_matters(little, tmp_path, monkeypatch):
    evaluate = train.evaluate

    def first_is_best(net, spikes, batch_size):
        return evaluate(net, spikes, batch_size) / net.norms[0].num_batches_tracked.item() ** 3

    def stop(net, row):
        epochs.append(row["epoch"])
        if row["epoch"] == 2:
            raise Killed

    epochs = []
    monkeypatch.setattr(train, "evaluate", first_is_best)
    words = ["--dataset", "little", "--valid-speakers", "1", "--epochs", 3]
    with pytest.raises(Killed):
        train.train(options_of(tmp_path / "run", *words), on_epoch=stop)
    assert train.best_epoch(train.read_checkpoint(str(tmp_path / "run/last.pt"))["rows"]) == 1
    best = (tmp_path / "run/best.pt").read_bytes()

    (tmp_path / "run/best.pt").unlink()
    with pytest.raises(ValueError, match="best.pt' is not there: .* put it back"):
        train.train(options_of(tmp_path / "run", "--resume"), on_epoch=stop)
    with pytest.raises(ValueError, match="best.pt', which validation chose, is not there: put it"):
        train.load_run(tmp_path / "run")
    train.load_run(tmp_path / "run/last.pt")
    (tmp_path / "run/best.pt").write_bytes(best[:-9])
    with pytest.raises(ValueError, match="best.pt' is no sound checkpoint of train.py: put a"):
        train.train(options_of(tmp_path / "run", "--resume"), on_epoch=stop)
    assert epochs == [1, 2]  # neither trained on
    (tmp_path / "run/best.pt").write_bytes(best)
    train.train(options_of(tmp_path / "run", "--resume"))


def test_a_claim_that_cannot_be_written_is_not_left_behind(tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"), data.claimed(tmp_path / "claim", "works"):
        pytest.fail("the claim was taken")
    assert not (tmp_path / "claim").exists()


def test_a_claim_that_was_deleted_meanwhile_does_not_end_the_task(tmp_path):
    with data.claimed(tmp_path / "claim", "works"):
        (tmp_path / "claim").unlink()


def test_a_claim_with_an_impossible_number_is_respected(tmp_path):
    (tmp_path / "claim").write_text(f"{socket.gethostname()} 99999999999999999999")
    with pytest.raises(OSError, match="another process works"):
        data.claimed(tmp_path / "claim", "works").__enter__()
