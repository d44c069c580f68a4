from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from labelcurve.bundle.errors import DivergedError, LabelcurveError
from labelcurve.training.data.dataset import Data
from labelcurve.training.learning.augment import Views
from labelcurve.training.learning.loop import Control
from labelcurve.training.learning.objectives import Contrastive, Objective
from labelcurve.training.learning.pretrain import HEADER, pretrain
from labelcurve.training.learning.probe import Probe
from labelcurve.training.models.backbones import ConvNet, Network
from labelcurve.training.recipes import Pretraining
from labelcurve.training.runtime.checkpoint import Checkpoint
from labelcurve.training.runtime.device import FP32_CPU, choose
from tests.training.pretrained import (
    PLAN,
    POSITIONS,
    Counting,
    Fragile,
    Stopped,
    at_every_step,
    images,
    interrupted,
    judge,
    parts,
    pixels,
    resumed,
    run,
    same_weights,
)


@pytest.mark.parametrize("recipe", [PLAN, POSITIONS], ids=lambda r: r.objective)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    digits: Data, recipe: Pretraining
) -> None:
    first, result, _ = run(digits, recipe)
    second, again, _ = run(digits, recipe)
    assert same_weights(first, second)
    assert (result.loss, result.epochs) == (again.loss, again.epochs)
    assert not same_weights(first, run(digits, recipe, seed=1)[0])


def test_evaluation_does_not_change_what_is_learned(digits: Data) -> None:
    assert same_weights(run(digits)[0], run(digits, probe=judge(digits))[0])


def test_random_numbers_drawn_before_do_not_matter(digits: Data) -> None:
    nets = []
    for seed in (1, 2):
        net, objective = parts(POSITIONS)
        torch.manual_seed(seed)
        pretrain(net, objective, images(digits), POSITIONS, FP32_CPU, 0)
        nets.append(net)
    assert same_weights(*nets)


def test_the_loss_falls(digits: Data) -> None:
    _, result, said = run(digits, replace(PLAN, epochs=10))
    losses = [float(line[11:18]) for line in said[1:]]
    assert losses[-1] < losses[0] - 0.3
    assert result.loss == pytest.approx(losses[-1], abs=1e-3)


def test_the_backbone_learns_and_the_classifier_stays_as_it_is(digits: Data) -> None:
    net, _, _ = run(digits)
    before, _ = parts()
    own = before.state_dict()
    same = {name for name, value in net.state_dict().items() if torch.equal(value, own[name])}
    scales = {f"backbone.groups.{i}.norm{j}.weight" for i in range(3) for j in (1, 2)}
    assert same == {
        *("mean", "std", "classifier.weight", "classifier.bias", "backbone.whiten.weight"),
        *scales,
    }
    assert not net.training


def test_the_images_are_left_alone(digits: Data) -> None:
    own = np.array(images(digits))
    before = own.copy()
    net, objective = parts()
    pretrain(net, objective, own, PLAN, FP32_CPU, 0)
    assert np.array_equal(own, before)


