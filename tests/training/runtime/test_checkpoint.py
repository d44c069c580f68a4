"""The checkpoint itself, and fine-tuning that resumes from one."""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from labelcurve.bundle import store
from labelcurve.bundle.errors import DeviceError, DivergedError, LabelcurveError
from labelcurve.training.data.dataset import Data
from labelcurve.training.learning import finetune
from labelcurve.training.learning.finetune import Examples, Result
from labelcurve.training.learning.loop import Control
from labelcurve.training.models.backbones import Network
from labelcurve.training.recipes import Recipe
from labelcurve.training.runtime import interruption
from labelcurve.training.runtime.checkpoint import (
    Checkpoint,
    Finished,
    check_room,
    differences,
    mix,
)
from labelcurve.training.runtime.device import FP32_CPU
from tests.training.learning.test_finetune import PLATEAU, RECIPE, labelled, network, same_weights

DROPOUT = replace(PLATEAU, epochs=4, plateau_patience=1, lr=5e-3)


def state(value: float = 1.0) -> dict[str, Any]:
    return {"weights": torch.full((3,), value), "step": 3, "history": [{"epoch": 1}]}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a" / "b", {"--seed": 0}, about=lambda: {"started": "now"})
    assert checkpoint.read() is None
    assert checkpoint.about() is None
    checkpoint.write(state(2.0))
    again = Checkpoint(tmp_path / "a" / "b", {"--seed": 0})
    found = again.read()
    assert found is not None
    assert torch.equal(found.pop("weights"), torch.full((3,), 2.0))
    assert found == {"step": 3, "history": [{"epoch": 1}]}
    assert again.about() == {"started": "now"}
    again.remove()
    assert list((tmp_path / "a").iterdir()) == []


def test_other_arguments_are_refused_by_name_with_both_values(tmp_path: Path) -> None:
    before = {"--seed": 0, "--epochs": 5, "--preset": "default", "hash": "ab" * 32}
    Checkpoint(tmp_path / "a", before).write(state())
    now = before | {"--epochs": 7, "hash": "cd" * 32, "--preset": None}
    with pytest.raises(LabelcurveError) as error:
        Checkpoint(tmp_path / "a", now).read()
    message = str(error.value)
    assert "--epochs 5 there, 7 here; --preset default there, none here" in message
    assert "hash abababababab there, cdcdcdcdcdcd here" in message
    assert "--fresh" in message
    assert "--seed" not in message


def test_a_difference_is_also_what_only_one_side_has() -> None:
    assert differences({"--a": 1}, {}) == ["--a 1 there, none here"]
    assert differences({"--a": 1}, {"--a": 1}) == []


def test_it_is_written_when_it_is_time_and_never_with_nan(tmp_path: Path) -> None:
    def diverged() -> None:
        raise DivergedError("nan")

    often = Checkpoint(tmp_path / "often", {}, seconds=0)
    with pytest.raises(DivergedError):
        often.save(state, check=diverged)
    assert not often.path.exists()
    often.save(state, check=lambda: None)
    assert often.path.exists()
    seldom = Checkpoint(tmp_path / "seldom", {}, seconds=3600)
    seldom.save(state, check=diverged)
    assert not seldom.path.exists()


def test_a_loss_that_is_no_number_is_noticed_within_the_epoch(digits: Data, tmp_path: Path) -> None:
    train, val = labelled(digits, 0.3)
    steps: list[float] = []
    with pytest.raises(DivergedError, match=r"the training loss is (nan|inf) in epoch 1 "):
        finetune.finetune(
            network(),
            Examples(train, val),
            replace(RECIPE, lr=math.inf, ema=0.0),
            FP32_CPU,
            0,
            control=Control(
                checkpoint=Checkpoint(tmp_path / "a", {}, seconds=0),
                on_step=lambda done, _: steps.append(done),
            ),
        )
    assert len(steps) < len(train.labels) // RECIPE.batch_size


