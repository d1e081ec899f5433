"""Every claim against an independent, slow oracle: `python -m pytest -q`, offline, a minute."""
import csv
import functools
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

import data
import delays
import train
from delays import (DelayedLinear, DelaySNN, class_scores, delay_conv, gaussian_kernel,
                    integer_kernel)

HERE = os.path.dirname(os.path.abspath(__file__))


def random(*shape, seed=0, dtype=torch.float64, grad=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.requires_grad_(grad)


def slow_conv(x, k, tail):
    """The delayed sum as it is written in the docstring, one product at a time."""
    y = np.zeros((len(x) + tail, x.shape[1], k.shape[0]))
    for t, b, o, i, d in np.ndindex(*y.shape, k.shape[1], k.shape[2]):
        if 0 <= t - d < len(x):
            y[t, b, o] += k[o, i, d] * x[t - d, b, i]
    return y


# ---------------------------------------------------------------------------------------- kernels

@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("sigma", [0.5, 3.0, 12.27])
def test_gaussian_kernel_is_the_formula(count, sigma):
    taps, w, p = 9, random(count, 3, 4).numpy(), random(count, 3, 4, seed=1).abs().numpy() * 3
    want = np.zeros((3, 4, taps))
    for c, o, i in np.ndindex(w.shape):
        g = np.array([math.exp(-((d - p[c, o, i]) / sigma) ** 2 / 2) for d in range(taps)])
        want[o, i] += w[c, o, i] * g / (g.sum() + 1e-7)
    w, p = torch.from_numpy(w), torch.from_numpy(p)
    got = gaussian_kernel(*((w, p) if count > 1 else (w[0], p[0])), sigma, taps)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("count", [1, 3])
def test_gaussian_kernel_tends_to_the_integer_kernel(count):
    w, p = random(count, 3, 4), torch.randint(0, 7, (count, 3, 4)) + 0.2 * torch.rand(count, 3, 4)
    p = p.double().clamp(max=6)
    narrow, whole = gaussian_kernel(w, p, 0.1, 7), integer_kernel(w, p, 7)
    torch.testing.assert_close(narrow, whole, rtol=2e-6, atol=1e-6)  # 1e-7 in the formula
    for o, i in np.ndindex(3, 4):
        for d in range(7):
            want = sum(w[c, o, i].item() for c in range(count) if round(p[c, o, i].item()) == d)
            assert whole[o, i, d].item() == pytest.approx(want, abs=1e-14)


# ------------------------------------------------------------------------------------ delayed sum

BACKENDS = {"fourier": delays.ConvFourier.apply, "direct": delays.conv_direct}


@pytest.mark.parametrize(
    "steps, taps, tail", [(1, 4, 2), (7, 3, 0), (8, 3, 1), (5, 9, 4), (3, 2, 6)])
@pytest.mark.parametrize("backend", [*BACKENDS, "delay_conv"])
def test_delayed_sum_is_the_triple_loop(backend, steps, taps, tail):
    x, k = random(steps, 2, 3, grad=True), random(4, 3, taps, seed=1, grad=True)
    y = BACKENDS.get(backend, delay_conv)(x, k, tail)
    np.testing.assert_allclose(y.detach(), slow_conv(x.detach(), k.detach(), tail), atol=1e-12)
    g = random(*y.shape, seed=2)
    dx, dk = torch.autograd.grad(y, (x, k), g)
    want_x, want_k = np.zeros(x.shape), np.zeros(k.shape)
    for t, b, o, i, d in np.ndindex(*y.shape, 3, taps):
        if 0 <= t - d < steps:
            want_x[t - d, b, i] += g[t, b, o] * k.detach()[o, i, d]
            want_k[o, i, d] += g[t, b, o] * x.detach()[t - d, b, i]
    np.testing.assert_allclose(dx, want_x, atol=1e-12)
    np.testing.assert_allclose(dk, want_k, atol=1e-12)


def test_backends_agree_in_single_precision_at_working_size():
    x, k = random(110, 16, 140, dtype=torch.float32), random(64, 140, 25, dtype=torch.float32)
    a, b = (f(x.clamp(0, 1), k, 12) for f in BACKENDS.values())
    assert (a - b).norm() / b.norm() < 2e-6


def test_no_delays_is_a_linear_layer():
    x, k = random(5, 2, 3), random(4, 3, 1)
    want = np.einsum("tbi,oi->tbo", x, k[:, :, 0])
    want = np.concatenate([want, np.zeros((2, 2, 4))])
    np.testing.assert_allclose(delay_conv(x, k, 2), want, atol=1e-14)


def test_whole_step_delays_are_shifts():
    x, delay = random(10, 2, 3), torch.tensor([[0., 2., 4.]]).double()
    y = delay_conv(x, integer_kernel(torch.ones(1, 3).double(), delay, 5), 4)
    want = np.zeros((14, 2))
    for i, d in enumerate((0, 2, 4)):
        want[d:d + 10] += x[:, :, i].numpy()
    np.testing.assert_allclose(y[:, :, 0], want, atol=1e-13)


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_gradients_of_weight_and_delay_are_finite_differences(sigma):
    x, w, p = random(6, 2, 3), random(2, 2, 3, grad=True), random(2, 2, 3, seed=3).abs() + 0.5
    g, p = random(8, 2, 2, seed=4), p.detach().requires_grad_()
    loss = lambda w, p: (delay_conv(x, gaussian_kernel(w, p, sigma, 5), 2) * g).sum()
    got, eps = torch.autograd.grad(loss(w, p), (w, p)), 1e-6
    for which in (0, 1):
        for index in np.ndindex(2, 2, 3):
            ends = []
            for sign in (1, -1):
                args = [w.detach().clone(), p.detach().clone()]
                args[which][index] += sign * eps
                ends.append(loss(*args).item())
            slope = (ends[0] - ends[1]) / 2 / eps
            assert got[which][index].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


# ---------------------------------------------------------------------------------------- neurons

def slow_lif(current, decay, threshold):
    """One neuron, one step at a time, in Python floats."""
    v, spikes, hs = 0.0, [], []
    for i in current:
        h = decay * v + i
        s = 1.0 if h >= threshold else 0.0
        v = h * (1 - s)
        spikes.append(s), hs.append(h)
    return spikes, hs


def test_lif_by_hand():
    # tau 2 steps: v halves.  0.6; 0.3 + 0.8 = 1.1, a spike; from 0: 0.6; 0.3 + 0.7 = 1.0, a spike.
    got = delays.lif(torch.tensor([0.6, 0.8, 0.6, 0.7, 0.9]).double().view(5, 1, 1), 2.0)
    assert got.flatten().tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("tau, threshold", [(1.0, 1.0), (1.005, 1.0), (3.0, 0.5)])
def test_lif_is_the_scalar_loop_and_so_is_its_gradient(tau, threshold):
    current, alpha = random(12, 2, 3, grad=True), 5.0
    spikes = delays.lif(current, tau, threshold, alpha)
    g = random(12, 2, 3, seed=1)
    grad, = torch.autograd.grad(spikes, current, g)
    for b, n in np.ndindex(2, 3):
        s, h = slow_lif(current[:, b, n].tolist(), 1 - 1 / tau, threshold)
        assert spikes[:, b, n].tolist() == s
        for start in range(12):  # dL/dI[start]: the effect on every later h, the reset constant
            want, effect = 0.0, 1.0
            for t in range(start, 12):
                slope = alpha / 2 / (1 + (math.pi / 2 * alpha * (h[t] - threshold)) ** 2)
                want += g[t, b, n].item() * slope * effect
                effect *= (1 - 1 / tau) * (1 - s[t])  # v[t] = h[t] (1 - s[t]), s constant: detached
            assert grad[start, b, n].item() == pytest.approx(want, rel=1e-10, abs=1e-14)


def test_surrogate_is_the_derivative_of_the_arctan():
    x, eps = np.linspace(-2, 2, 41), 1e-6
    smooth = lambda x: np.arctan(np.pi / 2 * 5.0 * x) / np.pi
    want = (smooth(x + eps) - smooth(x - eps)) / (2 * eps)
    got = delays.atan_surrogate_(torch.from_numpy(x), 5.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_leaky_integrator_is_the_recursion():
    current = random(9, 2, 3, grad=True)
    v, want = torch.zeros(2, 3).double(), []
    for i in current:
        v = (1 - 1 / 3.0) * v + i
        want.append(v)
    want, g = torch.stack(want), random(9, 2, 3, seed=1)
    got = delays.leaky_integrator(current, 3.0)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(y, current, g)[0] for y in (got, want)))


