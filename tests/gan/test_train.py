"""Training of adversarial models: every kind of them, resuming, phases, validation, and what is refused.

Shapes: B batch, D latent width, T frames of the codec.
"""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokkata.core import divergence
from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl
from tokkata.core.schema_gan import GAN_KINDS
from tokkata.gan import train as module
from tokkata.gan.batches import REAL, STEP
from tokkata.gan.gan_model import GanModel
from tokkata.gan.generate import generate
from tokkata.gan.load import load_gan
from tokkata.gan.losses import Hinge
from tokkata.gan.prepare import prepare
from tokkata.gan.train import MODEL, GanStep, Judge, train_gan
from tokkata.tests.core.device_waits import DEVICES, waits_of_steps
from tokkata.tests.gan.made_notes import RATE, write_notes
from tokkata.tests.gan.tiny_gans import NUM_SAMPLES
from tokkata.tokenize.codec import load_codec
from tokkata.tokenize.store import TokenRow, TokenWriter

# Two resolutions: of 4 clips a step, steps 0 to 3 are at the lower one, 4 to 7 fade, and the rest are grown.
FADE = {"images_per_phase": 16}
GROWING = ("gansynth", "drumgan", "darkgan")
LEVELS = [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1]


WEIGHTS = ("model.safetensors", "model_1.safetensors", "averaged.safetensors")


def curve(recipe):
    return [row for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "lr" in row]


def scores(recipe):
    """How different clips are, by the step of the validation."""
    rows = read_jsonl(recipe.folder / "logs" / "train.jsonl")
    return {row["step"]: row["valid/diversity"] for row in rows if "valid/diversity" in row}


@pytest.fixture
def break_off(monkeypatch):
    """`break_off(recipe, step=7)`: train, and lose power in a step."""

    def run(recipe, step):
        def fail(self, modules, batch):
            if int(batch[STEP]) == step:
                raise RuntimeError("gone away")
            return loss(self, modules, batch)

        loss = GanStep.discriminator_loss
        monkeypatch.setattr(GanStep, "discriminator_loss", fail)
        with pytest.raises(RuntimeError, match="gone away"):
            train_gan(recipe)
        monkeypatch.undo()
        assert not (recipe.folder / "model").exists()

    return run


@pytest.mark.parametrize("kind", GAN_KINDS)
def test_every_kind_is_trained_saved_and_found_again(gan_run, kind):
    recipe = gan_run(kind, model={"discriminator_steps": 2}, train={"validate_every": 2})
    train_gan(recipe)
    model = load_gan(recipe.folder / "model")
    assert model.config.section == recipe.model
    assert not model.training
    heads = {f"discriminator/{name}" for name in model.config.conditions.names}
    for row in curve(recipe):
        assert row.keys() >= {"discriminator/verdict", "discriminator/real", "discriminator/made"} | heads
        assert all(math.isfinite(value) for value in row.values())
    assert list(scores(recipe)) == [2, 3]
    again = recipe.folder / "again"
    model.save_pretrained(again)
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (recipe.folder / "model" / name).read_bytes()
    made = generate(model, NUM_SAMPLES, batch_size=2)
    assert made.shape == (2, 1, NUM_SAMPLES)
    assert made.isfinite().all()
    assert "| diversity |" in (recipe.folder / "model" / "README.md").read_text()


@pytest.mark.parametrize("kind", GAN_KINDS)
def test_both_networks_learn(gan_run, job_of, kind):
    """Every weight has a gradient, of growing networks in a fade; neither phase touches the other's."""
    job = job_of(gan_run(kind, model=FADE if kind in GROWING else {}))
    batch = job.batch(LEVELS.index(0.5), range(4))
    for phase in job.phases:
        loss = phase.loss(job.modules, batch)
        assert float(loss.weight) == 4
        loss.mean.backward()
        for name, network in job.modules.items():
            for parameter in network.parameters():
                assert parameter.requires_grad
                assert (parameter.grad is None) == (name != phase.module)
        job.modules[phase.module].zero_grad(set_to_none=True)


