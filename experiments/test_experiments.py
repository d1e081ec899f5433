"""The programs beside the three files, each against a slow computation; one thread, offline."""

import argparse
import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import data
import test_delays as oracle
import train
from delays import DelayedLinear, DelaySNN, lif
from experiments import benchmark, export, ideas, regenerate
from experiments import test_program as program

FOLDER = Path(__file__).resolve().parent
CELLS = json.loads((FOLDER / "tour.ipynb").read_text())["cells"]
TOUR = {cell["id"]: "".join(cell["source"]) for cell in CELLS}
FAST = ["--dataset=toy", "--hidden=5", "--taps=5", "--batch-size=500", "--epochs=1", "--device=cpu"]

# ------------------------------------------------------------------------------------------ ideas


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Undo what ideas.main sets in train."""
    monkeypatch.setattr(train, "set_sigma", train.set_sigma)
    monkeypatch.setattr(train, "RUNS", train.RUNS)


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
    got = net.neurons(0, current)
    assert not torch.equal(got, lif(current, 2.0))  # what came back did something
    inputs = [current, echo.weight, *([echo.delay] if training and taps > 1 else [])]
    oracle.assert_same(got, torch.stack(spikes, 1), inputs)


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


def test_a_shift_moves_all_of_a_sample_by_one_number_of_inputs():
    counts = torch.from_numpy(np.random.default_rng(0).integers(1, 9, (400, 5, 12), np.uint8))
    torch.manual_seed(0)
    moves = []
    for sample, moved in zip(counts, ideas.shift(counts, None), strict=True):
        wide = F.pad(sample, (8, 8))  # zeros on either side
        moves += [m for m in range(-8, 9) if torch.equal(moved, wide[:, 8 - m : 20 - m])]
    oracle.close([moves.count(m) / 400 for m in range(-8, 9)], [1 / 17] * 17, rtol=0, atol=0.04)


def test_steps_that_open_at_spikes_drop_the_silence_between(tmp_path):
    # As float16, 0.6 s times 1000 is 600, and 0.6104 s is 610.5: more than 10 ms later.  From 0.505
    # to 0.515 s it is 10 ms, but 10.25 if the time of the first spike were subtracted before.
    times = np.float16([0.505, 0.0012, 0.004, 0.25, 0.0035, 0.2578, 0.2617, 0.6, 0.6104, 0.515])
    units = np.uint16([0, 5, 0, 5, 699, 5, 0, 0, 0, 0])
    counts = ideas.open_steps(times, units)
    assert [sorted(row[row > 0]) for row in counts] == [[1, 1, 1], [2], [1], [2], [1], [1]]
    assert counts[1, 1] == 2 and counts[0, 139] == 1
    # Times of 1.0215 and 11.0234 ms are 10.002 ms apart, but exactly 10 in float16.
    assert len(ideas.open_steps(np.float16([0.0010214, 0.011024]), units[:2])) == 1
    for split in ("train", "test"):
        program.write_h5(tmp_path / f"shd_{split}.h5", [times], [units], [0], [0])
    with pytest.raises(SystemExit, match="no test and no validation set"):
        ideas.main(["base", "--dataset", "shd-opened", "--data-dir", str(tmp_path), "--no-test"])
    assert torch.equal(data.load("shd-opened", "test", tmp_path).counts, torch.tensor(counts))


def test_an_idea_has_the_command_line_of_train_and_folders_of_its_own(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    ideas.main(["axonal", *FAST])
    result = oracle.result_of(Path("runs/toy-axonal-learned-0"))
    capsys.readouterr()
    ideas.main(["axonal", "--eval", "runs/toy-axonal-learned-0"])
    assert f"test accuracy {result['test_accuracy']:.2%}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has to be one of base, ax"):
        ideas.main(["other"])
    for name, seams in ideas.IDEAS.items():  # NoTail for no-tail, but one_softmax is a function
        words = [name.title().replace("-", ""), name.replace("-", "_")]
        assert name == "base" or [value.__name__ in words for value in seams.values()] == [True]


def test_whole_steps_freeze_rounded_delays_in_the_last_fifth(tmp_path):
    ideas.main(["whole-steps", *FAST, "--epochs", "5", "--out", str(tmp_path / "run")])
    rows, result = oracle.log_of(tmp_path / "run"), oracle.result_of(tmp_path / "run")
    assert [float(row["sigma"]) for row in rows] == [2.27, *[0.5] * 3, 0]
    assert rows[-2]["moved_ms"] == rows[-1]["moved_ms"] != rows[0]["moved_ms"]
    assert result["unrounded_accuracy"] == result["test_accuracy"]
    layer = ideas.LateSteps(3, 4, taps=5)
    for layer.sigma, taps in ((0.5, 5), (0.0, 1)):
        assert (layer.kernel() != 0).sum(2).max() == taps


def net_of(idea, **options):
    """Return the network of an idea, with the weights and delays of seed 0."""
    return oracle.small(ideas.IDEAS[idea].get("net_class", DelaySNN), **options)


def test_tails_may_be_cut_or_kept_the_same_for_any_taps():
    counts = oracle.some_counts()
    for idea, tail in (("no-tail", 0), ("tail-25", 36)):
        net = net_of(idea).eval()
        assert net.tail == tail
        base = oracle.small().eval()
        base.load_state_dict(net.state_dict())
        got, whole = net(counts), base(F.pad(counts, (0, 0, 0, 36)))
        assert got.shape[1] == 12 + tail
        oracle.close(got, whole[:, : 12 + tail], rtol=0, atol=1e-12)


def test_the_loss_without_a_second_softmax_is_that_of_the_mean_probability():
    membrane, labels = oracle.random(3, 7, 4), torch.tensor([2, 0, 3])
    share = torch.stack([oracle.plain_scores(sample) for sample in membrane]) / 7
    want = -(share[0, 2].log() + share[1, 0].log() + share[2, 3].log()) / 3
    oracle.close(ideas.one_softmax(None, None, membrane, labels), want, rtol=1e-12, atol=0)


def test_dropout_may_draw_a_new_mask_in_each_step():
    net = net_of("drop-steps", dropout=0.25)
    assert net.dropout == 0
    dropped = net.neurons(0, torch.full((40, 50, 8), 2.0).double())  # all spike in each step
    assert set(dropped.unique().tolist()) == {0, 1 / 0.75}
    assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (dropped != dropped[:, :1]).flatten(1).any(1).all()
    assert (net.eval().neurons(0, torch.full((4, 5, 8), 2.0)) == 1).all()


@pytest.mark.parametrize("alpha", [2, 20])
def test_the_surrogate_gradient_may_be_wider_or_narrower(alpha):
    current = oracle.random(2, 12, 3).requires_grad_()
    net = ideas.IDEAS[f"alpha-{alpha}"]["net_class"](3, [3], 2, tau=1.5)
    want = oracle.turned(oracle.plain_lif(oracle.turned(current), 1.5, alpha=alpha))
    oracle.assert_same(net.neurons(0, current), want, (current,))


def test_the_triangle_has_the_variance_of_the_gaussian():
    layer = net_of("triangle").layers[0]
    layer.sigma = 1.3
    half = 1.3 * math.sqrt(6)
    kernel, d = layer.kernel(), torch.arange(5)
    for o, i in np.ndindex(8, 6):
        g = (half - (d - layer.delay[o, i]).abs()).clamp(min=0) / half
        want = layer.weight[o, i] * g / (g.sum() + 1e-7)
        oracle.close(kernel[o, i], want, rtol=1e-12, atol=0)
    x = np.linspace(-half, half, 10_001)
    weights = half - abs(x)
    assert (weights * x**2).sum() / weights.sum() == pytest.approx(1.3**2, rel=1e-6)


def test_delays_may_start_at_0_or_stay_at_whole_steps():
    options = train.parse([*FAST, "--connections", "3"])
    base, zero, still = [
        train.build(options, net_class) for net_class in (DelaySNN, ideas.FromZero, ideas.Control)
    ]
    fixed = train.build(train.parse([*FAST, "--connections", "3", "--delays", "fixed"]))
    assert train.count_parameters(zero) == train.count_parameters(base)
    assert train.count_parameters(still) == train.count_parameters(fixed)
    for start, moved, held, whole in zip(
        base.layers, zero.layers, still.layers, fixed.layers, strict=True
    ):
        assert not moved.delay.any() and moved.delay.requires_grad
        assert torch.equal(held.delay, whole.delay) and torch.equal(moved.weight, start.weight)
        held.sigma = 1.0  # unlike fixed delays, they have a Gaussian
        assert (held.kernel()[held.mask] != 0).all()


def test_without_batch_norm_the_sums_drive_the_neurons():
    net, counts = net_of("no-norm"), oracle.some_counts()
    net(counts)
    assert net.rates[0] == lif(net.layers[0](counts), 1.005).mean() > 0
    assert not [name for name in net.state_dict() if name.startswith("norms")]


def test_axons_and_dendrites_have_delays():
    assert [layer.delay.shape for layer in net_of("axonal").layers] == [(1, 6), (1, 8), (1, 7)]
    assert [layer.delay.shape for layer in net_of("dendritic").layers] == [(8, 1), (7, 1), (4, 1)]


# ------------------------------------------------------------------------------------------ export


@pytest.fixture(scope="module")
def trained():
    """A network with all that the arrays can hold, its arrays, and samples of several lengths."""
    net = oracle.small(count=2, connections=4, tau=2.5, tau_readout=6.0).float()
    net.layers[0] = DelayedLinear(6, 8, taps=4, count=2, connections=3)
    net.layers[0].delay.data[:, ::3] = 2.5  # half steps go to the even step
    net.layers[1].delay.data[:, 8:] = net.layers[1].delay.data[:, :8]  # two may share a tap
    for norm in net.norms:
        norm.weight.data.uniform_(-2, 2)
        norm.bias.data.uniform_(-0.5, 1.5)
        norm.eps = 0.01
    arrays = export.arrays_of(net.eval(), argparse.Namespace(dataset="toy"))
    return net, arrays, oracle.from_lengths(range(5, 45, 5))


def simulated(arrays, x):
    """Return the hidden spikes and the scores of one sample, [T, in], by the docstring's words."""
    x, hidden = torch.cat([x, torch.zeros(arrays["tail_steps"], x.shape[1])]).double(), []
    for i in (0, 1, 2):
        kernel = torch.zeros(len(arrays[f"current_{i}"]), x.shape[1], 5).double()
        synapses = [arrays[f"{name}_{i}"] for name in ("post", "pre", "delay", "weight")]
        for post, pre, delay, weight in zip(*synapses, strict=True):
            kernel[post, pre, delay] += weight
        current = oracle.plain_delayed_sum(x, kernel, tail=0) + torch.tensor(arrays[f"current_{i}"])
        x = oracle.plain_lif(current, float(arrays["tau_steps"]), float(arrays["threshold"]))
        hidden.append(x)
    v = oracle.plain_readout(current, float(arrays["tau_readout_steps"]))
    return hidden[:2], oracle.plain_scores(v)


