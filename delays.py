"""Spiking networks whose synapses learn a transmission delay beside their weight.

Read from top to bottom: kernel -> delayed sum -> neuron -> layer -> network.  A synapse of weight w
and delay d is a kernel over time with a single non-zero tap, w at position d.  A position has no
gradient; so in training the tap is a Gaussian around d, whose width sigma shrinks over the epochs,
and in evaluation it is the one tap at round(d).  The method is that of Hammouamri,
Khalfaoui-Hassani, Masquelier: "Learning Delays in Spiking Neural Networks using Dilated
Convolutions with Learnable Spacings", ICLR 2024, arXiv 2306.17670 (below: the paper).

Time is discrete and every signal has it first: [T, B, N] is steps, batch, neurons.  Delays, sigma
and tau are in steps.  Arguments that do not fit raise a ValueError which says what was expected.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F


def require(condition, message):
    if not condition:
        raise ValueError(message)


def gaussian_kernel(weight, delay, sigma, taps):
    """The differentiable kernel of training (section 3.2 of the paper): a Gaussian of area w.

        k[o, i, d] = w[o, i] g[d] / (sum_d' g[d'] + 1e-7),   g[d] = exp(-((d - delay[o, i]) / sigma)^2 / 2)

    weight, delay: [out, in], or [count, out, in] for several synapses a pair, summed over count;
    sigma > 0 in steps.  Returns [out, in, taps]; the index of the last axis is the delay in steps.
    """
    _check_synapses(weight, delay, taps)
    require(sigma > 0, f"sigma is {sigma}: expected a positive width in steps.")
    # In memory the taps come first, so that element-wise operations run along long rows.
    position = torch.arange(taps, dtype=delay.dtype, device=delay.device)
    position = position.view(-1, *[1] * delay.dim())
    bell = torch.exp(-((position - delay) / sigma).square() / 2)  # [taps, (count,) out, in]
    return _out_in_taps(bell * (weight / (bell.sum(0) + 1e-7)))


def integer_kernel(weight, delay, taps):
    """The kernel of evaluation, gaussian_kernel's limit for sigma -> 0: one tap, w at round(delay).

    Shapes as there.  The delay gets no gradient, and has to round to one of 0..taps-1.
    """
    _check_synapses(weight, delay, taps)
    index = delay.detach().round().long()
    if not index.is_cuda:  # there the scatter itself asserts it, and a look would stall the host
        require(((index >= 0) & (index < taps)).all(), f"a delay is outside 0..{taps - 1} steps, the "
                f"range of {taps} taps: clamp the delays or use more taps.")
    return _out_in_taps(weight.new_zeros(taps, *weight.shape).scatter(0, index[None], weight[None]))


def _check_synapses(weight, delay, taps):
    require(weight.shape == delay.shape and weight.dim() in (2, 3),
            f"weight {list(weight.shape)} and delay {list(delay.shape)} do not fit: expected both "
            "[out, in] or both [count, out, in].")
    require(taps >= 1, f"taps is {taps}: expected at least 1, which is the delay 0.")


def _out_in_taps(kernel):
    return (kernel.sum(1) if kernel.dim() == 4 else kernel).permute(1, 2, 0)


def delay_conv(spikes, kernel, tail=0):
    """The delayed sum, followed for `tail` steps beyond the end of the input:

        y[t, b, o] = sum_i sum_d k[o, i, d] x[t - d, b, i],   x = 0 outside of its T steps

    spikes [T, B, in], kernel [out, in, taps] -> [T + tail, B, out], the same numbers on every
    device: CUDA takes cuDNN's convolution, the CPU the convolution theorem, which needs a tenth of
    the multiplications and is several times faster there.
    """
    require(spikes.dim() == kernel.dim() == 3 and spikes.shape[2] == kernel.shape[1],
            f"spikes {list(spikes.shape)} and kernel {list(kernel.shape)} do not fit: expected "
            "[T, B, in] and [out, in, taps].")
    require(min(spikes.shape) > 0 and tail >= 0, f"spikes {list(spikes.shape)}, tail {tail}: "
            "expected at least one step, one sample and one input, and no negative tail.")
    if kernel.shape[2] == 1:  # no delay: a plain linear layer
        return F.pad(F.linear(spikes, kernel[:, :, 0]), (0, 0, 0, 0, 0, tail))
    return (conv_direct if spikes.is_cuda else ConvFourier.apply)(spikes, kernel, tail)


def conv_direct(spikes, kernel, tail):
    padded = F.pad(spikes.permute(1, 2, 0), (kernel.shape[2] - 1, tail))  # [B, in, T + taps-1 + tail]
    return F.conv1d(padded, kernel.flip(2)).permute(2, 0, 1).contiguous()  # [T + tail, B, out]


class ConvFourier(torch.autograd.Function):
    """The convolution theorem: Y[f] = X[f] K[f] for every frequency f of a period of n steps, n so
    long that nothing wraps around.  At these sizes the fastest transform is a product with a small
    real matrix; it takes any n.  Real and imaginary parts are kept apart, as the first axis."""

    @staticmethod
    def forward(ctx, spikes, kernel, tail):
        (steps, batch, inputs), (outputs, _, taps) = spikes.shape, kernel.shape
        n = steps + max(taps - 1, tail)
        to_x, to_k, to_y = (_dft(length, n, spikes) for length in (steps, taps, steps + tail))
        # Half of the frequencies suffices, since signals are real: each of them stands for itself
        # and its conjugate, but for 0 and, if n is even, n / 2, which are their own.
        share = spikes.new_full((2, n // 2 + 1, 1), 2 / n)
        share[:, 0::max(n // 2, 1) if n % 2 == 0 else n] = 1 / n
        to_y *= share.view(-1, 1)
        x = (to_x @ spikes.flatten(1)).view(2, -1, batch, inputs)
        k = (to_k @ kernel.permute(2, 0, 1).reshape(taps, -1)).view(2, -1, outputs, inputs)
        y = _complex_bmm(*x, *k.transpose(2, 3))  # [2, frequencies, B, out]
        ctx.save_for_backward(x, k, to_x, to_k, to_y)
        return (to_y.T @ y.view(len(to_y), -1)).view(-1, batch, outputs)

    @staticmethod
    def backward(ctx, grad):
        """Each matrix transposed, and for the product dX = dY conj(K), dK = dY conj(X)."""
        x, k, to_x, to_k, to_y = ctx.saved_tensors
        batch, inputs, outputs = *x.shape[2:], k.shape[2]
        dy = (to_y @ grad.flatten(1)).view(2, -1, batch, outputs)
        d_spikes = None
        if ctx.needs_input_grad[0]:  # not for the first layer
            dx = _complex_bmm(*dy, k[0], -k[1])
            d_spikes = (to_x.T @ dx.view(len(to_x), -1)).view(-1, batch, inputs)
        dk = _complex_bmm(*dy.transpose(2, 3), x[0], -x[1])  # [2, frequencies, out, in]
        return d_spikes, (to_k.T @ dk.view(len(to_k), -1)).view(-1, outputs, inputs).permute(1, 2, 0), None


def _dft(length, n, like):
    """cos and -sin of 2 pi f t / n for f = 0..n//2, one above the other: [2 (n//2 + 1), length]."""
    f, t = (torch.arange(size, device=like.device) for size in (n // 2 + 1, length))
    angle = (torch.outer(f, t) % n).double() * (2 * math.pi / n)
    return torch.cat([angle.cos(), -angle.sin()]).to(like.dtype)


def _complex_bmm(a_re, a_im, b_re, b_im):
    """Complex [f, m, l] times [f, l, n] -> [2, f, m, n], in three real products (Gauss)."""
    out = a_re.new_empty(2, *a_re.shape[:2], b_re.shape[2])
    torch.bmm(a_re + a_im, b_re, out=out[0])
    torch.baddbmm(out[0], a_re, b_im - b_re, out=out[1])
    out[0].baddbmm_(a_im, b_re + b_im, alpha=-1)
    return out


def lif(current, tau, threshold=1.0, alpha=5.0):
    """Leaky integrate-and-fire neurons (section 3.1): current [T, B, N] -> spikes [T, B, N], 0 or 1.

        h[t] = (1 - 1/tau) v[t-1] + I[t];   s[t] = 1 if h[t] >= threshold;   v[t] = h[t] (1 - s[t])

    tau >= 1 in steps; alpha is the steepness of the surrogate gradient.
    """
    return LIF.apply(current, _decay(current, tau), threshold, alpha)


class LIF(torch.autograd.Function):
    """A spike is a step function of h, whose derivative is 0 wherever it exists: nothing would ever
    learn.  So the backward pass is written out, with atan_surrogate in the derivative's place."""

    @staticmethod
    def forward(ctx, current, decay, threshold, alpha):
        h, spikes = torch.empty_like(current), torch.empty_like(current)
        v = torch.zeros_like(current[0])
        for t in range(len(current)):
            torch.add(current[t], v, alpha=decay, out=h[t])  # charge
            torch.ge(h[t], threshold, out=spikes[t])  # fire
            torch.addcmul(h[t], h[t], spikes[t], value=-1, out=v)  # reset to 0
        ctx.save_for_backward(h)
        ctx.constants = decay, threshold, alpha
        return spikes

    @staticmethod
    def backward(ctx, grad_spikes):
        """dL/dI[t] = dL/dh[t] = surrogate(h[t] - threshold) dL/ds[t] + decay (1 - s[t]) dL/dh[t+1].

        The last term is the path through v[t], with the factor 1 - s[t] held constant: the reset is
        detached, as in the paper, or every spike would be blamed for the reset that follows it.
        """
        (h,), (decay, threshold, alpha) = ctx.saved_tensors, ctx.constants
        grad = atan_surrogate(h - threshold, alpha).mul_(grad_spikes)
        silent = torch.empty_like(h[0])
        for t in reversed(range(len(h) - 1)):
            torch.lt(h[t], threshold, out=silent)
            grad[t].addcmul_(silent, grad[t + 1], value=decay)
        return grad, None, None, None


def atan_surrogate(x, alpha):
    """(alpha / 2) / (1 + (pi / 2 alpha x)^2), the derivative of arctan(pi / 2 alpha x) / pi + 1/2,
    which is a smooth step at x = 0."""
    return (x * (math.pi / 2 * alpha)).square_().add_(1).reciprocal_().mul_(alpha / 2)


def leaky_integrator(current, tau):
    """The readout's neurons, which never spike: current [T, B, N] -> membrane potential [T, B, N].

        v[t] = (1 - 1/tau) v[t-1] + I[t] = sum_{s <= t} (1 - 1/tau)^(t - s) I[s]: one matrix product
    """
    decay = _decay(current, tau)
    t = torch.arange(len(current), dtype=torch.float64, device=current.device)
    memory = (decay ** (t[:, None] - t).clamp(min=0)).tril().to(current.dtype)  # [T, T]
    return (memory @ current.flatten(1)).view(current.shape)


def _decay(current, tau):
    require(current.dim() == 3 and len(current) > 0,
            f"current has shape {list(current.shape)}: expected [T, B, N] with at least one step.")
    require(tau >= 1, f"tau is {tau} steps: expected at least 1, which is no memory.")
    return 1 - 1 / tau


def class_scores(membrane, steps=None):
    """Softmax over the classes at each step, summed over time: [T, B, classes] -> [B, classes].

    steps [B], if given: how many steps of each sample count.  What a sample scores is then its own
    matter, however far its batch was padded.
    """
    require(membrane.dim() == 3, f"membrane is {list(membrane.shape)}: expected [T, B, classes].")
    scores = membrane.softmax(2)
    if steps is not None:
        scores = scores * (torch.arange(len(scores), device=steps.device)[:, None] < steps)[:, :, None]
    return scores.sum(0)


def shrinking_sigma(epoch, epochs, taps):
    """Sigma in steps at an epoch, counted from 0 (section 3.2): exponentially from 0.27 + taps // 2
    to 0.5 over the first quarter of all epochs, then 0.5."""
    quarter, widest = epochs // 4, max(taps // 2, 0.23)
    return 0.27 + widest * (0.23 / widest) ** (epoch / quarter) if epoch < quarter else 0.5


class DelayedLinear(nn.Module):
    """A linear layer with a delay in every synapse and no bias: [T, B, in] -> [T + taps//2, B, out].

    taps: delays are 0..taps-1 steps.  count: synapses per pair of neurons.  learn_delays: otherwise
    the delays are random whole steps for good.  connections: inputs of each neuron, drawn at random
    (None: all of them); all other weights are and stay zero.

    .weight, .delay: [out, in], or [count, out, in] if count > 1.  .mask: [out, in] or None.
    .sigma: the Gaussian's width in steps, a plain number that the training loop sets.
    """

    def __init__(self, in_features, out_features, taps, count=1, learn_delays=True, connections=None):
        super().__init__()
        fan_in = in_features if connections is None else min(connections, in_features)
        require(min(in_features, out_features, taps, count, fan_in) >= 1,
                f"in_features {in_features}, out_features {out_features}, taps {taps}, count {count}, "
                f"connections {connections}: expected each to be at least 1.")
        self.taps, self.learn_delays, self.sigma = taps, learn_delays, 0.5
        shape = (out_features, in_features) if count == 1 else (count, out_features, in_features)
        bound = math.sqrt(6 / (fan_in * count))  # Kaiming uniform for relu
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        delay = torch.empty(shape).uniform_(0, taps - 1)
        if learn_delays:
            self.delay = nn.Parameter(delay)
        else:
            self.register_buffer("delay", delay.round_())
        mask = None
        if connections is not None:
            mask = torch.rand(out_features, in_features).argsort(1).argsort(1) < connections
            self.weight.data *= mask
        self.register_buffer("mask", mask)

    def kernel(self):
        """[out, in, taps]: Gaussian while delays are being learned, else one tap per synapse."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        if self.training and self.learn_delays:
            return gaussian_kernel(weight, self.delay, self.sigma, self.taps)
        return integer_kernel(weight, self.delay, self.taps)

    def forward(self, spikes):
        # Longer than the input by half of the longest delay, so that late spikes still arrive.
        return delay_conv(spikes, self.kernel(), tail=self.taps // 2)


class DelaySNN(nn.Module):
    """Spikes [T, B, in] -> membrane potential of the readout [T + layers * (taps//2), B, classes].

    Hidden layers, of the sizes `hidden`: delayed sum -> batch norm over (T, B) -> LIF -> dropout.
    Then the readout: delayed sum -> leaky integrator.  tau in steps; dropout is a share of neurons,
    drawn anew for each sample and held over time; taps, count, learn_delays, connections as in
    DelayedLinear.  The network without delays is taps=1, learn_delays=False.

    .layers: the DelayedLinear layers, readout last.  .rates: spikes per neuron and step of each
    hidden layer in the last batch.
    """

    def __init__(self, in_features, hidden, classes, taps=25, count=1, tau=1.005, dropout=0.4,
                 learn_delays=True, connections=None):
        super().__init__()
        require(0 <= dropout < 1, f"dropout is {dropout}: expected a share from 0 to below 1.")
        sizes = [in_features, *hidden, classes]
        self.layers = nn.ModuleList(DelayedLinear(i, o, taps, count, learn_delays, connections)
                                    for i, o in zip(sizes, sizes[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in hidden)
        self.tau, self.dropout, self.rates = tau, dropout, []

    def forward(self, spikes):
        rates = []
        for layer, norm in zip(self.layers, self.norms):
            # To torch the signal is one image of T x B pixels and N channels: its fastest batch norm.
            image = layer(spikes)[None].permute(0, 3, 1, 2)
            spikes = lif(norm(image).permute(0, 2, 3, 1)[0], self.tau)  # [T + taps//2, B, N]
            rates.append(spikes.detach().mean())
            if self.training:
                spikes.mul_(F.dropout(torch.ones_like(spikes[:1]), self.dropout))  # [1, B, N] mask
        self.rates = rates
        return leaky_integrator(self.layers[-1](spikes), self.tau)

    def set_sigma(self, sigma):
        for layer in self.layers:
            layer.sigma = sigma

    @torch.no_grad()
    def clamp_delays(self):
        """Puts delays that an optimizer step led out of 0..taps-1 back to the bound."""
        for layer in self.layers:
            layer.delay.clamp_(0, layer.taps - 1)
