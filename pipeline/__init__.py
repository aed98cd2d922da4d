"""The whole: recipes, the run that walks through them, the model registry and the command line."""
