"""The HTML pages of both commands: their layout, tables and style, and how they are filled."""