def test_arrays_have_the_scores_of_the_network(trained):
    net, arrays, samples = trained
    assert arrays["tail_steps"] == 2 + 2 + 2 and len(arrays["delay_0"]) == 8 * 3 * 2
    want = train.predict(net, samples)
    each = samples.counts.split(samples.steps.tolist())
    oracle.close(torch.stack([simulated(arrays, x)[1] for x in each]), want, rtol=0, atol=1e-4)
    ours = train.predict(export.ArrayNetwork(arrays), samples, batch_size=3)
    oracle.close(ours, want, rtol=0, atol=1e-4)
    # Neurons spike in silence, so it matters when each layer ends.
    for spikes in simulated(arrays, torch.zeros(30, 6))[0]:
        assert spikes[-6:].any()


def test_the_program_writes_arrays_that_have_the_accuracy_of_the_run(tmp_path, capsys):
    run, path = str(tmp_path / "run"), str(tmp_path / "net.npz")
    words = [*FAST, "--lr", "2e-2", "--tau-readout", "30", "--out", run]
    train.train(train.parse(words))
    capsys.readouterr()
    export.main([run, "--out", path])
    ours, of_run = re.findall(r"(\S+)%", capsys.readouterr().out)
    assert float(ours) == pytest.approx(float(of_run), abs=0.11)  # rounding may move a spike
    arrays = np.load(path, allow_pickle=False)
    numbers = ["tau_steps", "tau_readout_steps", "threshold", "step_ms", "taps", "inputs"]
    assert [float(arrays[name]) for name in numbers] == pytest.approx([1.005, 3, 1, 10, 5, 8])
    with pytest.raises(SystemExit, match="export.py: .*No such file.*config.json"):
        export.main([str(tmp_path), "--out", path])


