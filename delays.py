"""Spiking networks whose synapses learn a transmission delay beside their weight.

A synapse of weight w and delay d is a kernel over time with one non-zero tap, w at position d.  A
position has no gradient; so in training the tap is a Gaussian around d, whose width sigma shrinks
in early epochs, and in evaluation the one tap at round(d).  (Hammouamri, Khalfaoui-Hassani,
Masquelier, ICLR 2024, arXiv 2306.17670.)  The first axis of every signal is time: [T, B, N] is
steps, batch, neurons; layers return a view of [B, T, N], whose matrix products are faster.  Delays,
sigma and tau are in steps.  Arguments that do not fit raise a ValueError with what was expected."""
import math
import torch
from torch import nn
from torch.nn import functional as F

def require(condition, message):
    if not condition:
        raise ValueError(message)

def gaussian_kernel(weight, delay, sigma, taps):
    """The differentiable kernel of training (the paper's DCLS), [out, in, taps]:
        k[o,i,d] = w[o,i] g[d] / (sum_d' g[d'] + 1e-7),  g[d] = exp(-((d - delay[o,i])/sigma)^2 / 2)
    weight, delay: [out, in], or [count, out, in] for several synapses a pair, summed over count."""
    weight, delay = _synapses(weight, delay, taps)
    require(sigma > 0, f"sigma is {sigma}: expected a positive width in steps.")
    d = torch.arange(taps, dtype=delay.dtype, device=delay.device).view(-1, 1, 1, 1)
    bell = torch.exp(-((d - delay) / sigma).square() / 2)  # [taps, count, out, in]
    return (bell * (weight / (bell.sum(0) + 1e-7))).sum(1).permute(1, 2, 0)  # [out, in, taps]

def integer_kernel(weight, delay, taps):
    """The kernel of evaluation, and of fixed delays: one tap, w at round(delay), [out, in, taps].
    The delay gets no gradient; rounded, it has to be one of 0..taps-1."""
    weight, delay = _synapses(weight, delay, taps)
    index = delay.detach().round().long()
    # On CUDA the scatter itself asserts this, and to look would stall the host.
    require(index.is_cuda or ((index >= 0) & (index < taps)).all(),
            f"a delay lies outside 0..{taps - 1} steps: clamp the delays, or use more taps.")
    kernel = weight.new_zeros(taps, *weight.shape).scatter(0, index[None], weight[None])
    return kernel.sum(1).permute(1, 2, 0)  # [out, in, taps]

def _synapses(weight, delay, taps):
    require(weight.shape == delay.shape and weight.dim() in (2, 3) and taps >= 1,
            f"weight {list(weight.shape)}, delay {list(delay.shape)}, taps {taps}: expected twice "
            "[out, in] or twice [count, out, in], and at least one tap.")
    return (x.reshape(-1, *x.shape[-2:]) for x in (weight, delay))  # [count, out, in]

def delay_conv(spikes, kernel, tail=0):
    """The delayed sum, continued for `tail` steps beyond the input:
        y[t,b,o] = sum_i sum_d k[o,i,d] x[t-d,b,i],  x = 0 outside of its T steps
    spikes [T, B, in], kernel [out, in, taps] -> [T + tail, B, out].  CUDA has cuDNN's convolution;
    on the CPU the convolution theorem is faster, with a tenth of the products at 25 taps."""
    require(spikes.dim() == kernel.dim() == 3 and spikes.shape[2] == kernel.shape[1]
            and min(spikes.shape + kernel.shape) > 0 and tail >= 0,
            f"spikes {list(spikes.shape)}, kernel {list(kernel.shape)}, tail {tail}: expected "
            "[T, B, in] and [out, in, taps], no size 0, and a tail of at least 0.")
    if kernel.shape[2] == 1:  # no delays: a plain linear layer
        y = F.linear(spikes.transpose(0, 1), kernel[:, :, 0]).transpose(0, 1)  # [T, B, out]
        return F.pad(y, (0, 0, 0, 0, 0, tail)) if tail else y
    return (conv_direct if spikes.is_cuda else ConvFourier.apply)(spikes, kernel, tail)

def conv_direct(spikes, kernel, tail):
    padded = F.pad(spikes.permute(1, 2, 0), (kernel.shape[2] - 1, tail))
    return F.conv1d(padded, kernel.flip(2)).transpose(1, 2).contiguous().transpose(0, 1)

