"""Every claim against an independent, slow oracle: `python -m pytest -q`, offline, one thread."""

import csv
import gzip
import hashlib
import http.server
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile

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
    lif_loop,
    shrinking_sigma,
    spike,
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
    kernel = integer_kernel(weight.requires_grad_(), delay.requires_grad_(), 7)
    assert torch.autograd.grad(kernel.sum(), delay, allow_unused=True) == (None,)


def test_half_steps_are_rounded_to_the_even_step():
    delay = torch.tensor([[0.5, 1.5, 2.5, 3.5, 3.4999, 3.5001]])
    kernel = integer_kernel(torch.ones(1, 6), delay, 6)
    assert kernel[0].argmax(1).tolist() == [0, 2, 2, 4, 3, 4]
    assert kernel.sum() == 6


def test_a_delay_out_of_range_passes_in_training_and_is_refused_in_evaluation():
    weight = torch.ones(1, 2)
    for outside in (-0.6, 4.6):
        delay = torch.tensor([[2.0, outside]])
        assert gaussian_kernel(weight, delay, 0.5, 5).sum() == pytest.approx(2, rel=1e-5)
        with pytest.raises(RuntimeError, match="out of bounds"):
            integer_kernel(weight, delay, 5)
    for kernel in (
        lambda d: gaussian_kernel(weight, d, 0.5, 5),
        lambda d: integer_kernel(weight, d, 5),
    ):
        with pytest.raises(RuntimeError, match="expanded size"):
            kernel(torch.ones(2, 1, 2))


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