def test_the_losses_are_the_sum_of_what_the_log_says(gan_run, job_of):
    job = job_of(gan_run("gansynth", model={"head_weight": 3.0, "loss": {"kind": "hinge", "r1_weight": 2.0}}))
    for phase, terms in zip(job.phases, (("verdict", "r1"), ("verdict",)), strict=True):
        loss = phase.loss(job.modules, job.batch(0, range(4)))
        expected = sum(loss.metrics[name] for name in terms) + 3.0 * loss.metrics["pitch"]
        torch.testing.assert_close(loss.mean, expected)


def test_a_game_whose_scores_have_run_away_ends_and_writes_no_more_checkpoints(gan_run, monkeypatch):
    settings = {"steps": 60, "save_every": 5}
    recipe = gan_run("specgan", model={"loss": {"kind": "hinge"}, "discriminator_steps": 1}, train=settings)
    monkeypatch.setattr(Hinge, "ceiling", 1e-6)  # as if these scores were large
    monkeypatch.setattr(divergence, "_PATIENCE", 20)
    with pytest.raises(
        UserError, match=r"'score_size' is .* lower train\.lr; the newest checkpoint from before"
    ):
        train_gan(recipe)
    assert not list((recipe.folder / "checkpoints").glob("step-*"))
    ended = curve(recipe)[-1]
    assert ended["step"] == 19
    real, made = abs(ended["discriminator/real"]), abs(ended["discriminator/made"])
    assert ended["discriminator/score_size"] >= (real + made) / 2 - 1e-6


@pytest.mark.parametrize(("kind", "more"), [("gansynth", FADE), ("wavegan", {"discriminator_steps": 3})])
def test_resumed_bit_for_bit(gan_run, break_off, kind, more):
    """In the middle of a fade, and between two steps of the generator."""
    settings = {"steps": 10, "save_every": 5, "validate_every": 4, "batch_size": 4}
    whole, parts = (gan_run(kind, name=name, model=more, train=settings) for name in ("whole", "parts"))
    train_gan(whole)
    break_off(parts, step=6)
    saved = load_file(parts.folder / "checkpoints" / "step-000005" / "model.safetensors")
    assert 0 <= float(saved["level"]) < 1
    train_gan(parts)
    for name in ("model/model.safetensors", *(f"checkpoints/step-000010/{name}" for name in WEIGHTS)):
        assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes(), name
    assert scores(parts) == scores(whole)


def test_the_generator_learns_in_one_of_several_steps(gan_run):
    settings = {"steps": 7, "save_every": 1, "keep_checkpoints": 7, "ema_decay": 0.0}
    recipe = gan_run("wavegan", model={"discriminator_steps": 3}, train=settings)
    train_gan(recipe)
    assert [row["step"] for row in curve(recipe) if "generator/loss" in row] == [3, 6]
    saved = [
        {name: load_file(folder / f"{name}.safetensors") for name in ("model", "model_1")}
        for folder in sorted((recipe.folder / "checkpoints").iterdir())
    ]
    changed = {
        name: [step for step in range(2, 8) if _differ(saved[step - 2][name], saved[step - 1][name])]
        for name in saved[0]
    }
    assert changed == {"model": [3, 6], "model_1": [2, 3, 4, 5, 6, 7]}


def _differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one if name != "level")


def test_a_network_grows_as_clips_are_seen(gan_run, monkeypatch):
    """Validation and what is saved are at the resolution of training."""
    seen = []
    forward = GanModel.forward

    def watch(self, noise, told, level):
        image = forward(self, noise, told, level)
        seen.append((self.training, level, image.shape[-1]))
        return image

    monkeypatch.setattr(GanModel, "forward", watch)
    recipe = gan_run("gansynth", model=FADE, train={"steps": len(LEVELS), "validate_every": 1})
    train_gan(recipe)
    sizes = [16 if level == 0 else 32 for level in LEVELS]
    validated = [one for one in seen if not one[0]]
    assert validated == [(False, level, size) for level, size in zip(LEVELS, sizes, strict=True)]
    trained = [one for one in seen if one[0]]  # once by each phase
    assert trained[::2] == trained[1::2]
    assert trained[::2] == [(True, level, size) for level, size in zip(LEVELS, sizes, strict=True)]
    assert float(load_gan(recipe.folder / "model").level) == LEVELS[-1]


