"""`preprocess corpora`."""

from __future__ import annotations

import click

from preprocess.cli.output import Output, format_table, output_options


@click.command()
@output_options
def corpora(output: Output) -> None:
    """List the built-in corpora with their size and licence."""
    from preprocess.recipes.catalog import list_builtin_corpora, load_recipe

    results = []
    rows: list[tuple[str, ...]] = [("name", "licence", "size", "description")]
    for name in list_builtin_corpora():
        recipe = load_recipe(name)
        size_bytes = sum(file.bytes for file in recipe.files) or None
        size = recipe.size if size_bytes is None else f"{size_bytes:,} bytes"
        hint = f"; copied from {recipe.hub}" if recipe.hub else ""
        rows.append((name, recipe.licence, size, recipe.description + hint))
        results.append(
            {
                "name": name,
                "licence": recipe.licence,
                "size_bytes": size_bytes,
                "size": size,
                "description": recipe.description,
                "hub": recipe.hub,
            }
        )
    output.write(results, format_table(rows, num_text_columns=4))
