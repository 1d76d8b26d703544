"""The recipes, one module each; `fitserve_training.catalogue` names them."""