def test_a_signal_that_waits_is_answered_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path / "a", {}, seconds=3600)
    monkeypatch.setattr(interruption, "_came", signal.SIGTERM)
    with pytest.raises(interruption.Stopped) as stopped:
        checkpoint.save(state, check=lambda: None)
    assert stopped.value.code == 143
    assert checkpoint.read() is not None


def test_one_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(LabelcurveError, match=r"/a cannot be read: Is a directory\. Make it read"):
        Checkpoint(tmp_path / "a", {}).read()


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {})
    checkpoint.write(state())
    (tmp_path / ".checkpoint.pt-abc.part").write_bytes(b"half")
    assert checkpoint.read() is not None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_is_said_once_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path / "a", {}, say=said.append)
    checkpoint.write(state(1.0))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(3):
            checkpoint.write(state(2.0))
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    found = checkpoint.read()
    assert found is not None
    assert torch.equal(found["weights"], torch.ones(3))
    checkpoint.write(state(3.0))
    assert said[1:] == [f"the checkpoint {tmp_path / 'a'} is written again"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        checkpoint.write(state(4.0))
    assert len(said) == 3, "and a second failure is said, too"


def test_the_time_to_the_next_one_counts_from_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr("labelcurve.training.runtime.checkpoint.time.monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "a", {}, seconds=45)
    written: list[float] = []

    def made() -> dict[str, Any]:
        written.append(now[0] - 1_000)
        return state()

    for second in (0, 44, 45, 46, 89, 90, 91, 300, 344, 345):
        now[0] = 1_000.0 + second
        checkpoint.save(made, check=lambda: None)
    assert written == [45, 90, 300, 345]
    monkeypatch.setattr(os, "fsync", full)
    for second in (400, 401, 444, 445):
        now[0] = 1_000.0 + second
        checkpoint.save(made, check=lambda: None)
    assert written[4:] == [400, 445], "and from one that failed, too"


def test_a_mixed_seed_differs_by_each_number() -> None:
    found = {mix(seed, kind, step) for seed in range(3) for kind in (1, 2) for step in range(9)}
    assert len(found) == 54
    assert all(0 <= value < 2**63 for value in found)


def test_room_is_needed_for_the_weights_eleven_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = torch.nn.Linear(9, 10, bias=True)  # 100 weights of 4 bytes
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=4_400))
    check_room(tmp_path, module)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=4_399))
    with pytest.raises(LabelcurveError, match=r"0 MB free, .* up to 0 MB: make room"):
        check_room(tmp_path, module)


def test_a_bundle_is_finished_for_its_own_key_and_version(
    tmp_path: Path, digits_models: Path
) -> None:
    version = store.read(digits_models, "digits-10").version
    entry = {"name": "digits-10", "version": version}
    key = {"--seed": 0, "--max-minutes": None}
    Finished(tmp_path, key).write(entry)
    assert Finished(tmp_path, key).read(digits_models) == entry
    assert Finished(tmp_path, {**key, "--seed": 1}).read(digits_models) is None
    assert Finished(tmp_path, key).read(tmp_path) is None, "the bundle is not there"
    Finished(tmp_path, key).write({**entry, "version": "0" * 12})
    assert Finished(tmp_path, key).read(digits_models) is None
    Finished(tmp_path).remove()
    Finished(tmp_path).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_continues_elsewhere_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path / "a", {"lr": math.nan}, say=said.append)
    checkpoint.where = "one"
    checkpoint.write(state())
    checkpoint.read()
    assert said == []
    checkpoint.where = "two"
    checkpoint.read()
    assert said == [
        f"{tmp_path / 'a'} was written on one, and the run continues on two: its weights will be "
        "bitwise those of neither"
    ]


class Interrupted(Exception):
    """The point at which the test interrupts the run."""


class Fragile(Checkpoint):
    """Writes after every step, and interrupts after some."""

    def __init__(self, path: Path, after: int) -> None:
        super().__init__(path, {}, seconds=0)
        self.after = after

    def save(self, *arguments: Any, **more: Any) -> None:
        super().save(*arguments, **more)
        self.after -= 1
        if self.after == 0:
            raise Interrupted


