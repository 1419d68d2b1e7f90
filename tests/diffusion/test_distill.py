"""Distillation of flows: that few steps come nearer to the truth than the teacher's, and its bookkeeping.

Shapes: B batch, D latent width, T frames.
"""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tokkata.core.errors import UserError
from tokkata.core.files import read_jsonl, write_text
from tokkata.core.recipe import check_recipe, dump_recipe
from tokkata.diffusion import distill as module
from tokkata.diffusion.diffusion_model import DiffusionConfig, DiffusionModel
from tokkata.diffusion.distill import Distillation, Teacher, distill
from tokkata.diffusion.generate import Settings, generate
from tokkata.diffusion.load import load_diffusion
from tokkata.diffusion.networks.dit import DiTConfig
from tokkata.diffusion.objective import Consistency, Denoised, Flow, make_objective
from tokkata.diffusion.sample import sample as generate_stage
from tokkata.diffusion.sampler import Start, clip_generators, draw_noise, sample
from tokkata.diffusion.train import train_diffusion
from tokkata.tests.forked import run_forked

# ------------------------------------------------------------------ frames of two kinds, whose flow is known

MEANS = torch.tensor([[1.0, 0.6], [-1.0, -0.6]])  # [K, D]
STD = 0.2
T = 4


def frames(count: int, seed: int) -> Tensor:
    """[count, D]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(2, (count,), generator=generator)
    return MEANS[chosen] + STD * torch.randn(count, 2, generator=generator)


def known_flow(x: Tensor, time: Tensor) -> Denoised:
    """The mean of the clean frames given the noisy ones, and of the noise."""
    time = time.clamp(min=1e-4)[:, None, None]
    variance = ((1 - time) * STD) ** 2 + time**2
    means = MEANS[None, :, :, None]
    distance = x[:, None] - (1 - time[:, None]) * means  # [B, K, D, T]
    weight = (-distance.square().sum(2) / (2 * variance)).softmax(1)[:, :, None]
    each = means + ((1 - time) * STD**2 / variance)[:, None] * distance
    x0 = (weight * each).sum(1)
    return Denoised(x0, (x - (1 - time) * x0) / time)


class KnownTeacher(Teacher):
    """The true flow, in place of a network's."""

    def _slope(self, x, time, told):
        found = known_flow(x, time)
        return found.noise - found.x0


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Of two sets of as many frames [N, 2]: the mean over 16 directions."""
    angles = torch.arange(16) * torch.pi / 16
    directions = torch.stack([angles.cos(), angles.sin()])
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


def tiny_flow(num_intervals: int = 16, target_decay: float = 0.95) -> Distillation:
    torch.manual_seed(0)
    network = DiTConfig(latent_dim=2, in_dim=2, max_frames=T, dim=32, num_layers=1, num_heads=2)
    teacher = KnownTeacher(DiffusionModel(DiffusionConfig(network=network, objective=Flow())))
    return Distillation(teacher, num_intervals=num_intervals, target_decay=target_decay)


@pytest.fixture(scope="module")
def student():
    """Distilled from the true flow."""
    pair = tiny_flow()
    optimizer = torch.optim.AdamW(pair.student.parameters(), lr=2e-3)
    average = copy.deepcopy(pair.student)
    for step in range(250):
        generator = torch.Generator().manual_seed(step)
        latents = frames(48 * T, 1000 + step).reshape(48, T, 2).transpose(1, 2)
        noise = torch.randn(latents.shape, generator=generator)
        pair(latents, noise, pair.objective.draw_times(48, generator)).mean.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        optimizer.step()
        optimizer.zero_grad()
        pair.update_target(step)
        with torch.no_grad():
            for mean, new in zip(average.parameters(), pair.student.parameters(), strict=True):
                mean.lerp_(new, 0.03)
    return average.eval()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_come_nearer_to_the_truth_than_the_teachers(student, steps):
    generators = clip_generators(0, 0, 256)
    noise = draw_noise(generators, 2, T)
    teacher = sample(known_flow, Flow(), noise, steps=steps)

    def predict(x, time):
        return student.objective.denoised(student.network(x, time, {}), x, time)

    found = sample(predict, student.objective, noise, steps=steps, generators=generators)
    theirs, ours = (
        sliced_wasserstein(one.transpose(1, 2).reshape(-1, 2), frames(256 * T, 5)) for one in (teacher, found)
    )
    assert ours < 0.7 * theirs
    assert ours < 0.25  # two real sets of this size are 0.02 apart, the teacher's single step is 0.75


# ------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_intervals_follow_each_other_from_noise_to_latents(shift):
    objective = Consistency(num_intervals=5, shift=shift)
    time, seen = torch.ones(1), [1.0]
    for _ in range(5):
        time = objective.before(time)
        seen.append(float(time))
    expected = objective.shifted(torch.linspace(1, 0, 6))
    torch.testing.assert_close(torch.tensor(seen), expected, atol=1e-6, rtol=1e-6)
    drawn = objective.draw_times(500, torch.Generator().manual_seed(0)).unique()
    torch.testing.assert_close(drawn.flip(0), expected[:-1], atol=1e-6, rtol=1e-6)
    assert make_objective(objective.to_dict()) == objective


def test_a_step_of_the_teacher_is_one_of_heuns():
    """Which is what the sampler does between the same times."""
    teacher = KnownTeacher(tiny_flow().student)
    x = draw_noise(clip_generators(0, 0, 3), 2, T)
    told = module._Told({}, None, None, torch.zeros_like(x))
    halfway = teacher.step(x, torch.ones(3), torch.full((3,), 0.5), told)
    end = teacher.step(halfway, torch.full((3,), 0.5), torch.zeros(3), told)
    torch.testing.assert_close(end, sample(known_flow, Flow(), x, steps=2, sampler="heun"))


def test_a_consistent_student_has_no_loss():
    """With one normal kind of frame the end of every curve is known: that function has almost none, and many
    times that if the teacher's slope is twice as steep."""
    pair = tiny_flow(num_intervals=64)
    normal = torch.nn.Module()

    def slope(x, time):
        time = time[:, None, None]
        variance = ((1 - time) * STD) ** 2 + time**2
        x0 = (1 - time) * STD**2 / variance * x
        return (x - x0) / time.clamp(min=1e-6)

    def direction(x, time, given, mask=None):
        time = time[:, None, None]
        end = STD * x / (((1 - time) * STD) ** 2 + time**2).sqrt()
        return (x - end) / time.clamp(min=1e-6)

    normal.forward = direction
    pair.student.network = pair.target.network = normal
    pair._teacher._slope = lambda x, time, told: slope(x, time)
    noise = draw_noise(clip_generators(0, 0, 40), 2, T)
    latents = STD * draw_noise(clip_generators(1, 0, 40), 2, T)
    time = pair.objective.draw_times(40, torch.Generator().manual_seed(0))
    right = float(pair(latents, noise, time).mean)
    pair._teacher._slope = lambda x, time, told: 2 * slope(x, time)
    assert right < 0.1 * float(pair(latents, noise, time).mean)


