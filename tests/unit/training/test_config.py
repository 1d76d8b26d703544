"""Settings: types, ranges, precedence, and the TOML that records them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitserve_training.catalogue import load_recipe, names
from fitserve_training.config import _ELSEWHERE, RunConfig, Scalar, merge, parse_assignments, read_toml, to_toml
from fitserve_training.data.places import Places
from fitserve_training.errors import UsageError
from fitserve_training.settings import config_text, is_own_mathematics, resolve_config

KEYS = st.from_regex(r"([a-z_]{1,8}\.)?[a-z_]{1,8}", fullmatch=True)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
)


@given(values=st.dictionaries(KEYS, SCALARS))
def test_toml_gives_back_what_was_written(values: dict[str, Scalar], tmp_path_factory: pytest.TempPathFactory) -> None:
    tables = {key.partition(".")[0] for key in values if "." in key}
    values = {key: value for key, value in values.items() if key not in tables}
    path = tmp_path_factory.mktemp("toml") / "c.toml"
    path.write_text(to_toml(values), encoding="utf-8")

    found = read_toml(path)

    assert found == values
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in values.items()}


def test_a_configuration_survives_flattening() -> None:
    config = RunConfig(lr=0.5, data={"name": "digits"}, model={"input_scale": 0.1})

    assert RunConfig.from_flat(config.to_flat()) == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("lrr=1", "unknown setting in --set 'lrr'; did you mean 'lr'"),
        ("grad_clip=1", "unknown setting in --set 'grad_clip'; did you mean 'clip_norm'? (known: seed, epochs"),
        ("learning_rate=1", "unknown setting in --set 'learning_rate'; did you mean 'lr'?"),
        ("precision=fp16", "setting 'precision': expected one of float32, bfloat16, got 'fp16'"),
        ("lr=fast", "setting 'lr': expected a finite number, got 'fast'"),
        ("lr=nan", "setting 'lr': expected a finite number, got 'nan'"),
        ("lr=0", "setting 'lr': expected a number above 0, got 0.0"),
        ("epochs=2.5", "setting 'epochs': expected a whole number, got '2.5'"),
        ("epochs=0", "setting 'epochs': expected at least 1, got 0"),
        ("nesterov=maybe", "setting 'nesterov': expected true or false, got 'maybe'"),
        ("compile=hard", "setting 'compile': expected one of auto, off, module, step, got 'hard'"),
        ("data.name=mnist", "unknown data for recipe softmax 'mnist'; did you mean 'fashion_mnist'"),
        ("epochs", "--set: expected key=value, got 'epochs'"),
        ("=3", "--set: expected key=value, got '=3'"),
    ],
)
def test_a_wrong_setting_is_named(assignment: str, message: str, tmp_path: Path) -> None:
    recipe, places = load_recipe("softmax"), Places(None, tmp_path)

    with pytest.raises(UsageError) as caught:
        resolve_config(recipe, None, parse_assignments([assignment]), places)

    assert message in str(caught.value)


@pytest.mark.parametrize(("spelt", "meant"), [("bf16", "bfloat16"), ("fp32", "float32"), ("bfloat16", "bfloat16")])
def test_a_precision_may_be_spelt_short(spelt: str, meant: str, tmp_path: Path) -> None:
    assert resolve_config(load_recipe("lenet"), None, {"precision": spelt}, Places(None, tmp_path)).precision == meant


def test_what_others_call_a_setting_means_one_that_there_is() -> None:
    known = {key for name in names() for key in {**RunConfig().to_flat(), **load_recipe(name).defaults}}

    assert set(_ELSEWHERE.values()) <= known
    assert not _ELSEWHERE.keys() & known


def test_file_wins_over_preset_and_assignment_over_file(tmp_path: Path) -> None:
    recipe, places = load_recipe("lenet"), Places(None, tmp_path / "cache")
    file = tmp_path / "c.toml"
    file.write_text('lr = 0.5\nbatch_size = 7\n[data]\nname = "digits"\n')

    config = resolve_config(recipe, file, {"batch_size": "9"}, places)

    assert (config.optimizer, config.epochs, config.lr, config.batch_size) == ("adam", 40, 0.5, 9)


def test_the_recorded_configuration_resolves_to_itself(tmp_path: Path) -> None:
    recipe, places = load_recipe("lenet"), Places(None, tmp_path / "cache")
    config = resolve_config(recipe, None, {"seed": "3", "data.name": "digits"}, places)
    (tmp_path / "config.toml").write_text(config_text(recipe, config))

    assert resolve_config(recipe, tmp_path / "config.toml", {}, places) == config


def test_a_file_of_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('recipe = "lenet"\n')

    with pytest.raises(UsageError, match="expected settings of recipe softmax, got recipe lenet"):
        resolve_config(load_recipe("softmax"), tmp_path / "c.toml", {}, Places(None, tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("lr = ", "not TOML"), ("lr = [1]", "setting 'lr': expected one value"), (None, "No such file")],
)
def test_an_unreadable_file_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(UsageError, match=message) as caught:
        read_toml(path)

    assert str(path) in str(caught.value)


def test_a_value_of_the_wrong_kind_in_a_file_is_refused() -> None:
    with pytest.raises(UsageError, match="setting 'epochs': expected a whole number, got True"):
        merge(RunConfig().to_flat(), {"epochs": True}, "c.toml")


def test_published_figures_hold_for_the_recipes_own_settings_only(tmp_path: Path) -> None:
    recipe, places = load_recipe("linreg"), Places(None, tmp_path)
    own = resolve_config(recipe, None, {"seed": 5, "device": "cpu"}, places)
    changed = resolve_config(recipe, None, {"lr": 0.02}, places)

    assert is_own_mathematics(recipe, own)
    assert not is_own_mathematics(recipe, changed)
