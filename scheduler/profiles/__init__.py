"""Cost profiles that come with the project: TOML files, described in docs/profiles.md."""