def test_the_target_follows_the_student_as_the_step_says():
    pair = tiny_flow(target_decay=0.5)
    with torch.no_grad():
        for parameter in pair.student.parameters():
            parameter.fill_(1.0)
        for parameter in pair.target.parameters():
            parameter.fill_(0.0)
    assert pair.update_target(0) == pytest.approx(2 / 11)
    assert pair.update_target(100) == 0.5
    expected = 1 - 0.5 * 2 / 11
    assert all(torch.allclose(p, torch.tensor(expected)) for p in pair.target.parameters())
    newest = tiny_flow(target_decay=0.0)
    with torch.no_grad():
        next(newest.student.parameters()).fill_(3.0)
    newest.update_target(50)
    assert torch.equal(next(newest.target.parameters()), next(newest.student.parameters()))


def test_sampling_jumps_and_comes_back_part_of_the_way():
    """Algorithm 1 by hand, for frames that are normal, whose consistency function is known."""
    objective, seen = Consistency(), []

    def predict(x, time):
        seen.append(float(time[0]))
        level = time[:, None, None]
        x0 = STD * x / (((1 - level) * STD) ** 2 + level**2).sqrt()
        return Denoised(x0, (x - (1 - level) * x0) / level)

    generators = clip_generators(0, 0, 200)
    noise = draw_noise(generators, 2, T)
    found = sample(predict, objective, noise, steps=3, generators=generators)
    assert seen == pytest.approx([1, 2 / 3, 1 / 3])
    assert float(found.std()) == pytest.approx(STD, rel=0.1)
    one = sample(predict, objective, noise, steps=1, generators=clip_generators(0, 0, 200))
    torch.testing.assert_close(one, STD * noise)
    own = clip_generators(0, 0, 200)
    draw_noise(own, 2, T)
    x = noise
    for time, following in ((1.0, 0.5), (0.5, 0.0)):
        x0 = predict(x, torch.full((200,), time)).x0
        x = (1 - following) * x0 + following * draw_noise(own, 2, T)
    generators = clip_generators(0, 0, 200)
    draw_noise(generators, 2, T)
    torch.testing.assert_close(sample(predict, objective, noise, steps=2, generators=generators), x)
    known = torch.tensor([True, False, False, True])
    kept = sample(
        predict,
        objective,
        noise,
        steps=3,
        generators=clip_generators(0, 0, 200),
        start=Start(frames(200 * T, 0).reshape(200, 2, T), known=known),
    )
    assert torch.equal(kept[..., known], frames(200 * T, 0).reshape(200, 2, T)[..., known])