def test_real_images_are_those_of_the_level(gan_run, job_of, monkeypatch):
    """What the discriminator is shown of a clip has the size, and the detail, of what is made."""
    job = job_of(gan_run("gansynth", model=FADE))
    shown = []
    judge = Judge.forward

    def watch(self, images, told, draws, level):
        shown.append([image.detach() for image in images])
        return judge(self, images, told, draws, level)

    monkeypatch.setattr(Judge, "forward", watch)
    model = job.modules[MODEL]
    whole = model.encode(job.batch(0, range(4))[REAL])
    small = torch.nn.functional.avg_pool2d(whole, 2)
    expected = {0: small, 6: (small.repeat_interleave(2, 2).repeat_interleave(2, 3) + whole) / 2, 9: whole}
    for step, real in expected.items():
        job.phases[0].loss(job.modules, job.batch(0, range(4)) | {STEP: torch.tensor(step)})
        images = shown.pop()
        torch.testing.assert_close(images[0], real, atol=1e-6, rtol=0)
        # The penalty's image lies between the other two.
        share = job.batch(0, range(4))["mix"][:, None, None, None]
        torch.testing.assert_close(images[2], images[0] + share * (images[1] - images[0]), atol=1e-6, rtol=0)


def test_mixed_precision_is_of_the_networks_alone(gan_run, monkeypatch):
    seen = []
    judge = Judge.forward

    def watch(self, images, told, draws, level):
        verdicts = judge(self, images, told, draws, level)
        seen.extend((image.dtype, one.scores[0].dtype) for image, one in zip(images, verdicts, strict=True))
        return verdicts

    monkeypatch.setattr(Judge, "forward", watch)
    recipe = gan_run("wavegan", model={"discriminator_steps": 1}, train={"precision": "bf16"})
    train_gan(recipe)
    # Real, made and mixed ones in each step, and those that the generator is judged by.
    assert seen == [(torch.float32, torch.bfloat16)] * 12
    assert all(row["skipped_steps"] == 0 for row in curve(recipe))
    weights = load_file(recipe.folder / "model" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_a_step_that_is_not_finite_is_skipped_and_counted(gan_run, monkeypatch):
    loss = GanStep.discriminator_loss

    def spoil(self, modules, batch):
        if int(batch[STEP]) == 1:
            batch = batch | {REAL: batch[REAL] * math.nan}
        return loss(self, modules, batch)

    monkeypatch.setattr(GanStep, "discriminator_loss", spoil)
    recipe = gan_run("gansynth", train={"steps": 4})
    train_gan(recipe)
    assert [row["skipped_steps"] for row in curve(recipe)] == [0, 1, 1, 1]
    for name in ("model/model", "checkpoints/step-000004/model_1"):
        weights = load_file(recipe.folder / f"{name}.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("stop", [False, True])
def test_a_collapse_is_told_of_and_ends_a_run_that_asks_for_it(gan_run, monkeypatch, capsys, stop):
    """The generator is sound at first and then makes silence."""
    validated = []
    make = GanModel.make

    def fall_silent(self, *inputs):
        validated.append(0)
        real = make(self, *inputs)
        loudness = torch.linspace(0.1, 1, len(real))[:, None, None]
        return torch.randn(real.shape) * loudness * (len(validated) <= 2)

    monkeypatch.setattr(GanModel, "make", fall_silent)
    settings = {"steps": 6, "validate_every": 1, "save_every": 1, "keep_checkpoints": 9}
    recipe = gan_run("wavegan", model={"collapse": {"stop": stop}}, train=settings)
    checkpoints = recipe.folder / "checkpoints"
    said = (
        "the generator has collapsed: 100% of the clips that it makes are silent, in 2 validations in a row"
        f" (step-000002 in {checkpoints} is from before; to go on from there, delete those that are newer,"
        " lower train.lr or model.discriminator_lr, and run the same command again)"
    )
    if stop:
        with pytest.raises(UserError) as caught:
            train_gan(recipe)
        assert str(caught.value) == said
        assert len(validated) == 4
        assert not (recipe.folder / "model").exists()
    else:
        train_gan(recipe)
        told = [line for line in capsys.readouterr().err.splitlines() if "collapsed" in line]
        assert told == [f"train: {said}"]
        assert (recipe.folder / "model").exists()


@pytest.mark.parametrize("kind", ["drumgan", "darkgan", "vqcpc_gan"])
def test_validation_is_of_the_same_clips_every_time(gan_run, job_of, monkeypatch, kind):
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    job = job_of(gan_run(kind))
    model = job.modules[MODEL].eval()
    found = job.validate(model)
    assert found.keys() == {"silent", "clicks", "diversity"}
    assert job.validate(model) == found


@pytest.mark.parametrize("kind", ["wavegan", "gansynth", "darkgan"])
@pytest.mark.parametrize("held_out", [{}, {"valid": 3, "valid_pitch": 90}])
def test_without_a_clip_to_validate_on_training_goes_on(gan_recipe, capsys, kind, held_out):
    """There is none, or none whose label has been met in training."""
    recipe = gan_recipe(kind, train={"validate_every": 1})
    write_notes(recipe, train=6, **held_out)
    if kind == "darkgan":
        prepare(recipe)
    capsys.readouterr()
    train_gan(recipe)
    no_clip = "train: no clip of the split 'valid' can be validated on"
    expected = int(not held_out or kind != "wavegan")  # which is told no label
    assert capsys.readouterr().err.splitlines().count(no_clip) == expected
    card = (recipe.folder / "model" / "README.md").read_text()
    assert ("There was no held-out clip to validate on." in card) == bool(expected)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (
            "gansynth",
            {"model": {"conditions": ["colour"]}},
            "the tokens have no label 'colour': they have pitch, instrument_family",
        ),
        (
            "wavegan",
            {"train": {"crop_s": 0.1}},
            "model.num_layers 3 with stride 4 makes clips whose samples are multiples of 64, not 800: change"
            " train.crop_s, the representation or num_layers",
        ),
        (
            "gansynth",
            {"model": {"channels": [8, 8, 8, 8]}, "train": {"crop_s": 0.1}},
            "images of 32 frequencies and 25 frames cannot be halved 3 times, as 4 numbers in model.channels"
            " ask: choose a window, a hop and a clip length that make both multiples of 8, or fewer channels",
        ),
    ],
)
def test_what_does_not_go_together_is_said_in_one_sentence(gan_run, kind, changes, said):
    recipe = gan_run(kind, **changes)
    with pytest.raises(UserError) as caught:
        train_gan(recipe)
    assert str(caught.value) == said
    assert not (recipe.folder / "checkpoints").exists()