def test_class_scores_are_sums_of_softmax_over_own_steps():
    v = random(5, 2, 3)
    e = np.exp(v.numpy())
    p = e / e.sum(2, keepdims=True)
    np.testing.assert_allclose(class_scores(v), p.sum(0), rtol=1e-12)
    want = np.stack([p[:2, 0].sum(0), p[:4, 1].sum(0)])
    np.testing.assert_allclose(class_scores(v, torch.tensor([2, 4])), want, rtol=1e-12)


# ---------------------------------------------------------------------------------------- network

def small(**kwargs):
    torch.manual_seed(0)
    net = DelaySNN(6, (8, 7), 4, **{"taps": 5, **kwargs}).double()
    for seed in range(20):  # gives the norms statistics; untrained, the network is silent
        net(spikes(seed=seed))
    return net


def first(spikes, samples):
    """The Spikes of the first samples."""
    rest = (field[:samples] for field in spikes[1:])
    return data.Spikes(spikes.counts[:spikes.steps[:samples].sum()], *rest)


def spikes(steps=12, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.poisson(0.4, (steps, batch, 6)).astype(np.float64))


def test_shd_network_has_the_published_number_of_parameters():
    net = DelaySNN(140, (256, 256), 20)
    assert sum(p.numel() for p in net.parameters()) == 214_016
    assert sum(layer.weight.numel() for layer in net.layers) == 106_496