# ------------------------------------------------------------------------------------------------- the stage


TOLD = {"conditions": ["pitch"], "mask_conditions": True}


@pytest.fixture
def distillation(diffusion_recipe, write_latents):
    """`distillation(name="fast", model={…}, train={…})`: its recipe, over a trained flow's latents."""
    teacher = diffusion_recipe(name="teacher", model=TOLD, train={"crop_s": 0.2})
    write_latents(teacher, train=8, valid=2)
    train_diffusion(teacher)

    def make(**changes):
        model = {"kind": "consistency", "teacher": str(teacher.folder), "num_intervals": 4}
        values = diffusion_recipe(name=changes.get("name", "fast")).model_dump()
        values["model"] = model | changes.get("model", {})
        values["train"] |= changes.get("train", {})
        recipe = check_recipe(values)
        write_latents(recipe, train=8, valid=2)
        return recipe

    return make


def test_the_student_is_a_model_like_any_and_knows_its_sampler(distillation):
    recipe = distillation(model={"cfg_scale": 2.0}, train={"steps": 4, "log_every": 1})
    distill(recipe)
    model, teacher = load_diffusion(recipe.folder), load_diffusion(recipe.folder.parent / "teacher")
    assert model.objective == Consistency(num_intervals=4)
    assert model.config.conditions == teacher.config.conditions
    assert model.config.codec == teacher.config.codec
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), teacher.parameters(), strict=True))
    frames = generate(model, 8, conditions={"pitch": [60, 61]}, settings=Settings(steps=4))
    assert frames.shape == (2, model.network.latent_dim, 8)
    assert torch.isfinite(frames).all()
    with pytest.raises(UserError, match="the sampler euler does not go with the objective consistency"):
        generate(model, 8, settings=Settings(steps=4, sampler="euler"))
    rows = [row for row in read_jsonl(recipe.folder / "logs" / "train.jsonl") if "target_decay" in row]
    assert [row["target_decay"] for row in rows] == pytest.approx([2 / 11, 3 / 12, 4 / 13, 5 / 14])
    assert json.loads((recipe.folder / "model" / "config.json").read_text())["objective"]["kind"] == (
        "consistency"
    )


