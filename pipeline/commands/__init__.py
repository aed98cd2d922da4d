"""The commands of `mar`, one file each, in the order in which `mar --help` lists them.

A file holds `main(words)`; its docstring begins with 'TARGET [flags]: what it does', and is its help. The file of a
command whose name Python keeps for itself ends in an underscore.
"""

COMMANDS = (
    "run", "tokenize", "train", "evaluate", "tune", "sample", "status", "source", "latents", "import", "export",
    "prune", "compare", "registry", "ui", "recipes",
)  # fmt: skip
