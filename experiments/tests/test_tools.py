"""The programs beside the three files, each against a slow computation; one thread, offline."""

import json
import math
import os
import re
import sys
from collections import Counter
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import data
import delays
import test_delays as oracle
import train
from delays import DelayedLinear, DelaySNN, lif
from experiments import export, ideas, regenerate
from experiments import test_program as program

FOLDER = Path(__file__).resolve().parent
CELLS = json.loads((FOLDER / "tour.ipynb").read_text())["cells"]
TOUR = {cell["id"]: "".join(cell["source"]) for cell in CELLS}
LEARN = "\n".join([TOUR["c01"], TOUR["c14"], TOUR["c21"].partition("each =")[0]])  # its functions
FAST = ["--dataset=toy", "--hidden=5", "--taps=5", "--batch-size=500", "--epochs=1", "--device=cpu"]

# ------------------------------------------------------------------------------------------ ideas


@pytest.mark.paper
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("taps, connections", [(3, 0), (3, 2), (1, 0)])
def test_recurrent_neurons_are_the_loop_and_so_are_their_gradients(taps, connections, training):
    torch.manual_seed(0)
    net = ideas.Recurrent(3, [4], 2, tau=2.0, taps=taps, connections=connections).double()
    echo = net.train(training).echoes[0]
    echo.sigma = 0.8
    assert (echo.mask.sum(1) == (connections or 4)).all()
    current = (oracle.random(2, 11, 4) + 0.2).requires_grad_()
    weight, delay, sigma = echo.weight * echo.mask, echo.delay[0], 0.8 if training else None
    share = oracle.plain_kernel(torch.ones_like(delay), delay, taps, sigma)  # [N, taps]
    v, spikes = torch.zeros(2, 4).double(), []
    for t in range(11):
        h = v / 2 + current[:, t]
        for n, d in np.ndindex(4, taps):
            if t >= d + 1:  # a delay of d takes d + 1 steps
                h = h + weight[:, n] * share[n, d] * spikes[t - (d + 1)][:, n, None]
        spikes.append(oracle.plain_spike(h - 1))
        v = h * (1 - spikes[-1].detach())
    net.training = not training  # as in predict, the layer's mode decides which kernel it uses
    got = net.neurons(0, current)
    inputs = [current, echo.weight, *([echo.delay] if training and taps > 1 else [])]
    oracle.assert_same(got, torch.stack(spikes, 1), inputs)
    fixed = ideas.Recurrent(3, [4], 2, taps=taps, learn_delays=False)
    assert [name for name, _ in fixed.named_parameters() if name.endswith("delay")] == []


@pytest.mark.paper
def test_adaptive_neurons_are_the_loop_and_so_are_their_gradients():
    torch.manual_seed(0)
    net = ideas.Adaptive(3, [5], 2).double()
    constants = list(net.constants[0].values())
    current = (oracle.random(3, 20, 5) + 0.5).requires_grad_()
    m, k, a, b = (1 / (1 + torch.exp(-net.constants[0][name])) for name in "mkab")
    v, w, spikes = 0.0, 0.0, []
    for t in range(20):
        h = m * v + current[:, t] - w
        spikes.append(oracle.plain_spike(h - 1))
        v = h * (1 - spikes[-1].detach())
        w = k * w + a * v + b * spikes[-1]
    oracle.assert_same(net.neurons(0, current), torch.stack(spikes, 1), [current, *constants])


@pytest.mark.parametrize("idea", ["shift", "warp"])
def test_each_sample_is_shifted_or_also_stretched_by_numbers_of_its_own(idea):
    counts = torch.from_numpy(np.random.default_rng(0).integers(1, 9, (300, 5, 140), np.uint8))
    torch.manual_seed(0)
    got = ideas.IDEAS[idea]["augment"](counts, None)
    torch.manual_seed(0)
    moves, factors = torch.randint(-8, 9, (300,)), torch.ones(300)
    if idea == "warp":
        factors.uniform_(0.9, 1.1)
    for sample, moved, move, factor in zip(counts, got, moves, factors, strict=True):
        want = torch.zeros_like(sample)
        for i in range(140):
            place = int(torch.round((i - move - 70) * factor + 70))
            if 0 <= place < 140:
                want[:, i] = sample[:, place]
        assert torch.equal(moved, want)


