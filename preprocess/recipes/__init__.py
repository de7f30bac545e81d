"""The built-in corpora, one TOML file each."""
