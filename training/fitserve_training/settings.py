"""From a request's words to the resolved configuration of a run."""

from __future__ import annotations

import os
from pathlib import Path

from fitserve_training.config import RunConfig, Values, merge, read_toml, to_toml
from fitserve_training.data.own.kinds import is_path, kind_of
from fitserve_training.data.places import Places
from fitserve_training.errors import UsageError, unknown_name
from fitserve_training.recipe import Recipe

_NOT_THE_MATHEMATICS = (
    *("seed", "device", "threads", "compile", "memory_format", "deterministic"),
    *("log_every", "checkpoint_every_s", "tensorboard"),
)


def resolve_config(recipe: Recipe, config_file: Path | None, changes: Values, places: Places) -> RunConfig:
    """Resolves every setting: defaults, the recipe's, its preset for the data, the file, then `changes`.

    Raises:
        UsageError: a key or a value is wrong, or the file is unreadable or of another recipe.
    """
    file_values = read_config(config_file, recipe.address) if config_file else {}
    chosen, flat = _before_changes(recipe, file_values | changes, places)
    flat = merge(flat, file_values, str(config_file))
    flat = merge(flat, changes, "--set")
    return RunConfig.from_flat({**flat, "data.name": chosen})


def _before_changes(recipe: Recipe, values: Values, places: Places) -> tuple[str, Values]:
    chosen = _chosen_data(recipe, str(values.get("data.name", "auto")), places)
    return chosen, own_settings(recipe, chosen, recipe.preset_for(chosen, values))


def given_settings(recipe: Recipe, config_file: Path | None, changes: Values, places: Places) -> tuple[str, ...]:
    """Names the settings that a person chose: all of `changes`, and those of the file that it changes.

    A file may be the config.toml of another run, which has every setting.
    """
    file_values = read_config(config_file, recipe.address) if config_file else {}
    _, own = _before_changes(recipe, file_values | changes, places)
    merged = merge(own, file_values, str(config_file))
    return (*changes, *(key for key in file_values if key not in changes and merged[key] != own[key]))


def changed_settings(recipe: Recipe, config: RunConfig, config_file: Path | None, changes: Values) -> RunConfig:
    """Lays the settings given beside --resume over those of the run; `auto` stands for the data that the run has.

    Raises:
        UsageError: as `resolve_config`.
    """
    file_values = read_config(config_file, recipe.address) if config_file else {}
    own = config.to_flat()
    flat = merge(merge(own, file_values, str(config_file)), changes, "--set")
    name = str(flat["data.name"])
    if name == "auto":
        flat["data.name"] = own["data.name"]
    elif name not in recipe.data_names and is_path(name):
        flat["data.name"] = os.path.realpath(name)
    return RunConfig.from_flat(flat)


def _chosen_data(recipe: Recipe, name: str, places: Places) -> str:
    """Resolves the name of the data; the user's own gets its whole path, so that the run finds it from anywhere."""
    if name == "auto" or name in recipe.data_names:
        return recipe.choose_data(name, places)
    if not is_path(name):
        raise unknown_name(f"data for recipe {recipe.name}", name, recipe.data_names)
    kind = kind_of(Path(name))
    if kind not in recipe.own_data:
        takes = f"own data of kind {', '.join(recipe.own_data)}" if recipe.own_data else "no data of your own"
        raise UsageError(
            f"data {name}: recipe {recipe.name} takes {takes}, and this is of kind {kind}; "
            "without a recipe the one for it is taken"
        )
    return os.path.realpath(name)


def own_settings(recipe: Recipe, data_name: str, preset: str) -> Values:
    """Gives the recipe's settings for this data and preset before anybody changes them."""
    flat: Values = {**RunConfig().to_flat(), **recipe.defaults}
    return merge(flat, {**recipe.presets.get(preset, {}), "data.name": data_name}, "preset")


def is_own_mathematics(recipe: Recipe, config: RunConfig) -> bool:
    """Says whether nothing was changed that decides what is computed, so that published figures apply."""
    flat, data_name = config.to_flat(), str(config.data["name"])
    own = own_settings(recipe, data_name, recipe.preset_for(data_name, flat))
    return all(flat[key] == own[key] for key in flat if key not in _NOT_THE_MATHEMATICS)


def config_text(recipe: Recipe, config: RunConfig) -> str:
    """Gives the text of the run's config.toml, which --config reads back."""
    return to_toml({"recipe": recipe.address, **config.to_flat()})


def read_config(path: Path, recipe_name: str) -> Values:
    """Reads a configuration file.

    Raises:
        UsageError: it is unreadable, or names another recipe.
    """
    values = read_toml(path)
    named = values.pop("recipe", recipe_name)
    if named != recipe_name:
        raise UsageError(f"config file {path}: expected settings of recipe {recipe_name}, got recipe {named}")
    return values
