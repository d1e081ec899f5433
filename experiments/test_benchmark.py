"""That benchmark.py measures what it says: its tasks, its counts, and the peer's network."""

import argparse
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import benchmark

from delays import DelaySNN, class_scores, delay_conv

torch.set_num_threads(1)  # several threads fight over the cores of a busy machine
PROGRAM = os.path.abspath(benchmark.__file__)
SMALL = ["--threads", "1", "--hidden", "6", "--batch", "4", "--steps", "9", "--rounds", "1"]


def small(**others):
    """What the program's parser makes of SMALL."""
    options = dict(device="cpu", threads=1, hidden=6, batch=4, steps=9, rounds=1)
    return argparse.Namespace(**(options | dict(data_dir=None, skip_epoch=True) | others))


@pytest.mark.parametrize("tail", [0, 3, 12])
def test_the_fft_that_is_compared_is_the_delayed_sum(tail):
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 9, 3).double(), torch.randn(4, 3, 7).double()
    want = delay_conv(x, kernel, tail, "direct")
    torch.testing.assert_close(benchmark.conv_fft(x, kernel, tail), want)


def test_operations_and_views_are_counted():
    x = torch.ones(3, 4)
    with benchmark.Counter() as counter:
        (x.T + 1).sum()
    assert (counter.total, counter.views) == (3, 1)


def test_the_multiplications_of_the_direct_sums_are_counted():
    """Forward, and backward to the kernel and, but for the first layer, to the input."""
    # Inputs and outputs of the layers; each one's output is 12 steps longer than its input.
    sums = [140 * 6 * 21 * 2, 6 * 6 * 33 * 3, 6 * 20 * 45 * 3]
    want = 2 * 4 * 25 * sum(sums)  # 2 for multiply and add, a batch of 4, 25 taps
    # Zeros in front of a sample are part of conv1d's input, whose gradient is computed too.
    assert benchmark.count_flops(small(), "direct") == want


def test_made_up_spikes_are_those_of_one_seed_with_the_wanted_share():
    spikes = benchmark.made_up(small(steps=50), 40)
    assert spikes.counts.shape == (40 * 50, 140)
    assert spikes.counts.float().mean().item() == pytest.approx(benchmark.ACTIVE, abs=0.003)
    torch.testing.assert_close(benchmark.made_up(small(steps=50), 40).counts, spikes.counts)


def test_a_step_trains_the_network_on_one_batch(monkeypatch):
    batches = []
    forward = DelaySNN.forward

    def watched(net, x):
        batches.append((net.training, tuple(x.shape), net.layers[0].conv))
        return forward(net, x)

    monkeypatch.setattr(DelaySNN, "forward", watched)
    for name, conv in {"learned": "auto", "learned/fourier": "fourier", "none": "auto"}.items():
        benchmark.our_tasks(small(), name)["step"]()
        assert batches.pop() == (True, (4, 9, 140), conv)
        assert not batches


def test_an_epoch_trains_on_all_and_evaluates_all(monkeypatch):
    monkeypatch.setattr(benchmark, "SAMPLES", {"train": 10, "test": 6})
    sizes = []
    forward = DelaySNN.forward

    def watched(net, x):
        sizes.append((net.training, len(x)))
        return forward(net, x)

    monkeypatch.setattr(DelaySNN, "forward", watched)
    benchmark.our_tasks(small(skip_epoch=False), "fixed")["epoch"]()
    assert sizes == [(True, 4), (True, 4), (True, 2), (False, 4), (False, 2)]


def test_a_process_answers_with_time_and_memory(monkeypatch):
    monkeypatch.setattr(sys, "argv", [PROGRAM, *SMALL, "--skip-epoch"])
    with benchmark.started(["none"]) as workers:
        answer = benchmark.ask(workers, "none", "step")
        assert answer["seconds"] > 0
        assert answer["gib"] > 0.01 or os.name == "nt"
        child = workers["none"]
    assert child.poll() is not None  # it is gone with the block