class ConvFourier(torch.autograd.Function):
    """Convolution theorem: Y[f] = X[f] K[f] at each frequency f of a period of n steps, long enough
    for nothing to wrap around.  A product with a small matrix is the fastest transform here.  The
    backward pass has the same steps in reverse; written out, it keeps less memory."""
    @staticmethod
    def forward(ctx, spikes, kernel, tail):
        steps, taps, n = len(spikes), kernel.shape[2], len(spikes) + max(kernel.shape[2] - 1, tail)
        f, t = (torch.arange(m, device=spikes.device) for m in (n // 2 + 1, n))
        angle = (torch.outer(f, t) % n).double() * (2 * math.pi / n)
        basis = torch.cat([angle.cos(), -angle.sin()])  # exp(-2 pi i f t / n), [2 F, n]
        # Each frequency stands for its conjugate too; 0 and, if n is even, n / 2 are their own.
        share = torch.where((f == 0) | (2 * f == n), 1, 2).repeat(2)[:, None] / n
        of_x, of_k, of_y = (z.to(spikes) for z in (
            basis[:, :steps], basis[:, :taps] * share, basis[:, :steps + tail]))
        x = of_x @ spikes.transpose(0, 1)  # [B, 2 F, in]
        ctx.save_for_backward(of_x, of_k, of_y, x, kernel)
        y = complex_bmm(halves(x), [z.mT for z in halves(of_k @ kernel.transpose(1, 2))])
        return (of_y.T @ y).transpose(0, 1)
    @staticmethod
    def backward(ctx, grad):
        of_x, of_k, of_y, x, kernel = ctx.saved_tensors
        x, y = halves(x), halves(of_y @ grad.transpose(0, 1))
        grad_kernel = (of_k.T @ complex_bmm([z.mT for z in y], x, -1)).transpose(1, 2)
        if not ctx.needs_input_grad[0]:  # the first layer: its input is data
            return None, grad_kernel, None
        k = halves(of_k @ kernel.transpose(1, 2))  # again: to keep it takes memory
        grad_x = grad.new_empty(grad.shape[1], of_x.shape[1], kernel.shape[1])  # [B, T, in]
        for part, *some in zip(grad_x.split(64), *(z.split(64, 1) for z in y)):  # saves memory
            torch.matmul(of_x.T, complex_bmm(some, k, -1), out=part)
        return grad_x.transpose(0, 1), grad_kernel, None

def halves(spectrum):  # [m, 2 F, l] -> real and imaginary part, [F, m, l]
    return spectrum.transpose(0, 1).chunk(2)

def complex_bmm(a, b, sign=1, chunk=8):
    """a [F, m, l] times b [F, l, n], or with sign -1 times b's conjugate, -> [m, 2 F, n], in three
    real products (Gauss), a few frequencies at a time to stay in the cache."""
    out = a[0].new_empty(a[0].shape[1], 2 * len(a[0]), b[0].shape[2])
    for p, q, r, s, y_re, y_im in zip(*(z.split(chunk) for z in (*a, *b, *halves(out)))):
        re, im = torch.bmm(p, r), torch.bmm(q, s)
        torch.sub(re, im, alpha=sign, out=y_re)
        torch.sub(torch.bmm(p + q, torch.add(r, s, alpha=sign)), re.add_(im, alpha=sign), out=y_im)
    return out

def lif(current, tau, threshold=1.0, alpha=5.0):
    """Leaky integrate-and-fire neurons: current -> spikes, 0 or 1, both [T, B, N].
        h[t] = (1 - 1/tau) v[t-1] + I[t],  s[t] = 1 if h[t] >= threshold,  v[t] = h[t] (1 - s[t])
    tau >= 1; alpha is the steepness of the surrogate gradient."""
    return LIF.apply(current, _decay(current, tau), threshold, alpha)

class LIF(torch.autograd.Function):
    """A spike is a step, of derivative 0: nothing would learn.  atan_surrogate_ takes its place."""
    @staticmethod
    def forward(ctx, current, decay, threshold, alpha):
        h, spikes = torch.empty_like(current), torch.empty_like(current)
        v = torch.zeros_like(current[0])
        for t in range(len(current)):
            torch.add(current[t], v, alpha=decay, out=h[t])  # charge
            torch.ge(h[t], threshold, out=spikes[t])  # fire
            torch.addcmul(h[t], h[t], spikes[t], value=-1, out=v)  # reset
        ctx.save_for_backward(h)
        ctx.constants = decay, threshold, alpha
        return spikes
    @staticmethod
    def backward(ctx, grad_spikes):
        """dL/dI[t] = dL/dh[t] = surrogate(h[t] - threshold) dL/ds[t] + decay (1 - s[t]) dL/dh[t+1].
        The last term is the path through v[t], in which s[t] counts as a constant: the reset is
        detached, as in the paper, or each spike would also be blamed for its own reset."""
        (h,), (decay, threshold, alpha) = ctx.saved_tensors, ctx.constants
        grad = atan_surrogate_(h - threshold, alpha).mul_(grad_spikes)
        silent = torch.empty_like(h[0])
        for t in reversed(range(len(h) - 1)):
            torch.lt(h[t], threshold, out=silent)
            grad[t].addcmul_(silent, grad[t + 1], value=decay)
        return grad, None, None, None

def atan_surrogate_(x, alpha):
    """In place: (alpha/2) / (1 + (pi/2 alpha x)^2), the slope of arctan(pi/2 alpha x) / pi."""
    return x.mul_(math.pi / 2 * alpha).square_().add_(1).reciprocal_().mul_(alpha / 2)

def leaky_integrator(current, tau):
    """The readout's neurons, which do not spike: current -> membrane potential, both [T, B, N].
        v[t] = (1 - 1/tau) v[t-1] + I[t] = sum_{s <= t} (1 - 1/tau)^(t-s) I[s],  a matrix product"""
    t = torch.arange(len(current), dtype=torch.float64, device=current.device)
    memory = (_decay(current, tau) ** (t[:, None] - t).clamp(min=0)).tril()  # [T, T]
    return torch.tensordot(memory.to(current.dtype), current, 1)

def _decay(current, tau):
    require(current.dim() == 3 and len(current) > 0 and tau >= 1,
            f"current {list(current.shape)}, tau {tau}: expected [T, B, N], T and tau at least 1.")
    return 1 - 1 / tau

def class_scores(membrane, steps=None):
    """Softmax over the classes at each step, summed over time: [T, B, classes] -> [B, classes].
    steps [B]: how many steps of each sample count, so that padding does not (None: all of them)."""
    require(membrane.dim() == 3, f"membrane {list(membrane.shape)}: expected [T, B, classes].")
    time = torch.arange(len(membrane), device=membrane.device)[:, None]
    own = time < (len(time) if steps is None else steps)
    return (membrane.softmax(2) * own[:, :, None]).sum(0)

def shrinking_sigma(epoch, epochs, taps):
    """Sigma of an epoch, counted from 0: in the first quarter of all epochs 0.27 (an offset of the
    original's) plus a rest that shrinks exponentially from taps//2 to 0.23; then their sum, 0.5."""
    quarter, widest = epochs // 4, max(taps // 2, 0.23)
    return 0.27 + widest * (0.23 / widest) ** (epoch / quarter) if epoch < quarter else 0.5

class DelayedLinear(nn.Module):
    """A linear layer of delayed synapses, without bias: [T, B, in] -> [T + taps//2, B, out].
    taps: delays are 0..taps-1 steps.  count: synapses per pair of neurons.  learn_delays=False:
    random whole steps for good.  connections: inputs of each neuron, drawn at random (0: all).
    .weight, .delay: [out, in], or [count, out, in] if count > 1.  .mask: [out, in] or None.
    .sigma: the Gaussian's width in steps, a plain number, set by the training loop."""
    def __init__(self, in_features, out_features, taps, count=1, learn_delays=True, connections=0):
        super().__init__()
        fan_in = min(connections or in_features, in_features)
        require(min(out_features, taps, count, fan_in) >= 1, f"{in_features=}, {out_features=}, "
                f"{taps=}, {count=}, {connections=}: expected at least 1 (connections 0: all).")
        self.taps, self.learn_delays, self.sigma = taps, learn_delays, 0.5
        shape = (out_features, in_features) if count == 1 else (count, out_features, in_features)
        bound = math.sqrt(6 / (fan_in * count))  # Kaiming uniform for relu
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        delay = torch.empty(shape).uniform_(0, taps - 1)
        self.delay = nn.Parameter(delay) if learn_delays else nn.Buffer(delay.round_())
        mask = torch.rand(shape[-2:]).argsort(1).argsort(1) < fan_in if connections else None
        self.register_buffer("mask", mask)
        self.weight.data *= 1 if mask is None else mask
    def forward(self, spikes):
        weight = self.weight if self.mask is None else self.weight * self.mask
        kernel = (gaussian_kernel(weight, self.delay, self.sigma, self.taps) if self.training
                  and self.learn_delays else integer_kernel(weight, self.delay, self.taps))
        return delay_conv(spikes, kernel, tail=self.taps // 2)  # most late spikes arrive

class DelaySNN(nn.Module):
    """Spikes or counts [T, B, in] -> membrane of the readout [T + layers * (taps//2), B, classes].
    Hidden layers, of the sizes `hidden`: delayed sum -> batch norm over (T, B) -> LIF -> dropout of
    whole neurons, drawn for each sample; readout: delayed sum -> leaky integrator.  The other
    arguments go to DelayedLinear; taps=1, learn_delays=False is the network without delays.
    .layers: the DelayedLinear, readout last.  .rates: spikes per neuron and step, by layer."""
    def __init__(self, in_features, hidden, classes, taps=25, tau=1.005, dropout=0.4, **synapses):
        super().__init__()
        require(0 <= dropout < 1, f"dropout is {dropout}: expected a share from 0 to below 1.")
        sizes = [in_features, *hidden, classes]
        self.layers = nn.ModuleList(
            DelayedLinear(i, o, taps, **synapses) for i, o in zip(sizes, sizes[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in hidden)
        self.tau, self.dropout, self.rates = tau, dropout, []
    def forward(self, x):
        x, self.rates = x.to(self.layers[0].weight), []  # here, so that it is freed after use
        for layer, norm in zip(self.layers, self.norms):
            # The norm sees one image of B x T' pixels and N channels: torch's fastest way.
            x = norm(layer(x).transpose(0, 1)[None].permute(0, 3, 1, 2))  # [1, N, B, T']
            x = lif(x.permute(0, 2, 3, 1).flatten(0, 1).transpose(0, 1), self.tau)  # [T', B, N]
            self.rates.append(x.detach().mean())
            if self.training:
                x.mul_(F.dropout(torch.ones_like(x[:1]), self.dropout))  # [1, B, N]
        return leaky_integrator(self.layers[-1](x), self.tau)