@pytest.mark.parametrize(
    ("n", "epochs", "batches", "batch"),
    [(340, 2, 10, 64), (64, 3, 3, 64), (40, 2, 2, 40), (340, 0.5, 2, 64), (340, 0.01, 1, 64)],
)
def test_an_epoch_is_every_image_once_and_an_incomplete_batch_is_left_out(
    digits: Data, n: int, epochs: float, batches: int, batch: int
) -> None:
    net, objective = parts()
    counting = Counting(objective)
    plan = replace(PLAN, epochs=epochs)
    result = pretrain(net, counting, images(digits, n), plan, FP32_CPU, 0)
    assert [len(images) for images in counting.batches] == [batch] * batches
    assert result.views_seen == 2 * batch * batches
    assert result.epochs == pytest.approx(batches / (n // batch))
    first = torch.cat(counting.batches[: n // batch])
    rows = {image.numpy().tobytes() for image in first}
    known = [image.numpy().tobytes() for image in pixels(digits, n)]
    assert rows <= set(known)
    assert len(rows) >= len(first) - (len(known) - len(set(known)))


def test_the_order_differs_between_epochs(digits: Data) -> None:
    net, objective = parts()
    counting = Counting(objective)
    pretrain(net, counting, images(digits, 64), PLAN, FP32_CPU, 0)
    assert len({images.numpy().tobytes() for images in counting.batches}) == 4


def test_ten_rows_of_one_width_with_an_estimate(digits: Data) -> None:
    _, _, said = run(digits, probe=judge(digits))
    assert said[0] == HEADER
    rows = said[1:]
    assert len(rows) == 10
    assert {len(row) for row in rows} == {len(rows[0])}
    assert [row[:8].strip() for row in rows] == [f"{0.4 * (i + 1):.1f}/4" for i in range(10)]
    assert [int(row[36:48].replace(",", "")) for row in rows] == [128 * (i + 1) for i in range(10)]
    assert rows[-1].endswith(" 0 s"), "nothing is left at the end"
    for row in rows:
        accuracy = re.search(r" (0\.\d{4}|1\.0000) ", row[18:])
        assert accuracy is not None
        assert float(accuracy[1]) > 0.15, "far above chance"


def test_the_last_figure_of_the_neighbours_is_that_of_the_network(digits: Data) -> None:
    probe = judge(digits)
    net, _, said = run(digits, probe=probe)
    assert f"{probe.knn(net):.4f}" in said[-1]


def test_without_labels_no_accuracy_is_shown(digits: Data) -> None:
    _, _, said = run(digits)
    assert len(said) == 11
    assert all(re.search(r"\d +- +\d", row) for row in said[1:])


RESUMED = pytest.mark.parametrize(
    ("recipe", "after"),
    [(PLAN, 1), (PLAN, 7), (PLAN, 10), (PLAN, 19), (POSITIONS, 7)],
    ids=lambda value: value.objective if isinstance(value, Pretraining) else str(value),
)


@RESUMED
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(
    digits: Data, tmp_path: Path, recipe: Pretraining, after: int
) -> None:
    undisturbed, whole, _ = run(digits, recipe)
    checkpoint = tmp_path / "folder" / ".checkpoint"
    interrupted(digits, recipe, after, checkpoint)
    net, result, said = resumed(digits, recipe, checkpoint)
    assert said[0] == f"resuming at epoch {after / 5:.1f} from {checkpoint}"
    assert same_weights(net, undisturbed)
    assert (result.epochs, result.views_seen) == (whole.epochs, whole.views_seen)


@RESUMED
def test_an_interrupted_run_shows_the_rows_of_an_undisturbed_one(
    digits: Data, tmp_path: Path, recipe: Pretraining, after: int
) -> None:
    _, whole, rows = run(digits, recipe)
    interrupted(digits, recipe, after, tmp_path / "checkpoint")
    _, result, said = resumed(digits, recipe, tmp_path / "checkpoint")
    # Epoch, loss, accuracy, learning rate and images; the rest is time.
    assert [row[:48] for row in said[2:]] == [row[:48] for row in rows[1 + (after - 1) // 2 :]]
    assert result.loss == pytest.approx(whole.loss)


def test_a_run_can_be_interrupted_twice(digits: Data, tmp_path: Path) -> None:
    undisturbed, _, _ = run(digits)
    for after in (4, 5):
        interrupted(digits, PLAN, after, tmp_path / "checkpoint")
    net, _, said = resumed(digits, PLAN, tmp_path / "checkpoint")
    assert said[0].startswith("resuming at epoch 1.8 ")
    assert same_weights(net, undisturbed)


def test_a_run_that_was_interrupted_after_its_last_step_only_ends(
    digits: Data, tmp_path: Path
) -> None:
    undisturbed, whole, _ = run(digits)
    first, objective = parts()
    pretrain(
        first,
        Counting(objective),
        images(digits),
        PLAN,
        FP32_CPU,
        0,
        control=Control(checkpoint=at_every_step(tmp_path / "checkpoint")),
    )
    net, result, said = resumed(digits, PLAN, tmp_path / "checkpoint")
    assert same_weights(net, undisturbed)
    assert result.epochs == whole.epochs
    assert said[-1].endswith(" 0 s")
    assert said[-1].split()[-4] == "-"  # no step since, so no speed


def test_the_seconds_are_those_of_all_parts(digits: Data, tmp_path: Path) -> None:
    interrupted(digits, PLAN, 10, tmp_path / "checkpoint")
    state = torch.load(tmp_path / "checkpoint", weights_only=True)
    assert state["state"]["seconds"] > 0
    state["state"]["seconds"] = 1_000.0
    torch.save(state, tmp_path / "checkpoint")
    _, result, said = resumed(digits, PLAN, tmp_path / "checkpoint")
    assert 1_000 < result.seconds < 1_100
    assert re.search(r" 10\d\d +0 s$", said[-1])


def test_without_a_checkpoint_to_write_no_file_appears(digits: Data, tmp_path: Path) -> None:
    run(digits, checkpoint=Checkpoint(tmp_path / "checkpoint", {}))
    assert list(tmp_path.iterdir()) == [], "a run of less than a minute needs none"


def test_the_checkpoint_of_another_run_is_refused_with_what_to_do(
    digits: Data, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    interrupted(digits, PLAN, 3, checkpoint, key="of these")
    content = checkpoint.read_bytes()
    with pytest.raises(LabelcurveError, match=r"images of these.*of others.*--fresh") as error:
        resumed(digits, PLAN, checkpoint, key="of others")
    assert str(error.value).startswith(f"{checkpoint} ")
    assert checkpoint.read_bytes() == content, "and it stays for who goes on with those"


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "other"])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(
    digits: Data, tmp_path: Path, kind: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    interrupted(digits, PLAN, 3, checkpoint)
    if kind == "other":
        torch.save([torch.ones(3)], checkpoint)
    else:
        whole = checkpoint.read_bytes()
        checkpoint.write_bytes({"empty": b"", "truncated": whole[:-99], "text": b"x" * 99}[kind])
    with pytest.raises(LabelcurveError, match="--fresh") as error:
        resumed(digits, PLAN, checkpoint)
    assert str(checkpoint) in str(error.value)


def test_a_checkpoint_that_is_interrupted_while_it_is_written_stays_the_old_one(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint"
    interrupted(digits, PLAN, 3, checkpoint)

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        resumed(digits, PLAN, checkpoint)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert same_weights(resumed(digits, PLAN, checkpoint)[0], run(digits)[0])


@pytest.mark.parametrize("lr", [1e30, math.inf, math.nan])
def test_a_loss_that_is_no_number_ends_the_run(digits: Data, lr: float) -> None:
    with pytest.raises(LabelcurveError) as error:
        run(digits, replace(PLAN, lr=lr))
    message = r"the pretraining loss is (nan|inf) at epoch \d\.\d: nothing was written\. Another"
    assert re.match(message, str(error.value))


def test_such_a_loss_is_noticed_before_the_next_row(digits: Data, tmp_path: Path) -> None:
    steps: list[float] = []
    with pytest.raises(DivergedError):
        pretrain(
            *parts(),
            images(digits),
            replace(PLAN, lr=math.inf, epochs=20),
            FP32_CPU,
            0,
            control=Control(
                checkpoint=Checkpoint(tmp_path / "a", {}, seconds=0),
                on_step=lambda done, _: steps.append(done),
            ),
        )
    assert max(steps) < 0.1


class Clock:
    """Time that only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5_000.0
        monkeypatch.setattr("labelcurve.training.learning.loop.time.monotonic", lambda: self.now)


class Slow(Counting):
    """An objective each step of which takes a second."""

    def __init__(self, objective: Objective, clock: Clock) -> None:
        super().__init__(objective)
        self.clock = clock

    def forward(
        self, network: Network, images: Tensor, generator: torch.Generator, whole: int | None = None
    ) -> Tensor:
        """The loss, a second later."""
        self.clock.now += 1
        return super().forward(network, images, generator, whole)


def test_the_seconds_end_the_run_and_the_learning_rate_has_come_down(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    net, objective = parts()
    slow = Slow(objective, clock)
    said: list[str] = []
    result = pretrain(
        net,
        slow,
        images(digits),
        replace(PLAN, epochs=10_000),
        FP32_CPU,
        0,
        control=Control(seconds=30.0, say=said.append),
    )
    assert len(slow.batches) == 29, "a step is not begun that might end too late"
    assert result.seconds == 29
    assert result.epochs == 5.8
    assert len(said) == 11
    assert said[-1].endswith(" 0 s")
    rows = [re.split(" +", row.strip()) for row in said[1:]]
    rates = [float(row[3]) for row in rows]
    assert {row[5] for row in rows} == {"128"}, "two views of 64 images in a second"
    # A tenth of the time a row, and as much less is left; at the end none.
    assert [row[6] for row in rows] == ["3", "6", "9", "12", "15", "18", "21", "24", "27", "29"]
    assert [row[7] for row in rows[::3]] == ["26", "17", "8", "0"]
    assert max(rates) > PLAN.lr / 2
    assert rates[-1] < PLAN.lr / 10


def test_a_limit_that_is_not_reached_changes_nothing(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    assert same_weights(run(digits, seconds=1e9)[0], run(digits)[0])


def test_the_seconds_end_the_run_also_where_judging_takes_long(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    class SlowProbe(Probe):
        def knn(self, network: Network) -> float:
            clock.now += 3
            return super().knn(network)

    probe = SlowProbe(**vars(judge(digits)))
    net, objective = parts()
    said: list[str] = []
    result = pretrain(
        net,
        Slow(objective, clock),
        images(digits),
        replace(PLAN, epochs=10_000),
        FP32_CPU,
        0,
        probe=probe,
        control=Control(seconds=100.0, say=said.append),
    )
    assert clock.now - 5_000 <= 100 + 1 + 3, "a step and the last judging may come after the end"
    judged = [row.split()[2] for row in said[1:]]
    # At most a tenth of the time so far on the way, and always at the end.
    assert judged.count("-") == 10 - 4
    assert judged[-1] == f"{result.knn:.4f}"


def test_a_resumed_run_has_the_remaining_seconds(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    endless = replace(PLAN, epochs=10_000)
    net, objective = parts()
    counts = []
    for after in (12, 1_000):
        fragile = Fragile(Slow(objective, clock), after)
        try:
            pretrain(
                net,
                fragile,
                images(digits),
                endless,
                FP32_CPU,
                0,
                control=Control(checkpoint=at_every_step(tmp_path / "checkpoint"), seconds=30.0),
            )
        except Stopped:
            clock.now += 10_000
        counts.append(len(fragile.batches))
    assert counts == [12, 17]


def test_the_device_of_this_machine_learns_too(digits: Data) -> None:
    device = choose()
    torch.manual_seed(0)
    convnet = ConvNet((16, 32, 64))
    net = Network(convnet, convnet.dim, 10, torch.zeros(3), torch.ones(3)).to(device.device)
    before = copy.deepcopy(net.state_dict())
    objective = Contrastive(net.dim, Views(8), 3, 0.2, device)
    result = pretrain(net, objective, images(digits), replace(PLAN, n_views=3), device, 0)
    assert math.isfinite(result.loss)
    assert result.views_seen == 4 * 5 * 64 * 3
    conv = "backbone.groups.0.conv1.weight"
    assert not torch.equal(net.state_dict()[conv], before[conv])
    assert net.state_dict()[conv].dtype == torch.float32