def test_evaluation_uses_whole_steps_and_changes_no_bit():
    net = small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()
    soft = net(spikes())
    with torch.no_grad():
        for layer in net.layers:
            layer.delay.round_()
    assert torch.equal(net(spikes()), soft)
    for name, value in net.state_dict().items():
        assert name.endswith("delay") or torch.equal(value, before[name]), name


def test_evaluate_leaves_the_network_as_it_was():
    net, toy = DelaySNN(data.INPUTS["toy"], (5,), 10), data.toy("test")
    before, mode = {k: v.clone() for k, v in net.state_dict().items()}, net.training
    train.evaluate(net, toy, 100)
    assert net.training == mode
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_evaluation_is_causal():
    net, x = small().eval(), spikes(20)
    y, t = net(x), 11
    x[t + 1:] = spikes(8, seed=5)
    changed = net(x)
    torch.testing.assert_close(changed[:t + 1], y[:t + 1], rtol=0, atol=1e-12)
    assert not torch.allclose(changed[t + 1:], y[t + 1:])


def test_samples_do_not_see_their_batch_mates_nor_their_padding():
    net, steps = small().float().eval(), torch.tensor([12, 7, 3, 9])
    counts = spikes(12, 4).transpose(0, 1) * (torch.arange(12)[:, None] < steps[:, None, None])
    own = torch.arange(12) < steps[:, None]
    some = data.Spikes(counts[own].to(torch.uint8), steps, steps, steps)
    together = train.predict(net, some, torch.arange(4), 12)
    for b, n in enumerate(steps.tolist()):
        alone = train.predict(net, some, torch.tensor([b]), n)
        torch.testing.assert_close(together[b], alone[0], rtol=1e-5, atol=1e-5)
        padded = class_scores(net(counts[b:b + 1].float().transpose(0, 1)))[0]
        assert (padded - alone[0]).abs().max() > 1e-3


def test_accuracy_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    toy, net = first(data.toy("test"), 100), DelaySNN(5, (9,), 10)
    counts = data.padded(toy, torch.arange(100), 45)
    for _ in range(20):
        net(counts.transpose(0, 1).float())
    steps = torch.from_numpy(np.random.default_rng(0).integers(20, 46, 100))
    toy = toy._replace(steps=steps, counts=counts[torch.arange(45) < steps[:, None]])
    want = train.evaluate(net, toy, 100)
    assert want > 0 and all(train.evaluate(net, toy, size) == want for size in (1, 7, 64))


def test_masked_synapses_stay_zero_and_the_mask_is_saved():
    net = small(connections=2)
    opt = torch.optim.Adam(net.parameters(), 0.01, weight_decay=0.1)
    start = [layer.weight.detach().clone() for layer in net.layers]
    for _ in range(3):
        opt.zero_grad()
        net(spikes()).square().mean().backward()
        opt.step()
    for layer, before in zip(net.layers, start):
        assert (layer.mask.sum(1) == 2).all() and not layer.weight[~layer.mask].any()
        assert (layer.weight != before)[layer.mask].any()
    assert "layers.0.mask" in net.state_dict()


def test_fixed_delays_are_whole_steps_and_not_trained():
    layer = DelayedLinear(6, 5, 9, learn_delays=False)
    assert torch.equal(layer.delay, layer.delay.round())
    assert 0 <= layer.delay.min() <= layer.delay.max() <= 8
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_dropout_silences_whole_neurons_for_the_whole_time():
    torch.manual_seed(0)
    net, seen = DelaySNN(6, (50,), 4, taps=1, learn_delays=False, dropout=0.5), []
    net.layers[1].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    net(torch.rand(40, 2, 6) * 3)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert 0.3 < (seen[0].sum(0) == 0).double().mean() < 0.7


@pytest.mark.parametrize(
    "kwargs", [{}, {"count": 2}, {"taps": 1}, {"learn_delays": False}, {"connections": 1}])
def test_batch_of_one_and_one_step(kwargs):
    net = small(**kwargs)
    net(spikes(2, 1)).sum().backward()
    assert net.eval()(spikes(1, 1)).shape[1:] == (1, 4)
    for layer in net.layers:
        assert layer.weight.grad.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_cuda_gives_the_same_numbers():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    results = []
    for where in ("cpu", "cuda"):
        net = small(dropout=0.0).to(where)
        scores = class_scores(net(spikes().to(where)))
        scores.square().sum().backward()
        results.append([scores.cpu(), *(p.grad.cpu() for p in net.parameters())])
    for cpu, cuda in zip(*results):
        torch.testing.assert_close(cuda, cpu, rtol=1e-8, atol=1e-8)


