"""The paper's network, built from the authors' libraries, computes what ours computes.

The libraries are dcls and spikingjelly, from PyPI.  Without them this test is skipped, unless the
environment variable DELAYS_REQUIRE_PEER is set.
"""

import os
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import data
from delays import DelaySNN, class_scores

INSTALL = 'python -m pip install "dcls<0.2" "spikingjelly<3"'
if "DELAYS_REQUIRE_PEER" not in os.environ:
    for library in ("DCLS", "spikingjelly"):
        pytest.importorskip(library, reason=f"no {library} to compare with: {INSTALL}")


class Peer(nn.Module):
    """The network without dropout.  [B, T, 140] counts -> [B, T + tail, 20] potentials."""

    def __init__(self, hidden: int, taps: int, tau=1.005):
        from DCLS.construct.modules import Dcls1d
        from spikingjelly.activation_based import layer, neuron, surrogate

        super().__init__()
        self.taps = taps
        self.conv = nn.ModuleList(
            Dcls1d(before, after, 1, dilated_kernel_size=taps, bias=False, version="gauss")
            for before, after in pairwise([data.INPUTS, hidden, hidden, 20])
        )
        self.norm = nn.ModuleList(layer.BatchNorm1d(hidden, step_mode="m") for _ in range(2))
        shared = dict(decay_input=False, detach_reset=True, step_mode="m", store_v_seq=True)
        shared |= dict(tau=tau, surrogate_function=surrogate.ATan(alpha=5.0))
        thresholds = (1.0, 1.0, 1e9)  # the readout never spikes
        self.lif = nn.ModuleList(neuron.LIFNode(v_threshold=at, **shared) for at in thresholds)

    def forward(self, x):
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        for i, conv in enumerate(self.conv):
            x = F.pad(x.transpose(1, 2), (self.taps - 1, self.taps // 2))  # [B, N, taps - 1 + T']
            x = conv(x).permute(2, 0, 1)  # [T', B, N]
            if i < 2:
                x = self.norm[i](x.unsqueeze(3)).squeeze(3)
                x = self.lif[i](x).transpose(0, 1)  # [B, T', N]
        self.lif[2](x)
        return self.lif[2].v_seq.transpose(0, 1)  # [B, T', 20]


@pytest.mark.paper
def test_the_authors_libraries_compute_the_same_network():
    """Scores, gradients of all parameters and running statistics; then scores with whole steps."""
    torch.manual_seed(0)
    net = DelaySNN(data.INPUTS, [64, 64], 20, dropout=0.0).double()
    peer = Peer(64, taps=25).double()
    for layer, conv in zip(net.layers, peer.conv, strict=True):
        layer.sigma = 2.0
        conv.SIG.data.fill_(2.0 - 0.27)
        conv.weight.data = layer.weight.detach().clone().unsqueeze(2)
        conv.P.data = (layer.taps // 2 - layer.delay.detach())[None, :, :, None]
    counts = (torch.rand(8, 50, data.INPUTS) < 0.08).double()
    counts[::2, 40:] = 0  # the padding of shorter samples
    ours, theirs = [class_scores(each(counts)) for each in (net, peer)]
    for scores in (ours, theirs):
        F.cross_entropy(scores, torch.arange(8)).backward()
    pairs = [(ours, theirs)]
    for layer, conv in zip(net.layers, peer.conv, strict=True):
        pairs.append((layer.weight.grad, conv.weight.grad.squeeze(2)))
        pairs.append((layer.delay.grad, -conv.P.grad[0, :, :, 0]))
    for norm, other in zip(net.norms, peer.norm, strict=True):
        pairs += [(norm.running_mean, other.running_mean), (norm.running_var, other.running_var)]
        pairs += [(norm.weight.grad, other.weight.grad), (norm.bias.grad, other.bias.grad)]

    for conv in peer.conv:  # from here on, one nonzero tap per synapse
        conv.P.data.round_()
        conv.SIG.data.zero_()
        conv.DCK.version = "max"
    pairs.append([class_scores(each.eval()(counts)) for each in (net, peer)])
    for a, b in pairs:
        assert (a - b).abs().max() < 1e-12 * b.abs().max()
