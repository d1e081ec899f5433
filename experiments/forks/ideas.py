"""Variants of the network: ideas from the literature, controls, and the method without one part.

    python -m experiments.ideas recurrent --dataset toy
    python -m experiments.ideas shift --dataset shd-regenerated --seed 1

The first word names an idea: IDEAS, at the end of this file, lists them.  All options of train.py
may follow.  Results go to runs/DATASET-IDEA-DELAYS-SEED (or the next free -2, -3, ...) or to --out.
"""

import math
import sys

import torch
from torch import nn
from torch.nn import functional as F

import train
from data import UserError
from delays import DelayedLinear, DelaySNN, class_scores, delay_conv, lif, rounded_kernel, spike


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
    layer_class = DendriteLayer


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
    step.  --kernel-count does not apply to these synapses (.echoes).
    """

    def __init__(self, inputs, hidden, classes, taps=25, learn_delays=True, **others):
        super().__init__(inputs, hidden, classes, taps, learn_delays=learn_delays, **others)
        # Drawn last, so that a seed gives the layers the same weights as in the base.
        options = dict(learn_delays=learn_delays, connections=others.get("connections", 0))
        self.echoes = nn.ModuleList(AxonLayer(size, size, taps, **options) for size in hidden)

    def neurons(self, i, current):
        echo = self.echoes[i]
        weight = echo.weight * echo.mask
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
            h = (1 - 1 / self.tau) * v + current_now + F.linear(arrived[0], weight)
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
        # Drawn last, so that a seed gives the layers the same weights as in the base.
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


class LateSteps(DelayedLinear):
    def training_kernel(self, weight):
        if self.sigma == 0:
            return rounded_kernel(weight, self.delay, self.taps)
        return super().training_kernel(weight)


class WholeSteps(DelaySNN):
    """In the last fifth of the epochs, weights learn with rounded kernels."""

    layer_class = LateSteps


def freeze_delays(net, optimizer, epoch, options):
    """Set sigma to 0 in the last fifth of the epochs: a before_epoch of train.train."""
    if epoch >= 0.8 * options.epochs:
        for layer in net.layers:
            layer.sigma = 0.0


class BetweenTapsLayer(DelayedLinear):
    def training_kernel(self, weight):
        d = torch.arange(self.taps, dtype=weight.dtype, device=weight.device)[:, None, None]
        share = (1 - (d - self.delay).abs()).clamp(min=0)  # [taps, out, in]
        return (share * weight).permute(1, 2, 0)


class BetweenTaps(DelaySNN):
    """Does the method need a Gaussian?  Here kernels are linear between the taps, without sigma."""

    layer_class = BetweenTapsLayer


class Still(DelayedLinear):
    def __init__(self, *sizes, **others):
        super().__init__(*sizes, **others)
        self.delay.data.round_()
        self.delay.requires_grad_(False)


class Control(DelaySNN):
    """Does it help that delays move, or is it the Gaussians alone?  Here they do not move.

    They are the whole steps of --delays fixed.  --delay-lr 0 keeps delays between steps.
    """

    layer_class = Still


# ---------------------------------------------------------------------- the method without one part


class NoTailLayer(DelayedLinear):
    def forward(self, x):
        return delay_conv(x, self.kernel())


class NoTail(DelaySNN):
    """What arrives after the last step of the input is lost."""

    layer_class = NoTailLayer
    tail = 0


def one_softmax(net, counts, membrane, labels):
    """Return train's loss without the second softmax: scores / steps are probabilities already."""
    return F.nll_loss((class_scores(membrane) / membrane.shape[1]).log(), labels)


def rival(net, counts, membrane, labels):
    """Return one softmax against the strongest rival: -log(s_own / (s_own + max of the others)).

    s: the class scores divided by the steps, which are probabilities.
    """
    s = class_scores(membrane) / membrane.shape[1]  # [B, classes]
    own = F.one_hot(labels, s.shape[1]).bool()
    strongest = s.masked_fill(own, 0).amax(1)
    return -(s[own] / (s[own] + strongest)).log().mean()


def mean_scores(net, counts, membrane, labels):
    """Return train's loss of scores that are averaged over the steps instead of summed.

    The second softmax then sees numbers from 0 to 1: of ten classes, none gets more than 0.23.
    """
    return F.cross_entropy(class_scores(membrane) / membrane.shape[1], labels)


def potential_sums(membrane, steps=None):
    """Sum the potentials over time: class_scores without the softmax in each step."""
    if steps is not None:
        t = torch.arange(membrane.shape[1], device=membrane.device)
        membrane = membrane * (t < steps[:, None]).unsqueeze(2)  # [B, T, 1]
    return membrane.sum(1)


def summed_potentials(net, counts, membrane, labels):
    """Return the cross-entropy of potential_sums, by which train then predicts too (SCORES)."""
    return F.cross_entropy(potential_sums(membrane), labels)


