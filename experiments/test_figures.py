"""What a look into a run shows, against the run itself; and the README's tour, as it stands.

`python -m pytest -q experiments/test_figures.py`, offline, one thread.  Without matplotlib, only
the numbers are tested, and not the drawing of them.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data
import train
from delays import DelayedLinear, DelaySNN, lif
from experiments import look

torch.set_num_threads(1)

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(scope="module", autouse=True)
def little_toy():
    """A tenth of the toy task, for short runs, cut to lengths of 52 to 60 steps out of order."""
    sets = {}
    for split in ("train", "test"):
        whole = data.toy(split)
        counts = whole.counts.view(-1, 60, 8)[::7][: len(whole.labels) // 10]
        cut = [sample[: 60 - i * 4 % 9].numpy() for i, sample in enumerate(counts)]
        sets[split] = data.join(cut, whole.labels[::7][: len(cut)].numpy())

    def read(split, data_dir):
        return sets[split]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "toy", data.DATASETS["toy"]._replace(read=read))
        yield


def toy_test():
    return data.load("toy", "test", "")


class Sluggish(DelaySNN):
    """A network of one's own, whose threshold is higher."""

    def neurons(self, i, current):
        return lif(current, self.tau, threshold=1.2)


def run_toy(folder, *argv, kind=DelaySNN, on_epoch=None):
    """A short run of the toy task; returns its network and options."""
    small = ["--hidden", "6", "--batch-size", "50", "--epochs", "2", "--device", "cpu"]
    options = train.parse(["--dataset", "toy", *small, *argv, "--out", str(folder)])
    net = train.build(options, kind)
    train.train(options, net=net, on_epoch=on_epoch)
    return net.eval(), options


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder, network and options of a run with learned delays and two hidden layers."""
    folder = tmp_path_factory.mktemp("learned")
    return str(folder), *run_toy(folder, "--layers", "2", "--epochs", "4")


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fork")
    return str(folder), *run_toy(folder, kind=Sluggish)


@pytest.fixture
def speakers(monkeypatch):
    """A data set with a split for training and none for tests: a sample each of four speakers."""

    def read(split, data_dir):
        return data.from_events(
            sample=[0, 1, 2, 3],
            step=[0, 1, 2, 3],
            channel=[0, 1, 0, 1],
            labels=[0, 1, 0, 1],
            inputs=2,
            speakers=["a", "b", "a", "b"],
        )

    rows = {"mine": data.Dataset(read, ("train", "test"), inputs=2, classes=2, step_ms=5)}
    monkeypatch.setattr(data, "DATASETS", data.DATASETS | rows)
    small = dict(hidden=3, layers=1, batch_size=2, dropout=0.0, epochs=1, taps=7)
    monkeypatch.setitem(train.DEFAULTS, "mine", small)


def by_hand(net, counts):
    """Spikes of each hidden layer and the membrane of the readout, layer after layer."""
    spikes, hidden = counts, []
    with torch.no_grad():
        for i, norm in enumerate(net.norms):
            current = net.layers[i](spikes)
            spikes = net.neurons(i, norm(current.transpose(1, 2)).transpose(1, 2))
            hidden.append(spikes)
        membrane = torch.zeros(1, net.layers[-1].weight.shape[-2])
        membranes = []
        for current in net.layers[-1](spikes).unbind(1):
            membrane = membrane * (1 - 1 / net.tau) + current
            membranes.append(membrane)
    return hidden, torch.stack(membranes, 1)


# ------------------------------------------------------------------------------------ the numbers


def test_curves_are_those_of_the_log(learned):
    folder, _, _ = learned
    with open(os.path.join(folder, "log.csv")) as file:
        log = list(csv.DictReader(file))
    curves = look.read_run(folder).curves

    factors = {"loss": 1, "train_accuracy": 100, "test_accuracy": 100, "sigma": 10, "moved_ms": 1}
    factors |= {"rate_1": 100, "rate_2": 100}  # 0.1 spikes in a step of 10 ms are 10 Hz
    assert curves.keys() == factors.keys()  # no validation, so no such curve
    for name, factor in factors.items():
        want = [factor * float(row[name]) for row in log]
        assert len(want) == 4
        np.testing.assert_allclose(curves[name], want, rtol=1e-12)


def test_delays_before_and_after_are_those_of_the_network(learned):
    folder, net, options = learned
    run = look.read_run(folder)
    untrained = train.build(options)
    assert [layer.name for layer in run.layers] == ["layers.0", "layers.1", "layers.2"]
    ways = []
    for shown, first, last in zip(run.layers, untrained.layers, net.layers, strict=True):
        before, after = 10 * first.delay.detach(), 10 * last.delay.detach()
        np.testing.assert_array_equal(shown.before, before.flatten())
        np.testing.assert_array_equal(shown.after, after.flatten())
        np.testing.assert_array_equal(shown.moved, (after - before).abs().flatten())
        ways.append(shown.moved)
    assert torch.cat(ways).mean().item() == pytest.approx(run.rows[-1]["moved_ms"], rel=1e-5)
    assert run.rows[-1]["moved_ms"] > 1


def test_delays_of_missing_connections_are_not_shown(tmp_path):
    net, _ = run_toy(tmp_path, "--connections", "3", "--kernel-count", "2", "--epochs", "1")
    run = look.read_run(str(tmp_path))
    for shown, layer in zip(run.layers, net.layers, strict=True):
        there = [layer.delay[count][layer.mask] for count in range(2)]
        np.testing.assert_array_equal(shown.after, 10 * torch.cat(there).detach())
    ways = torch.cat([layer.moved for layer in run.layers])
    assert ways.mean().item() == pytest.approx(run.rows[-1]["moved_ms"], rel=1e-5)


@pytest.mark.parametrize("index", [0, 17])
def test_a_sample_passes_through_the_network(learned, index):
    folder, net, _ = learned
    sample = look.read_run(folder, sample=index).sample
    test = toy_test()
    begin = int(test.steps[:index].sum())
    counts = test.counts[begin : begin + int(test.steps[index])].float()
    end = len(counts) + 3 * 12  # the tails of three layers of 25 taps
    silence = torch.zeros(100, 8)
    hidden, membrane = by_hand(net, torch.cat([counts, silence])[None])

    assert (sample.split, sample.index, sample.label) == ("test", index, int(test.labels[index]))
    given, *spikes = sample.spikes
    np.testing.assert_array_equal(given[: len(counts)], counts)
    assert given[len(counts) :].sum() == 0
    assert len(spikes) == 2
    for shown, want in zip(spikes, hidden, strict=True):
        assert want[0, :end].sum() > 10
        np.testing.assert_array_equal(shown, want[0, :end])
    share = membrane[0, :end].softmax(1)
    np.testing.assert_allclose(sample.share, share, atol=1e-5)


def test_the_shares_sum_up_to_the_scores_of_evaluation(learned):
    folder, net, _ = learned
    test = toy_test()
    with torch.no_grad():
        scores = train.predict(net, test, torch.tensor([5]), int(test.steps[5]))
    shown = look.read_run(folder, sample=5).sample.share.sum(0)
    np.testing.assert_allclose(shown, scores[0], rtol=1e-4)


def test_a_network_that_is_followed_keeps_no_hooks(learned):
    _, net, _ = learned
    look.follow(net, "test", toy_test(), 0)
    assert not any(layer._forward_pre_hooks for layer in net.layers)


def test_a_run_that_still_trains(tmp_path):
    seen = []

    def peep(net, row):
        run = look.read_run(str(tmp_path))
        after = [layer.delay.detach().flatten().clone() for layer in net.layers]
        seen.append((run, after, row))

    run_toy(tmp_path, on_epoch=peep)
    assert [len(run.rows) for run, _, _ in seen] == [1, 2]
    for run, after, row in seen:
        assert run.curves["loss"][-1] == row["loss"]
        for shown, want in zip(run.layers, after, strict=True):
            np.testing.assert_array_equal(shown.after, 10 * want)
        assert run.sample is not None
    assert not seen[0][0].layers[0].after.equal(seen[1][0].layers[0].after)


def test_another_network_shows_all_but_the_sample(fork):
    folder, net, _ = fork
    run = look.read_run(folder)
    assert run.sample is None
    (sentence,) = run.missing
    assert "is of class Sluggish, and not DelaySNN" in sentence
    assert len(run.curves["loss"]) == 2
    np.testing.assert_array_equal(run.layers[1].after, 10 * net.layers[1].delay.detach().flatten())


def test_another_network_that_is_handed_over_shows_its_own_spikes(fork):
    folder, net, options = fork
    sample = look.read_run(folder, net=train.build(options, Sluggish)).sample
    counts = torch.cat([sample.spikes[0], torch.zeros(100, 8)])[None]
    hidden, _ = by_hand(net, counts)
    assert hidden[0].sum() > 0
    np.testing.assert_array_equal(sample.spikes[1], hidden[0][0, : len(sample.share)])


def test_layers_of_any_name_and_shared_delays():
    first = [torch.tensor([[1.0, 2.0]]), torch.zeros(3, 2)]
    state = {"back.delay": torch.tensor([[4.0, 0.0]]), "back.weight": torch.zeros(3, 2)}
    state |= {"ahead.layer.delay": torch.ones(3, 2)}
    saved = {"net": state, "first_delays": first}
    back, ahead = look.read_layers(saved, step_ms=5)
    assert (back.name, back.moved.tolist()) == ("back", [15, 10])
    assert (ahead.name, ahead.after.tolist()) == ("ahead.layer", [5] * 6)
    with pytest.raises(ValueError, match="the network has 2 delays, and 1 first ones"):
        look.read_layers(saved | {"first_delays": first[:1]}, step_ms=5)


def test_a_run_with_validation_in_place_of_tests(speakers, tmp_path):
    held_out = ["--valid-speakers", " b", "--no-test", "--device", "cpu"]
    options = train.parse(["--dataset", "mine", *held_out, "--out", str(tmp_path)])
    train.train(options)
    run = look.read_run(str(tmp_path))
    assert "valid_accuracy" in run.curves and "test_accuracy" not in run.curves
    assert run.curves["sigma"] == [2.5]  # ms: half a step of 5 ms
    assert run.missing == []
    assert (run.sample.split, run.sample.label) == ("valid", 1)
    assert run.sample.spikes[0].nonzero().tolist() == [[1, 1]]  # the first sample of speaker b
    assert look.read_run(str(tmp_path / "best.pt")).rows == run.rows
    only = look.read_run(str(tmp_path), sample=2)
    assert (
        only.sample is None
        and "sample 2 is not in the valid set: expected 0 to 1" in only.missing[0]
    )


def test_a_run_of_a_data_set_that_is_not_known(speakers, tmp_path, monkeypatch):
    train.train(train.parse(["--dataset", "mine", "--device", "cpu", "--out", str(tmp_path)]))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="of the data set mine: use it from the script"):
        look.read_run(str(tmp_path))


def test_published_files_are_not_fetched_for_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "fetch", None)
    options = train.parse(["--dataset", "ssc", "--device", "cpu", "--out", str(tmp_path)])
    rule = "name its folder by --data-dir"
    with pytest.raises(ValueError, match=f"^ssc_test.h5.zip is not in .*: {rule}$"):
        look.read_split(options, str(tmp_path))
    options.no_test = True
    with pytest.raises(ValueError, match="^ssc_valid.h5.zip is not in"):
        look.read_split(options, str(tmp_path))


# ------------------------------------------------------------------------------------ the drawing


@pytest.fixture
def drawn(monkeypatch):
    """A function of draw_run's arguments that returns the axes of the picture and writes none."""
    pytest.importorskip("matplotlib")
    from experiments import figures

    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, folder, name: kept.append(figure))

    def draw(*where, **more):
        figures.draw_run(*where, **more)
        figures.plt.close(kept[-1])
        return kept.pop().axes

    return draw


