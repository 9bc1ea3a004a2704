"""The MineThatData e-mail challenge (Kevin Hillstrom, 2008): visit, conversion and spend."""