def test_shards_are_refused(gan_run, monkeypatch):
    monkeypatch.setattr(module, "is_sharded", lambda network: True)
    with pytest.raises(UserError, match="not trained with FSDP yet: start the run without ACCELERATE_USE"):
        train_gan(gan_run("wavegan"))


def test_without_a_clip_to_train_on_there_is_no_run(gan_recipe):
    recipe = gan_recipe("wavegan")
    write_notes(recipe, valid=2)
    with pytest.raises(UserError, match="there are no clips in the split 'train': lower the fractions held"):
        train_gan(recipe)


def test_codes_are_refused(gan_recipe):
    recipe = gan_recipe("wavegan")
    codes = np.zeros((1, 2000), dtype=np.int64)
    row = TokenRow("clip", "train", codes, 2000, "clip", "", labels={}, caption=None)
    writer = TokenWriter(recipe.folder / "tokens", load_codec(f"mulaw:{RATE}").info, {}, 1)
    writer.write(0, [row], [])
    writer.finish()
    with pytest.raises(UserError, match=r"an adversarial model needs latents, but .* holds codes"):
        train_gan(recipe)


@pytest.mark.parametrize("kind", GAN_KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_no_step_waits_for_a_gpu(kind, gan_run, job_of, device, monkeypatch):
    recipe = gan_run(kind)
    assert waits_of_steps(job_of(recipe), recipe.train, recipe.folder, device, monkeypatch) == [0] * 5
