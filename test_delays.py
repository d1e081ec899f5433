"""Every claim against an independent, slow oracle: `python -m pytest -q`, offline, one thread.

After a change of the method on purpose, `-m "not paper"` leaves out what has to fail then.
"""

import csv
import hashlib
import json
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import delays
import train
from delays import DelayedLinear, DelaySNN, delay_conv, lif, rounded_kernel

torch.set_num_threads(1)  # several threads fight over the cores of a busy machine

# ----------------------------------------------------------- the oracle: what a reader has to trust

# The paper's network once more, as plainly as possible, with nothing of the project.  Time comes
# first: a signal is [T, N], one sample, or [T, B, N], several.  Gradients are torch's autograd.


def plain_kernel(weight, delay, taps, sigma=None):
    """k[o,i,d] = w[o,i] g[d] / (sum_d' g[d'] + 1e-7), g[d] = exp(-((d - delay[o,i]) / sigma)^2 / 2)

    Without sigma, k[o,i,d] is w[o,i] at d = round(delay[o,i]), and 0 elsewhere.
    """
    if sigma is None:
        share = torch.stack([(delay.round() == d).to(weight.dtype) for d in range(taps)], -1)
    else:
        g = torch.stack([torch.exp(-(((d - delay) / sigma) ** 2) / 2) for d in range(taps)], -1)
        share = g / (g.sum(-1, keepdim=True) + 1e-7)
    return weight[..., None] * share  # [out, in, taps]


def plain_delayed_sum(x, kernel, tail):
    """y[t,o] = sum_i sum_d k[o,i,d] x[t-d,i], x = 0 before its first step and after its last"""
    x = torch.cat([x, x.new_zeros(tail, *x.shape[1:])])
    y = 0
    for d in range(kernel.shape[2]):
        late = torch.cat([x.new_zeros(d, *x.shape[1:]), x])[: len(x)]  # x[t-d]
        y = y + late @ kernel[:, :, d].T
    return y


def plain_spike(x, alpha=5.0):
    """1 where x >= 0, else 0, with the gradient (alpha/2) / (1 + (pi/2 alpha x)^2)"""
    slope = alpha / 2 / (1 + (math.pi / 2 * alpha * x.detach()) ** 2)
    return (x >= 0).to(x.dtype) + slope * (x - x.detach())


def plain_lif(current, tau, alpha=5.0):
    """h[t] = (1 - 1/tau) v[t-1] + I[t], s[t] = spike(h[t] - 1), v[t] = h[t] (1 - s[t])

    In v, s is a constant.
    """
    v = torch.zeros_like(current[0])
    spikes = []
    for now in current:
        h = (1 - 1 / tau) * v + now
        s = plain_spike(h - 1, alpha)
        v = h * (1 - s.detach())
        spikes.append(s)
    return torch.stack(spikes)


def plain_readout(current, tau):
    """v[t] = (1 - 1/tau) v[t-1] + I[t]"""
    v = torch.zeros_like(current[0])
    potentials = []
    for now in current:
        v = (1 - 1 / tau) * v + now
        potentials.append(v)
    return torch.stack(potentials)


def plain_scores(membrane):
    """score[c] = sum_t exp(v[t,c]) / sum_c' exp(v[t,c'])"""
    e = torch.exp(membrane)
    return (e / e.sum(-1, keepdim=True)).sum(0)


def plain_norm(net, i, current, training):
    """(I - mean) / sqrt(variance + 1e-5) scale + shift, for each neuron

    In training, mean and variance are of all steps; the running ones go a tenth towards them.
    """
    mean, variance = net[f"norms.{i}.running_mean"], net[f"norms.{i}.running_var"]
    if training:
        every = current.flatten(0, -2)
        n = len(every)
        batch_mean = every.mean(0)
        batch_variance = ((every - batch_mean) ** 2).mean(0)
        mean.copy_(0.9 * mean + 0.1 * batch_mean.detach())
        variance.copy_(0.9 * variance + 0.1 * batch_variance.detach() * n / (n - 1))
        mean, variance = batch_mean, batch_variance
    scale, shift = net[f"norms.{i}.weight"], net[f"norms.{i}.bias"]
    return (current - mean) / torch.sqrt(variance + 1e-5) * scale + shift


