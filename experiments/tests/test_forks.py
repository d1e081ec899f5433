"""The forks to copy, each against a slow loop, and the programs of FORKING.md."""

import re
from pathlib import Path

import pytest
import torch

import data
import test_delays as oracle
import train
from delays import DelaySNN
from experiments.forks import ideas

PAGE = Path(ideas.__file__).with_name("FORKING.md").read_text()
FAST = ["--dataset=little", "--device=cpu", "--epochs=10", "--out=run"]
little = oracle.little  # a fixture


@pytest.fixture(autouse=True)
def as_before(monkeypatch, tmp_path, little):
    """Undo what forks set in train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "OPTIONS", dict(train.OPTIONS))
    for name in ("RUNS", "evaluate"):
        monkeypatch.setattr(train, name, getattr(train, name))


@pytest.mark.parametrize("idea", ideas.IDEAS)
def test_a_run_of_an_idea_has_its_name_and_can_be_evaluated(idea, capsys):
    ideas.main([idea, *FAST[:2], "--epochs=1"])
    *_, last = capsys.readouterr().out.splitlines()
    ideas.main([idea, "--eval", f"runs/little-{idea}-learned-0"])
    assert capsys.readouterr().out.split()[:3] == last.split()[:3]
    assert list(ideas.IDEAS.values()).count(ideas.IDEAS[idea]) == 1
    with pytest.raises(SystemExit, match="has to be one of axonal, den"):
        ideas.main([f"{idea}s"])


def layer_of(net_class, inputs=6):
    torch.manual_seed(0)
    layer = net_class.layer_class(inputs, 30, taps=5).double()
    layer.sigma = 0.8
    return layer


@pytest.mark.parametrize("inputs, fan_in", [(40, 10), (8, 8)])
def test_a_sparse_layer_has_ten_inputs_per_neuron(inputs, fan_in):
    layer = layer_of(ideas.Sparse, inputs)
    assert (layer.mask.sum(1) == fan_in).all()
    assert fan_in == inputs or len(layer.mask.unique(dim=0)) == 30
    assert 0.95 < layer.weight.abs().max() / (6 / fan_in) ** 0.5 < 1
    weight = layer.weight * layer.mask
    want = oracle.plain_kernel(weight, layer.delay, 5, 0.8)
    oracle.assert_same(layer.kernel(), want, [layer.weight, layer.delay])
    oracle.close(layer.eval().kernel(), oracle.plain_kernel(weight, layer.delay, 5), rtol=0, atol=0)


def test_delays_are_shared_or_two_for_each_pair_of_neurons():
    assert layer_of(ideas.Axonal).delay.shape == (1, 6)
    assert layer_of(ideas.Dendritic).delay.shape == (30, 1)
    layer, x = layer_of(ideas.TwoDelays), oracle.random(2, 12, 6).requires_grad_()
    kernel = oracle.plain_kernel(layer.weight, layer.delay, 5, 0.8)
    first, second = (oracle.plain_delayed_sum(oracle.turned(x), k, 2) for k in kernel.split(6, 1))
    oracle.assert_same(layer(x), oracle.turned(first + second), [x, layer.weight, layer.delay])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("taps", [3, 1])
def test_recurrent_neurons_are_the_loop_and_so_are_their_gradients(taps, training):
    torch.manual_seed(0)
    net = ideas.Recurrent(3, [4], 2, tau=2.0, taps=taps).double()
    echo = net.train(training).echoes[0]
    echo.sigma = 0.8
    current = (oracle.random(2, 11, 4) + 0.2).requires_grad_()
    kernel = oracle.plain_kernel(echo.weight, echo.delay, taps, 0.8 if training else None)
    v = torch.zeros(2, 4).double()
    spikes = [v]  # each comes back a step after its delay
    for t in range(11):
        late = oracle.plain_delayed_sum(torch.stack(spikes), kernel, 0)[t]
        h = v / 2 + current[:, t] + late
        spikes.append(oracle.plain_spike(h - 1))
        v = h * (1 - spikes[-1].detach())
    net.training = not training  # as in predict, the layer's mode decides which kernel it uses
    inputs = [current, echo.weight, *([echo.delay] if training and taps > 1 else [])]
    oracle.assert_same(net.neurons(0, current), torch.stack(spikes[1:], 1), inputs)
    assert not ideas.Recurrent(3, [4], 2, learn_delays=False).echoes[0].delay.requires_grad


def test_adaptive_neurons_are_the_loop_and_so_are_their_gradients():
    torch.manual_seed(0)
    net = ideas.Adaptive(3, [5], 2).double()
    current = (oracle.random(3, 20, 5) + 0.5).requires_grad_()
    m, k, a, b = (1 / (1 + torch.exp(-net.constants[0][name])) for name in "mkab")
    assert m.max() < 0.5  # a fast decay at first
    v, w, spikes = 0.0, 0.0, []
    for t in range(20):
        h = m * v + current[:, t] - w
        spikes.append(oracle.plain_spike(h - 1))
        v = h * (1 - spikes[-1].detach())
        w = k * w + a * v + b * spikes[-1]
    inputs = [current, *net.constants[0].values()]
    oracle.assert_same(net.neurons(0, current), torch.stack(spikes, 1), inputs)


def test_each_sample_is_shifted_by_a_number_of_its_own():
    counts = torch.arange(1, 141).repeat(300, 5, 1)
    torch.manual_seed(0)
    got = ideas.IDEAS["shift"]["augment"](counts, None)
    torch.manual_seed(0)
    for shifted, move in zip(got, torch.randint(-8, 9, (300,)).tolist(), strict=True):
        places = [i - move + 1 for i in range(140)]  # numbered from 1
        want = [place if 1 <= place <= 140 else 0 for place in places]
        assert shifted.tolist() == [want] * 5


def test_whole_steps_round_delays_in_the_last_fifth_also_of_a_resumed_run():
    def kill(net, row):
        if row["epoch"] == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.main(FAST, before_epoch=ideas.whole_steps, after_epoch=kill)
    ideas.main(["whole-steps", "--resume", "run"])
    rows, result = oracle.log_of(Path("run")), oracle.result_of(Path("run"))
    assert [row["sigma"] == "" for row in rows] == [False] * 8 + [True] * 2
    moved = [row["moved_ms"] for row in rows]
    assert moved[6] != moved[7] == moved[8] == moved[9]
    assert result["unrounded_accuracy"] == result["test_accuracy"]


def block(word, **names):
    """Run the program of FORKING that contains a word, and return its names."""
    (text,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S) if word in text]
    exec(text, names)
    return names


def test_a_fork_with_an_option_and_layers_of_its_own_is_loaded():
    fork = block("OPTIONS", __name__="fork") | block("AxonAndResidual")
    mine = type("Mine", (DelaySNN,), {"layer_class": fork["AxonAndResidual"]})
    options = oracle.parsed(*FAST[:2], "--epochs=2", "--strength=0.5", "--delay-lr=5")
    net = train.build(options, mine)
    train.train(options, net, loss=fork["penalty"], before_epoch=fork["set_strength"])
    assert net.strength == 0.5
    assert len([*net.layers.parameters()]) == 3 * 3  # weights, delays of axons, residuals
    assert max(layer.residual_delay.abs().max() for layer in net.layers) == 2
    pytest.importorskip("matplotlib")
    from experiments.tools import look

    run = "runs/little-2-spikes0.5-learned-0"
    loaded = block("load_run", train=train, run=run, Mine=mine, look=look)["net"]
    assert oracle.same_bits(loaded.state_dict(), net.state_dict())


def test_pruned_synapses_stay_away_from_a_resumed_run():
    fork = block("def prune")
    mine = type("Mine", (DelaySNN,), {"layer_class": fork["Masked"]})
    train.main(FAST, net_class=mine, before_epoch=fork["prune"])
    Path("run/result.json").unlink()
    train.main(["--resume", "run"], net_class=mine, before_epoch=fork["prune"])
    net, _ = train.load_run("run", train.build(oracle.parsed("--eval", "run"), mine))
    for layer in net.layers:
        assert layer.mask.double().mean().item() == pytest.approx(0.2, rel=0, abs=0.05)
        assert torch.equal(layer.kernel().abs().sum(2) > 0, layer.mask)


def test_values_are_learned_and_scores_do_not_depend_on_the_batch(monkeypatch):
    known = oracle.read_little("train", "")
    spikes = data.Spikes(known.counts, known.labels.float())
    row = data.DATASETS["little"]._replace(read=lambda *_: spikes, classes=1)
    monkeypatch.setitem(data.DATASETS, "little", row)
    fork = block("class Values", __name__="fork")
    options = oracle.parsed(*FAST, "--epochs=30", "--lr=0.03", "--dropout=0")
    net = train.build(options, fork["Values"])
    result = train.train(options, net, fork["squared_error"])
    assert -0.5 < result["test_accuracy"] < 0  # 1 for all would have an error of 2 / 3
    one, many = (train.predict(net, spikes, size) for size in (1, 44))
    oracle.close(one, many, rtol=0, atol=1e-5)