def test_brian2_has_the_spikes_of_the_network(trained, capsys):
    if find_spec("brian2") is None:
        pytest.skip("no brian2")
    net, arrays, samples = trained
    each = samples.counts.split(samples.steps.tolist())
    total = sum(int(s.sum()) for x in each[:4] for s in simulated(arrays, x)[0])
    export.compare_brian2(net, arrays, samples, 4)
    words = f"4 samples, {total} hidden spikes in torch, 0 that occur in only one of the two\n"
    assert capsys.readouterr().out == words


# --------------------------------------------------------------------------------------- benchmark


def test_the_authors_libraries_compute_the_same_network():
    """Scores, gradients of all parameters, running statistics, and scores with whole steps."""
    if "DELAYS_REQUIRE_PEER" not in os.environ:  # .ci/run sets it: there, a missing one is an error
        for library in ("DCLS", "spikingjelly"):
            pytest.importorskip(library, reason=f"not compared with the authors': no {library}")
    differences = benchmark.compare()
    assert len(differences) >= 1 + 3 * 2 + 2 * 4 + 1  # of layers, of norms
    for name, difference in differences.items():
        assert difference < 1e-12, name


# ------------------------------------------------------------------------------------------ results


@pytest.fixture
def results():
    pytest.importorskip("pandas")
    pytest.importorskip("scipy")
    from experiments import results

    return results


def runs(percents, **columns):
    """Return rows of runs of seeds 0, 1, ... with these accuracies."""
    rows = pytest.importorskip("pandas").DataFrame({"accuracy": percents}) / 100
    usual = dict(data="SHD (regenerated)", epochs=150, padding="yes", variant="learned", options="")
    usual |= dict(change="", seed=rows.index, machine="", parameters=math.nan, speakers="")
    usual |= dict(unrounded=math.nan, best_on_test=rows["accuracy"], seconds=3000.0)
    usual |= dict(new_speakers=math.nan, known_speakers=math.nan, ended="")
    return rows.assign(**usual | columns)


# Five seeds each, of 2,264 samples.  The standard error of their difference is 0.1440 over pairs
# (times Student's 2.776), and 0.3711 over means (times 2.310).
ONE = [samples / 22.64 for samples in (2099, 2119, 2114, 2114, 2138)]
OTHER = [samples / 22.64 for samples in (2091, 2106, 2108, 2090, 2120)]
PAIRED, WELCH = "+0.61 [+0.21, +1.01]", "+0.61 [-0.25, +1.47]"