# -------------------------------------------------------------------------------------- schedules

def test_sigma_schedule_at_named_epochs():
    sigma = functools.partial(delays.shrinking_sigma, epochs=150, taps=25)
    assert sigma(0) == pytest.approx(12.27) and sigma(37) == 0.5 and sigma(149) == 0.5
    assert sigma(36) == pytest.approx(0.27 + 12 * (0.23 / 12) ** (36 / 37))
    product = 12.0  # the original's running product
    for epoch in range(37):
        assert sigma(epoch) == pytest.approx(0.27 + product)
        product *= (0.23 / 12) ** (1 / 37)


@pytest.mark.parametrize("epochs", [10, 30, 150])
def test_learning_rate_schedule_is_torchs(epochs):
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    torchs = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, total_steps=epochs)
    for epoch in range(epochs):
        group = adam.param_groups[0]
        want = group["lr"], group["betas"][0]
        assert train.one_cycle(epoch, epochs, 5e-3) == pytest.approx(want)
        adam.step()
        if epoch < epochs - 1:
            torchs.step()


def test_fast_recipe_differs_in_the_epochs_alone():
    paper, fast = (vars(options("--recipe", name)) for name in ("paper", "fast"))
    assert {key for key in paper if paper[key] != fast[key]} == {"recipe", "epochs"}
    assert (paper["epochs"], fast["epochs"]) == (150, 30)
    assert options("--recipe", "fast", "--epochs", 7).epochs == 7


# ------------------------------------------------------------------------------------------- data

def write_h5(path, times, units, labels, speakers=None):
    with h5py.File(path, "w") as f:
        for name, ragged, kind in (("times", times, np.float16), ("units", units, np.uint16)):
            d = f.create_dataset(f"spikes/{name}", (len(ragged),), h5py.vlen_dtype(kind))
            for i, values in enumerate(ragged):
                d[i] = np.asarray(values, kind)
        f["labels"], f["extra/speaker"] = np.asarray(labels, np.uint16), np.asarray(
            np.arange(len(labels)) % 3 if speakers is None else speakers, np.uint16)


def shd_like(folder, samples=24, classes=20, seed=0):
    """Two files in SHD's format with 24 and 9 samples; a class is a band of channels."""
    rng = np.random.default_rng(seed)
    for split, n in (("train", samples), ("test", 9)):
        labels, times, units = np.arange(n) % classes, [], []
        for label in labels:
            size = rng.integers(100, 200)
            times.append(np.sort(rng.uniform(0.01, rng.uniform(0.2, 0.5), size)))
            units.append((label * 35 + rng.integers(0, 35, size)) % 700)
        write_h5(os.path.join(folder, f"shd_{split}.h5"), times, units, labels)


def test_binning_by_hand():
    counts, steps = data.bin_spikes([np.float16([0.5, 0.505, 0.5156, 0.5557]), np.float16([]),
                                     np.float16([0.25])], [[0, 4, 5, 699], [], [12]])
    assert steps.tolist() == [6, 1, 1] and counts.shape == (8, 140) and counts.sum() == 5
    assert counts[0, 0] == 2 and counts[1, 1] == 1 and counts[5, 139] == 1  # the first sample
    assert counts[7, 2] == 1  # the third