class DropSteps(DelaySNN):
    """Dropout draws a new mask in each step.  Unlike in DelaySNN, .rates are after dropout."""

    def __init__(self, *sizes, dropout=0.4, **others):
        super().__init__(*sizes, dropout=0.0, **others)
        self.each_step = dropout

    def neurons(self, i, current):
        return F.dropout(lif(current, self.tau), self.each_step, self.training)


class Alpha2(DelaySNN):
    alpha = 2.0

    def neurons(self, i, current):
        return lif(current, self.tau, alpha=self.alpha)


class Alpha20(Alpha2):
    alpha = 20.0


class SigmoidSlope(DelaySNN):
    """The surrogate gradient is the slope of sigmoid(4 x), x = h - 1.

        slope(x) = 4 sigmoid(4 x) (1 - sigmoid(4 x))

    It is 1 at the threshold, where that of delays.py is 2.5, and falls exponentially.
    """

    def neurons(self, i, current):
        v = torch.zeros_like(current[:, 0])  # [B, N]
        spikes = []
        for current_now in current.unbind(1):
            h = (1 - 1 / self.tau) * v + current_now
            smooth = torch.sigmoid(4 * (h - 1))
            s = (h >= 1).to(h.dtype) + (smooth - smooth.detach())
            v = h * (1 - s.detach())  # as in lif_loop, no gradient flows through the reset
            spikes.append(s)
        return torch.stack(spikes, 1)


class SmallWeightsLayer(DelayedLinear):
    """First weights are uniform in +-1/sqrt(inputs), as in nn.Linear."""

    def __init__(self, *sizes, **others):
        super().__init__(*sizes, **others)
        self.weight.data /= math.sqrt(6)  # they were in +-sqrt(6 / inputs)


class SmallWeights(DelaySNN):
    layer_class = SmallWeightsLayer


class SmallSigmoid(SigmoidSlope):
    layer_class = SmallWeightsLayer


class TriangleLayer(DelayedLinear):
    """A triangle of half-width sqrt(6) sigma, which has the variance sigma^2."""

    def training_kernel(self, weight):
        d = torch.arange(self.taps, device=weight.device)[:, None, None]
        distance = (d - self.delay).abs()  # [taps, out, in]
        g = (1 - distance / (math.sqrt(6) * self.sigma)).clamp(min=0)
        return (g * (weight / (g.sum(0) + 1e-7))).permute(1, 2, 0)


class Triangle(DelaySNN):
    layer_class = TriangleLayer


class FromZeroLayer(DelayedLinear):
    def __init__(self, *sizes, **others):
        super().__init__(*sizes, **others)
        self.delay.data.zero_()


class FromZero(DelaySNN):
    layer_class = FromZeroLayer


class NoNorm(DelaySNN):
    def __init__(self, *sizes, **others):
        super().__init__(*sizes, **others)
        self.norms = nn.ModuleList(nn.Identity() for _ in self.norms)


class ReadoutNorm(DelaySNN):
    """The readout has a batch norm too, between its delayed sum and its leaky integrators."""

    def __init__(self, inputs, hidden, classes, **others):
        super().__init__(inputs, hidden, classes, **others)
        self.last_norm = nn.BatchNorm1d(classes)

    def readout(self, current):
        return super().readout(self.last_norm(current.flatten(0, 1)).view_as(current))


class NoClampLayer(DelayedLinear):
    """Delays may leave 0..taps-1.  There a rounded delay has no tap, so its synapse is silent."""

    def clamp_delays(self):
        pass

    def kernel(self):
        if self.training:
            return super().kernel()
        inside = (self.delay.round() >= 0) & (self.delay.round() < self.taps)
        delay = self.delay.clamp(0, self.taps - 1)
        return rounded_kernel(self.weight * self.mask * inside, delay, self.taps)


class NoClamp(DelaySNN):
    layer_class = NoClampLayer


# ------------------------------------------------------------------------------------ augmentation


def shifted(counts):
    """Draw a shift of -8 to 8 inputs for each sample.

    Returns the input that each input of the result is taken from, [B, 1, inputs].
    """
    moves = torch.randint(-8, 9, (len(counts), 1, 1), device=counts.device)
    return torch.arange(counts.shape[2], device=counts.device) - moves


def take(counts, source):
    """Return counts [B, T, inputs] taken from the inputs `source` [B, 1, inputs], 0 outside."""
    steps, inputs = counts.shape[1:]
    inside = (source >= 0) & (source < inputs)
    return counts.gather(2, source.clamp(0, inputs - 1).expand(-1, steps, -1)) * inside


def shift(counts, labels):
    """Shift each sample of [B, T, inputs] along the inputs by a random amount, up to 8."""
    return take(counts, shifted(counts))