def test_a_claim_is_tested_by_welch_or_by_pairs_of_speakers_once_all_of_its_runs_are_there(results):
    fixed, held = dict(variant="fixed"), dict(speakers=results.PAIRS, seed=0, epochs=30)
    first = [
        runs(ONE),
        runs(OTHER, **fixed),
        runs(ONE, epochs=30),
        runs(ONE, padding="no", **fixed),
    ]
    found = results.claims_table(results.pandas.concat(first), results.FIRST_CLAIMS, "1 " * 10)
    assert found.iloc[0].tolist()[2:] == [WELCH, "0.14", "5 and 5", "not shown"]
    assert found["verdict"].tolist()[1:] == ["not run"] * 9 and found["n"][1] == "0 and 5"

    toy = dict(data="toy", epochs=20, options="--hidden 21", seed=range(10, 30))
    second = [
        runs(ONE, **held),
        runs(OTHER[::-1], **fixed, **held | {"speakers": results.PAIRS[::-1]}),
    ]
    second += [
        runs([90, 91] * 10, **toy),
        runs([80, 81] * 10, **toy | dict(variant="fixed", options="")),
    ]
    second += [runs(ONE, epochs=30, seed=range(5, 10)), runs(OTHER, epochs=30, variant="control")]
    rows = results.pandas.concat(second)
    found = results.claims_table(rows, results.SECOND_CLAIMS, "a b c d e")
    assert found.iloc[3].tolist()[2:] == [PAIRED, "0.014", "5 and 5", "not shown"]  # 0.014 * 4
    assert found["verdict"].tolist() == ["not run", "not run", "holds", "not shown", "not run"]
    assert found["n"].tolist() == ["5 and 0", "0 and 0", "20 and 20", "5 and 5", "5 and 0"]
    found = results.claims_table(rows[:-11], results.SECOND_CLAIMS, "a b c d e")
    assert found["n"][2] == "20 and 19" and found["verdict"][2] == "not run"


@pytest.mark.parametrize(
    "gains, verdict",
    [
        ([1.26, 1.26, 1.26, 1.26, 0], "the recipe"),  # 1.008 on average, four of five
        ([1.25, 1.25, 1.25, 1, 0], "not the recipe"),
        ([9, 9, 9, 0, 0], "not the recipe"),  # a tie is a loss
        ([9, 9, 9, 9], "not run"),
    ],
)
def test_the_recipe_gains_a_point_on_held_out_speakers_and_wins_four_pairs(results, gains, verdict):
    held = dict(speakers=results.PAIRS[: len(gains)], seed=0, epochs=40)
    rows = [runs([70.0] * len(gains), **held)]
    rows += [runs([70 + gain for gain in gains], **held | dict(variant="shift"))]
    rows = results.pandas.concat(rows)
    # The accuracy of the reported epoch would decide otherwise.
    rows = rows.assign(valid_accuracy=rows["accuracy"], accuracy=0.5)
    assert results.baseline(rows)["shift"].iloc[-1] == verdict
    assert results.baseline(rows)["1,8"].tolist() == [
        "70.00",
        f"{70 + gains[0]:.2f}",
        f"{gains[0]:.2f}",
    ]


def test_runs_of_the_second_list_began_after_it_was_committed(results):
    later = results.all_rows().query("list == 2")
    began = results.pandas.to_datetime(later["ended"]) - results.pandas.to_timedelta(
        later["seconds"], "s"
    )
    assert len(later) > 0 and later["run"][began < results.LISTED].tolist() == []
    assert later["processor"].unique().tolist() == [results.PROCESSOR]


def test_no_line_of_a_table_counts_a_seed_twice(results, tmp_path, monkeypatch):
    rows = results.all_rows().query("change == ''")
    keys = [*results.COMMON, "machine", "speakers", "seed"]
    assert rows[rows.duplicated(keys)]["run"].tolist() == []
    toy = rows.query("data == 'toy' and variant == 'learned' and padding == 'yes' and seed < 2")
    three = toy[toy["options"] == ""].iloc[1:]  # one of two seeds is there from two processors
    assert three["seed"].tolist() == [1, 0, 1] and three["processor"].nunique() == 2
    three.to_csv(tmp_path / "runs.csv")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert results.all_rows()["machine"].ne("").all()
    mine = three.assign(ended="2027-01-01 00:00", processor=["mine", results.PROCESSOR, "mine"])
    mine.to_csv(tmp_path / "runs.csv")
    assert results.all_rows()["list"].tolist() == [0, 2, 0]  # 0: of no list of claims


def test_groups_may_differ_in_size_and_variance_and_two_pairs_are_too_few(results):
    def compare(one, other, paired=False):
        return results.compare(*(runs(side)["accuracy"] for side in (one, other)), paired)

    half = 3.885 * math.sqrt(10 / 4 / 5 + 25 / 3)  # of Student's with 2.243 degrees of freedom
    text = str(compare([1, 2, 3, 4, 5], [1, 6, 11]))
    assert text == f"-3.00 [{-3 - half:+.2f}, {-3 + half:+.2f}]"
    assert str(compare([1, 3], [0, 1], paired=True)) == "-"