def test_binning_is_the_loop_over_spikes_and_keeps_every_spike(tmp_path):
    rng = np.random.default_rng(0)
    times = [np.sort(rng.uniform(0, 1.4, n)).astype(np.float16) for n in rng.integers(1, 400, 300)]
    units = [rng.integers(0, 700, len(t)) for t in times]
    write_h5(tmp_path / "x.h5", times, units, rng.integers(0, 20, 300))
    got = data.read(tmp_path / "x.h5", 20)
    assert got.counts.sum() == sum(map(len, times)) and got.counts.dtype == torch.uint8
    counts = data.padded(got, torch.arange(300), 150)
    for s in range(300):
        want, own = np.zeros((150, 140)), 0
        for t, u in zip(times[s], units[s]):
            step = math.floor((float(t) - float(times[s][0])) * 1000 / 10)
            want[step, u // 5] += 1
            own = max(own, step + 1)
        assert got.steps[s] == own and (counts[s].numpy() == want).all()


def test_channels_beyond_the_cochlea_are_refused():
    with pytest.raises(ValueError, match="channel 700, expected 0..699"):
        data.bin_spikes([np.zeros(2, np.float16)], [np.array([3, 700], np.uint16)])


def test_float16_times_are_not_rounded_further():
    late = np.float16([0.0, 1.37, 1.371, 1.379, 1.3804])  # float16 knows 1.37012, .., 1.38086 here
    counts, steps = data.bin_spikes([late], [[0] * 5])
    assert steps[0] == 139 and counts[137, 0] == 3
    assert counts[138, 0] == 1 and counts[0, 0] == 1


@pytest.mark.parametrize("longest", [2, 4, 6])
def test_padded_samples_are_their_rows_and_then_zeros(longest):
    steps, rows = [3, 1, 4], torch.arange(1, 17).view(8, 2).to(torch.uint8)
    some = data.Spikes(rows, torch.tensor(steps), None, None)
    got = data.padded(some, torch.tensor([2, 0, 1]), longest)
    assert got.shape == (3, longest, 2) and got.dtype == torch.uint8
    for own, sample in zip(got, (2, 0, 1)):
        for t in range(longest):
            there = t < steps[sample]
            want = rows[sum(steps[:sample]) + t].tolist() if there else [0, 0]
            assert own[t].tolist() == want


def test_shuffled_batches_hold_every_sample_once_and_the_ragged_rest():
    toy = data.toy("test")
    lengths = toy._replace(steps=torch.arange(1000) % 50 + 1)
    got = data.batches(lengths, 64)
    order = torch.cat([i for i, _ in got]).tolist()
    assert order != sorted(order) == list(range(1000))
    assert sorted({len(i) for i, _ in got}) == [1000 % 64, 64]
    assert all(longest == lengths.steps[i].max() for i, longest in got)


def test_last_ragged_batch_counts_in_the_accuracy():
    toy, net = first(data.toy("test"), 70), DelaySNN(5, (9,), 10)
    for _ in range(20):
        net(data.padded(toy, torch.arange(70), 45).transpose(0, 1).float())
    net.eval()
    hits = [train.predict(net, toy, torch.tensor([s]), 45).argmax().item() == toy.labels[s].item()
            for s in range(70)]
    assert 0 < sum(hits) < 70 and train.evaluate(net, toy, 32) == sum(hits) / 70


def test_toy_patterns_never_have_two_spikes_in_one_step():
    clean = data.toy("train", noise=0)
    counts = data.padded(clean, torch.arange(2000), 45)
    assert (counts.sum(2) <= 1).all() and (counts.sum(1) == 1).all()
    assert (torch.bincount(clean.labels) == 200).all()


def options(*argv):
    return train.parse([str(word) for word in argv])[1]


def test_held_out_speakers_are_disjoint_from_training(tmp_path):
    shd_like(tmp_path)
    o = options("--data-dir", tmp_path, "--valid-speakers", "0,2", "--device", "cpu")
    sets = train.load(o, "train", "test")
    assert set(sets["valid"].speakers.tolist()) == {0, 2}
    assert set(sets["train"].speakers.tolist()) == {1}
    assert len(sets["valid"].labels) + len(sets["train"].labels) == 24
    every = data.load("shd", "train", tmp_path)
    for split, speaker in (("train", 1), ("valid", 0), ("valid", 2)):  # whole samples, in order
        own, there = (s.speakers == speaker for s in (sets[split], every))
        for field in ("steps", "labels"):
            assert torch.equal(getattr(sets[split], field)[own], getattr(every, field)[there])
        a, b = (data.padded(s, which.nonzero()[:, 0], 60)
                for s, which in ((sets[split], own), (every, there)))
        assert torch.equal(a, b) and a.any()
    assert len(sets["test"].labels) == 9


@pytest.mark.parametrize("packing", [".h5", ".h5.gz", ".h5.zip"])
def test_packed_files_are_read_where_they_lie(tmp_path, packing):
    shd_like(tmp_path)
    want, path = data.load("shd", "test", tmp_path), tmp_path / "shd_test.h5"
    if packing == ".h5.gz":
        (tmp_path / "shd_test.h5.gz").write_bytes(gzip.compress(path.read_bytes()))
    elif packing == ".h5.zip":
        with zipfile.ZipFile(tmp_path / "shd_test.h5.zip", "w") as archive:
            archive.write(path, "shd_test.h5")
    if packing != ".h5":
        path.unlink()
    os.chmod(tmp_path, 0o555)
    before = sorted(os.listdir(tmp_path))
    got = data.load("shd", "test", tmp_path)
    os.chmod(tmp_path, 0o755)
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert sorted(os.listdir(tmp_path)) == before


# --------------------------------------------------------------------------------------- download

@pytest.fixture
def servers(monkeypatch):
    """Two servers on loopback; a test sets each path's answer: bytes, a cut length, or a status."""
    answers, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body, cut, status = answers.get(self.path, (b"", None, 404))
            first = int(self.headers.get("Range", "bytes=0-")[6:-1])
            asked.append((self.path, first))
            if status == 200 and first:
                status = 206 if first < len(body) else 416
            self.send_response(status)
            rest = body[first:] if status == 206 else body if status == 200 else b""
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if cut and first < cut:
                rest = rest[:cut - first]
                answers[self.path] = body, None, 200
            self.wfile.write(rest)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(data, "SERVERS", [f"{root}/a", f"{root}/b"])
    yield answers, asked
    server.shutdown()


@pytest.fixture
def published(tmp_path, monkeypatch):
    shd_like(tmp_path)
    body = gzip.compress((tmp_path / "shd_test.h5").read_bytes())
    (tmp_path / "shd_test.h5").unlink()
    monkeypatch.setitem(data.MD5, "shd_test.h5.gz", hashlib.md5(body).hexdigest())
    return body


def test_download_good(servers, published, tmp_path, capfd):
    servers[0]["/a/shd_test.h5.gz"] = published, None, 200
    assert len(data.load("shd", "test", tmp_path).labels) == 9
    assert (tmp_path / "shd_test.h5.gz").read_bytes() == published
    assert "MB/s" in capfd.readouterr().err and "shd_test.h5.gz.part" not in os.listdir(tmp_path)
    servers[0].clear()
    data.load("shd", "test", tmp_path)  # nothing is fetched that is already there
    assert len(servers[1]) == 1


def test_download_cut_off_is_resumed(servers, published, tmp_path):
    servers[0]["/a/shd_test.h5.gz"] = published, 1000, 200
    servers[0]["/b/shd_test.h5.gz"] = published, None, 200
    data.fetch("shd_test.h5.gz", tmp_path)
    assert servers[1] == [("/a/shd_test.h5.gz", 0), ("/b/shd_test.h5.gz", 1000)]
    assert (tmp_path / "shd_test.h5.gz").read_bytes() == published


def test_download_resumes_what_an_earlier_process_left(servers, published, tmp_path):
    (tmp_path / "shd_test.h5.gz.part").write_bytes(published[:500])
    servers[0]["/a/shd_test.h5.gz"] = published, None, 200
    data.fetch("shd_test.h5.gz", tmp_path)
    assert servers[1] == [("/a/shd_test.h5.gz", 500)]


def test_download_with_too_long_a_part_begins_anew(servers, published, tmp_path):
    (tmp_path / "shd_test.h5.gz.part").write_bytes(published + b"x")
    servers[0]["/b/shd_test.h5.gz"] = published, None, 200
    servers[0]["/a/shd_test.h5.gz"] = published, None, 200
    data.fetch("shd_test.h5.gz", tmp_path)
    assert (tmp_path / "shd_test.h5.gz").read_bytes() == published


def test_download_404_then_mirror(servers, published, tmp_path):
    servers[0]["/b/shd_test.h5.gz"] = published, None, 200
    data.fetch("shd_test.h5.gz", tmp_path)
    assert [path for path, _ in servers[1]] == ["/a/shd_test.h5.gz", "/b/shd_test.h5.gz"]


def test_download_wrong_checksum_leaves_no_file(servers, published, tmp_path):
    for root in "ab":
        servers[0][f"/{root}/shd_test.h5.gz"] = published[:-1] + b"?", None, 200
    with pytest.raises(OSError, match="md5 .* expected .*--dataset toy"):
        data.fetch("shd_test.h5.gz", tmp_path)
    assert os.listdir(tmp_path) == ["shd_train.h5"]


# --------------------------------------------------------------------------------------- training

def run(*argv, **kwargs):
    return subprocess.run([sys.executable, os.path.join(HERE, "train.py"), *map(str, argv)],
                          capture_output=True, text=True, **kwargs)


SMALL = ("--hidden", 12, "--batch-size", 8, "--device", "cpu")


def test_resumed_equals_uninterrupted_after_sigkill(tmp_path):
    shd_like(tmp_path)
    args = ("--dataset", "shd", "--data-dir", tmp_path, "--epochs", 40, *SMALL)
    whole = run(*args, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, os.path.join(HERE, "train.py"), *map(str, args)]
    command += ["--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (tmp_path / "cut/last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    epochs = len(torch.load(tmp_path / "cut/last.pt", weights_only=True)["rows"])
    assert 1 <= epochs < 40
    resumed = run("--resume", "--out", tmp_path / "cut")
    assert resumed.returncode == 0, resumed.stderr
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(a["net"][key], b["net"][key]) for key in a["net"])
    logs = [list(csv.DictReader(open(tmp_path / name / "log.csv"))) for name in ("whole", "cut")]
    for rows in logs:
        assert len(rows) == 40
        for row in rows:
            del row["seconds"]
    assert logs[0] == logs[1]
    results = [json.load(open(tmp_path / name / "result.json")) for name in ("whole", "cut")]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1] and results[0]["rule"] == "last epoch"
    evaluated = run("--eval", tmp_path / "cut/last.pt", "--data-dir", tmp_path)
    assert f"test accuracy {results[0]['test_accuracy']:.2%}" in evaluated.stdout