def plain_network(net, x, taps, tau, tau_readout, sigma=None, masks=None):
    """Return the class scores, and the spikes of two hidden layers.

    net: the tensors of the network, under the names that they have in the program.
    masks: of dropout, if this is training.  Then each layer adds taps // 2 steps.  In evaluation
        every layer runs until the last tail ends, and x has no padding.
    """
    training = masks is not None
    end = len(x) + 3 * (taps // 2)
    hidden = []
    for i in (0, 1, 2):
        kernel = plain_kernel(net[f"layers.{i}.weight"], net[f"layers.{i}.delay"], taps, sigma)
        current = plain_delayed_sum(x, kernel, taps // 2 if training else end - len(x))
        if i == 2:
            return plain_scores(plain_readout(current, tau_readout)), hidden
        x = plain_lif(plain_norm(net, i, current, training), tau)
        hidden.append(x)
        if training:
            x = x * masks[i]


# ------------------------------------------------------------------------------------------ helpers


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def uniform(*shape, high, seed=0):
    return high * torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double()


def turned(x):
    """Turn [B, T, N] into the oracle's [T, B, N], and back."""
    return x.transpose(0, 1)


def close(got, want, *, rtol, atol, name=""):
    got, want = (torch.as_tensor(values).detach().numpy() for values in (got, want))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=name)


def assert_same(got, want, inputs, rtol=1e-12, atol=1e-12):
    """Check that two tensors are equal, and the gradients of a random sum of each."""
    close(got, want, rtol=rtol, atol=atol, name="the result differs")
    g = random(*got.shape, seed=9)
    ours, theirs = (torch.autograd.grad(y, inputs, g, retain_graph=True) for y in (got, want))
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert other.any()
        name = f"the gradient of input {i} differs"
        close(one, other, rtol=100 * rtol, atol=100 * atol, name=name)


def parsed(*argv):
    return train.parse([str(word) for word in argv])


# -------------------------------------------------------------------------------------- the kernels

KERNELS = [  # the shapes of weights, delays and sigma: delays and sigma may be shared
    ((3, 4), (3, 4), ()),
    ((3, 4), (1, 4), (3, 1)),
    ((3, 4), (3, 1), (1, 4)),
]


@pytest.mark.parametrize("width", [0.1, 0.5, 12.27])  # at 0.1, the 1e-7 matters
@pytest.mark.parametrize("weights, shape, sigmas", KERNELS)
def test_kernels_are_their_equations_and_so_are_their_gradients(weights, shape, sigmas, width):
    weight = random(*weights).requires_grad_()
    delay = (uniform(*shape, high=24, seed=1).round() / 4).requires_grad_()  # and half steps
    sigma = (width + uniform(*sigmas, high=width, seed=2)).requires_grad_()
    kernel = delays.gaussian_kernel(weight, delay, sigma, 7)
    assert_same(kernel, plain_kernel(weight, delay, 7, sigma), (weight, delay, sigma))
    if sigmas == ():
        close(delays.gaussian_kernel(weight, delay, sigma.item(), 7), kernel, rtol=1e-12, atol=0)

    kernel = rounded_kernel(weight, delay, 7)
    assert_same(kernel, plain_kernel(weight, delay, 7), (weight,))
    assert torch.autograd.grad(kernel.sum(), delay, allow_unused=True) == (None,)


@pytest.mark.parametrize("outside", [-0.6, 5.6])
def test_a_delay_out_of_range_is_refused(outside):
    with pytest.raises(RuntimeError, match="out of bounds"):
        rounded_kernel(torch.ones(1, 2), torch.tensor([[3.0, outside]]), 6)


# ---------------------------------------------------------------------------------- the delayed sum

METHODS = [delay_conv, delays.conv_direct, delays.conv_fourier]
SIZES = [(1, 4, 2), (7, 3, 0), (8, 3, 1), (5, 9, 4), (3, 2, 6), (6, 1, 3), (6, 4, 3), (6, 4, 2)]


@pytest.mark.parametrize("steps, taps, tail", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_delayed_sum_is_its_equation_and_so_are_its_gradients(method, steps, taps, tail):
    x = random(2, steps, 3).requires_grad_()
    kernel = random(4, 3, taps, seed=1).requires_grad_()
    want = turned(plain_delayed_sum(turned(x), kernel, tail))
    assert_same(method(x, kernel, tail), want, (x, kernel))
    single = method(x.float(), kernel.float(), tail)
    assert single.dtype == torch.float32
    close(single, want, rtol=0, atol=1e-5)


SHD = [(140, 256), (256, 256), (256, 20)]  # inputs and outputs of each layer
TOY = [(8, 40), (40, 10)]
CHOICES = [  # batch, steps of the longest sample, layers, taps
    ("fourier", 256, 166, SHD, 25),
    ("fourier", 50, 112, TOY, 33),  # 80 steps, and the zeros for the tail
    ("direct", 1, 130, SHD, 25),
    ("direct", 256, 3000, SHD[:1], 25),
    ("linear", 256, 130, SHD, 1),
]


@pytest.mark.parametrize("method, batch, steps, layers, taps", CHOICES)
def test_a_method_of_the_convolution_is_chosen_by_batch_taps_and_length(
    method, batch, steps, layers, taps, monkeypatch
):
    called = []
    for name in ("direct", "fourier"):
        monkeypatch.setattr(delays, f"conv_{name}", lambda *given, name=name: called.append(name))
    for inputs, outputs in layers:
        x = torch.zeros(()).expand(batch, steps, inputs)  # takes no memory
        delay_conv(x, torch.zeros(outputs, inputs, taps), taps // 2)
        steps += taps // 2
    assert called == ([] if method == "linear" else [method] * len(layers))


# -------------------------------------------------------------------------------------- the neurons


def test_each_neuron_may_learn_a_tau_of_its_own():
    current = random(2, 12, 3).requires_grad_()
    tau = torch.tensor([0.5, 2.5, 6.0]).double().requires_grad_()
    want = turned(plain_lif(turned(current), tau.clamp(min=1)))
    assert_same(delays.lif_loop(current, tau), want, (current, tau))
    assert delays.leaky_integrator(current, torch.tensor(math.nan)).isnan().any()


@pytest.mark.parametrize("tau, named", [(1.0, {}), (1.005, dict(alpha=2)), (3.0, {}), (2.0, {})])
@pytest.mark.parametrize("neurons", [lif, delays.lif_loop])
def test_neurons_are_their_equations_and_so_are_their_gradients(neurons, tau, named):
    current = random(2, 12, 3)
    # With a tau of 2, h is 1, 0.5, 1, 1: exactly at the threshold, which is a spike.
    current[0, :4, 0] = torch.tensor([1.0, 0.5, 0.75, 1.0])
    current.requires_grad_()
    spikes = neurons(current, tau, **named)
    want = turned(plain_lif(turned(current), tau, **named))
    if tau == 2:
        assert spikes[0, :4, 0].tolist() == [1, 0, 1, 1]
    assert_same(spikes, want, (current,))


@pytest.mark.parametrize("tau", [0.9, math.nan])
@pytest.mark.parametrize("neurons", [lif, delays.lif_loop, delays.leaky_integrator])
def test_a_time_constant_of_less_than_a_step_is_refused(neurons, tau):
    with pytest.raises(ValueError, match="tau is .*: expected a number of steps, at least 1"):
        neurons(torch.ones(5, 2, 2), tau)


@pytest.mark.parametrize("tau", [3.0, 1.005])
def test_readout_is_its_equation_and_so_are_its_gradients(tau):
    current = random(2, 150, 3).requires_grad_()
    tau = torch.tensor(tau).double().requires_grad_()  # it may be learned
    want = turned(plain_readout(turned(current), tau))
    assert_same(delays.leaky_integrator(current, tau), want, (current, tau))
    close(delays.leaky_integrator(current, tau.item()), want, rtol=1e-12, atol=1e-12)
    close(delays.leaky_integrator(current, 1.0), current, rtol=1e-12, atol=0)
    coarse = delays.leaky_integrator(current.bfloat16(), 30.0)  # its powers are float64
    close(coarse.double(), turned(plain_readout(turned(current), 30.0)), rtol=0, atol=0.1)


# ------------------------------------------------------------ the layer, the network, the schedules


def state_of(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def some_counts(steps=12, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.poisson(0.4, (batch, steps, 6)).astype(np.float64))


def from_lengths(steps):
    """Return samples of these lengths for the network `small`."""
    counts = [some_counts(n, 1, seed=n)[0].numpy().astype(np.uint8) for n in steps]
    return data.Spikes(counts, np.arange(len(steps)) % 3)


def small(kind=DelaySNN, **options):
    """Return a network of 6 inputs, 8 and 7 hidden neurons and 4 classes.

    Its norms have seen data: without statistics of the currents, the neurons would be silent.
    """
    torch.manual_seed(0)
    net = kind(6, (8, 7), 4, **{"taps": 5, **options}).double()
    for layer in net.layers:
        layer.sigma = 0.5
    for seed in range(20):
        net(some_counts(seed=seed))
    return net


@pytest.mark.paper
@pytest.mark.parametrize(
    "words, weights, parameters",
    [
        ("--dataset shd", 106_496, 214_016),
        ("--dataset shd --delays fixed", 106_496, 107_520),
        ("--dataset ssc", 613_888, 2 * 613_888 + 2 * 3 * 512),
    ],
)
def test_networks_have_the_published_number_of_parameters(words, weights, parameters):
    options = parsed(*words.split())
    net = train.build(options)
    assert sum(layer.weight.numel() for layer in net.layers) == weights
    assert train.count(net.parameters()) == parameters
    assert net.tau == net.tau_readout == pytest.approx(options.tau / 10, rel=1e-12)
    assert net.dropout == options.dropout
    usual = DelaySNN(6, [8], 4)
    assert (usual.tau, usual.dropout, usual.layers[0].taps) == (1.005, 0.4, 25)
    for layer in net.layers:
        bound = math.sqrt(6 / layer.weight.shape[1])  # Kaiming's, uniform, for relu
        assert 0.9 * bound < layer.weight.max() <= bound
        assert -0.9 * bound > layer.weight.min() >= -bound
        assert 0 <= layer.delay.min() < 1
        assert options.taps - 2 < layer.delay.max() <= options.taps - 1


def test_fixed_delays_are_whole_and_need_no_sigma():
    torch.manual_seed(0)
    layer = DelayedLinear(30, 40, 5, learn_delays=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    torch.manual_seed(0)
    assert torch.equal(layer.delay, DelayedLinear(30, 40, 5).delay.round())
    assert torch.equal(layer.kernel(), rounded_kernel(layer.weight, layer.delay, 5))
    with pytest.raises(ValueError, match="sigma is None: .* shrinking_sigma"):
        DelayedLinear(30, 40, 5).kernel()


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_predict_keeps_the_order_of_the_samples_and_the_mode_of_the_network(mode, rounded):
    spikes = from_lengths([12, 7, 3, 9])
    net = small()
    net.layers[0] = DelayedLinear(6, 8, taps=3).double()  # its tail is not that of the others
    net.layers[0].sigma = 0.5
    for norm in net.norms:
        norm.bias.data += 1  # neurons that spike in silence, so that zeros matter
    net.train(mode)
    before = state_of(net)
    scores = train.predict(net, spikes, 3, rounded)
    assert all(module.training == mode for module in net.modules())
    assert same_bits(state_of(net), before)
    assert not scores.requires_grad  # evaluation has no graph
    for b in (2, 0, 3, 1):  # nor do other samples matter
        alone = train.predict(net, spikes.select(np.arange(4) == b), rounded=rounded)
        close(alone, scores[b : b + 1], rtol=0, atol=1e-11)
    assert (scores - train.predict(net, spikes, 3, not rounded)).abs().max() > 1e-3
    labelled = data.Spikes(spikes.counts, scores.argmax(1))
    assert train.evaluate(net, labelled, 3, rounded) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_and_predicts_with_the_same_numbers():
    train.set_backend()
    options, results = parsed("--batch-size", 3, "--lr", 0.01), []
    for device in ("cpu", "cuda"):
        net, spikes = small(dropout=0.0).to(device), from_lengths([12, 7, 3, 9]).to(device)
        optimizer = train.make_optimizer(net, options)
        train.set_schedules(net, optimizer, 0, options)
        torch.manual_seed(0)
        means = train.train_epoch(net, optimizer, spikes, 0, options)
        scores = train.predict(net, spikes, 3)
        results.append([means, scores.cpu(), *(value.cpu() for value in net.state_dict().values())])
    for cpu, gpu in zip(*results, strict=True):
        close(gpu, cpu, rtol=1e-6, atol=1e-6)


def test_schedules_at_named_epochs():
    assert delays.shrinking_sigma(0, 150, 1) == 0.5  # one tap is never wide
    assert train.one_cycle(0, 1, 5e-3) == pytest.approx((5e-3, 0.85), rel=1e-12, abs=0)


# ------------------------------------------------------------------------------------- the toy task


def test_toy_samples_are_those_of_the_published_accuracies_and_noise_only_adds_spikes():
    for split, md5 in (
        ("train", "5bf533d260528ed887f8794f89d98ed7"),
        ("test", "67d056e1e1cf6fa6997bcdf7edc032df"),
    ):
        toy, clean = data.toy(split), torch.stack(data.toy(split, noise=0).counts).numpy()
        counts, labels = torch.stack(toy.counts).numpy(), toy.labels.numpy()
        assert hashlib.md5(counts.tobytes() + labels.tobytes()).hexdigest() == md5
        assert (counts >= clean).all() and (clean.sum((1, 2)) == 8 * 4).all()


# -------------------------------------------------------------------------- a data set of the tests

# Small, with samples of 8 to 14 steps of 4 ms.  No number is a default of another data set.
LITTLE_INPUTS, LITTLE_CLASSES, LITTLE_STEP_MS = 5, 3, 4.0
LITTLE_SIZES = {"train": 44, "valid": 27, "test": 61}
LITTLE = dict(hidden=7, layers=2, taps=6, tau=12.0, dropout=0.2, batch_size=8, epochs=9)


def little_samples(split):
    """Return [(counts [steps, inputs], label, speaker)].  A class is the input that spikes most."""
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
    return data.Spikes([own.astype(np.uint8) for own in counts], labels, speakers)


@pytest.fixture
def little(monkeypatch):
    """Two data sets of one's own, each by one row in data.py's table and one in train.py's."""
    for name, splits in (("little", ("train", "test")), ("validated", ("train", "valid", "test"))):
        row = data.Dataset(read_little, splits, LITTLE_INPUTS, LITTLE_CLASSES, LITTLE_STEP_MS)
        monkeypatch.setitem(data.DATASETS, name, row)
        monkeypatch.setitem(train.DEFAULTS, name, LITTLE)


def options_of(out, *words):
    return parsed("--device", "cpu", "--out", out, *words)


def log_of(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def record_batches(monkeypatch):
    """Return a list to which each epoch to come adds its shuffled batches, [[index, ..], ..]."""
    epochs = []
    draw = data.batches

    def batches(spikes, size, shuffle=True):
        drawn = list(draw(spikes, size, shuffle))
        if shuffle:
            epochs.append([indices.tolist() for indices, _ in drawn])
        return drawn

    monkeypatch.setattr(data, "batches", batches)
    return epochs


def record_dropout(monkeypatch):
    """Return a list to which each layer and batch of training adds its mask of dropout, [B, N]."""
    masks = []
    draw = torch.nn.functional.dropout1d

    def dropout1d(x, share, training):  # [B, N, T]
        mask = draw(torch.ones_like(x), share, training)
        assert torch.equal(mask, mask[:, :, :1].expand_as(mask))  # held over time
        if training:
            masks.append(mask[:, :, 0])
        return x * mask

    monkeypatch.setattr(delays.F, "dropout1d", dropout1d)
    return masks


# ------------------------------------------------------------------- the whole training, done twice


def plain_sizes(options):
    """Return taps, tau and tau_readout of the plain network, in steps."""
    tau = options.tau / LITTLE_STEP_MS
    tau_readout = tau if options.tau_readout is None else options.tau_readout / LITTLE_STEP_MS
    return 1 if options.delays == "none" else options.taps, tau, tau_readout


def plain_sigma(epoch, options):
    """Return the sigma of training's kernels, or None if they have one tap."""
    if options.delays in ("fixed", "none"):
        return None
    quarter = options.epochs // 4
    if options.delays == "constant-sigma" or epoch >= quarter:
        return 0.5
    widest = options.taps // 2
    return 0.27 + widest * (0.23 / widest) ** (epoch / quarter)


def plain_accuracy(scores, labels):
    """Return the share of samples whose class has the best score.

    Where the best scores are equal, as of a silent readout, rounding decides: such a sample may
    count or not.
    """
    right = torch.nn.functional.one_hot(torch.as_tensor(labels), LITTLE_CLASSES).bool()
    lead = scores[right] - scores.masked_fill(right, -math.inf).max(1).values
    hits, ties = (lead > 1e-9).double().mean().item(), (lead.abs() <= 1e-9).double().mean().item()
    return pytest.approx(hits + ties / 2, rel=0, abs=ties / 2 + 1e-9)


def plain_evaluation(net, samples, options, sigma=None):
    """Return the accuracy of samples [(counts, label, speaker)], without any padding."""
    scores, labels = [], []
    for steps in {len(counts) for counts, _, _ in samples}:
        some = [sample for sample in samples if len(sample[0]) == steps]
        x = torch.from_numpy(np.stack([counts for counts, _, _ in some], 1)).double()
        scores.append(plain_network(net, x, *plain_sizes(options), sigma)[0])
        labels += [label for _, label, _ in some]
    return plain_accuracy(torch.cat(scores), labels)


def plain_epoch(net, optimizers, samples, batches, masks, options, sigma):
    """Train on all samples once.  Return the means of loss, accuracy and the two rates."""
    taps, _, _ = plain_sizes(options)
    losses, all_scores, all_labels, rates = [], [], [], []
    for indices in batches:
        x = [torch.from_numpy(samples[index][0]).double() for index in indices]
        x = torch.nn.utils.rnn.pad_sequence(x)  # [T, B, N], zeros after the shorter ones
        labels = [samples[index][1] for index in indices]
        of_layers = [next(masks), next(masks)]  # [B, N], the same for all steps
        scores, hidden = plain_network(net, x, *plain_sizes(options), sigma, of_layers)
        loss = scores.exp().sum(1).log() - scores[range(len(labels)), labels]  # cross-entropy
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        for i in (0, 1, 2):
            net[f"layers.{i}.delay"].data.clamp_(0, taps - 1)
        losses += loss.tolist()
        all_scores.append(scores.detach())
        all_labels += labels
        rates += [[spikes.mean().item() for spikes in hidden]] * len(labels)
    return np.mean(losses), plain_accuracy(torch.cat(all_scores), all_labels), *np.mean(rates, 0)


def plain_moved_ms(net, start):
    distances = []
    for i in (0, 1, 2):
        distance = (net[f"layers.{i}.delay"].detach() - start[f"layers.{i}.delay"]).abs()
        distances += (LITTLE_STEP_MS * distance).flatten().tolist()
    return np.mean(distances)


def plain_training(start, options, epochs, masks, sets):
    """Train with torch's optimizers and schedulers; yield the network and the row of each epoch."""
    net = {name: value.clone() for name, value in start.items()}
    weights = [net[f"layers.{i}.weight"].requires_grad_() for i in (0, 1, 2)]
    norms = [
        net[f"norms.{i}.{name}"].requires_grad_() for i in (0, 1) for name in ("weight", "bias")
    ]
    decayed = {"params": weights, "weight_decay": options.weight_decay}
    adam = torch.optim.Adam([decayed, {"params": norms}])
    optimizers = [adam]
    total = options.epochs
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(adam, options.lr, total_steps=total)]
    if options.delays in ("learned", "constant-sigma"):
        moving = [net[f"layers.{i}.delay"].requires_grad_() for i in (0, 1, 2)]
        optimizers.append(torch.optim.Adam(moving, lr=options.delay_lr))
        schedulers.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[1], total))

    judge = "valid" if "valid" in sets else "test"
    masks = iter(masks)
    for epoch, batches in enumerate(epochs):
        sigma = plain_sigma(epoch, options)
        row = {"epoch": epoch + 1, "sigma": sigma, "lr": adam.param_groups[0]["lr"]}
        means = plain_epoch(net, optimizers, sets["train"], batches, masks, options, sigma)
        row["loss"], row["train_accuracy"], row["rate_1"], row["rate_2"] = means
        row["valid_accuracy"] = row["test_accuracy"] = None
        with torch.no_grad():
            row[f"{judge}_accuracy"] = plain_evaluation(net, sets[judge], options)
        row["moved_ms"] = plain_moved_ms(net, start)
        yield {name: value.detach().clone() for name, value in net.items()}, row
        if epoch + 1 < total:
            for scheduler in schedulers:
                scheduler.step()


RECIPES = [
    "learned --valid-speakers 1,2",
    "constant-sigma --tau-readout 23",
    "fixed --valid-speakers 0",
    "none --tau-readout 23",
]


@pytest.mark.paper
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_whole_training_is_that_of_a_slow_trainer(recipe, little, tmp_path, monkeypatch):
    rates = "--lr 0.03 --delay-lr 0.3 --weight-decay 0.005"
    words = f"--dataset little {rates} --delays {recipe}".split()
    options = options_of(tmp_path / "run", *words)
    epochs, masks = record_batches(monkeypatch), record_dropout(monkeypatch)
    net = train.build(options).double().eval()  # training turns this off
    start = state_of(net)
    seen = []

    def after_epoch(net, row):  # before its epoch is saved, so that the log has what it adds
        assert os.path.exists(tmp_path / "run/last.pt") == (row["epoch"] > 1)
        row["added"] = row["epoch"] / 2
        seen.append((state_of(net), row))

    result = train.train(options, net, after_epoch=after_epoch)
    assert not net.training

    sets = {split: little_samples(split) for split in ("train", "test")}
    if options.valid_speakers:
        held_out = [int(speaker) for speaker in options.valid_speakers.split(",")]
        sets["valid"] = [sample for sample in sets["train"] if sample[2] in held_out]
        sets["train"] = [sample for sample in sets["train"] if sample[2] not in held_out]
    samples = len(sets["train"])
    for batches in epochs:  # each has every sample once, and the ragged rest is one of its batches
        assert sorted(sum(batches, [])) == list(range(samples))
        assert sorted(map(len, batches)) == [samples % 8] + [8] * (samples // 8)
    drawn = torch.cat([mask.flatten() for mask in masks])
    assert set(drawn.tolist()) == {0.0, 1 / 0.8}
    assert (drawn == 0).double().mean().item() == pytest.approx(0.2, rel=0, abs=0.03)

    want = []
    twice = zip(seen, plain_training(start, options, epochs, masks, sets), strict=True)
    for (state, row), (plain_state, plain_row) in twice:
        want.append(plain_state)
        for key, value in plain_row.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=1e-9, abs=1e-9)
            assert row[key] == value, (row["epoch"], key)
        for name, value in plain_state.items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)
    for line, (_, row) in zip(log_of(tmp_path / "run"), seen, strict=True):
        for key, value in row.items():
            assert line[key] == ("" if value is None else str(value)), key

    sigma = plain_sigma(8, options)
    assert result["test_accuracy"] == plain_evaluation(want[-1], sets["test"], options)
    assert result["unrounded_accuracy"] == plain_evaluation(want[-1], sets["test"], options, sigma)
    assert result["valid_accuracy"] == seen[-1][1]["valid_accuracy"]


def test_the_loss_and_both_accuracies_take_the_scores_of_the_network(little, tmp_path):
    class First(DelaySNN):
        def scores(self, membrane, steps=None):  # always those of the first class
            return 0 * membrane.sum(1) + torch.tensor([1.0, 0.0, 0.0])

    options = options_of(tmp_path / "run", "--dataset", "little", "--epochs", 1)
    result = train.train(options, First(LITTLE_INPUTS, [7], LITTLE_CLASSES, taps=6))
    row = log_of(tmp_path / "run")[0]
    got = [float(row["loss"]), float(row["train_accuracy"]), result["test_accuracy"]]
    close(got, [math.log(math.e + 2) - 15 / 44, 15 / 44, 21 / 61], rtol=1e-6, atol=0)


def test_layers_whose_taps_differ_have_a_sigma_each_and_add_up_their_tails(little):
    options = parsed("--dataset", "little", "--epochs", 4)
    net = train.build(options)
    net.layers[1] = DelayedLinear(7, 7, taps=11)
    train.set_schedules(net, train.make_optimizer(net, options), 0, options)
    sigmas = [layer.sigma for layer in net.layers]
    assert sigmas == pytest.approx([3.27, 5.27, 3.27], rel=1e-12, abs=0)
    assert net.tail == 3 + 5 + 3 and net(torch.ones(2, 10, 5)).shape == (2, 10 + 11, 3)


def each_sample(spikes):
    """Return what the Spikes hold, as lists: the counts, label and speaker of each sample."""
    counts = [sample.tolist() for sample in spikes.counts]
    return list(zip(counts, spikes.labels.tolist(), spikes.speakers.tolist(), strict=True))


def test_a_random_share_is_held_out_the_same_for_all_variants_and_after_resume(little, tmp_path):
    words = ["--dataset", "little", "--valid-share", 0.2, "--epochs", 1, "--seed"]
    everyone = each_sample(data.load("little", "train", ""))
    held_out = []
    for run, seed, variant in [("a", 0, "learned"), ("b", 0, "fixed"), ("c", 1, "learned")]:
        train.train(options_of(tmp_path / run, *words, seed, "--delays", variant))
        (tmp_path / run / "result.json").unlink()  # or the run has ended
        for options in (parsed(*words, seed), parsed("--resume", tmp_path / run)):
            sets = {split: each_sample(own) for split, own in train.load_sets(options).items()}
            assert [len(sets[split]) for split in ("train", "valid", "test")] == [35, 9, 61]
            assert sorted(sets["train"] + sets["valid"]) == sorted(everyone)
            held_out.append(sets["valid"])
    rank = np.random.default_rng([0, 1]).permutation(44)
    held_out.insert(0, [everyone[i] for i in np.flatnonzero(rank < 0.2 * 44)])
    assert [own == held_out[0] for own in held_out] == [True] * 5 + [False] * 2


def test_a_loss_and_augmentation_of_ones_own_get_the_batch(little, tmp_path, monkeypatch):
    lengths, losses, texts, flushed = {True: [], False: []}, [], [], []

    def stretched(counts, labels):
        assert (counts.sum(1).argmax(1) == labels).float().mean() > 0.5  # the class spikes most
        return counts.repeat_interleave(2, 1)

    def quiet(net, counts, membrane, labels):
        assert counts.shape[1] % 2 == 0 and counts.dtype == torch.uint8
        assert membrane.shape[:2] == (len(labels), counts.shape[1] + net.tail)
        loss = train.cross_entropy(net, counts, membrane, labels) + 1000 * sum(net.rates)
        losses.append((len(labels), loss.item()))
        return loss

    words = ["--dataset", "little", "--epochs", 3, "--lr", 0.05]
    train.train(options_of(tmp_path / "plain", *words))
    options = options_of(tmp_path / "own", *words)
    net = train.build(options)
    net.register_forward_pre_hook(lambda net, x: lengths[net.training].append(x[0].shape[1]))
    clock = SimpleNamespace(time=lambda: len(lengths[True]) + len(lengths[False]))
    monkeypatch.setattr(train, "time", clock)
    monkeypatch.setattr(data, "progress", texts.append)
    monkeypatch.setattr(sys.stdout, "flush", lambda: flushed.append(len(losses)))
    train.train(options, net, quiet, stretched)
    assert texts[-1] == "epoch 3 of 3, batch 6"
    assert {6, 12, 18} <= set(flushed)  # a log in a file shows each epoch that has ended
    # Training and evaluation take 6 and 8 batches, and each is a second.
    assert [row["seconds"] for row in log_of(tmp_path / "own")] == ["14", "14", "14"]
    assert len(losses) == len(lengths[True]) == 3 * 6  # batches of the 44 training samples
    assert max(lengths[True]) == 2 * 14
    assert max(lengths[False]) == 14 + net.tail  # evaluation is not augmented
    assert lengths[False][:8] == sorted(lengths[False][:8])  # with the least padding
    plain, own = log_of(tmp_path / "plain"), log_of(tmp_path / "own")
    mean = sum(size * loss for size, loss in losses[:6]) / 44  # in double precision
    assert float(own[0]["loss"]) == pytest.approx(mean, rel=1e-12, abs=0)
    right = 44 * float(own[0]["train_accuracy"])
    assert right == pytest.approx(round(right), rel=1e-12, abs=0)
    assert float(own[-1]["rate_1"]) < 0.5 * float(plain[-1]["rate_1"])


@pytest.mark.parametrize("place", [0, -1])  # the first weight, and a norm's running variance
def test_a_nan_ends_a_run_although_silent_neurons_have_a_finite_loss(place, little, tmp_path):
    def spoil(net, optimizer, epoch, options):
        floats = [value for value in net.state_dict().values() if value.is_floating_point()]
        floats[place].flatten()[0] = math.nan

    with pytest.raises(data.UserError, match="^(layers|norms|the loss).* is not finite after epo"):
        train.train(options_of(tmp_path / "run", "--dataset", "little"), before_epoch=spoil)


# -------------------------------------------------------------------- the rule behind each headline

SPLIT_OF_SIZE = {61: "test", 27: "valid", 22: "valid"}  # 22: half of the training samples

MADE_UP = {
    "valid": [0.2, 0.6, 0.5, 0.1, 0.4, 0.6, 0.55, 0.3],
    "test": [0.1, 0.45, 0.3, 0.2, 0.9, 0.75, 0.7, 0.4],
    "test, unrounded": [0.15, 0.55, 0.35, 0.25, 0.95, 0.8, 0.6, 0.5],
    "valid, unrounded": [0.25, 0.65, 0.45, 0.05, 0.1, 0.7, 0.85, 0.75],
}


@pytest.fixture
def asked(little, monkeypatch):
    """Put made-up accuracies in place of train.evaluate: MADE_UP[split] has one an epoch.

    Returns a list, to which the run adds what was evaluated, of which epoch, and its sigma.
    """
    asked = []

    def evaluate(net, spikes, batch_size, rounded=True):
        epoch = round(net.layers[0].weight[0, 0].item())
        split = SPLIT_OF_SIZE[len(spikes.labels)] + ("" if rounded else ", unrounded")
        asked.append((split, epoch, net.layers[0].sigma))
        return MADE_UP[split][epoch - 1]

    monkeypatch.setattr(train, "evaluate", evaluate)
    return asked


def number(net, optimizer, epoch, options):
    """Write the number of an epoch into a weight, which a batch of training hardly changes."""
    net.layers[0].weight.data[0, 0] = epoch + 1


LAST = dict(rule="last epoch", test_accuracy=0.4, valid_accuracy=None)
LAST |= dict(unrounded_accuracy=0.5)
CHOSEN = dict(rule="best on validation, epoch 2", test_accuracy=0.45, valid_accuracy=0.6)
CHOSEN |= dict(unrounded_accuracy=0.55)
UNTESTED = CHOSEN | dict(test_accuracy=None, unrounded_accuracy=0.65)  # on validation
COMPARED = LAST | dict(test_accuracy=None, valid_accuracy=0.3)  # on speakers held out
COMPARED |= dict(unrounded_accuracy=0.75)

HEADLINES = [  # and the number of validation samples
    ("--dataset little", 0, LAST),
    ("--dataset little --valid-share 0.5", 22, CHOSEN),
    ("--dataset validated", 27, CHOSEN),
    ("--dataset validated --valid-share 0.5 --no-test", 22, UNTESTED),
    ("--dataset validated --valid-speakers 1,3 --no-test", 22, COMPARED),
    ("--dataset little --valid-speakers 1,3", 22, LAST | dict(valid_accuracy=0.3)),
]


@pytest.mark.parametrize("words, samples, want", HEADLINES)
def test_headline_is_of_the_epoch_that_counts(words, samples, want, tmp_path, asked, capsys):
    judge = "valid" if samples else "test"
    epoch = 8 if want["rule"] == "last epoch" else 2
    reported = "valid" if "--no-test" in words else "test"
    run = tmp_path / "run"
    sizes = "--hidden 6 --layers 1 --taps 5 --epochs 8 --batch-size 44 --device cpu --out"
    train.main([*words.split(), *sizes.split(), str(run)], before_epoch=number)
    sigmas = [delays.shrinking_sigma(e, 8, 5) for e in range(8)]
    assert asked[:8] == [(judge, e + 1, sigmas[e]) for e in range(8)]
    at_the_end = [(what, epoch, sigmas[epoch - 1]) for what in (reported, f"{reported}, unrounded")]
    assert sorted(asked[8:]) == at_the_end
    result, rows = result_of(run), log_of(run)
    assert {key: result[key] for key in want} == want
    for split in ("valid", "test"):
        logged = [row[f"{split}_accuracy"] for row in rows]
        assert logged == ([str(value) for value in MADE_UP[split]] if split == judge else [""] * 8)
    sizes = json.loads((run / "config.json").read_text())["samples"]
    assert sizes.get("valid", 0) == samples and ("test" in sizes) == (reported == "test")
    printed, errors = capsys.readouterr()
    assert errors == ""  # progress is for terminals alone
    assert [name.replace("accuracy", "acc") for name in rows[0]] in map(
        str.split, printed.split("\n")
    )
    assert all(f" {value} " in printed for value in MADE_UP[judge])
    accuracy = f"{reported} accuracy {want[f'{reported}_accuracy']:.2%}"
    unrounded = f"{want['unrounded_accuracy']:.2%} with the training kernels"
    assert printed.endswith(f"\n{accuracy} ({want['rule']}; {unrounded})\n")
    train.main(["--eval", str(run), "--device", "cpu"])
    assert capsys.readouterr().out == f"{accuracy} ({run})\n"
    net, _ = train.load_run(run)
    assert net.layers[0].sigma == sigmas[epoch - 1] and not net.training
