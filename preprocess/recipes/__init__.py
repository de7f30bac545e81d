"""Recipes: the settings of a build. Each TOML file in this folder is a built-in corpus."""
