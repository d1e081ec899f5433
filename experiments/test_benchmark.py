"""That benchmark.py measures what it says: its tasks, its counts, and the peer's network."""

import io
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import benchmark

from delays import DelaySNN, class_scores, delay_conv

torch.set_num_threads(1)  # several threads fight over the cores of a busy machine
PROGRAM = os.path.abspath(benchmark.__file__)
SMALL = ["--threads", "1", "--hidden", "6", "--batch", "4", "--steps", "9", "--rounds", "1"]


@pytest.fixture
def small(monkeypatch):
    """A function that parses SMALL, and other options behind it."""

    def options(*others):
        monkeypatch.setattr(sys, "argv", [PROGRAM, *SMALL, *others])
        return benchmark.parse()

    return options


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


def test_the_multiplications_of_the_direct_sums_are_counted(small):
    """Forward, and backward to the kernel and, but for the first layer, to the input."""
    # Inputs and outputs of the layers; each one's output is 12 steps longer than its input.
    sums = [140 * 6 * 21 * 2, 6 * 6 * 33 * 3, 6 * 20 * 45 * 3]
    want = 2 * 4 * 25 * sum(sums)  # 2 for multiply and add, a batch of 4, 25 taps
    assert benchmark.count_flops(small(), "direct") == want


def test_made_up_spikes_are_those_of_one_seed_with_the_wanted_share(small):
    spikes = benchmark.made_up(small("--steps", "50"), 40)
    assert spikes.counts.shape == (40 * 50, 140)
    assert spikes.counts.float().mean().item() == pytest.approx(benchmark.ACTIVE, abs=0.003)
    again = benchmark.made_up(small("--steps", "50"), 40)
    torch.testing.assert_close(again.counts, spikes.counts)


CONTESTANTS = {  # taps, whether delays are learned, and the method
    "learned": (25, True, "auto"),
    "learned/fourier": (25, True, "fourier"),
    "fixed": (25, False, "auto"),
    "none": (1, False, "auto"),
}


@pytest.fixture
def calls(monkeypatch):
    """A list that each call of a network is added to: the network, its input, some of its state."""
    seen = []
    forward = DelaySNN.forward

    def watched(net, x):
        layer = net.layers[0]
        seen.append((net, x, net.training, layer.weight.clone(), layer.sigma))
        return forward(net, x)

    monkeypatch.setattr(DelaySNN, "forward", watched)
    return seen


@pytest.mark.parametrize("name", CONTESTANTS)
def test_a_step_trains_the_contestant_on_one_batch(small, calls, name):
    benchmark.our_tasks(small("--skip-epoch"), name)["step"]()
    ((net, x, training, weight, sigma),) = calls
    layer = net.layers[0]
    assert (layer.taps, layer.learn_delays, layer.conv) == CONTESTANTS[name]
    assert (training, x.shape) == (True, (4, 9, 140))
    assert sigma == pytest.approx(12.27 if layer.learn_delays else 0.5)
    assert not torch.equal(layer.weight, weight)


def test_an_epoch_trains_on_all_and_evaluates_all(small, calls, monkeypatch):
    monkeypatch.setattr(benchmark, "SAMPLES", {"train": 10, "test": 6})
    benchmark.our_tasks(small(), "fixed")["epoch"]()
    sizes = [(training, len(x)) for _, x, training, *_ in calls]
    assert sizes == [(True, 4), (True, 4), (True, 2), (False, 4), (False, 2)]


class StandIn(nn.Module):
    """In place of the peer's network: a product, which keeps what it was asked for."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ModuleList([nn.Linear(140, 20)])
        self.conv[0].clamp_parameters = lambda: self.calls.append("clamp")
        self.before = self.conv[0].weight.detach().clone()
        self.calls = []

    def whole_steps(self):
        self.calls.append("whole steps")

    def forward(self, x):
        self.calls.append(("training" if self.training else "evaluation", len(x)))
        return self.conv[0](x).sum(1)


def test_the_peer_is_asked_for_the_same_work(small, monkeypatch):
    monkeypatch.setattr(benchmark, "SAMPLES", {"train": 6, "test": 5})
    peer = StandIn()
    monkeypatch.setattr(benchmark, "Peer", lambda hidden: peer)
    tasks = benchmark.peer_tasks(small())
    tasks["step"]()
    assert peer.calls == [("training", 4), "clamp"]
    assert not torch.equal(peer.conv[0].weight, peer.before)
    peer.calls.clear()
    tasks["epoch"]()
    trained = [("training", 4), "clamp", ("training", 2), "clamp"]
    assert peer.calls == [*trained, "whole steps", ("evaluation", 4), ("evaluation", 1)]


def test_a_process_answers_with_the_time_of_its_task_and_its_memory(small, monkeypatch, capsys):
    options = small("--worker", "none")
    monkeypatch.setattr(benchmark, "our_tasks", lambda *_: {"step": lambda: time.sleep(0.2)})
    monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("step\nstep\n"))
    benchmark.serve(options)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    for answer in (first, second):
        assert 0.2 <= answer["seconds"] < 10
        assert 0.05 < answer["gib"] < 16 or os.name == "nt"


def test_a_process_is_asked_and_ends(small):
    small("--skip-epoch")  # the command line, which the process gets too
    with benchmark.started(["none"]) as workers:
        assert benchmark.ask(workers, "none", "step")["seconds"] > 0
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


def test_the_table_has_each_contestant_beside_learned(small, monkeypatch, capsys):
    seconds = {"step": {"learned": 2, "fixed": 1, "none": 0.5, "peer": 9}}
    seconds["epoch"] = {"learned": 4, "fixed": 3, "none": 1, "peer": 40}

    def answer(workers, name, task):
        assert name in workers
        return {"seconds": seconds[task][name], "gib": 1.5}

    monkeypatch.setattr(benchmark, "started", nobody)
    monkeypatch.setattr(benchmark, "ask", answer)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: name)  # all installed
    benchmark.print_contest(small())
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