@pytest.mark.parametrize("tau, threshold", [(1.0, 1.0), (1.005, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize("alpha", [5.0, 2.0])
@pytest.mark.parametrize("lif", [lif, lif_loop])
def test_lif_is_the_scalar_loop_and_so_is_its_gradient(lif, tau, threshold, alpha):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spike_is_a_step_with_the_slope_of_the_arctan(dtype):
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e6, -1e6], dtype=dtype)
    x = torch.cat([special, random(1000, dtype=dtype), 1e-6 * random(1000, dtype=dtype)])
    for alpha in (5.0, 2.0):
        x = x.detach().requires_grad_()
        s = spike(x, alpha)
        assert torch.equal(s, torch.where(x >= 0, 1.0, 0.0).to(dtype))
        assert s[:6].tolist() == [1, 1, 1, 0, 1, 0]
        s.sum().backward()
        rtol = 1e-12 if dtype == torch.float64 else 1e-5
        close(x.grad, [slope(value, alpha) for value in x.tolist()], rtol=rtol, atol=0)
    y = np.linspace(-2, 2, 41)  # and that is the slope of the smooth step
    above, below = (np.arctan(np.pi / 2 * 5 * (y + e)) / np.pi for e in (1e-6, -1e-6))
    close([slope(value) for value in y], (above - below) / 2e-6, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tau", [0.9, math.nan])
@pytest.mark.parametrize("neurons", [lif, lif_loop, leaky_integrator])
def test_a_time_constant_of_less_than_a_step_is_refused(neurons, tau):
    with pytest.raises(ValueError, match="tau is .*: expected a number of steps, at least 1"):
        neurons(torch.ones(5, 2, 3), tau)


@pytest.mark.parametrize("tau", [3.0, 1.005, 1.0])
def test_leaky_integrator_is_the_recursion(tau):
    current = random(2, 9, 3).requires_grad_()
    v = torch.zeros(2, 3).double()
    steps = []
    for t in range(9):
        v = (1 - 1 / tau) * v + current[:, t]
        steps.append(v)
    want = torch.stack(steps, 1)
    got = leaky_integrator(current, tau)
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


def small(kind=DelaySNN, **options):
    """A network of 6 inputs, 8 and 7 hidden neurons and 4 classes, whose norms have seen data."""
    torch.manual_seed(0)
    net = kind(6, (8, 7), 4, **{"taps": 5, **options}).double()
    for layer in net.layers:
        layer.sigma = 0.5
    for seed in range(20):  # without statistics of the currents the neurons would be silent
        net(some_counts(seed=seed))
    return net


@pytest.mark.parametrize(
    "words, weights, parameters",
    [
        ("--dataset shd", 106_496, 214_016),
        ("--dataset shd --delays fixed", 106_496, 107_520),
        ("--dataset ssc --kernel-count 2", 2 * 613_888, 2_458_624),
        ("--dataset toy --hidden 16", 8 * 16 + 16 * 10, 2 * (8 * 16 + 16 * 10) + 32),
        ("--dataset shd --connections 10 --kernel-count 2", 212_992, 2 * 2 * 10 * 532 + 1024),
    ],
)
def test_networks_of_the_options_have_the_published_number_of_parameters(
    words, weights, parameters
):
    options = parsed(*words.split())
    net = train.build(options)
    assert sum(layer.weight.numel() for layer in net.layers) == weights
    assert train.count_parameters(net) == parameters
    assert net.tau == net.tau_readout == pytest.approx(options.tau / 10, rel=1e-12)
    assert net.dropout == options.dropout
    for layer in net.layers:
        fan_in = options.connections or layer.weight.shape[-1]
        bound = math.sqrt(6 / (fan_in * options.kernel_count))  # Kaiming's, uniform, for relu
        assert 0.9 * bound < layer.weight.max() <= bound
        assert -0.9 * bound > layer.weight.min() >= -bound
        assert 0 <= layer.delay.min() < 1
        assert options.taps - 2 < layer.delay.max() <= options.taps - 1


def test_a_layer_trains_with_soft_kernels_and_evaluates_with_one_tap_and_changes_no_bit():
    torch.manual_seed(0)
    layer = DelayedLinear(30, 40, 5)
    fixed = DelayedLinear(30, 40, 5, learn_delays=False)
    assert [name for name, _ in fixed.named_parameters()] == ["weight"]
    assert np.unique(fixed.delay).tolist() == [0, 1, 2, 3, 4]
    assert layer.sigma is fixed.sigma is None
    with pytest.raises(ValueError, match="sigma is None: .* shrinking_sigma"):
        layer.kernel()
    before = state_of(layer)
    for training in (True, False):
        layer.train(training)
        fixed.train(training)
        assert torch.equal(fixed.kernel(), integer_kernel(fixed.weight, fixed.delay, 5))
        if not training:
            assert torch.equal(layer.kernel(), integer_kernel(layer.weight, layer.delay, 5))
    layer.sigma = 1.5
    layer.train()
    assert torch.equal(layer.kernel(), gaussian_kernel(layer.weight, layer.delay, 1.5, 5))
    assert same_bits(state_of(layer), before)


class Soft(DelayedLinear):
    """Remembers the weights that its kernels were made of."""

    def soft_kernel(self, weight):
        self.given = weight
        return weight.reshape(-1, *self.mask.shape).sum(0)[:, :, None].expand(-1, -1, self.taps)


@pytest.mark.parametrize("count", [1, 2])
def test_a_soft_kernel_of_ones_own_gets_masked_weights_and_leaves_fixed_delays_alone(count):
    torch.manual_seed(0)
    layer = Soft(6, 5, 4, count=count, connections=2)
    weight = layer.weight.detach() + 1  # no zeros where synapses are missing
    layer.weight.data = weight
    layer.kernel().sum().backward()
    assert torch.equal(layer.given, weight * layer.mask)
    assert not layer.weight.grad[..., ~layer.mask].any() and layer.weight.grad.any()
    layer.kernel(weight)
    assert layer.given is weight
    for one_tap in (layer.eval(), Soft(6, 5, 4, count=count, connections=2, learn_delays=False)):
        masked = one_tap.weight * one_tap.mask
        assert torch.equal(one_tap.kernel(), integer_kernel(masked, one_tap.delay, 4))
        assert torch.equal(one_tap.kernel(weight), integer_kernel(weight, one_tap.delay, 4))


@pytest.mark.parametrize("count, copies", [(1, ()), (2, (2,))])
def test_delays_are_one_per_synapse_axon_or_dendrite_of_each_copy(count, copies):
    for delay_per, shape in (("synapse", (5, 6)), ("axon", (1, 6)), ("dendrite", (5, 1))):
        layer = DelayedLinear(6, 5, 4, count=count, delay_per=delay_per)
        assert layer.delay.shape == (*copies, *shape)
        assert len(layer.delay.unique()) == layer.delay.numel()
        layer = DelaySNN(6, [5], 3, taps=4, count=count, delay_per=delay_per).layers[0]
        assert layer.delay.shape == (*copies, *shape)
    with pytest.raises(ValueError, match="delay_per is 'neuron': expected synapse, axon or dendr"):
        DelayedLinear(6, 5, 4, delay_per="neuron")


def test_a_layer_computes_with_the_method_it_is_told():
    layer, x = DelayedLinear(60, 50, 9).eval(), torch.rand(2, 30, 60)
    for method in ("direct", "fourier"):
        layer.conv = method
        assert torch.equal(layer(x), delay_conv(x, layer.kernel(), 4, method))


def test_sparse_neurons_have_as_many_inputs_each_drawn_for_itself():
    layer = DelayedLinear(6, 5, 3, count=2, connections=2)
    assert (layer.mask.sum(1) == 2).all() and len(layer.mask.unique(dim=0)) > 1
    assert not layer.weight[:, ~layer.mask].any() and (layer.weight[:, layer.mask] != 0).all()
    assert DelayedLinear(6, 5, 3, connections=9).mask.all()


def test_a_score_does_not_depend_on_padding_or_batch_mates():
    spikes = from_lengths([12, 7, 3, 9])
    net = small(dropout=0.0)
    for norm in net.norms:
        norm.bias.data[::2] += 1  # these neurons spike in silence
    scores = train.predict(net, spikes)
    for b in range(4):
        alone = spikes.select(np.arange(4) == b)
        close(train.predict(net, alone), scores[b : b + 1], rtol=0, atol=1e-11)
        with torch.no_grad():
            longer = torch.nn.functional.pad(alone.counts[None], (0, 0, 0, 40))
            want = class_scores(net.eval()(longer), alone.steps + net.tail)
        close(scores[b : b + 1], want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_predict_keeps_the_order_of_the_samples_and_the_mode_of_the_network(mode, rounded):
    spikes = from_lengths([12, 7, 3, 9])
    net = small().train(mode)
    scores = train.predict(net, spikes, 3, rounded)
    assert all(module.training == mode for module in net.modules())
    assert not scores.requires_grad
    for b in (2, 0, 3, 1):
        alone = train.predict(net, spikes.select(np.arange(4) == b), rounded=rounded)
        close(alone, scores[b : b + 1], rtol=0, atol=1e-11)
    assert (scores - train.predict(net, spikes, 3, not rounded)).abs().max() > 1e-3
    labelled = spikes._replace(labels=scores.argmax(1))
    assert train.evaluate(net, labelled, 3, rounded) == 1


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


# ------------------------------------------------------------------------------------ reading files


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


def test_float16_times_are_not_rounded_further():
    late = np.float16([0.0, 1.37, 1.371, 1.379, 1.3804])  # it has 1.37012, .., 1.38086 around here
    counts = data.bin_sample(late, [0] * 5)
    assert len(counts) == 139
    assert counts[137, 0] == 3 and counts[138, 0] == 1 and counts[0, 0] == 1


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


@pytest.mark.parametrize("packing", ["", ".gz", ".zip"])
def test_files_are_read_where_they_lie_and_nothing_is_left(tmp_path, packing, monkeypatch):
    write_shd(tmp_path, ["0a7c", "b555", "çelik"])
    want = data.load("shd", "test", tmp_path)
    assert want.speakers.tolist() == ["0a7c", "b555", "çelik"] * 3
    pack(tmp_path / "shd_test.h5", packing)
    before = sorted(os.listdir(tmp_path))
    for writable in (True, False):
        monkeypatch.setattr(os, "access", lambda path, mode, writable=writable: writable)
        assert same(data.load("shd", "test", tmp_path), want)
        assert sorted(os.listdir(tmp_path)) == before


def test_a_sample_without_spikes_is_one_empty_step(tmp_path):
    write_h5(tmp_path / "shd_test.h5", [[], [0.25, 0.5]], [[], [0, 699]], [3, 4])
    got = data.load("shd", "test", tmp_path)
    assert got.steps.tolist() == [1, 26]
    assert not got.counts[0].any() and got.counts[1, 0] == got.counts[26, 139] == 1


def test_held_out_speakers_are_disjoint_from_training(tmp_path):
    write_shd(tmp_path, [10, 2, 1])
    sets = train.load_sets(parsed("--data-dir", tmp_path, "--valid-speakers", "10,1"))
    every = data.load("shd", "train", tmp_path)
    assert same(sets["train"], every.select(every.speakers == 2))
    assert same(sets["valid"], every.select(every.speakers != 2))
    assert len(sets["train"].labels) == 8 and len(sets["valid"].labels) == 16
    assert same(sets["test"], data.load("shd", "test", tmp_path))


def test_speakers_may_be_names(tmp_path):
    write_shd(tmp_path, ["0a7c2a8d", "b5552931", "çelik"])
    sets = train.load_sets(parsed("--data-dir", tmp_path, "--valid-speakers", "0a7c2a8d,çelik"))
    assert set(sets["train"].speakers) == {"b5552931"}
    assert sets["valid"].speakers.tolist() == ["0a7c2a8d", "çelik"] * 8


# -------------------------------------------------------------------- events, batches, augmentation


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


def test_events_may_be_lists_tensors_or_whole_floats():
    events = dict(sample=[0, 2, 0, 2], step=[3, 0, 3, 5], channel=[1, 0, 1, 2], labels=[1, 0, 4])
    for kind in (list, torch.tensor, np.float32):
        got = data.from_events(**{name: kind(value) for name, value in events.items()}, inputs=3)
        assert got.steps.tolist() == [4, 1, 6] and got.labels.tolist() == [1, 0, 4]
        assert got.counts.sum() == 4 and got.counts[3, 1] == 2
        assert got.counts[5, 0] == got.counts[10, 2] == 1
        assert len(got.speakers) == 3


def from_lengths(steps):
    """Samples of the network `small`, of these lengths."""
    counts = [some_counts(n, 1, seed=n)[0].numpy().astype(np.uint8) for n in steps]
    return data.join(counts, np.arange(len(steps)) % 3)


def test_padded_and_selected_samples_are_their_rows_and_then_zeros():
    steps = [3, 1, 4]
    rows = torch.arange(1, 17).view(8, 2).to(torch.uint8)
    spikes = data.Spikes(rows, torch.tensor(steps), torch.arange(3), np.arange(3))
    want = [[0, 1, 2], [3], [4, 5, 6, 7]]  # rows of each sample
    for longest in (4, 6):
        got = data.padded(spikes, torch.tensor([2, 0, 1]), longest)
        assert got.shape == (3, longest, 2) and got.dtype == torch.uint8
        for own, sample in zip(got, (2, 0, 1), strict=True):
            assert torch.equal(own[: steps[sample]], rows[want[sample]])
            assert not own[steps[sample] :].any()
    some = spikes.select(np.array([True, False, True]))
    assert torch.equal(some.counts, rows[[0, 1, 2, 4, 5, 6, 7]])
    assert some.steps.tolist() == [3, 4]
    assert some.labels.tolist() == some.speakers.tolist() == [0, 2]


def of_lengths(steps):
    """Spikes of samples of these lengths."""
    steps = torch.as_tensor(steps)
    counts = torch.ones(int(steps.sum()), 1, dtype=torch.uint8)
    return data.Spikes(counts, steps, steps % 3, np.zeros(len(steps)))


@pytest.mark.parametrize("samples, size", [(1000, 64), (1000, 2000), (5, 2), (1, 1)])
def test_shuffled_batches_hold_every_sample_once(samples, size):
    spikes = of_lengths(torch.arange(samples) * 7 % 50 + 1)
    got = data.batches(spikes, size)
    order = torch.cat([indices for indices, _ in got]).tolist()
    assert sorted(order) == list(range(samples))
    full, rest = divmod(samples, size)
    assert [len(indices) for indices, _ in got] == [size] * full + ([rest] if rest else [])
    assert all(longest == spikes.steps[indices].max() for indices, longest in got)


def test_without_shuffle_samples_come_in_order_of_length():
    got = data.batches(of_lengths([5, 3, 9, 3, 1]), 2, shuffle=False)
    assert [(indices.tolist(), n) for indices, n in got] == [([4, 1], 3), ([3, 0], 5), ([2], 9)]


# ------------------------------------------------------------------------------------- the toy task


def dense_toy(split, **options):
    """The counts [samples, 80, 8] and the labels of the toy task."""
    toy = data.toy(split, **options)
    samples = len(toy.labels)
    assert toy.steps.tolist() == [80] * samples
    return data.padded(toy, torch.arange(samples), 80).numpy(), toy.labels.numpy()


def toy_starts(counts):
    """The step at which each input begins to spike, [samples, 8]."""
    return (counts > 0).argmax(1)


@pytest.mark.parametrize("split, samples", [("train", 2000), ("test", 1000)])
def test_toy_classes_are_ten_orders_of_the_inputs_and_nothing_else(split, samples):
    counts, labels = dense_toy(split, noise=0)
    assert (np.bincount(labels) == samples // 10).all() and len(labels) == samples
    assert (counts.sum(2) <= 1).all()  # never two inputs in one step
    start = toy_starts(counts)
    want = np.zeros_like(counts)
    for s, i in np.ndindex(*start.shape):
        want[s, start[s, i] : start[s, i] + 4, i] = 1
    assert (counts == want).all()  # each input has one burst of four steps
    assert (start.max(1) - start.min(1) == 28).all()  # one after the other
    assert set(start.min(1)) == set(range(49))  # from the beginning to the end of the sample
    orders = {
        label: {tuple(order) for order in start[labels == label].argsort(1)} for label in range(10)
    }
    assert all(len(found) == 1 for found in orders.values())
    assert len(set.union(*orders.values())) == 10


def test_toy_splits_have_the_same_classes_and_share_no_sample():
    (clean, clean_labels), (test, test_labels) = dense_toy("train", noise=0), dense_toy("test")
    starts = toy_starts(clean)
    test_starts = toy_starts(dense_toy("test", noise=0)[0])
    for label in range(10):
        one, other = starts[clean_labels == label][0], test_starts[test_labels == label][0]
        assert one.argsort().tolist() == other.argsort().tolist()
    train_samples = {sample.tobytes() for sample in dense_toy("train")[0]}
    test_samples = {sample.tobytes() for sample in test}
    assert len(train_samples) == 2000 and len(test_samples) == 1000
    assert not train_samples & test_samples
    same_onset = (starts.min(1)[:1000] == test_starts.min(1)).mean()
    assert 0.005 < same_onset < 0.04  # 1/49 by chance


def test_toy_noise_is_bursts_of_the_patterns_form_anywhere():
    clean, noisy = dense_toy("train", noise=0)[0], dense_toy("train")[0]
    assert (noisy >= clean).all() and noisy.max() == 1  # the pattern is still there
    before = np.pad(noisy, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    begins = (noisy == 1) & (before == 0)
    for later in range(4):  # whole bursts, but for what the end cuts off
        assert noisy[:, later:][begins[:, : 80 - later]].all()
    # A cell is silent if none of the four bursts that reach it begins.
    silent = np.array([0.98 ** min(t + 1, 4) for t in range(80)])
    outside = np.where(clean == 0, noisy, np.nan)
    close(1 - np.nanmean(outside, (0, 2)), silent, rtol=0, atol=0.015)
    close(1 - np.nanmean(outside[:, 4:], (0, 1)), [0.98**4] * 8, rtol=0, atol=0.005)


# ------------------------------------------------------------------------------------- the download


NAME = "shd_test.h5.gz"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine, which stands for both published ones, as /a and /b.

    server.answers[path] is a function of a handler; server.asked lists the paths.  tmp_path has an
    empty folder "d", and server.body is a sound file, whose md5 is the expected one.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.server.answers.get(self.path, lambda handler: handler.send_error(404))(self)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = {}, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(data, "SERVERS", [f"{root}/a", f"{root}/b"])
    write_shd(tmp_path)
    (tmp_path / "d").mkdir()
    server.body = gzip.compress((tmp_path / "shd_test.h5").read_bytes())
    monkeypatch.setitem(data.MD5, NAME, hashlib.md5(server.body).hexdigest())
    yield server
    server.shutdown()
    server.server_close()


def sends(body, length=True, until=None):
    """An answer with a body, or with its first `until` bytes, and how long it is said to be."""

    def answer(handler):
        handler.send_response(200)
        if length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:until])

    return answer


def sends_no_http(handler):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")


@pytest.mark.parametrize("length", [True, False])
def test_a_missing_file_is_downloaded_once(server, tmp_path, capfd, length):
    server.answers[f"/a/{NAME}"] = sends(server.body, length)
    want = data.load("shd", "test", str(tmp_path))
    for _ in range(2):
        assert same(data.load("shd", "test", str(tmp_path / "d")), want)
    assert os.listdir(tmp_path / "d") == [NAME]
    assert server.asked == [f"/a/{NAME}"]  # nothing is fetched that is already there
    assert f"fetching {data.SERVERS[0]}/{NAME}" in capfd.readouterr().err


BAD_ANSWERS = {
    "not there": (lambda body: lambda handler: handler.send_error(404), "404"),
    "cut off": (lambda body: sends(body, until=1000), "sent a file of md5"),
    "cut off, no length": (lambda body: sends(body, False, 1000), "sent a file of md5"),
    "another file": (lambda body: sends(b"<html>gone</html>"), "sent a file of md5"),
    "empty": (lambda body: sends(b""), "sent a file of md5 d41d8cd98f00b204e9800998ecf8427e"),
    "no http": (lambda body: sends_no_http, "BadStatusLine|SSH"),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_download_that_fails_goes_on_to_the_next_server(server, tmp_path, kind):
    bad, said = BAD_ANSWERS[kind]
    server.answers[f"/a/{NAME}"] = server.answers[f"/b/{NAME}"] = bad(server.body)
    with pytest.raises(data.UserError, match=said) as caught:
        data.load("shd", "test", str(tmp_path / "d"))
    for words in (*data.SERVERS, f"{NAME} is not in", "put it there by hand", "--dataset toy"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "d") == []

    server.answers[f"/b/{NAME}"] = sends(server.body)
    data.load("shd", "test", str(tmp_path / "d"))
    assert os.listdir(tmp_path / "d") == [NAME]
    assert server.asked == [f"/a/{NAME}", f"/b/{NAME}"] * 2


def test_a_server_that_falls_silent_is_given_up(server, tmp_path, monkeypatch):
    urlopen = data.urlopen

    def impatient(url, timeout):
        assert timeout == 30
        return urlopen(url, timeout=0.2)

    monkeypatch.setattr(data, "urlopen", impatient)
    server.answers[f"/a/{NAME}"] = lambda handler: time.sleep(1)
    server.answers[f"/b/{NAME}"] = sends(server.body)
    assert data.fetch(NAME, str(tmp_path / "d")) == str(tmp_path / "d" / NAME)


def test_downloads_at_once_have_parts_of_their_own_and_the_default_folder_is_made(
    server, tmp_path, monkeypatch
):
    parts = []

    def failing(url, part, md5):
        parts.append(part)
        raise OSError("no")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "download", failing)
    for process in (11, 12):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        with pytest.raises(data.UserError, match="could not be fetched"):
            data.fetch(NAME, data.DATA_DIR)
    assert parts == [f"data/{NAME}.{process}.part" for process in (11, 11, 12, 12)]
    assert os.path.isdir("data")


# -------------------------------------------------------------------------- a data set of the tests


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
    """The dropout masks of all batches and layers to come, in training."""
    masks = []
    draw = torch.nn.functional.dropout

    def dropout(ones, share, training):
        mask = draw(ones, share, training)
        if training:
            masks.append(mask.detach().clone())
        return mask

    monkeypatch.setattr(delays.F, "dropout", dropout)
    return masks


# ------------------------------------------------------------------- the whole training, done twice


# A slow trainer that uses nothing of the project: a batch is a list of samples, in training each
# padded to the longest.  A network is a dictionary of tensors, under the names that they have in
# the program; it has two hidden layers.


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
    """[T + tail, out]: for every delay the input is shifted by it, and weighed."""
    x = torch.cat([x, torch.zeros(tail, x.shape[1]).double()])
    y = 0
    for d in range(kernel.shape[2]):
        late = torch.cat([torch.zeros(d, x.shape[1]).double(), x])[: len(x)]
        y = y + late @ kernel[:, :, d].T
    return y


def plain_norm(net, i, currents, training):
    """Batch norm over all steps of all samples; in training it moves the running statistics."""
    mean, variance = net[f"norms.{i}.running_mean"], net[f"norms.{i}.running_var"]
    if training:
        every = torch.cat(currents)
        own_mean = every.mean(0)
        own_variance = ((every - own_mean) ** 2).mean(0)
        n = len(every)
        mean.copy_(0.9 * mean + 0.1 * own_mean.detach())
        variance.copy_(0.9 * variance + 0.1 * own_variance.detach() * n / (n - 1))
        mean, variance = own_mean, own_variance
    scale, shift = net[f"norms.{i}.weight"], net[f"norms.{i}.bias"]
    return [(current - mean) / torch.sqrt(variance + 1e-5) * scale + shift for current in currents]


def plain_lif(current, tau):
    v = torch.zeros_like(current[0])
    spikes = []
    for now in current:
        h = (1 - 1 / tau) * v + now
        s = (h >= 1).double()
        smooth = torch.atan(math.pi / 2 * 5 * (h - 1)) / math.pi
        spikes.append(s + (smooth - smooth.detach()))
        v = h * (1 - s)  # s has no gradient
    return torch.stack(spikes)


def plain_scores(current, tau):
    """[classes]: softmax over the classes at every step, summed over time."""
    v = torch.zeros_like(current[0])
    total = 0
    for now in current:
        v = (1 - 1 / tau) * v + now
        total = total + torch.exp(v) / torch.exp(v).sum()
    return total


def plain_padded(samples, steps):
    """Each followed by zeros, up to so many steps."""
    return [torch.cat([x, torch.zeros(steps - len(x), x.shape[1]).double()]) for x in samples]


def plain_forward(net, samples, options, sigma, masks=None):
    """Class scores [B, classes] of a list of samples [T, in], and the rates of two layers.

    masks: of dropout, if this is training.  In evaluation, every layer runs until the last tail.
    """
    taps = 1 if options.delays == "none" else options.taps
    tau = options.tau / LITTLE_STEP_MS
    tau_readout = tau if options.tau_readout is None else options.tau_readout / LITTLE_STEP_MS
    rates, ends = [], [len(x) + 3 * (taps // 2) for x in samples]
    for i in (0, 1, 2):
        weight = net[f"layers.{i}.weight"] * net[f"layers.{i}.mask"]
        kernel = plain_kernel(weight, net[f"layers.{i}.delay"], taps, sigma)
        if masks is None:
            currents = [
                plain_delayed_sum(x, kernel, n - len(x)) for x, n in zip(samples, ends, strict=True)
            ]
        else:
            currents = [plain_delayed_sum(x, kernel, taps // 2) for x in samples]
        if i < 2:
            currents = plain_norm(net, i, currents, masks is not None)
            samples = [plain_lif(current, tau) for current in currents]
            rates.append(torch.cat(samples).mean().item())
            if masks is not None:
                samples = [x * mask for x, mask in zip(samples, masks[i], strict=True)]
    return torch.stack([plain_scores(current, tau_readout) for current in currents]), rates


def plain_accuracy(net, samples, options, sigma=None):
    """Each sample alone, followed by silence.  Delays are whole steps; or Gaussians, with a sigma.

    Where the best scores are equal, as of a silent readout, rounding decides: such a sample may
    count or not.
    """
    hits = ties = 0
    for counts, label, _ in samples:
        scores, _ = plain_forward(net, [torch.from_numpy(counts).double()], options, sigma)
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


def plain_epoch(net, optimizers, samples, batches, masks, options, sigma):
    """A pass over the training samples; returns loss, accuracy and the two rates."""
    taps = 1 if options.delays == "none" else options.taps
    losses, hits, rates = [], [], []
    for indices in batches:
        own = [torch.from_numpy(samples[index][0]).double() for index in indices]
        own = plain_padded(own, max(map(len, own)))
        labels = torch.tensor([samples[index][1] for index in indices])
        scores, own_rates = plain_forward(net, own, options, sigma, [next(masks), next(masks)])
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
        rates += [own_rates] * len(labels)
    return np.mean(losses), np.mean(hits), *np.mean(rates, 0)


def plain_moved_ms(net, start):
    ways = []
    for i in (0, 1, 2):
        way = (net[f"layers.{i}.delay"].detach() - start[f"layers.{i}.delay"]).abs()
        ways += (LITTLE_STEP_MS * way)[start[f"layers.{i}.mask"].expand_as(way)].tolist()
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
    "learned --tau-readout 23",
    "learned --kernel-count 2 --connections 3 --valid-speakers 1,2",
    "constant-sigma --kernel-count 2",
    "fixed --connections 3 --valid-speakers 0",
    "none --kernel-count 2 --tau 30",
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
    result = train.train(options, net, on_epoch=lambda net, row: seen.append((state_of(net), row)))

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
    assert 0.4 < result["test_accuracy"] < 0.95  # or little could be seen
    assert result["unrounded_accuracy"] == plain_accuracy(chosen, sets["test"], options, sigma)
    assert result["valid_accuracy"] == seen[at][1]["valid_accuracy"]
    if not options.valid_speakers:
        assert result["best_on_test"] == max(row["test_accuracy"] for _, row in seen)
    if sigma is not None:  # the delays came to both ends of their range
        ends = torch.cat([want[-1][0][f"layers.{i}.delay"].flatten() for i in (0, 1, 2)])
        assert (ends == 0).any() and (ends == 5).any()


@pytest.mark.parametrize("training", [False, True])
def test_scores_are_those_of_the_slow_network(training, little):
    """Scores, not the loss: cross-entropy hides a step more or less."""
    options = parsed("--dataset", "little", "--tau-readout", 30, "--dropout", 0)
    net = train.build(options).double()
    for layer in net.layers:
        layer.sigma = 0.8
    spikes = data.load("little", "train", "").select(np.arange(44) < 9)
    indices, longest = torch.arange(9), int(spikes.steps.max())
    for _ in range(20):
        net(data.padded(spikes, indices, longest).double())
    counts = data.padded(spikes, indices, longest)
    samples = [sample.double() for sample in counts]
    if not training:
        samples = [sample[:n] for sample, n in zip(samples, spikes.steps, strict=True)]
    state, masks = state_of(net), torch.ones(2, 9, 1, 7) if training else None
    net.train(training)
    got = class_scores(net(counts)) if training else train.predict(net, spikes)
    want, rates = plain_forward(state, samples, options, 0.8 if training else None, masks)
    close(got.detach(), want.detach(), rtol=0, atol=1e-11)
    if training:
        close([rate.item() for rate in net.rates], rates, rtol=1e-12, atol=0)
        assert min(rates) > 0.01


# -------------------------------------------------------------------- the rule behind each headline


# Splits are told apart by their sizes.
SPLIT_OF_SIZE = {61: "test", 27: "valid", 22: "valid"}  # little; half of its training samples
SPLIT_OF_SIZE |= {9: "test", 8: "valid", 35: "test", 21: "valid", 24: "valid"}  # files

MADE_UP = {
    "valid": [0.2, 0.6, 0.5, 0.6, 0.3],
    "test": [0.1, 0.45, 0.9, 0.75, 0.4],
    "test, unrounded": [0.15, 0.55, 0.95, 0.8, 0.5],
    "valid, unrounded": [0.25, 0.65, 0.35, 0.7, 0.05],
}


@pytest.fixture
def asked(monkeypatch):
    """Puts made-up accuracies in place of train.evaluate: MADE_UP[split] has one an epoch.

    An accuracy belongs to weights, so it is looked up by them: new weights are those of the next
    epoch.  The list of (what was evaluated, of which epoch) grows during the run.
    """
    asked, weights = [], []

    def evaluate(net, spikes, batch_size, rounded=True):
        now = net.layers[0].weight.detach().clone()
        if not any(torch.equal(now, there) for there in weights):
            weights.append(now)
        epoch = [torch.equal(now, there) for there in weights].index(True) + 1
        split = SPLIT_OF_SIZE[len(spikes.labels)]
        if not rounded:
            split = f"{split}, unrounded"
        asked.append((split, epoch))
        return MADE_UP[split][epoch - 1]

    monkeypatch.setattr(train, "evaluate", evaluate)
    return asked


def test_without_validation_the_headline_is_the_last_epoch(little, tmp_path, asked, capsys):
    train.main(f"--dataset little --device cpu --epochs 5 --out {tmp_path / 'run'}".split())
    result = result_of(tmp_path / "run")
    assert result["test_accuracy"] == 0.4
    assert result["rule"] == "last epoch"
    assert result["best_on_test"] == 0.9
    assert result["unrounded_accuracy"] == 0.5
    assert result["valid_accuracy"] is None
    assert [float(row["test_accuracy"]) for row in log_of(tmp_path / "run")] == MADE_UP["test"]
    assert all(row["valid_accuracy"] == "" for row in log_of(tmp_path / "run"))
    printed = capsys.readouterr().out
    for words in ("test accuracy 40.00% (last", "best on test 90.00%", "unrounded accuracy 50.00%"):
        assert words in printed


VALIDATED = {  # and the number of validation samples
    "--dataset little --valid-speakers 1,3": 22,
    "--dataset validated": 27,
    "--dataset shd --valid-speakers 2 --data-dir DATA": 8,
    "--dataset ssc --data-dir DATA": 21,
    "--dataset ssc --data-dir DATA --valid-speakers c50f55b8": 24,
}


@pytest.mark.parametrize("words", VALIDATED)
def test_validation_chooses_the_epoch_and_test_is_read_once(words, little, tmp_path, asked):
    write_shd(tmp_path)
    write_ssc(tmp_path)
    sizes = "--hidden 6 --layers 1 --taps 5 --epochs 5"
    words = f"{words} {sizes}".replace("DATA", str(tmp_path)).split()
    result = train.train(options_of(tmp_path / "run", *words))
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


@pytest.mark.parametrize("words", list(VALIDATED)[2:])
def test_no_test_never_opens_the_test_file(words, little, tmp_path, asked, capsys):
    write_shd(tmp_path)
    write_ssc(tmp_path)
    for name in ("shd_test.h5", "ssc_test.h5.zip"):
        (tmp_path / name).unlink()
    sizes = "--no-test --hidden 6 --layers 1 --taps 5 --epochs 5"
    samples = VALIDATED[words]
    words = f"{words} {sizes}".replace("DATA", str(tmp_path)).split()
    result = train.train(options_of(tmp_path / "run", *words))
    assert {split for split, _ in asked} == {"valid", "valid, unrounded"}
    assert result["test_accuracy"] is result["best_on_test"] is None
    assert result["unrounded_accuracy"] == 0.65  # on validation, of the epoch that it chose
    assert result["valid_accuracy"] == 0.6
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["samples"].keys() == {"train", "valid"}
    assert config["samples"]["valid"] == samples
    capsys.readouterr()
    train.main(["--eval", str(tmp_path / "run"), "--device", "cpu"])
    assert capsys.readouterr().out == f"valid accuracy 60.00% ({tmp_path / 'run'})\n"


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
    assert result["dataset"] == "ssc" and result["epochs"] == 6
    assert result["parameters"] == 2 * (140 * 24 + 24 * 35) + 2 * 24
    assert f"test accuracy {result['test_accuracy']:.2%} ({result['rule']})" in done.stdout

    net, options = train.load_run(tmp_path / "run")
    assert train.evaluate(net, data.load("ssc", "test", tmp_path), 7) == result["test_accuracy"]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["samples"] == {"train": 70, "valid": 21, "test": 35}
    names = [f"ssc_{split}.h5.zip" for split in ("train", "valid", "test")]
    assert config["md5"] == {name: data.md5(tmp_path / name) for name in names}
    assert config["torch"] == torch.__version__ and config["threads"] == 1
    assert config["options"] == vars(options)


def test_an_accuracy_does_not_depend_on_the_batch_size(little):
    net = train.build(parsed("--dataset", "little"))
    before = state_of(net)
    spikes = data.load("little", "test", "")
    assert len({train.evaluate(net, spikes, size) for size in (1, 7, 100)}) == 1
    assert same_bits(state_of(net), before)


PAPER = {
    "shd": dict(epochs=150, batch_size=256, hidden=256, layers=2, taps=25, tau=10.05, dropout=0.4),
    "ssc": dict(epochs=60, batch_size=128, hidden=512, layers=3, taps=31, tau=15, dropout=0.25),
    "toy": dict(epochs=20, batch_size=50, hidden=40, layers=1, taps=33, tau=10.05, dropout=0),
}


@pytest.mark.parametrize("dataset", PAPER)
def test_defaults_are_the_papers(dataset):
    options = vars(train.parse(["--dataset", dataset]))
    want = PAPER[dataset] | dict(lr=5e-3, delay_lr=0.1, weight_decay=1e-5, delays="learned", seed=0)
    want |= dict(kernel_count=1, connections=None, tau_readout=None, no_test=False)
    want |= dict(valid_speakers="", out=f"runs/{dataset}-learned-0")
    assert {key: options[key] for key in want} == want


# ------------------------------------------------------------------ runs: continued, seeded, loaded


SHORT = "--hidden 6 --layers 1 --taps 5 --epochs 6 --batch-size 10 --lr 0.02 --device cpu"

KILLED = """
import os, signal, sys, train

def kill(net, row):
    if row["epoch"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

train.train(train.parse(sys.argv[1:]), on_epoch=kill)
"""


class Killed(BaseException):
    """Ends a run as a kill does: no handler of errors sees it."""


def assert_same_run(one, other):
    """Two folders hold the same run, bit for bit, all but its seconds."""
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))
    for name in ("last.pt", "net.pt"):
        first, second = (torch.load(run / name, weights_only=True) for run in (one, other))
        assert same_bits(first["net"], second["net"])
        assert first["epoch"] == second["epoch"] and first["sigma"] == second["sigma"]
    logs, results = [log_of(one), log_of(other)], [result_of(one), result_of(other)]
    for rows, result in zip(logs, results, strict=True):
        assert result.pop("seconds") > 0
        assert [int(row["epoch"]) for row in rows] == list(range(1, result["epochs"] + 1))
        for row in rows:
            assert float(row.pop("seconds")) > 0
    assert logs[0] == logs[1]
    assert results[0] == results[1]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_resumed_equals_uninterrupted_after_sigkill(tmp_path):
    write_shd(tmp_path)
    words = [*SHORT.split(), "--data-dir", tmp_path]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train.train(options_of(whole, *words))
    killed = program(*words, "--out", cut, code=KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(log_of(cut)) == 3
    (cut / "log.csv").unlink()  # it is written anew from the checkpoint
    for _ in range(2):  # the second time nothing is left to do
        train.main(["--resume", str(cut)])
        assert_same_run(cut, whole)


def test_a_run_may_end_before_any_of_its_files_has_its_name(little, tmp_path, monkeypatch):
    words = ["--dataset", "validated", "--epochs", 4, "--hidden", 4, "--batch-size", 22]
    rename, names = os.replace, []

    def evaluate(net, spikes, batch_size, rounded=True):
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
    assert names.count("net.pt") == 2
    for end in range(1, len(names)):  # without config.json there is no run yet
        names, allowed, cut = [], end, tmp_path / f"cut{end}"
        with pytest.raises(Killed):
            train.train(options_of(cut, *words))
        allowed = math.inf
        train.main(["--resume", str(cut)])
        leftovers = [name for name in os.listdir(cut) if name.endswith(".part")]
        for name in leftovers:  # of a kill between result.json's writing and its name
            (cut / name).unlink()
        assert_same_run(cut, whole)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    train.write(str(tmp_path), "x", "old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        train.write(str(tmp_path), "x", "new")
    assert (tmp_path / "x").read_text() == "old"


@pytest.fixture
def short_run(little, tmp_path):
    words = "--dataset little --epochs 2 --kernel-count 2 --valid-speakers 1,2"
    return train.train(options_of(tmp_path / "run", *words.split()))


def content_of(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def test_a_saved_run_keeps_its_options(short_run, tmp_path, capsys):
    run, before = tmp_path / "run", content_of(tmp_path / "run")
    others = (
        "--epochs 3,--seed 1,--lr 0.001,--delay-lr 0.2,--weight-decay 0,--batch-size 9,--hidden 8,"
        "--layers 1,--taps 7,--tau 16,--tau-readout 9,--dropout 0.5,--delays fixed,--no-test,"
        "--kernel-count 1,--connections 2,--valid-speakers 1,--dataset toy"
    )
    for words in others.split(","):
        option = words.split()[0]
        for way in ("--resume", "--eval"):
            given = [way, str(run), *words.split()]
            with pytest.raises(data.UserError, match=f"run has {option} .*: leave the option out"):
                train.parse(given)
    again = train.parse(["--resume", str(run), "--epochs", "2", "--data-dir", "elsewhere"])
    assert (again.out, again.data_dir, again.epochs) == (str(run), "elsewhere", 2)
    with pytest.raises(
        SystemExit, match=f"{run} exists already: continue that run with --resume {run}, or"
    ):
        train.main(["--dataset", "little", "--device", "cpu", "--out", str(run)])
    assert content_of(run) == before

    capsys.readouterr()
    train.main(["--eval", str(run), "--device", "cpu"])
    assert f"test accuracy {short_run['test_accuracy']:.2%} ({run})" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["little", "validated"])
def test_load_run_gives_the_network_of_the_headline(dataset, little, tmp_path, monkeypatch):
    evaluate, used = train.evaluate, []

    def second_is_best(net, spikes, batch_size, rounded=True):
        """Validation, whose 27 samples tell it, is best after the second epoch."""
        used.append({(rounded, round(layer.sigma, 9)) for layer in net.layers})
        if len(spikes.labels) == 27:
            return 1 / (1 + abs(net.norms[0].num_batches_tracked.item() / 6 - 2))
        return evaluate(net, spikes, batch_size, rounded)

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
    assert all(layer.sigma == pytest.approx(sigma, rel=1e-12) for layer in net.layers)
    assert train.evaluate(net, test, 13, rounded=False) == result["unrounded_accuracy"]
    in_turn = [{(True, round(sigma, 9))}, {(False, round(sigma, 9))}]
    assert used[-4:] == in_turn + in_turn  # of the run's end, and of the network that was loaded


def test_the_seed_decides_everything(little, tmp_path, monkeypatch):
    epochs, masks = record_batches(monkeypatch), record_dropout(monkeypatch)
    states = []
    for number, seed in enumerate((3, 3, 4)):
        options = options_of(tmp_path / str(number), "--dataset", "little", "--epochs", 3)
        options.seed = seed
        net = train.build(options)
        first = state_of(net)
        torch.rand(number)  # what others draw does not matter
        train.train(options, net)
        states.append((first, state_of(net)))
    one, again, other = (epochs[n : n + 3] for n in (0, 3, 6))
    assert one == again and not any(batches in other for batches in one)
    assert one[0] != one[1] != one[2] != one[0]  # each epoch has a shuffle of its own
    third = len(masks) // 3
    assert all(map(torch.equal, masks[:third], masks[third : 2 * third]))
    assert not any(torch.equal(masks[0], mask) for mask in (masks[2], masks[2 * third]))
    for a, b, c in zip(*states, strict=True):
        assert same_bits(a, b)
        for name in ("layers.0.weight", "layers.1.weight", "layers.0.delay"):
            assert not torch.equal(a[name], c[name])


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
    for call in (f"train.train(train.parse({small.split()}))", f"train.main(['--eval', '{out}'])"):
        done = program(code=code.format(call=call))
        printed = done.stdout.splitlines()
        want = ["before True", "tf32 False False", "denormal 0.0"]
        assert [printed[0], *printed[-2:]] == want, done.stderr


def test_with_short_membranes_learned_beats_fixed_beats_none_on_the_toy_task(tmp_path):
    accuracy = {}
    for variant in ("learned", "fixed", "none"):
        words = f"--dataset toy --delays {variant} --epochs 3".split()
        accuracy[variant] = train.train(options_of(tmp_path / variant, *words))["test_accuracy"]
    assert accuracy["none"] < 0.15, accuracy
    assert 0.2 < accuracy["fixed"] < accuracy["learned"] - 0.1, accuracy


# --------------------------------------------------------------------------- a network of one's own


class Own(DelaySNN):
    """Neurons of one's own: they have a threshold to learn, and hear their echo one axon late."""

    def __init__(self, **kwargs):
        super().__init__(LITTLE_INPUTS, [7, 7], LITTLE_CLASSES, taps=6, tau=3, **kwargs)
        self.threshold = torch.nn.Parameter(torch.full((7,), 0.8))
        self.mix = torch.nn.Linear(7, 7)
        self.echo = Residual(7, 7, 6, delay_per="axon")

    def neurons(self, i, current):
        early = spike(current - self.threshold)
        late = self.echo(early)[:, : current.shape[1]]
        return lif(self.mix(early) + late - 0.1 * self.threshold, self.tau)


class Residual(DelayedLinear):
    """A delay for each axon, and what each synapse adds to it."""

    def __init__(self, *sizes, **named):
        super().__init__(*sizes, **named)
        self.residual = torch.nn.Parameter(torch.zeros_like(self.weight))

    def positions(self):
        return self.delay + self.residual.clamp(-1, 1)

    def delay_parameters(self):
        return [self.delay, self.residual]

    def clamp_delays(self):
        self.delay.data.clamp_(1, self.taps - 2)


def test_every_parameter_of_a_network_is_trained_at_its_rate(little, tmp_path):
    options = options_of(tmp_path / "run", "--dataset", "little", "--epochs", 2)
    net = Own()
    start = state_of(net)
    first = torch.cat([layer.positions().detach().flatten() for layer in (*net.layers, net.echo)])
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = train.make_optimizer(net, options).param_groups  # which the slow trainer checks
    weights, moving, others = ([names[own] for own in group["params"]] for group in groups)
    layers = ["layers.0", "layers.1", "layers.2", "echo"]
    assert sorted(weights) == sorted(f"{layer}.weight" for layer in layers)
    assert sorted(moving) == sorted([*(f"{layer}.delay" for layer in layers), "echo.residual"])
    assert sorted(weights + moving + others) == sorted(names.values())

    result = train.train(options, net)
    for name, parameter in net.named_parameters():
        assert not torch.equal(parameter, start[name]), name
    assert all(layer.sigma == 0.5 for layer in (*net.layers, net.echo))
    assert result["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    assert train.count_parameters(Residual(6, 5, 4, connections=2)) == 3 * 2 * 5  # those there are
    last = torch.cat([layer.positions().detach().flatten() for layer in (*net.layers, net.echo)])
    moved_ms = float(log_of(tmp_path / "run")[-1]["moved_ms"])
    assert moved_ms == pytest.approx(4.0 * (last - first).abs().mean().item(), rel=1e-5, abs=0)
    loaded, _ = train.load_run(tmp_path / "run", Own())
    assert same_bits(state_of(loaded), state_of(net))


class Doubled(DelaySNN):
    """Other neurons, but the parameters of the paper's network."""

    def neurons(self, i, current):
        return lif(2 * current, self.tau)


def test_a_fork_has_the_whole_command_line_and_is_not_taken_for_the_papers_network(
    little, tmp_path, capsys
):
    run = str(tmp_path / "run")
    train.main(["--dataset", "little", "--epochs", "2", "--device", "cpu", "--out", run], Doubled)
    train.main(["--resume", run], Doubled)
    capsys.readouterr()
    train.main(["--eval", run], net_class=Doubled)
    assert (
        f"test accuracy {result_of(tmp_path / 'run')['test_accuracy']:.2%}"
        in capsys.readouterr().out
    )
    for words in (["--resume", run], ["--eval", run]):
        with pytest.raises(SystemExit, match="has the network Doubled, not DelaySNN: use the prog"):
            train.main(words)
    net = train.build(options_of(tmp_path / "other", "--dataset", "little", "--hidden", 9), Doubled)
    with pytest.raises(data.UserError, match="net.pt cannot be loaded .*size mismatch"):
        train.load_run(run, net)


def other_loss(net, counts, membrane, labels):
    return train.cross_entropy(net, counts, membrane, labels)


def same_counts(counts, labels):
    return counts


def test_a_run_goes_on_with_its_own_loss_and_augmentation_alone(little, tmp_path):
    run = str(tmp_path / "run")
    own = dict(loss=other_loss, augment=same_counts)
    result = train.train(options_of(run, "--dataset", "little", "--epochs", 2), **own)
    options = train.parse(["--resume", run])
    for missing, said in (("loss", "loss other_loss, not cross"), ("augment", "augment same_cou")):
        with pytest.raises(data.UserError, match=f"last.pt has the {said}"):
            train.train(options, **own | {missing: None})
    again = train.train(options, **own)
    assert again == result


def test_samples_are_augmented_in_training_alone_with_their_labels(little, tmp_path):
    seen = []

    def stretched(counts, labels):
        assert (counts.sum(1).argmax(1) == labels).float().mean() > 0.5  # the class spikes most
        seen.append(len(counts))
        return counts.repeat_interleave(2, 1)

    lengths = []
    net = train.build(options_of(tmp_path / "r", "--dataset", "little", "--epochs", 2))
    net.register_forward_pre_hook(
        lambda net, inputs: lengths.append((net.training, inputs[0].shape[1]))
    )
    options = options_of(tmp_path / "r", "--dataset", "little", "--epochs", 2)
    train.train(options, net, augment=stretched)
    assert sum(seen) == 88 and len(seen) == 12  # batches of the 44 training samples
    assert {steps % 2 for training, steps in lengths if training} == {0}
    assert max(steps for training, steps in lengths if training) == 2 * 14
    assert max(steps for training, steps in lengths if not training) == 14 + 6


def test_a_loss_of_ones_own_is_given_what_the_batch_has(little, tmp_path):
    seen = []

    def loss(net, counts, membrane, labels):
        assert counts.dtype == torch.uint8 and membrane.shape[1] == counts.shape[1] + net.tail
        seen.append(len(labels))
        scores = class_scores(membrane)
        return torch.nn.functional.cross_entropy(scores, labels) + 1000 * sum(net.rates)

    words = ["--dataset", "little", "--epochs", 3, "--lr", 0.05]
    plain = train.train(options_of(tmp_path / "plain", *words))
    silent = train.train(options_of(tmp_path / "own", *words), loss=loss)
    assert sum(seen) == 3 * 44
    rates = [float(log_of(tmp_path / run)[-1]["rate_1"]) for run in ("plain", "own")]
    assert rates[1] < 0.5 * rates[0]
    assert float(log_of(tmp_path / "own")[0]["loss"]) > 10
    assert plain["parameters"] == silent["parameters"]


def test_rates_are_of_the_last_forward_pass_and_have_gradients():
    torch.manual_seed(0)
    net = DelaySNN(3, [4, 5], 2, taps=3, dropout=0.5)
    for layer in net.layers:
        layer.sigma = 0.5
    seen = []
    neurons = net.neurons
    net.neurons = lambda i, current: seen.append(neurons(i, current)) or seen[-1]
    for _ in range(2):
        seen.clear()
        net(3 * torch.ones(2, 6, 3))
    weights = [layer.weight for layer in net.layers[:2]]
    got = torch.autograd.grad(2 * net.rates[0] + 3 * net.rates[1], weights, retain_graph=True)
    want = torch.autograd.grad(2 * seen[0].mean() + 3 * seen[1].mean(), weights)
    for one, other in zip(got, want, strict=True):
        assert other.abs().max() > 1e-4
        close(one, other, rtol=1e-5, atol=1e-7)


def test_a_network_may_name_the_class_of_its_layers():
    class Axonal(DelayedLinear):
        def __init__(self, *sizes, **named):
            super().__init__(*sizes, delay_per="axon", **named)

    class Network(DelaySNN):
        layer_class = Axonal

    net = Network(6, [5], 3, taps=4, connections=2)
    assert [tuple(layer.delay.shape) for layer in net.layers] == [(1, 6), (1, 5)]
    assert train.count_parameters(net) == 2 * 5 + 2 * 3 + 6 + 5 + 2 * 5
    net.norms[0].weight.requires_grad_(False)
    net.layers[0].weight.requires_grad_(False)
    assert train.count_parameters(net) == 2 * 3 + 6 + 5 + 5  # what is trained
    assert all(layer.mask.sum(1).eq(2).all() for layer in net.layers)
    assert "Axonal(weight [5, 6], delay [1, 6], taps=4, learn_delays=True)" in repr(net)


# ----------------------------------------------------------------------------- mistakes of the user


def said(capsys, *argv, net_class=DelaySNN):
    """What train.py says as it ends with an error: one sentence."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in argv], net_class)
    if stop.value.code == 2:  # argparse's
        return capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code.startswith("train.py: ") and "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("--epochs 0", "argument --epochs: 0: expected at least 1"),
        ("--epochs many", "argument --epochs: invalid positive value: 'many'"),
        ("--hidden -3", "argument --hidden: -3: expected at least 1"),
        ("--connections -1", "argument --connections: -1: expected at least 1"),
        ("--batch-size 1.5", "argument --batch-size: invalid positive value: '1.5'"),
        ("--tau 9.9", "--tau or --tau-readout 9.9: expected at least 10 ms, a step"),
        ("--tau nan", "--tau or --tau-readout nan: expected at least 10 ms"),
        ("--tau-readout 1", "--tau or --tau-readout 1.0: expected at least 10 ms"),
        ("--tau-readout nan", "--tau or --tau-readout nan: expected at least 10 ms"),
        ("--dropout 1", "--dropout 1.0: expected a share, 0 to below 1"),
        ("--dataset mnist", "argument --dataset: invalid choice: 'mnist'"),
        ("--delays some", "argument --delays: invalid choice: 'some'"),
        ("--epoch 1", "unrecognized arguments: --epoch 1"),
        ("--epochs", "argument --epochs: expected one argument"),
        ("--dataset toy --valid-speakers 1", "--valid-speakers 1: expected some, not all, of"),
        ("--dataset toy --no-test", "no test and no validation set: hold out some"),
        ("--dataset toy --lr 1e30", "the loss of epoch 1 is nan: try a lower --lr"),
        ("--resume none", "No such file or directory: 'none/config.json'"),
        ("--eval good", "No such file or directory: 'good/config.json'"),
        ("--eval unborn", "unborn/net.pt cannot be loaded"),
        ("--resume torn", "torn/last.pt cannot be loaded"),
        ("--dataset toy --out run", "run exists already: continue that run with --resume run, or"),
        ("--dataset toy --out file/x", "Not a directory: 'file/x'"),
        ("--data-dir cut", "cut/shd_train.h5.gz could not be read (Compressed file ended before"),
        ("--data-dir flipped", "flipped/shd_train.h5.zip could not be read (Bad CRC-32"),
        ("--data-dir otherzip", "otherzip/shd_train.h5.zip could not be read ("),
        ("--data-dir text", "text/shd_train.h5 could not be read (Unable to"),
        ("--data-dir empty", "shd_train.h5.gz is not in empty and could not be fetched"),
        ("--data-dir part", "shd_test.h5.gz is not in part and could not be fetched"),
        ("--data-dir good --valid-speakers 0,x", "of ['0', '1', '2']"),
        ("--data-dir good --valid-speakers 0,1,2", "expected some, not all, of ['0', '1', '2']"),
    ],
)
def test_a_mistake_gets_a_sentence_and_leaves_nothing(workplace, capsys, argv, sentence):
    before = sorted(os.listdir(workplace))
    assert sentence in said(capsys, "--device", "cpu", *argv.split())
    made = set(os.listdir(workplace)) - set(before)
    assert made <= ({"runs"} if "--lr" in argv else set())


@pytest.fixture(scope="module")
def workplace_once(tmp_path_factory):
    """A folder with all that can be wrong with files, and a finished run."""
    place = tmp_path_factory.mktemp("workplace")
    names = "good cut flipped otherzip text empty part unborn torn"
    for name in names.split():
        (place / name).mkdir()
    write_shd(place / "good")
    (place / "file").write_text("")
    (place / "cut/shd_train.h5.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    with zipfile.ZipFile(place / "flipped/shd_train.h5.zip", "w") as archive:
        archive.writestr("shd_train.h5", b"spikes" * 100)
    body = bytearray((place / "flipped/shd_train.h5.zip").read_bytes())
    body[100] ^= 1
    (place / "flipped/shd_train.h5.zip").write_bytes(body)
    with zipfile.ZipFile(place / "otherzip/shd_train.h5.zip", "w") as archive:
        archive.writestr("readme.txt", b"spikes")
    (place / "text/shd_train.h5").write_text("<html>gone</html>")
    (place / "part/shd_train.h5").write_bytes((place / "good/shd_train.h5").read_bytes())
    words = "--dataset toy --delays fixed --epochs 1 --seed 5 --hidden 3 --batch-size 500 --out"
    train.train(parsed(*words.split(), place / "run"))
    for name in ("unborn", "torn"):
        (place / name / "config.json").write_bytes((place / "run/config.json").read_bytes())
    (place / "torn/last.pt").write_bytes((place / "run/last.pt").read_bytes()[:-9])
    return place


@pytest.fixture
def workplace(workplace_once, server, monkeypatch):
    """The folder with all that can be wrong as the current one; no server has any file."""
    monkeypatch.chdir(workplace_once)
    return workplace_once


GOOD = dict(times=[[0.1, 0.2, 0.3]] * 140, units=[[3, 4, 5]] * 140, labels=[0, 1] * 70)


@pytest.mark.parametrize(
    "column, sample, values, sentence",
    [
        ("times", 130, [0.1, np.nan, 0.3], "sample 130 lasts nan s, longer than 10 s"),
        ("times", 130, [100, 200, 500], "sample 130 lasts 400 s, longer .*in seconds, not milli"),
        ("units", 130, [3, 4, 700], r"sample 130: unit 2 is 700: .*whole number, 0\.\.699"),
        ("times", 130, [0.1, 0.2], "sample 130 has 2 times, 3 units: expected as many"),
        ("labels", 1, -1, "label 1 is -1: expected a whole number"),
        ("labels", 139, None, r"it has \[139, 140, 140, 140\] labels, speakers, times, units"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(
    tmp_path, column, sample, values, sentence
):
    content = {name: list(rows) for name, rows in GOOD.items()}
    content[column][sample : sample + 1] = [] if values is None else [values]
    write_h5(tmp_path / "shd_test.h5", **content, speakers=[0] * 140)
    with pytest.raises(data.UserError, match=rf"shd_test.h5 could not be read \({sentence}"):
        data.load("shd", "test", tmp_path)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(sample=[0, 2, 3]), r"sample of spike 2 is 3: .*whole number, 0\.\.2"),
        (dict(step=[3, -5, 1]), "step of spike 1 is -5: .*whole number"),
        (dict(step=[3, 0.5, 1]), r"step of spike 1 is 0\.5: expected a whole number"),
        (dict(channel=[1, 0, 3]), r"channel of spike 2 is 3: .*whole number, 0\.\.2"),
        (dict(labels=np.eye(3)), r"label has shape \[3, 3\]: expected a list of whole numbers"),
        (dict(step=[3, 0]), r"sample, step and channel have \[3, 2, 3\] entries"),
        (
            dict(sample=[0] * 256, step=[2] * 256, channel=[1] * 256),
            "256 spikes in one step and input: expected at most 255",
        ),
    ],
)
def test_events_with_a_mistake_are_refused_with_its_place(change, sentence):
    events = dict(sample=[0, 2, 0], step=[3, 0, 1], channel=[1, 0, 2], labels=[1, 0, 4])
    with pytest.raises(data.UserError, match=sentence):
        data.from_events(**{**events, **change}, inputs=3)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(classes=2), "little train has 5 inputs and 3 classes: its row .* says 5 and 2"),
        (dict(inputs=4), "little train has 5 inputs and 3 classes: its row .* says 4 and 3"),
        (dict(splits=("train",)), "no test and no validation set: hold out some"),
        (dict(splits=("train", "val", "test")), "little has .*'val'.*: expected train, valid and"),
    ],
)
def test_a_data_set_that_is_not_as_its_row_says_is_refused(
    change, sentence, little, tmp_path, monkeypatch
):
    monkeypatch.setitem(data.DATASETS, "little", data.DATASETS["little"]._replace(**change))
    with pytest.raises(data.UserError, match=sentence):
        train.train(options_of(tmp_path / "run", "--dataset", "little"))
    assert not (tmp_path / "run").exists()


def test_a_wrong_or_a_missing_row_gets_a_sentence(little, short_run, tmp_path, monkeypatch):
    monkeypatch.setitem(train.DEFAULTS, "little", LITTLE | {"hiden": 14})
    with pytest.raises(data.UserError, match=r"DEFAULTS\['little'\] has unknown .*'hiden'"):
        parsed("--dataset", "little")
    monkeypatch.delitem(data.DATASETS, "little")
    with pytest.raises(data.UserError, match="run is of the data set little: use the script that"):
        train.load_run(tmp_path / "run")


class Mistaken(DelaySNN):
    def neurons(self, i, current):
        raise ValueError("a mistake of the fork")


def test_a_mistake_of_a_fork_keeps_its_traceback(little, tmp_path):
    words = ["--dataset", "little", "--device", "cpu", "--out", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="a mistake of the fork"):
        train.main(words, Mistaken)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_a_card_that_is_not_there_gets_a_sentence(capsys):
    assert "--device cuda: torch finds no GPU here" in said(capsys, "--device", "cuda")


def test_help_shows_the_defaults_of_the_chosen_data_set(capsys):
    for dataset, taps in (("shd", 25), ("ssc", 31)):
        with pytest.raises(SystemExit) as stop:
            train.main(["--dataset", dataset, "-h"])
        assert stop.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"--taps TAPS delays are 0 to TAPS - 1 steps (default: {taps})" in shown


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent so on Windows")
def test_ctrl_c_ends_the_program_by_the_signal_and_the_run_goes_on(tmp_path):
    # A script in the background ignores Ctrl-C, and hands that on to the programs that it starts.
    code = "import signal, train; signal.signal(2, signal.default_int_handler); train.main()"
    out = tmp_path / "a run"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--dataset", "toy", "--device", "cpu", "--out", str(out)],
        env=ENV | {"PYTHONPATH": HERE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert f"--resume {out}" in printed


# ------------------------------------------------------------------------- a card that is not there


CARD = torch.device("meta")


class Card(TorchDispatchMode):
    """A card that is not there: tensors of torch's meta device have a shape and no numbers.

    An operation on tensors of two devices raises, as on a card.  What makes a card wait is listed
    in .waits: each look at a number, be it by item, tolist, cpu or `if`, and each copy to or from
    the card.  (numpy and a choice of elements by a mask need no list: meta tensors refuse them.)
    Numbers that are read are zeros.
    """

    def __init__(self):
        super().__init__()
        self.waits = []
        self.convolutions = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.convolutions += operation is torch.ops.aten.convolution.default
        if operation is torch.ops.aten._local_scalar_dense.default and on_card(args[0]):
            self.waits.append(place())
            return 0
        if operation is torch.ops.aten._to_copy.default:
            source, target = args[0], kwargs.get("device") or args[0].device
            if on_card(source) != (target == CARD):
                self.waits.append(place())
            if on_card(source) and target != CARD:
                return torch.zeros(source.shape, dtype=source.dtype)
            return operation(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        if any(map(on_card, tensors)) and not all(map(on_card, tensors)):
            raise AssertionError(f"{place()}: {operation} mixes devices")
        return operation(*args, **kwargs)


def on_card(tensor):
    return tensor.device == CARD


def place():
    """The function of the project that is at work."""
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals["__name__"]
        if module in ("delays", "data", "train"):
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@pytest.fixture
def card(monkeypatch):
    """A Card, which torch takes for one of CUDA."""
    # The fused Adam can compute on meta, but refuses to: this is its check of the device.
    adam = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda parameter: None)
    with Card() as card:
        yield card


ON_CARD = ["shd", "shd --delays fixed", "shd --delays none", "shd --connections 30", "toy", "ssc"]


@pytest.mark.parametrize("words", ON_CARD)
def test_an_epoch_and_an_evaluation_on_a_card_wait_for_one_sum(words, card, monkeypatch):
    options = parsed("--dataset", *words.split(), "--batch-size", 2)
    row = data.DATASETS[options.dataset]
    counts = [np.ones((steps, row.inputs), np.uint8) for steps in (12, 7, 15)]
    spikes = data.join(counts, np.arange(3)).to(CARD)
    batches = [(torch.tensor([2, 0]).to(CARD), 15), (torch.tensor([1]).to(CARD), 7)]
    monkeypatch.setattr(data, "batches", lambda *args, **kwargs: batches)
    net = train.build(options).to(CARD)
    optimizer = train.make_optimizer(net, options)
    train.set_schedules(optimizer, net, 0, options)

    card.waits.clear()
    means = train.train_epoch(net, optimizer, spikes, 2)
    assert means == [0.0] * (2 + options.layers)  # what this card reads
    assert card.waits == ["train.train_epoch"]  # once an epoch
    assert card.convolutions == (0 if options.delays == "none" else 2 * (options.layers + 1))
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter].values()  # its step and its two moments
        assert [on_card(tensor) for tensor in (parameter.grad, *state)] == [True] * 4, name
    for rounded in (True, False):
        card.waits.clear()
        assert train.evaluate(net, spikes, 2, rounded) == 0.0
        assert card.waits == ["train.evaluate"]