def test_best_epoch_on_validation_is_kept_and_test_read_once(tmp_path, monkeypatch):
    shd_like(tmp_path)
    seen, evaluate = [], train.evaluate
    monkeypatch.setattr(
        train, "evaluate", lambda net, s, b: seen.append(len(s.labels)) or evaluate(net, s, b))
    o = options("--data-dir", tmp_path, "--valid-speakers", "1", "--epochs", 5,
                "--out", tmp_path / "r", *SMALL)
    result = train.train(o)
    assert seen == [8] * 5 + [9]
    rows = list(csv.DictReader(open(tmp_path / "r/log.csv")))
    accuracy = [float(row["valid_accuracy"]) for row in rows]
    assert result["rule"] == f"best on validation, epoch {accuracy.index(max(accuracy)) + 1}"
    assert all(row["test_accuracy"] == "" for row in rows) and result["best_on_test"] is None
    best = torch.load(tmp_path / "r/best.pt", weights_only=True)
    assert len(best["rows"]) == accuracy.index(max(accuracy)) + 1


@pytest.mark.parametrize("connections, count", [(0, 1), (3, 1), (3, 2)])
def test_masked_synapses_count_neither_as_parameters_nor_as_movement(tmp_path, connections, count):
    shd_like(tmp_path)
    o = options("--data-dir", tmp_path, "--connections", connections, "--kernel-count", count,
                "--epochs", 2, "--delay-lr", 0.5, "--out", tmp_path / "r", *SMALL)
    first, result = train.build(o), train.train(o)
    net = torch.load(tmp_path / "r/last.pt", weights_only=True)["net"]
    inputs = [min(i, connections or i) for i in (140, 12, 12)]
    synapses = count * (inputs[0] * 12 + inputs[1] * 12 + inputs[2] * 20)
    assert result["parameters"] == 2 * synapses + 2 * 12 * 2
    way = sum((net[f"layers.{n}.delay"] - layer.delay).abs().sum().item()
              for n, layer in enumerate(first.layers))
    *_, row = csv.DictReader(open(tmp_path / "r/log.csv"))
    assert way > 0 and float(row["moved_ms"]) == pytest.approx(10 * way / synapses)


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    train.write(tmp_path, "x", "old")
    monkeypatch.setattr(torch, "save", lambda content, file: file.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.write(tmp_path, "x", {"new": 1})
    assert (tmp_path / "x").read_text() == "old"


def test_learned_beats_fixed_beats_none_on_the_toy_task(tmp_path):
    accuracy = {}
    for variant in ("learned", "fixed", "none"):
        o = options("--dataset", "toy", "--delays", variant, "--epochs", 8, "--device", "cpu",
                    "--out", tmp_path / variant)
        accuracy[variant] = train.train(o)["test_accuracy"]
    assert accuracy["none"] < 0.15 < 0.3 < accuracy["fixed"] < accuracy["learned"] - 0.03, accuracy


# ------------------------------------------------------------------------------- error sentences

@pytest.mark.parametrize("call, sentence", [
    (lambda: gaussian_kernel(torch.ones(2, 3), torch.ones(3, 2), 1.0, 5),
     r"weight \[2, 3\], delay \[3, 2\]"),
    (lambda: gaussian_kernel(torch.ones(2, 3), torch.ones(2, 3), 0.0, 5), "sigma is 0.0"),
    (lambda: integer_kernel(torch.ones(2, 3), torch.full((2, 3), 5.0), 5), r"outside 0..4 steps"),
    (lambda: integer_kernel(torch.ones(2, 3), torch.full((2, 3), 5.0), 0), "at least one tap"),
    (lambda: delay_conv(torch.ones(5, 2, 3), torch.ones(4, 2, 7)),
     r"spikes \[5, 2, 3\], kernel \[4, 2, 7\]"),
    (lambda: delay_conv(torch.ones(5, 2, 3), torch.ones(4, 3, 7), -1), "tail -1"),
    (lambda: delays.lif(torch.ones(5, 2, 3), 0.5), "tau 0.5"),
    (lambda: delays.leaky_integrator(torch.ones(5, 2), 2.0), r"current \[5, 2\]"),
    (lambda: class_scores(torch.ones(5, 2)), r"membrane \[5, 2\]"),
    (lambda: DelayedLinear(3, 0, 5), "out_features=0"),
    (lambda: DelaySNN(3, (4,), 2, dropout=1.0), "dropout is 1.0")])
def test_bad_arguments_get_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_bad_input_gets_one_sentence_and_no_traceback(tmp_path, servers):
    shd_like(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/shd_train.h5.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    (tmp_path / "labels").mkdir()
    write_h5(tmp_path / "labels/shd_train.h5", [[0.1]], [[3]], [20])
    (tmp_path / "sizes").mkdir()
    write_h5(tmp_path / "sizes/shd_train.h5", [[0.1], [0.2]], [[3], [4]], [1, 2, 3])
    (tmp_path / "group").mkdir()
    with h5py.File(tmp_path / "group/shd_train.h5", "w") as file:
        file.create_group("labels")
    (tmp_path / "r").mkdir()
    (tmp_path / "r/last.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "file").write_text("")
    (tmp_path / "flipped").mkdir()
    with zipfile.ZipFile(tmp_path / "flipped/shd_train.h5.zip", "w") as archive:
        archive.writestr("shd_train.h5", b"spikes" * 100)
    body = bytearray((tmp_path / "flipped/shd_train.h5.zip").read_bytes())
    body[100] ^= 1
    (tmp_path / "flipped/shd_train.h5.zip").write_bytes(body)
    for argv, sentence in [
            (("--epochs", -1), "--epochs -1"), (("--epochs", "many"), "invalid int value"),
            (("--lr", "nan"), "--lr nan"), (("--dropout", 1), "dropout is 1.0"),
            (("--dataset", "mnist"), "invalid choice"), (("--frobnicate", 1), "unrecognized"),
            (("--data-dir", tmp_path / "broken"), "not a sound spike file"),
            (("--data-dir", tmp_path / "labels"), "labels [20], expected of 0..19"),
            (("--data-dir", tmp_path / "sizes"), "[3, 3, 2, 2] labels, speakers, times, units"),
            (("--data-dir", tmp_path / "group"), "not a sound spike file"),
            (("--data-dir", tmp_path / "none"), "--dataset toy, which needs no files"),
            (("--data-dir", tmp_path, "--valid-speakers", "9"), "--valid-speakers 9"),
            (("--data-dir", tmp_path, "--valid-speakers", "0,1,2"), "not all"),
            (("--dataset", "toy", "--valid-speakers", "1"), "--valid-speakers 1"),
            (("--data-dir", tmp_path, "--out", tmp_path / "r"), "holds a run"),
            (("--resume", "--out", tmp_path / "r"), "is no sound checkpoint"),
            (("--resume", "--out", tmp_path / "new"), "new"),
            (("--eval", tmp_path / "none.pt"), "none.pt"),
            (("--eval", tmp_path / "shd_train.h5"), "is no sound checkpoint"),
            (("--eval", ""), "is no sound checkpoint"), (("--seed", 2**63), "below 2**31"),
            (("--data-dir", tmp_path / "flipped"), "not a sound spike file"),
            (("--data-dir", tmp_path / "file"), "file is a file: --out and --data-dir are to be"),
            (("--dataset", "toy", "--out", tmp_path / "file"), "file is a file")] + [
            (("--device", "cuda"), "no CUDA card")] * (not torch.cuda.is_available()):
        with pytest.raises(SystemExit) as stop:
            train.main([str(word) for word in ("--out", tmp_path / "o", *argv)])
        assert stop.value.code not in (0, None), argv
        if isinstance(stop.value.code, str):
            assert sentence in stop.value.code, (argv, stop.value.code)
            assert stop.value.code.count("\n") == 0, (argv, stop.value.code)
    assert not any(name.endswith(".part") for name in os.listdir(tmp_path / "none"))
    assert run("--epochs", -1).stderr.splitlines()[-1] == (
        "train.py: error: --epochs -1: expected a number of at least 1, below 2**31")


def test_ctrl_c_says_how_to_resume(tmp_path):
    process = subprocess.Popen(
        [sys.executable, os.path.join(HERE, "train.py"), "--dataset", "toy", "--out",
         str(tmp_path / "r")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "r/last.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode != 0
    assert err.strip().endswith(f"python train.py --out {tmp_path / 'r'} --resume")
    assert "Traceback" not in err


def test_ctrl_c_before_anything_is_saved_promises_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt
    monkeypatch.setattr(train, "train", interrupted)
    with pytest.raises(SystemExit, match="stopped before anything was saved"):
        train.main(["--dataset", "toy", "--out", str(tmp_path / "r")])


def test_denormal_numbers_are_0_in_every_thread():
    code = "import torch, train; train.tune_cpu(); print(torch.full((10**6,), -95.0).exp().max())"
    assert math.exp(-95) > 0
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.stdout == "tensor(0.)\n", done.stderr


def test_same_seed_same_bits(tmp_path):
    shd_like(tmp_path)
    nets = []
    for name in "ab":
        train.train(options("--data-dir", tmp_path, "--epochs", 2, "--out", tmp_path / name,
                            *SMALL))
        nets.append(torch.load(tmp_path / name / "last.pt", weights_only=True)["net"])
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
