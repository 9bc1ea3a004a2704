"""Registry of the recipes, by name."""

from data.errors import DataError
from data.outbrain import leak_free, published
from data.outbrain.recipe import Recipe

RECIPES = {recipe.name: recipe for recipe in (leak_free.RECIPE, published.RECIPE)}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        DataError: if there is no such recipe.
    """
    if name not in RECIPES:
        raise DataError(f"recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]