def test_whole_steps_freeze_rounded_delays_in_the_last_fifth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ideas.main(["whole-steps", *FAST, "--epochs", "5"])
    folder = Path("runs/toy-whole-steps-learned-0")
    rows, result = oracle.log_of(folder), oracle.result_of(folder)
    sigmas = [*(delays.shrinking_sigma(epoch, 5, 5) for epoch in range(4)), 0]
    assert [float(row["sigma"]) for row in rows] == sigmas
    assert rows[-2]["moved_ms"] == rows[-1]["moved_ms"] != rows[0]["moved_ms"]
    assert result["unrounded_accuracy"] == result["test_accuracy"]
    with pytest.raises(SystemExit, match="has to be one of base, ax"):
        ideas.main(["other"])
    assert len(set(map(str, ideas.IDEAS.values()))) == len(ideas.IDEAS)  # no two are the same


def net_of(idea, **options):
    """Return the network of an idea, with the weights and delays of seed 0."""
    return oracle.small(ideas.IDEAS[idea].get("net_class", DelaySNN), **options)


def test_settings_and_scores_of_an_idea_are_those_of_its_call_alone(monkeypatch):
    net = net_of("base", tau_readout=6.0).eval()  # potentials last beyond the steps that count
    samples, usual = oracle.from_lengths([9, 14]), dict(train.DEFAULTS)
    seen = []  # settings, and scores of the samples

    def watched(options, *_, **__):
        seen.append((options.dropout, options.delay_lr, train.predict(net, samples)))

    monkeypatch.setattr(train, "train", watched)
    for words in ("recipe --dataset ssc", "recipe --dropout=0.4", "summed-potentials", "warp"):
        ideas.main(words.split())
        assert train.class_scores is delays.class_scores and usual == train.DEFAULTS
    assert [own[:2] for own in seen] == [(0.2, 0.3), (0.4, 0.3), (0.4, 0.1), (0.4, 0.1)]
    for sample, sums, usual in zip(samples.counts, seen[2][2], seen[3][2], strict=True):
        end = len(sample) + net.tail
        potentials = net(F.pad(sample, (0, 0, 0, net.tail))[None])[0, :end]
        oracle.close(sums, sum(potentials), rtol=0, atol=1e-12)
        oracle.close(usual, oracle.plain_scores(potentials), rtol=0, atol=1e-12)


@pytest.mark.paper
def test_losses_are_their_formulas():
    membrane, labels = oracle.random(3, 7, 4), torch.tensor([2, 0, 3])
    chances = {"one-softmax": [], "rival": [], "mean-scores": [], "summed-potentials": []}
    for sample, own in zip(membrane, labels, strict=True):
        p = oracle.plain_scores(sample) / 7
        best = max(p[other] for other in range(4) if other != own)
        chances["one-softmax"].append(p[own])
        chances["rival"].append(p[own] / (p[own] + best))
        chances["mean-scores"].append(torch.softmax(p, 0)[own])
        chances["summed-potentials"].append(torch.softmax(sum(sample), 0)[own])
    for idea, right in chances.items():
        got = ideas.IDEAS[idea]["loss"](None, None, membrane, labels)
        oracle.close(got, -sum(map(torch.log, right)) / 3, rtol=1e-12, atol=0)


@pytest.mark.paper
def test_neurons_may_have_another_surrogate_gradient_or_drop_each_step_by_itself(monkeypatch):
    current = oracle.random(2, 12, 8).requires_grad_()
    for alpha in (2, 20):
        got = net_of(f"alpha-{alpha}").neurons(0, current)
        oracle.assert_same(got, lif(current, 1.005, alpha=alpha), (current,))

    def spike(x, alpha):
        e = torch.exp(-4 * x.detach())  # the slope of 1 / (1 + e) is 4 e / (1 + e)^2
        return (x >= 0).to(x.dtype) + 4 * e / (1 + e) ** 2 * (x - x.detach())

    monkeypatch.setattr(oracle, "plain_spike", spike)
    want = oracle.turned(oracle.plain_lif(oracle.turned(current), 3.0))
    for idea in ("sigmoid-slope", "small-sigmoid"):
        oracle.assert_same(net_of(idea, tau=3.0).neurons(0, current), want, (current,))
    net = net_of("drop-steps", dropout=0.25)
    assert net.dropout == 0
    dropped = net.neurons(0, torch.full((40, 50, 8), 2.0).double())  # all spike in each step
    assert set(dropped.unique().tolist()) == {0, 1 / 0.75}
    assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (dropped != dropped[:, :1]).flatten(1).any(1).all()
    assert (net.eval().neurons(0, torch.full((4, 5, 8), 2.0)) == 1).all()