def test_a_part_is_compared_with_learned_delays_of_the_same_runs(results):
    toy = dict(data="toy", epochs=20)
    rows = [runs(ONE, epochs=30, seed=range(5, 10)), runs(OTHER[2:], epochs=30, variant="no-norm")]
    rows += [runs(ONE + ONE, **toy), runs(OTHER + OTHER, variant="no-norm", **toy)]
    line = results.parts(results.pandas.concat(rows)).set_index("idea").loc["no-norm"]
    assert line["n, toy"] == "10 and 10" and str(line["toy"]).startswith("-0.61 [")
    difference = np.mean(OTHER[2:]) - np.mean(ONE)
    assert line["n, SHD (regenerated)"] == "3 and 5" and line["s per epoch, SHD"] == 100
    assert line["SHD (regenerated)"].points == pytest.approx(difference)
    for points, low, high, p, words in (
        (-0.61, -1.47, 0.25, 0.1, "no difference seen, at most 1.47"),
        (0.61, -0.25, 1.47, 0.1, "no difference seen, at most 1.47"),
        (math.nan, math.nan, math.nan, math.nan, "-"),
        (1.0, 0.5, 1.5, 0.01, "+1.00 [+0.50, +1.50]"),
    ):
        assert results.if_seen(results.Difference(points, low, high, p, "5 and 5")) == words


def test_holms_correction_counts_claims_that_were_not_run(results):
    # Bounds: 0.0083, 0.01, 0.0125, 0.0167, 0.025.  0.024 comes after one that does not hold.
    values = [0.0175, math.nan, 0.0098, 0.001, 0.024, 0.0124]
    verdicts = ["not shown", "not run", "holds", "holds", "not shown", "holds"]
    assert results.holm(results.pandas.Series(values)).sort_index().tolist() == verdicts


def test_a_finished_run_is_added_once(results, tmp_path, monkeypatch):
    columns = (FOLDER / "runs.csv").read_text().splitlines()[0]
    (tmp_path / "runs.csv").write_text(columns + "\n")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    run = tmp_path / "mine"
    words = ["--epochs", "2", "--delays", "fixed", "--valid-share", "0.2", "--no-test"]
    result = train.train(train.parse([*FAST, *words, "--out", str(run)]))
    last = oracle.log_of(run)[-1]
    os.utime(run / "result.json", (86460, 86460))
    results.main(["add", str(run)])
    results.main(["add", str(run), "--variant", "other"])
    monkeypatch.setattr(results, "processor", lambda: "another")
    results.main(["add", str(run)])
    before = (tmp_path / "runs.csv").read_bytes()
    with pytest.raises(SystemExit, match="already has .*, as mine: delete that row"):
        results.main(["add", str(run)])
    assert (tmp_path / "runs.csv").read_bytes() == before
    row, other, there = results.all_rows().to_dict("records")
    wanted = ["mine", "toy", 2, 0, "yes", "1970-01-02 00:01", float(last["valid_accuracy"])]
    names = ["run", "data", "epochs", "seed", "padding", "ended", "accuracy"]
    assert [row[name] for name in names] == wanted
    options = "--valid-share 0.2 --no-test --hidden 5 --taps 5 --batch-size 500"
    assert (row["variant"], row["options"]) == ("fixed", options) and math.isnan(row["unrounded"])
    assert row["result_valid"] == result["valid_accuracy"]
    assert other["variant"] == "other" and row["processor"] == other["processor"] != ""
    machines = [row["machine"], other["machine"], there["machine"]]  # where a seed repeats
    assert machines == [row["processor"], "", "another"]


def test_a_run_is_asked_about_speakers_and_words(results, tmp_path, monkeypatch, capsys):
    program.write_shd(tmp_path, speakers=[3, 4, 5])
    with h5py.File(tmp_path / "shd_test.h5", "a") as file:
        file["extra/keys"] = [f"word {label}".encode() for label in range(20)]
    test = data.load("shd", "test", tmp_path)
    words = ["--hidden", "5", "--layers", "1", "--taps", "5", "--epochs", "1", "--lr", "0.1"]
    words += ["--data-dir", str(tmp_path), "--device", "cpu", "--out"]
    train.main([*words, str(tmp_path / "run")], ideas.Control)
    ideas.main(["base", "--dataset", "shd-opened", *words, str(tmp_path / "opened")])
    folders = [str(shutil.copytree(tmp_path / "run", tmp_path / "again")), str(tmp_path / "run")]

    (tmp_path / "moved").mkdir()  # the runs no longer find the files where they had them
    for path in tmp_path.glob("*.h5"):
        path.rename(tmp_path / "moved" / path.name)
    place = ["--data-dir", str(tmp_path / "moved")]
    net, options, idea = results.network_of(folders[0])
    guess = [int(train.predict(net, test.select(np.arange(9) == s)).argmax()) for s in range(9)]
    right = np.array(guess) == test.labels.numpy()
    new, known = right[[1, 2, 4, 5, 7, 8]].mean(), right[::3].mean()

    columns = (FOLDER / "runs.csv").read_text().splitlines()[0]
    (tmp_path / "runs.csv").write_text(columns + "\n")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    results.main(["add", folders[0], str(tmp_path / "opened"), *place])
    row, opened = results.all_rows().to_dict("records")
    assert idea == row["variant"] == "control" and opened["variant"] == "learned"
    assert (row["data"], opened["data"]) == ("shd (other files)", "shd-opened")
    assert (row["new_speakers"], row["known_speakers"]) == pytest.approx((new, known))

    capsys.readouterr()
    results.main(["speakers", *folders, *place])
    printed = capsys.readouterr().out
    for name, share in ("new", new), ("known", known), ("4", right[1::3].mean()):
        assert f"speaker {name:<6} {100 * share:.2f}, {100 * share:.2f} %\n" in printed
    wrong = [(s, guess[s]) for s in range(9) if guess[s] != s]
    assert f"{len(wrong):.1f} errors per run" in printed
    for said, heard in wrong:
        assert f"   1.0  word {said} heard as word {heard}\n" in printed
    for command in ("add", "speakers"):
        with pytest.raises(SystemExit, match="needs the folder of a run"):
            results.main([command])


