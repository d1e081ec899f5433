"""Draw the pictures of the pages, except for run.png: python -m experiments.lesson.pictures"""

from functools import partial
from pathlib import Path

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from delays import (
    DelayedLinear,
    class_scores,
    gaussian_kernel,
    leaky_integrator,
    lif,
    rounded_kernel,
    shrinking_sigma,
)
from experiments.tools.style import BLUE, GREY, INK, PALE, PALE_BLUE, RED, heading, style

FIGURES = Path(__file__).parent / "figures"


def loss_by_hand(current: Tensor, readout: DelayedLinear) -> Tensor:
    """Return the loss of the network of tour.ipynb, for which pattern c is of class c."""
    fired = lif(current, tau=1.005)  # [patterns, steps, neurons]
    scores = class_scores(leaky_integrator(readout(fired), tau=5.0))
    return F.cross_entropy(scores, torch.arange(4))


def by_hand(sigmas: list[float]) -> tuple[Tensor, Tensor, Tensor, tuple, int]:
    """Train the network of tour.ipynb: each of four neurons has to fire at a pattern of its own.

    sigmas: the width of the kernels in each step of training.
    Returns the steps in which inputs spike, [patterns, inputs]; the hidden delays at the start and
    after each step of training, [1 + len(sigmas), neurons, inputs]; what reaches the neurons in
    evaluation, [patterns, steps, neurons]; the patterns and both layers; and how many patterns make
    only their own neuron fire.
    """
    torch.manual_seed(9)
    times = torch.randint(15, (4, 6))
    patterns = F.one_hot(times, 15).transpose(1, 2).float()  # [patterns, steps, inputs]
    hidden, readout = DelayedLinear(6, 4, taps=15), DelayedLinear(4, 4, taps=15)
    hidden.weight.data.fill_(0.3)
    readout.weight.data = 3 * torch.eye(4)
    optimizer = torch.optim.Adam([hidden.delay, readout.delay], lr=0.3)

    delays = [hidden.delay.detach().clone()]
    for sigma in sigmas:
        hidden.sigma = readout.sigma = sigma
        optimizer.zero_grad()
        loss_by_hand(hidden(patterns), readout).backward()
        optimizer.step()
        hidden.clamp_delays()
        readout.clamp_delays()
        delays.append(hidden.delay.detach().clone())
    current = hidden.eval()(patterns).detach()
    fired = lif(current, tau=1.005).any(1)  # [patterns, neurons]
    right = int((fired == torch.eye(4)).all(1).sum())
    return times, torch.stack(delays), current, (patterns, hidden, readout), right


def shrinking() -> list[float]:
    """Return the sigmas of the tour, which are those of a run of 200 epochs."""
    return [shrinking_sigma(step, 200, taps=15) for step in range(200)]


def learning_gif(path: Path) -> None:
    """Write an animation of the tour's training, with sigma shrinking and with sigma always 0.5."""
    figure = Figure(figsize=(7.2, 4.4))
    figure.subplots_adjust(left=0.14, right=0.98, top=0.77, bottom=0.11, wspace=0.06)
    heading(figure, "A neuron fires if four of its six spikes arrive in the same step")
    counter = figure.text(0.14, 0.89, "", fontsize=9, color=INK)
    marks = "tick: a spike is sent, dot: it arrives, blue: its kernel, darker: more of its weight"
    figure.text(0.14, 0.845, marks, fontsize=8, color=INK)
    settings = {"sigma shrinks": shrinking(), "sigma stays small": [0.5] * 200}
    sides = []
    for axis, (name, sigmas) in zip(figure.subplots(1, 2), settings.items(), strict=True):
        sides.append((axis, name, sigmas, *by_hand(sigmas)))
    weight = torch.ones(4, 6)

    def draw(step):
        counter.set_text(f"update {step + 1} of 200")
        for axis, name, sigmas, times, delays, *_, right in sides:
            title = f"{name}: {sigmas[min(step, 199)]:.1f}"
            if step < 200:
                kernels = gaussian_kernel(weight, delays[step], sigmas[step], taps=15)
                draw_arrivals(axis, title, times, delays[step], kernels)
            else:
                counter.set_text("after training, with rounded delays")
                title += f", {right} of 4 patterns right"
                kernels = rounded_kernel(weight, delays[step], taps=15)
                draw_arrivals(axis, title, times, delays[step].round(), kernels)

    # Most of the movement is at the start.  The last picture stays for four seconds.
    steps = [*range(30), *range(30, 60, 2), *range(69, 200, 10), *[200] * 32]
    FuncAnimation(figure, draw, steps).save(path, PillowWriter(fps=8), dpi=100)


