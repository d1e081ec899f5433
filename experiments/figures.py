"""Draws the README's figures from saved runs (matplotlib is needed here and nowhere else).

    python experiments/variants.py --dataset toy                    # for variants.png
    python experiments/variants.py --dataset shd --data-dir DIR --epochs 30
    python experiments/figures.py --record                          # trains the toy task, 20 s
    python experiments/figures.py --data-dir DIR                    # draws
"""
import argparse, json, os, pickle, sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
try:
    import matplotlib
except ImportError:
    sys.exit("figures.py: it needs matplotlib; first run: python -m pip install matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import data
import delays
import train

INK, GREY, BLUE, ORANGE = "#222222", "#b8b8b8", "#2166ac", "#d6604d"
NEURON_STEPS = 60  # shown of a toy sample

def need(path, first):
    if not os.path.exists(path):
        sys.exit(f"figures.py: {path} is not there; first run: {first}")
    return path

def style(axis, title="", x="", y=""):
    axis.set_title(title, fontsize=9, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=8, color=INK)
    axis.set_ylabel(y, fontsize=8, color=INK)
    axis.tick_params(labelsize=7, color=GREY, labelcolor=INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axis.spines[side].set_color(GREY)

def save(figure, a, name):
    os.makedirs(a.out, exist_ok=True)
    figure.savefig(os.path.join(a.out, name), dpi=130, facecolor="white", bbox_inches="tight")
    plt.close(figure)
    print(os.path.join(a.out, name))

def record(a):
    """Trains the toy task and keeps the first layer's weights and delays of every epoch."""
    out, history = os.path.join(a.runs, "recorded"), []
    if os.path.exists(os.path.join(out, "last.pt")):
        sys.exit(f"figures.py: {out} holds a run already; remove it to record anew")
    o = train.parse(["--dataset", "toy", "--out", out, "--device", "cpu"])[1]
    o.device = "cpu"
    history.append(train.build(o).layers[0].delay.detach().clone())
    write = train.write
    def keep(folder, name, content):
        if name == "last.pt":
            history.append(content["net"]["layers.0.delay"].clone())
        write(folder, name, content)
    train.write = keep
    train.train(o)
    torch.save({"delay": torch.stack(history)}, os.path.join(out, "history.pt"))

def saved(path):
    """-> options and network, in evaluation, of a checkpoint."""
    state = train.read_checkpoint(path)
    o = argparse.Namespace(**state["options"])
    o.device = "cpu"
    net = train.build(o)
    first = [layer.delay.detach().clone() for layer in net.layers]
    net.load_state_dict(state["net"])
    return o, net.eval(), first

def kernel_figure(a):
    folder = os.path.join(a.runs, "recorded")
    path = need(os.path.join(folder, "history.pt"), "python experiments/figures.py --record")
    history = torch.load(path, weights_only=True)["delay"]  # [1 + epochs, out, in]
    o, net, _ = saved(os.path.join(folder, "last.pt"))
    moved, weight = (history[-1] - history[0]).abs(), net.layers[0].weight.detach().abs()
    whole = (history[-1] - history[-1].round()).abs() < 0.2  # not one that ends between two taps
    out, i = divmod(int((weight * moved.clamp(max=8) * whole).argmax()), weight.shape[1])
    track = history[:, out, i]
    kernels = torch.stack([delays.gaussian_kernel(
        torch.ones(1, 1), track[e].view(1, 1), delays.shrinking_sigma(e, o.epochs, o.taps),
        o.taps)[0, 0] for e in range(o.epochs)])
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.5), width_ratios=(1.25, 1))
    shades = kernels / kernels.amax(1, keepdim=True)
    left.imshow(shades.T, origin="lower", aspect="auto", cmap="Blues", vmax=1.25,
                extent=(-0.5, o.epochs - 0.5, -0.5, o.taps - 0.5))
    left.plot(range(len(track)), track, color=ORANGE, linewidth=1.8)
    left.text(len(track) - 0.7, track[-1], " its delay", color=ORANGE, fontsize=8, va="center")
    left.set_xlim(-0.5, o.epochs + 3)
    style(left, "one synapse's kernel while it learns", "epoch", "delay (steps of 10 ms)")
    for level, e in enumerate((0, 2, 4, o.epochs - 1)):
        curve = level + 0.85 * shades[e]
        right.fill_between(range(o.taps), level, curve, color=BLUE, alpha=0.35, linewidth=0)
        right.plot(range(o.taps), curve, color=BLUE, linewidth=1)
        right.plot([track[e]] * 2, [level, level + 0.85], color=ORANGE, linewidth=1.2)
        right.text(o.taps - 0.2, level + 0.25, f"epoch {e + 1}", fontsize=8, color=INK)
    right.plot([round(float(track[-1]))] * 2, [4, 4.85], color=INK, linewidth=2)
    right.text(o.taps - 0.2, 4.25, "evaluation", fontsize=8, color=INK)
    right.set_yticks([])
    style(right, "from a wide Gaussian to one tap", "delay (steps of 10 ms)")
    right.spines["left"].set_visible(False)
    save(figure, a, "kernel.png")