def warp(counts, labels):
    """Shift each sample as `shift` does, and stretch it along the inputs by up to a tenth.

        input i of the result = input round((i - move - middle) factor + middle) of the sample

    Speakers differ in the length of their vocal tracts, which scales frequencies.  After "Vocal
    tract length perturbation (VTLP) improves speech recognition" (Jaitly, Hinton, ICML workshop
    2013), which draws a factor of 0.9 to 1.1 for each utterance.
    """
    source, middle = shifted(counts), counts.shape[2] / 2
    factor = torch.empty(len(counts), 1, 1, device=counts.device).uniform_(0.9, 1.1)
    source = (source - middle) * factor + middle
    return take(counts, source.round().long())


# ------------------------------------------------------------------------------------ command line

# Arguments of train.main.  A config.json tells ideas apart by the names of classes and functions.
IDEAS = {
    "base": {},  # the network of delays.py, one delay per synapse
    "axonal": dict(net_class=Axonal),  # one delay per input of a layer
    "dendritic": dict(net_class=Dendritic),  # one delay per neuron
    "recurrent": dict(net_class=Recurrent),  # a layer's spikes come back to it, after a delay
    "adaptive": dict(net_class=Adaptive),  # neurons that adapt to their own activity
    "whole-steps": dict(net_class=WholeSteps, before_epoch=freeze_delays),  # rounded at the end
    "shift": dict(augment=shift),  # training samples are shifted along the inputs
    "warp": dict(augment=warp),  # and stretched along them
    # With SETTINGS.  Adopted on held-out speakers (APPENDIX.md); it did not gain on the test set.
    "recipe": dict(augment=warp, loss=rival),
    "between-taps": dict(net_class=BetweenTaps),  # linear between two taps, without a Gaussian
    "control": dict(net_class=Control),  # Gaussians narrow, but delays stay where they are
    # The method without one part:
    "no-tail": dict(net_class=NoTail),  # a layer's output ends with its input
    "one-softmax": dict(loss=one_softmax),  # the loss applies no second softmax
    "rival": dict(loss=rival, augment=shift),  # one softmax, against the best rival; shifted too
    "rival-unshifted": dict(loss=rival),  # the same loss without the shift, as for the toy task
    "mean-scores": dict(loss=mean_scores),  # scores are means over time, not sums
    "summed-potentials": dict(loss=summed_potentials),  # scores without a softmax in each step
    "drop-steps": dict(net_class=DropSteps),  # dropout draws a new mask in each step
    "alpha-2": dict(net_class=Alpha2),  # a wider surrogate gradient (alpha 2 instead of 5)
    "alpha-20": dict(net_class=Alpha20),  # a narrower surrogate gradient
    "sigmoid-slope": dict(net_class=SigmoidSlope),  # a surrogate gradient of another shape
    "small-weights": dict(net_class=SmallWeights),  # smaller first weights, those of nn.Linear
    "small-sigmoid": dict(net_class=SmallSigmoid),  # both
    "small-weights-shifted": dict(net_class=SmallWeights, augment=shift),
    "small-sigmoid-shifted": dict(net_class=SmallSigmoid, augment=shift),
    "triangle": dict(net_class=Triangle),  # a triangle of the same variance as the Gaussian
    "from-zero": dict(net_class=FromZero),  # all delays start at 0
    "no-norm": dict(net_class=NoNorm),  # no batch norm
    "readout-norm": dict(net_class=ReadoutNorm),  # one more batch norm, on the readout
    "no-clamp": dict(net_class=NoClamp),  # delays are not kept within the taps
}

SETTINGS = {"recipe": dict(dropout=0.2, delay_lr=0.3)}  # defaults of an idea, for every data set
SCORES = {"summed-potentials": potential_sums}  # what replaces class_scores in all of train

SEAMS = ["network", "loss", "augment", "before_epoch"]  # which config.json has by name


def find(config: dict) -> str:
    """Return the idea that a run was, from its config.json: "base" for a run of train.py."""
    usual = dict(net_class=DelaySNN, loss=train.cross_entropy, augment=None, before_epoch=None)
    for idea, hooks in IDEAS.items():
        parts = usual | hooks
        names = [parts["net_class"].__name__, *(train.name_of(parts[seam]) for seam in SEAMS[1:])]
        # Older runs name no hook.
        if names == [config.get(seam, name) for seam, name in zip(SEAMS, names, strict=True)]:
            return idea
    raise UserError(f"{config['network']} with its loss and hooks is no idea of ideas.py")


def main(argv: list[str]) -> None:
    """Run the command line of train.py, after the name of an idea."""
    idea, *words = argv or [""]
    if idea not in IDEAS:
        sys.exit(f"ideas.py: the first word has to be one of {', '.join(IDEAS)}")
    usual = train.RUNS, train.DEFAULTS, train.class_scores
    train.RUNS = "runs/{dataset}-" + idea + "-{delays}-{seed}"
    train.DEFAULTS = {name: row | SETTINGS.get(idea, {}) for name, row in train.DEFAULTS.items()}
    train.class_scores = SCORES.get(idea, class_scores)
    try:
        train.main(words, **IDEAS[idea])
    finally:
        train.RUNS, train.DEFAULTS, train.class_scores = usual


if __name__ == "__main__":
    main(sys.argv[1:])
