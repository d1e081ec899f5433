"""The whole method in one file: a spiking network that learns a delay for every synapse.

    python experiments/lesson/one_file.py       trains the toy task
    python experiments/lesson/one_file.py shd   trains SHD (regenerated)

Everything else in this repository is speed (on one core of AMD's Zen 5, a step on SHD takes this
file 4 to 5 times as long), options, resuming and checks.  The losses are those of train.py, until
rounding moves a spike.  In delays.py, make_kernel is gaussian_kernel and rounded_kernel, and
delayed_sum is delay_conv.  Signals are [B, T, N]: batch, time, neurons.  Delays are in steps.
"""

import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

# A pattern of the toy task lasts 32 steps, so 33 taps are enough to bring its ends together.
TOY = dict(hidden=[40], taps=33, tau=1.005, dropout=0.0, batch_size=50, epochs=20)
SHD = dict(hidden=[256, 256], taps=25, tau=1.005, dropout=0.4, batch_size=256, epochs=150)


def make_kernel(weight: Tensor, delay: Tensor, taps: int, sigma: float | None) -> Tensor:
    """k[d] = w g[d] / (sum_d' g[d'] + 1e-7),  g[d] = exp(-((d - delay) / sigma)^2 / 2)"""
    d = torch.arange(taps, device=delay.device)
    if sigma is None:  # evaluation: the whole weight at the rounded delay
        fraction = d == delay.round()[:, :, None]  # [out, in, taps]
    else:  # training: a Gaussian around the delay, since rounding has no gradient
        exponent = -(((d - delay[:, :, None]) / sigma) ** 2) / 2  # [out, in, taps]
        # The condition makes tiny values exactly 0: denormal numbers are slow on some processors.
        g = torch.exp(exponent) * (exponent > -80)
        # The taps add up to the weight, also at an end of the range: the other taps share what is
        # cut off there.  The 1e-7 is the authors'; sigma is never so small that g.sum is.
        fraction = g / (g.sum(2, keepdim=True) + 1e-7)
    return weight[:, :, None] * fraction  # [out, in, taps]


