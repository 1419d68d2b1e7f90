"""Recipes: what is accepted, and the one sentence that a user reads for each fault."""

import json
import stat
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tokkata.core import schema_corpora
from tokkata.core.errors import UserError
from tokkata.core.recipe import RecipeError, check_recipe, dump_recipe, load_recipe
from tokkata.core.schema_file import schema_json
from tokkata.core.sections import Section

RECIPES = Path(__file__).parents[2] / "recipes"

TINY = """\
name: tiny
data: {kind: synth, num_clips: 8}
codec: {kind: pocket}
model: {kind: transformer, dim: 32, num_heads: 2}
train: {steps: 10, lr: 1e-3}
"""

MIXED = """\
name: mixed
data:
  kind: mixed
  corpora:
    - {kind: synth}
    - {kind: folder, root: music}
model: {kind: dac}
train: {steps: 10}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def mixed_file(tmp_path):
    path = tmp_path / "mixed.yaml"
    path.write_text(MIXED)
    return path


def faults(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


# --- what is accepted


def test_values_and_defaults(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.train.lr == 1e-3
    assert recipe.train.batch_size == 16
    assert recipe.data == schema_corpora.SynthCorpus(kind="synth", num_clips=8)
    assert recipe.folder == Path("runs/tiny")


def test_overrides_win_over_the_file_and_make_sections(recipe_file):
    recipe = load_recipe(
        recipe_file, ["train.steps=1e3", "train.lr=5e-4", "generate.top_k=null", "runs_dir=/r"]
    )
    assert recipe.train.steps == 1000
    assert recipe.train.lr == 5e-4
    assert recipe.generate.top_k is None
    assert recipe.folder == Path("/r/tiny")


def test_overrides_reach_into_lists(mixed_file):
    recipe = load_recipe(mixed_file, ["data.corpora.0.num_clips=3", "data.corpora.1={kind: synth, seed: 5}"])
    assert recipe.data.corpora[0].num_clips == 3
    assert recipe.data.corpora[1] == schema_corpora.SynthCorpus(kind="synth", seed=5)


def test_an_override_can_fill_an_empty_section(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY.replace("train: {steps: 10, lr: 1e-3}", "train:"))
    assert load_recipe(path, ["train.steps=3"]).train.steps == 3


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "1E-3", ".001", "0.001", "+1e-3"])
def test_numbers_in_every_notation(recipe_file, text):
    assert load_recipe(recipe_file, [f"train.lr={text}"]).train.lr == 1e-3


def test_no_is_text(recipe_file):
    # YAML 1.1 takes a plain `no` for false.
    assert load_recipe(recipe_file, ["train.precision=no"]).train.precision == "no"


def test_anchors_and_merges(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = MIXED.replace("{kind: synth}", "&one {kind: synth, num_clips: 3}")
    path.write_text(text.replace("- {kind: folder, root: music}", "- {<<: *one, seed: 7}"))
    assert load_recipe(path).data.corpora[1] == schema_corpora.SynthCorpus(kind="synth", num_clips=3, seed=7)


def test_a_recipe_does_not_change_after_loading(recipe_file):
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(recipe_file).train.steps = 3


# --- one sentence for each fault


MODELS = (
    "'transformer', 'wavenet', 'samplernn', 'rnn', 'causal_conv', 'dit', 'unet', 'stable_audio',"
    " 'consistency', 'dac', 'encodec', 'vae', 'mel_vae', 'wavegan', 'specgan', 'gansynth', 'drumgan',"
    " 'darkgan', 'vqcpc_gan' or 'musika'"
)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "train.warmpu_steps=3",
            "unknown key 'train.warmpu_steps', did you mean 'train.warmup_steps'?",
        ),
        ("data.num_clip=3", "unknown key 'data.num_clip', did you mean 'data.num_clips'?"),
        ("model.num_head=3", "unknown key 'model.num_head', did you mean 'model.num_heads'?"),
        ("codec.num_codebooks=3", "unknown key 'codec.num_codebooks': known here are kind, stereo"),
        ("evla.seed=3", "unknown key 'evla', did you mean 'eval'?"),
        (
            "audio.x=3",
            "unknown key 'audio.x': known here are channels, loudness_lufs, trim_silence_db,"
            " min_duration_s, max_duration_s",
        ),
        ("train.lr=fast", "'train.lr' cannot be 'fast': a number is expected"),
        ("train.lr=true", "'train.lr' cannot be true: a number is expected"),
        ("train.lr=-1", "'train.lr' cannot be -1: a number above 0 is expected"),
        ("train.lr=.inf", "'train.lr' cannot be Infinity: a finite number is expected"),
        ("train.steps=true", "'train.steps' cannot be true: a number is expected"),
        ("train.steps=1.5", "'train.steps' cannot be 1.5: a whole number is expected"),
        ("train.steps=many", "'train.steps' cannot be 'many': a whole number is expected"),
        ("train.steps=", "'train.steps' cannot be null: a whole number is expected"),
        ("train.betas=[true, 0.9]", "'train.betas.0' cannot be true: a number is expected"),
        ("train.betas=[0.5, 1.5]", "'train.betas.1' cannot be 1.5: a number up to 1 is expected"),
        ("train.betas=0.5", "'train.betas' cannot be 0.5: a list is expected"),
        ("train.schedule=cosin", "'train.schedule' cannot be 'cosin', did you mean 'cosine'?"),
        (
            "train.schedule=x",
            "'train.schedule' cannot be 'x': 'cosine', 'exponential' or 'constant' is expected",
        ),
        ("train=10", "'train' cannot be 10: a section is expected"),
        ("train=", "'train' cannot be null: a section is expected"),
        ("data=synth", "'data' cannot be 'synth': a section is expected"),
        ("data.kind=synht", "'data.kind' cannot be 'synht', did you mean 'synth'?"),
        (
            "codec.kind=mp3",
            "'codec.kind' cannot be 'mp3': 'pocket', 'pocket_vae', 'encodec', 'dac', 'encodec_original',"
            " 'dac_original', 'mimi', 'xcodec', 'oobleck', 'mulaw' or 'linear' is expected",
        ),
        ("model={dim: 3}", f"'model.kind' is missing: {MODELS} is expected"),
        ("data.forms=[]", "'data.forms' cannot be []: a list of 1 or more is expected"),
        ("data.forms=[note, chords]", "'data.forms.1' cannot be 'chords', did you mean 'chord'?"),
        ("data={kind: folder}", "'data.root' is missing"),
        ("codec={kind: dac, id: x/y}", "'codec.num_codebooks' is missing"),
        ("train={batch_size: 3}", "'train.steps' is missing"),
        ("data.pitch_min=80", "data: pitch_min 80 is above pitch_max 76"),
        ("data={kind: folder, root: 3}", "'data.root' cannot be 3: a path is expected"),
        (
            "data={kind: folder, root: x, label_from_parent: perhaps}",
            "'data.label_from_parent' cannot be 'perhaps': true or false is expected",
        ),
        (
            "data={kind: folder, root: x, valid_fraction: 0.5, test_fraction: 0.5}",
            "data: valid_fraction 0.5 and test_fraction 0.5 leave nothing to train on:"
            " together they must be below 1",
        ),
        (
            "model.dim=30",
            "model: dim 30 must be a multiple of 2 * num_heads = 4 (heads need an even width)",
        ),
        ("codec=", "a transformer is trained on tokens: add a section 'codec', such as 'kind: pocket'"),
        (
            "model={kind: wavenet, tell_noise: true}",
            "model: tell_noise needs noise to tell of: give input_noise, such as 8",
        ),
        (
            "generate.assumed_noise=2",
            "generate.assumed_noise is for sample-level models that are told how noisy what they see is:"
            " leave it out, or set model.input_noise and model.tell_noise",
        ),
        ("model.kind=7", f"'model.kind' cannot be '7': {MODELS} is expected"),
    ],
)
def test_faults(recipe_file, override, sentence):
    assert faults(recipe_file, override) == [sentence]


CORPORA = (
    "'synth', 'folder', 'hub_dataset', 'webdataset', 'soundfont', 'nsynth', 'gtzan', 'musicnet', 'maestro' or"
    " 'magnatagatune'"
)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "data.corpora.0.num_clip=1",
            "unknown key 'data.corpora.0.num_clip', did you mean 'data.corpora.0.num_clips'?",
        ),
        ("data.corpora.1.rooot=x", "unknown key 'data.corpora.1.rooot', did you mean 'data.corpora.1.root'?"),
        ("data.corpora.0.seed=x", "'data.corpora.0.seed' cannot be 'x': a whole number is expected"),
        ("data.corpora.1={kind: folder}", "'data.corpora.1.root' is missing"),
        (
            "data.corpora.1={root: x}",
            f"'data.corpora.1.kind' is missing: {CORPORA} is expected",
        ),
        ("data.corpora.0=synth", "'data.corpora.0' cannot be 'synth': a section is expected"),
        (
            "data.corpora.0.kind=mixed",
            f"'data.corpora.0.kind' cannot be 'mixed': {CORPORA} is expected",
        ),
        (
            "codec={kind: pocket}",
            "model 'dac' is a codec and is trained on audio: remove the section 'codec'",
        ),
    ],
)
def test_faults_within_a_list(mixed_file, override, sentence):
    assert faults(mixed_file, override) == [sentence]


OF_ALL = "batch_size, duration_s, labels_from, num_clips, seed, untrained_baseline"


@pytest.mark.parametrize(
    ("kind", "setting", "sentence"),
    [
        (
            "wavegan",
            "cfg_scale",
            "generate.cfg_scale is a setting of language models and diffusion models, and 'wavegan' is not"
            f" one: adversarial models have {OF_ALL}",
        ),
        (
            "musika",
            "steps",
            "generate.steps is a setting of diffusion models, and 'musika' is not one: adversarial models"
            f" have {OF_ALL}",
        ),
        (
            "transformer",
            "steps",
            "generate.steps is a setting of diffusion models, and 'transformer' is not one: language models"
            " have assumed_noise, cfg_scale, overlap_s, prompt_s, temperature, top_k, top_p, weights",
        ),
        (
            "dit",
            "top_k",
            "generate.top_k is a setting of language models, and 'dit' is not one: diffusion models have"
            " cfg_interval, cfg_rescale, cfg_scale, overlap_s, sampler, steps",
        ),
    ],
)
def test_a_setting_of_another_family_of_models(recipe_file, kind, setting, sentence):
    assert faults(recipe_file, f"model={{kind: {kind}}}", f"generate.{setting}=2") == [sentence]


def test_a_model_assumes_no_more_noise_than_it_meets(recipe_file):
    model = "model={kind: wavenet, input_noise: 4, tell_noise: true}"
    assert faults(recipe_file, model, "generate.assumed_noise=5") == [
        "generate.assumed_noise 5 is above 4, the most noise that the model is trained with"
        " (model.input_noise)"
    ]


def test_each_of_several_faults_gets_a_line(recipe_file):
    overrides = ["train.lr=fast", "modle={}", "data.kind=folder", "train.warmup=3"]
    assert faults(recipe_file, *overrides) == [
        "'data.root' is missing",
        "unknown key 'data.num_clips': known here are kind, labels, caption, group_by, valid_fraction,"
        " test_fraction, root, label_from_parent, metadata, caption_from_name, allow_unlisted",
        "'train.lr' cannot be 'fast': a number is expected",
        "unknown key 'train.warmup', did you mean 'train.warmup_steps'?",
        "unknown key 'modle', did you mean 'model'?",
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.steps", "'train.steps' is not an override: write key=value, such as train.steps=200"),
        ("=3", "'=3' is not an override: write key=value, such as train.steps=200"),
        ("train..steps=3", "'train..steps=3' is not an override: write key=value, such as train.steps=200"),
        ("name.first=x", "'name.first' cannot be set: 'name' is 'tiny', not a section"),
        ("train.steps.x=3", "'train.steps.x' cannot be set: 'steps' is 10, not a section"),
        (
            "train.betas=[1",
            "the value of train.betas is not valid YAML in line 1:"
            " expected ',' or ']', but got '<stream end>'",
        ),
    ],
)
def test_faults_of_overrides(recipe_file, override, sentence):
    assert faults(recipe_file, override) == [sentence]


@pytest.mark.parametrize("position", ["2", "-1", "first"])
def test_an_override_beyond_a_list(mixed_file, position):
    assert faults(mixed_file, f"data.corpora.{position}={{}}") == [
        f"'data.corpora.{position}' cannot be set: '{position}' must be a position from 0 to 1"
    ]


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "none.yaml"
    assert faults(path) == [f"recipe {path} cannot be read: no such file or directory"]


def test_a_folder_in_place_of_a_file(tmp_path):
    assert faults(tmp_path) == [f"recipe {tmp_path} cannot be read: is a directory"]


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (b"\xff\xfe\x00", "cannot be read: not a text file"),
        (b"", "must hold sections such as 'data:' and 'model:'"),
        (b"- a\n- b\n", "must hold sections such as 'data:' and 'model:'"),
        (
            b"name: a\ndata: {kind: synth\n",
            "is not valid YAML in line 3: expected ',' or '}', but got '<stream end>'",
        ),
        (b"name: a\nname: b\n", "is not valid YAML in line 2: key 'name' is given twice"),
        (
            b"train:\n  steps: 1\n  lr: 1\n  steps: 2\n",
            "is not valid YAML in line 4: key 'steps' is given twice",
        ),
        (b"? [a]\n: b\n", "is not valid YAML in line 1: found unhashable key"),
        (
            b"name: !!python/object:os.system x\n",
            "is not valid YAML in line 1: could not determine a constructor for the tag",
        ),
        (b"name: \x07\n", "is not valid YAML: cannot be parsed"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, ending):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    (sentence,) = faults(path)
    assert sentence.removeprefix("recipe ").startswith(f"{path} {ending}")


def test_recipe_faults_are_user_errors():
    assert issubclass(RecipeError, UserError)
    assert UserError.exit_code == 2


# --- every section


def sections(of=Section):
    found = of.__subclasses__()
    return found + [section for child in found for section in sections(child)]


def numbers_in(annotation):
    return {annotation} & {int, float} | {n for part in typing.get_args(annotation) for n in numbers_in(part)}


def full_of_true(annotation):
    """True where the annotation has a number: in lists, in pairs, in lists of pairs."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is list:
        return [full_of_true(inner[0])] * 2
    if typing.get_origin(annotation) is tuple:
        return [True] * 2
    lists = [one for one in inner if typing.get_origin(one) in (list, tuple)]  # "or null"
    return full_of_true(lists[0]) if lists else True