def test_stopped_and_resumed_is_bitwise_undisturbed(distillation, monkeypatch):
    changes = {"model": {"cfg_scale": 2.0}, "train": {"steps": 6, "save_every": 2}}
    whole, parts = (distillation(name=name, **changes) for name in ("whole", "parts"))
    distill(whole)
    loop_loss, calls = module.loss, []

    def fail(modules, batch):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("gone away")
        return loop_loss(modules, batch)

    monkeypatch.setattr(module, "loss", fail)
    with pytest.raises(RuntimeError, match="gone away"):
        distill(parts)
    monkeypatch.undo()
    distill(parts)
    name = "model/model.safetensors"
    assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()


def test_previews_are_of_the_student(distillation):
    asked = {"num_clips": 2, "steps": 4, "labels_from": "valid", "untrained_baseline": False}
    recipe = distillation(train={"previews": 2})
    recipe = recipe.model_copy(update={"generate": recipe.generate.model_copy(update=asked)})
    distill(recipe)
    (folder,) = (recipe.folder / "previews").iterdir()
    previews = [(folder / f"{i:05d}.wav").read_bytes() for i in range(2)]
    generate_stage(recipe)
    assert previews == [(recipe.folder / "samples" / f"{i:05d}.wav").read_bytes() for i in range(2)]


def test_guidance_is_that_of_sampling(distillation):
    """The slope of a guided teacher is the guided direction; clips that are told nothing have their own."""
    recipe = distillation()
    model = load_diffusion(recipe.folder.parent / "teacher")
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    given = model.config.conditions.encode({"pitch": [60, None]})
    x = draw_noise(clip_generators(0, 0, 2), model.network.latent_dim, 6)
    told = module._Told(given, None, None, x)
    time = torch.full((2,), 0.7)
    plain, guided = (Teacher(model, scale)._slope(x, time, told) for scale in (1.0, 3.0))
    with torch.no_grad():
        hidden = model.network(model.inputs(x), time, {})
    torch.testing.assert_close(guided, hidden + 3 * (plain - hidden), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(guided[1], plain[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(guided[0], plain[0], atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"crop_s": 0.3}}, r"train.crop_s: 0.3 s are more than the 0.2 s of model.teacher"),
        ({"model": {"teacher": "nowhere/at/all"}}, "nowhere/at/all"),
    ],
)
def test_what_cannot_be_distilled_is_one_sentence(distillation, changes, message):
    with pytest.raises(UserError, match=message):
        distill(distillation(**changes))


def test_only_flows_are_distilled(distillation, diffusion_recipe, write_latents):
    other = diffusion_recipe(name="v", model={"objective": {"kind": "v"}})
    write_latents(other, train=8)
    train_diffusion(other)
    with pytest.raises(UserError, match="has the objective v: only a model with the objective flow"):
        distill(distillation(model={"teacher": str(other.folder)}))
    untold = diffusion_recipe(name="untold")
    write_latents(untold, train=8)
    train_diffusion(untold)
    with pytest.raises(UserError, match="is told nothing, so it must be 1"):
        distill(distillation(model={"teacher": str(untold.folder), "cfg_scale": 2.0}))


def test_two_processes_are_one(tmp_path, distillation, environment):
    recipe = distillation(name="one", model={"cfg_scale": 2.0}, train={"steps": 4, "validate_every": 2})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    distill(recipe)
    write_text(tmp_path / "two.yaml", dump_recipe(recipe.model_copy(update={"name": "two"})))
    program = (
        "import sys, pathlib; from tokkata.core.recipe import load_recipe;"
        " from tokkata.diffusion.distill import distill; distill(load_recipe(pathlib.Path(sys.argv[1])))"
    )
    write_text(tmp_path / "program.py", program)
    environ = {**environment, "ACCELERATE_USE_CPU": "true"}
    result = run_forked(tmp_path, 2, environ, tmp_path / "program.py", tmp_path / "two.yaml")
    assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=0, atol=1e-5)