@pytest.mark.paper
def test_kernels_are_their_formulas_and_delays_may_be_shared_or_left_unclamped():
    for idea, formula in (
        ("triangle", lambda x: (1 - x.abs() / (1.3 * 6**0.5)).clamp(min=0)),  # of variance 1.3 ** 2
        ("between-taps", lambda x: (1 - x.abs()).clamp(min=0)),
    ):
        layer = net_of(idea).layers[0]
        layer.sigma = 1.3
        g = formula(torch.arange(5) - layer.delay[..., None])
        kernel = layer.weight[..., None] * g / g.sum(-1, keepdim=True)
        oracle.close(layer.kernel(), kernel, rtol=1e-6, atol=1e-9)
    for idea, shape in (("axonal", (1, 6)), ("dendritic", (8, 1))):
        assert net_of(idea).layers[0].delay.shape == shape
    layer = net_of("no-clamp").layers[0]
    layer.delay.data[0] = torch.tensor([-3, -0.6, -0.4, 4.4, 4.6, 9])
    layer.clamp_delays()
    assert layer.delay.min() == -3 and layer.delay.max() == 9
    for sigma in (0.5, None):  # there is no tap outside
        want = oracle.plain_kernel(layer.weight, layer.delay, 5, sigma)
        oracle.close(layer.train(sigma is not None).kernel(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.paper
def test_the_tail_and_the_norms_may_be_left_out_and_the_readout_may_have_a_norm():
    net, base, counts = net_of("no-tail").eval(), net_of("base").eval(), oracle.some_counts()
    base.load_state_dict(net.state_dict())
    assert net.tail == 0
    oracle.close(net(counts), base(counts)[:, :12], rtol=0, atol=1e-12)
    net = net_of("no-norm")
    net(counts)
    assert net.rates[0] == lif(net.layers[0](counts), 1.005).mean() > 0
    net, current = net_of("readout-norm", tau_readout=6.0), 3 * oracle.random(3, 9, 4) + 2
    rows = current.flatten(0, 1)
    mean = sum(rows) / 27
    normed = (current - mean) / torch.sqrt(sum((rows - mean) ** 2) / 27 + 1e-5)
    want = oracle.turned(oracle.plain_readout(oracle.turned(normed), 6.0))
    oracle.close(net.readout(current), want, rtol=1e-12, atol=1e-12)
    assert train.count_parameters(net) == train.count_parameters(base) + 2 * 4


@pytest.mark.paper
def test_first_delays_may_be_zero_or_rounded_and_first_weights_those_of_a_linear_layer():
    usual, zero, still = [net_of(idea).layers[1] for idea in ("base", "from-zero", "control")]
    assert not zero.delay.any() and zero.delay.requires_grad
    assert torch.equal(still.delay, usual.delay.round()) and not still.delay.requires_grad
    assert torch.equal(still.delay, net_of("base", learn_delays=False).layers[1].delay)
    for idea in ("small-weights", "small-sigmoid"):
        layer = net_of(idea, connections=4).layers[0]
        torch.manual_seed(0)
        want = torch.empty(8, 6).uniform_(-1, 1) / math.sqrt(4)
        oracle.close(layer.weight, want * layer.mask, rtol=1e-6, atol=1e-6)


# ----------------------------------------------------------------------------- export, regenerate


def test_arrays_have_the_scores_of_a_network_with_all_that_they_can_hold():
    net = oracle.small(kernel_count=2, connections=4, tau=2.5, tau_readout=6.0).float()
    net.layers[0] = DelayedLinear(2 * 6, 8, taps=4, connections=6)
    net.layers[0].delay.data[:, ::3] = 2.5  # half steps go to the even step
    net.layers[1] = ideas.AxonLayer(2 * 8, 7, taps=5, connections=4)
    net.layers[1].delay.data[:, 8:] = net.layers[1].delay.data[:, :8]  # two may share a tap
    for norm in net.norms:
        norm.weight.data.uniform_(-2, 2)
        norm.bias.data.uniform_(-0.5, 1.5)  # neurons spike in silence: it matters when layers end
        norm.eps = 0.01
    names = ("inputs", "threshold", "step_ms", "channels_per_input")
    for dataset in ("shd", "shd-regenerated", "ssc"):
        arrays = export.arrays_of(net.eval(), SimpleNamespace(dataset=dataset))
        assert [arrays[name] for name in names] == [140, 1, 10, 5]
    assert len(arrays["delay_0"]) == 8 * 6
    samples = oracle.from_lengths(range(5, 45, 5))
    want = train.predict(net, samples)
    ours = train.predict(export.ArrayNetwork(arrays), samples, batch_size=3)
    oracle.close(ours, want, rtol=0, atol=1e-4)


def test_the_program_writes_arrays_that_have_the_accuracy_of_the_run(tmp_path, capsys):
    run, path = str(tmp_path / "run"), str(tmp_path / "net.npz")
    result = train.train(train.parse([*FAST, "--lr=2e-2", "--tau-readout=30", "--out", run]))
    capsys.readouterr()
    export.main([run, "--out", path])
    ours, of_run = re.findall(r"(\S+)%", capsys.readouterr().out)
    assert ours == of_run == f"{100 * result['test_accuracy']:.2f}"
    arrays = np.load(path, allow_pickle=False)
    assert [arrays["tau_readout_steps"], arrays["channels_per_input"]] == [3, 1]


def test_seeds_split_and_order_are_those_of_the_included_data():
    members = {}
    for split in ("train", "test"):
        known = data.load("shd-regenerated", split, "")
        members[split] = list(zip(known.labels.tolist(), known.speakers.tolist(), strict=True))
    names = []
    for (label, speaker), trials in Counter(members["train"] + members["test"]).items():
        start = f"lang-{'german' if label > 9 else 'english'}_speaker-{speaker:02}"
        names += [f"{start}_trial-{trial}_digit-{label % 10}.flac" for trial in range(trials)]
    plan = regenerate.plan(names)
    found = {split: [sample[2:] for sample in samples] for split, samples in plan.items()}
    assert found == members
    seeds = {sample.name: sample.seed for sample in plan["train"] + plan["test"]}
    assert seeds == {name: seed for seed, name in enumerate(sorted(names), 7000)}


def test_channel_spikes_are_those_of_the_program_that_made_the_known_files():
    t = np.arange(480)
    random = np.random.RandomState(7).random_sample(480)
    spikes = regenerate.channel_spikes(200 * np.sin(t / 4) * np.sin(t / 300), random)
    assert np.flatnonzero(spikes).tolist() == [111, 161, 216, 266, 318, 391, 469]


def test_files_have_the_spikes_of_their_samples_and_the_words(tmp_path, monkeypatch):
    out = tmp_path / "experiments/shd-regenerated"
    out.mkdir(parents=True)
    samples = [regenerate.Sample(f"{label}.flac", 0, label, 5) for label in (3, 4, 19)]
    clips = {sample: out / f"{sample.name}.npz" for sample in samples}
    for path, units in zip(clips.values(), ([0], [699], [699, 0]), strict=True):
        np.savez(path, times=[0.1, 0.115][: len(units)], units=units)
    regenerate.write(out / "shd_test.h5", samples[1:], clips)
    regenerate.write_counts(out, "test")
    first, last = [1] + [0] * 139, [0] * 139 + [1]
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    for dataset in ("shd", "shd-regenerated"):
        found = oracle.each_sample(data.load(dataset, "test", out))
        assert found == [([last], 4, 5), ([last, first], 19, 5)]
        words = export.class_names(dataset, "test", out)
        assert [words[k] for k in (0, 9, 10, 19)] == ["zero", "nine", "null", "neun"]


# ------------------------------------------------------------------------------------------ results


@pytest.fixture(scope="module")
def results():
    return pytest.importorskip("experiments.results")


README, RESULTS = [Path(FOLDER, name).read_text() for name in ("../README.md", "RESULTS.md")]


def table(page, heading):
    """Return the cells of each row of the table under a heading of a page."""
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    _, *rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.paper
def test_accuracies_of_the_readme_and_beside_published_ones_follow_from_runs(results):
    shd = results.all_rows().query("data == @results.SHD and speakers == '' and epochs == 150")
    runs = dict(list(shd.groupby(shd["side"].str.replace(r"\.0\b| --dropout .*", "", regex=True))))
    for _, parameters, accuracy, options in table(README, "Results"):
        side = options.strip("`").replace("python -m experiments.ideas ", "--delays ")
        side = side.removeprefix("--delays ") if "--delays" in side else f"learned {side}".strip()
        assert accuracy == results.spread(runs[side]["accuracy"]), options
        assert [parameters] == [f"{n:,.0f}" for n in runs[side]["parameters"].unique()], options
    sides = {"learned, shifted samples": "shift", "learned, the recipe": "recipe"}
    for kind, accuracy, rule, by in table(RESULTS, "Published numbers"):
        if by == "us":
            share = " --valid-share 0.2" if rule == "a fifth of train held out" else ""
            column = "best_on_test" if rule == "best epoch on test" else "accuracy"
            side = sides.get(kind, kind.partition(",")[0]) + share
            assert accuracy == results.spread(runs[side][column]), (kind, rule)


@pytest.mark.paper
def test_rows_of_differences_and_cells_of_choices_follow_from_comparisons(results):
    lines = results.differences(results.all_rows()).to_dict("records")
    differences, choices = [], {"SHD (regenerated)": [], "toy": []}
    text = RESULTS + (FOLDER / "APPENDIX.md").read_text()
    for line in lines:
        if line["table"] == "Differences":
            epochs = f"toy, {line['epochs']}" if line["data"] == "toy" else line["epochs"]
            means = ", ".join(line[side].split()[0] for side in ("one side", "other side"))
            n = line["n"].replace(" and", ",")
            differences.append([line["name"], epochs, means, line["difference"], n])
        elif line["table"] == "Text":
            assert line["difference"] in text, line["name"]
        else:
            way = "lower" if line["points"] < 0 else "higher"
            star = "*" if line["low"] > 0 or line["high"] < 0 else ""
            choices[line["data"]].append(f"{line['name']} {abs(line['points']):.2f} {way}{star}")
    assert table(RESULTS, "Differences") == differences
    for k, cells in enumerate(choices.values(), 3):
        told = "; ".join(row[k] for row in table(RESULTS, "Choices") if row[k]).split("; ")
        # runs.csv has no rows of earlier programs.
        assert sorted(cell for cell in told if "1756d9e" not in cell) == sorted(cells)
    short, _, rest = RESULTS.partition("\n## How measured\n")
    known = README + rest + str([line["difference"] for line in lines])
    told, known = [set(re.findall(r"\d+\.\d\d", words)) for words in (short, known)]
    assert told <= known
    pair = results.all_rows().query("side == 'shift' and speakers == '1,8'")
    (told,) = results.accuracies(pair)["accuracy"]
    assert told.endswith(f"(n = {pair['seed'].nunique()})")  # another processor ran a seed again


def write_run(folder, speakers="", **others):
    """Write what `compare` reads of a finished run."""
    run = dict(dataset="toy", seed=0, network="DelaySNN", rule="last epoch", md5={})
    run |= dict(test_accuracy=None, valid_accuracy=None) | others
    run["options"] = dict(dataset=run["dataset"], valid_speakers=speakers, data_dir=folder)
    os.mkdir(folder)
    for name in ("config.json", "result.json"):  # which have a part of it each
        Path(folder, name).write_text(json.dumps(run))
    Path(folder, "log.csv").write_text("train_accuracy,valid_accuracy\n0.9,0.99\n0.5,0.9\n")


def test_two_sides_of_runs_are_compared_or_refused(results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sides = {"one": [90, 95, 91, 96, 90, 96], "other": [85, 91, 94, 95, 89, 85]}
    for side, accuracies in sides.items():
        for k, x in enumerate(accuracies):  # two seeds hold out each pair of speakers
            changes = dict(network=side.title(), seed=k % 2, valid_accuracy=x / 100)
            write_run(f"{side}-{k}", f"{k // 2},{k // 2 + 5}", **changes)
    one, other = [[f"{side}-{k}" for k in range(6)] for side in sides]
    results.main(["compare", *one, "--", *reversed(other)])
    *_, last = capsys.readouterr().out.splitlines()
    assert last[14:] == "+3.17 [-3.80, 10.13] points, 99 % interval (Welch, n = 6 and 6)"
    results.main(["compare", "--paired", *one, "--", *reversed(other)])
    assert capsys.readouterr().out.splitlines() == [
        "toy, valid accuracy in %, last epoch",
        "first         93.00 ± 2.97 (n = 6)",
        "              network One",
        "others        89.83 ± 4.31 (n = 6)",
        "              network Other",
        "speakers 0,5  +4.50",  # the mean over two seeds
        "speakers 1,6  -1.00",
        "speakers 2,7  +6.00",
        "first wins    2 of 3",
        "difference    +3.17 [-17.95, 24.29] points, 99 % interval (paired, n = 3 pairs)",
    ]
    run = results.read_run("one-0")
    assert [run["train_accuracy"], run["best_on_valid"]] == [0.5, 0.99]

    results.main(["compare", "one-0", "other-1", "--", "other-0", "one-1"])
    assert capsys.readouterr().out.count(f"{'':14}network One, network Other\n") == 2
    write_run("best", valid_accuracy=0.9, rule="best on validation, epoch 3")  # as of SSC
    write_run("early", "1,6", valid_accuracy=0.9, rule="best on validation, epoch 2")
    write_run("files", md5={"a.h5": "12345678", "b.h5": "9"}, test_accuracy=0.9)
    write_run("ours", dataset="shd", md5={"a.h5": "db7189fba1"}, test_accuracy=0.9)
    write_run("included", dataset="shd-regenerated", test_accuracy=0.9)
    results.main(["compare", "ours", "--", "included"])  # the same data, and too few runs
    _, _, first, _, others, last = capsys.readouterr().out.splitlines()
    assert first.strip() == others.strip() == "no option differs"
    assert last == "difference    +0.00 points, no interval below three (Welch, n = 1 and 1)"
    for words, sentence in (
        ("one-0", "expected runs before and after a --"),
        ("one-0 -- begun", "begun is not the folder of a finished run: .*No such file"),
        ("one-0 -- early", "early reports 'best on validation, epoch 2': .* train it again"),
        ("best -- one-0", "best has toy, valid accuracy in %, best on validation; one-0 has toy"),
        ("ours -- files", "files has toy 12345678 9, test .*: both sides need the same"),
        ("one-0 -- ./one-0", "one-0, ./one-0 are one run, or one seed"),
        ("one-0 other-0 -- one-1", "one-0, other-0 are one run, or one seed of a side"),
        ("--paired one-0 -- other-1", "other side has no run of the seed of one-0, other-1"),
    ):
        with pytest.raises(SystemExit, match=f"^results.py: .*{sentence}"):
            results.main(["compare", *words.split()])


def test_finished_runs_are_added_once(results, tmp_path, monkeypatch):
    results.pandas.read_csv(FOLDER / "runs.csv", nrows=0).to_csv(tmp_path / "runs.csv", index=False)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    program.write_shd(tmp_path, speakers=(2, 4, 5))
    words = [*FAST, f"--data-dir={tmp_path}", "--dataset=shd", "--epochs=2", "--out"]
    more = {"control": [], "shift": ["--valid-speakers=2", "--no-test"], "base": ["--delays=fixed"]}
    folders = [str(tmp_path / idea) for idea in more]
    for idea, folder in zip(more, folders, strict=True):
        ideas.main([idea, *words, folder, *more[idea]])
    os.utime(Path(folders[0], "result.json"), (0, 90))
    results.main(["add", *folders, "--commit", "0123456"])
    with pytest.raises(SystemExit, match="already has .* shift: "):
        results.main(["add", folders[1], "--commit=abcdef0"])
    with pytest.raises(SystemExit, match="--commit 0123456-dirty: expected"):
        results.main(["add", folders[1], "--commit=0123456-dirty"])
    assert ideas.find({}) == "base"  # of an early run of train.py, which has no names
    control, shift, fixed = results.all_rows().to_dict("records")
    for name, row in {"control": control, "shift": shift, "fixed": fixed}.items():
        assert row["side"] == f"{name} --hidden 5 --taps 5 --batch-size 500"
        assert [row[name] for name in ("epochs", "seed", "commit")] == [2, 0, "0123456"]
    result, log = oracle.result_of(tmp_path / "control"), oracle.log_of(tmp_path / "shift")
    assert [control["accuracy"], control["speakers"]] == [result["test_accuracy"], ""]
    assert control["spikes"] == round(sum(result["spikes"]), 1)
    assert control["ended"] == "1970-01-01 00:01" and control["processor"] == results.processor()
    net = train.build(train.parse([*FAST, "--dataset=shd"]), ideas.Control)
    test = data.load("shd", "test", tmp_path)
    train.load_run(folders[0], net)
    for column, which in dict(new=test.speakers > 2, known=test.speakers == 2).items():
        assert control[f"{column}_speakers"] == train.evaluate(net, test.select(which))
    assert control["unrounded"] == result["unrounded_accuracy"]
    assert all(math.isnan(row["unrounded"]) for row in (shift, fixed))
    assert [shift["speakers"], shift["rule"]] == ["2", "last epoch"] and math.isnan(shift["spikes"])
    assert shift["accuracy"] == float(log[-1]["valid_accuracy"])


# ----------------------------------------------------------------------- README, tour and figures


CLASSIFY, LAYER, SCRIPT = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.paper
def test_the_programs_in_the_readme_print_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(FOLDER.parent)
    for code in (CLASSIFY, LAYER):
        exec(code, {})
        assert capsys.readouterr().out == code.rpartition("# ")[2]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "DATASETS", dict(data.DATASETS))
    monkeypatch.setattr(train, "DEFAULTS", dict(train.DEFAULTS))
    words = "mine.py --dataset mine --epochs 60 --device cpu --out run"
    monkeypatch.setattr(sys, "argv", words.split())
    exec(SCRIPT, {"__name__": "__main__"})
    assert capsys.readouterr().out.endswith(" (last epoch; 100.00% with the training kernels)\n")


@pytest.mark.paper
def test_the_tour_prints_totals_over_sigma(figures):
    (printed,) = [cell["outputs"][0]["text"] for cell in CELLS if cell["id"] == "c21"]
    told = [json.loads(line[line.index("[") :]) for line in printed]
    exec(LEARN, space := {})
    for line, sigmas in ((0, figures.shrinking()), (3, [1.0] * 200)):
        assert space["patterns_right"](0, sigmas) == told[line][0]
        _, delays, *_, right = figures.by_hand(sigmas)
        assert right == told[line][9]  # of seed 9
        *_, (_, _, hidden, _) = space["learn"](9, sigmas)
        oracle.close(delays[-1], hidden.delay, rtol=0, atol=1e-3)
    exec(TOUR["c61"].partition("print")[0], space)  # delays that are lined up by hand
    before, _, _, (times, *_) = space["learn"](0, [], space["lined_up"])
    assert (before == before[:, :1]).all() and ((before - times) % 15 == before - times).all()


EXERCISES = (FOLDER / "EXERCISES.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", EXERCISES, re.S)


def block_with(words):
    (found,) = [block for block in BLOCKS if words in block]
    return found


@pytest.mark.paper
def test_the_file_of_the_first_exercises_replaces_what_the_named_tests_test():
    block = block_with("def gaussian_kernel").replace("import delays\n", "")
    exec(block, {"delays": (replaced := SimpleNamespace())})
    assert len(vars(replaced)) == 3
    for name, function in vars(replaced).items():
        own, usual = [list(signature(f).parameters) for f in (function, getattr(delays, name))]
        assert own == usual
    commands, tests = re.findall(r"-p exercise -k (\w+)`", EXERCISES), " ".join(vars(oracle))
    assert [word in tests for word in commands] == [True] * 3


@pytest.mark.paper
def test_exercises_with_their_answers_print_what_they_say(figures, capsys):
    formula = "k / sigma**2 * ((d - delay) - (g * (d - delay)).sum() / (g.sum() + 1e-7))"
    exec(block_with("slope").replace("mine = ...", f"delay = 3.4; mine = {formula}"), {})
    assert float(re.search(r"tensor\((\S+?),", capsys.readouterr().out)[1]) < 1e-7
    source = LEARN.replace("start=None", "rates=(0.3,) * 200, start=None")
    source = source.replace("sigmas, start)", "sigmas, rates)")
    source = source.replace("    for sigma in sigmas:\n", block_with("optimizer.param_groups"))
    exec(source, space := {})
    capsys.readouterr()
    exec(block_with("def total").replace("range(12)", "[9]"), space)
    jump, turned, narrow, slow, fast, falling, still = map(int, capsys.readouterr().out.split())
    assert falling == still == 4 and max(jump, turned, narrow, slow, fast) < 4


@pytest.fixture(scope="module")
def figures():
    """Import figures as the tour and the exercises do: without pandas and scipy."""
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pandas", "scipy"):
            patch.setitem(sys.modules, name, None)
        return import_module("experiments.figures")


@pytest.mark.paper
def test_every_picture_is_drawn(figures, results):
    drawn = figures.results_figure().axes
    rows = results.all_rows().query("speakers == '' and data == @results.SHD and epochs == 30")
    runs = rows[(rows["side"] == "learned") & (rows["seed"] < 10)]
    told = f"{100 * runs['accuracy'].mean():.2f} (n = {len(runs)})"
    assert told in [x.get_text().strip() for x in drawn[0].texts]
    assert figures.why_figure().axes and figures.kernel_figure().axes
    net, _ = train.load_run(str(FOLDER / "trained/shd-learned"))
    for axis, layer in zip(figures.delays_figure().axes, net.layers, strict=True):
        steps = layer.delay.detach().round().long().flatten()
        bars = [bar.get_height() for bar in axis.patches[-layer.taps :]]
        oracle.close(bars, steps.bincount() / len(steps), rtol=0, atol=1e-6)


@pytest.mark.paper
def test_the_animation_shades_the_kernel_of_each_spike_from_where_it_was_sent(figures):
    axis, sent = figures.Figure().subplots(), torch.arange(24).view(4, 6) % 15
    kernels = oracle.uniform(4, 6, 15, high=1).float()
    figures.draw_arrivals(axis, "", sent, sent, kernels)
    shades = torch.from_numpy(1 - axis.images[0].get_array()[:, :, 0]) / 0.7
    for neuron, i in np.ndindex(4, 6):
        want = torch.zeros(29)
        want[sent[neuron, i] :][:15] = (5 * kernels[neuron, i].sqrt()).round() / 5
        oracle.close(shades[8 * neuron + 1 + i], want, rtol=0, atol=1e-6)


@pytest.mark.paper
def test_the_picture_of_a_gradient_has_the_products_of_its_exercise(figures, capsys):
    exercise = block_with("products = ...").replace("products = ...", block_with("rate = ") + "#")
    figure = figures.gradient_figure()
    for k, sigma in enumerate((3.0, 0.5)):
        exec(exercise.replace("sigma = 3.0", f"sigma = {sigma}"), own := {})
        off, sums = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert abs(off) < 1e-7
        current, asked = own["current"][0, :, 0].detach(), own["asked"][0]
        slope = F.pad(own["rate"], (int(own["sent"][0]), len(asked)))[: len(asked)]
        sums = torch.tensor([sums[0], sum(sums[1:]), sum(sums)]).double()
        for row, want in enumerate((current, asked, slope, asked * slope, sums)):
            axis = figure.axes[2 * row + k]
            drawn = torch.tensor([bar.get_height() for bar in axis.patches]).double()
            oracle.close(drawn / want.abs().max(), want / want.abs().max(), rtol=0, atol=1e-4)
            if row > 2:
                blue = torch.tensor([bar.get_facecolor()[2] > 0.5 for bar in axis.patches])
                assert torch.equal(blue, drawn > 0)
        assert [text.get_text() for text in axis.texts] == [f"{value:+.1e}" for value in sums]


def test_a_run_is_drawn_and_its_errors_are_printed(figures, tmp_path, monkeypatch, capsys):
    folder = str(tmp_path / "run")
    ideas.main(["control", *FAST, "--out", folder])
    net, _ = train.load_run(folder, train.build(train.parse(FAST), ideas.Control))
    toy = data.load("toy", "test", "")
    scores = train.predict(net, toy)
    capsys.readouterr()
    config = Path(folder, "config.json")  # as if it had run on a GPU
    config.write_text(config.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    drawn = figures.run_figures(folder, index=7)
    raster = drawn["run.png"].subfigs[1].axes[0].images[0].get_array()
    assert (raster[:, :80] == (toy.counts[7].T.numpy() > 0)).all()
    texts = {x.get_position(): int(x.get_text()) for x in drawn["confusions.png"].axes[0].texts}
    counts = Counter(zip(scores.argmax(1).tolist(), toy.labels.tolist(), strict=True))
    assert texts == counts
    wrong = sorted(count for (heard, own), count in counts.items() if heard != own)
    head, *told = capsys.readouterr().out.splitlines()
    assert head == f"{sum(wrong):,} of 1,000 samples are errors, most frequently:"
    assert [int(line.split()[0]) for line in told] == wrong[-5:][::-1]
    ends = [line.get_xdata()[0] for axis in drawn["run.png"].axes for line in axis.lines[-1:]]
    assert ends[-3:] == [800] * 3  # in both pictures of spikes and in that of the scores
    words, speakers = ["no", "yes"], np.array(["b", "a", "b"])
    figures.print_errors(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), speakers, words)
    told = capsys.readouterr().out.partition("1 x ")[2]
    assert told == "yes, heard as no\nspeaker a: 100.00% of 1 right\nspeaker b: 50.00% of 2 right\n"
    with pytest.raises(IndexError):  # of 1,000 samples
        figures.main(["--run", folder, "--sample", "1000"])
    monkeypatch.setattr(ideas, "IDEAS", {})  # as if the network were of a fork
    assert figures.run_figures(folder, net=net).keys() == drawn.keys()