def tuned(digits: Data, recipe: Recipe, seed: int = 0, **options: Any) -> tuple[Result, list[int]]:
    train, val = labelled(digits, 0.3)
    rows: list[int] = []
    result = finetune.finetune(
        network(seed, recipe.backbone),
        Examples(train, val),
        recipe,
        FP32_CPU,
        0,
        control=Control(on_epoch=lambda row: rows.append(row.epoch), **options),
    )
    return result, rows


@pytest.mark.parametrize("recipe", [RECIPE, DROPOUT], ids=["averaged", "dropout"])
def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(
    digits: Data, tmp_path: Path, recipe: Recipe
) -> None:
    whole, _ = tuned(digits, recipe)
    steps = len(labelled(digits, 0.3)[0].labels) // recipe.batch_size
    # In the first epoch, at its end, and again a little later.
    for part, after in enumerate((1, steps - 1, 3)):
        with pytest.raises(Interrupted):
            tuned(digits, recipe, seed=part, checkpoint=Fragile(tmp_path / "a", after))
    torch.manual_seed(99)  # another process, other random numbers: all comes from the checkpoint
    result, rows = tuned(digits, recipe, seed=9, checkpoint=Checkpoint(tmp_path / "a", {}))
    assert same_weights(result.network, whole.network)
    assert result.best_epoch == whole.best_epoch
    timed = {"images_per_s", "seconds"}
    assert [row.model_dump(exclude=timed) for row in result.history] == [
        row.model_dump(exclude=timed) for row in whole.history
    ]
    assert rows == list(range(2, len(whole.history) + 1)), "the first epoch is not reported again"
    assert result.seconds > sum(row.seconds for row in result.history) * 0.99


def test_a_run_that_was_interrupted_at_its_end_only_ends(digits: Data, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a", {})
    whole, _ = tuned(digits, RECIPE, checkpoint=checkpoint)
    again, rows = tuned(digits, RECIPE, seed=9, checkpoint=checkpoint)
    assert same_weights(again.network, whole.network)
    assert again.history == whole.history
    assert rows == []


class Small(torch.nn.Module):
    """A backbone whose memory holds so many images."""

    def __init__(self, backbone: torch.nn.Module, room: int) -> None:
        super().__init__()
        self.backbone, self.room = backbone, room
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.training:
            self.seen.append(len(images))
        out: Tensor = self.backbone(images)
        return out


def small(room: int, recipe: Recipe, freeze: bool = False) -> Network:
    net = network(backbone=recipe.backbone)
    net.backbone = Small(net.backbone, room)
    return net


def test_without_memory_for_a_batch_its_gradients_are_summed_over_parts(digits: Data) -> None:
    # A network without batch norm and without dropout: the same gradients, but for rounding.
    plan = replace(PLATEAU, epochs=1, optimizer="sgd", lr=0.05)
    train, val = labelled(digits, 0.3)
    results = []
    said: list[str] = []
    for room in (1_000, 20):
        net = small(room, plan)
        for part in net.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        results.append(
            finetune.finetune(
                net, Examples(train, val), plan, FP32_CPU, 0, control=Control(say=said.append)
            )
        )
        assert isinstance(net.backbone, Small)
        assert set(net.backbone.seen) == ({64} if room == 1_000 else {16})
    whole, parts = results
    assert (whole.micro_batches, parts.micro_batches) == (1, 4)
    told = [line for line in said if "out of GPU memory" in line]
    assert [line.split("through in ")[1].split(",")[0] for line in told] == ["2 parts", "4 parts"]
    for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert parts.history[0].train_loss == pytest.approx(whole.history[0].train_loss, rel=1e-4)


def test_memory_for_less_than_two_images_is_an_error_with_a_remedy(digits: Data) -> None:
    train, val = labelled(digits, 0.3)
    with pytest.raises(DeviceError, match=r"too small for a training step on 2 images.*--image-s"):
        finetune.finetune(small(1, RECIPE), Examples(train, val), RECIPE, FP32_CPU, 0)