def draw_arrivals(axis, title: str, sent: Tensor, delay: Tensor, kernels: Tensor) -> None:
    """Draw the spikes of each neuron's pattern: sent and delay [4, 6], kernels [4, 6, 15].

    At the right stands how many arrive in the same step, with delays rounded as in evaluation.
    """
    axis.clear()
    rows = torch.zeros(4, 8, 29)  # six for each neuron, and an empty one on either side
    rows[:, 1:7].scatter_(2, sent[:, :, None] + torch.arange(15), kernels)
    shades = (5 * rows.sqrt()).round().view(32, 29, 1) / 5  # few colors make a small file
    colors = 1 - shades * torch.tensor([0.7, 0.45, 0.2])  # from white to blue
    box = (-0.5, 28.5, 3.5, -0.5)
    axis.imshow(colors.numpy(), extent=box, aspect="auto", interpolation="nearest")
    heights = torch.arange(4)[:, None] + (torch.arange(6) - 2.5) / 8
    axis.plot(sent.flatten(), heights.flatten(), "|", color=INK, markersize=5)
    axis.plot((sent + delay).flatten(), heights.flatten(), "o", color=RED, markersize=4.5)
    axis.hlines([0.5, 1.5, 2.5], -0.5, 28.5, color=PALE, linewidth=0.8)
    axis.set(xlim=(-0.5, 40), xticks=range(0, 30, 5))
    for neuron, steps in enumerate(sent + delay.round().long()):
        most = int(steps.bincount().max())
        end, color = ("fires", BLUE) if most >= 4 else ("does not fire", RED)
        axis.text(30, neuron, f"{most} together,\n{end}", fontsize=7, color=color, va="center")
    style(axis, title, "step")
    axis.set_yticks(range(4), [f"neuron {c},\ninputs 0 to 5" for c in range(4)])
    axis.label_outer()


def kernel_figure() -> Figure:
    """Draw the kernel of a synapse of the training by hand, in some updates and in evaluation."""
    sigmas = shrinking()
    _, delays, _, (_, hidden, _), _ = by_hand(sigmas)
    i = int((delays[-1] - delays[0])[0].abs().argmax())  # of neuron 0, what moves farthest
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axis = figure.subplots()
    for level, k in enumerate((200, 199, 25, 10, 0)):
        name = f"update {k + 1}: sigma {sigmas[k]:.1f}" if k < 200 else "evaluation"
        hidden.delay.data, hidden.sigma = delays[k], sigmas[min(k, 199)]
        kernel = hidden.train(k < 200).kernel()[0, i].detach()
        axis.bar(range(15), (2.8 * kernel).tolist(), bottom=level, color=PALE_BLUE)
        axis.vlines(delays[k, 0, i], level, level + 0.84, color=RED, linewidth=1.5)
        words = f"{name}\ndelay {delays[k, 0, i]:.1f}, highest tap {kernel.max():.2f}"
        axis.text(15, level + 0.4, words, fontsize=8, va="center")
    heading(figure, f"The kernel of one synapse in training: from input {i} to neuron 0")
    style(axis, "its taps add up to its weight, 0.3 (red: the delay)", "tap (delay in steps)")
    axis.set_yticks([])
    return figure