def test_variants_are_drawn_from_the_folders_that_are_named(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from experiments import figures

    accuracies = {
        "toy-20/learned-dense": [0.9, 0.8],
        "toy-20/none-wide-dense": [0.2],
        "shd-30/learned-dense": [0.7],
        "shd-30/none-dense": [0.75],
        "shd-50/learned-dense": [0.5],  # nothing to compare it with
    }
    for kind, shares in accuracies.items():
        for seed, share in enumerate(shares):
            folder = tmp_path / f"{kind}-{seed}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps({"test_accuracy": share}))
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, out, name: kept.append(figure))

    def shown(wanted):
        figures.variants_figure(str(tmp_path), wanted, "SHD", "")
        panels = {}
        for axis in kept.pop().axes:
            names = [text.get_text() for text in axis.get_yticklabels()]
            dots = [dots.get_offsets()[:, 0].tolist() for dots in axis.collections[::2]]
            panels[title(axis)] = dict(zip(names, dots, strict=True))
        return panels

    toy = {"none-wide-dense (n = 1)": [20], "learned-dense (n = 2)": [90, 80]}
    shd = {"learned-dense (n = 1)": [70], "none-dense (n = 1)": [75]}
    assert shown([]) == {"SHD, 30 epochs": shd, "toy, 20 epochs": toy}
    assert shown(["toy-20"]) == {"toy, 20 epochs": toy}
    with pytest.raises(ValueError, match="shd-50 has no finished runs to compare; first run: "):
        shown(["toy-20", "shd-50"])