def test_no_number_in_any_section_takes_true_or_false():
    seen = 0
    for section in sections():
        for name, field in section.model_fields.items():
            if not numbers_in(field.annotation):
                continue
            with pytest.raises(ValidationError) as caught:
                section.model_validate({name: full_of_true(field.annotation)})
            refused = {error["loc"][0] for error in caught.value.errors() if error["type"] == "float_type"}
            assert name in refused, f"{section.__name__}.{name} takes true for 1"
            seen += 1
    assert seen > 40


def test_every_setting_is_described():
    for section in sections():
        assert section.__doc__, section
        for name, field in section.model_fields.items():
            assert field.description or name == "kind", f"{section.__name__}.{name} has no docstring"


# --- the schema for editors


def test_the_schema_file_is_up_to_date():
    stored = json.loads((RECIPES / "schema.json").read_text(encoding="utf-8"))
    assert stored == schema_json(), "run: python -m tokkata.core.schema_file recipes/schema.json"


def test_the_schema_file_is_written_as_stored(tmp_path):
    command = [sys.executable, "-m", "tokkata.core.schema_file", str(tmp_path / "schema.json")]
    subprocess.run(command, check=True)
    assert (tmp_path / "schema.json").read_bytes() == (RECIPES / "schema.json").read_bytes()