def test_each_seed_has_a_folder_with_a_run_of_that_seed(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.main(["train", *FAST, "--variants", "fixed", "--seeds", "0,3"])
    for seed in (0, 3):
        (folder,) = Path("runs").glob(f"toy-1-fixed-{seed}-*")
        assert oracle.result_of(folder)["seed"] == seed
    ended = [path.stat().st_mtime_ns for path in sorted(Path("runs").glob("*/result.json"))]
    (folder / "result.json").unlink()  # of seed 3, which is resumed; seed 0 is left as it is
    results.main(["train", *FAST, "--variants", "fixed", "--seeds", "0,3"])
    again = [path.stat().st_mtime_ns for path in sorted(Path("runs").glob("*/result.json"))]
    assert again[0] == ended[0] and again[1] > ended[1]


def test_a_line_is_of_the_runs_that_differ_only_in_seed_or_speakers(results):
    held = dict(variant="none", speakers=["1,8", "2,10"])
    rows = results.pandas.concat([runs([91, 92, 96]), runs([50, 90], **held), runs([5], epochs=30)])
    heads = ["variant", "epochs", "last epoch", "1,8", "mean", "n"]
    assert results.table(rows, heads).fillna("-").to_numpy().tolist() == [
        ["learned", 150, "93.00 ± 2.65", "-", "93.00", 3],
        ["none", 150, "50.00, 90.00", "50.00", "70.00", 2],
        ["learned", 30, "5.00", "-", "5.00", 1],
    ]


def numbers_of(text):
    return re.findall(r"[+-]\d+\.\d\d \[[^]]+\]|\d\d\.\d\d ± \d\.\d\d", text)


def test_numbers_in_results_and_readme_are_those_of_runs_csv(results):
    tables = results.all_tables()
    page = (FOLDER / "RESULTS.md").read_text()
    heads = {table.splitlines()[0] for table in tables.values()}
    ours = [table.strip() for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)]
    ours = [table for table in ours if table.splitlines()[0] in heads]
    assert len(ours) >= 8 and [table[:200] for table in ours if table not in tables.values()] == []
    answers = page[: page.index("\n## ")].split("\n\n")[1]
    answers += page[page.index("Three ideas") : page.index("Not run with this program")]
    printed = "\n".join(tables.values())
    assert len(numbers_of(answers)) >= 6
    assert [number for number in numbers_of(answers) if number not in printed] == []
    spoken = re.findall(r"\| (\w+), 30 epochs, seeds .*? \| .*? \| .*? \| (.*?) \| (.*?) \|", page)
    assert len(spoken) >= 3
    rows = results.all_rows().query("list == 2")
    for variant, *found in spoken:
        runs = results.runs_of(rows, results.SHD, 30, (variant, ""))
        columns = "new_speakers", "known_speakers"
        assert found == [results.spread(runs[column]) for column in columns], variant

    readme = (FOLDER.parent / "README.md").read_text()
    found = re.findall(r"[+-]\d+\.\d\d \[[^]]+\]|\d+\.\d\d(?= points)", readme)
    assert len(found) >= 6 and [number for number in found if number not in printed] == []
    cells = re.findall(r"([\d.]+ ± [\d.]+) \((?:n = )?(\d+)\)", readme)
    assert len(cells) >= 9
    for accuracy, n in cells:
        line = [line for line in printed.splitlines() if f"| {accuracy} |" in line]
        assert any(f"| {n} |" in found for found in line), accuracy


# --------------------------------------------------------------------------------------- regenerate


TRIALS = {  # of each speaker in the Heidelberg Digits; a trial has the ten digits
    "german": [47, 51, 52, 46, 48, 49, 19, 36, 42, 39, 39, 65],
    "english": [49, 44, 53, 30, 42, 45, 28, 45, 41, 48, 44, 40],
}
NAMES = [
    f"lang-{language}_speaker-{speaker:02}_trial-{trial}_digit-{digit}.flac"
    for language, trials_of in TRIALS.items()
    for speaker, trials in enumerate(trials_of)
    for trial in range(trials)
    for digit in range(10)
]


def test_seeds_split_and_order_are_those_of_the_known_files():
    plan = regenerate.plan(NAMES)
    assert {split: len(samples) for split, samples in plan.items()} == {"train": 8156, "test": 2264}
    known = {("train", 1823): 7456, ("train", 327): 15605, ("test", 1): 14056, ("test", 883): 17101}
    assert {(split, place): plan[split][place].seed for split, place in known} == known
    assert {4, 5}.isdisjoint(sample.speaker for sample in plan["train"])
    names = sorted(NAMES)
    for name, seed, label, speaker in plan["train"] + plan["test"]:
        assert name == names[seed - 7000] and f"_speaker-{speaker:02}_" in name
        assert f"digit-{label % 10}." in name and ("german" in name) == (label >= 10)