def test_the_membrane_in_the_picture_starts_again_at_0_after_a_spike(drawn):
    from experiments import figures

    axis = figures.plt.figure().subplots()
    figures.draw_membrane(axis, torch.tensor([0.6, 0.8, 0.6, 0.2]), tau=2.0)
    assert axis.lines[0].get_ydata().tolist() == pytest.approx([0.6, 1.1, 0.6, 0.5])


def title(axis):
    return axis.get_title(loc="left")


def test_the_picture_shows_these_numbers(learned, drawn):
    folder, _, _ = learned
    run = look.read_run(folder, sample=3)
    every = drawn(folder, sample=3)
    assert len(every) == 4 + 2 * 3 + 3 + 2
    axes = {title(axis): axis for axis in every}

    lines = {line.get_label().split(":")[0]: line for line in axes["accuracy (%)"].lines}
    assert lines.keys() == {"training", "test"}
    np.testing.assert_array_equal(lines["test"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(lines["test"].get_ydata(), run.curves["test_accuracy"])
    for name, line, curve in [
        ("loss", 0, "loss"),
        ("delays (ms)", 0, "sigma"),
        ("delays (ms)", 1, "moved_ms"),
        ("firing rate (Hz)", 1, "rate_2"),
    ]:
        assert list(axes[name].lines[line].get_ydata()) == run.curves[curve]

    layer = run.layers[0]
    before = [bar.get_height() for bar in axes["hidden layer 1: 48 delays"].patches[:25]]
    whole = (layer.before / 10).round().int()
    np.testing.assert_allclose(before, 100 * whole.bincount(minlength=25) / 48, atol=1e-4)
    mean = float(layer.moved.mean())
    moved = axes[f"moved by {mean:.1f} ms (mean)"]
    assert sum(bar.get_height() for bar in moved.patches) == pytest.approx(100)
    assert list(moved.lines[0].get_xdata()) == [mean, mean]

    spikes = run.sample.spikes[2]
    raster = axes[f"hidden layer 2: {int(spikes.sum())} spikes"].collections[0].get_offsets()
    np.testing.assert_array_equal(raster, spikes.nonzero() * torch.tensor([10, 1]))
    score = axes[f"score, the sum so far: class {int(run.sample.share.sum(0).argmax())} wins"]
    np.testing.assert_allclose(score.lines[7].get_ydata(), run.sample.share.cumsum(0)[:, 7])


@pytest.mark.parametrize("delays", ["none", "fixed"])
def test_runs_without_learned_delays_are_drawn(delays, drawn, tmp_path):
    run_toy(tmp_path / "run", "--delays", delays, "--epochs", "1")
    every = drawn(str(tmp_path / "run"))
    rows = {"none": 0, "fixed": 2}  # there are no delays; or there are, and they do not move
    assert len(every) == 4 + 2 * rows[delays] + 2 + 2
    axes = {title(axis): axis for axis in every}
    assert list(axes["delays (ms)"].lines[0].get_ydata()) == [0]
    assert axes["accuracy (%)"].lines[0].get_marker() == "."  # one epoch is no line


def test_another_network_is_drawn(fork, drawn, capsys):
    folder, _, options = fork
    assert len(drawn(folder)) == 4 + 2 * 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(drawn(folder, net=train.build(options, Sluggish))) == 4 + 2 * 2 + 2 + 2
    assert capsys.readouterr().err == ""


def test_the_command_line_writes_a_picture(learned, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    from experiments import figures

    folder, _, _ = learned
    monkeypatch.setattr(sys, "argv", ["figures.py", "--run", folder, "--sample", "7"])
    figures.main()
    path = os.path.join(folder, "run.png")
    assert capsys.readouterr().out == path + "\n"
    with open(path, "rb") as file:
        head = file.read(24)  # of a PNG: its width stands in bytes 16 to 19
    assert head.startswith(b"\x89PNG") and 1000 < int.from_bytes(head[16:20], "big") < 1300


def test_where_the_picture_goes(learned, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from experiments import figures

    def keep(figure, folder, name):
        figures.plt.close(figure)
        written.append(os.path.join(folder, name))

    folder, _, _ = learned
    written = []
    monkeypatch.setattr(figures, "save", keep)
    figures.draw_run(os.path.join(folder, "last.pt"))
    figures.draw_run(folder, out=str(tmp_path / "new"))
    figures.draw_run(folder, out=str(tmp_path / "a.png"))
    new = tmp_path / "new" / "run.png"
    assert written == [os.path.join(folder, "run.png"), str(new), str(tmp_path / "a.png")]


def test_bad_input_gets_one_sentence(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, os.path.join(HERE, "figures.py"), "--run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert "last.pt' is not there" in sentence
    done = subprocess.run([*command, "--record"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "--record: not allowed with argument --run" in done.stderr


def test_other_runs_than_the_recorded_one_are_refused(learned, tmp_path):
    pytest.importorskip("matplotlib")
    from experiments import figures

    run_toy(tmp_path / "twice", "--kernel-count", "2")
    for draw in (figures.kernel_figure, figures.why_figure):
        with pytest.raises(ValueError, match="twice holds another run than that of figures.py"):
            draw(str(tmp_path / "twice"), str(tmp_path))
    folder, net, _ = learned
    history = os.path.join(folder, "history.pt")
    with pytest.raises(ValueError, match="history.pt is not there; first run: .* --record"):
        figures.kernel_figure(folder, str(tmp_path))
    for content in (b"broken", None):
        if content is None:
            torch.save(net.layers[0].delay.detach()[None], history)  # of one epoch, not of all
        else:
            Path(history).write_bytes(content)
        with pytest.raises(ValueError, match="history.pt was not written by --record"):
            figures.kernel_figure(folder, str(tmp_path))
    os.remove(history)
    with pytest.raises(ValueError, match="last.pt is a run on toy, and speech.png shows one on"):
        figures.speech_figure(os.path.join(folder, "last.pt"), "data", str(tmp_path))


# ------------------------------------------------------------------------------ the README's tour


def block(words):
    """The Python block of the README that has these words."""
    with open(os.path.join(os.path.dirname(HERE), "README.md")) as file:
        blocks = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
    (found,) = (code for code in blocks if words in code)
    return found


def test_the_tour_finds_the_delays_that_line_up_its_patterns(capsys):
    names = {}
    exec(block("patterns = "), names)
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[0].removeprefix("loss ")) < 0.1

    def agree(delays):
        """How many spikes arrive in the step in which most of their pattern do."""
        arrivals = (names["times"] + delays.detach().round()).long()
        return sum(int(row.bincount().max()) for row in arrivals)

    torch.manual_seed(9)
    torch.randint(15, (4, 6))  # as the block begins
    assert agree(DelayedLinear(6, 4, taps=15).delay) < 12
    assert agree(names["hidden"].delay) >= 20  # of 24


def test_the_scores_of_a_run_as_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, _ = run_toy("runs/toy-learned-0", "--batch-size", "30", "--epochs", "4")
    capsys.readouterr()
    exec(block("scores.npz"), {})
    printed = float(capsys.readouterr().out)
    saved = np.load("scores.npz")

    test = toy_test()
    np.testing.assert_array_equal(saved["labels"], test.labels)
    np.testing.assert_array_equal(saved["guess"], saved["scores"].argmax(1))
    for i in (0, 1, 50, 99):
        with torch.no_grad():
            want = train.predict(net, test, torch.tensor([i]), int(test.steps[i]))[0]
        np.testing.assert_allclose(saved["scores"][i], want, rtol=1e-4)
    last = train.read_checkpoint("runs/toy-learned-0/last.pt")["rows"][-1]
    assert printed == pytest.approx(last["test_accuracy"])