def why_figure(a):
    o, net, _ = saved(need(os.path.join(a.runs, "recorded", "last.pt"),
                           "python experiments/figures.py --record"))
    toy, layer, norm = data.load("toy", "test", ""), net.layers[0], net.norms[0]
    with torch.no_grad():
        samples = data.padded(toy, torch.arange(len(toy.labels)), int(toy.steps.max()))
        x = samples.transpose(0, 1).float()
        current = norm(layer(x).permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)  # [T, B, N]
        fired = delays.lif(current, net.tau).amax(0)  # [B, N]
    rate = torch.stack([fired[toy.labels == c].mean(0) for c in range(10)])  # [classes, N]
    neuron = int((rate.amax(0) - rate.amin(0)).argmax())  # the most selective one
    classes = int(rate[:, neuron].argmin()), int(rate[:, neuron].argmax())
    figure, axes = plt.subplots(3, 2, figsize=(7.2, 4.2), sharex=True, height_ratios=(1, 1, 1.2))
    weight, delay = layer.weight[neuron].detach(), layer.delay[neuron].detach().round()
    for column, label in enumerate(classes):
        wanted = (toy.labels == label) & (fired[:, neuron] == column)
        b = int(wanted.nonzero()[0])
        for row, shift in ((0, 0 * delay), (1, delay)):
            axis = axes[row, column]
            for step, i in samples[b].nonzero().tolist():
                w = float(weight[i] / weight.abs().max())
                axis.plot(step + float(shift[i]), i, "|", markersize=10,
                          markeredgewidth=0.8 + 2.5 * abs(w), color=BLUE if w > 0 else ORANGE)
            axis.set_ylim(-0.7, toy.counts.shape[1] - 0.3)
            style(axis, "as they reach the neuron, each after its delay" if row else
                  f"a class that {('silences it', 'makes it fire')[column]}: spikes as they come",
                  "", "" if column else "input")
        v, h = 0.0, []
        for value in current[:, b, neuron].tolist():
            h.append((1 - 1 / net.tau) * v + value)
            v = h[-1] * (h[-1] < 1)
        axes[2, column].plot(h, color=INK, linewidth=1)
        axes[2, column].axhline(1, color=ORANGE, linewidth=1, linestyle="--")
        axes[2, column].text(NEURON_STEPS, 1, "threshold", color=ORANGE, fontsize=7, ha="right",
                             va="bottom")
        style(axes[2, column], "membrane of the neuron", "time (steps of 10 ms)")
        axes[2, column].set_xlim(0, NEURON_STEPS)
    low = min(axis.get_ylim()[0] for axis in axes[2])
    high = max(axis.get_ylim()[1] for axis in axes[2])
    for axis in axes[2]:
        axis.set_ylim(low, high)
    figure.tight_layout()
    save(figure, a, "why.png")