def gradient_by_parts(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what makes up the gradient of one delay, which is six steps too short.

    The network is that of by_hand, after training and with its hidden delays rounded.  Then the
    delay of input 3 at neuron 0 is set to 5 steps instead of 11.
    Returns for neuron 0 in each step, [patterns, steps]: its current I; what the loss L asks of it,
    -dL/dI; and the slope, with respect to the delay, of the tap through which the spike arrives.
    """
    times, delays, _, (patterns, hidden, readout), _ = by_hand(shrinking())
    hidden, readout = hidden.double().train(), readout.double().train()
    hidden.sigma = readout.sigma = sigma
    hidden.delay.data = delays[-1].double().round()
    hidden.delay.data[0, 3] -= 6
    current = hidden(patterns)  # [patterns, steps, neurons]
    (asked,) = torch.autograd.grad(-loss_by_hand(current, readout), current)
    weight, delay = hidden.weight[:1, 3:4], hidden.delay[:1, 3:4]
    kernel_of = partial(gaussian_kernel, weight, sigma=sigma, taps=15)
    slopes = torch.autograd.functional.jacobian(kernel_of, delay).flatten()  # [taps]
    slope = torch.zeros(4, 29, dtype=slopes.dtype)
    for pattern, sent in enumerate(times[:, 3]):
        slope[pattern, sent : sent + 15] = slopes
    return current.detach()[:, :, 0], asked[:, :, 0], slope[:, : current.shape[1]]


def gradient_figure() -> Figure:
    """Draw how the loss reaches a delay that is six steps too short, with two widths."""
    figure = Figure(figsize=(7.6, 7.6), layout="constrained")
    heading(figure, "How the loss moves a delay six steps too short (blue: right way, red: wrong)")
    columns = figure.subplots(5, 2, sharey="row", height_ratios=(3, 3, 3, 3, 4)).T
    names = ["current", "asked (1e-2)", "slope / largest", "product (1e-4)", "its sums (1e-4)"]
    for column, sigma in zip(columns, (3.0, 0.5), strict=True):
        current, asked, slope = gradient_by_parts(sigma)
        moves = 1e4 * asked * slope  # [patterns, steps]
        panels = [current[0], 100 * asked[0], slope[0] / slope[0].abs().max(), moves[0]]
        panels.append(torch.stack([*moves.sum(1), moves.sum()]))
        for row, (axis, panel, name) in enumerate(zip(column, panels, names, strict=True)):
            values = panel.tolist()
            colors = [BLUE if value > 0 else RED for value in values]
            axis.bar(range(len(values)), values, color=INK if row < 3 else colors)
            axis.axhline(0, color=GREY, linewidth=0.8)
            style(axis, "" if row else f"sigma {sigma:g}, pattern 0 (its own)", y=name)
        for axis in column[:4]:
            axis.axvline(7, color=INK, linewidth=0.8, linestyle=":")
            axis.axvline(13, color=PALE, linewidth=12, zorder=0)
        column[0].axhline(1, color=RED, linewidth=0.8, linestyle="--")
        column[3].set_xlabel("step (dotted: it arrives; grey: the other five arrive)", fontsize=8)
        column[4].bar_label(column[4].containers[0], fmt="{:+.2f}", fontsize=7, padding=2)
        column[4].margins(y=0.2)
        column[4].set_xticks(range(5), [*(f"pattern {p}" for p in range(4)), "all four"])
    return figure


def why_figure() -> Figure:
    """Draw the paths of spikes to a trained neuron, without its delays and with them."""
    _, delays, current, (patterns, *_), _ = by_hand(shrinking())
    delay = delays[-1, 0].round()  # of the inputs of neuron 0
    scattered = 1 + int((current[1:, :, 0] > 0.1).sum(1).argmax())  # arrives in the most steps
    figure = Figure(figsize=(9.2, 4.1), layout="constrained")
    heading(figure, "One of the four neurons after training (weights 0.3; dashed: threshold)")
    axes = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=(5, 3))
    panels = {
        "its own pattern, without delays": (0, 0 * delay, 0.3 * patterns[0].sum(1)),
        "its own pattern, with its delays": (0, delay, current[0, :, 0]),
        "another pattern, with these delays": (scattered, delay, current[scattered, :, 0]),
    }
    for (paths, summed), (name, (pattern, own, sums)) in zip(axes.T, panels.items(), strict=True):
        for step, i in patterns[pattern].nonzero().tolist():
            paths.plot([step, step + own[i].item()], [i, -2], color=BLUE, linewidth=2)
            paths.plot(step, i, "o", color=INK, markersize=4)
        summed.bar(range(len(sums)), sums.tolist(), 1, color=INK)
        summed.axhline(1, color=RED, linewidth=0.8, linestyle="--")
        style(paths, name, y="input")
        paths.set_yticks([-2, *range(6)], ["neuron", *range(6)])
        style(summed, "what arrives, summed", "time (steps)")
    return figure


# The rows of results.png: a side of a comparison and its name.
SHD_SIDES = {
    "learned": "learned delays",
    "learned --hidden 165": "learned, 165 neurons a layer",
    "fixed": "fixed delays",
    "fixed --hidden 388": "fixed, 388 neurons a layer",
    "none": "no delays, tau 10.05 ms",
    "none --tau 400.0 --tau-readout 10.05": "no delays, tau 400 ms",
    "shift": "learned, shifted samples",
    "shift --delays fixed --hidden 388": "fixed, 388, shifted samples",
}
TOY_SIDES = {
    "learned": "learned delays",
    "learned --hidden 21": "learned, 21 neurons",
    "fixed": "fixed delays",
    "fixed --hidden 76": "fixed, 76 neurons",
    "none": "no delays, tau 10.05 ms",
    "none --tau 100.0": "no delays, tau 100 ms",
}


def results_figure() -> Figure:
    """Draw the accuracy of each run, and its mean ± standard deviation over seeds."""
    from experiments.evidence.tables import SHD, all_rows

    rows = all_rows().query("speakers == '' and seed < 10")
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    heading(figure, "Test accuracy: each dot is a run with another seed")
    shd, toy = figure.subplots(1, 2)
    shd_rows = rows.query("data == @SHD and epochs == 150")
    draw_runs(shd, f"{SHD}: after 150 epochs", shd_rows, SHD_SIDES, 60)
    # README's runs of the toy task.  Other processors ran some of these seeds again.
    toy_rows = rows.query("data == 'toy' and (processor == 'Intel Xeon' or side == 'none')")
    draw_runs(toy, "toy task: after 20 epochs", toy_rows, TOY_SIDES, 0)
    return figure


def draw_runs(axis, title: str, rows, sides: dict[str, str], lowest: int) -> None:
    """Draw the accuracies of each side in a row of its own, with their spread at the right."""
    for height, side in enumerate(sides):
        accuracy = 100 * rows[rows["side"] == side]["accuracy"]
        aside = 0.06 * (torch.arange(len(accuracy)) % 5 - 2)  # equal values would hide each other
        axis.plot(accuracy, height + aside, "o", color=BLUE, markersize=4)
        words = f"{accuracy.mean():.2f} ± {accuracy.std():.2f} (n = {len(accuracy)})"
        place = axis.get_yaxis_transform()  # x is a fraction of the width
        axis.text(1.02, height, words, transform=place, fontsize=8, va="center", color=INK)
    style(axis, title, "test accuracy (%)")
    axis.set_yticks(range(len(sides)), sides.values())
    axis.set(xlim=(lowest, 100), ylim=(len(sides) - 0.5, -0.5))


def main() -> None:
    learning_gif(FIGURES / "learning.gif")
    for draw in (why_figure, kernel_figure, gradient_figure, results_figure):
        path = FIGURES / f"{draw.__name__.removesuffix('_figure')}.png"
        draw().savefig(path, dpi=130, facecolor="white", bbox_inches="tight")
        print(path)


if __name__ == "__main__":
    main()