def test_channel_spikes_are_those_of_the_program_that_made_the_known_files():
    t = np.arange(480)
    random = np.random.RandomState(7).random_sample(480)
    spikes = regenerate.channel_spikes(200 * np.sin(t / 4) * np.sin(t / 300), random)
    assert np.flatnonzero(spikes).tolist() == [111, 161, 216, 266, 318, 391, 469]


def test_a_stopped_run_continues_and_writes_the_published_layout(tmp_path, monkeypatch):
    names, seeds = NAMES[::101], []

    def encode(path, seed):
        seeds.append(seed)
        if len(seeds) == 60:
            raise OSError("stopped")
        return np.float16([seed / 8000]), np.uint16([seed])

    lengths = SimpleNamespace(info=lambda path: SimpleNamespace(frames=path.name[-6]))
    monkeypatch.setitem(sys.modules, "soundfile", lengths)
    monkeypatch.setattr(regenerate, "find_spec", str)
    monkeypatch.setattr(regenerate, "RECORDINGS", len(names))
    monkeypatch.setattr(regenerate, "ProcessPoolExecutor", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(regenerate, "encode", encode)
    words = [str(tmp_path), str(tmp_path)]
    with pytest.raises(SystemExit, match="has 0 FLAC files, expected 104: unpack hd_audio again"):
        regenerate.main(words)
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(OSError, match="stopped"):
        regenerate.main(words)
    regenerate.main(words)
    assert [seeds.count(seed) for seed in seeds[:59]] == [1] * 59
    for split, samples in regenerate.plan(names).items():
        with h5py.File(tmp_path / f"shd_{split}.h5") as file:
            columns = "spikes/times", "spikes/units", "labels", "extra/speaker"
            rows = list(zip(*(file[name] for name in columns), strict=True))
            assert file["extra/keys"][16] == b"sechs"
        assert [x.dtype for x in rows[0]] == [np.float16, np.uint16, np.uint16, np.uint16]
        want = [(np.float16(s.seed / 8000), s.seed, s.label, s.speaker) for s in samples]
        assert [(times[0], units[0], *rest) for times, units, *rest in rows] == want


# ------------------------------------------------------------------------------------------ README


LAYER, SCRIPT = re.findall(r"```python\n(.*?)```", (FOLDER.parent / "README.md").read_text(), re.S)


def test_the_layer_in_a_loop_of_ones_own_prints_what_the_readme_says(capsys):
    exec(LAYER, {})
    assert capsys.readouterr().out == LAYER.rpartition("# ")[2]


def test_the_script_of_ones_own_reaches_what_the_readme_says(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    words = "mine.py --dataset mine --epochs 60 --device cpu --out run"
    env = os.environ | {"PYTHONPATH": str(FOLDER.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.endswith("\ntest accuracy 100.00% (last epoch)\n"), done.stderr
    options = json.loads((tmp_path / "run/config.json").read_text())["options"]
    row = dict(hidden=60, layers=1, batch_size=2, epochs=60)
    for name, value in (train.DEFAULTS["shd"] | row).items():  # SHD's, where its row has none
        assert options[name] == value, name


# -------------------------------------------------------------------------------- tour and figures


def run(*cells):
    """Return the variables of these cells of the tour after they have run."""
    space = {}
    for cell in cells:
        exec(TOUR[cell], space)
    return space


def test_twelve_seeds_of_the_tour_do_best_with_a_wide_start():
    space = run("c01", "c21")
    shrinking, wide, narrow = space["right"].view(3, 12).tolist()
    assert [row.count(4) for row in (shrinking, wide, narrow)] == [11, 5, 0]
    assert [sum(row) for row in space["lined_up"].view(3, 12).tolist()] == [29, 9, 0]
    lined_up = space["lined_up"].tolist()
    assert [seed for seed in range(12) if lined_up[seed] == 4] == [9]  # whose picture is why.png


def test_words_of_the_tour_have_the_scores_of_predict_and_need_their_delays(capsys):
    space = run("c01", "c24", "c28")
    net, shuffled = space["trained"], space["shuffled"]
    for word in ("nine", "neun"):
        file = np.load(FOLDER / "trained" / "shd-learned" / f"{word}.npz")
        label, speaker = int(file["label"]), int(file["speaker"])
        assert file["word"] == word == space["words"][label] and speaker == 5
        sample = data.join([data.bin_sample(file["times"], file["units"])], np.array([label]))
        for one, right in ((net, True), (shuffled, False)):
            scores = train.predict(one, sample)[0]
            oracle.close(space["hear"](one, word)[1][-1], scores, rtol=1e-5, atol=1e-5)
            assert (scores.argmax() == label) == right
    for own, other in zip(net.layers, shuffled.layers, strict=True):
        assert torch.equal(own.weight, other.weight) and not torch.equal(own.delay, other.delay)
        assert torch.equal(own.delay.flatten().sort()[0], other.delay.flatten().sort()[0])


def test_accuracies_in_the_tour_are_those_of_runs_csv(results):
    pattern = r"^\| (.*?)(?:, Intel Xeon)? \| .*? \| (\d\S+) ±"
    toy = dict(re.findall(pattern, results.all_tables()["toy"], re.M))
    told = re.findall(r"(?:100 ms|reach|learned|fixed) ([\d.]+) %", TOUR["c19"])
    names = ["learned", "fixed", "none, --tau 100.0", "fixed, --hidden 76", "learned, --hidden 21"]
    assert told == [toy[name] for name in names]
    printed = "\n".join(results.all_tables().values())
    told = re.findall(r"(\d\.\d\d) points (?:lower|above)", TOUR["c22"] + TOUR["c30"])
    assert len(told) == 2 and all(f"| +{points} [" in printed for points in told)
    rows = printed.splitlines()
    told = re.findall(r"[\d.]+ ± [\d.]+(?= %)", TOUR["c30"])
    for variant, accuracy in zip(("fixed", "learned"), told, strict=True):
        pattern = rf"\| {variant} \| .* \| 150 \| {accuracy} \|"
        assert any(re.match(pattern, row) for row in rows)


@pytest.fixture(scope="module")
def figures():
    pytest.importorskip("matplotlib")
    from experiments import figures

    return figures


def test_the_picture_of_a_neuron_is_of_the_training_in_the_tour(figures):
    space = run("c01", "c14")
    times, delays, _, right = figures.by_hand(figures.shrinking())
    assert (times + delays[-1].round()).equal(space["after"]) and right == 4
    own, other = [figures.why_figure().axes[column::2] for column in (0, 1)]
    for (_, arrived, summed), pattern in ((own, 0), (other, 2)):
        steps = [int(line.get_positions()[0]) for line in arrived.collections]
        assert steps == (times[pattern] + delays[-1, 0].round()).tolist()
        heights = [bar.get_height() for bar in summed.patches if bar.get_width() == 0.8]
        oracle.close(heights, 0.3 * np.bincount(steps, minlength=len(heights)), rtol=0, atol=1e-6)


def test_a_run_is_drawn_with_a_sample_that_passes_through_its_network(figures, tmp_path, capsys):
    folder = str(tmp_path / "run")
    train.train(train.parse([*FAST, "--layers", "2", "--epochs", "2", "--out", folder]))
    net, _ = train.load_run(folder)
    reached = []  # what comes into each layer, of the first sample
    for layer in net.layers:
        layer.register_forward_pre_hook(lambda layer, inputs: reached.append(inputs[0][0]))
    toy = data.load("toy", "test", "")
    scores = train.predict(net, toy.select(np.arange(len(toy.labels)) == 7))[0]
    drawn = figures.run_figures(folder, index=7)
    *_, given, first, second, sums = drawn["run.png"].axes
    moves = drawn["run.png"].axes[4:7]
    for axis, spikes in zip((given, first, second), reached, strict=True):
        want = spikes.nonzero() * torch.tensor([10, 1])  # in ms, and by neuron
        np.testing.assert_array_equal(axis.collections[0].get_offsets(), want)
    ends = [line.get_ydata()[-1] for line in sums.lines[:10]]
    oracle.close(ends, scores, rtol=1e-5, atol=0)
    begun = train.build(train.parse([*FAST, "--layers", "2"])).layers
    for axis, layer, first in zip(moves, net.layers, begun, strict=True):
        moved = 10 * (layer.delay - first.delay).abs().flatten()
        inside = [(moved >= low) & (moved < low + 10) for low in (0, 10, 20, 30)]
        shares = [100 * part.double().mean() for part in inside]
        heights = [bar.get_height() for bar in axis.containers[0]]
        oracle.close(heights, shares, rtol=1e-6, atol=0)
    cells = np.zeros((10, 10), int)
    for own, answer in zip(toy.labels, train.predict(net, toy).argmax(1), strict=True):
        cells[own, answer] += 1
    for text in drawn["confusions.png"].axes[0].texts:
        answer, own = text.get_position()
        assert text.get_text() == str(cells[own, answer])
        cells[own, answer] = 0
    assert not cells.any()
    os.rename(os.path.join(folder, "net.pt"), os.path.join(folder, "away"))
    capsys.readouterr()
    figures.main(["--run", folder])  # without its network, the curves are left
    printed = capsys.readouterr()
    assert printed.out == os.path.join(folder, "run.png\n")
    assert "a part is left out: " in printed.err


@pytest.mark.parametrize("packed", [False, True])
def test_classes_are_named_by_the_words_of_the_data_file(figures, packed, tmp_path):
    assert figures.class_names("toy", "test", "")[::9] == ["class 0", "class 9"]
    path = tmp_path / "shd_test.h5"
    with h5py.File(path, "w") as file:
        file["extra/speaker"] = [0]
    assert figures.class_names("shd", "test", str(tmp_path))[19] == "class 19"
    with h5py.File(path, "a") as file:
        file["extra/keys"] = np.array(["zero", "one"], "S")
    if packed:
        (tmp_path / "shd_test.h5.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert figures.class_names("shd", "test", str(tmp_path))[:3] == ["zero", "one", "class 2"]