@pytest.mark.parametrize("wait", [True, False], ids=["before it was asked", "while it was asked"])
def test_a_process_that_ends_early_ends_the_program(wait):
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=pipe, stdout=pipe, text=True)
    if wait:
        child.kill()
        child.wait()
    with pytest.raises(SystemExit, match="benchmark.py: the process of learned ended early"):
        benchmark.ask({"learned": child}, "learned", "step")
    child.wait()


@contextmanager
def nobody(names):
    """In place of benchmark.started."""
    yield dict.fromkeys(names)


def test_contestants_take_turns_and_a_first_round_does_not_count(monkeypatch):
    seconds = {"a": iter([99, 1, 3, 2]), "b": iter([99, 30, 10, 20])}
    asked = []

    def answer(workers, name, task):
        asked.append((name, task))
        return {"seconds": next(seconds[name]), "gib": len(asked)}

    monkeypatch.setattr(benchmark, "ask", answer)
    results = benchmark.take_turns({}, ["a", "b"], "step", 3)
    assert asked == [("a", "step"), ("b", "step")] * 4
    assert results == {"a": {"seconds": 2, "gib": 7}, "b": {"seconds": 20, "gib": 8}}


def test_the_table_has_each_contestant_beside_learned(monkeypatch, capsys):
    seconds = {"step": {"learned": 2, "fixed": 1, "none": 0.5, "peer": 9}}
    seconds["epoch"] = {"learned": 4, "fixed": 3, "none": 1, "peer": 40}

    def answer(workers, name, task):
        assert name in workers
        return {"seconds": seconds[task][name], "gib": 1.5}

    monkeypatch.setattr(benchmark, "started", nobody)
    monkeypatch.setattr(benchmark, "ask", answer)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: name)  # all installed
    benchmark.print_contest(small(skip_epoch=False))
    head, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["step", "to", "learned", "GiB", "epoch", "to", "learned", "GiB"]
    assert rows == [
        ["learned", "2.000", "s", "1.00", "1.50", "4.000", "s", "1.00", "1.50"],
        ["fixed", "1.000", "s", "0.50", "1.50", "3.000", "s", "0.75", "1.50"],
        ["none", "0.500", "s", "0.25", "1.50", "1.000", "s", "0.25", "1.50"],
        ["peer", "9.000", "s", "4.50", "1.50", "40.000", "s", "10.00", "1.50"],
    ]


# ------------------------------------------------- the peer, where the authors' libraries are there


def both(taps=25, hidden=6):
    """The peer's network and ours, of the same weights and delays, in float64, without dropout."""
    pytest.importorskip("DCLS")
    pytest.importorskip("spikingjelly")
    torch.manual_seed(0)
    peer = benchmark.Peer(hidden, taps, dropout=0.0).double()
    ours = DelaySNN(140, [hidden, hidden], 20, taps=taps, dropout=0.0).double()
    for conv, layer in zip(peer.conv, ours.layers, strict=True):
        conv.weight.data = layer.weight.data[:, :, None].clone()
        conv.P.data = (taps // 2 - layer.delay.data)[None, :, :, None].clone()
        layer.sigma = 12 + 0.27  # the library adds 0.27 to the width that it is given
    return peer, ours


def test_the_peer_is_the_same_network_with_the_same_gradients():
    peer, ours = both()
    x = torch.rand(4, 30, 140).lt(0.3).double()
    scores = peer(x), class_scores(ours(x))
    torch.testing.assert_close(*scores)
    assert scores[0].std() > 0.1
    for score in scores:
        score.square().sum().backward()
    for conv, layer in zip(peer.conv, ours.layers, strict=True):
        torch.testing.assert_close(conv.weight.grad[:, :, 0], layer.weight.grad)
        torch.testing.assert_close(-conv.P.grad[0, :, :, 0], layer.delay.grad)
        assert layer.delay.grad.abs().max() > 0


def test_the_peer_evaluates_with_whole_steps():
    peer, ours = both()
    x = torch.rand(4, 30, 140).lt(0.3).double()
    for net in (peer, ours):
        net(x)  # for the running statistics of the batch norms
        net.eval()
    peer.whole_steps()
    torch.testing.assert_close(peer(x), class_scores(ours(x)))