def delayed_sum(x: Tensor, kernel: Tensor) -> Tensor:
    """y[b,t,o] = sum_i sum_d k[o,i,d] x[b,t-d,i],  x = 0 before its first step, after its last"""
    taps = kernel.shape[2]
    x = x.to(kernel.dtype).mT  # [B, in, T]
    x = F.pad(x, (taps - 1, taps // 2))  # y is longer by a tail, so most late spikes count
    return F.conv1d(x, kernel.flip(2)).mT  # [B, T + taps//2, out]; conv1d itself does not flip


def spike(x: Tensor, alpha: float = 5.0) -> Tensor:
    """1 where x >= 0, else 0, with the gradient (alpha/2) / (1 + ((pi/2) alpha x)^2)"""
    smooth = torch.arctan(math.pi / 2 * alpha * x) / math.pi
    return (x >= 0).to(x.dtype) + (smooth - smooth.detach())  # the bracket is 0, its slope is not


def lif(current: Tensor, tau: float) -> Tensor:
    """h[t] = (1 - 1/tau) v[t-1] + I[t],  s[t] = 1 if h[t] >= 1 else 0,  v[t] = h[t] (1 - s[t])"""
    v = torch.zeros_like(current[:, 0])  # [B, N]
    spikes = []
    for current_now in current.unbind(1):
        h = (1 - 1 / tau) * v + current_now  # at a tau of 1.005 steps, 0.5 % of v is left
        s = spike(h - 1)
        # As the authors do, detach leaves out of the gradient what the reset does to later steps.
        v = h * (1 - s.detach())
        spikes.append(s)
    return torch.stack(spikes, 1)  # [B, T, N]


def leaky_integrator(current: Tensor, tau: float) -> Tensor:
    """v[t] = (1 - 1/tau) v[t-1] + I[t]"""
    v = torch.zeros_like(current[:, 0])  # [B, N]
    potentials = []
    for current_now in current.unbind(1):
        v = (1 - 1 / tau) * v + current_now
        potentials.append(v)
    return torch.stack(potentials, 1)  # [B, T, N]


class Network(nn.Module):
    """Counts of spikes [B, T, inputs] -> potentials of the readout [B, T + tail, classes]."""

    def __init__(self, inputs, hidden, classes, taps, tau, dropout):
        super().__init__()
        self.taps = taps
        self.tau = tau
        self.dropout = dropout
        self.weights = nn.ParameterList()
        self.delays = nn.ParameterList()
        for before, after in pairwise([inputs, *hidden, classes]):
            bound = math.sqrt(6 / before)  # Kaiming's for relu
            weight = torch.empty(after, before).uniform_(-bound, bound)
            delay = torch.empty(after, before).uniform_(0, taps - 1)
            self.weights.append(nn.Parameter(weight))
            self.delays.append(nn.Parameter(delay))
        self.norms = nn.ModuleList(nn.BatchNorm1d(neurons) for neurons in hidden)
        self.tail = len(self.weights) * (taps // 2)

    def forward(self, x: Tensor, sigma: float | None = None) -> Tensor:
        synapses = zip(self.weights, self.delays, strict=True)
        kernels = [make_kernel(weight, delay, self.taps, sigma) for weight, delay in synapses]
        for norm, kernel in zip(self.norms, kernels[:-1], strict=True):
            current = delayed_sum(x, kernel)
            current = norm(current.flatten(0, 1)).view_as(current)  # over batch and time
            x = lif(current, self.tau)
            x = F.dropout1d(x.mT, self.dropout, self.training).mT  # neurons, for a whole sample
        return leaky_integrator(delayed_sum(x, kernels[-1]), self.tau)  # no batch norm here


# -------------------------------------------------------------------------- training and evaluation


def shrinking_sigma(epoch: int, epochs: int, taps: int) -> float:
    """Return sigma, which finds the way of a delay while it is wide, and its place once narrow."""
    wide, quarter = taps // 2, epochs // 4  # 5 of 20 epochs, 37 of 150
    if epoch >= quarter:
        return 0.5
    # From taps // 2 + 0.27 to 0.23 + 0.27.  The authors' library adds 0.27 to every width.
    return 0.27 + wide * (0.23 / wide) ** (epoch / quarter)


def train(train_set, test_set, hidden, taps, tau, dropout, batch_size, epochs, seed=0):
    """Return the trained network, and for each epoch the loss, training and test accuracy."""
    train_counts, train_labels = train_set  # a list of [T, inputs], and [samples]
    test_counts, test_labels = test_set
    inputs, classes = train_counts[0].shape[1], int(train_labels.max()) + 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    net = Network(inputs, hidden, classes, taps, tau, dropout).to(device)
    # We know no reason why the weights decay, and norms and delays do not.
    weights = {"params": net.weights, "weight_decay": 1e-5}
    norms = {"params": net.norms.parameters()}
    adam = torch.optim.Adam([weights, norms])
    delay_adam = torch.optim.Adam(net.delays, lr=0.1)
    # The rate rises from 0.0002 to 0.005, in epoch 0.3 * epochs - 1 (counted from 0), and falls to
    # nearly 0.  Meanwhile beta1 goes from 0.95 to 0.85 and back.
    one_cycle = OneCycleLR(adam, max_lr=0.005, total_steps=epochs)
    cosine = CosineAnnealingLR(delay_adam, T_max=epochs)  # from 0.1 to 0

    history = []
    for epoch in range(epochs):
        torch.manual_seed(seed + 1_000_003 * (epoch + 1))  # no two runs share the draws of an epoch
        sigma = shrinking_sigma(epoch, epochs, taps)
        net.train()
        loss_sum, correct = 0, 0
        for indices in torch.randperm(len(train_counts)).split(batch_size):
            counts = pad_sequence([train_counts[i] for i in indices], batch_first=True).to(device)
            labels = train_labels[indices].to(device)  # [B]
            scores = net(counts, sigma).softmax(2).sum(1)  # [B, classes]; padding counts too
            # cross_entropy applies a second softmax, as in the authors' loss.  Scores are sums over
            # time, not means, so those of a sample add up to T + tail: 112 on the toy task.  So the
            # loss begins above ln(classes).  On SHD the second softmax nearly picks the largest:
            # where a sample is wrong, the loss is about the lead of its strongest rival.
            loss = F.cross_entropy(scores, labels)

            net.zero_grad()
            loss.backward()
            adam.step()
            delay_adam.step()
            for delay in net.delays:
                delay.data.clamp_(0, taps - 1)  # rounded outside, a synapse would have no tap
            loss_sum += loss.item() * len(labels)
            correct += (scores.argmax(1) == labels).sum().item()
        one_cycle.step()
        cosine.step()

        mean_loss, train_accuracy = loss_sum / len(train_labels), correct / len(train_labels)
        right = predict(net, test_counts, batch_size).argmax(1) == test_labels
        test_accuracy = right.sum().item() / len(test_labels)
        history.append((mean_loss, train_accuracy, test_accuracy))
        accuracies = f"train accuracy {train_accuracy:.2%}, test accuracy {test_accuracy:.2%}"
        print(f"epoch {epoch + 1} of {epochs}: loss {mean_loss:.5f}, {accuracies}", flush=True)
    return net, history


@torch.no_grad()
def predict(net: Network, counts: list[Tensor], batch_size: int) -> Tensor:
    """Return the class scores of all samples, with rounded delays: [samples, classes]."""
    net.eval()
    scores = []
    for start in range(0, len(counts), batch_size):
        samples = counts[start : start + batch_size]
        padded = pad_sequence(samples, batch_first=True).to(net.weights[0].device)
        # With zeros after its input, a hidden layer runs on in its tail, and its late spikes count,
        # as in training they do where padding follows.  All samples get as much time, also where
        # no batch has padding, so scores do not depend on the batch.
        padded = F.pad(padded, (0, 0, 0, net.tail))
        for sample, potentials in zip(samples, net(padded), strict=True):
            own = potentials[: len(sample) + net.tail]  # padding does not count here
            scores.append(own.softmax(1).sum(0))
    return torch.stack(scores).cpu()


# ----------------------------------------------------------------------------------------- the data


def toy(samples: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Return a set of the toy task: in which of ten orders do eight inputs fire?"""
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(8), (10, 1)), axis=1)  # [10, 8]
    labels = np.arange(samples) % 10
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 80 - 8 * 4 + 1, samples)
    bursts = rng.random((samples, 80, 8)) < 0.02  # True where a burst starts: at first, only noise
    for sample in range(samples):
        for place, channel in enumerate(orders[labels[sample]]):
            bursts[sample, starts[sample] + 4 * place, channel] = True
    counts = bursts.copy()
    for later in (1, 2, 3):  # a burst lasts four steps
        counts[:, later:] |= bursts[:, :-later]
    return list(torch.from_numpy(counts)), torch.from_numpy(labels)


def read_shd(split: str) -> tuple[list[Tensor], Tensor]:
    """Return a set of SHD (regenerated): counts in steps of 10 ms, with 5 channels an input."""
    folder = Path(__file__).parents[1] / "included" / "shd-regenerated"
    with np.load(folder / f"{split}.npz") as file:
        counts = torch.from_numpy(file["counts"])  # [steps of all samples, 140]
        labels = torch.from_numpy(file["labels"].astype(np.int64))
        return list(counts.split(file["steps"].tolist())), labels


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            train(toy(2000, seed=1), toy(1000, seed=2), **TOY)
        case ["shd"]:
            train(read_shd("train"), read_shd("test"), **SHD)
        case words:
            sys.exit(f"expected shd, or nothing for the toy task, not {words}")
