"""Forks to copy: networks, neurons, an augmentation and a hook from the literature.

    python -m experiments.forks.ideas recurrent --dataset toy
    python -m experiments.forks.ideas shift --dataset shd-regenerated --seed 1

The first word names an idea: IDEAS, at the end of this file, lists them.  All options of train.py
may follow.  Results go to runs/DATASET-IDEA-DELAYS-SEED (or the next free -2, -3, ...) or to --out.
FORKING.md says what a fork has to keep in mind.
"""

import math
import sys

import torch
from torch import nn
from torch.nn import functional as F

import train
from delays import DelayedLinear, DelaySNN, rounded_kernel, spike

# ---------------------------------------------------------------------- fewer or more delays


class AxonLayer(DelayedLinear):
    def __init__(self, inputs, outputs, taps, **others):
        super().__init__(inputs, outputs, taps, delay_shape=(1, inputs), **others)


class Axonal(DelaySNN):
    """Fewer delays, one per axon: is a delay per synapse worth its price?

    "Sparse Axonal and Dendritic Delays Enable Competitive SNNs for Keyword Classification"
    (Bouhadjar, Neftci, 2026, arXiv 2602.09746) asks this about the same method.  Unlike in that
    paper, delays are not pruned, and a step takes as long as with one delay per synapse.
    """

    layer_class = AxonLayer


class DendriteLayer(DelayedLinear):
    def __init__(self, inputs, outputs, taps, **others):
        super().__init__(inputs, outputs, taps, delay_shape=(outputs, 1), **others)


class Dendritic(DelaySNN):
    """One delay per neuron, for all of its inputs."""

    layer_class = DendriteLayer


class SparseLayer(DelayedLinear):
    """Each neuron has synapses from ten of its inputs, drawn at random.

    Missing synapses get no gradient, since the mask multiplies the kernel.  But .weight and .delay
    have entries for them, so the parameters that train.py counts include them: the synapses of a
    layer are mask.sum().
    """

    fan_in = 10

    def __init__(self, inputs, outputs, taps, **others):
        super().__init__(inputs, outputs, taps, **others)
        fan_in = min(self.fan_in, inputs)
        chosen = torch.rand(outputs, inputs).argsort(1)[:, :fan_in]  # different inputs, [out, 10]
        mask = torch.zeros(outputs, inputs, dtype=torch.bool)
        self.mask = nn.Buffer(mask.scatter(1, chosen, True))
        # Kaiming's bound is sqrt(6 / inputs): here it is that of the inputs that there are.
        self.weight.data *= math.sqrt(inputs / fan_in)

    def kernel(self):
        return super().kernel() * self.mask[:, :, None]


class Sparse(DelaySNN):
    """The paper's networks with ten random inputs per neuron."""

    layer_class = SparseLayer


class TwoDelaysLayer(DelayedLinear):
    """Two synapses for each pair of neurons: a layer of twice the inputs, which gets them twice."""

    def __init__(self, inputs, outputs, taps, **others):
        super().__init__(2 * inputs, outputs, taps, **others)

    def forward(self, x):
        return super().forward(x.repeat(1, 1, 2))


class TwoDelays(DelaySNN):
    """The paper's best network for SSC.  Its layers can also learn intervals within one input."""

    layer_class = TwoDelaysLayer


# ------------------------------------------------------------------------------- other neurons


class Recurrent(DelaySNN):
    """The spikes of a hidden layer come back to it, each axon's after a learned delay.

        r[t,o] = sum_n w[o,n] sum_d g[d,n] s[t-1-d,n]
        h[t] = (1 - 1/tau) v[t-1] + I[t] + r[t]

    A spike returns one step after its delay, because it cannot act within its own step.

    From "DelRec: learning delays in recurrent spiking neural networks" (Queant, Rançon, Cottereau,
    Masquelier, 2025, arXiv 2509.24852).  Unlike in its code for SHD, g is the Gaussian of delays.py
    and not a triangle that shrinks over all epochs, delays end at `taps` steps, weights are drawn
    uniformly, nothing is dropped from what comes back, and the synapses between the layers keep
    their delays.  --delays none is the usual recurrent network: all spikes come back after one
    step.
    """

    def __init__(self, inputs, hidden, classes, taps=25, learn_delays=True, **others):
        super().__init__(inputs, hidden, classes, taps, learn_delays=learn_delays, **others)
        # Drawn last, so that a seed gives the layers the same weights as in DelaySNN.
        layers = [AxonLayer(size, size, taps, learn_delays=learn_delays) for size in hidden]
        self.echoes = nn.ModuleList(layers)

    def neurons(self, i, current):
        echo = self.echoes[i]
        ones = torch.ones_like(echo.delay)  # [1, N]
        if echo.training and echo.learn_delays:
            spread = echo.training_kernel(ones)
        else:
            spread = rounded_kernel(ones, echo.delay, echo.taps)
        # How much of a spike arrives d + 1 steps later, [taps, 1, N].
        spread = spread.permute(2, 0, 1)
        v = torch.zeros_like(current[:, 0])  # [B, N]
        nothing = v[None]
        coming = nothing.repeat(echo.taps, 1, 1)  # what each axon delivers d steps from now
        spikes = []
        for current_now in current.unbind(1):
            arrived, coming = coming.split([1, echo.taps - 1])
            h = (1 - 1 / self.tau) * v + current_now + F.linear(arrived[0], echo.weight)
            s = spike(h - 1)
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            spikes.append(s)
            # A step passes: what arrived is removed, and the longest delay gets an empty slot.
            coming = torch.addcmul(torch.cat([coming, nothing]), spread, s)
        return torch.stack(spikes, 1)


