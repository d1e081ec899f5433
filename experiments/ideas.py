"""Ideas of the literature, each a short class on the seams of delays.py, to copy and to change.

    python -m experiments.ideas recurrent --dataset toy
    python -m experiments.ideas axonal --dataset shd --data-dir DIR --epochs 30 --seed 1

The first word names the network, and all options of train.py may follow:

    base       the network of delays.py, one delay for each synapse
    axonal     one delay for each input of a layer
    dendritic  one delay for each neuron
    recurrent  spikes of a hidden layer come back to it after a learned delay
    adaptive   neurons that adapt to what they do, with learned time constants

Results go to runs/DATASET-IDEA-DELAYS-SEED, if --out names no other folder.  From Python, and to
load a run again:

    options = train.parse(["--dataset", "toy", "--out", "runs/mine"])
    result = train.train(options, net=train.build(options, Recurrent))
    net, options = train.load_run("runs/mine", net=train.build(options, Recurrent))
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

import train
from delays import DelayedLinear, DelaySNN, gaussian_kernel, integer_kernel, spike

# ---------------------------------------------------------------------- axonal and dendritic delays


class AxonalLayer(DelayedLinear):
    """One delay for each input: all synapses of an axon hand its spikes on at the same time.

    With a count, one for each of the count copies.
    """

    def __init__(self, in_features, out_features, taps, count=1, *others, **named):
        shape = (1, in_features) if count == 1 else (count, 1, in_features)
        super().__init__(
            in_features, out_features, taps, count, *others, delay_shape=shape, **named
        )


class DendriticLayer(DelayedLinear):
    """One delay for each neuron: whatever arrives there waits for the same time.

    With a count, one for each of the count copies.
    """

    def __init__(self, in_features, out_features, taps, count=1, *others, **named):
        shape = (out_features, 1) if count == 1 else (count, out_features, 1)
        super().__init__(
            in_features, out_features, taps, count, *others, delay_shape=shape, **named
        )


class Axonal(DelaySNN):
    """Fewer delays: does a delay for each synapse pay?

    "Sparse Axonal and Dendritic Delays Enable Competitive SNNs for Keyword Classification"
    (Bouhadjar, Neftci, 2026, arXiv 2602.09746) asks that of the same method as here.

    As in its code: a Gaussian of weight 1 delays each input before the product with the weights, or
    each neuron's sum after it, in all layers.  Whether a spike is first delayed or first weighted
    makes no difference, so that is this kernel.  Not as there: the delays are not thinned out, and
    the time of a step of training is that of one delay for each synapse, since the kernel is still
    [out, in, taps].
    """

    layer_class = AxonalLayer


class Dendritic(DelaySNN):
    """As Axonal, with one delay for each neuron in place of one for each of its inputs.

    So a neuron delays all its inputs alike.  What did not come together in time, only the delays of
    the layers before can bring together.
    """

    layer_class = DendriticLayer


# -------------------------------------------------------------------------------- recurrent delays


class Echo(DelayedLinear):
    """The synapses of a layer with itself: [N, N] weights, and a delay for each axon.

    .delay: [1, N], 0..taps-1 steps as in every DelayedLinear.  A spike returns one step later than
    that, after 1..taps steps, since within its own step it comes too late to have an effect.

    It is not called as a layer is: Recurrent.neurons takes its spread and its weights.
    """

    def __init__(self, neurons, taps, learn_delays, connections):
        super().__init__(
            neurons,
            neurons,
            taps,
            learn_delays=learn_delays,
            connections=connections,
            delay_shape=(1, neurons),
        )

    def spread(self):
        """How much of a spike has arrived d + 1 steps later, [taps, N]: a kernel of weight 1."""
        weight = torch.ones_like(self.delay)  # [1, N]
        gaussians = self.training or not self.whole_steps
        if gaussians and self.learn_delays:
            kernel = gaussian_kernel(weight, self.positions(), self.sigma, self.taps)
        else:
            kernel = integer_kernel(weight, self.positions(), self.taps)
        return kernel[0].T  # [taps, N]


class Recurrent(DelaySNN):
    """The spikes of a hidden layer come back to it, each axon's after a delay that is learned.

        r[t,o] = sum_n w[o,n] sum_d g[d,n] s[t-1-d,n]
        h[t] = (1 - 1/tau) v[t-1] + I[t] + r[t]

    From "DelRec: learning delays in recurrent spiking neural networks" (Queant, Rançon, Cottereau,
    Masquelier, 2025, arXiv 2509.24852).

    As there, in its code for SHD: a delay for each axon, of at least one step; weights between all
    pairs (with --connections, between some); what comes back is added behind the batch norm; whole
    steps in evaluation.

    Not as there: g is the Gaussian of delays.py, with its sigma, in place of a triangle that
    shrinks over all epochs; delays end at `taps` steps; the weights are drawn uniformly, not
    orthogonal; no dropout on what comes back; and the synapses between the layers keep their
    delays, which its program for SHD leaves out.

    With a delay for each synapse, which DelRec has too, the product would be `taps` times as large.
    --delays none is the usual recurrent network: all spikes come back after one step.
    --kernel-count does not reach the echoes, which have one delay in any case.
    """

    def __init__(
        self, in_features, hidden, classes, *, taps=25, learn_delays=True, connections=0, **others
    ):
        hidden = list(hidden)
        named = dict(taps=taps, learn_delays=learn_delays, connections=connections)
        super().__init__(in_features, hidden, classes, **named, **others)
        # Drawn last, so that a seed gives the layers the weights that they have in the base.
        self.echoes = nn.ModuleList(Echo(size, **named) for size in hidden)

    def neurons(self, i, current):
        echo = self.echoes[i]
        weight = echo.weight * echo.mask
        spread = echo.spread()[:, None]  # [taps, 1, N]

        v = torch.zeros_like(current[:, 0])  # [B, N]
        nothing = v[None]
        coming = nothing.repeat(echo.taps, 1, 1)  # what each axon delivers d steps from now
        spikes = []
        for now in current.unbind(1):
            arrived, coming = coming.split([1, echo.taps - 1])
            h = (1 - 1 / self.tau) * v + now + F.linear(arrived[0], weight)
            s = spike(h - 1)
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            spikes.append(s)
            # A step passes: what came is gone, and a place for the longest delay is free.
            coming = torch.addcmul(torch.cat([coming, nothing]), spread, s)
        return torch.stack(spikes, 1)


# -------------------------------------------------------------------------------- adaptive neurons


class AdaptiveNeurons(nn.Module):
    """Leaky neurons that a second variable w inhibits, which grows with their own activity (adLIF).

        h[t] = m v[t-1] + I[t] - w[t-1],   s[t] = 1 if h[t] >= 1 else 0,   v[t] = h[t] (1 - s[t])
        w[t] = k w[t-1] + a v[t] + b s[t]

    m, k, a and b are learned, one of each for each neuron, by way of a sigmoid.  So all lie in
    0..1, where v and w die away without input.
    """

    def __init__(self, size):
        super().__init__()
        # Drawn for steps of 10 ms.  A potential is gone after some steps, and w stays longer.
        self.m = nn.Parameter(torch.empty(size).uniform_(0.01, 0.5).logit())
        self.k = nn.Parameter(torch.empty(size).uniform_(0.5, 0.99).logit())
        self.a = nn.Parameter(torch.empty(size).uniform_(0.01, 0.1).logit())
        self.b = nn.Parameter(torch.empty(size).uniform_(0.01, 0.2).logit())

    def forward(self, current):
        m, k = torch.sigmoid(self.m), torch.sigmoid(self.k)  # [N]
        a, b = torch.sigmoid(self.a), torch.sigmoid(self.b)  # [N]
        v = torch.zeros_like(current[:, 0])  # [B, N]
        w = torch.zeros_like(v)
        spikes = []
        for now in current.unbind(1):
            h = m * v + now - w
            s = spike(h - 1)
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            w = k * w + a * v + b * s
            spikes.append(s)
        return torch.stack(spikes, 1)


class Adaptive(DelaySNN):
    """Neurons with a memory of their own, beside that of the delays.

    From "A surrogate gradient spiking baseline for speech command recognition" (Bittar, Garner,
    Frontiers in Neuroscience 2022): w, which the potential and the spikes feed, and constants of
    each neuron, which are learned.  From "Advancing spatio-temporal processing through adaptation
    in spiking neural networks" (Baronig, Ferrand, Sabathiel, Legenstein, Nature Communications
    2025), whose neuron is SE-adLIF: the order within a step, where w takes up the new potential
    after a reset to 0; and that a is not negative.

    Not as in either: I and w are not multiplied by 1 - m, just as lif does not; a sigmoid keeps the
    constants within bounds, in place of clamping, and the bounds and first values are others; and
    there are delays in front of the neurons.

    tau is that of the readout alone.
    """

    def __init__(self, in_features, hidden, classes, **others):
        hidden = list(hidden)
        super().__init__(in_features, hidden, classes, **others)
        # Drawn last, so that a seed gives the layers the weights that they have in the base.
        self.adaptive = nn.ModuleList(AdaptiveNeurons(size) for size in hidden)

    def neurons(self, i, current):
        return self.adaptive[i](current)


# ------------------------------------------------------------------------------------ command line

IDEAS = {
    "base": DelaySNN,
    "axonal": Axonal,
    "dendritic": Dendritic,
    "recurrent": Recurrent,
    "adaptive": Adaptive,
}


def main(argv: list[str]) -> None:
    """The command line of train.py, after the name of an idea."""
    idea, *words = argv or ["none"]
    if idea not in IDEAS:
        sys.exit(f"the first word is {idea}: expected one of {', '.join(IDEAS)}")
    if not any(word.split("=")[0] in ("--out", "--resume", "--eval") for word in words):
        options = train.parse(words)
        out = f"runs/{options.dataset}-{idea}-{options.delays}-{options.seed}"
        words = [*words, "--out", out]
    train.main(words, IDEAS[idea])


if __name__ == "__main__":
    main(sys.argv[1:])