def test_the_schema_says_what_editors_need():
    written = schema_json()
    assert written["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert written["title"] == "Tokkata recipe"
    assert {"name", "data", "model", "train"} == set(written["required"])
    lr = written["$defs"]["Train"]["properties"]["lr"]
    assert lr["description"] == "Peak learning rate."
    assert (lr["type"], lr["exclusiveMinimum"], lr["default"]) == ("number", 0.0, 0.001)
    condition = written["$defs"]["ModelCondition"]["anyOf"]  # a name alone, or a section
    assert condition[0]["type"] == "string"
    sections_written = [d for name, d in written["$defs"].items() if name != "ModelCondition"]
    for definition in [*sections_written, condition[1]]:
        assert definition["additionalProperties"] is False
        for name, setting in definition["properties"].items():
            assert not {"gt", "ge", "lt", "le"} & setting.keys(), f"{name}: limits that JSON Schema has not"


# --- round trip and the recipes that ship


def test_dump_round_trips(recipe_file, mixed_file, tmp_path):
    for path in (recipe_file, mixed_file):
        recipe = load_recipe(path)
        dumped = tmp_path / "dumped.yaml"
        dumped.write_text(dump_recipe(recipe))
        assert load_recipe(dumped) == recipe
        # Other YAML readers see the same values.
        assert check_recipe(yaml.safe_load(dumped.read_text())) == recipe


# PyYAML writes U+0085 as the line break that it then reads it as.
TEXT = st.text(st.characters(exclude_characters="\x85"), min_size=1)
AMBIGUOUS = ["no", "on", "1e3", "1", "010", "null", "~", "2020-01-01", "1:30", "<<", "=", "0x1", "1_0", ".5"]


@settings(max_examples=40, deadline=None)
@given(
    id=TEXT | st.sampled_from(AMBIGUOUS),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    steps=st.integers(min_value=1),
    conditions=st.lists(TEXT, unique=True),
)
def test_dump_round_trips_any_value(tmp_path_factory, id, lr, steps, conditions):
    values = yaml.safe_load(TINY)
    values["codec"] = {"kind": "dac", "id": id, "num_codebooks": 1}
    values["train"] = {"steps": steps, "lr": lr}
    values["model"]["conditions"] = conditions
    recipe = check_recipe(values)
    dumped = tmp_path_factory.getbasetemp() / "any.yaml"
    dumped.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(dumped) == recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_recipes_that_ship(path):
    load_recipe(path)
    assert path.read_text().splitlines()[0] == "#!/usr/bin/env -S tokkata run"
    assert path.stat().st_mode & stat.S_IXUSR, f"chmod +x {path}"