class Adaptive(DelaySNN):
    """Neurons inhibited by a second variable w that grows with their own activity (adLIF).

        h[t] = m v[t-1] + I[t] - w[t-1],   s[t] = 1 if h[t] >= 1 else 0,   v[t] = h[t] (1 - s[t])
        w[t] = k w[t-1] + a v[t] + b s[t]

    Each neuron learns its own m, k, a and b.  A sigmoid keeps them within 0..1, where v and w decay
    without input.  tau applies to the readout only.

    w, and constants that each neuron learns, are from "A surrogate gradient spiking baseline for
    speech command recognition" (Bittar, Garner, Frontiers in Neuroscience 2022).  The order within
    a step, and an a that is not negative, are from SE-adLIF: "Advancing spatio-temporal processing
    through adaptation in spiking neural networks" (Baronig et al., Nature Communications 2025).
    Unlike in either, I and w are not multiplied by 1 - m, a sigmoid replaces clamping, the bounds
    and initial values differ, and there are delays before the neurons.
    """

    def __init__(self, inputs, hidden, classes, **others):
        super().__init__(inputs, hidden, classes, **others)
        # For steps of 10 ms: a potential decays within a few steps, and w lasts longer.
        first = dict(m=(0.01, 0.5), k=(0.5, 0.99), a=(0.01, 0.1), b=(0.01, 0.2))
        # Drawn last, so that a seed gives the layers the same weights as in DelaySNN.
        self.constants = nn.ModuleList()
        for size in hidden:
            drawn = {name: torch.empty(size).uniform_(*of).logit() for name, of in first.items()}
            self.constants.append(nn.ParameterDict(drawn))

    def neurons(self, i, current):
        m, k, a, b = [torch.sigmoid(self.constants[i][name]) for name in "mkab"]  # [N]
        v = torch.zeros_like(current[:, 0])  # [B, N]
        w = torch.zeros_like(v)
        spikes = []
        for current_now in current.unbind(1):
            h = m * v + current_now - w
            s = spike(h - 1)
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            w = k * w + a * v + b * s
            spikes.append(s)
        return torch.stack(spikes, 1)


# ------------------------------------------------------------------------- a hook, an augmentation


def whole_steps(net, optimizer, epoch, options):
    """Train with rounded delays in the last fifth of the epochs: a before_epoch of train.train.

    learn_delays is not saved, so a resumed run needs it set in each epoch.
    """
    if epoch >= 0.8 * options.epochs:
        for layer in train.delayed_layers(net):
            layer.learn_delays = False  # layer.kernel() is that of evaluation, also in training


def shift(counts, labels):
    """Shift each sample of [B, T, inputs] along the inputs by a random amount, up to 8.

    This suits inputs in the order of frequency, such as SHD's 140.
    """
    steps, inputs = counts.shape[1:]
    moves = torch.randint(-8, 9, (len(counts), 1, 1), device=counts.device)
    source = torch.arange(inputs, device=counts.device) - moves  # [B, 1, inputs]
    inside = (source >= 0) & (source < inputs)
    source = source.clamp(0, inputs - 1).expand(-1, steps, -1)  # [B, T, inputs]
    return counts.gather(2, source) * inside  # 0 where it comes from outside


# ------------------------------------------------------------------------------------ command line

# Arguments of train.main.  A config.json tells ideas apart by the names of classes and functions.
IDEAS = {
    "axonal": dict(net_class=Axonal),  # one delay per input of a layer
    "dendritic": dict(net_class=Dendritic),  # one delay per neuron
    "sparse": dict(net_class=Sparse),  # ten inputs per neuron
    "two-delays": dict(net_class=TwoDelays),  # two synapses for each pair of neurons
    "recurrent": dict(net_class=Recurrent),  # a layer's spikes come back to it, after a delay
    "adaptive": dict(net_class=Adaptive),  # neurons that adapt to their own activity
    "whole-steps": dict(before_epoch=whole_steps),  # delays are rounded in training too, at the end
    "shift": dict(augment=shift),  # training samples are shifted along the inputs
}


def main(argv: list[str]) -> None:
    """Run the command line of train.py, after the name of an idea."""
    idea, *words = argv or [""]
    if idea not in IDEAS:
        sys.exit(f"ideas.py: the first word has to be one of {', '.join(IDEAS)}")
    train.RUNS = "runs/{dataset}-" + idea + "-{delays}-{seed}"  # says what differs
    train.main(words, **IDEAS[idea])


if __name__ == "__main__":
    main(sys.argv[1:])