def speech_figure(a, folder):
    o, net, first = saved(need(os.path.join(folder, "last.pt"), "python experiments/variants.py "
                               "--dataset shd --data-dir DIR --epochs 30"))
    test, seen = data.load("shd", "test", a.data_dir), []
    with torch.no_grad():
        scores = torch.cat([train.predict(net, test, part, int(test.steps[part].max()))
                            for part in torch.arange(200).split(50)])
        right = (scores.argmax(1) == test.labels[:200]).nonzero()[:, 0]
        b = int(right[0])
        for norm in net.norms:
            norm.register_forward_hook(lambda module, args, out: seen.append(delays.lif(
                out.permute(0, 2, 3, 1).flatten(0, 1).transpose(0, 1), net.tau)[:, 0]))
        longest = int(test.steps[b]) + 2 * (o.taps // 2)
        x = data.padded(test, right[:1], longest).float().transpose(0, 1)
        share = net(x)[:, 0].softmax(1)
    figure, axes = plt.subplots(2, 4, figsize=(9.6, 3.9), width_ratios=(1, 1, 1, 0.9))
    shown = [(x[:, 0], "one spoken digit", "input"), (seen[0], "hidden layer 1", "neuron"),
             (seen[1], "hidden layer 2", "neuron")]
    end = int(test.steps[b]) + 3 * (o.taps // 2)
    for axis, (spikes, title, y) in zip(axes[0], shown):
        step, unit = spikes.nonzero().T
        axis.scatter(step, unit, s=0.5, color=INK, linewidths=0)
        axis.set_xlim(0, end)
        style(axis, title, "", y)
    grid = axes[1, 0].get_gridspec()
    for axis in axes[1, :3]:
        axis.remove()
    wide = figure.add_subplot(grid[1, :3])
    for c in range(20):
        true = c == int(test.labels[b])
        wide.plot(share[:, c], color=BLUE if true else GREY, linewidth=2 if true else 0.8,
                  zorder=2 + true)
    wide.set_xlim(0, end)
    spoken = share[:, int(test.labels[b])]
    wide.text(int(spoken.argmax()) + 2, float(spoken.max()), "the spoken one", color=BLUE,
              fontsize=8, va="top")
    style(wide, "softmax over the 20 classes at each step; their sums decide",
          "time (steps of 10 ms)", "share")
    for index, axis in enumerate(axes[:, 3]):
        bins = np.linspace(0, o.taps - 1, o.taps)
        axis.hist(first[index].flatten(), bins, color=GREY, label="initial")
        axis.hist(net.layers[index].delay.detach().flatten(), bins, histtype="step", color=BLUE,
                  linewidth=1.4, label="learned")
        axis.set_yticks([])
        axis.set_ylim(0, 1.5 * axis.get_ylim()[1])
        style(axis, f"delays, layer {index + 1}", "steps of 10 ms" if index else "")
    axes[0, 3].legend(fontsize=7, frameon=False, ncols=2, loc="upper center")
    figure.tight_layout()
    save(figure, a, "speech.png")

def variants_figure(a):
    found = {}
    for task in sorted(os.listdir(a.runs)) if os.path.isdir(a.runs) else []:
        for run in sorted(os.listdir(os.path.join(a.runs, task))):
            path = os.path.join(a.runs, task, run, "result.json")
            if os.path.exists(path):
                with open(path) as file:
                    accuracy = 100 * json.load(file)["test_accuracy"]
                found.setdefault(task, {}).setdefault(run.rsplit("-", 1)[0], []).append(accuracy)
    found = {task: kinds for task, kinds in found.items() if len(kinds) > 1}  # to compare
    if not found:
        sys.exit("figures.py: no finished run in " + a.runs +
                 "; first run: python experiments/variants.py --dataset toy")
    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.2), squeeze=False)
    for axis, (task, kinds) in zip(axes[0], found.items()):
        order = sorted(kinds, key=lambda kind: np.mean(kinds[kind]))
        for y, kind in enumerate(order):
            axis.plot(kinds[kind], [y] * len(kinds[kind]), "o", color=BLUE, markersize=4, alpha=0.6)
            axis.plot([np.mean(kinds[kind])] * 2, [y - 0.3, y + 0.3], color=INK, linewidth=2)
        axis.set_yticks(range(len(order)), [f"{kind} (n = {len(kinds[kind])})" for kind in order])
        name, epochs = task.split("-")[:2]
        style(axis, f"{'SHD (regenerated)' if name == 'shd' else name}, {epochs} epochs",
              "test accuracy, last epoch (%)")
    figure.tight_layout()
    save(figure, a, "variants.png")

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument("--runs", default="runs/variants", help="folder of variants.py's runs")
    ap.add_argument("--data-dir", default="data", help="SHD's files")
    ap.add_argument("--out", default=os.path.join(HERE, "figures"), help="folder of the pictures")
    ap.add_argument("--record", action="store_true", help="train the toy task for the first two")
    a = ap.parse_args()
    try:
        if a.record:
            return record(a)
        kernel_figure(a)
        why_figure(a)
        variants_figure(a)
        speech_figure(a, os.path.join(a.runs, "shd-30", "learned-dense-0"))
    except (OSError, ValueError, pickle.UnpicklingError) as problem:
        sys.exit(f"figures.py: {problem}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")

if __name__ == "__main__":
    main()
